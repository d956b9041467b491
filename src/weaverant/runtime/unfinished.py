"""What there is to do in a run before new rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from msgspec import Struct

from weaverant.events import EndState, TaskEnded, TaskEvent, TaskTaken
from weaverant.runtime.ledger import Ledger
from weaverant.runtime.stagebook import Refused
from weaverant.task import Row


class Begun(NamedTuple):
    """A task that was begun before, with its events. `taken` is to be written first: it comes from another journal."""

    order: int
    events: Sequence[TaskEvent]
    taken: TaskTaken | None = None


class Retry(Struct, frozen=True):
    """Which failed tasks to take up again: all, or those that failed for `reason`. An unreadable row stays so."""

    reason: str | None = None

    def wants(self, end: TaskEnded) -> bool:
        return end.reason != "unreadable" and self.reason in (None, end.reason)


class Held(Struct):
    """A task of or after a group. It waits until its group has formed again, with the same members or not at all."""

    stage: int
    state: EndState | None
    result: Any
    events: list[TaskEvent]


@dataclass
class Unfinished:
    """What there is to do before new rows."""

    restored: Iterator[Begun] = field(default_factory=lambda: iter(()))
    """Tasks to carry on, oldest first."""
    skipped: Iterator[Row | Refused] = field(default_factory=lambda: iter(()))
    """Rows of the source that nobody began although later ones were: peers that had leased them stopped."""
    rows: list[Row | Refused] = field(default_factory=list[Row | Refused])
    """Results of a stage that have not entered the next yet."""
    held: dict[str, Held] = field(default_factory=dict[str, Held])
    known: set[str] = field(default_factory=set[str])
    """Rows of later stages that were started, of results that enter again; those of and after groups apart."""
    superseded: set[str] = field(default_factory=set[str])
    """Groups that have lost or gained members, and what came of them: members only ever come, so none forms again."""
    started: int = 0
    """How many tasks of the source were started, those in `gaps` included."""
    gaps: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])
    """Numbers of those among them that nobody began: from the first up to the second."""
    reopened: dict[str, int] = field(default_factory=dict[str, int])
    """Failed tasks that are taken up again, by reason."""

    def count_held(self, ledger: Ledger) -> None:
        """The session ends: what is still held counts as the journal has it."""
        for held in self.held.values():
            ledger.stages[held.stage].rows += 1
            if held.state is not None:
                ledger.stages[held.stage].count(held.state, "(earlier)")
        self.held.clear()
