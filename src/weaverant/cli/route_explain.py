"""`weaverant route explain`: whom a router would ask, and on what that rests."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from weaverant.cli.streams import put
from weaverant.cli.text import clipped, counted, exact
from weaverant.cli.text import table as columns
from weaverant.errors import UserError
from weaverant.routing.router import Router


def explain_command(options: argparse.Namespace) -> int:
    if options.nearest < 0:
        raise UserError(f"expected --nearest of 0 or more; found {options.nearest}")
    router = Router.open(options.router)
    query = sys.stdin.read() if options.query == "-" else options.query
    if not query.strip():
        raise UserError("the query is empty; expected a text, or - for one on standard input")
    found = explained(router, query, options.nearest)
    put(json.dumps(found, ensure_ascii=False, indent=2) if options.json else "\n".join(_lines(found)))
    return 0


def explained(router: Router, query: str, nearest: int) -> dict[str, Any]:
    """All models, the likeliest first, and the graded queries that are nearest."""
    scores = router.predict([query])
    cost, latency = router.cost, router.latency
    ranking: list[dict[str, Any]] = [
        {
            "model": name,
            "p": float(scores.p[0, n]),
            "sd": float(scores.sd[0, n]),
            "support": float(scores.support[0, n]),
            "mean": router.mean[name],
            "cost": cost[name],
            "latency": latency[name],
        }
        for n, name in enumerate(router.models)
    ]
    ranking.sort(key=lambda row: (-row["p"], row["model"]))
    near = [
        {"query": each.query, "likeness": each.likeness, "scores": each.scores}
        for each in router.nearest(query, nearest)
    ]
    since = router.taught - router.facts.taught
    return {
        "ranking": ranking,
        "nearest": near,
        "router": router.identity,
        "calibration error": router.ece,
        "feedback since": since,
    }


def _lines(found: dict[str, Any]) -> list[str]:
    rows = [
        [
            row["model"],
            f"{row['p']:.3f} ± {row['sd']:.3f}",
            f"{row['support']:,.1f}",
            f"{row['mean']:.3f}",
            "-" if row["cost"] is None else exact(row["cost"]),
            "-" if row["latency"] is None else f"{row['latency']:.2f} s",
        ]
        for row in found["ranking"]
    ]
    lines = list(columns(["model", "P(right)", "support", "mean", "cost", "latency"], rows))
    if found["nearest"]:
        lines.append("nearest graded queries:")
    for near in found["nearest"]:
        scores: dict[str, float] = near["scores"]
        graded = ", ".join(
            f"{name} {scores[name]:g}" for name in sorted(scores, key=lambda name: (-scores[name], name))
        )
        lines.append(f"  {near['likeness']:.3f}  {clipped(' '.join(near['query'].split()), 1, 90)}")
        lines.append(f"         {clipped(graded, 1, 110)}")
    error = found["calibration error"]
    known = "was not measured" if error is None else f"{error:.4f} on held-out queries"
    if found["feedback since"] and error is not None:
        since = counted(found["feedback since"], "outcome")
        known += f", before {since} of feedback (`weaverant route calibrate` measures again)"
    lines.append(f"expected calibration error of these probabilities: {known}")
    return lines
