"""Lives and deaths of random workflows in one process: from the start, or from any prefix of their events.

A life's journal commits in groups after random times, so that outcomes wait in it together, as they do on a disk.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any, NamedTuple

from msgspec import Struct

from weaverant.binding import Binding
from weaverant.events import Event, StepEnded, TaskEnded, TaskEvent
from weaverant.runtime.feed import Feed
from weaverant.runtime.intake import Intake
from weaverant.runtime.ledger import Ledger
from weaverant.runtime.limits import Limits
from weaverant.runtime.local import LocalSwarm
from weaverant.runtime.stagebook import StageBook
from weaverant.runtime.unfinished import Begun, Unfinished
from weaverant.sources import MemoryRows
from weaverant.task import Task
from weaverant.testing.journal import MemoryJournal
from weaverant.testing.weaves import Moody, weave

SLOWEST_GROUP = 0.002


class GroupedJournal(MemoryJournal):
    """Acknowledges in groups, each after a random time."""

    def __init__(self, random: Random) -> None:
        super().__init__()
        self._random = random
        self._group: list[Callable[[], None]] = []

    def append(
        self, event: Event, durable: Callable[[], None] | None = None, blobs: Mapping[bytes, str] | None = None
    ) -> None:
        super().append(event, None, blobs)
        if durable is not None:
            if not self._group:
                asyncio.get_running_loop().call_later(self._random.random() * SLOWEST_GROUP, self._commit)
            self._group.append(durable)

    async def flush(self) -> None:
        self._commit()
        await super().flush()

    def _commit(self) -> None:
        group, self._group = self._group, []
        for durable in group:
            durable()


class Life(NamedTuple):
    """What became of the rows in one life. `events` are each task's, those of the lives before it included."""

    ends: dict[str, Task]
    events: dict[str, list[TaskEvent]]
    calls: int


class Retold(Struct, frozen=True):
    """An end, comparable."""

    state: str
    reason: str
    where: str
    result: Any


def told(task: Task) -> Retold:
    return Retold(task.state, task.reason, task.where, task.result)


def unended(events: Mapping[str, Sequence[TaskEvent]]) -> dict[str, list[TaskEvent]]:
    """Traces without their ends: all that replay needs to reach them again."""
    return {task: [event for event in own if not isinstance(event, TaskEnded)] for task, own in events.items()}


def cut(events: Mapping[str, Sequence[TaskEvent]], random: Random) -> dict[str, list[TaskEvent]]:
    """What a crash at a random write of each task would leave."""
    return {task: list(own[: random.randint(1, max(1, len(own) - 1))]) for task, own in events.items()}


def steps(events: Sequence[TaskEvent]) -> list[StepEnded]:
    """The recorded steps that had an outcome of their own."""
    return [event for event in events if isinstance(event, StepEnded) and event.outcome != "cancelled"]


async def live(
    rows: Sequence[Mapping[str, Any]], engine: Moody, past: Mapping[str, list[TaskEvent]] | None = None
) -> Life:
    """Let the rows live to their ends; with a `past`, let its tasks go on from there instead."""
    journal = GroupedJournal(engine.random)
    ledger = Ledger([weave.name])
    ledger.stages[0].rows = len(past or {})
    feed = Feed(MemoryRows([] if past else list(rows)), 0, 1, None)
    restored = (Begun(order, list(events)) for order, events in enumerate((past or {}).values()))
    intake = Intake(feed, StageBook((weave,), ledger), ledger, Unfinished(restored=restored), time)
    swarm = LocalSwarm(
        (weave,), Binding({"*": engine}), journal, intake, ledger,
        Limits(concurrency=10_000, threads=1_000, max_failures=1.0),
        blob=journal.blobs.__getitem__,
    )  # fmt: skip
    ends = {task.key: task async for task in swarm.run()}
    events: dict[str, list[TaskEvent]] = {task: list(own) for task, own in (past or {}).items()}
    for event in journal.events():
        if isinstance(event, TaskEvent):
            events.setdefault(event.task, []).append(event)
    return Life(ends, events, engine.calls)
