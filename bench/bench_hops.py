"""Hops per CPU-second of one process on W1 and W2: durable, without a journal, and as bare asyncio.

W2 also with the collector's thresholds as Python has them, which a run raises, and as the least that a durable hop can
be (`least.py`). CPU is that of the whole process, threads included. Figures are compared within one run: machines are
noisy.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import tempfile
import time
from pathlib import Path

import least
import report
import workloads

from weaverant import launch, run
from weaverant.runtime.collector import Collector

GOALS = {("durable", 1_000): 40_000, ("durable", 20_000): 30_000} | {("no journal", n): 50_000 for n in (1_000, 20_000)}
"""Hops per CPU-second."""

Measured = tuple[int, float, float]
"""Hops, CPU seconds, wall seconds."""


def weave(workload: str, tasks: int, in_flight: int, journal: bool) -> Measured:
    questions = workloads.QUESTIONS if workload == "w1" else workloads.SHORT_QUESTIONS
    rows = [{"question": questions[i % 512]} for i in range(tasks)]
    with tempfile.TemporaryDirectory() as folder:
        made = run(
            getattr(workloads, workload),
            rows,
            models=workloads.Dummy(),
            directory=Path(folder) / "run",
            journal=journal,
            concurrency=in_flight,
            in_flight=in_flight,
        )
        cpu, wall = time.process_time(), time.perf_counter()
        asyncio.run(_drain(made))
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    assert made.state == "finished" and made.ledger.stages[0].done == tasks, made.error
    return made.ledger.calls, cpu, wall


async def _drain(made) -> None:
    async for _ in made:
        pass


class Untouched(Collector):
    """The collector as Python has it."""

    def __init__(self, rows: int) -> None:
        pass

    def rows(self, rows: int) -> None:
        pass

    def over(self) -> None:
        pass


def default_collector(tasks: int, in_flight: int) -> Measured:
    """W2, durable, with Python's own thresholds."""
    raised, launch.Collector = launch.Collector, Untouched
    try:
        return weave("w2", tasks, in_flight, journal=True)
    finally:
        launch.Collector = raised


def bare(workload: str, tasks: int, in_flight: int) -> Measured:
    flow = workloads.bare_w1 if workload == "w1" else workloads.bare_w2
    questions = workloads.QUESTIONS if workload == "w1" else workloads.SHORT_QUESTIONS

    async def say(role: str, seed: int, round_: int):
        await asyncio.sleep(0)
        return workloads.answer(role, seed, round_)

    async def main() -> int:
        slots = asyncio.Semaphore(in_flight)

        async def one(i: int) -> int:
            async with slots:
                return (await flow(say, questions[i % 512], random.Random(i)))[1]

        return sum(await asyncio.gather(*(one(i) for i in range(tasks))))

    cpu, wall = time.process_time(), time.perf_counter()
    hops = asyncio.run(main())
    return hops, time.process_time() - cpu, time.perf_counter() - wall


def goal(name: str, rate: float, least: int | None) -> dict:
    wanted = None if least is None else f">= {least}"
    return report.row(f"{name} hops per CPU-second", rate, wanted, None if least is None else rate >= least)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=10_000)
    tasks = parser.parse_args().tasks
    lines, rows = [], []
    size = max(tasks, 1_000)
    hops, cpu, wall = weave("typed", size, 1_000, journal=True)
    lines.append(["w2 with templates and validation, durable", "1,000", hops / cpu, 1e6 * cpu / hops, hops / wall])
    rows.append(goal("w2/templates and validation, durable/1000", hops / cpu, 28_000))
    for workload in ("w1", "w2"):
        for in_flight in (1_000, 20_000):
            size = max(tasks, in_flight)
            measured = {
                "durable": weave(workload, size, in_flight, journal=True),
                "no journal": weave(workload, size, in_flight, journal=False),
                "bare asyncio": bare(workload, size, in_flight),
            }
            if workload == "w2":
                measured["durable, default collector"] = default_collector(size, in_flight)
                measured["the least that is durable"] = least.weave(size, in_flight)
            rate = {kind: hops / cpu for kind, (hops, cpu, _) in measured.items()}
            for kind, (hops, cpu, wall) in measured.items():
                lines.append([f"{workload} {kind}", f"{in_flight:,}", hops / cpu, 1e6 * cpu / hops, hops / wall])
                rows.append(goal(f"{workload}/{kind}/{in_flight}", rate[kind], GOALS.get((kind, in_flight))))
            ratio = rate["durable"] / rate["bare asyncio"]
            rows.append(report.row(f"{workload}/{in_flight} durable over bare asyncio", ratio))
            if workload == "w2":
                ratio = rate["durable"] / rate["the least that is durable"]
                rows.append(report.row(f"w2/{in_flight} durable over the least that is durable", ratio))
    report.table(["workload", "in flight", "hops/CPU-s", "us/hop", "hops/s wall"], lines)
    print("Matrix (2 cores, whole process tree): W1 110-221 hops/s at 8.3-16 ms/hop, W2 210-312 at 4.9-8.0 (see docs)")
    report.finish("bench-hops", rows)


if __name__ == "__main__":
    main()
