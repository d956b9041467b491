"""Random workflows against crash and resume: the rules of steps, traces and replay, and the test of this test.

The long forms: `python tests/test_replay_random.py 2000` (crash and replay), `... ablation 600` (weaker designs).
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from random import Random
from typing import Any

import pytest

from weaverant.branch import CANCELLED, Branch
from weaverant.events import TaskEvent, TimerFired
from weaverant.replay import WorkflowLoop
from weaverant.step import Ask
from weaverant.testing.crash import Life, cut, live, steps, told, unended
from weaverant.testing.weaves import Moody, row_of

BATCH = 100


def keys(events: Sequence[TaskEvent]) -> list[Any]:
    """Everything that may be in a trace only once."""
    taken = [(step.path, step.fingerprint, step.occurrence) for step in steps(events)]
    return taken + [(event.path, event.number) for event in events if isinstance(event, TimerFired)]


def differences(one: Life, other: Life) -> set[str]:
    return {task for task in one.ends if told(one.ends[task]) != told(other.ends[task])}


def repaid(life: Life) -> set[str]:
    return {task for task, events in life.events.items() if len(keys(events)) != len(set(keys(events)))}


def longer(life: Life, past: dict[str, list[TaskEvent]]) -> set[str]:
    """Tasks that asked for more than their past, where nothing more was to be asked."""
    return {task for task in past if len(life.events[task]) != len(past[task]) + 1}


async def replayed(life: Life, seed: int, where: str) -> list[str]:
    """Replaying finished traces gives the same ends and asks for nothing."""
    past = unended(life.events)
    again = await live([], Moody(seed), past)
    found = [f"{where}: {task} ends otherwise" for task in differences(life, again)]
    found += [f"{where}: {task} asks again" for task in longer(again, past)]
    if again.calls:
        found.append(f"{where}: {again.calls} calls")
    return found


async def trial(seeds: Sequence[int]) -> list[str]:
    """Live, replay, crash twice on the way to another end, replay that one; what is wrong, by task."""
    rows = [row_of(seed) for seed in seeds]
    first = await live(rows, Moody(seeds[0]))
    found = await replayed(first, seeds[0] + 1, "first life")
    found += [f"{task} diverged" for task, end in first.events.items() if getattr(end[-1], "unasked", 0)]
    past, crashes = first.events, Random(seeds[0])
    for number in (1, 2):
        past = cut(past, crashes)
        life = await live([], Moody(seeds[0] + 10 * number), past)
        found += [f"crash {number}: {task} paid twice" for task in repaid(life)]
        found += [
            f"crash {number}: {task} rewrote its past"
            for task, own in past.items()
            if life.events[task][: len(own)] != own
        ]
        found += [
            f"crash {number}: {task} diverged" for task, own in life.events.items() if getattr(own[-1], "unasked", 1)
        ]
        found += await replayed(life, seeds[0] + 10 * number + 1, f"after crash {number}")
        calm = {task for task, end in first.ends.items() if not end.row["failing"]}
        found += [f"crash {number}: {task} depends on timing" for task in calm & differences(first, life)]
        past = life.events
    return found


def batches(count: int) -> Iterator[list[int]]:
    for start in range(0, count, BATCH):
        yield list(range(start, min(start + BATCH, count)))


def test_replay_gives_the_same_and_pays_nothing():
    assert [asyncio.run(trial(batch)) for batch in batches(200)] == [[], []]


# The test of the test: weaker designs must fail it


def _content_only(branch: Branch) -> Branch:
    child = Branch(f"{branch.path}.{branch.spawned}" if branch.path else str(branch.spawned))
    child.counts = branch.counts
    branch.spawned += 1
    return child


def _content_key(branch: Branch, fingerprint: bytes) -> Any:
    occurrence = branch.counts.get(fingerprint, 0)
    branch.counts[fingerprint] = occurrence + 1
    return "", fingerprint, occurrence


_ask = WorkflowLoop.ask
_call_at = WorkflowLoop.call_at


def _ask_at_once(loop: Any, ask: Ask, fingerprint: bytes) -> Any:
    future = _ask(loop, ask, fingerprint)
    for number, asked, record in loop._answers:
        if asked is ask and record.outcome is not CANCELLED:
            loop._answers.clear()
            ask.settled, ask.number = True, number
            loop.open, loop.clock, loop.wall = loop.open - 1, record.clock, record.time
            settle = future.set_exception if isinstance(record.outcome, Exception) else future.set_result
            settle(record.outcome)
    return future


def _call_at_once(loop: Any, when: float, callback: Any, *args: Any, context: Any = None) -> Any:
    timer = _call_at(loop, when, callback, *args, context=context)
    for _, asked, record in loop._answers:
        if asked is timer:
            loop._answers.clear()
            timer.settled = True
            loop.open, loop.clock, loop.wall = loop.open - 1, record.clock, record.time
            loop._ready.append(timer)
    return timer


@contextmanager
def weaker(*, content_only: bool, at_once: bool) -> Iterator[None]:
    """The loop without path keys, without journal order, or without both."""
    with pytest.MonkeyPatch.context() as patch:
        if content_only:
            patch.setattr(Branch, "spawn", _content_only)
            patch.setattr(Branch, "key", _content_key)
        if at_once:
            patch.setattr(WorkflowLoop, "ask", _ask_at_once)
            patch.setattr(WorkflowLoop, "call_at", _call_at_once)
        yield


async def ablation(count: int) -> tuple[int, int, int]:
    """Workflows whose replay ends otherwise, whose replay pays again, and calm ones that depend on latencies."""
    differ, pay, timing = 0, 0, 0
    for seeds in batches(count):
        rows = [row_of(seed) for seed in seeds]
        first = await live(rows, Moody(seeds[0]))
        past = unended(first.events)
        again = await live([], Moody(seeds[0] + 1), past)
        other = await live(rows, Moody(seeds[0] + 2))
        differ += len(differences(first, again))
        pay += len(longer(again, past))
        timing += len({task for task in differences(first, other) if not first.ends[task].row["failing"]})
    return differ, pay, timing


DESIGNS = [(True, True), (False, True), (True, False), (False, False)]


def test_weaker_designs_fail():
    found = {}
    for content_only, at_once in DESIGNS:
        with weaker(content_only=content_only, at_once=at_once):
            found[content_only, at_once] = asyncio.run(ablation(200))
    assert found[False, False] == (0, 0, 0)
    assert found[True, True][0] and found[True, True][1] and found[True, True][2], found
    assert found[False, True][0] and found[False, True][1], found
    assert found[True, False][2], found


@pytest.mark.slow
def test_two_thousand_seeds():
    assert [found for batch in batches(2_000) for found in asyncio.run(trial(batch))] == []


def main(arguments: Sequence[str]) -> None:
    start = time.perf_counter()
    if arguments[0] == "ablation":
        print(f"{'keys':14} {'order':18} {'differs':>8} {'pays':>8} {'timing':>8}   of {arguments[1]}")
        for content_only, at_once in DESIGNS:
            with weaker(content_only=content_only, at_once=at_once):
                counts = asyncio.run(ablation(int(arguments[1])))
            names = "content only" if content_only else "branch path", "at once" if at_once else "journal order"
            print(f"{names[0]:14} {names[1]:18} {counts[0]:8} {counts[1]:8} {counts[2]:8}", flush=True)
    else:
        found = [each for batch in batches(int(arguments[0])) for each in asyncio.run(trial(batch))]
        print(f"{arguments[0]} workflows, 6 lives and 2 crashes each: {len(found)} faults", *found, sep="\n")
    print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main(sys.argv[1:])
