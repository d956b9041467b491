"""How good the team is: the lone generator, the chain, and the vote of three chains, with 95 % intervals.

    python -m weaverant.recipes.malt.evaluate --input arithmetic:heldout --limit 1000 --model embedded:tiny

The last line is JSON: `{"target": "run", "rows": [{"name", "value", "goal", "met"}]}`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, get_args

from weaverant import Run, Task, UserError, run
from weaverant.cli.driver import Driver
from weaverant.cli.options import models_of
from weaverant.recipes.malt.answers import Checker
from weaverant.recipes.malt.chains import chains
from weaverant.recipes.malt.scores import SYSTEMS, Score, scores, table
from weaverant.recipes.malt.team import Prompts


class Finding(NamedTuple):
    """One figure for machines. `goal` is None where there is none to meet."""

    name: str
    value: float
    goal: str | None
    met: bool


class Evaluation(NamedTuple):
    """What came of it. `seconds` is wall time."""

    run: Run
    scores: dict[str, Score]
    seconds: float


def evaluate(
    rows: str,
    *,
    models: dict[str, str],
    limit: int | None = None,
    directory: str | Path | None = None,
    parameters: dict[str, Any] | None = None,
) -> Evaluation:
    """Run `chains` on the rows and score it. `parameters` are the workflow's: passes, checker, prompts."""
    began = time.perf_counter()
    evaluation = run(chains, rows, models=models, limit=limit, directory=directory, parameters=parameters)
    tasks = watched(evaluation)
    return Evaluation(evaluation, scores(tasks), time.perf_counter() - began)


def watched(going: Run) -> list[Task]:
    """Run to the end, with progress on standard error; Ctrl-C lets calls in flight finish, as in `weaverant run`."""
    tasks: list[Task] = []
    Driver(going, tasks.append).go_on()
    return tasks


def findings(found: dict[str, Score]) -> list[Finding]:
    """The accuracies for machines: each system should be better than the one before it."""
    rows: list[Finding] = []
    before: Score | None = None
    for system, score in found.items():
        goal = None if before is None else f"> {before.share:.4f}"
        rows.append(Finding(SYSTEMS[system], round(score.share, 4), goal, before is None or score.share > before.share))
        before = score
    return rows


def document(rows: Sequence[Finding]) -> str:
    """The findings as one line of JSON."""
    return json.dumps({"target": "run", "rows": [row._asdict() for row in rows]})


def stopped(going: Run) -> bool:
    """Whether the run ended before its end; if so, says how to go on."""
    if going.state == "finished":
        return False
    why = going.state if going.error is None else f"{going.state}: {going.error}"
    print(f"stopped before its end ({why}); what was done is kept in {going.directory}", file=sys.stderr)
    return True


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; gives its exit code."""
    options = _parser().parse_args(arguments)
    parameters = {"passes": options.passes, "checker": options.checker, "prompts": options.prompts}
    found = evaluate(
        options.input,
        models=models_of(options.model or ["embedded:tiny"]),
        limit=options.limit,
        directory=options.run,
        parameters=parameters,
    )
    if stopped(found.run):
        return found.run.exit_code
    failed = found.run.ledger.failed
    print(f"\n{options.input}: {found.scores['vote'].total:,} problems, {failed:,} of them failed and count as wrong")
    print("\n".join(table(found.scores)))
    print(f"  {found.run.ledger.calls:,} calls in {found.seconds:.1f} s; every reply is in {found.run.directory}")
    print(document(findings(found.scores)))
    return found.run.exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m weaverant.recipes.malt.evaluate", description=chains.function.__doc__
    )
    parser.add_argument("--input", default="arithmetic:heldout", help="rows with question and answer")
    parser.add_argument("--limit", type=int, help="take the first rows only")
    parser.add_argument("--model", action="append", help="SPEC for all roles, or generator=SPEC, verifier=, refiner=")
    parser.add_argument("--run", help="a new directory for the run; by default runs/chains-TIME")
    parser.add_argument("--passes", type=int, default=3, help="chains that vote")
    parser.add_argument("--checker", choices=get_args(Checker), default="auto")
    parser.add_argument("--prompts", choices=get_args(Prompts), default="auto")
    return parser


def command(job: Callable[[], int]) -> NoReturn:
    """Do the job and end the process: with its exit code, or 2 for a user's mistake, as `weaverant` does."""
    try:
        sys.exit(job())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    command(main)
