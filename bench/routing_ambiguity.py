"""Conversations half-way between two domains: how often the model that answers changes, and what it costs to keep it.

    python bench/routing_ambiguity.py

SIMULATED models, at the real engine: 1,000 queries in conversations of ten turns. Half-way, two models are equally good
and a router prefers one or the other by chance. Beside it, for comparison, queries that lean to one of the two by as
much as the router errs: there keeping a model has a price. The sessions of `routemoa:` (k=1, layers=1) stand beside the
same without sessions, and each model alone. The same random numbers in all.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import report

import weaverant
from weaverant import Agent, workflow
from weaverant.engines.scripted import Scripted
from weaverant.message import Request, user
from weaverant.routing.pool import Pool
from weaverant.routing.routemoa import RouteMoa
from weaverant.routing.scores import Scores
from weaverant.routing.turns import RouteMoaOptions, traces

TURNS = 10
MOST = 2
"""Changes of model that a conversation may have."""
MODELS = ("algebra", "geometry")


LEANS = {"half-way": 0.0, "leaning": 0.03}
"""How far queries lean to one of the two, in chances of being right: standard deviations. The router errs by .03."""


def lean(query: str) -> float:
    """Which of the two the query leans to, and how far."""
    return Random(f"lean {query}").gauss(0, LEANS[query.split()[0]])


def chance(model: str, query: str) -> float:
    return 0.6 + (lean(query) if model == MODELS[0] else -lean(query))


class SimulatedRouter:
    """Knows the chances, but for an error as large as the leaning itself."""

    models = MODELS
    identity = "simulated router"
    ece = 0.02
    mean = dict.fromkeys(MODELS, 0.6)
    cost: dict[str, float | None] = dict.fromkeys(MODELS)
    latency: dict[str, float | None] = dict.fromkeys(MODELS)
    correlation = np.eye(2)

    def predict(self, queries: Sequence[str]) -> Scores:
        p = np.array(
            [[chance(name, query) + Random(f"{name} {query}").gauss(0, 0.03) for name in MODELS] for query in queries]
        )
        return Scores(MODELS, p, np.full(p.shape, 0.03), np.full(p.shape, 50.0))

    def update(self, query: str, model: str, outcome: float, weight: float = 1.0) -> None:
        """Nothing is learned here."""


def simulated(name: str) -> Scripted:
    def say(request: Request) -> str:
        query = request.messages[-1].text
        return f"{name} {int(Random(f'right {name} {query}').random() < chance(name, query))}"

    return Scripted(say, identity=f"simulated:{name}")


host = Agent("host", prompt="{{ question }}", model="solver")


@workflow
async def talks(row: dict[str, Any]) -> list[float]:
    """Which turns were answered rightly."""
    history: list[Any] = []
    right: list[float] = []
    for turn in range(TURNS):
        question = f"{row['kind']} conversation {row['conversation']}, turn {turn}"
        reply = await host.reply(question=question, history=history)
        history += [user(question), reply.message]
        right.append(float(reply.text[-1]))
    return right


def played(how: str, kind: str, conversations: int, folder: Path) -> tuple[np.ndarray[Any, Any], list[int]]:
    """(conversations, turns) right or wrong; and changes of model by conversation."""
    if how in MODELS:
        model: Any = simulated(how)
    else:
        pool = Pool({name: simulated(name) for name in MODELS})
        options = RouteMoaOptions(
            k=1, layers=1, cost=0.0, latency=0.0, session="none" if how == "each turn anew" else "opening"
        )
        model = RouteMoa(pool, options, SimulatedRouter())
    rows = [{"kind": kind, "conversation": n} for n in range(conversations)]
    run = weaverant.run(talks, rows, models={"solver": model}, directory=folder)
    right = {task.row["conversation"]: task.result for task in run}
    changes: list[int] = []
    for _, turns in traces(folder):
        names = [turn.ask[0] for turn in turns if not turn.layer]
        changes.append(sum(one != other for one, other in pairwise(names)))
    return np.array([right[n] for n in range(conversations)]), changes


def interval(differences: np.ndarray[Any, Any]) -> tuple[float, float, float]:
    """Mean and 95 % interval of a paired bootstrap over conversations."""
    means = differences.mean(axis=1)
    drawn = means[np.random.default_rng(0).integers(0, len(means), (2_000, len(means)))].mean(axis=1)
    return float(means.mean()), float(np.quantile(drawn, 0.025)), float(np.quantile(drawn, 0.975))


def measured(kind: str, conversations: int) -> dict[str, tuple[np.ndarray[Any, Any], list[int]]]:
    with TemporaryDirectory() as folder:
        return {
            how: played(how, kind, conversations, Path(folder) / how.replace(" ", "-"))
            for how in ("each turn anew", "sessions", *MODELS)
        }


def told(kind: str, conversations: int) -> tuple[list[list[Any]], list[dict[str, Any]]]:
    """Lines of the table, and rows."""
    found = measured(kind, conversations)
    anew, _ = found["each turn anew"]
    lines: list[list[Any]] = []
    rows: list[dict[str, Any]] = []
    for how, (right, changes) in found.items():
        gain, low, high = interval(right - anew)
        most, goal = max(changes, default=0), how == "sessions"
        name = f"{kind}, {how}"
        span = f"{100 * gain:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
        lines.append([name, f"{right.mean():.1%}", span, sum(changes), most])
        judged = goal and kind == "half-way"
        loss = "no loss beyond the interval" if judged else None
        rows.append(
            report.row(f"{name}: right", float(right.mean()), loss, high >= 0 if judged else None, low=low, high=high)
        )
        fewest = f"<= {MOST}" if goal else None
        rows.append(report.row(f"{name}: most changes in one", most, fewest, most <= MOST if goal else None))
    return lines, rows


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--queries", type=int, default=1_000)
    conversations = parser.parse_args(arguments).queries // TURNS
    began = time.process_time()
    found = [told(kind, conversations) for kind in LEANS]
    head = ["two simulated models", "right", "points over each turn anew", "changes", "most in one"]
    report.table(head, [line for lines, _ in found for line in lines])
    print(f"{conversations * TURNS:,} queries in conversations of {TURNS}, {time.process_time() - began:.0f} s of CPU")
    report.finish("bench-routing-ambiguity", [row for _, rows in found for row in rows])
    return 0


if __name__ == "__main__":
    sys.exit(main())
