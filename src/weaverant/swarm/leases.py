"""The lease book: which peer holds which tasks of a run. It reads no clock and does no I/O.

Tasks are numbered from 0 (row index * trials + trial). An epoch is one incarnation of a peer; its home is its journal.
A lease is a range of tasks held by one epoch, under a number larger than all before; for each task the highest decides.

The book relies on this: a peer takes a grant only if its number is above all that it has taken, and of no office before
the one it joined; tells of a lease until an office has accepted its end; starts no task that it has given up; and an
office is dead before homes are read for the next one.
"""

from __future__ import annotations

from collections.abc import Iterable

from weaverant.swarm.presence import Presence
from weaverant.swarm.shares import Shares
from weaverant.swarm.spans import Claim, Span, Spans, fold
from weaverant.swarm.tails import Holder, Lease, Tails
from weaverant.swarm.terms import Cut, Grant, Holding, Orders, Record, Stranger

GENERATION = 40
"""Bits of a grant's number that count the grants of one office."""
MOST_GRANTS = 64
"""In one answer: what is free may lie in many pieces."""

__all__ = ["Cut", "Grant", "Holding", "LeaseBook", "Orders", "Record", "Stranger"]


class LeaseBook:
    """All methods take `now` in seconds of any clock that never goes back."""

    def __init__(
        self, generation: int, records: Iterable[Record], open_homes: Iterable[int], total: int | None, now: float,
        *, closed_homes: Iterable[int], rows: int = 1024, least: int = 64, lease: float = 4.0,
        began: Iterable[tuple[int, int]] = (), planned: int = 1,
    ) -> None:  # fmt: skip
        """`records` of all homes; `closed_homes`: those closed or fenced, whose peers never join again; `open_homes`:
        all others; `total` tasks, None where not known.

        A grant is of `least` to `rows` tasks, fewer where few are left. A peer unheard for `lease` seconds is silent.
        `began`: ranges in which sessions of one process (epoch 0) may have begun tasks. `planned`: so many peers are to
        join soon, and each has its part of what there is. ValueError for a generation that is no newer than a record's.
        """
        self.total = total
        """None where nobody has come to the end of the source."""
        self._given = total or 0
        self._reached = 0
        """Tasks below have ended in leases of this office."""
        self._rows, self._least = rows, least
        self._number = generation << GENERATION
        self._records = {(record.epoch, record.number, record.start): record for record in records}
        self._began = [Claim(start, stop, -1, 0, "free") for start, stop in began]
        newest = max((record.number for record in self._records.values()), default=-1)
        if newest >= self._number:
            raise ValueError(f"generation {generation} is not above {newest >> GENERATION}, which has granted already")
        self._peers: dict[int, Holder] = {}
        self._awaited = set(open_homes)
        """Open homes whose peers have not joined: nothing is granted until they have, or are given up."""
        self._newest = max([0, *self._awaited, *closed_homes, *(record.epoch for record in self._records.values())])
        """No epoch up to here joins, but those awaited."""
        self._ended: set[int] = set()
        self._presence = Presence(lease, self._awaited, now)
        self._free = Spans()
        self._fresh = 0
        """From here on no task was ever leased."""
        self._tails = Tails(lease)
        self._shares = Shares(planned, rows, least)
        self.leased = 0
        """Tasks in leases."""
        self._ended_tasks = 0
        self._settled = False
        self._settle()

    def join(self, epoch: int, holdings: Iterable[Holding], now: float) -> None:
        """A peer begins, or goes on after a restart of the office with what it holds. Again is as good as once.

        Stranger for an epoch that has ended, or that holds what this book has not waited for.
        """
        held = list(holdings)
        if epoch in self._presence.silent:
            raise Stranger(epoch)
        if epoch in self._peers:
            self._presence.hear(epoch, now)
            self._told(self._peers[epoch], held)
            return
        if epoch not in self._awaited and (epoch in self._ended or epoch <= self._newest or (held and self._settled)):
            raise Stranger(epoch)
        peer = self._peers[epoch] = Holder()
        self._presence.hear(epoch, now)
        self._shares.join(epoch, peer, self._presence.now)
        for holding in held:
            lease = Lease(epoch, holding.number, holding.start, self._clipped(holding.stop), holding.prior)
            lease.next = holding.next
            if lease.start < lease.stop:
                self._enter(peer, lease)
                self._tails.add(lease)
            self._records.pop((epoch, holding.number, holding.start), None)
        self._awaited.discard(epoch)
        self._settle()

    def expect(self, now: float) -> None:
        """Nobody could join before: those whom it waits for have their time from now on."""
        for epoch in self._awaited:
            self._presence.hear(epoch, now)

    def hear(self, epoch: int, now: float) -> None:
        """The peer lives, and has nothing to say. Stranger: it is not in the book."""
        self._peer(epoch)
        self._presence.hear(epoch, now)

    def beat(self, epoch: int, wants: int, holdings: Iterable[Holding], now: float) -> Orders:
        """What a peer that holds this, and could take so many tasks more, shall do. Stranger: it is not in the book."""
        peer = self._peer(epoch)
        self._presence.hear(epoch, now)
        self._told(peer, holdings)
        wants -= sum([lease.stop - lease.start for lease in peer.untold.values()])
        before, there = peer.held, False
        if wants > 0 and self._settled:
            there = self._give(epoch, peer, wants)
            if not there:
                self._ask(peer, wants)
        given = peer.held - before
        self._shares.served(epoch, peer, wants - given, self._presence.now)
        grants = [Grant(lease.number, lease.start, lease.stop, lease.prior) for lease in peer.untold.values()]
        asked = [lease for lease in peer.leases.values() if lease.asked and lease.until > self._presence.now]
        cuts = [Cut(lease.number, lease.wanted) for lease in asked]
        return Orders(grants, cuts, self.finished, there and not given)

    def cut(self, epoch: int, number: int, stop: int) -> None:
        """The peer has given up what is from `stop` on, durably; its own stop is a refusal. Stranger as for `beat`."""
        peer = self._peer(epoch)
        lease = peer.leases.get(number)
        if lease is None:
            return
        asked = lease.asked
        if stop < lease.stop:
            self._shrink(peer, lease, stop)
            if asked and lease.live:
                self._tails.answered(lease)
        elif asked:
            self._tails.refused(lease, self._presence.now)

    def done(self, epoch: int, number: int, stop: int) -> None:
        """All tasks of the lease have ended, durably; it went as far as `stop`. Stranger as for `beat`, and then the
        end is not accepted."""
        peer = self._peer(epoch)
        lease = peer.leases.get(number)
        if lease is None:
            return
        if stop < lease.stop:
            self._shrink(peer, lease, stop)
        if lease.live:
            self._leave(peer, lease)
            self._reached = max(self._reached, lease.stop)
            if self._settled:
                self._ended_tasks += lease.stop - lease.start
            else:
                self._keep(lease, done=True)

    def source_ended(self, rows: int) -> None:
        """Somebody looked for the task with the number `rows`, and there is none. Who looks from behind the end learns
        no more than that, so the lowest number told is the total; whoever holds the leases below it finds the end.

        ValueError where there were more: their number was known from the beginning, or they have ended.
        """
        if rows < (known := max(self._given, self._reached)):
            raise ValueError(f"the source ends after {rows} tasks and had {known}: it has changed")
        self.total = rows if self.total is None else min(rows, self.total)
        for peer in self._peers.values():
            for lease in [lease for lease in peer.leases.values() if lease.stop > self.total]:
                self._shrink(peer, lease, self.total)
        self._free.clip(self.total)
        self._fresh = min(self._fresh, self.total)

    def leave(self, epoch: int, records: Iterable[Record] | None = None) -> None:
        """The peer's home was closed in order. Its tasks that have not ended are free."""
        self._end(epoch, records)

    def gone(self, epoch: int, records: Iterable[Record] | None = None) -> None:
        """The peer's home is fenced. Its tasks are free, and the next to take them read there what had begun.

        For a home that was open and never joined, here and in `leave`: `records`, its leases read again now that nobody
        writes there; ValueError without.
        """
        self._end(epoch, records)

    def silent(self, now: float) -> list[int]:
        """Whom to fence: unheard for a lease time. They stay strangers, and here, until `gone` or `leave`."""
        return self._presence.look(now)

    @property
    def earliest_deadline(self) -> float | None:
        """When the next peer will be silent, unless it is heard; None where nobody can be."""
        return self._presence.deadline

    @property
    def waiting(self) -> list[int]:
        """Open homes whose peers have neither joined nor been given up: until then nothing is granted."""
        return sorted(self._awaited)

    @property
    def peers(self) -> int:
        """Those who have joined and neither left nor been given up."""
        return len(self._peers)

    @property
    def free(self) -> int:
        """Tasks that nobody holds and that have not ended, as far as is known how many there are."""
        return self._free.rows + (max(0, self.total - self._fresh) if self.total is not None else 0)

    @property
    def ended(self) -> int:
        """Tasks in leases that have ended, and those that had before."""
        return self._ended_tasks if self.total is None or not self._settled else self.total - self.leased - self.free

    @property
    def finished(self) -> bool:
        """The total is known, and all tasks have ended."""
        return not self.leased and self._settled and self.total is not None and not self.free

    @property
    def begun(self) -> bool:
        """The total is known, and of all tasks that have not ended each has begun, as far as peers have told."""
        if not self._settled or self.total is None or self.free:
            return False
        return not any(lease.tail for peer in self._peers.values() for lease in peer.leases.values())

    # Peers

    def _peer(self, epoch: int) -> Holder:
        if epoch not in self._peers or epoch in self._presence.silent:
            raise Stranger(epoch)
        return self._peers[epoch]

    def _told(self, peer: Holder, holdings: Iterable[Holding]) -> None:
        """What a peer tells may be late: leases that have ended are not known any more, and the others only shrink."""
        for holding in holdings:
            lease = peer.leases.get(holding.number)
            if lease is None:
                continue
            if holding.next > lease.next:
                lease.next = holding.next
            if peer.untold and peer.untold.pop(lease.number, None) is not None:
                self._tails.add(lease)
            if holding.stop < lease.stop:
                self.cut(lease.epoch, lease.number, holding.stop)

    def _end(self, epoch: int, records: Iterable[Record] | None) -> None:
        if epoch in self._awaited:
            if records is None:
                raise ValueError(f"epoch {epoch} has not joined: what its home holds must be read again")
            self._records |= {(record.epoch, record.number, record.start): record for record in records}
        self._ended.add(epoch)
        self._presence.forget(epoch)
        self._shares.end(epoch)
        self._awaited.discard(epoch)
        if (peer := self._peers.pop(epoch, None)) is not None:
            for lease in list(peer.leases.values()):
                self._leave(peer, lease)
                self._set_free(lease, lease.start, {*lease.prior, epoch})
        self._settle()

    # Leases

    def _enter(self, peer: Holder, lease: Lease) -> None:
        peer.leases[lease.number] = lease
        peer.held += lease.stop - lease.start
        self.leased += lease.stop - lease.start

    def _leave(self, peer: Holder, lease: Lease) -> None:
        del peer.leases[lease.number]
        peer.untold.pop(lease.number, None)
        peer.held -= lease.stop - lease.start
        self.leased -= lease.stop - lease.start
        self._tails.drop(lease)

    def _shrink(self, peer: Holder, lease: Lease, stop: int) -> None:
        """What is from `stop` on was never started, and is free. A lease of nothing has ended."""
        stop = max(stop, lease.start)
        self._set_free(lease, stop, lease.prior)
        peer.held -= lease.stop - stop
        self.leased -= lease.stop - stop
        lease.stop = stop
        if lease.start == stop:
            self._leave(peer, lease)

    def _set_free(self, lease: Lease, start: int, prior: Iterable[int]) -> None:
        if self._settled:
            self._free.add(start, self._clipped(lease.stop), tuple(sorted(prior)))
        elif start == lease.start:
            self._keep(lease, done=False)

    def _keep(self, lease: Lease, *, done: bool) -> None:
        record = Record(lease.epoch, lease.number, lease.start, lease.stop, done)
        self._records[record.epoch, record.number, record.start] = record

    def _clipped(self, stop: int) -> int:
        return stop if self.total is None else min(stop, self.total)

    def _settle(self) -> None:
        """Once all open homes are known, what is done and what is free."""
        if self._settled or self._awaited:
            return
        claims = [*self._began]
        for record in self._records.values():
            fate = "done" if record.done else "free"
            claims.append(Claim(record.start, self._clipped(record.stop), record.number, record.epoch, fate))
        for peer in self._peers.values():
            for lease in peer.leases.values():
                claims.append(Claim(lease.start, lease.stop, lease.number, lease.epoch, "held"))
        self._settled = True
        self._records, self._began = {}, []
        for start, stop, fate, epochs in fold(claims):
            self._fresh = stop
            if fate == "done":
                self._ended_tasks += stop - start
            elif fate == "free":
                self._free.add(start, stop, epochs)

    # Grants

    def _give(self, epoch: int, peer: Holder, wants: int) -> bool:
        """Grant the peer its part of what is free; False where nothing is."""
        free = None if self.total is None else self.free
        if free == 0:
            return False
        most = self._shares.part(peer, wants, free, len(self._peers), self._presence.now)
        for grants in range(MOST_GRANTS):
            if most <= 0:
                break
            if (span := self._take(min(most, self._rows))) is None:
                return grants > 0
            self._number += 1
            lease = Lease(epoch, self._number, span.start, span.stop, span.prior)
            self._enter(peer, lease)
            peer.untold[lease.number] = lease
            peer.had += span.stop - span.start
            most -= span.stop - span.start
        return True

    def _take(self, most: int) -> Span | None:
        if (span := self._free.take(most)) is not None:
            return span
        start, stop = self._fresh, self._clipped(self._fresh + most)
        self._fresh = max(start, stop)
        return Span(start, stop, ()) if start < stop else None

    def _ask(self, peer: Holder, wants: int) -> None:
        """Ask the holder of the longest tail for half of what it has more than this peer."""
        if peer.asked is not None and peer.asked.asked_at(self._presence.now):
            return
        lease = self._tails.longest(self._presence.now)
        if lease is None or lease.number in peer.leases or lease.epoch in self._presence.silent:
            return
        own = sum(each.tail for each in peer.leases.values())
        half = min((lease.tail - own + 1) // 2, max(wants, self._least))
        if half > 0:
            self._tails.ask(lease, lease.stop - half, self._presence.now)
            peer.asked = lease
