"""How well each model does, by set: answers, aggregation, scores. And the cards that say so, and `pool.json`."""

from __future__ import annotations

import json
from math import sqrt
from random import Random
from typing import Any

from members import HERE, LONG, MEMBERS, MODELS, SHORT, Member
from problems import SETS, Problem, problem
from sample import TEMPERATURE, heard

from weaverant.routing import tiny_prompts as tiny

PROBLEMS = 60
"""Of each set, from the test split."""
PRICE = 1e-6
"""US dollars for a million tokens, for each parameter: a price that is made up, so that larger models are dearer."""


def measured() -> dict[str, dict[str, Any]]:
    """Every figure of the cards, by member."""
    dice = Random("measure")
    problems = [problem(of, "test", dice) for of in SETS for _ in range(PROBLEMS)]
    firsts = {each.name: _said(each, [tiny.ask(it.question) for it in problems]) for each in MEMBERS}
    told = [[tiny.answer(said[at]) for said in firsts.values()] for at in range(len(problems))]
    return {each.name: _figures(each, problems, firsts[each.name], told) for each in MEMBERS}


def _said(member: Member, prompts: list[str], temperature: float = TEMPERATURE) -> list[str]:
    return [replies[0].text for replies in heard(MODELS / member.name, prompts, 1, temperature)]


def _figures(member: Member, problems: list[Problem], first: list[str], told: list[list[str]]) -> dict[str, Any]:
    final = _said(member, [tiny.aggregate(it.question, each) for it, each in zip(problems, told, strict=True)])
    better = _said(member, [tiny.improve(it.question, each) for it, each in zip(problems, told, strict=True)])
    scored = [tiny.improve(it.question, each, True) for it, each in zip(problems, told, strict=True)]
    judged = [tiny.read(text, len(told[0])) for text in _said(member, scored)]
    alone = [tiny.read(text) for text in _said(member, [tiny.ask_scored(it.question) for it in problems])]
    own = [(said.own, it.right(said.answer)) for it, said in zip(problems, alone, strict=True) if said.own is not None]
    peers = [
        (score, it.right(text), it.set in member.homes)
        for it, each, said in zip(problems, told, judged, strict=True)
        for text, score in zip(each, said.peers or (), strict=False)
    ]
    return {
        "answers": _by_set(problems, [tiny.answer(text) for text in first]),
        "answers at temperature 0": _by_set(problems, _answers(member, problems)),
        "final": _by_set(problems, [tiny.answer(text) for text in final]),
        "better": _by_set(problems, [tiny.answer(text) for text in better]),
        "better, scored": _by_set(problems, [said.answer for said in judged]),
        "told a right one": _by_set(problems, _best_of(problems, told)),
        "gave a score": len(own) / len(problems),
        "own score: correlation": _correlation([(score, right) for score, right in own]),
        "own score: mean where right": _mean([score for score, right in own if right]),
        "own score: mean where wrong": _mean([score for score, right in own if not right]),
        "gave scores of others": sum(said.peers is not None for said in judged) / len(judged),
        "peer scores: correlation at home": _correlation([(s, right) for s, right, home in peers if home]),
        "peer scores: correlation elsewhere": _correlation([(s, right) for s, right, home in peers if not home]),
    }


def _answers(member: Member, problems: list[Problem]) -> list[str]:
    return [tiny.answer(text) for text in _said(member, [tiny.ask(it.question) for it in problems], 0.0)]


def _best_of(problems: list[Problem], told: list[list[str]]) -> list[str]:
    """A right answer among those told, where there is one."""
    return [next(filter(it.right, each), "") for it, each in zip(problems, told, strict=True)]


def _by_set(problems: list[Problem], answers: list[str]) -> dict[str, float]:
    right = [it.right(said) for it, said in zip(problems, answers, strict=True)]
    return {of: _mean([float(ok) for it, ok in zip(problems, right, strict=True) if it.set == of]) for of in SETS}


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else float("nan")


def _correlation(pairs: list[tuple[float, bool]]) -> float:
    """Pearson's, of a score and of being right; 0 where either never changes."""
    x, y = _mean([s for s, _ in pairs]), _mean([float(r) for _, r in pairs])
    both = sum((s - x) * (r - y) for s, r in pairs)
    scale = sqrt(sum((s - x) ** 2 for s, _ in pairs) * sum((r - y) ** 2 for _, r in pairs))
    return both / scale if scale else 0.0


def parameters(member: Member) -> int:
    """How many numbers its weights are."""
    head = (MODELS / member.name / "model.safetensors").read_bytes()
    shapes = json.loads(head[8 : 8 + int.from_bytes(head[:8], "little")])
    return sum(_product(about["shape"]) for name, about in shapes.items() if name != "__metadata__")


def _product(sizes: list[int]) -> int:
    total = 1
    for size in sizes:
        total *= size
    return total


def write_cards(figures: dict[str, dict[str, Any]], logs: dict[str, dict[str, float]]) -> None:
    """CARD.md of each, `pool.json` (whose priors stay), and all figures in `figures.json`."""
    pool: dict[str, Any] = {"models": {}, "aggregator": "generalist"}
    path = HERE / "pool.json"
    known: dict[str, Any] = json.loads(path.read_text())["models"] if path.exists() else {}
    for member in MEMBERS:
        price = round(parameters(member) * PRICE, 4)
        about = {**known.get(member.name, {}), "model": f"embedded:models/{member.name}", "price": [price, price]}
        pool["models"][member.name] = about
        (MODELS / member.name / "CARD.md").write_text(
            _card(member, price, figures[member.name], logs.get(member.name, {}))
        )
    path.write_text(json.dumps(pool, indent=1) + "\n")
    (HERE / "figures.json").write_text(json.dumps(figures, indent=1) + "\n")


def _card(member: Member, price: float, of: dict[str, Any], log: dict[str, float]) -> str:
    rows = ("answers", "answers at temperature 0", "better", "better, scored", "final", "told a right one")
    table = "\n".join(f"| {row} | " + " | ".join(f"{of[row][name]:.1%}" for name in SETS) + " |" for row in rows)
    rest = "\n".join(f"| {name} | {value:.2f} |" for name, value in of.items() if isinstance(value, float))
    diet = ", ".join(f"{name} {share:.0%}" for name, share in member.diet.items())
    losses = " and ".join(f"{log[key]:.3f} on {key[6:]} prompts" for key in ("loss, short", "loss, long") if key in log)
    return CARD.format(
        name=member.name,
        parameters=f"{parameters(member):,}",
        layers=member.layers,
        width=member.width,
        diet=diet,
        steps=member.steps,
        later=member.later,
        each=f"{SHORT} questions alone and {LONG} with others' answers",
        minutes=f"{log.get('seconds', 0.0) / 60:.1f}",
        losses=losses,
        price=f"{price:g}",
        header=" | ".join(SETS),
        dashes="|---" * len(SETS),
        table=table,
        rest=rest,
        problems=PROBLEMS,
        temperature=TEMPERATURE,
    )


CARD = """# {name}

A character-level GPT-2 of {parameters} parameters ({layers} layers, width {width}), one of the pool that routing is
measured on. It knows the questions of `training/specialists/problems.py` and nothing else. It is asked as
`src/weaverant/routing/tiny_prompts.py` says. `training/specialists/make.py` wrote this file and the weights beside it.

Taught on ({diet}) in {steps:,} steps of {each},
then {later:,} with real answers of others; {minutes} minutes of processor time on a busy machine; last losses, nats a
token: {losses}. The pool's price for it, ${price} a million tokens read or drawn, is made up:
proportional to its parameters.

## Measured
The numpy engine, {problems} test problems of each set, temperature {temperature}. `better` and `final` were told the
first answers of all members in the order of their names; `told a right one` is how often a right one was among them.

| share right | {header} |
|---{dashes}|
{table}

| scores, all sets | |
|---|---|
{rest}
"""
