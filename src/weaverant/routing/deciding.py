"""What RouteMoA decides: who is asked next and why, whether it stops, and whose answer is the final one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from weaverant.errors import UserError
from weaverant.routing import evidence as judged
from weaverant.routing.asking import Call
from weaverant.routing.expected import candidates
from weaverant.routing.learning import Explored, Learned, Sessions, Thought, stays, thompson
from weaverant.routing.observed import Observed
from weaverant.routing.pool import Pool
from weaverant.routing.ranking import burden, chosen, correlations, resolved
from weaverant.routing.stopping import MOST_ERROR, reach, reason_to_stop, standing
from weaverant.routing.turns import AUTO, JUDGES, Play, RouteMoaOptions, Turn
from weaverant.routing.utility import Candidate, Ranked, Weights, rank, refused

IN_VAIN = 50
"""Calls with scores asked for before any feedback has come: no more then, since without it scores weigh nothing."""


class Seen(NamedTuple):
    """What is known outside of the call, and chance: as a decision finds it."""

    at: float
    """The time, in seconds since 1970."""
    seconds: float
    """Since the call began, on the task's clock."""
    spent: float
    """US dollars, by this call."""
    left: float | None
    """US dollars of the call's budget; None without one."""
    session: str
    draw: int
    """Decides who is asked to learn of it."""
    coin: int
    """Decides whether scores are asked for where either may be better."""


class Layer(NamedTuple):
    """Whom the next layer would be."""

    models: list[Ranked]
    held: str
    explored: str


class Ending(NamedTuple):
    """Whose answer is the final one, or who writes it."""

    stands: str
    aggregators: tuple[str, ...]


class Deciding:
    """Decides on what is known right now. Only recorded steps may ask it."""

    def __init__(
        self, pool: Pool, options: RouteMoaOptions, learned: Learned, observed: Observed, aggregator: str
    ) -> None:
        """`aggregator` goes before all others; empty: the best at it."""
        self.sessions = Sessions()
        self.explored = Explored(options.explore)
        self.judges = judges_of(options.judges)
        self.chooses = options.judges == AUTO and (options.k > 1 or options.layers > 1)
        """Whether it decides call by call if scores are asked for."""
        self._pool = pool
        self._options = options
        self._learned = learned
        self._observed = observed
        self._aggregator = aggregator
        router = learned.router
        self._together = correlations(router.models, router.correlation) if router else correlations((), _NONE)
        self._ece = router.ece if router else None
        self._in_vain = 0

    def turn(
        self,
        play: Play,
        thoughts: dict[str, Thought],
        seen: Seen,
        calls: Callable[[Sequence[str], Sequence[str], bool], list[Call]],
    ) -> Turn:
        """What comes next in a call. `calls` makes those to such models, of which some judge, with scores or not."""
        believed = self._learned.evidence
        prior = {name: thought.p for name, thought in thoughts.items()}
        said = {name: play.said(name) for name in play.keys}
        posterior = {name: believed.after(prior[name], said[name]) for name, key in play.keys.items() if key}
        found = self._candidates(play, prior | posterior, seen.at)
        weights = Weights(self._options.cost, self._options.latency, self._options.reference, self._options.slo)
        ranked = rank(found, weights)
        weights, why = resolved(ranked, weights), refused(found)
        layer = self._layer(play, thoughts, ranked, weights, seen)
        assessed = self._assessed(seen.coin) if play.assessed is None else play.assessed
        stop, admitted = self._stop(play, posterior, layer.models, weights, seen.seconds), None
        if not stop:
            judges = self._judging(posterior, [one.name for one in layer.models], assessed)
            wanted = calls([one.name for one in layer.models], judges, assessed)
            admitted = play.asking.admitted(wanted, 0, seen.at, seen.left)
            why |= admitted.refused
            stop = "" if admitted.ask else "nobody left"
        best = max(posterior.values(), default=0.0)
        able = reach(posterior, () if stop else layer.models, self._together)
        ending = self._ending(play, posterior, ranked, weights, able - best) if stop else Ending("", ())
        asked = admitted.ask if admitted and not stop else ()
        return Turn(
            layer=play.layer,
            thoughts={} if play.layer else thoughts,
            before=play.posterior or prior,
            after=posterior,
            verdicts=said,
            weights={each.judge: believed.weight(each.judge) for verdicts in said.values() for each in verdicts},
            ranked=tuple(ranked),
            refused=why,
            ask=asked,
            assessed=assessed,
            judges=self._judging(posterior, asked, assessed),
            admitted=admitted,
            stop=stop,
            stands=ending.stands,
            best=best,
            reach=able,
            discerning=believed.discernment.value,
            aggregators=ending.aggregators,
            held=layer.held,
            explored=layer.explored if layer.explored in asked else "",
            spent=seen.spent,
            seconds=seen.seconds,
        )

    def noted(self, turn: Turn, session: str) -> None:
        """A decision, now or replayed: what it spends on exploration, who comes first in the session."""
        spending = _spending(turn.ranked)
        for name in turn.ask:
            self.explored.spent(spending[name], name == turn.explored)
        if turn.ask and not turn.layer:
            self.sessions.note(session, turn.ask[0])
            self._in_vain += turn.assessed

    def _candidates(self, play: Play, p: Mapping[str, float], at: float) -> list[Candidate]:
        """All models; who has failed in this call, or rests after failures, is refused."""
        router = self._learned.router
        cost = router.cost if router else dict[str, float | None]()
        latency = router.latency if router else dict[str, float | None]()
        found = candidates(self._pool, self._observed, play.request, p, cost, latency)
        resting = {one.name for one in found if self._observed.health(one.name, at) == "open"}
        return [
            msgspec.structs.replace(one, refused="it gave no answer just now")
            if one.name in play.failed
            else msgspec.structs.replace(one, refused="its last calls failed")
            if one.name in resting and not one.refused
            else one
            for one in found
        ]

    def _layer(
        self, play: Play, thoughts: Mapping[str, Thought], ranked: Sequence[Ranked], weights: Weights, seen: Seen
    ) -> Layer:
        """The best that go well together; in the first layer whom the session keeps, and who is to be learned of."""
        if play.layer:
            return Layer(chosen(ranked, self._options.k, weights, self._together), "", "")
        held = self._held(ranked, thoughts, seen.session)
        layer = chosen(sorted(ranked, key=lambda one: one.name != held), self._options.k, weights, self._together)
        explored = self._exploring(thoughts, ranked, layer, seen.draw)
        if explored:
            one = next(one for one in ranked if one.name == explored)
            layer = [*layer[: self._options.k - 1], one]
        return Layer(layer, held, explored)

    def _held(self, ranked: Sequence[Ranked], thoughts: Mapping[str, Thought], session: str) -> str:
        utility = {one.name: one.utility for one in ranked}
        sd = {name: thought.sd for name, thought in thoughts.items()}
        return stays(self.sessions.of(session), utility, sd, self._options.margin, self._options.switches)

    def _exploring(
        self, thoughts: Mapping[str, Thought], ranked: Sequence[Ranked], layer: Sequence[Ranked], draw: int
    ) -> str:
        """Who is asked to learn of it; empty where that would be nobody else, or the share is used up."""
        if not self._options.explore or not ranked:
            return ""
        name = thompson({one.name: thoughts[one.name] for one in ranked}, draw)
        if name in {one.name for one in layer} or not self.explored.room(_spending(ranked)[name]):
            return ""
        return name

    def _assessed(self, coin: int) -> bool:
        """Whether replies are asked for scores. By `auto` where that has paid, and now and then to find out."""
        if not self.chooses:
            return bool({"self", "peer"} & self.judges) and (self._options.k > 1 or self._options.layers > 1)
        believed = self._learned.evidence
        return (bool(believed.tried) or self._in_vain < IN_VAIN) and believed.scoring.pays(coin)

    def _judging(self, posterior: Mapping[str, float], asked: Sequence[str], assessed: bool) -> tuple[str, ...]:
        """The best of the layers before, where they are asked again."""
        if "peer" not in self.judges or not assessed:
            return ()
        return tuple(name for name in judged.judges(posterior, self._options.close) if name in asked)

    def _stop(
        self, play: Play, posterior: Mapping[str, float], layer: Sequence[Ranked], weights: Weights, seconds: float
    ) -> str:
        options = self._options
        return reason_to_stop(
            keys=play.keys,
            posterior=posterior,
            layer=layer,
            weights=weights,
            together=self._together,
            calibration_error=self._ece,
            seconds_left=options.within - seconds if options.within else None,
            last=play.layer >= options.layers,
            enough=options.enough or None,
            discerning=self._learned.evidence.discernment.value,
        )

    def _ending(
        self, play: Play, posterior: Mapping[str, float], ranked: Sequence[Ranked], weights: Weights, could: float
    ) -> Ending:
        """One answer stands where it is clear, or where nothing is gained by what would be written out of all: at most
        `could`, in probability of being right."""
        sure = self._ece is not None and self._ece <= MOST_ERROR
        stands = standing(play.keys, posterior, self._options.clear if sure else 2.0)
        if stands:
            return Ending(stands, ())
        aggregators = self._aggregators(ranked, weights)
        if posterior:
            writer = next((one for one in ranked if aggregators and one.name == aggregators[0]), None)
            price = burden([writer.cost], writer.latency, weights) if writer else 0.0
            if self._learned.evidence.discernment.value * could <= (price if sure else 0.0):
                return Ending(max(posterior, key=lambda name: posterior[name]), ())
        return Ending("", aggregators)

    def _aggregators(self, ranked: Sequence[Ranked], weights: Weights) -> tuple[str, ...]:
        able = [
            Candidate(one.name, self._learned.aggregating(one.name, one.p), one.cost, one.latency) for one in ranked
        ]
        names = [one.name for one in rank(able, weights)]
        return tuple(sorted(names, key=lambda name: name != self._aggregator))


def judges_of(text: str) -> frozenset[str]:
    """Those that `judges=` names; `UserError` where it names others."""
    names = JUDGES if text == AUTO else [name.strip() for name in text.split(",") if name.strip()]
    if unknown := sorted(set(names) - set(JUDGES)):
        raise UserError(
            f"routemoa: judges= takes {AUTO}, or some of {', '.join(JUDGES)}, joined by commas; found {unknown[0]!r}"
        )
    return frozenset(names)


_NONE: Any = []
"""The correlations of a router that there is not."""


def _spending(ranked: Sequence[Ranked]) -> dict[str, float]:
    """What a call counts as in the share that explores: dollars where all cost some, else one each."""
    paid = all(one.cost > 0 for one in ranked)
    return {one.name: one.cost if paid else 1.0 for one in ranked}
