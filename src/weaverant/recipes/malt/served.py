"""The trained team as a model: `--model solver=malt:models.json`, for the agents of any recipe.

A call is MALT's inference (arXiv 2412.01928): independent passes from generator to verifier to refiner, of which the
majority's answer wins. The reply is what the refiner of the first pass with that answer said. Every call inside is a
step of its own, under the names `solver/generator`, `solver/verifier` and `solver/refiner`.
"""

from __future__ import annotations

from asyncio import gather
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qsl

import msgspec

from weaverant.agent import Agent
from weaverant.compound import Inside, Served, beyond_text
from weaverant.engines import open_engine
from weaverant.errors import StepFailed, UserError
from weaverant.message import ImagePart, Message, Reply, Request, Sampling, digest
from weaverant.recipes.malt.answers import announced, answer_key, extract
from weaverant.recipes.malt.roles import RoleModels, read_models
from weaverant.recipes.malt.scores import vote
from weaverant.recipes.malt.systems import PASSES, TEAMS, Team
from weaverant.recipes.malt.team import CHAT, ROLES, TINY, Prompts

Answers = Literal["auto", "number", "choice", "exact"]


class Played(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the team plays: the options of `malt:FILE?passes=3&team=malt`."""

    passes: int = PASSES
    """That vote."""
    team: str = "malt"
    """A team of the evaluation, by its key."""
    prompts: Prompts = "auto"
    """`auto`: those of the packaged model where every member is an embedded one, else `chat`."""
    answers: Answers = "auto"
    """How the answers that vote are read. `auto`: what a reply announces (`####`, `\\boxed{}`), as a number, a letter
    or a text, whichever it is; else its last number."""


def open_team(spec: str, parts: int = 1) -> MaltTeam:
    """The team that `models.json` holds; `UserError` where it does not, or the options are none. `parts` as for
    `open_engine`."""
    file, _, options = spec.partition("?")
    played = _played(options)
    playable = {team.key: team for team in TEAMS if team.cast[-1][0] != "verifier"}
    if played.team not in playable:
        raise UserError(f"malt: expected team= one of {', '.join(playable)}; found {played.team!r}")
    team = playable[played.team]
    path = Path(file).expanduser()
    if path.resolve() in _opening:
        raise UserError(f"malt: {str(path)!r} names itself as one of its models")
    models = read_models(path, "malt:")
    if missing := models.missing(team):
        others = [key for key, one in playable.items() if not models.missing(one)]
        raise UserError(
            f"malt: {str(path)!r} has no model for {', '.join(missing)}, which the team {team.key!r} needs. Add it, or "
            f"choose a team that it has: ?team={' or ?team='.join(others)}"
        )
    _opening.append(path.resolve())
    try:
        return MaltTeam(team, _opened(models, team, parts), played)
    finally:
        _opening.pop()


_opening: list[Path] = []
"""Files whose models are being opened right now: a team may be a member of another, and never of itself."""


def _opened(models: RoleModels, team: Team, parts: int) -> dict[str, Served]:
    """What plays each role. Roles with the same spec share one engine."""
    specs = {role: models.spec(training, role) or "" for role, training in team.cast}
    engines = {spec: open_engine(spec, parts) for spec in dict.fromkeys(specs.values())}
    return {role: engines[specs[role]] for role, _ in team.cast}


def _played(options: str) -> Played:
    try:
        pairs = parse_qsl(options, keep_blank_values=True, strict_parsing=bool(options))
        played = msgspec.convert(dict(pairs), Played, strict=False)
    except (ValueError, msgspec.ValidationError) as error:
        raise UserError(
            f"malt: the options {options!r} are none: {error}. Expected some of passes=N, team=KEY, "
            "prompts=auto|tiny|chat, answers=auto|number|choice|exact, joined by &"
        ) from None
    if played.passes < 1:
        raise UserError(f"malt: passes must be at least 1, found {played.passes}")
    return played


class MaltTeam:
    """A `Compound` whose members are the roles."""

    def __init__(self, team: Team, members: Mapping[str, Served], played: Played) -> None:
        self.members: dict[str, Served] = {role: members[role] for role in ROLES if role in members}
        """By role."""
        self._team = team
        self._passes = played.passes
        self._answers: Answers = played.answers
        embedded = all(member.identity.startswith("embedded:") for member in self.members.values())
        tiny = played.prompts == "tiny" or (played.prompts == "auto" and embedded)
        self._roles: dict[str, Agent] = dict(zip(ROLES, TINY if tiny else CHAT, strict=True))
        self._sampled: dict[bytes, dict[str, Agent]] = {}
        """The roles' agents by what was asked of their sampling."""
        told = {role: member.identity for role, member in self.members.items()}
        made_of = [team.key, played.passes, "tiny" if tiny else "chat", played.answers, told]
        self.identity = f"malt:{team.key}@{digest(msgspec.msgpack.encode(made_of, order='deterministic')).hex()[:16]}"

    def refuses(self, request: Request) -> str:
        """See `Selective`."""
        asked = beyond_text(request)
        return f"a team that votes gives one plain text, and this agent asks for {asked}" if asked else ""

    def agents(self, request: Request) -> Sequence[Agent]:
        """See `Compound`."""
        return list(self._players(request.sampling).values())

    async def answer(self, request: Request, inside: Inside) -> Reply:
        """See `Compound`. A pass whose prompt outgrows its model casts no vote."""
        question = question_in(request.messages)
        players = {role: inside.agent(agent) for role, agent in self._players(request.sampling).items()}
        found = await gather(*(self._pass(players, question) for _ in range(self._passes)))
        said = [one for one in found if isinstance(one, Reply)]
        if not said:
            raise next(one for one in found if isinstance(one, StepFailed))
        answers = [read_answer(one.text, self._answers) for one in said]
        chosen = said[answers.index(vote(answers))]
        return Reply(chosen.message, finish=chosen.finish)

    async def close(self) -> None:
        """Close the members, each once."""
        for member in {id(member): member for member in self.members.values()}.values():
            await member.close()

    async def _pass(self, players: Mapping[str, Agent], question: str) -> Reply | StepFailed:
        """What its last role replied, or why it could not."""
        told: dict[str, Any] = {"question": question, "critique": ""}
        try:
            reply = await players["generator"].reply(question=question)
            told["attempt"] = reply.text
            if "verifier" in players:
                reply = await players["verifier"].reply(question=question, attempt=told["attempt"])
                told["critique"] = reply.text
            if "refiner" in players:
                reply = await players["refiner"].reply(**told)
        except StepFailed as failure:
            if failure.kind != "context":
                raise
            return StepFailed(failure.kind, failure.text)
        return reply

    def _players(self, sampling: Sampling) -> dict[str, Agent]:
        """The roles; what the asking agent sets of its sampling holds for all of them."""
        key = msgspec.msgpack.encode(sampling, order="deterministic")
        found = self._sampled.get(key)
        if found is None:
            given: dict[str, Any] = {
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
                "max_tokens": sampling.max_tokens,
                "stop": sampling.stop or None,
                "extra": sampling.extra or None,
            }
            changed = {name: value for name, value in given.items() if value is not None}
            found = self._sampled[key] = {role: replace(self._roles[role], **changed) for role in self.members}
        return found


def question_in(messages: Sequence[Message]) -> str:
    """The question of a request: its only user's message, with the instructions before it. `StepFailed` of kind
    `request` for what no team was trained on: a conversation, an image."""
    *before, last = messages
    instructions = [message for message in before if message.role == "system"]
    if last.role != "user" or len(instructions) < len(before):
        raise StepFailed(
            "request", "a MALT team answers one question, and was sent a conversation: leave history= out for it"
        )
    if any(isinstance(part, ImagePart) for message in messages for part in message.content):
        raise StepFailed("request", "a MALT team reads texts, and was sent an image")
    return "\n\n".join(message.text for message in (*instructions, last))


def read_answer(text: str, answers: Answers) -> str | None:
    """The vote that a reply casts, in a canonical form; None where it can be read as no answer."""
    if answers != "auto":
        return extract(text, answers)
    said = announced(text)
    if said is None:
        number = extract(text, "number")
        return None if number is None else f"number {number}"
    if extract(said, "exact") is None:
        return None
    key = answer_key(said)
    return f"{key.kind} {key.gold}"
