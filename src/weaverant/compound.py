"""A model made of other models: a team that votes, layers of proposers, a router.

An engine would hide the calls that it makes in turn. A compound is workflow code instead: the call of an agent whose
model it is runs `answer` in a branch of its own, and what its members are asked there are steps like all others,
recorded and paid for one by one. The reply that comes of them is then recorded as the agent's own, and costs nothing.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeGuard

import msgspec

from weaverant.agent import Agent, talk_on
from weaverant.branch import is_within
from weaverant.errors import StepFailed, UserError, failure_of
from weaverant.message import Reply, Request, Usage, total
from weaverant.protocols import Engine
from weaverant.replay import WorkflowLoop
from weaverant.step import ModelAsk
from weaverant.talk import TALK_FROM

if TYPE_CHECKING:
    from weaverant.binding import Binding, Bound


class Compound(Protocol):
    """What answers for a model's name without being an engine. It may have `refuses`, too: see `Selective`."""

    @property
    def identity(self) -> str:
        """As of an `Engine`: what answers, never where. It names the identities of the members."""
        ...

    @property
    def members(self) -> Mapping[str, Served]:
        """Those that it asks, by names of its own without `/`. In a run, the member `judge` of the model `team` is
        the model `team/judge`."""
        ...

    def agents(self, request: Request) -> Sequence[Agent]:
        """Those that an agent with such sampling, tools and output makes it ask, as far as that is known before the
        first call; the request has no messages. Their models are members."""
        ...

    async def answer(self, request: Request, inside: Inside) -> Reply:
        """The reply to a request, in the same rules as a workflow: whatever it asks it asks `inside`, or through
        `step`; `asyncio.gather` and its like, `rng` and `now` are at hand. The reply's usage does not count. What it
        raises fails the call, as `StepFailed`. What it leaves running goes on, until the row ends."""
        ...

    async def close(self) -> None:
        """Close the members that it has opened itself."""
        ...


class Teachable(Protocol):
    """What a compound has besides where it learns from what became of its replies; see `weaverant.feedback`."""

    def lesson(self, note: Any, score: float) -> Any:
        """What the score of a reply teaches, as plain data, which is recorded. `note` is what `answer` had left in
        `inside.note`. It must not change anything."""
        ...

    def learn(self, lesson: Any) -> None:
        """Take it in. Called once the lesson is recorded, and again for each that a resumed run replays."""
        ...


class Taught(NamedTuple):
    """A reply of which feedback would teach a compound."""

    reply: Reply
    compound: Compound
    note: Any
    branch: str
    """Where it was worked out."""


MOST_TAUGHT = 256
"""Replies of one row that wait for feedback. It comes to the newest ones."""


def beyond_text(request: Request) -> str:
    """What a request asks for that no reply made of several can hold; empty where one plain text will do."""
    sampling = request.sampling
    wanted = {
        "tools": request.tools,
        "output=": request.output,
        "n": sampling.n > 1,
        "log probabilities": sampling.logprobs or sampling.top_logprobs,
    }
    return " and ".join(name for name, asked in wanted.items() if asked)


Served = Engine | Compound
"""What may answer for a model's name."""


def is_compound(served: object) -> TypeGuard[Compound]:
    return callable(getattr(served, "answer", None)) and not callable(getattr(served, "generate", None))


def with_members(name: str, served: Served) -> Iterator[tuple[str, Served]]:
    """All that a model is made of, itself first, by the names that they have in a run."""
    yield name, served
    if is_compound(served):
        for member, inner in served.members.items():
            if not member or "/" in member:
                raise UserError(f"a member of {served.identity!r} is called {member!r}: expected a name without '/'")
            yield from with_members(f"{name}/{member}", inner)


class Inside:
    """One call of a compound, as its code sees it: where it asks its members."""

    def __init__(self, loop: WorkflowLoop, binding: Binding, bound: Bound, optional: bool = False) -> None:
        self.optional = optional
        """Whether another compound has asked that can do without the reply: see `ask`."""
        self.note: Any = None
        """What this call would teach its compound; left there by `answer`, for `Teachable.lesson`."""
        self._loop = loop
        self._binding = binding
        self._bound = bound
        if loop.used is None:
            loop.used = {}

    def agent(self, agent: Agent) -> Agent:
        """The agent as it asks the member that its `model` names. To be awaited like any other; make one and keep it,
        since each is compiled once."""
        return inner_agent(self._bound, agent)

    async def ask(self, member: str, request: Request, *, optional: bool = False) -> Reply:
        """One member's reply to a whole request: messages, sampling, tools and output as they are. No tool is called,
        and no reply is held against the output. Where nobody can be asked (`Unavailable`) the run stops, as for any
        model; with `optional`, for a member that others can stand in for, the step fails as `unavailable`."""
        bound = self._binding.passing(_model_of(self._bound, member), self._bound.agent.place, request)
        messages = request.messages
        if len(messages) < TALK_FROM:
            ask = bound.ask(messages, {}, messages)
            ask.optional = optional
            return await bound.reply(self._loop, ask)
        _, reply = await talk_on(self._loop, bound, messages, {}, messages, optional)
        return reply

    def used(self) -> Usage:
        """What the calls used that were made in this branch, or in one that began here, and have ended: replies and
        failures, of members' members too. Not what was cancelled: no workflow is told what that costs. A compound's own
        steps are counted, never the reply that came of them."""
        used, branch = self._loop.used or {}, self._loop.branch
        return total([usage for path, steps in used.items() if is_within(path, branch) for usage in steps])


def inner_agent(bound: Bound, agent: Agent) -> Agent:
    """What `Inside.agent` gives to the code behind this agent's model."""
    found = bound.inner.get(agent)
    if found is None:
        model = _model_of(bound, agent.model)
        if len(bound.inner) >= MOST_INNER:
            bound.inner.clear()
        name, place = f"{bound.scope}/{agent.name}", agent.place or bound.agent.place
        found = bound.inner[agent] = dataclasses.replace(agent, name=name, model=model, place=place)
    return found


MOST_INNER = 1_024
"""Agents of a compound kept for each agent that asks it."""


def _model_of(bound: Bound, member: str) -> str:
    compound = bound.compound
    assert compound is not None
    if member not in compound.members:
        known = ", ".join(map(repr, compound.members))
        raise UserError(f"the model {bound.scope!r} ({compound.identity}) has no member {member!r}; it has: {known}")
    return f"{bound.scope}/{member}"


async def compounded(loop: WorkflowLoop, binding: Binding, bound: Bound, ask: ModelAsk) -> Reply:
    """The reply of the compound behind an agent, worked out in a branch of its own and recorded as that of the ask."""
    compound, started = bound.compound, loop.clock
    assert compound is not None
    inside = Inside(loop, binding, bound, ask.optional)
    task = loop.apart(_outcome(compound, bound.request(ask.messages), inside))
    ask.inside = task.branch.path
    ask.given = await task
    ask.started = started
    reply: Reply = await loop.answer(ask, bound.fingerprint(ask.messages))
    if inside.note is not None:
        loop.taught = loop.taught or deque(maxlen=MOST_TAUGHT)
        loop.taught.append(Taught(reply, compound, inside.note, ask.inside))
    return reply


async def _outcome(compound: Compound, request: Request, inside: Inside) -> Reply | StepFailed:
    try:
        return _checked(await compound.answer(request, inside), compound)
    except Exception as error:  # the boundary to a compound's code
        return failure_of(error)[0]


def _checked(reply: object, compound: Compound) -> Reply:
    """The reply, if a journal that holds it can be read again, with no usage: that of the steps behind it counts."""
    try:
        found = _decode(_encode(reply))
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        text = f"{compound.identity!r} gave what is no Reply: {error}. Expected weaverant.Reply, found {reply!r:.200}"
        raise StepFailed("engine", text) from None
    return msgspec.structs.replace(found, model=found.model or compound.identity)


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Reply).decode
