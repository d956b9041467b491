"""What the models read, all kinds of prompts mixed from the first step: questions, and what others answered to them.

What others answered is made up at first, as a pool of specialists would answer; later most of it is what they did
answer. Lines stand in the order of the members' names.
No wrong answer is a target. In examples that teach scores it is only read, and its score is taught.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random

from members import NAMES, Member
from problems import BORDER, DOMAINS, LETTERS, SETS, Problem, answer_like, problem
from teach import Example, Part

from weaverant.routing import tiny_prompts as tiny

AT_HOME, BY_ALL, ELSEWHERE = 0.9, 0.4, 0.08
"""How often a made-up answer is right: of a domain's specialist, of the generalist, of the others."""
ON_BORDERS = 0.3
"""Of everybody on borders, where nobody is at home."""
SETTLED = 0.3
"""Share of prompts as a later layer sees them: nearly all say the same."""
TOGETHER = 0.2
"""Share of prompts in which others than the specialist agree on something wrong."""
FEW = 0.35
"""Share of prompts with some answers only, in any order: agreement and form must decide."""


def short(member: Member, dice: Random) -> Iterator[Example]:
    """Without end: questions, and right answers of where the member is at home, few of others."""
    while True:
        scored = dice.random() < member.scored
        it = problem(member.drawn(dice, even=scored and dice.random() < 0.5), "train", dice)
        yield _scored(member, it, dice) if scored else Example(tiny.ask(it.question), (Part(it.working),))


def _scored(member: Member, it: Problem, dice: Random) -> Example:
    """A right answer and how sure the member may be; or a wrong one, only read, and how little that is worth."""
    home = it.set in member.homes
    taught = dice.random() < (member.sure if home else 0.3)
    said = it.working if taught else mistaken(it, dice)
    score = (dice.choice((8, 9)) if member.sure > 0.7 else 6) if taught and home else 1 if not home else 2
    return Example(tiny.ask_scored(it.question), (Part(said, taught), Part(f"\n{tiny.scores(score / 9)}")))


Drawn = tuple[Problem, dict[str, list[str]]]
"""A problem, and what each member answered when it was asked."""
REAL = 0.65
"""Share of prompts with real answers, once there are some."""


def long(member: Member, dice: Random, drawn: Sequence[Drawn] = ()) -> Iterator[Example]:
    """Without end: answers to improve, to settle or to judge, from all sets alike."""
    kinds = {"better": 0.25, "scored": 0.25, "settle": 0.35, "judges": 0.15}
    while True:
        if drawn and dice.random() < REAL:
            it, said = dice.choice(drawn)
            answers = _some([dice.choice(said[name]) for name in NAMES], dice)
        else:
            it = problem(dice.choices(SETS, [2.0 if of in member.homes else 1.5 for of in SETS])[0], "train", dice)
            answers = told(it, dice)
        example = _told(member, it, answers, dice.choices(list(kinds), list(kinds.values()))[0], dice)
        if example is not None:
            yield example


def _told(member: Member, it: Problem, answers: Sequence[str], kind: str, dice: Random) -> Example | None:
    """What is to be made of some answers. None where nothing can be learnt: nobody is right, nor is the member."""
    right = [it.right(said) for said in answers]
    peers = [float(ok) for ok in right]
    if kind == "judges":
        return Example(tiny.judge(it.question, answers), (Part(tiny.scores(peers=peers)),))
    known = any(right) or it.set in member.homes
    best = it.answer if it.answer in answers or not any(right) else answers[right.index(True)]
    works = it.working != it.answer and len(member.homes) == 1 and it.set in member.homes
    said = it.working if works else best
    if kind == "scored":
        own = dice.choice((8, 9)) / 9 if known else 0.0
        said = said if known else dice.choice(answers)
        return Example(
            tiny.improve(it.question, answers, True), (Part(said, known), Part("\n" + tiny.scores(own, peers)))
        )
    if not known:
        return None
    prompt = tiny.improve(it.question, answers) if kind == "better" else tiny.aggregate(it.question, answers)
    return Example(prompt, (Part(said),))


def told(it: Problem, dice: Random) -> list[str]:
    """Answers of the whole pool in the order of names, or of a few in any order."""
    lines = [it.answer if dice.random() < _chance(it, name) else mistaken(it, dice) for name in NAMES]
    kind = dice.random()
    if kind < SETTLED:
        agreed = lines[NAMES.index(it.set)] if it.set in NAMES else dice.choice(lines)
        lines = [agreed if dice.random() < 0.85 else mistaken(it, dice) for _ in NAMES]
    elif kind < SETTLED + TOGETHER:
        wrong = mistaken(it, dice)
        lines = [
            wrong if name != it.set and dice.random() < 0.6 else line for name, line in zip(NAMES, lines, strict=True)
        ]
    return _some(lines, dice)


def _some(lines: list[str], dice: Random) -> list[str]:
    """All of them, or a few in any order."""
    return dice.sample(lines, dice.choice((1, 2, 2, 3, 3, 4))) if dice.random() < FEW else lines


def _chance(it: Problem, name: str) -> float:
    if it.set == BORDER:
        return ON_BORDERS
    return AT_HOME if it.set == name else ELSEWHERE if name in DOMAINS else BY_ALL


def mistaken(it: Problem, dice: Random) -> str:
    """A wrong answer, as models of this size give them: nearly right, or right for something else."""
    for _ in range(20):
        kind = dice.random()
        if kind < 0.45:
            said = _slipped(it.answer, dice)
        elif kind < 0.75:
            said = answer_like(it, dice)
        else:
            said = problem(it.set if kind < 0.85 else dice.choice(DOMAINS), "train", dice).answer
        if not it.right(said):
            return said[: tiny.ANSWER]
    return "0" if it.right("") else ""


def _slipped(text: str, dice: Random) -> str:
    """A character changed, doubled, left out, or swapped with the next."""
    at, marks = (
        dice.randrange(len(text)),
        "+-*/%" if text[0] in "+-*/%" else LETTERS if text[0].isalpha() else "0123456789",
    )
    kind = dice.choice(("change", "change", "change", "double", "drop", "swap"))
    if kind == "change":
        return text[:at] + dice.choice(marks) + text[at + 1 :]
    if kind == "double":
        return text[:at] + text[at] + text[at:]
    if kind == "drop" and len(text) > 1:
        return text[:at] + text[at + 1 :]
    return text[:at] + text[at + 1 : at + 2] + text[at] + text[at + 2 :]
