"""A segment as its index shows it: read from the file where it is sealed, where it is open rebuilt by a full scan."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from weaverant.journal.codec import UNDECODABLE
from weaverant.journal.homes import OWN, Fence, fence_of
from weaverant.journal.index import (
    OPEN,
    SUPERSEDED,
    UNCHANGED,
    Summary,
    TaskEntry,
    decode_map,
    decode_summary,
    rebuild,
)
from weaverant.journal.segment import HEADER_BYTES, MAP, SUMMARY, Segment, Trailer, segment_numbers, segment_path
from weaverant.journal.store import require_sealed


class Place(NamedTuple):
    """A frame of events: in the journal of the peer `epoch`, or the run's own."""

    segment: int
    offset: int
    epoch: int = OWN


class Part:
    """One segment's index: `summary` is that of a sealed segment, whose map stays in the file. An open one is scanned
    when its index is first asked for, as far as the `limit` that a fence sets."""

    def __init__(
        self, path: Path, number: int, summary: Summary | None, epoch: int = OWN, limit: int | None = None
    ) -> None:
        self.path = path
        self.number = number
        self.epoch = epoch
        self.limit = limit
        self._summary = summary
        self._entries: list[TaskEntry] | None = None
        self._offsets: list[int] | None = None

    @property
    def scanned(self) -> bool:
        """Whether the index is at hand."""
        return self._summary is not None

    @property
    def summary(self) -> Summary:
        if self._summary is None:
            with Segment(self.path) as segment:
                segment.begun()
                index, _ = rebuild(segment, self.limit)
            self._summary, self._entries = index.summary([]), list(index.tasks.values())
        return self._summary

    def places(self, frames: list[int]) -> list[Place]:
        """Where the frames with these ordinals are."""
        if self._offsets is None:
            self._offsets = self.summary.offsets()
        offsets = self._offsets
        return [Place(self.number, offsets[frame], self.epoch) for frame in frames]

    def entries(self) -> Iterator[TaskEntry]:
        """All tasks with events here, in order of their first event."""
        summary = self.summary
        if self._entries is not None:
            yield from self._entries
            return
        with Segment(self.path) as segment:
            for offset in summary.maps:
                frame = segment.frame(offset)
                try:
                    found = decode_map(frame.payload) if frame.kind == MAP else None
                except UNDECODABLE:
                    found = None
                if found is None or not _all_fit(found, len(summary.sizes)):
                    raise segment.corrupt(offset, "a part of the task map was expected there")
                yield from found


class Parts:
    """The parts of one journal, remembered between calls: a sealed segment never changes, an open one only grows."""

    def __init__(self, home: Path, epoch: int = OWN) -> None:
        self.epoch = epoch
        self.directory = home / "journal"
        self._home = home
        self._fence: Fence | None = None
        self._sealed: dict[int, Part] = {}
        self._open: tuple[int, int, Part] | None = None

    @property
    def fence(self) -> Fence | None:
        """Where a peer's journal ends, once somebody has ended it."""
        if self._fence is None and self.epoch != OWN:
            self._fence = fence_of(self._home)
        return self._fence

    def numbers(self) -> list[int]:
        """The segments before the fence, if there is one."""
        last = self.fence
        return [number for number in segment_numbers(self.directory) if last is None or number <= last.segment]

    def limit(self, number: int) -> int | None:
        """Where this segment's events end, if a fence stands in it."""
        last = self.fence
        return last.offset if last is not None and number == last.segment else None

    def now(self) -> list[Part]:
        """One for every segment that holds events, in order."""
        numbers = self.numbers()
        found = (self._sealed.get(number) or self._read(number, number == numbers[-1]) for number in numbers)
        return [part for part in found if part is not None]

    def _read(self, number: int, last: bool) -> Part | None:
        path, limit = segment_path(self.directory, number), self.limit(number)
        with Segment(path) as segment:
            if not last:
                require_sealed(segment)
            if not segment.begun():
                return None
            trailer = segment.trailer()
            if trailer is None or limit not in (None, trailer.events_end):
                return self._read_open(segment, number, limit)
            summary = read_summary(segment, trailer, number)
        part = self._sealed[number] = Part(path, number, summary, self.epoch)
        return part

    def _read_open(self, segment: Segment, number: int, limit: int | None) -> Part:
        size = segment.size() if limit is None else limit
        if self._open is not None and self._open[:2] == (number, size):
            return self._open[2]
        part = Part(segment.path, number, None, self.epoch, limit)
        self._open = (number, size, part)
        return part


def read_summary(segment: Segment, trailer: Trailer, number: int) -> Summary:
    """The summary of the sealed segment with this number."""
    frame = segment.frame(trailer.summary)
    if frame.kind == SUMMARY:
        try:
            summary = decode_summary(frame.payload)
        except UNDECODABLE:
            pass
        else:
            if summary.number not in (0, number):
                raise segment.corrupt(trailer.summary, f"it was written as segment {summary.number:06}")
            if _is_whole(summary, trailer):
                return summary
    raise segment.corrupt(trailer.summary, "the segment's summary was expected there")


def _is_whole(summary: Summary, trailer: Trailer) -> bool:
    """Whether a summary speaks of nothing that cannot be: it passes its checksum and may be somebody's forgery."""
    sizes, states = summary.sizes, range(UNCHANGED, SUPERSEDED + 1)
    return (
        all(size > 0 for size in sizes)
        and HEADER_BYTES + sum(sizes) == trailer.events_end
        and all(trailer.events_end <= offset < trailer.summary for offset in summary.maps)
        and all(0 <= frame < len(sizes) for frame in summary.about_run)
        and all(len(counts) == SUPERSEDED + 1 and min(counts) >= 0 for counts in summary.stages.values())
        and all(count >= 0 for count in (summary.calls, *(summary.made or {}).values()))
        and all(late.state in states for late in summary.late)
        and all(entry.state <= OPEN for entry in summary.unfinished)
        and _all_fit(summary.unfinished, len(sizes))
    )


def _all_fit(entries: list[TaskEntry], frames: int) -> bool:
    """Whether the entries are of tasks in a segment of so many frames."""
    return all(
        UNCHANGED <= entry.state <= SUPERSEDED and entry.frames and 0 <= min(entry.frames) <= max(entry.frames) < frames
        for entry in entries
    )
