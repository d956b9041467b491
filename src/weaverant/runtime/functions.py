"""The users' functions that an event loop waits for: progress names the one that takes longest, and what nobody waits
for any more is told of."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import NamedTuple
from weakref import WeakKeyDictionary

from weaverant.step import EffectAsk


class Running(NamedTuple):
    """A function that is waited for, since when (`time.monotonic`), and for which row."""

    name: str
    row: str
    since: float


class Functions:
    """Those of one event loop. `tell` takes lines for people, while somebody listens."""

    def __init__(self) -> None:
        self.tell: Callable[[str], None] = _nobody
        self._running: dict[EffectAsk, Running] = {}

    def begin(self, ask: EffectAsk, row: str) -> None:
        self._running[ask] = Running(ask.name, row, time.monotonic())

    def end(self, ask: EffectAsk) -> None:
        del self._running[ask]

    def __len__(self) -> int:
        return len(self._running)

    def unheard(self, tell: Callable[[str], None]) -> None:
        """Who took the lines with this does not listen any more."""
        if self.tell is tell:
            self.tell = _nobody

    def longest(self) -> Running | None:
        """The one that has been waited for longest."""
        return next(iter(self._running.values()), None)


def functions() -> Functions:
    """Those of the running event loop."""
    loop = asyncio.get_running_loop()
    found = _by_loop.get(loop)
    if found is None:
        found = _by_loop[loop] = Functions()
    return found


def _nobody(text: str) -> None:
    pass


_by_loop: WeakKeyDictionary[asyncio.AbstractEventLoop, Functions] = WeakKeyDictionary()
