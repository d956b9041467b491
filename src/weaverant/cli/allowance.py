"""How much money a run needs that has stopped for it."""

from __future__ import annotations

import math
from typing import NamedTuple

from weaverant.events import Shortfall
from weaverant.summary import Summary


class Allowance(NamedTuple):
    """Budgets in US dollars, what was spent included."""

    least: float
    """The first call that waits can be sent."""
    enough: float
    """For one more row at least: all that were begun can be finished, if they cost what others did."""
    whole: float | None
    """For all rows, if they cost what others did; None where nobody knows."""


def allowance(summary: Summary) -> Allowance:
    """Going by the rows that have ended, and by the call that may cost most of those that waited for money."""
    ledger = summary.ledger
    spent, short, ended = ledger.spent().total, summary.short or Shortfall(0, 0.0, 0.0), ledger.ended_rows
    least, call = max(spent + short.first, summary.budget), short.most
    if not ended:  # nobody knows what a row takes
        return Allowance(least, max(2 * summary.budget, spent + 2 * call), None)
    begun = sum(stage.left for stage in ledger.stages)
    row = spent / ended
    calls = math.ceil(ledger.calls / ended)
    enough = max(least, spent + max(max(begun, 1) * row, calls * call) + call)
    known = summary.rows is not None and len(ledger.stages) == 1
    return Allowance(least, enough, max(enough, spent + summary.left * row + call) if known else None)


def rounded_up(dollars: float) -> str:
    """As an option's value: three digits, or cents, and never less."""
    digits = max(2, 2 - math.floor(math.log10(dollars))) if dollars > 0 else 2
    return f"{math.ceil(dollars * 10**digits) / 10**digits:.{digits}f}"
