"""What the fields of an agent may hold: one check for Python, for `--set` and for `overrides`.

A file is written once and run for hours, so a mistake is an error where the agent is made and not a refusal of each
of its calls by a server.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

from weaverant.errors import UserError


class Fit(NamedTuple):
    """What fits a field. `kind` is what a text of `--set` is read as; None: a text cannot say it."""

    kind: Any
    expected: str
    test: Callable[[object], bool]


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _at_least(least: int) -> Callable[[object], bool]:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= least


def _or_none(test: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: value is None or test(value)


def _text(value: object) -> bool:
    return isinstance(value, str) and bool(value)


def _label(value: object) -> bool:
    return isinstance(value, str)


def _texts(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and all(map(_text, cast("list[object]", value)))


def _functions(value: object) -> bool:
    several = isinstance(value, Sequence) and not isinstance(value, str)
    return several and all(map(callable, cast("list[object]", value)))


def _named(value: object) -> bool:
    return isinstance(value, Mapping) and all(isinstance(name, str) for name in cast("Mapping[object, Any]", value))


def _share(value: object) -> bool:
    return _number(value) and 0 < cast("float", value) <= 1


def _from_0(value: object) -> bool:
    return _number(value) and cast("float", value) >= 0


def _template(value: object) -> bool:
    return isinstance(value, str | Path)


def _flag(value: object) -> bool:
    return isinstance(value, bool)


_PROMPT = Fit(str | None, "a template as text, or the Path of a file with one", _or_none(_template))
_COUNT = Fit(int, "a whole number, 0 or more", _at_least(0))
_FROM_1 = Fit(int, "a whole number, 1 or more", _at_least(1))
_FLAG = Fit(bool, "True or False", _flag)

FITS = {
    "prompt": _PROMPT,
    "system": _PROMPT,
    "model": Fit(str, "a name, as a text", _text),
    "temperature": Fit(float | None, "a number, 0 or more", _or_none(_from_0)),
    "top_p": Fit(float | None, "a number above 0, and 1 at most", _or_none(_share)),
    "max_tokens": Fit(int | None, "a whole number, 1 or more", _or_none(_at_least(1))),
    "stop": Fit(list[str], "a list of texts", _texts),
    "logprobs": _FLAG,
    "top_logprobs": _COUNT,
    "n": _FROM_1,
    "extra": Fit(dict[str, Any], "a mapping from names of fields to values", _named),
    "repairs": _COUNT,
    "turns": _FROM_1,
    "place": Fit(str, "a label, as a text", _label),
    "tools": Fit(None, "a list of functions", _functions),
}
"""By the field's name."""

SETTABLE = {name: fit.kind for name, fit in FITS.items() if fit.kind is not None}
"""What `--set` may change of an agent, with its type."""


def check(name: object, values: Mapping[str, Any]) -> None:
    """`UserError` for the first of an agent's fields that holds what it cannot."""
    if not _text(name):
        raise UserError(f"Agent(NAME, ...): expected a name, as a text; found {name!r:.80}")
    for field, fit in FITS.items():
        if not fit.test(values[field]):
            raise UserError(f"agent {name!r}: {field}={values[field]!r:.80}: expected {fit.expected}")
    n = values["n"]
    if n > 1 and (values["output"] is not str or values["tools"]):
        which = "output" if values["output"] is not str else "tools"
        raise UserError(
            f"agent {name!r} has n={n} and {which}=: a repair or a tool's result goes on from one reply, and there are "
            f"{n}. Leave n= out and call the agent {n} times, with asyncio.gather"
        )
