"""`weaverant route eval`: how good a router is on graded answers that it has not learned from."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from textwrap import fill

import msgspec

from weaverant.cli.graded import table_given
from weaverant.cli.streams import put, tell
from weaverant.cli.text import table as columns
from weaverant.errors import UserError
from weaverant.routing.evaluation import figure, report
from weaverant.routing.evaluation.choice import Prior
from weaverant.routing.evaluation.judge import Evaluation, evaluate
from weaverant.routing.router import Router
from weaverant.routing.table import Table, normal

FEWEST_DRAWS = 100
WIDTH = 100
"""Of what is said below tables."""


def eval_command(options: argparse.Namespace) -> int:
    if options.draws < FEWEST_DRAWS:
        raise UserError(f"expected --draws of {FEWEST_DRAWS} or more, for its quantiles to mean anything")
    out = None if options.out is None else _new_folder(Path(options.out))
    router = Router.open(Path(options.router))
    table = table_given(options)
    for text in _doubts(router, table):
        tell(f"warning: {text}")
    scores = router.predict(table.queries)
    found = evaluate(table, scores, Prior(router.mean, router.cost), draws=options.draws, seed=options.seed)
    title = f"{Path(options.router).resolve().name} on {Path(options.table).name}"
    if out is not None:
        write(found, out, title)
    if options.json:
        put(msgspec.json.encode(found).decode())
    else:
        put("\n".join([*told(found), *([f"{out}: report.md, evaluation.json and the figures"] if out else [])]))
    return 0


def told(found: Evaluation) -> Iterator[str]:
    """The report for a terminal."""
    yield report.headline(found)
    for shown in report.tables(found):
        yield ""
        yield shown.title
        yield from columns(shown.heads, shown.rows)
        if shown.note:
            yield fill(shown.note, WIDTH, initial_indent="  ", subsequent_indent="  ")
    for note in report.notes(found):
        yield ""
        yield note


def write(found: Evaluation, out: Path, title: str) -> None:
    """`report.md`, `evaluation.json`, and the figures."""
    out.mkdir(parents=True, exist_ok=True)
    figures = {"reliability.svg": figure.reliability(found.answers, found.choices)}
    if found.priced is not None:
        figures["cost.svg"] = figure.money(found, found.priced)
    for name, drawing in figures.items():
        (out / name).write_text(drawing, encoding="utf-8")
    (out / "evaluation.json").write_bytes(msgspec.json.encode(found) + b"\n")
    (out / "report.md").write_text(report.markdown(found, title, list(figures)), encoding="utf-8")


def _doubts(router: Router, table: Table) -> Iterator[str]:
    """That it has seen some of what it is judged by."""
    trained = {normal(text) for text in router.examples.texts}
    heard = router.heard(table.queries)
    seen = sum(known or normal(query) in trained for query, known in zip(table.queries, heard, strict=True))
    if seen:
        yield (
            f"the router has learned from {seen:,} of these {len(table.queries):,} queries, by training or feedback, "
            "which flatters it: --drop FILE leaves queries out"
        )


def _new_folder(folder: Path) -> Path:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{str(folder)!r} holds something already: expected a new folder for the report, in --out")
    return folder
