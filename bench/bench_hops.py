"""Hops per CPU-second of one process on W1 and W2: durable, without a journal, and as bare asyncio.

W2 also with the collector's thresholds as Python has them, which a run raises, as a lean runtime does it that has no
more than a hop cannot be resumed and accounted for without (`lean.py`), and as the least that is durable (`least.py`).
CPU is that of the whole process, threads included. Figures are compared within one run: machines are noisy.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import tempfile
import time
from pathlib import Path

import lean
import least
import report
import workloads

from weaverant import run, session
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
            directory=Path(folder) / "run" if journal else None,
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
    raised, session.Collector = session.Collector, Untouched
    try:
        return weave("w2", tasks, in_flight, journal=True)
    finally:
        session.Collector = raised


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


def leanly(workload: str, tasks: int, in_flight: int, journal: bool = True) -> Measured:
    """In the lean runtime."""
    questions = workloads.QUESTIONS if workload == "w1" else workloads.SHORT_QUESTIONS
    rows = [{"question": questions[i % 512]} for i in range(tasks)]
    return lean.weave(getattr(lean, workload), rows, in_flight, journal)


def goal(name: str, rate: float, least: int | None) -> dict:
    wanted = None if least is None else f">= {least}"
    return report.row(f"{name} hops per CPU-second", rate, wanted, None if least is None else rate >= least)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=10_000)
    tasks = parser.parse_args().tasks
    lines, rows = [], []
    size = max(tasks, 1_000)
    weave("typed", size // 4, 1_000, journal=True)  # what is read and compiled once
    for kind, (hops, cpu, wall), least_wanted in (
        ("durable", weave("typed", size, 1_000, journal=True), 28_000),
        ("lean runtime", leanly("typed", size, 1_000), None),
    ):
        name = f"w2 with templates and validation, {kind}"
        lines.append([name, "1,000", hops / cpu, 1e6 * cpu / hops, hops / wall])
        rows.append(goal(f"w2/templates and validation, {kind}/1000", hops / cpu, least_wanted))
    for workload in ("w1", "w2"):
        for in_flight in (1_000, 20_000):
            size = max(tasks, in_flight)
            measured = {
                "durable": weave(workload, size, in_flight, journal=True),
                "no journal": weave(workload, size, in_flight, journal=False),
                "lean runtime, durable": leanly(workload, size, in_flight),
                "lean runtime, no journal": leanly(workload, size, in_flight, journal=False),
                "bare asyncio": bare(workload, size, in_flight),
            }
            if workload == "w2":
                measured["durable, default collector"] = default_collector(size, in_flight)
                measured["the least that is durable"] = least.weave(size, in_flight)
            rate = {kind: hops / cpu for kind, (hops, cpu, _) in measured.items()}
            for kind, (hops, cpu, wall) in measured.items():
                lines.append([f"{workload} {kind}", f"{in_flight:,}", hops / cpu, 1e6 * cpu / hops, hops / wall])
                rows.append(goal(f"{workload}/{kind}/{in_flight}", rate[kind], GOALS.get((kind, in_flight))))
            for kind in ("bare asyncio", "the least that is durable", "lean runtime, durable"):
                if kind in rate:
                    ratio = rate["durable"] / rate[kind]
                    rows.append(report.row(f"{workload}/{in_flight} durable over {kind}", ratio))
            ratio = rate["no journal"] / rate["lean runtime, no journal"]
            rows.append(report.row(f"{workload}/{in_flight} no journal over lean runtime, no journal", ratio))
    report.table(["workload", "in flight", "hops/CPU-s", "us/hop", "hops/s wall"], lines)
    print("Matrix (2 cores, whole process tree): W1 110-221 hops/s at 8.3-16 ms/hop, W2 210-312 at 4.9-8.0 (see docs)")
    report.finish("bench-hops", rows)


if __name__ == "__main__":
    main()
