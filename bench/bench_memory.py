"""Memory of rows that wait for a model: 100,000 of them in one process, each in its first call of a simulated server.

Everything is counted that the process grows by: the row (200 characters), its workflow, its call, the journal's index.
Each size has a process of its own, because memory that was once taken is seldom given back.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import report
import workloads

from weaverant import Agent, run, workflow

GOAL_BYTES = 12_000
SIZES = (10_000, 100_000)

agent = Agent("agent", system="You are brief.", prompt="Answer the question.\n\n{{ question }}")


@workflow
async def once(row):
    return {"answer": await agent(question=row["question"])}


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def settled(path: Path) -> list[int]:
    return [part.stat().st_size for part in (path / "journal").iterdir()]


async def wait_for(going, tasks: int) -> dict[str, float]:
    async def drain() -> None:
        async for _ in going:
            pass

    before, cpu = resident(), time.process_time()
    draining = asyncio.create_task(drain())
    sizes: list[int] = []
    while going.in_flight[1] < tasks or sizes != settled(going.directory):
        sizes = settled(going.directory) if going.in_flight[1] else []
        await asyncio.sleep(0.2)
    measured = {"bytes": (resident() - before) / tasks, "cpu": (time.process_time() - cpu) / tasks}
    going.leave()
    await draining
    return measured


def measure(tasks: int) -> dict[str, float]:
    rows = ({"question": f"{i} {workloads.SHORT_QUESTIONS[i % 512]}"} for i in range(tasks))
    with tempfile.TemporaryDirectory() as folder:
        going = run(
            once, rows, models="simulated:latency=100000,slots=1000000", directory=Path(folder) / "run",
            concurrency=tasks, in_flight=tasks,
        )  # fmt: skip
        return asyncio.run(wait_for(going, tasks))


def apart(tasks: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--tasks", str(tasks)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, help="print the measurement of one size, in this process")
    tasks = parser.parse_args().tasks
    if tasks is not None:
        print(json.dumps(measure(tasks)))
        return
    lines, rows = [], []
    for size in SIZES:
        found = apart(size)
        lines.append([f"{size:,}", f"{found['bytes']:,.0f}", f"{1e6 * found['cpu']:,.0f}"])
        goal = (f"<= {GOAL_BYTES:,}", found["bytes"] <= GOAL_BYTES) if size == SIZES[-1] else (None, None)
        rows.append(report.row(f"{size:,} rows waiting, resident bytes each", found["bytes"], *goal))
    report.table(["rows waiting", "bytes each", "us of CPU to start one"], lines)
    report.finish("bench-memory", rows)


if __name__ == "__main__":
    main()
