"""Reads a run's journal: all events in order, or just those wanted, found by the segments' indexes.

Changes nothing and needs no lock: it may read while another process writes, and stops at a torn tail. Each call
shows the journal as it stood at about that time. Damage is `JournalCorrupt`, a newer major format `UserError`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import groupby, islice
from pathlib import Path
from typing import Literal, NamedTuple, cast, get_args

from weaverant.events import (
    AgentBound,
    CostReserved,
    Event,
    RunClosed,
    RunOpened,
    SourceEnded,
    StepEnded,
    TaskEvent,
)
from weaverant.journal.codec import EventHead, events_of, tag_of
from weaverant.journal.counts import StageCounts, check_counts, contradiction, counts_by_summaries
from weaverant.journal.index import BEGAN, DONE, OPEN, SUPERSEDED, UNTOLD, Late, later_state, roll_of
from weaverant.journal.parts import Part, Parts, Place, read_summary
from weaverant.journal.reserved import Reservations
from weaverant.journal.roll import Roll
from weaverant.journal.segment import EVENTS, HEADER_BYTES, Segment, segment_numbers, segment_path
from weaverant.journal.store import require_sealed
from weaverant.message import Usage

RunEvent = RunOpened | AgentBound | SourceEnded | RunClosed
TaskState = Literal["done", "rejected", "failed", "superseded"]

_RUN_TAGS = frozenset(tag_of(kind) for kind in get_args(RunEvent))
_TASK_TAGS = frozenset(tag_of(kind) for kind in get_args(TaskEvent))
_STATES: tuple[TaskState | None, ...] = (None, "done", "rejected", "failed", "superseded")

HISTORY_TASKS = 1_024


class TaskSummary(NamedTuple):
    """One task as the indexes know it. `state` is None while it is unfinished; `row` is its row's digest; `made` is how
    many rows of a next stage its result is, UNTOLD where it is not done or an older version wrote the index."""

    task: str
    stage: int
    state: TaskState | None
    row: bytes
    made: int = UNTOLD


class Batch(NamedTuple):
    """The events of one frame. `place` is where it is, `next` where reading goes on."""

    place: Place
    next: Place
    events: list[Event]


class JournalReader:
    """The journal in `directory`, a run's directory. A run that never wrote has an empty journal."""

    def __init__(self, directory: Path | str) -> None:
        self._directory = Path(directory) / "journal"
        self._parts = Parts(self._directory)

    def events(self) -> Iterator[Event]:
        """Every event, in order, in bounded memory."""
        for batch in self.batches():
            yield from batch.events

    def batches(self, start: Place | None = None) -> Iterator[Batch]:
        """Events by frame, from the frame at `start` on. The last batch's `next` is where a follower looks again."""
        number, offset = start or Place(1, HEADER_BYTES)
        while (count := len(segment_numbers(self._directory))) >= number:
            with Segment(segment_path(self._directory, number)) as segment:
                if number < count:
                    require_sealed(segment)
                if not segment.begun():
                    return
                trailer = segment.trailer()
                if trailer is not None:
                    read_summary(segment, trailer, number)
                for frame in segment.frames(offset, trailer and trailer.events_end):
                    if frame.kind == EVENTS:
                        places = Place(number, frame.offset), Place(number, frame.end)
                        yield Batch(*places, events_of(segment, frame))
                        offset = frame.end
            if trailer is not None:
                number, offset = number + 1, HEADER_BYTES
            elif len(segment_numbers(self._directory)) == count:
                return  # else the segment was sealed while we read it: look again for what was added before

    def run_events(self) -> Iterator[RunEvent]:
        """The events that are no task's, in order. Reads only the frames that hold some, of an open segment all: the
        heads of its events, which takes a quarter of the time of a scan."""
        for part in self._parts.now():
            places = part.places(part.summary.about_run) if part.scanned else _all_places(part)
            for event in self._read(places, lambda head: head.tag in _RUN_TAGS):
                yield cast("RunEvent", event)

    def unfinished(self) -> dict[str, list[Place]]:
        """Tasks that began and are not terminal, in order of their start, with the frames that hold their events.
        `JournalCorrupt` where one has events in an earlier segment than it began in.

        Reads the summaries of sealed segments and scans an open one; the maps only where a task was reopened in a
        later segment than it began in.
        """
        parts = self._parts.now()
        live: dict[str, list[Place]] = {}
        strays: set[str] = set()
        reopened = False
        for part in parts:
            for late in part.summary.late:
                if late.state != OPEN:
                    live.pop(late.task, None)
            for entry in part.summary.unfinished:
                begins_again = entry.state == OPEN and not entry.flags & BEGAN
                reopened |= begins_again
                if entry.flags & BEGAN and entry.task in strays:
                    raise contradiction(self._directory, f"task {entry.task!r} has events before it begins")
                if entry.state == OPEN or entry.task in live:
                    live.setdefault(entry.task, []).extend(part.places(entry.frames))
                else:
                    strays.add(entry.task)
        return _reopened_too(parts, live) if reopened else live

    def places(self, tasks: Collection[str]) -> dict[str, list[Place]]:
        """The frames with events of these tasks, in order of their start; reads the maps back to where the oldest of
        them began."""
        return _places(self._parts.now(), tasks)

    def histories(
        self, places: Mapping[str, Sequence[Place]], at_once: int = HISTORY_TASKS
    ) -> Iterator[tuple[str, list[TaskEvent]]]:
        """The tasks' events, task by task in the order given. Holds those of `at_once` tasks in memory, and reads
        each frame once for all of them."""
        items = iter(places.items())
        while chunk := dict(islice(items, at_once)):
            yield from self._histories(chunk).items()

    def task_events(self, task: str) -> list[TaskEvent]:
        """One task's events, in order; empty for a task that is not there."""
        return self._histories(self.places((task,))).get(task, [])

    def tasks(self, newest_first: bool = False) -> Iterator[TaskSummary]:
        """Every task, in order of start or the other way round, as it stands now. Reads the maps as it goes, not the
        events; memory is bounded by the tasks whose state changed in a later segment than they began in."""
        parts = self._parts.now()
        later: dict[str, Late] = {}
        for part in parts:
            for late in part.summary.late:
                before = later.get(late.task, late)
                later[late.task] = Late(late.task, late.stage, later_state(before.state, late.state), late.made)
        for part in reversed(parts) if newest_first else parts:
            for entry in reversed(list(part.entries())) if newest_first else part.entries():
                if entry.flags & BEGAN:
                    last = later.get(entry.task, entry)
                    state = later_state(entry.state, last.state)
                    made = last.made if state == DONE else UNTOLD
                    yield TaskSummary(entry.task, entry.stage, _STATES[state], entry.row, made)

    def counts(self) -> dict[int, StageCounts]:
        """Tasks by stage and state. Reads summaries; the maps only where a task was reopened, or superseded in a later
        segment than it began in. `JournalCorrupt` where other numbers of tasks have begun and ended."""
        parts = self._parts.now()
        found = counts_by_summaries(parts) or self._counts_by_maps()
        check_counts(self._directory, parts, found)
        return dict(sorted(found.items()))

    def made(self) -> dict[int, int] | None:
        """Of a run without groups, by stage: how many rows of the next stage the results of its done tasks are; None
        where an older version wrote an index. Reads summaries."""
        totals: dict[int, int] = {}
        for part in self._parts.now():
            if part.summary.made is None:
                return None
            for stage, rows in part.summary.made.items():
                totals[stage] = totals.get(stage, 0) + rows
        return totals

    def ended_late(self) -> Iterator[Late]:
        """The tasks that ended in a later segment than they began in. Reads summaries."""
        for part in self._parts.now():
            yield from (late for late in part.summary.late if DONE <= late.state < SUPERSEDED)

    def roll(self) -> Roll:
        """Which tasks began, and which results there are. Reads summaries, and the maps of segments that an older
        version sealed."""
        found = Roll()
        for part in self._parts.now():
            sums = part.summary.roll
            found.add(roll_of(part.entries()) if sums is None else sums)
        return found

    def usage(self) -> dict[str, Usage]:
        """What all steps cost, by model; reused steps cost nothing. Reads summaries."""
        totals: dict[str, Usage] = {}
        for part in self._parts.now():
            for model, usage in part.summary.usage.items():
                totals[model] = totals.get(model, Usage(requests=0)) + usage
        return totals

    def calls(self) -> int:
        """All model steps, reused ones included. Reads summaries."""
        return sum(part.summary.calls for part in self._parts.now())

    def reserved(self) -> Reservations:
        """Money set aside for steps whose end is not recorded. Reads summaries, and the events of the tasks that had
        such a step at the end of a segment."""
        tasks = {task for part in self._parts.now() for task in part.summary.reserved}
        found = Reservations()
        for _, events in self.histories(self.places(tasks)) if tasks else ():
            for event in events:
                if isinstance(event, CostReserved):
                    found.add(event)
                elif isinstance(event, StepEnded):
                    found.close(event)
        return found

    def _histories(self, places: Mapping[str, Sequence[Place]]) -> dict[str, list[TaskEvent]]:
        found: dict[str, list[TaskEvent]] = {task: [] for task in places}

        def wanted(head: EventHead) -> bool:
            return head.tag in _TASK_TAGS and type(head.task) is str and head.task in found

        for event in self._read({place for frames in places.values() for place in frames}, wanted):
            found[cast("TaskEvent", event).task].append(cast("TaskEvent", event))
        return found

    def _read(self, places: Iterable[Place], wanted: Callable[[EventHead], bool]) -> Iterator[Event]:
        """The wanted events of these frames, in order."""
        for number, frames in groupby(sorted(places), key=lambda place: place.segment):
            with Segment(segment_path(self._directory, number)) as segment:
                segment.begun()
                for _, offset in frames:
                    yield from events_of(segment, segment.frame(offset), wanted)

    def _counts_by_maps(self) -> dict[int, StageCounts]:
        table: dict[int, StageCounts] = {}
        for task in self.tasks():
            counts = table.setdefault(task.stage, StageCounts())
            name = task.state or "left"
            setattr(counts, name, getattr(counts, name) + 1)
        return table


def _all_places(part: Part) -> Iterator[Place]:
    """The frames of events of a segment that is not sealed."""
    with Segment(part.path) as segment:
        for frame in segment.frames():
            if frame.kind == EVENTS:
                yield Place(part.number, frame.offset)


def _places(parts: list[Part], tasks: Collection[str]) -> dict[str, list[Place]]:
    wanted, begun = frozenset(tasks), 0
    pieces: list[dict[str, list[Place]]] = []
    for part in reversed(parts):
        if begun == len(wanted):
            break
        entries = [entry for entry in part.entries() if entry.task in wanted]
        pieces.append({entry.task: part.places(entry.frames) for entry in entries})
        begun += sum(entry.flags & BEGAN for entry in entries)
    found: dict[str, list[Place]] = {}
    for piece in reversed(pieces):
        for task, places in piece.items():
            found.setdefault(task, []).extend(places)
    return found


def _reopened_too(parts: list[Part], live: Mapping[str, Sequence[Place]]) -> dict[str, list[Place]]:
    """The same tasks with what the summaries cannot tell of reopened ones: their start, and what came after it."""
    states: dict[str, int] = {}
    for part in parts:
        for entry in part.entries():
            if entry.task in live:
                states[entry.task] = later_state(states.get(entry.task, OPEN), entry.state)
    return _places(parts, [task for task, state in states.items() if state == OPEN])
