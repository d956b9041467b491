"""How MALT's gain depends on the branching n, on theta, on DPO's settings, and on the base it begins with.

    python bench/malt_sweeps.py --out out/malt-sweeps
    python bench/malt_sweeps.py --out out/malt-sweeps --base weaker --theta 0.34,0.67

Weaves, trains and evaluates for each cell, which differs from one reference (n = 3, theta = 0.5) in one thing. The
same questions for every n; trees are woven once for an n, another theta only labels them anew. The reference is also
trained with other seeds, which says how much of a difference is chance. Killed, the same command goes on; finished, it
prints its table again, and more cells may be added. It needs the extra `train`, and takes hours.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import report
from msgspec import structs
from sweeps_figure import figure
from sweeps_told import PASSES, REFERENCE, Cell, Found, Settings, bars, row_of, rows_untrained, table_of

from weaverant import UserError, run
from weaverant.engines.embedded import PACKAGED
from weaverant.recipes.malt.contest import contest
from weaverant.recipes.malt.evaluate import asked, evaluate, evaluated
from weaverant.recipes.malt.loop.habits import planted_habits, told_habits
from weaverant.recipes.malt.loop.kept import begin
from weaverant.recipes.malt.loop.order import DPO, SFT, order_of
from weaverant.recipes.malt.loop.playing import Stopped, play
from weaverant.recipes.malt.loop.sets import Sets, finished_run, write_sets
from weaverant.recipes.malt.loop.training import MINE, SETTINGS, settings_of, train_roles
from weaverant.recipes.malt.outcomes import Outcomes
from weaverant.recipes.malt.recipe import SOURCE
from weaverant.recipes.malt.roles import RoleModels, given_models
from weaverant.recipes.malt.systems import MA, MALT, SA, System, Team
from weaverant.recipes.malt.team import ROLES
from weaverant.recipes.malt.tree import branching_of
from weaverant.recipes.malt.values import Rule

HELD_OUT = "arithmetic:heldout"
TINY, WEAKER = "tiny", "weaker"
NO_CAP = 0.0
"""Embedded models cost nothing."""
MAKER = Path(__file__).parents[1] / "training/tiny/weaker.py"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; gives its exit code."""
    options = _parser().parse_args(arguments)
    settings = Settings(
        options.questions,
        options.problems,
        options.seeds,
        structs.replace(SFT, epochs=options.epochs, lr=options.lr),
        structs.replace(DPO, epochs=options.dpo_epochs),
        options.jobs,
    )
    out = Path(options.out)
    began = time.perf_counter()
    rows: list[dict[str, Any]] = []
    pages: list[str] = []
    try:
        cells = cells_of(
            branching=_numbers(options.branching, int),
            theta=_numbers(options.theta, float),
            dpo_lr=_numbers(options.dpo_lr, float),
            sft_weight=_numbers(options.sft_weight, float),
            seed=range(options.trainings),
        )
        for base in options.base or (TINY, WEAKER):
            told, page = swept(base, cells, settings, out)
            rows += told
            pages.append(page)
    except Stopped as end:
        say(str(end))
        return end.code
    except UserError as error:
        say(f"error: {error}")
        return 2
    print(f"{time.perf_counter() - began:.0f} s in this session; every reply and every model is in {out}")
    (out / "malt-sweeps.json").write_text(json.dumps({"target": "malt-sweeps", "rows": rows}, indent=1) + "\n", "utf-8")
    (out / "malt-sweeps.md").write_text("\n".join(pages), "utf-8")
    (out / "malt-sweeps.svg").write_text(figure(bars(rows)), "utf-8")
    report.finish("malt-sweeps", rows)
    return 0


def cells_of(**values: Iterable[float]) -> list[Cell]:
    """The reference, and what differs from it in one field by one of these values; each once."""
    wanted = [REFERENCE._replace(**{field: value}) for field, given in values.items() for value in given]
    return list(dict.fromkeys([*wanted, REFERENCE]))


def swept(base: str, cells: Sequence[Cell], settings: Settings, out: Path) -> tuple[list[dict[str, Any]], str]:
    """All cells of a base, its table printed: the rows, and the table for a page. Raises `Stopped`, `UserError`."""
    folder = out / base
    kept = {name: value for name, value in settings._asdict().items() if name not in ("sft", "dpo", "jobs")}
    begin(
        folder,
        "sweeps.json",
        kept | {"base": base, "sft": repr(settings.sft), "dpo": repr(settings.dpo)},
        ("untrained",),
    )
    model = PACKAGED / TINY if base == TINY else weaker(out)
    spec = "embedded:tiny" if base == TINY else f"embedded:{model.resolve()}"
    untrained = contested(given_models({"base": [spec]}), (SA, MA), settings, folder / "untrained")
    found: list[Found] = []
    done: list[Path] = []
    for cell in sorted(cells, key=lambda cell: cell != REFERENCE):  # others take over what the reference has trained
        say(f"{base}: {cell.title}")
        woven = weave(spec, cell.branching, settings.questions, folder / f"weave-n{cell.branching}")
        trained, sets = train(woven, folder / cell.name, model, spec, cell, settings, done)
        done.append(folder / cell.name)
        outcomes = contested(trained, (MALT,), settings, folder / f"{cell.name}-evaluated")
        found.append(_found(cell, settings, sets, outcomes, untrained))
        say(f"{base}: {cell.title}: the vote of MALT is right in {found[-1].vote.spread.mean:.1%}")
    found.sort(key=lambda one: cells.index(one.cell))
    table = table_of(base, settings, found, untrained)
    table.put()
    habits = told_habits(habits_of(base))
    print(habits)
    rows = [*rows_untrained(base, untrained), *(row_of(base, settings, one) for one in found)]
    return rows, f"{table.markdown()}\n{habits}\n"


def weaker(out: Path) -> Path:
    """The base with weaker planted habits, made by its script unless it is there."""
    model = out / "weaker-model" / "weaker"
    made = subprocess.run([sys.executable, str(MAKER), "--out", str(model)], stdout=sys.stderr)
    if made.returncode:
        raise Stopped(f"{MAKER} ended with {made.returncode}", made.returncode)
    return model


def habits_of(base: str) -> dict[str, float]:
    """What was planted in a base, and how often each habit shows."""
    habits = planted_habits("embedded:tiny")
    if base == WEAKER:
        sys.path.insert(0, str(MAKER.parent))
        import weaker

        habits |= asdict(weaker.WEAKER)
    return habits


def weave(spec: str, branching: int, questions: int, directory: Path) -> Path:
    """The trees of so many questions, grown once."""
    models, grown = {"*": spec}, {"branching": branching}
    play(
        directory,
        lambda: run("malt", SOURCE, models=models, parameters=grown, limit=questions, directory=directory),
        models,
        budget=NO_CAP,
    )
    return directory


def train(
    woven: Path, out: Path, model: Path, spec: str, cell: Cell, settings: Settings, done: Sequence[Path]
) -> tuple[RoleModels, Sets]:
    """The roles of a cell. A training that another cell has done on the same samples is taken from there: theta
    leaves a refiner's labels as they are, and what DPO is told changes no SFT."""
    models, rule = dict.fromkeys(ROLES, model), Rule(theta=cell.theta)
    sft = structs.replace(settings.sft, seed=cell.seed)
    dpo = structs.replace(settings.dpo, seed=cell.seed, lr=cell.dpo_lr, sft_weight=cell.sft_weight)
    begin(out, SETTINGS, settings_of(woven, finished_run(woven), models, rule, sft, dpo, False), MINE)
    sets = write_sets(woven, out / "data", rule)
    for step in order_of(out, sets, models, sft, dpo, star=False).steps:
        for other in done:
            there = other / step.folder.relative_to(out)
            if not step.folder.exists() and _is_same(step._replace(folder=there)):
                unfinished = step.folder.with_name(step.folder.name + ".tmp")
                shutil.rmtree(unfinished, ignore_errors=True)
                shutil.copytree(there, unfinished)
                unfinished.rename(step.folder)
    trained = train_roles(
        woven, out, models, spec, say, rule=rule, sft=sft, dpo=dpo, star=False, jobs=settings.jobs, alone=False
    )
    return trained, sets


def contested(models: RoleModels, teams: Sequence[Team], settings: Settings, directory: Path) -> Outcomes:
    """The teams on the held-out problems."""
    keys = [team.key for team in teams]
    play(
        directory,
        lambda: evaluate(
            HELD_OUT,
            models=models,
            teams=keys,
            problems=settings.problems,
            seeds=settings.seeds,
            directory=directory,
            passes=PASSES,
        ),
        asked(models, keys).models,
        budget=NO_CAP,
        workflow=contest,
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


def _is_same(step: Any) -> bool:
    """Whether the step's folder holds this very training, finished; another in its place is none."""
    try:
        return step.is_finished()
    except UserError:
        return False


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
    add(
        "--out",
        default="out/malt-sweeps",
        metavar="DIR",
        help="a new folder, or one to go on with (default out/malt-sweeps)",
    )
    add("--base", action="append", choices=(TINY, WEAKER), help="only this base (default both)")
    add("--branching", default="2,3,4", metavar="N,N", help="at theta 0.5 (default 2,3,4)")
    add("--theta", default="0.34,0.5,0.67", metavar="T,T", help="at n = 3 (default 0.34,0.5,0.67)")
    add("--dpo-lr", default=f"1e-4,{DPO.lr:g},1e-3", metavar="R,R", help=f"(default 1e-4,{DPO.lr:g},1e-3)")
    add("--sft-weight", default="0,1", metavar="W,W", help="beside DPO's loss (default 0,1)")
    add("--trainings", type=int, default=3, metavar="N", help="of the reference, each with its seed (default 3)")
    add("--questions", type=int, default=300, metavar="N", help="to weave for each n (default 300)")
    add("--problems", type=int, default=1_000, metavar="N", help="held out, to evaluate on (default 1,000)")
    add("--seeds", type=int, default=3, metavar="N", help="answer every problem so often (default 3)")
    add("--epochs", type=int, default=SFT.epochs, help=f"of SFT (default {SFT.epochs})")
    add("--lr", type=float, default=SFT.lr, help=f"of SFT (default {SFT.lr:g})")
    add("--dpo-epochs", type=int, default=DPO.epochs, help=f"of DPO (default {DPO.epochs})")
    add("--jobs", type=int, default=0, metavar="N", help="trainings at once (default as many as there are processors)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
