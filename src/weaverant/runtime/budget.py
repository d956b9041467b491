"""A run's budget: before a request is sent, the most it can cost is set aside in the journal.

What is spent and what is set aside never pass the cap together. Where a call's money does not fit, the call waits for
room, the oldest row's first; where nothing in flight can make enough room, the run stops, to be resumed with more.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count

from weaverant.errors import StepFailed
from weaverant.events import NO_USAGE, CostReserved, Shortfall
from weaverant.journal import Reservations
from weaverant.message import Request, Usage
from weaverant.protocols import Clock, Engine
from weaverant.step import Ask, StepKey

Place = tuple[str, StepKey]
"""A step of the run: its task and its key there."""

Write = Callable[[CostReserved, Callable[[], None] | None], None]
"""Journals the event, and calls back when it is durable."""

ROUNDING = 1e-12
"""Share of the cap by which sums of floats may miss it: three times $0.10 is more than $0.30."""


class Account:
    """One model step's money. To its engine it is a `Purse`."""

    __slots__ = ("_budget", "_turn", "claims", "handle", "here", "lost", "name", "order", "place", "wish")

    def __init__(self, budget: Budget, place: Place, name: str) -> None:
        self.place = place
        self.name = name
        self.order = 0
        self.handle: asyncio.Task[None] | None = None
        """The call, once it is in flight."""
        self.lost = 0.0
        """Set aside by sessions that were killed: it counts as spent."""
        self.claims: dict[str, float] = {}
        """Set aside by earlier sessions for purchases that this one may find again."""
        self.here: dict[str, float] = {}
        """Set aside by this session, by claim, before requests that may have been sent."""
        self.wish: Wish | None = None
        self._budget = budget
        self._turn = asyncio.Lock()

    @property
    def known(self) -> float:
        """What the step's requests may have cost, `lost` apart."""
        return sum(self.here.values()) + sum(self.claims.values())

    @property
    def held(self) -> float:
        """All that the step's end sets free."""
        return self.known + (self.wish.more if self.wish is not None and self.wish.granted else 0.0)

    async def afford(self, dollars: float, claim: str = "") -> None:
        """See `Purse`."""
        async with self._turn:
            if claim in self.claims:
                self.here[claim] = self.claims.pop(claim)
            more = dollars - sum(self.here.values())
            if more > 0:
                await self._budget.set_aside(self, more, claim)
                self.here[claim] = self.here.get(claim, 0.0) + more

    def take_back(self, kept: float = 0.0) -> None:
        """The call is cancelled before anything was sent that could cost more than what is `kept`: no more than that is
        set aside for it from now on."""
        self._budget.take_back(self, kept)

    def affords(self, dollars: float) -> bool:
        """See `Purse`."""
        more = dollars - sum(self.here.values())
        return more <= 0.0 or self._budget.has_room(more)


class Wish:
    """A call's wish for `more` dollars. `durable` is done once they are set aside in the journal."""

    __slots__ = ("account", "claim", "durable", "granted", "held", "more", "waits")

    def __init__(self, account: Account, more: float, claim: str) -> None:
        self.account = account
        self.more = more
        self.claim = claim
        self.held = account.held
        self.granted = False
        self.waits = True
        self.durable: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def written(self) -> None:
        if not self.durable.done():
            self.durable.set_result(None)


class Budget:
    """The cap in US dollars, what all sessions have spent, and what is set aside for calls in flight.

    With a `cap` of infinity no call gets a purse: it only remembers what earlier sessions have set aside.
    """

    def __init__(self, cap: float, spent: float = 0.0, left: Reservations | None = None, clock: Clock = time) -> None:
        """`spent` is what the recorded steps cost, `left` what was set aside for others."""
        self.cap = cap
        self._clock = clock
        self.spent = spent
        """What ended calls cost, and what was set aside for calls that were cut off."""
        self._most = cap * (1 + ROUNDING)
        self._accounts: dict[Place, Account] = {}
        self._set_aside = 0.0
        self._unclaimed = 0.0
        """The part of it that is for purchases whose calls are not in flight yet."""
        self._idle = 0.0
        """The part of it that belongs to calls which wait for more."""
        self._wishes: list[tuple[int, int, Wish]] = []
        self._arrivals = count()
        self._parked = False
        self.short: Shortfall | None = None
        """What it lacked when the run stopped."""
        self._bounded: set[str] = set()
        self._write: Write
        self._stop: Callable[[], None]
        self.take_over(left or Reservations())

    def attach(self, write: Write, stop: Callable[[], None]) -> None:
        """`stop` ends the run in order: it calls `park`."""
        self._write = write
        self._stop = stop

    @property
    def exceeded(self) -> bool:
        return self.spent > self._most

    @property
    def waiting(self) -> int:
        """Calls that wait for money."""
        return sum(wish.waits for _, _, wish in self._wishes)

    def has_room(self, more: float) -> bool:
        """Whether `more` dollars would be set aside at once."""
        return not self._parked and not self.waiting and self.spent + self._set_aside + more <= self._most

    def purse(self, task: str, order: int, ask: Ask, engine: Engine, request: Request) -> Account | None:
        """For a call that begins now. `StepFailed` where nobody can say what it costs at most."""
        if self.cap == math.inf:
            return None
        if ask.spec not in self._bounded:
            if why := unbounded(engine, request):
                raise StepFailed("unbounded", why)
            self._bounded.add(ask.spec)
        account = self._account((task, ask.key), ask.name)
        account.order, account.handle = order, ask.handle
        self._unclaimed -= sum(account.claims.values())
        return account

    def charge(self, task: str, key: StepKey, usage: Usage | None) -> Usage:
        """The step has ended: what it is charged. Where nobody knows its usage, that is all that was set aside."""
        account = self._accounts.pop((task, key), None)
        lost = 0.0 if account is None else account.lost
        if account is not None:
            usage = _bound(account.known) if usage is None else usage
            self._close(account)
        used = usage or NO_USAGE
        self.spent += used.cost
        if self.exceeded and not self._parked:
            self._stop()
        return used + _bound(lost) if lost else used

    def serve(self) -> None:
        """Give what ended steps have set free to calls that wait. Called once their ends are written: a crash between
        the two must not leave more set aside than there is."""
        self._serve()

    def park(self) -> None:
        """The run stops: calls that wait for money end where they are, unrecorded, and are asked again some day."""
        self._parked = True
        wishes, self._wishes = self._wishes, []
        if waiting := [wish.account.known + wish.more for _, _, wish in sorted(wishes) if wish.waits]:
            known = self.short or Shortfall(0, waiting[0], 0.0)
            self.short = Shortfall(known.calls + len(waiting), known.first, max(known.most, *waiting))
        for _, _, wish in wishes:
            if wish.waits:
                self._drop(wish)
                if wish.account.handle is not None:
                    wish.account.handle.cancel()

    def take_back(self, account: Account, kept: float = 0.0) -> None:
        """Nothing was sent for what the step's call has set aside here, but for what is `kept`. What outlives the
        process stays claimed."""
        dollars = account.here.get("", 0.0)
        if self._accounts.get(account.place) is account and dollars > kept:
            account.here[""] = kept
            self._set_aside -= dollars - kept
            self._note(account, "", kept)
            self._serve()

    async def set_aside(self, account: Account, more: float, claim: str) -> None:
        """Return once `more` dollars are set aside for the step, durably."""
        if self._accounts.get(account.place) is not account:
            raise asyncio.CancelledError("the step has ended, so its money has been accounted for")
        wish = account.wish = Wish(account, more, claim)
        self._idle += wish.held
        heappush(self._wishes, (account.order, next(self._arrivals), wish))
        self._serve()
        if self._parked:
            self.park()
        try:
            await wish.durable
            if self._accounts.get(account.place) is not account:
                raise asyncio.CancelledError("the step has ended, and its call is about to hear of it")
        except asyncio.CancelledError:  # nothing has been sent for this money
            if self._accounts.get(account.place) is account and wish.granted:
                self._set_aside -= wish.more
                self._note(account, claim, account.here.get(claim, 0.0))
            self._drop(wish)
            self._serve()
            raise
        finally:
            account.wish = None

    def take_over(self, left: Reservations) -> None:
        """What others have set aside for steps that are asked again here: their ends close it."""
        for (task, path, fingerprint, occurrence), claims in left.open.items():
            for claim, event in claims.items():
                account = self._account((task, (path, fingerprint, occurrence)), event.name)
                if claim:
                    account.claims[claim] = event.dollars
                    self._unclaimed += event.dollars
                    self._set_aside += event.dollars
                else:
                    account.lost = event.dollars
                    self.spent += event.dollars

    def _account(self, place: Place, name: str) -> Account:
        account = self._accounts.get(place)
        if account is None:
            account = self._accounts[place] = Account(self, place, name)
        return account

    def _close(self, account: Account) -> None:
        if account.handle is None:
            self._unclaimed -= sum(account.claims.values())
        # What many additions and subtractions leave of a sum is not exact; with nothing set aside it is zero again.
        self._set_aside = self._set_aside - account.held if self._accounts else 0.0
        if account.wish is not None:
            self._drop(account.wish)

    def _serve(self) -> None:
        """Give to those that wait, in their order, while there is room."""
        while self._wishes:
            wish = self._wishes[0][2]
            if wish.waits:
                if self.spent + self._set_aside + wish.more > self._most:
                    if self.spent + self._unclaimed + self._idle + wish.more > self._most and not self._parked:
                        self._stop()
                    return
                self._grant(wish)
            heappop(self._wishes)

    def _grant(self, wish: Wish) -> None:
        account, claim = wish.account, wish.claim
        self._drop(wish)
        wish.granted = True
        self._set_aside += wish.more
        self._note(account, claim, wish.more + account.here.get(claim, 0.0), wish.written)

    def _note(self, account: Account, claim: str, dollars: float, durable: Callable[[], None] | None = None) -> None:
        """Journal what is set aside now, besides what was lost before."""
        task, (path, fingerprint, occurrence) = account.place
        dollars += 0.0 if claim else account.lost
        event = CostReserved(task, path, fingerprint, occurrence, dollars, claim, self._clock.time(), account.name)
        self._write(event, durable)

    def _drop(self, wish: Wish) -> None:
        """It waits no longer."""
        if wish.waits:
            wish.waits = False
            self._idle -= wish.held


def unbounded(engine: Engine, request: Request) -> str:
    """Why nobody can say what the request costs at most; empty where it can be said, or where it costs nothing."""
    ask: Callable[[Request], str] | None = getattr(engine, "unbounded", None)
    return "" if ask is None else ask(request)


def _bound(dollars: float) -> Usage:
    return Usage(cost=dollars, requests=0, unsure=dollars) if dollars else NO_USAGE
