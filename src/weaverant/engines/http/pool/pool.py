"""Replicas of one model behind one name: an engine that picks a replica, tries again, and keeps to all limits."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

from weaverant.engines.http.address import parse
from weaverant.engines.http.attempt import HELD, Attempt, Trouble
from weaverant.engines.http.pool.call import Call, backoff, patience
from weaverant.engines.http.pool.doubt import Doubt
from weaverant.engines.http.pool.hedge import Hedge
from weaverant.engines.http.pool.members import Members
from weaverant.engines.http.pool.race import Sent, race
from weaverant.engines.http.pool.replica import Place, Replica, limited
from weaverant.engines.http.pool.roster import Roster, split
from weaverant.events import Capacity
from weaverant.message import Reply, Request, Usage
from weaverant.protocols import CallContext, Note, Tally

UNAUTHORIZED = 401
"""The key is the fault, at any time: every other call would be answered alike."""


class Pool:
    """An engine over the replicas at these addresses. What each may do stands in its address, see `Options`."""

    def __init__(self, addresses: Sequence[str], roster: Roster | None = None, parts: int = 1) -> None:
        """With a `roster` the addresses are those of its file, and follow it. With `parts` the pool is one of so many
        that share what an address lets its server be asked."""
        self._members = Members([parse(address) for address in addresses], roster, parts)
        self._options = self._members.options
        self._places = self._members.places
        self._balance = self._places.balance
        self._doubt = Doubt(self._places)
        self._hedge = Hedge(self._options.hedge)
        self._running: set[asyncio.Task[Any]] = set()
        """Those that are inside `generate`."""
        self._loop: asyncio.AbstractEventLoop | None = None
        """The one it was used in last."""
        self._epoch = 0
        """How often it was closed."""
        self._given_up = False
        """A call has failed because nothing had ever answered."""
        self._failing_since = math.inf

    @classmethod
    def open(cls, spec: str) -> Pool:
        """A pool of one server."""
        return cls([spec])

    @classmethod
    def gather(cls, spec: str, parts: int = 1) -> Pool:
        """`URL,URL`, or a file of addresses that is read again whenever it changes."""
        addresses = split(spec)
        return cls([], Roster(spec), parts) if addresses is None else cls(addresses, parts=parts)

    @property
    def identity(self) -> str:
        return self._members.identity

    async def generate(self, request: Request, ctx: CallContext) -> Reply:
        now = time.monotonic()
        call = Call(request, ctx, now)
        if self._given_up and not self._balance.answered:
            call.retries = self._options.retries  # one request, to see whether somebody is there by now
        if ctx.turn is not None and ctx.purse is None:
            ctx.turn.stake = partial(self._stake, call)
        task, epoch = asyncio.current_task(), self._epoch
        assert task is not None
        if self._loop is not (loop := task.get_loop()):
            self._loop = loop
            self._places.close()
            self._members.forsake()
        self._running.add(task)
        self._members.look_after(self._busy)
        places, purse, permit = self._places, ctx.purse, ctx.permit
        try:
            while True:
                if permit is not None and not permit():
                    await places.hold(call, permit)
                    now = time.monotonic()
                place = places.enter(call, now) or await places.wait(call)
                if purse is None or await self._afford(place, call):
                    if self._hedge.on:
                        outcome, replica = await self._hedged(place, call)
                    else:
                        outcome, replica = await self._send(place, call), place.replica
                    if isinstance(outcome, Reply):
                        return call.answered(outcome)
                    if outcome is not HELD:
                        await self._take_in(call, outcome, replica)
                now = time.monotonic()
        except asyncio.CancelledError:
            if epoch != self._epoch and task.uncancel() == 0:  # by `close` and nobody else
                raise call.failed("connection", "the engine was closed") from None
            raise
        finally:
            if not call.requests:
                call.waited_until(time.monotonic())
            self._running.discard(task)

    def unbounded(self, request: Request) -> str:
        """See `Costly`."""
        return next(filter(None, (replica.unbounded(request) for replica in self._balance.replicas)), "")

    def worst(self, request: Request) -> float | None:
        """See `Priced`: at the dearest replica."""
        bounds = [replica.worst(request) for replica in self._balance.replicas]
        known = [bound for bound in bounds if bound is not None]
        return max(known, default=None) if len(known) == len(bounds) else None

    def capacity(self) -> Capacity:
        """See `Sized`: that of all replicas."""
        replicas = self._balance.replicas
        per_minute = sum(replica.limits.per_minute for replica in replicas)
        windows = [replica.window for replica in replicas]
        return Capacity(
            sum(window.size for window in windows),
            sum(window.reach for window in windows),
            per_minute if per_minute < math.inf else 0.0,
            sum(replica.address.options.hourly for replica in replicas),
        )

    def status(self) -> list[str]:
        """See `Observed`."""
        return list(map(str, self.notes()))

    def notes(self) -> list[Note]:
        """See `Observed`."""
        waiting = Tally(len(self._places), "1 waiting for a place", "{} waiting for a place")
        return [*self._members.describe(time.monotonic()), *([waiting] if waiting.count else [])]

    async def add(self, url: str) -> None:
        """One more replica, from now on. `UserError` where it would not answer as the others do."""
        await self._members.join(parse(url))

    async def remove(self, url: str) -> None:
        """The replica gets no more calls. Returns once those it has have ended."""
        await self._members.part(parse(url))

    async def close(self) -> None:
        """Calls that wait or are in flight fail. A later call opens it again."""
        self._epoch += 1
        for task in self._running - {asyncio.current_task()}:
            task.cancel()
        self._places.close()
        await self._members.close()

    async def _send(self, place: Place, call: Call) -> Reply | Trouble:
        """One request. The place is given back, whatever happens."""
        if not call.requests:
            call.deadline = place.began + self._options.timeout
            if place.began > call.since:
                call.waited_until(place.began)
        call.requests += 1
        place.sent = True
        replica, seconds = place.replica, call.deadline - place.began
        ended: Attempt | None = None
        try:
            permit = call.ctx.permit
            ended = attempt = await replica.endpoint.attempt(call.request, seconds if seconds > 0.01 else 0.01, permit)
            if attempt.outcome is HELD:  # as if it had never been
                ended, place.sent = None, False
                call.requests -= 1
        finally:
            call.cost += self._places.leave(place, call, ended)
            # Cut off, but the call may live on in its other request, or fail by `close`.
            if ended is None and place.sent:
                call.unsure += self._bound(call, replica)
        outcome = attempt.outcome
        if isinstance(outcome, Reply):
            if self._hedge.on:
                self._hedge.seen(time.monotonic() - place.began)
            if attempt.untold:
                call.unsure += max(0.0, self._bound(call, replica) - outcome.usage.cost)
        elif outcome.billed and not self._doubt.misled(outcome):
            call.unsure += self._bound(call, replica)
        return outcome

    async def _sent(self, place: Place, call: Call) -> Sent:
        return Sent(await self._send(place, call), place.replica)

    async def _take_in(self, call: Call, trouble: Trouble, replica: Replica) -> None:
        """Return when the call may queue for its next request. Raises its failure where there is to be none."""
        if call.last is None and self._doubt.misled(trouble):
            await self._reconsider(call, trouble, replica)
        seconds = self._before_next(call, trouble, replica)
        if seconds:
            await self._places.sleep(call, seconds)

    async def _reconsider(self, call: Call, trouble: Trouble, replica: Replica) -> None:
        """It looks like a wrong key, address or model; what was sent at the same time may tell better."""
        await self._doubt.settle(call, trouble, replica)
        if trouble.billed and not self._doubt.misled(trouble):
            call.unsure += self._bound(call, replica)

    async def _hedged(self, place: Place, call: Call) -> Sent:
        """A request and, where it takes long, a second one elsewhere."""
        taken = place.replica
        delay = min(self._hedge.delay(), self._options.timeout)
        try:
            won, *lost = await race(self._sent(place, call), lambda: self._second(taken, call), delay)
        finally:
            if not place.left:  # the first was cancelled before it ran a line
                self._places.leave(place, call, None)
        call.cost += sum(sent.outcome.usage.cost for sent in lost if isinstance(sent.outcome, Reply))
        return won

    async def _second(self, taken: Replica, call: Call) -> Sent | None:
        """The second request, to another replica; None where it would take another call's place, where there is no
        room for it, there or in the budget, or where it would be one too many."""
        purse, now = call.ctx.purse, time.monotonic()
        replica = None if len(self._places) else self._balance.other(call, taken, now)
        if replica is None or not self._hedge.allow():
            return None
        if purse is not None and replica.worst(call.request) is None:
            return None  # nobody can say what it would cost
        bounds = self._bound(call, taken) + self._bound(call, replica)
        if purse is not None and not purse.affords(call.cost + call.unsure + bounds):
            return None
        place = self._places.take(replica, call, now)
        if purse is not None and not await self._afford(place, call, self._bound(call, taken)):
            return None
        sent = await self._sent(place, call)
        return None if sent.outcome is HELD else sent

    def _before_next(self, call: Call, trouble: Trouble, replica: Replica) -> float:
        """Seconds until the call may queue for its next request. Raises its failure where there is to be none."""
        now = time.monotonic()
        call.last = trouble
        never_sent = trouble.blame == "network" and not trouble.billed
        call.misled = self._doubt.misled(trouble)
        call.barred = trouble.status == UNAUTHORIZED
        call.sent |= not (never_sent or call.misled or call.barred or trouble.blame == "limit")
        if not trouble.again and trouble.blame != "call":
            self._check_hope(call, trouble, replica, now)
        if not trouble.again or now >= call.deadline:
            raise self._places.ended(call, trouble)
        if trouble.blame == "call":
            return 0.0  # the same request goes again, said in another way
        waits = limited(trouble)
        if not replica.health.answered or not (waits or never_sent):
            call.retries += 1
        if not waits:
            call.failures += 1
            call.tried |= {replica}
        self._check_hope(call, trouble, replica, now)
        seconds = 0.0 if waits or self._balance.untried(call, now) else backoff(call.failures, self._options.backoff)
        wait = max(seconds, self._balance.soonest(now))
        if math.isfinite(wait) and now + wait >= call.deadline:
            why = f"; the next try, in {wait:.1f} s, would come after the call's {self._options.timeout:g} s"
            raise self._places.ended(call, trouble, why)
        return seconds

    def _check_hope(self, call: Call, trouble: Trouble, replica: Replica, now: float) -> None:
        """Raise the call's failure where it has used up its retries. Where nothing has ever answered, all calls that
        wait fail with it: each would only find out the same."""
        retries = self._options.retries
        if self._balance.answered:
            if call.retries > retries:
                raise self._places.ended(call, trouble)
            return
        self._failing_since = min(self._failing_since, now)
        out = not limited(trouble) and self._balance.soonest(now) > 0.0
        if call.retries > retries or (out and now - self._failing_since > patience(retries, self._options.backoff)):
            self._given_up = True
            why = ""
            if trouble.blame == "network" and trouble.again:
                why = f"; {replica.name} has never answered: is it up, and is its address right (often .../v1)?"
            self._places.fail(lambda waiting: self._places.ended(waiting, trouble, why))
            raise self._places.ended(call, trouble, why)

    async def _afford(self, place: Place, call: Call, besides: float = 0.0) -> bool:
        """Have the most set aside that the call can have cost once it has used its place; `besides` is for a request
        that is under way. The place is held while the journal takes it down, so that no money is set aside for calls
        that only wait; where money itself has to be waited for it is given back first, and False comes back: whoever
        has the money may be waiting for that place."""
        purse, replica = call.ctx.purse, place.replica
        assert purse is not None
        kept = False
        try:
            worst = replica.worst(call.request)
            if worst is None:
                why = replica.unbounded(call.request)
                raise call.failed("budget", f"nobody can say what the call may cost: {why}")
            total = call.cost + call.unsure + besides + worst
            if not total or purse.affords(total):
                if total:
                    await purse.afford(total)
                kept = True
        finally:
            if not kept:
                self._places.leave(place, call, None)
        if kept:
            replica.restart(place, time.monotonic())
        else:
            await self._await_money(call, total)
        return kept

    async def _await_money(self, call: Call, total: float) -> None:
        """Wait for the purse; a call that has been sent waits until its deadline at most."""
        purse, last = call.ctx.purse, call.last
        assert purse is not None
        left = max(0.0, call.deadline - time.monotonic()) if last is not None else None
        try:
            async with asyncio.timeout(left):
                await purse.afford(total)
        except TimeoutError:
            assert last is not None
            why = f"; no money for another try within its {self._options.timeout:g} s"
            raise self._places.ended(call, last, why) from None

    def _stake(self, call: Call) -> Usage:
        """See `Turn`: of a request under way nobody will know the bill."""
        under_way = 0 if call.waiting else 2 if self._hedge.on and call.requests > 1 else 1
        unsure = call.unsure + under_way * (self.worst(call.request) or 0.0)
        return Usage(requests=call.requests, cost=call.cost + unsure, unsure=unsure)

    def _bound(self, call: Call, replica: Replica) -> float:
        """The most that a request of the call cost there, whose bill nobody knows."""
        return replica.worst(call.request) or 0.0

    def _busy(self) -> bool:
        return bool(self._running)
