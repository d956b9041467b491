"""How many tasks there are by stage and state, and whether that can be."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from msgspec import Struct
from msgspec.structs import astuple

from weaverant.errors import JournalCorrupt
from weaverant.events import TaskEnded, TaskReopened, TaskStarted
from weaverant.journal.codec import tag_of
from weaverant.journal.index import DONE, OPEN, SUPERSEDED
from weaverant.journal.parts import Part

REOPENED = tag_of(TaskReopened)
_MOVES = (tag_of(TaskStarted), tag_of(TaskEnded), REOPENED)


class StageCounts(Struct):
    """A stage's ledger: every task that began is in exactly one of these."""

    left: int = 0
    done: int = 0
    rejected: int = 0
    failed: int = 0
    superseded: int = 0

    @property
    def total(self) -> int:
        return self.left + self.done + self.rejected + self.failed + self.superseded


def counts_by_summaries(parts: list[Part]) -> dict[int, StageCounts] | None:
    """None where they do not tell: a task was reopened, or superseded in a later segment than it began in."""
    table: dict[int, list[int]] = {}
    if any(part.summary.events.get(REOPENED) for part in parts):
        return None
    for part in parts:
        for stage, states in part.summary.stages.items():
            row = table.setdefault(stage, [0] * 5)
            table[stage] = [total + count for total, count in zip(row, states, strict=True)]
        for late in part.summary.late:
            if not DONE <= late.state < SUPERSEDED:
                return None
            row = table.setdefault(late.stage, [0] * 5)
            row[OPEN] -= 1
            row[late.state] += 1
    return {stage: StageCounts(*row) for stage, row in table.items()}


def check_counts(directory: Path, parts: list[Part], table: Mapping[int, StageCounts]) -> None:
    """`JournalCorrupt` where they cannot be: each task begins once, and ends once and once more for each time it was
    taken up again; of superseded ones nobody counts whether they had ended."""
    begun, ended, again = (sum(part.summary.events.get(tag, 0) for part in parts) for tag in _MOVES)
    counts = [sum(column) for column in zip(*map(astuple, table.values()), strict=True)] or [0] * 5
    least = min((count for stage in table.values() for count in astuple(stage)), default=0)
    superseded = ended - again - sum(counts[DONE:SUPERSEDED])
    if least < 0 or begun != sum(counts) or not 0 <= superseded <= counts[SUPERSEDED]:
        raise contradiction(
            directory,
            f"{begun} tasks begin, {ended} end and {again} are taken up again; by state they are {counts}",
        )


def contradiction(directory: Path, what: str) -> JournalCorrupt:
    return JournalCorrupt(f"the journal {str(directory)!r} contradicts itself: {what}. Put the run back from a copy")
