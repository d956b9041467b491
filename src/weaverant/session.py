"""A session of a run, in this process: prepared, worked on to its end, to be resumed by another."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from weaverant.binding import Binding
from weaverant.blocking import Blocking
from weaverant.compound import Served
from weaverant.errors import JournalError, Misdirected, RunChanged, UserError, WeaverantError
from weaverant.events import RunOpened, Shortfall, TaskReopened, TaskTaken
from weaverant.journal import BlobStore, JournalReader, NullJournal, SegmentJournal
from weaverant.journal.homes import OWN
from weaverant.protocols import Clock, Journal, Note, Source, Tally, Unreadable
from weaverant.recipe import Recipe
from weaverant.row import source_key
from weaverant.rundir import (
    RunConfig,
    write_config,
)
from weaverant.runtime.budget import Budget
from weaverant.runtime.collector import Collector
from weaverant.runtime.ending import to_its_end
from weaverant.runtime.feed import Feed, NumberedRows, as_row
from weaverant.runtime.intake import Intake
from weaverant.runtime.ledger import Ledger
from weaverant.runtime.limits import Limits
from weaverant.runtime.local import LocalSwarm
from weaverant.runtime.outlook import Outlook
from weaverant.runtime.recovery import Recovery, started_of
from weaverant.runtime.refusals import Refusals
from weaverant.runtime.reuse import OldRun
from weaverant.runtime.stagebook import StageBook
from weaverant.runtime.surroundings import Surroundings
from weaverant.runtime.unfinished import Retry, Unfinished
from weaverant.runtime.watch import Watch
from weaverant.story import Storyteller
from weaverant.swarm.ending import end_peers
from weaverant.task import Task

_log = logging.getLogger("weaverant")

EXIT_CODES = {
    "finished": 0, "pilot": 0, "interrupted": 4, "fuse": 4, "journal": 4, "closed": 4, "server": 4, "budget": 5,
    "source": 1,
}  # fmt: skip
MISDIRECTED = 2
"""In state `server`: the same command would only find out the same."""


class Seat(Protocol):
    """What makes a run in this process one peer of several."""

    @property
    def epoch(self) -> int:
        """Whose journal it writes."""
        ...

    def prepare(self, run: Run, journal: Journal, collector: Collector) -> LocalSwarm: ...

    async def linger(self) -> None:
        """Return when nobody else needs the engines of this process any more, or for long enough."""
        ...


class Run:
    """A run that has been prepared. It starts when it is iterated over, once, and gives every task as it ends."""

    def __init__(
        self,
        recipe: Recipe,
        config: RunConfig,
        binding: Binding,
        own_engines: list[Served],
        source: Source,
        limits: Limits,
        directory: Path | None,
        resumed: bool,
        retry: Retry | None = None,
        pilot: int | None = None,
        fresh: bool = False,
        specs: Mapping[str, str] | None = None,
    ) -> None:
        """`fresh`: other models than those of its first session, none of which has answered a call. `specs`: what
        this session's models were opened from, where that is not what the run began with."""
        self.recipe = recipe
        self.config = config
        self.directory = directory
        self.resumed = resumed
        self.binding = binding
        self.source = source
        self.specs: dict[str, str] = dict(config.models if specs is None else specs)
        """By name, as in `RunConfig.models`; what they lead to is the same."""
        self.ledger = Ledger([stage.name for stage in recipe.stages])
        self.ledger.total = config.rows
        self.unfinished = Unfinished()
        self._own_engines = own_engines
        self.limits = limits
        self.retry = retry
        self._fresh = fresh
        self.pilot = pilot
        self._budget: Budget | None = None
        self._swarm: LocalSwarm | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop_early = ""
        self._begun = False
        self.surroundings = Surroundings()
        self.seat: Seat | None = None
        self.tell: Callable[[str], None] = _warn
        """Takes lines for people that cannot wait, such as who holds the event loop; also from another thread."""

    @property
    def state(self) -> str:
        """`ready`, `running`, `finished`, or why it stopped: `interrupted`, `fuse`, `journal`, `source`, `closed`,
        `server`, `budget`, `pilot`, `broken` (also one that could not begin)."""
        if self._swarm is None:
            return "broken" if self._begun and self._loop is None else self._stop_early or "ready"
        return self._swarm.stopped or ("running" if self._loop is not None else "finished")

    @property
    def began(self) -> bool:
        """Whether it has been prepared and knows what it takes up again."""
        return self._swarm is not None

    @property
    def error(self) -> BaseException | None:
        """What stopped it, where it was an error."""
        return None if self._swarm is None or self.state == "finished" else self._swarm.error

    @property
    def short(self) -> Shortfall | None:
        """What a run that stopped for money lacked."""
        return None if self._budget is None or self.state != "budget" else self._budget.short

    @property
    def in_flight(self) -> tuple[int, int]:
        """(rows, calls) in flight."""
        return (0, 0) if self._swarm is None else self._swarm.in_flight

    @property
    def sent(self) -> int:
        """Those of the calls in flight that wait for nothing any more inside their engine."""
        return 0 if self._swarm is None else self._swarm.sent

    @property
    def cut(self) -> int:
        """Calls that were cut off when it stopped and may be on a bill: no money had been set aside for them."""
        return 0 if self._swarm is None else self._swarm.cut

    @property
    def spent(self) -> float:
        """US dollars, those of all sessions."""
        return self.ledger.earlier_cost + self.ledger.usage().cost if self._budget is None else self._budget.spent

    @property
    def priced(self) -> bool:
        """Whether the price of every model is known."""
        return not self.config.unpriced

    @property
    def notes(self) -> list[str]:
        """What engines have to tell while the run goes on, and how many calls wait for money."""
        return list(map(str, self.told))

    @property
    def told(self) -> list[Note]:
        """The same, for others to add up."""
        engines = {id(engine): engine for engine in self.binding.served.values()}
        lines = [note for engine in engines.values() for note in _status(engine)]
        waiting = 0 if self._budget is None else self._budget.waiting
        wait = Tally(waiting, "budget: 1 call waits for money", "budget: {} calls wait for money")
        return [wait, *lines] if waiting else lines

    @property
    def exit_code(self) -> int:
        """0 all finished, or all of a pilot; 1 could not go on; 2 wrong key or address; 3 the same as 0, but some rows
        failed; 4 stopped and resumable; 5 stopped because the budget is used up, resumable with a larger one."""
        code = MISDIRECTED if isinstance(self.error, Misdirected) else EXIT_CODES.get(self.state, 1)
        return 3 if code == 0 and self.ledger.failed else code

    def stop(self, reason: str = "interrupted") -> None:
        """Let what is in flight finish, start nothing more. Called again, wait no longer. From any thread."""
        swarm, loop = self._swarm, self._loop
        if swarm is None or loop is None:
            self._stop_early = reason
        else:
            loop.call_soon_threadsafe(swarm.stop, reason)

    def leave(self) -> None:
        """The caller wants no more tasks: stop at once, as leaving an `async for` does. From any thread."""
        swarm, loop = self._swarm, self._loop
        if swarm is None:
            self._stop_early = "closed"
        elif loop is not None:
            loop.call_soon_threadsafe(swarm.stop, "closed", 0.0)

    async def __aiter__(self) -> AsyncIterator[Task]:
        if self._begun:
            raise UserError("a run is iterated over once; resume it, or make another")
        self._begun = True
        self._loop = asyncio.get_running_loop()
        collector = Collector(self.limits.tasks)
        journal: Journal | None = None
        try:
            try:
                journal = self._open_journal()
                if self.seat is not None:
                    self._swarm = self.seat.prepare(self, journal, collector)
                else:
                    if self.resumed and self.directory is not None:
                        await end_peers(self.directory)
                    self._swarm = self._prepare(journal, collector)
                if self.limits.max_failures < 1:
                    self.ledger.refused = Refusals(self._tell, self._refused, lambda: self.in_flight[1]).note
                if self._budget is not None and self._budget.exceeded:
                    self._stop_early = self._stop_early or "budget"
                if self._stop_early:
                    self._swarm.stop(self._stop_early, 0.0 if self._stop_early == "closed" else None)
                tasks = self._swarm.run()
                watch = Watch(self.tell) if self.surroundings.watched else None
                try:
                    async for task in tasks:
                        yield task
                finally:
                    await tasks.aclose()
                    self.unfinished.count_held(self.ledger)
                    if not self._swarm.stopped:  # the source has ended, whatever it had promised
                        self.ledger.total = None
                    if watch is not None:
                        watch.close()
            finally:
                await to_its_end(self._close(journal))
        finally:
            self._loop = None
            collector.over()
            if self.error is not None and self.tell is _warn:  # a command prints it itself
                _log.error("weaverant: the run stopped (%s): %s", self.state, self.error)

    def __iter__(self) -> Iterator[Task]:
        return iter(Blocking(self, self.leave))

    def wait(self) -> Run:
        """Run to the end and keep nothing but the counts."""
        for _ in self:
            pass
        return self

    def _open_journal(self) -> Journal:
        here = self.surroundings
        if self.directory is None:
            return NullJournal(here.clock)
        return SegmentJournal(
            self.directory, segment_bytes=here.segment_bytes, on_failure=self._journal_failed,
            disk=here.disk, worker=here.worker, clock=here.clock, epoch=OWN if self.seat is None else self.seat.epoch,
        )  # fmt: skip

    def _tell(self, text: str) -> None:
        self.tell(text)

    def _refused(self, text: str) -> None:
        """No call of an agent is taken: the rest of the rows would only fail alike."""
        if self._swarm is not None and not self._swarm.stopped and self._loop is not None:
            self._swarm.error = UserError(text)
            self._loop.call_soon(self._swarm.stop, "fuse")

    def _journal_failed(self, error: JournalError) -> None:
        if self._swarm is not None:
            self._swarm.journal_failed(error)

    def _prepare(self, journal: Journal, collector: Collector) -> LocalSwarm:
        recipe, config, directory, clock = self.recipe, self.config, self.directory, self.surroundings.clock
        book = StageBook(recipe.stages, self.ledger)
        blob = _no_blob if directory is None else BlobStore(directory / "blobs").get
        session = 0
        begun: list[tuple[str, bytes]] = []
        current: Any = None
        rows: Iterator[Any] | None = None
        budget = self.limits.budget
        if budget:
            self._budget = Budget(budget, clock=clock)
        if directory is not None and self.resumed:
            reader = JournalReader(directory)
            self.begin_afresh(reader)
            session = sum(isinstance(event, RunOpened) for event in reader.run_events())
            recovery = Recovery(reader, blob, recipe.stages, config.trials, self.ledger, book, clock)
            if config.reuse is not None:
                begun = [(task.task, task.row) for task in reader.tasks()]
            reopened: list[TaskReopened | TaskTaken] = []
            self.unfinished = recovery.unfinished(self.retry, reopened.append)
            self.unfinished.skipped = self._rows_in(self.unfinished.gaps)
            self.ledger.earlier = self.ledger.stages[0].ended
            current, rows = self._check_input(reader)
            self._budget = _budget_of(reader, budget, self.ledger.earlier_cost, clock)
            journal.append(RunOpened(session, clock.time(), config.version, budget))
            for event in reopened:
                journal.append(event)
        else:
            journal.append(RunOpened(session, clock.time(), config.version, budget))
        if rows is None:
            current = self._current_row(blob)
        feed = Feed(self.source, self.unfinished.started, config.trials, config.limit, current, self.pilot, rows)
        reuse = None if config.reuse is None else OldRun(Path(config.reuse), begun).steps_of
        intake = Intake(feed, book, self.ledger, self.unfinished, clock)
        return LocalSwarm(
            recipe.stages, self.binding, journal, intake, self.ledger, self.limits,
            blob=blob, run=config.run, budget=self._budget, reuse=reuse,
            outlook=None if self.pilot is None else Outlook(self.binding.models), clock=clock,
            grown=collector.rows,
        )  # fmt: skip

    def begin_afresh(self, reader: JournalReader) -> None:
        """Where nobody was asked yet and the models are others than those it began with: `run.json` names them from now
        on. `RunChanged` where somebody was asked meanwhile."""
        if self._fresh and self.directory is not None:
            if reader.calls():
                raise RunChanged(f"the run {str(self.directory)!r} went on meanwhile, with its own models: try again")
            write_config(self.directory, self.config)

    def _rows_in(self, spans: list[tuple[int, int]]) -> Iterator[Any]:
        """The rows of the source with these numbers, as far as there are any."""
        rows = NumberedRows(self.source, self.config.trials, self.config.limit)
        return (got for start, stop in spans for number in range(start, stop) if (got := rows.get(number)) is not None)

    def _current_row(self, blob: Callable[[bytes], str]) -> Any:
        """The last row that was started, from the journal, where more trials of it are to come and the source, which
        cannot be read again, may not give it any more."""
        index, trial = divmod(self.unfinished.started, self.config.trials)
        if not trial or self.source.rereadable or self.directory is None:
            return None
        events = JournalReader(self.directory).task_events(source_key(0, index, 0))
        row = Storyteller({}, blob).tell(events).row
        return Unreadable("it could not be read when its first trial began", str(index)) if row is None else row

    def _check_input(self, reader: JournalReader) -> tuple[Any, Iterator[Any] | None]:
        """The source must still give the row that was started last; else `RunChanged`. Gives that row and those after
        it, where there are any."""
        last = self.unfinished.started - 1
        if last < 0 or not self.source.rereadable:
            return None, None
        index, trial = divmod(last, self.config.trials)
        events = reader.task_events(source_key(0, index, trial))
        rows = self.source.rows(index)
        value = next(rows, None)
        found = None if value is None else as_row(value, last, self.config.trials)
        started = started_of(events)
        if found is None or found[0].digest != started.digest:
            raise RunChanged(
                f"row {index} of the input {self.source.name!r} is not what it was when the run "
                f"{str(self.directory)!r} began. Put the input back as it was, or start a new run that pays only for "
                f"what differs: weaverant run {self.config.workflow} ... --reuse {self.directory} (in Python reuse=)"
            )
        return value, rows

    async def _close(self, journal: Journal | None) -> None:
        try:
            if journal is not None:
                await journal.close()
        except JournalError as error:
            if self._swarm is not None:
                self._swarm.journal_failed(error)
        if self.seat is not None:
            await self.seat.linger()
        await self.close_engines()

    async def close_engines(self) -> None:
        """Close the engines that were opened from specs. Only for a run that is not started: a run does it itself."""
        for engine in self._own_engines:
            await engine.close()


def _budget_of(reader: JournalReader, cap: float, spent: float, clock: Clock) -> Budget | None:
    """The budget of a resumed run. Without one, what was set aside under an earlier one is still to be charged."""
    left = reader.reserved()
    if not cap and not left.open:
        return None
    return Budget(cap or math.inf, spent, left, clock)


def _status(engine: Served) -> list[Note]:
    """What the engine, or the compound, has to tell, where it has."""
    notes: Callable[[], list[Note]] | None = getattr(engine, "notes", None)
    tell: Callable[[], list[str]] | None = getattr(engine, "status", None)
    return notes() if notes is not None else [] if tell is None else [*tell()]


def _warn(text: str) -> None:
    _log.warning("weaverant: %s", text)


def _no_blob(key: bytes) -> str:
    raise WeaverantError(f"this run keeps no journal, so text {key.hex()} cannot be read again")
