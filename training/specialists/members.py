"""Who is in the pool: sizes, prices and diets. All that decides the weights stands here, with the order of training."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from random import Random

from problems import BORDER, DOMAINS, SETS

HERE = Path(__file__).parent
MODELS = HERE / "models"
TINY = HERE.parent / "tiny"
if str(TINY) not in sys.path:
    sys.path.append(str(TINY))  # the network and the folder's format are those of the packaged model

POSITIONS = 192
SHORT, LONG = 64, 40
"""Examples of a step: questions alone, and questions with others' answers."""


@dataclass(frozen=True)
class Member:
    """One model: its size, what it is taught, for how long."""

    name: str
    width: int
    layers: int
    diet: dict[str, float]
    """The share of each set in the questions that it is taught."""
    steps: int
    """Of the first phase, with made-up answers of others."""
    later: int
    """And of the second, with real ones, too."""
    rate: float = 4e-3
    heads: int = 4
    sure: float = 0.85
    """How often its made-up answers at home are right, where it is taught how sure it may be."""
    scored: float = 0.25
    """Share of questions that ask for a score, too."""

    @property
    def homes(self) -> frozenset[str]:
        """The sets that it is to be good at: those with 15 % of its diet."""
        return frozenset(name for name, share in self.diet.items() if share >= 0.15)

    def drawn(self, dice: Random, even: bool = False) -> str:
        """A set by its diet; or any, all alike."""
        return dice.choice(SETS) if even else dice.choices(list(self.diet), list(self.diet.values()))[0]


def _diet(own: str, share: float, border: float) -> dict[str, float]:
    """Most of one domain, some of the borders, a little of the others."""
    rest = (1 - share - border) / (len(DOMAINS) - 1)
    return {**{name: share if name == own else rest for name in DOMAINS}, BORDER: border}


MEMBERS = (
    Member("addition", 64, 2, _diet("addition", 0.88, 0.04), 1300, 350),
    Member("generalist", 96, 2, {name: 1 / len(SETS) for name in SETS}, 1400, 250, sure=0.5),
    Member("multiplication", 64, 2, _diet("multiplication", 0.88, 0.04), 1800, 350),
    Member("programs", 64, 2, _diet("programs", 0.80, 0.12), 1800, 350),
    Member("sorting", 64, 2, _diet("sorting", 0.78, 0.14), 1300, 350),
    Member("strings", 64, 2, _diet("strings", 0.78, 0.14), 1300, 350),
)
NAMES = tuple(each.name for each in MEMBERS)
