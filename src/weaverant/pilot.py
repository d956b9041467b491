"""What the whole input will take, judged by the rows of a run that have ended.

Each row is one observation: its cost, tokens and calls, those of the rows that later stages made of it included.
The rest of the rows is taken to be of the same kind, so a pilot should see rows in no particular order. Groups belong
to no single row and are left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import NormalDist, fmean, stdev

from msgspec import Struct

from weaverant.errors import UserError
from weaverant.events import Event, RunOpened, StepEnded, TaskEnded, TaskReopened, TaskStarted
from weaverant.journal import JournalReader
from weaverant.launch import Run
from weaverant.rundir import load_config
from weaverant.runtime.limits import Limits

Z = NormalDist().inv_cdf(0.975)


class Interval(Struct, frozen=True):
    """The likeliest value and where the true one lies with a probability of 95 %; `high` may be infinite."""

    value: float
    low: float
    high: float


class Estimate(Struct, frozen=True):
    """Of the whole input, what has been done included; of one row where nobody knows how many there are."""

    directory: str
    rows: int
    """How many rows have ended: what the estimate rests on."""
    unfinished: int
    """Rows that were begun and have not ended. They are left out; where they are slow ones, it is too low."""
    total: int | None
    cost: Interval
    """US dollars."""
    calls: Interval
    prompt_tokens: Interval
    completion_tokens: Interval
    failed: Interval
    rejected: Interval
    """Shares of the rows, 0 to 1."""
    seconds: tuple[float, float] | None
    """For the rows that are left. From all calls that are `allowed` at once, each as fast as now, to no more at once
    than there were; None where nobody knows, or no model was called."""
    allowed: int
    reached: float
    """Calls in flight, on average, so far."""
    spent: float
    """US dollars so far, those that are a bound included."""
    budget: float
    affordable: Interval | None
    """Rows that what is left of the budget pays for."""
    cap: float
    """A budget that all rows most likely fit in: the upper end of the cost, and a tenth more, or ten times the dearest
    call, because the last calls need room for their bounds as well. Infinite where the cost may be."""
    unpriced: list[str] = []
    """Names of models whose price nobody knows: a cost of 0 tells nothing of them."""


def estimate(run: Run | str | Path) -> Estimate:
    """From a run, or its directory. Raises `UserError` where no row has ended."""
    directory = run.directory if isinstance(run, Run) else Path(run)
    if directory is None:
        raise UserError("this run keeps no journal, so nothing is known of its rows: journal=True")
    config = load_config(directory)
    seen = _Seen()
    for event in JournalReader(directory).events():
        seen.see(event)
    ended = [row for row in seen.rows.values() if not row.open]
    if not ended:
        raise UserError(f"no row of {str(directory)!r} has ended, so nothing can be said of the others")
    rest = None if config.rows is None else max(0, config.rows - len(ended))
    costs = [row.cost for row in ended]
    allowed = run.limits.concurrency if isinstance(run, Run) else config.limits.get("concurrency", Limits().concurrency)
    spent = sum(row.cost for row in seen.rows.values()) + seen.apart + JournalReader(directory).reserved().dollars
    left = max(0.0, seen.budget - spent)
    mean, cost = mean_of(costs), _whole(costs, rest)
    return Estimate(
        str(directory), len(ended), len(seen.rows) - len(ended), config.rows,
        cost,
        _whole([row.calls for row in ended], rest),
        _whole([row.prompt_tokens for row in ended], rest),
        _whole([row.completion_tokens for row in ended], rest),
        share_of(sum(row.failed for row in ended), len(ended)),
        share_of(sum(row.rejected and not row.failed for row in ended), len(ended)),
        _time(ended, rest, allowed, seen.reached), allowed, seen.reached, spent, seen.budget,
        Interval(*(left / part if part else math.inf for part in (mean.value, mean.high, mean.low)))
        if seen.budget else None,
        max(1.1 * cost.high, cost.high + 10 * seen.dearest),
        config.unpriced,
    )  # fmt: skip


def mean_of(values: Sequence[float]) -> Interval:
    """The mean of rows like these: Student's interval."""
    mean = fmean(values)
    half = _spread(values) / math.sqrt(len(values))
    return Interval(mean, max(0.0, mean - half), mean + half)


def total_of(values: Sequence[float], rest: int) -> Interval:
    """The sum of `rest` further rows: that of the mean, and what so many rows differ from their mean themselves."""
    if not rest:
        return Interval(0.0, 0.0, 0.0)
    mean = fmean(values)
    half = _spread(values) * rest * math.sqrt(1 / len(values) + 1 / rest)
    return Interval(rest * mean, max(0.0, rest * mean - half), rest * mean + half)


def share_of(some: int, of: int) -> Interval:
    """A share of which `some` were seen among so many: Wilson's interval."""
    share = some / of
    centre = (share + Z * Z / (2 * of)) / (1 + Z * Z / of)
    half = Z / (1 + Z * Z / of) * math.sqrt(share * (1 - share) / of + Z * Z / (4 * of * of))
    return Interval(share, max(0.0, centre - half) if some else 0.0, min(1.0, centre + half) if some < of else 1.0)


def student(freedom: int) -> float:
    """The 97.5 % quantile of Student's t: in closed form for 1 and 2 degrees of freedom, else by the expansion of
    Abramowitz and Stegun, 26.7.5, which is off by less than 0.2 %."""
    if freedom == 1:
        return math.tan(math.pi * 0.475)
    if freedom == 2:
        return 0.95 * math.sqrt(2 / (4 * 0.975 * 0.025))
    terms = (
        (Z**3 + Z) / 4,
        (5 * Z**5 + 16 * Z**3 + 3 * Z) / 96,
        (3 * Z**7 + 19 * Z**5 + 17 * Z**3 - 15 * Z) / 384,
        (79 * Z**9 + 776 * Z**7 + 1482 * Z**5 - 1920 * Z**3 - 945 * Z) / 92_160,
    )
    return Z + sum(term / freedom**power for power, term in enumerate(terms, 1))


class _Row:
    """What one row of the source took, with all that was made of it."""

    __slots__ = ("calls", "completion_tokens", "cost", "failed", "open", "prompt_tokens", "rejected", "seconds")

    def __init__(self) -> None:
        self.open = 0
        """Tasks that have not ended."""
        self.failed = self.rejected = False
        self.cost = self.seconds = 0.0
        self.calls = self.prompt_tokens = self.completion_tokens = 0


class _Seen:
    """A fold over a run's events."""

    def __init__(self) -> None:
        self.rows: dict[str, _Row] = {}
        self.budget = 0.0
        self.apart = 0.0
        """Dollars of groups."""
        self.dearest = 0.0
        """Dollars of one call."""
        self._seconds = self._wall = 0.0
        self._opened = self._last = 0.0

    @property
    def reached(self) -> float:
        wall = self._wall + self._last - self._opened
        return self._seconds / wall if wall > 0 else 0.0

    def see(self, event: Event) -> None:
        match event:
            case RunOpened():
                self._wall += self._last - self._opened
                self._opened = self._last = event.time
                self.budget = event.budget
            case StepEnded():
                self._last = event.time
                self._step(event)
            case TaskStarted() | TaskEnded() | TaskReopened():
                if "@" not in event.task:
                    self._task(event)
            case _:
                pass

    def _task(self, event: TaskStarted | TaskEnded | TaskReopened) -> None:
        row = self.rows.setdefault(event.task.partition("/")[0], _Row())
        row.open += -1 if isinstance(event, TaskEnded) else 1
        if isinstance(event, TaskEnded):
            row.failed |= event.state == "failed"
            row.rejected |= event.state == "rejected"
        elif isinstance(event, TaskReopened):
            row.failed = False

    def _step(self, event: StepEnded) -> None:
        if event.kind != "model" or event.reused:
            return
        seconds = event.clock - event.started
        self._seconds += seconds
        self.dearest = max(self.dearest, event.usage.cost)
        if "@" in event.task:
            self.apart += event.usage.cost
            return
        row = self.rows[event.task.partition("/")[0]]
        row.calls += 1
        row.seconds += seconds
        row.cost += event.usage.cost
        row.prompt_tokens += event.usage.prompt_tokens
        row.completion_tokens += event.usage.completion_tokens


def _spread(values: Sequence[float]) -> float:
    """Student's t times the standard deviation."""
    return student(len(values) - 1) * stdev(values) if len(values) > 1 else math.inf


def _whole(values: Sequence[float], rest: int | None) -> Interval:
    if rest is None:
        return mean_of(values)
    more, done = total_of(values, rest), math.fsum(values)
    return Interval(done + more.value, done + more.low, done + more.high)


def _time(ended: Iterable[_Row], rest: int | None, allowed: int, reached: float) -> tuple[float, float] | None:
    seconds = [row.seconds for row in ended]
    if rest is None or not reached:
        return None
    total = total_of(seconds, rest)
    return total.low / allowed, total.high / min(reached, allowed)
