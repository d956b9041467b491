"""What an evaluation found, as one table of right and wrong: read back from the tasks of a `contest` run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypedDict, cast

from weaverant.recipes.malt.stats import (
    Flips,
    Interval,
    Spread,
    bootstrap,
    flips,
    mcnemar,
    spread,
    wilson,
)
from weaverant.recipes.malt.systems import System
from weaverant.row import source_place
from weaverant.story import Story


class Told(TypedDict):
    """What of a `contest` result is counted, by system."""

    right: dict[str, bool]
    answers: dict[str, list[str | None]]
    tied: dict[str, bool]


NOTHING = Told(right={}, answers={}, tied={})


class Accuracy(NamedTuple):
    """Of one system. Shares in 0..1."""

    spread: Spread
    """Over seeds: other samples of the models on the same problems."""
    interval: Interval
    """Wilson's for the mean, over problems."""
    tied: float
    """Votes that only their order decided."""
    unread: float
    """Answers that could not be read."""


class Comparison(NamedTuple):
    """One system against another on the same problems. Shares in 0..1."""

    difference: float
    interval: Interval
    """Paired bootstrap over problems."""
    gained: list[int]
    """Problems that only the first had right, by seed."""
    lost: list[int]
    """Problems that only the other had right, by seed."""
    p: list[float]
    """McNemar's exact test, by seed: seeds share their problems, so they are not tested together."""


class Outcomes(NamedTuple):
    """`right[system][seed][problem]`, by system key; problems in the order of the input."""

    right: dict[str, list[list[bool]]]
    tied: Counter[str]
    unread: Counter[str]
    problems: int
    seeds: int
    failed: int
    """Of the problems times seeds; they count as wrong for every system."""

    def accuracy(self, system: System) -> Accuracy:
        shares = [sum(one) / self.problems if self.problems else 0.0 for one in self.right[system.key]]
        over = spread(shares)
        asked = self.problems * self.seeds or 1
        return Accuracy(
            over,
            wilson(over.mean * self.problems, self.problems),
            self.tied[system.key] / asked,
            self.unread[system.key] / (asked * system.votes),
        )

    def compare(self, system: System, other: System) -> Comparison:
        """The first against the other: positive where the first is better."""
        pairs = list(zip(self.right[system.key], self.right[other.key], strict=True))
        gained = [sum(a and not b for a, b in zip(*pair, strict=True)) for pair in pairs]
        lost = [sum(b and not a for a, b in zip(*pair, strict=True)) for pair in pairs]
        differences = [
            sum(ours[problem] - others[problem] for ours, others in pairs) / self.seeds
            for problem in range(self.problems)
        ]
        return Comparison(
            sum(differences) / self.problems if self.problems else 0.0,
            bootstrap(differences),
            gained,
            lost,
            [mcnemar(*counts) for counts in zip(gained, lost, strict=True)],
        )

    def flips(self, before: System, after: System) -> Flips:
        return flips(self.right[before.key], self.right[after.key])


def outcomes(stories: Iterable[Story], systems: Sequence[System]) -> Outcomes:
    """The table of a run's ended tasks. A task that failed counts as wrong for every system."""
    found: dict[tuple[int, int], dict[str, bool]] = {}
    tied, unread = Counter[str](), Counter[str]()
    failed = 0
    for story in stories:
        place = source_place(story.key)
        assert place is not None, "a contest has one stage"
        told = cast("Told", story.result if story.state == "done" else NOTHING)
        found[place[1], place[2]] = told["right"]
        failed += story.state != "done"
        unread.update({key: answers.count(None) for key, answers in told["answers"].items()})
        tied.update(told["tied"])
    problems = sorted({problem for problem, _ in found})
    seeds = sorted({seed for _, seed in found})
    right = {
        system.key: [[found[problem, seed].get(system.key, False) for problem in problems] for seed in seeds]
        for system in systems
    }
    return Outcomes(right, tied, unread, len(problems), len(seeds), failed)
