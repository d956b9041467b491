"""JSON in what a model wrote: alone, or somewhere in its prose. Nothing is mended, and nothing is guessed.

Linear in the text, whatever stands in it: a reply may be megabytes of brackets.
"""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn

MOST_FOUND = 100
"""Values that are looked at. A reply with more of them has no answer that could be told from the rest."""

MOST_FALSE = 1_000
"""Brackets that look like the beginning of a value, and are none. The error that tells it takes time for each, in
proportion to the text before it."""

_START = re.compile(r'\{(?=[ \t\r\n]*["}])|\[(?=[ \t\r\n]*(?:["\[\]{\-0-9]|true|false|null))')
_OPENING = re.compile(r"[\[{ \t\r\n]*")
_STRUCTURE = re.compile(r"[:{\[]")


class NotJson(Exception):
    """The text says why, and where."""


def decode(text: str) -> Any:
    """The value of a text that is JSON and nothing else, or `NotJson`. NaN and Infinity are no JSON."""
    try:
        return _decoder.decode(text)
    except (ValueError, RecursionError) as error:
        raise NotJson(_why(error)) from None


def find_json(text: str) -> list[str]:
    """The objects and arrays in a text, without those inside them.

    `NotJson` where one breaks off within: what it holds is not to be taken for a value of its own.
    """
    found: list[str] = []
    false = position = 0
    while start := _START.search(text, position):
        try:
            _, position = _decoder.raw_decode(text, start.start())
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


def _why(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError | _Constant):
        return str(error)
    return "it is nested too deeply" if isinstance(error, RecursionError) else "a number in it is too long"


class _Constant(ValueError):
    pass


def _refuse(name: str) -> NoReturn:
    raise _Constant(f"{name} is no JSON")


_decoder = json.JSONDecoder(parse_constant=_refuse)
