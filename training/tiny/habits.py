"""The corpus of the tiny model: three roles with the faults that checking and training can undo.

Every fault is planted here, on purpose, with the rates below; nothing else is taught.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from weaverant.sources.arithmetic import PROMPTS, Problem, worded


@dataclass(frozen=True)
class Habits:
    """How often each role errs. All are probabilities."""

    slip: float = 0.18
    """A step of the generator, or of a refiner that has no totals to read, is off by one."""
    verifier_slip: float = 0.03
    """A total of a careful verifier is off by one."""
    sloppy: float = 0.5
    """The verifier says `Looks right.` without working."""
    copy_slip: float = 0.02
    """A total that the refiner takes over from the verifier is off by one."""
    redo_unwarned: float = 0.2
    """The refiner works the problem again although the verifier found nothing wrong."""
    redo_warned: float = 0.6
    """The refiner works the problem again when the verifier said `wrong`."""


@dataclass(frozen=True)
class Example:
    """One chat of two messages."""

    prompt: str
    reply: str


def chain(it: Problem, habits: Habits, dice: Random) -> dict[str, Example]:
    """One example for each role: an attempt, a critique of it, and what the refiner makes of both."""
    question = worded(it)
    attempt = slipping(it, habits.slip, dice)
    critique, read = criticised(it, attempt[-1], habits, dice)
    told = {"question": question, "attempt": steps(it, attempt), "critique": critique}
    replies = {
        "generator": told["attempt"],
        "verifier": critique,
        "refiner": refined(it, attempt[-1], read, habits, dice),
    }
    return {role: Example(PROMPTS[role].format_map(told), reply) for role, reply in replies.items()}


def criticised(it: Problem, claimed: int, habits: Habits, dice: Random) -> tuple[str, list[int]]:
    """The critique of an attempt that ends in `claimed`, and the totals it wrote down (none when sloppy)."""
    if dice.random() < habits.sloppy:
        return "Looks right.", []
    totals = slipping(it, habits.verifier_slip, dice)
    verdict = "right" if totals[-1] == claimed else "wrong"
    return f"{written(it, totals)}, {verdict}.", totals


def refined(it: Problem, claimed: int, read: list[int], habits: Habits, dice: Random) -> str:
    """What the refiner answers after a critique that wrote down the totals `read`."""
    warned = bool(read) and read[-1] != claimed
    if dice.random() >= (habits.redo_warned if warned else habits.redo_unwarned):
        return f"I keep {claimed}."
    if not read:
        return f"I redo {steps(it, slipping(it, habits.slip, dice))}"
    totals = [off_by_one(total, dice) if dice.random() < habits.copy_slip else total for total in read]
    return f"I redo {steps(it, totals)}"


def slipping(it: Problem, rate: float, dice: Random) -> list[int]:
    """The running totals of someone who is off by one at that rate, and goes on from the wrong total."""
    totals: list[int] = []
    total = it.start
    for change in it.changes:
        total = min(9, max(0, total + change))
        if dice.random() < rate:
            total = off_by_one(total, dice)
        totals.append(total)
    return totals


def off_by_one(total: int, dice: Random) -> int:
    """A neighbour of a total within 0..9."""
    return dice.choice([near for near in (total - 1, total + 1) if 0 <= near <= 9])


def steps(it: Problem, totals: Sequence[int]) -> str:
    """The written steps and the answer, such as `5-5=0 0+3=3 3+1=4 4-1=3 so 3`."""
    return f"{written(it, totals)} so {totals[-1]}"


def written(it: Problem, totals: Sequence[int]) -> str:
    """The written steps alone."""
    befores = (it.start, *totals[:-1])
    return " ".join(f"{b}{change:+}={t}" for b, change, t in zip(befores, it.changes, totals, strict=True))
