"""What a run amounts to: its ledger, cost and latency by agent, failures with examples, where replay diverged.

`fold` reads it from a run's directory, in one pass and bounded memory, also while the run is being written;
`of_run` takes it from a run that has just ended. `document` is the form for machines.
"""

from __future__ import annotations

import fcntl
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import msgspec
from msgspec import Struct

from weaverant.events import (
    AgentBound,
    CostReserved,
    Event,
    RunClosed,
    RunOpened,
    SourceEnded,
    StepEnded,
    TaskEnded,
    TaskReopened,
    TaskStarted,
    TaskSuperseded,
)
from weaverant.history import sensible
from weaverant.journal import BlobStore, JournalReader
from weaverant.launch import Run
from weaverant.rundir import RunConfig, load_config
from weaverant.runtime.ledger import AgentCounts, Ledger, Spent, StageCounts
from weaverant.story import Story, Storyteller
from weaverant.task import Task

EXAMPLES = 2
"""Failed tasks that are kept for each reason."""

REASONS = 50
"""Reasons for which there are examples; all are counted."""


class Failure(Struct, frozen=True):
    """One failed task, as an example of its reason."""

    key: str
    reason: str
    where: str
    text: str


class Divergence(Struct):
    """Recorded outcomes that replay never asked for: in how many tasks, and the first of them."""

    tasks: int = 0
    first_task: str = ""
    first_step: str = ""


class Summary(Struct):
    """All that `show` prints."""

    config: RunConfig
    state: str
    """`finished`, why it stopped, `running`, or `killed`."""
    ledger: Ledger
    rows: int | None
    """Rows of the first stage in all; None while only reading the source to its end would tell."""
    failures: list[Failure]
    directory: str | None = None
    sessions: int = 1
    divergence: Divergence = msgspec.field(default_factory=Divergence)
    budget: float = 0.0
    """The cap of the last session in US dollars; 0 is none."""
    unpriced: list[str] = []
    """Agents that ask a model whose price nobody knows: a cost of 0 tells nothing of them."""

    @property
    def simulated(self) -> list[str]:
        """The names of models whose words are pretended."""
        return sorted(name for name, what in self.config.identities.items() if what.startswith("simulated"))

    @property
    def left(self) -> int:
        """Rows that have not ended, those that never started included."""
        stages = self.ledger.stages
        waiting = 0 if self.rows is None else max(0, self.rows - stages[0].rows)
        return waiting + sum(stage.left for stage in stages)


class Examples:
    """The first few failures of each reason."""

    def __init__(self) -> None:
        self.failures: list[Failure] = []
        self._seen: Counter[str] = Counter()

    def wanted(self, reason: str) -> bool:
        return self._seen[reason] < EXAMPLES and (reason in self._seen or len(self._seen) < REASONS)

    def add(self, task: Task | Story) -> None:
        if task.state == "failed" and self.wanted(task.reason):
            self._seen[task.reason] += 1
            self.failures.append(Failure(task.key, task.reason, task.where, failure_text(task.result)))


def failure_text(value: Any) -> str:
    """What a failed task's value says."""
    return str(cast("dict[str, Any]", value).get("text", "")) if isinstance(value, dict) else str(value or "")


def of_run(run: Run, examples: Examples) -> Summary:
    """The summary of a run that was not resumed, from its own counts. `rows` is known once it has finished."""
    rows = run.ledger.stages[0].rows if run.state == "finished" else run.config.rows
    directory = None if run.directory is None else str(run.directory)
    asked = {(bound.agent.name, bound.agent.model) for bound in run.binding.all()}
    return Summary(
        run.config, run.state, run.ledger, rows, examples.failures, directory, budget=run.limits.budget,
        unpriced=_unpriced(run.config, asked),
    )  # fmt: skip


def _unpriced(config: RunConfig, asked: Iterable[tuple[str, str]]) -> list[str]:
    """Of agents and the models that they ask, the agents whose model has no known price."""
    return sorted({agent for agent, model in asked if (model if model in config.models else "*") in config.unpriced})


def fold(directory: Path) -> Summary:
    """The summary of what stands in the journal. Raises `UserError`, `JournalCorrupt`."""
    config = load_config(directory)
    reader = JournalReader(directory)
    ledger = Ledger(config.stages)
    folded = _Fold(ledger)
    with sensible(f"the run {str(directory)!r}"):
        for event in reader.events():
            folded.see(event)
        folded.check()
    state = folded.state or ("running" if _is_locked(directory) else "killed")
    rows = config.rows if folded.source_rows is None else folded.source_rows
    examples = Examples()
    teller = Storyteller({}, BlobStore(directory / "blobs").get)
    for _, events in reader.histories(reader.places(folded.examples())):
        examples.add(teller.tell(events))
    return Summary(
        config, state, ledger, rows, examples.failures, str(directory), folded.sessions, folded.divergence,
        folded.budget, _unpriced(config, folded.asked),
    )  # fmt: skip


def has_finished(directory: Path) -> bool:
    """Whether the run was left with nothing to do. Reads no task's events."""
    last = None
    for event in JournalReader(directory).run_events():
        last = event
    return isinstance(last, RunClosed) and last.state == "finished"


class _Fold:
    """One pass over the events. Remembers single tasks only where a later event may take their end back, and of their
    results only whether they are null."""

    def __init__(self, ledger: Ledger) -> None:
        self.state = "ready"
        self.sessions = 0
        self.budget = 0.0
        self.source_rows: int | None = None
        self.asked: set[tuple[str, str]] = set()
        """Agents and the models that they ask."""
        self.divergence = Divergence()
        self._ledger = ledger
        self._failed: dict[str, TaskEnded] = {}
        self._grouped: dict[str, tuple[int, TaskEnded | None]] = {}

    def see(self, event: Event) -> None:
        match event:
            case StepEnded():
                self._ledger.step(event)
            case TaskStarted():
                self._ledger.stages[event.stage].rows += 1
                if "@" in event.task:
                    self._grouped[event.task] = (event.stage, None)
            case TaskEnded():
                self._ended(event)
            case TaskReopened():
                self._take_back(self._failed.pop(event.task, None))
            case TaskSuperseded():
                self._superseded(event.task)
            case RunOpened():
                self.sessions += 1
                self.state = ""
                self.budget = event.budget
            case CostReserved():
                self._ledger.reserved.add(event)
            case RunClosed():
                self.state = event.state
            case SourceEnded():
                self.source_rows = event.rows
            case AgentBound():
                self.asked.add((event.agent["name"], event.agent["model"]))
            case _:
                pass

    def check(self) -> None:
        """`ValueError` where more has ended than began."""
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
        if event.state == "failed":
            self._failed[event.task] = bare
        if event.task in self._grouped:
            self._grouped[event.task] = (event.stage, bare)
        if event.unasked:
            if not self.divergence.tasks:
                self.divergence.first_task, self.divergence.first_step = event.task, event.diverged
            self.divergence.tasks += 1

    def _superseded(self, task: str) -> None:
        if task not in self._grouped:
            return
        stage, ended = self._grouped.pop(task)
        self._ledger.stages[stage].rows -= 1
        self._take_back(ended)
        self._failed.pop(task, None)

    def _take_back(self, ended: TaskEnded | None) -> None:
        if ended is not None:
            self._ledger.stages[ended.stage].count(ended.state, ended.reason, -1, null=ended.value)


def _is_locked(directory: Path) -> bool:
    """Whether a process writes the run."""
    try:
        file = os.open(directory / "lock", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(file)
    return False


def document(summary: Summary) -> dict[str, Any]:
    """The summary as plain data. Keys are only ever added:

    `directory`, `workflow`, `state`, `sessions`, `created` (Unix seconds), `input`, `trials`, `rows` (of the first
    stage, null while unknown), `left`, `models` (name -> identity), `simulated` (names), `parameters`,
    `stages` (a list of `{name, rows, done, rejected, failed, left}`; `rejected` and `failed` map reasons to counts),
    `agents` (a list of `{kind, name, calls, reused, cancelled, failures, prompt_tokens, completion_tokens,
    cached_tokens, reasoning_tokens, cost, requests, unsure, p50, p95, p99, unsure_calls, reserved, reserved_calls,
    examples, cut, unpriced}`;
    cost in US dollars, `unsure` the part of it that is a bound, of so many calls, `reserved` what was set aside for
    calls of which no end is recorded; percentiles in seconds, over calls that were not reused; `examples` is what the
    first failure of each reason said, `cut` how many calls gave a reply that was cut short, by its finish, `unpriced`
    that a cost of 0 tells nothing, as the model's price is not known), `failures` (`{key,
    reason, where, text}`, at most two a reason), `divergence` (`{tasks, first_task, first_step}`), `spent` (US
    dollars: `{total, known, unsure, unsure_calls, reserved, reserved_calls}`, total = known + unsure + reserved),
    `budget` (null for none).
    """
    config = summary.config
    reserved = summary.ledger.reserved.by_agent()
    return {
        "directory": summary.directory,
        "workflow": config.workflow,
        "state": summary.state,
        "sessions": summary.sessions,
        "created": config.created,
        "input": config.input,
        "trials": config.trials,
        "rows": summary.rows,
        "left": summary.left,
        "models": config.identities,
        "simulated": summary.simulated,
        "parameters": config.parameters,
        "stages": [_stage_document(stage) for stage in summary.ledger.stages],
        "agents": [
            {
                "kind": kind,
                "name": name,
                **_agent_document(counts),
                **_reserved(reserved if kind == "model" else {}, name),
                "examples": counts.examples,
                "cut": positive(counts.cut),
                "unpriced": kind == "model" and name in summary.unpriced,
            }
            for (kind, name), counts in _agents(summary.ledger)
        ],
        "failures": msgspec.to_builtins(summary.failures),
        "divergence": msgspec.to_builtins(summary.divergence),
        "spent": _spent_document(summary.ledger.spent()),
        "budget": summary.budget or None,
    }


def _agents(ledger: Ledger) -> list[tuple[tuple[str, str], AgentCounts]]:
    """All that did something, and those of whose only calls no end is recorded."""
    waiting = {("model", name): AgentCounts() for name in ledger.reserved.by_agent()}
    return sorted({**waiting, **ledger.agents}.items())


def _reserved(by_agent: dict[str, tuple[int, float]], name: str) -> dict[str, float]:
    calls, dollars = by_agent.get(name, (0, 0.0))
    return {"reserved": dollars, "reserved_calls": calls}


def _spent_document(spent: Spent) -> dict[str, float]:
    return {
        "total": spent.total,
        "known": spent.ended - spent.unsure,
        "unsure": spent.unsure,
        "unsure_calls": spent.unsure_calls,
        "reserved": spent.reserved,
        "reserved_calls": spent.reserved_calls,
    }


def positive(counts: Counter[str]) -> dict[str, int]:
    """The reasons that still count, the most frequent first."""
    return {reason: count for reason, count in _ranked(counts.items()) if count}


def _ranked(items: Iterable[tuple[str, int]]) -> list[tuple[str, int]]:
    return sorted(items, key=lambda item: (-item[1], item[0]))


def _stage_document(stage: StageCounts) -> dict[str, Any]:
    return {
        "name": stage.name,
        "rows": stage.rows,
        "done": stage.done,
        "rejected": positive(stage.rejected),
        "failed": positive(stage.failed),
        "left": stage.left,
    }


def _agent_document(counts: AgentCounts) -> dict[str, Any]:
    return {
        "calls": counts.calls,
        "reused": counts.reused,
        "cancelled": counts.cancelled,
        "failures": positive(counts.failures),
        **msgspec.structs.asdict(counts.total()),
        "unsure_calls": counts.unsure,
        **{f"p{share}": counts.latencies.percentile(share / 100) for share in (50, 95, 99)},
    }
