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
from weaverant.testing.world.server import BOUND
from weaverant.testing.world.weaving import Witness

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
    with tempfile.TemporaryDirectory(prefix="weaverant-world-", dir=root or memory()) as folder:
        world = World(seed, plan, Path(folder) / "run", "main")
        try:
            undisturbed = _undisturbed(seed, plan, Path(folder))
            world.need = max(undisturbed[0].usage.cost, 10 * BOUND)
            _live_on(world, verdict, undisturbed)
        except BREAKS as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            verdict.faults.append(f"broke: {error!r:.300} in {Path(where.filename).name}:{where.lineno}")
    log = world.server.log
    verdict.counts["odd row"] = sum(map(odd, plan.rows))
    verdict.counts.update(world.disk.counts + world.server.counts)
    verdict.asked = len(log)
    verdict.again = len(log) - len({asked.key for asked in log})
    verdict.seconds = time.process_time() - began
    return verdict


def memory() -> Path | None:
    """Where files cost least; None for the usual place."""
    return Path("/dev/shm") if Path("/dev/shm").is_dir() else None


def _undisturbed(seed: int, plan: TrialPlan, folder: Path) -> list[Record]:
    """The run as it goes when nothing breaks, by edition of its programs."""
    editions = range(1 + max(life.edition for life in plan.lives))
    found: list[Record] = []
    for edition in editions:
        calm = msgspec.structs.replace(plan, lives=(), fuse=False)
        world = World(seed, calm, folder / f"undisturbed-{edition}", "undisturbed")
        life = live(world, msgspec.structs.replace(QUIET, edition=edition))
        if life.state != "finished" or life.faults:
            raise RuntimeError(f"undisturbed, the run ended {life.state}: {life.error} {life.faults}")
        found.append(record.read(world.directory))
        shutil.rmtree(world.directory)
    return found


def _live_on(world: World, verdict: Verdict, undisturbed: list[Record]) -> None:
    now = Record([])
    editions: dict[str, int] = {}
    while verdict.lives < MOST_LIVES:
        number = verdict.lives
        plan = world.plan.lives[number] if number < len(world.plan.lives) else last(world.plan)
        life = live(world, plan)
        verdict.lives += 1
        verdict.story.append(_told(number, plan, life))
        before, fault = now, ""
        try:
            now = record.read(world.directory)
        except JournalError as error:
            fault = f"readable: the journal cannot be read any more: {error}"
        found = [fault] if fault else list(check(world, life, before, now))
        editions.update({task: plan.edition for task in now.ends if task not in before.ends})
        if life.state == "finished":
            found += [*results(world, now, undisturbed, editions), *told_again(world, now)]
        verdict.faults += [f"{line} (life {number})" for line in dict.fromkeys(found)]
        _count(verdict.counts, number, plan, life, world.witness)
        if verdict.faults or life.state == "finished":
            break
    else:
        verdict.faults.append(f"stuck: the run has not finished after {MOST_LIVES} lives")
    verdict.journal = now.bytes()


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
    return False


def _told_end(end: TaskEnded) -> Any:
    """What a caller gets; of what did not go well no more than the reason, since details may depend on timing."""
    return (end.state, end.reason, end.value if end.state == "done" else None)


def _told(number: int, plan: LifePlan, life: Life) -> str:
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
        f"life {number}: {how}; latency {weather.seconds} s, trouble {weather.trouble:g}, outage {weather.outage:g}, "
        f"effects {plan.effects:g}, budget {plan.room:g}, edition {plan.edition}{', retry' * plan.retry} -> {end}"
    )


def _count(counts: Counter[str], number: int, plan: LifePlan, life: Life, witness: Witness) -> None:
    counts[f"ended: {life.state}"] += 1
    counts["clock jump"] += sum(when < life.seconds for when, _ in plan.jumps)
    counts["pause"] += sum(when < life.seconds for when, _ in plan.pauses)
    counts["edit before a resume"] += plan.edition
    counts["retry"] += plan.retry and number > 0
    counts["failed effect"] += sum(effect.failed for effect in witness.effects if effect.life == witness.life)
