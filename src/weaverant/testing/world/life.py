"""One life of a run in a simulated world: a process from its start to its end, whatever that is."""

from __future__ import annotations

import asyncio
import gc
import math
import os
from collections.abc import Generator
from contextlib import aclosing, contextmanager, suppress
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, cast

from msgspec import Struct, field

from weaverant import launch
from weaverant.errors import JournalError, RunLocked, WeaverantError
from weaverant.journal import SegmentJournal, writer
from weaverant.runtime.surroundings import Surroundings
from weaverant.session import Run
from weaverant.testing.world.disk import SimulatedDisk
from weaverant.testing.world.loop import Death, Stuck, VirtualClock, VirtualLoop, VirtualWorker
from weaverant.testing.world.plan import LifePlan, TrialPlan
from weaverant.testing.world.processes import simulated_processes
from weaverant.testing.world.record import Record
from weaverant.testing.world.server import Asked, Server
from weaverant.testing.world.weaving import RECIPES, Witness, witnessed
from weaverant.testing.world.wire import Wired, simulated

AFTERGLOW = 0.0
"""Seconds after the end of a life in which timers that were left may fire, and do nothing; then there must be none."""

EPOCH = 1.8e9
"""Unix time at which every trial begins."""


class World:
    """What outlives a process: the disk, the server, who saw what, and the day it is."""

    def __init__(self, seed: int, plan: TrialPlan, directory: Path, name: str, past: World | None = None) -> None:
        """`past` is the world in which the run that is reused was made: the same server, at an earlier day."""
        self.plan = plan
        self.past = past
        self.directory = directory
        self.disk = SimulatedDisk(directory, Random(f"disk {name} {seed}"))
        self.server = Server(Random(f"server {name} {seed}")) if past is None else past.server
        self.wire = Random(f"wire {name} {seed}")
        self.witness = Witness(random=Random(f"witness {name} {seed}"))
        self.random = Random(f"world {name} {seed}")
        self.need = 0.0
        """Dollars that the run costs undisturbed."""
        self.wall = EPOCH
        self.lives = self.first = 0
        """Counted from the first life of the run that is reused."""
        self.record = Record([])
        """The journal as it was after the last life."""
        self.orderly = True
        """No life has died or lost its journal."""
        self.caps: list[float] = []
        """The budgets of all lives so far."""
        if past is not None:
            self.wall, self.lives, self.first = past.wall, past.lives, past.lives
            self.witness.effects = past.witness.effects

    @property
    def log(self) -> list[Asked]:
        """What this run has asked the server."""
        return [asked for asked in self.server.log if asked.life >= self.first]

    @property
    def bill(self) -> float:
        """Dollars."""
        return sum(asked.billed for asked in self.log)


class Life(Struct):
    """What became of a process. `faults` are what it did that it must not do."""

    plan: LifePlan
    state: str = ""
    """Why it stopped; `died` where it was killed."""
    error: str = ""
    seconds: float = 0.0
    faults: list[str] = field(default_factory=list[str])
    run: Run | None = None

    @property
    def dead(self) -> bool:
        """It did not end by itself."""
        return self.state in ("died", "stuck")

    @property
    def orderly(self) -> bool:
        """It ended by itself, with a journal that worked."""
        return self.state not in ("died", "journal", "stuck", "refused", "broken")


def live(world: World, plan: LifePlan) -> Life:
    """Start the run, or resume it, and let it go as planned."""
    world.disk.begin(plan.fault if plan.end == "disk" else None, plan.at, plan.syncs)
    world.server.begin(world.lives, plan.weather)
    world.witness.life, world.witness.edition, world.witness.trouble = world.lives, plan.edition, plan.effects
    world.witness.doom = plan.processes
    witnessed(world.witness)
    world.server.visit = None
    clock = VirtualClock(world.wall, plan.tick)
    loop = VirtualLoop(clock, world.random)
    life = Life(plan)
    before = _descriptors()
    gc.disable()
    frames, writer.FRAME_BYTES = writer.FRAME_BYTES, world.plan.frame_bytes
    try:
        _live(world, plan, loop, life)
    finally:
        gc.enable()
        writer.FRAME_BYTES = frames
    _bury(world, loop, life)
    _close_descriptors(before, life)
    life.seconds = life.seconds or clock.now
    world.wall = clock.time() + world.random.choice((1.0, 90_000.0))
    world.lives += 1
    world.orderly &= life.orderly
    return life


def _live(world: World, plan: LifePlan, loop: VirtualLoop, life: Life) -> None:
    try:
        own, cores = simulated_processes, 1 + world.lives % 2
        with _engine(world, loop) as engine, own(world.witness, world.server.counts, cores) as processes:
            life.run = _prepared(world, plan, loop, engine)
            loop.run_until_complete(_drive(world, plan, loop, life, engine))
            loop.run_until_complete(loop.shutdown_asyncgens())
        life.faults += [*processes.faults, *(["leaked: worker processes"] if processes.living else [])]
        life.state = life.run.state
        life.error = _shown(world, life.run.error or "")
        if life.state == "broken":
            life.faults.append(f"broke: the run ended by a fault of its own: {life.run.error!r}")
    except Death:
        life.state = "died"
    except Stuck as stuck:
        life.state = "stuck"
        life.faults.append(f"stuck: {stuck}")
    except (WeaverantError, OSError) as error:
        life.state, life.error = "refused", _shown(world, error)
        if plan.end != "disk" or plan.fault not in ("full", "eio") or not isinstance(error, JournalError):
            life.faults.append(f"refused: the run could not go on: {error!r:.300}")


@contextmanager
def _engine(world: World, loop: VirtualLoop) -> Generator[Server | Wired]:
    if not world.plan.http:
        yield world.server
        return
    wired = Wired(world.server, world.wire)
    with simulated(wired, loop.clock):
        yield wired


def _prepared(world: World, plan: LifePlan, loop: VirtualLoop, engine: Server | Wired) -> Run:
    recipe, rows = RECIPES[world.plan.recipe], world.plan.rows
    cap, pilot = plan.room * world.need, plan.pilot or None
    world.caps.append(cap or math.inf)
    if (world.directory / "run.json").exists():
        run = launch.resume(
            world.directory, workflow=recipe, rows=rows, models=engine, budget=cap, retry=plan.retry, pilot=pilot
        )
    else:
        run = launch.run(
            recipe, rows, models=engine, directory=world.directory, trials=world.plan.trials,
            concurrency=world.plan.concurrency, in_flight=world.plan.in_flight, grace=plan.grace,
            max_failures=0.5 if world.plan.fuse else 1.0, fuse_after=2, budget=cap, pilot=pilot,
            overrides=world.plan.overrides, reuse=None if world.past is None else world.past.directory,
        )  # fmt: skip
    run.tell = _silent
    run.surroundings = Surroundings(
        loop.clock, world.disk, VirtualWorker(loop, world.random, plan.commit), world.plan.segment_bytes, watched=False
    )
    return run


def _silent(text: str) -> None:
    """A world of ten thousand runs has nobody to tell."""


async def _drive(world: World, plan: LifePlan, loop: VirtualLoop, life: Life, engine: Server | Wired) -> None:
    run = life.run
    assert run is not None
    own = _planned(world, plan, loop, run, life)
    taken = 0
    async with aclosing(cast("Any", aiter(run))) as tasks:
        async for task in tasks:
            world.witness.ends.append((world.lives, task))
            taken += 1
            if plan.end == "leave" and taken > plan.after:
                break
    for timer in own:
        timer.cancel()
    life.seconds = loop.clock.now
    await engine.close()
    await asyncio.sleep(0)
    life.faults += [f"leaked: {task}" for task in loop.unended()]
    if world.server.inside:
        life.faults.append(f"leaked: {world.server.inside} calls are still in the engine")
    await asyncio.sleep(AFTERGLOW)
    life.faults += [f"leaked: {left}" for left in (*loop.unended(), *loop.unfired())]


def _planned(world: World, plan: LifePlan, loop: VirtualLoop, run: Run, life: Life) -> list[asyncio.TimerHandle]:
    """Timers for what happens from outside."""
    due: list[asyncio.TimerHandle] = [loop.call_later(when, loop.clock.jump, by) for when, by in plan.jumps]
    due += [loop.call_later(when, loop.clock.pause, by) for when, by in plan.pauses]
    if plan.end == "moment":
        due.append(loop.call_later(plan.moment, world.disk.die, plan.fault == "power"))
    if plan.end == "stop":
        due.append(loop.call_later(plan.moment, run.stop))
        if plan.again:
            due.append(loop.call_later(plan.moment + plan.again, run.stop))
    if plan.intruder:
        due.append(loop.call_later(plan.intruder, _let_in, world, loop, life))
    return due


def _let_in(world: World, loop: VirtualLoop, life: Life) -> None:
    """With the next request, since then the run is surely still being written."""
    world.server.visit = partial(_intrude, world, loop, life)


def _intrude(world: World, loop: VirtualLoop, life: Life) -> None:
    """A second process wants to write the same run."""
    world.server.counts["second opener"] += 1
    try:
        SegmentJournal(world.directory, disk=world.disk, worker=VirtualWorker(loop, world.random, 0.001))
    except RunLocked:
        return
    life.faults.append("lock: a second process may write the run while the first does")


def _shown(world: World, error: object) -> str:
    """The same in each process, wherever the world has its files."""
    return str(error).replace(str(world.directory), "RUN")


# The end of a process


def _bury(world: World, loop: VirtualLoop, life: Life) -> None:
    """What a kernel does with a dead process; an orderly one has left nothing to do."""
    world.disk.dead = world.server.dead = True
    if life.dead:
        _bury_workflows(life)
        for task in asyncio.all_tasks(loop):
            task._log_destroy_pending = False  # pyright: ignore
            with suppress(RuntimeError, WeaverantError, OSError):
                cast("Any", task.get_coro()).close()
    elif loop.complaints:
        life.faults += [f"leaked: {complaint}" for complaint in loop.complaints]
    if life.dead:
        life.run = None
    loop.close()
    gc.collect()


def _bury_workflows(life: Life) -> None:
    swarm = None if life.run is None else life.run._swarm  # pyright: ignore[reportPrivateUsage]
    if swarm is not None:
        for task in list(swarm._live.values()):  # pyright: ignore[reportPrivateUsage]
            task.close()


def _descriptors() -> dict[int, str]:
    """Open files, with what they are of."""
    found: dict[int, str] = {}
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # the listing's own
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
    return found


def _close_descriptors(before: dict[int, str], life: Life) -> None:
    """Files that are open and were not before."""
    for file, path in _descriptors().items() - before.items():
        if not life.dead:
            life.faults.append(f"leaked: the file {Path(path).name!r} is still open")
        os.close(file)
