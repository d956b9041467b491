"""Answers in LaTeX, as in MATH: read and compared by `math-verify` (Hugging Face, on sympy).

The library is imported here only, when the first answer is graded: `pip install "weaverant[math]"`. It may take for
ever over hostile LaTeX, so `compared` runs in a process of its own, within limits.
"""

from __future__ import annotations

import logging
from functools import cache, lru_cache
from importlib.util import find_spec
from typing import Any

from weaverant.errors import UserError
from weaverant.recipes.malt.answers import announced
from weaverant.recipes.malt.limits import OutOfMemory, OutOfTime, limited

SECONDS = 5.0
MEGABYTES = 1_000
LONGEST = 2_000
"""Characters of a final answer that are looked at: the longest of MATH has some 160."""


def available() -> None:
    """`UserError` where the library is not installed."""
    if find_spec("math_verify") is None:
        raise UserError("the checker 'math' needs math-verify: pip install 'weaverant[math]'")


def gold_of(answer: Any) -> str:
    """A row's gold answer: what stands after `####` or in the last `\\boxed{}`, else all of it. `UserError` where there
    is none."""
    text = "" if answer is None else str(answer)
    said = announced(text)
    gold = _bare(text if said is None else said)
    if not gold:
        raise UserError(f"a row needs a gold answer in 'answer', for the checker 'math'; found {answer!r}")
    return gold


def compared(gold: str, reply: str) -> tuple[str | None, bool, str]:
    """The reply's answer, whether it is right, and why it is wrong where it was not compared. For another process."""
    _library()  # no part of what may take so long
    try:
        return limited(lambda: _compared(gold, reply), SECONDS, MEGABYTES)
    except OutOfTime:
        return None, False, "out of time"
    except OutOfMemory:
        return None, False, "out of memory"
    except RecursionError:
        return None, False, "too deep"


def _compared(gold: str, reply: str) -> tuple[str | None, bool, str]:
    parse, verify = _library()
    known = _gold(gold)
    if not known:
        raise UserError(f"the gold answer {gold!r:.200} is no LaTeX that math-verify can read")
    said = announced(reply)
    if said is None:
        found = parse(reply[-LONGEST:], parsing_timeout=None)
    else:
        bare = _bare(said)
        found = _parsed(bare) if 0 < len(bare) <= LONGEST else []
    if not found:
        return None, False, "unread"
    right = verify(known, found, timeout_seconds=None)
    return str(found[-1])[:LONGEST], bool(right), ""


def _parsed(answer: str) -> list[Any]:
    """A final answer in each of the library's readings of it."""
    return _library()[0](f"\\boxed{{{answer}}}", parsing_timeout=None)


_gold = lru_cache(64)(_parsed)
"""One gold answer is held against many replies."""


def _bare(answer: str) -> str:
    """Without what only sets it: dollars, `\\( \\)`, a final dot."""
    text = answer.strip().rstrip(".").strip()
    for left, right in (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]")):
        if text.startswith(left) and text.endswith(right) and len(text) > len(left) + len(right):
            return text[len(left) : -len(right)].strip()
    return text


@cache
def _library() -> tuple[Any, Any]:
    import math_verify  # deferred: an extra, and sympy takes half a second  # pyright: ignore

    found: Any = math_verify
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its own alarms are off: ours are on
    return found.parse, found.verify
