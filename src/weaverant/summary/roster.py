"""The peers that ever worked on a run, as its journals tell."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from pathlib import Path

from msgspec import Struct

from weaverant.events import PeerClosed, PeerOpened, TaskEnded
from weaverant.journal import JournalReader
from weaverant.journal.codec import tag_of
from weaverant.journal.homes import epochs_of, fence_of, home_of
from weaverant.journal.reader import RunEvent
from weaverant.swarm.records import leases_in
from weaverant.swarm.sight import Sight


class PeerSummary(Struct, frozen=True):
    """One of them. `state`: `working`; `idle`, where it holds no row (calls of other peers apart); `killed`; `unseen`,
    where this directory cannot tell; how it left; or `gone`, and `why` then. Rows that `ended` there and `calls` made
    for its own rows, those of other peers apart."""

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
    killed: bool = False
    """It ended without a word of its own, when calls may have been in flight."""


def roster_of(run: Path, sight: Sight | None) -> list[PeerSummary]:
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
            ended = reader.events_by_tag().get(tag_of(TaskEnded), 0)
            labels, calls = list(opened.labels), reader.calls()
            found.append(
                PeerSummary(epoch, opened.host, opened.pid, labels, state, why, opened.time, ended, calls, killed)
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
