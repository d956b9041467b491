"""What a router learns in use: outcomes of its models, new models, drift. `Sessions` keep one from changing its mind.

All of it follows from lessons, plain data that feedback records (`weaverant.feedback`): a process that resumes a run
takes in again what it replays, the rows that had not ended, and `weaverant.routing.folding` folds those of a whole run
into a router.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Container, Iterable, Mapping, Sequence
from random import Random
from typing import Literal, Protocol

import msgspec

from weaverant.message import Message, digest
from weaverant.routing.evidence import Evidence, Verdict
from weaverant.routing.pool import Pool
from weaverant.routing.scores import Floats, Scores


class Known(Protocol):
    """A router, as those see it who use it."""

    @property
    def models(self) -> Sequence[str]: ...
    @property
    def identity(self) -> str: ...
    @property
    def ece(self) -> float | None: ...
    @property
    def mean(self) -> Mapping[str, float]: ...
    @property
    def cost(self) -> Mapping[str, float | None]: ...
    @property
    def latency(self) -> Mapping[str, float | None]: ...
    @property
    def correlation(self) -> Floats: ...
    def predict(self, queries: Sequence[str]) -> Scores: ...
    def update(self, query: str, model: str, outcome: float, weight: float = 1.0) -> None: ...


class Lesson(msgspec.Struct, frozen=True):
    """What the score of one reply teaches. Recorded as the result of the step `feedback`."""

    query: str
    outcomes: dict[str, float]
    """By model, as far as the score tells."""
    prior: dict[str, float]
    """What was thought of each before it was asked."""
    verdicts: dict[str, list[Verdict]] = {}
    """By model, what its judges said."""
    aggregator: str = ""
    """Who wrote the reply out of others' answers; empty where one stood."""
    score: float = 0.0
    """Of the reply."""
    best: float = 0.0
    """How right the best answer of the first layer was where the call went on after it: as far as the score tells, else
    what was thought of it."""
    could: float = 0.0
    """The probability that any of what was to be asked would be right, less that of the best; 0 where the call did not
    go on."""
    layer: tuple[str, ...] = ()
    """Who was asked first."""
    assessed: bool | None = None
    """Whether models were asked for scores; None where nobody had the choice."""


class Thought(msgspec.Struct, frozen=True):
    """What is thought of a model before it is asked a query."""

    p: float
    sd: float
    support: float
    """Graded answers that it rests on."""


# New models

CARD = 6.0
"""Graded answers that a card's word counts as much as."""
TIER = 0.5
"""Decades of price: models whose prices are so far apart tell little of each other."""


def cold_start(pool: Pool, router: Known | None) -> dict[str, float]:
    """The chance of being right of the pool's models that the router does not know: what the card says (`prior`), else
    the mean of the model that it is `like`, else of the models with about its price, drawn to the mean of all."""
    mean = dict(router.mean) if router is not None else {}
    known = [name for name in pool.members if name in mean]
    overall = sum(mean[name] for name in known) / len(known) if known else None
    found: dict[str, float] = {}
    for name in pool.members:
        card = pool.cards[name]
        if name in mean:
            continue
        if card.prior is not None or overall is None:
            found[name] = pool.prior(name)
        elif card.like in mean:
            found[name] = mean[card.like]
        else:
            found[name] = _by_price(name, {other: mean[other] for other in known}, overall, pool)
    return found


def _by_price(name: str, mean: Mapping[str, float], overall: float, pool: Pool) -> float:
    own, others = _price(pool, name), {other: _price(pool, other) for other in mean}
    total, weight = overall, 1.0
    for other, price in others.items():
        if own and price:
            near = math.exp(-0.5 * (math.log10(own / price) / TIER) ** 2)
            total, weight = total + near * mean[other], weight + near
    return total / weight


def _price(pool: Pool, name: str) -> float:
    """Of a token of prompt and one of reply; 0 where nobody knows."""
    return sum(pool.price(name) or (0.0, 0.0))


# What became of each model's answers

RING = 512
HALF_LIFE = 200.0
"""Outcomes of a model after which an old one counts half."""
SLACK, ALARM = 0.1, 10.0
"""Of the CUSUM: what a mean may be off without notice, and the sum that is no chance. With outcomes of 0 and 1 a false
alarm takes some tens of thousands of them; a fall by .3 is told after some fifty."""


class Drift(msgspec.Struct):
    """Two one-sided sums of (outcome - expected): Page's CUSUM."""

    below: float = 0.0
    above: float = 0.0

    def add(self, surprise: float) -> None:
        self.below = max(0.0, self.below - surprise - SLACK)
        self.above = max(0.0, self.above + surprise - SLACK)

    @property
    def alarm(self) -> str:
        """`worse` or `better` than predicted; empty while it is neither."""
        return "worse" if self.below > ALARM else "better" if self.above > ALARM else ""


class Belief:
    """Of one model: its newest outcomes beside what was expected of them."""

    def __init__(self, outcomes: Iterable[tuple[float, float]] = ()) -> None:
        """Of what a process before has seen; drift is counted anew."""
        self.ring: deque[tuple[float, float]] = deque(outcomes, maxlen=RING)
        self.drift = Drift()

    def add(self, outcome: float, expected: float) -> None:
        self.ring.append((outcome, expected))
        self.drift.add(outcome - expected)

    def counted(self) -> tuple[float, float]:
        """Outcomes summed, and their number, the older the less."""
        fade = 0.5 ** (1 / HALF_LIFE)
        right = count = 0.0
        for outcome, _ in list(self.ring):  # at once: another thread may add
            right, count = right * fade + outcome, count * fade + 1.0
        return right, count


class Kept(msgspec.Struct):
    """`learned.json`: what `weaverant route learn` keeps beside a router. Outcomes with what was expected of them, the
    newest `RING` of each model."""

    outcomes: dict[str, list[tuple[float, float]]] = {}
    """Of models that the router does not know."""
    aggregated: dict[str, list[tuple[float, float]]] = {}
    """Of what each model wrote out of others' answers."""
    runs: dict[str, list[str]] = {}
    """The scores that are in, as digests, by the run's id."""

    def add(self, lesson: Lesson, known: Container[str]) -> None:
        """What the router has no place for."""
        for name, outcome in sorted(lesson.outcomes.items()):
            if name not in known:
                _noted(self.outcomes, name, outcome, lesson.prior.get(name, outcome))
        if lesson.aggregator:
            expected = lesson.prior.get(lesson.aggregator, lesson.score)
            _noted(self.aggregated, lesson.aggregator, lesson.score, expected)


def _noted(of: dict[str, list[tuple[float, float]]], name: str, outcome: float, expected: float) -> None:
    of[name] = [*of.get(name, ()), (outcome, expected)][-RING:]


class Learned:
    """A router and what was learned since: the live state of one compound in one process."""

    def __init__(
        self, pool: Pool, router: Known | None, evidence: Evidence | None = None, kept: Kept | None = None
    ) -> None:
        """`evidence` and `kept` are what a process before has learned."""
        before = kept or Kept()
        self.pool = pool
        self.router = router
        self.evidence = evidence or Evidence()
        self._cold = cold_start(pool, router)
        self._beliefs = {name: Belief(seen) for name, seen in before.outcomes.items() if name in self._cold}
        self._aggregated = {name: Belief(seen) for name, seen in before.aggregated.items()}

    def thoughts(self, query: str) -> dict[str, Thought]:
        """Of all models of the pool."""
        found = {name: self.own(name, p) for name, p in self._cold.items()}
        if self.router is not None:
            scores = self.router.predict([query])
            for at, name in enumerate(scores.models):
                if name in self.pool.members and name not in found:
                    row = (scores.p[0, at], scores.sd[0, at], scores.support[0, at])
                    found[name] = Thought(*(float(each) for each in row))
            for name in self.pool.members:  # `like` another is what that one is on this query
                like = self.pool.cards[name].like
                if name in self._cold and self.pool.cards[name].prior is None and like in scores.models:
                    found[name] = self.own(name, float(scores.p[0, scores.models.index(like)]))
        return {name: found[name] for name in self.pool.members}

    def own(self, name: str, prior: float) -> Thought:
        """Of a model that the router does not know: Beta's mean of its card and its outcomes."""
        right, count = self._beliefs[name].counted() if name in self._beliefs else (0.0, 0.0)
        p = (CARD * prior + right) / (CARD + count) if count else prior
        return Thought(p, math.sqrt(p * (1 - p) / (CARD + count + 1)), count)

    def aggregating(self, name: str, p: float) -> float:
        """The chance that it writes a right answer out of others', where it would be right by itself with `p`."""
        right, count = self._aggregated[name].counted() if name in self._aggregated else (0.0, 0.0)
        return (CARD * p + right) / (CARD + count)

    def take(self, lesson: Lesson) -> None:
        """Learn from it."""
        if lesson.assessed is not None:
            expected = max((lesson.prior[name] for name in lesson.layer), default=0.0)
            self.evidence.heard(lesson.assessed, lesson.score - expected, lesson.layer)
        for name, outcome in sorted(lesson.outcomes.items()):
            expected = lesson.prior.get(name, outcome)
            self._beliefs.setdefault(name, Belief()).add(outcome, expected)
            if self.router is not None and name in self.router.models:
                self.router.update(lesson.query, name, outcome)
            self.evidence.learn(expected, lesson.verdicts.get(name, ()), outcome)
        if lesson.could:
            self.evidence.discernment.learn(lesson.score - lesson.best, lesson.could)
        if lesson.aggregator:
            expected = lesson.prior.get(lesson.aggregator, lesson.score)
            self._aggregated.setdefault(lesson.aggregator, Belief()).add(lesson.score, expected)

    def alarms(self) -> list[str]:
        """What has drifted, for people."""
        return [
            f"{name} is {belief.drift.alarm} than its router predicts: train the router anew"
            for name, belief in sorted(self._beliefs.items())
            if belief.drift.alarm
        ]


# Exploration


class Explored:
    """Keeps what exploration takes below its share of what is spent."""

    def __init__(self, share: float) -> None:
        self.share = share
        self.all = 0.0
        self.explored = 0.0

    def room(self, cost: float) -> bool:
        """Whether a call of that cost may be made to learn of a model."""
        return self.share > 0 and self.explored + cost <= self.share * (self.all + cost)

    def spent(self, cost: float, exploring: bool) -> None:
        self.all += cost
        self.explored += cost if exploring else 0.0


def thompson(thoughts: Mapping[str, Thought], seed: int) -> str:
    """The best of one draw from what is thought of each: who is little known is drawn high at times."""
    random = Random(seed)
    draws = {name: random.gauss(thoughts[name].p, thoughts[name].sd) for name in sorted(thoughts)}
    return max(sorted(draws), key=draws.__getitem__)


# Sessions

Session = Literal["none", "opening", "system"]
MOST_SESSIONS = 10_000


class Stay(msgspec.Struct):
    model: str
    switches: int = 0


class Sessions:
    """Who answers in each session, the newest of them."""

    def __init__(self) -> None:
        self._stays: OrderedDict[str, Stay] = OrderedDict()

    def of(self, session: str) -> Stay | None:
        return self._stays.get(session) if session else None

    def note(self, session: str, model: str) -> None:
        """Who has come first this time."""
        if not session:
            return
        before = self._stays.pop(session, None)
        switches = 0 if before is None else before.switches + (before.model != model)
        self._stays[session] = Stay(model, switches)
        if len(self._stays) > MOST_SESSIONS:
            self._stays.popitem(last=False)


def session_of(messages: Sequence[Message], how: Session) -> str:
    """What tells a session: `opening`, all up to the first message of its user, which every later turn repeats;
    `system`, the system message. Empty where there is none."""
    if how == "none":
        return ""
    first = next((n for n, one in enumerate(messages) if one.role == "user"), len(messages) - 1)
    said = messages[: first + 1] if how == "opening" else [one for one in messages if one.role == "system"]
    return digest(b"".join(one.digest for one in said)).hex() if said else ""


def stays(stay: Stay | None, utility: Mapping[str, float], sd: Mapping[str, float], margin: float, most: int) -> str:
    """Who comes first in a session whose best would be another: the one that it has, unless the other is better by more
    than `margin` and by more than a standard deviation, and it has not changed `most` times. Empty where nothing holds
    it back."""
    if stay is None or stay.model not in utility:
        return ""
    best = max(sorted(utility), key=utility.__getitem__)
    gain = utility[best] - utility[stay.model]
    clear = gain > margin and gain > max(sd.get(best, 0.0), sd.get(stay.model, 0.0))
    return "" if best == stay.model or (clear and stay.switches < most) else stay.model
