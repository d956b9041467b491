"""Which rows of a source were begun in any of a run's journals, and of which something is left to do.

Rows are counted by their tasks' numbers: index times trials plus trial. Where one process works at a time the rows that
began are the first ones; peers begin them here and there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby

from msgspec import Struct

from weaverant.journal import JournalReader
from weaverant.journal.index import BEGAN, DONE, OPEN, UNCHANGED, later_state
from weaverant.row import source_place

Span = tuple[int, int]
"""Numbers from the first up to the second."""


class Left(Struct, frozen=True, array_like=True):
    """Tasks of the source that began, of which something is left. It stands in the journals of the epochs `prior`."""

    start: int
    stop: int
    prior: tuple[int, ...]


class Survey(Struct, frozen=True):
    """What is known of the rows up to the last one that began."""

    begun: list[Span]
    whole: list[Span]
    """All that came of them has ended."""
    left: list[Left]

    @property
    def frontier(self) -> int:
        """Behind the last that began."""
        return self.begun[-1][1] if self.begun else 0

    def gaps(self) -> list[Span]:
        """Those before the frontier that did not begin."""
        ends = [0, *(stop for _, stop in self.begun)]
        return [(stop, start) for stop, (start, _) in zip(ends, self.begun, strict=False) if stop < start]


def number_of(task: str, trials: int) -> int | None:
    """The number of the source's task that this one is, or came of; None for a group and what came of one."""
    place = source_place(task)
    return None if place is None else place[1] * trials + place[2]


def survey(reader: JournalReader, stages: int, trials: int) -> Survey:
    """Reads the maps of all journals. Only the first `stages` are looked at, none of which is a group. `ValueError`
    where a row began twice."""
    begun = bytearray()
    due: dict[int, int] = {}
    """Rows of later stages that were made and did not begin, by number."""
    tasks: dict[str, tuple[int, int, int]] = {}
    """Copy, epoch and state of those that did not begin and end in one segment."""
    for epoch, entry in reader.entries():
        number, stage = number_of(entry.task, trials), entry.task.count("/")
        if number is None or stage >= stages:
            continue
        if entry.flags & BEGAN:
            _begin(begun, due, number, stage, entry.task)
        if entry.state == DONE and stage + 1 < stages:
            _add(due, number, entry.made)
        if not entry.flags & BEGAN or entry.state == OPEN or entry.task in tasks:
            copy, of, state = tasks.get(entry.task, (-1, epoch, UNCHANGED))
            if of == epoch:
                tasks[entry.task] = max(copy, entry.copy), epoch, later_state(state, entry.state)
            elif entry.copy > copy:
                tasks[entry.task] = entry.copy, epoch, entry.state
    left = set(due) | {_known(task, trials) for task, (_, _, state) in tasks.items() if state in (OPEN, UNCHANGED)}
    spans = list(_spans(number for number, there in enumerate(begun) if there))
    whole = list(_spans(number for number, there in enumerate(begun) if there and number not in left))
    return Survey(spans, whole, _with_prior(reader, left, trials))


def _begin(begun: bytearray, due: dict[int, int], number: int, stage: int, task: str) -> None:
    if stage:
        _add(due, number, -1)
        return
    if number >= len(begun):
        begun.extend(bytes(max(number + 1 - len(begun), 4096)))
    if begun[number]:
        raise ValueError(f"task {task!r} begins twice")
    begun[number] = 1


def _add(due: dict[int, int], number: int, rows: int) -> None:
    now = due.get(number, 0) + rows
    if now:
        due[number] = now
    else:
        due.pop(number, None)


def _known(task: str, trials: int) -> int:
    number = number_of(task, trials)
    assert number is not None
    return number


def _spans(numbers: Iterable[int]) -> Iterator[Span]:
    """Ascending numbers as spans."""
    start = stop = -1
    for number in numbers:
        if number != stop:
            if start >= 0:
                yield start, stop
            start = number
        stop = number + 1
    if start >= 0:
        yield start, stop


def _with_prior(reader: JournalReader, left: set[int], trials: int) -> list[Left]:
    found: dict[int, set[int]] = {number: set() for number in left}
    for epoch, entry in reader.entries() if left else ():
        number = number_of(entry.task, trials)
        if number in found:
            found[number].add(epoch)
    prior = {number: tuple(sorted(epochs)) for number, epochs in found.items()}
    return [
        Left(start, stop, epochs)
        for epochs, numbers in groupby(sorted(prior), key=prior.__getitem__)
        for start, stop in _spans(numbers)
    ]
