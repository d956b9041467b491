"""What a segment holds, small enough to keep: the index that closes it, and that a reader rebuilds for an open one.

The summary is read to resume a run (who is unfinished, where are their events), the map to look tasks up. Frames of
events are named by their ordinal in the segment, from 0; `Summary.sizes` turns ordinals into offsets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate
from typing import Any, cast

import msgspec
from msgspec import Struct

from weaverant.events import (
    NO_USAGE,
    AgentBound,
    CostReserved,
    EndState,
    Event,
    PeerClosed,
    PeerOpened,
    RowsCut,
    RowsDone,
    RowsLeft,
    RowsTaken,
    RunClosed,
    RunOpened,
    SourceEnded,
    StepEnded,
    TaskEnded,
    TaskReopened,
    TaskStarted,
    TaskSuperseded,
    TaskTaken,
    TimerFired,
)
from weaverant.journal.codec import events_of, tag_of
from weaverant.journal.reserved import Reservations
from weaverant.journal.roll import Roll
from weaverant.journal.segment import EVENTS, HEADER_BYTES, Segment
from weaverant.message import Usage, total

UNCHANGED, OPEN, DONE, REJECTED, FAILED, SUPERSEDED = range(-1, 5)
STATE_CODES: dict[EndState, int] = {"done": DONE, "rejected": REJECTED, "failed": FAILED}
BEGAN, REOPENED, TAKEN = 1, 2, 4

UNKNOWN_STAGE = -1
UNTOLD = -1
MAP_TASKS = 2_048
"""Tasks in one map frame: encoding it holds the interpreter for about a millisecond."""


class TaskEntry(Struct, array_like=True, gc=False):
    """One task in one segment. `flags`: BEGAN, REOPENED, TAKEN (from another journal) here. `state`: what this
    segment's events made of the task; UNCHANGED if they are steps only. `stage` and `row` (digest) are unknown where it
    neither began nor ended. `made`: how many rows of a next stage its result is; UNTOLD where it was not done here.
    `copy` is that of the event by which it was taken, else 0."""

    task: str
    flags: int
    stage: int
    state: int
    row: bytes
    frames: list[int]
    made: int = UNTOLD
    copy: int = 0


class Late(Struct, array_like=True, frozen=True, gc=False):
    """A task that began in an earlier segment, or in another journal, and whose state changed in this one."""

    task: str
    stage: int
    state: int
    made: int = UNTOLD
    copy: int = 0


class Summary(Struct, array_like=True, frozen=True):
    """The index's small part. Times are Unix seconds of the run's and the tasks' own events, steps apart; 0 if none."""

    events: dict[str, int]
    """Events by tag."""
    stages: dict[int, list[int]]
    """By stage: tasks that began here, counted by their state at the segment's end (open, done, rejected, failed,
    superseded)."""
    unfinished: list[TaskEntry]
    """Tasks with events here that were not terminal at the segment's end, in order of first event."""
    late: list[Late]
    usage: dict[str, Usage]
    """By model: what this segment's steps cost, reused ones apart."""
    about_run: list[int]
    """Frames with events that are no task's."""
    first_time: float
    last_time: float
    sizes: list[int]
    """Bytes of each frame of events, in order."""
    maps: list[int]
    """Offsets of the map frames."""
    reserved: list[str] = []
    """Tasks for whose steps money was set aside here, the step's end not being here."""
    calls: int = 0
    """Model steps, reused ones included."""
    made: dict[int, int] | None = None
    """By stage: how many rows of the next stage the results are of the tasks that were done here. None: an older
    version wrote this."""
    number: int = 0
    """The segment's. 0: an older version wrote this, or it is not sealed."""
    roll: dict[int, tuple[int, int]] | None = None
    """By stage, groups apart: sums of the marks of the rows that began here, and of those that results here are. None:
    an older version wrote this."""

    def offsets(self) -> list[int]:
        """Where each frame of events begins."""
        return list(accumulate(self.sizes[:-1], initial=HEADER_BYTES))


class SegmentIndex:
    """Notes events as they are written. One thread notes; `sizes` belongs to the one who writes the frames."""

    __slots__ = (
        "_about_run",
        "_calls",
        "_events",
        "_first",
        "_last",
        "_reserved",
        "_steps",
        "_usage",
        "sizes",
        "tasks",
    )

    def __init__(self) -> None:
        self.tasks: dict[str, TaskEntry] = {}
        self.sizes: list[int] = []
        self._events: dict[type[Event], int] = {}
        self._usage: dict[str, Usage] = {}
        self._reserved = Reservations()
        self._calls = self._steps = 0
        self._about_run: list[int] = []
        self._first = self._last = 0.0

    def note(self, events: Iterable[Event], frame: int) -> None:
        """Count the events of the frame with this ordinal."""
        tasks, reserved, steps, calls = self.tasks, self._reserved, 0, 0
        used: dict[str, list[Usage]] = {}
        for event in events:
            if type(event) is not StepEnded:
                self._note_other(event, frame)
                continue
            entry = tasks.get(event.task)
            if entry is None or entry.frames[-1] != frame:
                self._entry(event.task, frame)
            if reserved.open:
                reserved.close(event)
            steps += 1
            if event.inside:
                continue
            if event.kind == "model":
                calls += 1
            if not event.reused:
                usages = used.get(event.model)
                if usages is None:
                    usages = used[event.model] = []
                usages.append(event.usage)
        self._steps += steps
        self._calls += calls
        for model, usages in used.items():
            self._usage[model] = total([self._usage.get(model, NO_USAGE), *usages])

    def summary(self, maps: list[int], number: int = 0) -> Summary:
        """Of everything noted so far. `number` is that of a segment which is sealed with it."""
        stages: dict[int, list[int]] = {}
        unfinished: list[TaskEntry] = []
        late: list[Late] = []
        made: dict[int, int] = {}
        for entry in self.tasks.values():
            if entry.flags & BEGAN:
                stages.setdefault(entry.stage, [0] * 5)[entry.state] += 1
            elif entry.state != UNCHANGED and not _only_taken(entry):
                late.append(Late(entry.task, entry.stage, entry.state, entry.made, entry.copy))
            if entry.state <= OPEN:
                unfinished.append(entry)
            elif entry.state == DONE:
                made[entry.stage] = made.get(entry.stage, 0) + entry.made
        events = {tag_of(kind): count for kind, count in self._events.items()}
        if self._steps:
            events[tag_of(StepEnded)] = self._steps
        return Summary(
            events, stages, unfinished, late, self._usage, self._about_run, self._first, self._last, self.sizes, maps,
            self._reserved.tasks(), self._calls, made, number, roll_of(self.tasks.values()),
        )  # fmt: skip

    def map_payloads(self) -> Iterator[bytes]:
        """The map, in pieces."""
        entries = list(self.tasks.values())
        for start in range(0, len(entries), MAP_TASKS):
            yield encode_index(entries[start : start + MAP_TASKS])

    def _entry(self, task: str, frame: int) -> TaskEntry:
        entry = self.tasks.get(task)
        if entry is None:
            entry = self.tasks[task] = TaskEntry(task, 0, UNKNOWN_STAGE, UNCHANGED, b"", [frame])
        elif entry.frames[-1] != frame:
            entry.frames.append(frame)
        return entry

    def _note_other(self, event: Event, frame: int) -> None:
        kind = type(event)
        self._events[kind] = self._events.get(kind, 0) + 1
        _NOTES[kind](self, event, frame)

    def _note_reserved(self, event: CostReserved, frame: int) -> None:
        self._entry(event.task, frame)
        self._reserved.add(event)

    def _note_timer(self, event: TimerFired, frame: int) -> None:
        self._entry(event.task, frame)

    def _note_started(self, event: TaskStarted, frame: int) -> None:
        entry = self._entry(event.task, frame)
        entry.flags |= BEGAN
        entry.stage = event.stage
        entry.row = event.digest
        self._change(entry, OPEN, event.time)

    def _note_taken(self, event: TaskTaken, frame: int) -> None:
        entry = self._entry(event.task, frame)
        entry.flags |= TAKEN
        entry.stage, entry.copy = event.stage, event.copy
        for past in event.events:
            if isinstance(past, TaskStarted):
                entry.row = past.digest
        self._reserved.follow(event.events)
        self._change(entry, OPEN, event.time)

    def _note_ended(self, event: TaskEnded, frame: int) -> None:
        entry = self._entry(event.task, frame)
        entry.stage = event.stage
        if event.state == "done":
            value = event.value
            entry.made = len(cast("list[Any]", value)) if isinstance(value, list) else 1
        self._change(entry, STATE_CODES[event.state], event.time)

    def _note_reopened(self, event: TaskReopened, frame: int) -> None:
        entry = self._entry(event.task, frame)
        entry.flags |= REOPENED
        self._change(entry, OPEN, event.time)

    def _note_superseded(self, event: TaskSuperseded, frame: int) -> None:
        self._change(self._entry(event.task, frame), SUPERSEDED, event.time)

    def _note_timed(self, event: RunOpened | RunClosed | SourceEnded | PeerOpened | PeerClosed, frame: int) -> None:
        self._note_about_run(event, frame)
        self._tick(event.time)

    def _note_about_run(self, event: Event, frame: int) -> None:
        if not self._about_run or self._about_run[-1] != frame:
            self._about_run.append(frame)

    def _change(self, entry: TaskEntry, state: int, time: float) -> None:
        entry.state = later_state(entry.state, state)
        self._tick(time)

    def _tick(self, time: float) -> None:
        self._first = self._first or time
        self._last = time


def _only_taken(entry: TaskEntry) -> bool:
    """Whether it came from another journal as it was there, and is so still."""
    return entry.state == OPEN and bool(entry.flags & TAKEN) and not entry.flags & REOPENED


def roll_of(entries: Iterable[TaskEntry]) -> dict[int, tuple[int, int]]:
    """What a summary says of them as its `roll`."""
    roll = Roll()
    for entry in entries:
        roll.count(entry.task, bool(entry.flags & BEGAN), max(0, entry.made) if entry.state == DONE else 0)
    return roll.sums()


def rebuild(segment: Segment, limit: int | None = None) -> tuple[SegmentIndex, int]:
    """An unsealed segment's index, and where its events end; with a `limit`, of those before that offset. A
    half-written index is passed over."""
    index = SegmentIndex()
    end = HEADER_BYTES
    for frame in segment.frames(end=limit):
        if frame.kind != EVENTS:
            continue
        index.note(events_of(segment, frame), len(index.sizes))
        index.sizes.append(frame.end - frame.offset)
        end = frame.end
    return index, end


def later_state(before: int, after: int) -> int:
    """A task's state once events that made it `after` follow `before`. Superseded is for good."""
    return before if after == UNCHANGED or before == SUPERSEDED else after


_NOTES: dict[type[Event], Callable[[SegmentIndex, Any, int], None]] = {
    CostReserved: SegmentIndex._note_reserved,  # pyright: ignore[reportPrivateUsage]
    TimerFired: SegmentIndex._note_timer,  # pyright: ignore[reportPrivateUsage]
    TaskStarted: SegmentIndex._note_started,  # pyright: ignore[reportPrivateUsage]
    TaskEnded: SegmentIndex._note_ended,  # pyright: ignore[reportPrivateUsage]
    TaskReopened: SegmentIndex._note_reopened,  # pyright: ignore[reportPrivateUsage]
    TaskSuperseded: SegmentIndex._note_superseded,  # pyright: ignore[reportPrivateUsage]
    RunOpened: SegmentIndex._note_timed,  # pyright: ignore[reportPrivateUsage]
    RunClosed: SegmentIndex._note_timed,  # pyright: ignore[reportPrivateUsage]
    SourceEnded: SegmentIndex._note_timed,  # pyright: ignore[reportPrivateUsage]
    AgentBound: SegmentIndex._note_about_run,  # pyright: ignore[reportPrivateUsage]
    TaskTaken: SegmentIndex._note_taken,  # pyright: ignore[reportPrivateUsage]
    PeerOpened: SegmentIndex._note_timed,  # pyright: ignore[reportPrivateUsage]
    PeerClosed: SegmentIndex._note_timed,  # pyright: ignore[reportPrivateUsage]
    RowsLeft: SegmentIndex._note_about_run,  # pyright: ignore[reportPrivateUsage]
    RowsTaken: SegmentIndex._note_about_run,  # pyright: ignore[reportPrivateUsage]
    RowsCut: SegmentIndex._note_about_run,  # pyright: ignore[reportPrivateUsage]
    RowsDone: SegmentIndex._note_about_run,  # pyright: ignore[reportPrivateUsage]
}

encode_index = msgspec.msgpack.Encoder().encode
decode_summary = msgspec.msgpack.Decoder(Summary).decode
decode_map = msgspec.msgpack.Decoder(list[TaskEntry]).decode
