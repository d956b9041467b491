"""Each row is one observation: its cost, tokens and calls, those of the rows that later stages made of it included.

The rest of the rows is taken to be of the same kind, so a pilot should see rows in no particular order. Groups belong
to no single row and are left out.
"""

from __future__ import annotations

import math
from pathlib import Path

from msgspec import Struct

from weaverant.errors import UserError
from weaverant.journal import JournalReader
from weaverant.launch import Run
from weaverant.pilot.duration import duration
from weaverant.pilot.intervals import Interval, mean_of, share_of, whole_of
from weaverant.pilot.seen import Seen
from weaverant.rundir import RunConfig, load_config
from weaverant.runtime.limits import Limits

MARGIN = 1.1
"""The cap that is proposed, over the upper end of the cost."""

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
    """US dollars."""
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
    """Rows that what is left of the budget pays for."""
    cap: float
    """A budget that all rows most likely fit in: the upper end of the cost, a tenth more, and the most that any one
    call could have cost, because a call is sent only where that fits. Infinite where the cost may be."""
    unpriced: list[str] = []
    """Names of models whose price nobody knows: a cost of 0 tells nothing of them."""
    left_out: list[str] = []
    """Stages of groups, and those after them. Groups form when all rows have ended, so a pilot sees none: what these
    stages take is in no figure, nor in the cap."""


def estimate(run: Run | str | Path) -> Estimate:
    """From a run, or its directory. Raises `UserError` where no row has ended."""
    directory = run.directory if isinstance(run, Run) else Path(run)
    if directory is None:
        raise UserError("this run keeps no journal, so nothing is known of its rows: journal=True")
    config, reader = load_config(directory), JournalReader(directory)
    seen = Seen()
    for event in reader.events():
        seen.see(event)
    ended = seen.ended
    if not ended:
        raise UserError(f"no row of {str(directory)!r} has ended, so nothing can be said of the others")
    rest = None if config.rows is None else max(0, config.rows - len(ended))
    costs = [row.cost for row in ended]
    allowed = run.limits.concurrency if isinstance(run, Run) else config.limits.get("concurrency", Limits().concurrency)
    cost = whole_of(costs, rest)
    spent = sum(row.cost for row in seen.rows.values()) + seen.apart + reader.reserved().dollars
    return Estimate(
        str(directory), len(ended), len(seen.rows) - len(ended), config.rows,
        cost,
        whole_of([row.calls for row in ended], rest),
        whole_of([row.prompt_tokens for row in ended], rest),
        whole_of([row.completion_tokens for row in ended], rest),
        share_of(sum(row.failed for row in ended), len(ended)),
        share_of(sum(row.rejected and not row.failed for row in ended), len(ended)),
        duration(seen, rest, allowed), spent, seen.budget,
        _affordable(max(0.0, seen.budget - spent), mean_of(costs)) if seen.budget else None,
        _cap(cost.high, seen),
        config.unpriced, _left_out(config),
    )  # fmt: skip


def _left_out(config: RunConfig) -> list[str]:
    """The first stage of groups and all after it."""
    first = next((number for number, name in enumerate(config.stages) if name in (config.groups or ())), None)
    return [] if first is None else config.stages[first:]


def _affordable(left: float, each: Interval) -> Interval:
    return Interval(*(left / part if part else math.inf for part in (each.value, each.high, each.low)))


def _cap(cost: float, seen: Seen) -> float:
    if seen.bound:
        return MARGIN * cost + seen.bound
    return max(MARGIN * cost, cost + DEAREST * seen.dearest)
