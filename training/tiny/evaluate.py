"""Plays the three roles on held-out problems with the numpy engine, and measures what comes out."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any

from weaverant.engines.embedded import EmbeddedEngine
from weaverant.message import Reply, Request, Sampling, user
from weaverant.protocols import CallContext
from weaverant.sources.arithmetic import PROMPTS, Arithmetic, last_number

PROBLEMS = 2000
PASSES = 3
MAX_TOKENS = 40
SAMPLES = 4


@dataclass(frozen=True)
class Share:
    """`hits` of `count`."""

    hits: int
    count: int

    def __str__(self) -> str:
        if not self.count:
            return "no case"
        low, high = self.wilson()
        return f"{self.hits / self.count:.1%} [{low:.1%}, {high:.1%}] of {self.count:,}"

    def wilson(self, z: float = 1.959964) -> tuple[float, float]:
        """The 95 % interval of Wilson (1927)."""
        n, p = self.count, self.hits / self.count
        middle, half = p + z * z / (2 * n), z * sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)


@dataclass(frozen=True)
class Figures:
    """What was measured, in the order in which it is shown."""

    shares: dict[str, Share]
    calls: int
    prompt_tokens: int
    reply_tokens: int
    seconds: float
    sample: str

    def table(self) -> str:
        rows = "\n".join(f"| {name} | {share} |" for name, share in self.shares.items())
        return f"| measured | share, with its 95 % interval |\n|---|---|\n{rows}"


@dataclass(frozen=True)
class Pass:
    """One walk through the three roles."""

    gold: str
    attempt: str
    critique: str
    refined: str

    def right(self, text: str) -> bool:
        return last_number(text) == self.gold


class Players:
    """The three roles on one engine, and what they used."""

    def __init__(self, engine: EmbeddedEngine, temperature: float) -> None:
        self.engine = engine
        self.sampling = Sampling(temperature=temperature, max_tokens=MAX_TOKENS)
        self.replies: list[Reply] = []

    async def play(self, row: Mapping[str, Any], seed: int) -> Pass:
        """Generator, then verifier, then refiner."""
        attempt = await self._say("generator", seed, question=row["question"])
        critique = await self._say("verifier", seed, question=row["question"], attempt=attempt)
        told = {"question": row["question"], "attempt": attempt, "critique": critique}
        return Pass(row["answer"], attempt, critique, await self._say("refiner", seed, **told))

    async def _say(self, role: str, seed: int, **told: str) -> str:
        messages = (user(PROMPTS[role].format_map(told)),)
        request = Request(role, "tiny", messages, self.sampling, seed=seed)
        self.replies.append(await self.engine.generate(request, CallContext(role)))
        return self.replies[-1].text


async def evaluate(folder: Path, problems: int = PROBLEMS) -> Figures:
    """Three passes at temperature 1 and one at 0 over the first held-out problems."""
    rows = list(Arithmetic("heldout", problems).rows(0))
    engine = EmbeddedEngine.open(str(folder))
    try:
        warm, cold = Players(engine, 1.0), Players(engine, 0.0)
        began = time.perf_counter()
        plays = [warm.play(row, seed) for row in rows for seed in range(PASSES)]
        passes = await asyncio.gather(*plays)
        seconds = time.perf_counter() - began
        greedy = await asyncio.gather(*(cold.play(row, 0) for row in rows))
    finally:
        await engine.close()
    return Figures(
        shares=_accuracy(passes, greedy) | _habits(passes),
        calls=len(warm.replies),
        prompt_tokens=sum(reply.usage.prompt_tokens for reply in warm.replies),
        reply_tokens=sum(reply.usage.completion_tokens for reply in warm.replies),
        seconds=seconds,
        sample="\n".join(_sample(row, it) for row, it in zip(rows[:SAMPLES], passes[::PASSES], strict=False)),
    )


def _sample(row: Mapping[str, Any], it: Pass) -> str:
    said = f"generator `{it.attempt}`; verifier `{it.critique}`; refiner `{it.refined}`"
    return f"* {row['question']} ({it.gold})<br>{said}"


def _accuracy(passes: Sequence[Pass], greedy: Sequence[Pass]) -> dict[str, Share]:
    first = passes[::PASSES]
    groups = [passes[i : i + PASSES] for i in range(0, len(passes), PASSES)]
    return {
        "lone generator right": _share([it.right(it.attempt) for it in first]),
        "chain of three right": _share([it.right(it.refined) for it in first]),
        "vote of three generators right": _share([_voted(group, "attempt") for group in groups]),
        "vote of three chains right": _share([_voted(group, "refined") for group in groups]),
        "lone generator right at temperature 0": _share([it.right(it.attempt) for it in greedy]),
    }


def _voted(group: Sequence[Pass], text: str) -> bool:
    """Whether the most frequent answer is right; of equally frequent ones the first counts."""
    votes = Counter(last_number(getattr(it, text)) for it in group)
    return votes.most_common(1)[0][0] == group[0].gold


def _habits(passes: Sequence[Pass]) -> dict[str, Share]:
    careful = [it for it in passes if it.critique[:1].isdigit()]
    verdicts = [it for it in careful if it.critique.endswith(("right.", "wrong."))]
    own = [it.critique for it in verdicts]
    honest = [
        (last_number(got) == last_number(it.attempt)) == it.critique.endswith("right.")
        for got, it in zip(own, verdicts, strict=True)
    ]
    warned = [it for it in passes if it.critique.endswith("wrong.")]
    unwarned = [it for it in passes if it.critique.endswith("right.")]
    return {
        "verifier says `Looks right.`": _share([it.critique == "Looks right." for it in passes]),
        "careful verifier's own total right": _share([it.right(it.critique) for it in careful]),
        "careful verifier's verdict fits its total": _share(honest),
        "refiner redoes after `wrong`": _share([it.refined.startswith("I redo") for it in warned]),
        "refiner redoes otherwise": _share([it.refined.startswith("I redo") for it in unwarned]),
        "refiner right when redoing after a worked critique": _share(
            [it.right(it.refined) for it in careful if it.refined.startswith("I redo")]
        ),
    }


def _share(hits: Sequence[bool]) -> Share:
    return Share(sum(hits), len(hits))
