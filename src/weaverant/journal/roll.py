"""Which tasks began, as a sum: whether each of them did once is known without a list of them.

Every row of a source or of a stage has a mark, a number made of its key. Of the rows that should be there the sum of
the marks is known by their numbers alone, so a row too many, too few or twice is seen at no cost. A sum is no proof: it
tells mistakes and forged events, not an index that somebody made to agree with them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

_INDEX, _TRIAL, _SOURCE, _PARENT = 0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D, 0x27D4EB2F
_MODULUS = 2**64
NO_KEY = 0xA0761D6478BD642F
"""The mark of a text that is no row's key."""


class Roll:
    """Adds up marks by stage. Groups, and what comes of them, are left out: their number is known only from events."""

    __slots__ = ("_began", "_due")

    def __init__(self) -> None:
        self._began: dict[int, int] = {}
        self._due: dict[int, int] = {}

    def count(self, task: str, began: bool, rows: int) -> None:
        """This task began, or its result is so many rows of the next stage, or both."""
        if "@" in task:
            return
        stage, mark = task.count("/"), _mark(task)
        if began:
            self._began[stage] = self._began.get(stage, 0) + mark
        if rows:
            self._due[stage + 1] = self._due.get(stage + 1, 0) + _mark_of_children(mark, rows)

    def sums(self) -> dict[int, tuple[int, int]]:
        """By stage: of the rows that began, and of those that results made."""
        stages = {**self._began, **self._due}
        return {n: (self._began.get(n, 0) % _MODULUS, self._due.get(n, 0) % _MODULUS) for n in stages}

    def add(self, sums: Mapping[int, tuple[int, int]]) -> None:
        for stage, (began, due) in sums.items():
            self._began[stage] = self._began.get(stage, 0) + began
            self._due[stage] = self._due.get(stage, 0) + due

    def is_of_source(self, tasks: int, trials: int) -> bool:
        """Whether the first `tasks` tasks of a source began, each of whose rows has `trials`."""
        rows, more = divmod(tasks, trials)
        of_trials = rows * _triangle(trials - 1) + _triangle(more - 1)
        expected = (trials * _squares(rows) + more * (rows + 1) ** 2) * _INDEX + of_trials * _TRIAL
        return (self._began.get(0, 0) - expected) % _MODULUS == 0

    def is_of_results(self, stage: int, waiting: Iterable[str]) -> bool:
        """Whether all rows began that results made for this stage, but those that are `waiting`."""
        began = self._began.get(stage, 0) + sum(map(_mark, waiting))
        return (began - self._due.get(stage, 0)) % _MODULUS == 0


def _mark(key: str) -> int:
    root, _, ordinals = key.partition("/")
    try:
        source, index, trial = root.split(".")
        row = int(index) + 1
        mark = row * row * _INDEX + int(trial) * _TRIAL + int(source) * _SOURCE
        for ordinal in map(int, ordinals.split("/") if ordinals else ()):
            mark = (mark * _PARENT + ordinal + 1) * (ordinal + 1)
    except ValueError:
        return NO_KEY
    return mark


def _mark_of_children(parent: int, rows: int) -> int:
    """The sum of what `_mark` gives for the rows of its result."""
    return parent * _PARENT + 1 if rows == 1 else parent * _PARENT * _triangle(rows) + _squares(rows)


def _triangle(most: int) -> int:
    """1 + 2 + ... + most."""
    return most * (most + 1) // 2


def _squares(most: int) -> int:
    """1 + 4 + ... + most * most."""
    return most * (most + 1) * (2 * most + 1) // 6
