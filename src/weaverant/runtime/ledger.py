"""The truth about a run, as it goes: rows = done + rejected + failed + left, and what the calls cost.

Counts only, so it stays as small for a million rows as for ten.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any, cast

import msgspec

from weaverant.events import StepEnded, TaskEnded
from weaverant.journal import Reservations
from weaverant.message import Usage, UsageSum, total

CUT_SHORT = frozenset(("length", "content_filter"))
"""How a reply finished that is not whole."""

EXAMPLES = 20
"""Reasons for which an agent's first failure is kept; all are counted."""
EXAMPLE_CHARACTERS = 300


class StageCounts(msgspec.Struct):
    """The ledger of one stage. `rows` counts every row that entered it, `failed` and `rejected` by reason."""

    name: str
    rows: int = 0
    done: int = 0
    nulls: int = 0
    """How many of the results are null."""
    rejected: Counter[str] = msgspec.field(default_factory=Counter[str])
    failed: Counter[str] = msgspec.field(default_factory=Counter[str])

    @property
    def ended(self) -> int:
        return self.done + self.rejected.total() + self.failed.total()

    @property
    def left(self) -> int:
        return self.rows - self.ended

    def count(self, state: str, reason: str, by: int = 1, null: bool = False) -> None:
        if state == "done":
            self.done += by
            self.nulls += by * null
            return
        counts = self.rejected if state == "rejected" else self.failed
        counts[reason] += by
        if not counts[reason]:
            del counts[reason]

    def __str__(self) -> str:
        rejected, failed = self.rejected.total(), self.failed.total()
        ends = f"done {self.done:,} + rejected {rejected:,} + failed {failed:,} + left {self.left:,}"
        return f"{self.name}: rows {self.rows:,} = {ends}"


_STEP = 1.02
_WIDTH = math.log(_STEP)
_LEAST = math.ceil(math.log(1e-6) / _WIDTH)


class Latencies:
    """A histogram in logarithmic buckets 2 % wide: percentiles of any number of calls in some kilobytes."""

    __slots__ = ("_buckets",)

    def __init__(self) -> None:
        self._buckets: Counter[int] = Counter()

    def add(self, seconds: float) -> None:
        self._buckets[math.ceil(math.log(seconds) / _WIDTH) if seconds > 1e-6 else _LEAST] += 1

    def percentile(self, share: float) -> float:
        """Seconds below which this share of the calls stayed, to 1 %."""
        wanted = share * self._buckets.total()
        for bucket in sorted(self._buckets):
            wanted -= self._buckets[bucket]
            if wanted <= 0:
                return float(f"{_STEP ** (bucket - 0.5):.3g}")
        return 0.0


class AgentCounts:
    """What one agent, tool or step function did."""

    __slots__ = (
        "_calls",
        "_latencies",
        "_plain",
        "_used",
        "cancelled",
        "cut",
        "examples",
        "failures",
        "reused",
        "unsure",
    )

    def __init__(self) -> None:
        self._calls = 0
        self._latencies = Latencies()
        self._used = UsageSum()
        self._plain: list[tuple[float, Usage]] = []
        """Calls that ended well with a bare text: seconds and usage, to be added up some hundreds at a time."""
        self.reused = 0
        self.cancelled = 0
        self.unsure = 0
        """Calls part of whose cost is a bound: nobody knows the bill."""
        self.failures: Counter[str] = Counter()
        self.examples: dict[str, str] = {}
        """What the first failure of each reason said, shortened."""
        self.cut: Counter[str] = Counter()
        """Model calls with a reply that was cut short, by how it finished; reused ones, too."""

    @property
    def calls(self) -> int:
        return self._calls + len(self._plain)

    @property
    def latencies(self) -> Latencies:
        self._add_up()
        return self._latencies

    def count(self, event: StepEnded) -> None:
        if event.outcome == "reply" and type(event.value) is str and not (event.reused or event.usage.unsure):
            self._plain.append((event.clock - event.started, event.usage))
            if len(self._plain) == 512:
                self._add_up()
        else:
            self._count(event)

    def total(self) -> Usage:
        self._add_up()
        return self._used.total()

    def _add_up(self) -> None:
        if plain := self._plain:
            self._plain = []
            self._calls += len(plain)
            self._used.add(total([usage for _, usage in plain]))
            for seconds, _ in plain:
                self._latencies.add(seconds)

    def _count(self, event: StepEnded) -> None:
        self._calls += 1
        outcome = event.outcome
        value: Any = event.value
        if outcome == "reply" and isinstance(value, list) and event.kind == "model":
            self._replied(cast("list[Any]", value))
        if event.reused:
            self.reused += 1
            return
        if outcome == "cancelled":
            self.cancelled += 1
        else:
            self._latencies.add(event.clock - event.started)
            if outcome == "failure":
                self._failed(event.reason, value)
        if event.usage.unsure:
            self.unsure += 1
        self._used.add(event.usage)

    def _replied(self, choice: list[Any]) -> None:
        """The reply as the journal holds it (`step.reply_value`), where it is more than bare text that stopped by
        itself."""
        choices = [choice, *choice[3]] if len(choice) > 3 else [choice]
        how = next((finish for _, finish, *_ in choices if finish in CUT_SHORT), None)
        if how is not None:
            self.cut[how] += 1

    def _failed(self, reason: str, value: Any) -> None:
        """`value` is the failure's text and detail; a text that the task has told before is only named there."""
        self.failures[reason] += 1
        if reason not in self.examples and len(self.examples) < EXAMPLES and isinstance(text := value[0], str):
            self.examples[reason] = text[:EXAMPLE_CHARACTERS]


class Spent(msgspec.Struct, frozen=True):
    """US dollars that count against a budget. All but `unsure` and `reserved` were on a bill."""

    ended: float
    """Of steps that ended."""
    unsure: float
    """The part of it that is a bound, of `unsure_calls` steps."""
    unsure_calls: int
    reserved: float
    """Set aside for `reserved_calls` steps of which no end is recorded."""
    reserved_calls: int

    @property
    def total(self) -> float:
        return self.ended + self.reserved

    @property
    def bound(self) -> float:
        """How much of the total is a bound."""
        return self.unsure + self.reserved


class Ledger:
    """Counts by stage and by agent."""

    def __init__(self, stages: list[str]) -> None:
        self.stages = [StageCounts(name) for name in stages]
        self.total: int | None = None
        """Rows of the first stage in all, where they can be counted beforehand."""
        self.earlier = 0
        """Rows of the first stage that had ended before this session."""
        self.earlier_calls = 0
        self.earlier_cost = 0.0
        """What earlier sessions recorded, in US dollars. The counts by agent are those of this session."""
        self.agents: dict[tuple[str, str], AgentCounts] = {}
        """By (kind, name). The kind `compound` has calls whose replies others were asked for: they cost nothing, and
        are no calls of a model."""
        self.reserved = Reservations()
        self.refused: Callable[[str, AgentCounts], None] | None = None
        """Told of every model call that its server refused, by agent."""

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def __repr__(self) -> str:
        return f"Ledger({'; '.join(self._lines())})"

    def _lines(self) -> list[str]:
        """Rows that have not begun are left, too."""
        first, *others = self.stages
        whole = msgspec.structs.replace(first, rows=max(first.rows, self.total or 0))
        return list(map(str, (whole, *others)))

    def ended(self, event: TaskEnded) -> None:
        self.stages[event.stage].count(event.state, event.reason, null=event.value is None)

    def step(self, event: StepEnded) -> None:
        if self.reserved.open:
            self.reserved.close(event)
        key = ("compound" if event.inside else event.kind, event.name)
        counts = self.agents.get(key)
        if counts is None:
            counts = self.agents[key] = AgentCounts()
        counts.count(event)
        if event.reason == "request" and self.refused is not None and event.kind == "model":
            self.refused(event.name, counts)

    def usage(self) -> Usage:
        return total([counts.total() for counts in self.agents.values()])

    def spent(self) -> Spent:
        """What the steps cost, those included whose bill nobody knows."""
        usage, open_calls = self.usage(), len(self.reserved.open)
        unsure_calls = sum(counts.unsure for counts in self.agents.values())
        return Spent(usage.cost, usage.unsure, unsure_calls, self.reserved.dollars, open_calls)

    @property
    def calls(self) -> int:
        return sum(counts.calls for (kind, _), counts in self.agents.items() if kind == "model")

    @property
    def failed(self) -> int:
        return sum(stage.failed.total() for stage in self.stages)

    @property
    def ended_rows(self) -> int:
        return sum(stage.ended for stage in self.stages)
