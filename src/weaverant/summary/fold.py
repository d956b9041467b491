"""A run's summary as its journal tells it: one pass, bounded memory, also while the run is being written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import msgspec

from weaverant.events import (
    AgentBound,
    CostReserved,
    Event,
    PeerClosed,
    RowsLeft,
    RunClosed,
    RunOpened,
    Shortfall,
    SourceEnded,
    StepEnded,
    TaskEnded,
    TaskReopened,
    TaskStarted,
    TaskSuperseded,
    TaskTaken,
)
from weaverant.history import sensible
from weaverant.journal import BlobStore, JournalReader, is_locked, last_words
from weaverant.journal.homes import OWN
from weaverant.journal.steady import steadily
from weaverant.rundir import RunConfig, load_config
from weaverant.runtime.ledger import Ledger
from weaverant.story import Storyteller
from weaverant.summary.account import EXAMPLES, REASONS, Divergence, Examples, OneProcess, Summary, unpriced_agents
from weaverant.summary.roster import Deeds, PeerSummary, roster_of
from weaverant.swarm.sight import look


def fold(directory: Path) -> Summary:
    """The summary of what stands in the journal. Raises `UserError`, `JournalCorrupt`."""
    config = load_config(directory)
    return steadily(directory, lambda: _folded(directory, config))


def _folded(directory: Path, config: RunConfig) -> Summary:
    began = is_locked(directory)
    reader = JournalReader(directory)
    ledger = Ledger(config.stages)
    folded, deeds = _Fold(ledger, _told_apart(config)), Deeds()
    with sensible(f"the run {str(directory)!r}"):
        epoch = OWN
        for batch in reader.batches():
            if batch.place.epoch != epoch:
                epoch = batch.place.epoch
                folded.begin_journal()
            for event in batch.events:
                folded.see(event)
                deeds.see(epoch, event)
        folded.finish()
        if reader.has_peers:  # a task's reservations may be read after their end, in the journal of who took it over
            ledger.reserved = reader.reserved()
    state, why, sight = folded.state, folded.why, None
    if not state:
        sight = look(directory)
        if began and not sight.driver and has_ended(directory):
            return _folded(directory, config)  # it has just ended in order
        state = sight.state
        if state in ("killed", "unseen") and (why := last_words(directory)):
            state = "journal"
    rows = config.rows if folded.source_rows is None else folded.source_rows
    examples = Examples()
    teller = Storyteller({}, BlobStore(directory / "blobs").get)
    with sensible(f"the run {str(directory)!r}"):
        for _, events in reader.histories(reader.places(folded.examples())):
            examples.add(teller.tell(events))
    peers = roster_of(directory, sight, deeds)
    return Summary(
        config, state, ledger, rows, examples.failures, str(directory), folded.sessions, folded.divergence,
        folded.budget, why, folded.short, unpriced_agents(config, folded.asked), folded.cut,
        folded.killed + (state in ("killed", "journal") and folded.unbounded), folded.killed_among(peers), peers,
        OneProcess(deeds.ended[OWN], deeds.calls[OWN]) if peers else None,
    )  # fmt: skip


def has_finished(directory: Path) -> bool:
    """Whether the run was left with nothing to do. Reads no task's events."""
    return has_ended(directory) == "finished"


def has_ended(directory: Path) -> str:
    """How the last session ended in order; empty where it did not, or has not yet. Reads no task's events."""
    last = None
    for event in JournalReader(directory, (OWN,)).run_events():
        last = event
    return last.state if isinstance(last, RunClosed) else ""


def _told_apart(config: RunConfig) -> set[int]:
    """The stages whose rows the stage before makes one by one, so that they are known before they begin."""
    if config.groups is None:
        return set()
    return {stage for stage, name in enumerate(config.stages) if stage and name not in config.groups}


class _Grouped(NamedTuple):
    """A task of or after a group, which may be superseded."""

    stage: int
    ended: TaskEnded | None = None
    made: int = 0


class _Fold:
    """One pass over the events. Remembers single tasks only where a later event may take their end back, and of their
    results only whether they are null."""

    def __init__(self, ledger: Ledger, told_apart: set[int]) -> None:
        self.state = "ready"
        self.sessions = 0
        self.budget = 0.0
        self.why = ""
        self.short: Shortfall | None = None
        self.cut = self.killed = 0
        self._on_peers = False
        """The session that was begun last is one of peers, whose journals tell what became of their calls."""
        self._budgets: list[tuple[int, float]] = []
        """Of each such session, the last epoch before it and its budget."""
        self.source_rows: int | None = None
        self.asked: set[tuple[str, str]] = set()
        """Agents and the models that they ask."""
        self.divergence = Divergence()
        self._ledger = ledger
        self._failed: dict[str, TaskEnded] = {}
        self._copies: dict[str, int] = {}
        """Of the tasks that were taken into the journal that is read."""
        self._came_failed: dict[str, TaskEnded] = {}
        """Tasks that were taken as failed ones, to be tried again."""
        self._retried: dict[str, int] = {}
        """The last copy in which such a task was; of earlier ones a failure may be read later, and is none any more."""
        self._grouped: dict[str, _Grouped] = {}
        self._told_apart = told_apart
        self._made = [0] * (len(ledger.stages) + 1)
        """How many rows the results of the stage before are."""

    def begin_journal(self) -> None:
        """What follows is from another journal of the run."""
        self._copies.clear()
        self._came_failed.clear()

    def see(self, event: Event) -> None:
        match event:
            case StepEnded():
                self._ledger.step(event)
            case TaskStarted():
                self._ledger.stages[event.stage].rows += 1
                if "@" in event.task:
                    self._grouped[event.task] = _Grouped(event.stage)
            case TaskEnded():
                self._ended(event)
            case TaskReopened():
                self._reopened(event.task)
            case TaskTaken():
                self._taken(event)
            case TaskSuperseded():
                self._superseded(event.task)
            case RunOpened():
                self.killed += self.sessions > 0 and not self.state and self.unbounded
                self.sessions += 1
                self._on_peers = False
                self.state = self.why = ""
                self.budget = event.budget
            case CostReserved():
                self._ledger.reserved.add(event)
            case RunClosed():
                self.state, self.why = event.state, event.why
                self.short = event.short or self.short
                self.cut += 0 if self._on_peers else event.cut
            case RowsLeft():
                self._on_peers = True
                self._budgets.append((event.last, self.budget))
            case PeerClosed():
                self.cut += event.cut
            case SourceEnded():
                self.source_rows = event.rows
            case AgentBound():
                self.asked.add((event.agent["name"], event.agent["model"]))
            case _:
                pass

    @property
    def unbounded(self) -> bool:
        """Whether the session that was begun last asks by itself, and sets aside no money for what it asks."""
        return not self.budget and not self._on_peers

    def killed_among(self, peers: Sequence[PeerSummary]) -> int:
        """How many peers were killed for whose calls no money was set aside."""
        bounded = [
            next((budget for last, budget in reversed(self._budgets) if last < each.epoch), 0.0) > 0 for each in peers
        ]
        return sum(each.killed and not money for each, money in zip(peers, bounded, strict=True))

    def finish(self) -> None:
        """Count the rows that were made and have not begun. `ValueError` where more has ended than began."""
        for stage in self._told_apart:
            counts = self._ledger.stages[stage]
            counts.rows = max(counts.rows, self._made[stage])
        for stage in self._ledger.stages:
            if min(stage.left, stage.done, *stage.rejected.values(), *stage.failed.values()) < 0:
                raise ValueError(f"the counts do not add up: {stage}")

    def examples(self) -> list[str]:
        """Failed tasks, a few for each reason, in the order in which they failed."""
        seen: Counter[str] = Counter()
        chosen: list[str] = []
        for task, event in self._failed.items():
            seen[event.reason] += 1
            if seen[event.reason] <= EXAMPLES and len(seen) <= REASONS:
                chosen.append(task)
        return chosen

    def _ended(self, event: TaskEnded) -> None:
        bare = msgspec.structs.replace(event, value=event.value is None)
        self._ledger.ended(event)
        if event.state == "failed" and self._copies.get(event.task, 0) >= self._retried.get(event.task, 0):
            self._failed[event.task] = bare
        made = _rows_of(event.value) if event.state == "done" else 0
        self._made[event.stage + 1] += made
        if event.task in self._grouped:
            self._grouped[event.task] = _Grouped(event.stage, bare, made)
        if event.unasked:
            if not self.divergence.tasks:
                self.divergence.first_task, self.divergence.first_step = event.task, event.diverged
            self.divergence.tasks += 1

    def _taken(self, event: TaskTaken) -> None:
        self._copies[event.task] = event.copy
        last = next((one for one in reversed(event.events) if isinstance(one, (TaskEnded, TaskReopened))), None)
        if isinstance(last, TaskEnded) and last.state == "failed":
            self._came_failed[event.task] = msgspec.structs.replace(last, value=last.value is None)

    def _reopened(self, task: str) -> None:
        """It has failed no more. Where it failed in another journal, that may not have been read yet."""
        failed = self._failed.pop(task, None)
        if (came := self._came_failed.pop(task, None)) is not None:
            failed = came
            self._retried[task] = max(self._retried.get(task, 0), self._copies[task])
        self._take_back(failed)

    def _superseded(self, task: str) -> None:
        if task not in self._grouped:
            return
        stage, ended, made = self._grouped.pop(task)
        self._ledger.stages[stage].rows -= 1
        self._made[stage + 1] -= made
        self._take_back(ended)
        self._failed.pop(task, None)

    def _take_back(self, ended: TaskEnded | None) -> None:
        if ended is not None:
            self._ledger.stages[ended.stage].count(ended.state, ended.reason, -1, null=ended.value)


def _rows_of(result: Any) -> int:
    """How many rows of the next stage it is."""
    return len(cast("list[Any]", result)) if isinstance(result, list) else 1
