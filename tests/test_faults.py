"""The faults under which Matrix lost rows or hung (specs, matrix.md): same fault, nothing lost, an honest exit.

Its killed driver is `test_crash.py`. Here: everything else that applies to one process.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from weaverant import Agent, StepFailed, process_step, reject, resume, run, step, workflow
from weaverant.engines.scripted import Scripted
from weaverant.errors import JournalCorrupt
from weaverant.journal import JournalReader
from weaverant.session import Run
from weaverant.task import Task
from weaverant.testing.server import MockServer

say = Agent("say", prompt="{{ text }}")
ROWS = [{"n": n} for n in range(6)]


@workflow
async def says(row: Any) -> Any:
    return await say(text=f"row {row['n']}")


def echo() -> Scripted:
    return Scripted(lambda request: request.messages[-1].text, identity="echo")


def states(going: Run) -> Counter[tuple[str, str]]:
    return Counter((task.state, task.reason) for task in going)


# Processes that die


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def work(seconds: float) -> int:
    time.sleep(seconds)
    return 2


class Unpicklable(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__("text")


def raise_unpicklable() -> None:
    raise Unpicklable(1, 2)


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_worker_process_that_dies_takes_no_other_row_along():
    @workflow
    async def computes(row: Any) -> Any:
        if row["n"] == 3:
            return await process_step(die)
        if row["n"] == 4:
            return await process_step(raise_unpicklable)
        return await process_step(work, 0.1)

    tasks = {task.row["n"]: task for task in run(computes, ROWS, models=echo(), journal=False)}
    assert {n: task.state for n, task in tasks.items() if task.state != "done"} == {3: "failed", 4: "failed"}
    assert (tasks[3].reason, tasks[4].reason) == ("died", "Unpicklable")
    wait_for(lambda: not multiprocessing.active_children())


@workflow
async def computes_long(row: Any) -> Any:
    return await process_step(work, 3.0)


def test_worker_processes_end_with_a_killed_run(tmp_path: Path):
    """Else they would wait for ever, and hold the lock of the run."""
    command = [sys.executable, __file__, "computes_long", str(tmp_path / "run")]
    with subprocess.Popen(command, start_new_session=True) as child:
        wait_for(lambda: len(members(child.pid)) > 1)
        child.kill()
    wait_for(lambda: not members(child.pid))
    going = resume(tmp_path / "run", workflow=says_nothing_changed(), rows=[{"n": 0}], models=echo())
    assert going.recipe.name == "computes_long"


def says_nothing_changed() -> Any:
    return computes_long


def members(group: int) -> list[str]:
    """Living processes of a process group."""
    found = subprocess.run(["ps", "-o", "stat=", "-g", str(group)], capture_output=True, text=True, check=False)
    return [line for line in found.stdout.split() if not line.startswith("Z")]


def wait_for(condition: Any, seconds: float = 20) -> None:
    give_up = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.02)


def test_a_model_server_that_dies_and_comes_back_costs_no_row(tmp_path: Path):
    rows = [{"n": n} for n in range(40)]
    with MockServer(latency=0.05) as server:
        models = f"{server.url}#big"
        going = run(says, rows, models=models, directory=tmp_path / "run", concurrency=4)
        tasks: list[Task] = []
        for task in going:
            tasks.append(task)
            if len(tasks) == 10:
                server.stop()
                server.start()
        failed = sum(task.state == "failed" for task in tasks)
        assert len(tasks) == 40 and all(task.reason == "connection" for task in tasks if task.state == "failed")
        again = resume(tmp_path / "run", workflow=says, rows=rows, models=models, retry=True)
        assert states(again) == (Counter({("done", ""): failed}) if failed else Counter())
        assert again.exit_code == 0


# Users' code


def test_an_exception_in_a_workflow_is_a_row_with_its_text_and_place():
    @workflow
    async def fragile(row: Any) -> Any:
        if row["n"] == 2:
            raise LookupError("no such thing")
        return await say(text="fine")

    going = run(fragile, ROWS, models=echo(), journal=False)
    (failed,) = [task for task in going if task.state == "failed"]
    assert (failed.reason, failed.result["text"], going.exit_code) == ("LookupError", "no such thing", 3)
    assert failed.where.startswith("test_faults.py:") and failed.where.endswith("in fragile")
    assert going.ledger.stages[0].done == 5


def nothing_next() -> Any:
    raise StopIteration


def leave() -> None:
    sys.exit(3)


async def give_up() -> None:
    raise asyncio.CancelledError


@pytest.mark.timeout(30)
@pytest.mark.parametrize(
    ("function", "kind"), [(nothing_next, "StopIteration"), (leave, "SystemExit"), (give_up, "CancelledError")]
)
def test_a_step_may_raise_whatever_it_likes(function: Any, kind: str):
    @workflow
    async def steps(row: Any) -> Any:
        try:
            return await step(function)
        except StepFailed as failure:
            return failure.kind

    (task,) = run(steps, ROWS[:1], models=echo(), journal=False)
    assert task.result == kind


@pytest.mark.timeout(30)
def test_an_engine_that_cancels_itself_fails_its_step():
    async def cancels(request: Any) -> str:
        raise asyncio.CancelledError

    assert states(run(says, ROWS[:2], models=Scripted(cancels), journal=False)) == {("failed", "CancelledError"): 2}


# Rows


def test_equal_ids_and_missing_ids_are_rows_like_others():
    rows = [{"id": 1, "n": 1}, {"id": 1, "n": 2}, {"n": 3}, {"id": 1, "n": 1}]
    assert states(run(says, rows, models=echo(), journal=False)) == {("done", ""): 4}


def test_a_bad_line_and_a_missing_field_cost_their_own_row(tmp_path: Path):
    (tmp_path / "rows.jsonl").write_text('{"n": 1}\n{"n": \n{"m": 3}\n[4]\n{"n": 5}\n')
    going = run(says, tmp_path / "rows.jsonl", models=echo(), directory=tmp_path / "run", max_failures=1.0)
    assert states(going) == {("done", ""): 2, ("failed", "unreadable"): 2, ("failed", "KeyError"): 1}
    assert (going.ledger.stages[0].rows, going.exit_code) == (5, 3)


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.timeout(30)
@pytest.mark.parametrize("row", [{"n": 2**70}, {"n": deep(5_000)}, {"n": "\ud800"}, {"n": object()}, 7])
def test_a_row_that_cannot_be_stored_costs_itself_only(tmp_path: Path, row: Any):
    found = states(run(says, [row, *ROWS], models=echo(), directory=tmp_path / "run", max_failures=1.0))
    assert found == {("failed", "unreadable"): 1, ("done", ""): 6}


# Servers


def test_a_400_is_asked_once(tmp_path: Path):
    with MockServer("fault-400") as server:
        going = run(says, ROWS, models=f"{server.url}#big", directory=tmp_path / "run", max_failures=1.0)
        assert states(going) == {("failed", "request"): 6}
        assert server.stats()["total"] == 6


def test_a_server_that_always_fails_stops_the_run_by_its_fuse(tmp_path: Path):
    rows = [{"n": n} for n in range(200)]
    with MockServer("fault-422") as server:
        models = f"{server.url}#big"
        going = run(says, rows, models=models, directory=tmp_path / "run", fuse_after=10, concurrency=4, in_flight=8)
        assert set(states(going)) == {("failed", next(iter(going.ledger.stages[0].failed)))}
        assert (going.state, going.exit_code) == ("fuse", 4)
        assert server.stats()["total"] < 60


def test_an_outage_in_a_filter_is_no_rejection(tmp_path: Path):
    keeper = Agent("keeper", prompt="Keep {{ n }}?", output=bool)

    @workflow
    async def filters(row: Any) -> Any:
        return row if await keeper(n=row["n"]) else reject("not kept")

    up = False

    def answer(request: Any) -> str:
        if not up and "3" in request.messages[0].text:
            raise StepFailed("connection", "outage")
        return "false" if "4" in request.messages[0].text else "true"

    engine = Scripted(answer, identity="filter")
    going = run(filters, ROWS, models=engine, directory=tmp_path / "run")
    assert states(going) == {("done", ""): 4, ("rejected", "not kept"): 1, ("failed", "connection"): 1}
    up = True
    assert states(resume(tmp_path / "run", workflow=filters, rows=ROWS, models=engine, retry=True)) == {("done", ""): 1}


# Disks


@workflow
async def fills(row: Any) -> Any:
    return await say(text=f"{row['n']}" + os.urandom(4_000).hex())


FULL_ROWS = [{"n": n} for n in range(200)]


def test_a_full_disk_ends_the_run_resumable(tmp_path: Path):
    command = [sys.executable, __file__, "fills", str(tmp_path / "run"), "300000"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 4, done.stdout + done.stderr
    assert "journal" in done.stdout and "cannot be written" in done.stdout
    before = sum(counts.done for counts in JournalReader(tmp_path / "run").counts().values())
    going = resume(tmp_path / "run", workflow=fills, rows=FULL_ROWS, models=echo())
    assert states(going) == {("done", ""): 200 - before}
    assert 0 < before < 200
    assert going.exit_code == 0


@pytest.mark.timeout(60)
def test_a_lost_blob_ends_the_resumed_run_with_its_name(tmp_path: Path):
    rows = [{"n": n, "text": f"{n} " * 70_000} for n in range(2)]
    engine = Scripted(lambda _: hang(), identity="hangs")
    going = run(says, rows, models=engine, directory=tmp_path / "run", grace=0)

    async def hang() -> str:
        going.stop()
        await asyncio.sleep(60)
        return ""

    assert not list(going)
    shutil.rmtree(tmp_path / "run" / "blobs")
    again = resume(tmp_path / "run", workflow=says, rows=rows, models=engine)
    assert not list(again)
    assert isinstance(again.error, JournalCorrupt) and "missing" in str(again.error)
    assert again.exit_code != 0


def main(name: str, directory: str, largest: str = "") -> None:
    if largest:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(largest), int(largest)))
    flow, rows = {"computes_long": (computes_long, ROWS[:1]), "fills": (fills, FULL_ROWS)}[name]
    going = run(flow, rows, models=echo(), directory=directory, in_flight=8).wait()
    print(going.state, going.error)
    sys.exit(going.exit_code)


if __name__ == "__main__":
    main(*sys.argv[1:])
