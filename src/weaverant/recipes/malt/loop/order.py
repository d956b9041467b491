"""The paper's order of trainings: G, V and R by SFT on their positives, then V and R by DPO from their SFT weights.

A role that has too few samples is not trained, and keeps the model that it came with; `models.json` says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from msgspec import to_builtins

from weaverant.recipes.malt.loop.jobs import Job
from weaverant.recipes.malt.loop.sets import STAR, Sets
from weaverant.recipes.malt.team import ROLES, Role
from weaverant.train import DpoConfig, SftConfig, TrainConfig
from weaverant.train.checkpoint import Training, finished, model_digest
from weaverant.train.data import digest

FEWEST = 8
"""Samples without which a role is not trained."""

SFT = SftConfig()
DPO = DpoConfig(lr=3e-4, sft_weight=1.0)
"""What roles are trained with where nothing else is said."""

PREFERRED: tuple[Role, ...] = ("verifier", "refiner")
"""The roles that DPO trains. It made the paper's generator worse."""


class Step(NamedTuple):
    """One training that is to be, or was. `after` is the SFT that it begins with, empty where that is none of these."""

    name: str
    role: Role
    method: str
    data: Path
    samples: int
    model: Path
    folder: Path
    config: TrainConfig
    after: str = ""

    @property
    def arguments(self) -> list[str]:
        """Of `weaverant`."""
        flags = [f"--model={self.model}", f"--out={self.folder}", *flags_of(self.config)]
        return ["train", self.method, str(self.data), *flags]

    def is_finished(self) -> bool:
        """Whether the folder holds it. `UserError` where it holds another that has finished."""
        if self.after and not (self.model / "config.json").exists():
            return False
        weights = model_digest(self.model)
        return finished(
            self.folder,
            Training(
                method=self.method,
                data=str(self.data),
                data_digest=digest(self.data),
                model=str(self.model),
                model_digest=weights,
                reference=str(self.model) if self.method == "dpo" else "",
                reference_digest=weights if self.method == "dpo" else "",
                config=to_builtins(self.config),
            ),
        )

    def job(self) -> Job:
        """The command that does it."""
        log = self.folder.parent / f"{self.folder.name}.log"
        return Job(self.name, self.arguments, log, (self.after,) if self.after else ())


class Order(NamedTuple):
    """The trainings in the paper's order, and why others are left out, a line each."""

    steps: list[Step]
    left_out: list[str]

    def of(self, role: Role, method: str) -> Step | None:
        return next((step for step in self.steps if step.name == f"{method} {role}"), None)


def order_of(
    out: Path, sets: Sets, models: Mapping[Role, Path], sft: SftConfig, dpo: DpoConfig, star: bool = True
) -> Order:
    """What is to be trained with the data sets in `out`, each role from its own folder in `models`."""
    steps: list[Step] = []
    left_out: list[str] = []

    def add(name: str, role: Role, method: str, file: str, model: Path, folder: Path, after: str = "") -> bool:
        samples, kept = sets.lines.get(file, 0), f"the {role} keeps {model}"
        if samples < FEWEST:
            left_out.append(f"{name} is left out: {samples} samples, fewer than {FEWEST}; {kept}")
            return False
        config = sft if method == "sft" else dpo
        steps.append(Step(name, role, method, out / "data" / file, samples, model, folder, config, after))
        return True

    begun: dict[Role, tuple[Path, str]] = {}
    for role in ROLES:
        trained = add(f"sft {role}", role, "sft", f"sft-{role}.jsonl", models[role], out / "sft" / role)
        begun[role] = (out / "sft" / role, f"sft {role}") if trained else (models[role], "")
    if star and sets.no_star:
        left_out.append(f"the STaR baseline is left out: {sets.no_star}")
    elif star:
        add("star", "generator", "sft", STAR, models["generator"], out / "star")
    for role in PREFERRED:
        add(f"dpo {role}", role, "dpo", f"preference-{role}.jsonl", begun[role][0], out / "dpo" / role, begun[role][1])
    return Order(steps, left_out)


def trained_specs(order: Order, base: str | Mapping[Role, str], spec_of: Mapping[Path, str]) -> dict[str, Any]:
    """What `models.json` holds: for each role and training the model it has after it, be it an earlier one."""
    before: dict[Role, str] = dict.fromkeys(ROLES, base) if isinstance(base, str) else dict(base)

    def after(role: Role, method: str, else_: str) -> str:
        step = order.of(role, method)
        return else_ if step is None else spec_of[step.folder]

    sft = {role: after(role, "sft", before[role]) for role in ROLES}
    dpo = {role: after(role, "dpo", sft[role]) for role in PREFERRED}
    star = next((spec_of[step.folder] for step in order.steps if step.name == "star"), None)
    return {"base": base, **({"star": star} if star else {}), "sft": sft, "dpo": dpo}


def flags_of(config: TrainConfig) -> Iterator[str]:
    """The flags of `weaverant train` that say the same as the settings, without those that hold anyway."""
    usual = type(config)()
    for name in config.__struct_fields__:
        value = getattr(config, name)
        if value != getattr(usual, name):
            yield f"--{name.replace('_', '-')}={value}"
