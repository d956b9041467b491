"""A model call travels: from the peer that owns a task to a peer that hosts the model, and its reply back.

A call is [model, task, path, occurrence, order, seed, terms, messages]; an answer is [reply, usage, model], a failure
{"failed": [...]}. A conversation that grows sends what is new and numbers for the rest (`shared.py`).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any, cast

import msgspec

from weaverant.errors import Misdirected, StepFailed, Unavailable, UserError, WeaverantError
from weaverant.message import Choice, Message, Reply, Request, Tokens, Usage
from weaverant.protocols import CallContext, Engine
from weaverant.runtime.outcome import checked, failure_in
from weaverant.step import Turn, message_of, message_value
from weaverant.swarm.frames import UNDECODABLE, UNENCODABLE
from weaverant.swarm.link import Link, LinkLost, Refused
from weaverant.swarm.shared import Talk, Terms

CALL = "call"
DRAINING = "draining"
"""Instead of an answer: nothing was asked here, and nothing will be."""

LOOK_EVERY = 0.25
"""Seconds after which a call that found no host looks again, if nobody notified it."""

MOST_TERMS = 4_096
"""Kept at a time."""

FAILURES = {kind.__name__: kind for kind in (StepFailed, Unavailable, Misdirected)}


class AfarEngine:
    """An engine that other peers host. `identity` is that of the real one, `model` its name with the hosts, `hosts`
    gives the links to those that are up, and may give others each time."""

    def __init__(self, identity: str, model: str, hosts: Callable[[], Sequence[Link]]) -> None:
        self._identity = identity
        self._model = model
        self._hosts = hosts
        self._terms: dict[tuple[str, str, int, int, int], tuple[Terms, Request]] = {}
        """By what a request is made of; the request keeps it alive."""
        self._equal_terms: dict[bytes, Terms] = {}
        self._appeared = asyncio.Event()

    @property
    def identity(self) -> str:
        return self._identity

    async def generate(self, request: Request, ctx: CallContext) -> Reply:
        """The reply of the host with the fewest open calls, of two drawn at random. A host that is lost, or takes
        nothing more, is replaced by another at once; where there is none the call waits for one."""
        if ctx.purse is not None:
            raise UserError("a budget does not reach models on other peers yet: leave it out, or host them here")
        terms = self._terms_of(request)
        body = [
            self._model,
            ctx.task,
            ctx.path,
            ctx.occurrence,
            ctx.order,
            request.seed,
            terms,
            Talk(terms, request.messages),
        ]
        shunned: set[Link] = set()
        while True:
            link = _idler(self._hosts(), shunned)
            if link is None:
                await self._wait(ctx.turn)
                shunned.clear()
                continue
            try:
                answer = await link.ask(CALL, body, None, ctx.task, None if link.ready else _waits(ctx.turn))
            except LinkLost:
                shunned.add(link)
                if ctx.turn is not None:
                    ctx.turn.waiting = False
                continue
            except Refused as error:
                raise StepFailed("peer", f"{link.name!r} could not work on a call: {error}") from None
            except UNENCODABLE as error:
                raise StepFailed("request", f"the request cannot travel to another peer: {error}") from None
            if answer == DRAINING:
                shunned.add(link)
                continue
            return _reply_in(answer, link.name)

    def notify(self) -> None:
        """A host has come: calls that wait for one look again."""
        self._appeared.set()
        self._appeared = asyncio.Event()

    async def close(self) -> None:
        """Nothing is held; the links belong to others."""

    async def _wait(self, turn: Turn | None) -> None:
        """Until a host may have come."""
        began = _now()
        if turn is not None:
            turn.waiting = True
        try:
            async with asyncio.timeout(LOOK_EVERY):
                await self._appeared.wait()
        except TimeoutError:
            pass
        if turn is not None:  # cancelled it stays as it is: the call waited
            turn.waiting = False
            turn.waited += _now() - began

    def _terms_of(self, request: Request) -> Terms:
        key = (request.agent, request.model, id(request.sampling), id(request.tools), id(request.output))
        found = self._terms.get(key)
        if found is None:
            terms = Terms.of(request)
            try:
                terms = self._equal_terms.setdefault(_encode(terms), terms)
            except UNENCODABLE as error:
                raise StepFailed("request", f"the request cannot travel to another peer: {error}") from None
            if len(self._terms) >= MOST_TERMS:
                self._terms.clear()
                self._equal_terms.clear()
            found = self._terms[key] = (terms, request)
        return found[0]


class HostedEngines:
    """The other side: engines, by name, that answer calls of other peers. `run` as in `CallContext`."""

    def __init__(self, engines: Mapping[str, Engine], run: str = "") -> None:
        self.draining = False
        """Once true, calls that come are sent elsewhere; those in hand are worked on."""
        self.served = 0
        self.open = 0
        """Calls that are worked on."""
        self._engines = engines
        self._run = run

    def serve(self, link: Link, kind: str, body: Any) -> Awaitable[Any] | Any:
        """Answers "call"; `WeaverantError` for what is none."""
        if kind != CALL:
            raise WeaverantError(f"{kind!r} is nothing that a host of models knows")
        if self.draining:
            return DRAINING
        try:
            model, task, path, occurrence, order, seed, terms, messages = body
            if type(terms) is not Terms or not _MESSAGE.issuperset(map(type, messages)):
                raise TypeError("that is no request")
            request = Request(
                terms.agent, terms.model, tuple(messages), terms.sampling, terms.tools, terms.output, seed
            )
            engine = self._engines.get(model)
        except (TypeError, ValueError) as error:
            raise WeaverantError(f"that is no call: {error}") from None
        if engine is None:
            text = f"no model {model!r} is hosted by this peer; it hosts {sorted(self._engines)}"
            return failure_body(Unavailable("peer", text))
        self.served += 1
        return self._answer(engine, model, request, CallContext(task, path, occurrence, order, self._run, None, Turn()))

    async def _answer(self, engine: Engine, model: str, request: Request, ctx: CallContext) -> Any:
        self.open += 1
        try:
            return reply_body(await engine.generate(request, ctx), model)
        except Exception as error:  # the boundary to engines
            return failure_body(failure_in(error))
        finally:
            self.open -= 1


def reply_body(reply: Any, model: str) -> list[Any]:
    """A reply as it travels. `StepFailed` where an engine gave what is none."""
    if type(reply) is not Reply or type(reply.message) is not Message or type(reply.usage) is not Usage:
        reply = checked(reply, model)
    message = reply.message
    if (
        reply.tokens is None
        and not reply.more
        and reply.finish == "stop"
        and type(message.content) is str
        and message.role == "assistant"
        and not message.tool_calls
        and message.tool_call_id is None
        and message.reasoning is None
    ):
        return [message.content, reply.usage, reply.model]
    return [[_choice_value(choice) for choice in reply.choices], reply.usage, reply.model]


def reply_of(body: list[Any]) -> Reply:
    """The inverse of `reply_body`. `ValueError` or `TypeError` for what is none."""
    value, usage, model = body
    if type(value) is str:
        return Reply(Message("assistant", value), Usage(*usage), model)
    first, *more = map(_choice_of, value)
    return Reply(first.message, Usage(*usage), model, first.finish, first.tokens, tuple(more))


def failure_body(failure: StepFailed) -> dict[str, Any]:
    """A failure as it travels."""
    name = next(known.__name__ for known in type(failure).__mro__ if known.__name__ in FAILURES)
    try:
        detail = msgspec.to_builtins(failure.detail)
    except (TypeError, ValueError, RecursionError):
        detail = repr(failure.detail)
    return {"failed": [name, failure.kind, failure.text, detail, failure.usage, failure.forget]}


def failure_of(body: dict[str, Any]) -> StepFailed:
    """The inverse of `failure_body`. `ValueError` and its like for what is none."""
    name, kind, text, detail, usage, forget = body["failed"]
    failure = FAILURES[name](kind, text, detail, None if usage is None else Usage(*usage))
    failure.forget = tuple((path, fingerprint, occurrence) for path, fingerprint, occurrence in forget)
    return failure


def _reply_in(answer: Any, host: str) -> Reply:
    try:
        if type(answer) is list:
            return reply_of(cast("list[Any]", answer))
        failure = failure_of(answer)
    except UNDECODABLE as error:
        raise StepFailed("peer", f"{host!r} answered a call with what is no reply: {error}") from None
    raise failure


def _choice_value(choice: Choice) -> list[Any]:
    return [message_value(choice.message), choice.finish, msgspec.to_builtins(choice.tokens)]


def _choice_of(value: list[Any]) -> Choice:
    message, finish, tokens = value
    return Choice(message_of(message), finish, msgspec.convert(tokens, Tokens | None))


def _idler(hosts: Sequence[Link], shunned: Collection[Link]) -> Link | None:
    if shunned:
        hosts = [host for host in hosts if host not in shunned]
    up = hosts if len(hosts) == 1 and not hosts[0].reason else [host for host in hosts if not host.reason]
    if len(up) < 2:
        return up[0] if up else None
    first = random.randrange(len(up))
    one, other = up[first], up[first - random.randrange(1, len(up))]
    return one if one.open <= other.open else other


def _waits(turn: Turn | None) -> Callable[[], None] | None:
    """The call waits for room on its link; what comes of it is called when it is sent."""
    if turn is None:
        return None
    began, turn.waiting = _now(), True

    def sent() -> None:
        turn.waiting = False
        turn.waited += _now() - began

    return sent


def _now() -> float:
    return asyncio.get_running_loop().time()


_MESSAGE = frozenset((Message,))
_encode = msgspec.msgpack.Encoder().encode
