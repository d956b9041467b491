"""What a task's recorded events can be: journals pass their checksums and may be somebody's forgery all the same."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager

from weaverant.errors import JournalCorrupt
from weaverant.events import StepEnded, TaskEnded, TaskEvent, TaskReopened, TaskStarted, TimerFired
from weaverant.row import stage_of


@contextmanager
def sensible(what: str) -> Generator[None]:
    """`JournalCorrupt` for events that no run of ours can have written. Each of them passed its checksum, so they come
    from a forgery, or from a mistake of ours, whose traceback is kept behind the error."""
    try:
        yield
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError, RecursionError) as error:
        raise JournalCorrupt(
            f"the events of {what} make no sense: {type(error).__name__}: {error}. Nothing was changed. "
            "Put the run back from a copy"
        ) from error


def in_order(events: Iterable[TaskEvent]) -> Iterator[TaskEvent]:
    """One task's events, as they come. `ValueError` where they are not what becomes of a task: it begins once and
    first, ends once, and goes on after a failure only where it was taken up again; each of its steps ends once, but
    where it was cancelled, and each timer fires once."""
    life: _Life | None = None
    for event in events:
        if isinstance(event, TaskStarted):
            if life is not None:
                raise ValueError(f"task {event.task!r} begins twice")
            life = _Life(event)
        elif life is None:
            raise ValueError(f"task {event.task!r} has events before it begins")
        else:
            life.see(event)
        yield event
    if life is None:
        raise ValueError("there are none of a task that should be there")


_MOVING = frozenset((StepEnded, TimerFired, TaskEnded))
"""What happens to a task only until it has ended."""


class _Life:
    """A task from its start on, as far as it was read."""

    __slots__ = ("_ended", "_seen", "_started")

    def __init__(self, started: TaskStarted) -> None:
        if stage_of(started.task) != started.stage:
            raise ValueError(f"task {started.task!r} begins in stage {started.stage}, which is not its own")
        self._started = started
        self._ended: TaskEnded | None = None
        self._seen: set[tuple[object, ...]] = set()
        """Steps with an outcome, and timers that fired, since it was last taken up."""

    def see(self, event: TaskEvent) -> None:
        kind = type(event)
        if kind is TaskReopened:
            if self._ended is None or self._ended.state != "failed":
                raise ValueError(f"task {event.task!r} is taken up again and has not failed")
            self._ended = None
            self._seen.clear()
        elif kind in _MOVING:
            if self._ended is not None:
                raise ValueError(f"task {event.task!r} goes on after its end")
            self._go_on(event)

    def _go_on(self, event: TaskEvent) -> None:
        if isinstance(event, StepEnded):
            if (event.kind == "model") != bool(event.spec):
                raise ValueError(f"task {event.task!r} has a step of kind {event.kind!r} with the spec {event.spec!r}")
            if event.outcome != "cancelled":  # what was cancelled may be asked again
                self._note(event, (event.path, event.fingerprint, event.occurrence))
        elif isinstance(event, TimerFired):
            self._note(event, (event.path, event.number))
        elif isinstance(event, TaskEnded):
            if event.stage != self._started.stage:
                raise ValueError(f"task {event.task!r} ends in stage {event.stage}, not in {self._started.stage}")
            self._ended = event

    def _note(self, event: TaskEvent, key: tuple[object, ...]) -> None:
        if key in self._seen:
            raise ValueError(f"task {event.task!r} has two outcomes of {key!r}")
        self._seen.add(key)
