"""The fault gate: `python -m weaverant.testing.world SEED` tells one trial, `--seeds 10000` tries so many and counts.

`docs/reliability.md` says what it promises.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import multiprocessing.pool
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator

from msgspec import Struct

from weaverant.message import digest
from weaverant.testing.world.mutants import MUTANTS, SEEDS, Caught, hunt
from weaverant.testing.world.trial import Verdict, trial

GOAL_S = 900.0
"""Seconds in which 10,000 seeds are to be tried."""

CHUNK = 10
PROGRESS_S = 15.0

KINDS = (
    "kill", "power cut", "full disk", "failed write or sync", "clock jump", "pause", "second opener",
    "edit before a resume", "retry", "failed call", "engine's exception", "slow reply", "hung reply",
    "usage that is none", "no reply at all", "a reply of another type", "a message that is none",
    "a reply without usage", "nobody there",
    "cancelled call", "failed effect", "odd reply", "odd row", "wire: 400", "wire: 429", "wire: 500", "wire: 503",
    "wire: reset", "wire: no connection", "wire: silence", "ended: interrupted", "ended: closed", "ended: budget",
    "ended: server", "ended: fuse", "ended: journal", "ended: pilot", "dead process", "endless process",
    "process dead at rest", "value that cannot be sent", "value that cannot be read", "reused run, torn",
    "reused step", "changed agent",
)  # fmt: skip
"""Each must have happened in a long gate, or it tested nothing."""


class Tally(Struct):
    trials: int = 0
    lives: int = 0
    asked: int = 0
    again: int = 0
    cpu: float = 0.0
    counts: Counter[str] = Counter()
    bad: int = 0

    def add(self, verdict: Verdict) -> None:
        self.trials += 1
        self.lives += verdict.lives
        self.asked += verdict.asked
        self.again += verdict.again
        self.cpu += verdict.seconds
        self.counts.update(verdict.counts)
        self.bad += bool(verdict.faults)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m weaverant.testing.world", description="The fault gate.")
    parser.add_argument("seed", nargs="?", type=int, help="tell this trial")
    parser.add_argument("--seeds", type=int, default=0, metavar="N", help="try so many, in as many processes as cores")
    parser.add_argument("--first", type=int, default=0, metavar="SEED", help="the first of them")
    parser.add_argument("--mutants", action="store_true", help="plant bugs, and see that each is caught")
    given = parser.parse_args()
    if given.mutants:
        return mutants()
    if given.seed is not None and not given.seeds:
        return tell(given.seed)
    return gate(given.first, given.seeds or 10_000)


def tell(seed: int) -> int:
    verdict = trial(seed)
    print(f"seed {seed}", *verdict.story, sep="\n  ")
    print(f"  calls {verdict.asked}, made again {verdict.again}, journal {digest(verdict.journal).hex()}")
    print(*([f"  FAULT {fault}" for fault in verdict.faults] or ["  no fault"]), sep="\n")
    return bool(verdict.faults)


def gate(first: int, seeds: int) -> int:
    began, tally = time.monotonic(), Tally()
    looked = began
    for verdict in _tried(range(first, first + seeds)):
        tally.add(verdict)
        if verdict.faults:
            _tell_fault(verdict)
        if time.monotonic() - looked > PROGRESS_S:
            looked = time.monotonic()
            print(f"{tally.trials:,} of {seeds:,} seeds, {looked - began:.0f} s, faults {tally.bad}", flush=True)
    wall = time.monotonic() - began
    missing = [kind for kind in KINDS if not tally.counts[kind]] if seeds >= 1_000 else []
    _print_table(tally, wall, missing)
    rows = [
        {"name": "faults", "value": tally.bad, "goal": 0, "met": not tally.bad},
        {"name": "kinds of fault that never happened", "value": len(missing), "goal": 0, "met": not missing},
        {"name": "seconds", "value": round(wall, 1), "goal": GOAL_S, "met": wall < GOAL_S * max(1.0, seeds / 10_000)},
    ]
    print(json.dumps({"target": "faults", "rows": rows}))
    return bool(tally.bad or missing)


def mutants() -> int:
    began, found = time.monotonic(), list[Caught]()
    print(f"{'planted bug':68} {'seed':>5}  caught by")
    with _workers() as pool:
        for caught in pool.imap(hunt, MUTANTS):
            found.append(caught)
            seed = "none" if caught.seed is None else caught.seed
            print(f"{MUTANTS[caught.name].about:68} {seed:>5}  {caught.invariant:.60}", flush=True)
    alive = [caught.name for caught in found if caught.seed is None]
    print(f"{len(found)} bugs, {len(alive)} alive after {SEEDS} seeds, {time.monotonic() - began:.0f} s")
    rows = [{"name": "planted bugs not caught", "value": len(alive), "goal": 0, "met": not alive}]
    print(json.dumps({"target": "faults-mutants", "rows": rows}))
    return bool(alive)


def _workers() -> multiprocessing.pool.Pool:
    return multiprocessing.get_context("fork").Pool(len(os.sched_getaffinity(0)), _quiet_collector)


def _quiet_collector() -> None:
    """What is there before the first trial is never looked at again."""
    gc.collect()
    gc.freeze()


def _tried(seeds: Iterable[int]) -> Iterator[Verdict]:
    with _workers() as pool:
        yield from pool.imap_unordered(trial, seeds, CHUNK)


def _tell_fault(verdict: Verdict) -> None:
    print(f"seed {verdict.seed}", *verdict.story, sep="\n  ")
    print(*(f"  FAULT {fault}" for fault in verdict.faults[:5]), sep="\n")
    print(f"  again: python -m weaverant.testing.world {verdict.seed}", flush=True)


def _print_table(tally: Tally, wall: float, missing: list[str]) -> None:
    print(f"{'trials':44} {tally.trials:>10,}")
    print(f"{'trials with a fault of ours':44} {tally.bad:>10,}")
    print(f"{'lives':44} {tally.lives:>10,}")
    print(f"{'calls':44} {tally.asked:>10,}")
    print(f"{'calls made again, none of them acknowledged':44} {tally.again:>10,}")
    for kind in sorted(tally.counts, key=lambda kind: -tally.counts[kind]):
        print(f"{kind:44} {tally.counts[kind]:>10,}")
    for kind in missing:
        print(f"{kind:44} {'never':>10}")
    print(f"{'seconds':44} {wall:>10,.0f}")
    print(f"{'milliseconds of CPU a trial':44} {1e3 * tally.cpu / max(1, tally.trials):>10,.0f}")


if __name__ == "__main__":
    sys.exit(main())
