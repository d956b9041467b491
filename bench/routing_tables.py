"""Routers on public tables that nobody here wrote: LLMRouter, RouteLLM (MMLU and GSM8K), RouterArena.

    python bench/routing_tables.py [--data ../shared/data] [--only llmrouter,mmlu,gsm8k,routerarena]

Each table is split ten times (MMLU: five) into four fifths to learn from and one fifth to judge by. Equal questions are
never parted, and everything that is chosen (head, hyper-parameters, calibration) is chosen by held-out folds inside the
four fifths, as `weaverant route train` does. The best single model, the constant ranking and the costs are those of the
four fifths, too. The J splits share questions, so the mean of a figure over them has an interval by the corrected
resampled t (Nadeau and Bengio, 2003: variance s² (1/J + 1/4) instead of s²/J). Beside it a second one, which more
splits cannot shrink: each question's gains are averaged over the splits that judged it, and questions are bootstrapped.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import graded
import numpy as np
import report
from resplits import Learn, Splits, judged, split_rows

from weaverant.routing.evaluation.judge import ORACLE, ROUTER, SINGLE, Evaluation, Hits
from weaverant.routing.evaluation.resample import Interval, corrected
from weaverant.routing.table import Table
from weaverant.routing.training import train

DATA = Path(__file__).parents[2] / "shared/data"
TARGET = "bench-routing-tables"

PAPER = {
    "mmlu": "RouteLLM's best router there: CPT(50 %) 35.4, random 50.1",
    "gsm8k": "RouteLLM's best router there: CPT(50 %) 33.6, random about 50",
}
"""The paper (Ong et al., 2024) as others quote it: learned from other data, judged on all questions."""


def accuracy_rows(told: Splits, *, goals: bool) -> list[dict]:
    """Right answers, the gain over the best single model, hits, calibration."""
    gain = told.mean(lambda one: one.line(ROUTER).gain.value)
    macro = told.mean(lambda one: one.line(ROUTER).gain_macro.value)
    pooled = told.pooled()
    several = len(set(told.table.sets)) > 1
    ways = {
        name: told.mean(lambda one, way=name: one.line(way).accuracy.value)
        for name in (ROUTER, SINGLE, "random", ORACLE)
    }
    singles = sorted({one.line(SINGLE).model or "" for one in told.found})
    lines = [
        [name if name != SINGLE else f"{name} ({', '.join(singles)})", shown(value)] for name, value in ways.items()
    ]
    lines += [["gain over the best single model, points", signed(gain)], ["  the same by questions", signed(pooled)],
              *([["  mean of sets", signed(macro)]] if several else [])]  # fmt: skip
    rows = [
        report.row(f"{told.name}: {name}: right, %", 100 * value.value, **ends(value)) for name, value in ways.items()
    ]
    goal, met = ("lower bound > 0", gain.low > 0) if goals else (None, None)
    rows.append(
        report.row(f"{told.name}: gain over the best single model, points", 100 * gain.value, goal, met, **ends(gain),
                   interval_by_questions=ends(pooled)["interval"])
    )  # fmt: skip
    if several:
        rows.append(report.row(f"{told.name}: the same, mean of sets, points", 100 * macro.value, **ends(macro)))
    models = len(told.table.models)
    for kind, words in (("right", "a right model"), ("tied", "a model as good as the best")):
        for k in (1, 3):
            if k >= models:  # all are among the first: nothing is chosen
                continue
            ours, constant, ahead = (
                told.mean(lambda one, a=(kind, k, part): getattr(hit(one, *a[:2]), a[2]).value)
                for part in ("router", "constant", "ahead")
            )
            words_k = f"{words} among {k}"
            lines.append([f"{words_k}, % (constant ranking)", f"{shown(ours)} ({100 * constant.value:.1f})"])
            goal, met = ("> 0", ahead.value > 0) if goals and k == 3 else (None, None)
            name = f"{told.name}: {words_k}, ahead of the constant ranking, points"
            rows.append(report.row(name, 100 * ahead.value, goal, met, **ends(ahead), rate=100 * ours.value))
    errors = [one.answers.ece for one in told.found]
    mass = [one.answers.ece_mass for one in told.found]
    base = told.mean(lambda one: one.answers.brier_base - one.answers.brier)
    lines.append(["ECE, mean (worst split); equal mass", f"{mean(errors):.4f} ({max(errors):.4f}); {mean(mass):.4f}"])
    lines.append(["Brier below that of the mean", signed(base, 1)])
    goal, met = ("< 0.05", mean(errors) < 0.05) if goals else (None, None)
    rows.append(report.row(f"{told.name}: expected calibration error", mean(errors), goal, met, worst=max(errors)))
    choices = mean([one.choices.ece for one in told.found])
    rows.append(report.row(f"{told.name}: the same of the chosen answers", choices))
    lines.append(["ECE of the chosen answers", f"{choices:.4f}"])
    report.table(
        [f"{told.name}: {len(told.table.queries):,} queries, {models} models, {len(told.found)} splits", ""], lines
    )
    return rows


def cost_rows(told: Splits) -> list[dict]:
    """Accuracy for money. No rows where the best single model is the cheapest."""
    priced = [one.priced for one in told.found if one.priced is not None]
    rows: list[dict] = []
    lines: list[list[str]] = []
    paper = PAPER.get(told.name)
    if priced and all(one.apgr is not None for one in priced):
        apgr, half, most = (
            corrected([getattr(one, part).value for one in priced], *told.sizes) for part in ("apgr", "cpt50", "cpt80")
        )
        name = f"{told.name}: area over shares of calls, above random's (APGR - 0.5)"
        rows.append(
            report.row(name, apgr.value - 0.5, "lower bound > 0", apgr.low > 0.5, **above(apgr), published=paper)
        )
        rows += [
            report.row(f"{told.name}: CPT({name} %): calls to the strong model, %", 100 * value.value, **ends(value))
            for name, value in (("50", half), ("80", most))
        ]
        lines += [["APGR (random 0.5)", f"{apgr.value:.3f} [{apgr.low:.3f}, {apgr.high:.3f}]"],
                  ["CPT(50 %), CPT(80 %)", f"{shown(half)}, {shown(most)}"]]  # fmt: skip
    if priced and all(one.area is not None and one.above is not None for one in priced):
        area, gain = (
            corrected([getattr(one, part).value for one in priced], *told.sizes) for part in ("area", "above")
        )
        name = f"{told.name}: area over dollars, above blind mixing"
        rows.append(report.row(name, area.value - 0.5, "lower bound > 0", area.low > 0.5, **above(area)))
        lines += [["area over dollars (blind mixing 0.5)", f"{area.value:.3f} [{area.low:.3f}, {area.high:.3f}]"],
                  ["points above blind mixing, mean over budgets", signed(gain)]]  # fmt: skip
    elif priced:
        print(f"{told.name}: the best single model is the cheapest, so there is nothing to trade")
    costs = [[one.line(name).cost for one in told.found] for name in (ROUTER, SINGLE)]
    if all(cost is not None for part in costs for cost in part):
        ours, single = (1000 * mean([cost for cost in part if cost is not None]) for part in costs)
        lines.append(["dollars for 1,000 queries: router, best single", f"{ours:.3f}, {single:.3f}"])
        rows.append(
            report.row(
                f"{told.name}: cost of the likeliest choices beside the best single model's, %", 100 * ours / single
            )
        )
    if lines:
        print()
        report.table([f"{told.name}: cost", ""], lines)
        if paper:
            print(f"  beside it: {paper}")
    return rows


def hit(found: Evaluation, kind: str, k: int) -> Hits:
    return next(one for one in found.hits if (one.kind, one.k) == (kind, k))


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def ends(value: Interval) -> dict[str, list[float]]:
    return {"interval": [round(100 * value.low, 3), round(100 * value.high, 3)]}


def above(area: Interval) -> dict[str, list[float]]:
    return {"interval": [round(area.low - 0.5, 4), round(area.high - 0.5, 4)]}


def shown(value: Interval) -> str:
    return f"{100 * value.value:.1f} [{100 * value.low:.1f}, {100 * value.high:.1f}]"


def signed(value: Interval, scale: float = 100) -> str:
    digits = 1 if scale == 100 else 4
    return f"{scale * value.value:+.{digits}f} [{scale * value.low:+.{digits}f}, {scale * value.high:+.{digits}f}]"


def order_row(table: Table, learn: Learn) -> dict:
    """Whether the order in which rows name their models changes any probability."""
    train, test = (table.take(np.flatnonzero(split_rows(table, 0) == held)) for held in (False, True))
    plain, turned = learn(train, 0)(test.queries), learn(graded.shuffled(train, seed=3), 0)(test.queries)
    same = plain.models == turned.models and bool((plain.p == turned.p).all() and (plain.sd == turned.sd).all())
    worst = float(np.abs(plain.p - turned.p).max()) if plain.models == turned.models else None
    return report.row("shuffled key order: greatest difference of a probability", worst, "= 0, bit for bit", same)


def learned(head: str) -> Learn:
    """As `weaverant route train` does it, with its defaults."""
    return lambda table, seed: train(table, head=head, seed=seed).router.predict


READERS: dict[str, tuple[str, str, int, Callable[[Path], Table]]] = {
    "llmrouter": ("llmrouter", "auto", 10, lambda folder: together(*graded.llmrouter(folder))),
    "mmlu": ("routellm", "logistic", 5, graded.mmlu),
    "gsm8k": ("routellm", "auto", 10, graded.gsm8k),
    "routerarena": ("routerarena", "auto", 10, graded.routerarena),
}
"""The folder, the head, the splits and what reads it. On 14,000 questions trying all heads takes a minute a split:
there it is one head, named beforehand, and half as many splits."""


def together(one: Table, other: Table) -> Table:
    """Both parts as one table: it is split anew."""
    rows = [*graded.rows(one), *graded.rows(other)]
    return Table.of(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--only", default=",".join(READERS))
    options = parser.parse_args()
    rows: list[dict] = []
    for name in options.only.split(","):
        folder, head, splits, reader = READERS[name]
        if not (options.data / folder).is_dir():
            rows.append(report.row(f"{name}: all rows", None, None, None, reason=f"no data in {options.data / folder}"))
            continue
        table = reader(options.data / folder)
        told = judged(name, table, learned(head), splits)
        rows += accuracy_rows(told, goals=name == "llmrouter")
        rows += cost_rows(told)
        if name == "routerarena":
            rows.append(order_row(table, learned(head)))
        print(f"  {told.cpu:.0f} s of processor time\n")
    report.finish(TARGET, rows)


if __name__ == "__main__":
    main()
