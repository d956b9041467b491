"""A trial: the lives of one run until it has finished, what must hold after each, and the run as it would have been."""

from __future__ import annotations

import shutil
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from weaverant.errors import JournalError, WeaverantError
from weaverant.events import TaskEnded
from weaverant.row import source_place
from weaverant.testing.world import record
from weaverant.testing.world.again import told_again
from weaverant.testing.world.checks import check, outcomes
from weaverant.testing.world.life import Life, World, live
from weaverant.testing.world.plan import QUIET, LifePlan, TrialPlan, draw, last, odd, timeless
from weaverant.testing.world.record import Record
from weaverant.testing.world.reused import own_sample
from weaverant.testing.world.server import BOUND

BREAKS = (WeaverantError, LookupError, ValueError, TypeError, AttributeError, RuntimeError, OSError, AssertionError)
"""What code that is broken raises out of a life, a reader or a check."""

MOST_LIVES = 12
"""After its drawn lives nothing goes wrong any more: a run that has not finished by then never will."""


class Verdict(Struct):
    """What a trial has found. `story` tells it, `faults` begin with the invariant that is broken."""

    seed: int
    faults: list[str]
    story: list[str]
    lives: int
    counts: Counter[str]
    """Faults that happened, by kind."""
    asked: int
    again: int
    """Requests made anew because nobody had been told of their outcome when the process died."""
    seconds: float
    """Of CPU."""
    journal: bytes
    """Every event, in order."""


def trial(seed: int, root: Path | None = None) -> Verdict:
    """Everything that the seed draws, the same each time."""
    began = time.process_time()
    plan = draw(seed)
    verdict = Verdict(seed, [], [], 0, Counter(), 0, 0, 0.0, b"")
    worlds: list[World] = []
    with tempfile.TemporaryDirectory(prefix="weaverant-world-", dir=root or memory()) as folder:
        try:
            _all_of_it(seed, plan, Path(folder), verdict, worlds)
        except BREAKS as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            verdict.faults.append(f"broke: {error!r:.300} in {Path(where.filename).name}:{where.lineno}")
    verdict.counts["odd row"] = sum(map(odd, plan.rows))
    for world in worlds:
        verdict.counts.update(world.disk.counts)
        verdict.asked += len(world.log)
        verdict.again += len(world.log) - len({asked.key for asked in world.log})
    verdict.counts.update(worlds[0].server.counts)
    verdict.seconds = time.process_time() - began
    return verdict


def _all_of_it(seed: int, plan: TrialPlan, folder: Path, verdict: Verdict, worlds: list[World]) -> None:
    """The earlier run, if there is one, and the run. `worlds` are those that there were."""
    past = None
    if (own := plan.before) is not None:
        past = World(seed, own, folder / "earlier", "earlier")
        worlds.append(past)
        for number, life in enumerate(own.lives):
            if verdict.faults or _live_once(past, life, f"earlier life {number}", verdict).state == "finished":
                break
        verdict.story.append(f"reused with {dict(plan.overrides) or 'no change'}, {len(plan.rows)} rows")
        verdict.counts["reused run"] += 1
        verdict.counts["reused run, torn"] += not past.orderly
        verdict.counts["changed agent"] += bool(plan.overrides)
    world = World(seed, plan, folder / "run", "main", past)
    worlds.append(world)
    if not verdict.faults:
        _go_on(world, verdict, _undisturbed(seed, plan, folder))
    if past is not None and record.read(past.directory).events != past.record.events:
        verdict.faults.append("reused: the journal of the earlier run has changed")


def memory() -> Path | None:
    """Where files cost least; None for the usual place."""
    return Path("/dev/shm") if Path("/dev/shm").is_dir() else None


def _undisturbed(seed: int, plan: TrialPlan, folder: Path) -> list[Record]:
    """The run as it goes when nothing breaks, by edition of its programs."""
    editions = range(1 + max(life.edition for life in plan.lives))
    found: list[Record] = []
    for edition in editions:
        calm = msgspec.structs.replace(plan, lives=(), fuse=False, earlier=None)
        world = World(seed, calm, folder / f"undisturbed-{edition}", "undisturbed")
        life = live(world, msgspec.structs.replace(QUIET, edition=edition))
        if life.state != "finished" or life.faults:
            raise RuntimeError(f"undisturbed, the run ended {life.state}: {life.error} {life.faults}")
        found.append(record.read(world.directory))
        shutil.rmtree(world.directory)
    return found


def _go_on(world: World, verdict: Verdict, undisturbed: list[Record]) -> None:
    """Live the lives that were drawn, and others in peace, until the run has finished."""
    world.need = max(undisturbed[0].usage.cost, 10 * BOUND)
    editions: dict[str, int] = {}
    for number in range(MOST_LIVES):
        plan = world.plan.lives[number] if number < len(world.plan.lives) else last(world.plan)
        before = world.record
        life = _live_once(world, plan, f"life {number}", verdict)
        editions.update({task: plan.edition for task in world.record.ends if task not in before.ends})
        if life.state == "finished":
            found = [*results(world, world.record, undisturbed, editions), *told_again(world, world.record)]
            verdict.faults += [f"{line} (life {number})" for line in dict.fromkeys(found)]
        if verdict.faults or life.state == "finished":
            break
    else:
        verdict.faults.append(f"stuck: the run has not finished after {MOST_LIVES} lives")
    verdict.journal = world.record.bytes()
    verdict.counts["reused step"] += sum(map(len, world.record.reused.values()))


def _live_once(world: World, plan: LifePlan, name: str, verdict: Verdict) -> Life:
    """One life, and what must hold after it."""
    life = live(world, plan)
    verdict.lives += 1
    verdict.story.append(_told(name, plan, life))
    before = world.record
    try:
        world.record = record.read(world.directory)
    except JournalError as error:
        found = [f"readable: the journal cannot be read any more: {error}"]
    else:
        found = list(check(world, life, before, world.record))
    verdict.faults += [f"{line} ({name})" for line in dict.fromkeys(found)]
    _count(verdict, world, plan, life)
    return life


def results(world: World, now: Record, undisturbed: list[Record], editions: dict[str, int]) -> Iterator[str]:
    """Results are those of the undisturbed run wherever no drawn failure reached the workflow; recorded outcomes that
    an edited workflow did not ask for are reported, all of them."""
    for task, ends in now.ends.items():
        expected = undisturbed[editions[task]]
        place = source_place(task)
        if place is None or not timeless(world.plan.rows[place[1]]) or _was_hurt(now, task):
            continue
        ought = expected.ends.get(task)
        if ought is None:
            yield f"results: {task} is no task of the undisturbed run"
        elif _told_end(ends[-1]) != _told_end(ought[-1]):
            yield f"results: {task} ended as {_told_end(ends[-1])!r:.200}, undisturbed {_told_end(ought[-1])!r:.200}"
        elif ends[-1].state == "done":
            yield from _diverged(now, expected, task)


def _diverged(now: Record, expected: Record, task: str) -> Iterator[str]:
    asked = outcomes(expected, task).keys()
    unasked = len(outcomes(now, task).keys() - asked)
    timers = {key for key in now.timers if key[0] == task} - {key for key in expected.timers if key[0] == task}
    end = now.ends[task][-1]
    if end.unasked != unasked + len(timers):
        yield f"divergence: {task} did not ask for {unasked + len(timers)} outcomes, and tells of {end.unasked}"


def _was_hurt(now: Record, task: str) -> bool:
    """Whether a failure that was drawn, and that the request did not ask for, reached the task or one before it."""
    roots = {task.partition("/")[0]}
    if any(each.partition("/")[0] in roots for each in now.reopened):
        return True
    for key, found in now.outcomes.items():
        if key[0].partition("/")[0] in roots and found[-1].outcome == "failure" and "moody" not in str(found[-1].value):
            return True
    others = [event for events in now.reused.values() for event in events if not own_sample(event)]
    return any(task.partition("/")[0] in roots for task in (*now.given_up, *(event.task for event in others)))


def _told_end(end: TaskEnded) -> Any:
    """What a caller gets; of what did not go well no more than the reason, since details may depend on timing."""
    return (end.state, end.reason, end.value if end.state == "done" else None)


def _told(name: str, plan: LifePlan, life: Life) -> str:
    how = {
        "none": "goes on to its end",
        "disk": f"the disk: {plan.fault} at {'sync' if plan.syncs else 'call'} {plan.at}",
        "moment": f"{plan.fault} after {plan.moment:.3f} s",
        "stop": f"stop after {plan.moment:.3f} s, grace {plan.grace:g} s",
        "leave": f"the caller leaves after {plan.after} tasks",
    }[plan.end]
    end = f"{life.state} after {life.seconds:.3f} s" + (f": {life.error:.100}" if life.error else "")
    weather = plan.weather
    return (
        f"{name}: {how}; latency {weather.seconds} s, trouble {weather.trouble:g}, outage {weather.outage:g}, "
        f"effects {plan.effects:g}, processes {plan.processes:g}, "
        f"budget {plan.room:g}, edition {plan.edition}{', retry' * plan.retry}"
        f"{f', pilot of {plan.pilot}' * (plan.pilot > 0)} -> {end}"
    )


def _count(verdict: Verdict, world: World, plan: LifePlan, life: Life) -> None:
    counts, witness = verdict.counts, world.witness
    counts[f"ended: {life.state}"] += 1
    counts["clock jump"] += sum(when < life.seconds for when, _ in plan.jumps)
    counts["pause"] += sum(when < life.seconds for when, _ in plan.pauses)
    counts["edit before a resume"] += plan.edition
    counts["retry"] += plan.retry and world.lives > world.first + 1
    counts["pilot"] += plan.pilot > 0
    counts["failed effect"] += sum(effect.failed for effect in witness.effects if effect.life == witness.life)
