"""`python -m chaos`, with `tests` on the path: seeded trials, one fault each; a table and a line of JSON."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Callable

from chaos.faults import FAULTS
from chaos.hosts import why_not
from chaos.trial import Trial, attempt, computed, undisturbed
from chaos.verdict import MOVED_S, NOTICED_S

COLUMNS = "{:>5}  {:>5}  {:<12}  {:>7}  {:>7}  {:>7}  {:>5}  {:>6}  {:<12}  {:<4}  {}"


def main() -> int:
    """0: all held; 1: some did not; 2: there can be no trials here."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # what was begun is ended
    parser = argparse.ArgumentParser(prog="python -m chaos", description=__doc__)
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0, help="of the first trial; the others follow")
    parser.add_argument("--fault", action="append", choices=sorted(FAULTS), help="only this one; may be repeated")
    parser.add_argument("--rows", type=int, default=5_000)
    parser.add_argument("--keep", action="store_true", help="keep the folders of trials that do not hold")
    parser.add_argument("--private", action="store_true", help="hosts with disks of their own, and the run in a store")
    options = parser.parse_args()
    possible = [name for name, fault in FAULTS.items() if options.private in fault.where]
    if set(options.fault or ()) - set(possible):
        parser.error(f"only {', '.join(possible)} {'with' if options.private else 'without'} --private")
    skipped = {name: why for name in options.fault or possible if (why := FAULTS[name].why_not())}
    names = [name for name in options.fault or possible if name not in skipped]
    for name, why in skipped.items():
        print(f"skipped: {name}, as {why}", file=sys.stdout if names else sys.stderr)
    if not names:
        return 2
    if why := why_not():
        print(f"no trials here: {why}", file=sys.stderr)
        return 2
    began = time.monotonic()
    expected = undisturbed(options.rows, private=options.private)
    assert expected == computed(options.rows), "a run without any fault gives wrong results"
    print(f"undisturbed: {len(expected):,} results in {time.monotonic() - began:.1f} s\n")
    print(
        COLUMNS.format(
            "trial", "seed", "fault", "seconds", "noticed", "moved", "twice", "flight", "exit codes", "held", ""
        )
    )
    trials: list[Trial] = []
    for number in range(options.trials):
        trial = attempt(
            names[number % len(names)], options.seed + number, options.rows, expected, keep=options.keep,
            private=options.private,
        )  # fmt: skip
        trials.append(trial)
        print(_line(number, trial), flush=True)
        for fault in trial.verdict.faults:
            print(f"       {fault}", flush=True)
        if trial.said:
            print("       " + trial.said.replace("\n", "\n       "), file=sys.stderr, flush=True)
    print(json.dumps({"target": "chaos", "rows": _goals(trials, options.trials)}))
    return 0 if all(trial.held for trial in trials) else 1


def _line(number: int, trial: Trial) -> str:
    verdict = trial.verdict
    return COLUMNS.format(
        number, trial.seed, trial.fault, f"{trial.seconds:.1f}", _seconds(verdict.noticed), _seconds(verdict.moved),
        verdict.twice, verdict.in_flight, trial.codes, "yes" if trial.held else "NO", trial.what,
    )  # fmt: skip


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} s"


def _goals(trials: list[Trial], wanted: int) -> list[dict[str, object]]:
    def worst(value: Callable[[Trial], float | None]) -> float:
        return round(max((found for trial in trials if (found := value(trial)) is not None), default=0.0), 2)

    noticed, moved = worst(lambda trial: trial.verdict.noticed), worst(lambda trial: trial.verdict.moved)
    held = sum(trial.held for trial in trials)
    return [
        {"name": "trials that held", "value": held, "goal": wanted, "met": held == wanted},
        {"name": "slowest to be noticed, s", "value": noticed, "goal": NOTICED_S, "met": noticed <= NOTICED_S},
        {"name": "slowest to run elsewhere, s", "value": moved, "goal": MOVED_S, "met": moved <= MOVED_S},
    ]


if __name__ == "__main__":
    sys.exit(main())
