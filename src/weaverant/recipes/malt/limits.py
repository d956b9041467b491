"""A function that may never end, or ask for all the memory there is: time and memory for it, within its own process.

For the main thread of a process of `process_step` only. Time is that of the processor, so a loaded machine makes no
reply wrong; a call that waits has `PATIENCE` times as much by the clock.
"""

from __future__ import annotations

import resource
import signal
from collections.abc import Callable
from contextlib import suppress
from math import ceil
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

PATIENCE = 6
_AGAIN = 0.25
"""Seconds after which time is up once more, for code that caught the first one."""


class OutOfTime(BaseException):
    """No `Exception`: what catches everything should not catch this."""


class OutOfMemory(Exception):
    """The call asked for more than it may have."""


def limited(call: Callable[[], T], seconds: float, megabytes: int) -> T:
    """The call's value, or `OutOfTime`, `OutOfMemory`. Code that lets no signal in is ended with its process, after
    twice the time."""

    def over(number: int, frame: Any) -> None:
        raise OutOfTime

    before = [(kind, signal.signal(kind, over)) for kind in (signal.SIGPROF, signal.SIGALRM)]
    processor, space = resource.getrlimit(resource.RLIMIT_CPU), resource.getrlimit(resource.RLIMIT_AS)
    try:
        _bound(resource.RLIMIT_CPU, processor, ceil(_used() + 2 * seconds) + 1)
        _bound(resource.RLIMIT_AS, space, _size() + megabytes * 1_000_000)
        signal.setitimer(signal.ITIMER_PROF, seconds, _AGAIN)
        signal.setitimer(signal.ITIMER_REAL, PATIENCE * seconds, _AGAIN)
        return call()
    except MemoryError:
        raise OutOfMemory from None
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        for kind, earlier in before:
            signal.signal(kind, earlier)
        resource.setrlimit(resource.RLIMIT_AS, space)
        resource.setrlimit(resource.RLIMIT_CPU, processor)


def _bound(what: int, now: tuple[int, int], most: int) -> None:
    """Lower a soft limit; where the system has none, it has none."""
    soft, hard = now
    if soft == resource.RLIM_INFINITY or most < soft:
        with suppress(OSError, ValueError):
            resource.setrlimit(what, (most, hard))


def _used() -> float:
    """Seconds of the processor that this process has had."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _size() -> int:
    """Bytes of address space. Where nobody says, a terabyte, which bounds nothing."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except OSError:
        return 1 << 40
