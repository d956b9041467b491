"""Leases and their holders as the book knows them, and which lease has the most tasks that nobody has started."""

from __future__ import annotations

from collections import deque
from heapq import heapify, heappop, heappush


class Lease:
    """Tasks [start, stop), held by one epoch. Its unstarted tail [next, stop) only ever shrinks."""

    __slots__ = ("asked", "epoch", "live", "next", "number", "prior", "start", "stop", "until", "wanted")

    def __init__(self, epoch: int, number: int, start: int, stop: int, prior: tuple[int, ...]) -> None:
        self.epoch = epoch
        self.number = number
        self.start = start
        self.stop = stop
        self.next = start
        """The first task that the holder, when it was heard last, had not started."""
        self.prior = prior
        self.asked = False
        self.wanted = stop
        """The stop that the holder is asked to consent to."""
        self.until = 0.0
        """When the ask is forgotten, or a refusal; seconds of the book's clock, 0 where there is none."""
        self.live = True

    @property
    def tail(self) -> int:
        """Tasks that the holder has not started, as far as is known."""
        return max(0, self.stop - self.next) if self.live else 0

    def asked_at(self, now: float) -> bool:
        """The holder is asked, and the ask is not forgotten yet."""
        return self.asked and now < self.until


class Holder:
    """A living peer."""

    __slots__ = ("asked", "had", "held", "leases", "untold")

    def __init__(self) -> None:
        self.leases: dict[int, Lease] = {}
        """By number."""
        self.held = 0
        """Tasks in them."""
        self.had = 0
        """Tasks that it has ever got."""
        self.untold: dict[int, Lease] = {}
        """Granted, and not told of by the peer yet: granted again, for the answer may be lost."""
        self.asked: Lease | None = None
        """The lease whose holder was asked last on its behalf."""


class Tails:
    """Finds the longest tail. Tails only shrink, so what stands first in the heap and is still that long is it."""

    def __init__(self, patience: float) -> None:
        """A lease that was asked or has refused rests for `patience` seconds."""
        self._patience = patience
        self._heap: list[tuple[int, int, Lease]] = []
        self._resting: deque[tuple[float, Lease]] = deque()
        self._dead = 0

    def add(self, lease: Lease) -> None:
        heappush(self._heap, (-lease.tail, lease.number, lease))

    def drop(self, lease: Lease) -> None:
        """The lease has ended."""
        lease.live = lease.asked = False
        self._dead += 1
        if self._dead > 64 + len(self._heap) // 2:
            self._heap = [entry for entry in self._heap if entry[2].live]
            heapify(self._heap)
            self._dead = 0

    def longest(self, now: float) -> Lease | None:
        """The lease with the longest tail of those that do not rest."""
        while self._resting and self._resting[0][0] <= now:
            until, lease = self._resting.popleft()
            if lease.until == until:
                self.answered(lease)
        while self._heap:
            length, _, lease = self._heap[0]
            if lease.tail == -length and length:
                return lease
            heappop(self._heap)
            if lease.tail > 0:
                self.add(lease)
        return None

    def ask(self, lease: Lease, stop: int, now: float) -> None:
        """Ask the longest one's holder to give up what is from `stop` on."""
        heappop(self._heap)
        lease.asked, lease.wanted = True, stop
        self._rest(lease, now)

    def refused(self, lease: Lease, now: float) -> None:
        lease.asked = False
        self._rest(lease, now)

    def answered(self, lease: Lease) -> None:
        """The lease was asked; it may be asked again."""
        lease.asked, lease.until = False, 0.0
        if lease.tail > 0:
            self.add(lease)

    def _rest(self, lease: Lease, now: float) -> None:
        lease.until = now + self._patience
        self._resting.append((lease.until, lease))
