"""All systems on one problem. A call that several systems make at the same place is made once.

Sharing leaves every system's own accuracy as it is, because no system has one call twice: its passes are independent
draws. Two systems that share calls are alike on a problem beyond what the problem itself does, which paired tests
allow and profit from; only tests for independent samples would be wrong.
"""

from __future__ import annotations

from asyncio import gather
from collections.abc import Awaitable, Iterable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

from weaverant import Agent, StepFailed, UserError, workflow
from weaverant.recipes.malt.grading import Grader, Verdict, grader_for
from weaverant.recipes.malt.scores import is_tied, vote
from weaverant.recipes.malt.systems import PASSES, TEAMS, TRAININGS, Team, systems_of
from weaverant.recipes.malt.team import ROLES, Prompts, Role, question_of, team_for
from weaverant.recipes.malt.team import Team as Players

Line = tuple[str, str, str]
"""The models of a pass: generator's, verifier's, refiner's. Nobody is asked for an empty name."""

Pass = dict[str, dict[str, list[str]]]
"""What a pass asks: refiners by verifier by generator, all by name."""

UNTRAINED = {f"base {role}": "base" for role in ROLES}


@workflow
async def contest(
    row: dict[str, Any],
    *,
    cast: dict[str, str] = UNTRAINED,
    teams: Sequence[str] = ("sa", "ma"),
    passes: int = PASSES,
    checker: str = "auto",
    prompts: Prompts = "auto",
) -> dict[str, Any]:
    """`{"question", "gold", "right", "answers", "tied"}`, the last three by system: whether its answer was right, the
    answers that voted, and whether the vote was tied (the first answer wins then).

    `cast` names the model for each "TRAINING ROLE", `teams` the keys of those that play. A prompt that is too long for
    its model leaves the systems that wanted the reply without an answer; any other failure fails the problem.
    """
    if passes < 1:
        raise UserError(f"passes must be at least 1, found {passes}")
    question, grader, players = question_of(row), grader_for(row, checker), team_for(row, prompts)
    systems = systems_of(tuple(team for team in TEAMS if team.key in teams), passes)
    lines = {system: _line(system.team, cast) for system in systems}
    most = max((system.votes for system in systems), default=0)

    async def pass_of(number: int) -> dict[Line, Verdict]:
        mine = list(dict.fromkeys(lines[one] for one in systems if number < one.votes))
        said = await _played(question, players, _pass(mine))
        return dict(zip(mine, await gather(*(_verdict(said, line, grader) for line in mine)), strict=True))

    found = await gather(*(pass_of(number) for number in range(most)))
    votes = {one.key: [found[number][lines[one]] for number in range(one.votes)] for one in systems}
    answers = {system: [verdict.answer for verdict in verdicts] for system, verdicts in votes.items()}
    return {
        "question": question,
        "gold": grader.gold,
        "right": {system: elected(verdicts).right for system, verdicts in votes.items()},
        "answers": answers,
        "tied": {system: is_tied(given) for system, given in answers.items()},
    }


def elected(verdicts: Sequence[Verdict]) -> Verdict:
    """The one that the vote chooses: the first with the most frequent answer; the first of all where none has one."""
    winner = vote([verdict.answer for verdict in verdicts])
    return next(verdict for verdict in verdicts if verdict.answer == winner)


def _line(team: Team, cast: dict[str, str]) -> Line:
    names = {role: cast[f"{training} {role}"] for role, training in team.cast}
    return names["generator"], names.get("verifier", ""), names.get("refiner", "")


def _pass(lines: Iterable[Line]) -> Pass:
    """The lines as a tree, so that what they have in common from the generator on is asked once."""
    found: Pass = {}
    for generator, verifier, refiner in lines:
        refiners = found.setdefault(generator, {}).setdefault(verifier, [])
        if refiner not in refiners:
            refiners.append(refiner)
    return found


async def _played(question: str, players: Players, asked: Pass) -> dict[Line, str | None]:
    """What every role said, by the line that ends with it. None where its prompt was too long for its model."""
    said: dict[Line, str | None] = {}

    async def attempt(g: str) -> None:
        text = said[g, "", ""] = await _ask(players, "generator", g, question=question)
        if text is not None:
            await _placed({v: critique(text, g, v) for v in asked[g]})

    async def critique(attempt: str, g: str, v: str) -> None:
        text = await _ask(players, "verifier", v, question=question, attempt=attempt) if v else ""
        if v:
            said[g, v, ""] = text
        if text is not None:
            await _placed({r: refinement(attempt, text, (g, v, r)) for r in asked[g][v] if r})

    async def refinement(attempt: str, critique: str, line: Line) -> None:
        told = {"question": question, "attempt": attempt, "critique": critique}
        said[line] = await _ask(players, "refiner", line[2], **told)

    await _placed({g: attempt(g) for g in asked})
    return said


async def _placed(work: dict[str, Awaitable[None]]) -> None:
    """Work for several models at once. Each has the branch of the training that it is named after, whoever else plays,
    so that a system draws the same whatever it is compared with."""
    places = {name.partition("-")[0]: one for name, one in work.items()}
    await gather(*(places.get(training) or _nothing() for training in (*TRAININGS, "")))


async def _nothing() -> None:
    """Keeps a place."""


async def _ask(players: Players, role: Role, model: str, **told: str) -> str | None:
    try:
        return await _agent(players[ROLES.index(role)], model)(**told)  # pyright: ignore[reportArgumentType]
    except StepFailed as failure:
        if failure.kind != "context":
            raise
        return None


@cache
def _agent(agent: Agent, model: str) -> Agent:
    """The role as that model plays it. Its own name, so that tables of calls and `show` tell them apart."""
    return replace(agent, name=f"{agent.name}-{model.partition('-')[0]}", model=model)


async def _verdict(said: dict[Line, str | None], line: Line, grader: Grader) -> Verdict:
    """On a pass's answer: its last role's. Where that is the verifier and its critique gives none, the attempt's
    stands; the paper does not say how it reads the answer of a team without a refiner."""
    text = said.get(line)
    verdict = Verdict(None, False) if text is None else await grader.judge(text)
    if verdict.answer is None and text is not None and line[1] and not line[2]:
        return await _verdict(said, (line[0], "", ""), grader)
    return verdict
