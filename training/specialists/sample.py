"""Asks the saved models with the numpy engine, many questions at once."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from weaverant.engines.embedded import EmbeddedEngine
from weaverant.message import Request, Sampling, user
from weaverant.protocols import CallContext
from weaverant.routing.tiny_prompts import MAX_TOKENS

TEMPERATURE = 0.7
"""At which candidates are drawn, as in the papers on mixtures of agents."""


@dataclass(frozen=True)
class Heard:
    """A reply, and the tokens read and drawn for it."""

    text: str
    read: int
    drawn: int


def heard(
    folder: Path, prompts: Sequence[str], samples: int = 1, temperature: float = TEMPERATURE
) -> list[list[Heard]]:
    """So many replies to each prompt. The same folder and prompts give the same replies."""
    return asyncio.run(_heard(folder, prompts, samples, temperature))


async def _heard(folder: Path, prompts: Sequence[str], samples: int, temperature: float) -> list[list[Heard]]:
    engine = EmbeddedEngine.open(str(folder))
    sampling = Sampling(temperature=temperature, max_tokens=MAX_TOKENS)

    async def one(prompt: str, seed: int) -> Heard:
        request = Request("asked", folder.name, (user(prompt),), sampling, seed=seed)
        reply = await engine.generate(request, CallContext("asked"))
        return Heard(reply.text, reply.usage.prompt_tokens, reply.usage.completion_tokens)

    try:
        flat = await asyncio.gather(*(one(prompt, seed) for prompt in prompts for seed in range(samples)))
    finally:
        await engine.close()
    return [list(flat[at : at + samples]) for at in range(0, len(flat), samples)]
