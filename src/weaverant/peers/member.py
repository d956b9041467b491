"""A peer's process: it joins the run in a directory, works on the rows that it leases, leaves when nothing is left."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from weaverant import __version__
from weaverant.compound import Served
from weaverant.engines import open_engine
from weaverant.errors import JournalError, Misdirected, RunChanged, UserError, WeaverantError, shown
from weaverant.events import PeerClosed, PeerOpened, RunClosed
from weaverant.journal import BlobStore
from weaverant.journal.homes import Fenced, fence_of, home_of
from weaverant.journal.shelf import shelf_of
from weaverant.launch import resume
from weaverant.peers.given import check_files, check_models
from weaverant.protocols import Journal
from weaverant.rundir import RunConfig, load_config
from weaverant.runtime.collector import Collector
from weaverant.runtime.feed import NumberedRows
from weaverant.runtime.limits import Limits
from weaverant.runtime.local import LocalSwarm
from weaverant.runtime.permit import RevocablePermit
from weaverant.runtime.stagebook import StageBook
from weaverant.session import Run
from weaverant.swarm.allowance import Allowance
from weaverant.swarm.ending import ANOTHER_SESSION
from weaverant.swarm.intake import LeasedIntake
from weaverant.swarm.link import Link
from weaverant.swarm.listener import Listener
from weaverant.swarm.lost import LinkLost, WrongKey
from weaverant.swarm.messages import Counts
from weaverant.swarm.neighbours import PING, Neighbours
from weaverant.swarm.office import told_of
from weaverant.swarm.peer import ORPHAN_S, GivenUp, Peer, name_of, why_of
from weaverant.swarm.places import read_key
from weaverant.swarm.takeover import Finder
from weaverant.swarm.travel import HostedEngines
from weaverant.workflow import ungrouped

LOOK_S = 0.02
IDLE_S = 1.5
"""Seconds without a row after which a peer asks why."""
LEFT, FAILED, STOPPED = 0, 4, 4
"""Exit codes: it left in order; its journal cannot be written; it was cut off from all others."""


class Seat:
    """Makes a run one peer of several. See `session.Seat`."""

    def __init__(self, peer: Peer, key: bytes, labels: tuple[str, ...]) -> None:
        self.epoch = peer.epoch
        self.hosted = HostedEngines({})
        self._key = key
        self._neighbours: Neighbours | None = None
        self._peer = peer
        self._labels = labels
        self._run: Run
        self._swarm: LocalSwarm
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
        permit = RevocablePermit(peer.may_call)
        self.hosted = HostedEngines(models, config.run, permit, peer.departed)
        near = self._neighbours = Neighbours(name_of(self.epoch), self._key, self._labels, peer.joined.roles, models)
        intake.released = near.release
        peer.listed = lambda: near.update(peer.roster, self.epoch)
        swarm = self._swarm = LocalSwarm(
            stages, run.binding, journal, intake, run.ledger, run.limits, blob=blob, run=config.run, budget=money,
            clock=clock, grown=collector.rows, permit=permit, closing=_closing, afar=near.engine,
        )  # fmt: skip

        finder = Finder(directory, len(stages), config.trials, blob, clock)
        self._beating = asyncio.get_running_loop().create_task(self._peer.work(swarm, intake, self.counts, finder.find))
        return swarm

    @property
    def stopping(self) -> bool:
        """The office has told it to stop, and calls in flight have only so much time left."""
        return self._peer.state != "" and self._swarm.hurried

    def counts(self) -> Counts:
        """What was done so far."""
        run = self._run
        rows, calls = run.in_flight
        ledger = run.ledger
        return Counts(told_of(ledger), ledger.calls, ledger.usage(), rows, calls, run.sent, run.told, run.cut)

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
        self.rows = self.answered = 0
        """Rows that ended in all its incarnations, and calls of other peers that were answered."""
        self.joined: Callable[[], None] = _silent
        """Called, once, when it has joined and nothing is wrong with what it has here."""
        self.idle: Callable[[], None] = _silent
        """Called, once, where it got no row since, and no row is left that could begin."""

    @property
    def state(self) -> str:
        """Why it ended: `left`, where it was told to, or as of a `Run`."""
        return "left" if self._leaving else "ready" if self._run is None else self._run.state

    async def work(self) -> int:
        """Its exit code."""
        key = read_key(self._directory)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._leave)
        listener = await Listener.open(self._host, 0, key, "peer", self._serve)
        try:
            while self._run is None or self._goes_on(key):
                try:
                    epoch = await asyncio.to_thread(shelf_of(self._directory).new_epoch)
                except OSError as error:
                    raise JournalError(f"a peer's home cannot be made: {error}") from error
                peer = Peer(self._directory, key, epoch, listener.address, self._labels, time)
                try:
                    if self._run is None:
                        await self._join(peer)
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
            return LEFT
        finally:
            await listener.close()

    async def _join(self, peer: Peer) -> None:
        """For the first time. Raises `LinkLost` or `UserError` where there is no session, or none any more."""
        try:
            await peer.join()
        except (LinkLost, TimeoutError, UserError) as error:
            await self._never_joined(peer)
            if isinstance(error, TimeoutError):
                raise LinkLost("its office does not answer in time") from None
            raise

    async def _never_joined(self, peer: Peer) -> None:
        """Nobody shall wait for it."""
        with suppress(OSError, WeaverantError):
            await asyncio.to_thread(shelf_of(self._directory).fence, peer.epoch, "it never joined")

    def _goes_on(self, key: bytes) -> bool:
        """Whether the session does, as far as is known."""
        try:
            return read_key(self._directory) == key
        except UserError:
            return False

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
        await self._never_joined(peer)
        return code

    async def _live(self, peer: Peer, key: bytes) -> bool:
        """One incarnation. False where its journal could not be written."""
        seat = self._seat = Seat(peer, key, self._labels)
        share, engines = peer.joined.share, dict[str, Served]()
        try:
            config, joined = load_config(self._directory), peer.joined
            specs = joined.models or config.models
            for name, spec in specs.items():
                engines[name] = open_engine(spec, share)
            check_models(self._directory, config, specs, engines)
            limits = _share(joined.limits, share)
            run = self._run = self._resumed(config, joined.input, engines, limits)
            run.seat = seat
            if self._leaving:
                run.stop()
            self.joined()
            self.joined = _silent
            looking = asyncio.get_running_loop().create_task(self._look_for_rows(peer, run))
            try:
                async for _ in run:
                    pass
            finally:
                looking.cancel()
        except (JournalError, UserError) as error:  # it could not be begun, and has leased nothing
            await peer.leave("journal" if isinstance(error, JournalError) else "refused", shown(error), Counts([]))
            raise
        finally:
            self.rows += 0 if self._run is None else self._run.ledger.ended_rows
            self.answered += seat.hosted.served - seat.hosted.open
            await seat.stand_up()
            for engine in engines.values():
                await engine.close()
        await peer.leave(self.state, why_of(run.error), seat.counts(), isinstance(run.error, Misdirected))
        return run.state != "journal" or _was_fenced(run.error)

    def _resumed(self, config: RunConfig, rows: str, engines: Mapping[str, Served], limits: Mapping[str, Any]) -> Run:
        """With `rows` as the input where the session has another. `UserError` where a file here is not the one that
        the run began with."""
        check_files(self._directory, config, rows or config.input)
        try:
            return resume(self._directory, rows=rows or None, models=engines, **limits)
        except RunChanged as error:
            raise UserError(
                f"this peer cannot work on {str(self._directory)!r}, because what is on this host is not what the run "
                f"began with: {', '.join(error.changes)}. Copy the file from the host where the run began, and join "
                "again"
            ) from None

    async def _look_for_rows(self, peer: Peer, run: Run) -> None:
        await asyncio.sleep(IDLE_S)
        while self.idle is not _silent and not any(stage.rows for stage in run.ledger.stages):
            if await peer.all_have_begun():
                self.idle()
                self.idle = _silent
            await asyncio.sleep(IDLE_S)

    def _serve(self, link: Link, kind: str, body: Any) -> Any:
        if kind == PING:
            return True
        if self._seat is None:
            raise WeaverantError("this peer has not begun yet")
        return self._seat.hosted.serve(link, kind, body)

    def _leave(self) -> None:
        again, self._leaving = self._leaving, True
        told = self._seat is not None and self._seat.stopping
        if self._run is not None and (again or not told):  # what all are told does not count as the first time
            self._run.stop()


def _silent() -> None: ...


def _closing(close: RunClosed) -> PeerClosed:
    return PeerClosed(close.state, close.time, close.why, close.cut)


def _was_fenced(error: BaseException | None) -> bool:
    return error is not None and isinstance(error.__cause__, Fenced)


def _share(limits: Mapping[str, Any], peers: int) -> dict[str, Any]:
    """This peer's part of what the run may do at once: never more than that in all, but one for each at least."""
    whole = Limits(**limits)
    part = dict(limits)
    part["concurrency"] = max(1, whole.concurrency // peers)
    if whole.in_flight is not None:
        part["in_flight"] = max(1, whole.in_flight // peers)
    return part
