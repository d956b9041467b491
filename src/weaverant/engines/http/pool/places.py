"""Who gets a place at which replica, and when: at once where there is room, else in the queue's order.

Whatever makes room hands it on: a request's end to that replica's next call, and one timer, for the earliest moment
at which a pause, a probe or a rate limit lets a call through. While calls wait, no replica has room for the first.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import cast

from weaverant.engines.http.attempt import Attempt, Trouble
from weaverant.engines.http.pool.balance import Balance
from weaverant.engines.http.pool.call import Call
from weaverant.engines.http.pool.queue import Queue
from weaverant.engines.http.pool.replica import Place, Replica
from weaverant.errors import StepFailed
from weaverant.message import Reply
from weaverant.protocols import Permit
from weaverant.step import Turn

NEAR = 8
"""Waiting calls that are looked at for one that is at home where there is room."""

MOST_PASSED = 8
"""Calls that may pass an older one for this."""


class Places:
    """`timeout` is how many seconds a call waits while no replica can be used at all."""

    def __init__(self, timeout: float) -> None:
        self.balance = Balance()
        self._timeout = timeout
        self._queue = Queue()
        self._asleep: set[Call] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._due = math.inf
        self._dry_since: float | None = None
        """Since when no replica can be used and none has answered."""
        self._last: Trouble | None = None
        self.replied_at = -math.inf
        """When a request was last replied to."""

    def __len__(self) -> int:
        """How many calls wait."""
        return self._queue.size + len(self._asleep)

    def enter(self, call: Call, now: float) -> Place | None:
        """A place at once; None where the call has to wait."""
        if self._queue.size:
            return None
        replica = self.balance.choose(call, now)
        return None if replica is None else self.take(replica, call, now)

    async def wait(self, call: Call) -> Place:
        """A place, when it is the call's turn. A call that has been sent waits until its deadline at most."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Place] = loop.create_future()
        call.future = future
        self._queue.push(call)
        now = time.monotonic()
        if self._queue.head() is call:  # it need not wait for what the one before it waits for
            self._come_back(now)
        timer = loop.call_later(max(0.0, call.deadline - now), self._late, call) if call.requests else None
        turn = call.turn
        if turn is not None:
            turn.waiting = True
        cut_off = False
        try:
            return await future
        except asyncio.CancelledError:
            cut_off = True
            if future.cancelled():
                self._queue.gone()
                self._come_back(time.monotonic())
            elif future.exception() is None:  # it was given a place in the same moment
                self.leave(future.result(), call, None)
            raise
        finally:
            if turn is not None:
                turn.waiting = cut_off  # for good: it has cost nothing
            if timer is not None:
                timer.cancel()

    async def sleep(self, call: Call, seconds: float) -> None:
        """Wait apart from the others, until it is time to try again."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        call.future = future
        timer = loop.call_later(seconds, lambda: future.done() or future.set_result(None))
        self._asleep.add(call)
        try:
            with _marked(call.turn):
                await future
        finally:
            self._asleep.discard(call)
            timer.cancel()

    async def hold(self, call: Call, permit: Permit) -> None:
        """Wait until anything may be asked again. It is no part of the call's time."""
        began = time.monotonic()
        call.future = asyncio.ensure_future(permit.wait())
        with _marked(call.turn):
            await call.future
        call.deadline += time.monotonic() - began

    def leave(self, place: Place, call: Call, attempt: Attempt | None) -> float:
        """The place is free; None: the request was dropped by us. Gives the dollars of its time, see `Replica`."""
        now = time.monotonic()
        place.left = True
        replica, queue = place.replica, self._queue
        dollars = replica.give_back(place, call, attempt, now)
        queue.end(call.request.agent, place.charged, now - place.began)
        if attempt is not None:
            if isinstance(attempt.outcome, Reply):
                self.replied_at, self._dry_since = now, None
            else:
                self._note(attempt.outcome, now)
        if queue.size and replica.drained is None:
            self._fill(replica, now)
        return dollars

    def ended(self, call: Call, trouble: Trouble, why: str = "") -> StepFailed:
        """The call's failure by its last trouble."""
        return call.ended(trouble, why, away=time.monotonic() - self.replied_at >= self._timeout)

    def changed(self) -> None:
        """A replica came, or has more room than it had."""
        self._fill_all(time.monotonic())

    def fail(self, why: Callable[[Call], StepFailed]) -> None:
        """Fail all that wait, and all that are between two tries."""
        for call in self._queue.waiting():
            self._fail(call, why(call))
        for call in self._asleep:
            if call.future is not None and not call.future.done():
                call.future.set_exception(why(call))

    def close(self) -> None:
        """Stop the timer. Calls may come again."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._due, self._dry_since = None, math.inf, None

    def take(self, replica: Replica, call: Call, now: float) -> Place:
        """A place at that replica, which has room."""
        place = replica.take(call, now)
        place.charged = self._queue.begin(call.request.agent)
        return place

    def _fill(self, replica: Replica, now: float) -> None:
        """Give the replica's room to the calls whose turn it is."""
        queue, many, handed = self._queue, len(self.balance.replicas) > 1, False
        while (call := queue.head()) is not None and replica.ready(call, now):
            handed = True
            native = self._native(replica, call, now) if many else call
            self._hand(replica, native, now)
            if native is call:
                queue.pop()
            else:
                queue.gone()
        if call is not None:
            # Another call than before may find room elsewhere: tokens a minute let a short one through sooner.
            self._arm(now + (self.balance.wait(call, now) if handed and many else replica.wait(call, now)))
            if self._dry_since is not None:
                self._look_ahead(now)

    def _native(self, replica: Replica, head: Call, now: float) -> Call:
        """The call that goes to the replica in the head's turn: the head, or one of the next that is at home there."""
        if head.requests or head.passed >= MOST_PASSED or self.balance.at_home(head, replica):
            return head
        for call in self._queue.next(NEAR):
            if self.balance.at_home(call, replica) and replica.ready(call, now):
                head.passed += 1
                return call
        return head

    def _fill_all(self, now: float) -> None:
        while (call := self._queue.head()) is not None:
            replica = self.balance.choose(call, now)
            if replica is None:
                self._arm(now + self.balance.wait(call, now))
                break
            self._queue.pop()
            self._hand(replica, call, now)

    def _hand(self, replica: Replica, call: Call, now: float) -> None:
        future = cast("asyncio.Future[Place]", call.future)
        future.set_result(self.take(replica, call, now))

    def _arm(self, at: float) -> None:
        if at < self._due:
            if self._timer is not None:
                self._timer.cancel()
            self._due = at
            delay = max(0.0, at - time.monotonic())
            self._timer = asyncio.get_running_loop().call_later(delay, self._tick)

    def _tick(self) -> None:
        self._timer, self._due = None, math.inf
        now = time.monotonic()
        self._fill_all(now)
        self._expire(now)

    def _note(self, trouble: Trouble, now: float) -> None:
        if trouble.blame == "call":
            self._dry_since = None
            return
        self._last = trouble
        if self._dry_since is None and self.balance.soonest(now) > 0.0:
            self._dry_since = now

    def _look_ahead(self, now: float) -> None:
        """Come back when calls will have waited long enough for a pool that cannot be used."""
        if self._dry_since is not None:
            self._arm(max(now + 1.0, self._dry_since + self._timeout))

    def _expire(self, now: float) -> None:
        """Fail what has waited for `timeout` seconds during which no replica could be used."""
        dry, last = self._dry_since, self._last
        if dry is None or last is None or not self._queue.size:
            return
        if dry + self._timeout <= now and self.balance.soonest(now) > 0.0:
            for call in self._queue.waiting():
                if not call.requests and call.since + self._timeout <= now:
                    why = f"; no server could be used for the {self._timeout:g} s that the call waited"
                    self._fail(call, self.ended(call, last, why))
        self._look_ahead(now)

    def _come_back(self, now: float) -> None:
        """Look again when there may be room for the first of the queue, which may be another one than before."""
        call = self._queue.head()
        if call is not None:
            self._arm(now + self.balance.wait(call, now))
            self._look_ahead(now)

    def _late(self, call: Call) -> None:
        if call.waiting and call.last is not None:
            why = f"; no place for another try within its {self._timeout:g} s"
            self._fail(call, self.ended(call, call.last, why))
            self._come_back(time.monotonic())

    def _fail(self, call: Call, failure: StepFailed) -> None:
        if call.future is not None and not call.future.done():
            call.future.set_exception(failure)
            self._queue.gone()


@contextmanager
def _marked(turn: Turn | None) -> Generator[None]:
    """The call waits meanwhile; for good where it is cut off."""
    if turn is not None:
        turn.waiting = True
    cut_off = False
    try:
        yield
    except asyncio.CancelledError:
        cut_off = True
        raise
    finally:
        if turn is not None:
            turn.waiting = cut_off
