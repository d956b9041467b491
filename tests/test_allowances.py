"""The cap holds at every instant: real allowances and the real treasury in simulated worlds.

Peers ask, spend, die with part of what they wrote, and come anew; offices are replaced; messages get lost, or come late.
Journals and the network are simulated, and a call is on the bill as soon as it may have been sent.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest

from weaverant.events import CostReserved, StepEnded
from weaverant.journal import Reservations
from weaverant.message import Usage
from weaverant.swarm.allowance import Allowance
from weaverant.swarm.messages import Given, Money
from weaverant.swarm.treasury import AHEAD, Treasury

CAP = 1.0
MOST = 0.03
"""What a call may cost, at most."""


class SimulatedJournal:
    """What was written, and how much of it is durable."""

    def __init__(self, chance: Random) -> None:
        self._chance = chance
        self._events: list[CostReserved | StepEnded] = []
        self._durable = 0
        self._waiting: list[Callable[[], None]] = []
        self._dead = False

    def append(self, event: CostReserved | StepEnded, durable: Callable[[], None] | None = None) -> None:
        if self._dead:
            return
        self._events.append(event)
        if durable is not None:
            self._waiting.append(durable)

    async def flush(self) -> None:
        done = asyncio.Event()
        self._waiting.append(done.set)
        await done.wait()

    def sync(self) -> None:
        """One group becomes durable."""
        if not self._dead and self._chance.random() < 0.3:
            self._durable = len(self._events)
            ready, self._waiting = self._waiting, []
            for durable in ready:
                durable()

    def kill(self) -> None:
        """A part of what was not durable may be found all the same."""
        self._dead = True
        del self._events[self._chance.randint(self._durable, len(self._events)) :]

    @property
    def dollars(self) -> float:
        """What a reader makes of it."""
        return _dollars(self._events)

    @property
    def worst(self) -> float:
        """The same, or what it would be were all lost that is not durable: that may be more."""
        return max(self.dollars, _dollars(self._events[: self._durable]))


def _dollars(events: list[CostReserved | StepEnded]) -> float:
    cost, left = 0.0, Reservations()
    for event in events:
        if isinstance(event, CostReserved):
            left.add(event)
        else:
            left.close(event)
            cost += event.usage.cost
    return cost + left.dollars


class SimulatedPeer:
    def __init__(self, epoch: int, world: World) -> None:
        self.epoch, self.world = epoch, world
        self.journal = SimulatedJournal(world.chance)
        self.money = Allowance(CAP, self.journal.flush, time)
        self.money.attach(self.journal.append, lambda: None)
        self.joined: Treasury | None = None
        self._calls: set[asyncio.Task[None]] = set()
        self._number = 0

    def act(self) -> None:
        chance = self.world.chance
        if len(self._calls) < self.world.calls and chance.random() < 0.5:
            self._number += 1
            task = asyncio.create_task(self._call(self._number))
            self._calls.add(task)
            task.add_done_callback(self._calls.discard)
        self.journal.sync()
        if chance.random() < 0.4:
            self._talk()

    def kill(self) -> None:
        self.journal.kill()
        for task in self._calls:
            task.cancel()

    def _talk(self) -> None:
        """Each message may be lost; one that comes late is answered to nobody."""
        world, office = self.world, self.world.office
        told = self.money.tell()
        assert told is not None
        if world.lost():
            world.late.append((office, self.epoch, told))
        elif self.joined is not office:
            office.join(self.epoch, told)
            self.joined = office if not world.lost() else None
        elif (given := office.beat(self.epoch, told)) is not None and not world.lost():
            self.money.heard(given)

    async def _call(self, number: int) -> None:
        chance, world = self.world.chance, self.world
        key, bound = ("", b"f" * 16, number), MOST * chance.random()
        ask: Any = SimpleNamespace(spec="s", key=key, name="a", handle=asyncio.current_task())
        account = self.money.purse("t", number, ask, ask, ask)
        assert account is not None
        with suppress(asyncio.CancelledError):
            await account.afford(bound)
            cost = bound * chance.choice([0.1, 0.5, 1.0])
            world.bill += cost
            for _ in range(chance.randrange(20)):
                await asyncio.sleep(0)
            usage = self.money.charge("t", key, Usage(cost=cost))
            self.journal.append(StepEnded("t", *key, "model", "a", "s", {}, "reply", "x", 0.0, 0.0, 0.0, usage))
            self.money.serve()


class World:
    def __init__(self, seed: int) -> None:
        self.chance = Random(seed)
        self.bill = 0.0
        self.calls = self.chance.choice([1, 4, 20])
        self.losses = self.chance.choice([0.0, 0.1, 0.4])
        self.deaths = self.chance.choice([0.0, 0.002, 0.01])
        self.late: list[tuple[Treasury, int, Money]] = []
        self.peers = {n: SimulatedPeer(n, self) for n in range(1, 4)}
        self.dead: dict[int, SimulatedPeer] = {}
        self.office = Treasury(CAP, self.peers, ())
        self._ending: list[int] = []
        self._counting: tuple[list[int], float] | None = None
        self.kills = 0

    def lost(self) -> bool:
        return self.chance.random() < self.losses

    def step(self) -> None:
        for peer in list(self.peers.values()):
            peer.act()
            if self.chance.random() < self.deaths:
                self._kill(peer)
        if self.chance.random() < self.deaths:
            self._replace()
        if self.late and self.chance.random() < 0.2:
            office, epoch, told = self.late.pop(self.chance.randrange(len(self.late)))
            if office is self.office and epoch in self.peers and self.peers[epoch].joined is office:
                office.beat(epoch, told)
        self._count()
        assert self.bill <= CAP * (1 + 1e-9)
        assert self.accounted <= CAP * (1 + 1e-9)

    @property
    def accounted(self) -> float:
        """What journals would tell, were all killed now."""
        living = sum(peer.journal.worst for peer in self.peers.values())
        return living + sum(peer.journal.dollars for peer in self.dead.values())

    def _kill(self, peer: SimulatedPeer) -> None:
        self.kills += 1
        peer.kill()
        self.dead[peer.epoch] = self.peers.pop(peer.epoch)
        self._ending.append(peer.epoch)
        epoch = max([*self.peers, *self.dead]) + 1
        self.peers[epoch] = SimulatedPeer(epoch, self)

    def _replace(self) -> None:
        self.kills += 1
        closed = [epoch for epoch in self.dead if epoch not in self._ending]
        self.office = Treasury(CAP, [*self.peers, *self._ending], closed)
        self._counting = None

    def _count(self) -> None:
        """Takes a while."""
        if self._ending and self.chance.random() < 0.1:
            self.office.end(self._ending.pop())
        if self._counting is None and (epochs := self.office.to_count) is not None:
            self._counting = epochs, sum(self.dead[epoch].journal.dollars for epoch in epochs)
        elif self._counting is not None and self.chance.random() < 0.1:
            self.office.counted(*self._counting)
            self._counting = None


@pytest.mark.parametrize("seed", range(60))
def test_the_cap_holds_at_every_instant_and_is_used(seed: int):
    async def live() -> float:
        """What was spent and set aside when it ended."""
        world = World(seed)
        for _ in range(20_000):
            world.step()
            await asyncio.sleep(0)
            if world.office.used_up:
                break
        accounted = world.accounted
        for peer in world.peers.values():
            peer.kill()
        await asyncio.sleep(0.01)
        assert world.office.used_up, "it ends"
        return accounted

    assert asyncio.run(live()) > CAP - MOST, "it ends where no call fits, and not before"


def test_of_two_that_wait_the_one_for_whom_there_is_enough_gets_it():
    office = Treasury(1.0, [], [])
    office.join(1, None)
    office.join(2, None)
    assert office.beat(1, Money(1, 0.0, need=0.1, least=0.1, wants=0.1)) == Given(0.0), "the journals are not read yet"
    office.counted([], 0.5)
    assert office.beat(1, Money(2, 0.0, need=0.1, least=0.1, wants=0.1)) == Given(0.1)
    assert office.left == pytest.approx(0.4)
    told = Money(1, 0.0, need=0.45, least=0.45, wants=0.45)
    given = office.beat(2, told)
    assert given is not None and (given.allowance, given.recall) == (0.0, True)
    given = office.beat(1, Money(3, 0.1, floor=0.0))
    assert given is not None and (given.allowance, given.recall) == (0.1, True)
    given = office.beat(1, Money(4, 0.01, need=0.1, least=0.1, wants=0.1))
    assert given is not None and given.allowance == 0.01, "there is enough, and the other has waited longer"
    given = office.beat(2, Money(2, 0.0, need=0.45, least=0.45, wants=0.45))
    assert given is not None and given.allowance == pytest.approx(0.45)
    assert not office.used_up and office.beat(2, Money(1, 0.0)) is None, "it was late"


def test_the_first_to_ask_leaves_the_others_theirs():
    office = Treasury(0.9, [], [], planned=3)
    office.join(1, None)
    office.counted([], 0.0)

    def allowed(money: Money) -> float:
        given = office.beat(1, money)
        assert given is not None and not given.recall
        return given.allowance

    assert allowed(Money(1, 0.0, need=0.01, least=0.01, wants=0.8)) == pytest.approx(0.3)
    again = allowed(Money(2, 0.3, need=0.01, least=0.01, wants=0.5))
    assert again == pytest.approx(0.31), "for one call: it has its part"
    piece = allowed(Money(3, 0.31, floor=0.31, need=0.001, least=0.001, wants=0.001)) - 0.31
    assert piece == pytest.approx(0.9 / (AHEAD * 3)), "a piece for calls to come is small"
