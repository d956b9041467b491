"""Bugs that the fault gate must find: each is planted into the running code, and caught within so many seeds.

`python -m weaverant.testing.world --mutants` prints what catches them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from weaverant.engines.http.attempt import Trouble
from weaverant.engines.http.endpoint import Endpoint
from weaverant.events import CostReserved, Event, RunClosed, StepEnded, TimerFired
from weaverant.journal.lock import RunLock
from weaverant.journal.store import SegmentStore
from weaverant.past import Past
from weaverant.runtime.local import LocalSwarm
from weaverant.runtime.recovery import Recovery
from weaverant.runtime.reuse import OldSteps
from weaverant.runtime.unfinished import Unfinished
from weaverant.runtime.workers import Worker, Workers
from weaverant.step import StepKey, seed_of
from weaverant.task import StepOutcome
from weaverant.testing.world.trial import trial
from weaverant.trace import Texts

SEEDS = 500
"""Within so many a bug must be caught."""

Durable = Callable[[], None] | None


class Mutant(NamedTuple):
    about: str
    owner: type
    name: str
    body: Callable[[Any], Any]
    """Makes the broken method of the right one."""


class Caught(NamedTuple):
    """Which seed found the bug, and how; without a seed it lives."""

    name: str
    seed: int | None
    invariant: str


def hunt(name: str, seeds: int = SEEDS, first: int = 0) -> Caught:
    """Try seeds on the broken code until one finds a fault."""
    with planted(name):
        for seed in range(first, first + seeds):
            faults = trial(seed).faults
            if faults:
                return Caught(name, seed, faults[0])
    return Caught(name, None, "")


@contextmanager
def planted(name: str) -> Generator[None]:
    mutant = MUTANTS[name]
    right = mutant.owner.__dict__[mutant.name]
    setattr(mutant.owner, mutant.name, mutant.body(right))
    try:
        yield
    finally:
        setattr(mutant.owner, mutant.name, right)


def _soon(durable: Durable) -> None:
    if durable is not None:
        asyncio.get_running_loop().call_soon(durable)


def _unwritten(which: Callable[[Event], bool]) -> Callable[[Any], Any]:
    """Such events are acknowledged and not written."""

    def body(right: Any) -> Any:
        def write(self: LocalSwarm, event: Event, durable: Durable, blobs: Any) -> None:
            if which(event):
                _soon(durable)
            else:
                right(self, event, durable, blobs)

        return write

    return body


def _shown_early(right: Any) -> Any:
    def write(self: LocalSwarm, event: Event, durable: Durable, blobs: Any) -> None:
        right(self, event, None if isinstance(event, StepEnded) else durable, blobs)
        if isinstance(event, StepEnded):
            _soon(durable)

    return write


def _reserved_late(right: Any) -> Any:
    def write_reservation(self: LocalSwarm, event: CostReserved, durable: Durable) -> None:
        right(self, event, None)
        _soon(durable)

    return write_reservation


def _no_sync(right: Any) -> Any:
    def sync_file(self: SegmentStore) -> None: ...

    return sync_file


def _sync_that_fails_unheard(right: Any) -> Any:
    def sync_file(self: SegmentStore) -> None:
        with suppress(OSError):
            right(self)

    return sync_file


def _unlocked(right: Any) -> Any:
    def init(self: RunLock, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._file = -1  # pyright: ignore[reportPrivateUsage]

    return init


def _no_occurrences(right: Any) -> Any:
    def init(self: Past, *arguments: Any) -> None:
        right(self, *arguments)
        self.steps = {(path, fingerprint, 0): record for (path, fingerprint, _), record in self.steps.items()}

    return init


def _counted_twice(right: Any) -> Any:
    def unfinished(self: Recovery, *arguments: Any) -> Unfinished:
        left = right(self, *arguments)
        first = self._ledger.stages[0]  # pyright: ignore[reportPrivateUsage]
        first.done *= 2
        return left

    return unfinished


def _no_rollback(right: Any) -> Any:
    def rollback(self: Texts, mark: int) -> None: ...

    return rollback


def _refusals_again(right: Any) -> Any:
    def failed(self: Endpoint, status: int, *arguments: Any, **options: Any) -> Trouble:
        trouble = right(self, status, *arguments, **options)
        return trouble._replace(blame="server", again=True) if status == 400 else trouble

    return failed


def _cut_at_nothing(right: Any) -> Any:
    """What a failed repair gave back to the disk was the whole segment, once."""

    def give_up(self: SegmentStore, error: OSError) -> Any:
        self._good = 0  # pyright: ignore[reportPrivateUsage]
        return right(self, error)

    return give_up


def _any_agent(right: Any) -> Any:
    def claim(self: OldSteps, key: StepKey) -> StepOutcome | None:
        known = self._by_key  # pyright: ignore[reportPrivateUsage]
        return right(self, next((each for each in known if (each[0], each[2]) == (key[0], key[2])), key))

    return claim


def _same_sample(right: Any) -> Any:
    def seed(self: OldSteps, task: str, key: StepKey, attempt: int) -> int:
        return seed_of(task, key, attempt)

    return seed


def _pilot_again(right: Any) -> Any:
    """A run goes on from a pilot with its first row."""

    def unfinished(self: Recovery, *arguments: Any) -> Unfinished:
        left = right(self, *arguments)
        events = self._reader.run_events()  # pyright: ignore[reportPrivateUsage]
        if any(isinstance(event, RunClosed) and event.state == "pilot" for event in events):
            left.started = 0
        return left

    return unfinished


def _kept(right: Any) -> Any:
    """A process goes on with what was given up."""

    def end(self: Workers, worker: Worker) -> None:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            self._give_back(worker)  # pyright: ignore[reportPrivateUsage]
        else:
            right(self, worker)

    return end


MUTANTS: dict[str, Mutant] = {
    "shown early": Mutant("a reply is shown before it is durable", LocalSwarm, "write", _shown_early),
    "no sync": Mutant("fdatasync is skipped", SegmentStore, "_sync_file", _no_sync),
    "failed sync": Mutant("a failed fdatasync is passed over", SegmentStore, "_sync_file", _sync_that_fails_unheard),
    "no lock": Mutant("the lock of the run is not taken", RunLock, "__init__", _unlocked),
    "no occurrences": Mutant("replay ignores the occurrence number", Past, "__init__", _no_occurrences),
    "lost failures": Mutant(
        "a failed outcome is not recorded", LocalSwarm, "write",
        _unwritten(lambda event: isinstance(event, StepEnded) and event.outcome == "failure"),
    ),
    "lost cancellations": Mutant(
        "an abandoned call's cancellation is not recorded", LocalSwarm, "write",
        _unwritten(lambda event: isinstance(event, StepEnded) and event.outcome == "cancelled"),
    ),
    "lost timers": Mutant(
        "a timer that fired is not recorded", LocalSwarm, "write",
        _unwritten(lambda event: isinstance(event, TimerFired)),
    ),
    "late money": Mutant(
        "money is taken for set aside before that is durable", LocalSwarm, "write_reservation", _reserved_late
    ),
    "counted twice": Mutant("the ledger counts a row twice after a resume", Recovery, "unfinished", _counted_twice),
    "no rollback": Mutant(
        "texts of an event that could not be written keep their numbers", Texts, "rollback", _no_rollback
    ),
    "refusals again": Mutant("a 400 is sent again", Endpoint, "_failed", _refusals_again),
    "cut at nothing": Mutant(
        "a failing repair cuts the segment to nothing", SegmentStore, "give_up", _cut_at_nothing
    ),
    "any agent": Mutant("reuse ignores that an agent has changed", OldSteps, "claim", _any_agent),
    "same sample": Mutant(
        "a step draws the sample again that reuse gave to another", OldSteps, "seed", _same_sample
    ),
    "pilot again": Mutant("the full run pays for a pilot's rows again", Recovery, "unfinished", _pilot_again),
    "lost process": Mutant(
        "a failed step in a process is not recorded", LocalSwarm, "write",
        _unwritten(
            lambda event: isinstance(event, StepEnded)
            and event.outcome == "failure"
            and event.name == "note_in_a_process"
        ),
    ),
    "kept process": Mutant("a process goes on with what was given up", Workers, "_end", _kept),
}  # fmt: skip
