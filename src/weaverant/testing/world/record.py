"""What the journal of a run says, read from its first event to its last and counted without any index."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path
from typing import Any, cast

import msgspec
from msgspec import Struct

from weaverant.events import (
    NO_USAGE,
    CostReserved,
    Event,
    StepEnded,
    TaskEnded,
    TaskEvent,
    TaskReopened,
    TaskStarted,
    TaskSuperseded,
    TimerFired,
)
from weaverant.journal import JournalReader
from weaverant.message import Usage
from weaverant.testing.world.server import number_in

Key = tuple[str, str, bytes, int]
"""A step of the run: task, path, fingerprint, occurrence."""


class Record(Struct):
    """The fold. A step that was cancelled may be asked again and is no outcome."""

    events: list[Event]
    starts: dict[str, TaskStarted] = {}
    ends: dict[str, list[TaskEnded]] = {}
    states: dict[str, str | None] = {}
    """What each task is now: how it ended, or None."""
    reopened: Counter[str] = msgspec.field(default_factory=Counter[str])
    superseded: set[str] = set()
    outcomes: dict[Key, list[StepEnded]] = {}
    cancelled: set[Key] = set()
    given_up: set[str] = set()
    """Tasks that gave up a process which did not end in time."""
    timers: Counter[tuple[str, str, int]] = msgspec.field(default_factory=Counter[tuple[str, str, int]])
    calls: dict[int, StepEnded] = {}
    """Model steps by the number of the request that ended them."""
    effects: dict[int, StepEnded] = {}
    """Users' functions by the number of the execution that ended them."""
    reused: dict[tuple[str, int], list[StepEnded]] = {}
    """Steps that an earlier run answered, by their kind and the number of what it recorded; in no other table."""
    usage: Usage = NO_USAGE
    reserved: dict[Key, dict[str, float]] = {}
    """Dollars set aside for steps without an end, by claim."""

    @property
    def accounted(self) -> float:
        """Dollars that count as spent: those of steps that ended, and those set aside."""
        return self.usage.cost + sum(sum(claims.values()) for claims in self.reserved.values())

    def stages(self) -> dict[int, Counter[str]]:
        """Tasks by stage and state, superseded ones apart."""
        counts: dict[int, Counter[str]] = defaultdict(Counter)
        for task, start in self.starts.items():
            if task not in self.superseded:
                counts[start.stage][self.states[task] or "left"] += 1
        return counts

    def bytes(self) -> bytes:
        return b"".join(map(_encode, self.events))


def read(directory: Path) -> Record:
    """Raises `JournalError` as the reader does."""
    record = Record(list(JournalReader(directory).events()))
    for event in record.events:
        if isinstance(event, TaskEvent):
            _fold(record, event)
    return record


def _fold(record: Record, event: TaskEvent) -> None:
    match event:
        case TaskStarted():
            record.starts[event.task] = event
            record.states[event.task] = None
        case TaskEnded():
            record.ends.setdefault(event.task, []).append(event)
            record.states[event.task] = event.state
        case TaskSuperseded():
            record.superseded.add(event.task)
            record.states[event.task] = "superseded"
        case TimerFired():
            record.timers[event.task, event.path, event.number] += 1
        case CostReserved():
            claims = record.reserved.setdefault((event.task, event.path, event.fingerprint, event.occurrence), {})
            claims[event.claim] = event.dollars
        case StepEnded():
            _fold_step(record, event)
        case TaskReopened():
            record.reopened[event.task] += 1
            record.states[event.task] = None


def _fold_step(record: Record, event: StepEnded) -> None:
    key = (event.task, event.path, event.fingerprint, event.occurrence)
    record.usage += event.usage
    record.reserved.pop(key, None)
    if event.outcome == "cancelled":
        record.cancelled.add(key)
        if event.name == "note_in_a_process":
            record.given_up.add(event.task)
        return
    record.outcomes.setdefault(key, []).append(event)
    number = number_of(event)
    if number is None:
        return
    if event.reused:
        record.reused.setdefault((event.kind, number), []).append(event)
    elif event.kind == "model":
        record.calls[number] = event
    else:
        record.effects[number] = event


def number_of(event: StepEnded) -> int | None:
    """That of the request, or of the execution of a user's function, that the outcome came from."""
    value = event.value
    if event.kind == "model":
        number = number_in(event.model)
        return number_in(_text(value)) if number is None else number
    return cast("dict[str, Any]", value).get("number") if isinstance(value, dict) else number_in(_text(value))


def _text(value: Any) -> Any:
    """A failure's."""
    if not isinstance(value, list):
        return value
    return next(iter(cast("list[Any]", value)), None)


_encode = msgspec.msgpack.Encoder().encode
