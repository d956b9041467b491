"""What rows cost that have ended, and those under way."""

from __future__ import annotations

from pathlib import Path

from msgspec import Struct

from weaverant.events import CostReserved, Event, RunOpened, StepEnded, TaskEnded, TaskReopened, TaskTaken
from weaverant.journal import JournalReader, Reservations


class RowCosts(Struct):
    """In US dollars, without what was set aside for calls that the end of a session cut off: that is spent, and no row
    takes it that is worked on to its end."""

    each: float | None
    """Of a row that has ended, on average; of those that neither an earlier run nor a cache answered, where there are
    any. None where none has ended that could tell."""
    begun: float
    """Of the rows that have not ended, all together, so far."""


def row_costs(directory: Path) -> RowCosts:
    """One pass over the journals; memory is bounded by the rows under way and those that moved between journals."""
    folded = _Fold()
    for event in JournalReader(directory).events():
        folded.see(event)
    return RowCosts(folded.each(), sum(folded.begun.values()))


class _Sum(Struct):
    rows: int = 0
    dollars: float = 0.0


class _Fold:
    def __init__(self) -> None:
        self.anew, self.answered = _Sum(), _Sum()
        """Rows that have ended: those that asked all their calls, and those that an earlier run or a cache answered."""
        self.begun: dict[str, float] = {}
        self._answered: set[str] = set()
        self._moved: dict[str, _Sum | None] = {}
        """Tasks that moved, and where those belong that have ended: of what they cost before some is read later."""
        self._reserved = Reservations()
        self._lost: dict[tuple[str, str, bytes, int], float] = {}

    def see(self, event: Event) -> None:
        match event:
            case CostReserved():
                self._reserved.add(event)
            case RunOpened():
                self._lose(self._reserved)
            case TaskTaken():
                self._taken(event)
            case StepEnded():
                self._step(event)
            case TaskEnded():
                self._ended(event)
            case TaskReopened():
                self._sum_of(event.task).rows -= 1  # what it has cost, it has cost
            case _:
                pass

    def each(self) -> float | None:
        ended = self.anew if self.anew.rows > 0 else self.answered
        if ended.rows <= 0 or (ended is self.answered and self.begun.keys() - self._answered):
            return None
        return ended.dollars / ended.rows

    def _step(self, event: StepEnded) -> None:
        usage = event.usage
        if event.kind == "model" and event.outcome == "reply" and not (usage.requests or usage.cost or event.inside):
            self._answered.add(event.task)
        self._reserved.close(event)
        lost = 0.0 if event.reused else self._lost.pop(_step_of(event), 0.0)
        dollars = usage.cost - min(lost, usage.unsure)
        if (ended := self._moved.get(event.task)) is not None:
            ended.dollars += dollars
        else:
            self.begun[event.task] = self.begun.get(event.task, 0.0) + dollars

    def _ended(self, event: TaskEnded) -> None:
        found = self._sum_of(event.task)
        found.rows += 1
        found.dollars += self.begun.pop(event.task, 0.0)
        if event.task in self._moved:
            self._moved[event.task] = found
        if event.state != "failed":  # one that failed may be taken up again
            self._answered.discard(event.task)

    def _taken(self, event: TaskTaken) -> None:
        """The task goes on in this journal: what was set aside for its calls in flight elsewhere is lost."""
        self._moved.setdefault(event.task, None)
        self._lose(Reservations().follow(event.events))

    def _lose(self, reserved: Reservations) -> None:
        for step, claims in reserved.open.items():
            self._lost[step] = sum(claim.dollars for claim in claims.values() if not claim.claim)

    def _sum_of(self, task: str) -> _Sum:
        return self.answered if task in self._answered else self.anew


def _step_of(event: StepEnded) -> tuple[str, str, bytes, int]:
    return event.task, event.path, event.fingerprint, event.occurrence
