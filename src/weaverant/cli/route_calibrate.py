"""`weaverant route calibrate`: a router's probabilities fitted to other graded answers."""

from __future__ import annotations

import argparse
from pathlib import Path

from weaverant.cli.graded import table_given
from weaverant.cli.streams import put
from weaverant.cli.text import table as columns
from weaverant.routing.folder import check_folder
from weaverant.routing.router import Router
from weaverant.routing.training import recalibrate


def calibrate_command(options: argparse.Namespace) -> int:
    router = Router.open(options.router)
    out = Path(options.out or options.router)
    if options.out:
        check_folder(out, replace=False, forced=False)
    table = table_given(options)
    made, before, used, stayed = recalibrate(router, table, seed=options.seed)
    made.save(out, replace=not options.out)
    if not options.quiet:
        error = made.ece if made.ece is not None else float("nan")
        left = len(table.queries) - used
        put(
            f"{used:,} queries" + (f"; {left:,} others were left out, the router has learned from them" if left else "")
        )
        rows = [
            [name, f"{each.kind}, as before" if name in stayed else each.kind, "" if own is None else f"{own:.4f}"]
            for name, each, own in zip(made.models, made.facts.calibration, made.facts.eces, strict=True)
        ]
        put("\n".join(columns(["model", "map", "calibration error"], rows)))
        put(f"expected calibration error: {error:.4f} on held-out queries, {before:.4f} before")
        if len(stayed) == len(made.models):
            put(
                "no map was changed: on held-out queries those fitted to this table are no better than the router's own"
            )
        put(f"{out}: the router")
    return 0
