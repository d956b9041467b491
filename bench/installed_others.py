"""One chat call a row beside five other libraries, each in an environment of its own: `make bench-others`.

Ours and the peer take turns at the same mock server, with as many calls in flight. The price of a call is marginal:
CPU of the whole process tree with many rows less that with few, by the calls between them. Afterwards three agents in
a row, beside those of them that take such a workflow (`bench_utilisation.py --others`).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import report
from others.environments import PEERS, Peer, drive, drive_ours, install, last_line, told
from serving import serving
from serving import told as told_by
from tree import Spent

AT_ONCE = 128
LATENCY = 0.05
TIMES = 10
"""How many times cheaper ours is to be."""
INSTALL_SECONDS = 300
PEER_SECONDS = 200
"""After which no further round of a peer begins."""
FEW, MANY = 200, 2_200
OURS_FEW, OURS_MANY = 2_000, 22_000
"""Ours gets ten times the rows: the price of its calls would otherwise drown in the noise of its start."""
HEAD = ["who", "CPU ms/call", "times ours", "s to 1st call", "calls/s", "MB", "most at once", "server, of a core"]

Drive = Callable[[str, int, Path], Spent]
"""Runs so many rows against that server, in that folder."""


class Trial(NamedTuple):
    """One run."""

    calls: int = 0
    cpu: float = 0.0
    start: float = 0.0
    """Seconds from the command to the first request."""
    rate: float = 0.0
    """Calls a second, from the first request to the last reply."""
    memory: float = 0.0
    """MB at most, of all processes; what they share counts once."""
    most: int = 0
    """Calls in flight."""
    server: float = 0.0
    """Share of a core that the server took meanwhile."""
    trouble: str = ""


def trial(drive_it: Drive, rows: int, folder: Path) -> Trial:
    """One run at a server of its own."""
    with serving("light_server.py", LATENCY) as url:
        spent = drive_it(url, rows, folder)
        seen = told_by(url, "/stats")
    trouble = _trouble(spent, rows)
    if not seen["total"]:
        return Trial(trouble=trouble or "it made no call")
    took = max(seen["last"] - seen["first"], 1e-3)
    rate = (seen["total"] - seen["in_flight"]) / took
    return Trial(
        calls=seen["total"], cpu=spent.cpu, start=seen["first"] - spent.began, rate=rate, memory=spent.memory,
        most=seen["most"], server=seen["cpu"] / took, trouble=trouble,
    )  # fmt: skip


def _trouble(spent: Spent, rows: int) -> str:
    if spent.code is None:
        return f"cut after {spent.wall:.0f} s"
    if spent.code:
        return f"exit code {spent.code}: {last_line(spent.output)[:200]}"
    whole = told(spent).get("rows", rows)
    return "" if whole == rows else f"{whole} of {rows} rows came out"


class Side(NamedTuple):
    """The runs of a peer, or ours beside it."""

    few: list[Trial]
    many: list[Trial]

    def price(self) -> float | None:
        """Milliseconds of CPU a call; None where no more calls were made with more rows."""
        pairs = zip(self.few, self.many, strict=False)
        prices = [1e3 * (b.cpu - a.cpu) / (b.calls - a.calls) for a, b in pairs if b.calls > a.calls]
        return statistics.median(prices) if prices else None

    def middle(self, what: str) -> float:
        """The median over the runs with many rows."""
        return statistics.median(getattr(one, what) for one in self.many)

    def trouble(self) -> str:
        return next((one.trouble for one in (*self.few, *self.many) if one.trouble), "")


def beside(peer: Peer, rounds: int, seconds: float, folder: Path) -> tuple[Side, Side]:
    """Ours, the peer, ours, the peer ..."""

    def theirs(url: str, rows: int, place: Path) -> Spent:
        return drive(peer, url, rows, AT_ONCE, seconds, place)

    def ours(url: str, rows: int, place: Path) -> Spent:
        return drive_ours(f"{url}/v1#light", rows, AT_ONCE, seconds, place)

    own, other = Side([], []), Side([], [])
    first = trial(theirs, 10, folder)  # so that nothing is measured that is compiled or loaded for the first time
    if not first.calls:
        return own, Side([first], [])
    began = time.monotonic()
    while len(own.few) < rounds and time.monotonic() - began < PEER_SECONDS:
        own.few.append(trial(ours, OURS_FEW, folder))
        other.few.append(trial(theirs, FEW, folder))
        own.many.append(trial(ours, OURS_MANY, folder))
        other.many.append(trial(theirs, MANY, folder))
    return own, other


def line(name: str, side: Side, price: float, times: str) -> list[Any]:
    figures = [f"{side.middle('start'):.2f}", side.middle("rate"), side.middle("memory"), side.middle("most")]
    name += f" ({side.trouble()})" if side.trouble() else ""
    return [name, f"{price:.3f}", times, *figures, f"{side.middle('server'):.2f}"]


def measure(peer: Peer, rounds: int, seconds: float) -> tuple[list[list[Any]], dict[str, Any]]:
    """Lines of the table, and the row: how many times as much a call costs with the peer."""
    goal = f">= {TIMES}"
    name = f"{peer.name}: CPU of a call, in ours"
    missing = install(peer, INSTALL_SECONDS)
    if missing:
        return [[peer.name, missing, *[""] * 6]], report.row(name, None, goal, None, trouble=missing)
    with tempfile.TemporaryDirectory() as folder:
        own, other = beside(peer, rounds, seconds, Path(folder) / "run")
    ours, theirs = own.price(), other.price()
    if not ours or theirs is None:
        why = other.trouble() or own.trouble() or "no price of a call could be told"
        return [[peer.name, why, *[""] * 6]], report.row(name, None, goal, None, trouble=why)
    times = theirs / ours
    figures = {
        f"{who}_{what}": round(side.middle(what), 3)
        for who, side in (("ours", own), ("peer", other))
        for what in ("start", "rate", "memory", "most", "server")
    }
    row = report.row(
        name, times, goal, times >= TIMES, requirements=peer.requirements, ours_cpu_ms=round(ours, 4),
        peer_cpu_ms=round(theirs, 4), **figures, ours_trouble=own.trouble(), trouble=other.trouble(),
    )  # fmt: skip
    return [line("weaverant", own, ours, ""), line(peer.name, other, theirs, f"{times:.1f}")], row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=60, help="of one run at most; what it did until then counts")
    parser.add_argument("--only", choices=[peer.name for peer in PEERS], action="append", help="these libraries")
    parser.add_argument("--calls-only", action="store_true", help="without the workflow of three agents")
    given = parser.parse_args()
    lines: list[list[Any]] = []
    rows: list[dict[str, Any]] = []
    for peer in PEERS:
        if not given.only or peer.name in given.only:
            found, row = measure(peer, given.rounds, given.seconds)
            lines += found
            rows.append(row)
            print(f"  {row['name']}: {row['value']} {row['trouble']}", file=sys.stderr, flush=True)
    report.table(HEAD, lines)
    if not given.calls_only:
        rows += utilisation()
    report.finish("bench-others", rows)


def utilisation() -> list[dict[str, Any]]:
    """The rows of `bench_utilisation.py --others`, whose table is printed."""
    script = Path(__file__).with_name("bench_utilisation.py")
    printed = subprocess.check_output([sys.executable, script, "--others"], text=True)
    told_last = last_line(printed)
    print(printed.removesuffix(f"{told_last}\n"))
    return json.loads(told_last)["rows"]


if __name__ == "__main__":
    main()
