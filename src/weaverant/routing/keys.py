"""Which answers mean the same, and what the score of one says of the others. Pure functions."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple


class Key(NamedTuple):
    """An answer as it is compared: two that mean the same have one key."""

    kind: str
    """`number`, `letter` or `text`."""
    said: str


_SAID = re.compile(r"(?:####|\banswer\b(?:\s+is)?\s*[:=]?)[ \t]*(?P<said>[^\n]+)", re.IGNORECASE)
_NUMBER = re.compile(r"[-+]?\d[\d,]*(?:\.\d+)?(?![\d/])")
_LETTER = re.compile(r"[(\[]?([A-J])[)\].:]*")
_EDGES = " \t\r\n.,;:!?\"'`*$()[]{}"
SHORT = 60
"""Characters of a last line that is taken for the answer of a longer text."""


def key_of(answer: str) -> Key | None:
    """What an answer comes to: what it announces (`####`, `\\boxed{}`, "the answer is"), else itself where it is one
    line, else its last line where that is short. None of an empty one."""
    text = answer.strip()
    if not text:
        return None
    said = _boxed(text) or next((found["said"] for found in reversed(list(_SAID.finditer(text)))), "")
    announced = bool(said.strip(_EDGES))
    if not announced:
        last = text.splitlines()[-1]
        said = last if len(last) <= SHORT else text
    letter = _LETTER.fullmatch(said.strip(" \t*.$"))
    if letter:
        return Key("letter", letter[1])
    plain = said.strip(_EDGES).removesuffix("%").strip()
    numbers = _NUMBER.findall(plain)
    if numbers and (_NUMBER.fullmatch(plain) or (announced and len(numbers) == 1)):
        return Key("number", _canonical(numbers[0]))
    folded = " ".join(plain.casefold().split())
    return Key("text", folded) if folded else None


def _canonical(number: str) -> str:
    plain = number.replace(",", "").lstrip("+")
    if "." in plain:
        plain = plain.rstrip("0").rstrip(".")
    sign = "-" if plain.startswith("-") else ""
    digits = plain.lstrip("-")
    whole, dot, rest = digits.partition(".")
    value = f"{whole.lstrip('0') or '0'}{dot}{rest}"
    return value if value == "0" else f"{sign}{value}"


def _boxed(text: str) -> str:
    start = text.rfind("\\boxed{")
    if start < 0:
        return ""
    depth, begin = 1, start + len("\\boxed{")
    for at in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        if not depth:
            return text[begin:at]
    return text[begin:]


def agreement(keys: Mapping[str, Key | None]) -> dict[str, float]:
    """Of each model with an answer, the share of the others with one that gave the same. Of a single answer nothing."""
    given = {name: key for name, key in keys.items() if key is not None}
    if len(given) < 2:
        return {}
    count = Counter(given.values())
    return {name: (count[key] - 1) / (len(given) - 1) for name, key in given.items()}


def outcomes(
    keys: Mapping[str, Key | None], final: Key | None, score: float, prior: Mapping[str, float]
) -> dict[str, float]:
    """What the score of the final answer says of each model's. Those that gave the same one get the same score. Of
    numbers and letters, those that gave another one were wrong where the final one was right; where it was wrong nobody
    knows, and what was thought of them before stands in: left out, they would only ever be seen to lose. Of other texts
    that differ nothing is known."""
    found: dict[str, float] = {}
    for name, key in keys.items():
        if key is None or final is None:
            continue
        if key == final:
            found[name] = score
        elif key.kind == final.kind != "text" and score in (0.0, 1.0) and name in prior:
            found[name] = 0.0 if score else prior[name]
    return found
