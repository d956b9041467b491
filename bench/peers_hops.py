"""Durable hops on peers: Matrix's W1 and W2 over four processes of this machine, and what a hop costs them.

`spread`: each agent has peers of its own (`--spread roles`), so that most calls travel. `together`: the same four
peers, each of which works on its rows by itself. `local`: four runs of one process side by side, without peers, at the
same time as `together`, with as many rows in flight each, since what is written at once is the cheaper the more it
is. All are real `weaverant run` commands with durable journals and 2,000 rows in flight; CPU is
that of all their processes while they are going, `peering.py` says between which moments. Agents answer at once. The
eight agents of `workloads.py` are spread, two to each peer; a call travels when the peer that owns the row does not
have the role.

Hops per second hang on who else works on the machine: beside them stands the share of the cores that the run had, and
what the CPU of a hop amounts to with all cores full. Where a run had not, and full ones would do, `met` is null.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from pathlib import Path

import peering
import report
import workloads

PEERS = 4
IN_FLIGHT = 2_000
"""Rows of all processes together."""
RATE, COST, RATIO = 12_000, 0.12, 1.0
"""Goals: hops per second and CPU ms per hop where calls travel, and CPU per hop of peers over that of local runs."""
CORES = os.cpu_count() or 1

LOCAL = PEERS
"""Runs side by side."""


def options(peers: int) -> list[object]:
    whole = IN_FLIGHT if peers else IN_FLIGHT // LOCAL
    return ["--concurrency", whole, "--in-flight", whole, *(["--peers", peers] if peers else [])]


def kinds(workload: str, rows: int, folder: Path) -> dict[str, peering.Cost]:
    """One measurement of each. `together` and `local` are measured at the same time: what else goes on here makes the
    same CPU time worth more or less, by a third and more."""
    questions = workloads.QUESTIONS if workload == "w1" else workloads.SHORT_QUESTIONS
    whole, parts = folder / "rows.jsonl", [folder / f"part-{n}.jsonl" for n in range(LOCAL)]
    peering.write_rows(whole, rows, lambda i: {"question": questions[i % 512]})
    for part in parts:
        peering.write_rows(part, rows // LOCAL, lambda i: {"question": questions[i % 512]})
    flow = f"workloads.py:{workload}"
    spread = peering.together([(flow, whole, folder / "spread", (*options(PEERS), "--spread", "roles"))])
    locals_ = [(flow, part, folder / part.stem, options(0)) for part in parts]
    both = peering.together([(flow, whole, folder / "together", options(PEERS)), *locals_])
    for ran in (*spread, both[0]):
        assert ran.told.rows == rows, f"{ran.told.rows} of {rows} rows are done"
    return {"spread": peering.cost(spread), "together": peering.cost(both[:1]), "local": peering.cost(both[1:])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=6_000)
    parser.add_argument("--times", type=int, default=3, help="measure so often; medians are told")
    parser.add_argument("--workload", choices=("w1", "w2"), action="append")
    given = parser.parse_args()
    lines, rows = [], []
    for workload in given.workload or ("w1", "w2"):
        with tempfile.TemporaryDirectory() as folder:
            found = [kinds(workload, given.rows, Path(folder)) for _ in range(given.times)]
        costs = {kind: statistics.median(each[kind].ms_a_hop for each in found) for kind in found[0]}
        for kind, cost in costs.items():
            each = [one[kind] for one in found]
            told = each[0].told
            best = max(each, key=lambda one: one.hops_a_second)
            begin = statistics.median(one.begin for one in each)
            share = told.travelled / told.hops
            full = 1e3 * CORES / cost
            lines.append(
                [f"{workload} {kind}", f"{cost:.4f}", best.hops_a_second, f"{best.share:.0%}", full, told.hops,
                 f"{share:.0%}", f"{begin:.2f}"]
            )  # fmt: skip
            name = f"{workload}/{kind}/"
            goal = (f"<= {COST}", cost <= COST) if kind == "spread" else (None, None)
            rows.append(report.row(name + "CPU ms per durable hop", cost, *goal, hops=told.hops))
            rows.append(report.row(name + f"durable hops/s with {CORES} cores full", full))
            if kind == "spread":  # the others were not alone
                rate = best.hops_a_second
                met = rate >= RATE or (None if full >= RATE else False)
                rows.append(
                    report.row(name + "durable hops/s, the best", rate, f">= {RATE}", met, share=round(best.share, 3))
                )
            if kind == "spread":
                rows.append(report.row(name + "calls that travelled", told.travelled, share=round(share, 4)))
            rows.append(report.row(name + "CPU s to begin and end", begin))
        ratios = [each["together"].ms_a_hop / each["local"].ms_a_hop for each in found]
        ratio = statistics.median(ratios)
        rows.append(report.row(f"{workload}/together over local, CPU per hop", ratio, f"<= {RATIO}", ratio <= RATIO))
        travel = (costs["spread"] - costs["together"]) * told_hops(found, "spread")
        rows.append(report.row(f"{workload}/CPU ms a travelling call adds", travel))
        lines.append([f"{workload} together over local", f"{ratio:.3f}", *[""] * 6])
        lines.append([f"{workload} a travelling call adds", f"{travel:.4f}", *[""] * 6])
    report.table(
        ["", "CPU ms/hop", "hops/s", "of the cores", "hops/s full", "hops", "travelled", "CPU s to begin and end"],
        lines,
    )
    report.finish("peers-hops", rows)


def told_hops(found: list[dict[str, peering.Cost]], kind: str) -> float:
    """Hops for each call that travelled."""
    told = found[0][kind].told
    return told.hops / max(1, told.travelled)


if __name__ == "__main__":
    main()
