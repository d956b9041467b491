"""Speed of the embedded engine: tokens a second at 1 and 64 requests in flight; MALT's trees, and votes of three.

    python bench/bench_decode.py

A tree asks 3 generators, 3 verifiers of each and 3 refiners of each of those: 39 calls a problem. A vote asks three
times a generator, a verifier and a refiner: 9 calls. Tokens are those of the calls, whether or not the engine worked
them out again. Seconds are of the process's own time on a core, so that a busy machine measures the same.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Sequence
from typing import Any

import report

from weaverant.engines.embedded import EmbeddedEngine
from weaverant.message import Reply, Request, Sampling, user
from weaverant.protocols import CallContext
from weaverant.sources.arithmetic import PROMPTS, Arithmetic

GOALS = {"tokens/s, 1 in flight": 500, "tokens/s, 64 in flight": 10_000, "calls/s, trees": 700, "calls/s, votes": 500}
"""700 calls a second make the 20,700 calls of `make run` in half a minute of one core. The rest has no goal."""

Replies = list[Reply]


def main() -> None:
    rows: list[dict[str, Any]] = []
    for name, value in asyncio.run(measured()).items():
        goal = GOALS.get(name)
        rows.append(report.row(name, value) if goal is None else report.row(name, value, f">= {goal}", value >= goal))
    report.table(["measured", "per CPU second", "goal", "met"], [list(row.values()) for row in rows])
    report.finish("bench-decode", rows)


async def measured() -> dict[str, float]:
    engine = EmbeddedEngine.open("tiny")
    questions = [row["question"] for row in Arithmetic("heldout", 1200).rows(0)]
    await asyncio.gather(*(say(engine, "generator", question=question) for question in questions[:64]))
    rates = {
        "tokens/s, 1 in flight": await tokens_per_second(engine, questions[:60], 1),
        "tokens/s, 64 in flight": await tokens_per_second(engine, questions, 64),
    }
    jobs = {"trees": [tree(engine, n, question) for n, question in enumerate(questions[:100])]}
    jobs["votes"] = [vote(engine, n, question) for n, question in enumerate(questions[100:400])]
    for name, job in jobs.items():
        for counted, rate in (await rated(job)).items():
            rates[f"{counted}, {name}"] = rate
    await engine.close()
    return rates


async def tokens_per_second(engine: EmbeddedEngine, questions: Sequence[str], at_once: int) -> float:
    gate = asyncio.Semaphore(at_once)

    async def one(question: str) -> Replies:
        async with gate:
            return [await say(engine, "generator", question=question)]

    return (await rated([one(question) for question in questions]))["reply tokens/s"]


async def rated(jobs: Sequence[Coroutine[Any, Any, Replies]]) -> dict[str, float]:
    """Calls and tokens of all the jobs together, for each second of CPU."""
    began = time.process_time()
    replies = [reply for job in await asyncio.gather(*jobs) for reply in job]
    seconds = time.process_time() - began
    return {
        "calls/s": len(replies) / seconds,
        "prompt tokens/s": sum(reply.usage.prompt_tokens for reply in replies) / seconds,
        "reply tokens/s": sum(reply.usage.completion_tokens for reply in replies) / seconds,
    }


async def tree(engine: EmbeddedEngine, order: int, question: str) -> Replies:
    """One problem's tree: the replies to its 39 calls."""
    replies: Replies = []

    async def grow(roles: Sequence[str], seed: int, told: dict[str, str]) -> None:
        reply = await say(engine, roles[0], seed, order, **told)
        replies.append(reply)
        told = told | {"attempt" if len(roles) == 3 else "critique": reply.text}
        await asyncio.gather(*(grow(roles[1:], 3 * seed + i, told) for i in range(3 if roles[1:] else 0)))

    await asyncio.gather(*(grow(("generator", "verifier", "refiner"), i, {"question": question}) for i in range(3)))
    return replies


async def vote(engine: EmbeddedEngine, order: int, question: str) -> Replies:
    """Three chains about one problem: the replies to their 9 calls."""

    async def chain(seed: int) -> Replies:
        attempt = await say(engine, "generator", seed, order, question=question)
        told = {"question": question, "attempt": attempt.text}
        critique = await say(engine, "verifier", seed, order, **told)
        return [attempt, critique, await say(engine, "refiner", seed, order, **told, critique=critique.text)]

    return [reply for replies in await asyncio.gather(*map(chain, range(3))) for reply in replies]


async def say(engine: EmbeddedEngine, role: str, seed: int = 0, order: int = 0, **told: str) -> Reply:
    messages = (user(PROMPTS[role].format_map(told)),)
    request = Request(role, "tiny", messages, Sampling(temperature=1.0, max_tokens=40), seed=seed)
    return await engine.generate(request, CallContext(role, order=order))


if __name__ == "__main__":
    main()
