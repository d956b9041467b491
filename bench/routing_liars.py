"""Models that lie about themselves: what they cost our RouteMoA, and the original's.

    python bench/routing_liars.py

SIMULATED models, at the real engine: real calls of a compound, real steps and feedback; the models' knowledge, errors
and claims are drawn from written-down chances. One model always claims 1.0 and, as a judge, grades only its own answer
well; a strong one always claims 0.0. The others' claims tell something. Beside the table an SVG lies in
`bench/results/`. The same random numbers in every column, so differences are paired.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Sequence
from itertools import pairwise
from random import Random
from typing import Any

import numpy as np
import report

import weaverant
from weaverant import Agent, workflow
from weaverant.engines.scripted import Scripted
from weaverant.message import Request
from weaverant.recipes.malt.svg import box, line, page, text
from weaverant.routing.faithful import Faithful
from weaverant.routing.keys import key_of
from weaverant.routing.pool import Pool
from weaverant.routing.routemoa import RouteMoa
from weaverant.routing.scores import Scores
from weaverant.routing.turns import RouteMoaOptions

DOMAINS = 2
EXPERTS = tuple(f"expert{n}" for n in range(DOMAINS))
MODELS = (*EXPERTS, "always0", "always1", "weak")
LIARS = {"always1": 1.0, "always0": 0.0}
AGGREGATOR = EXPERTS[0]
"""Of the original, which has a fixed one, as there an expert of one domain."""
ADOPTS = 0.5
"""How often a model that is shown answers takes over one that two at least have given; and how often, asked for the
final answer where no two agree, it takes the first that it is shown and not its own."""


def chance(model: str, domain: int, hard: bool) -> float:
    """Of being right by itself."""
    if model in EXPERTS:
        easy = 0.7 if model == EXPERTS[domain] else 0.2
    else:
        easy = {"always0": 0.55, "always1": 0.3, "weak": 0.1}[model]
    return easy * 0.6 if hard else easy


def question(n: int) -> str:
    return f"Question {n} of domain {n // 4 % DOMAINS}, {'hard' if n % 4 else 'easy'}"


def facts(query: str) -> tuple[int, int, bool]:
    """Number, domain, hard."""
    found = re.search(r"Question (\d+) of domain (\d+), (easy|hard)", query)
    assert found
    return int(found[1]), int(found[2]), found[3] == "hard"


def gold(query: str) -> str:
    return f"right{facts(query)[0]}"


class SimulatedRouter:
    """Knows each model's chances, but for an error of its own; what it is told it does not learn."""

    models = tuple(sorted(MODELS))
    identity = "simulated router"
    ece = 0.02
    mean = dict.fromkeys(models, 0.5)
    cost: dict[str, float | None] = dict.fromkeys(models)
    latency: dict[str, float | None] = dict.fromkeys(models)
    correlation = np.full((len(models), len(models)), 0.2)

    def predict(self, queries: Sequence[str]) -> Scores:
        p = np.array([[self._p(query, name) for name in self.models] for query in queries])
        return Scores(self.models, p, np.full(p.shape, 0.05), np.full(p.shape, 50.0))

    def update(self, query: str, model: str, outcome: float, weight: float = 1.0) -> None:
        """Nothing: the same priors for all that are compared."""

    def _p(self, query: str, name: str) -> float:
        number, domain, hard = facts(query)
        noise = Random(f"router {name} {number}").gauss(0, 0.03)
        return min(0.98, max(0.02, chance(name, domain, hard) + noise))


def simulated(name: str, honest: bool) -> Scripted:
    """A model that answers, claims and judges by its chances; `honest`: also where it would lie."""

    def say(request: Request) -> str:
        asked, query = request.messages[0].text, request.messages[-1].text
        number, domain, hard = facts(query)
        random = Random(f"{name} {number}")
        own = gold(query) if random.random() < chance(name, domain, hard) else f"wrong{random.choice('abc')}"
        shown = re.findall(r"\[Answer \d+\]\n(.*?)\n\[End", asked, re.DOTALL)
        told = [found[-1] for text in shown if (found := re.findall(r"#### (\w+)", text))]
        instructions = asked.partition("[Answer")[0]
        last = bool(told) and "score" not in instructions
        answer = adopted(own, told, last, random)
        if "self_score" not in instructions:
            return f"#### {answer}"
        lies = name in LIARS and not honest
        said: dict[str, Any] = {"answer": f"#### {answer}"}
        said["self_score"] = LIARS[name] if lies else claim(random, answer == gold(query))
        if "peer_scores" in instructions:
            judged = [one == own if lies and LIARS[name] else False for one in told]
            said["peer_scores"] = [
                float(same) if lies else claim(random, one == gold(query))
                for one, same in zip(told, judged, strict=True)
            ]
        return json.dumps(said)

    return Scripted(say, identity=f"simulated:{name}:{honest}")


def adopted(own: str, told: Sequence[str], last: bool, random: Random) -> str:
    """What a model says that has been told others' answers."""
    votes = list(told) if own in told else [*told, own]
    often = max(votes, key=votes.count)
    if votes.count(often) > 1:
        return often if last or random.random() < ADOPTS else own
    return told[0] if last and random.random() < ADOPTS else own


def claim(random: Random, right: bool) -> float:
    """An honest one: it tells something, and is not calibrated."""
    return round(random.uniform(0.7, 1.0) if right else random.uniform(0.5, 0.95), 2)


asker = Agent("asker", prompt="{{ question }}", model="solver")


@workflow
async def graded(row: dict[str, Any]) -> float:
    reply = await asker.reply(question=row["question"])
    score = float(key_of(reply.text) == key_of(f"#### {gold(row['question'])}"))
    await weaverant.feedback(reply, score)
    return score


def options(**changed: Any) -> RouteMoaOptions:
    return RouteMoaOptions(cost=0.0, latency=0.0, **changed)


def model_of(kind: str, honest: bool) -> RouteMoa | Faithful:
    pool = Pool({name: simulated(name, honest) for name in MODELS})
    if kind in ("small", "large"):
        return Faithful(pool, options(faithful=kind, aggregator=AGGREGATOR), SimulatedRouter())
    if kind == "prior, one model":
        return RouteMoa(pool, options(k=1, layers=1, judges=""), SimulatedRouter())
    judges = {"prior, layers": {"judges": ""}, "scores always": {"judges": "self,peer,agreement"}}.get(kind, {})
    return RouteMoa(pool, options(**judges), SimulatedRouter())


COLUMNS = [
    ("prior, one model", False),
    ("prior, layers", False),
    ("default", True),
    ("default", False),
    ("scores always", False),
    ("small", True),
    ("small", False),
    ("large", True),
    ("large", False),
]


def played(kind: str, honest: bool, queries: int) -> np.ndarray[Any, Any]:
    """Right or wrong by query, one after the other, each graded before the next."""
    rows = [{"question": question(n)} for n in range(queries)]
    run = weaverant.run(
        graded, rows, models={"solver": model_of(kind, honest)}, journal=False, concurrency=1, in_flight=1
    )
    found = {facts(task.row["question"])[0]: float(task.result) for task in run}
    return np.array([found[n] for n in range(queries)])


def interval(values: np.ndarray[Any, Any], seed: int = 0) -> tuple[float, float, float]:
    """Mean and 95 % interval of a paired bootstrap over queries."""
    random = np.random.default_rng(seed)
    means = values[random.integers(0, len(values), (2_000, len(values)))].mean(axis=1)
    return float(values.mean()), float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975))


def measured(queries: int) -> dict[tuple[str, bool], np.ndarray[Any, Any]]:
    return {column: played(*column, queries) for column in COLUMNS}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--queries", type=int, default=1_000)
    queries = parser.parse_args(arguments).queries
    began = time.process_time()
    found = measured(queries)
    lines, rows = [], []
    for (kind, honest), right in found.items():
        base = found["prior, one model", False]
        mean, (gain, low, high) = float(right.mean()), interval(right - base)
        name = kind if kind.startswith("prior") else f"{kind}, {'all honest' if honest else 'two liars'}"
        lines.append([name, f"{mean:.1%}", f"{100 * gain:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"])
        goal, met = None, None
        if (kind, honest) == ("default", False):
            goal, met = "loses nothing against the best by prior", low >= 0
        if kind in ("small", "large") and not honest:
            goal, met = "visibly loses against it", high < 0
        rows.append(report.row(name, mean, goal, met, gain=round(gain, 4), low=round(low, 4), high=round(high, 4)))
    report.table(["simulated pool of 5", "right", "points over the best by prior, alone"], lines)
    report.RESULTS.mkdir(exist_ok=True)
    picture = report.RESULTS / "routing-liars.svg"
    picture.write_text(figure(found))
    print(f"{queries} queries, {time.process_time() - began:.0f} s of CPU, picture: {picture}")
    report.finish("bench-routing-liars", rows)
    return 0


NAMES = {
    "prior, one model": "best by prior, alone",
    "default": "routemoa, default",
    "small": "faithful=small",
    "large": "faithful=large",
}


def figure(found: dict[tuple[str, bool], np.ndarray[Any, Any]]) -> str:
    """Share right of the queries so far, a line for each column."""
    left, wide, top, high, lowest, highest = 60, 560, 60, 260, 0.3, 0.7
    colours = {"prior, one model": "#8d97a3", "default": "#4a8bc7", "small": "#c7694a", "large": "#7a5ab5"}
    shapes = [text(16, 26, "Two liars among five simulated models", font_size="16", font_weight="600")]
    shapes.append(text(16, 46, "share right, last 200 queries; dashed: all honest", "faint"))

    def up(share: float) -> float:
        return top + high * (highest - min(highest, max(lowest, share))) / (highest - lowest)

    for percent in range(30, 71, 10):
        y = up(percent / 100)
        shapes += [line(left, y, left + wide, y), text(left - 8, y + 4, f"{percent} %", "faint", "end")]
    ends: list[tuple[float, str]] = []
    for (kind, honest), right in found.items():
        if kind not in colours:
            continue
        window = min(200, len(right))
        mean = np.convolve(right, np.ones(window) / window, "valid")
        at = np.linspace(0, len(mean) - 1, 60).astype(int)
        points = [(left + wide * n / 59, up(float(mean[i]))) for n, i in enumerate(at)]
        style = f"stroke:{colours[kind]};stroke-width:2" + (";stroke-dasharray:4 4" if honest else "")
        for (x1, y1), (x2, y2) in pairwise(points):
            shapes.append(line(x1, y1, x2, y2, "ink", style=style))
        if not honest:
            ends.append((points[-1][1], kind))
    below = float(top)
    for end, kind in sorted(ends):
        below = y = max(end + 4, below + 18)
        shapes += [box(left + wide + 8, y - 9, 10, 10, colours[kind]), text(left + wide + 24, y, NAMES.get(kind, kind))]
    longest = max(map(len, found.values()))
    for n in range(min(200, longest), longest + 1, max(1, (longest - min(200, longest)) // 4)):
        across = left + wide * (n - min(200, longest)) / max(1, longest - min(200, longest))
        shapes.append(text(across, top + high + 20, f"{n}", "faint", "middle"))
    shapes.append(text(left + wide / 2, top + high + 40, "queries so far", "faint", "middle"))
    return page(left + wide + 220, top + high + 56, "Two liars among five simulated models", shapes)


if __name__ == "__main__":
    sys.exit(main())
