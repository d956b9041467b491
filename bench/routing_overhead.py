"""What it costs to ask a router about one query: `python bench/routing_overhead.py [--models 15] [--rows 5600]`.

A table of that size is made up (texts of about 320 characters, as in public tables), a router of each kind is fitted to
it, and fresh queries are asked one by one: CPU time of the process, nothing remembered.
"""

from __future__ import annotations

import argparse
import random
import time

import numpy as np
from report import finish, row, table

from weaverant.routing.calibration import Map
from weaverant.routing.encoders import Cached, fit_encoder, load_encoder
from weaverant.routing.heads import Given, head_kind
from weaverant.routing.router import Examples, Facts, Router
from weaverant.routing.table import Graded, Table

GOAL_MS = 2.0
ASKED = 300
SHOWN = ("knn", "clusters", "ridge", "logistic", "blend")
WORDS = 20_000


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", type=int, default=15)
    parser.add_argument("--rows", type=int, default=5_600)
    options = parser.parse_args()
    odds = random.Random(0)
    graded = made_up(odds, options.rows, options.models)
    fresh = [text_of(odds) for _ in range(ASKED)]
    encoder = fit_encoder("tfidf", graded.queries)
    given = Given(graded.queries, encoder.encode(graded.queries))
    rows, lines = [], []
    for kind in SHOWN:
        took = measured(router_of(kind, graded, given, encoder), fresh)
        middle, high = float(np.quantile(took, 0.5)), float(np.quantile(took, 0.95))
        mean = float(np.mean(took))
        lines.append([kind, f"{mean:.2f}", f"{middle:.2f}", f"{high:.2f}"])
        what = f"CPU ms to route one query, tfidf + {kind}, {options.models} models, {options.rows:,} rows"
        rows.append(row(what, mean, f"<= {GOAL_MS:g}", mean <= GOAL_MS, median=round(middle, 3), p95=round(high, 3)))
    table(["head", "mean ms", "median ms", "95 % ms"], lines)
    finish("bench-routing-overhead", rows)


def text_of(odds: random.Random) -> str:
    kind = odds.choice(("Question:", "def f(x):", "Solve:", "Which of these"))
    return f"{kind} " + " ".join(f"w{int(odds.paretovariate(0.6)) % WORDS}" for _ in range(65))


def made_up(odds: random.Random, rows: int, models: int) -> Table:
    names = [f"model-{n}" for n in range(models)]
    return Table.of(Graded(text_of(odds), {name: float(odds.random() < 0.5) for name in names}) for _ in range(rows))


def router_of(kind: str, graded: Table, given: Given, encoder: Cached) -> Router:
    """With default settings and a map for each model; the encoder has never seen what will be asked."""
    settings = head_kind(kind).GRID[0]
    head = head_kind(kind).fit(given, graded.scores, settings, 0)
    count, none = len(graded.models), (None,) * len(graded.models)
    facts = Facts(
        format=1,
        kind=kind,
        encoder="tfidf",
        settings=dict(settings),
        models=graded.models,
        calibration=(Map("isotonic", at=(0.1, 0.3, 0.6, 0.9), to=(0.2, 0.3, 0.5, 0.8)),) * count,
        mean=(0.5,) * count,
        cost=none,
        latency=none,
        ece=None,
        eces=none,
        table="",
        queries=len(graded.queries),
        seed=0,
    )
    examples = Examples(graded.queries, given.vectors, graded.scores)
    return Router(facts, load_encoder("tfidf", encoder.arrays()), head, np.eye(count), examples)


def measured(router: Router, queries: list[str]) -> list[float]:
    """Milliseconds of CPU, each."""
    router.predict(queries[:1])
    took = []
    for query in queries[1:]:
        began = time.process_time()
        router.predict([query])
        took.append((time.process_time() - began) * 1e3)
    return took


if __name__ == "__main__":
    main()
