"""How MALT's gain depends on the branching n, on theta, and on the base: weave, train, evaluate, for each of them.

    python bench/malt_sweeps.py --out out/sweeps    # n = 2, 3, 4 at theta 0.5; theta = 0.34, 0.5, 0.67 at n = 3
    python bench/malt_sweeps.py --out out/sweeps --base weaker

The same questions for every n. Trees are woven once for an n; another theta only labels them anew. The cell that all
others differ from in one thing is also trained with other seeds, which says how much of a difference is chance. Killed,
the same command goes on; finished, it prints its table again. It needs the extra `train`, and takes an hour or two.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import report
from msgspec import structs
from sweeps_figure import Bar, figure

from weaverant import UserError, resume, run
from weaverant.cli.driver import Driver
from weaverant.engines.embedded import PACKAGED
from weaverant.recipes.malt.contest import contest
from weaverant.recipes.malt.evaluate import evaluate, evaluated, stopped
from weaverant.recipes.malt.loop.kept import begin
from weaverant.recipes.malt.loop.order import order_of
from weaverant.recipes.malt.loop.sets import Sets, finished_run, write_sets
from weaverant.recipes.malt.loop.training import SETTINGS, settings_of, train_roles
from weaverant.recipes.malt.outcomes import Accuracy, Comparison, Outcomes
from weaverant.recipes.malt.recipe import SOURCE
from weaverant.recipes.malt.roles import RoleModels, given_models
from weaverant.recipes.malt.systems import MA, MALT, SA, System, Team
from weaverant.recipes.malt.team import ROLES
from weaverant.recipes.malt.tree import branching_of
from weaverant.recipes.malt.values import Rule
from weaverant.session import Run
from weaverant.summary import has_finished
from weaverant.train import DpoConfig, SftConfig

HELD_OUT = "arithmetic:heldout"
PASSES = 3
TINY, WEAKER = "tiny", "weaker"
MAKER = Path(__file__).parents[1] / "training/tiny/weaker.py"


class Cell(NamedTuple):
    """One training of the team: how its trees were grown and labelled, and the seed of its trainings."""

    branching: int = 3
    theta: float = 0.5
    seed: int = 0

    @property
    def name(self) -> str:
        return f"n{self.branching}-theta{self.theta:g}" + (f"-seed{self.seed}" if self.seed else "")

    @property
    def title(self) -> str:
        return f"n = {self.branching}, theta = {self.theta:g}" + (f", seed {self.seed}" if self.seed else "")


REFERENCE = Cell()
"""What the others differ from in one thing."""


class Settings(NamedTuple):
    """What all cells have in common."""

    questions: int
    problems: int
    seeds: int
    """Of the evaluation: other samples on the same problems."""
    sft: SftConfig
    dpo: DpoConfig
    jobs: int


class Found(NamedTuple):
    """What came of a cell. `against` is its vote held against the untrained team's."""

    cell: Cell
    calls: int
    sets: dict[str, int]
    single: Accuracy
    vote: Accuracy
    against: Comparison


class Stopped(Exception):
    """A run was stopped before its end; the code to exit with."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; gives its exit code."""
    options = _parser().parse_args(arguments)
    settings = Settings(
        options.questions,
        options.problems,
        options.seeds,
        SftConfig(epochs=options.epochs, lr=options.lr),
        DpoConfig(epochs=options.dpo_epochs, lr=options.dpo_lr, sft_weight=1.0),
        options.jobs,
    )
    cells = cells_of(_numbers(options.branching, int), _numbers(options.theta, float), options.trainings)
    out = Path(options.out)
    began = time.perf_counter()
    rows: list[dict[str, Any]] = []
    try:
        for base in options.base or (TINY, WEAKER):
            rows += swept(base, cells, settings, out)
    except Stopped as end:
        print(f"to go on: the same command again; what was done is kept in {out}", file=sys.stderr)
        return int(end.args[0])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{time.perf_counter() - began:.0f} s in this session; every reply and every model is in {out}")
    (out / "malt-sweeps.json").write_text(json.dumps({"target": "malt-sweeps", "rows": rows}, indent=1) + "\n", "utf-8")
    (out / "malt-sweeps.svg").write_text(figure(_bars(rows)), "utf-8")
    report.finish("malt-sweeps", rows)
    return 0


def cells_of(branchings: Sequence[int], thetas: Sequence[float], trainings: int) -> list[Cell]:
    """The reference and what differs from it in one thing, each once."""
    wanted = [REFERENCE._replace(branching=n) for n in branchings]
    wanted += [REFERENCE._replace(theta=theta) for theta in thetas]
    wanted += [REFERENCE._replace(seed=seed) for seed in range(1, trainings)]
    return sorted({REFERENCE, *wanted}, key=lambda cell: (cell.seed, cell != REFERENCE, cell))


def swept(base: str, cells: Sequence[Cell], settings: Settings, out: Path) -> list[dict[str, Any]]:
    """All cells of a base, its table printed. Raises `Stopped`, `UserError`."""
    folder = out / base
    kept = {name: value for name, value in settings._asdict().items() if name not in ("sft", "dpo", "jobs")}
    begin(folder, "sweeps.json", kept | {"base": base, "sft": repr(settings.sft), "dpo": repr(settings.dpo)})
    model = PACKAGED / TINY if base == TINY else weaker(out)
    spec = "embedded:tiny" if base == TINY else f"embedded:{model.resolve()}"
    untrained = contested(given_models({"base": [spec]}), (SA, MA), settings, folder / "untrained")
    found: list[Found] = []
    done: list[Path] = []
    for cell in cells:
        say(f"{base}: {cell.title}")
        woven = weave(spec, cell.branching, settings.questions, folder / f"weave-n{cell.branching}")
        trained, sets = train(woven, folder / cell.name, model, spec, cell, settings, done)
        done.append(folder / cell.name)
        outcomes = contested(trained, (MALT,), settings, folder / f"{cell.name}-evaluated")
        found.append(_found(cell, settings, sets, outcomes, untrained))
        say(f"{base}: {cell.title}: the vote of MALT is right in {found[-1].vote.spread.mean:.1%}")
    found.sort(key=lambda one: (one.cell.seed, one.cell))
    _print(base, settings, found, untrained)
    return [*_told_untrained(base, untrained), *(_told(base, settings, one) for one in found)]


def weaker(out: Path) -> Path:
    """The base with weaker planted habits, made by its script unless it is there."""
    model = out / "weaker-model" / "weaker"
    made = subprocess.run([sys.executable, str(MAKER), "--out", str(model)], stdout=sys.stderr)
    if made.returncode:
        raise Stopped(made.returncode)
    return model


def weave(spec: str, branching: int, questions: int, directory: Path) -> Path:
    """The trees of so many questions, grown once."""
    if not _is_finished(directory):
        began = (directory / "run.json").exists()
        _driven(
            resume(directory, retry=True)
            if began
            else run(
                "malt",
                SOURCE,
                models={"*": spec},
                parameters={"branching": branching},
                limit=questions,
                directory=directory,
            )
        )
    return directory


def train(
    woven: Path, out: Path, model: Path, spec: str, cell: Cell, settings: Settings, done: Sequence[Path]
) -> tuple[RoleModels, Sets]:
    """The roles of a cell. A training that an earlier cell has done on the same samples is taken from there: theta
    leaves the refiner's labels as they are."""
    models, rule = dict.fromkeys(ROLES, model), Rule(theta=cell.theta)
    sft, dpo = (_seeded(config, cell.seed) for config in (settings.sft, settings.dpo))
    begin(out, SETTINGS, settings_of(woven, finished_run(woven), models, rule, sft, dpo, False))
    sets = write_sets(woven, out / "data", rule)
    for step in order_of(out, sets, models, sft, dpo, star=False).steps:
        for other in done:
            there = other / step.folder.relative_to(out)
            if not step.folder.exists() and _is_same(step._replace(folder=there)):
                unfinished = step.folder.with_name(step.folder.name + ".tmp")
                shutil.rmtree(unfinished, ignore_errors=True)
                shutil.copytree(there, unfinished)
                unfinished.rename(step.folder)
    trained = train_roles(woven, out, models, spec, say, rule=rule, sft=sft, dpo=dpo, star=False, jobs=settings.jobs)
    return trained, sets


def contested(models: RoleModels, teams: Sequence[Team], settings: Settings, directory: Path) -> Outcomes:
    """The teams on the held-out problems."""
    if not _is_finished(directory):
        began = (directory / "run.json").exists()
        _driven(
            resume(directory, workflow=contest, retry=True)
            if began
            else evaluate(
                HELD_OUT,
                models=models,
                teams=[team.key for team in teams],
                problems=settings.problems,
                seeds=settings.seeds,
                directory=directory,
                passes=PASSES,
            )
        )
    return evaluated(directory).outcomes


def _found(cell: Cell, settings: Settings, sets: Sets, outcomes: Outcomes, untrained: Outcomes) -> Found:
    both = outcomes._replace(right=outcomes.right | untrained.right)
    single, vote = System(MALT, 1), System(MALT, PASSES)
    return Found(
        cell,
        settings.questions * branching_of(cell.branching).calls,
        sets.lines,
        outcomes.accuracy(single),
        outcomes.accuracy(vote),
        both.compare(vote, System(MA, PASSES)),
    )


UNTRAINED = (System(SA, 1), System(SA, PASSES * MA.calls, extra=True), System(MA, 1), System(MA, PASSES))
"""What a base can do without training, the vote of lone agents for as many calls as a team's vote."""


def _told_untrained(base: str, untrained: Outcomes) -> Iterator[dict[str, Any]]:
    for system in UNTRAINED:
        accuracy = untrained.accuracy(system)
        yield report.row(
            f"{base}: {system.name}", accuracy.spread.mean, base=base, system=system.key, **_interval(accuracy)
        )


def _told(base: str, settings: Settings, found: Found) -> dict[str, Any]:
    return report.row(
        f"{base}: MALT, {found.cell.title}",
        found.vote.spread.mean,
        base=base,
        system=f"malt@{PASSES}",
        **found.cell._asdict(),
        **_interval(found.vote),
        single={"value": round(found.single.spread.mean, 4), **_interval(found.single)},
        against_untrained_vote={
            "difference": round(found.against.difference, 4),
            "low": round(found.against.interval.low, 4),
            "high": round(found.against.interval.high, 4),
        },
        questions=settings.questions,
        problems=settings.problems,
        seeds=settings.seeds,
        calls=found.calls,
        samples={name.removesuffix(".jsonl"): lines for name, lines in found.sets.items() if name != "dropped.jsonl"},
    )


def _print(base: str, settings: Settings, found: Sequence[Found], untrained: Outcomes) -> None:
    seeds = "1 seed" if settings.seeds == 1 else f"{settings.seeds} seeds"
    print(
        f"\nbase {base}: {settings.questions:,} questions woven; right answers in % to {settings.problems:,} held-out "
        f"problems, {seeds}; [95 % intervals]: Wilson, and of the difference the paired bootstrap"
    )
    head = ["system", "calls woven", "SFT g / v / r", "pairs v / r", "single pass", f"vote of {PASSES}", "vote - MA+MV"]
    lines: list[list[Any]] = []
    for one, vote in ((UNTRAINED[0], UNTRAINED[1]), (UNTRAINED[2], UNTRAINED[3])):
        name = "untrained team (MA)" if one.team == MA else f"lone agent, and a vote of {vote.votes}"
        lines.append([name, "", "", "", *(_shown(untrained.accuracy(each)) for each in (one, vote)), ""])
    for one in found:
        low, high = one.against.interval
        lines.append(
            [
                f"MALT, {one.cell.title}",
                f"{one.calls:,}",
                " / ".join(f"{one.sets.get(f'sft-{role}.jsonl', 0):,}" for role in ROLES),
                " / ".join(f"{one.sets.get(f'preference-{role}.jsonl', 0):,}" for role in ROLES[1:]),
                _shown(one.single),
                _shown(one.vote),
                f"{100 * one.against.difference:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]",
            ]
        )
    report.table(head, lines)
    print(flush=True)


def _shown(accuracy: Accuracy) -> str:
    low, high = accuracy.interval
    return f"{100 * accuracy.spread.mean:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def _interval(accuracy: Accuracy) -> dict[str, float]:
    return {"low": round(accuracy.interval.low, 4), "high": round(accuracy.interval.high, 4)}


def _bars(rows: Sequence[dict[str, Any]]) -> Iterator[Bar]:
    """Of each base the votes."""
    for row in rows:
        if row["system"] not in ("sa@1", "ma@1"):
            group, name = row["name"].split(": ", 1)
            yield Bar(group, name, row["value"], row["low"], row["high"], "branching" in row)


def _is_same(step: Any) -> bool:
    """Whether the step's folder holds this very training, finished; another in its place is none."""
    try:
        return step.is_finished()
    except UserError:
        return False


def _is_finished(directory: Path) -> bool:
    return (directory / "run.json").exists() and has_finished(directory)


def _driven(going: Run) -> None:
    Driver(going, lambda _: None).go_on()
    if stopped(going):
        raise Stopped(going.exit_code)


def _seeded(config: Any, seed: int) -> Any:
    return structs.replace(config, seed=seed)


def _numbers(text: str, kind: type) -> list[Any]:
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"expected numbers such as 2,3,4; found {text!r}") from None


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--out", default="out/sweeps", metavar="DIR", help="a new folder, or one to go on with (default out/sweeps)")
    add("--base", action="append", choices=(TINY, WEAKER), help="only this base (default both)")
    add("--branching", default="2,3,4", metavar="N,N", help="at theta 0.5 (default 2,3,4)")
    add("--theta", default="0.34,0.5,0.67", metavar="T,T", help="at n = 3 (default 0.34,0.5,0.67)")
    add("--trainings", type=int, default=3, metavar="N", help="of the cell with n = 3 and theta 0.5 (default 3)")
    add("--questions", type=int, default=300, metavar="N", help="to weave for each n (default 300)")
    add("--problems", type=int, default=1_000, metavar="N", help="held out, to evaluate on (default 1,000)")
    add("--seeds", type=int, default=3, metavar="N", help="answer every problem so often (default 3)")
    add("--epochs", type=int, default=3, help="of SFT (default 3)")
    add("--lr", type=float, default=3e-4, help="of SFT (default 3e-4)")
    add("--dpo-epochs", type=int, default=3, help="(default 3)")
    add("--dpo-lr", type=float, default=3e-4, help="(default 3e-4)")
    add("--jobs", type=int, default=0, metavar="N", help="trainings at once (default as many as there are processors)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
