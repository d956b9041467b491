"""What `weaverant improve malt` is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msgspec import Struct, to_builtins

from weaverant.errors import UserError
from weaverant.recipes.malt.loop.gate import GateOn
from weaverant.recipes.malt.loop.order import DPO, SFT
from weaverant.recipes.malt.loop.problems import Wanted
from weaverant.recipes.malt.team import Prompts
from weaverant.train import DpoConfig, SftConfig
from weaverant.train.checkpoint import model_digest


class Improvement(Struct, frozen=True, kw_only=True):
    """All that shapes the result. What does not (how to serve, how many trainings at once) is no part of it."""

    problems: str
    held_out: str | None = None
    """None: a share of the problems, by a hash of each question."""
    model: str
    """What plays the base; a folder by itself wants a server."""
    train: Path
    """The base's weights."""
    rounds: int = 1
    questions: int = 300
    gate_problems: int = 500
    held_out_problems: int = 1_000
    seeds: int = 3
    theta: tuple[float, ...] = (0.5,)
    """By round; the last one holds for the rest."""
    gate_on: GateOn = "vote"
    branching: str = "3"
    checker: str = "auto"
    prompts: Prompts = "auto"
    overrides: dict[str, dict[str, Any]] = {}
    sft: SftConfig = SFT
    dpo: DpoConfig = DPO
    tables: bool = True

    def checked(self) -> Improvement:
        """Itself, or `UserError`."""
        if len(self.theta) > self.rounds:
            raise UserError(f"--theta has {len(self.theta)} values for --rounds {self.rounds}: expected one a round")
        for name, least in (("rounds", 1), ("questions", 1), ("gate_problems", 1), ("seeds", 1)):
            if getattr(self, name) < least:
                raise UserError(f"--{name.replace('_', '-')} must be at least {least}, found {getattr(self, name)}")
        if self.tables and self.held_out_problems < 1:
            raise UserError("--held-out-problems must be at least 1; --no-tables leaves the last evaluation out")
        for theta in self.theta:
            if not 0 <= theta < 1:
                raise UserError(f"--theta is a share from 0 to below 1, one for each round; found {theta}")
        return self

    @property
    def wanted(self) -> Wanted:
        return Wanted(self.rounds, self.questions, self.gate_problems, self.held_out_problems)

    def short(self, sizes: Mapping[str, int]) -> list[str]:
        """Of which problems there are fewer than wanted, as `gate-1: 11 of 20`; `sizes` by file."""
        of = {"weave": self.questions, "gate": self.gate_problems, "report": self.held_out_problems}
        told = {name: of[name.partition("-")[0]] for name in sizes}
        return [f"{name}: {count:,} of {told[name]:,}" for name, count in sizes.items() if count < told[name]]

    def theta_of(self, number: int) -> float:
        """Of a round, counted from 1."""
        return self.theta[min(number, len(self.theta)) - 1]

    def settings(self) -> dict[str, Any]:
        """What one loop is told from another by."""
        found = to_builtins(self, builtin_types=(), enc_hook=str)
        return found | {"train": model_digest(self.train)}
