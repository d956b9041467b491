"""RouteMoA's released run, worked out again from its items: what was published, and what it is made of.

    python bench/routing_replay.py [--folder ../shared/data/routemoa]

Accuracy, latency and cost of MoA, Sparse MoA and RouteMoA beside the published figures; then how much of the difference
comes from items that ran into the time limit, and whether the models' scores of themselves tell anything. Nothing is
asked: the data are what the authors released. Intervals: paired bootstrap over items, 10,000 draws.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path

import numpy as np
import released
import report
from released import SYSTEMS, Released

from weaverant.routing.evaluation.accuracy import Means
from weaverant.routing.evaluation.resample import Interval, spread, weights

FOLDER = Path(__file__).parents[2] / "shared/data/routemoa"
TARGET = "bench-routing-replay"
DRAWS = 10_000
NAMES = {"moa": "MoA", "smoa": "SMoA", "routemoa": "RouteMoA"}
UNITS = {"accuracy": "right, %", "latency": "seconds", "cost": "$ per 10,000"}

PUBLISHED = {
    "categories": {
        "moa": {"accuracy": 71.27, "latency": 248.07, "cost": 447.81},
        "smoa": {"accuracy": 69.65, "latency": 194.97, "cost": 100.36},
        "routemoa": {"accuracy": 78.56, "latency": 90.15, "cost": 45.63},
    },
    "sets": {
        "moa": {"accuracy": 71.51, "latency": 243.69, "cost": 436.87},
        "smoa": {"accuracy": 69.43, "latency": 188.38, "cost": 97.13},
        "routemoa": {"accuracy": 78.35, "latency": 86.93, "cost": 44.24},
    },
}
"""The means of the released `summary_all.json`, rounded: over five categories, and over 30 sets."""


def ahead(one: Released, other: Released, rows: np.ndarray) -> Interval:
    """By how much of those items `one` is right more often, paired."""
    gain = (one.verdict - other.verdict)[rows]
    means = Means([""] * len(gain))
    drawn = weights(np.arange(len(gain)), [""] * len(gain), DRAWS)
    return spread({"gain": lambda some: means.whole(some, gain)}, len(gain), drawn)["gain"][0]


def wins(one: Released, other: Released, rows: np.ndarray) -> tuple[int, int]:
    """Items that only `one` has right, and only `other`."""
    gain = (one.verdict - other.verdict)[rows]
    return int((gain > 0).sum()), int((gain < 0).sum())


def published_rows(found: dict[str, Released], folder: Path) -> list[dict]:
    """Each mean beside its published figure, and how many of the categories' and sets' figures come out the same."""
    rows: list[dict] = []
    lines: list[list[str]] = []
    for by, systems in PUBLISHED.items():
        for name, figures in systems.items():
            got = {what: found[name].macro(what, by) for what in figures}
            for what, figure in figures.items():
                same = f"{got[what]:.2f}" == f"{figure:.2f}"
                told = f"= {figure:.2f} as published"
                rows.append(report.row(f"{NAMES[name]}: {UNITS[what]}, mean of {by}", got[what], told, same))
            pairs = [f"{got[what]:.2f} ({figure:.2f})" for what, figure in figures.items()]
            lines.append([f"{NAMES[name]}, mean of {by}", *pairs])
    report.table(["from the items (published)", *UNITS.values()], lines)
    summary = json.loads((folder / "summary_all.json").read_text())
    for what, key, scale in (
        ("accuracy", "accuracy", 100),
        ("latency", "latency_avg", 1),
        ("cost", "cost_normalized", 1),
    ):
        pairs: list[tuple[float, float]] = []
        for name in SYSTEMS:
            categories, sets = found[name].per_category(what), found[name].per_set()
            for category, tells in summary["category_avg"].items():
                pairs.append((categories[category], scale * tells[name][f"{key}_macro_avg"]))
            for part in summary["per_dataset"].values():
                pairs += [(sets[each][what], scale * tells[name][key]) for each, tells in part.items()]
        same = sum(abs(a - b) < 0.005 for a, b in pairs)
        goal = f"all {len(pairs)} within 0.005"
        rows.append(report.row(f"{UNITS[what]}: categories and sets as published", same, goal, same == len(pairs)))
        print(f"{UNITS[what]}: {same} of {len(pairs)} figures of categories and sets are as published")
    return rows


def failure_rows(found: dict[str, Released]) -> list[dict]:
    """What the items that ran into the time limit amount to."""
    moa, smoa, routemoa = (found[name] for name in SYSTEMS)
    failed = moa.failed | smoa.failed | routemoa.failed
    graded = np.isfinite(moa.verdict)
    clean = graded & ~failed
    rows: list[dict] = []
    for system, name, told in zip((moa, smoa, routemoa), NAMES.values(), (38, 35, 4), strict=True):
        count = int(system.failed.sum())
        rows.append(report.row(f"{name}: items without a reply in time", count, f"= {told}", count == told))
    lines = [
        [label, int(where.sum()), *(f"{100 * system.verdict[where].mean():.1f}" for system in found.values())]
        for label, where in (("all with a verdict", graded), ("of them, where all replied", clean))
    ]
    print()
    report.table(["right, %", "items", *NAMES.values()], lines)
    sizes = (("items with a verdict", graded, 345), ("of them, where all replied in time", clean, 322))
    rows += [report.row(label, int(at.sum()), f"= {told}", int(at.sum()) == told) for label, at, told in sizes]
    compared = (
        ("RouteMoA - MoA, all", routemoa, moa, graded, "= +4.6 [+1.2, +8.1]", 4.6),
        ("RouteMoA - MoA, all replied", routemoa, moa, clean, "= +1.2 [-1.9, +4.4]", 1.2),
        ("RouteMoA - SMoA, all replied", routemoa, smoa, clean, "= +4.4 [+1.2, +7.8]", 4.4),
    )
    lines = []
    for label, one, other, where, goal, told in compared:
        gain, (won, lost) = ahead(one, other, where), wins(one, other, where)
        ends = [100 * gain.low, 100 * gain.high]
        met = abs(100 * gain.value - told) < 0.1
        rows.append(report.row(f"{label}: points", 100 * gain.value, goal, met, interval=ends, wins=won, losses=lost))
        lines.append([label, f"{100 * gain.value:+.1f} [{ends[0]:+.1f}, {ends[1]:+.1f}]", won, lost])
    print()
    report.table(["points", "ahead [95 %]", "wins", "losses"], lines)
    won, lost = wins(routemoa, moa, graded)
    late, behind = wins(routemoa, moa, graded & failed)
    share = (late - behind) / (won - lost)
    rows.append(report.row("of RouteMoA's net wins over MoA, on items where one ran out of time: %", 100 * share))
    print(
        f"\nof RouteMoA's {won - lost} net wins over MoA, {late - behind} are on items where a system ran out of time"
    )
    for what, name in (("latency", "seconds"), ("cost", "$ per 10,000")):
        lines = []
        for label, where in (("all", np.ones_like(failed)), ("all replied in time", ~failed)):
            scale = 1e4 if what == "cost" else 1
            values = [getattr(system, what)[where] * scale for system in found.values()]
            lines.append(
                [label, int(where.sum()), *(f"{value.mean():.1f} / {np.median(value):.1f}" for value in values)]
            )
            saved = 100 * (1 - values[2].mean() / values[0].mean())
            rows.append(report.row(f"RouteMoA saves of MoA's {name}, items: {label}: %", saved))
        print()
        report.table([f"{name}, mean / median", "items", *NAMES.values()], lines)
    return rows


def score_rows(system: Released) -> list[dict]:
    """What RouteMoA's final answers say of themselves, where the reply's JSON was passed on as it was."""
    said = np.isfinite(system.self_score)
    both = said & np.isfinite(system.verdict)
    score, right = system.self_score[both], system.verdict[both]
    base = float(right.mean())
    brier, even = float(np.mean((score - right) ** 2)), base * (1 - base)
    told = ((f"says {level:.2f}", score == level) for level in (1.0, 0.95))
    lines = [[label, int(at.sum()), f"{100 * right[at].mean():.1f}"] for label, at in told]
    print()
    report.table(
        ["RouteMoA's final answers", "items", "right, %"], [["say a score", len(score), f"{100 * base:.1f}"], *lines]
    )
    print(f"mean score {score.mean():.3f}, right {base:.3f}; Brier {brier:.3f}, always the base rate: {even:.3f}")
    models = Counter(system.billed.tolist())
    print(
        "models billed per item: " + ", ".join(f"{count} ({models[count]})" for count in sorted(models, reverse=True))
    )
    routed = models[3] + models[4]
    return [
        report.row("final answers that say a score of themselves", int(said.sum()), "= 131", int(said.sum()) == 131),
        report.row("of them with a verdict", len(score), "= 113", len(score) == 113),
        report.row("their mean score", float(score.mean()), "= 0.981", f"{score.mean():.3f}" == "0.981"),
        report.row("their accuracy", base, "= 0.841", f"{base:.3f}" == "0.841"),
        report.row("Brier of the scores less that of the base rate", brier - even, "> 0: no signal", brier > even),
        report.row("items billed to three or four models", routed, "= 445", routed == 445),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    folder = parser.parse_args().folder
    if not (folder / "routemoa.json").is_file():
        report.finish(TARGET, [report.row("replay", None, None, None, reason=f"no data in {folder}")])
        return
    found = released.read(folder)
    rows = [*published_rows(found, folder), *failure_rows(found), *score_rows(found["routemoa"])]
    print()
    report.finish(TARGET, rows)


if __name__ == "__main__":
    main()
