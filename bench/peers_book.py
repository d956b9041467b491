"""What the book of leases takes: CPU of a real office process while its peers work off 10,000 tasks a second.

The office is a process of its own, asked over real links; what is told of is its CPU as the kernel counts it
(/proc/PID/stat), with the driver's question every 0.1 s. The peers are real in what the office sees of them: `Peer`
beats and `LeasedIntake` takes, starts and ends rows, at most 1,024 in a lease. What they stand for is pretended, in
this process: a row is started, and ends half a second later, so that together they get through the wanted number in a
second. No model is asked, and nothing is written.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import report

from weaverant.events import RowsDone
from weaverant.runtime.ledger import Ledger
from weaverant.runtime.stagebook import StageBook
from weaverant.swarm import messages as words
from weaverant.swarm.intake import LeasedIntake
from weaverant.swarm.listener import dial
from weaverant.swarm.messages import Counts
from weaverant.swarm.office import Plan, told_of
from weaverant.swarm.peer import Peer
from weaverant.swarm.places import Office as Place
from weaverant.swarm.places import find_office, make_key
from weaverant.task import Row

GOAL = 2.0
"""Percent of a core."""
ROWS = 1_024
"""Of a lease."""
TASK_S = 0.5
STEP_S = 0.01
STATUS_S = 0.1
DISK_S = 0.002
"""Until something counts as durable."""


class PretendedRows:
    """A source of so many rows, made as they are asked for."""

    def __init__(self, total: int) -> None:
        self._total = total

    def get(self, number: int) -> Row | None:
        return Row(f"0.{number}.0", 0, number, b"", None) if number < self._total else None


class PretendedSwarm:
    """Starts rows of its intake at a steady rate, and ends each half a second later."""

    stopped = False

    def __init__(self, intake: LeasedIntake, rate: float) -> None:
        self.started = 0
        self.ended = 0
        self._intake = intake
        self._rate = rate
        self._live: deque[tuple[float, Row]] = deque()

    @property
    def appetite(self) -> int:
        return max(0, round(2 * self._rate * TASK_S) - len(self._live))

    def go_on(self) -> None: ...

    def stop(self, state: str, grace: float | None = None) -> None:
        self.stopped = True

    def broken(self, error: BaseException) -> None:
        raise error

    def journal_failed(self, error: BaseException) -> None:
        raise error

    async def work(self) -> None:
        began = time.monotonic()
        while True:
            now = time.monotonic()
            while self._live and self._live[0][0] <= now:
                self._intake.ended(self._live.popleft()[1])
                self.ended += 1
            while self.started < (now - began) * self._rate:
                row = self._intake.next()
                if not isinstance(row, Row):
                    began = now - self.started / self._rate  # what was not there is not made up for
                    break
                self.started += 1
                self._live.append((now + TASK_S, row))
            await asyncio.sleep(STEP_S)


def cpu(pid: int) -> float:
    """Seconds, user and system, of a process that lives."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def start_office(run: Path, plan: Plan) -> subprocess.Popen[bytes]:
    office = subprocess.Popen(
        [sys.executable, "-m", "weaverant.peers", "office", str(run)], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
    )
    assert office.stdin is not None
    office.stdin.write(msgspec.json.encode(plan) + b"\n")
    office.stdin.close()
    return office


async def published(run: Path) -> Place:
    """Where the office is, once it says so."""
    for _ in range(1_000):
        if (place := find_office(run)) is not None:
            return place
        await asyncio.sleep(0.01)
    raise TimeoutError("the office does not say where it is")


async def measure(peers: int, rate: float, seconds: float) -> dict[str, float]:
    """CPU seconds of the office a second, and how many tasks ended meanwhile, and how many beats there were."""
    with tempfile.TemporaryDirectory() as folder:
        run, total = Path(folder), round(rate * (seconds + 60)) + 100_000
        (run / "peers").mkdir()
        key = make_key(run)
        office = start_office(run, Plan(1, total, peers, {}, ROWS))
        tasks: list[asyncio.Task[Any]] = []
        beats = leases = 0
        try:
            place = await published(run)
            driver = await dial(place.address, key, "driver", lambda *_: None, 1.0)

            async def ask_status() -> None:
                while True:
                    await driver.ask(words.STATUS, None, timeout=5.0)
                    await asyncio.sleep(STATUS_S)

            tasks.append(asyncio.create_task(ask_status()))
            swarms: list[PretendedSwarm] = []
            for epoch in range(1, peers + 1):
                (run / "peers" / f"{epoch:06}").mkdir()
                ledger = Ledger(["one"])
                book = StageBook((), ledger)
                intake = LeasedIntake(PretendedRows(total), book, ledger, time)  # pyright: ignore
                swarm = PretendedSwarm(intake, rate / peers)
                peer = Peer(run, key, epoch, "127.0.0.1:1", (), time)  # pyright: ignore
                await peer.join()

                def written(event: Any, told: Callable[[], None] | None) -> None:
                    nonlocal leases
                    leases += isinstance(event, RowsDone)
                    if told is not None:
                        asyncio.get_running_loop().call_later(DISK_S, told)

                intake.attach(written, print, print)

                def counts(ledger: Ledger = ledger, swarm: PretendedSwarm = swarm) -> Counts:
                    nonlocal beats
                    beats += 1
                    ledger.stages[0].done = swarm.ended
                    return Counts(told_of(ledger), swarm.ended, ledger.usage(), swarm.started - swarm.ended)

                tasks.append(asyncio.create_task(peer.work(swarm, intake, counts, lambda _: None)))  # pyright: ignore
                tasks.append(asyncio.create_task(swarm.work()))
                swarms.append(swarm)
            await asyncio.sleep(3.0)  # until leases are whole ones
            before, ended, began = cpu(office.pid), sum(each.ended for each in swarms), time.monotonic()
            beats = leases = 0
            await asyncio.sleep(seconds)
            wall = time.monotonic() - began
            return {
                "lease": (sum(each.ended for each in swarms) - ended) / max(1, leases),
                "core": 100 * (cpu(office.pid) - before) / wall,
                "tasks": (sum(each.ended for each in swarms) - ended) / wall,
                "beats": beats / wall,
            }
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            office.kill()
            office.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--rate", type=float, default=10_000.0, help="tasks a second, of all peers together")
    given = parser.parse_args()
    lines, rows = [], []
    for peers, rate in ((8, 0.0), (8, given.rate), (64, given.rate)):
        found = asyncio.run(measure(peers, max(rate, 1e-3), given.seconds))
        lines.append(
            [f"{peers} peers", f"{found['tasks']:,.0f}", found["beats"], found["lease"], f"{found['core']:.2f} %"]
        )
        name = f"{peers} peers, {rate:,.0f} tasks/s: the office's part of a core, %"
        goal = f"<= {GOAL}" if rate and peers == 8 else None
        enough = found["tasks"] >= 0.95 * rate
        met = (found["core"] <= GOAL if enough else None) if goal else None
        told = {"tasks_a_second": round(found["tasks"]), "beats_a_second": round(found["beats"], 1)}
        told["rows_of_a_lease"] = round(found["lease"])
        rows.append(report.row(name, found["core"], goal, met, **told))
    report.table(["office", "tasks/s", "beats/s", "rows of a lease", "of a core"], lines)
    report.finish("peers-book", rows)


if __name__ == "__main__":
    main()
