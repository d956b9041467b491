"""A peer's process: it joins the run in a directory, works on the rows that it leases, leaves when nothing is left."""

from __future__ import annotations

import asyncio
import math
import os
import signal
import socket
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from weaverant import __version__
from weaverant.engines import open_engine
from weaverant.errors import JournalError, UserError, WeaverantError, shown
from weaverant.events import PeerClosed, PeerOpened, RunClosed
from weaverant.journal import BlobStore
from weaverant.journal.homes import Fenced, fence_of, home_of
from weaverant.journal.shelf import shelf_of
from weaverant.launch import Run, resume
from weaverant.protocols import Journal
from weaverant.rundir import load_config
from weaverant.runtime.collector import Collector
from weaverant.runtime.feed import NumberedRows
from weaverant.runtime.limits import Limits
from weaverant.runtime.local import LocalSwarm
from weaverant.runtime.stagebook import StageBook
from weaverant.swarm.allowance import Allowance
from weaverant.swarm.ending import ANOTHER_SESSION
from weaverant.swarm.intake import LeasedIntake
from weaverant.swarm.link import Link
from weaverant.swarm.listener import Listener
from weaverant.swarm.lost import LinkLost, WrongKey
from weaverant.swarm.messages import Counts
from weaverant.swarm.neighbours import PING, Neighbours
from weaverant.swarm.office import told_of
from weaverant.swarm.peer import ORPHAN_S, GivenUp, Peer, why_of
from weaverant.swarm.places import read_key
from weaverant.swarm.takeover import Finder
from weaverant.swarm.travel import HostedEngines
from weaverant.workflow import ungrouped

LOOK_S = 0.02
LEFT, FAILED, STOPPED = 0, 4, 4
"""Exit codes: it left in order; its journal cannot be written; it was cut off from all others."""


class Seat:
    """Makes a run one peer of several. See `launch.Seat`."""

    def __init__(self, peer: Peer, key: bytes, labels: tuple[str, ...]) -> None:
        self.epoch = peer.epoch
        self.hosted = HostedEngines({})
        self._key = key
        self._neighbours: Neighbours | None = None
        self._peer = peer
        self._labels = labels
        self._run: Run
        self._beating: asyncio.Task[None] | None = None

    def prepare(self, run: Run, journal: Journal, collector: Collector) -> LocalSwarm:
        self._run = run
        config, clock = run.config, run.surroundings.clock
        assert run.directory is not None
        stages = ungrouped(run.recipe.stages)
        run.ledger.total = None
        book = StageBook(stages, run.ledger)
        intake = LeasedIntake(NumberedRows(run.source, config.trials, config.limit), book, run.ledger, clock)
        directory, blob = run.directory, BlobStore(run.directory / "blobs").get
        opened = PeerOpened(self.epoch, clock.time(), socket.gethostname(), os.getpid(), __version__, self._labels)
        journal.append(opened)
        models, peer = run.binding.models, self._peer
        money = None
        if budget := peer.joined.budget:
            money = peer.money = Allowance(budget, journal.flush, clock)
            intake.brought = money.bring
        self.hosted = HostedEngines(models, config.run)
        near = self._neighbours = Neighbours(f"peer-{self.epoch}", self._key, self._labels, peer.joined.roles, models)
        intake.released = near.release
        peer.listed = lambda: near.update(peer.roster, self.epoch)
        swarm = LocalSwarm(
            stages, run.binding, journal, intake, run.ledger, run.limits, blob=blob, run=config.run, budget=money,
            clock=clock, grown=collector.rows, may_call=peer.may_call, closing=_closing, afar=near.engine,
        )  # fmt: skip

        finder = Finder(directory, len(stages), config.trials, blob, clock)
        self._beating = asyncio.get_running_loop().create_task(self._peer.work(swarm, intake, self.counts, finder.find))
        return swarm

    def counts(self) -> Counts:
        """What was done so far."""
        run = self._run
        rows, calls = run.in_flight
        ledger = run.ledger
        return Counts(told_of(ledger), ledger.calls, ledger.usage(), rows, calls, run.sent, run.notes, run.cut)

    async def linger(self) -> None:
        """Calls of other peers that are worked on here are paid for."""
        self.hosted.draining = True
        if self._neighbours is None:
            return
        for _ in range(round(self._run.limits.grace / LOOK_S)):
            if not self.hosted.open:
                break
            await asyncio.sleep(LOOK_S)
        await self._neighbours.close()

    async def stand_up(self) -> None:
        """Beat no more."""
        if self._beating is not None:
            self._beating.cancel()
            await asyncio.gather(self._beating, return_exceptions=True)


class Member:
    """A peer's life, from joining to leaving. One that the others gave up, and that lives, joins again as another."""

    def __init__(self, directory: Path, host: str, labels: tuple[str, ...]) -> None:
        self._directory = directory
        self._host = host
        self._labels = labels
        self._run: Run | None = None
        self._seat: Seat | None = None
        self._leaving = False

    async def work(self) -> int:
        """Its exit code."""
        key = read_key(self._directory)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._leave)
        listener = await Listener.open(self._host, 0, key, "peer", self._serve)
        try:
            while True:
                try:
                    epoch = await asyncio.to_thread(shelf_of(self._directory).new_epoch)
                except OSError as error:
                    raise JournalError(f"a peer's home cannot be made: {error}") from error
                peer = Peer(self._directory, key, epoch, listener.address, self._labels, time)
                try:
                    if self._run is None:
                        await peer.join()
                    elif (code := await self._join_again(peer)) is not None:
                        return code
                except GivenUp:
                    continue
                if not await self._live(peer, key):
                    return FAILED
                if self._leaving or peer.state or self._run is None or self._run.state != "journal":
                    return LEFT
                there = fence_of(home_of(self._directory, epoch))
                if there is not None and there.why == ANOTHER_SESSION:
                    return LEFT  # which would wait for the home of one that can only knock with the old key
        finally:
            await listener.close()

    async def _join_again(self, peer: Peer) -> int | None:
        """After it was given up. The exit code where it cannot."""
        try:
            await peer.join()
            return None
        except (UserError, WrongKey):
            code = LEFT  # the session ended meanwhile
        except (LinkLost, TimeoutError) as error:
            print(f"weaverant: no office could be reached for {ORPHAN_S:.0f} s: {error}", file=sys.stderr)
            code = STOPPED
        with suppress(OSError, WeaverantError):
            await asyncio.to_thread(shelf_of(self._directory).fence, peer.epoch, "it never joined")
        return code

    async def _live(self, peer: Peer, key: bytes) -> bool:
        """One incarnation. False where its journal could not be written."""
        seat = self._seat = Seat(peer, key, self._labels)
        share = peer.joined.share
        engines = {name: open_engine(spec, share) for name, spec in load_config(self._directory).models.items()}
        try:
            run = self._run = resume(self._directory, models=engines, **_share(peer.joined.limits, share))
            run.seat = seat
            if self._leaving:
                run.stop()
            async for _ in run:
                pass
        except JournalError as error:  # it could not be begun
            await peer.leave("journal", shown(error), Counts([]))
            raise
        finally:
            await seat.stand_up()
            for engine in engines.values():
                await engine.close()
        await peer.leave("left" if self._leaving else run.state, why_of(run.error), seat.counts())
        return run.state != "journal" or _was_fenced(run.error)

    def _serve(self, link: Link, kind: str, body: Any) -> Any:
        if kind == PING:
            return True
        if self._seat is None:
            raise WeaverantError("this peer has not begun yet")
        return self._seat.hosted.serve(link, kind, body)

    def _leave(self) -> None:
        self._leaving = True
        if self._run is not None:
            self._run.stop()


def _closing(close: RunClosed) -> PeerClosed:
    return PeerClosed(close.state, close.time, close.why, close.cut)


def _was_fenced(error: BaseException | None) -> bool:
    return error is not None and isinstance(error.__cause__, Fenced)


def _share(limits: Mapping[str, Any], peers: int) -> dict[str, Any]:
    """This peer's part of what the run may do at once."""
    whole = Limits(**limits)
    part = dict(limits)
    part["concurrency"] = max(1, math.ceil(whole.concurrency / peers))
    if whole.in_flight is not None:
        part["in_flight"] = max(1, math.ceil(whole.in_flight / peers))
    return part
