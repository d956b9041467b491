"""What an earlier session left: tasks to carry on, results that have not entered the next stage, groups to form again.

A fold over the journal. Where there are no groups it reads indexes and the events of unfinished tasks only.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from weaverant.errors import JournalCorrupt, UserError
from weaverant.events import TaskEnded, TaskEvent, TaskReopened, TaskStarted, TaskTaken
from weaverant.history import in_order, sensible
from weaverant.journal import JournalReader, Place
from weaverant.journal.homes import OWN
from weaverant.journal.index import UNTOLD
from weaverant.past import Blob, Past
from weaverant.protocols import Clock
from weaverant.row import belongs, child_key, parent_key, source_place, stage_of
from weaverant.runtime.ledger import Ledger
from weaverant.runtime.rollcall import call_roll, check_stages
from weaverant.runtime.stagebook import StageBook, key_of
from weaverant.runtime.survey import survey
from weaverant.runtime.unfinished import Begun, Held, Retry, Unfinished
from weaverant.story import Storyteller
from weaverant.task import Row
from weaverant.workflow import Group, Workflow, ungrouped


class Recovery:
    """Reads one run's journal into an `Unfinished`, and counts in `ledger` what had ended."""

    def __init__(
        self,
        reader: JournalReader,
        blob: Blob,
        stages: Sequence[Workflow | Group],
        trials: int,
        ledger: Ledger,
        book: StageBook,
        clock: Clock = time,
    ) -> None:
        self._reader = reader
        self._clock = clock
        self._blob = blob
        self._teller = Storyteller({}, blob)
        self._stages = stages
        self._trials = trials
        self._ledger = ledger
        self._book = book

    def unfinished(self, retry: Retry | None, reopen: Callable[[TaskReopened | TaskTaken], None]) -> Unfinished:
        """`reopen` writes the events that take a failed task up again. `JournalCorrupt` where events make no sense."""
        with sensible("the run"):
            return self._unfinished(retry, reopen)

    def _unfinished(self, retry: Retry | None, reopen: Callable[[TaskReopened | TaskTaken], None]) -> Unfinished:
        left = Unfinished()
        waiting = self._count(left)
        if self._reader.has_peers:
            self._find_gaps(left)
        places = self._reader.unfinished()
        if len(places) != waiting:
            raise ValueError(f"{waiting} tasks began and have not ended, and {len(places)} are unfinished")
        check_stages(self._reader)
        retried: dict[str, TaskReopened] = {}
        if retry is not None:
            places |= self._retried(retry, left, retried)
        if len(self._stages) > 1:
            self._walk_results(left, places)
            left.rows = [got for got in left.rows if key_of(got) not in left.known]
            self._hold(left, retried)
        mine = {task: places[task] for task in sorted(places, key=self._order) if "@" not in task}
        if (last := max(map(self._order, mine), default=-1)) >= left.started:
            raise ValueError(f"row {last} is unfinished, and {left.started} were started")
        started = None if self._reader.has_peers else left.started
        call_roll(self._reader, self._stages, self._trials, started, list(map(key_of, left.rows)))
        for task, event in retried.items():
            if (taken := self._taken(task, places.get(task, ()), None)) is not None:
                reopen(taken)
            reopen(event)
        left.restored = self._restored(mine, retried)
        return left

    def _order(self, task: str) -> int:
        place = source_place(task)
        return 0 if place is None else place[1] * self._trials + place[2]

    def _count(self, left: Unfinished) -> int:
        """Into the ledger. Gives how many tasks have begun and not ended."""
        self._ledger.earlier_calls = self._reader.calls()
        self._ledger.earlier_cost = sum(usage.cost for usage in self._reader.usage().values())
        stages = self._reader.counts()
        for stage, counts in stages.items():
            book = self._ledger.stages[stage]
            if counts.superseded and not any(isinstance(one, Group) for one in self._stages[: stage + 1]):
                raise ValueError(
                    f"{counts.superseded} tasks of stage {book.name!r} are superseded, and it has no group"
                )
            for state in ("done", "rejected", "failed"):
                book.count(state, "(earlier)", getattr(counts, state))
            if stage == 0:
                book.rows = left.started = counts.left + counts.done + counts.rejected + counts.failed
        return sum(counts.left for counts in stages.values())

    def _walk_results(self, left: Unfinished, unfinished: Iterable[str]) -> None:
        """Let results of earlier stages enter the next again; what had been started already is known."""
        made = self._reader.made()
        grouped = any(isinstance(stage, Group) for stage in self._stages)
        if grouped or made is None:
            parents = self._walk_all(left)
        elif early := self._reader.places([child_key(task, 0) for task in unfinished]):
            raise ValueError(f"task {min(early)!r} began before the task ended that its row comes from")
        else:
            parents = self._walk_back(left, made)
        for task, events in self._reader.histories(self._reader.places(parents)):
            story = self._teller.tell(events)
            row = Row(story.key, story.stage, self._order(story.key), b"", story.row, story.parents)
            rows = self._book.enter(row, story.result)
            if parents[task] not in (UNTOLD, len(rows)):
                raise ValueError(f"task {task!r} made {parents[task]} rows by its index, and {len(rows)} by its result")
            left.rows += rows
        if orphans := set(filter(self._enters, left.known)) - set(map(key_of, left.rows)):
            raise ValueError(f"task {min(orphans)!r} is no row that a result of an earlier stage has made")

    def _enters(self, task: str) -> bool:
        """Whether it is a row of its own where it entered, and none that a group had no key for."""
        return not isinstance(self._stages[stage_of(task)], Group)

    def _walk_back(self, left: Unfinished, made: Mapping[int, int]) -> dict[str, int]:
        """The tasks with a result not all of whose rows had been started, with their number of rows. How many rows that
        are is known, so it looks back no further than needed: a run with a million finished tasks has them near its
        end, if at all."""
        missing = self._expect(made)
        parents: dict[str, int] = {}
        children: dict[str, list[str]] = {}
        for task in self._reader.tasks(newest_first=True) if missing else ():
            if task.stage:
                children.setdefault(parent_key(task.task), []).append(task.task)
            started = children.pop(task.task, [])
            if task.state == "done" and task.stage + 1 < len(self._stages) and len(started) < task.made:
                parents[task.task] = task.made
                left.known.update(started)
                self._ledger.stages[task.stage + 1].rows -= task.made  # counted as they enter again
                missing -= task.made - len(started)
                if not missing:
                    break
        if missing:
            raise ValueError(f"{missing} rows of results were not started, and no result has them")
        return parents

    def _expect(self, made: Mapping[int, int]) -> int:
        """Count the rows that all results are for the stages after the first. Gives how many were not started."""
        counts, missing = self._reader.counts(), 0
        for stage in range(1, len(self._stages)):
            rows, began = made.get(stage - 1, 0), counts[stage].total if stage in counts else 0
            if began > rows:
                raise ValueError(f"{began} tasks began in stage {stage}, and {rows} rows were made for it")
            missing += rows - began
            self._ledger.stages[stage].rows += rows
        return missing

    def _walk_all(self, left: Unfinished) -> dict[str, int]:
        """All tasks with a result for a next stage: a group needs them. It counts their rows itself."""
        parents: dict[str, int] = {}
        for task in self._reader.tasks():
            if any(task.task in seen for seen in (left.known, left.held, left.superseded)):
                raise ValueError(f"task {task.task!r} begins twice")
            if not belongs(task.task, task.stage):
                raise ValueError(f"task {task.task!r} is in stage {task.stage}, which is not its own")
            if task.state == "superseded":
                left.superseded.add(task.task)
                continue
            if task.stage and "@" not in task.task:
                left.known.add(task.task)
            if task.state == "done" and task.stage + 1 < len(self._stages) and "@" not in task.task:
                parents[task.task] = UNTOLD
            elif "@" in task.task:
                left.held[task.task] = Held(task.stage, None, None, [])
        return parents

    def _hold(self, left: Unfinished, retried: dict[str, TaskReopened]) -> None:
        places = self._reader.places(list(left.held)) if left.held else {}
        for task, events in self._reader.histories(places):
            if task in retried:
                events.append(retried[task])
            story = self._teller.tell(events)
            held = left.held[task]
            held.state, held.result = story.state, story.result
            held.events = events if story.state is None else []
            if held.state is not None:  # it counts again when it forms again
                self._ledger.stages[held.stage].count(held.state, "(earlier)", -1)

    def _retried(self, retry: Retry, left: Unfinished, retried: dict[str, TaskReopened]) -> dict[str, list[Place]]:
        where = self._reader.places([task.task for task in self._reader.tasks() if task.state == "failed"])
        chosen: dict[str, list[Place]] = {}
        reasons: Counter[str] = Counter()
        for task, events in self._reader.histories(where):
            end = _failure_of(task, events)
            if retry.wants(end):
                chosen[task] = where[task]
                retried[task] = TaskReopened(task, self._clock.time(), self._forgotten(events))
                left.reopened[end.reason] = left.reopened.get(end.reason, 0) + 1
                self._ledger.stages[end.stage].count("failed", "(earlier)", -1)
            reasons[end.reason] += 1
        if retry.reason is not None and not chosen:
            known = ", ".join(f"{reason} ({count})" for reason, count in reasons.items()) or "none failed"
            raise UserError(
                f"no failed row has the reason {retry.reason!r} that can be tried again; there are: {known}"
            )
        return chosen

    def _forgotten(self, events: list[TaskEvent]) -> int:
        return len(Past(events, self._blob).retried())

    def _find_gaps(self, left: Unfinished) -> None:
        """Peers have worked on the run, here and there."""
        seen = survey(self._reader, len(ungrouped(self._stages)), self._trials)
        left.started, left.gaps = seen.frontier, seen.gaps()

    def _restored(self, places: dict[str, list[Place]], retried: dict[str, TaskReopened]) -> Iterator[Begun]:
        for task, events in self._reader.histories(places):
            if task in retried:
                yield Begun(self._order(task), [*events, retried[task]])
            else:
                yield Begun(self._order(task), events, self._taken(task, places[task], events))

    def _taken(self, task: str, places: Sequence[Place], events: Sequence[TaskEvent] | None) -> TaskTaken | None:
        """The event by which a task comes from a peer's journal to the run's own; None where it is there already."""
        if not places or places[0].epoch == OWN:
            return None
        past = self._reader.task_events(task) if events is None else events
        copy = self._reader.copies.get(task, 0) + 1
        return TaskTaken(task, stage_of(task), copy, self._clock.time(), tuple(past))


def _failure_of(task: str, events: list[TaskEvent]) -> TaskEnded:
    """The end of a task of which the index says that it failed."""
    ends = [event for event in in_order(events) if isinstance(event, TaskEnded)]
    if not ends or ends[-1].state != "failed":
        raise ValueError(f"task {task!r} has failed by its index, and by its events it has not")
    return ends[-1]


def started_of(events: Iterable[TaskEvent]) -> TaskStarted:
    """The event that a task began with. `JournalCorrupt` where there is none."""
    for event in events:
        if isinstance(event, TaskStarted):
            return event
    raise JournalCorrupt("the journal has a task without the event that it began with. Put the run back from a copy")
