"""How good each role's training made the team: the paper's tables 1, 4 and 5, with paired tests and flips.

    python -m weaverant.recipes.malt.evaluate --base embedded:tiny --problems 1000 --seeds 3
    python -m weaverant.recipes.malt.evaluate --models models.json --input rows.jsonl --out out

Systems whose models are not given are left out, and named. `--run` with a run that stopped goes on with it; with one
that ended it prints the tables again. The last line is JSON: `{"target": "malt", "rows": [{"name", "value", ...}]}`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, get_args

from weaverant import Run, Task, UserError, resume, run
from weaverant.cli.driver import Driver
from weaverant.cli.show import storyteller
from weaverant.journal import JournalReader
from weaverant.recipes.malt.bars import bars
from weaverant.recipes.malt.contest import contest
from weaverant.recipes.malt.outcomes import outcomes
from weaverant.recipes.malt.roles import RoleModels, given_models, read_models
from weaverant.recipes.malt.systems import PASSES, TEAMS, TRAININGS, Training, systems_of
from weaverant.recipes.malt.tables import Evaluated, document, notes, tables
from weaverant.recipes.malt.team import Prompts
from weaverant.rundir import RunConfig, load_config
from weaverant.story import Story

INPUT = "arithmetic:heldout"
MODEL = "embedded:tiny"
OWN_KEYS = tuple(team.key for team in TEAMS)


class Asked(NamedTuple):
    """What is to be evaluated, as a run keeps it."""

    models: dict[str, str]
    parameters: dict[str, Any]


def asked(models: RoleModels, teams: Sequence[str] = OWN_KEYS, **parameters: Any) -> Asked:
    """The run's models and parameters: of the wanted teams, by key, those whose models are there. `parameters` are
    the workflow's: passes, checker, prompts. `UserError` where nobody can play."""
    wanted = [team for team in TEAMS if team.key in teams]
    playing = [team for team in wanted if not models.missing(team)]
    if not playing:
        raise UserError(f"no team can play: {'; '.join(f'{one.name} lacks {models.missing(one)}' for one in wanted)}")
    specs, cast = models.named(playing)
    return Asked(specs, {"cast": cast, "teams": [team.key for team in playing], **parameters})


def evaluate(
    rows: str,
    *,
    models: RoleModels,
    teams: Sequence[str] = OWN_KEYS,
    problems: int | None = None,
    seeds: int = 1,
    directory: str | Path | None = None,
    **parameters: Any,
) -> Run:
    """A run of `contest`, prepared: iterating runs it, `evaluated(...)` reads it. Each seed answers every problem once,
    with other samples."""
    it = asked(models, teams, **parameters)
    return run(
        contest, rows, models=it.models, parameters=it.parameters, trials=seeds, limit=problems, directory=directory
    )


def evaluated(directory: str | Path) -> Evaluated:
    """What a finished run of `contest` found."""
    parameters = load_config(Path(directory)).parameters
    passes = parameters.get("passes", PASSES)
    teams = tuple(team for team in TEAMS if team.key in parameters["teams"])
    lacks = {team: [f"{training} {role}" for role, training in team.cast] for team in TEAMS}
    left_out = {team: [one for one in needs if one not in parameters["cast"]] for team, needs in lacks.items()}
    found = outcomes(stories_of(Path(directory)), systems_of(teams, passes))
    return Evaluated(found, teams, passes, {team: lacking for team, lacking in left_out.items() if lacking})


def stories_of(directory: Path, most: int | None = None) -> Iterator[Story]:
    """The tasks that have ended, or the first of them."""
    load_config(directory)
    reader = JournalReader(directory)
    teller = storyteller(directory, reader)
    places = reader.places([task.task for task in islice(reader.tasks(), most) if task.state])
    for _, events in reader.histories(places):
        yield teller.tell(events)


def watched(going: Run) -> list[Task]:
    """Run to the end, with progress on standard error; Ctrl-C lets calls in flight finish, as in `weaverant run`."""
    tasks: list[Task] = []
    Driver(going, tasks.append).go_on()
    return tasks


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
    out = None if options.out is None else folder(options.out)
    directory = None if options.run is None else Path(options.run)
    began = time.perf_counter()
    going = _again(options, directory) if directory and (directory / "run.json").exists() else _anew(options, directory)
    Driver(going, lambda _: None).go_on()
    if stopped(going):
        again = f"python -m weaverant.recipes.malt.evaluate --run {going.directory}"
        print(f"to go on: {again}", file=sys.stderr)
        return going.exit_code
    seconds = time.perf_counter() - began
    assert going.directory is not None, "an evaluation keeps a journal"
    found = evaluated(going.directory)
    told = document(found)
    print(f"\n{going.config.input}; models: {_named(going.config)}\n")
    for table in tables(found):
        print("\n".join([*table.lines(), ""]))
    print("\n".join(notes(found)))
    print(f"\n{going.ledger.calls:,} calls in {seconds:.1f} s; every reply is in {going.directory}")
    if out is not None:
        write(found, told, out)
        print(f"evaluation.json, evaluation.md and accuracy.svg are in {out}/")
    print(json.dumps(told))
    return going.exit_code


def write(found: Evaluated, told: dict[str, Any], out: Path) -> None:
    """The document, the tables for a page, the bars."""
    page = "\n\n".join("\n".join(table.markdown()) for table in tables(found))
    points = "\n".join(f"* {line}" for line in notes(found))
    (out / "evaluation.json").write_text(json.dumps(told, indent=2) + "\n", "utf-8")
    (out / "evaluation.md").write_text(f"{page}\n\n{points}\n", "utf-8")
    (out / "accuracy.svg").write_text(bars(found), "utf-8")


def folder(name: str) -> Path:
    """The folder, made if need be, before anything is paid for."""
    path = Path(name)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {name!r} cannot be a folder: {error.strerror}") from None
    return path


def _anew(options: argparse.Namespace, directory: Path | None) -> Run:
    return evaluate(
        options.input or INPUT,
        models=_models(options) or given_models({"base": [MODEL]}),
        teams=options.team or OWN_KEYS,
        problems=options.problems,
        seeds=options.seeds or 1,
        directory=directory,
        passes=options.passes or PASSES,
        checker=options.checker or "auto",
        prompts=options.prompts or "auto",
    )


def _again(options: argparse.Namespace, directory: Path) -> Run:
    """The run, to go on with or to be read again; what failed is taken up again. `UserError` where the options say
    otherwise than it began with."""
    config = load_config(directory)
    began = {"input": config.input, "problems": config.limit, "seeds": config.trials} | config.parameters
    given = {name: getattr(options, name) for name in ("problems", "seeds", "passes", "checker", "prompts")}
    given["input"] = options.input and (
        str(Path(options.input).resolve()) if Path(options.input).exists() else options.input
    )
    models = _models(options)
    if models is not None:
        it = asked(models, config.parameters.get("teams", OWN_KEYS))
        began["models"], given["models"] = config.models, it.models
    for name, value in given.items():
        if value is not None and value != began.get(name):
            raise UserError(f"the run {str(directory)!r} began with {name} {began.get(name)!r}; found {value!r}")
    return resume(directory, workflow=contest, retry=True)


def _models(options: argparse.Namespace) -> RoleModels | None:
    given: dict[Training, list[str]] = {
        training: getattr(options, training) for training in TRAININGS if getattr(options, training)
    }
    if options.models is not None:
        if given:
            raise UserError(f"--models names all models: leave out {', '.join(f'--{name}' for name in given)}")
        return read_models(options.models)
    return given_models(given) if given else None


def _named(config: RunConfig) -> str:
    return ", ".join(f"{name}={spec}" for name, spec in config.models.items())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m weaverant.recipes.malt.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--input", help=f"rows with question and answer (default {INPUT})")
    add("--problems", "--limit", type=int, metavar="N", help="take the first rows only")
    add("--seeds", type=int, metavar="N", help="answer every problem so often, with other samples (default 1)")
    add("--models", metavar="FILE", help="models.json, as training writes it: base, star, sft, dpo")
    add("--base", "--model", action="append", metavar="SPEC", help=f"SPEC or ROLE=SPEC (default {MODEL})")
    for training, about in (
        ("star", "SPEC of the generator, or ROLE=SPEC"),
        ("sft", "SPEC or ROLE=SPEC"),
        ("dpo", "verifier=SPEC and refiner=SPEC"),
    ):
        add(f"--{training}", action="append", metavar="SPEC", help=about)
    add("--team", action="append", choices=OWN_KEYS, help="only this team; may be given again (default all)")
    add("--passes", type=int, metavar="N", help=f"passes that vote (default {PASSES})")
    add("--checker", help="auto (default), number, choice, exact, math, code, or FILE.py:FUNCTION")
    add("--prompts", choices=get_args(Prompts))
    add("--run", metavar="DIR", help="a new directory for the run (default runs/contest-TIME), or one to go on with")
    add("--out", metavar="DIR", help="write evaluation.json, evaluation.md and accuracy.svg there")
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
