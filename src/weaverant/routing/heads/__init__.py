"""From vectors to estimates. A head is fitted on a table's graded queries; `KINDS` says where each kind is.

A kind is a class with `GRID` (settings to choose from; those not given are its defaults), `fit`, `load`, `arrays` and
`predict`. It is loaded when it is named.
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from importlib import import_module
from math import isfinite
from typing import Protocol, cast

from weaverant.errors import UserError
from weaverant.routing.heads.head import Arrays, Estimate, Given, Head, Settings
from weaverant.routing.scores import Floats

KINDS = {
    "knn": "weaverant.routing.heads.neighbours:Neighbours",
    "clusters": "weaverant.routing.heads.clusters:Clusters",
    "ridge": "weaverant.routing.heads.linear:Ridge",
    "logistic": "weaverant.routing.heads.linear:Logistic",
    "contrastive": "weaverant.routing.heads.contrastive:Contrastive",
    "finetune": "weaverant.routing.heads.finetune:Finetune",
    "blend": "weaverant.routing.heads.blend:Blend",
}
AUTO = ("knn", "clusters", "ridge", "logistic")
"""Those that a blend is of, and `auto` chooses from beside it: seconds of one core for thousands of queries."""

WHOLE = frozenset(("batch", "clusters", "k", "negatives", "others", "positives", "steps", "width"))
"""Settings that count something: 1 or more."""
POSITIVE = frozenset(("penalty", "rate", "shrink", "temperature"))
"""Settings above 0. All others are 0 or more."""

__all__ = [
    "AUTO",
    "KINDS",
    "Arrays",
    "Estimate",
    "Given",
    "Head",
    "HeadKind",
    "Settings",
    "check_setting",
    "head_kind",
    "settings_of",
]


class HeadKind(Protocol):
    """The class of a kind."""

    GRID: tuple[Settings, ...]
    """Settings to choose from by held-out folds. The first has all names, with their defaults."""

    def fit(self, given: Given, scores: Floats, settings: Settings, seed: int) -> Head:
        """(n, M) `scores` in [0, 1], NaN where a model was not asked."""
        ...

    def load(self, settings: Settings, arrays: Arrays) -> Head: ...


def head_kind(name: str) -> HeadKind:
    """`UserError` where there is none of that name."""
    if name not in KINDS:
        near = get_close_matches(name, KINDS, 1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise UserError(f"there is no head {name!r}.{hint} Expected auto, {', '.join(KINDS)}")
    module, _, attribute = KINDS[name].partition(":")
    return cast(HeadKind, getattr(import_module(module), attribute))


def check_setting(name: str, value: float) -> None:
    """`UserError` for a value that no head could be fitted with. `name` as `k` or `knn.k`."""
    own = name.rpartition(".")[2]
    if own in WHOLE:
        expected, good = "a whole number of 1 or more", value >= 1 and value.is_integer()
    elif own in POSITIVE:
        expected, good = "a number above 0", value > 0
    else:
        expected, good = "a number of 0 or more", value >= 0
    if not (good and isfinite(value)):
        raise UserError(f"the setting {name!r} is {expected}; found {value:g}")


def settings_of(kind: HeadKind, given: Mapping[str, float]) -> list[Settings]:
    """The kind's grid with what was given fixed. `UserError` for a name that it has not."""
    defaults = kind.GRID[0]
    for name in given:
        if name not in defaults:
            raise UserError(f"the head has no setting {name!r}; expected {', '.join(sorted(defaults))}")
    found: list[Settings] = []
    for settings in kind.GRID:
        whole = {**defaults, **settings, **given}
        if whole not in found:
            found.append(whole)
    return found
