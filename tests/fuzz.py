"""Seeded fuzzers of everything that reads what others wrote.

`python tests/fuzz.py --minutes 60` tries all targets, `python tests/fuzz.py TARGET --seed N --case K` replays one case.
A case is made from its target, its seed and its number alone, in a process with bounded memory and time.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import resource
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from importlib import import_module
from itertools import count
from pathlib import Path
from random import Random

TARGETS = {
    "journal": "fuzz_journal",
    "forgery": "fuzz_forgery",
    "runs": "fuzz_resume",
    "sources": "fuzz_sources",
    "replies": "fuzz_replies",
    "calls": "fuzz_calls",
    "streams": "fuzz_calls",
}
"""The module that has the function of that name: `(odds, folder) -> None`, which raises for what must not be."""

SECONDS_A_CASE = 20
"""Far above what any case takes, on a busy machine too: beyond it a case hangs."""
MEMORY = 4 << 30
"""Bytes of address space: what a small input may not make us ask for."""


def case_of(target: str) -> Callable[[Random, Path], None]:
    return getattr(import_module(TARGETS[target]), target)


def replay_command(target: str, seed: int, case: int) -> str:
    return f"{Path(sys.executable).name} tests/fuzz.py {target} --seed {seed} --case {case}"


def attempt(target: str, seed: int, cases: range | count[int], seconds: float, state: int) -> int:
    """Try the cases, in this process; gives how many there were. What fails is told, and ends it with code 1."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
    run_case, done = case_of(target), 0
    until = time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as folder:
        for case in cases:
            os.pwrite(state, b"%-20d" % case, 0)
            faulthandler.dump_traceback_later(SECONDS_A_CASE, exit=True)
            try:
                run_case(Random(f"{target}/{seed}/{case}"), Path(folder))
            except BaseException:
                traceback.print_exc()
                sys.exit(1)
            done += 1
            if time.monotonic() > until:
                break
        faulthandler.cancel_dump_traceback_later()
    return done


def in_child(target: str, seed: int, seconds: float, cases: int) -> tuple[int, str]:
    """The same in a process of its own: how many cases there were, and of a failure what it said with its command."""
    with tempfile.TemporaryFile() as state:
        command = [sys.executable, __file__, target, "--seed", str(seed), "--state", str(state.fileno())]
        command += ["--minutes", str(seconds / 60), *(["--cases", str(cases)] if cases else [])]
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", pass_fds=(state.fileno(),), check=False
        )
        if done.returncode == 0:
            return int(done.stdout.split()[-1]), ""
        case = int(os.pread(state.fileno(), 20, 0) or b"0")
    return case, f"{done.stderr[-4000:]}\nreplay with: {replay_command(target, seed, case)}"


def try_all(targets: list[str], seed: int, seconds: float, cases: int) -> int:
    """Every target in turn, a share of the time each; gives the exit code."""
    failures = 0
    print(f"seed {seed}")
    for target in targets:
        began = time.monotonic()
        tried, failure = in_child(target, seed, seconds / len(targets), cases)
        failures += bool(failure)
        found = "FAILED" if failure else "no fault"
        print(f"{target:10} {tried:>10,} cases {time.monotonic() - began:>8.1f} s  {found}", flush=True)
        if failure:
            print(failure, file=sys.stderr)
    return 1 if failures else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--case", type=int, help="replay this one")
    parser.add_argument("--cases", type=int, default=0, help="of each target at most (default: as many as fit)")
    parser.add_argument("--minutes", type=float, default=60.0, help="for all targets together (default: 60)")
    parser.add_argument("--state", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    targets = options.targets or list(TARGETS)
    if unknown := [target for target in targets if target not in TARGETS]:
        parser.error(f"no target {unknown[0]!r}; there are: {', '.join(TARGETS)}")
    faulthandler.enable()
    if options.case is not None:
        with tempfile.TemporaryFile() as state:
            attempt(targets[0], options.seed, range(options.case, options.case + 1), 0, state.fileno())
        print("no fault")
        return 0
    if options.state is None:
        return try_all(targets, options.seed, options.minutes * 60, options.cases)
    numbers = range(options.cases) if options.cases else count()
    print(attempt(targets[0], options.seed, numbers, options.minutes * 60, options.state))
    return 0


if __name__ == "__main__":
    sys.exit(main())
