"""Reading the answer out of a reply, and holding it against the gold answer.

The extractor T of the paper: fixed and deterministic. What cannot be read is None, and None is wrong.
"""

from __future__ import annotations

import re
from decimal import Decimal, localcontext
from typing import Any, Literal, NamedTuple

from weaverant.errors import UserError

Kind = Literal["number", "choice", "exact"]
Checker = Literal["auto", "number", "choice", "exact"]

_NUMBER = re.compile(
    r"(?P<minus>(?<![\w)\]}%])-\$?|\$-)?"  # a minus behind a digit, a letter or a bracket subtracts
    r"(?P<top>(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)"
    r"(?:/(?P<bottom>[0-9]*[1-9][0-9]*)(?![0-9./]))?"
)
_STRONG = re.compile(r"####|\\boxed\s*(?={)")
_WEAK = re.compile(
    r"(?P<others>\b(?:previous|given|proposed|original|initial|first|earlier|wrong|incorrect|attempt's|student's"
    r"|solution's|their|your|his|her)\s+)?\banswer\b[^\n.!?]{0,60}?(?:\b(?:is|are|be|was|equals)\b|:|=)|^\s*A:",
    re.IGNORECASE | re.MULTILINE,
)
_LETTER = re.compile(r"[\W_]*(?:(?:option|choice|letter)\W+)?(?:([A-H])(?![\w'])|([a-h])(?=\W*$))", re.ASCII)
_LAST_LETTER = re.compile(r"\(([A-H])\)|(?<![\w'])([A-H])(?=\W*$)")
_SENTENCE_END = re.compile(r"[.!?](?=\s)")
_FRACTION = re.compile(r"\\[dt]?frac\s*\{([0-9,.]+)\}\s*\{([0-9,.]+)\}")
_MARKUP = str.maketrans({"−": "-", "\u00a0": " ", "*": None})


class AnswerKey(NamedTuple):
    """A row's gold answer, as `extract` would read it, and how replies are read."""

    kind: Kind
    gold: str

    def read(self, reply: str) -> str | None:
        """The answer of a reply, or None."""
        return extract(reply, self.kind)

    def accepts(self, answer: str | None) -> bool:
        """Whether an answer is right: numbers by value, choices by letter, texts without case, blanks and dots."""
        if answer is None:
            return False
        return Decimal(answer) == Decimal(self.gold) if self.kind == "number" else answer == self.gold


def answer_key(answer: Any, checker: Checker = "auto") -> AnswerKey:
    """The key of a row's `answer`. Gold is what stands after the last `####`, else all of it.

    `auto` takes `number` for a gold number, `choice` for one of the letters A to H, `exact` for any other text.
    `UserError` where the gold answer cannot be read so.
    """
    gold = str("" if answer is None else answer).rpartition("####")[2].strip()
    kinds: tuple[Kind, ...] = ("number", "choice", "exact") if checker == "auto" else (checker,)
    for kind in kinds:
        read = _whole(gold, kind)
        if read is not None:
            return AnswerKey(kind, read)
    raise UserError(f"a row needs a gold answer in 'answer', for the checker {checker!r}; found {answer!r}")


def extract(reply: str, kind: Kind) -> str | None:
    """The answer that a reply gives, in a canonical form; None where it gives none.

    What the last `####` or `\\boxed{}` says counts alone. Then the last "answer is" (or "answer:", "A:") that says
    something, unless the answer is someone else's ("the previous answer is"). Then the last number of the text, the
    last `(B)` or a letter at its end, or the last line.
    """
    text = _FRACTION.sub(r"\1/\2", reply.replace("{,}", ",").replace("\\!", "").replace("\\$", "$")).translate(_MARKUP)
    strong = list(_STRONG.finditer(text))
    if strong:
        return _said(_behind(text, strong[-1].end()), kind)
    for marker in reversed(list(_WEAK.finditer(text))):
        if marker["others"] is None:
            said = _said(_behind(text, marker.end()), kind)
            if said is not None:
                return said
    return _last(text, kind)


def announced(reply: str) -> str | None:
    """What the last `####` or `\\boxed{}` of a reply says, as it stands; None where there is none."""
    strong = list(_STRONG.finditer(reply))
    return _behind(reply, strong[-1].end()).strip() if strong else None


def _behind(text: str, start: int) -> str:
    """What a marker announces: the rest of its line, or of the next line that is not blank; of a box, its content."""
    if text[start : start + 1] == "{":
        depth = 0
        for end in range(start, len(text)):
            depth += (text[end] == "{") - (text[end] == "}")
            if depth == 0:
                return text[start + 1 : end]
    return text[start:].lstrip().partition("\n")[0]


def _said(span: str, kind: Kind) -> str | None:
    """The answer in what a marker announces: of `16 - 7 = 9 eggs` it is 9, of `9 of 16` it is 9."""
    if kind != "exact":
        span = _SENTENCE_END.split(span, maxsplit=1)[0]
    match kind:
        case "number":
            result = _NUMBER.search(span, span.rfind("=") + 1) or _NUMBER.search(span)
            return None if result is None else _canonical(result)
        case "choice":
            letter = _LETTER.match(span)
            return None if letter is None else (letter[1] or letter[2]).upper()
        case "exact":
            return _words(span)


def _last(text: str, kind: Kind) -> str | None:
    """The answer of a reply that announces none."""
    match kind:
        case "number":
            numbers = list(_NUMBER.finditer(text))
            return _canonical(numbers[-1]) if numbers else None
        case "choice":
            letters = list(_LAST_LETTER.finditer(text))
            return letters[-1][1] or letters[-1][2] if letters else None
        case "exact":
            return _words(text.strip().rpartition("\n")[2])


def _whole(gold: str, kind: Kind) -> str | None:
    """A gold answer that is nothing but a number, a letter or a text; None where it is not."""
    text = gold.translate(_MARKUP)
    match kind:
        case "number":
            result = _NUMBER.fullmatch(text.strip("$% "))
            return None if result is None else _canonical(result)
        case "choice":
            letter = text.strip("(). ").upper()
            return letter if len(letter) == 1 and letter in "ABCDEFGH" else None
        case "exact":
            return _words(text)


def _words(text: str) -> str | None:
    """A text without case, markup, final dot and repeated blanks; None where nothing is left."""
    return " ".join(text.strip(" \t\n.$`'\"").casefold().split()) or None


def _canonical(number: re.Match[str]) -> str:
    """A number's shortest form: no commas, no needless zeros. Exact for any length; fractions have 28 digits."""
    top, bottom = number["top"].replace(",", ""), number["bottom"]
    if bottom:
        with localcontext(prec=28):
            top = format(Decimal(top) / Decimal(bottom), "f")
    whole, _, part = top.partition(".")
    digits = (whole.lstrip("0") or "0") + ("." + part.rstrip("0")).rstrip(".")
    return f"-{digits}" if number["minus"] and digits != "0" else digits
