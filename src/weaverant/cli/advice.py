"""What can be done with a run now, as commands to copy. Nothing is advised that could not work."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterator

from weaverant.cli.allowance import allowance, rounded_up
from weaverant.cli.text import counted, exact
from weaverant.rundir import resume_in_python
from weaverant.summary import Summary

AGAIN = frozenset(("timeout", "connection", "rate_limit", "server", "output", "tool", "cache", "engine", "died"))
"""Reasons that another try, with other samples, may not meet again."""

ELSEWHERE = {
    "context": "the same model with room for longer prompts",
    "request": "the same model at a server that takes such requests",
    "choices": "the same model at a server that gives as many replies",
}
"""Reasons that the same server gives again, and what would help."""

MEND = {
    "context": "the prompts, or take another model (--model SPEC)",
    "request": "the agent, or take another model (--model SPEC)",
    "choices": "the agent's n, or take another model (--model SPEC)",
    "unreadable": "the input",
    "budget": "the agent's max_tokens or the model's price (?price=IN,OUT)",
    "unbounded": "the agent's max_tokens or the model's price (?price=IN,OUT)",
}
CODE = "the workflow's code"

OWN = frozenset(("stuck", "spins", "result", "value"))
"""Reasons that lie in the workflow's own code, like every exception that it raised itself."""

NOT_KILLED = {
    "working": "   (it lets them end in order before)",
    "ending": "   (it waits for them)",
    "unseen": "   (once nobody works on it elsewhere)",
}
"""States in which somebody may still work on a run."""

CHANCE = "where it was chance: a resume takes no changed code"
MOVED = "--model SPEC: the same model at another address"
NEVER_THERE = "--model SPEC: the right address, or the right name of the model"


def next_steps(summary: Summary) -> Iterator[str]:
    """Each thing once."""
    if summary.directory is None:
        yield "nothing was stored (--no-journal)"
        return
    where = shlex.quote(str(summary.directory))
    mend_first = summary.state == "fuse" and _to_mend(summary)
    if not mend_first:
        yield from _go_on(summary)
    if summary.failures:
        yield f"look:       weaverant show {where} --task {summary.failures[0].key}"
        if summary.state not in ("running", *NOT_KILLED):
            yield from _after_failures(summary, where)
    if mend_first:
        yield from _go_on(summary)
    last = summary.ledger.stages[-1]
    if last.done:
        yield f"export:     weaverant export {where} --as raw --out data.jsonl"
    elif last.rejected.total():
        yield f"look:       weaverant export {where} --state rejected --out rejected.jsonl"


def _go_on(summary: Summary) -> Iterator[str]:
    if summary.state == "budget":
        yield from _with_more_money(summary)
    elif summary.state == "server":
        yield f"go on:      {_resume(summary)}"
        yield f"            ({MOVED if summary.ledger.calls else NEVER_THERE})"
    elif summary.state == "fuse":
        again = _retry(summary)
        if again:
            yield f"go on:      {again}   ({CHANCE if _to_mend(summary) else 'once the cause is mended'})"
            moved = f"{MOVED}; " if "connection" in _reasons(summary) else ""
            yield f"            ({moved}--max-failures 1: failures stop nothing)"
        else:
            yield f"go on:      {_resume(summary, max_failures='1')}   (what failed stays as it is)"
    elif summary.state not in ("finished", "running"):
        yield f"go on:      {_resume(summary)}{NOT_KILLED.get(summary.state, '')}"


def _with_more_money(summary: Summary) -> Iterator[str]:
    found = allowance(summary)
    rows = sum(stage.left for stage in summary.ledger.stages)
    under_way = f"for {counted(rows, 'row')} under way" if rows else "for another row"
    if not found.known:
        which = " without answers of an earlier run or a cache" if summary.ledger.ended_rows else ""
        under_way = f"no row has ended{which}, so nobody knows what one takes"
    whole = "" if found.whole is None else f"; about {exact(found.whole)} for all {summary.rows or 0:,} rows"
    yield f"go on:      {_resume(summary, budget=rounded_up(found.enough))}   ({under_way}{whole})"


def _after_failures(summary: Summary, where: str) -> Iterator[str]:
    reasons, to_mend = _reasons(summary), _to_mend(summary)
    if not to_mend:
        yield from _try_again(summary)
    for reason in sorted(reasons & ELSEWHERE.keys()):
        command = _resume(summary, retry=f"failed:{reason}", model="SPEC")
        yield f"elsewhere:  {command}   ({ELSEWHERE[reason]})"
    wrong = list(dict.fromkeys(MEND.get(reason, CODE) for reason in sorted(reasons - AGAIN)))
    if wrong:
        yield f"mend:       {'; '.join(wrong)}"
        yield f"            then a new run, which pays only for what differs: weaverant run ... --reuse {where}"
    if to_mend:
        yield from _try_again(summary)


def _to_mend(summary: Summary) -> bool:
    """Whether most of the rows that failed would only fail again: then to mend what made them is the first advice."""
    failed = sum((stage.failed for stage in summary.ledger.stages), Counter[str]())
    again = sum(count for reason, count in failed.items() if reason in AGAIN)
    return 2 * again < failed.total()


def _try_again(summary: Summary) -> Iterator[str]:
    again = _retry(summary)
    if again and summary.state != "fuse":
        yield f"try again:  {again}" + (f"   ({CHANCE})" if _to_mend(summary) else "")
        if "connection" in _reasons(summary):
            yield f"            ({MOVED})"


def _retry(summary: Summary) -> str:
    """The command that takes up what may end otherwise now; empty where nothing would."""
    reasons = _reasons(summary)
    steps = {reason for counts in summary.ledger.agents.values() for reason in counts.failures}
    worth = {reason for reason in reasons if reason in AGAIN or (reason in steps - OWN and reason not in MEND)}
    if not worth:
        return ""
    only = f":{next(iter(worth))}" if len(worth) == 1 and worth != reasons else ""
    return _resume(summary, retry=f"failed{only}")


def _resume(summary: Summary, **options: str) -> str:
    """The command that goes on; of a run that no command can make again, the line of Python."""
    config, directory = summary.config, str(summary.directory)
    if not config.objects:
        flags = "".join(f" --{name.replace('_', '-')} {value}" for name, value in options.items())
        return f"weaverant resume {shlex.quote(directory)}{flags}"
    objects = [*config.objects, *(["models"] if "model" in options and "models" not in config.objects else [])]
    more = "".join(f", {name}={_argument(name, value)}" for name, value in options.items() if name != "model")
    return f"in Python {resume_in_python(directory, objects, more)}"


def _argument(name: str, value: str) -> str:
    return value if name != "retry" else repr(value.partition(":")[2] or True)


def _reasons(summary: Summary) -> set[str]:
    return {failure.reason for failure in summary.failures}
