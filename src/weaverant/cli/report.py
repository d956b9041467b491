"""A run's summary as lines for people."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from datetime import datetime
from itertools import groupby

from weaverant.cli.text import clipped, table
from weaverant.runtime.ledger import AgentCounts, StageCounts
from weaverant.runtime.progress import money, short
from weaverant.summary import Summary, positive

REASONS_SHOWN = 10

HEADS = ("agent", "calls", "reused", "failed", "tokens in", "tokens out", "cost", "p50", "p95", "p99")

STATES = {
    "finished": "finished",
    "interrupted": "stopped by a signal",
    "fuse": "stopped by the error fuse: too many rows failed",
    "journal": "stopped: the journal could not be written",
    "source": "stopped: the input could not be read",
    "closed": "stopped by its caller",
    "budget": "stopped: the budget has no room for another call",
    "pilot": "the pilot has ended",
    "running": "running now",
    "killed": "killed before it could end in order",
    "ready": "not started",
}


def report(summary: Summary) -> Iterator[str]:
    """Ledger, agents, failures, divergence, and what to do next."""
    yield ""
    if summary.simulated:
        yield "#" * 78
        yield f"# SIMULATED MODEL ({', '.join(summary.simulated)}): the words of this run are made up and no data."
        yield "#" * 78
    yield from _title(summary)
    for number, stage in enumerate(summary.ledger.stages):
        yield from _stage(stage, summary.rows if number == 0 else None, len(summary.ledger.stages) > 1)
    yield from _agents(summary)
    yield from _requests(summary)
    yield from _cost(summary)
    yield from _failures(summary)
    yield from _divergence(summary)
    yield ""
    yield from next_steps(summary)


def _title(summary: Summary) -> Iterator[str]:
    where = "" if summary.directory is None else f"  {summary.directory}"
    yield f"{summary.config.workflow}: {STATES.get(summary.state, summary.state)}{where}"
    if summary.sessions > 1:
        yield f"  in {summary.sessions} sessions, begun {datetime.fromtimestamp(summary.config.created):%Y-%m-%d %H:%M}"


def _stage(stage: StageCounts, total: int | None, named: bool) -> Iterator[str]:
    """The ledger's equation, then its reasons."""
    rows = stage.rows if total is None else max(total, stage.rows)
    rejected, failed = stage.rejected.total(), stage.failed.total()
    name = f"{stage.name}: " if named else ""
    yield (
        f"  {name}rows {rows:,} = done {stage.done:,} + rejected {rejected:,} + failed {failed:,} "
        f"+ left {rows - stage.ended:,}"
    )
    for word, counts in (("rejected", positive(stage.rejected)), ("failed", positive(stage.failed))):
        shown = [f"{reason} {count:,}" for reason, count in counts.items()][:REASONS_SHOWN]
        if shown:
            more = f", and {len(counts) - len(shown):,} reasons more" if len(counts) > len(shown) else ""
            yield f"    {word}: {', '.join(shown)}{more}"


def _agents(summary: Summary) -> Iterator[str]:
    agents = summary.ledger.agents
    if not agents:
        return
    rows = [
        _agent_row(name if kind == "model" else f"{name}() {kind}", counts)
        for (kind, name), counts in sorted(agents.items())
    ]
    usage = summary.ledger.usage()
    tokens = short(usage.prompt_tokens), short(usage.completion_tokens)
    calls, reused = (sum(getattr(counts, field) for counts in agents.values()) for field in ("calls", "reused"))
    failed = sum(counts.failures.total() for counts in agents.values())
    if len(rows) > 1:
        rows.append(("all", f"{calls:,}", f"{reused:,}", f"{failed:,}", *tokens, money(usage.cost), "", "", ""))
    yield ""
    yield from table(HEADS, rows)


def _requests(summary: Summary) -> Iterator[str]:
    """`requests    413 for 400 calls`, where a call took more than one."""
    agents = summary.ledger.agents
    asked = sum(counts.calls - counts.reused for (kind, _), counts in agents.items() if kind == "model")
    requests = summary.ledger.usage().requests
    if requests > asked:
        yield f"requests    {requests:,} for {asked:,} calls: the others were sent again, or twice"


def _cost(summary: Summary) -> Iterator[str]:
    """`cost      $1.2345 of $5.00 (of it $0.0400 is a bound: 3 calls whose bill nobody knows)`."""
    spent = summary.ledger.spent()
    if not spent.total and not summary.budget:
        served = [what for what in summary.config.identities.values() if what.startswith("http:")]
        if served and summary.ledger.usage().completion_tokens:
            yield ""
            yield f"cost        unknown, or nothing: no price for {', '.join(served)} (?price=IN,OUT in its address)"
        return
    cap = f" of {money(summary.budget)}" if summary.budget else ""
    calls = spent.unsure_calls + spent.reserved_calls
    whose = f"{calls:,} calls" if calls != 1 else "1 call"
    yet = " yet" if summary.state == "running" else ""
    bound = f" (of it {exact(spent.bound)} is a bound: {whose} whose bill nobody knows{yet})" if calls else ""
    yield ""
    yield f"cost        {exact(spent.total)}{cap}{bound}"


def _spent(summary: Summary) -> float:
    return max(summary.budget, summary.ledger.spent().total)


def exact(dollars: float) -> str:
    """US dollars to a hundredth of a cent, or three digits of less."""
    return f"${dollars:,.4f}" if dollars >= 0.001 or not dollars else f"${dollars:.3g}"


def _agent_row(name: str, counts: AgentCounts) -> tuple[str, ...]:
    usage = counts.total()
    return (
        name,
        f"{counts.calls:,}",
        f"{counts.reused:,}",
        f"{counts.failures.total():,}",
        short(usage.prompt_tokens),
        short(usage.completion_tokens),
        money(usage.cost),
        *(seconds(counts.latencies.percentile(share)) for share in (0.5, 0.95, 0.99)),
    )


def seconds(value: float) -> str:
    """`12 ms`, `1.25 s`; nothing for none."""
    if not value:
        return "-"
    return f"{value * 1000:.3g} ms" if value < 1 else f"{value:.3g} s"


def _failures(summary: Summary) -> Iterator[str]:
    if not summary.failures:
        return
    yield ""
    yield "failures, with examples"
    ranked = sorted(summary.failures, key=lambda failure: failure.reason)
    for reason, examples in groupby(ranked, key=lambda failure: failure.reason):
        count = sum(stage.failed[reason] for stage in summary.ledger.stages)
        yield f"  {reason} ({count:,})"
        for failure in examples:
            where = f" at {failure.where}" if failure.where else ""
            yield f"    row {failure.key}{where}: {clipped(failure.text, 1, 300)}"


def _divergence(summary: Summary) -> Iterator[str]:
    found = summary.divergence
    if found.tasks:
        yield ""
        yield (
            f"replay diverged in {found.tasks:,} tasks: recorded steps were never asked for again. First in "
            f"row {found.first_task}: {found.first_step}. Does the workflow use time, chance or the network without "
            "now(), rng() or step()?"
        )


WORTH_A_RETRY = frozenset(
    ("timeout", "connection", "rate_limit", "server", "request", "context", "output", "tool", "cache", "engine", "died")
)
"""Reasons that lie outside a workflow's own code. What its code raised, it raises again."""


def _after_failures(summary: Summary, where: str) -> Iterator[str]:
    reasons = {failure.reason for failure in summary.failures} - {"unreadable"}
    if reasons & WORTH_A_RETRY:
        yield f"try again:  weaverant resume {where} --retry failed"
    if reasons - WORTH_A_RETRY:
        yield (
            f"mend:       the workflow's code, then a new run that pays only for what differs: "
            f"weaverant run ... --reuse {where}"
        )
        yield f"            (or, where a step function raised it: weaverant resume {where} --retry failed)"


def next_steps(summary: Summary) -> Iterator[str]:
    """What can be done with the run now, as commands to copy."""
    if summary.directory is None:
        yield "nothing was stored (--no-journal)"
        return
    where = shlex.quote(str(summary.directory))
    if summary.state == "budget":
        yield f"go on:      weaverant resume {where} --budget DOLLARS   (more than {exact(_spent(summary))})"
    elif summary.state == "fuse":
        yield f"go on:      weaverant resume {where} --retry failed   (once the cause is mended)"
        yield "            (with --max-failures 1 failures never stop it)"
    elif summary.state not in ("finished", "running"):
        yield f"go on:      weaverant resume {where}"
    if summary.failures:
        yield f"look:       weaverant show {where} --task {summary.failures[0].key}"
        if summary.state != "running":
            yield from _after_failures(summary, where)
    last = summary.ledger.stages[-1]
    if last.done:
        yield f"export:     weaverant export {where} --as raw --out data.jsonl"
    elif last.rejected.total():
        yield f"look:       weaverant export {where} --state rejected --out rejected.jsonl"
