"""What a workflow's author writes with, besides agents.

A workflow is an async function from a row to a result, in ordinary Python. Its effects go through these words, so
that each is recorded once and replayed for ever.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from random import Random
from typing import Any, cast, overload

from msgspec import Struct

from weaverant.effect import effect, source_digest
from weaverant.errors import UserError
from weaverant.message import Reply
from weaverant.replay import current_loop

Row = dict[str, Any]
WorkflowFunction = Callable[[Any], Awaitable[Any]]


class Rejected(Struct, frozen=True):
    """A result that says no: counted by `reason`, never an error."""

    reason: str
    details: dict[str, Any] = {}


def reject(reason: str, **details: Any) -> Rejected:
    """Return this from a workflow whose row should not become data."""
    if not isinstance(reason, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise UserError(f"reject(REASON, ...) takes a short word to count by; found {reason!r:.80}")
    return Rejected(reason, details)


@dataclass(frozen=True, eq=False)
class Workflow:
    """An async function from a row to a result. Awaiting it inside another workflow runs it there, as a part of it.

    A result is plain data; where another stage follows, a list becomes one row for each of its items.
    """

    function: WorkflowFunction
    name: str

    async def __call__(self, row: Any) -> Any:
        return await self.function(row)

    @property
    def source(self) -> bytes:
        return source_digest(self.function)


@dataclass(frozen=True, eq=False)
class Group:
    """A stage that joins: an async function from a list of rows to a result. It waits for every row of the stage
    before it; rows with equal `by` go together, in the order of their keys."""

    function: WorkflowFunction
    name: str
    by: Callable[[Row], Any]

    async def __call__(self, rows: list[Row]) -> Any:
        return await self.function(rows)

    @property
    def source(self) -> bytes:
        return source_digest(self.function)


@dataclass(frozen=True, eq=False, init=False)
class Stages:
    """Workflows and groups one after the other: the finished results of one are the rows of the next."""

    stages: tuple[Workflow | Group, ...]

    def __init__(self, *stages: Workflow | Group) -> None:
        if not stages or isinstance(stages[0], Group):
            raise UserError("Stages(...) must begin with a @workflow: a group needs the results of a stage before it")
        object.__setattr__(self, "stages", stages)

    @property
    def name(self) -> str:
        return "+".join(stage.name for stage in self.stages)


def ungrouped(stages: Sequence[Workflow | Group]) -> Sequence[Workflow | Group]:
    """Those before the first group: a row of theirs needs no other row."""
    return stages[: next((n for n, stage in enumerate(stages) if isinstance(stage, Group)), len(stages))]


def workflow(function: WorkflowFunction) -> Workflow:
    """Make an async function of one row a workflow."""
    if not inspect.iscoroutinefunction(function):
        raise UserError(f"@workflow needs an async function; {_name(function)!r} is not: write 'async def'")
    return Workflow(function, _name(function))


@overload
def group(*, by: str | Callable[[Row], Any]) -> Callable[[WorkflowFunction], Group]: ...
@overload
def group(*, by: None = None) -> Callable[[WorkflowFunction], Group]: ...
def group(*, by: str | Callable[[Row], Any] | None = None) -> Callable[[WorkflowFunction], Group]:
    """Make an async function of a list of rows a group stage.

    `by` is a field's name or a function of a row; rows for which it is equal form a group. None: all rows.
    """

    def key(row: Row) -> Any:
        if by is None:
            return None
        return by(row) if callable(by) else row[by]

    def decorate(function: WorkflowFunction) -> Group:
        if not inspect.iscoroutinefunction(function):
            raise UserError(f"@group needs an async function; {_name(function)!r} is not: write 'async def'")
        return Group(function, _name(function), key)

    return decorate


def _name(function: Any) -> str:
    return getattr(function, "__name__", type(function).__name__)


async def step(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Run any effect once and record what it returned, or that it raised.

    An async function runs on the run's event loop, a plain one in a thread. Arguments and result are plain data
    (see `weaverant.trace.plain`). An exception becomes `StepFailed(kind=its class's name)`.
    """
    return await effect("effect", function, args, kwargs)


async def process_step(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """`step` for a function that computes for long: it runs in another process, so it must be importable there, and
    what it gives must pickle. Given up (a deadline, a stop) it is killed; if its process dies, the step fails as
    `died`."""
    return await effect("effect", function, args, kwargs, place="process")


async def feedback(reply: Reply | str, score: float) -> bool:
    """Tell the model that gave this reply how good it was, from 0 to 1, where it learns from that: a router does. True
    is 1, False is 0; each score that a reply is given counts.

    Recorded as a step, whose result is what was learned. `reply` is what `await agent.reply(...)` gave, or a reply's
    text, of which the newest is meant. False, and nothing happens, where no such model gave it.
    """
    given = cast("object", score)
    if not isinstance(given, int | float) or not 0 <= given <= 1:
        raise UserError(f"feedback(reply, SCORE) takes a number from 0 to 1; found {given!r:.80}")
    made = current_loop("feedback()").taught or ()
    taught = next((one for one in reversed(made) if one.reply is reply or one.reply.text == reply), None)
    if taught is None:
        return False

    async def feedback(branch: str, score: float) -> Any:
        return taught.compound.lesson(taught.note, score)

    feedback.__qualname__ = "feedback"
    taught.compound.learn(await effect("effect", feedback, (taught.branch, float(score)), {}))
    return True


def now() -> datetime:
    """The time of the last event this workflow saw, in UTC. Recorded, so replay sees the same."""
    return datetime.fromtimestamp(current_loop("now()").wall, UTC)


def rng(name: str = "") -> Random:
    """A random generator of this branch of this row: the same numbers in every life of the task."""
    return current_loop("rng()").rng(name)


def deadline(seconds: float) -> asyncio.Timeout:
    """`async with deadline(30): ...` raises `TimeoutError` when the block is not done in time.

    Counted on the task's own clock, which stands still while the run is stopped.
    """
    current_loop("deadline()")
    return asyncio.timeout(seconds)
