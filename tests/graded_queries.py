"""Queries of three topics, and three models whose probability of being right is known."""

from __future__ import annotations

import random

import numpy as np

from weaverant.routing.table import Graded, Table

TOPICS = {
    "sums": "add the numbers {a} and {b} and tell the total",
    "law": "which court may hear case {a} of section {b} of the statute",
    "cooking": "how long does {a} grams of rice boil with {b} cups of water",
}
TRUTH = {"sums": (0.9, 0.3, 0.5), "law": (0.2, 0.8, 0.5), "cooking": (0.5, 0.5, 0.5)}
"""P(right) of the models x, y and z."""


def made_table(count: int, seed: int = 0, unasked: float = 0.0) -> tuple[Table, np.ndarray]:
    """Queries of three topics on which three models are right as often as TRUTH says; and those probabilities."""
    odds = random.Random(seed)
    rows, truth = [], []
    for _ in range(count):
        topic = odds.choice(list(TOPICS))
        text = TOPICS[topic].format(a=odds.randint(1, 10**6), b=odds.randint(1, 10**6))
        grades = {m: float(odds.random() < p) for m, p in zip("xyz", TRUTH[topic], strict=True)}
        asked = {m: grade for m, grade in grades.items() if odds.random() >= unasked}
        rows.append(Graded(text, asked or grades, set=topic))
        truth.append(TRUTH[topic])
    return Table.of(rows), np.array(truth)
