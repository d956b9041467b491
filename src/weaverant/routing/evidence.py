"""From a score before anything was asked to one after it: evidence joins in log-odds, as much as feedback has shown
that it is worth.

Three judges: the author of an answer, the best models of the layer before, and the other answers. None of them is
believed on its word: what a judge says is looked up in what became of such words before. One of whom nothing is known,
or whose words tell nothing, weighs exactly nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from random import Random

import msgspec

SURE = 1e-3
"""No probability here is nearer to 0 or 1."""


def logit(p: float) -> float:
    p = min(1 - SURE, max(SURE, p))
    return math.log(p / (1 - p))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


BINS = 10
"""Of claims: equal claims are looked up together."""
SHRINK = 8.0
"""Verdicts that a bin needs before it counts half against the rate of all of them."""
LEAST = 20.0
"""Verdicts before a judge weighs anything."""
CLEAR = 1.64
"""Standard deviations by which a judge must have helped: one sided, 5 % of those that tell nothing pass."""
MOST_WEIGHT = 1.5
HALF_LIFE = 1_000
"""Verdicts after which an old one counts half."""


class Trust(msgspec.Struct):
    """What a judge's words were worth. All counts fade with their half-life."""

    right: list[float] = msgspec.field(default_factory=lambda: [0.0] * BINS)
    """By bin of what was claimed: outcomes, summed."""
    said: list[float] = msgspec.field(default_factory=lambda: [0.0] * BINS)
    """By bin: verdicts."""
    gain: float = 0.0
    """What the shift would have gained, as it was then: sum of shift x (outcome - what was thought before)."""
    room: float = 0.0
    """Its variance where the shift tells nothing: sum of shift^2 x p (1 - p)."""

    def shift(self, claim: float) -> float:
        """In log-odds, for the claim, if it is believed whole: what such claims came to, against all of them."""
        total = sum(self.said)
        if not total:
            return 0.0
        rate, at = sum(self.right) / total, _bin(claim)
        found = (self.right[at] + SHRINK * rate) / (self.said[at] + SHRINK)
        return 0.0 if abs(found - rate) < 1e-12 else logit(found) - logit(rate)

    @property
    def weight(self) -> float:
        """How much of the shift is believed: one Newton step from nothing, where it is clear of chance; else 0."""
        if sum(self.said) < LEAST or self.room <= 0 or self.gain < CLEAR * math.sqrt(self.room):
            return 0.0
        return min(MOST_WEIGHT, self.gain / (self.room + 1.0))

    def learn(self, claim: float, outcome: float, thought: float) -> None:
        """One more verdict: what was claimed, what came of it in [0, 1], and what was thought without the claim. The
        shift is held against the outcome before it learns from it."""
        fade = 0.5 ** (1 / HALF_LIFE)
        shift = self.shift(claim)
        self.gain = self.gain * fade + shift * (outcome - thought)
        self.room = self.room * fade + shift * shift * thought * (1 - thought)
        self.right = [each * fade for each in self.right]
        self.said = [each * fade for each in self.said]
        at = _bin(claim)
        self.right[at] += outcome
        self.said[at] += 1.0


def _bin(claim: float) -> int:
    return min(BINS - 1, int(claim * BINS))


class Verdict(msgspec.Struct, frozen=True, array_like=True):
    """What one judge said of one answer: `judge` is `self/MODEL`, `peer/MODEL` or `agreement`."""

    judge: str
    claim: float


DISCERNING = 0.5
"""Of what going on could gain, the part that it does: a guess, until feedback says more. 1 would be an oracle."""
GUESSED = 0.5
"""How much that guess counts: as some eight outcomes where a quarter could have been gained."""


class Discernment(msgspec.Struct):
    """How much of what could be gained by going on after the first layer is gained: with more layers, and with an
    aggregator that reads all answers. Below 0 going on does harm."""

    gained: float = 0.0
    """Sum of what was gained x what could be."""
    could: float = 0.0
    """Sum of the squares of what could be gained."""

    @property
    def value(self) -> float:
        """At most 1."""
        return min(1.0, (self.gained + GUESSED * DISCERNING) / (self.could + GUESSED))

    def learn(self, gained: float, could: float) -> None:
        """What came of going on: how much better the reply was than the best answer before, and how much was expected
        at most."""
        fade = 0.5 ** (1 / HALF_LIFE)
        self.gained = self.gained * fade + gained * could
        self.could = self.could * fade + could * could


HARM = 0.1
"""What asking for scores is thought to cost the answers, in their share that is right, before there are any lessons:
who has to keep to a form answers less well (Tam et al. 2024, arXiv 2408.02442)."""
DOUBT = 0.18
"""The standard deviation of that thought: a good quarter of it lies where asking pays."""
SPREAD = 0.5
"""The standard deviation of one gain, before there are any: that of a coin."""
RARELY = 0.03
"""The share of calls with scores that is left where they do not pay."""
THOUGHT = 16.0
"""Lessons that the guess at the spread counts as."""


class Gains(msgspec.Struct):
    """Of the calls of one kind: what they came to, less what was expected beforehand."""

    count: float = 0.0
    total: float = 0.0
    squares: float = 0.0

    @property
    def mean(self) -> float:
        return self.total / self.count if self.count else 0.0

    @property
    def apart(self) -> float:
        """The sum of squares about the mean."""
        return max(0.0, self.squares - self.count * self.mean**2)


class Scoring(msgspec.Struct):
    """Whether answers get better where models are asked for scores as well: two kinds of calls, side by side. What
    both gain over what the router expects, or lose, is its error and says nothing of it."""

    asked: Gains = msgspec.field(default_factory=Gains)
    plain: Gains = msgspec.field(default_factory=Gains)

    @property
    def lessons(self) -> float:
        """The older, the less."""
        return self.asked.count + self.plain.count

    def learn(self, asked: bool, gain: float) -> None:
        """What came of one call."""
        fade = 0.5 ** (1 / HALF_LIFE)
        for each in (self.asked, self.plain):
            each.count, each.total, each.squares = each.count * fade, each.total * fade, each.squares * fade
        kind = self.asked if asked else self.plain
        kind.count, kind.total, kind.squares = kind.count + 1, kind.total + gain, kind.squares + gain * gain

    def difference(self) -> tuple[float, float]:
        """How much better answers are with scores asked for: what is thought by now, and its standard deviation."""
        sure = 1 / DOUBT**2
        if not (self.asked.count and self.plain.count):
            return -HARM, DOUBT
        squares = THOUGHT * SPREAD**2 + self.asked.apart + self.plain.apart
        variance = squares / (THOUGHT + self.lessons) * (1 / self.asked.count + 1 / self.plain.count)
        seen = self.asked.mean - self.plain.mean
        return (seen / variance - HARM * sure) / (1 / variance + sure), (1 / variance + sure) ** -0.5

    def pays(self, seed: int) -> bool:
        """Whether to ask for them in one more call: one draw from what is thought of it (Thompson), so that either is
        done as often as it may be the better one; and now and then in any case, as judges are to be had again."""
        random = Random(seed)
        return random.gauss(*self.difference()) > 0 or random.random() < RARELY


class Evidence(msgspec.Struct):
    """What every judge is worth, what asking them is, and what going on is."""

    trust: dict[str, Trust] = {}
    discernment: Discernment = msgspec.field(default_factory=Discernment)
    scoring: Scoring = msgspec.field(default_factory=Scoring)
    tried: dict[str, float] = {}
    """By model, calls in which it was asked for scores; up to `LEAST`."""

    def heard(self, asked: bool, gain: float, layer: Iterable[str]) -> None:
        """What came of a call with scores asked for, or without, by the models of its first layer. Both kinds count
        from when one of these was asked for scores often enough for them to weigh something: before that a call shows
        what asking costs, and nothing of what it brings."""
        names = list(layer)
        if any(self.tried.get(name, 0.0) >= LEAST for name in names):
            self.scoring.learn(asked, gain)
        elif asked:
            self.tried |= {name: self.tried.get(name, 0.0) + 1 for name in names}

    def after(self, prior: float, verdicts: Sequence[Verdict]) -> float:
        """The probability that an answer is right, once its judges have spoken. Without one that weighs anything it
        is the prior, to the last bit."""
        shifts = [self.weighed(verdict) for verdict in verdicts]
        return prior if not any(shifts) else sigmoid(logit(prior) + sum(shifts))

    def weighed(self, verdict: Verdict) -> float:
        """What one verdict moves, in log-odds."""
        weight = self.weight(verdict.judge)
        return weight * self.trust[verdict.judge].shift(verdict.claim) if weight else 0.0

    def weight(self, judge: str) -> float:
        """How much a judge is believed; 0 for one of whom nothing is known."""
        return self.trust[judge].weight if judge in self.trust else 0.0

    def learn(self, prior: float, verdicts: Sequence[Verdict], outcome: float) -> None:
        """What became of an answer: each judge is measured by what it adds to the prior alone."""
        for verdict in verdicts:
            self.trust.setdefault(verdict.judge, Trust()).learn(verdict.claim, outcome, prior)


def judges(posterior: Mapping[str, float], close: float = 0.05) -> list[str]:
    """Of the models that answered in the layer before: the best, and the second where it is that close."""
    best = sorted(posterior, key=lambda name: (-posterior[name], name))
    if len(best) < 2:
        return []  # its only answer is its own
    return best[:2] if posterior[best[0]] - posterior[best[1]] <= close else best[:1]
