"""Reads a run's journal: all events in order, or just those wanted, found by the segments' indexes.

Changes nothing and needs no lock: it may read while another process writes, and stops at a torn tail. Each call
shows the journal as it stood at about that time. Damage is `JournalCorrupt`, a newer major format `UserError`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import groupby, islice
from pathlib import Path
from typing import Literal, NamedTuple, cast, get_args

from weaverant.events import (
    AgentBound,
    Event,
    PeerEvent,
    RunClosed,
    RunOpened,
    SourceEnded,
    TaskEvent,
    TaskTaken,
)
from weaverant.journal.codec import EventHead, events_of, tag_of
from weaverant.journal.counts import StageCounts, check_counts, counts_by_summaries
from weaverant.journal.homes import OWN, epochs_of, home_of
from weaverant.journal.index import BEGAN, DONE, OPEN, SUPERSEDED, UNTOLD, Late, TaskEntry, later_state, roll_of
from weaverant.journal.parts import Part, Parts, Place, read_summary
from weaverant.journal.reserved import Reservations
from weaverant.journal.roll import Roll
from weaverant.journal.segment import EVENTS, HEADER_BYTES, Segment, segment_path
from weaverant.journal.store import require_sealed
from weaverant.journal.whereabouts import Whereabouts, left_in, places_in
from weaverant.message import Usage

RunEvent = RunOpened | AgentBound | SourceEnded | RunClosed | PeerEvent
TaskState = Literal["done", "rejected", "failed", "superseded"]

_RUN_TAGS = frozenset(tag_of(kind) for kind in get_args(RunEvent))
_TASK_TAGS = frozenset(tag_of(kind) for kind in (*get_args(TaskEvent), TaskTaken))
_STATES: tuple[TaskState | None, ...] = (None, "done", "rejected", "failed", "superseded")

MAPPED_TASKS = 10_000
"""Tasks of whom it is known at a time where all their events are."""
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
    """The journal of the run in `directory`, those of its peers included, each up to its fence. A run that never wrote
    has an empty journal."""

    def __init__(self, directory: Path | str, epochs: Collection[int] | None = None) -> None:
        """`epochs`: only these of its journals."""
        self._run = Path(directory)
        self._only = epochs
        self._directory = self._run / "journal"
        self._homes: dict[int, Parts] = {OWN: Parts(self._run)} if epochs is None or OWN in epochs else {}
        self.copies: dict[str, int] = {}
        """How often those tasks have moved that `unfinished` or `places` found in a journal they moved to."""

    @property
    def has_peers(self) -> bool:
        """Whether other journals than the run's own belong to it."""
        return len(self._all()) > 1

    def entries(self) -> Iterator[tuple[int, TaskEntry]]:
        """What the index of each segment says of each task with events there, and whose journal it is. Reads the maps;
        one journal after the other, each from its beginning."""
        for part in self.parts():
            for entry in part.entries():
                yield part.epoch, entry

    def parts(self) -> list[Part]:
        """The indexes of all segments, one journal after the other, each in order."""
        return [part for home in self._all() for part in home.now()]

    def events(self) -> Iterator[Event]:
        """Every event, in bounded memory: in the order of its journal, one journal after the other, the run's own
        first."""
        for batch in self.batches():
            yield from batch.events

    def batches(self, start: Place | None = None) -> Iterator[Batch]:
        """Events by frame, from the frame at `start` on. The last batch's `next` is where a follower of that journal
        looks again."""
        begin = start or Place(1, HEADER_BYTES)
        for home in self._all():
            if home.epoch == begin.epoch:
                yield from _batches(home, begin)
            elif home.epoch > begin.epoch:
                yield from _batches(home, Place(1, HEADER_BYTES, home.epoch))

    def run_events(self) -> Iterator[RunEvent]:
        """The events that are no task's, in order. Reads only the frames that hold some, of an open segment all: the
        heads of its events, which takes a quarter of the time of a scan."""
        for part in self.parts():
            places = part.places(part.summary.about_run) if part.scanned else _all_places(part)
            for event in self._read(places, lambda head: head.tag in _RUN_TAGS):
                yield cast("RunEvent", event)

    def unfinished(self) -> dict[str, list[Place]]:
        """Tasks that began and are not terminal, in order of their start, with the frames that hold their events.
        `JournalCorrupt` where one has events in an earlier segment than it began in.

        Reads the summaries of sealed segments and scans an open one; the maps only where a task was reopened in a
        later segment than it began in.
        """
        where: dict[str, Whereabouts] = {}
        reopened = False
        for home in self._all():
            for task, found in left_in(home.now()).items():
                reopened |= found.reopened
                if task not in where or where[task].copy < found.copy:
                    where[task] = found
        live = {task: found.places for task, found in where.items() if found.open}
        self.copies |= {task: where[task].copy for task in live if where[task].copy}
        return self._reopened_too(live) if reopened else live

    def places(self, tasks: Collection[str]) -> dict[str, list[Place]]:
        """The frames with events of these tasks, in the journals where they are now, in order of their start there;
        reads the maps back to where the oldest of them began."""
        wanted = frozenset(tasks)
        homes = self._all()
        found: dict[str, tuple[int, list[Place]]] = {}
        for home in homes:
            for task, (copy, places) in places_in(home.now(), wanted).items():
                if task not in found or found[task][0] < copy:
                    found[task] = copy, places
        self.copies |= {task: copy for task, (copy, _) in found.items() if copy}
        return {task: places for task, (_, places) in found.items()}

    def histories(
        self, places: Mapping[str, Sequence[Place]], at_once: int = HISTORY_TASKS
    ) -> Iterator[tuple[str, list[TaskEvent]]]:
        """The tasks' events, task by task in the order given. Holds those of `at_once` tasks in memory, and reads
        each frame once for all of them."""
        items = iter(places.items())
        while chunk := dict(islice(items, at_once)):
            yield from self._histories(chunk).items()

    def all_histories(self) -> Iterator[tuple[str, list[TaskEvent]]]:
        """Every task's events, in order of start. Reads the maps once for each `MAPPED_TASKS`, and holds where their
        events are."""
        names = (task.task for task in self.tasks())
        while chunk := list(islice(names, MAPPED_TASKS)):
            yield from self.histories(self.places(chunk))

    def task_events(self, task: str) -> list[TaskEvent]:
        """One task's events, in order; empty for a task that is not there."""
        return self._histories(self.places((task,))).get(task, [])

    def tasks(self, newest_first: bool = False) -> Iterator[TaskSummary]:
        """Every task, in order of start or the other way round, as it stands now. Reads the maps as it goes, not the
        events; memory is bounded by the tasks whose state changed in a later segment than they began in."""
        parts = self.parts()
        later: dict[str, Late] = {}
        for late in self._lates():
            before = later.get(late.task, late)
            if before.copy <= late.copy:
                state = later_state(before.state, late.state)
                later[late.task] = Late(late.task, late.stage, state, late.made, late.copy)
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
        parts = self.parts()
        found = counts_by_summaries(parts) or self._counts_by_maps()
        check_counts(self._directory, parts, found)
        return dict(sorted(found.items()))

    def made(self) -> dict[int, int] | None:
        """Of a run without groups, by stage: how many rows of the next stage the results of its done tasks are; None
        where an older version wrote an index. Reads summaries."""
        totals: dict[int, int] = {}
        for part in self.parts():
            if part.summary.made is None:
                return None
            for stage, rows in part.summary.made.items():
                totals[stage] = totals.get(stage, 0) + rows
        return totals

    def ended_late(self) -> Iterator[Late]:
        """The tasks that ended in a later segment than they began in, or in another journal. Reads summaries."""
        yield from (late for late in self._lates() if DONE <= late.state < SUPERSEDED)

    def roll(self) -> Roll:
        """Which tasks began, and which results there are. Reads summaries, and the maps of segments that an older
        version sealed."""
        found = Roll()
        for part in self.parts():
            sums = part.summary.roll
            found.add(roll_of(part.entries()) if sums is None else sums)
        return found

    def usage(self) -> dict[str, Usage]:
        """What all steps cost, by model; reused steps cost nothing. Reads summaries."""
        totals: dict[str, Usage] = {}
        for part in self.parts():
            for model, usage in part.summary.usage.items():
                totals[model] = totals.get(model, Usage(requests=0)) + usage
        return totals

    def events_by_tag(self) -> Counter[str]:
        """How many events there are. Reads summaries."""
        return sum((Counter(part.summary.events) for part in self.parts()), Counter[str]())

    def calls(self) -> int:
        """All model steps, reused ones included. Reads summaries."""
        return sum(part.summary.calls for part in self.parts())

    def reserved(self) -> Reservations:
        """Money set aside for steps whose end is not recorded. Reads summaries, and the events of the tasks that had
        such a step at the end of a segment."""
        tasks = {task for part in self.parts() for task in part.summary.reserved}
        found = Reservations()
        for _, events in self.histories(self.places(tasks)) if tasks else ():
            found.follow(events)
        return found

    def _all(self) -> list[Parts]:
        """The journals that there are now, the run's own first."""
        for epoch in epochs_of(self._run) if self._only is None else sorted(self._only):
            if epoch not in self._homes:
                self._homes[epoch] = Parts(home_of(self._run, epoch), epoch)
        return list(self._homes.values())

    def _lates(self) -> Iterator[Late]:
        """All changes of tasks that began before, with the copies that they were made in."""
        for home in self._all():
            copies: dict[str, int] = {}
            for part in home.now():
                for late in part.summary.late:
                    copy = late.copy or copies.get(late.task, 0)
                    if copy:
                        copies[late.task] = copy
                    yield late if copy == late.copy else Late(late.task, late.stage, late.state, late.made, copy)
                copies |= {entry.task: entry.copy for entry in part.summary.unfinished if entry.copy}

    def _histories(self, places: Mapping[str, Sequence[Place]]) -> dict[str, list[TaskEvent]]:
        found: dict[str, list[TaskEvent]] = {task: [] for task in places}
        frames = {place for frames in places.values() for place in frames}
        epochs = {task: frames[0].epoch for task, frames in places.items() if frames}

        for epoch in sorted(set(epochs.values())):
            mine = {task for task, own in epochs.items() if own == epoch}

            def wanted(head: EventHead, mine: set[str] = mine) -> bool:
                return head.tag in _TASK_TAGS and type(head.task) is str and head.task in mine

            for event in self._read((place for place in frames if place.epoch == epoch), wanted):
                if isinstance(event, TaskTaken):
                    found[event.task] = list(event.events)
                else:
                    found[cast("TaskEvent", event).task].append(cast("TaskEvent", event))
        return found

    def _read(self, places: Iterable[Place], wanted: Callable[[EventHead], bool]) -> Iterator[Event]:
        """The wanted events of these frames, in order."""
        in_order = sorted(places, key=lambda place: (place.epoch, place.segment, place.offset))
        for (epoch, number), frames in groupby(in_order, key=lambda place: (place.epoch, place.segment)):
            with Segment(segment_path(self._homes[epoch].directory, number)) as segment:
                segment.begun()
                for _, offset, _ in frames:
                    yield from events_of(segment, segment.frame(offset), wanted)

    def _reopened_too(self, live: Mapping[str, Sequence[Place]]) -> dict[str, list[Place]]:
        """The same tasks with what the summaries cannot tell of reopened ones: their start, and what came after it."""
        states: dict[str, int] = {}
        for epoch, entry in self.entries():
            places = live.get(entry.task)
            if places and places[0].epoch == epoch:
                states[entry.task] = later_state(states.get(entry.task, OPEN), entry.state)
        return self.places([task for task, state in states.items() if state == OPEN])

    def _counts_by_maps(self) -> dict[int, StageCounts]:
        table: dict[int, StageCounts] = {}
        for task in self.tasks():
            counts = table.setdefault(task.stage, StageCounts())
            name = task.state or "left"
            setattr(counts, name, getattr(counts, name) + 1)
        return table


def _batches(home: Parts, begin: Place) -> Iterator[Batch]:
    number, offset, epoch = begin
    while (count := len(home.numbers())) >= number:
        limit = home.limit(number)
        with Segment(segment_path(home.directory, number)) as segment:
            if number < count:
                require_sealed(segment)
            if not segment.begun():
                return
            trailer = segment.trailer()
            if trailer is not None:
                read_summary(segment, trailer, number)
            for frame in segment.frames(offset, limit if limit is not None else trailer and trailer.events_end):
                if frame.kind == EVENTS:
                    places = Place(number, frame.offset, epoch), Place(number, frame.end, epoch)
                    yield Batch(*places, events_of(segment, frame))
                    offset = frame.end
        if trailer is not None and limit is None:
            number, offset = number + 1, HEADER_BYTES
        elif limit is not None or len(home.numbers()) == count:
            return  # else the segment was sealed while we read it: look again for what was added before


def _all_places(part: Part) -> Iterator[Place]:
    """The frames of events of a segment that is not sealed."""
    with Segment(part.path) as segment:
        for frame in segment.frames(end=part.limit):
            if frame.kind == EVENTS:
                yield Place(part.number, frame.offset, part.epoch)
