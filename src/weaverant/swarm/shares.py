"""Who waits for tasks, and how many each of them may have now, so that few tasks are shared out evenly.

A peer that gets less than it wants is hungry until it is heard again, and so is one that has just joined. Planned peers
that have not come yet are reckoned with for a short time, as hungry ones that hold nothing. Who has more than the mean
of all of them would have waits for the others; nobody waits for one that has enough.
"""

from __future__ import annotations

from weaverant.swarm.tails import Holder

GATHER_S = 1.5
"""Seconds, from the first time that anybody wants tasks, in which those peers are reckoned with that are planned and
have not joined, or have joined and not been heard since: they load what they are to run."""
HUNGRY_S = 1.0
"""Seconds for which a peer that is not heard again stays hungry. Hungry ones beat much more often."""
FIRST = 8
"""Tasks that a peer gets first, where nobody knows how many there are; later half as many as it has had."""


class Shares:
    """All times in seconds of the book's clock."""

    def __init__(self, planned: int, rows: int, least: int) -> None:
        """`planned` peers are to join. No more than `rows` tasks are in one grant; who wants fewer than `least` gets so
        many where there are plenty."""
        self._rows, self._least = rows, least
        self._missing = planned
        self._gathered: float | None = None
        """When nobody is missed any more; None before anybody wanted anything."""
        self._loading: dict[int, Holder] = {}
        """By epoch: have joined, and want nothing yet."""
        self._hungry: dict[int, tuple[float, Holder]] = {}
        """By epoch, each with when it is forgotten."""

    def join(self, epoch: int, peer: Holder, now: float) -> None:
        self._missing -= 1
        if self._gathered is None or now < self._gathered:
            self._loading[epoch] = peer
        else:
            self._hungry[epoch] = now + HUNGRY_S, peer

    def end(self, epoch: int) -> None:
        self._loading.pop(epoch, None)
        self._hungry.pop(epoch, None)

    def served(self, epoch: int, peer: Holder, lacks: int, now: float) -> None:
        """The peer was heard, and `lacks` so many tasks of those that it wants."""
        self.end(epoch)
        if lacks > 0:
            self._hungry[epoch] = now + HUNGRY_S, peer

    def part(self, peer: Holder, wants: int, free: int | None, peers: int, now: float) -> int:
        """Tasks for one of `peers` that wants some: 0 or less where it is others' turn. Where it is known how many are
        `free`, at most its part of half of them, or what it wants where that is little."""
        if self._gathered is None:
            self._gathered = now + GATHER_S
        missing = max(0, self._missing) if now < self._gathered else 0
        room = self._room(peer, free, missing, now)
        most = max(wants, self._least)
        if free is None:
            return min(self._piece(peer), room, most)
        return min(max(-(-free // (2 * (peers + missing))), min(wants, self._least)), room, most)

    def _room(self, peer: Holder, free: int | None, missing: int, now: float) -> int:
        """How far it is below the mean of what all who wait would have. Where nobody knows how many there are, they
        grow by equal steps; until all have come, only by the first. Takes time in proportion to those who wait."""
        self._hungry = {epoch: entry for epoch, entry in self._hungry.items() if now < entry[0]}
        if self._gathered is not None and now >= self._gathered:
            self._loading.clear()
        others = [*self._loading.values(), *(each for _, each in self._hungry.values())]
        hungry = [peer, *(each for each in others if each is not peer)]
        if free is not None:
            return -(-(free + sum(each.held for each in hungry)) // (len(hungry) + missing)) - peer.held
        if missing:
            return FIRST - peer.held
        return min(each.held for each in hungry) + min(map(self._piece, hungry)) - peer.held

    def _piece(self, peer: Holder) -> int:
        return min(self._rows, max(FIRST, peer.had // 2))
