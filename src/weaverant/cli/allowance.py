"""How much money a run needs that has stopped for it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

from weaverant.events import Shortfall
from weaverant.summary import Summary, row_costs


class Allowance(NamedTuple):
    """Budgets in US dollars, what was spent included."""

    enough: float
    """For one more row at least: all that were begun can be finished, if they cost what others did."""
    whole: float | None
    """For all rows, if they cost what others did; None where nobody knows."""
    known: bool = True
    """Whether a row has ended that tells what one takes."""


def least(summary: Summary) -> float:
    """The budget in US dollars with which the first call that waits can be sent."""
    first = 0.0 if summary.short is None else summary.short.first
    return max(summary.ledger.spent().total + first, summary.budget)


def allowance(summary: Summary) -> Allowance:
    """Going by the rows that have ended, and by the call that may cost most of those that waited for money. What was
    set aside for calls that a stop or a kill cut off is spent, and no other row's price. Reads the journal, which
    there must be."""
    ledger = summary.ledger
    spent, call, ended = ledger.spent().total, (summary.short or Shortfall(0, 0.0, 0.0)).most, ledger.ended_rows
    costs = row_costs(Path(summary.directory or ""))
    if not ended or costs.each is None:  # nobody knows what a row takes
        return Allowance(max(2 * summary.budget, spent + 2 * call), None, known=False)
    begun = sum(stage.left for stage in ledger.stages)
    calls = math.ceil(ledger.calls / ended)
    one = max(begun * costs.each - costs.begun, 0.0 if begun else costs.each, calls * call)
    enough = max(least(summary), spent + one + call)
    if summary.rows is None or len(ledger.stages) > 1:
        return Allowance(enough, None)
    return Allowance(enough, max(enough, spent + max(0.0, summary.left * costs.each - costs.begun) + call))


def rounded_up(dollars: float) -> str:
    """As an option's value: three digits, or cents, and never less."""
    digits = max(2, 2 - math.floor(math.log10(dollars))) if dollars > 0 else 2
    return f"{math.ceil(dollars * 10**digits) / 10**digits:.{digits}f}"
