"""`weaverant improve malt --dry-run`: everything that can go wrong before a model is asked, and what it will all take.

The rows are read, each gold answer by the checker; the prompts of the first rows go through the chat template, with
gold answers in place of replies; memory and time of training are those of such samples. Nothing is asked or written.
"""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from weaverant.cli.text import clipped, exact
from weaverant.engines import open_engine
from weaverant.errors import UserError
from weaverant.recipes.malt.grading import grader_for
from weaverant.recipes.malt.loop.order import PREFERRED, flags_of
from weaverant.recipes.malt.loop.problems import Pools, Row, pools_of, told_left_out
from weaverant.recipes.malt.loop.serving import KNOWN, is_folder
from weaverant.recipes.malt.loop.training import is_embeddable
from weaverant.recipes.malt.loop.wanted import Improvement
from weaverant.recipes.malt.systems import MA, MALT, PASSES
from weaverant.recipes.malt.team import ROLES, Role, team_for
from weaverant.recipes.malt.tree import Branching, branching_of
from weaverant.runtime.progress import span
from weaverant.train import plan_dpo, plan_sft

LOOKED_AT = 64
"""Rows whose prompts are put through the chat template."""

ALL_SYSTEMS = 57
"""Calls that a problem and seed takes of all 25 systems together, which share what they have in common."""


def ahead(it: Improvement, out: Path, serve: str | None) -> Iterator[str]:
    """Lines for people. `UserError` for whatever could not go on."""
    pools = pools_of(it.problems, it.held_out, it.checker, it.wanted)
    yield f"problems: {', '.join(f'{Path(name).stem} {len(rows):,}' for name, rows in pools.files())}; none twice"
    yield told_left_out(pools.left_out)
    if short := it.short({Path(name).stem: len(rows) for name, rows in pools.files()}):
        yield f"warning: too few rows for what was asked: {'; '.join(short)}"
    kinds = Counter(grader_for(row, it.checker).checker for _, rows in pools.files() for row in rows)
    yield f"gold answers: {', '.join(f'{count:,} by the checker {kind}' for kind, count in kinds.most_common())}"
    first = pools.weave[0][0]
    gold = grader_for(first, it.checker)
    question = clipped(str(first["question"]), 1, 100)
    yield f"first row: {question!r}, gold answer {gold.gold!r} for the checker {gold.checker}"
    yield from _models(it, serve)
    size = branching_of(it.branching)
    yield from _training(it, pools.weave[0], size)
    calls = list(_calls(it, pools, size))
    for about, count in calls:
        yield f"calls: {count:,} {about}"
    yield f"calls in all: {sum(count for _, count in calls):,}; {_cost(it, pools, calls)}"
    yield "commands that do the same by hand:"
    yield from (f"  {line}" for line in _commands(it, out, serve))
    yield f"nothing was asked or written; without --dry-run everything goes into {out}"


def _models(it: Improvement, serve: str | None) -> Iterator[str]:
    if is_folder(it.model):
        yield f"base: a server of {it.model}"
    else:
        open_engine(it.model)
        yield f"base: {it.model}"
    yield f"trained from: {it.train}"
    if is_embeddable(it.train):
        yield "trained roles: embedded in the process"
    elif serve is None:
        yield (
            "warning: trained roles want a server: to run this, add --serve transformers, --serve vllm, or a command "
            "with {folder}, {port} and {name}"
        )
    else:
        yield f"trained roles: each by {KNOWN.get(serve, serve)}"


def _training(it: Improvement, rows: Sequence[Row], size: Branching) -> Iterator[str]:
    """What the trainings of a round take if half of the replies are good, and as long as the gold answers."""
    counts = {
        "generator": size.generator,
        "verifier": size.generator * size.verifier,
        "refiner": size.generator * size.verifier * size.refiner,
    }
    seconds = 0.0
    with TemporaryDirectory() as place:
        for role in ROLES:
            samples = [_sample(it, row, role) for row in rows[:LOOKED_AT]]
            sft, pairs = Path(place) / f"sft-{role}.jsonl", Path(place) / f"pairs-{role}.jsonl"
            _write(sft, [{"messages": [*prompt, reply]} for prompt, reply in samples])
            worse = {"role": "assistant", "content": "I do not know."}
            _write(pairs, [{"prompt": p, "chosen": [r], "rejected": [worse]} for p, r in samples])
            try:
                plans = [("sft", plan_sft(sft, it.train, it.sft))]
                plans += [("dpo", plan_dpo(pairs, it.train, it.dpo))] if role in PREFERRED else []
            except UserError as error:
                raise UserError(f"the {role}'s prompts, with gold answers for replies: {error}") from None
            for method, planned in plans:
                for line in planned.lines():
                    if line.startswith(("model:", "warning:")):
                        yield f"{method} {role}: {line}"
                a_sample = planned.seconds / planned.samples
                seconds += a_sample * len(rows) * counts[role] / 2
                yield (
                    f"{method} {role}: chat template, {planned.samples} prompts put through, the longest "
                    f"{planned.longest:,} tokens of {planned.max_length:,}; {planned.memory / 1e6:,.0f} MB; "
                    f"{1e3 * a_sample:,.1f} ms a sample of all epochs"
                )
    yield (
        f"training a round: about {span(seconds)} if half of the replies are good and give a pair each, and they are "
        "as long as the gold answers; STaR apart"
    )


def _sample(it: Improvement, row: Row, role: Role) -> tuple[list[dict[str, str]], dict[str, str]]:
    """A role's prompt on the row, with the gold answer for whatever was said before, and for its reply."""
    said = str(row.get("answer") or "-")
    agent = team_for(row, it.prompts)[ROLES.index(role)]
    told: dict[str, Any] = {"question": row["question"]}
    told |= {name: said for name in ("attempt", "critique") if name in agent.templates.variables}
    messages = agent.messages(**told)
    return [{"role": one.role, "content": one.text} for one in messages], {"role": "assistant", "content": said}


def _write(path: Path, lines: Sequence[Any]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")


def _calls(it: Improvement, pools: Pools, size: Branching) -> Iterator[tuple[str, int]]:
    yield "to weave", sum(map(len, pools.weave)) * size.calls
    yield "at the gate, at most", sum(map(len, pools.gate)) * PASSES * (MA.calls + MALT.calls)
    if it.tables:
        yield "for the tables, at most", len(pools.report) * it.seeds * ALL_SYSTEMS


def _cost(it: Improvement, pools: Pools, calls: Sequence[tuple[str, int]]) -> str:
    """By the listed price of the base, with four characters to a token and gold answers for replies."""
    from weaverant.engines.http.address import parse
    from weaverant.engines.http.money.prices import listed

    if is_folder(it.model) or it.model.partition(":")[0] in ("embedded", "scripted", "simulated"):
        return "they cost nothing but time"
    try:
        address = parse(it.model)
        price = listed(address.preset.name, address.model) if address.preset.name and address.model else None
    except UserError:
        price = None
    if price is None:
        return f"what they cost is not known: no price is listed for {it.model}"
    rows = pools.weave[0][:LOOKED_AT]
    read = sum(len(one["content"]) for row in rows for role in ROLES for one in _sample(it, row, role)[0]) / 4
    written = sum(len(str(row.get("answer"))) for row in rows for _ in ROLES) / 4
    a_call = (read * price.input + written * price.output) / (len(rows) * len(ROLES)) / 1e6
    return f"about {exact(a_call * sum(count for _, count in calls))} if the base answered them all"


def _commands(it: Improvement, out: Path, serve: str | None) -> Iterator[str]:
    """Of the first round; later ones put the adopted roles in the places of the base."""
    first = out / "round-1"
    changes = [f"--set={role}.{name}={value}" for role, set_ in it.overrides.items() for name, value in set_.items()]
    common = [f"--checker={it.checker}", f"--prompts={it.prompts}"]
    rows = [f"--input={out / 'problems' / 'weave-1.jsonl'}", f"--branching={it.branching}", *common]
    model = it.model
    if is_folder(model) and serve is not None:
        yield f"{KNOWN.get(serve, serve)}, with {{folder}} {model} and {{port}} 8000"
        model = "http://127.0.0.1:8000/v1"
    run = [*rows, f"--theta={it.theta_of(1):g}", *changes, f"--run={first / 'weave'}"]
    yield shlex.join(["weaverant", "run", "malt", f"--model={model}", *run])
    dpo = [flag for flag in flags_of(it.dpo) if flag.startswith(("--beta", "--sft-weight", "--warn-fall"))]
    own = [f"--dpo-epochs={it.dpo.epochs}", f"--dpo-lr={it.dpo.lr:g}", *dpo]
    train = ["weaverant", "train", "malt", str(first / "weave"), f"--model={it.train}", f"--out={first}"]
    yield shlex.join([*train, *flags_of(it.sft), *own])
    if serve is not None:
        folders = ", ".join(str(first / each) for each in ("sft/generator", "dpo/verifier", "dpo/refiner"))
        yield f"{KNOWN.get(serve, serve)}, with {{folder}} {folders}; their addresses go into models.json"
    evaluate = ["python", "-m", "weaverant.recipes.malt.evaluate", f"--models={first / 'models.json'}", *common]
    gate = [f"--input={out / 'problems' / 'gate-1.jsonl'}", "--team=ma", "--team=malt", f"--run={first / 'gate'}"]
    yield shlex.join([*evaluate, *gate])
    if it.tables:
        report = [f"--input={out / 'problems' / 'report.jsonl'}", f"--seeds={it.seeds}", f"--run={out / 'evaluation'}"]
        yield shlex.join([*evaluate, *report])
