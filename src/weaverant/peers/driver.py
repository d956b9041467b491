"""The driver of a run on peers: starts its office and its peers, sees to it that they live, and tells how it goes.

It works on no row. Killed, it is replaced by the next `resume`; the peers stop in order when they miss it.
"""

from __future__ import annotations

import asyncio
import math
import shlex
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from typing import Any

import msgspec

from weaverant.errors import JournalError, WeaverantError, shown
from weaverant.events import NO_USAGE, RowsLeft, RunClosed, RunOpened, Shortfall, SourceEnded, TaskReopened, TaskTaken
from weaverant.given import absolute
from weaverant.journal import BlobStore, JournalReader, SegmentJournal
from weaverant.journal.homes import OWN, epochs_of
from weaverant.message import total
from weaverant.peers.given import check_run, labels_of
from weaverant.peers.ledger import PeersLedger
from weaverant.peers.member import FAILED
from weaverant.runtime.budget import ROUNDING
from weaverant.runtime.ledger import Ledger
from weaverant.runtime.notes import merged
from weaverant.runtime.recovery import Recovery
from weaverant.runtime.stagebook import StageBook
from weaverant.runtime.survey import Survey, survey
from weaverant.runtime.unfinished import Unfinished
from weaverant.session import EXIT_CODES, MISDIRECTED, Run
from weaverant.swarm import messages as words
from weaverant.swarm.crew import Crew, Ended
from weaverant.swarm.ending import end_peers
from weaverant.swarm.link import Link
from weaverant.swarm.listener import answers_nothing, dial
from weaverant.swarm.lost import LinkLost
from weaverant.swarm.messages import Counts, Status, Stop
from weaverant.swarm.office import Plan, idle
from weaverant.swarm.places import drop_key, find_office, make_key
from weaverant.swarm.treasury import spent_in
from weaverant.task import Task
from weaverant.workflow import ungrouped

LOOK_S = 0.1
DEAF_S = 3.0
"""Seconds without an answer after which the office is ended, and another begins."""
BEGIN_S = 60.0
"""Seconds that an office has for its first answer: its host may be slow, or far away."""
AT_ONCE_S = 5.0
"""A process that ends sooner has a fault that starting it again may not mend."""
MOST_AT_ONCE = 3
"""Such ends, one after the other, after which the run stops."""
LAST_S = 10.0
"""What peers that were told to stop may take besides the grace."""


class PeersRun:
    """A run that was prepared, to be worked on by `peers` processes. To be iterated over once; it yields no tasks: they
    stand in the journals."""

    def __init__(
        self,
        run: Run,
        peers: int,
        crew: Crew,
        *,
        labels: Sequence[str] = (),
        spread: bool = False,
        host: str = "",
    ) -> None:
        """`labels` are offered by these peers, `LABEL=N` by the first N of them. `spread`: each agent has peers of its
        own. `host`: where this process can be reached. Raises `UserError` where the run cannot have peers."""
        self._host = host
        check_run(run, peers)
        self.recipe, self.config, self.directory, self.resumed = run.recipe, run.config, run.directory, run.resumed
        self.limits, self.source = run.limits, run.source
        self.ledger = PeersLedger(run.config.stages)
        self.ledger.total = run.config.rows
        self.unfinished = Unfinished()
        self.tell = run.tell
        self.error: BaseException | None = None
        self.began = False
        self.short: Shortfall | None = None
        self._given = run
        self._peers = peers
        self._crew = crew
        self._roles = tuple(sorted({agent.name for agent in run.recipe.agents})) if spread else ()
        self._labels = labels_of(peers, labels, self._roles)
        self._link: Link | None = None
        self._status: Status | None = None
        self._state = ""
        self._misdirected = False
        """It stopped for a server that no call has come to, for a wrong key or address."""
        self._over = False
        self._stops = 0
        self._wanted: Stop | None = None
        self._until = math.inf
        self._vain = {"office": 0, "peer": 0}
        """Ends of processes, one after the other, that had just begun, or between which no row ended."""
        self._ended_rows = -1
        self._patient_until = 0.0
        self._key = b""
        self._started = 0
        self._dead: set[tuple[str, int]] = set()
        """Peers whose processes were seen to end, by host and pid."""
        self._owed = False
        self._spent: float | None = None
        """US dollars in all journals, once it is over."""
        self._journal: SegmentJournal

    # What is shown of it

    @property
    def state(self) -> str:
        """As of a `Run`; `grouping`: all that peers can do is done, and groups are to be formed by one process."""
        return self._state or ("finished" if self._over else "running" if self.began else "ready")

    @property
    def in_flight(self) -> tuple[int, int]:
        counts = self._counts()
        return sum(each.rows_in_flight for each in counts), sum(each.calls_in_flight for each in counts)

    @property
    def sent(self) -> int:
        return sum(each.sent for each in self._counts())

    @property
    def cut(self) -> int:
        return self.ledger.cut

    @property
    def spent(self) -> float:
        return self.ledger.earlier_cost + self.ledger.usage().cost if self._spent is None else self._spent

    @property
    def priced(self) -> bool:
        return not self.config.unpriced

    @property
    def notes(self) -> list[str]:
        """How many peers there are, and what their engines have to tell."""
        if self._status is None or not any(any(stage.rows for stage in each.stages) for each in self._counts()):
            return [] if self._state else [f"starting {_counted(self._peers)}"]
        working = self._status.working
        if not working:
            return []
        lines = merged([note for each in self._counts() for note in each.notes])
        offered = {label for each in self._status.members if each.state == "working" for label in each.labels}
        missing = sorted({agent.place for agent in self.recipe.agents if agent.place} - offered)
        here = shlex.quote(str(self.directory))
        waits = [
            f"no peer offers {label!r}, and calls wait for one: weaverant join {here} --label {shlex.quote(label)}"
            for label in missing
        ]
        heard = [each.counts for each in self._status.members if each.state == "working" and each.counts.stages]
        rowless = sum(not each.rows_in_flight for each in heard)
        without = "" if not rowless else ", without a row" if working == 1 else f", {rowless} of them without a row"
        return [_counted(working) + without, *waits, *lines]

    @property
    def exit_code(self) -> int:
        """As of a `Run`."""
        code = MISDIRECTED if self._misdirected else 0 if self._state == "grouping" else EXIT_CODES.get(self.state, 1)
        return 3 if code == 0 and self.ledger.failed else code

    def stop(self, reason: str = "interrupted") -> None:
        """Let what is in flight finish, start nothing more. Called again, wait no longer."""
        self._stops += 1
        self._wanted = Stop(reason, None if self._stops == 1 else 0.0)
        if self._stops > 1:
            self._until = min(self._until, time.monotonic() + LAST_S)

    # The session

    async def __aiter__(self) -> AsyncIterator[Task]:
        await self._given.close_engines()
        assert self.directory is not None
        journal = self._journal = SegmentJournal(self.directory, on_failure=self._journal_failed)
        try:
            await self._open(journal)
            self.began = True
            try:
                await self._watch()
            finally:
                await self._end()
            self.ledger.settle(self.directory)
            with suppress(JournalError):
                self._spent = spent_in(self.directory, epochs_of(self.directory))
            if self._state == "" and self._status is not None and self._status.total is not None:
                journal.append(SourceEnded(self._status.total, time.time()))
                if len(ungrouped(self.recipe.stages)) < len(self.recipe.stages):
                    self._state = "grouping"
                self.ledger.total = None
            why = "" if self.error is None else shown(self.error)
            journal.append(
                RunClosed(self._state or "finished", time.time(), why=why[:2_000], short=self.short, cut=self.cut)
            )
        finally:
            self._over = True
            with suppress(JournalError):
                await journal.close()
        return
        yield  # it is an iterator over tasks, of which there are none here

    async def _open(self, journal: SegmentJournal) -> None:
        directory, config = self.directory, self.config
        assert directory is not None
        await end_peers(directory, self._host)
        reader = JournalReader(directory)
        self._given.begin_afresh(reader)
        session = sum(isinstance(event, RunOpened) for event in reader.run_events())
        reopened: list[TaskReopened | TaskTaken] = []
        if self.resumed:
            blob, stages = BlobStore(directory / "blobs").get, self.recipe.stages
            counts = Ledger(config.stages)
            recovery = Recovery(reader, blob, stages, config.trials, counts, StageBook(stages, counts))
            self.unfinished = recovery.unfinished(self._given.retry, reopened.append)
            self.unfinished.count_held(counts)
            for stage in counts.stages:
                stage.rows = stage.ended
            self.ledger.before, self.ledger.earlier = counts.stages, counts.stages[0].ended
            self.ledger.earlier_calls, self.ledger.earlier_cost = counts.earlier_calls, counts.earlier_cost
            self.ledger.earlier_usage = total([NO_USAGE, *reader.usage().values()])
            self.ledger.take([])
            self._owed = bool(reader.reserved().open)
            if self.limits.budget and spent_in(directory, epochs_of(directory)) > self.limits.budget * (1 + ROUNDING):
                self._state = "budget"
        journal.append(RunOpened(session, time.time(), config.version, self.limits.budget))
        for event in reopened:
            journal.append(event)
        await journal.flush()
        seen = Survey([], [], [])
        if self.resumed:
            seen = survey(JournalReader(directory), len(ungrouped(self.recipe.stages)), config.trials)
        journal.append(_surveyed(seen, max(epochs_of(directory), default=OWN)))
        await journal.flush()
        (directory / "peers").mkdir(exist_ok=True)
        self._key = make_key(directory)

    async def _watch(self) -> None:
        if self._state:
            return
        self._start_office()
        for _ in range(self._peers):
            self._start_peer()
        while not self._is_over() and time.monotonic() < self._until:
            for ended in self._crew.ended():
                await self._see_end(ended)
            await self._ask_status()
            if self._wanted is not None and await self._ask(words.STOP, self._wanted):
                self._wanted = None
            stop = self._status.stop if self._status is not None else None
            if stop is not None and not self._state:
                self.short, self._misdirected = stop.short, stop.misdirected
                self._stopping(stop.state, stop.why if stop.state != "interrupted" else "")
            elif not self._state and self._all_left():
                self._stopping("interrupted", "every peer has left, and rows are left")
            await asyncio.sleep(LOOK_S)

    def _stopping(self, state: str, why: str = "") -> None:
        """All end now, for this reason; who does not in time is ended."""
        self._state = state
        self.error = WeaverantError(why) if why else self.error
        self._until = time.monotonic() + (math.inf if state == "budget" else self.limits.grace) + LAST_S

    def _all_left(self) -> bool:
        status = self._status
        return status is not None and not (self._crew.alive or status.working or status.finished)

    def _is_over(self) -> bool:
        status = self._status
        if self._state and self._crew.alive == 0 and (status is None or status.working == 0):
            return True
        return status is not None and (status.finished or bool(self._state)) and status.working == 0

    async def _end(self) -> None:
        """Nothing of the session is left behind."""
        await self._ask(words.END, None)
        if self._link is not None:
            self._link.close()
        until = time.monotonic() + 2.0
        while self._crew.alive and time.monotonic() < until:
            self._crew.ended()
            await asyncio.sleep(0.02)
        await asyncio.to_thread(self._crew.kill)
        assert self.directory is not None
        if await asyncio.to_thread(self._still_ours):  # else these are the peers of another host's session
            with suppress(JournalError):
                await end_peers(self.directory, wait=False)
        drop_key(self.directory)

    # Its processes

    def _start_office(self) -> None:
        given = dict(self.config.limits)
        limits = {name: value for name, value in msgspec.structs.asdict(self.limits).items() if name != "budget"}
        settings = {**given, **limits, "budget": 0.0}
        plan = Plan(
            len(ungrouped(self.recipe.stages)), self.config.rows, self._peers, settings, roles=self._roles,
            budget=self.limits.budget, owed=self._owed, models=self._given.specs, input=absolute(self.source.name),
        )  # fmt: skip
        self._patient_until = time.monotonic() + BEGIN_S
        self._crew.start_office(plan)

    def _start_peer(self) -> None:
        self._crew.start_peer(self._labels[self._started])
        self._started += 1

    async def _see_end(self, ended: Ended) -> None:
        if ended.kind == "peer":
            self._dead.add((ended.host, ended.pid))
            await self._ask(words.DIED, (ended.host, ended.pid))
        if self._status is not None and self._status.finished:
            return
        if ended.kind == "peer" and (ended.code == 0 or self._state or self._stops):
            return  # it left in order, or it is not needed any more
        if not await asyncio.to_thread(self._still_ours):
            self._journal_failed(JournalError("another host goes on with the run: this session is over"))
            return
        rows = self.ledger.ended_rows
        in_vain = ended.seconds < AT_ONCE_S or (ended.kind == "peer" and rows == self._ended_rows)
        self._vain[ended.kind] = self._vain[ended.kind] + 1 if in_vain else 0
        self._ended_rows = rows if ended.kind == "peer" else self._ended_rows
        last = f": {ended.words.splitlines()[-1]}" if ended.words else ""
        if self._vain[ended.kind] >= MOST_AT_ONCE:
            many = self._vain[ended.kind]
            self._give_up(f"{many} processes ended one after the other, and no row did meanwhile{last}")
        elif ended.kind == "office":
            self.tell(f"the office ended ({_how(ended.code)}): another begins{last}")
            self._lose_link()
            self._start_office()
        elif ended.code == FAILED:
            self.tell(f"a peer's journal cannot be written, and it has ended{last}")
            if not self._crew.alive:
                self._give_up("no peer is left whose journal can be written", "journal")
        else:
            self.tell(f"a peer ended ({_how(ended.code)}): another begins{last}")
            self._crew.start_peer(ended.labels)

    def _still_ours(self) -> bool:
        try:
            return self._journal.still_ours()
        except OSError:  # nobody knows: whoever writes next finds out
            return True

    def _give_up(self, why: str, state: str = "broken") -> None:
        self._wanted = Stop(state, why=why)
        self._stopping(state, why)

    def _journal_failed(self, error: JournalError) -> None:
        self._wanted = Stop("journal")
        self._stopping("journal")
        self.error = error

    # The office

    def _counts(self) -> list[Counts]:
        """What is in flight at a process that was seen to end has ended with it, before the office says so."""
        if self._status is None:
            return []
        return [
            idle(each.counts) if (each.host, each.pid) in self._dead else each.counts for each in self._status.members
        ]

    async def _ask_status(self) -> None:
        answer = await self._ask(words.STATUS, None)
        if answer is not None:
            before, self._status = self._status, msgspec.convert(answer, Status)
            if self._state and before is not None and before.generation != self._status.generation:
                grace = math.inf if self._state == "budget" else None
                self._wanted = Stop(self._state, grace)  # the one before had been told, and this one was not
            self._patient_until = time.monotonic() + DEAF_S
            self.ledger.take(self._status.members)
        elif time.monotonic() > self._patient_until:
            self._patient_until = time.monotonic() + DEAF_S
            self._lose_link()
            self._crew.kill_office()

    async def _ask(self, kind: str, body: Any) -> Any:
        """The answer; None where there is none. `True` for an answer without content."""
        assert self.directory is not None
        try:
            if self._link is None:
                office = await asyncio.to_thread(find_office, self.directory)
                if office is None:
                    return None
                self._link = await dial(office.address, self._key, "driver", answers_nothing, 1.0)
            answer = await self._link.ask(kind, body, timeout=1.0)
        except (LinkLost, TimeoutError, ValueError):
            self._lose_link()
            return None
        return True if answer is None else answer

    def _lose_link(self) -> None:
        if self._link is not None:
            self._link.close()
            self._link = None


def _surveyed(seen: Survey, last: int) -> RowsLeft:
    left = tuple((each.start, each.stop, each.prior) for each in seen.left)
    return RowsLeft(last, tuple(seen.whole), left, time.time())


def _counted(peers: int) -> str:
    return "1 peer" if peers == 1 else f"{peers:,} peers"


def _how(code: int | None) -> str:
    if code is None:
        return "nobody knows why"
    return f"signal {-code}" if code < 0 else f"exit code {code}"
