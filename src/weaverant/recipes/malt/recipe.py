"""MALT (arXiv 2412.01928, COLM 2025): training data for a team of three from questions with gold answers alone.

A generator attempts, a verifier criticises, a refiner answers anew, `branching` times each. The right answers among
the leaves say which attempts and critiques were good. README.md gives the command, the numbers and a sample.
"""

from __future__ import annotations

from asyncio import gather
from functools import wraps
from typing import Any

from weaverant import UserError, workflow
from weaverant.recipes.malt import tree
from weaverant.recipes.malt.exports import dropped, preference, sft, values
from weaverant.recipes.malt.grading import Check, Grader, grader_by, grader_for
from weaverant.recipes.malt.team import CHAT, TINY, Prompts, Team, question_of, team_for
from weaverant.recipes.malt.values import Rule, Values
from weaverant.workflow import Workflow

__all__ = ["MODEL", "SOURCE", "dropped", "graded_by", "malt", "preference", "sft", "values"]

SOURCE = "arithmetic:weave"
MODEL = "embedded:tiny"

# Agents at the top of the file are bound before the run starts: a model that is missing is missed at once.
chat_generator, chat_verifier, chat_refiner = CHAT
generator, verifier, refiner = TINY


@workflow
async def malt(
    row: dict[str, Any],
    *,
    branching: int | str | list[int] = 3,
    checker: str = "auto",
    prompts: Prompts = "auto",
    theta: float = tree.THETA,
    values: Values = "global",
    min_confidence: float = 0.0,
    max_pairs: int = 0,
) -> tree.Tree:
    """Grow the tree: b + b^2 + b^3 calls and b^3 leaves for a branching of b; 39 and 27 for 3. `3,2,3` gives each level
    its own.

    A row has `question` and `answer`, the gold answer as the checker wants it. The last four are kept for the
    exporters. A call that fails for good fails the row: a tree with a hole has no fair values.
    """
    rule = Rule(theta, values, min_confidence, max_pairs).checked()
    return await _grown(row, tree.branching_of(branching), grader_for(row, checker), team_for(row, prompts), rule)


def graded_by(check: Check) -> Workflow:
    """The same workflow with a function of yours for checker, for use from Python: `run(graded_by(check), rows, ...)`.
    `check(reply, row)` gives whether the reply is right, None where it has no answer, or `(answer, right)`."""

    @wraps(malt.function)
    async def malt_graded_by(
        row: dict[str, Any],
        *,
        branching: int | str | list[int] = 3,
        checker: str = "auto",
        prompts: Prompts = "auto",
        **rule: Any,
    ) -> tree.Tree:
        if checker != "auto":
            raise UserError(f"replies are checked by {check!r}; found checker={checker!r} as well")
        team = team_for(row, prompts)
        return await _grown(row, tree.branching_of(branching), grader_by(check, row), team, Rule(**rule).checked())

    return Workflow(malt_graded_by, malt.name)


async def _grown(row: dict[str, Any], size: tree.Branching, grader: Grader, team: Team, rule: Rule) -> tree.Tree:
    question = question_of(row)

    async def refine(attempt: str, critique: str) -> tree.Refinement:
        text = await team.refiner(question=question, attempt=attempt, critique=critique)
        return tree.refinement(text, *await grader.judge(text))

    async def criticise(attempt: str) -> tree.Critique:
        text = await team.verifier(question=question, attempt=attempt)
        return tree.critique(text, await gather(*(refine(attempt, text) for _ in range(size.refiner))))

    async def attempt() -> tree.Attempt:
        text = await team.generator(question=question)
        critiques = await gather(*(criticise(text) for _ in range(size.verifier)))
        return tree.attempt(text, grader.read(text), critiques)

    attempts = await gather(*(attempt() for _ in range(size.generator)))
    return {
        "question": question,
        "gold": grader.gold,
        "checker": grader.checker,
        "theta": rule.theta,
        "attempts": attempts,
        "values": rule.values,
        "min_confidence": rule.min_confidence,
        "max_pairs": rule.max_pairs,
    }
