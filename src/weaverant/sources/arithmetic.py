"""Small word problems with exact answers, made on the spot: the task of the packaged tiny model.

A problem is a start and four changes; every running total lies in 0..9. There are 52,488 of them, each worded
once. A hash of the numbers puts each into one of three disjoint pools: `train`, `weave` and `heldout`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache
from hashlib import blake2b
from itertools import islice
from typing import Any, Literal, NamedTuple, get_args

Pool = Literal["train", "weave", "heldout"]

PROMPTS: dict[str, str] = {
    "generator": "{question}",
    "verifier": "{question}\n{attempt}\ncheck:",
    "refiner": "{question}\n{attempt}\n{critique}\nanswer:",
}
"""What the tiny model was taught to answer, by role: one user message, no system message."""

CHANGES = 4
PROBLEMS = 8 * 9**CHANGES
NAMES = ("Ann", "Ben", "Eva", "Kim", "Leo", "Max", "Sue", "Tom")
THINGS = ("caps", "cups", "eggs", "figs", "hats", "keys", "nuts", "pens")
GAINS = ("finds", "earns", "makes", "picks")
LOSSES = ("loses", "sells", "gives", "drops")


class Problem(NamedTuple):
    """A start in 2..9 and four signed changes, none of them 0. Running totals stay in 0..9."""

    start: int
    changes: tuple[int, ...]

    @property
    def totals(self) -> tuple[int, ...]:
        """The total after each change. The last one is the answer."""
        totals: list[int] = []
        total = self.start
        for change in self.changes:
            total += change
            totals.append(total)
        return tuple(totals)

    @property
    def answer(self) -> int:
        return self.totals[-1]


class Arithmetic:
    """The problems of one pool, in a fixed shuffled order, so that the first n are a fair sample of it.

    Rows are `{"id", "question", "answer"}`, all texts. `weave` holds 5,303 problems, `heldout` 5,421 and `train`
    the other 41,764.
    """

    rereadable = True

    def __init__(self, pool: Pool, limit: int | None = None) -> None:
        if pool not in get_args(Pool):
            raise ValueError(f"no such pool: expected one of {get_args(Pool)}, found {pool!r}")
        if limit is not None and limit < 0:
            raise ValueError(f"a limit counts rows: expected 0 or more, found {limit!r}")
        self.pool: Pool = pool
        self.numbers = _numbers(pool)[:limit]

    @property
    def name(self) -> str:
        return f"arithmetic:{self.pool}"

    def identity(self) -> str:
        return self.name

    def count(self) -> int:
        return len(self.numbers)

    def rows(self, start: int) -> Iterator[Mapping[str, Any]]:
        """The rows from index `start` on."""
        return (row(number) for number in islice(self.numbers, start, None))


def problem(number: int) -> Problem:
    """The problem with that number in 0..52,487. Each change is the step to one of the nine other totals."""
    number, first = divmod(number, 8)
    start = total = first + 2
    changes: list[int] = []
    for _ in range(CHANGES):
        number, pick = divmod(number, 9)
        following = pick if pick < total else pick + 1
        changes.append(following - total)
        total = following
    return Problem(start, tuple(changes))


def row(number: int) -> dict[str, str]:
    """The row of one problem: its number, its wording, its answer."""
    it = problem(number)
    return {"id": f"arithmetic-{number:05}", "question": worded(it), "answer": str(it.answer)}


def worded(it: Problem) -> str:
    """The problem as a sentence and a question. Names, things and verbs follow from a hash of the numbers."""
    dice = _hash(it)
    name, thing = NAMES[dice[4] % 8], THINGS[dice[5] % 8]
    deeds = (f"{_verb(change, dice[6 + i])} {abs(change)}" for i, change in enumerate(it.changes))
    return f"{name} has {it.start} {thing}, {', '.join(deeds)}. How many?"


def last_number(text: str) -> str | None:
    """The last number in a reply, which is its answer; None where there is none."""
    found: list[str] = re.findall(r"\d+", text)
    return found[-1] if found else None


def _verb(change: int, dice: int) -> str:
    return (GAINS if change > 0 else LOSSES)[dice % 4]


def _hash(it: Problem) -> bytes:
    return blake2b(repr((it.start, *it.changes)).encode(), digest_size=6 + CHANGES).digest()


@cache
def _numbers(pool: Pool) -> tuple[int, ...]:
    """The problem numbers of a pool. The hash decides both the pool and the order."""
    hashed = sorted((_hash(problem(number)), number) for number in range(PROBLEMS))
    return tuple(number for key, number in hashed if _pool(key) == pool)


def _pool(key: bytes) -> Pool:
    share = key[3] * 10 // 256
    return "weave" if share == 0 else "heldout" if share == 1 else "train"
