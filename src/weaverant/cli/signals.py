"""Ctrl-C, SIGTERM and SIGHUP while a run goes on, also where code that does not yield holds its event loop.

Plain signal handlers, because those of an event loop wait for the loop: Python runs them between any two steps of a
program in its main thread, and within a search for a regular expression.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, Self

PATIENCE = 1.0
"""Seconds that the loop has to take notice of a second signal."""


_ORDERLY = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Signals:
    """From `listen` to the end of the `with` block: `notice` is called on the loop for every signal, `leave` in the
    main thread, with the frame that runs there, where the loop takes no notice of the second or a later one. A closed
    terminal hangs up more than once (the shell does, and the kernel), which counts as one; where hang-ups are ignored,
    as under `nohup`, they stay so."""

    def __init__(self, notice: Callable[[], None], leave: Callable[[FrameType | None], None]) -> None:
        self.count = 0
        self._noticed = 0
        self._hung_up = False
        self._notice = notice
        self._leave = leave
        self._loop: asyncio.AbstractEventLoop
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        self._before = {number: signal.getsignal(number) for number in _ORDERLY}
        return self

    def listen(self) -> None:
        """Signals go to the running loop from here on."""
        self._loop = asyncio.get_running_loop()
        for number in _ORDERLY:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                self._install(number, self._heard)
        self._install(signal.SIGVTALRM, _let_others)
        signal.setitimer(signal.ITIMER_VIRTUAL, 1.0, 1.0)

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0.0)
        if signal.SIGALRM in self._before:
            signal.setitimer(signal.ITIMER_REAL, 0.0)
        for number, before in self._before.items():
            signal.signal(number, before)

    def _install(self, number: signal.Signals, listener: Callable[[int, FrameType | None], None]) -> None:
        before = signal.signal(number, listener)
        self._before.setdefault(number, signal.SIG_DFL if before is None else before)

    def _heard(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP and self._hung_up:
            return
        self._hung_up |= number == signal.SIGHUP
        self.count += 1
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._take_notice)
        if self.count > 1:
            self._install(signal.SIGALRM, self._late)
            signal.setitimer(signal.ITIMER_REAL, PATIENCE)

    def _take_notice(self) -> None:
        self._noticed += 1
        self._notice()

    def _late(self, number: int, frame: FrameType | None) -> None:
        if self._noticed < self.count:
            self._leave(frame)


def _let_others(number: int, frame: FrameType | None) -> None:
    """Once for each second of computing: within a search for a regular expression no other thread runs, but this
    handler does, and lets the one run that tells what holds the loop."""
    time.sleep(0.0)
