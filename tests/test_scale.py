"""Memory stays bounded: a million rows stream through one process, and 20,000 rows wait at once."""

import asyncio
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from weaverant import Agent, run, workflow
from weaverant.engines.scripted import Scripted
from weaverant.engines.simulated import Simulated

draft = Agent("draft", prompt="Draft: {{ text }}")
check = Agent("check", prompt="Check: {{ draft }}")
final = Agent("final", prompt="Finish: {{ draft }} with {{ verdict }}")


@workflow
async def three_steps(row):
    text = await draft(text=row["text"])
    verdict = await check(draft=text)
    return {"text": await final(draft=text, verdict=verdict)}


@workflow
async def one_step(row):
    return {"text": await draft(text=row["text"])}


class Counting:
    """A source of any number of rows that holds none of them."""

    name = "counting"
    rereadable = True

    def __init__(self, size: int) -> None:
        self.size = size

    def rows(self, start: int) -> Iterator[dict]:
        return ({"text": f"row number {index}"} for index in range(start, self.size))

    def identity(self) -> None:
        return None

    def count(self) -> int:
        return self.size


def resident_mb() -> float:
    """Megabytes in memory now (not the peak)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def weave(size: int, marks: set[int], directory: Path) -> dict[int, float]:
    made = run(
        three_steps, Counting(size), models=Scripted(lambda request: f"reply {request.seed}"), directory=directory
    )
    seen: dict[int, float] = {}

    async def main() -> None:
        ended = 0
        async for _ in made:
            ended += 1
            if ended in marks:
                seen[ended] = resident_mb()

    asyncio.run(main())
    counts = made.ledger.stages[0]
    assert (made.state, counts.rows, counts.done, counts.left) == ("finished", size, size, 0)
    return seen


def test_memory_does_not_grow_with_rows(tmp_path: Path):
    seen = weave(20_000, {5_000, 20_000}, tmp_path / "run")
    assert seen[20_000] - seen[5_000] < 15


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_million_rows(tmp_path: Path):
    seen = weave(1_000_000, {100_000, 1_000_000}, tmp_path / "run")
    growth = seen[1_000_000] - seen[100_000]
    print(f"resident: {seen[100_000]:.0f} MB at 100,000 rows, {seen[1_000_000]:.0f} MB at 1,000,000")
    assert growth < 50


def test_twenty_thousand_rows_wait_at_once(tmp_path: Path):
    """Every row's call is in flight at the simulated server at the same time."""
    size = 20_000
    engine = Simulated(latency=12.0, slots=size, tokens=8, jitter=0.0)
    made = run(one_step, Counting(size), models=engine, directory=tmp_path / "run", concurrency=size, in_flight=size)
    most = 0

    async def main() -> None:
        nonlocal most

        async def watch() -> None:
            nonlocal most
            while True:
                most = max(most, made.in_flight[1])
                await asyncio.sleep(0.02)

        watcher = asyncio.create_task(watch())
        async for _ in made:
            pass
        watcher.cancel()

    asyncio.run(main())
    assert made.ledger.stages[0].done == size
    assert most == size
