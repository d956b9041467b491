"""Sparse mixture of agents: `smoa:pool.json`, after Li et al. 2024.

Each proposer plays a role; after each round a judge keeps the k best answers, or ends the debate; an aggregator writes
the reply from those that were kept. With R rounds of n proposers that is at most R(n+1)+1 calls, and one for the roles.

Roles belong to a task, and a task is known by the instructions (system messages) that its questions come with: the
first question of a task has its roles written, and later ones find them. Rows that begin before they are written have
them written as well. What is written or found is recorded, so that a resumed row plays the roles that it began with.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from random import Random
from typing import Annotated, Any, cast

import msgspec
from msgspec import Meta

from weaverant.agent import Agent
from weaverant.compound import Inside
from weaverant.jsontext import NotJson, find_json
from weaverant.message import Message, Reply, Request, digest, user
from weaverant.routing import tiny_prompts
from weaverant.routing.asking import Asked, Asking, Call, by_prior, options_of, plainly
from weaverant.routing.pool import Pool
from weaverant.routing.pooled import Merging, Pooled
from weaverant.routing.prompts import Prompts, Tiny, numbered, query_in, question_in, words_for
from weaverant.workflow import rng, step


class SmoaOptions(Asked, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The options of `smoa:FILE?k=2&rounds=2`."""

    k: Annotated[int, Meta(ge=1)] = 2
    """Answers that the judge keeps."""
    rounds: Annotated[int, Meta(ge=1)] = 2
    """At most."""
    roles: bool = True
    """Let each proposer play a role; small models never do, they have no words for it."""
    proposers: str = ""
    """Names joined by commas; empty: all models of the pool."""
    aggregator: str = ""
    """Who writes the reply; empty: the pool's aggregator, else the model with the highest prior, of equals the
    cheapest."""
    judge: str = ""
    """Who keeps answers and writes roles; empty: the aggregator."""
    skip: bool = True
    """Ask no aggregator where one answer stands, or all agree; `false` is the paper's plain form."""
    temperature: Annotated[float, Meta(ge=0.0)] | None = 0.7
    """Where the asking agent sets none."""
    prompts: Prompts = "auto"
    """`auto`: those of the small models where every member is an embedded one, else `chat`."""

    def calls(self, members: int) -> int:
        """See `Asked`."""
        proposers = len(self.proposers.split(",")) if self.proposers else members
        return self.rounds * (proposers + 1) + 1 + self.roles


def open_smoa(spec: str, parts: int = 1) -> Smoa:
    """What `smoa:` names; `UserError` where that is none. `parts` as for `open_engine`."""
    file, _, options = spec.partition("?")
    wanted = options_of("smoa", options, SmoaOptions)
    return Smoa(Pool.open(file, parts), wanted)


_ROLES = """\
{count} people will work on messages of one kind. Invent them, so that their views differ in ways that help: for each \
one sentence with an occupation, a temper and a walk of life.

What they are told about the work:
{task}

One of the messages:
{question}

Reply with a JSON list of {count} texts and nothing else."""

_JUDGE = """\
You lead a debate about the message below. Choose the {k} answers that help most towards a right and complete one, by \
their reasons and not by their tone. If they settle the matter, end the debate.

The message:
{question}

The answers:
{answers}

Reply with nothing but JSON: {{"why": "one sentence", "keep": [numbers of {k} answers], "end": true or false}}"""

MOST_TOLD = 4_000
"""Characters of the instructions and of the question that the writer of roles is shown."""


class Verdict(msgspec.Struct, frozen=True):
    """What a judge said."""

    keep: tuple[int, ...]
    """Places among the answers, from 0."""
    end: bool = False
    drawn: bool = False
    """Whether chance chose, since the judge's words could not be used as they were."""


class Smoa(Pooled[SmoaOptions]):
    """A `Compound`."""

    def __init__(self, pool: Pool, options: SmoaOptions = SmoaOptions()) -> None:  # noqa: B008
        super().__init__("smoa", pool, options)
        self._proposers = self.several("proposers", options.proposers)
        aggregator = self.named("aggregator", options.aggregator, pool.aggregator or by_prior(pool)[0])
        judge = self.named("judge", options.judge, aggregator)
        self._judges = [judge, *(name for name in by_prior(pool) if name != judge)]
        self._words = words_for(options.prompts, self.members)
        self._tiny = isinstance(self._words, Tiny)
        self._merging = Merging(self, self._words, aggregator, options.skip, options.temperature)
        self._roles: dict[str, list[str]] = {}
        """By task."""

    def refuses(self, request: Request) -> str:
        """See `Selective`."""
        return self._merging.refuses("smoa", request, self._proposers)

    def agents(self, request: Request) -> Sequence[Agent]:
        """See `Compound`."""
        return self._merging.agents(request, [*self._proposers, self._judges[0]])

    async def answer(self, request: Request, inside: Inside) -> Reply:
        """See `Compound`."""
        asking, chance = self.asking(inside), rng("smoa")
        roles = await self._cast(asking, request)
        kept: dict[str, Reply] = {}
        for number in range(1, self.options.rounds + 1):
            said = await self._round(asking, request, number, roles, kept)
            if not said:
                break
            verdict = await self._judged(asking, request, number, list(said.values()), chance)
            keys = list(said)
            kept = {keys[place]: said[keys[place]] for place in verdict.keep}
            if verdict.end:
                break
        return await self._merging.final(asking, request, kept)

    async def _round(
        self, asking: Asking, request: Request, number: int, roles: Sequence[str], kept: Mapping[str, Reply]
    ) -> dict[str, Reply]:
        answers = [self._words.read(reply.text) for reply in kept.values()]
        plain = plainly(request, self.options.temperature)
        calls = [
            Call(
                name,
                name,
                msgspec.structs.replace(plain, messages=self._words.improve(request.messages, answers, role)),
            )
            for name, role in zip(self._proposers, roles, strict=True)
        ]
        admitted = await asking.admit(f"round {number}", calls)
        asking.missed |= admitted.refused
        heard = await asking.ask_all(calls, admitted)
        return heard.replies or heard.cut

    async def _cast(self, asking: Asking, request: Request) -> list[str]:
        """The role of each proposer; empty ones where there are none."""
        count = len(self._proposers)
        if self._tiny or not self.options.roles:
            return [""] * count
        told = "\n\n".join(message.text for message in request.messages if message.role == "system")
        task = digest(told.encode()).hex()[:16]

        async def known_roles(task: str) -> list[str]:
            return self._roles.get(task, [])

        known_roles.__qualname__ = "known_roles"
        found = await step(known_roles, task)
        if not found:
            question = query_in(request.messages)[:MOST_TOLD]
            text = _ROLES.format(count=count, task=told[:MOST_TOLD] or "nothing", question=question)
            calls = self._led(request, (user(text),), "roles")
            reply = await asking.one("roles", calls)
            found = read_roles("" if reply is None else reply[1].text)
        if found:
            self._roles[task] = found
        return [found[place] if place < len(found) else "" for place in range(count)]

    async def _judged(
        self, asking: Asking, request: Request, number: int, said: Sequence[Reply], chance: Random
    ) -> Verdict:
        """Which of the answers stay. Where there is no judge, chance decides."""
        answers = [self._words.read(reply.text) for reply in said]
        k = min(self.options.k, len(answers))
        if self._tiny:
            told = answers[: tiny_prompts.MOST_ANSWERS]
            messages = (user(tiny_prompts.judge(question_in(request.messages), told)),)
        else:
            text = _JUDGE.format(k=k, question=_spoken(request.messages), answers=numbered(answers))
            messages = (*(one for one in request.messages if one.role == "system"), user(text))
        found = await asking.one(f"judge {number}", self._led(request, messages, "judge"))
        text = "" if found is None else found[1].text
        return by_scores(text, len(answers), k, chance) if self._tiny else read_verdict(text, len(answers), k, chance)

    def _led(self, request: Request, messages: tuple[Message, ...], what: str) -> list[Call]:
        """A question to the judge; to others where it does not answer."""
        plain = plainly(request, self.options.temperature)
        asked = msgspec.structs.replace(plain, messages=messages)
        return [Call(f"{name} ({what})", name, asked) for name in self._judges]


def read_roles(text: str) -> list[str]:
    """The roles in a reply: the texts of its longest JSON list; of a list of objects, each one's values. None where it
    has no list."""
    found: list[str] = []
    for value in _values(text):
        if isinstance(value, list):
            roles = [_as_role(one) for one in cast("list[Any]", value)]
            roles = [role for role in roles if role]
            found = max(found, roles, key=len)
    return found


def read_verdict(text: str, count: int, k: int, chance: Random) -> Verdict:
    """What a judge said of so many answers, whose numbers begin with 1. Of more than k numbers chance keeps k; where
    there are none at all it chooses among all answers."""
    for value in reversed(_values(text)):
        said = cast("dict[str, Any]", value) if isinstance(value, dict) else {}
        if isinstance(said.get("keep"), list):
            end = said.get("end") is True
            numbers = [one for one in said["keep"] if isinstance(one, int) and not isinstance(one, bool)]
            places = list(dict.fromkeys(number - 1 for number in numbers if 1 <= number <= count))
            if len(places) > k:
                return Verdict(tuple(sorted(chance.sample(places, k))), end, drawn=True)
            if places:
                return Verdict(tuple(places), end)
    return Verdict(tuple(sorted(chance.sample(range(count), k))), drawn=True)


def by_scores(text: str, count: int, k: int, chance: Random) -> Verdict:
    """The same of a small judge, which scores each answer: the best k stay, the earlier ones of equals."""
    peers = tiny_prompts.read(text, min(count, tiny_prompts.MOST_ANSWERS)).peers
    if peers is None:
        return Verdict(tuple(sorted(chance.sample(range(count), k))), drawn=True)
    places = sorted(range(len(peers)), key=lambda place: (-peers[place], place))
    return Verdict(tuple(sorted(places[:k])))


def _values(text: str) -> list[Any]:
    try:
        return [json.loads(one) for one in find_json(text)]
    except NotJson:
        return []


def _as_role(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(str(one) for one in cast("dict[str, Any]", value).values())
    return value.strip() if isinstance(value, str) else ""


def _spoken(messages: Sequence[Message]) -> str:
    """The conversation as one text."""
    said = [message for message in messages if message.role != "system"]
    if len(said) == 1:
        return said[0].text
    return "\n\n".join(f"{message.role}: {message.text}" for message in said)
