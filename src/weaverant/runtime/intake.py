"""Rows on their way in, the oldest first: of later stages, left from an earlier session, and new ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from heapq import heappop, heappush
from typing import Any, Protocol

from weaverant.errors import JournalCorrupt
from weaverant.events import Event, SourceEnded, TaskEvent, TaskSuperseded
from weaverant.protocols import Clock
from weaverant.runtime.feed import END, Empty, Feed
from weaverant.runtime.ledger import Ledger
from weaverant.runtime.stagebook import Refused, StageBook, key_of
from weaverant.runtime.unfinished import Begun, Unfinished
from weaverant.task import Row

Write = Callable[[Event, Callable[[], None] | None], None]
"""Takes an event, and what to call once it is durable."""


class RowsIn(Protocol):
    """Where a swarm's rows come from."""

    @property
    def drained(self) -> bool:
        """There are no more rows to begin with."""
        ...

    @property
    def waiting(self) -> bool:
        """Rows that came in have not started."""
        ...

    @property
    def gathering(self) -> bool:
        """There are groups still to be formed."""
        ...

    @property
    def held_back(self) -> bool:
        """All rows of a pilot have come."""
        ...

    def attach(
        self,
        write: Write,
        source_failed: Callable[[BaseException], None],
        broken: Callable[[BaseException], None],
    ) -> None:
        """`write` takes events, `source_failed` what the source raises, `broken` a contradiction."""
        ...

    def wake_with(self, wake: Callable[[], None]) -> None:
        """`wake` is called where there is more; from any thread."""
        ...

    def next(self) -> Row | Refused | Begun | None:
        """The oldest there is."""
        ...

    def made(self, row: Row, result: Any) -> None:
        """A task is done: its result is rows of the next stage."""
        ...

    def ended(self, row: Row) -> None:
        """A task has ended, done or not; what it made has come in."""
        ...

    def close_groups(self) -> None:
        """Form what groups can be formed."""
        ...

    def nothing_left(self) -> bool:
        """Whether the rows that were in flight when the run stopped were the last."""
        ...

    def close(self) -> Iterator[Row | Refused]:
        """Stop reading. Gives what was read ahead from a source that cannot be read again."""
        ...


class Intake:
    """The rows of a run in one process."""

    def __init__(self, feed: Feed, book: StageBook, ledger: Ledger, left: Unfinished, clock: Clock) -> None:
        self.drained = False
        """The source has no more rows."""
        self._feed = feed
        self._book = book
        self._ledger = ledger
        self._left = left
        self._clock = clock
        self._write: Write
        self._source_failed: Callable[[BaseException], None]
        self._broken: Callable[[BaseException], None]
        self._backlog: list[tuple[int, int, Row | Refused | Begun]] = []
        self._count = 0
        for row in left.rows:
            self._push(row)

    @property
    def waiting(self) -> bool:
        """Rows that came in have not started."""
        return bool(self._backlog)

    @property
    def gathering(self) -> bool:
        """There are groups still to be formed."""
        return self._book.waiting

    @property
    def held_back(self) -> bool:
        """All rows of a pilot have come."""
        return self._feed.held

    def attach(
        self,
        write: Write,
        source_failed: Callable[[BaseException], None],
        broken: Callable[[BaseException], None],
    ) -> None:
        """See `RowsIn`."""
        self._write, self._source_failed, self._broken = write, source_failed, broken

    def wake_with(self, wake: Callable[[], None]) -> None:
        """`wake` is called where a slow source has more; from any thread."""
        self._feed.wake_with(wake)

    def next(self) -> Row | Refused | Begun | None:
        """The oldest there is."""
        if self._backlog:
            return heappop(self._backlog)[2]
        restored = next(self._left.restored, None)
        if restored is not None:
            return restored
        try:
            skipped = next(self._left.skipped, None)
            if skipped is not None:
                self._ledger.stages[0].rows += 1
                return skipped
            got = self._feed.next()
        except (Exception, SystemExit) as error:  # the boundary to a source
            self._source_failed(error)
            return None
        if not isinstance(got, Empty):
            self._ledger.stages[0].rows += 1
            return got
        if got is END and not self.drained:
            self._drain()
            self.close_groups()
            return self.next() if self._backlog else None
        return None

    def made(self, row: Row, result: Any) -> None:
        """A task is done: its result is rows of the next stage."""
        for got in self._book.enter(row, result):
            self._again(got)

    def ended(self, row: Row) -> None:
        """Nothing hangs on it here."""

    def close_groups(self) -> None:
        """Form what groups can be formed."""
        while self._book.waiting and (formed := self._book.close_groups()):
            for got in formed:
                self._again(got)  # one that had ended before may let the next stage's groups form
        if self._left.held and not self._book.waiting:
            for key in self._left.held:
                self._write(TaskSuperseded(key, "", self._clock.time()), None)
            self._left.held.clear()

    def nothing_left(self) -> bool:
        """Whether the rows that were in flight when the run stopped were the last."""
        if self._book.waiting or any(stage.left for stage in self._ledger.stages):
            return False
        if not self.drained and self._feed.at_end():
            self._drain()
        return self.drained

    def close(self) -> Iterator[Row | Refused]:
        """Stop reading. Gives what was read ahead from a source that cannot be read again."""
        try:
            for got in self._feed.close():
                self._ledger.stages[0].rows += 1
                yield got
        except (Exception, SystemExit) as error:  # it had been read ahead
            self._source_failed(error)

    def _drain(self) -> None:
        self.drained = True
        self._write(SourceEnded(self._feed.count, self._clock.time()), None)

    def _again(self, got: Row | Refused) -> None:
        """A row of a later stage. If an earlier session had it, carry on from there."""
        key = key_of(got)
        if key in self._left.superseded:
            self._broken(
                JournalCorrupt(f"task {key!r} is superseded, and is there again. Put the run back from a copy")
            )
            return
        held = self._left.held.pop(key, None)
        if held is None:
            if key not in self._left.known:
                self._push(got)
            return
        if held.state is None:
            self._push(got, held.events)
            return
        self._ledger.stages[held.stage].count(held.state, "(earlier)")
        if held.state == "done" and isinstance(got, Row):
            self.made(got, held.result)

    def _push(self, got: Row | Refused, events: list[TaskEvent] | None = None) -> None:
        row = got[0] if isinstance(got, tuple) else got
        self._count += 1
        heappush(self._backlog, (row.order, self._count, got if events is None else Begun(row.order, events)))
