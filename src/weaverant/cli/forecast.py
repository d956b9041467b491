"""A pilot's estimate as lines for people."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Iterator

from weaverant.cli.text import counted, exact, table
from weaverant.pilot import Estimate, Interval
from weaverant.runtime.progress import short, span


def forecast(found: Estimate) -> Iterator[str]:
    """What the whole input will take, how sure that is, and the budget that would cover it."""
    whole = f"all {found.total:,} rows" if found.total is not None else "each row"
    yield ""
    yield f"estimate for {whole}, from the {found.rows:,} that have ended"
    if found.unfinished:
        yield f"  ({found.unfinished:,} that were begun and have not ended are left out)"
    yield from table(("", "likely", "95 % from", "to"), list(_rows(found)))
    yield from _time(found)
    yield from _answered(found)
    if found.affordable is not None:
        rows = found.affordable
        more, few, many = map(_count, (rows.value, rows.low, rows.high))
        rest = exact(max(0.0, found.budget - found.spent))
        yield f"  what is left of the budget, {rest}, pays for about {more} rows more ({few} to {many})"
    yield from _left_out(found)
    if cap := _budget(found):
        yield ""
        yield f"with a cap: weaverant resume {shlex.quote(found.directory)}{cap}"


def _rows(found: Estimate) -> Iterator[tuple[str, ...]]:
    known = found.cost.value < math.inf and (found.cost.high or not found.unpriced)
    yield _row("cost", found.cost, exact) if known else ("cost", "?", "?", "?")
    yield _row("calls", found.calls, _count)
    yield _row("tokens in", found.prompt_tokens, short)
    yield _row("tokens out", found.completion_tokens, short)
    yield _row("rows failed", found.failed, _percent)
    yield _row("rows rejected", found.rejected, _percent)


def _row(name: str, interval: Interval, text: Callable[[float], str]) -> tuple[str, ...]:
    return (name, *(text(part) if part < math.inf else "?" for part in (interval.value, interval.low, interval.high)))


def _count(number: float) -> str:
    return f"{number:,.0f}" if number < math.inf else "any number of"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _time(found: Estimate) -> Iterator[str]:
    if found.seconds is None:
        return
    time = found.seconds
    most = span(time.high) if time.high < math.inf else "nobody knows"
    yield f"  time left: about {span(time.value)} ({span(time.low)} to {most})"
    if found.hourly:
        yield "  servers that are paid by the hour cost that time, and their part of the cost is no surer than it"


def _answered(found: Estimate) -> Iterator[str]:
    """Calls that cost nothing here, and what the figures make of that."""
    if not found.reused and not found.cached:
        return
    by = [(found.reused, f"the earlier run {found.earlier}"), (found.cached, "a cache")]
    asked = " and ".join(f"{counted(calls, 'call')} by {whom}" for calls, whom in by if calls)
    yield f"  answered at no cost: {asked}"
    left = "the rows that are left" if found.total is None else f"the {found.total - found.rows:,} rows that are left"
    if found.known:
        yield f"  of {left} it has {found.known:,} at most, which are taken to go as its rows did here"
        left = "the others"
    if found.cost.value < math.inf:
        yield f"  {left} are taken to have no answers yet, and to be paid for"
    else:
        yield f"  {left} may have no answers yet: what they cost then nobody knows, as all rows so far had some"


def _left_out(found: Estimate) -> Iterator[str]:
    if found.left_out:
        stages = f"{'stage' if len(found.left_out) == 1 else 'stages'} {', '.join(found.left_out)}"
        yield f"  without the {stages}: groups form when all rows have ended, so a pilot cannot tell what they take,"
        yield "  and no figure here has room for it"


def _budget(found: Estimate) -> str:
    """A cap that covers all rows, where no budget does."""
    if found.total is None or not found.cap or found.cap == math.inf or found.budget >= found.cap:
        return ""
    return f" --budget {math.ceil(found.cap * 100) / 100:.2f}"
