"""`report.md` of an improvement: what was asked for, each round with its verdict, what was left out, what it took."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from weaverant.cli.text import exact
from weaverant.recipes.malt.loop.habits import planted_habits, told_habits
from weaverant.recipes.malt.loop.kept import read_json
from weaverant.recipes.malt.loop.order import FEWEST, PREFERRED
from weaverant.recipes.malt.loop.playing import played, seconds_of
from weaverant.recipes.malt.loop.problems import FOLDER, problems_in, told_left_out
from weaverant.recipes.malt.loop.sets import sets_in
from weaverant.recipes.malt.loop.wanted import Improvement
from weaverant.recipes.malt.main import DROPPED, left_out
from weaverant.recipes.malt.tables import Evaluated, notes, tables
from weaverant.recipes.malt.team import ROLES
from weaverant.runtime.progress import span
from weaverant.train import TrainConfig

PHASES = ("weave", "train", "gate")


def page(it: Improvement, out: Path, rounds: Sequence[dict[str, Any]], found: Evaluated | None) -> str:
    """The whole page. Pure but for what it reads in `out`."""
    lines = [
        "# MALT, improved",
        "",
        *_asked(it, out),
        "",
        "## Rounds",
        "",
        *(f"* {one['told']}" for one in rounds),
        "",
        *_table(out, rounds),
    ]
    for one in rounds:
        lines += ["", *_left_out(out, one["round"])]
    habits = planted_habits(it.model)
    if habits:
        lines += ["", told_habits(habits)]
    if found is not None:
        lines += ["", "## All systems", "", "![accuracy](accuracy.svg)", ""]
        lines += ["\n\n".join("\n".join(table.markdown()) for table in tables(found)), ""]
        lines += [f"* {line}" for line in (*about_tables(rounds), *notes_of(rounds, found))]
    return "\n".join(lines) + "\n"


def _asked(it: Improvement, out: Path) -> Iterator[str]:
    sizes, left_out = problems_in(out / FOLDER)
    yield f"* base: `{it.model}`, weights of `{it.train}`"
    held = f"of `{it.held_out}`" if it.held_out else "a share of the same list, by a hash of the question"
    told = ", ".join(f"{name} {count:,}" for name, count in sizes.items())
    yield f"* questions to weave of `{it.problems}`; for gates and tables {held}: {told}"
    yield f"* no problem has two uses. {told_left_out(left_out)}"
    thetas = ", ".join(f"{theta:g}" for theta in it.theta)
    yield f"* branching {it.branching}, checker {it.checker}, prompts {it.prompts}; theta by round {thetas}"
    yield f"* SFT: {_settings(it.sft)}; DPO: {_settings(it.dpo)}"
    yield f"* a role with fewer than {FEWEST} samples is not trained, and keeps its model"


def _settings(config: TrainConfig) -> str:
    names = ("epochs", "lr", "batch_size", "lora", "beta", "sft_weight", "seed")
    return ", ".join(f"{name} {getattr(config, name):g}" for name in names if hasattr(config, name))


def _table(out: Path, rounds: Sequence[dict[str, Any]]) -> Iterator[str]:
    head = [
        "round",
        "theta",
        "calls",
        "failed rows",
        "cost",
        "SFT G / V / R",
        "pairs V / R",
        *(f"{p}, s" for p in PHASES),
    ]
    yield f"| {' | '.join(head)} |"
    yield f"|{' --: |' * len(head)}"
    for one in rounds:
        place = out / f"round-{one['round']}"
        lines, took = sets_in(place / "data").lines, seconds_of(place)
        runs = [run for run in (one["woven"], one["gate"]) if run]
        cells = [
            str(one["round"]),
            f"{one['theta']:g}",
            f"{sum(run['calls'] for run in runs):,}",
            str(one["failed"]),
            exact(sum(run["cost"] for run in runs)) if all(run["priced"] for run in runs) else "not known",
            " / ".join(f"{lines.get(f'sft-{role}.jsonl', 0):,}" for role in ("generator", "verifier", "refiner")),
            " / ".join(f"{lines.get(f'preference-{role}.jsonl', 0):,}" for role in ("verifier", "refiner")),
            *(f"{took.get(phase, 0):,.0f}" for phase in PHASES),
        ]
        yield f"| {' | '.join(cells)} |"
    seconds = total_seconds(out, len(rounds))
    yield ""
    yield f"In all {span(seconds)} by the clock; what a session took that was killed is not in it."
    if (out / "evaluation" / "run.json").exists():
        last = played(out / "evaluation")
        cost = exact(last.cost) if last.priced else "their cost is not known"
        yield f"The tables took {last.calls:,} more calls, {cost}; {last.failed:,} of their rows failed."


def _left_out(out: Path, number: int) -> Iterator[str]:
    """Of one round: roles that were not trained, replies and pairs that were not learned, warnings of trainings."""
    place = out / f"round-{number}"
    sets = sets_in(place / "data")
    yield f"Left out in round {number}:"
    yield ""
    for kind, method, roles in (("sft", "SFT", ROLES), ("preference", "DPO", PREFERRED)):
        for role in roles:
            if (samples := sets.lines.get(f"{kind}-{role}.jsonl", 0)) < FEWEST:
                yield f"* {method} of the {role}: {samples} samples"
    if number == 1 and sets.no_star:
        yield f"* STaR: {sets.no_star}"
    for kind, reasons in left_out(place / "data" / DROPPED).items():
        told = ", ".join(f"{reason} {count:,}" for reason, count in sorted(reasons.items()))
        yield f"* {'replies' if kind == 'sft' else 'pairs, or parents without one'}: {told or 'none'}"
    for state in sorted(place.glob("*/*/training.json")):
        for warning in read_json(state).get("result", {}).get("warnings", []):
            yield f"* warning of {state.parent.relative_to(place)}: {warning}"


def total_seconds(out: Path, rounds: int) -> float:
    """Of all phases, by the clock."""
    places = [out, *(out / f"round-{number}" for number in range(1, rounds + 1))]
    return sum(sum(seconds_of(place).values()) for place in places)


def notes_of(rounds: Sequence[dict[str, Any]], found: Evaluated) -> list[str]:
    """What a reader must know of the tables. Where no round was adopted nobody wonders why its team is not there."""
    return notes(found if any(one["adopted"] for one in rounds) else found._replace(left_out={}))


def about_tables(rounds: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Whose models the tables have."""
    adopted = [one["round"] for one in rounds if one["adopted"]]
    if not adopted:
        yield "No round was adopted: the tables are those of the base, and of STaR."
    elif adopted[-1] > 1:
        yield f"MALT is the team of round {adopted[-1]}; STaR learned from the attempts of round 1 alone."
