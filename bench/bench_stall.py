"""How long the event loop is held while a run goes on: how late a ticker comes, beside how late in an idle loop.

Late by the CPU that the loop's thread used meanwhile, less a tick: that is what we do. Late by the clock is also what
other processes do to us, and a busy loop suffers from them where an idle one does not notice: the last column says how
long the thread was ready and had no processor (Linux counts it). The collector's longest walk is part of the lateness.
Two kinds of load, durable, at 1,000 and 20,000 rows in flight: an engine that answers at once, so that the loop never
rests and all slices of work are full; and a simulated server with a place for each call. And 4,000 calls in flight over
HTTP, where asyncio itself reads all answers of a moment in one go.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import bench_client
import report
import workloads

from weaverant import run

TICK = 0.01
GOAL_MS = 30.0
IDLE, HTTP = "idle loop", "4,000 over HTTP"


SCHEDULED = Path("/proc/thread-self/schedstat")


class Late(NamedTuple):
    """Milliseconds of one tick."""

    clock: float
    cpu: float
    kept: float
    """Ready to run, without a processor."""


class Measured(NamedTuple):
    late: list[Late]
    walk: float
    """The collector's longest, in milliseconds of CPU."""


def kept() -> float:
    """Seconds that this thread was ready and had no processor, so far; 0 where nobody counts them."""
    return int(SCHEDULED.read_text().split()[1]) / 1e9 if SCHEDULED.exists() else 0.0


async def ticker(lateness: list[Late]) -> None:
    while True:
        clock, cpu, away = time.perf_counter(), time.thread_time(), kept()
        await asyncio.sleep(TICK)
        clock, cpu, away = time.perf_counter() - clock, time.thread_time() - cpu, kept() - away
        lateness.append(Late(1e3 * (clock - TICK), max(0.0, 1e3 * (cpu - TICK)), 1e3 * away))


@contextmanager
def walks() -> Iterator[list[float]]:
    """How long each walk of the collector took, in milliseconds of CPU."""
    taken, begun = [0.0], [0.0]

    def note(phase: str, _: dict[str, int]) -> None:
        if phase == "start":
            begun[0] = time.thread_time()
        else:
            taken.append(1e3 * (time.thread_time() - begun[0]))

    gc.callbacks.append(note)
    try:
        yield taken
    finally:
        gc.callbacks.remove(note)


async def beside(made) -> Measured:
    """What the ticker says while the run goes on, from its first event to its last."""
    lateness: list[Late] = []
    ticking = asyncio.create_task(ticker(lateness))
    with walks() as taken:
        async for _ in made:
            pass
    ticking.cancel()
    return Measured(lateness, max(taken))


async def idle(seconds: float) -> Measured:
    lateness: list[Late] = []
    ticking = asyncio.create_task(ticker(lateness))
    await asyncio.sleep(seconds)
    ticking.cancel()
    return Measured(lateness, 0.0)


def weave(workflow: Any, rows: list[dict[str, Any]], models: Any, in_flight: int) -> Measured:
    with tempfile.TemporaryDirectory() as folder:
        made = run(
            workflow, rows, models=models, directory=Path(folder) / "run", concurrency=in_flight, in_flight=in_flight
        )
        measured = asyncio.run(beside(made))
    assert made.state == "finished" and made.ledger.stages[0].done == len(rows), made.error
    return measured


def over_http(in_flight: int) -> Measured:
    """Ten rounds of answers that take a second, 4 kB asked and 1.6 kB said."""
    rows = [{"text": "x" * 4_000, "turns": 10} for _ in range(in_flight)]
    with bench_client.server(1.0) as url:
        address = f"{url}/v1?client=fast&connections={in_flight}&start={in_flight}#light"
        return weave(bench_client.talk, rows, address, in_flight)


def questions(pool: list[str], count: int) -> list[dict[str, Any]]:
    return [{"question": pool[i % 512]} for i in range(count)]


def percentile(values: Iterable[float], share: float) -> float:
    found = sorted(values)
    return found[min(len(found) - 1, int(share * len(found)))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=10_000)
    tasks = parser.parse_args().tasks
    measured = {IDLE: asyncio.run(idle(3.0))}
    for in_flight in (1_000, 20_000):
        rows = questions(workloads.SHORT_QUESTIONS, max(tasks, in_flight))
        measured[f"W2, answers at once, {in_flight:,}"] = weave(workloads.w2, rows, workloads.Dummy(), in_flight)
        slots = f"simulated:latency=0.2,slots={in_flight},tokens=40"
        measured[f"W2, simulated, {in_flight:,}"] = weave(workloads.w2, rows, slots, in_flight)
    rows = questions(workloads.QUESTIONS, 20_000)
    measured["W1, answers at once, 20,000"] = weave(workloads.w1, rows, workloads.Dummy(), 20_000)
    measured[HTTP] = over_http(4_000)
    tell(measured)


def tell(measured: dict[str, Measured]) -> None:
    lines, rows = [], []
    for name, (lateness, walk) in measured.items():
        clock, cpu, away = ([late[i] for late in lateness] for i in range(3))
        numbers = [percentile(cpu, 0.5), percentile(cpu, 0.99), max(cpu), walk]
        lines.append([name, *numbers, percentile(clock, 0.99), percentile(away, 0.99)])
        above = percentile(cpu, 0.99) - lines[0][2]
        if name != IDLE:
            goal, met = (None, None) if name == HTTP else (f"< {GOAL_MS:g}", above < GOAL_MS)
            rows.append(report.row(f"{name}: p99 above idle (ms)", above, goal, met))
            rows.append(report.row(f"{name}: longest walk of the collector (ms)", walk))
    head = ["rows in flight", "late by CPU ms, median", "p99", "most", "collector", "late by the clock, p99"]
    report.table([*head, "without a processor, p99"], lines)
    report.finish("bench-stall", rows)


if __name__ == "__main__":
    main()
