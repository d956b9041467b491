"""The tree over one question as it was grown: attempts, their critiques, the refinements of both. Plain data, as
results are.

Every draw has a node of its own, with the share of right leaves under it as its value: V(r) is 0 or 1, V(v) the mean
of a critique's refinements, V(g) the mean over an attempt's critiques (arXiv 2412.01928, "global pooling"). What is
made of equal draws, and of the values, is the affair of `values.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, NotRequired, TypedDict

from weaverant.errors import UserError

THETA = 0.5
"""A node is good when its value is strictly greater: with three branches, from 2 of 3 or 5 of 9 right leaves on."""


class Refinement(TypedDict):
    """A leaf: the refiner's reply to one attempt and one critique."""

    text: str
    answer: str | None
    """As extracted; None could not be read, and is wrong."""
    value: float
    why: NotRequired[str]
    """Why it counts as wrong, where it was not compared: `unread`, `out of time`, `out of memory`, `died`..."""


class Critique(TypedDict):
    """The verifier's reply to one attempt."""

    text: str
    value: float
    refinements: list[Refinement]


class Attempt(TypedDict):
    """The generator's reply to the question. `answer` is its own, which no value depends on: None where it could not
    be read, or where the checker reads answers by grading them only."""

    text: str
    answer: str | None
    value: float
    critiques: list[Critique]


class Tree(TypedDict):
    """A task's result."""

    question: str
    gold: str
    checker: str
    theta: float
    attempts: list[Attempt]
    values: NotRequired[str]
    min_confidence: NotRequired[float]
    max_pairs: NotRequired[int]


class Branching(NamedTuple):
    """Replies to each prompt, by role."""

    generator: int
    verifier: int
    refiner: int

    @property
    def calls(self) -> int:
        """Of a whole tree."""
        return self.generator * (1 + self.verifier * (1 + self.refiner))

    @property
    def leaves(self) -> int:
        return self.generator * self.verifier * self.refiner


def branching_of(given: int | str | Sequence[int]) -> Branching:
    """`3`, or one number for each level: `3,2,3`. `UserError` where it is neither."""
    parts = given.split(",") if isinstance(given, str) else [given] if isinstance(given, int) else list(given)
    try:
        numbers = [int(part) for part in parts]
    except ValueError:
        numbers = []
    if len(numbers) == 1:
        numbers *= 3
    if len(numbers) != 3 or min(numbers) < 1:
        raise UserError(
            f"branching {given!r}: expected a number from 1 on, or three of them, for generator, verifier and refiner, "
            "as in 3,2,3"
        )
    return Branching(*numbers)


def refinement(text: str, answer: str | None, right: bool, why: str = "") -> Refinement:
    """A leaf. Its value is the outcome reward."""
    leaf: Refinement = {"text": text, "answer": answer, "value": float(right)}
    return {**leaf, "why": why} if why else leaf


def critique(text: str, refinements: Sequence[Refinement]) -> Critique:
    """A critique, valued by its refinements."""
    return {"text": text, "value": share_right(refinements), "refinements": list(refinements)}


def attempt(text: str, answer: str | None, critiques: Sequence[Critique]) -> Attempt:
    """An attempt, valued by all the leaves under it."""
    leaves = [leaf for critique in critiques for leaf in critique["refinements"]]
    return {"text": text, "answer": answer, "value": share_right(leaves), "critiques": list(critiques)}


def share_right(leaves: Sequence[Refinement]) -> float:
    """The share of right leaves. One division of two counts, so that one half is exactly 0.5 and not above theta."""
    return sum(leaf["value"] > 0 for leaf in leaves) / len(leaves)
