"""How busy three agents in a row keep a server with so many places: writer, critic, reviser, each waiting for the last.

A call takes as long as its row and stage say, whoever asks (`slots_server.py`): lognormal, so that some rows are slow.
Everything is worked out from the server's own log, beside a list schedule of the same calls with nothing in between.
The end of a run, where fewer rows are left than places, is counted: the ideal has it too. It knows nothing of how long
a call will take, as nobody does, and is no bound: another order may end earlier by luck. `--others` runs distilabel,
Data Designer and sdg_hub as well, where `make bench-others` has installed them.
"""

from __future__ import annotations

import argparse
import asyncio
import heapq
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import report
from others.asked import STAGES as PROMPTS
from others.asked import texts
from others.environments import PEERS, drive, drive_ours, install
from serving import serving, told
from slots_server import STAGES, seconds

SLOTS = 32
AT_ONCE = 2 * SLOTS
"""Calls in flight that everybody may have, and rows of a batch where there are batches: more than places, so that a
short queue at the server keeps them busy."""
PEERS_WITH_STAGES = ("distilabel", "data-designer", "sdg-hub")
GOAL = 0.98

Logged = tuple[str, int, float, float, float]
"""Stage, row, when the call came, began and ended."""


class Used(NamedTuple):
    """Shares of the places' time."""

    ideal: float
    """What the list schedule takes of what this run took, from the first request to the last reply."""
    whole: float
    steady: float
    """Until the last row's first call began: early where every row goes through a stage before any goes on."""
    seconds: float


def list_schedule(rows: int) -> float:
    """Seconds that the calls take if a free place goes at once to the oldest row with a call to make."""
    ready = [(row, 0) for row in range(rows)]
    running: list[tuple[float, int, int]] = []
    now = 0.0
    while ready or running:
        while ready and len(running) < SLOTS:
            row, stage = heapq.heappop(ready)
            heapq.heappush(running, (now + seconds(STAGES[stage], row), row, stage))
        now, row, stage = heapq.heappop(running)
        if stage + 1 < len(STAGES):
            heapq.heappush(ready, (row, stage + 1))
    return now


def used(log: list[Logged], rows: int) -> Used | None:
    """None where not every call was made, and just once."""
    wanted = sorted((stage, row) for stage in STAGES for row in range(rows))
    if sorted((stage, row) for stage, row, *_ in log) != wanted:
        return None
    first = min(came for _, _, came, _, _ in log)
    took = max(ended for *_, ended in log) - first
    entered = max(began for stage, _, _, began, _ in log if stage == STAGES[0])
    until = sum(max(0.0, min(ended, entered) - began) for _, _, _, began, ended in log)
    work = sum(seconds(stage, row) for stage, row in wanted)
    return Used(list_schedule(rows) / took, work / SLOTS / took, until / SLOTS / (entered - first), took)


async def barrier(url: str, rows: int) -> None:
    """Batch after batch, and in each all the calls of a stage before any of the next: a baseline, nobody's code."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def call(known: dict[str, Any], column: str, prompt: str) -> None:
            for name, text in known.items():
                prompt = prompt.replace(f"{{{{ {name} }}}}", text)
            body = {"model": "slots", "messages": [{"role": "user", "content": prompt}]}
            async with session.post(f"{url}/v1/chat/completions", json=body) as answer:
                known[column] = (await answer.json())["choices"][0]["message"]["content"]

        left = texts(rows)
        while left:
            batch, left = left[:AT_ONCE], left[AT_ONCE:]
            for column, prompt in PROMPTS:
                await asyncio.gather(*(call(known, column, prompt) for known in batch))


def measured(run: Callable[[str], str], rows: int) -> tuple[Used | None, str]:
    """Of one run at a server of its own, and why there is nothing to tell."""
    with serving("slots_server.py", SLOTS) as url:
        trouble = run(url)
        log = [tuple(entry) for entry in told(url, "/log")]
    found = used(log, rows)
    return found, trouble if found is None else ""


def ours(rows: int, options: str) -> tuple[Used | None, str]:
    def run(url: str) -> str:
        with tempfile.TemporaryDirectory() as folder:
            model = f"{url}/v1{options}#slots"
            return drive_ours(model, rows, 1_024, 120, Path(folder) / "run", "revised").output[-300:]

    return measured(run, rows)


def peer(name: str, rows: int) -> tuple[Used | None, str]:
    found = next(each for each in PEERS if each.name == name)
    missing = install(found, 300)

    def run(url: str) -> str:
        with tempfile.TemporaryDirectory() as folder:
            return drive(found, url, rows, AT_ONCE, 120, Path(folder) / "run", len(STAGES)).output[-300:]

    return (None, missing) if missing else measured(run, rows)


def barriers(rows: int) -> tuple[Used | None, str]:
    def run(url: str) -> str:
        asyncio.run(barrier(url, rows))
        return "calls are missing"

    return measured(run, rows)


Measure = Callable[[], tuple[Used | None, str]]


def kinds(rows: int, others: bool) -> dict[str, tuple[Measure, str | None]]:
    """Who is measured, how, and the goal."""
    found: dict[str, tuple[Measure, str | None]] = {
        f"weaverant, told of the places (start={AT_ONCE})": (lambda: ours(rows, f"?start={AT_ONCE}"), f">= {GOAL}"),
        "weaverant, finding out by itself": (lambda: ours(rows, ""), None),
        "barrier (simulated: batches, stage by stage)": (lambda: barriers(rows), None),
    }
    return found | {name: (partial(peer, name, rows), None) for name in PEERS_WITH_STAGES if others}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=480)
    parser.add_argument("--others", action="store_true", help="the other libraries as well")
    given = parser.parse_args()
    lines: list[list[Any]] = []
    rows: list[dict[str, Any]] = []
    for name, (measure, goal) in kinds(given.rows, given.others).items():
        found, trouble = measure()
        about = f"utilisation of {SLOTS} places, of the ideal: {name}"
        if found is None:
            lines.append([name, trouble, "", "", ""])
            rows.append(report.row(about, None, goal, None, trouble=trouble))
        else:
            lines.append([name, *(f"{share:.3f}" for share in found[:3]), found.seconds])
            met = found.ideal >= GOAL if goal else None
            rows.append(report.row(about, found.ideal, goal, met, whole=found.whole, steady=found.steady))
    report.table(["who", "of the ideal", "whole run", "until the last row began", "s"], lines)
    report.finish("bench-utilisation", rows)


if __name__ == "__main__":
    main()
