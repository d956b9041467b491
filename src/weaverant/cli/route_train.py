"""`weaverant route train`: from a table of graded answers to a router's folder."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path

from weaverant.cli.graded import table_given
from weaverant.cli.streams import put, tell
from weaverant.cli.text import counted
from weaverant.cli.text import table as columns
from weaverant.errors import UserError
from weaverant.routing.folder import check_folder, learned_in_use
from weaverant.routing.heads import Settings
from weaverant.routing.selection import Tried
from weaverant.routing.table import Table
from weaverant.routing.training import Trained, train

LABELS = frozenset(
    [
        *("confidence", "correct", "difficulty", "gold", "grade", "label", "probability", "quality", "rating"),
        *("reward", "score", "target", "value", "weight"),
    ]
)
"""Columns that are hardly a model's."""
POOR = 0.05
"""Of expected calibration error: probabilities that are further off are told of."""


def train_command(options: argparse.Namespace) -> int:
    out = Path(options.out)
    check_folder(out, replace=options.force)
    lost = learned_in_use(out)
    table = table_given(options)
    if not options.quiet:
        tell(f"{_size(table)}; trying heads on {options.folds} held-out folds")

    def say(tried: Tried) -> None:
        if not options.quiet:
            tell(f"{tried.kind}: routed {tried.routed:.4f}, squared error {tried.error:.4f}")

    found = train(
        table,
        head=options.head,
        encoder=options.encoder,
        settings=_settings(options.setting),
        folds=options.folds,
        seed=options.seed,
        say=say,
    )
    found.router.save(out, replace=options.force)
    if not options.quiet:
        put("\n".join(_told(found, table, out)))
    for text in (*_labels(table), *_doubts(found), *([_gone(lost)] if lost else [])):
        tell(f"warning: {text}")
    return 0


def _settings(given: list[str]) -> Mapping[str, float]:
    found: dict[str, float] = {}
    for text in given:
        name, equals, value = text.partition("=")
        try:
            found[name.strip()] = float(value)
        except ValueError:
            equals = ""
        if not equals:
            raise UserError(f"expected --setting NAME=NUMBER, as k=50; found {text!r}")
    return found


def _told(found: Trained, table: Table, out: Path) -> Iterator[str]:
    router, single = found.router, found.single_score
    yield f"{_size(table)}, each held out once"
    yield f"models: {', '.join(table.models)}"
    rows = [
        [each.kind, f"{each.routed:.4f}", f"{each.routed - single:+.4f}", f"{each.top:.4f}"] for each in found.tried
    ]
    for row, each in zip(rows, found.tried, strict=True):
        row.append(f"{each.error:.4f}")
    rows.append([f"always {found.single}", f"{single:.4f}", f"{0.0:+.4f}", "", ""])
    rows.append(["always the same ranking", "", "", f"{found.constant_top:.4f}", ""])
    rows.append(["the best answer of all", f"{found.oracle:.4f}", f"{found.oracle - single:+.4f}", "", ""])
    yield from columns(["head", "routed", "gain", "best of top 3", "squared error"], rows)
    yield f"chosen: {found.best.kind} ({_shown(found.best.settings)})"
    error = router.ece if router.ece is not None else float("nan")
    yield f"expected calibration error on held-out queries: {error:.4f}"
    yield f"{out}: the router"
    example = " ".join(table.queries[0].split())[:40]
    yield f"try it: weaverant route explain {shlex.quote(str(out))} {shlex.quote(example)}"


def _labels(table: Table) -> Iterator[str]:
    for name in table.models:
        if name.strip().casefold() in LABELS:
            yield (
                f"{name!r} was taken for a model, since it holds numbers from 0 to 1: --models NAME,NAME says which "
                "columns are models'"
            )


def _doubts(found: Trained) -> Iterator[str]:
    if found.best.routed <= found.single_score:
        yield (
            f"on held-out queries no head chose better than always {found.single!r}: for these models and queries a "
            "router may gain nothing but by cost"
        )
    if found.router.ece is not None and found.router.ece > POOR:
        yield f"the probabilities are off by {found.router.ece:.4f} on average: grade more queries"


def _gone(lost: list[str]) -> str:
    return (
        f"what the replaced router had learned in use is gone with it ({', '.join(lost)}): to fold its runs into the "
        "new one: weaverant route learn ROUTER RUN"
    )


def _shown(settings: Settings) -> str:
    return ", ".join(f"{name}={value:g}" for name, value in settings.items())


def _size(table: Table) -> str:
    sets = len(set(table.sets) - {""})
    of = f" of {counted(sets, 'set')}" if sets else ""
    queries = "query" if len(table.queries) == 1 else "queries"
    return f"{len(table.queries):,} {queries}{of}, {counted(len(table.models), 'model')}"
