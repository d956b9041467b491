"""`--reuse`: an earlier run answers for rows it has seen.

A row is found by its content and trial, wherever it stands in the input. Its recorded replies and function values
answer equal requests: the same key first, else any unclaimed one of the same fingerprint, each claimed once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from weaverant.branch import CANCELLED
from weaverant.events import StepEnded, TaskEvent
from weaverant.history import in_order, sensible
from weaverant.journal import BlobStore, JournalReader, Place
from weaverant.past import outcome_of
from weaverant.step import StepKey, seed_of
from weaverant.task import StepOutcome
from weaverant.trace import Texts


class OldSteps:
    """The recorded outcomes of one row's task in the old run. Failures are asked again."""

    def __init__(self) -> None:
        self._by_key: dict[StepKey, StepOutcome] = {}
        self._by_fingerprint: dict[bytes, list[StepKey]] = defaultdict(list)
        self._seeds: set[int] = set()

    def add(self, key: StepKey, outcome: StepOutcome) -> None:
        if key not in self._by_key:
            self._by_fingerprint[key[1]].append(key)
        self._by_key[key] = outcome
        self._seeds.add(outcome.seed)

    def claim(self, key: StepKey) -> StepOutcome | None:
        found = self._by_key.pop(key, None)
        if found is not None:
            return found
        others = self._by_fingerprint.get(key[1], [])
        while others:
            found = self._by_key.pop(others.pop(0), None)
            if found is not None:
                return found
        return None

    def seed(self, task: str, key: StepKey, attempt: int) -> int:
        """That of the step, unless the old run has drawn with it. Where that run broke off in the midst of equal
        requests, what this step said there may be another's now, and would be said twice."""
        seed = seed_of(task, key, attempt)
        while seed in self._seeds:
            attempt += ANEW
            seed = seed_of(task, key, attempt)
        return seed


ANEW = 1_000_000
"""More attempts than any task has."""

READ_AHEAD = 256
"""Tasks whose steps are read together: a frame holds many, and would be read anew for each."""


class OldRun:
    """An earlier run's tasks by row digest. Each answers one task of the new run: `begun` are the new run's tasks
    and their rows' digests, in order of their start, so that a resumed task gets the same one again."""

    def __init__(self, directory: Path, begun: Iterable[tuple[str, bytes]] = ()) -> None:
        self._reader = JournalReader(directory)
        self._blob = BlobStore(directory / "blobs").get
        rows = {task.task: task.row for task in self._reader.tasks()}
        self._order: list[tuple[str, list[Place]]] = []
        self._numbers: dict[str, int] = {}
        self._read: dict[str, OldSteps] = {}
        self._places: dict[bytes, list[tuple[str, list[Place]]]] = defaultdict(list)
        for task, places in self._reader.places(rows.keys()).items():
            self._numbers[task] = len(self._order)
            self._order.append((task, places))
            self._places[rows[task]].append((task, places))
        self._given = {task: self._take(digest) for task, digest in begun}

    def _take(self, digest: bytes) -> tuple[str, list[Place]] | None:
        tasks = self._places.get(digest)
        return tasks.pop(0) if tasks else None

    def steps_of(self, task: str, digest: bytes) -> OldSteps | None:
        """What the old run recorded for the row of a task."""
        found = self._given.pop(task) if task in self._given else self._take(digest)
        if found is None:
            return None
        name, places = found
        if name not in self._read:
            self._read_on(name, places)
        return self._read.pop(name)

    def _read_on(self, name: str, places: list[Place]) -> None:
        """Read a task and those that began after it: they share its frames, and are mostly asked for next."""
        while len(self._read) > 3 * READ_AHEAD:
            del self._read[next(iter(self._read))]
        at = self._numbers[name]
        wanted = {task: where for task, where in self._order[at : at + READ_AHEAD] if task not in self._read}
        wanted[name] = places
        for task, events in self._reader.histories(wanted):
            with sensible(f"task {task!r} of the earlier run"):
                self._read[task] = self._steps(events)

    def _steps(self, events: Iterable[TaskEvent]) -> OldSteps:
        steps = OldSteps()
        texts = Texts()
        for event in in_order(events):
            if isinstance(event, StepEnded):
                texts.unpack(event.input, self._blob)
                value = texts.unpack(event.value, self._blob)
                outcome = outcome_of(event, value)
                if event.outcome == "reply" and outcome is not CANCELLED:
                    steps.add((event.path, event.fingerprint, event.occurrence), StepOutcome(outcome, event.seed))
            else:
                texts.unpack(getattr(event, "row", getattr(event, "value", None)), self._blob)
        return steps
