"""A finished run told again: its events alone lead every workflow to the same end, and ask nobody for anything."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from random import Random
from typing import Any

from weaverant import launch
from weaverant.binding import Binding
from weaverant.errors import RunChanged
from weaverant.events import CostReserved, TaskEnded, TaskEvent, TaskSuperseded
from weaverant.journal import BlobStore, NullJournal
from weaverant.message import Reply, Request
from weaverant.protocols import CallContext
from weaverant.runtime.feed import Feed
from weaverant.runtime.intake import Intake
from weaverant.runtime.ledger import Ledger
from weaverant.runtime.limits import Limits
from weaverant.runtime.local import LocalSwarm
from weaverant.runtime.stagebook import StageBook
from weaverant.runtime.unfinished import Begun, Unfinished
from weaverant.sources import MemoryRows
from weaverant.task import Task
from weaverant.testing.world.life import World
from weaverant.testing.world.loop import VirtualClock, VirtualLoop
from weaverant.testing.world.processes import simulated_processes
from weaverant.testing.world.record import Record
from weaverant.testing.world.weaving import RECIPES, Witness, stages_of, witnessed


class Nobody:
    """An engine that is asked in vain."""

    def __init__(self, identity: str) -> None:
        self.identity = identity
        self.asked = 0

    async def generate(self, request: Request, ctx: CallContext) -> Reply:
        self.asked += 1
        raise AssertionError("a replay asks nobody")

    async def close(self) -> None:
        """Nothing is held."""


def told_again(world: World, now: Record) -> Iterator[str]:
    """The replay of a run of one stage whose programs were not edited; and an edited recipe is refused."""
    recipe = RECIPES[world.plan.recipe]
    other = RECIPES[(world.plan.recipe + 1) % len(RECIPES)]
    try:
        launch.resume(world.directory, workflow=other, rows=world.plan.rows, models=Nobody(_identity(world)))
        yield "divergence: a resume took another recipe for the one that the run began with"
    except RunChanged:
        pass
    if len(stages_of(recipe)) > 1 or any(life.edition for life in world.plan.lives):
        return
    events: dict[str, list[TaskEvent]] = {}
    for event in now.events:
        if isinstance(event, TaskEvent) and not isinstance(event, TaskEnded | CostReserved | TaskSuperseded):
            events.setdefault(event.task, []).append(event)
    known = {task: own for task, own in events.items() if now.starts[task].row is not None and task not in now.reopened}
    ends, asked, stopped = _replay(world, known)
    if stopped:
        yield f"replay: it ended before its time: {stopped}"
    if asked:
        yield f"replay: {asked} steps were made, though every outcome is recorded"
    for task in known:
        end, found = now.ends[task][-1], ends.get(task)
        if found is None or (found.state, found.reason) != (end.state, end.reason):
            yield f"replay: {task} was {end.state} {end.reason}, told again it is {found!r:.100}"
        elif found.state == "done" and _whole(end.value) and found.result != end.value:
            yield f"replay: {task} told again gives {found.result!r:.100}, it was {end.value!r:.100}"


def _identity(world: World) -> str:
    return "http:m" if world.plan.http else world.server.identity


def _whole(value: Any) -> bool:
    """Whether no text in it stands elsewhere in the journal."""
    items: list[Any] = list(value.values()) if isinstance(value, dict) else [value]  # pyright: ignore
    return all(type(item) is str or (type(item) is list and all(map(_whole, item))) for item in items)  # pyright: ignore


def _replay(world: World, events: dict[str, list[TaskEvent]]) -> tuple[dict[str, Task], int, str]:
    witness = Witness()
    witnessed(witness)
    clock = VirtualClock(world.wall)
    loop = VirtualLoop(clock, Random(0))
    stages, nobody, ledger = stages_of(RECIPES[world.plan.recipe]), Nobody(_identity(world)), Ledger(["woven"])
    ledger.stages[0].rows = len(events)
    left = Unfinished(restored=iter([Begun(order, task) for order, task in enumerate(events.values())]))
    intake = Intake(Feed(MemoryRows([]), 0, 1, None), StageBook(stages, ledger), ledger, left, clock)
    swarm = LocalSwarm(
        stages, Binding({"*": nobody}, world.plan.overrides), NullJournal(clock), intake,
        ledger, Limits(max_failures=1.0), blob=BlobStore(world.directory / "blobs").get, clock=clock,
    )  # fmt: skip

    async def all_of_it() -> dict[str, Task]:
        return {task.key: task async for task in swarm.run()}

    try:
        with simulated_processes(witness, Counter(), 1):
            ends = loop.run_until_complete(all_of_it())
    finally:
        loop.close()
    return ends, nobody.asked + len(witness.effects), f"{swarm.stopped} {swarm.error!r}" if swarm.stopped else ""
