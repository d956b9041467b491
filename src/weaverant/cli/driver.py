"""A run that goes on in a terminal: with its progress on standard error, until its end or a signal."""

from __future__ import annotations

import asyncio
import os
import shlex
import sys
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import TYPE_CHECKING

from weaverant.cli.signals import Signals
from weaverant.cli.text import counted, exact
from weaverant.runtime.progress import Progress, is_live, money
from weaverant.runtime.watch import holder
from weaverant.session import EXIT_CODES, Run
from weaverant.task import Task

if TYPE_CHECKING:
    from weaverant.peers.driver import PeersRun


class Driver:
    """`seen` is called with every task as it ends."""

    def __init__(self, run: Run | PeersRun, seen: Callable[[Task], None], quiet: bool = False) -> None:
        self._signals = Signals(self._stop, self._leave)
        self._stops = 0
        self._announced = False
        self._run = run
        self._seen = seen
        self._quiet = quiet
        self._progress = Progress(run, run.config.rows, sys.stderr, is_live(sys.stderr) and not quiet)
        self._drawing: asyncio.Task[None] | None = None
        run.tell = self._progress.say

    @property
    def signals(self) -> int:
        """How many came."""
        return self._signals.count

    def go_on(self) -> None:
        """Go on to the end, or to an orderly stop."""
        with self._signals:
            asyncio.run(self._go())

    async def _go(self) -> None:
        loop = asyncio.get_running_loop()
        self._signals.listen()
        # The run prepares itself before the loop gets its next turn, and knows then what it takes up again.
        loop.call_soon(self._announce)
        try:
            async for task in self._run:
                self._seen(task)
        finally:
            if self._run.began and not self._announced:
                self._announce()
            if self._drawing is not None:
                self._drawing.cancel()
                with suppress(asyncio.CancelledError):
                    await self._drawing
            if self._run.began and not self._quiet:
                self._progress.finish()

    def _announce(self) -> None:
        if not self._run.began:  # it cannot begin, and the error says why; or it takes a moment
            asyncio.get_running_loop().call_later(0.02, self._announce)
            return
        if self._announced:
            return
        self._announced = True
        if self._run.state == "budget":
            self._say(
                f"nothing was asked: {exact(self._run.spent)} have been spent, more than the budget of "
                f"{money(self._run.limits.budget)}. Go on with a larger one: --budget DOLLARS"
            )
        again = self._run.unfinished.reopened
        if again:
            reasons = ", ".join(f"{reason} {count:,}" for reason, count in sorted(again.items()))
            self._say(f"taking up {counted(sum(again.values()), 'failed row')} again: {reasons}")
        if self._run.directory is not None:
            self._say(f"run directory: {self._run.directory}")
        if not self._quiet:
            self._drawing = asyncio.get_running_loop().create_task(self._progress.draw())

    def _stop(self) -> None:
        calls = self._run.sent
        self._run.stop("interrupted")
        self._stops += 1
        if self._stops == 1:
            grace = self._run.limits.grace
            self._say(
                f"stopping: {counted(calls, 'call')} in flight may finish, for {grace:g} s at most; {self._left()}. "
                "Ctrl-C again stops at once"
            )
        elif self._stops == 2:
            self._say("stopping at once")

    def _left(self) -> str:
        return "what is left can be resumed" if self._run.directory else "the rest is lost, as nothing is stored"

    def _leave(self, frame: FrameType | None) -> None:
        """The loop is held, so nothing can end in order. As after `kill -9` the journal has all that is needed. Said
        without Python's buffers: they may be in use where the signal came."""
        who = holder(frame) or "something"
        text = f"\nstopped at once, while {who} held the event loop; {self._left()}"
        if self._run.directory is not None:
            where, name = shlex.quote(str(self._run.directory)), self._run.config.workflow
            text += f": weaverant resume {where}, or once the code is mended weaverant run {name} ... --reuse {where}"
        with suppress(OSError):  # nobody may read it
            os.write(2, f"{text}\n".encode())
        os._exit(EXIT_CODES["interrupted"])

    def _say(self, text: str) -> None:
        if not self._quiet:
            self._progress.say(text)
