"""The parts of a workflow's loop: what was recorded, what waits, and where in the workflow it was asked."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import Any

from msgspec import Struct

from weaverant.step import StepKey

TimerKey = tuple[str, int]
"""(branch path, how many timers that branch had made before)."""


class Record(Struct, frozen=True, eq=False):
    """A recorded outcome: what the workflow will see, and when on the task's clock and in Unix time.

    `outcome` is the value, a `StepFailed`, or `CANCELLED`; `number` counts the steps of the task in journal order.
    """

    number: int
    name: str
    outcome: Any
    clock: float
    time: float


CANCELLED = object()


class Callback(Struct, eq=False, weakref=True):
    """What `call_soon` returns: a handle as asyncio's, without its debugging."""

    callback: Callable[..., Any]
    args: tuple[Any, ...]
    context: Context
    gone: bool = False

    def cancel(self) -> None:
        self.gone = True

    def cancelled(self) -> bool:
        return self.gone


class Timer(Callback, eq=False, kw_only=True):
    """A `sleep` or a deadline. Its firing is an event of the task, found by (branch path, number)."""

    drop: Callable[[Timer], None]
    key: TimerKey
    due: float
    settled: bool = False
    handle: asyncio.TimerHandle | None = None

    def when(self) -> float:
        return self.due

    def cancel(self) -> None:
        if not self.gone:
            self.gone = True
            self.drop(self)


class Branch:
    """Where in a workflow's tree of tasks something is asked: spawn numbers from the root, as `0.2.1`."""

    __slots__ = ("calls", "counts", "left", "path", "spawned", "timers")

    def __init__(self, path: str) -> None:
        self.path = path
        self.spawned = 0
        self.left = 0
        self.timers = 0
        self.calls = 0
        self.counts: dict[bytes, int] = {}

    def spawn(self) -> Branch:
        child = Branch(f"{self.path}.{self.spawned}" if self.path else str(self.spawned))
        self.spawned += 1
        return child

    def leave(self) -> Branch:
        """Where a generator that was left early is closed."""
        child = Branch(f"{self.path}.left{self.left}")
        self.left += 1
        return child

    def call(self) -> Branch:
        """Where a compound model works out one reply: apart, so that the spawn numbers here do not depend on what
        answers."""
        child = Branch(f"{self.path}.call{self.calls}" if self.path else f"call{self.calls}")
        self.calls += 1
        return child

    def key(self, fingerprint: bytes) -> StepKey:
        occurrence = self.counts.get(fingerprint, 0)
        self.counts[fingerprint] = occurrence + 1
        return self.path, fingerprint, occurrence


def is_within(path: str, branch: str) -> bool:
    """Whether a path is that branch's, or of one that began there."""
    return path == branch or path.startswith(f"{branch}.")


class BranchTask(asyncio.Task[Any]):
    """A task that knows its branch. Hashed by its number in the workflow: a set of tasks is walked in the same order
    in every life, so what `asyncio.wait` returns and what a `TaskGroup` cancels first do not depend on addresses.
    The upper bits tell workflows apart, because asyncio keeps all tasks of the process in one set."""

    __slots__ = ("branch", "scope", "serial")

    def __init__(
        self,
        coro: Coroutine[Any, Any, Any],
        loop: asyncio.AbstractEventLoop,
        branch: Branch,
        serial: int,
        scope: Context,
    ) -> None:
        self.branch = branch
        self.serial = serial
        self.scope = scope
        super().__init__(coro, loop=loop, name=branch.path, context=scope)

    def __hash__(self) -> int:
        return self.serial
