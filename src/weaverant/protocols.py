"""The waist: every contract between the floors, on one page. Read this first.

Above it are the many words of a workflow, below it the many kinds of engines, journals and sources. A kind knows
this page and none of its siblings; `launch.py` is where they meet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

from msgspec import Struct

from weaverant.events import Capacity, Event
from weaverant.message import Reply, Request
from weaverant.step import Turn


class Clock(Protocol):
    """What time it is. The module `time` is one; a simulated world brings its own."""

    def monotonic(self) -> float:
        """Seconds that only ever grow, from any moment on."""
        ...

    def time(self) -> float:
        """Unix time. It may jump."""
        ...


class Purse(Protocol):
    """What a call may still cost. An engine gets one where the run has a budget, and asks it before every request."""

    async def afford(self, dollars: float, claim: str = "") -> None:
        """Return once `dollars` in all are set aside for this call, durably; asking for less again changes nothing.

        Where the budget has no room it waits, if need be until the run ends, to be resumed with a larger one. What a
        step's usage then says it cost replaces what was set aside. A `claim` names a purchase that outlives the
        process (a batch): set aside again after a resume, it counts once.
        """
        ...

    def affords(self, dollars: float) -> bool:
        """Whether so much in all would be set aside at once. Asked before a request that is not needed: to wait for
        its money may end the run."""
        ...


class Permit(Protocol):
    """Whether anything may be asked now. An engine gets one where others may be about to take this process's tasks, and
    looks right before a request leaves the process: a call that was let go may have stood still since, with all the
    process, and others have made it meanwhile."""

    def __call__(self) -> bool: ...

    async def wait(self) -> None:
        """Return once it may be so again: the call is none that failed. May last until the run ends."""
        ...


class CallContext(Struct, frozen=True):
    """What an engine may know of a call besides the request. `task` and `path` say where it was made, `occurrence`
    counts equal requests in that branch, `order` is the task's age (smaller is older and goes first), `run` tells
    the run from all others, through all its sessions. In `turn` the engine says whether the call still waits. Without a
    `permit` it may always ask."""

    task: str
    path: str = ""
    occurrence: int = 0
    order: int = 0
    run: str = ""
    purse: Purse | None = None
    turn: Turn | None = None
    permit: Permit | None = None


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


class Costly(Protocol):
    """What an engine has besides where its calls may cost money."""

    def unbounded(self, request: Request) -> str:
        """Why nobody can say what the request costs at most, and the way out; empty where it can be said."""
        ...


class Priced(Protocol):
    """What an engine has besides where a pilot can learn how much room under a budget one call needs."""

    def worst(self, request: Request) -> float | None:
        """The most that one such request can cost, in dollars; None where `Costly.unbounded` says why nobody knows."""
        ...


class Claiming(Protocol):
    """What an engine has besides where it buys what outlives the process, under claims of its purse."""

    @property
    def claims(self) -> bool: ...


class Selective(Protocol):
    """What an engine has besides where it cannot do all that an agent may ask for."""

    def refuses(self, request: Request) -> str:
        """What no request with these tools, output and sampling gets from it, whatever its messages; empty where it
        takes them. Asked once for an agent, before its first call; the request has no messages."""
        ...


class Load(Struct, frozen=True, array_like=True, tag="load"):
    """One server, as an engine finds it: requests in flight, of so many places; what a call takes, 0 while unknown."""

    server: str
    in_flight: int
    places: int
    seconds: float = 0.0
    trouble: str = ""

    def __str__(self) -> str:
        takes = f", {self.seconds:.3g} s" if self.seconds else ""
        trouble = f"; {self.trouble}" if self.trouble else ""
        return f"{self.server}  {self.in_flight:,} of {self.places:,} in flight{takes}{trouble}"


class Tally(Struct, frozen=True, array_like=True, tag="tally"):
    """How many of something there are: `one` and `many` say of what, the latter with `{}` for the number."""

    count: int
    one: str
    many: str

    def __str__(self) -> str:
        return self.one if self.count == 1 else self.many.format(f"{self.count:,}")


Note = str | Load | Tally
"""What is told while a run goes on. Those of several peers are added up where they are numbers."""


class Observed(Protocol):
    """What an engine has besides where it has something to tell while a run goes on. One that counts may give `notes()`
    too, the same as a list of `Note`."""

    def status(self) -> list[str]:
        """Short lines for people: each replica's load, and what it waits for."""
        ...


class Sized(Protocol):
    """What an engine has besides where a pilot can learn how fast a long run may get."""

    def capacity(self) -> Capacity:
        """How much it was found to take so far. Asked once, when the pilot ends."""
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
