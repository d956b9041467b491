"""MALT (arXiv 2412.01928, COLM 2025): training data for a team of three from questions with gold answers alone.

A generator attempts, a verifier criticises, a refiner answers anew, `branching` times each. The right answers among
the leaves say which attempts and critiques were good. README.md gives the command, the numbers and a sample.
"""

from __future__ import annotations

from asyncio import gather
from typing import Any

from weaverant import UserError, workflow
from weaverant.recipes.malt import tree
from weaverant.recipes.malt.answers import Checker, answer_key
from weaverant.recipes.malt.exports import dropped, preference, sft
from weaverant.recipes.malt.team import CHAT, TINY, Prompts, question_of, team_for

__all__ = ["MODEL", "SOURCE", "dropped", "malt", "preference", "sft"]

SOURCE = "arithmetic:weave"
MODEL = "embedded:tiny"

# Agents at the top of the file are bound before the run starts: a model that is missing is missed at once.
chat_generator, chat_verifier, chat_refiner = CHAT
generator, verifier, refiner = TINY


@workflow
async def malt(
    row: dict[str, Any],
    *,
    branching: int = 3,
    checker: Checker = "auto",
    prompts: Prompts = "auto",
    theta: float = tree.THETA,
) -> tree.Tree:
    """Grow the tree: b + b^2 + b^3 calls and b^3 leaves for a branching of b; 39 and 27 for 3.

    A row has `question` and `answer`, the gold answer (after `####`, where there is one). `theta` is kept for the
    exporters. A call that fails for good fails the row: a tree with a hole has no fair values.
    """
    if branching < 1:
        raise UserError(f"branching must be at least 1, found {branching}")
    question, key, team = question_of(row), answer_key(row.get("answer"), checker), team_for(row, prompts)

    async def refine(attempt: str, critique: str) -> tree.Refinement:
        text = await team.refiner(question=question, attempt=attempt, critique=critique)
        answer = key.read(text)
        return tree.refinement(text, answer, key.accepts(answer))

    async def criticise(attempt: str) -> tree.Critique:
        text = await team.verifier(question=question, attempt=attempt)
        return tree.critique(text, await gather(*(refine(attempt, text) for _ in range(branching))))

    async def attempt() -> tree.Attempt:
        text = await team.generator(question=question)
        return tree.attempt(text, key.read(text), await gather(*(criticise(text) for _ in range(branching))))

    attempts = await gather(*(attempt() for _ in range(branching)))
    return tree.Tree(question=question, gold=key.gold, checker=key.kind, theta=theta, attempts=attempts)
