"""`weaverant train malt`: from a run of the recipe to its trained roles."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from msgspec import structs

from weaverant.cli.streams import put, tell
from weaverant.cli.train import STOPPED, model_folder
from weaverant.errors import UserError
from weaverant.recipes.malt.loop.kept import check
from weaverant.recipes.malt.loop.order import DPO, SFT, order_of
from weaverant.recipes.malt.loop.plan import plans
from weaverant.recipes.malt.loop.sets import finished_run, write_sets
from weaverant.recipes.malt.loop.training import (
    MINE,
    MODELS,
    SETTINGS,
    commands,
    settings_of,
    spec_of,
    told,
    train_roles,
)
from weaverant.recipes.malt.team import ROLES
from weaverant.recipes.malt.values import Rule
from weaverant.train import DpoConfig, SftConfig

BOTH = (
    "batch_size", "micro_batch", "max_length", "lora", "lora_alpha", "warmup", "schedule", "weight_decay", "seed",
    "save_every", "device", "threads",
)  # fmt: skip
"""Settings of SFT and DPO alike."""

RULE = ("theta", "values", "min_confidence", "max_pairs")


def train_roles_command(options: argparse.Namespace) -> int:
    run, out, folder = Path(options.data), Path(options.out), model_folder(options.model)
    for name, why in (("reference", "each DPO's reference is the SFT it begins with"), ("force", "give another --out")):
        if getattr(options, name):
            raise UserError(f"--{name} means nothing to `train malt`: {why}")
    sft, dpo = configs_of(options)
    rule = rule_of_flags(options)
    models = dict.fromkeys(ROLES, folder)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if options.dry_run:
        settings = settings_of(run, finished_run(run), models, rule, sft, dpo, not options.no_star)
        check(out, SETTINGS, settings, MINE, alone=True)
        with TemporaryDirectory() as place:
            sets = write_sets(run, Path(place) / "data", rule)
            order = order_of(Path(place), sets, models, sft, dpo, not options.no_star)
            put("\n".join([*told(order), *plans(order, models)]))
            put("\n".join(line.replace(place, str(out)) for line in commands(order)))
        put(f"nothing was written; without --dry-run it trains into {out}")
        return 0
    base = options.model if options.model.startswith("embedded:") else spec_of(folder.resolve())
    say = _quiet if options.quiet else tell
    try:
        train_roles(
            run, out, models, base, say, rule=rule, sft=sft, dpo=dpo, star=not options.no_star, jobs=options.jobs or 0
        )
    except KeyboardInterrupt:
        tell(f"stopped: the same command goes on in {out}")
        return STOPPED
    if not options.quiet:
        put(f"{out / MODELS}: which model plays which role; to compare them with the base and with STaR:")
        put(f"  python -m weaverant.recipes.malt.evaluate --models {out / MODELS} --input ROWS --seeds 3")
    return 0


def configs_of(options: argparse.Namespace) -> tuple[SftConfig, DpoConfig]:
    """The settings of both trainings. `--epochs` and `--lr` are those of SFT."""
    both = {name: value for name in BOTH if (value := getattr(options, name)) is not None}
    sft = {name: value for name in ("epochs", "lr") if (value := getattr(options, name)) is not None}
    own = {"epochs": options.dpo_epochs, "lr": options.dpo_lr}
    own |= {name: getattr(options, name) for name in ("beta", "sft_weight", "warn_fall")}
    dpo = {name: value for name, value in own.items() if value is not None}
    return structs.replace(SFT, **both, **sft), structs.replace(DPO, **both, **dpo)


def rule_of_flags(options: argparse.Namespace) -> Rule | None:
    """The rule that was given; None for the one that the trees were grown for."""
    given: dict[str, Any] = {name: value for name in RULE if (value := getattr(options, name)) is not None}
    if not given:
        return None
    return Rule(**given).checked()


def _quiet(text: str) -> None:
    if "warning: " in text:
        tell(text)
