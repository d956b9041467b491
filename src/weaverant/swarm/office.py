"""The office of a run with peers: keeps the book of leases, knows who is there, and adds up what they tell.

It is no foreman: it hears of rows by the hundred, of messages and replies never. It can be killed at any moment; the
next one reads the journals, waits for the peers that live to tell what they hold, and goes on.
"""

from __future__ import annotations

import asyncio
import math
import os
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from weaverant.errors import JournalError, UserError, WeaverantError, shown
from weaverant.journal.shelf import shelf_of
from weaverant.runtime.ledger import Ledger, StageCounts
from weaverant.swarm import messages as words
from weaverant.swarm.leases import LeaseBook, Stranger
from weaverant.swarm.link import Link
from weaverant.swarm.listener import Listener
from weaverant.swarm.messages import Answer, Beat, Counts, Given, Join, Joined, Leave, Listed, Member, Status, Stop
from weaverant.swarm.places import Office as Place
from weaverant.swarm.places import drop_key, new_generation, publish, read_key
from weaverant.swarm.records import known, leases_of
from weaverant.swarm.treasury import Treasury, spent_in

LEASE_S = 4.0
"""Seconds after which a peer that is not heard is given up. It stops calling after half of that."""
DRIVER_S = 10.0
"""Seconds without a word of the driver after which all stop, to be resumed."""
LOOK_S = 0.1

WHOLE_RUN = frozenset(("fuse", "server", "broken", "source", "budget"))
"""Why one peer stops that no other would get past."""


class Plan(msgspec.Struct, frozen=True):
    """What the driver knows of the session."""

    stages: int
    total: int | None
    """Tasks of the source."""
    share: int
    """How many peers the limits are for."""
    limits: dict[str, Any]
    rows: int = 1024
    """The most of one lease."""
    roles: tuple[str, ...] = ()
    """See `Joined`."""
    budget: float = 0.0
    """US dollars that all sessions may cost together; 0 is no bound."""
    owed: bool = False
    """Without a bound: earlier sessions have set money aside, which goes with its tasks."""
    models: dict[str, str] = {}
    """Specs by name, for every peer that joins; none: those of `run.json`."""
    input: str = ""
    """As well: the same rows may be at another place than when the run began."""


class Office:
    """One generation. `run()` returns when the session is over; `UserError` where it was before it began."""

    def __init__(self, run: Path, key: bytes, plan: Plan, host: str, stop: Stop | None = None) -> None:
        """`stop` is for one that only winds up: it tells everybody so, gives up for that reason who does not hear, and
        ends when nobody is left."""
        self._run = run
        self._key = key
        self._plan = plan
        self._host = host
        self._generation = new_generation(run)
        self._members: dict[int, Member] = {}
        self._addresses: dict[int, Listed] = {}
        self._roster = 1
        self._stop = stop
        self._winds_up = stop is not None
        self._unheard = "it was not heard" if stop is None else stop.why
        self._ending: set[int] = set()
        self._over = asyncio.Event()
        self._driver_heard = time.monotonic()
        self._book: LeaseBook
        self._treasury: Treasury | None = None
        self._counting: asyncio.Task[None] | None = None

    async def run(self) -> None:
        if read_key(self._run) != self._key:
            raise UserError("another session with peers works on this run")
        records, open_homes, closed_homes = await asyncio.to_thread(known, self._run)
        total, rows = self._plan.total, self._plan.rows
        self._book = LeaseBook(
            self._generation, records, open_homes, total, time.monotonic(),
            closed_homes=closed_homes, rows=rows, least=min(64, rows), lease=LEASE_S, planned=self._plan.share,
        )  # fmt: skip
        if self._plan.budget:
            self._treasury = Treasury(self._plan.budget, open_homes, closed_homes, self._plan.share)
        listener = await Listener.open(self._host, 0, self._key, f"office-{self._generation}", self._serve)
        try:
            place = Place(self._generation, listener.address, socket.gethostname(), os.getpid())
            await asyncio.to_thread(publish, self._run, place)
            self._book.expect(time.monotonic())
            while not self._over.is_set():
                self._look()
                with suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_S):
                        await self._over.wait()
        finally:
            await listener.close()

    # What peers and the driver ask

    def _serve(self, link: Link, kind: str, body: Any) -> Any:
        match kind:
            case words.BEAT:
                return self._beat(msgspec.convert(body, Beat))
            case words.PULSE:
                return self._hear(msgspec.convert(body, int))
            case words.JOIN:
                return self._join(msgspec.convert(body, Join))
            case words.LEAVE:
                return self._leave(msgspec.convert(body, Leave))
            case words.STATUS:
                self._driver_heard = time.monotonic()
                return self._status()
            case words.LOOK:
                return self._status()
            case words.STOP:
                self._stop_all(msgspec.convert(body, Stop))
                return None
            case words.DIED:
                return self._died(*msgspec.convert(body, tuple[str, int]))
            case words.END:
                self._over.set()
                return None
            case _:
                raise WeaverantError(f"the office does not know the question {kind!r}")

    def _join(self, told: Join) -> Joined:
        try:
            self._book.join(told.epoch, told.holdings, time.monotonic())
        except Stranger:
            raise WeaverantError(f"peer {told.epoch} was given up") from None
        if self._treasury is not None:
            self._treasury.join(told.epoch, told.money)
        before = self._members.get(told.epoch)
        counts = Counts([]) if before is None else before.counts
        self._members[told.epoch] = Member(told.epoch, told.host, told.pid, told.labels, "working", counts)
        self._list(told.epoch, Listed(told.epoch, told.address, told.labels))
        plan = self._plan
        budget = plan.budget or (math.inf if plan.owed else 0.0)
        return Joined(LEASE_S, plan.share, plan.limits, plan.roles, budget, plan.models, plan.input)

    def _hear(self, epoch: int) -> None:
        try:
            self._book.hear(epoch, time.monotonic())
        except Stranger:
            raise WeaverantError(f"peer {epoch} was given up") from None

    def _beat(self, told: Beat) -> Answer:
        book, epoch = self._book, told.epoch
        try:
            for number, stop in told.done:
                book.done(epoch, number, stop)
            for cut in told.cuts:
                book.cut(epoch, cut.number, cut.stop)
            if told.source_rows is not None:
                book.source_ended(told.source_rows)
            orders = book.beat(epoch, 0 if self._stop else told.wants, told.holdings, time.monotonic())
        except Stranger:
            raise WeaverantError(f"peer {epoch} was given up") from None
        except ValueError as error:
            if self._stop is None:
                self._stop_all(Stop("source", why=str(error)))
            orders = book.beat(epoch, 0, told.holdings, time.monotonic())
        self._members[epoch] = msgspec.structs.replace(self._members[epoch], counts=told.counts)
        roster = list(self._addresses.values()) if told.roster != self._roster else None
        given = self._give_money(told)
        return Answer(orders, self._stop, self._roster, roster, given)

    def _give_money(self, told: Beat) -> Given | None:
        treasury = self._treasury
        if treasury is None or told.money is None:
            return None
        given = treasury.beat(told.epoch, told.money)
        if treasury.used_up and self._stop is None:
            self._stop_all(Stop("budget", math.inf, short=treasury.short))
        return given

    def _leave(self, told: Leave) -> None:
        if told.epoch in self._members and told.epoch not in self._ending:
            self._ending.add(told.epoch)
            task = asyncio.get_running_loop().create_task(self._let_go(told))
            task.add_done_callback(lambda _: self._ending.discard(told.epoch))
        if told.state in WHOLE_RUN and self._stop is None:
            self._stop_all(Stop(told.state, why=told.why, misdirected=told.misdirected))

    async def _let_go(self, told: Leave) -> None:
        """Its journal is closed. Where it could not make the fence itself, that is still to be done."""
        try:
            await asyncio.to_thread(shelf_of(self._run).fence, told.epoch, f"it left: {told.state}")
            records = await asyncio.to_thread(leases_of, self._run, told.epoch)
        except (OSError, WeaverantError):
            return  # it is unheard from now on, and given up
        self._book.leave(told.epoch, records)
        self._end_money(told.epoch)
        self._forget(told.epoch, told.state, told.why, told.counts)

    def _stop_all(self, stop: Stop) -> None:
        """Said again it changes nothing: who did not hear the answer asks again, and so does the next session. Only a
        shorter grace cuts off calls that are paid for."""
        before = self._stop
        if before is None:
            self._stop = stop
        elif stop.patience < before.patience:
            self._stop = msgspec.structs.replace(before, grace=stop.grace, hurry=before.hurry + 1)

    def _died(self, host: str, pid: int) -> None:
        """The driver has seen that process end."""
        for epoch, member in self._members.items():
            if (member.host, member.pid, member.state) == (host, pid, "working"):
                self._end(epoch, "its process ended")

    # Who is there

    def _look(self) -> None:
        for epoch in self._book.silent(time.monotonic()):
            self._end(epoch, self._unheard)
        if self._treasury is not None and self._counting is None and (epochs := self._treasury.to_count) is not None:
            self._counting = asyncio.get_running_loop().create_task(self._count(self._treasury, epochs))
        if time.monotonic() - self._driver_heard > DRIVER_S and self._stop is None:
            self._stop_all(Stop("interrupted", why="its driver is gone"))
        if self._winds_up and not (self._book.peers or self._book.waiting):
            self._over.set()
        if time.monotonic() - self._driver_heard > DRIVER_S and not self._book.peers:
            drop_key(self._run, self._key)
            self._over.set()

    def _end(self, epoch: int, why: str) -> None:
        """Fence its home, and only then give its rows to others."""
        if epoch not in self._ending:
            self._ending.add(epoch)
            task = asyncio.get_running_loop().create_task(self._give_up(epoch, why))
            task.add_done_callback(lambda _: self._ending.discard(epoch))

    async def _give_up(self, epoch: int, why: str) -> None:
        try:
            await asyncio.to_thread(shelf_of(self._run).fence, epoch, why)
            records = await asyncio.to_thread(leases_of, self._run, epoch)
        except (OSError, WeaverantError):
            await asyncio.sleep(1.0)  # a disk may be full, or away: it is looked at again
            return
        self._book.gone(epoch, records)
        self._end_money(epoch)
        self._forget(epoch, "gone", why)

    def _end_money(self, epoch: int) -> None:
        if self._treasury is not None:
            self._treasury.end(epoch)

    async def _count(self, treasury: Treasury, epochs: list[int]) -> None:
        """Read what was spent in journals that have ended."""
        try:
            treasury.counted(epochs, await asyncio.to_thread(spent_in, self._run, epochs))
        except JournalError:
            await asyncio.sleep(1.0)  # a disk may be full, or away: it is looked at again
        except WeaverantError as error:
            if self._stop is None:
                self._stop_all(Stop("broken", why=shown(error)))
            await asyncio.sleep(1.0)
        finally:
            self._counting = None

    def _list(self, epoch: int, listed: Listed | None) -> None:
        if listed is not None:
            self._addresses[epoch] = listed
        else:
            self._addresses.pop(epoch, None)
        self._roster += 1

    def _forget(self, epoch: int, state: str, why: str, counts: Counts | None = None) -> None:
        self._list(epoch, None)
        member = self._members.get(epoch)
        if member is not None:
            last = counts or member.counts
            self._members[epoch] = msgspec.structs.replace(member, state=state, why=why, counts=idle(last))

    def _status(self) -> Status:
        book = self._book
        working = book.peers + len(book.waiting)
        return Status(
            working, book.finished, book.total, book.ended, self._stop, list(self._members.values()),
            self._generation, time.monotonic() - self._driver_heard, book.begun,
        )  # fmt: skip


def idle(counts: Counts) -> Counts:
    """Of a peer that is gone: it is at nothing any more."""
    return msgspec.structs.replace(counts, rows_in_flight=0, calls_in_flight=0, sent=0, notes=[])


def told_of(ledger: Ledger) -> list[words.StageTold]:
    """The ledger's stages, to be sent."""
    return [
        words.StageTold(each.rows, each.done, each.nulls, dict(each.rejected), dict(each.failed))
        for each in ledger.stages
    ]


def add_to(stages: list[StageCounts], told: list[words.StageTold], gone: bool) -> None:
    """Add what a peer has told. Of one that is gone only what had ended counts: others begin the rest again."""
    for stage, one in zip(stages, told, strict=False):
        stage.rows += one.done + sum(one.rejected.values()) + sum(one.failed.values()) if gone else one.rows
        stage.done += one.done
        stage.nulls += one.nulls
        stage.rejected.update(one.rejected)
        stage.failed.update(one.failed)
