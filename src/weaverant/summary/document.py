"""A run's summary as plain data, for machines."""

from __future__ import annotations

from typing import Any

import msgspec

from weaverant.runtime.ledger import AgentCounts, Ledger, Spent, StageCounts
from weaverant.summary.account import Summary, positive


def document(summary: Summary) -> dict[str, Any]:
    """The summary as plain data. Keys are only ever added:

    `directory`, `workflow`, `state` (see `Summary`), `sessions`, `created` (Unix seconds), `input`, `trials`, `rows`
    (of the first stage, null while unknown), `left`, `models` (name -> identity), `simulated` (names), `parameters`,
    `stages` (a list of `{name, rows, done, rejected, failed, left}`; `rejected` and `failed` map reasons to counts),
    `agents` (a list of `{kind, name, calls, reused, cancelled, failures, prompt_tokens, completion_tokens,
    cached_tokens, reasoning_tokens, cost, requests, unsure, p50, p95, p99, unsure_calls, reserved, reserved_calls,
    examples, cut, unpriced}`; the kind `compound` has agents whose replies other agents' calls have made: what these
    used is counted there; cost in US dollars, `unsure` the part of it that is a bound, of so many calls,
    `reserved` what was set aside for calls of which no end is recorded; percentiles in seconds from the first request
    to the end, over calls that were not reused; `examples` is what the first failure of each reason said, `cut` how
    many calls gave a reply that was cut short, by its finish, `unpriced` that a cost of 0 tells nothing, as the
    model's price is not known), `failures` (`{key, reason, where, text}`, at most two a reason), `divergence`
    (`{tasks, first_task, first_step}`), `spent` (US dollars: `{total, known, unsure, unsure_calls, reserved,
    reserved_calls}`, total = known + unsure + reserved),
    `budget` (null for none), `why` (the error that stopped the last session; null for none), `short` (of a run that
    stopped for money, `{calls, first, most}`: calls that waited for it, what the first and any of them may cost),
    `cut_off` (`{calls, sessions, peers}`: of sessions without a budget, calls in flight when they stopped, and how many
    of one process, and how many peers, were killed with an unknown number in flight; a bill may have these, and no cost
    here does), `peers` (a list of `{epoch, host, pid, labels, state, why, since, ended, calls, answered, killed}` of
    all that ever worked on it, see `PeerSummary`), `one_process` (of a run that had peers, what sessions without any
    did: `{ended, calls}`; else null).
    """
    config = summary.config
    reserved = summary.ledger.reserved.by_agent()
    return {
        "directory": summary.directory,
        "workflow": config.workflow,
        "state": summary.state,
        "sessions": summary.sessions,
        "created": config.created,
        "input": config.input,
        "trials": config.trials,
        "rows": summary.rows,
        "left": summary.left,
        "models": config.identities,
        "simulated": summary.simulated,
        "parameters": config.parameters,
        "stages": [_stage_document(stage) for stage in summary.ledger.stages],
        "agents": [
            {
                "kind": kind,
                "name": name,
                **_agent_document(counts),
                **_reserved(reserved if kind == "model" else {}, name),
                "examples": counts.examples,
                "cut": positive(counts.cut),
                "unpriced": kind == "model" and name in summary.unpriced,
            }
            for (kind, name), counts in _agents(summary.ledger)
        ],
        "failures": msgspec.to_builtins(summary.failures),
        "divergence": msgspec.to_builtins(summary.divergence),
        "spent": _spent_document(summary.ledger.spent()),
        "budget": summary.budget or None,
        "why": summary.why or None,
        "cut_off": {"calls": summary.cut, "sessions": summary.killed, "peers": summary.killed_peers},
        "peers": msgspec.to_builtins(summary.peers),
        "one_process": msgspec.to_builtins(summary.one_process),
        "short": msgspec.to_builtins(summary.short and msgspec.structs.asdict(summary.short)),
    }


def _agents(ledger: Ledger) -> list[tuple[tuple[str, str], AgentCounts]]:
    """All that did something, and those of whose only calls no end is recorded."""
    waiting = {("model", name): AgentCounts() for name in ledger.reserved.by_agent()}
    return sorted({**waiting, **ledger.agents}.items())


def _reserved(by_agent: dict[str, tuple[int, float]], name: str) -> dict[str, float]:
    calls, dollars = by_agent.get(name, (0, 0.0))
    return {"reserved": dollars, "reserved_calls": calls}


def _spent_document(spent: Spent) -> dict[str, float]:
    return {
        "total": spent.total,
        "known": spent.ended - spent.unsure,
        "unsure": spent.unsure,
        "unsure_calls": spent.unsure_calls,
        "reserved": spent.reserved,
        "reserved_calls": spent.reserved_calls,
    }


def _stage_document(stage: StageCounts) -> dict[str, Any]:
    return {
        "name": stage.name,
        "rows": stage.rows,
        "done": stage.done,
        "rejected": positive(stage.rejected),
        "failed": positive(stage.failed),
        "left": stage.left,
    }


def _agent_document(counts: AgentCounts) -> dict[str, Any]:
    return {
        "calls": counts.calls,
        "reused": counts.reused,
        "cancelled": counts.cancelled,
        "failures": positive(counts.failures),
        **msgspec.structs.asdict(counts.total()),
        "unsure_calls": counts.unsure,
        **{f"p{share}": counts.latencies.percentile(share / 100) for share in (50, 95, 99)},
    }
