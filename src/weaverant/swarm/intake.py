"""The rows of a peer: those of the source that it leases, what others had begun of them, and what comes of them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from heapq import heappop, heappush
from operator import attrgetter
from typing import Any

from msgspec import Struct

from weaverant.events import RowsCut, RowsDone, RowsTaken, TaskEvent
from weaverant.protocols import Clock
from weaverant.runtime.feed import NumberedRows
from weaverant.runtime.intake import Write
from weaverant.runtime.ledger import Ledger
from weaverant.runtime.stagebook import Refused, StageBook
from weaverant.runtime.unfinished import Begun
from weaverant.swarm.leases import Cut, Grant, Holding
from weaverant.swarm.takeover import Found
from weaverant.task import Row


class Lease(Struct):
    """Tasks of the source that this peer works on, by their numbers. `next` is the first that was not started."""

    number: int
    start: int
    stop: int
    next: int
    prior: tuple[int, ...]
    open: int = 0
    """Tasks that began or wait to, and have not ended."""
    ready: bool = False
    """It is known what others had begun of it."""
    started: set[int] = set()
    """Numbers that others had begun."""
    tail: int = 0
    """From here on nothing was begun by anybody."""
    kept: int = 0
    """Where it ends durably: no sooner than `stop`."""


class LeasedIntake:
    """Implements `RowsIn`. What it has to tell the office collects in `done` and `cuts` until that has heard it."""

    gathering = False
    held_back = False

    def __init__(self, rows: NumberedRows, book: StageBook, ledger: Ledger, clock: Clock) -> None:
        self.drained = False
        """Nothing is left to do in the whole run."""
        self.source_rows: int | None = None
        """How many tasks the source has, once somebody came to its end."""
        self.done: dict[int, Lease] = {}
        """Leases that are whole, until `heard`."""
        self._unsaid: set[int] = set()
        """Those of them of which that is not durable yet."""
        self.cuts: dict[int, int] = {}
        """Where leases end now, durably, for those who asked for less of them, until `heard`."""
        self.released: Callable[[str], None] = lambda task: None
        """Called with every task that has ended."""
        self.brought: Callable[[Sequence[TaskEvent]], None] = lambda events: None
        """Called with what had happened to each task that others had begun."""
        self.starts = 0
        """Rows that were started."""
        self._rows = rows
        self._book = book
        self._ledger = ledger
        self._clock = clock
        self._leases: list[Lease] = []
        """By their start."""
        self._ended: set[int] = set()
        """Numbers of leases that this peer had and is done with."""
        self._backlog: list[tuple[int, int, Row | Refused | Begun]] = []
        self._count = 0
        self._hungry: Callable[[], None] = lambda: None
        self._more: Callable[[], None] = lambda: None
        self._write: Write
        self._source_failed: Callable[[BaseException], None]
        self._broken: Callable[[BaseException], None]

    # What the swarm asks

    @property
    def waiting(self) -> bool:
        return bool(self._backlog)

    def attach(
        self,
        write: Write,
        source_failed: Callable[[BaseException], None],
        broken: Callable[[BaseException], None],
    ) -> None:
        self._write, self._source_failed, self._broken = write, source_failed, broken

    def wake_with(self, wake: Callable[[], None]) -> None:
        self._more = wake

    def next(self) -> Row | Refused | Begun | None:
        if self._backlog:
            return heappop(self._backlog)[2]
        for lease in tuple(self._leases):
            while lease.ready and lease.next < lease.stop:
                number = lease.next
                lease.next += 1
                if number in lease.started:
                    continue
                try:
                    got = self._rows.get(number)
                except (Exception, SystemExit) as error:  # the boundary to a source
                    lease.next = number
                    self._source_failed(error)
                    return None
                if got is None:
                    self._end_source(number)
                    return None
                lease.open += 1
                self.starts += 1
                self._ledger.stages[0].rows += 1
                if lease.next == lease.stop and not self.unstarted:
                    self._hungry()
                return got
            self._look_at(lease)
        self._hungry()
        return None

    def made(self, row: Row, result: Any) -> None:
        self._enter(self._of(row.order), self._book.enter(row, result))

    def ended(self, row: Row) -> None:
        lease = self._of(row.order)
        lease.open -= 1
        self._look_at(lease)
        self.released(row.key)

    def close_groups(self) -> None:
        """Groups are formed when no peer works any more."""

    def nothing_left(self) -> bool:
        return False

    def close(self) -> Iterator[Row | Refused]:
        return iter(())

    # What the office and the peer ask

    def hungry_with(self, hungry: Callable[[], None]) -> None:
        """`hungry` is called where there is nothing more to start, or will not be soon."""
        self._hungry = hungry

    @property
    def unstarted(self) -> int:
        """Rows that wait to begin."""
        return sum(lease.stop - lease.next for lease in self._leases) + len(self._backlog)

    def holdings(self) -> list[Holding]:
        """What this peer leases, as the office sees it."""
        held = [*self._leases, *self.done.values()]
        return [Holding(each.number, each.start, each.kept, max(each.next, each.tail), each.prior) for each in held]

    def ended_leases(self) -> list[tuple[int, int]]:
        """Those that are whole, durably: number, and where they ended."""
        return [(number, lease.kept) for number, lease in self.done.items() if number not in self._unsaid]

    def heard(self, done: Collection[int], cuts: Collection[int]) -> None:
        """The office knows of these."""
        for number in done:
            self.done.pop(number, None)
        for number in cuts:
            self.cuts.pop(number, None)

    def take(self, grant: Grant) -> bool:
        """Lease these rows. False where it has them, or had. `fill` has to follow."""
        if grant.number in self._ended or any(lease.number == grant.number for lease in self._leases):
            return False
        self._write(RowsTaken(grant.number, grant.start, grant.stop, self._clock.time()), None)
        self._leases.append(Lease(grant.number, grant.start, grant.stop, grant.start, grant.prior, kept=grant.stop))
        self._leases.sort(key=lambda lease: lease.start)
        return True

    def fill(self, grant: Grant, found: Found) -> None:
        """What others had begun of them is known."""
        lease = next((lease for lease in self._leases if lease.number == grant.number), None)
        if lease is None:
            return
        lease.started = found.started
        lease.tail = max(found.started, default=lease.start - 1) + 1
        for begun in found.begun:
            assert begun.taken is not None
            self.brought(begun.events)
            self._ledger.stages[begun.taken.stage].rows += 1
            lease.open += 1
            self._push(begun.order, begun)
        for row, result in found.results:
            rows = self._book.enter(row, result)
            known = [got for got in rows if _key(got) in found.tasks]
            self._ledger.stages[row.stage + 1].rows -= len(known)
            self._enter(lease, [got for got in rows if _key(got) not in found.tasks])
        lease.ready = True
        self._look_at(lease)
        self._more()

    def cut(self, wish: Cut) -> None:
        """Give away what is unstarted of a lease from there on, as far as it is."""
        lease = next((lease for lease in self._leases if lease.number == wish.number), None)
        if lease is None or not lease.ready:
            return
        stop = max(wish.stop, lease.next, lease.tail)
        if stop < lease.stop:
            lease.stop = stop
            self._write(RowsCut(lease.number, stop, self._clock.time()), partial(self._given, lease, stop))
            self._look_at(lease)
        else:
            self.cuts[lease.number] = lease.kept
            self._hungry()

    def _of(self, number: int) -> Lease:
        leases = self._leases
        return leases[0] if len(leases) == 1 else leases[bisect_right(leases, number, key=_start) - 1]

    def _enter(self, lease: Lease, rows: list[Row | Refused]) -> None:
        lease.open += len(rows)
        for got in rows:
            self._push(lease.start if isinstance(got, tuple) else got.order, got)

    def _push(self, order: int, got: Row | Refused | Begun) -> None:
        self._count += 1
        heappush(self._backlog, (order, self._count, got))

    def _end_source(self, number: int) -> None:
        """There is no such row, and so none after it."""
        self.source_rows = number
        for lease in list(self._leases):
            stop = min(lease.stop, max(number, lease.start))
            if stop < lease.stop:
                lease.stop = stop
                self._write(RowsCut(lease.number, stop, self._clock.time()), partial(self._given, lease, stop))
            lease.next = min(lease.next, lease.stop)
            self._look_at(lease)
        self._hungry()

    def _look_at(self, lease: Lease) -> None:
        """Whether it is done with."""
        if lease.ready and lease.next >= lease.stop and not lease.open and lease in self._leases:
            self._leases.remove(lease)
            self._ended.add(lease.number)
            self.done[lease.number] = lease  # the office is told that it has ended only once that is durable
            self._unsaid.add(lease.number)
            self._write(RowsDone(lease.number, self._clock.time()), partial(self._whole, lease.number))

    def _whole(self, number: int) -> None:
        self._unsaid.discard(number)
        if not self.unstarted:  # else the next beat is soon enough
            self._hungry()

    def _given(self, lease: Lease, stop: int) -> None:
        lease.kept = min(lease.kept, stop)
        self.cuts[lease.number] = lease.kept
        self._hungry()


_start = attrgetter("start")


def _key(got: Row | Refused) -> str:
    return got[0].key if isinstance(got, tuple) else got.key
