"""How throughput grows with peers: 1, 2 and 4 processes of one run, each with its part of a pretended server's places.

The server (`simulated:`) has a fixed latency and as many places for each peer, so that a peer's calls per second have
a bound that is not the CPU: each added peer should bring as many again, until the cores are full. W2 with durable
journals, as a real `weaverant run`; the rows are as many as the peers, so that all runs take as long. Calls per
second are those between 30 % and 70 % of the time that the journals span: what begins and what is left over at the
end is not looked at.

`of the cores`: what the run's processes took, beginning and end included, and what everything on the machine took: near
100 % the cores are full, whoever fills them, and nothing can be said of scaling.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import peering
import report
import workloads

from weaverant.events import StepEnded
from weaverant.journal import JournalReader

PEERS = (1, 2, 4)
LATENCY_S = 0.2
GAIN = 0.9
"""Goal: what each added peer brings, as a part of what one alone does."""
FULL = 0.95
"""Share of the machine's cores from which they count as full."""
CORES = os.cpu_count() or 1


class Rate(NamedTuple):
    calls_a_second: float
    ours: float
    """Share of all cores that the run's processes had."""
    machine: float
    """Share of all cores that was in use."""


def measure(folder: Path, peers: int, rows: int, slots: int) -> Rate:
    file, run = folder / "rows.jsonl", folder / "run"
    peering.write_rows(file, rows * peers, lambda i: {"question": workloads.SHORT_QUESTIONS[i % 512]})
    whole = 4 * slots * peers
    model = f"simulated:latency={LATENCY_S},jitter=0,slots={slots * peers},tokens=64"
    began, busy = time.monotonic(), used()
    options = ("--peers", peers, "--concurrency", whole, "--in-flight", whole)
    cpu = peering.reap(peering.start("workloads.py:w2", file, run, *options, model=model))
    wall, busy = time.monotonic() - began, used() - busy
    times = sorted(event.time for event in JournalReader(run).events() if isinstance(event, StepEnded))
    assert len(times) == rows * peers * workloads.RING_HOPS
    span = times[-1] - times[0]
    low, high = times[0] + 0.3 * span, times[0] + 0.7 * span
    inside = sum(low <= moment < high for moment in times)
    return Rate(inside / (high - low), cpu / wall / CORES, busy / wall / CORES)


def used() -> float:
    """Seconds that the machine's cores were in use."""
    user, nice, system, _, _, irq, soft, *_ = map(int, Path("/proc/stat").read_text().split("\n")[0].split()[1:])
    return (user + nice + system + irq + soft) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_600, help="for each peer")
    parser.add_argument("--slots", type=int, default=160, help="places for each peer")
    given = parser.parse_args()
    found: dict[int, Rate] = {}
    for peers in PEERS:
        with tempfile.TemporaryDirectory() as folder:
            found[peers] = measure(Path(folder), peers, given.rows, given.slots)
    bound = given.slots / LATENCY_S
    lines, rows, before = [], [], 0
    for peers, rate in found.items():
        brings = None
        if before:
            added = (rate.calls_a_second - found[before].calls_a_second) / (peers - before)
            brings = added / found[PEERS[0]].calls_a_second
        lines.append(
            [peers, f"{rate.calls_a_second:,.0f}", f"{rate.calls_a_second / (bound * peers):.0%}",
             "" if brings is None else f"{brings:.3f}", f"{rate.ours:.0%}", f"{rate.machine:.0%}"]
        )  # fmt: skip
        told = {"ours": round(rate.ours, 3), "machine": round(rate.machine, 3)}
        rows.append(report.row(f"{peers} peers: calls/s", rate.calls_a_second, **told))
        if brings is not None:
            met = brings >= GAIN if brings >= GAIN or rate.machine < FULL else None  # full cores: nothing can be said
            rows.append(report.row(f"{peers} peers: an added one brings", brings, f">= {GAIN}", met))
        before = peers
    print(f"simulated, for each peer: {given.slots} places of {LATENCY_S} s, so {bound:,.0f} calls/s at most")
    report.table(["peers", "calls/s", "of what is possible", "an added peer brings", "our cores", "all cores"], lines)
    report.finish("peers-scaling", rows)


if __name__ == "__main__":
    main()
