"""The peers that ever worked on a run, as its journals tell."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import msgspec
from msgspec import Struct

from weaverant.events import Event, PeerClosed, PeerOpened, StepEnded, TaskEnded
from weaverant.journal import JournalReader
from weaverant.journal.homes import epochs_of, fence_of, home_of
from weaverant.journal.reader import RunEvent
from weaverant.swarm.records import leases_in
from weaverant.swarm.sight import Sight


class PeerSummary(Struct, frozen=True):
    """One of them. `state`: `working`; `idle`, where it holds no row (calls of other peers apart); `killed`; `unseen`,
    where this directory cannot tell; how it left; or `gone`, and `why` then. Rows that `ended` there, `calls` of its
    own rows, whoever made them, and calls of other peers' rows that it `answered`."""

    epoch: int
    host: str
    pid: int
    labels: list[str]
    state: str
    why: str
    since: float
    """Unix seconds."""
    ended: int
    calls: int
    answered: int
    killed: bool = False
    """It ended without a word of its own, when calls may have been in flight."""


class Deeds(Struct):
    """What was done in each journal of a run, by epoch. All calls together are those of all agents."""

    ended: Counter[int] = msgspec.field(default_factory=Counter[int])
    """Ends of rows in each stage; one that failed and was tried again ended twice."""
    calls: Counter[int] = msgspec.field(default_factory=Counter[int])
    """Calls of a model, reused ones included, of the rows of that journal."""
    answered: Counter[int] = msgspec.field(default_factory=Counter[int])
    """Those of other journals' rows that this peer made."""

    def see(self, epoch: int, event: Event) -> None:
        """An event in the journal of that epoch."""
        if isinstance(event, StepEnded):
            if event.kind == "model" and not event.inside:
                self.calls[epoch] += 1
                if event.host:
                    self.answered[event.host] += 1
        elif isinstance(event, TaskEnded):
            self.ended[epoch] += 1


def roster_of(run: Path, sight: Sight | None, deeds: Deeds) -> list[PeerSummary]:
    """By epoch. Those that were killed before they had written anything are left out. `sight`: who is at work now, None
    where the session has ended."""
    found: list[PeerSummary] = []
    for epoch in epochs_of(run):
        reader = JournalReader(run, (epoch,))
        told = list(reader.run_events())
        opened = next((event for event in told if isinstance(event, PeerOpened)), None)
        if opened is not None:
            closed = next((event for event in reversed(told) if isinstance(event, PeerClosed)), None)
            state, why = _state(run, opened, told, closed, sight)
            at_work = state in ("working", "idle", "unseen")
            killed = not at_work and closed is None and (bool(opened.labels) or _holds(epoch, told))
            did = deeds.ended[epoch], deeds.calls[epoch], deeds.answered[epoch], killed
            found.append(
                PeerSummary(epoch, opened.host, opened.pid, list(opened.labels), state, why, opened.time, *did)
            )
    return found


def _state(
    run: Path, opened: PeerOpened, told: Sequence[RunEvent], closed: PeerClosed | None, sight: Sight | None
) -> tuple[str, str]:
    end = fence_of(home_of(run, opened.epoch))
    if end is None:
        return _at_work(run, opened, told, sight), ""
    left, _, how = end.why.partition("it left: ")
    if not left and how:
        return how, ""
    return ("gone", end.why) if closed is None else (closed.state, closed.why)


def _at_work(run: Path, opened: PeerOpened, told: Sequence[RunEvent], sight: Sight | None) -> str:
    """Of one that nobody has ended."""
    if sight is None:
        return "killed"
    is_here = opened.host == socket.gethostname() and (home_of(run, opened.epoch) / "lock").exists()
    elsewhere = sight.office is None and not is_here
    if opened.epoch in sight.alive or (elsewhere and sight.driver):
        return "working" if _holds(opened.epoch, told) else "idle"
    return "unseen" if elsewhere and sight.partial else "killed"


def _holds(epoch: int, told: Sequence[RunEvent]) -> bool:
    """Whether rows that it leased have not ended."""
    return any(not each.done and each.start < each.stop for each in leases_in(epoch, told))
