"""Journals of peers: a fence ends one for good, whoever sets it and whatever its writer does; and the reader of several
journals says what one fold over all that happened says.

As a script this is the long form: `python tests/test_homes.py 300` compares so many random histories.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from weaverant.errors import JournalCorrupt, JournalError
from weaverant.events import (
    AgentBound,
    CostReserved,
    Event,
    PeerOpened,
    RunOpened,
    StepEnded,
    TaskEnded,
    TaskEvent,
    TaskReopened,
    TaskStarted,
    TaskTaken,
)
from weaverant.journal import JournalReader, Reservations, SegmentJournal, StageCounts, TaskSummary
from weaverant.journal.homes import Fence, epochs_of, fence, fence_of, home_of, is_fenced, new_epoch
from weaverant.journal.index import UNTOLD
from weaverant.message import Usage
from weaverant.rundir import RunConfig
from weaverant.summary import fold, row_costs

# Fences


def started(number: int, text: str = "") -> TaskStarted:
    return TaskStarted(f"0.{number}.0", 0, 1.0, b"d" * 16, {"n": number, "text": text})


async def write(run: Path, epoch: int, events: list[Event], *, close: bool = True, group: int = 5) -> None:
    """A journal with these events. Without `close` its segment stays open, as after a kill."""
    journal = SegmentJournal(run, sync=False, epoch=epoch)
    for number, event in enumerate(events):
        journal.append(event)
        if number % group == group - 1:
            await journal.flush()
    await journal.flush()
    if close:
        await journal.close()
    else:
        await asyncio.to_thread(journal._stop)


def tasks_of(run: Path) -> list[str]:
    return [task.task for task in JournalReader(run).tasks()]


def test_epochs_are_given_once(tmp_path: Path):
    (tmp_path / "peers").mkdir()
    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.extend(new_epoch(tmp_path) for _ in range(20))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == list(range(1, 161)) == epochs_of(tmp_path)


def test_many_threads_fence_at_once_and_get_one_answer(tmp_path: Path):
    asyncio.run(write(tmp_path, 1, [started(n) for n in range(20)], close=False))
    home, answers, go = home_of(tmp_path, 1), list[Fence](), threading.Barrier(12)

    def end(number: int) -> None:
        go.wait()
        answers.append(fence(home, f"thread {number} " * (number + 1)))

    threads = [threading.Thread(target=end, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 12
    assert set(answers) == {fence_of(home)}
    assert sorted(path.name for path in home.iterdir()) == ["fence", "fenced", "journal", "lock"]


def _fence_at(home: Path, go: Barrier, number: int) -> None:
    go.wait(20)
    found = fence(home, f"process {number}")
    (home.parent / f"answer{number}").write_text(json.dumps([found.segment, found.offset, found.why]))


def test_many_processes_fence_at_once_and_get_one_answer(tmp_path: Path):
    asyncio.run(write(tmp_path, 1, [started(n) for n in range(20)], close=False))
    home, context = home_of(tmp_path, 1), multiprocessing.get_context("spawn")
    go = context.Barrier(4)
    fencers = [context.Process(target=_fence_at, args=(home, go, number)) for number in range(4)]
    for each in fencers:
        each.start()
    for each in fencers:
        each.join(30)
        assert each.exitcode == 0
    there = fence_of(home)
    assert there is not None
    answers = [json.loads((tmp_path / "peers" / f"answer{number}").read_text()) for number in range(4)]
    assert answers == [[there.segment, there.offset, there.why]] * 4


def _writes_until_fenced(run: Path, segment_bytes: int, ready: Any, told: Any) -> None:
    """A peer that writes as fast as it can; tells which events were acknowledged."""

    async def go() -> None:
        acknowledged: list[int] = []
        failed = asyncio.Event()
        journal = SegmentJournal(run, epoch=1, segment_bytes=segment_bytes, on_failure=lambda _: failed.set())
        ready.set()
        number = 0
        while not failed.is_set():
            for _ in range(random.randrange(1, 20)):
                if failed.is_set():
                    break
                journal.append(started(number, "x" * random.randrange(40)), lambda n=number: acknowledged.append(n))
                number += 1
            await asyncio.sleep(0)
        await journal.close()
        told.send(acknowledged)

    asyncio.run(go())


@pytest.mark.parametrize("segment_bytes", [1 << 26, 3_000])
def test_what_is_acknowledged_is_before_the_fence(tmp_path: Path, segment_bytes: int):
    context = multiprocessing.get_context("fork")
    for number in range(12):
        run = tmp_path / str(number)
        home_of(run, 1).mkdir(parents=True)
        receiving, told = context.Pipe(duplex=False)
        ready = context.Event()
        writer = context.Process(target=_writes_until_fenced, args=(run, segment_bytes, ready, told))
        writer.start()
        ready.wait(20)
        time.sleep(random.random() * 0.08)
        there = fence(home_of(run, 1), "hammered")
        at_once = tasks_of(run)
        assert receiving.poll(20), "its writer found the fence"
        acknowledged = {f"0.{n}.0" for n in receiving.recv()}
        writer.join(20)
        assert writer.exitcode == 0
        assert tasks_of(run) == at_once, "what its writer did afterwards changes nothing"
        assert acknowledged <= set(at_once), f"{there}: {sorted(acknowledged - set(at_once))}"
        assert at_once == [f"0.{n}.0" for n in range(len(at_once))]


def test_a_writer_behind_a_fence_is_told(tmp_path: Path):
    async def go() -> None:
        journal = SegmentJournal(tmp_path, epoch=1)
        journal.append(started(0))
        await journal.flush()
        fence(home_of(tmp_path, 1), "a test")
        told: list[int] = []
        journal.append(started(1), lambda: told.append(1))
        with pytest.raises(JournalError, match="ended by others"):
            await journal.flush()
        assert told == []
        await journal.close()

    asyncio.run(go())
    assert tasks_of(tmp_path) == ["0.0.0"]


def test_a_journal_that_ended_is_written_no_more(tmp_path: Path):
    asyncio.run(write(tmp_path, 1, [started(0)]))
    fence(home_of(tmp_path, 1), "a test")
    with pytest.raises(JournalError):
        asyncio.run(write(tmp_path, 1, [started(1)]))
    assert tasks_of(tmp_path) == ["0.0.0"]


@pytest.mark.parametrize("close", [False, True])
def test_a_torn_tail_before_the_fence(tmp_path: Path, close: bool):
    """The fence stands behind the last whole frame; what is written over the torn one never counts."""
    asyncio.run(write(tmp_path, 1, [started(n) for n in range(20)], close=False))
    path = home_of(tmp_path, 1) / "journal" / "000001.wvj"
    whole = path.read_bytes()
    path.write_bytes(whole[:-7])
    there = fence(home_of(tmp_path, 1), "a test")
    assert there.segment == 1 and there.offset < len(whole) - 7
    assert tasks_of(tmp_path) == [f"0.{n}.0" for n in range(15)]
    path.write_bytes(whole)  # its writer wakes up, and the write that was under way becomes whole
    assert tasks_of(tmp_path) == [f"0.{n}.0" for n in range(15)]
    assert sum(isinstance(event, TaskStarted) for event in JournalReader(tmp_path).events()) == 15


def test_a_fence_inside_a_segment_that_was_sealed_later(tmp_path: Path):
    events: list[Event] = [started(n) for n in range(20)]
    asyncio.run(write(tmp_path, 1, events[:10], close=False))
    path = home_of(tmp_path, 1) / "journal" / "000001.wvj"
    early = path.read_bytes()
    path.unlink()
    asyncio.run(write(tmp_path, 1, events))  # the same frames at first, more behind them, sealed; and another segment
    (path.with_name("000002.wvj")).write_bytes(path.read_bytes())
    assert path.read_bytes()[: len(early)] == early
    found = Fence(1, len(early), "a test")
    (home_of(tmp_path, 1) / "fenced").touch()
    (home_of(tmp_path, 1) / "fence").write_text(json.dumps({"segment": 1, "offset": len(early), "why": "a test"}))
    assert fence(home_of(tmp_path, 1), "too late") == found
    reader = JournalReader(tmp_path)
    assert [task.task for task in reader.tasks()] == [f"0.{n}.0" for n in range(10)]
    assert reader.counts() == {0: StageCounts(left=10)}
    assert len(reader.unfinished()) == 10
    assert list(reader.events()) == events[:10]
    assert dict(reader.histories(reader.places(["0.9.0", "0.10.0"]))) == {"0.9.0": [events[9]]}


def test_a_home_without_events_ends_too(tmp_path: Path):
    home = home_of(tmp_path, new_epoch(tmp_path))
    assert not is_fenced(home) and fence_of(home) is None
    assert fence(home, "a test") == Fence(0, 0, "a test")
    assert is_fenced(home) and tasks_of(tmp_path) == []
    with pytest.raises(JournalError):
        asyncio.run(write(tmp_path, 1, [started(0)]))
    assert tasks_of(tmp_path) == []


def test_a_damaged_fence_is_told(tmp_path: Path):
    asyncio.run(write(tmp_path, 1, [started(0)]))
    fence(home_of(tmp_path, 1), "a test")
    (home_of(tmp_path, 1) / "fence").write_text('{"segment": ')
    with pytest.raises(JournalCorrupt, match="fence"):
        tasks_of(tmp_path)


# Histories in several journals


class Known(NamedTuple):
    """A task as the fold over everything knows it."""

    home: int
    copy: int
    stage: int
    state: str | None
    made: int
    events: list[TaskEvent]


class History:
    """What happens to a run, journal by journal. `tasks` is the slow truth."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.tasks: dict[str, Known] = {}
        self.written: dict[int, list[Event]] = {
            0: [RunOpened(0, 1.0, "0"), AgentBound("s", {"name": "a", "model": "m"})]
        }
        self.live = [0]
        """Journals that are written."""
        self.sessions: set[int] = set()
        """Events of the run's own journal before which it was closed and opened again."""
        self.clock = 1.0
        self.count = 0

    def go(self, moves: int) -> None:
        for _ in range(moves):
            self.clock += 1.0
            dice = self.chance.random()
            if dice < 0.02 or len(self.live) < 2:
                self._new_home()
            elif dice < 0.04 and len(self.live) > 2:
                self.live.remove(self.chance.choice(self.live[1:]))
            elif dice < 0.20:
                self._start()
            elif dice < 0.35:
                self._take()
            elif self.tasks:
                self._go_on()

    def _new_home(self) -> None:
        epoch = max(self.written) + 1
        self.written[epoch] = [PeerOpened(epoch, self.clock, "h", 1, "0")]
        self.live.append(epoch)

    def _start(self) -> None:
        home, stage, self.count = self.chance.choice(self.live), self.chance.randrange(3), self.count + 1
        task = f"0.{self.count}.0" + "/0" * stage
        event = TaskStarted(task, stage, self.clock, task.encode(), {"n": self.count})
        self.written[home].append(event)
        self.tasks[task] = Known(home, 0, stage, None, UNTOLD, [event])

    def _take(self) -> None:
        """A task goes on in another journal. Those of peers are taken there once, the run's own takes a task again."""
        able = [task for task, one in self.tasks.items() if one.state in (None, "failed")]
        if not able:
            return
        task = self.chance.choice(able)
        one, home = self.tasks[task], self.chance.choice(self.live)
        if home == one.home or (home and home in self._homes(task)):
            return
        if not home:  # another session of one process has begun, and with it a segment
            self.sessions.add(len(self.written[0]))
        taken = TaskTaken(task, one.stage, one.copy + 1, self.clock, tuple(one.events))
        self.written[home].append(taken)
        self.tasks[task] = one._replace(home=home, copy=one.copy + 1)
        if one.state == "failed":
            self._note(task, TaskReopened(task, self.clock, 0))

    def _homes(self, task: str) -> set[int]:
        """The journals that have had it."""
        return {home for home, events in self.written.items() if any(getattr(e, "task", "") == task for e in events)}

    def _go_on(self) -> None:
        task = self.chance.choice(list(self.tasks))
        one, dice = self.tasks[task], self.chance.random()
        if one.home not in self.live or one.state in ("done", "rejected"):
            return
        if one.state == "failed":
            if dice < 0.3:
                self._note(task, TaskReopened(task, self.clock, 1))
        elif dice < 0.4:
            state = self.chance.choice(["done", "rejected", "failed"])
            result: Any = [None] * self.chance.randrange(4) if self.chance.random() < 0.5 else None
            self._note(task, TaskEnded(task, one.stage, state, "r", "", result, 1.0, self.clock))  # type: ignore[arg-type]
        else:
            key = "0", self.count.to_bytes(16, "little"), len(one.events)
            waiting = [step[1:] for step in Reservations().follow(one.events).open]
            if waiting and self.chance.random() < 0.5:  # maybe of another journal: the step is asked again
                key = waiting[-1]
            if dice < 0.6:
                dollars = self.chance.randrange(1, 5) / 4
                self._note(task, CostReserved(task, *key, dollars, "", self.clock, "a"))
            if dice > 0.5:
                kind = "tool" if self.chance.random() < 0.2 else "model"
                usage = Usage(1, 1, cost=self.chance.randrange(8) / 8)
                value = "r" * self.chance.randrange(60)
                step = StepEnded(
                    task,
                    *key,
                    kind,
                    "a",
                    "s" if kind == "model" else "",
                    {},
                    "reply",
                    value,
                    0.0,
                    1.0,
                    self.clock,
                    usage,
                    "m",
                )  # type: ignore[arg-type]
                self._note(task, step)

    def _note(self, task: str, event: TaskEvent) -> None:
        one = self.tasks[task]
        self.written[one.home].append(event)
        state, made = one.state, one.made
        if isinstance(event, TaskEnded):
            state = event.state
            made = (len(event.value) if isinstance(event.value, list) else 1) if state == "done" else UNTOLD
        elif isinstance(event, TaskReopened):
            state, made = None, UNTOLD
        self.tasks[task] = one._replace(state=state, made=made, events=[*one.events, event])

    def store(self, run: Path) -> None:
        """Each journal in segments; some end in order, some are fenced, some are left as they are."""
        for epoch, events in self.written.items():
            asyncio.run(self._store(run, epoch, events))

    async def _store(self, run: Path, epoch: int, events: list[Event]) -> None:
        journal = SegmentJournal(run, sync=False, segment_bytes=self.chance.choice([600, 3_000, 1 << 26]), epoch=epoch)
        for number, event in enumerate(events):
            if epoch == 0 and number in self.sessions:
                await journal.close()
                journal = SegmentJournal(run, sync=False, segment_bytes=3_000)
            journal.append(event)
            if self.chance.random() < 0.3:
                await journal.flush()
        await journal.flush()
        end = self.chance.choice(["close", "fence", "left"]) if epoch else self.chance.choice(["close", "left"])
        if end == "fence":
            fence(home_of(run, epoch), "a test")
            journal.append(started(10**6))  # behind the fence
            with pytest.raises(JournalError):
                await journal.flush()
        if end == "left":
            await asyncio.to_thread(journal._stop)
        else:
            await journal.close()
            if epoch and self.chance.random() < 0.5:
                fence(home_of(run, epoch), "it left")

    def compare(self, run: Path) -> None:
        reader = JournalReader(run)
        assert list(reader.events()) == [event for epoch in sorted(self.written) for event in self.written[epoch]]
        summaries = {
            task: TaskSummary(task, one.stage, one.state, task.encode(), one.made)  # type: ignore[arg-type]
            for task, one in self.tasks.items()
        }
        for newest_first in (False, True):
            found = list(reader.tasks(newest_first))
            assert len(found) == len(summaries)
            assert {task.task: task for task in found} == summaries
        table: dict[int, StageCounts] = {}
        for one in self.tasks.values():
            counts = table.setdefault(one.stage, StageCounts())
            setattr(counts, one.state or "left", getattr(counts, one.state or "left") + 1)
        assert reader.counts() == dict(sorted(table.items()))
        self._compare_histories(reader)
        steps = [event for one in self.tasks.values() for event in one.events if isinstance(event, StepEnded)]
        assert sum(usage.cost for usage in reader.usage().values()) == sum(step.usage.cost for step in steps)
        assert reader.calls() == sum(step.kind == "model" for step in steps)
        made: Counter[int] = Counter()
        for one in self.tasks.values():
            made[one.stage] += max(0, one.made)
        told = reader.made()
        assert told is not None
        assert +Counter(told) == +made
        ended = {task: one for task, one in self.tasks.items() if one.state}
        for late in reader.ended_late():
            assert late.task in self.tasks
        assert reader.reserved().dollars == self._reserved()
        assert fold(run).ledger.spent().total == reader.reserved().dollars + sum(step.usage.cost for step in steps)
        assert len(ended) + len(reader.unfinished()) == len(self.tasks)
        self._compare_costs(run, sum(step.usage.cost for step in steps))

    def _compare_costs(self, run: Path, cost: float) -> None:
        """What rows cost that have ended, and those that have not; of one that was reopened, both."""
        rows, costs = sum(one.state is not None for one in self.tasks.values()), row_costs(run)
        if costs.each is not None:
            assert costs.each * rows + costs.begun == pytest.approx(cost)
        left = [one.events for one in self.tasks.values() if not any(isinstance(e, TaskEnded) for e in one.events)]
        never = sum(event.usage.cost for events in left for event in events if isinstance(event, StepEnded))
        reopened = any(isinstance(event, TaskReopened) for one in self.tasks.values() for event in one.events)
        assert costs.begun >= never if reopened else costs.begun == never

    def _compare_histories(self, reader: JournalReader) -> None:
        unfinished = {task: one.events for task, one in self.tasks.items() if one.state is None}
        places = reader.unfinished()
        assert places.keys() == unfinished.keys()
        assert all(places[task][0].epoch == self.tasks[task].home for task in places)
        assert dict(reader.histories(places, 3)) == unfinished
        assert {task: reader.copies.get(task, 0) for task in places} == {task: self.tasks[task].copy for task in places}
        everything = reader.places(list(self.tasks))
        assert dict(reader.histories(everything)) == {task: one.events for task, one in self.tasks.items()}
        assert dict(reader.all_histories()) == {task: one.events for task, one in self.tasks.items()}
        for task in self.chance.sample(list(self.tasks), min(3, len(self.tasks))):
            assert reader.task_events(task) == self.tasks[task].events

    def _reserved(self) -> float:
        dollars: dict[Any, float] = {}
        for one in self.tasks.values():
            for event in one.events:
                if isinstance(event, CostReserved):
                    dollars[event.task, event.path, event.fingerprint, event.occurrence] = event.dollars
                elif isinstance(event, StepEnded):
                    dollars.pop((event.task, event.path, event.fingerprint, event.occurrence), None)
        return sum(dollars.values())


def compared(run: Path, seed: int) -> None:
    history = History(random.Random(seed))
    history.go(20 + seed % 7 * 60)
    history.store(run)
    config = RunConfig("a test", "", ["a", "b", "c"], "", {}, {}, {}, "")
    (run / "run.json").write_bytes(msgspec.json.encode(config))
    history.compare(run)


@pytest.mark.parametrize("seed", range(24))
def test_several_journals_say_what_happened(tmp_path: Path, seed: int):
    compared(tmp_path, seed)


@pytest.mark.slow
def test_many_histories():
    assert main(400) == 0


def main(seeds: int) -> int:
    bad = 0
    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as run:
            try:
                compared(Path(run), seed)
            except Exception as error:  # the next seed tells more
                bad += 1
                print(f"seed {seed}: {error!r:.300}")
    print(f"{bad} of {seeds} histories were read wrongly")
    return bad


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])) > 0)
