"""The peers that ever worked on a run, as its journals tell."""

from __future__ import annotations

from pathlib import Path

from msgspec import Struct

from weaverant.events import PeerClosed, PeerOpened, TaskEnded
from weaverant.journal import JournalReader, is_locked
from weaverant.journal.codec import tag_of
from weaverant.journal.homes import epochs_of, fence_of, home_of


class PeerSummary(Struct, frozen=True):
    """One of them. `state`: `working`, how it left, or `gone`, and `why` then; rows that `ended` there and `calls` made
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


def roster_of(run: Path) -> list[PeerSummary]:
    """By epoch. Those that were killed before they had written anything are left out."""
    found: list[PeerSummary] = []
    for epoch in epochs_of(run):
        reader = JournalReader(run, (epoch,))
        told = list(reader.run_events())
        opened = next((event for event in told if isinstance(event, PeerOpened)), None)
        closed = next((event for event in reversed(told) if isinstance(event, PeerClosed)), None)
        if opened is not None:
            state, why = _state(run, epoch, closed)
            ended = reader.events_by_tag().get(tag_of(TaskEnded), 0)
            found.append(
                PeerSummary(
                    epoch, opened.host, opened.pid, list(opened.labels), state, why, opened.time, ended, reader.calls()
                )
            )
    return found


def _state(run: Path, epoch: int, closed: PeerClosed | None) -> tuple[str, str]:
    end = fence_of(home_of(run, epoch))
    if end is None:
        return ("working", "") if is_locked(run) else ("killed", "")
    left, _, how = end.why.partition("it left: ")
    if not left and how:
        return how, ""
    return ("gone", end.why) if closed is None else (closed.state, closed.why)
