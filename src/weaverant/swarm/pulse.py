"""A peer's sign of life while a workflow holds its event loop: without it a row that computes for seconds would look
like a peer that is dead, and so would everybody who gets that row next.

A thread with an event loop and a link of its own. A process that is stopped, or a machine that is gone, has no pulse.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from weaverant.errors import WeaverantError
from weaverant.swarm.listener import answers_nothing, dial
from weaverant.swarm.messages import PULSE
from weaverant.swarm.places import find_office

EVERY_S = 0.5
HELD_S = 1.0
"""Seconds without a beat of the peer itself after which its pulse is told."""


class Pulse:
    """From `start` to `stop`. `heard` gives when the office last heard of the peer, `hear` is told when it did."""

    def __init__(
        self, run: Path, key: bytes, epoch: int, heard: Callable[[], float], hear: Callable[[float], None]
    ) -> None:
        """Times are those of `time.monotonic`."""
        self._run = run
        self._key = key
        self._epoch = epoch
        self._heard = heard
        self._hear = hear
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, name="weaverant-pulse", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Does not wait for the thread: it notices."""
        self._over.set()

    def _work(self) -> None:
        while not self._over.wait(EVERY_S):
            if time.monotonic() - self._heard() > HELD_S:
                with suppress(WeaverantError, OSError, TimeoutError, RuntimeError):
                    asyncio.run(self._tell())

    async def _tell(self) -> None:
        """While the peer itself does not."""
        office = find_office(self._run)
        if office is None:
            return
        link = await dial(office.address, self._key, f"pulse-{self._epoch}", answers_nothing, 1.0)
        try:
            while not self._over.is_set() and time.monotonic() - self._heard() > EVERY_S / 2:
                sent = time.monotonic()
                await link.ask(PULSE, self._epoch, timeout=1.0)
                self._hear(sent)
                await asyncio.sleep(EVERY_S)
        finally:
            link.close()
