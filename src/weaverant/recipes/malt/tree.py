"""The tree over one question, and its values: attempts, their critiques, the refinements of both.

Values are shares of right leaves ("global pooling", arXiv 2412.01928): V(r) is 0 or 1, V(v) the mean of a critique's
refinements, V(g) the mean over an attempt's critiques. All plain data, as results are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

THETA = 0.5
"""A node is good when its value is strictly greater: with three branches, from 2 of 3 or 5 of 9 right leaves on."""


class Refinement(TypedDict):
    """A leaf: the refiner's reply to one attempt and one critique."""

    text: str
    answer: str | None
    """As extracted; None could not be read, and is wrong."""
    value: float


class Critique(TypedDict):
    """The verifier's reply to one attempt."""

    text: str
    value: float
    refinements: list[Refinement]


class Attempt(TypedDict):
    """The generator's reply to the question. `answer` is its own, which no value depends on."""

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


def refinement(text: str, answer: str | None, right: bool) -> Refinement:
    """A leaf. Its value is the outcome reward."""
    return {"text": text, "answer": answer, "value": float(right)}


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
