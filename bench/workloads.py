"""Matrix's dummy workloads W1 and W2 (arXiv 2511.21686), as weaverant workflows and as bare asyncio.

No model, no sleep: what is measured is the cost of a hop, one recorded step that passes work to the next agent.
"""

from __future__ import annotations

import json
import random
from collections.abc import Awaitable, Callable

from pydantic import BaseModel

from weaverant import Agent, Message, Reply, Request, workflow
from weaverant.message import assistant, user
from weaverant.protocols import CallContext

ROUNDS = 20
RING_HOPS = 10
WORDS = (
    "the",
    "of",
    "to",
    "and",
    "in",
    "is",
    "it",
    "you",
    "that",
    "he",
    "was",
    "for",
    "on",
    "are",
    "with",
    "as",
    "his",
)


def _text(rng: random.Random, low: int, high: int) -> str:
    size = rng.randint(low, high)
    return " ".join(rng.choices(WORDS, k=size // 3))[:size].ljust(size, ".")


# Texts are made before the clock starts: making them is not what is measured.
_pool = random.Random(0)
TALK = [assistant(_text(_pool, 819, 1228)) for _ in range(512)]
RING = [assistant(_text(_pool, 256, 256)) for _ in range(512)]
JSON = [assistant(json.dumps({"text": message.content, "sure": 0.5})) for message in RING]
QUESTIONS = [_text(_pool, 700, 800) for _ in range(512)]
SHORT_QUESTIONS = [_text(_pool, 200, 200) for _ in range(512)]
EXTRACTED = assistant("(X)")
YES, NO = assistant("yes"), assistant("no")


def answer(role: str, seed: int, round_: int) -> Message:
    """What a dummy agent says: a function of the seed alone."""
    if role in ("teacher", "student"):
        return TALK[seed % 512]
    if role == "extractor":
        return EXTRACTED
    if role == "matcher":
        return YES if seed % 1000 < (100 if round_ < 3 else 900) else NO
    return JSON[seed % 512] if role in ("writer", "critic") else RING[seed % 512]


class Dummy:
    """An engine that answers at once. The matcher is told the round by the length of its prompt."""

    identity = "dummy"

    async def generate(self, request: Request, ctx: CallContext) -> Reply:
        round_ = len(request.messages)
        return Reply(answer(request.agent, request.seed, round_), model="dummy")

    async def close(self) -> None:
        pass


teacher, extractor, matcher, student = (Agent(name) for name in ("teacher", "extractor", "matcher", "student"))
left, right = Agent("left"), Agent("right")


@workflow
async def w1(row):
    """teacher -> extractor -> matcher -> student -> extractor -> matcher ... until the matcher agrees."""
    said = user(row["question"])
    turns = []
    for round_ in range(1, ROUNDS + 1):
        speaker = teacher if round_ % 2 else student
        said = (await speaker.reply(history=(said,))).message
        turns.append(said.content)
        found = (await extractor.reply(history=(said,))).message
        if await matcher(history=(found,) * min(round_, 3)) == "yes":
            break
    return {"question": row["question"], "turns": turns}


@workflow
async def w2(row):
    """Two roles, ten hops, 256 characters each."""
    said = user(row["question"])
    turns = []
    for hop in range(RING_HOPS):
        said = (await (right if hop % 2 else left).reply(history=(said,))).message
        turns.append(said.content)
    return {"question": row["question"], "turns": turns}


class Said(BaseModel):
    """What a role of `typed` says."""

    text: str
    sure: float


def _typed(name: str) -> Agent:
    return Agent(name, prompt="{{ question }}\n\nSaid before: {{ said }}\nAnswer in JSON.", output=Said)


writer, critic = _typed("writer"), _typed("critic")


@workflow
async def typed(row):
    """W2 with a template for each prompt and a validated object for each reply."""
    said, turns = "", []
    for hop in range(RING_HOPS):
        reply = await (critic if hop % 2 else writer)(question=row["question"], said=said)
        said = reply.text
        turns.append(said)
    return {"question": row["question"], "turns": turns}


Say = Callable[[str, int, int], Awaitable[Message]]


async def bare_w1(say: Say, question: str, rng: random.Random) -> tuple[list, int]:
    """W1 with nothing around it: the upper bound."""
    turns, hops = [], 0
    for round_ in range(1, ROUNDS + 1):
        said = await say("teacher" if round_ % 2 else "student", rng.getrandbits(31), round_)
        turns.append(said.content)
        await say("extractor", rng.getrandbits(31), round_)
        agreed = await say("matcher", rng.getrandbits(31), min(round_, 3))
        hops += 3
        if agreed is YES:
            break
    return turns, hops


async def bare_w2(say: Say, question: str, rng: random.Random) -> tuple[list, int]:
    turns = [(await say("left", rng.getrandbits(31), 0)).content for _ in range(RING_HOPS)]
    return turns, RING_HOPS
