"""Mixtures and routers over a real pool: accuracy, cost and latency on the same mixed questions, all in one run.

    python bench/routing_pool.py                    # 2,000 questions; part of `make bench-routing`

`routemoa` has had feedback on a thousand validation questions before it is measured, as in use; a row says what it
is without. The members are the trained models of `training/specialists`, asked for real through `weaverant.run`. Two
things are made up, and are what a hosted pool would bring: the price of a member, proportional to its parameters, and
its pace. A member's replies take the time that they take on its own, fitted on calls made one at a time before the run,
times `SLOWER`: so that what a caller waits, on the workflow's clock, is the critical path of its calls and not the load
that thousands of rows put on this machine.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import sqrt
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import numpy as np
from report import finish, row, table

import weaverant
from weaverant import Agent, feedback, now, workflow
from weaverant.compound import Served
from weaverant.engines.embedded import EmbeddedEngine
from weaverant.message import Reply, Request, Sampling, Usage, user
from weaverant.protocols import CallContext
from weaverant.routing import tiny_prompts
from weaverant.routing.faithful import Faithful
from weaverant.routing.moa import Moa, MoaOptions
from weaverant.routing.pool import Pool
from weaverant.routing.reading import read_table
from weaverant.routing.route import Route, RouteOptions
from weaverant.routing.routemoa import RouteMoa, RouteMoaOptions
from weaverant.routing.router import Router
from weaverant.routing.selfmoa import SelfMoa, SelfMoaOptions
from weaverant.routing.smoa import Smoa, SmoaOptions
from weaverant.routing.training import train

HERE = Path(__file__).parent
SPECIALISTS = HERE.parent / "training/specialists"
sys.path.append(str(SPECIALISTS))
from problems import Problem, mixed  # noqa: E402

QUESTIONS = 2_000
TEMPERATURE = 0.7
SLOWER = 30.0
AT_ONCE = 32
"""Rows in work. Few enough that every member answers within its pace."""
TIMED = 60
"""Questions by which a member's pace is fitted."""
LESSONS = 1_000
"""Questions of the validation split after which `routemoa` is told whether it was right, before it is measured."""
PLAINLY = "routemoa, judges=agreement"
"""Asks for no scores. Chosen on validation questions: these models answer less well where they are to score, too."""
RESAMPLES = 2_000

solver = Agent(
    "asker", prompt="{{ question }}", model="solver", temperature=TEMPERATURE, max_tokens=tiny_prompts.MAX_TOKENS
)


@workflow
async def asked(record: dict[str, Any]) -> dict[str, Any]:
    """One question to the model under test, and how long its caller waits."""
    began = now()
    reply = await solver.reply(question=record["question"])
    return {"at": record["at"], "said": reply.text, "seconds": (now() - began).total_seconds()}


@workflow
async def taught(record: dict[str, Any]) -> float:
    """The same, and the model is told whether it was right."""
    reply = await solver.reply(question=record["question"])
    right = Problem(**record["problem"]).right(tiny_prompts.answer(reply.text))
    await feedback(reply, float(right))
    return float(right)


@dataclass(frozen=True)
class Pace:
    """Seconds of a reply: for the call, for a token read, for a token drawn."""

    call: float
    read: float
    drawn: float

    def seconds(self, read: int, drawn: int) -> float:
        return self.call + read * self.read + drawn * self.drawn

    @staticmethod
    def of(engine: EmbeddedEngine, prompts: Sequence[str]) -> Pace:
        """Fitted on calls made one at a time: least squares, nothing below zero."""
        took: list[tuple[float, int, int]] = []

        async def alone() -> None:
            for seed, prompt in enumerate(prompts):
                request = Request(
                    "timed", "timed", (user(prompt),), Sampling(max_tokens=tiny_prompts.MAX_TOKENS), seed=seed
                )
                began = time.perf_counter()
                reply = await engine.generate(request, CallContext("timed"))
                took.append((time.perf_counter() - began, reply.usage.prompt_tokens, reply.usage.completion_tokens))

        asyncio.run(alone())
        seconds = np.array([each[0] for each in took])
        kept = seconds <= np.quantile(seconds, 0.9)  # what else this machine did meanwhile
        counts = np.array([[1, read, drawn] for _, read, drawn in took], float)
        fitted = np.maximum(0.0, np.linalg.lstsq(counts[kept], seconds[kept], rcond=None)[0])
        return Pace(*(float(each) for each in fitted))


class PacedEngine:
    """An embedded model with a made-up price, held to a pace: no reply comes before its time."""

    def __init__(self, engine: EmbeddedEngine, price: tuple[float, float], pace: Pace) -> None:
        self._engine = engine
        self._price = price
        self._pace = pace
        self.late = 0
        """Replies that took longer than their pace, so that the clock shows this machine's load."""
        self.calls = 0

    @property
    def identity(self) -> str:
        return self._engine.identity

    def refuses(self, request: Request) -> str:
        return self._engine.refuses(request)

    async def generate(self, request: Request, ctx: CallContext) -> Reply:
        loop = asyncio.get_running_loop()
        began = loop.time()
        reply = await self._engine.generate(request, ctx)
        read, drawn = reply.usage.prompt_tokens, reply.usage.completion_tokens
        cost = read * self._price[0] + drawn * self._price[1]
        left = self._pace.seconds(read, drawn) * SLOWER - (loop.time() - began)
        self.calls += 1
        self.late += left < 0
        await asyncio.sleep(max(0.0, left))
        return msgspec.structs.replace(reply, usage=Usage(read, drawn, cost=cost))

    async def close(self) -> None:
        """The engine is shared by all systems of the run: it is closed at the end."""


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a system came to, question by question."""

    right: np.ndarray
    cost: np.ndarray
    """US dollars."""
    seconds: np.ndarray
    """Divided by `SLOWER`: the members' own pace."""
    calls: np.ndarray

    @property
    def accuracy(self) -> float:
        return float(self.right.mean())

    def wilson(self, z: float = 1.959964) -> tuple[float, float]:
        """The 95 % interval of the accuracy."""
        n, p = len(self.right), self.accuracy
        middle, half = p + z * z / (2 * n), z * sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)

    def gain(self, other: Outcome) -> tuple[float, float, float]:
        """How much more often it is right than another on the same questions, with the 95 % interval of a paired
        bootstrap."""
        difference = self.right.astype(float) - other.right
        dice = np.random.default_rng(0)
        drawn = difference[dice.integers(0, len(difference), (RESAMPLES, len(difference)))].mean(-1)
        low, high = np.quantile(drawn, [0.025, 0.975])
        return float(difference.mean()), float(low), float(high)


def weave(model: Served, problems: Sequence[Problem]) -> Outcome:
    """Asks a model every question. A question that fails is wrong, and what it cost counts."""
    rows = [{"at": at, "question": it.question} for at, it in enumerate(problems)]
    right, cost, seconds, calls = (np.zeros(len(rows)) for _ in range(4))
    run = weaverant.run(asked, rows, models={"solver": model}, journal=False, concurrency=AT_ONCE, max_failures=1.0)
    for done in run:
        at = done.row["at"]
        cost[at], calls[at] = done.usage.cost, done.usage.requests
        if done.state == "done":
            right[at] = problems[at].right(tiny_prompts.answer(done.result["said"]))
            seconds[at] = done.result["seconds"] / SLOWER
        else:
            seconds[at] = done.seconds / SLOWER
    return Outcome(right, cost, seconds, calls)


def teach(model: Served) -> None:
    """Feedback on questions that are neither in the router's table nor among those that are counted."""
    known = set(read_table(SPECIALISTS / "table.jsonl.gz").queries)
    lessons = [it for it in mixed("validation", 2 * LESSONS, seed=2) if it.question not in known][:LESSONS]
    rows = [{"question": it.question, "problem": asdict(it)} for it in lessons]
    done = list(weaverant.run(taught, rows, models={"solver": model}, journal=False, concurrency=AT_ONCE))
    assert all(one.state == "done" for one in done) and len(done) == LESSONS


def picked(singles: Mapping[str, Outcome], choice: Sequence[str]) -> Outcome:
    """What one gets by asking, for each question, the member so named."""
    parts = [
        [getattr(singles[name], field)[at] for at, name in enumerate(choice)]
        for field in ("right", "cost", "seconds", "calls")
    ]
    return Outcome(*(np.array(part, float) for part in parts))


def cheapest_right(singles: Mapping[str, Outcome]) -> list[str]:
    """For each question the cheapest member that is right; where none is, the cheapest."""
    names = sorted(singles, key=lambda name: float(singles[name].cost.mean()))
    count = len(singles[names[0]].right)
    return [next((name for name in names if singles[name].right[at]), names[0]) for at in range(count)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=QUESTIONS, metavar="N", help=f"(default {QUESTIONS:,})")
    parser.add_argument("--only", default="", metavar="NAMES", help="systems besides the singles, with commas")
    options = parser.parse_args()
    problems = mixed("test", options.questions, seed=0)
    outcomes = measured(problems, options.only.split(",") if options.only else [])
    told(outcomes, len(problems))


def measured(problems: Sequence[Problem], only: Sequence[str]) -> dict[str, Outcome]:
    """Every system's outcome, by name."""
    engines, pool = opened(problems)
    try:
        singles = {name: weave(member, problems) for name, member in pool.members.items()}
        for name, outcome in singles.items():
            print(f"{name}: {outcome.accuracy:.1%}", file=sys.stderr, flush=True)
        best = max(pool.members, key=pool.prior)  # by the training table: no look at these questions
        found = {f"single: {name}": outcome for name, outcome in singles.items()}
        for name, system in systems(pool, best):
            if not only or name in only:
                began = time.perf_counter()
                if name in ("routemoa", PLAINLY):
                    teach(system)
                found[name] = weave(system, problems)
                took = time.perf_counter() - began
                print(f"{name}: {found[name].accuracy:.1%} ({took:.0f} s)", file=sys.stderr, flush=True)
        dice, names = Random("random"), list(singles)
        found["random"] = picked(singles, [dice.choice(names) for _ in problems])
        found["oracle"] = picked(singles, cheapest_right(singles))
        found["best single"] = singles[best]
        paced = [member for member in pool.members.values() if isinstance(member, PacedEngine)]
        late = sum(each.late for each in paced) / sum(each.calls for each in paced)
        print(f"{late:.1%} of the replies came after their time", file=sys.stderr)
    finally:
        for engine in engines:
            asyncio.run(engine.close())
    return found


def opened(problems: Sequence[Problem]) -> tuple[list[EmbeddedEngine], Pool]:
    """The pool of `training/specialists`, each member held to its pace; and the engines, to be closed."""
    given = Pool.open(SPECIALISTS / "pool.json")
    engines: dict[str, EmbeddedEngine] = {}
    members: dict[str, Served] = {}
    for name, engine in given.members.items():
        assert isinstance(engine, EmbeddedEngine)
        price = given.price(name)
        assert price is not None
        engines[name] = engine
        questions = [it.question for it in problems[:TIMED]]
        told = [tiny_prompts.aggregate(question, ["12345"] * 6) for question in questions[: TIMED // 2]]
        members[name] = PacedEngine(engine, price, Pace.of(engine, [*questions, *told]))
    return list(engines.values()), Pool(members, given.cards, given.router, given.aggregator)


def learned() -> Router:
    """What `weaverant route train --head logistic` learns from the pool's table."""
    return train(read_table(SPECIALISTS / "table.jsonl.gz"), head="logistic").router


def systems(pool: Pool, best: str) -> Iterator[tuple[str, Served]]:
    """What is compared, at its defaults; but the mixtures in their papers' plain form, which waits for everybody and
    has an aggregator always."""
    plain: dict[str, Any] = {"skip": False, "quorum": len(pool.members)}
    yield "moa", Moa(pool, MoaOptions(**plain))
    yield "smoa", Smoa(pool, SmoaOptions(**plain))
    yield "self-moa", SelfMoa(pool, SelfMoaOptions(model=best, **plain))
    yield "route", Route(pool, RouteOptions(), learned())
    yield "routemoa", RouteMoa(pool, RouteMoaOptions(), learned())
    yield PLAINLY, RouteMoa(pool, RouteMoaOptions(judges="agreement"), learned())
    yield "routemoa, no feedback", RouteMoa(pool, RouteMoaOptions(), learned())
    yield "routemoa, faithful", Faithful(pool, RouteMoaOptions(faithful="small"), learned())


def told(found: Mapping[str, Outcome], count: int) -> None:
    """The table, and its rows against their goals."""
    moa, best = found["moa"], found["best single"]
    lines: list[list[Any]] = []
    rows: list[dict[str, Any]] = []
    for name, each in found.items():
        low, high = each.wilson()
        cost, seconds = float(each.cost.mean()), float(each.seconds.mean())
        shares = cost / float(moa.cost.mean()), seconds / float(moa.seconds.mean())
        p95 = float(np.quantile(each.seconds, 0.95))
        lines.append(
            [name, 100 * each.accuracy, f"{100 * low:.1f}-{100 * high:.1f}", f"{cost * 1e6:.2f}", f"{shares[0]:.1%}",
             1e3 * seconds, f"{shares[1]:.1%}", 1e3 * p95, float(each.calls.mean())]
        )  # fmt: skip
        rows.append(
            row(f"{name}: share right", each.accuracy, low=round(low, 4), high=round(high, 4), dollars=cost,
                seconds=round(seconds, 5), seconds_p95=round(p95, 5), calls=round(float(each.calls.mean()), 2))
        )  # fmt: skip
    print(f"{count:,} questions of the test split, each to every system")
    table(["", "right %", "95 %", "$ / million", "of moa", "ms", "of moa", "ms p95", "calls"], lines)
    gain, low, high = moa.gain(best)
    rows.append(row("moa over best single, points", 100 * gain, ">= 0", gain >= 0, low=100 * low, high=100 * high))
    for name in ("routemoa", PLAINLY):
        ours = found.get(name)
        if ours is None:
            continue
        gain, low, high = ours.gain(moa)
        rows.append(row(f"{name} over moa, points", 100 * gain, ">= -2", gain >= -0.02, low=100 * low, high=100 * high))
        cost = float(ours.cost.mean() / moa.cost.mean())
        rows.append(row(f"{name}: share of moa's cost", cost, "<= 0.25", cost <= 0.25))
        seconds = float(ours.seconds.mean() / moa.seconds.mean())
        rows.append(row(f"{name}: share of moa's latency", seconds, "<= 0.5", seconds <= 0.5))
    finish("bench-routing-pool", rows)


if __name__ == "__main__":
    main()
