"""Short questions of five domains and of the borders between them, with checkers that compute or run.

A question is at most 25 characters: what it is about, fixed in width, then what to do with it (`47 38: add them`). Many
wordings mean the same task. A hash of the task and its numbers, never of the wording, puts each into one of three
disjoint splits.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from itertools import product
from random import Random
from typing import Literal, get_args

Split = Literal["train", "validation", "test"]
DOMAINS = ("addition", "multiplication", "strings", "sorting", "programs")
BORDER = "border"
"""The sixth set: tasks that lie between two domains, such as sorting letters."""
SETS = (*DOMAINS, BORDER)
LETTERS = "abcdefgh"
INSTRUCTIONS = "+-*/%"
"""Of the small programs: each takes the next number to the total so far. `/` and `%` are a division of whole numbers
and its remainder."""
NTH = ("first", "second", "third", "fourth", "last")


@dataclass(frozen=True)
class Problem:
    """One question, and what is right."""

    set: str
    task: str
    question: str
    given: str
    """What the task works on, and with `task` what the split is decided by."""
    answer: str
    """A right one; for programs one of several."""
    working: str
    """What a careful reply writes: the answer, for products after the steps that lead to it."""

    @property
    def split(self) -> Split:
        share = blake2b(f"{self.task} {self.given}".encode(), digest_size=2).digest()
        part = int.from_bytes(share, "little") % 20
        return "test" if part < 4 else "validation" if part < 6 else "train"

    def right(self, answer: str) -> bool:
        """Whether an answer is right. A program is run."""
        if self.task == "program":
            numbers, wanted = self.given.split(" = ")
            return run(answer, numbers) == int(wanted)
        return answer == self.answer


def run(program: str, numbers: str) -> int | None:
    """What a program makes of some numbers, from left to right; None where it is no program for so many, or divides by
    zero. `+-` makes 51 of `47 6 2`."""
    total, *others = map(int, numbers.split())
    if len(program) != len(others) or not others or set(program) - set(INSTRUCTIONS):
        return None
    for instruction, number in zip(program, others, strict=True):
        if instruction in "/%" and number == 0:
            return None
        total = _STEP[instruction](total, number)
    return total


_STEP: dict[str, Callable[[int, int], int]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.floordiv,
    "%": operator.mod,
}


def first(numbers: str, wanted: int) -> str:
    """The first program, in the order of `INSTRUCTIONS`, that makes a number of others."""
    programs = map("".join, product(INSTRUCTIONS, repeat=len(numbers.split()) - 1))
    return next(program for program in programs if run(program, numbers) == wanted)


def solved(task: str, given: str) -> str:
    """The answer to what a question is about; for programs the first one."""
    match task:
        case "sum":
            a, b = given.split()
            return str(int(a) + int(b))
        case "product":
            a, b = given.split()
            return str(int(a) * int(b))
        case "reverse" | "digits":
            return given[::-1]
        case "odd":
            return given[::2]
        case "ends":
            return given[0] + given[-1]
        case "nth":
            word, at = given.split()
            return word[int(at)]
        case "program":
            numbers, wanted = given.split(" = ")
            return first(numbers, int(wanted))
        case "run":
            numbers, program = given.rsplit(" ", 1)
            return str(run(program, numbers))
        case _:
            ordered = "".join(sorted(given))
            others = {"down": ordered[::-1], "largest": ordered[-1], "smallest": ordered[0], "middle": ordered[2]}
            return others.get(task, ordered)


Asked = tuple[str, str, str]
"""Task, what is given, wording; the wording may hold `{}` where the given stands."""


def _addition(dice: Random) -> Asked:
    a, b = dice.randrange(10, 100), dice.randrange(10, 100)
    return "sum", f"{a} {b}", "{}: " + dice.choice(("add them", "find the sum", "in total", "plus"))


def _multiplication(dice: Random) -> Asked:
    a, b = dice.randrange(100, 400), dice.randrange(2, 10)
    return "product", f"{a} {b}", "{}: " + dice.choice(("multiply", "find the product", "times", "multiplied"))


def _strings(dice: Random) -> Asked:
    word = _word(dice, 5)
    task = dice.choice(("reverse", "odd", "nth", "ends"))
    if task == "reverse":
        return task, word, "{}: " + dice.choice(("reverse it", "backwards", "from the end"))
    if task == "odd":
        return task, word, "{}: " + dice.choice(("odd letters", "every other one"))
    if task == "ends":
        return task, word, "{}: first and last"
    at = dice.randrange(5)
    return task, f"{word} {at}", f"{word}: {NTH[at]} letter"


def _sorting(dice: Random) -> Asked:
    digits = _digits(dice, 5)
    task = dice.choice(("up", "up", "down", "largest", "smallest", "middle"))
    wordings = {
        "up": ("sort upwards", "sort ascending", "put in order"),
        "down": ("sort downwards", "sort descending"),
        "largest": ("largest", "the maximum"),
        "smallest": ("smallest", "the minimum"),
        "middle": ("median", "the middle one"),
    }
    return task, digits, "{}: " + dice.choice(wordings[task])


def _programs(dice: Random) -> Asked:
    """One instruction of five, or two of which each adds or takes away: units, then tens."""
    numbers, wanted = "", -1
    while wanted < 0:
        numbers = f"{dice.randrange(12, 100)} {dice.randrange(2, 10)}"
        program = dice.choice(INSTRUCTIONS)
        if dice.random() < 0.4:
            numbers += f" {dice.randrange(1, 10)}0"
            program = dice.choice("+-") + dice.choice("+-")
        wanted = run(program, numbers) or -1
    wording = dice.choice(("make", "reach", "code for", "program"))
    return "program", f"{numbers} = {wanted}", f"{numbers}: {wording} {wanted}"


def _border(dice: Random) -> Asked:
    task = dice.choice(("letters", "digits", "run"))
    if task == "letters":
        word = _word(dice, 5)
        return task, word, "{}: " + dice.choice(("sort the letters", "letters in order"))
    if task == "digits":
        digits = _digits(dice, 5)
        return task, digits, "{}: " + dice.choice(("reverse digits", "digits backwards"))
    numbers, program = f"{dice.randrange(12, 100)} {dice.randrange(2, 10)}", dice.choice(INSTRUCTIONS)
    return task, f"{numbers} {program}", f"{numbers}: {dice.choice(('run', 'run program', 'do'))} {program}"


_MAKERS: dict[str, Callable[[Random], Asked]] = {
    "addition": _addition,
    "multiplication": _multiplication,
    "strings": _strings,
    "sorting": _sorting,
    "programs": _programs,
    BORDER: _border,
}


def problem(of: str, split: Split, dice: Random) -> Problem:
    """A problem drawn from one set and split."""
    if of not in _MAKERS or split not in get_args(Split):
        raise ValueError(f"expected a set of {SETS} and a split of {get_args(Split)}, found {of!r} and {split!r}")
    while True:
        task, given, wording = _MAKERS[of](dice)
        answer = solved(task, given)
        found = Problem(of, task, wording.format(given), given, answer, _working(task, given, answer))
        if found.split == split:
            return found


def mixed(split: Split, count: int, seed: int = 0, border: float = 0.1) -> list[Problem]:
    """Problems of all domains in equal parts, and a share of the borders, all of them different questions."""
    return list(_distinct(split, count, Random(f"{split} {seed}"), border))


def _distinct(split: Split, count: int, dice: Random, border: float) -> Iterator[Problem]:
    seen: set[str] = set()
    while len(seen) < count:
        found = problem(BORDER if dice.random() < border else dice.choice(DOMAINS), split, dice)
        if found.question not in seen:
            seen.add(found.question)
            yield found


def _working(task: str, given: str, answer: str) -> str:
    """`42 28 14=1482` for 247 times 6: digit by digit from the right, each with what the one before it carries over."""
    if task != "product":
        return answer
    digits, factor = given.split()
    steps, carried = list[str](), 0
    for digit in reversed(digits):
        step = int(digit) * int(factor) + carried
        steps.append(f"{step:02}")
        carried = step // 10
    return f"{' '.join(steps)}={answer}"


def answer_like(it: Problem, dice: Random) -> str:
    """The answer to another task on the same numbers or letters."""
    given = it.given.partition(" = ")[0]
    first = given.split()[0]
    if first.isalpha():
        others = ("reverse", "odd", "ends", "letters")
    elif " " not in given:
        others = ("up", "down", "largest", "smallest", "middle", "digits")
    else:
        numbers = " ".join(given.split()[:2])
        return dice.choice((str(run(dice.choice(INSTRUCTIONS), numbers)), dice.choice(INSTRUCTIONS)))
    return solved(dice.choice(others), first)


def _word(dice: Random, length: int) -> str:
    return "".join(dice.choice(LETTERS) for _ in range(length))


def _digits(dice: Random, length: int) -> str:
    return "".join(dice.choice("0123456789") for _ in range(length))
