"""The team at work, as in the paper's evaluation: generator, verifier, refiner, in independent passes, then a vote."""

from __future__ import annotations

from asyncio import gather
from typing import Any, TypedDict

from weaverant import UserError, workflow
from weaverant.recipes.malt.answers import Checker, answer_key
from weaverant.recipes.malt.scores import vote
from weaverant.recipes.malt.team import CHAT, TINY, Prompts, question_of, team_for

chat_generator, chat_verifier, chat_refiner = CHAT
generator, verifier, refiner = TINY


class Chain(TypedDict):
    """One pass: what the roles said, the generator's own answer, and the refiner's, which is the chain's."""

    attempt: str
    critique: str
    refinement: str
    first: str | None
    answer: str | None


@workflow
async def chains(
    row: dict[str, Any], *, passes: int = 3, checker: Checker = "auto", prompts: Prompts = "auto"
) -> dict[str, Any]:
    """`{"question", "gold", "chains", "voted", "lone", "chain", "vote"}`; the last three say what was right: the
    first generator's reply alone, the first chain, and the majority of all chains (a tie goes to the first vote)."""
    if passes < 1:
        raise UserError(f"passes must be at least 1, found {passes}")
    question, key, team = question_of(row), answer_key(row.get("answer"), checker), team_for(row, prompts)

    async def chain() -> Chain:
        attempt = await team.generator(question=question)
        critique = await team.verifier(question=question, attempt=attempt)
        refinement = await team.refiner(question=question, attempt=attempt, critique=critique)
        return Chain(
            attempt=attempt,
            critique=critique,
            refinement=refinement,
            first=key.read(attempt),
            answer=key.read(refinement),
        )

    found = await gather(*(chain() for _ in range(passes)))
    voted = vote([one["answer"] for one in found])
    return {
        "question": question,
        "gold": key.gold,
        "chains": found,
        "voted": voted,
        "lone": key.accepts(found[0]["first"]),
        "chain": key.accepts(found[0]["answer"]),
        "vote": key.accepts(voted),
    }
