"""`weaverant train malt`: all roles of one run, in the paper's order, several at once where they do not wait for each
other. Killed and started again it goes on, and ends with the same bytes."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from msgspec import to_builtins

from weaverant.engines.embedded import EmbeddedEngine
from weaverant.errors import UserError
from weaverant.recipes.malt.loop.jobs import run_jobs
from weaverant.recipes.malt.loop.kept import begin, check, write_json
from weaverant.recipes.malt.loop.order import DPO, SFT, Order, order_of, trained_specs
from weaverant.recipes.malt.loop.sets import finished_run, write_sets
from weaverant.recipes.malt.roles import RoleModels, read_models
from weaverant.recipes.malt.team import ROLES, Role
from weaverant.recipes.malt.values import Rule
from weaverant.rundir import load_config
from weaverant.summary import has_finished
from weaverant.train import DpoConfig, SftConfig, check_stack
from weaverant.train.checkpoint import held, model_digest
from weaverant.train.estimate import shape_of
from weaverant.train.watch import Say
from weaverant.train.work import SMALL

SETTINGS = "malt.json"
MODELS = "models.json"
MINE = ("data", "sft", "dpo", "star", MODELS)


def train_roles(
    run: Path,
    out: Path,
    models: Mapping[Role, Path],
    base: str | Mapping[Role, str],
    say: Say,
    *,
    rule: Rule | None = None,
    sft: SftConfig = SFT,
    dpo: DpoConfig = DPO,
    star: bool = True,
    jobs: int = 0,
    alone: bool = True,
) -> RoleModels:
    """Train each role from its folder in `models` on what the run's trees say of it, into `out`: `data/`, `sft/ROLE`,
    `dpo/ROLE`, `star`, and last `models.json`, in which `base` stands as it is given.

    `rule` gives other labels than the trees were grown for. `jobs` is how many trainings run at once, 0 to choose.
    With `alone` nothing else may be in a new `out`. `RunLocked` where another process trains there.
    What is finished in `out` is not done again. Raises `UserError`, `WeaverantError`.
    """
    if jobs < 0:
        raise UserError(f"--jobs counts trainings at once, 0 to choose; found {jobs}")
    check_stack()
    trees = finished_run(run)
    if not has_finished(run):
        say(f"warning: the run {run} has not finished; this trains on the {trees:,} trees that it has")
    settings = settings_of(run, trees, models, rule, sft, dpo, star)
    check(out, SETTINGS, settings, MINE, alone=alone)
    with held(out):
        begin(out, SETTINGS, settings, MINE, alone=alone)
        sets = write_sets(run, out / "data", rule)
        order = order_of(out, sets, models, sft, dpo, star)
        for line in told(order):
            say(line)
        left = [step for step in order.steps if not step.is_finished()]
        for step in order.steps:
            if step not in left:
                say(f"{step.name}: finished before, in {step.folder}")
        if left:
            run_jobs([step.job() for step in left], jobs or usual_jobs(models.values(), sft), say)
        write_models(out, order, base)
        return read_models(out / MODELS)


def settings_of(
    run: Path, trees: int, models: Mapping[Role, Path], rule: Rule | None, sft: SftConfig, dpo: DpoConfig, star: bool
) -> dict[str, Any]:
    """What one training is told from another by."""
    return {
        "run": load_config(run).run,
        "trees": trees,
        "rule": None if rule is None else rule._asdict(),
        "models": {role: model_digest(folder) for role, folder in models.items()},
        "sft": to_builtins(sft),
        "dpo": to_builtins(dpo),
        "star": star,
    }


def told(order: Order) -> Iterator[str]:
    """What is to be trained, and what is not."""
    for step in order.steps:
        yield f"{step.name}: {step.samples:,} {'pairs' if step.method == 'dpo' else 'replies'}, from {step.model}"
    yield from order.left_out


def write_models(out: Path, order: Order, base: str | Mapping[Role, str]) -> None:
    """`models.json`, with folders as they are found from it."""
    specs = {step.folder: spec_of(step.folder, out) for step in order.steps}
    alike = set(base.values()) if not isinstance(base, str) else {base}
    write_json(out / MODELS, trained_specs(order, alike.pop() if len(alike) == 1 else base, specs))


def spec_of(folder: Path, beside: Path | None = None) -> str:
    """What plays a folder: `embedded:FOLDER` where that can be; else the folder alone, which wants a server."""
    name = str(folder.relative_to(beside) if beside is not None else folder)
    return f"embedded:{name}" if is_embeddable(folder) else name


def is_embeddable(folder: Path) -> bool:
    """Whether the embedded engine runs it."""
    try:
        EmbeddedEngine.open(str(folder.resolve()))
    except UserError:
        return False
    return True


def usual_jobs(folders: Iterable[Path], config: SftConfig) -> int:
    """As many as there are processors, for small models on a processor; else one at a time."""
    small = all(shape_of(folder).parameters < SMALL for folder in folders)
    if not small or config.threads > 1 or config.device == "cuda":
        return 1
    return max(1, min(len(ROLES) + 1, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1))


def commands(order: Order) -> Iterator[str]:
    """The same by hand."""
    for step in order.steps:
        yield shlex.join(["weaverant", *step.arguments])
