"""Thousands of answers in one moment: whatever else runs on the event loop gets its turn, and no answer is lost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from weaverant import Agent, Reply, Request, Run, StepFailed, resume, run, workflow
from weaverant.message import Usage, assistant
from weaverant.protocols import CallContext

say = Agent("say", prompt="{{ text }}")


class Dam:
    """An engine that answers when `calls` wait, all at once; those whose prompt begins with "late" after the others."""

    identity = "dam"

    def __init__(self, calls: int, burst: Callable[[], None] = lambda: None) -> None:
        self.asked = 0
        self._calls = calls
        self._burst = burst
        self._waiting: list[tuple[bool, asyncio.Future[None]]] = []

    async def generate(self, request: Request, ctx: CallContext) -> Reply:
        self.asked += 1
        come = asyncio.get_running_loop().create_future()
        self._waiting.append((request.messages[0].text.startswith("late"), come))
        if self.asked == self._calls:
            asyncio.get_running_loop().call_soon(self._break)
        await come
        if "fail" in request.messages[0].text:
            raise StepFailed("server", "down")
        return Reply(assistant("word " * 200), Usage(1, 1), "dam")

    def _break(self) -> None:
        for _, come in sorted(self._waiting, key=lambda waiting: waiting[0]):
            if not come.done():
                come.set_result(None)
        self._burst()

    async def close(self) -> None:
        pass


@workflow
async def once(row: Any) -> Any:
    return await say(text=str(row["n"]))


def rows(count: int) -> list[dict[str, int]]:
    return [{"n": n} for n in range(count)]


async def drained(made: Run) -> int:
    return sum([task.state == "done" async for task in made])


def test_a_burst_of_answers_does_not_hold_what_runs_beside(tmp_path: Path):
    """By CPU seconds, which no other process can use up: what waits for its turn waits for a part of all the work."""
    held: list[float] = []

    async def beside() -> None:
        while True:
            before = time.thread_time()
            await asyncio.sleep(0)
            held.append(time.thread_time() - before)

    async def main() -> tuple[int, float]:
        probe = asyncio.create_task(beside())
        begun = time.thread_time()
        size = 20_000
        made = run(once, rows(size), models=Dam(size), directory=tmp_path / "run", concurrency=size, in_flight=size)
        done = await drained(made)
        probe.cancel()
        return done, time.thread_time() - begun

    done, total = asyncio.run(main())
    assert done == 20_000
    assert max(held) < total / 12, f"held {max(held):.3f} of {total:.3f} CPU seconds"


@pytest.mark.parametrize("turns", [0, 1, 3, 10])
def test_a_run_that_is_stopped_in_a_burst_has_recorded_every_answer(tmp_path: Path, turns: int):
    """Not one of them is asked for again when the run is resumed."""
    made: Run

    def stop_soon(left: int = turns) -> None:
        if left:
            asyncio.get_running_loop().call_soon(stop_soon, left - 1)
        else:
            made.stop()
            made.stop()  # and wait no longer

    dam = Dam(2_000, stop_soon)
    made = run(once, rows(2_000), models=dam, directory=tmp_path / "run", concurrency=2_000, in_flight=2_000)
    first = asyncio.run(drained(made))
    assert made.state == "interrupted" and dam.asked == 2_000
    again = Dam(0)
    rest = resume(tmp_path / "run", workflow=once, rows=rows(2_000), models=again)
    assert first + asyncio.run(drained(rest)) == 2_000
    assert again.asked == 0


@pytest.mark.parametrize("reason", ["cancels", "fails"])
def test_an_answer_that_has_come_is_recorded_although_nobody_waits_for_it_any_more(reason: str):
    """The late answers of the burst have come when the workflows let go of them: they were given, and are counted."""

    @workflow
    async def lets_go(row: Any) -> str:
        late = asyncio.create_task(say(text=f"late {row['n']}"))
        await say(text=f"{row['n']} {'' if reason == 'cancels' else 'fail'}")
        late.cancel()
        return "done"

    size = 1_000
    dam = Dam(2 * size)
    made = run(lets_go, rows(size), models=dam, journal=False, concurrency=2 * size, in_flight=size, max_failures=1)
    done = asyncio.run(drained(made))
    assert done == (size if reason == "cancels" else 0)
    assert made.ledger.usage().completion_tokens == (2 * size if reason == "cancels" else size)
    assert dam.asked == 2 * size
