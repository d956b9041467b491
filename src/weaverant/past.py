"""A task's past, as the journal tells it: what replay feeds to the workflow before anything is asked anew."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, cast

from weaverant.branch import CANCELLED, Record, TimerKey, is_within
from weaverant.errors import StepFailed
from weaverant.events import NO_USAGE, StepEnded, TaskEnded, TaskEvent, TaskReopened, TaskStarted, TimerFired
from weaverant.history import in_order, sensible
from weaverant.step import StepKey, reply_of
from weaverant.trace import Texts

Blob = Callable[[bytes], str]
"""A long text by its digest."""


class Past:
    """What a task's recorded events amount to. Reading them in order numbers the texts as writing them did.
    `JournalCorrupt` where they make no sense."""

    def __init__(self, events: Iterable[TaskEvent], blob: Blob) -> None:
        self.texts = Texts()
        self.steps: dict[StepKey, Record] = {}
        self.timers: dict[TimerKey, Record] = {}
        self.forget: list[StepKey] = []
        self.reused: list[StepKey] = []
        """Those that an earlier run answered, in order: what they claimed there is not given again."""
        self.count = 0
        self.attempt = 0
        self.usage = NO_USAGE
        self.row: Any = None
        self.started: TaskStarted
        self._tools: set[StepKey] = set()
        self._inside: dict[StepKey, str] = {}
        """Of steps of compound models, the branches whose steps have made their replies."""
        self._failure = "", ""
        """Reason and text of the row's last failure."""
        self._blob = blob
        with sensible("a task"):
            for event in in_order(events):
                self._read(event)

    def _read(self, event: TaskEvent) -> None:
        match event:
            case StepEnded():
                self._read_step(event)
            case TimerFired():
                record = Record(self.count, "timer", None, event.clock, event.time)
                self.timers[event.path, event.number] = record
                self.count += 1
            case TaskStarted():
                self.started = event
                self.row = self.texts.unpack(event.row, self._blob)
            case TaskEnded():
                value = self.texts.unpack(event.value, self._blob)
                if event.state == "failed" and isinstance(value, dict):
                    ended = cast("dict[str, Any]", value)
                    self.forget = [(path, key, n) for path, key, n in ended.get("forget", ())]
                    self._failure = event.reason, str(ended.get("text", ""))
            case TaskReopened():
                self._forget()
            case _:
                pass

    def _read_step(self, event: StepEnded) -> None:
        self.texts.unpack(event.input, self._blob)
        value = self.texts.unpack(event.value, self._blob)
        outcome = outcome_of(event, value)
        key = (event.path, event.fingerprint, event.occurrence)
        if key in self.steps and self.steps[key].outcome is not CANCELLED:
            raise ValueError(f"task {event.task!r} has another outcome of a step that its retry has kept: {key!r}")
        self.steps[key] = Record(self.count, event.name, outcome, event.clock, event.time)
        self.count += 1
        if event.kind == "tool":
            self._tools.add(key)
        if event.inside:
            self._inside[key] = event.inside
        if event.reused:
            self.reused.append(key)
        self.usage = self.usage + event.usage

    def retried(self) -> list[StepKey]:
        """The steps that a retry asks again: those that the row's failure hung on, and all that failed but those that
        the workflow had dealt with. Asked again these would cost what they have cost, and where they end otherwise, the
        replies that came after them would be for nothing."""
        hung_on = [key for key in self.forget if key in self.steps]
        if useless := [self._inside[key] for key in hung_on if key in self._inside]:
            hung_on += [key for key in self.steps if _is_in(key, useless) and key not in hung_on]
        failed = [key for key, record in self.steps.items() if isinstance(record.outcome, StepFailed)]
        handled = self._handled(failed)
        if kept := [path for key, path in self._inside.items() if key not in hung_on and self._holds(key, handled)]:
            handled |= {key for key in failed if _is_in(key, kept)}
        asked = [*hung_on, *(key for key in failed if key not in handled)]
        return asked or failed

    def _holds(self, key: StepKey, handled: set[StepKey]) -> bool:
        """Whether what came of the step of a compound stays: to ask again what it was made of would change nothing."""
        return key in handled or not isinstance(self.steps[key].outcome, StepFailed)

    def _handled(self, failed: list[StepKey]) -> set[StepKey]:
        """Failures that the workflow went on after, in the same branch, up to another reply, and those of tools, which
        the model was told. The one that the row ended with is none: its branch may have had something to clear up."""
        replied: dict[str, int] = {}
        for (path, _, _), record in self.steps.items():
            if not isinstance(record.outcome, StepFailed) and record.outcome is not CANCELLED:
                replied[path] = max(record.number, replied.get(path, -1))
        handled = {key for key in failed if key in self._tools or self.steps[key].number < replied.get(key[0], -1)}
        ended_with = [key for key in failed if self._is_end(self.steps[key].outcome)]
        return handled - {max(ended_with, key=lambda key: self.steps[key].number)} if ended_with else handled

    def _is_end(self, failure: StepFailed) -> bool:
        reason, text = self._failure
        return reason == failure.kind and text.startswith(failure.text)

    def _forget(self) -> None:
        """A retry: the timers are asked for again as well."""
        self.attempt += 1
        for key in self.retried():
            self.steps.pop(key, None)
            self._inside.pop(key, None)
        self.timers.clear()


def _is_in(key: StepKey, branches: list[str]) -> bool:
    """Whether it was asked in one of these branches, or in one that began there."""
    return any(is_within(key[0], path) for path in branches)


def outcome_of(event: StepEnded, value: Any) -> Any:
    """What the workflow saw of a recorded step, given its unpacked value."""
    if event.outcome == "failure":
        text, detail = value
        if not isinstance(value, list) or not isinstance(text, str):
            raise ValueError(f"{value!r} is no failure's text and detail")
        return StepFailed(event.reason, text, detail, event.usage)
    if event.outcome == "cancelled":
        return CANCELLED
    return reply_of(value, event.usage, event.model) if event.kind == "model" else value
