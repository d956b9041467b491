"""However a run ends, what it holds is let go of: its lock, its threads and processes, Python's collector."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from weaverant import Agent, Reply, Stages, process_step, resume, run, step, workflow
from weaverant.engines.simulated import Simulated
from weaverant.errors import RunChanged, RunLocked, UserError
from weaverant.events import RunClosed
from weaverant.journal import JournalReader
from weaverant.journal.lock import RunLock, is_locked
from weaverant.message import assistant

say = Agent("say", prompt="{{ n }}")
SERVER = "simulated:latency=0.2,slots=4"


@workflow
async def grade(row: Any) -> Any:
    await say(n=row["n"])
    return row["n"]


def rows(count: int) -> list[dict[str, int]]:
    return [{"n": n} for n in range(count)]


def pipe(count: int, end: Callable[[], Any]) -> Iterator[dict[str, int]]:
    """Rows that cannot be read again."""
    yield from rows(count)
    end()


def fails() -> None:
    raise ValueError("line 51 is bad")


def last_event(directory: Path) -> Any:
    return list(JournalReader(directory).run_events())[-1]


def test_a_run_that_is_left_before_it_has_prepared_starts_nothing(tmp_path: Path):
    made = run(grade, rows(400), models=SERVER, directory=tmp_path / "run")
    made.leave()
    assert not list(made)
    assert made.state == "closed" and made.ledger.calls == 0
    assert resume(tmp_path / "run", workflow=grade, rows=rows(400), models="simulated:latency=0").wait().exit_code == 0


def test_leaving_the_loop_after_a_stop_waits_for_no_call():
    @workflow
    async def first_at_once(row: Any) -> Any:
        return row["n"] and await say(n=row["n"])

    began = time.monotonic()
    made = run(first_at_once, rows(8), models="simulated:latency=60,slots=8,jitter=0.0", journal=False)
    for _ in made:
        made.stop()
        time.sleep(0.1)  # so that it has taken notice
        break
    assert time.monotonic() - began < 20 and made.state == "interrupted"


@pytest.mark.parametrize("how", ["leave", "stop", "pilot"])
def test_a_source_that_fails_where_nobody_has_got_to_yet_does_not_cut_the_end_off(tmp_path: Path, how: str):
    """It is read ahead, in a thread."""
    directory = tmp_path / "run"

    @workflow
    async def computes(row: Any) -> Any:
        await say(n=row["n"])
        return await process_step(abs, row["n"])

    pilot = 2 if how == "pilot" else None
    source = pipe(50, fails)
    made = run(computes, source, models=SERVER, directory=directory, concurrency=2, in_flight=2, pilot=pilot)
    for _ in made:
        if how == "leave":
            break
        if how == "stop":
            made.stop()
    assert made.state == {"leave": "closed", "stop": "interrupted", "pilot": "pilot"}[how]
    assert isinstance(made.error, ValueError)
    assert isinstance(last_event(directory), RunClosed) and not is_locked(directory)
    assert not multiprocessing.active_children()


def test_a_source_that_exits_ends_the_run():
    made = run(grade, pipe(2, lambda: sys.exit("no column n")), models=SERVER, journal=False)
    assert [task.result for task in made] == [0, 1]
    assert (made.state, made.exit_code) == ("source", 1) and isinstance(made.error, SystemExit)


@pytest.mark.parametrize("value", [2**70, "\ud800", float("inf")])
def test_a_result_that_cannot_be_a_row_fails_there(value: Any):
    """Without a journal nothing has stored it before."""

    @workflow
    async def first(row: Any) -> Any:
        return {"value": value}

    @workflow
    async def second(row: Any) -> Any:
        return "seen"

    ends = [(task.stage, task.state) for task in run(Stages(first, second), rows(1), models=SERVER, journal=False)]
    if value == float("inf"):
        assert ends == [(0, "done"), (1, "done")]
    else:
        assert ends == [(0, "done"), (1, "failed")]


def test_an_engine_whose_models_name_cannot_be_stored_fails_its_calls_once(tmp_path: Path):
    asked = 0

    class Odd:
        identity = "odd"

        async def generate(self, request: Any, ctx: Any) -> Reply:
            nonlocal asked
            asked += 1
            return Reply(assistant("hi"), model="m\ud800")

        async def close(self) -> None: ...

    directory = tmp_path / "run"
    made = run(grade, rows(5), models=Odd(), directory=directory).wait()
    assert made.ledger.stages[0].failed == {"engine": 5}
    assert resume(directory, workflow=grade, rows=rows(5), models=Odd()).wait().ledger.failed == 5
    assert asked == 5


def test_a_child_that_was_forked_does_not_keep_the_run(tmp_path: Path):
    directory = tmp_path / "run"
    children: list[Any] = []

    def fork(n: int) -> int:
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
        child.start()
        children.append(child)
        return n

    @workflow
    async def forks(row: Any) -> Any:
        return await step(fork, row["n"])

    try:
        assert run(forks, rows(1), models=SERVER, directory=directory).wait().exit_code == 0
        assert children[0].is_alive() and not is_locked(directory)
        assert resume(directory, workflow=forks, rows=rows(1), models=SERVER).wait().exit_code == 0
    finally:
        children[0].kill()
        children[0].join()


def test_cancelled_again_and_again_a_run_ends_whole(tmp_path: Path):
    """As some frameworks cancel: at each turn of the loop until the task has ended."""
    directory, others = tmp_path / "run", set(threading.enumerate())

    async def main() -> int:
        made = run(grade, rows(50), models=SERVER, directory=directory)

        async def drain() -> None:
            async for _ in made:
                begun.set()

        begun = asyncio.Event()
        going = asyncio.create_task(drain())
        await begun.wait()
        cancels = 0
        while not going.done():
            going.cancel()
            cancels += 1
            await asyncio.sleep(0)
        assert going.cancelled() and made.state == "closed"
        return cancels

    assert asyncio.run(main()) > 1
    assert isinstance(last_event(directory), RunClosed) and not is_locked(directory)
    left = set(threading.enumerate()) - others
    assert not [thread for thread in left if thread.name.startswith("weaverant-journal")]
    assert resume(directory, workflow=grade, rows=rows(50), models="simulated:latency=0").wait().exit_code == 0


def test_a_run_that_could_not_begin_is_over(tmp_path: Path):
    directory = tmp_path / "run"
    run(grade, rows(4), models=SERVER, directory=directory).wait()
    made = resume(directory, workflow=grade, rows=[{"n": 9}] * 4, models=SERVER)
    with pytest.raises(RunChanged):
        made.wait()
    assert (made.state, made.exit_code) == ("broken", 1)
    with pytest.raises(UserError, match="iterated over once"):
        made.wait()


def test_engines_of_a_run_that_could_not_begin_are_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    directory, closed = tmp_path / "run", []
    run(grade, rows(1), models=SERVER, directory=directory).wait()

    async def close(self: Simulated) -> None:
        closed.append(self)

    monkeypatch.setattr(Simulated, "close", close)
    lock = RunLock(directory)
    try:
        with pytest.raises(RunLocked):
            resume(directory, workflow=grade, rows=rows(1)).wait()
    finally:
        lock.release()
    assert len(closed) == 1


def test_whoever_looks_at_a_run_does_not_keep_it_from_being_written(tmp_path: Path):
    over = threading.Event()
    looks = 0

    def look() -> None:
        nonlocal looks
        while not over.is_set():
            is_locked(tmp_path)
            looks += 1

    looking = threading.Thread(target=look)
    RunLock(tmp_path).release()
    looking.start()
    try:
        for _ in range(300):
            RunLock(tmp_path).release()
    finally:
        over.set()
        looking.join()
    assert looks > 100, "somebody looked meanwhile"


# Python's collector


def go(**limits: Any) -> None:
    assert run(grade, rows(300), models="simulated:latency=0", journal=False, **limits).wait().exit_code == 0


def collector() -> tuple[tuple[int, int, int], int]:
    return gc.get_threshold(), gc.get_freeze_count()


def test_bounds_that_are_none_are_taken():
    before = collector()
    go(in_flight=10**8, concurrency=10**9)
    assert collector() == before
    go()


@pytest.mark.parametrize("thresholds", [(0, 10, 10), (10**9, 10, 10)], ids=["switched off", "seldom"])
def test_who_has_set_the_collector_keeps_that(thresholds: tuple[int, int, int]):
    before = gc.get_threshold()
    seen: list[int] = []

    @workflow
    async def looks(row: Any) -> None:
        seen.append(gc.get_threshold()[0])

    gc.set_threshold(*thresholds)
    try:
        run(looks, rows(5), models=SERVER, journal=False).wait()
        assert gc.get_threshold() == thresholds and set(seen) == {thresholds[0]}
    finally:
        gc.set_threshold(*before)


def test_who_has_set_objects_apart_finds_just_these_apart():
    alive: list[int] = []

    class Kept:
        def __init__(self) -> None:
            self.itself = self
            alive.append(1)

        def __del__(self) -> None:
            alive.pop()

    @workflow
    async def keeps(row: Any) -> None:
        kept = Kept()
        await say(n=row["n"])
        assert kept.itself is kept

    gc.collect()
    gc.freeze()
    try:
        before = gc.get_freeze_count()
        run(keeps, rows(300), models="simulated:latency=0.01", journal=False, in_flight=300).wait()
        gc.collect()
        assert not alive and gc.get_freeze_count() <= before
    finally:
        gc.unfreeze()
