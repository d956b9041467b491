"""One row on its way through one workflow.

`TaskRun` stands between the workflow's private loop and the peer that owns the row: it turns outcomes into journal
events and journaled events into what the workflow sees. `Task` is what is left at the end.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Protocol

import msgspec

from weaverant.binding import Binding
from weaverant.branch import CANCELLED, Record, Timer, TimerKey
from weaverant.errors import StepFailed, UserError, failure_of
from weaverant.events import (
    NO_USAGE,
    EndState,
    Event,
    Outcome,
    StepEnded,
    TaskEnded,
    TaskEvent,
    TaskStarted,
    TimerFired,
)
from weaverant.message import Message, Reply, Usage, UsageSum
from weaverant.past import Blob, Past
from weaverant.protocols import Clock
from weaverant.replay import WorkflowLoop
from weaverant.step import Ask, EffectAsk, ModelAsk, StepKey, message_value, reply_of, reply_value, seed_of
from weaverant.talk import Talk
from weaverant.trace import Texts, fresh, plain
from weaverant.workflow import Group, Rejected, Workflow


class Peer(Protocol):
    """What a task needs of the peer that owns it."""

    @property
    def binding(self) -> Binding: ...

    @property
    def clock(self) -> Clock: ...

    def write(self, event: Event, durable: Callable[[], None] | None, blobs: Mapping[bytes, str] | None) -> None: ...

    def launch(self, run: TaskRun, ask: Ask) -> None:
        """Work on the ask when it is its turn, then call `run.record(ask, outcome)`."""
        ...

    def cancel(self, ask: Ask) -> None: ...

    def charge(self, run: TaskRun, ask: Ask, usage: Usage | None) -> Usage:
        """What a model step that ends now is charged: its usage, or what was set aside for it where nobody knows."""
        ...

    def abandon(self, run: TaskRun) -> None:
        """The task failed on its own while calls were in flight: cancel and record them."""
        ...

    def call_later(self, delay: float, callback: Callable[[], None]) -> asyncio.TimerHandle: ...

    def ended(self, run: TaskRun, event: TaskEnded, value: Any) -> None:
        """The task's end is durable. `value` is the event's, with its texts in full."""
        ...


class Reusable(Protocol):
    """An earlier run's steps of the same row."""

    def claim(self, key: StepKey) -> StepOutcome | None:
        """The record of the same key, else any unclaimed one of the same fingerprint; each is given once."""
        ...

    def seed(self, task: str, key: StepKey, attempt: int) -> int:
        """What a step that no record answers draws with: the seed of none of them."""
        ...


_NOTHING = object()


class StepOutcome(msgspec.Struct, frozen=True):
    """A recorded reply or value, outside its task."""

    value: Any
    """A `Reply` for a model step, plain data for others."""
    seed: int


class Row(msgspec.Struct, frozen=True):
    """A row with its place: `order` is its age in the run, smaller is older and served first."""

    key: str
    stage: int
    order: int
    digest: bytes
    value: Any
    parents: tuple[str, ...] = ()


class Task(msgspec.Struct, frozen=True):
    """A task that has ended, as `run` yields it."""

    key: str
    stage: int
    state: EndState
    row: Any
    result: Any
    """What the workflow returned; the details of a rejection; of a failure, `text` and perhaps `detail`."""
    reason: str = ""
    """Of a rejection or failure: the short word it is counted by."""
    where: str = ""
    """Of a failure: the place in the user's code."""
    usage: Usage = NO_USAGE
    seconds: float = 0.0


class TaskRun:
    """A live task. Made for a new row, or restored from its recorded events to carry on."""

    __slots__ = (
        "_count", "_loop", "_now", "_peer", "_reuse", "_spent", "_texts", "_wall", "_zero", "attempt", "closed", "row",
        "workflow",
    )  # fmt: skip

    def __init__(self, peer: Peer, workflow: Workflow | Group, row: Row, reuse: Reusable | None = None) -> None:
        self.row = row
        self.workflow = workflow
        self.attempt = 0
        self.closed = False
        self._spent = UsageSum()
        self._peer = peer
        self._now, self._wall = peer.clock.monotonic, peer.clock.time
        self._reuse = reuse
        self._texts = Texts()
        self._count = 0
        self._zero = math.inf
        self._loop: WorkflowLoop

    @property
    def usage(self) -> Usage:
        """What its steps used so far."""
        return self._spent.total()

    def begin(self) -> None:
        """Journal the row and start its workflow."""
        self._start({}, {}, self.journal_row())

    def journal_row(self) -> float:
        """Write the event that the task began. Returns the time in it."""
        row, wall = self.row, self._wall()
        packed = self._texts.pack(row.value)
        self._write(TaskStarted(row.key, row.stage, wall, row.digest, packed, row.parents), None)
        return wall

    @classmethod
    def restore(
        cls,
        peer: Peer,
        workflow: Workflow | Group,
        order: int,
        events: Iterable[TaskEvent],
        blob: Blob,
        reuse: Reusable | None = None,
    ) -> TaskRun:
        """Carry on where the events end."""
        past = Past(events, blob)
        started = past.started
        row = Row(started.task, started.stage, order, started.digest, past.row, started.parents)
        run = cls(peer, workflow, row, reuse)
        run.attempt = past.attempt
        run._spent.add(past.usage)
        run._texts = past.texts
        run._count = past.count
        if reuse is not None:
            for key in past.reused:
                reuse.claim(key)
        run._start(past.steps, past.timers, started.time)
        return run

    def _start(self, steps: dict[StepKey, Record], timers: dict[TimerKey, Record], wall: float) -> None:
        self._loop = WorkflowLoop(
            self, steps, timers, time=wall, seed=self.row.digest, name=self.row.key, binding=self._peer.binding
        )
        self._loop.start(self._main())
        self.advance()

    async def _main(self) -> Any:
        return await self.workflow(fresh(self.row.value))

    def advance(self, asked: Ask | Timer | None = None, record: Record | None = None) -> None:
        """Let the workflow go on, show it what is recorded now, and end the task when it is over."""
        if self.closed:
            return
        try:
            if self._loop.advance(asked, record):
                self._end(*self._verdict())
            elif not self._loop.open:
                self._fail(StepFailed("stuck", "the workflow waits for something that nothing can bring"))
        except Exception as error:  # the boundary of a task: whatever breaks in it ends it, and nothing else
            self._fail(failure_of(error)[0])

    def close(self) -> None:
        """Stop where it stands; the journal has all that is needed to carry on."""
        if not self.closed:
            self.closed = True
            self._loop.close()

    # Host of the workflow's loop

    def launch(self, ask: Ask) -> None:
        asks_model = isinstance(ask, ModelAsk)
        if asks_model and ask.inside:
            given, ask.given = ask.given, None
            self.record(ask, given)
            return
        found = None if self._reuse is None else self._reuse.claim(ask.key)
        if found is not None:
            ask.started = self.clock()
            self.record(ask, found.value, seed=found.seed, reused=True)
            return
        if asks_model:
            draw = seed_of if self._reuse is None else self._reuse.seed
            ask.seed = draw(self.row.key, ask.key, self.attempt)
        self._peer.launch(self, ask)

    def abandon(self, ask: Ask) -> None:
        self._peer.cancel(ask)
        if ask.number < 0 and not self.closed:
            if ask.handle is None:  # it waited for its slot until now
                ask.started = self.clock()
            self.record(ask, CANCELLED)

    def arm(self, timer: Timer) -> None:
        delay = max(0.0, timer.due - self.clock())
        timer.handle = self._peer.call_later(delay, partial(self._fire, timer))

    def disarm(self, timer: Timer) -> None:
        if timer.handle is not None:
            timer.handle.cancel()

    # From outcome to event to workflow

    def record(self, ask: Ask, outcome: Any, *, seed: int = 0, reused: bool = False) -> None:
        """Journal what became of an ask: a `Reply`, a value, a `StepFailed` or `CANCELLED`."""
        if self.closed or ask.number >= 0:
            return
        usage, host, inside = NO_USAGE, 0, ""
        if isinstance(ask, ModelAsk):
            inside = ask.inside
            host = 0 if ask.turn is None else ask.turn.host
            usage = self._used(ask, outcome, reused)
            if type(outcome) is Reply and usage is not outcome.usage:
                outcome = msgspec.structs.replace(outcome, usage=usage)
            if not reused:
                seed = ask.seed
            self._spent.add(usage)
        mark = self._texts.mark()
        try:
            self._write_step(ask, outcome, usage, seed, reused, host, inside)
        except (TypeError, ValueError, OverflowError, RecursionError, UserError) as error:
            self._texts.rollback(mark)
            failure = StepFailed("value", f"{ask.name!r} gave what cannot be stored: {error}")
            self._write_step(ask, failure, usage, seed, reused, host, inside, instead_of=outcome)

    def _used(self, ask: ModelAsk, outcome: Any, reused: bool) -> Usage:
        used: Usage | None = outcome.usage if isinstance(outcome, (Reply, StepFailed)) else None
        if ask.inside:  # what it is made of was paid for step by step
            return NO_USAGE
        if reused:  # an earlier run paid
            return NO_USAGE if used is None else Usage(used.prompt_tokens, used.completion_tokens, requests=0)
        turn = ask.turn
        if turn is not None:
            if turn.waited:  # what it waited for its turn is no part of its latency
                ask.started = min(self.clock(), ask.started + turn.waited)
            if used is None and turn.waiting:
                used = NO_USAGE  # nothing was sent
        charged = self._peer.charge(self, ask, used)
        ask.turn = None  # it may name the call, and all that was asked
        return charged

    def _write_step(
        self,
        ask: Ask,
        outcome: Any,
        usage: Usage,
        seed: int,
        reused: bool,
        host: int,
        inside: str,
        instead_of: Any = _NOTHING,
    ) -> None:
        """`instead_of` is an outcome that could not be stored; then the input is not tried again either. It was paid
        for all the same."""
        texts = self._texts
        asked = _packed_input(ask, texts) if instead_of is _NOTHING else None
        if type(outcome) is Reply:
            kind, reason, model = "reply", "", outcome.model
            value = reply_value(outcome)
            seen = outcome if type(value) is str else reply_of(value, outcome.usage, model)
        else:
            model = instead_of.model if isinstance(instead_of, Reply) else ""
            kind, value, reason, seen = _other_outcome(outcome, usage)
        clock, wall, number = self.clock(), self._wall(), self._count
        path, fingerprint, occurrence = ask.key
        event = StepEnded(
            self.row.key, path, fingerprint, occurrence, ask.kind, ask.name, ask.spec, asked, kind, texts.pack(value),
            ask.started, clock, wall, usage, model, seed, reused, reason, host,
            inside,
        )  # fmt: skip
        self._write(event, partial(self.advance, ask, Record(number, ask.name, seen, clock, wall)))
        ask.number = number
        self._count = number + 1

    def _write(self, event: Event, durable: Callable[[], None] | None) -> None:
        blobs = self._texts.blobs
        if blobs:
            self._texts.blobs = {}
        self._peer.write(event, durable, blobs)

    def _fire(self, timer: Timer) -> None:
        timer.handle = None  # it names this callback, and that the timer: a cycle
        if self.closed or timer.settled:
            return
        clock, wall = max(timer.due, self.clock()), self._wall()
        path, number = timer.key
        durable = partial(self.advance, timer, Record(self._count, "timer", None, clock, wall))
        self._count += 1
        self._peer.write(TimerFired(self.row.key, path, number, clock, wall), durable, None)

    def clock(self) -> float:
        """Seconds on the task's own clock. It goes on from the last event that the workflow saw, so the time a run
        stood still does not count against deadlines."""
        clock = self._now() - self._zero
        if clock < self._loop.clock:  # not begun, or a retry has come past answers that were kept
            clock = self._loop.clock
            self._zero = self._now() - clock
        return clock

    # The end

    def _verdict(self) -> tuple[EndState, str, str, Any]:
        error = self._loop.error()
        if error is not None:
            failure, where = failure_of(error, self.row.value)
            return "failed", failure.kind, where, _failure_value(failure)
        result = self._loop.result()
        try:
            if isinstance(result, Rejected):
                return "rejected", result.reason, "", plain(result.details, "the details of a rejection")
            return "done", "", "", plain(result, f"the result of {self.workflow.name!r}")
        except UserError as error:
            return "failed", "result", "", {"text": str(error)}

    def _fail(self, failure: StepFailed) -> None:
        self._peer.abandon(self)
        self._end("failed", failure.kind, "", _failure_value(failure))

    def _end(self, state: EndState, reason: str, where: str, value: Any) -> None:
        self.close()
        mark = self._texts.mark()
        try:
            self._write_end(state, reason, where, value)
        except (ValueError, OverflowError, RecursionError) as error:
            self._texts.rollback(mark)
            self._write_end("failed", "result", "", {"text": f"the result cannot be stored: {error}"})

    def _write_end(self, state: EndState, reason: str, where: str, value: Any) -> None:
        loop, row = self._loop, self.row
        event = TaskEnded(
            row.key, row.stage, state, reason, where, self._texts.pack(value), self.clock(), self._wall(),
            loop.unasked, loop.first_unasked(),
        )  # fmt: skip
        self._write(event, partial(self._peer.ended, self, event, value))


def _packed_input(ask: Ask, texts: Texts) -> Any:
    """What was asked, as the journal holds it: see docs/data-format.md."""
    if isinstance(ask, EffectAsk):
        return texts.pack(ask.arguments)
    assert isinstance(ask, ModelAsk)
    if ask.base is not None:
        return _packed_further(ask, ask.base, texts)
    variables: Any = texts.pack(ask.variables) if ask.variables else {}
    if ask.history:
        return [variables, [_packed_message(message, texts) for message in ask.history]]
    return variables


def _packed_further(ask: ModelAsk, base: Ask | Talk, texts: Texts) -> list[Any]:
    """Of a request that goes on from a step."""
    if isinstance(base, Talk):
        variables = texts.pack(ask.variables)
        return [variables, [_packed_message(message, texts) for message in ask.added], base.number, base.skip]
    return [base.number, [_packed_message(message, texts) for message in ask.added]]


def _packed_message(message: Message, texts: Texts) -> list[Any]:
    content = message.content
    if type(content) is str and not message.tool_calls and message.tool_call_id is None and message.reasoning is None:
        return [message.role, texts.pack_text(content)]
    return texts.pack(message_value(message))


def _other_outcome(outcome: Any, usage: Usage) -> tuple[Outcome, Any, str, Any]:
    """Of what is no model's reply: what the event holds, its reason, and what the workflow gets, which is as replay
    would decode it, and never the object that somebody else still holds."""
    if outcome is CANCELLED:
        return "cancelled", None, "", CANCELLED
    if not isinstance(outcome, StepFailed):
        return "reply", outcome, "", fresh(outcome)
    value = [outcome.text, plain(outcome.detail, "a failure's detail")]
    seen = StepFailed(outcome.kind, outcome.text, fresh(value[1]), usage)
    seen.forget = outcome.forget
    return "failure", value, outcome.kind, seen


def _failure_value(failure: StepFailed) -> dict[str, Any]:
    value: dict[str, Any] = {"text": failure.text}
    if failure.detail is not None:
        value["detail"] = plain(failure.detail, "a failure's detail")
    if failure.forget:
        value["forget"] = [list(key) for key in failure.forget]
    return value
