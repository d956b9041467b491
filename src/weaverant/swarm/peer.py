"""A peer's side of the office: beats that say what it holds, orders that come back, and when it has to hold still.

A peer that has not been heard for half a lease calls nobody: others may be about to take its rows. Whatever it does
after they have is behind the fence of its journal, and nothing of it counts.
"""

from __future__ import annotations

import asyncio
import math
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from weaverant.errors import JournalError, WeaverantError, shown
from weaverant.journal.homes import Fenced
from weaverant.journal.shelf import shelf_of
from weaverant.protocols import Clock
from weaverant.runtime.local import LocalSwarm
from weaverant.swarm import messages as words
from weaverant.swarm.allowance import Allowance
from weaverant.swarm.intake import LeasedIntake
from weaverant.swarm.leases import Cut, Grant
from weaverant.swarm.link import Link, Refused
from weaverant.swarm.listener import answers_nothing, dial
from weaverant.swarm.lost import LinkLost, WrongKey
from weaverant.swarm.messages import Answer, Beat, Counts, Join, Joined, Leave, Listed, Status, Stop
from weaverant.swarm.places import find_office, read_key
from weaverant.swarm.pulse import Pulse
from weaverant.swarm.takeover import Found

BEAT_S = 0.5
"""Seconds between beats where nothing is urgent."""
LINGER_S = 0.002
"""Seconds for what else may come, where something is urgent: it goes along."""
STARVED_S = 0.1
"""As many at the most, where rows were asked for and there were none: nobody is to be asked for them all the time."""
FEWEST = 8
"""Rows that wait, at the least, for slots to come free."""
ORPHAN_S = 60.0
"""Seconds without any office after which a peer stops, to be resumed."""


class GivenUp(WeaverantError):
    """The others have given this peer up; its rows are theirs."""


class Peer:
    """One incarnation: an epoch, a home, a link to the office."""

    def __init__(self, run: Path, key: bytes, epoch: int, address: str, labels: tuple[str, ...], clock: Clock) -> None:
        """`address` is where other peers reach it."""
        self.epoch = epoch
        self.roster: list[Listed] = []
        """The peers that there are."""
        self.listed: Callable[[], None] = lambda: None
        """Called when the roster has changed."""
        self._present: set[str] = set()
        self._seen: set[str] = set()
        """Names of peers: on the roster, and all that ever were."""
        self.state = ""
        """Why the office told it to stop."""
        self.money: Allowance | None = None
        """Where the run has a budget."""
        self._run = run
        self._key = key
        self._address = address
        self._labels = labels
        self._clock = clock
        self._now = clock.monotonic
        self._link: Link | None = None
        self._generation = 0
        self._joined: Joined | None = None
        self._heard = -1e9
        """When the last beat that was answered had been sent."""
        self._trusted = -1e9
        """Until then nobody gives it up."""
        self._held_still = False
        """Somebody was told that nothing may be asked."""
        self._version = 0
        self._hurry = 0
        self._urgent = asyncio.Event()
        self._linger = LINGER_S
        self._mark = self._now(), 0
        self._rate = 0.0
        self._filling: set[asyncio.Task[None]] = set()
        self._swarm: LocalSwarm | None = None
        self._intake: LeasedIntake
        self._counts: Callable[[], Counts]
        self._find: Callable[[Grant], Found]

    @property
    def joined(self) -> Joined:
        assert self._joined is not None
        return self._joined

    def may_call(self) -> bool:
        """Whether nobody can have given it up yet. The clock goes on while the process is stopped, so this is false at
        once when it wakes up."""
        if self._now() < self._trusted:
            return True
        self._held_still = True
        return False

    def departed(self, name: str) -> bool:
        """Whether the peer of this name was on the roster and is not any more: others go on with its rows."""
        return name in self._seen and name not in self._present

    async def join(self) -> None:
        """Find the office and say that this peer is there. `GivenUp` where it is not wanted any more; `LinkLost` where
        there was none for `ORPHAN_S`; `WrongKey` or `UserError` where the session is over."""
        began = self._now()
        while True:
            try:
                await self._join()
                return
            except WrongKey:
                raise  # it belongs to a session that is over
            except (LinkLost, TimeoutError):
                if self._now() - began > ORPHAN_S:
                    raise
                read_key(self._run)
                await asyncio.sleep(0.05)

    async def work(
        self,
        swarm: LocalSwarm,
        intake: LeasedIntake,
        counts: Callable[[], Counts],
        find: Callable[[Grant], Found],
    ) -> None:
        """Beat until cancelled. `find` reads what others had begun of leased rows, in a thread."""
        self._swarm, self._intake, self._counts, self._find = swarm, intake, counts, find
        intake.hungry_with(self._urgent.set)
        if self.money is not None:
            self.money.urgent = self._urgent.set
        pulse = Pulse(self._run, self._key, self.epoch, lambda: self._heard, self._hear)
        pulse.start()
        try:
            await self._beat_on(swarm)
        except Exception as error:  # a fault of ours: unheard, this peer would only be given up
            swarm.broken(error)
        finally:
            pulse.stop()

    async def _beat_on(self, swarm: LocalSwarm) -> None:
        while True:
            began = self._now()
            self._urgent.clear()
            try:
                await self._beat()
            except (LinkLost, TimeoutError):
                if await self._seek(swarm):
                    continue
                return
            except Refused as error:
                swarm.journal_failed(_ended(str(error)))
                return
            with suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, BEAT_S - (self._now() - began))):
                    await self._urgent.wait()
                await asyncio.sleep(self._linger)

    async def all_have_begun(self) -> bool:
        """Whether the office says that no row is left that could begin; not where it says nothing."""
        try:
            return msgspec.convert(await self._ask(words.LOOK, None), Status).begun
        except (LinkLost, TimeoutError, Refused):
            return False

    async def leave(self, state: str, why: str, counts: Counts, misdirected: bool = False) -> None:
        """The journal is closed: end the home, so that others may go on with what is left at once, and say so."""
        with suppress(OSError, WeaverantError):
            await asyncio.to_thread(shelf_of(self._run).fence, self.epoch, f"it left: {state}")
        with suppress(WeaverantError, TimeoutError):
            if self._link is None or self._link.lost.done():
                await self._join()
            await self._ask(words.LEAVE, Leave(self.epoch, state, why, counts, misdirected))
        if self._link is not None:
            self._link.close()

    async def _join(self) -> None:
        office = await asyncio.to_thread(find_office, self._run)
        if office is None or office.generation < self._generation:
            raise LinkLost("there is no office")
        if self._link is not None:
            self._link.close()
        self._link = await dial(office.address, self._key, name_of(self.epoch), answers_nothing, 1.0)
        self._generation = office.generation
        holdings = self._intake.holdings() if self._swarm is not None else []
        sent = self._now()
        money = None if self.money is None else self.money.tell()
        told = Join(self.epoch, socket.gethostname(), os.getpid(), self._address, self._labels, holdings, money)
        try:
            self._joined = msgspec.convert(await self._ask(words.JOIN, told), Joined)
        except Refused as error:
            raise GivenUp(str(error)) from None
        self._version = 0
        self._hear(sent)

    async def _seek(self, swarm: LocalSwarm) -> bool:
        """The office is lost: look for it, or for the next one. False where others go on with this peer's rows."""
        try:
            await self._join()
            swarm.go_on()
        except GivenUp as error:
            swarm.journal_failed(_ended(str(error)))
            return False
        except (LinkLost, TimeoutError):
            if await asyncio.to_thread(shelf_of(self._run).is_fenced, self.epoch):
                swarm.journal_failed(_ended("another session began, or nobody heard of it"))
                return False
            if self._now() - self._heard > ORPHAN_S and not swarm.stopped:
                swarm.stop("interrupted")
            await asyncio.sleep(0.1)
        return True

    async def _ask(self, kind: str, body: Any) -> Any:
        assert self._link is not None
        return await self._link.ask(kind, body, timeout=1.0)

    async def _beat(self) -> None:
        intake, swarm = self._intake, self._swarm
        assert swarm is not None
        wants = 0 if swarm.stopped else self._wants(swarm.appetite, intake.unstarted)
        done, cuts = intake.ended_leases(), dict(intake.cuts)
        sent = self._now()
        beat = Beat(
            self.epoch, wants, intake.holdings(), done, [Cut(number, stop) for number, stop in cuts.items()],
            intake.source_rows, self._counts(), self._version, None if self.money is None else self.money.tell(),
        )  # fmt: skip
        answer = msgspec.convert(await self._ask(words.BEAT, beat), Answer)
        self._hear(sent)
        intake.heard([number for number, _ in done], cuts)
        if self.money is not None and answer.money is not None:
            self.money.heard(answer.money)
        if answer.roster is not None:
            self.roster, self._version = answer.roster, answer.version
            self._present = {name_of(each.epoch) for each in answer.roster}
            self._seen |= self._present
            self.listed()
        if answer.stop is not None and answer.stop.hurry > self._hurry:
            self._stop(swarm, answer.stop)
        for grant in answer.orders.grants:
            if not swarm.stopped and intake.take(grant):
                self._fill(grant)
        self._linger = min(2 * self._linger, STARVED_S) if wants and not answer.orders.grants else LINGER_S
        if answer.orders.soon:
            self._urgent.set()
        for cut in answer.orders.cuts:
            intake.cut(cut)
        if answer.orders.nothing_left:
            intake.drained = True
        held_still, self._held_still = self._held_still, False
        if held_still or intake.drained or answer.orders.grants:
            swarm.go_on()

    def _stop(self, swarm: LocalSwarm, stop: Stop) -> None:
        leaves = swarm.hurried and not self._hurry
        self._hurry, self.state = stop.hurry, stop.state
        if (
            not leaves or stop.grace == 0.0
        ):  # one that was told to go by itself goes on going: its calls have their time
            swarm.stop(stop.state, stop.grace)

    def _hear(self, sent: float) -> None:
        """The office has answered what was sent then."""
        self._heard, self._trusted = sent, sent + self.joined.lease / 2

    def _wants(self, slots: int, waiting: int) -> int:
        """How many rows to ask for, where so many slots are free and rows wait. Nothing while half of what would do
        waits: asked for little by little, leases would be small and many."""
        enough = slots + self._pace()
        return enough - waiting if waiting < max(slots, enough / 2) else 0

    def _pace(self) -> int:
        """Rows that are started within two beats, as far as the last ones tell."""
        now, starts = self._now(), self._intake.starts
        then, before = self._mark
        if now - then >= BEAT_S:
            self._mark = now, starts
            self._rate = (starts - before) / (now - then)
        return max(FEWEST, math.ceil(2 * BEAT_S * self._rate))

    def _fill(self, grant: Grant) -> None:
        if not grant.prior:
            self._intake.fill(grant, Found([], [], set(), set()))
            return
        task = asyncio.get_running_loop().create_task(self._look_up(grant))
        self._filling.add(task)
        task.add_done_callback(self._filling.discard)

    async def _look_up(self, grant: Grant) -> None:
        assert self._swarm is not None
        try:
            self._intake.fill(grant, await asyncio.to_thread(self._find, grant))
        except Exception as error:  # a journal that cannot be read ends the run: its rows are nobody's else
            self._swarm.broken(error)


def name_of(epoch: int) -> str:
    """What a peer is called on its links."""
    return f"peer-{epoch}"


def _ended(why: str) -> JournalError:
    error = JournalError(f"the others go on with the rows of this peer: {why}")
    error.__cause__ = Fenced(why)
    return error


def why_of(error: BaseException | None) -> str:
    """An error for the others."""
    return "" if error is None else shown(error)[:2_000]
