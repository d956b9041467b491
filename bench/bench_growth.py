"""CPU of a call while one run grows: flat, or does something cost more the more rows there have been?

Two short hops a row, durable, 1,000 rows in flight, an engine that answers at once. `--rows 1000000` is the long form.
The CPU is taken 500 rows at a time, and of these parts the lower quartile from mark to mark: other work on the machine
makes a call dearer for a while, never cheaper. The first marks have few parts, so short runs add theirs.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import os
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
SHORT, SHORT_RUNS = 10_000, 5
"""Rows of a short run that count, and how many there are before the long one."""
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


async def parts(made) -> list[Part]:
    found: list[Part] = []
    calls, cpu, ended = 0, time.process_time(), 0
    async for _ in made:
        ended += 1
        if ended % PART == 0 and (now := made.ledger.calls) > calls:
            used = time.process_time()
            found.append(Part(ended, (used - cpu) / (now - calls), resident()))
            calls, cpu = now, used
    return found


def weave(rows: int) -> list[Part]:
    with tempfile.TemporaryDirectory() as folder:
        made = run(
            two_hops, Rows(rows), models=workloads.Dummy(), directory=Path(folder) / "run",
            concurrency=IN_FLIGHT, in_flight=IN_FLIGHT,
        )  # fmt: skip
        found = asyncio.run(parts(made))
    assert made.state == "finished" and made.ledger.stages[0].done == rows, made.error
    return found


def marks(found: list[Part], rows: int) -> list[Part]:
    """From each mark to the next."""
    joined: list[Part] = []
    for start, end in pairwise(sorted({*(mark for mark in MARKS if mark < rows), rows})):
        between = [part for part in found if start < part.rows <= end]
        costs = sorted(part.cpu for part in between)
        joined.append(Part(end, costs[len(costs) // 4], between[-1].memory))
    return joined


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
        text(310, 16, "CPU of a call up to so many rows, over the mean of the run; the band is 10 % to either side"),
        "</svg>\n",
    ))  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--figure", type=Path, default=report.RESULTS / "growth.svg")
    options = parser.parse_args()
    short = [weave(SHORT + IN_FLIGHT) for _ in range(SHORT_RUNS)]
    beginnings = [part for run_parts in short for part in run_parts if part.rows <= SHORT]
    found = marks([*beginnings, *weave(options.rows)], options.rows)
    mean = fmean(part.cpu for part in found)
    points = [(part.rows, part.cpu / mean) for part in found]
    lines = [[f"{part.rows:,}", 1e6 * part.cpu, f"{part.cpu / mean:.2f}", part.memory / 2**20] for part in found]
    report.table(["up to rows", "us of CPU a call", "over the mean", "MiB resident"], lines)
    options.figure.parent.mkdir(exist_ok=True)
    options.figure.write_text(svg(points))
    worst = max((ratio for _, ratio in points), key=lambda ratio: abs(ratio - 1))
    name = f"CPU of a call up to {options.rows:,} rows, farthest from the mean"
    rows = [report.row(name, worst, f"1 +- {GOAL:g}", abs(worst - 1) <= GOAL)]
    rows += [report.row(f"CPU of a call up to {mark:,} rows, over the mean", ratio) for mark, ratio in points]
    report.finish("bench-growth", rows)


if __name__ == "__main__":
    main()
