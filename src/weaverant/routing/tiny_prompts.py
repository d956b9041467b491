"""How the small models of `training/specialists` are asked, and how their replies are read. Pure text functions.

Everything is one user message, no system message. The first line is the question; in prompts that tell answers it is
padded to 24 characters, each answer has a line of its own (its number, a colon, six characters), and a last line of six
letters says what is wanted. So all stands at the same place, which is what lets a model of 100,000 parameters read it:

| prompt | text | reply |
|---|---|---|
| `ask` | `47 38: add them` | `85` |
| `ask_scored` | `47 38: add them?` | `85` / `self: 8` |
| `improve` | `47 38: add them         ` / `1:85    ` / `2:75    ` / `better` | `85` |
| `improve`, scored | the same, with `scored` | `85` / `self: 8` / `peers: 9 0` |
| `aggregate` | the same, with `settle` | `85` |
| `judge` | the same, with `judges` | `peers: 9 0` |

A score is a digit D, for D/9. The answer is the first line of the reply, or what stands in it after the last `=` where
a model shows its working (`42 28=282`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

QUESTION = 24
"""Characters that a question has at least, in prompts that tell answers."""
ANSWER = 6
"""Characters that an answer has at least."""
MOST_ANSWERS = 9
"""That one prompt tells; their numbers have one digit."""
MAX_TOKENS = 48
"""Enough for every reply: an answer with its working, and nine scores."""

_SELF = re.compile(r"^self:[ \t]*(\d)[ \t]*$", re.MULTILINE)
_PEERS = re.compile(r"^peers:((?:[ \t]*\d)+)[ \t]*$", re.MULTILINE)


@dataclass(frozen=True)
class Said:
    """What a reply says."""

    answer: str
    """Empty where it gives none."""
    own: float | None = None
    """What it thinks of its own answer, in [0, 1]; None where it does not say."""
    peers: tuple[float, ...] | None = None
    """What it thinks of the answers that it was told, in their order; None where it does not say, or of too few."""


def ask(question: str) -> str:
    """The plain question. The reply is an answer."""
    return one_line(question)


def ask_scored(question: str) -> str:
    """The question; the reply is an answer and a score of it."""
    return f"{one_line(question)}?"


def improve(question: str, answers: Sequence[str], scored: bool = False) -> str:
    """The question and what others answered, which may be wrong. The reply is an answer; where `scored`, also a score
    of it, and one of each answer that was told."""
    return f"{_told(question, answers)}\n{'scored' if scored else 'better'}"


def aggregate(question: str, answers: Sequence[str]) -> str:
    """The question and the last layer's answers. The reply is the final answer."""
    return f"{_told(question, answers)}\nsettle"


def judge(question: str, answers: Sequence[str]) -> str:
    """The question and answers. The reply is a score of each of them, and no answer."""
    return f"{_told(question, answers)}\njudges"


def read(text: str, told: int = 0) -> Said:
    """What a reply to any of these prompts says. `told` is how many answers the prompt told: scores of more or fewer
    are no scores."""
    own, peers = _SELF.search(text), _PEERS.search(text)
    given = tuple(int(digit) / 9 for digit in re.findall(r"\d", peers[1])) if peers else ()
    return Said(answer(text), int(own[1]) / 9 if own else None, given if told and len(given) == told else None)


def answer(text: str) -> str:
    """The answer in a reply: its first line, or what stands in it after the last `=`. Empty where there is none."""
    first = text.strip().partition("\n")[0].strip()
    return "" if first.startswith(("self:", "peers:")) else first.rpartition("=")[2].strip()


def scores(own: float | None = None, peers: Sequence[float] | None = None) -> str:
    """The lines of a reply that give scores, as the models are taught to write them."""
    lines = [] if own is None else [f"self: {digit(own)}"]
    if peers is not None:
        lines.append("peers: " + " ".join(map(str, map(digit, peers))))
    return "\n".join(lines)


def digit(score: float) -> int:
    """A score in [0, 1] as the nearest digit."""
    return round(9 * min(1.0, max(0.0, score)))


def one_line(text: str) -> str:
    """A text without line ends, since each line of these prompts has a meaning."""
    return " ".join(text.split())


def _told(question: str, answers: Sequence[str]) -> str:
    """The question and the numbered answers. `ValueError` where there are more than have one digit."""
    if len(answers) > MOST_ANSWERS:
        raise ValueError(f"a prompt of these tells at most {MOST_ANSWERS} answers, found {len(answers)}")
    lines = [f"{number}:{one_line(each):<{ANSWER}}" for number, each in enumerate(answers, 1)]
    return "\n".join([f"{one_line(question):<{QUESTION}}", *lines])
