"""A run's summary, and how it is taken from a run that has just ended."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any, cast

import msgspec
from msgspec import Struct

from weaverant.errors import shown
from weaverant.events import Shortfall
from weaverant.rundir import RunConfig
from weaverant.runtime.ledger import Ledger
from weaverant.session import Run
from weaverant.story import Story
from weaverant.summary.roster import PeerSummary
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


class OneProcess(Struct, frozen=True):
    """Ends of rows, and calls of a model, that stand in a run's own journal and in no peer's."""

    ended: int
    calls: int


class Summary(Struct):
    """All that `show` prints."""

    config: RunConfig
    state: str
    """`ready`, `finished`, why it stopped, `running`, `killed`. Of a run on peers also `working`: they do so without
    the command that started them; `ending`: they were told to stop. Of a run in a store also `unseen`: this directory
    cannot tell whether others work on it."""
    ledger: Ledger
    rows: int | None
    """Rows of the first stage in all; None while only reading the source to its end would tell."""
    failures: list[Failure]
    directory: str | None = None
    sessions: int = 1
    divergence: Divergence = msgspec.field(default_factory=Divergence)
    budget: float = 0.0
    """The cap of the last session in US dollars; 0 is none."""
    why: str = ""
    """The error that stopped the last session."""
    short: Shortfall | None = None
    """What it lacked, where it stopped for money."""
    unpriced: list[str] = []
    """Agents that ask a model whose price nobody knows: a cost of 0 tells nothing of them."""
    cut: int = 0
    """Calls that were cut off when sessions without a budget stopped: no cost counts them, and a bill may."""
    killed: int = 0
    """Sessions of one process without a budget that were killed, of whose calls in flight nothing is known."""
    killed_peers: int = 0
    """As many peers. What drives them asks nobody anything."""
    peers: list[PeerSummary] = []
    """Those that ever worked on it."""
    one_process: OneProcess | None = None
    """Of a run that had peers, what sessions of one process did; None where it had none."""

    @property
    def simulated(self) -> list[str]:
        """The names of models whose words are pretended."""
        return sorted(name for name, what in self.config.identities.items() if what.startswith("simulated"))

    @property
    def toys(self) -> list[str]:
        """The packaged models that were asked, where the rows are others than the problems that these know."""
        if self.config.input.startswith("arithmetic:"):
            return []
        embedded = {what for what in self.config.identities.values() if what.startswith("embedded:")}
        return sorted(what.partition("@")[0] for what in embedded)

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
        why="" if run.error is None else shown(run.error), short=run.short,
        unpriced=unpriced_agents(run.config, asked), cut=run.cut,
    )  # fmt: skip


def unpriced_agents(config: RunConfig, asked: Iterable[tuple[str, str]]) -> list[str]:
    """Of agents and the models that they ask, the agents whose model has no known price."""
    known, unpriced = config.identities, config.unpriced
    return sorted({agent for agent, model in asked if (model if model in known else "*") in unpriced})


def positive(counts: Counter[str]) -> dict[str, int]:
    """The reasons that still count, the most frequent first."""
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return {reason: count for reason, count in ranked if count}
