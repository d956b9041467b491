"""The main job of `make run`: weave, write the data sets, evaluate on problems that were never woven.

    python -m weaverant.recipes.malt --out out

Everything in it is the public interface: `weaverant.run`, `weaverant export`, the evaluation beside it.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from shlex import quote
from shutil import which
from typing import NamedTuple

from weaverant import Run, run
from weaverant.cli.driver import Driver
from weaverant.cli.export import export
from weaverant.cli.options import models_of
from weaverant.cli.report import report
from weaverant.recipes.malt.chains import chains
from weaverant.recipes.malt.evaluate import folder, stopped, watched
from weaverant.recipes.malt.recipe import MODEL, SOURCE
from weaverant.recipes.malt.scores import SYSTEMS, Score, scores, table
from weaverant.recipes.malt.team import ROLES
from weaverant.summary import Examples, of_run

QUESTIONS = 300
PROBLEMS = 1_000
HELD_OUT = "arithmetic:heldout"

GOAL_SECONDS = 180
"""Weaving and evaluating together, on two cores."""

FILES = tuple(f"{kind}-{role}.jsonl" for kind in ("sft", "preference") for role in ROLES)
DROPPED = "dropped.jsonl"


class Finding(NamedTuple):
    """One figure for machines. `goal` is None where there is none to meet."""

    name: str
    value: float
    goal: str | None
    met: bool


class Evaluation(NamedTuple):
    """What the evaluation came to. `seconds` is wall time."""

    run: Run
    scores: dict[str, Score]
    seconds: float


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; gives its exit code."""
    options = _parser().parse_args(arguments)
    models = models_of(options.model or [MODEL])
    out = folder(options.out)
    began = time.perf_counter()

    say(f"1. Weaving: {options.questions:,} questions of {SOURCE}, each grown to a tree of 39 calls and 27 leaves")
    woven = weave(models, options.questions)
    weaving = time.perf_counter() - began
    say("\n".join(report(of_run(woven, Examples()), advise=woven.exit_code != 0)))
    if stopped(woven):
        return woven.exit_code

    say(f"\n2. Writing the data sets, a file for each role and method, to {out}/")
    lines = write(woven, out)

    say(f"\n3. Evaluating on {options.problems:,} problems of {HELD_OUT}: three chains each, 9 calls a problem")
    found = evaluate(models, options.problems)
    if stopped(found.run):
        return found.run.exit_code
    say(f"\naccuracy on {found.scores['vote'].total:,} held-out problems, with 95 % intervals (Wilson)")
    say("\n".join(table(found.scores)))
    if MODEL in models.values():
        say("The tiny model's bad habits are planted (training/tiny): the figures show that the loop works, no more.")
    say(f"\nwoven in {weaving:.1f} s, evaluated in {found.seconds:.1f} s. Every reply is kept; to look at them:")
    for going in (woven, found.run):
        say(f"  {_command()} show {going.directory}")
    say("and for machines each figure with its goal:")
    rows = [row._asdict() for row in _findings(woven, weaving, lines, found)]
    say(json.dumps({"target": "run", "rows": rows}))
    return max(woven.exit_code, found.run.exit_code)


say = partial(print, flush=True)
"""At once, so that it stands in order with the progress lines where both go into one file."""


def _command() -> str:
    """How the command is called from here: nobody need have put the environment's folder on the PATH."""
    if which("weaverant"):
        return "weaverant"
    python, here = Path(sys.executable), Path.cwd()
    python = python.relative_to(here) if python.is_relative_to(here) else python
    beside = python.with_name("weaverant")
    return quote(str(beside)) if beside.exists() else f"{quote(str(python))} -m weaverant"


def weave(models: dict[str, str], questions: int) -> Run:
    """Grow the trees; the run keeps them in its journal."""
    weaving = run("malt", SOURCE, models=models, limit=questions)
    Driver(weaving, lambda task: None).go_on()  # a tree that was written is not held
    return weaving


def evaluate(models: dict[str, str], problems: int) -> Evaluation:
    """Three chains for each held-out problem, scored. `python -m weaverant.recipes.malt.evaluate` compares more."""
    began = time.perf_counter()
    evaluation = run(chains, HELD_OUT, models=models, limit=problems)
    tasks = watched(evaluation)
    return Evaluation(evaluation, scores(tasks), time.perf_counter() - began)


def write(woven: Run, out: Path) -> dict[str, int]:
    """Write the six files and `dropped.jsonl`, say what is in them and what was left out; lines by file name."""
    assert woven.directory is not None, "weaving keeps a journal"
    lines: dict[str, int] = {}
    for name in (*FILES, DROPPED):
        (out / name).unlink(missing_ok=True)  # a file that gets no samples now must not keep those of an earlier run
    for form in ("sft", "preference", "dropped"):
        files = export(woven.directory, form, str(out)).files
        lines |= {Path(path).name: count for path, count in files.items()}
    for name in FILES:
        say(f"  {lines.get(name, 0):>6,}  {out / name}")
    say("left out, by reason:")
    for kind, reasons in left_out(out / DROPPED).items():
        for reason, count in sorted(reasons.items()):
            say(f"  {count:>6,}  {kind}, {reason}")
    return lines


def left_out(file: Path) -> dict[str, Counter[str]]:
    """The counts of all questions together, by method and reason."""
    totals: dict[str, Counter[str]] = {"sft": Counter(), "preference": Counter()}
    if file.exists():
        with file.open(encoding="utf-8") as lines:
            for told in map(json.loads, lines):
                for kind, counts in totals.items():
                    counts.update(told[kind])
    return totals


def _findings(woven: Run, weaving: float, lines: dict[str, int], found: Evaluation) -> list[Finding]:
    seconds = weaving + found.seconds
    rows, calls = woven.ledger.stages[0].rows, woven.ledger.calls
    return [
        Finding("questions woven", woven.ledger.stages[0].done, f"= {rows}", woven.ledger.stages[0].done == rows),
        Finding("calls of the weave", calls, f"= {39 * rows}", calls == 39 * rows),
        Finding("files with samples", len(lines.keys() & set(FILES)), f"= {len(FILES)}", set(FILES) <= lines.keys()),
        *_accuracies(found.scores),
        Finding("seconds, installation apart", round(seconds, 1), f"< {GOAL_SECONDS}", seconds < GOAL_SECONDS),
    ]


def _accuracies(found: dict[str, Score]) -> Iterator[Finding]:
    """Each system should be better than the one before it."""
    before: Score | None = None
    for system, score in found.items():
        goal = None if before is None else f"> {before.share:.4f}"
        met = before is None or score.share > before.share
        yield Finding(SYSTEMS[system], round(score.share, 4), goal, met)
        before = score


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m weaverant.recipes.malt", description=__doc__)
    parser.add_argument("--out", default="out", help="folder for the data sets")
    parser.add_argument("--questions", type=int, default=QUESTIONS)
    parser.add_argument("--problems", type=int, default=PROBLEMS)
    parser.add_argument("--model", action="append", help="SPEC for all roles, or generator=SPEC, verifier=, refiner=")
    return parser
