"""How long the event loop is held while a run goes on: how late a ticker comes, beside how late in an idle loop.

Late by the clock, and late by the CPU that the loop's thread used meanwhile, less a tick. The second is what we do;
the first is also what other processes do to us, and a busy loop suffers from them where an idle one does not notice.
Two kinds of load, durable, at 1,000 and 20,000 rows in flight: an engine that answers at once, so that the loop never
rests and all slices of work are full; and a simulated server with a place for each call.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import report
import workloads

from weaverant import run

TICK = 0.01
GOAL_MS = 30.0


class Late(NamedTuple):
    """Milliseconds of one tick."""

    clock: float
    cpu: float


async def ticker(lateness: list[Late]) -> None:
    while True:
        clock, cpu = time.perf_counter(), time.thread_time()
        await asyncio.sleep(TICK)
        clock, cpu = time.perf_counter() - clock, time.thread_time() - cpu
        lateness.append(Late(1e3 * (clock - TICK), max(0.0, 1e3 * (cpu - TICK))))


async def beside(made) -> list[Late]:
    """The lateness while the run goes on, from its first event to its last."""
    lateness: list[Late] = []
    ticking = asyncio.create_task(ticker(lateness))
    async for _ in made:
        pass
    ticking.cancel()
    return lateness


async def idle(seconds: float) -> list[Late]:
    lateness: list[Late] = []
    ticking = asyncio.create_task(ticker(lateness))
    await asyncio.sleep(seconds)
    ticking.cancel()
    return lateness


def weave(models, tasks: int, in_flight: int) -> list[Late]:
    rows = [{"question": workloads.SHORT_QUESTIONS[i % 512]} for i in range(tasks)]
    with tempfile.TemporaryDirectory() as folder:
        made = run(
            workloads.w2, rows, models=models, directory=Path(folder) / "run", concurrency=in_flight,
            in_flight=in_flight,
        )  # fmt: skip
        lateness = asyncio.run(beside(made))
    assert made.state == "finished" and made.ledger.stages[0].done == tasks, made.error
    return lateness


def percentile(values: Iterable[float], share: float) -> float:
    found = sorted(values)
    return found[min(len(found) - 1, int(share * len(found)))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=10_000)
    tasks = parser.parse_args().tasks
    measured = {"idle loop": asyncio.run(idle(3.0))}
    for in_flight in (1_000, 20_000):
        size = max(tasks, in_flight)
        measured[f"answers at once, {in_flight:,}"] = weave(workloads.Dummy(), size, in_flight)
        slots = f"simulated:latency=0.2,slots={in_flight},tokens=40"
        measured[f"simulated, {in_flight:,}"] = weave(slots, size, in_flight)
    lines, rows = [], []
    for name, lateness in measured.items():
        cpu, clock = [late.cpu for late in lateness], [late.clock for late in lateness]
        lines.append([name, percentile(cpu, 0.5), percentile(cpu, 0.99), max(cpu), percentile(clock, 0.99)])
        above = percentile(cpu, 0.99) - lines[0][2]
        if name != "idle loop":
            rows.append(report.row(f"{name}: p99 above idle (ms)", above, f"< {GOAL_MS:g}", above < GOAL_MS))
    report.table(["rows in flight", "late by CPU ms, median", "p99", "most", "late by the clock, p99"], lines)
    report.finish("bench-stall", rows)


if __name__ == "__main__":
    main()
