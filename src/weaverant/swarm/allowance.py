"""A peer's part of a run's budget: its allowance, that it asks the office to raise, and gives back where asked to.

The office counts a peer's allowance as spent until the peer says that it has less, and a peer says so only once its
journal does, durably: what it gives back can be given to others at once, whatever is killed next.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress

from weaverant.errors import JournalError
from weaverant.events import Shortfall, TaskEvent
from weaverant.journal import Reservations
from weaverant.protocols import Clock
from weaverant.runtime.budget import ROUNDING, Budget, Write
from weaverant.swarm.messages import Given, Money

ASK_AGAIN_S = 0.02
"""Seconds after which a peer asks again that got too little, or that is asked to give back."""


class Allowance(Budget):
    """A `Budget` whose cap moves: what the office allows, and what came along with tasks of peers that have ended.

    That money is in their journals, and is counted there; here it brings its own room. Where money is lacking the
    run does not stop: the office is asked.
    """

    def __init__(self, cap: float, flush: Callable[[], Awaitable[None]], clock: Clock) -> None:
        """`cap` is the run's: where it is infinite nobody is asked for anything. `flush` returns once all that was
        journaled is durable."""
        super().__init__(math.inf if cap == math.inf else 0.0, clock=clock)
        self.urgent: Callable[[], None] = lambda: None
        """Called when the office should be asked soon."""
        self._flush = flush
        self._serial = 0
        self._allowed = 0.0
        """The allowance, as the office knows it."""
        self._giving = 0.0
        """The part of it that is not used any more, and of which the office is to be told."""
        self._given = 0.0
        """The part of that which is durable."""
        self._unsure = 0.0
        """The part of which nobody has made sure yet that it is."""
        self._brought = 0.0
        self._part = math.inf
        """What it may have for calls in flight, where others have too little: what comes free beyond that is theirs."""
        self._asked = False
        self._pause = 0.0
        self._flushing: asyncio.Task[None] | None = None

    def attach(self, write: Write, stop: Callable[[], None]) -> None:
        """It is the office that stops a run for money."""
        super().attach(write, self._ask)

    def bring(self, events: Iterable[TaskEvent]) -> None:
        """A task comes from the journal of a peer that has ended, or of an earlier session. What was set aside for its
        calls in flight is spent there, and is closed in this journal when they end."""
        left = Reservations().follow(events)
        if left.open:
            self._brought += left.dollars
            self.take_over(left)
            self._set_cap()

    def tell(self) -> Money | None:
        """For the office, in a beat. Nothing may be heard from then on but the answer to that."""
        if self.cap == math.inf:
            return None
        self._allowed -= self._given
        self._giving -= self._given
        self._given = 0.0
        self._allowed = max(self._allowed, self.spent + self._set_aside - self._brought)  # costs may accrue by the hour
        self._set_cap()
        self._asked = False
        self._serial += 1
        floor = self.spent + self._unclaimed + self._idle - self._brought
        waiting = [wish for _, _, wish in self._wishes if wish.waits]
        if not waiting:
            return Money(self._serial, self._allowed, floor)
        first = self._wishes[0][2]
        most = max(wish.account.known + wish.more for wish in waiting)
        return Money(
            self._serial, self._allowed, floor, self.spent + self._set_aside + first.more - self.cap, first.more,
            sum(wish.more for wish in waiting), Shortfall(len(waiting), first.account.known + first.more, most),
        )  # fmt: skip

    def heard(self, given: Given) -> None:
        """The office's answer."""
        self._allowed = max(self._allowed, given.allowance)
        self._set_cap()
        self._part = math.inf
        self._serve()
        self._part = given.part if given.recall else math.inf
        if given.recall:
            self._give_back(math.inf)
        self._pause = ASK_AGAIN_S if self._wishes or given.recall else 0.0
        if given.recall:
            self._ask()

    def _serve(self) -> None:
        if self._part < math.inf:
            self._give_back(self.cap - self.spent - self._unclaimed - self._idle - self._part)
        super()._serve()
        if self._wishes:
            self._ask()

    def _ask(self) -> None:
        if not self._asked and not self._parked:
            self._asked = True
            asyncio.get_running_loop().call_later(self._pause, self.urgent)

    def _give_back(self, most: float) -> None:
        """What is neither spent nor set aside, up to so much."""
        spare = min(most, self.cap - self.spent - self._set_aside)
        if spare > 0.0:
            self._giving += spare
            self._unsure += spare
            self._set_cap()
            if self._flushing is None:
                self._flushing = asyncio.get_running_loop().create_task(self._make_sure())

    async def _make_sure(self) -> None:
        """That it is free may stand in events that are not durable yet."""
        with suppress(JournalError):
            while dollars := self._unsure:
                self._unsure = 0.0
                await self._flush()
                self._given += dollars
                self.urgent()
        self._flushing = None

    def _set_cap(self) -> None:
        self.cap = self._allowed - self._giving + self._brought if self.cap < math.inf else math.inf
        self._most = self.cap * (1 + ROUNDING)
