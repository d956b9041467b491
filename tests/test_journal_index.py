"""What the indexes say is what a full scan says: 100,000 events of a wild run, over many segments."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from weaverant.events import (
    AgentBound,
    Event,
    RunOpened,
    StepEnded,
    TaskEnded,
    TaskReopened,
    TaskStarted,
    TaskSuperseded,
)
from weaverant.journal import JournalReader, SegmentJournal, StageCounts, TaskSummary
from weaverant.journal.index import UNTOLD
from weaverant.message import Usage

STATES = ("done", "rejected", "failed")


def wild_run(count: int, chance: random.Random) -> list[Event]:
    """Tasks of three stages begin, step, end, are reopened and superseded at random."""
    events: list[Event] = [RunOpened(0, 1.0, "0.1"), AgentBound("s", {})]
    live: list[tuple[str, int]] = []
    failed: list[tuple[str, int]] = []
    over: list[str] = []
    while len(events) < count:
        time = float(len(events))
        dice = chance.random()
        if len(live) < 200 or dice < 0.01:
            task, stage = f"s:{len(events)}:0", chance.randrange(3)
            live.append((task, stage))
            events.append(TaskStarted(task, stage, time, task.encode(), {"row": time}))
        elif dice < 0.15:
            task, stage = live.pop(chance.randrange(len(live)))
            state = chance.choice(STATES)
            (failed.append((task, stage)) if state == "failed" else over.append(task))
            result = [None] * (len(events) % 4) if len(events) % 3 else None
            events.append(TaskEnded(task, stage, state, "", "", result, 1.0, time))  # type: ignore[arg-type]
        elif dice < 0.152 and failed:
            live.append(failed.pop(chance.randrange(len(failed))))
            events.append(TaskReopened(live[-1][0], time, 1))
        elif dice < 0.155 and over:
            events.append(TaskSuperseded(over.pop(chance.randrange(len(over))), "x", time))
        elif dice < 0.156:
            events.append(TaskSuperseded(live.pop(chance.randrange(len(live)))[0], "x", time))
        elif dice < 0.157:
            events.append(AgentBound(chance.choice(live)[0], {}))
        else:
            usage = Usage(chance.randrange(9), 1, 2, 3, 0.25)
            key = chance.choice(live)[0], "0", b"f" * 16, 0
            kind = "tool" if len(events) % 7 == 0 else "model"
            value = (kind, "a", "s", {}, "reply", "r" * chance.randrange(200), 0.0, 1.0, time)
            events.append(StepEnded(*key, *value, usage, chance.choice("mn"), 0, dice > 0.9))  # type: ignore[arg-type]
    return events


class Scan:
    """The slow truth."""

    def __init__(self, events: list[Event]) -> None:
        self.tasks: dict[str, TaskSummary] = {}
        self.events: dict[str, list[Event]] = {}
        self.about_run: list[Event] = []
        self.cost: dict[str, float] = {}
        for event in events:
            if isinstance(event, (RunOpened, AgentBound)):
                self.about_run.append(event)
                continue
            task = event.task  # type: ignore[union-attr]
            self.events.setdefault(task, []).append(event)
            if isinstance(event, TaskStarted):
                self.tasks[task] = TaskSummary(task, event.stage, None, event.digest)
            elif isinstance(event, TaskEnded):
                made = len(event.value) if isinstance(event.value, list) else 1
                self.tasks[task] = self.tasks[task]._replace(
                    state=event.state, made=made if event.state == "done" else UNTOLD
                )
            elif isinstance(event, TaskReopened):
                self.tasks[task] = self.tasks[task]._replace(state=None, made=UNTOLD)
            elif isinstance(event, TaskSuperseded):
                self.tasks[task] = self.tasks[task]._replace(state="superseded", made=UNTOLD)
            elif isinstance(event, StepEnded) and not event.reused:
                self.cost[event.model] = self.cost.get(event.model, 0) + event.usage.cost

    def counts(self) -> dict[int, StageCounts]:
        table: dict[int, StageCounts] = {}
        for task in self.tasks.values():
            counts = table.setdefault(task.stage, StageCounts())
            name = task.state or "left"
            setattr(counts, name, getattr(counts, name) + 1)
        return table


async def write(directory: Path, events: list[Event], kill: bool, segment_bytes: int) -> None:
    journal = SegmentJournal(directory, sync=False, segment_bytes=segment_bytes)
    for number, event in enumerate(events):
        journal.append(event)
        if number % 500 == 0:
            await journal.flush()
    await journal.flush()
    if not kill:
        await journal.close()
    else:  # as after a kill: the open segment stays without an index
        await asyncio.to_thread(journal._stop)


def compare(directory: Path, events: list[Event]) -> None:
    reader, scan = JournalReader(directory), Scan(events)
    assert list(reader.events()) == events
    assert list(reader.tasks()) == list(scan.tasks.values())
    assert list(reader.tasks(newest_first=True)) == list(reversed(scan.tasks.values()))
    assert reader.counts() == scan.counts()
    assert {model: usage.cost for model, usage in reader.usage().items()} == scan.cost
    steps = [event for event in events if isinstance(event, StepEnded)]
    assert reader.calls() == sum(event.kind == "model" for event in steps) < len(steps)
    assert list(reader.run_events()) == list(JournalReader(directory).run_events()) == scan.about_run
    unfinished = [task for task, summary in scan.tasks.items() if summary.state is None]
    places = reader.unfinished()
    assert list(places) == unfinished
    for at_once in (64, 10_000):
        assert dict(reader.histories(places, at_once)) == {task: scan.events[task] for task in unfinished}
    for task in random.Random(1).sample(list(scan.tasks), 5):
        assert reader.task_events(task) == scan.events[task]


@pytest.mark.parametrize("kill", [False, True])
def test_a_hundred_thousand_events(tmp_path: Path, kill: bool):
    events = wild_run(100_000, random.Random(kill))
    asyncio.run(write(tmp_path, events, kill, 100_000))
    assert len(list((tmp_path / "journal").iterdir())) > 5
    compare(tmp_path, events)


def test_what_an_open_segment_says_of_the_run_takes_no_scan(tmp_path: Path):
    """It is asked for before a run is resumed, which then scans the segment."""
    events = wild_run(20_000, random.Random(4))
    asyncio.run(write(tmp_path, events, True, 1 << 30))

    def seconds(read: Callable[[JournalReader], object]) -> float:
        began = time.process_time()
        read(JournalReader(tmp_path))
        return time.process_time() - began

    about_run = min(seconds(lambda reader: list(reader.run_events())) for _ in range(4))
    assert about_run < 0.6 * min(seconds(JournalReader.unfinished) for _ in range(4))


def test_the_summaries_alone_tell_an_ordinary_run(tmp_path: Path):
    """Without reopened or superseded tasks no map is read: 1,000,000 finished tasks cost a resume nothing."""
    events = [
        event for event in wild_run(20_000, random.Random(3)) if not isinstance(event, (TaskReopened, TaskSuperseded))
    ]
    ended: set[str] = set()
    kept: list[Event] = []
    for event in events:
        if getattr(event, "task", "") in ended:
            continue
        kept.append(event)
        if isinstance(event, TaskEnded):
            ended.add(event.task)
    asyncio.run(write(tmp_path, kept, False, 10_000))
    reader, scan = JournalReader(tmp_path), Scan(kept)
    parts = reader.parts()
    assert len(parts) > 5
    for part in parts:
        part.entries = None  # type: ignore[assignment]
    assert list(reader.unfinished()) == [task for task, summary in scan.tasks.items() if summary.state is None]
    assert reader.counts() == scan.counts()
    done = [task for task in scan.tasks.values() if task.state == "done"]
    assert reader.made() == {stage: sum(task.made for task in done if task.stage == stage) for stage in scan.counts()}
