"""A model call travels: from the peer that owns a task to a peer that hosts the model, and its reply back.

A call is [model, task, path, occurrence, order, seed, terms, messages, paid]; an answer is [reply, usage, model], a
failure {"failed": [...]}. A conversation that grows sends what is new and numbers for the rest (`shared.py`); what is
paid under a budget is in `purses.py`.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any, cast

import msgspec

from weaverant.errors import StepFailed, Unavailable, WeaverantError
from weaverant.message import Message, Reply, Request
from weaverant.protocols import CallContext, Engine, Permit
from weaverant.runtime.outcome import failure_in
from weaverant.step import Turn
from weaverant.swarm.answers import failure_body, failure_of, reply_body, reply_of
from weaverant.swarm.frames import UNDECODABLE, UNENCODABLE
from weaverant.swarm.link import Link, LinkLost, Refused
from weaverant.swarm.purses import Outlay, Paid, PurseAfar, Till, failed
from weaverant.swarm.shared import Talk, Terms

CALL = "call"
DRAINING = "draining"
"""Instead of an answer: nothing was asked here, and nothing will be."""

LOOK_EVERY = 0.25
"""Seconds after which a call that found no host looks again, if nobody notified it."""

MOST_TERMS = 4_096
"""Kept at a time."""


class AfarEngine:
    """An engine that other peers host. `identity` is that of the real one, `model` its name with the hosts, `hosts`
    gives the links to those that are up, and may give others each time."""

    def __init__(
        self,
        identity: str,
        model: str,
        hosts: Callable[[], Sequence[Link]],
        real: Engine | None = None,
        till: Till | None = None,
    ) -> None:
        """`real` is the engine as it would be here: it knows what a call costs at most. `till` answers hosts that need
        more than that."""
        self._identity = identity
        self._model = model
        self._hosts = hosts
        self._real = real
        self._till = till or Till()
        self._terms: dict[tuple[str, str, int, int, int], tuple[Terms, Request]] = {}
        """By what a request is made of; the request keeps it alive."""
        self._equal_terms: dict[bytes, Terms] = {}
        self._appeared = asyncio.Event()

    @property
    def identity(self) -> str:
        return self._identity

    def unbounded(self, request: Request) -> str:
        """See `Costly`."""
        ask: Callable[[Request], str] | None = getattr(self._real, "unbounded", None)
        return "" if ask is None else ask(request)

    async def generate(self, request: Request, ctx: CallContext) -> Reply:
        """The reply of the host with the fewest open calls, of two drawn at random. A host that is lost, or takes
        nothing more, is replaced by another at once; where there is none the call waits for one."""
        if ctx.purse is None:
            return await self._travel(request, ctx, None)
        outlay = self._till.open(ctx.purse, ctx.turn)
        try:
            return outlay.charged(await self._travel(request, ctx, outlay))
        except StepFailed as failure:
            raise failed(outlay, failure) from None
        finally:
            self._till.close(outlay)

    async def _travel(self, request: Request, ctx: CallContext, outlay: Outlay | None) -> Reply:
        terms = self._terms_of(request)
        body: list[Any] = [
            self._model,
            ctx.task,
            ctx.path,
            ctx.occurrence,
            ctx.order,
            request.seed,
            terms,
            Talk(terms, request.messages),
            None,
        ]
        worst = 0.0 if outlay is None else self._worst(request)
        shunned: set[Link] = set()
        while True:
            if ctx.permit is not None and not ctx.permit():
                await _hold(ctx.permit, ctx.turn)
            link = _idler(self._hosts(), shunned)
            if link is None:
                await self._wait(ctx.turn)
                shunned.clear()
                continue
            if outlay is not None:
                body[-1] = await self._prepay(outlay, link, worst, ctx.turn)
            host = link.epoch
            try:
                answer = await link.ask(CALL, body, None, ctx.task, _leaves(link, ctx.turn, outlay))
            except LinkLost:
                shunned.add(link)
                if outlay is not None:
                    outlay.lose()
                if ctx.turn is not None:
                    ctx.turn.waiting = False
                continue
            except Refused as error:
                raise StepFailed("peer", f"{link.name!r} could not work on a call: {error}") from None
            except UNENCODABLE as error:
                usage = None if outlay is None else outlay.used()
                raise StepFailed(
                    "request", f"the request cannot travel to another peer: {error}", usage=usage
                ) from None
            if answer == DRAINING:
                shunned.add(link)
                continue
            if ctx.turn is not None:
                ctx.turn.host = host
            return _reply_in(answer, link.name)

    def _worst(self, request: Request) -> float:
        """US dollars to be set aside before the call leaves. None where a purchase outlives the process: its host sets
        that aside under the name that it is found by again."""
        if getattr(self._real, "claims", False):
            return 0.0
        ask: Callable[[Request], float | None] | None = getattr(self._real, "worst", None)
        return 0.0 if ask is None else ask(request) or 0.0

    async def _prepay(self, outlay: Outlay, link: Link, dollars: float, turn: Turn | None) -> Paid:
        """The wait for money is no part of the model's latency."""
        began = _now()
        try:
            return await outlay.prepay(link, dollars)
        finally:
            if turn is not None:
                turn.waited += _now() - began

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

    def __init__(
        self,
        engines: Mapping[str, Engine],
        run: str = "",
        permit: Permit | None = None,
        departed: Callable[[str], bool] = lambda name: False,
    ) -> None:
        """`departed`: whether the peer of this name was given up, so that others go on with what it asks for."""
        self.draining = False
        """Once true, calls that come are sent elsewhere; those in hand are worked on."""
        self.served = 0
        """Calls that came, and were worked on or are."""
        self.open = 0
        """Calls that are worked on."""
        self._engines = engines
        self._run = run
        self._permit = permit
        self._departed = departed

    def serve(self, link: Link, kind: str, body: Any) -> Awaitable[Any] | Any:
        """Answers "call"; `WeaverantError` for what is none."""
        if kind != CALL:
            raise WeaverantError(f"{kind!r} is nothing that a host of models knows")
        if self.draining or self._departed(link.name):
            return DRAINING
        try:
            model, task, path, occurrence, order, seed, terms, messages, paid = body
            purse = None if paid is None else PurseAfar(link, *msgspec.convert(paid, Paid))
            if type(terms) is not Terms or not _MESSAGE.issuperset(map(type, messages)):
                raise TypeError("that is no request")
            request = Request(
                terms.agent, terms.model, tuple(messages), terms.sampling, terms.tools, terms.output, seed
            )
            engine = self._engines.get(model)
        except (TypeError, ValueError) as error:  # among them a `msgspec.ValidationError`
            raise WeaverantError(f"that is no call: {error}") from None
        if engine is None:
            text = f"no model {model!r} is hosted by this peer; it hosts {sorted(self._engines)}"
            return failure_body(Unavailable("peer", text))
        self.served += 1
        ctx = CallContext(task, path, occurrence, order, self._run, purse, Turn(), self._permit)
        return self._answer(engine, model, request, ctx)

    async def _answer(self, engine: Engine, model: str, request: Request, ctx: CallContext) -> Any:
        self.open += 1
        try:
            return reply_body(await engine.generate(request, ctx), model)
        except Exception as error:  # the boundary to engines
            return failure_body(failure_in(error))
        finally:
            self.open -= 1


def _reply_in(answer: Any, host: str) -> Reply:
    try:
        if type(answer) is list:
            return reply_of(cast("list[Any]", answer))
        failure = failure_of(answer)
    except UNDECODABLE as error:
        raise StepFailed("peer", f"{host!r} answered a call with what is no reply: {error}") from None
    raise failure


def _idler(hosts: Sequence[Link], shunned: Collection[Link]) -> Link | None:
    if shunned:
        hosts = [host for host in hosts if host not in shunned]
    up = hosts if len(hosts) == 1 and not hosts[0].reason else [host for host in hosts if not host.reason]
    if len(up) < 2:
        return up[0] if up else None
    first = random.randrange(len(up))
    one, other = up[first], up[first - random.randrange(1, len(up))]
    return one if one.open <= other.open else other


async def _hold(permit: Permit, turn: Turn | None) -> None:
    """Until anything may be asked again; cancelled meanwhile, the call waited."""
    began = _now()
    if turn is not None:
        turn.waiting = True
    await permit.wait()
    if turn is not None:
        turn.waiting = False
        turn.waited += _now() - began


def _leaves(link: Link, turn: Turn | None, outlay: Outlay | None) -> Callable[[], None] | None:
    """The call may have to wait for room on its link; what comes of it is called when it is sent."""
    if link.ready or turn is None:
        return None if outlay is None else outlay.leaves
    began, turn.waiting = _now(), True

    def sent() -> None:
        turn.waiting = False
        turn.waited += _now() - began
        if outlay is not None:
            outlay.leaves()

    return sent


def _now() -> float:
    return asyncio.get_running_loop().time()


_MESSAGE = frozenset((Message,))
_encode = msgspec.msgpack.Encoder().encode
