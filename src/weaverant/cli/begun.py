"""A row that a dry run begins: in memory, with no model asked and no function called.

What it asks first is as it would be. Then it goes on with a placeholder for each reply that is a bare text, to see the
prompts behind it: of those only a variable that no call gives is worth telling, whatever the replies will be.
"""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, cast

from weaverant.binding import Binding
from weaverant.events import NO_USAGE, Event, TaskEnded
from weaverant.message import Message, Reply, Usage
from weaverant.protocols import Clock
from weaverant.session import Run
from weaverant.step import Ask, ModelAsk
from weaverant.task import Row, TaskRun

MOST_PLACEHOLDERS = 50
"""Replies that are made up for one row: it may wait for one that it will never get."""

UNDEFINED = "UndefinedError"
_NOT_GIVEN = re.compile(r": '\w+' is undefined")


class Begun:
    """To its task it is a peer that owns nothing: it starts the work and never ends it."""

    def __init__(self, run: Run, row: Row) -> None:
        self.binding: Binding = run.binding
        self.clock: Clock = time
        self.first: Ask | None = None
        """What it asks first; None where it ends before that."""
        self.end: TaskEnded | None = None
        self._open: deque[Ask] = deque()
        self._durable: deque[Callable[[], None]] = deque()
        task = TaskRun(self, run.recipe.stages[0], row)
        try:
            task.begin()
            self._go_on(task)
        finally:
            task.close()

    @property
    def undefined(self) -> str:
        """A template's variable that it is not given, with the place; empty where there is none."""
        end = self.end
        if end is None or end.reason != UNDEFINED or not (self.first is None or _NOT_GIVEN.search(self._text)):
            return ""
        return f"{end.where}: {self._text}"

    @property
    def stillborn(self) -> str:
        """Why it fails before its first step; empty where it does not."""
        end = self.end
        failed = self.first is None and end is not None and end.state == "failed"
        return f"{end.reason}: {self._text}{f' ({end.where})' if end.where else ''}" if failed and end else ""

    @property
    def _text(self) -> str:
        return str(cast("dict[str, Any]", self.end.value).get("text", "")) if self.end is not None else ""

    def _go_on(self, task: TaskRun) -> None:
        for _ in range(MOST_PLACEHOLDERS):
            if not self._open or self.end is not None:
                return
            ask = self._open.popleft()
            task.record(ask, Reply(Message("assistant", f"(what {ask.name} replies)")))
            while self._durable:
                self._durable.popleft()()

    # What its task asks of a peer

    def write(self, event: Event, durable: Callable[[], None] | None, blobs: Mapping[bytes, str] | None) -> None:
        if isinstance(event, TaskEnded):
            self.end = event
        elif durable is not None:
            self._durable.append(durable)

    def launch(self, run: TaskRun, ask: Ask) -> None:
        self.first = self.first or ask
        if isinstance(ask, ModelAsk):
            request = ask.by.request(ask.messages)
            if request.output is None and request.sampling.n == 1:
                self._open.append(ask)

    def cancel(self, ask: Ask) -> None: ...

    def charge(self, run: TaskRun, ask: Ask, usage: Usage | None) -> Usage:
        return usage or NO_USAGE

    def abandon(self, run: TaskRun) -> None: ...

    def call_later(self, delay: float, callback: Callable[[], None]) -> Any:
        """Timers never fire."""
        return _NoTimer()

    def ended(self, run: TaskRun, event: TaskEnded, value: Any) -> None: ...


class _NoTimer:
    def cancel(self) -> None: ...
