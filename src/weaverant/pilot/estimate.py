"""Each row is one observation, with all its trials: its cost, tokens and calls, those of the rows that later stages
made of it included.

The rest of the rows is taken to be of the same kind, so a pilot should see rows in no particular order. Groups belong
to no single row and are left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

from msgspec import Struct

from weaverant.errors import UserError
from weaverant.events import Capacity, RunClosed
from weaverant.journal import JournalReader
from weaverant.pilot.duration import duration
from weaverant.pilot.earlier import Earlier
from weaverant.pilot.intervals import Interval
from weaverant.pilot.seen import Seen
from weaverant.pilot.whole import NOTHING, Figure, Whole
from weaverant.rundir import RunConfig, load_config
from weaverant.runtime.limits import Limits
from weaverant.session import Run

MARGIN = 1.1
"""The cap that is proposed, over the upper end of the cost."""

CALLS = Figure(lambda row: row.calls, lambda row: row.calls + len(row.kept))
PROMPT_TOKENS = Figure(
    lambda row: row.prompt_tokens, lambda row: row.prompt_tokens + sum(kept.prompt_tokens for kept in row.kept)
)
COMPLETION_TOKENS = Figure(
    lambda row: row.completion_tokens,
    lambda row: row.completion_tokens + sum(kept.completion_tokens for kept in row.kept),
)

DEAREST = 10.0
"""So many times the dearest call is taken to be the bound of one where no engine has told it."""


class Estimate(Struct, frozen=True):
    """Of the whole input, what has been done included; of one row where nobody knows how many there are."""

    directory: str
    rows: int
    """How many rows have ended: what the estimate rests on."""
    unfinished: int
    """Rows that were begun and have not ended. They are left out; where they are slow ones, it is too low."""
    total: int | None
    cost: Interval
    """US dollars. Infinite where nobody knows, because all that such rows ask was answered before."""
    calls: Interval
    prompt_tokens: Interval
    completion_tokens: Interval
    failed: Interval
    rejected: Interval
    """Shares of the rows, 0 to 1."""
    seconds: Interval | None
    """For the rows that are left: no confidence interval, see `duration`. None where nobody knows, or no model was
    called."""
    spent: float
    """US dollars so far, those that are a bound included."""
    budget: float
    affordable: Interval | None
    """Rows that what is left of the budget pays for; None where nobody knows, or none are left."""
    cap: float
    """A budget that all rows most likely fit in: the upper end of the cost, a tenth more, and the most that any one
    call could have cost, because a call is sent only where that fits. Infinite where the cost may be."""
    unpriced: list[str] = []
    """Names of models whose price nobody knows: a cost of 0 tells nothing of them."""
    left_out: list[str] = []
    """Stages of groups, and those after them. Groups form when all rows have ended, so a pilot sees none: what these
    stages take is in no figure, nor in the cap."""
    earlier: str | None = None
    """The directory of the run that answered, where one was given."""
    reused: int = 0
    """Calls of the rows that have ended which that run answered, and"""
    cached: int = 0
    """which a cache did. They cost nothing, and tell nothing of rows that neither has."""
    known: int = 0
    """At most so many of the rows that are left the earlier run has. They count as such rows did here, the others as if
    none of their calls had an answer yet, at the price that the earlier run paid."""
    hourly: bool = False
    """Whether servers are paid by the hour: those cost the time that is left, and not by the call."""


def estimate(run: Run | str | Path) -> Estimate:
    """From a run, or its directory. Raises `UserError` where no row has ended."""
    directory = run.directory if isinstance(run, Run) else Path(run)
    if directory is None:
        raise UserError("this run keeps no journal, so nothing is known of its rows: journal=True")
    config, reader = load_config(directory), JournalReader(directory)
    seen = Seen(_capacities(reader), config.identities)
    for event in reader.events():
        seen.see(event)
    ended = list(seen.ended.values())
    if not ended:
        raise UserError(f"no row of {str(directory)!r} has ended, so nothing can be said of the others")
    rest = None if config.rows is None else max(0, config.rows - len(ended))
    allowed = run.limits.concurrency if isinstance(run, Run) else config.limits.get("concurrency", Limits().concurrency)
    whole = Whole(seen, Earlier(config), config.trials, rest)
    seconds = _seconds(seen, whole, allowed)
    left = whole.cost_left(seconds)
    cost = whole.with_done(lambda row: row.cost, left)
    spent = sum(row.cost for row in seen.rows.values()) + seen.apart + reader.reserved().dollars
    kept = [each.reused for row in ended for each in row.kept]
    return Estimate(
        str(directory), len(ended), len(seen.rows) - len(ended), config.rows,
        cost,
        whole.of(CALLS), whole.of(PROMPT_TOKENS), whole.of(COMPLETION_TOKENS),
        whole.sample.share(lambda row: row.failed),
        whole.sample.share(lambda row: row.rejected and not row.failed),
        seconds, spent, seen.budget,
        _affordable(max(0.0, seen.budget - spent), left, rest) if seen.budget else None,
        _cap(cost.high, seen, whole.prices.values()),
        config.unpriced, _left_out(config),
        config.reuse, sum(kept), len(kept) - sum(kept), whole.known, bool(seen.hourly),
    )  # fmt: skip


def _capacities(reader: JournalReader) -> dict[str, Capacity | None]:
    """As the last pilot has noted them."""
    closed = [event.capacities for event in reader.run_events() if isinstance(event, RunClosed) and event.capacities]
    return closed[-1] if closed else {}


def _seconds(seen: Seen, whole: Whole, allowed: int) -> Interval | None:
    """For the rows that are left. Calls that were answered before took no time; they count as the others on average."""
    if whole.rest is None or not seen.loads:
        return None
    if not whole.rest:
        return NOTHING
    each = seen.latency
    work = Figure(lambda row: row.seconds, lambda row: row.seconds + each * len(row.kept))
    return duration(seen, whole.left(CALLS), whole.left(work), allowed)


def _left_out(config: RunConfig) -> list[str]:
    """The first stage of groups and all after it."""
    first = next((number for number, name in enumerate(config.stages) if name in (config.groups or ())), None)
    return [] if first is None else config.stages[first:]


def _affordable(dollars: float, left: Interval, rest: int | None) -> Interval | None:
    """Rows of those that are left, which cost so much together; None where nobody knows what they cost."""
    if rest == 0 or left.value == math.inf:
        return None
    rows = 1 if rest is None else rest
    return Interval(*(dollars * rows / part if part else math.inf for part in (left.value, left.high, left.low)))


def _cap(cost: float, seen: Seen, before: Iterable[float]) -> float:
    if seen.bound:
        return MARGIN * cost + seen.bound
    return max(MARGIN * cost, cost + DEAREST * max(seen.dearest, *before, 0.0))
