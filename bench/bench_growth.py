"""CPU of a call while one run grows: flat, or does something cost more the more rows there have been?

Two short hops a row, durable, 1,000 rows in flight, an engine that answers at once. `--rows 1000000` is the long form.
The CPU is taken 500 rows at a time, and of these parts the lower quartile from mark to mark. Other work on the machine
makes a call dearer for minutes, so the run takes turns with young ones of 10,000 rows, and what a call takes is what it
takes beside those.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import report
import workloads

from weaverant import run, workflow
from weaverant.message import user

MARKS = (1_000, 3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000)
IN_FLIGHT = 1_000
PART = 500
"""Rows."""
YOUNG = 10_000
"""Rows of a young run."""
TURNS = 50
"""Young runs; fewer where they would come more often than every `LEAST` rows."""
LEAST = 5_000
GOAL = 0.10


@workflow
async def two_hops(row):
    said = (await workloads.left.reply(history=(user(row["question"]),))).message
    return {"said": (await workloads.right.reply(history=(said,))).message.content}


class Rows:
    """Made as they are read, as from a file."""

    name, rereadable = "rows", True

    def __init__(self, count: int) -> None:
        self._count = count

    def rows(self, start: int) -> Iterator[dict[str, str]]:
        return ({"question": f"{i} {workloads.SHORT_QUESTIONS[i % 512]}"} for i in range(start, self._count))

    def identity(self) -> str:
        return str(self._count)

    def count(self) -> int:
        return self._count


class Part(NamedTuple):
    """Up to so many `rows`: CPU seconds of a call, and resident bytes at the end."""

    rows: int
    cpu: float
    memory: int


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def tell_parts(made) -> None:
    calls, cpu, ended = 0, time.process_time(), 0
    async for _ in made:
        ended += 1
        if ended % PART == 0 and (now := made.ledger.calls) > calls:
            used = time.process_time()
            print(ended, (used - cpu) / (now - calls), resident(), flush=True)
            calls, cpu = now, used


def weave(rows: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        made = run(
            two_hops, Rows(rows), models=workloads.Dummy(), directory=Path(folder) / "run",
            concurrency=IN_FLIGHT, in_flight=IN_FLIGHT,
        )  # fmt: skip
        asyncio.run(tell_parts(made))
    assert made.state == "finished" and made.ledger.stages[0].done == rows, made.error


def begin(rows: int) -> subprocess.Popen[str]:
    """A run in a process of its own."""
    return subprocess.Popen([sys.executable, __file__, "--weave", str(rows)], stdout=subprocess.PIPE, text=True)


def parts(process: subprocess.Popen[str]) -> Iterator[Part]:
    """Those after the run's start, as they come."""
    with process:
        for line in process.stdout:
            ended, cpu, memory = line.split()
            if int(ended) > MARKS[0]:
                yield Part(int(ended), float(cpu), int(memory))
    assert process.returncode == 0


def in_turns(rows: int) -> tuple[list[Part], list[tuple[int, list[Part]]]]:
    """The parts of the long run; and those of the young runs, each with how far the long one was. It stands still
    while a young one goes."""
    old, young, due = [], [], LEAST
    process = begin(rows)
    for part in parts(process):
        old.append(part)
        if part.rows >= due:
            process.send_signal(signal.SIGSTOP)
            try:
                young.append((part.rows, [each for each in parts(begin(YOUNG + IN_FLIGHT)) if each.rows <= YOUNG]))
            finally:
                process.send_signal(signal.SIGCONT)
            due += max(LEAST, rows // TURNS)
    return old, young


def cost(found: list[Part]) -> float:
    costs = sorted(part.cpu for part in found)
    return costs[len(costs) // 4]


def marks(old: list[Part], young: list[tuple[int, list[Part]]], rows: int) -> Iterator[tuple[Part, float]]:
    """From each mark to the next: the part, and its CPU over that of the young runs in turns with it. The first marks
    are in the young runs, too, and taken from them: there are many."""
    every = [part for _, found in young for part in found]
    for start, end in pairwise(sorted({*(mark for mark in MARKS if mark < rows), rows})):
        between = [part for part in old if start < part.rows <= end]
        beside = [part for at, found in young if start <= at <= end for part in found] or every
        if end <= YOUNG:
            cpu, beside = cost([part for part in every if start < part.rows <= end]), every
        else:
            cpu = cost(between)
        yield Part(end, cpu, between[-1].memory), cpu / cost(beside)


def svg(points: list[tuple[int, float]]) -> str:
    """CPU of a call, relative, over rows on a logarithmic axis."""

    def x(rows: int) -> float:
        return 60 + 500 * (math.log10(rows) - 3) / 3

    def y(ratio: float) -> float:
        return 220 - 130 * ratio

    def text(at_x: float, at_y: float, words: str, anchor: str = "middle") -> str:
        return f'<text x="{at_x:.0f}" y="{at_y:.0f}" text-anchor="{anchor}">{words}</text>'

    line = " ".join(f"{x(rows):.1f},{y(ratio):.1f}" for rows, ratio in points)
    return "\n".join((
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 620 260" font-family="sans-serif" font-size="12">',
        '<rect width="620" height="260" fill="white"/>',
        f'<rect x="60" y="{y(1 + GOAL):.0f}" width="500" height="{y(1 - GOAL) - y(1 + GOAL):.0f}" fill="#e4eee4"/>',
        f'<polyline points="{line}" fill="none" stroke="#205080" stroke-width="2"/>',
        *(f'<circle cx="{x(rows):.1f}" cy="{y(ratio):.1f}" r="3" fill="#205080"/>' for rows, ratio in points),
        *(text(x(rows), 240, f"{rows:,}") for rows, _ in points),
        *(text(52, y(ratio) + 4, f"{ratio:g}", "end") for ratio in (0, 0.5, 1, 1.5)),
        text(310, 16, "CPU of a call up to so many rows, over the mean; the band is 10 % to either side"),
        "</svg>\n",
    ))  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--figure", type=Path, default=report.RESULTS / "growth.svg")
    parser.add_argument("--weave", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.weave:
        weave(options.weave)
        return
    if options.rows < 2 * YOUNG:
        parser.error(f"--rows: expected {2 * YOUNG:,} or more, found {options.rows:,}")
    found = list(marks(*in_turns(options.rows), options.rows))
    mean = fmean(ratio for _, ratio in found)
    points = [(part.rows, ratio / mean) for part, ratio in found]
    lines = [
        [f"{part.rows:,}", 1e6 * part.cpu, f"{ratio:.2f}", f"{ratio / mean:.2f}", part.memory / 2**20]
        for part, ratio in found
    ]
    report.table(["up to rows", "us of CPU a call", "over young runs'", "over the mean", "MiB resident"], lines)
    options.figure.parent.mkdir(exist_ok=True)
    options.figure.write_text(svg(points))
    worst = max((ratio for _, ratio in points), key=lambda ratio: abs(ratio - 1))
    name = f"CPU of a call up to {options.rows:,} rows, farthest from the mean"
    rows = [report.row(name, worst, f"1 +- {GOAL:g}", abs(worst - 1) <= GOAL)]
    rows += [report.row(f"CPU of a call up to {mark:,} rows, over the mean", ratio) for mark, ratio in points]
    report.finish("bench-growth", rows)


if __name__ == "__main__":
    main()
