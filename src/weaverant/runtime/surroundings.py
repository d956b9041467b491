"""What a run takes from the machine that it is on: its clock, its disk, a thread to write in."""

from __future__ import annotations

import time
from dataclasses import dataclass

from weaverant.journal.disk import Disk
from weaverant.journal.worker import Worker
from weaverant.journal.writer import SEGMENT_BYTES
from weaverant.protocols import Clock


@dataclass(frozen=True)
class Surroundings:
    """The real ones, where nothing else is said. `weaverant.testing.world` simulates them all."""

    clock: Clock = time
    disk: Disk | None = None
    worker: Worker | None = None
    segment_bytes: int = SEGMENT_BYTES
    watched: bool = True
    """Whether a thread looks for code that holds the event loop."""
