"""Speed of the embedded engine: tokens a second at 1 and 64 requests in flight, and the calls of MALT's tree.

    python bench/bench_decode.py

The tree asks 3 generators, 3 verifiers of each and 3 refiners of each of those: 39 calls a problem. Seconds are of
the process's own time on a core, so that a busy machine measures the same.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import report

from weaverant.engines.embedded import EmbeddedEngine
from weaverant.message import Reply, Request, Sampling, user
from weaverant.protocols import CallContext
from weaverant.sources.arithmetic import PROMPTS, Arithmetic

GOALS = {"tokens/s, 1 in flight": 500, "tokens/s, 64 in flight": 10_000, "calls/s, MALT trees": 345}
"""345 calls a second make a tree search of 20,700 calls in a minute."""


def main() -> None:
    rows = [
        report.row(name, value, f">= {GOALS[name]}", value >= GOALS[name])
        for name, value in asyncio.run(measured()).items()
    ]
    report.table(["measured", "per CPU second", "goal", "met"], [list(row.values()) for row in rows])
    report.finish("bench-decode", rows)


async def measured() -> dict[str, float]:
    engine = EmbeddedEngine.open("tiny")
    questions = [row["question"] for row in Arithmetic("heldout", 1200).rows(0)]
    await asyncio.gather(*(say(engine, "generator", question=question) for question in questions[:64]))
    alone = await tokens_per_second(engine, questions[:60], 1)
    crowd = await tokens_per_second(engine, questions, 64)
    began = time.process_time()
    calls = await asyncio.gather(*(tree(engine, question) for question in questions[:100]))
    trees = sum(calls) / (time.process_time() - began)
    await engine.close()
    return dict(zip(GOALS, (alone, crowd, trees), strict=True))


async def tokens_per_second(engine: EmbeddedEngine, questions: Sequence[str], at_once: int) -> float:
    gate = asyncio.Semaphore(at_once)

    async def one(question: str) -> int:
        async with gate:
            return (await say(engine, "generator", question=question)).usage.completion_tokens

    began = time.process_time()
    tokens = await asyncio.gather(*map(one, questions))
    return sum(tokens) / (time.process_time() - began)


async def tree(engine: EmbeddedEngine, question: str) -> int:
    """One problem's tree. Returns the number of calls."""

    async def critiques(seed: int) -> int:
        attempt = (await say(engine, "generator", seed, question=question)).text
        return 1 + sum(await asyncio.gather(*(refinements(attempt, 3 * seed + i) for i in range(3))))

    async def refinements(attempt: str, seed: int) -> int:
        told = {"question": question, "attempt": attempt}
        told["critique"] = (await say(engine, "verifier", seed, **told)).text
        await asyncio.gather(*(say(engine, "refiner", 3 * seed + i, **told) for i in range(3)))
        return 4

    return sum(await asyncio.gather(*map(critiques, range(3))))


async def say(engine: EmbeddedEngine, role: str, seed: int = 0, **told: str) -> Reply:
    messages = (user(PROMPTS[role].format_map(told)),)
    request = Request(role, "tiny", messages, Sampling(temperature=1.0, max_tokens=40), seed=seed)
    return await engine.generate(request, CallContext(role))


if __name__ == "__main__":
    main()
