"""What others left of the rows that a peer leases: tasks to carry on, results that have not entered the next stage."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from threading import Lock
from typing import Any

from msgspec import Struct

from weaverant.events import TaskTaken
from weaverant.history import sensible
from weaverant.journal import JournalReader
from weaverant.journal.index import DONE, OPEN, UNCHANGED, UNTOLD, TaskEntry, later_state
from weaverant.journal.shelf import shelf_of
from weaverant.past import Blob
from weaverant.protocols import Clock
from weaverant.row import parent_key
from weaverant.runtime.survey import number_of
from weaverant.runtime.unfinished import Begun
from weaverant.story import Storyteller
from weaverant.swarm.leases import Grant
from weaverant.task import Row


class Found(Struct):
    """What stands of some rows in others' journals."""

    begun: list[Begun]
    """Tasks to carry on, with the events that bring them into the journal of the one who takes them."""
    results: list[tuple[Row, Any]]
    """Done tasks whose result is rows of a next stage that have not all begun."""
    tasks: set[str]
    """All of these rows' tasks that began, whatever became of them."""
    started: set[int]
    """Those of the source among them, by number."""


class _Seen(Struct):
    """A task in the journal where it moved to last."""

    copy: int
    epoch: int
    state: int
    made: int


class Finder:
    """Reads others' journals, all of which have ended. Remembers which segment holds which rows: of a peer that had a
    million rows, others ask for a few hundred at a time. May be asked from any thread."""

    def __init__(self, run: Path, stages: int, trials: int, blob: Blob, clock: Clock) -> None:
        """Only the first `stages` of the run are looked at."""
        self._run = run
        self._stages = stages
        self._trials = trials
        self._blob = blob
        self._clock = clock
        self._readers: dict[tuple[int, ...], JournalReader] = {}
        self._bounds: dict[tuple[int, int], tuple[int, int]] = {}
        """By epoch and segment: the first and the last number of its tasks."""
        self._lock = Lock()

    def find(self, grant: Grant) -> Found:
        """What stands of these rows in the journals that the grant names. Raises `JournalCorrupt`."""
        if not grant.prior:
            return Found([], [], set(), set())
        with self._lock, sensible(f"the run {str(self._run)!r}"):
            reader = self._readers.get(grant.prior)
            if reader is None:
                shelf_of(self._run).fetch(grant.prior)
                reader = self._readers[grant.prior] = JournalReader(self._run, grant.prior)
            return self._find(reader, grant.start, grant.stop)

    def _find(self, reader: JournalReader, start: int, stop: int) -> Found:
        found = Found([], [], set(), set())
        seen = self._seen(reader, start, stop)
        found.tasks = set(seen)
        found.started = {self._number(task) for task in seen if "/" not in task}
        children = Counter(parent_key(task) for task in seen if "/" in task)
        left = {task for task, one in seen.items() if one.state in (OPEN, UNCHANGED)}
        parents = {
            task
            for task, one in seen.items()
            if one.state == DONE
            and task.count("/") + 1 < self._stages
            and (one.made == UNTOLD or children[task] < one.made)
        }
        teller = Storyteller({}, self._blob)
        for task, events in reader.histories(reader.places(left | parents)):
            order = self._number(task)
            if task in left:
                copy = seen[task].copy + 1
                taken = TaskTaken(task, task.count("/"), copy, self._clock.time(), tuple(events))
                found.begun.append(Begun(order, events, taken))
            else:
                story = teller.tell(events)
                found.results.append((Row(task, story.stage, order, b"", story.row, story.parents), story.result))
        return found

    def _number(self, task: str) -> int:
        number = number_of(task, self._trials)
        assert number is not None
        return number

    def _seen(self, reader: JournalReader, start: int, stop: int) -> dict[str, _Seen]:
        seen: dict[str, _Seen] = {}
        for part in reader.parts():
            place = part.epoch, part.number
            first, last = self._bounds.get(place, (0, stop))
            if last < start or stop <= first:
                continue
            least, most = stop, -1
            for entry in part.entries():
                number = number_of(entry.task, self._trials)
                if number is None or entry.task.count("/") >= self._stages:
                    continue
                least, most = min(least, number), max(most, number)
                if start <= number < stop:
                    _see(seen, part.epoch, entry)
            self._bounds[place] = least, most
        return seen


def _see(seen: dict[str, _Seen], epoch: int, entry: TaskEntry) -> None:
    """One journal after the other, and of each one segment after the other."""
    one = seen.get(entry.task)
    if one is None or (one.epoch != epoch and one.copy < entry.copy):
        seen[entry.task] = _Seen(entry.copy, epoch, entry.state, entry.made)
    elif one.epoch == epoch:
        one.copy = max(one.copy, entry.copy)
        one.state = later_state(one.state, entry.state)
        one.made = max(one.made, entry.made)
