"""JSON in what a model wrote: alone, or somewhere in its prose. Nothing is mended, and nothing is guessed.

Linear in the text, whatever stands in it: a reply may be megabytes of brackets.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from typing import Any, NoReturn

MOST_FOUND = 100
"""Values that are looked at. A reply with more of them has no answer that could be told from the rest."""

MOST_FALSE = 1_000
"""Brackets that look like the beginning of a value, and are none. The error that tells it takes time for each, in
proportion to the text before it."""

MOST_DIGITS = 308
"""Of a whole number: one with more may be infinite for whoever wants it as a float."""

_START = re.compile(r'\{(?=[ \t\r\n]*["}])|\[(?=[ \t\r\n]*(?:["\[\]{\-0-9]|true|false|null))')
_OPENING = re.compile(r"[\[{ \t\r\n]*")
_STRUCTURE = re.compile(r"[:{\[]")
_HALF_PAIR = re.compile(r"\\u[dD][89a-fA-F]")


class NotJson(Exception):
    """The text says why, and where."""


def decode(text: str) -> Any:
    """The value of a text that is JSON and nothing else, or `NotJson`.

    Also refused is what parsers read differently, or nobody can store: NaN and Infinity, numbers too large for a float,
    an object with a key twice, half a surrogate pair.
    """
    try:
        value = _decoder.decode(text)
        _check_pairs(text, value)
    except (ValueError, RecursionError) as error:
        raise NotJson(_why(error)) from None
    return value


def find_json(text: str) -> list[str]:
    """The objects and arrays in a text, without those inside them.

    `NotJson` where one breaks off within: what it holds is not to be taken for a value of its own.
    """
    found: list[str] = []
    false = position = 0
    while start := _START.search(text, position):
        try:
            value, position = _decoder.raw_decode(text, start.start())
            _check_pairs(text[start.start() : position], value)
        except json.JSONDecodeError as error:
            opened = _OPENING.match(text, start.start(), error.pos)
            if opened and _STRUCTURE.search(text, opened.end(), error.pos):
                raise NotJson(_why(error)) from None
            position = max(start.end(), error.pos)
            false += 1
        except (ValueError, RecursionError) as error:
            raise NotJson(_why(error)) from None
        else:
            found.append(text[start.start() : position])
        if len(found) > MOST_FOUND or false > MOST_FALSE:
            raise NotJson(f"more than {MOST_FOUND} values, or {MOST_FALSE} brackets that begin none")
    return found


def _check_pairs(text: str, value: Any) -> None:
    """`UnicodeEncodeError` where half a surrogate pair stands in what was decoded."""
    if _HALF_PAIR.search(text):
        json.dumps(value, ensure_ascii=False).encode()


def _why(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError | _Refused):
        return str(error)
    if isinstance(error, UnicodeEncodeError):
        return "a text in it holds half a surrogate pair"
    return "it is nested too deeply" if isinstance(error, RecursionError) else "a number in it is too long"


class _Refused(ValueError):
    """What the grammar has and we do not take."""


def _constant(name: str) -> NoReturn:
    raise _Refused(f"{name} is no JSON")


def _whole(text: str) -> int:
    if len(text) > MOST_DIGITS:
        raise _Refused("a number in it is too long")
    return int(text)


def _float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise _Refused(f"the number {text:.20} is too large")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]
        raise _Refused(f"the key {twice[0]!r:.80} is there twice in one object")
    return found


_decoder = json.JSONDecoder(parse_constant=_constant, parse_int=_whole, parse_float=_float, object_pairs_hook=_object)
