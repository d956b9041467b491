"""An `Evaluation` as tables of text, and as one page of Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from weaverant.routing.evaluation.calibration import Calibration
from weaverant.routing.evaluation.judge import Evaluation, Priced
from weaverant.routing.evaluation.resample import Interval


class Shown(NamedTuple):
    """One table: what it is of, its heads, its rows, and what has to be said about it."""

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


def tables(found: Evaluation) -> Iterator[Shown]:
    """All of it, the most important first. Shares are percent, differences points."""
    yield _ways(found)
    yield _hits(found)
    yield _calibration(found)
    if found.priced is not None:
        yield _priced(found.priced)
    if len(found.sets) > 1:
        yield _sets(found)


def headline(found: Evaluation) -> str:
    """One line for whoever reads no more."""
    router = found.line("router")
    single = found.line("best single")
    return (
        f"{found.queries:,} queries, {len(found.models)} models: {share(router.accuracy)} right, "
        f"{points(router.gain)} points beside {single.model} ({percent(single.accuracy.value)})"
    )


def markdown(found: Evaluation, title: str, figures: Sequence[str] = ()) -> str:
    """The page. `figures` are files beside it."""
    parts = [f"# {title}", "", headline(found) + ".", ""]
    for shown in tables(found):
        parts += [f"## {shown.title}", "", _line(shown.heads), "|---" + "|--:" * (len(shown.heads) - 1) + "|"]
        parts += [*map(_line, shown.rows), ""]
        parts += [shown.note, ""] if shown.note else []
    for name in figures:
        parts += [f"![{name.removesuffix('.svg')}]({name})", ""]
    return "\n".join([*parts, "\n\n".join(notes(found)), ""])


def notes(found: Evaluation) -> Iterator[str]:
    """How to read it, and what was left out."""
    yield f"Intervals hold 95 %: {found.draws:,} paired bootstrap draws of queries within sets, seed {found.seed}."
    if found.dropped:
        yield f"{found.dropped:,} queries are left out: no model was graded on them."
    if found.elsewhere:
        yield f"On {found.elsewhere:,} queries the likeliest model was not graded: the next one that was counts."


def percent(value: float) -> str:
    return "-" if value != value else f"{100 * value:.1f}"


def share(interval: Interval) -> str:
    """`61.2 [59.0, 63.4]`, percent."""
    ends = f" [{100 * interval.low:.1f}, {100 * interval.high:.1f}]" if interval.low == interval.low else ""
    return percent(interval.value) + ends


def points(interval: Interval) -> str:
    """`+1.2 [-0.3, +2.7]`, percentage points."""
    if interval.value != interval.value:
        return "-"
    ends = f" [{100 * interval.low:+.1f}, {100 * interval.high:+.1f}]" if interval.low == interval.low else ""
    return f"{100 * interval.value:+.1f}{ends}"


def dollars(value: float | None) -> str:
    """For 1,000 queries."""
    return "-" if value is None else f"{1000 * value:,.4g}"


def _ways(found: Evaluation) -> Shown:
    rows = [
        [
            f"{line.name} ({line.model})" if line.model else line.name,
            share(line.accuracy),
            share(line.macro),
            "" if line.name == "best single" else points(line.gain),
            dollars(line.cost),
        ]
        for line in found.lines
    ]
    heads = ["", "right, %", "mean of sets, %", "beside the best single", "$ per 1,000"]
    note = (
        "The best single model is the one that was best where the router learned; `here` is the best of this table, "
        "which nobody knows before. `random` asks any graded model, `oracle` one that is best for the query."
    )
    return Shown("Accuracy", heads, rows, note)


def _hits(found: Evaluation) -> Shown:
    names = {"tied": "ties with the best", "right": "a right model"}
    rows = [
        [
            f"{names[one.kind]} among {one.k}",
            share(one.router),
            share(one.constant),
            points(one.ahead),
            percent(one.ceiling),
        ]
        for one in found.hits
    ]
    heads = ["hit rate, %", "router", "constant ranking", "ahead", "ceiling"]
    return Shown(
        "Hit rates", heads, rows, "The constant ranking is that by the models' means, the same for every query."
    )


def _calibration(found: Evaluation) -> Shown:
    def row(name: str, one: Calibration) -> list[str]:
        return [name, *(f"{value:.4f}" for value in (one.ece, one.ece_mass, one.brier, one.brier_base))]

    heads = ["", "ECE", "ECE, equal mass", "Brier", "Brier of the mean"]
    rows = [row("all answers", found.answers), row("chosen answers", found.choices)]
    return Shown("Calibration", heads, rows)


def _priced(priced: Priced) -> Shown:
    rows = [[name, dollars(point.cost), percent(point.score)] for name, point in priced.models.items()]
    ends = (("router, cheapest choices", priced.curve[0]), ("router, likeliest choices", priced.curve[-1]))
    rows += [[name, dollars(point.cost), percent(point.score)] for name, point in ends]
    said: list[str] = []
    if priced.area is not None and priced.above is not None:
        said.append(
            f"From {priced.cheapest} to {priced.single}: area {_plain(priced.area)}, where blind mixing has 0.5; "
            f"{points(priced.above)} points above it on average."
        )
    else:
        said.append(f"{priced.single} is the best single model and the cheapest: there is nothing to trade.")
    if priced.apgr is not None and priced.cpt50 is not None and priced.cpt80 is not None:
        said.append(
            f"Over shares of calls (RouteLLM): APGR {_plain(priced.apgr)}, CPT(50 %) {share(priced.cpt50)}, "
            f"CPT(80 %) {share(priced.cpt80)}."
        )
    return Shown("Cost", ["", "$ per 1,000", "right, %"], rows, " ".join(said))


def _sets(found: Evaluation) -> Shown:
    rows = [
        [
            one.name or "(none)",
            f"{one.queries:,}",
            share(one.router),
            share(one.single),
            points(one.gain),
            percent(one.oracle),
        ]
        for one in found.sets
    ]
    return Shown("Sets", ["", "queries", "router", "best single", "gain", "oracle"], rows)


def _plain(interval: Interval) -> str:
    return f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
