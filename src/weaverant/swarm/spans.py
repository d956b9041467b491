"""Ranges of tasks: those that are free again, and what overlapping claims of many journals come to."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator
from heapq import heappop, heappush
from typing import Literal, NamedTuple

Fate = Literal["held", "done", "free"]


class Span(NamedTuple):
    """Tasks [start, stop). `prior`: the epochs whose journals may hold some of them, ascending."""

    start: int
    stop: int
    prior: tuple[int, ...]


class Spans:
    """Disjoint spans in order; neighbours with the same `prior` are one."""

    def __init__(self) -> None:
        self._spans: list[Span] = []
        self.rows = 0
        """Tasks in all spans."""

    def add(self, start: int, stop: int, prior: tuple[int, ...]) -> None:
        """Nothing of [start, stop) may be in here already. An empty range is nothing."""
        if start >= stop:
            return
        self.rows += stop - start
        at = bisect_left(self._spans, start, key=lambda span: span.start)
        first = last = at
        if at < len(self._spans) and self._spans[at].start == stop and self._spans[at].prior == prior:
            stop, last = self._spans[at].stop, at + 1
        if at and self._spans[at - 1].stop == start and self._spans[at - 1].prior == prior:
            start, first = self._spans[at - 1].start, at - 1
        self._spans[first:last] = (Span(start, stop, prior),)

    def take(self, most: int) -> Span | None:
        """So many of the lowest span's tasks at most; None where nothing is left."""
        if not self._spans:
            return None
        start, stop, prior = self._spans[0]
        end = min(stop, start + most)
        self._spans[:1] = (Span(end, stop, prior),) if end < stop else ()
        self.rows -= end - start
        return Span(start, end, prior)

    def clip(self, total: int) -> None:
        """There are no tasks from `total` on."""
        while self._spans and self._spans[-1].stop > total:
            start, stop, prior = self._spans.pop()
            self.rows -= stop - start
            self.add(start, total, prior)


class Claim(NamedTuple):
    """What one journal says of [start, stop)."""

    start: int
    stop: int
    number: int
    epoch: int
    fate: Fate


class Piece(NamedTuple):
    """What all claims on [start, stop) come to. `epochs`: all that claim it, ascending."""

    start: int
    stop: int
    fate: Fate
    epochs: tuple[int, ...]


def fold(claims: Iterable[Claim]) -> Iterator[Piece]:
    """Every task below the last claim's stop, in order. The highest number decides, but a task that a living peer holds
    is held; what nobody claims is free. O(n log n) for claims of which few overlap."""
    opening = sorted((claim for claim in claims if claim.start < claim.stop), reverse=True)
    closing: list[tuple[int, int, Claim]] = []
    numbers: list[tuple[int, int, Claim]] = []
    epochs: Counter[int] = Counter()
    held = at = entered = 0
    while opening or closing:
        edge = min(opening[-1].start if opening else closing[0][0], closing[0][0] if closing else opening[-1].start)
        if edge > at:
            while numbers and numbers[0][2].stop <= at:
                heappop(numbers)
            fate = "held" if held else numbers[0][2].fate if numbers else "free"
            yield Piece(at, edge, fate, tuple(sorted(epochs)))
            at = edge
        while closing and closing[0][0] == edge:
            claim = heappop(closing)[2]
            held -= claim.fate == "held"
            epochs[claim.epoch] -= 1
            if not epochs[claim.epoch]:
                del epochs[claim.epoch]
        while opening and opening[-1].start == edge:
            claim = opening.pop()
            entered += 1
            heappush(closing, (claim.stop, entered, claim))
            heappush(numbers, (-claim.number, entered, claim))
            held += claim.fate == "held"
            epochs[claim.epoch] += 1
