"""Rows on their way in: from a source, one at a time, never more than are wanted.

A source that cannot be read again may block (a pipe, a generator), so a thread reads it a little ahead.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from weaverant.errors import UserError
from weaverant.protocols import Source, Unreadable
from weaverant.row import row_digest, source_key
from weaverant.task import Row
from weaverant.trace import plain

READ_AHEAD = 256


class Empty:
    """Why there is no row: `WAIT` for more, the `END`, or more are `HELD` back until the run is resumed."""


WAIT = Empty()
END = Empty()
HELD = Empty()


class Feed:
    """The rows of a source as tasks to be, from the `start`-th task on: each row `trials` times, at most `limit` rows.

    `wake` is called on the event loop when a slow source has more.
    """

    def __init__(
        self,
        source: Source,
        start: int,
        trials: int,
        limit: int | None,
        current: Any = None,
        pilot: int | None = None,
        rows: Iterator[Any] | None = None,
    ) -> None:
        """`current` is the row of the task before, where its trials are not all started and the source is past it.
        Rows after the first `pilot` are held back. `rows` are the source's after `current`, where somebody has them
        already: going to the end of a large file takes a while."""
        self.count = start
        """Tasks given so far, those of earlier sessions included."""
        self.ended = False
        self.held = False
        """There may be more rows, held back."""
        self._pilot = None if pilot is None else pilot * trials
        self._seen: Any = WAIT
        """The row that was looked at, to know whether there is one, and is not given yet."""
        self._trials = trials
        self._limit = None if limit is None else limit * trials
        if rows is None:
            rows = source.rows(start // trials + (current is not None))
        self._ahead = None if source.rereadable else _ReadAhead(rows)
        self._rows = rows
        self._current = current
        self._again = start % trials
        if self._again and current is None:
            self._current = next(rows, END)

    def wake_with(self, wake: Callable[[], None]) -> None:
        if self._ahead is not None:
            self._ahead.start(wake)

    def next(self) -> Row | tuple[Row, Unreadable] | Empty:
        """The next task's row; one that cannot be read comes with the reason."""
        if self.ended or (self._limit is not None and self.count >= self._limit):
            self.ended = True
            return END
        if self._again and self._holds():
            self.held = True
            return HELD
        if not self._again:
            got = self._take()
            self.ended, self.held = got is END, got is HELD
            if isinstance(got, Empty):
                return got
            self._current = got
        self._again = (self._again + 1) % self._trials
        row, unreadable = as_row(self._current, self.count, self._trials)
        self.count += 1
        return row if unreadable is None else (row, unreadable)

    def _take(self) -> Any:
        """The source's next row, unless it is held back."""
        got, self._seen = self._seen, WAIT
        if got is WAIT:
            got = next(self._rows, END) if self._ahead is None else self._ahead.next()
        if self._holds() and got is not END:
            self._seen = got
            return HELD
        return got

    def _holds(self) -> bool:
        """Whether all of a pilot's tasks have been given."""
        return self._pilot is not None and self.count >= self._pilot

    def at_end(self) -> bool:
        """Whether there are no more rows, as far as anybody knows. Call it only when none is wanted any more."""
        try:
            return self.ended or (self._ahead is None and self.next() is END)
        except (OSError, UserError):  # who goes on with the run is told
            return False

    def close(self) -> Iterator[Row | tuple[Row, Unreadable]]:
        """Stop reading, and give what was read ahead from a source that cannot be read again."""
        self._pilot = None
        if self._ahead is not None:
            self._ahead.close()
            while isinstance(got := self.next(), Row | tuple):
                yield got


class NumberedRows:
    """The rows of a source by their tasks' numbers, ascending mostly: a step back, or far ahead, reads it anew."""

    FAR = 1_000
    """Rows that are passed over one by one: reading a source from another place costs about as much."""

    def __init__(self, source: Source, trials: int, limit: int | None = None) -> None:
        self._source = source
        self._trials = trials
        self._limit = math.inf if limit is None else limit
        self._rows: Iterator[Any] = iter(())
        self._at = -1
        """The index of the row in `_value`."""
        self._value: Any = END

    def get(self, number: int) -> Row | tuple[Row, Unreadable] | None:
        """The task with that number; None behind the source's end, or the limit."""
        index = number // self._trials
        if index >= self._limit:
            return None
        if not self._at <= index <= self._at + self.FAR or self._at < 0:
            self._rows, self._at = self._source.rows(index), index - 1
        while self._at < index:
            self._value = next(self._rows, END)
            self._at += 1
            if self._value is END:
                self._at = -1
                return None
        row, unreadable = as_row(self._value, number, self._trials)
        return row if unreadable is None else (row, unreadable)


def as_row(value: Any, count: int, trials: int) -> tuple[Row, Unreadable | None]:
    """What a source gave, as the row of the `count`-th task, and why it cannot be used if it cannot."""
    index, trial = divmod(count, trials)
    key = source_key(0, index, trial)
    if not isinstance(value, Unreadable):
        try:
            data = plain(value, "the row")
            return Row(key, 0, count, row_digest(data, trial), data), None
        except (UserError, ValueError, OverflowError, TypeError) as error:
            value = Unreadable(str(error), key)
    value = Unreadable(_printable(value.text), _printable(value.where))
    return Row(key, 0, count, row_digest([value.text], trial), None), value


def _printable(text: str) -> str:
    """Text that can be written: a file's name need not be Unicode."""
    return text.encode(errors="backslashreplace").decode()


class _ReadAhead:
    """A thread that keeps a few rows ready."""

    def __init__(self, rows: Iterator[Any]) -> None:
        self._rows = rows
        self._ready: deque[Any] = deque()
        self._room = threading.Semaphore(READ_AHEAD)
        self._closed = False
        self._thread: threading.Thread
        self._wake: Callable[[], None] = lambda: None

    def start(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._thread = threading.Thread(target=self._read, name="weaverant-feed", daemon=True)
        self._thread.start()

    def next(self) -> Any:
        if not self._ready:
            return WAIT
        item = self._ready.popleft()
        self._room.release()
        if isinstance(item, BaseException):
            raise item
        return item

    def close(self) -> None:
        """Read no further. Waits for the thread only where it is about to hand over a row it has."""
        self._closed = True
        self._room.release()
        self._thread.join(0.1)

    def _read(self) -> None:
        try:
            for row in self._rows:
                self._room.acquire()
                self._ready.append(row)
                if self._closed:
                    return
                self._wake()
            self._ready.append(END)
        except BaseException as error:  # handed to the event loop, which raises it: also `sys.exit` of a generator
            self._ready.append(error)
        self._wake()
