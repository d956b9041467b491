"""Asking members of a pool for one call of a compound: together, with a quorum, within a budget, with all that fails.

What depends on the state of the moment (breakers, measured latencies, the most that a call may cost) is looked up in
recorded steps, `admit`, whose results are plain data: replay takes the same decisions. Who replies with an error, with
nothing, or without an end has given no answer; the next decision's arguments tell it.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeVar
from urllib.parse import parse_qsl

import msgspec
from msgspec import Meta, Struct

from weaverant.compound import Inside
from weaverant.errors import StepFailed, UserError
from weaverant.message import Reply, Request, Sampling, Usage, digest
from weaverant.routing.observed import Observed
from weaverant.routing.pool import Pool
from weaverant.workflow import now, step


class Asked(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Options that all compounds of a pool have."""

    budget: Annotated[float, Meta(ge=0.0)] = 0.0
    """US dollars for one call of the compound: no member is asked that might exceed what is left of it; 0: no limit."""
    deadline: Annotated[float, Meta(ge=0.0)] = 0.0
    """Seconds that a member may take; 0: as long as its server may."""
    quorum: Annotated[int, Meta(ge=0)] = 0
    """How many of those asked together have to be done before the others are cut off, each after twice the 95th
    percentile of its latency, see `PATIENCE`; 0: all but one. All of them: nobody is cut off."""

    def calls(self, members: int) -> int:
        """Calls for one request at most, of a pool with so many members, where everybody answers."""
        return 1


Wanted = TypeVar("Wanted", bound=Asked)


def options_of(kind: str, text: str, wanted: type[Wanted]) -> Wanted:
    """The options of `KIND:FILE?NAME=VALUE&...`; `UserError` for what is none."""
    try:
        pairs = parse_qsl(text, keep_blank_values=True, strict_parsing=bool(text))
        if twice := sorted({name for name, _ in pairs if sum(name == other for other, _ in pairs) > 1}):
            raise ValueError(f"{twice[0]!r} is given twice")
        found = msgspec.convert(dict(pairs), wanted, strict=False)
        if endless := [name for name, _ in pairs if not _finite(getattr(found, name))]:
            raise ValueError(f"{endless[0]!r} has to be a finite number")
        return found
    except (ValueError, msgspec.ValidationError) as error:
        names = ", ".join(wanted.__struct_fields__)
        raise UserError(
            f"{kind}: the options {text!r} are none: {error}. Expected some of {names}, joined by &"
        ) from None


def _finite(value: object) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


LEAST_PATIENCE = 0.5
"""Seconds that nobody is cut off before, whatever was measured: it would save nothing, and lose an answer."""

SLACK = 2.0
"""Of a measured 95th percentile. At the percentile itself one call in twenty would be cut off and paid for that was
merely slow, so that a layer of six lost an answer in every fourth question; and more where load has just risen."""

PATIENCE = 60.0
"""Seconds that a straggler is waited for at least of whom no 95th percentile is known yet."""

MORE_PATIENT = 10.0
"""How many times as long as the quorum took such a straggler may take."""


class Call(Struct, frozen=True):
    """One question to one member; `key` tells it from others that are asked together."""

    key: str
    member: str
    request: Request


class Admitted(Struct, frozen=True):
    """A decision: who is asked, and under which conditions."""

    ask: tuple[str, ...]
    """Keys, in the order in which they were proposed."""
    refused: dict[str, str] = {}
    """By key, why not."""
    bound: dict[str, float] = {}
    """By key, the most that it may cost, in US dollars; 0 without a budget."""
    patience: dict[str, float] = {}
    """By key, the seconds after which it is cut off once there is a quorum, where its member was measured."""


@dataclass
class Heard:
    """What came of asking several."""

    replies: dict[str, Reply] = field(default_factory=dict[str, Reply])
    """Answers, by key, in the order of asking."""
    missed: dict[str, str] = field(default_factory=dict[str, str])
    """Why the others gave none."""
    cut: dict[str, Reply] = field(default_factory=dict[str, Reply])
    """Those among them that ran into their limit of tokens."""


class Asking:
    """One call of a compound: what it has asked, and what that has cost."""

    def __init__(self, inside: Inside, pool: Pool, observed: Observed, options: Asked) -> None:
        self._inside = inside
        self._pool = pool
        self._observed = observed
        self._options = options
        self._held = 0.0
        """The bounds of calls in flight."""
        self._lost = 0.0
        """The bounds of calls that were cut off: what nobody knows counts as spent."""
        self._unbilled = 0.0
        """What calls took by their members' cards that no reply said the cost of."""
        self._given_up: set[str] = set()
        self.missed: dict[str, str] = {}
        """Why members gave no answer, so far."""
        self._answered = False
        """Whether any member was there, be it with an error."""

    @property
    def spent(self) -> float:
        """US dollars, by all calls in this branch that have ended; of members that are priced on their cards alone by
        those."""
        return self._inside.used().cost + self._unbilled

    @property
    def left(self) -> float | None:
        """US dollars; None without a budget."""
        if not self._options.budget:
            return None
        return self._options.budget - self.spent - self._held - self._lost

    async def admit(self, what: str, calls: Sequence[Call], most: int = 0, *, breakers: bool = True) -> Admitted:
        """Decide, in a recorded step, which of these may be asked now, at `most` so many of them; 0: all. Without
        `breakers` past failures do not matter."""
        at, left = now().timestamp(), self.left

        async def admit(asked: dict[str, Any]) -> Any:
            return msgspec.to_builtins(self.admitted(calls, most, at, left, breakers))

        admit.__qualname__ = "admit"
        told = {
            "for": what,
            "calls": {call.key: request_digest(call.request) for call in calls},
            "left": left,
            "missed": dict(self.missed),
        }
        return msgspec.convert(await step(admit, told), Admitted)

    async def ask_all(self, calls: Sequence[Call], admitted: Admitted) -> Heard:
        """Ask those that were admitted, at once. Who is late is cut off: see `Asked`."""
        chosen = [call for call in calls if call.key in admitted.ask]
        loop = asyncio.get_running_loop()
        began = loop.time()
        tasks = {call.key: asyncio.create_task(self._ask(call, admitted.bound.get(call.key, 0.0))) for call in chosen}
        waiting, heard, found = dict(tasks), Heard(), dict[str, Reply | StepFailed]()
        quorum = self._options.quorum or len(tasks) - 1
        members, enough = {call.key: call.member for call in chosen}, None
        try:
            while waiting:
                if enough is None and 0 < quorum <= len(found) and any(map(_is_answer, found.values())):
                    enough = loop.time() - began
                limits = {key: self._limit(members[key], admitted.patience.get(key), enough) for key in waiting}
                late = [key for key, limit in limits.items() if limit is not None and loop.time() - began >= limit]
                if late:
                    for key in late:
                        self._given_up.add(key)
                        task = waiting.pop(key)
                        task.cancel()
                        await asyncio.wait([task])
                        heard.missed[key] = f"late: cut off after {limits[key]:.3g} s"
                    continue
                until = min((limit for limit in limits.values() if limit is not None), default=None)
                timeout = None if until is None else began + until - loop.time()
                done, _ = await asyncio.wait(waiting.values(), timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
                for key in [key for key, task in waiting.items() if task in done]:
                    found[key] = waiting.pop(key).result()
        finally:
            for task in waiting.values():
                task.cancel()
        for key in tasks:
            if key in found:
                _sort_in(heard, key, found[key])
        self.missed |= heard.missed
        return heard

    async def one(self, what: str, calls: Sequence[Call]) -> tuple[Call, Reply] | None:
        """The first of these that gives an answer, tried one after the other; before each it is decided anew who may be
        asked. None where nobody does. A reply that was cut off is taken where there is no other."""
        left, cut = list(calls), None
        while left:
            admitted = await self.admit(what, left, most=1)
            self.missed |= {key: why for key, why in admitted.refused.items() if key not in self.missed}
            if not admitted.ask:
                break
            call = next(call for call in left if call.key == admitted.ask[0])
            left.remove(call)
            heard = await self.ask_all([call], admitted)
            if call.key in heard.replies:
                return call, heard.replies[call.key]
            if call.key in heard.cut and cut is None:
                cut = call, heard.cut[call.key]
        return cut

    async def insisted(self, calls: Sequence[Call]) -> Reply | None:
        """Where none of those that were asked was there: the reply of the first that can be asked, whatever its breaker
        says. If nobody is there still the run stops, as it does for one model, and no row fails for an outage. None
        where somebody was there, or another compound can do without this one."""
        if self._answered or self._inside.optional:
            return None
        admitted = await self.admit("nobody was there", calls, most=1, breakers=False)
        chosen = [call for call in calls if call.key in admitted.ask]
        return await self._inside.ask(chosen[0].member, chosen[0].request) if chosen else None

    def nobody(self, what: str) -> StepFailed:
        """What a call fails with that found nobody to answer; `unavailable` tells the compound around this one that it
        may be an outage."""
        why = "; ".join(f"{key}: {text}" for key, text in self.missed.items())
        absent = self._inside.optional and not self._answered
        return StepFailed("unavailable" if absent else "pool", f"no member of the pool could {what}: {why}")

    def _limit(self, member: str, patience: float | None, enough: float | None) -> float | None:
        """Seconds that a call may take, where so many have made a quorum `enough`; None: no limit."""
        limits = [self._options.deadline] if self._options.deadline else []
        if enough is not None and patience is not None:
            limits.append(patience)
        elif enough is not None and member not in self._pool.batched:
            limits.append(max(PATIENCE, MORE_PATIENT * enough))
        return min(limits, default=None)

    def admitted(
        self, calls: Sequence[Call], most: int, at: float, left: float | None, breakers: bool = True
    ) -> Admitted:
        """The decision itself, on what is known right now. For recorded steps alone."""
        ask: list[str] = []
        refused: dict[str, str] = {}
        bound: dict[str, float] = {}
        for call in calls:
            if most and len(ask) == most:
                break
            why = self._pool.refuses(call.member, call.request)
            worst = 0.0
            if not why and left is not None:
                found = self._pool.worst(call.member, call.request)
                worst = found or 0.0
                if found is None:
                    why = "nobody can say what the call may cost at most: it takes a price and max_tokens"
                elif worst > left:
                    why = f"it may cost ${worst:.3g}, and ${max(0.0, left):.3g} is left of the budget"
            if not why and breakers and not self._observed.admit(call.member, at):
                why = "its breaker is open: its last calls failed"
            if why:
                refused[call.key] = why
                continue
            ask.append(call.key)
            bound[call.key] = worst
            left = None if left is None else left - worst
        members = {call.key: call.member for call in calls}
        p95 = {key: self._observed.of(members[key]).p95 for key in ask}
        patience = {key: max(LEAST_PATIENCE, SLACK * seconds) for key, seconds in p95.items() if seconds is not None}
        return Admitted(tuple(ask), refused, bound, patience)

    async def _ask(self, call: Call, bound: float) -> Reply | StepFailed:
        """Ask, and note what it took."""
        loop, before = asyncio.get_running_loop(), self._inside.used()
        began = loop.time()
        self._held += bound
        try:
            reply = await self._inside.ask(call.member, call.request, optional=True)
        except StepFailed as failure:
            self._answered = self._answered or failure.kind != "unavailable"
            used = self._paid(call.member, _since(before, self._inside.used()))
            self._observed.failed(call.member, now().timestamp(), used.cost)
            return failure
        except asyncio.CancelledError:
            self._lost += bound
            if call.key in self._given_up:
                seconds, known = loop.time() - began, self._observed.of(call.member).p95
                seconds = (
                    seconds if known is None else min(seconds, known)
                )  # else each cut would make the next one later
                self._observed.failed(call.member, now().timestamp(), bound, seconds)
            raise
        finally:
            self._held -= bound
        self._answered = True
        used = self._paid(call.member, _since(before, self._inside.used()))
        self._observed.answered(call.member, now().timestamp(), loop.time() - began, used)
        return reply

    def _paid(self, member: str, used: Usage) -> Usage:
        """With what its card says that it cost, where nothing else does."""
        more = self._pool.unbilled(member, used)
        self._unbilled += more
        return msgspec.structs.replace(used, cost=used.cost + more)


def no_answer(reply: Reply) -> str:
    """Why a reply is no answer; empty where it is one."""
    if reply.finish == "length":
        return f"babbles: its reply had no end after {reply.usage.completion_tokens:,} tokens"
    if reply.finish == "content_filter":
        return "its server kept the reply back"
    if not reply.text.strip() and not reply.message.tool_calls:
        return "an empty reply"
    return ""


def plainly(request: Request, temperature: float | None = None) -> Request:
    """The request as a member is to answer it that only proposes: one text, with the same sampling. The temperature
    holds where the asking agent sets none."""
    asked = request.sampling
    sampling = msgspec.structs.replace(
        asked, n=1, logprobs=False, top_logprobs=0, temperature=_either(asked.temperature, temperature)
    )
    return msgspec.structs.replace(request, tools=(), output=None, sampling=sampling)


def wholly(request: Request, temperature: float | None = None) -> Request:
    """The request as who answers in the end gets it, with the output that is wanted."""
    sampling: Sampling = request.sampling
    sampling = msgspec.structs.replace(sampling, temperature=_either(sampling.temperature, temperature))
    return msgspec.structs.replace(request, sampling=sampling)


def request_digest(request: Request) -> str:
    """What tells a request's messages from others, short."""
    return digest(b"".join(message.digest for message in request.messages)).hex()[:16]


def by_prior(pool: Pool, names: Sequence[str] | Mapping[str, Any] = ()) -> list[str]:
    """The members (or these of them), the likeliest to be right first; of equals the cheapest by the sum of its prices,
    then by name. A price that nobody knows comes last."""

    def place(name: str) -> tuple[float, float, str]:
        price = pool.price(name)
        return -pool.prior(name), math.inf if price is None else sum(price), name

    return sorted(names or pool.members, key=place)


def _either(given: float | None, other: float | None) -> float | None:
    return other if given is None else given


def _is_answer(found: Reply | StepFailed) -> bool:
    return isinstance(found, Reply) and not no_answer(found)


def _sort_in(heard: Heard, key: str, found: Reply | StepFailed) -> None:
    if isinstance(found, StepFailed):
        heard.missed[key] = str(found)
    elif why := no_answer(found):
        heard.missed[key] = why
        if found.finish == "length" and found.text.strip():
            heard.cut[key] = found
    else:
        heard.replies[key] = found


def _since(before: Usage, after: Usage) -> Usage:
    """What was used meanwhile."""
    differences = (new - old for new, old in zip(_numbers(after), _numbers(before), strict=True))
    return Usage(*(max(0, each) for each in differences))  # pyright: ignore[reportArgumentType]


def _numbers(usage: Usage) -> tuple[Any, ...]:
    return msgspec.structs.astuple(usage)
