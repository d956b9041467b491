"""Whether a round's team takes the place of the one that wove for it: on problems that nothing else uses.

Both teams answer each problem in several passes and vote. The new one is adopted where the 95 % bootstrap interval of
the paired difference lies above 0, and McNemar's exact test gives less than 0.05: of few problems that differ the
bootstrap makes too much (4 gained and none lost is enough for it, and happens to equals once in eight times).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from msgspec import Struct, structs

from weaverant import Run, run
from weaverant.recipes.malt.contest import contest
from weaverant.recipes.malt.evaluate import Asked, asked, evaluated
from weaverant.recipes.malt.outcomes import Comparison
from weaverant.recipes.malt.roles import RoleModels
from weaverant.recipes.malt.systems import MA, MALT, PASSES, System, Training

GateOn = Literal["vote", "pass"]

SURE = 0.05

TEAMS = (MA.key, MALT.key)
"""`ma` is the adopted team, in the places of the base; `malt` the new one."""


class Verdict(Struct, frozen=True):
    """What the gate found. Shares in 0..1; `low` and `high` are the interval of the difference."""

    problems: int
    on: GateOn
    adopted: float
    new: float
    difference: float
    low: float
    high: float
    p: float
    """Of McNemar's exact test."""
    other: dict[str, float]
    """The same of what did not decide: of single passes where the vote did."""

    @property
    def passes(self) -> bool:
        return self.low > 0 and self.p < SURE

    def told(self, number: int) -> str:
        """`round 2 is refused: +0.4 points [-0.3, +1.1] ...`."""
        how = "votes of three" if self.on == "vote" else "single passes"
        gain = f"{100 * self.difference:+.1f} points [{100 * self.low:+.1f}, {100 * self.high:+.1f}]"
        shares = f"{100 * self.adopted:.1f} % to {100 * self.new:.1f} %"
        half = (self.high - self.low) / 2
        weak = "" if self.passes else f"; on so few, a gain under about {100 * half:.0f} points looks like chance"
        return (
            f"round {number} is {'adopted' if self.passes else 'refused'}: {gain} "
            f"on {self.problems:,} gate problems ({how}, {shares}; p {self.p:.2g}{weak})"
        )


def gate_asked(models: RoleModels, checker: str, prompts: str) -> Asked:
    """The models and parameters of the gate's run."""
    return asked(models, TEAMS, passes=PASSES, checker=checker, prompts=prompts)


def gate_run(
    directory: Path, rows: Path, it: Asked, specs: Mapping[str, str], overrides: dict[str, Any], budget: float
) -> Run:
    """The run itself, prepared. `budget` in US dollars, 0 for no cap."""
    models = {name: specs[spec] for name, spec in it.models.items()}
    return run(
        contest, str(rows), models=models, parameters=it.parameters, overrides=overrides, directory=directory,
        budget=budget,
    )  # fmt: skip


def verdict_of(directory: Path, on: GateOn) -> Verdict:
    """What a finished gate run says."""
    said = evaluated(directory).outcomes
    votes = PASSES if on == "vote" else 1

    def compared(passes: int) -> tuple[float, float, Comparison]:
        old, new = System(MA, passes), System(MALT, passes)
        return said.accuracy(old).spread.mean, said.accuracy(new).spread.mean, said.compare(new, old)

    old, new, found = compared(votes)
    other_old, other_new, other = compared(1 if on == "vote" else PASSES)
    names = ("adopted", "new", "difference", "low", "high", "p")
    return Verdict(
        said.problems, on, old, new, found.difference, *found.interval, max(found.p),
        dict(zip(names, (other_old, other_new, other.difference, *other.interval, max(other.p)), strict=True)),
    )  # fmt: skip


def agents_set(overrides: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Changes of a role's agent as a contest knows them: it names each after its training, too."""
    trainings: tuple[Training, ...] = ("base", "star", "sft", "dpo")
    return {f"{role}-{training}": dict(fields) for role, fields in overrides.items() for training in trainings}


def as_data(verdict: Verdict) -> dict[str, Any]:
    """For a file."""
    return structs.asdict(verdict)
