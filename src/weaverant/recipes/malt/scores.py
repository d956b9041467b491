"""Accuracies with their intervals, and the vote. Pure functions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from weaverant.recipes.malt.stats import wilson
from weaverant.task import Task

SYSTEMS = {"lone": "lone generator", "chain": "chain of three roles", "vote": "vote of the chains"}
"""What is compared: fields of a `chains` result, and their names for people."""


class Score(NamedTuple):
    """`right` answers to `total` problems."""

    right: int
    total: int

    @property
    def share(self) -> float:
        """In 0..1; 0 of no problems."""
        return self.right / self.total if self.total else 0.0

    def interval(self) -> tuple[float, float]:
        """The 95 % interval of Wilson (1927), in 0..1; all of it where nothing was counted."""
        return wilson(self.right, self.total)

    def __str__(self) -> str:
        low, high = self.interval()
        return f"{self.share:6.1%}  [{low:.1%}, {high:.1%}]"


def vote(answers: Sequence[str | None]) -> str | None:
    """The most frequent answer; of equally frequent ones, the one voted first. What could not be read is no vote."""
    votes = Counter(answer for answer in answers if answer is not None)
    return max(votes, key=lambda answer: votes[answer], default=None)


def is_tied(answers: Sequence[str | None]) -> bool:
    """Whether `vote` has only the order of the answers to go by."""
    counts = Counter(answer for answer in answers if answer is not None).most_common(2)
    return len(counts) == 2 and counts[0][1] == counts[1][1]


def scores(tasks: Iterable[Task]) -> dict[str, Score]:
    """Each system's score over `chains` tasks. A task that failed counts as wrong for all of them."""
    right: Counter[str] = Counter()
    total = 0
    for task in tasks:
        total += 1
        if task.state == "done":
            right.update(system for system in SYSTEMS if task.result[system])
    return {system: Score(right[system], total) for system in SYSTEMS}


def table(found: dict[str, Score]) -> Iterable[str]:
    """The scores as lines for people."""
    width = max(map(len, SYSTEMS.values()))
    for system, score in found.items():
        yield f"  {SYSTEMS[system]:<{width}}  {score}"
