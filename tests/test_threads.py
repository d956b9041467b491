"""`step` functions in threads: one that was given up goes on in its thread, and hurts nobody but its own row."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from typing import Any

import pytest

from weaverant import deadline, run, step, workflow
from weaverant.runtime.threads import ABANDONED, StepThread
from weaverant.session import Run

pytestmark = pytest.mark.timeout(60)

FOREVER = threading.Event()


def number(n: int) -> int:
    return n


def going(work: Any, rows: int, **options: Any) -> tuple[Run, list[str]]:
    """A run that is about to begin, and what it tells people."""
    told: list[str] = []
    given = {"models": "simulated:", "journal": False, "max_failures": 1, **options}
    run_ = run(work, [{"n": n} for n in range(rows)], **given)
    run_.tell = told.append
    return run_, told


def results(run_: Run) -> dict[int, Any]:
    return {task.row["n"]: task.result if task.state == "done" else task.reason for task in run_}


def alive() -> int:
    return sum(isinstance(thread, StepThread) for thread in threading.enumerate())


def gone() -> bool:
    until = time.monotonic() + 20
    while alive() and time.monotonic() < until:
        time.sleep(0.02)
    return not alive()


def test_functions_that_never_return_cost_no_other_row_its_deadline():
    """One in ten hangs. The rows behind as many as there are threads used to wait until their own deadline had passed."""
    released = threading.Event()

    def work(n: int) -> int:
        if n % 10 == 0:
            released.wait()
        return n

    @workflow
    async def works(row: Any) -> Any:
        async with deadline(1.5):
            return await step(work, row["n"])

    run_, told = going(works, 200)
    try:
        assert results(run_) == {n: n if n % 10 else "TimeoutError" for n in range(200)}
    finally:
        released.set()
    assert len(told) == 1
    assert "work() was given up" in told[0] and "goes on in its thread" in told[0] and "process_step(" in told[0]
    assert gone()


def test_another_thread_takes_the_place_of_one_that_was_given_up():
    released = threading.Event()

    @workflow
    async def works(row: Any) -> Any:
        try:
            async with deadline(0.2):
                await step(released.wait)
        except TimeoutError:
            return await step(number, row["n"])

    run_, _ = going(works, 6, threads=2)
    try:
        assert results(run_) == {n: n for n in range(6)}
    finally:
        released.set()
    assert gone()


def test_so_many_threads_are_left_and_no_more():
    """With one thread: the next function has to wait for one of those that were given up, and people are told so."""
    released = threading.Event()
    left: list[int] = []

    @workflow
    async def works(row: Any) -> Any:
        try:
            async with deadline(0.1):
                await step(released.wait)
        except TimeoutError:
            return "late"

    @workflow
    async def works_or_waits(row: Any) -> Any:
        return await step(number, row["n"]) if row["n"] == ABANDONED + 1 else await works(row)

    run_, told = going(works_or_waits, ABANDONED + 2, threads=1)

    def tell(text: str) -> None:
        told.append(text)
        if "threads are left" in text:
            left.append(alive())
            released.set()

    run_.tell = tell
    try:
        found = results(run_)
    finally:
        released.set()
    assert found == {**dict.fromkeys(range(ABANDONED + 1), "late"), ABANDONED + 1: ABANDONED + 1}
    assert left == [ABANDONED + 1]
    assert len(told) == 2 and "8 threads are left at functions that were given up (Event.wait())" in told[1]
    assert gone()


def test_no_more_functions_run_at_once_than_there_are_threads():
    at_once, most, lock = 0, 0, threading.Lock()

    def work() -> None:
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        time.sleep(0.01)
        with lock:
            at_once -= 1

    @workflow
    async def works(row: Any) -> Any:
        await asyncio.gather(*[step(work) for _ in range(4)])

    run_, told = going(works, 20, threads=3)
    assert set(results(run_).values()) == {None}
    assert most == 3 and told == []
    assert gone()


def test_a_function_that_never_got_a_thread_is_told_of():
    released = threading.Event()

    @workflow
    async def works(row: Any) -> Any:
        async with deadline(0.3):
            await asyncio.gather(step(released.wait), step(number, row["n"]))

    run_, told = going(works, 1, threads=1)
    try:
        assert results(run_) == {0: "TimeoutError"}
    finally:
        released.set()
    over = [text for text in told if "before one of 1 threads was free for it: Event.wait() has run for " in text]
    assert len(told) == 2 and len(over) == 1 and over[0].startswith("number() was given up")
    assert "row 0.0.0. --threads N has more" in over[0]
    assert gone()


def test_a_run_can_be_made_again_where_one_was_stopped_with_functions_in_threads():
    """A stop gives functions up as well, which is no news."""
    released = threading.Event()

    @workflow
    async def works(row: Any) -> Any:
        await step(released.wait)

    run_, told = going(works, 3, grace=0.1)
    threading.Timer(0.3, run_.stop).start()
    try:
        assert results(run_) == {} and run_.state == "interrupted" and told == []
        assert alive() == 3
    finally:
        released.set()
    assert gone()
    assert results(going(works, 3)[0]) == dict.fromkeys(range(3))
    assert gone()


@workflow
async def gives_up(row: Any) -> Any:
    try:
        async with deadline(0.2):
            await step(FOREVER.wait)
    except TimeoutError:
        return "late"


def test_a_script_ends_although_its_function_does_not():
    done = subprocess.run([sys.executable, __file__], capture_output=True, text=True, timeout=40, check=False)
    assert (done.returncode, done.stdout) == (0, "finished\n"), done.stderr
    assert "Event.wait() was given up" in done.stderr and "Traceback" not in done.stderr


if __name__ == "__main__":
    print(run(gives_up, [{"n": 0}], models="simulated:", journal=False).wait().state)
