"""A run's summary as lines for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from itertools import groupby

from weaverant.cli.advice import next_steps
from weaverant.cli.allowance import least, rounded_up
from weaverant.cli.text import clipped, counted, exact, table
from weaverant.runtime.ledger import AgentCounts, StageCounts
from weaverant.runtime.progress import money, short
from weaverant.summary import PeerSummary, Summary, positive

REASONS_SHOWN = 10

HEADS = ("agent", "calls", "reused", "failed", "cancelled", "tokens in", "tokens out", "cost", "p50", "p95", "p99")
CANCELLED = HEADS.index("cancelled")
"""That column is there where something was."""

CUT_BY = {"length": "max_tokens", "content_filter": "content filter"}

TOY = "a packaged toy that knows small sums as in arithmetic:weave; all else gets nonsense"

STATES = {
    "finished": "finished",
    "interrupted": "stopped by a signal",
    "fuse": "stopped by the error fuse: too many rows failed",
    "journal": "stopped: the journal could not be written",
    "source": "stopped: the input could not be read",
    "closed": "stopped by its caller",
    "server": "stopped: a model's server cannot be used",
    "budget": "stopped: the budget has no room for another call",
    "pilot": "the pilot has ended",
    "running": "running now",
    "killed": "killed before it could end in order",
    "working": "its peers still work, without the command that started them: they stop by themselves before long",
    "ending": "its peers were told to stop, and end what is in flight",
    "unseen": "nobody is seen at work on it from here, and it has not ended in order: others may be, on other hosts",
    "ready": "not started",
    "broken": "stopped: it could not go on",
    "grouping": "what peers can do is done; groups are still to be formed",
}

PEERS_SHOWN = 32


def report(summary: Summary, advise: bool = True) -> Iterator[str]:
    """Ledger, agents, failures, divergence, and where it is to `advise` what to do next."""
    yield ""
    if summary.simulated:
        yield "#" * 78
        yield f"# SIMULATED MODEL ({', '.join(summary.simulated)}): the words of this run are made up and no data."
        yield "#" * 78
    if summary.toys:
        yield f"({', '.join(summary.toys)}: {TOY})"
    yield from _title(summary)
    for number, stage in enumerate(summary.ledger.stages):
        yield from _stage(stage, summary.rows if number == 0 else None, len(summary.ledger.stages) > 1)
    yield from _agents(summary)
    yield from _peers(summary)
    yield from _requests(summary)
    yield from _cut_short(summary)
    yield from _cost(summary)
    yield from _cut_off(summary)
    yield from _short(summary)
    yield from _failures(summary)
    yield from _failed_calls(summary)
    yield from _divergence(summary)
    yield from _warnings(summary)
    if advise:
        yield ""
        yield from next_steps(summary)


def _title(summary: Summary) -> Iterator[str]:
    where = "" if summary.directory is None else f"  {summary.directory}"
    yield f"{summary.config.workflow}: {STATES.get(summary.state, summary.state)}{where}"
    if summary.why:
        yield f"  why: {clipped(summary.why, 1, 600)}"
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
    """A line for each agent, what they amount to, and lines for functions and for agents whose replies other agents'
    calls have made: those are no calls of a model."""
    found = sorted(summary.ledger.agents.items())
    if not found:
        return
    unknown = _unknown(summary)
    models = {name: counts for (kind, name), counts in found if kind == "model"}
    rows = [_agent_row(name, counts, name in unknown) for name, counts in models.items()]
    if len(models) > 1:
        rows.append(_all_agents(summary, list(models.values()), bool(unknown)))
    rows += [
        _agent_row(_named(kind, name), counts, kind == "compound") for (kind, name), counts in found if kind != "model"
    ]
    heads = HEADS
    if not any(counts.cancelled for _, counts in found):
        heads, *rows = ((*row[:CANCELLED], *row[CANCELLED + 1 :]) for row in (HEADS, *rows))
    yield ""
    yield from table(heads, rows)


def _peers(summary: Summary) -> Iterator[str]:
    """A line for each, the last that came where there are many."""
    if not summary.peers:
        return
    shown, before = summary.peers[-PEERS_SHOWN:], summary.peers[:-PEERS_SHOWN]
    labelled = any(peer.labels for peer in shown)
    hosted = any(peer.answered for peer in summary.peers)
    own = summary.one_process
    first: list[tuple[str, str, int, int, int]] = []
    if own is not None and (own.ended or own.calls):
        first.append(("-", "one process", own.ended, own.calls, 0))
    if before:
        ended, calls = sum(peer.ended for peer in before), sum(peer.calls for peer in before)
        first.append(("...", f"{len(before):,} before", ended, calls, sum(peer.answered for peer in before)))
    rows = [
        (
            epoch, process, *(("",) if labelled else ()), f"{ended:,}", f"{calls:,}",
            *((f"{answered:,}",) if hosted else ()), "",
        )
        for epoch, process, ended, calls, answered in first
    ]  # fmt: skip
    rows += [
        (
            str(peer.epoch),
            f"{peer.host}:{peer.pid}",
            *((", ".join(peer.labels),) if labelled else ()),
            f"{peer.ended:,}",
            f"{peer.calls:,}",
            *((f"{peer.answered:,}",) if hosted else ()),
            _peer_state(peer) + (f": {peer.why}" if peer.why else ""),
        )
        for peer in shown
    ]
    yield ""
    offers, answered = ("offers",) if labelled else (), ("answered for others",) if hosted else ()
    yield from table(("peer", "process", *offers, "rows ended", "calls", *answered, "state"), rows)


def _all_agents(summary: Summary, models: list[AgentCounts], unknown: bool) -> tuple[str, ...]:
    usage = summary.ledger.usage()
    return (
        "all agents",
        f"{sum(counts.calls for counts in models):,}",
        f"{sum(counts.reused for counts in models):,}",
        f"{sum(counts.failures.total() for counts in models):,}",
        f"{sum(counts.cancelled for counts in models):,}",
        short(usage.prompt_tokens),
        short(usage.completion_tokens),
        "-" if unknown and not usage.cost else money(usage.cost) + "+" * unknown,
        *("", "", ""),
    )


def _named(kind: str, name: str) -> str:
    return name if kind == "model" else f"{name} ({kind})" if kind == "compound" else f"{name}() {kind}"


def _unknown(summary: Summary) -> list[str]:
    """Agents that asked a model and nobody knows for how much."""
    models = {name: counts for (kind, name), counts in summary.ledger.agents.items() if kind == "model"}
    return [
        name
        for name in summary.unpriced
        if name in models and models[name].calls > models[name].reused and not models[name].total().cost
    ]


def _peer_state(peer: PeerSummary) -> str:
    if peer.state == "idle":  # one that offers labels may be at work on calls of others
        return "no row of its own" if peer.labels else "idle: it holds no row"
    return "not seen from this host" if peer.state == "unseen" else peer.state


def _requests(summary: Summary) -> Iterator[str]:
    """`requests    413 for 400 calls`, where a call took more than one."""
    agents = summary.ledger.agents
    asked = sum(counts.calls - counts.reused for (kind, _), counts in agents.items() if kind == "model")
    requests = summary.ledger.usage().requests
    if requests > asked:
        yield f"requests    {requests:,} for {counted(asked, 'call')}: the others were sent again or twice"


def _cut_short(summary: Summary) -> Iterator[str]:
    """`cut short   writer 9 of 12 (max_tokens); exports as messages or preference leave these replies out`."""
    found = [
        f"{name} {count:,} of {counts.calls:,} ({CUT_BY[how]})"
        for (_, name), counts in sorted(summary.ledger.agents.items())
        for how, count in positive(counts.cut).items()
    ]
    if found:
        yield f"cut short   {', '.join(found)}; exports as messages or preference leave these replies out"


def _cut_off(summary: Summary) -> Iterator[str]:
    """`cut off     16 calls when it stopped: a bill may have them, and no cost here does`."""
    found = [f"{counted(summary.cut, 'call')} when it stopped"] * (summary.cut > 0)
    killed = [counted(summary.killed, "session")] * (summary.killed > 0)
    killed += [counted(summary.killed_peers, "peer")] * (summary.killed_peers > 0)
    if killed:
        found.append(f"what was in flight when {' and '.join(killed)} ended by a kill")
    if found and any(what.startswith("http") for what in summary.config.identities.values()):
        them = "a bill may have them, and no cost here does; with --budget it would"
        yield f"cut off     {' and '.join(found)}: {them}"


def _cost(summary: Summary) -> Iterator[str]:
    """`cost      $1.2345 of $5.00 (of it $0.0400 is a bound: 3 calls whose bill nobody knows)`."""
    spent, unknown = summary.ledger.spent(), _unknown(summary)
    models = ", ".join(sorted({summary.config.identities[name] for name in summary.config.unpriced}))
    way_out = f"no price for {models} (?price=IN,OUT in its address, ?price=0 where it costs nothing)"
    if not spent.total and not summary.budget:
        if unknown:
            yield ""
            yield f"cost        unknown: {way_out}"
        return
    cap = f" of {money(summary.budget)}" if summary.budget else ""
    calls = spent.unsure_calls + spent.reserved_calls
    yet = " yet" if summary.state == "running" else ""
    bound = (
        f" (of it {exact(spent.bound)} is a bound: {counted(calls, 'call')} whose bill nobody knows{yet})"
        if calls
        else ""
    )
    yield ""
    more = f", and what {', '.join(unknown)} cost is unknown: {way_out}" if unknown else ""
    yield f"cost        {exact(spent.total)}{cap}{bound}{more}"


def _short(summary: Summary) -> Iterator[str]:
    """`short       37 calls wait for money; the first may cost $0.0141, which takes a budget of $0.2577`."""
    short = summary.short
    if summary.state == "budget" and short is not None:
        waits = "call waits for money; it" if short.calls == 1 else "calls wait for money; the first"
        takes = f"which takes a budget of ${rounded_up(least(summary))}"
        yield f"short       {short.calls:,} {waits} may cost {exact(short.first)}, {takes}"


def _agent_row(name: str, counts: AgentCounts, unknown: bool) -> tuple[str, ...]:
    """`unknown`: nobody knows what its calls cost."""
    usage = counts.total()
    return (
        name,
        f"{counts.calls:,}",
        f"{counts.reused:,}",
        f"{counts.failures.total():,}",
        f"{counts.cancelled:,}",
        short(usage.prompt_tokens),
        short(usage.completion_tokens),
        "-" if unknown else money(usage.cost),
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


def _failed_calls(summary: Summary) -> Iterator[str]:
    """Failures of calls that are more than the rows that failed for the same reason. That of a compound's call has
    mostly been that of a call inside."""
    rows = Counter[str]()
    for stage in summary.ledger.stages:
        rows += stage.failed
    calls, compounds = Counter[str](), Counter[str]()
    for (kind, _), counts in summary.ledger.agents.items():
        (compounds if kind == "compound" else calls).update(counts.failures)
    explained = {"compound": rows | calls}
    found = [
        (count, _named(kind, name), reason, counts.examples.get(reason, ""))
        for (kind, name), counts in summary.ledger.agents.items()
        for reason, count in counts.failures.items()
        if (compounds if kind == "compound" else calls)[reason] > explained.get(kind, rows)[reason]
    ]
    if found:
        yield ""
        yield "failed calls, some or all of them caught in the workflow or tried again, with an example each"
    for count, name, reason, text in sorted(found, key=lambda one: (-one[0], one[1:]))[:REASONS_SHOWN]:
        yield f"  {name} {count:,} x {reason}" + (f": {clipped(text, 1, 200)}" if text else "")
    if len(found) > REASONS_SHOWN:
        yield f"  and {len(found) - REASONS_SHOWN:,} more"


def _warnings(summary: Summary) -> Iterator[str]:
    """What is no failure, and most likely no wish either."""
    stages = summary.ledger.stages
    found = [
        f"warning: all {stage.done:,} results{f' of {stage.name}' if len(stages) > 1 else ''} are null: did the "
        "workflow forget to return?"
        for stage in stages
        if stage.done and stage.nulls == stage.done
    ]
    if summary.state == "finished" and not stages[0].rows and summary.config.limit != 0:
        found.append(f"warning: the input has no rows: {summary.config.input}")
    if found:
        yield ""
        yield from found


def _divergence(summary: Summary) -> Iterator[str]:
    found = summary.divergence
    if found.tasks:
        yield ""
        yield (
            f"replay diverged in {counted(found.tasks, 'task')}: recorded steps were never asked for again. First in "
            f"row {found.first_task}: {found.first_step}. Does the workflow use time, chance or the network without "
            "now(), rng() or step()?"
        )
