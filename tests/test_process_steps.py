"""`process_step`: a function that computes elsewhere hurts nobody but its own row, whatever becomes of its process."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from weaverant import Agent, Reply, Request, StepFailed, Usage, deadline, process_step, resume, run, workflow
from weaverant.engines.scripted import Scripted
from weaverant.journal import JournalReader
from weaverant.message import assistant
from weaverant.protocols import CallContext
from weaverant.session import Run

pytestmark = [
    pytest.mark.timeout(60),
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
]

CORES = os.cpu_count() or 1


def nobody() -> Scripted:
    return Scripted(lambda request: "", identity="nobody")


def results(going: Run) -> dict[int, Any]:
    return {task.row["n"]: task.result if task.state == "done" else task.reason for task in going}


def wait_for(condition: Any, seconds: float = 20) -> None:
    give_up = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.02)


def spin() -> None:
    while True:
        time.sleep(1)


def number(n: int) -> int:
    return n


def process() -> int:
    return os.getpid()


def vanish() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_functions_that_never_end_keep_no_process_and_hold_up_nobody():
    """Once as many as there are cores had been given up, every other waited for ever."""

    @workflow
    async def computes(row: Any) -> Any:
        if row["n"] < 2 * CORES:
            try:
                async with deadline(0.3):
                    return await process_step(spin)
            except TimeoutError:
                return "late"
        return await process_step(number, row["n"])

    rows = [{"n": n} for n in range(2 * CORES + 4)]
    expected = {n: "late" if n < 2 * CORES else n for n in range(2 * CORES + 4)}
    assert results(run(computes, rows, models=nobody(), journal=False)) == expected
    wait_for(lambda: not multiprocessing.active_children())


@workflow
async def spins(row: Any) -> Any:
    return await process_step(spin)


@workflow
async def gives_up(row: Any) -> Any:
    try:
        async with deadline(0.3):
            await process_step(spin)
    except TimeoutError:
        return "late"


@pytest.mark.parametrize("name", ["spins", "gives_up"])
def test_a_script_ends_although_its_function_does_not(name: str):
    done = subprocess.run([sys.executable, __file__, name], capture_output=True, text=True, timeout=40, check=False)
    assert done.stdout == {"spins": "interrupted\n", "gives_up": "finished\n"}[name], done.stderr


def test_a_stop_waits_for_no_longer_than_its_grace(tmp_path: Path):
    going = run(spins, [{"n": 0}], models=nobody(), directory=tmp_path / "run", grace=0.2)
    threading.Timer(0.3, going.stop).start()
    began = time.monotonic()
    assert list(going) == [] and going.state == "interrupted"
    assert time.monotonic() - began < 10
    wait_for(lambda: not multiprocessing.active_children())


ask = Agent("ask", prompt="{{ n }}")


class Dear:
    """A model whose every call costs a dollar."""

    identity = "dear"

    async def generate(self, request: Request, ctx: CallContext) -> Reply:
        assert ctx.purse is not None
        await ctx.purse.afford(1.0)
        return Reply(assistant("said"), Usage(cost=1.0))

    def unbounded(self, request: Request) -> str:
        return ""

    async def close(self) -> None: ...


@workflow
async def asks_or_spins(row: Any) -> Any:
    return await process_step(spin) if row["n"] == 0 else await ask(n=row["n"])


def test_a_budget_that_is_used_up_ends_the_run_although_a_function_does_not(tmp_path: Path):
    """Calls in flight have all their time, since they are paid for; deadlines do not fire any more by then."""
    rows = [{"n": n} for n in range(5)]
    going = run(asks_or_spins, rows, models=Dear(), directory=tmp_path / "run", budget=2, grace=0.2)
    assert len(list(going)) == 2 and going.state == "budget"
    wait_for(lambda: not multiprocessing.active_children())


def test_a_process_that_dies_takes_no_other_call_along(tmp_path: Path):
    """Each call is made once: those beside it were made again in a process of their own."""

    def made() -> int:
        return sum(path.read_text().count(".") for path in tmp_path.iterdir())

    @workflow
    async def computes(row: Any) -> Any:
        return await process_step(write_and_wait, str(tmp_path / str(row["n"])), row["n"] == 0)

    found = results(run(computes, [{"n": n} for n in range(4)], models=nobody(), journal=False))
    assert found == {0: "died", 1: 1, 2: 1, 3: 1}
    assert made() == 4


def write_and_wait(path: str, dies: bool) -> int:
    with open(path, "a") as file:
        file.write(".")
    time.sleep(0.2)
    if dies:
        vanish()
    return 1


def test_a_process_that_dies_at_rest_hurts_nobody():
    @workflow
    async def computes(row: Any) -> Any:
        first = await process_step(process)
        os.kill(first, signal.SIGKILL)
        os.waitid(os.P_PID, first, os.WEXITED | os.WNOWAIT)  # noqa: ASYNC222 - it takes no time
        return first != await process_step(process)

    assert results(run(computes, [{"n": 0}], models=nobody(), journal=False)) == {0: True}


class Odd:
    """Raises when it is pickled, or when it is read again."""

    def __init__(self, sent: bool) -> None:
        self.sent = sent

    def __reduce__(self) -> Any:
        if self.sent:
            return refuse, ()
        raise LookupError("not to be sent")


def refuse() -> None:
    raise EOFError("not to be read")


def odd(sent: bool) -> Odd:
    return Odd(sent)


def generator() -> Any:
    return (n for n in range(3))


class Picky(StepFailed):
    """Cannot be made again from its arguments."""

    def __init__(self, *, needed: int) -> None:
        super().__init__("picky", f"needs {needed}")


def raise_picky() -> None:
    raise Picky(needed=1)


def raise_with_a_lock() -> None:
    raise StepFailed("locked", "its detail cannot be sent", {"lock": threading.Lock()})


@pytest.mark.parametrize(
    ("function", "args", "kind", "text"),
    [
        (generator, (), "value", "cannot leave its process: TypeError: cannot pickle 'generator' object"),
        (odd, (False,), "value", "cannot leave its process: LookupError: not to be sent"),
        (odd, (True,), "EOFError", "not to be read"),
        (raise_with_a_lock, (), "value", "cannot leave its process"),
        (raise_picky, (), "picky", "needs 1"),
        (lambda: 1, (), "PicklingError", "lambda"),
    ],
)
def test_what_cannot_leave_its_process_fails_its_step_and_no_more(
    tmp_path: Path, function: Any, args: Any, kind: str, text: str
):
    @workflow
    async def computes(row: Any) -> Any:
        before = await process_step(process)
        with pytest.raises(StepFailed) as caught:
            await process_step(function, *args)
        return (
            caught.value.kind,
            caught.value.text,
            before
            == await process_step(
                process,
            ),
        )

    (task,) = run(computes, [{"n": 0}], models=nobody(), directory=tmp_path / "run")
    assert (task.result[0], task.result[2]) == (kind, True) and text in task.result[1], task
    assert sum(reader_outcomes(tmp_path / "run", "failure")) == 1
    again = resume(tmp_path / "run", workflow=computes, rows=[{"n": 0}], models=nobody())
    assert list(again) == []


def reader_outcomes(directory: Path, outcome: str) -> list[bool]:
    return [getattr(event, "outcome", "") == outcome for event in JournalReader(directory).events()]


if __name__ == "__main__":
    chosen = run(
        {"spins": spins, "gives_up": gives_up}[sys.argv[1]], [{"n": 0}], models=nobody(), journal=False, grace=0.2
    )
    threading.Timer(1.0, chosen.stop).start()
    print(chosen.wait().state)
