"""What `malt_sweeps.py` sweeps over and what it found: rows for machines, a table for people, bars for the picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import report
from sweeps_figure import Bar

from weaverant.recipes.malt.loop.order import DPO
from weaverant.recipes.malt.outcomes import Accuracy, Comparison, Outcomes
from weaverant.recipes.malt.systems import MA, SA, System
from weaverant.recipes.malt.team import ROLES
from weaverant.train import DpoConfig, SftConfig

PASSES = 3


class Cell(NamedTuple):
    """One training of the team: how its trees were grown and labelled, how DPO went, the seed of all trainings."""

    branching: int = 3
    theta: float = 0.5
    seed: int = 0
    dpo_lr: float = DPO.lr
    sft_weight: float = DPO.sft_weight

    @property
    def name(self) -> str:
        """Of its folder."""
        rate = f"-rate{self.dpo_lr:g}" if self.dpo_lr != DPO.lr else ""
        weight = f"-weight{self.sft_weight:g}" if self.sft_weight != DPO.sft_weight else ""
        seed = f"-seed{self.seed}" if self.seed else ""
        return f"n{self.branching}-theta{self.theta:g}{rate}{weight}{seed}"

    @property
    def title(self) -> str:
        """For people."""
        rate = f", DPO at {self.dpo_lr:g}" if self.dpo_lr != DPO.lr else ""
        weight = f", SFT weight {self.sft_weight:g}" if self.sft_weight != DPO.sft_weight else ""
        seed = f", seed {self.seed}" if self.seed else ""
        return f"n = {self.branching}, theta = {self.theta:g}{rate}{weight}{seed}"


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


UNTRAINED = (System(SA, 1), System(SA, PASSES * MA.calls, extra=True), System(MA, 1), System(MA, PASSES))
"""What a base can do without training, the vote of lone agents for as many calls as a team's vote."""


def rows_untrained(base: str, untrained: Outcomes) -> Iterator[dict[str, Any]]:
    for system in UNTRAINED:
        accuracy = untrained.accuracy(system)
        yield report.row(
            f"{base}: {system.name}", accuracy.spread.mean, base=base, system=system.key, **_interval(accuracy)
        )


def row_of(base: str, settings: Settings, found: Found) -> dict[str, Any]:
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


class Told(NamedTuple):
    """A table of a base: what it is of, its head, its lines."""

    title: str
    head: list[str]
    lines: list[list[str]]

    def put(self) -> None:
        """On the screen."""
        print(f"\n{self.title}")
        report.table(self.head, self.lines)
        print(flush=True)

    def markdown(self) -> str:
        """For a page."""
        cells = (self.head, ["---", *["--:"] * (len(self.head) - 1)], *self.lines)
        return "\n".join([self.title, "", *(f"| {' | '.join(line)} |" for line in cells), ""])


def table_of(base: str, settings: Settings, found: Sequence[Found], untrained: Outcomes) -> Told:
    """All cells of a base, what it does untrained above them."""
    seeds = "1 seed" if settings.seeds == 1 else f"{settings.seeds} seeds"
    title = (
        f"Base {base}, {settings.questions:,} questions woven; right answers in % to {settings.problems:,} held-out "
        f"problems, {seeds}, with 95 % intervals: Wilson's, and of the difference the paired bootstrap"
    )
    head = ["system", "calls woven", "SFT g / v / r", "pairs v / r", "single pass", f"vote of {PASSES}", "vote - MA+MV"]
    lines: list[list[str]] = []
    for one, vote in ((UNTRAINED[0], UNTRAINED[1]), (UNTRAINED[2], UNTRAINED[3])):
        name = "untrained team (MA)" if one.team == MA else f"lone agent (SA), vote of {vote.votes}"
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
    return Told(title, head, lines)


def _shown(accuracy: Accuracy) -> str:
    low, high = accuracy.interval
    return f"{100 * accuracy.spread.mean:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def _interval(accuracy: Accuracy) -> dict[str, float]:
    return {"low": round(accuracy.interval.low, 4), "high": round(accuracy.interval.high, 4)}


def bars(rows: Sequence[dict[str, Any]]) -> Iterator[Bar]:
    """Of each base the votes."""
    for row in rows:
        if row["system"] not in ("sa@1", "ma@1"):
            group, name = row["name"].split(": ", 1)
            yield Bar(group, name, row["value"], row["low"], row["high"], "branching" in row)
