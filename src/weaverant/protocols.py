"""The waist: every contract between the floors, on one page. Read this first.

Above it are the many words of a workflow, below it the many kinds of engines, journals and sources. A kind knows
this page and none of its siblings; `launch.py` is where they meet.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any, Protocol

from msgspec import Struct

from weaverant.events import Event
from weaverant.message import Reply, Request


class CallContext(Struct, frozen=True):
    """What an engine may know of a call besides the request. `task` and `path` say where it was made, `occurrence`
    counts equal requests in that branch, `order` is the task's age (smaller is older and goes first)."""

    task: str
    path: str = ""
    occurrence: int = 0
    order: int = 0


class Engine(Protocol):
    """Answers chat requests. May be called many times at once from one event loop."""

    @property
    def identity(self) -> str:
        """What answers, never where: part of every step's fingerprint. Two engines that would answer alike share it."""
        ...

    async def generate(self, request: Request, ctx: CallContext) -> Reply:
        """One reply, or `StepFailed`. Cancelling the call must stop the work and free what it held."""
        ...

    async def close(self) -> None:
        """Release connections and threads. Calls in flight may be lost."""
        ...


class Source(Protocol):
    """Where rows come from. Iterated lazily, from any index: a source of a billion rows is fine."""

    @property
    def name(self) -> str: ...

    @property
    def rereadable(self) -> bool:
        """False for standard input and generators: resuming such a run serves the rows it had started, and after an
        orderly stop those that it had read ahead."""
        ...

    def rows(self, start: int) -> Iterator[Mapping[str, Any] | Unreadable]:
        """The rows from index `start` on, in a fixed order."""
        ...

    def identity(self) -> str | None:
        """What tells this input from another, so that a resumed run notices a changed one; None where nothing can."""
        ...

    def count(self) -> int | None:
        """The number of rows; None where only reading to the end would tell."""
        ...


class Unreadable(Struct, frozen=True):
    """A row that could not be read. It becomes a task that failed with reason `unreadable`."""

    text: str
    where: str


class Journal(Protocol):
    """Append-only, one writer. An event is acknowledged once it is durable."""

    def append(
        self, event: Event, durable: Callable[[], None] | None = None, blobs: Mapping[bytes, str] | None = None
    ) -> None:
        """Queue the event; call `durable()` on the event loop, in append order, once it is safely stored.

        `blobs` are long texts, by digest, that the event names; they are made durable before the event is.
        After a failed write nothing is accepted any more: `JournalError`.
        """
        ...

    async def flush(self) -> None:
        """Return when everything appended so far is durable."""
        ...

    async def close(self) -> None:
        """Flush, seal the segment and let go of the run directory."""
        ...


class Exporter(Protocol):
    """A pure function from one finished task to training samples, each plain data."""

    def __call__(self, task: Any) -> AsyncIterator[dict[str, Any]] | Iterator[dict[str, Any]]: ...
