"""RouteMoA as its authors' code runs it (rongyan4/RouteMoA at 58954df), constants and defects included, to compare.

Each defect has a name in `DEFECTS`; `keep=` of the spec names those that are kept, and the others are mended.
The prompts are ours: what they ask for is the original's. Where the router tells no cosines, its chances of being right
stand for the sigmoids of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import msgspec

from weaverant.agent import Agent
from weaverant.compound import Inside
from weaverant.errors import UserError
from weaverant.message import Reply, Request, assistant
from weaverant.routing.asking import Asking, Call, Heard, plainly, request_digest
from weaverant.routing.assess import Form, aggregating, asking, read
from weaverant.routing.expected import candidates
from weaverant.routing.learning import Known, Learned
from weaverant.routing.pool import Pool
from weaverant.routing.pooled import Pooled, as_agent
from weaverant.routing.prompts import query_in
from weaverant.routing.route import scorer_of
from weaverant.routing.turns import FaithfulTurn, RouteMoaOptions, form_of, refuses_all_but_text
from weaverant.routing.utility import Weights, rank
from weaverant.workflow import rng, step

DEFECTS = (
    "raw_json",
    "same_self",
    "unseen_one",
    "missing_eight",
    "confident_judge",
    "cost_ties",
    "gap_filter",
    "wired_aggregator",
    "waits_for_all",
    "no_fallback",
)
"""What is wrong with the original and can be mended, by name: see docs/routing.md."""


class Constants(NamedTuple):
    """Of one of the original's pools. Weights are of the router's score, of self-scores, of the judge's."""

    stop: float
    first: tuple[float, float]
    """Layer 1: router, self."""
    again: tuple[float, float, float, float]
    """Of who ran in both layers: router, self, self, judge."""
    new: tuple[float, float]
    """Of who runs in layer 2 only: router, self."""
    unseen: tuple[float, float, float]
    """Of who does not run in layer 2: router, self, judge."""
    gap: float | None
    """Models whose mapped score is further below the best are never asked."""


POOLS = {
    "small": Constants(0.805, (2 / 3, 1 / 3), (0.5, 0.125, 0.125, 0.25), (2 / 3, 1 / 3), (0.5, 0.25, 0.25), 0.2),
    "large": Constants(0.76, (0.9, 0.1), (0.25, 0.15, 0.15, 0.45), (0.9, 0.1), (0.7, 0.1, 0.2), None),
}
MISSING_FIRST, MISSING_AGAIN, UNSEEN_SELF, UNSEEN_PEER = 0.8, 0.5, 0.3, 1.0
"""What stands for a self-score that is missing or 0, in layer 1 and in layer 2; of whom nobody asked, both scores."""
MAX_TOKENS = 8_192
"""Of a reply, at temperature 0; both where the agent sets nothing else."""


def power_map(score: float) -> float:
    """The original's stretching of a sigmoid; it jumps by .434 at .5."""
    return 0.8 * score**1.5 if score < 0.5 else 1 - 0.8 * (1 - score) ** 1.5


def stopping_cosine(pool: Constants, own: float) -> float | None:
    """The smallest cosine in [0, 1] with which a model that claims `own` stops the loop after layer 1; None where none
    does."""
    wanted = (pool.stop - pool.first[1] * (own or MISSING_FIRST)) / pool.first[0]
    if wanted > power_map(1 / (1 + math.exp(-1))):
        return None
    score = max(0.5, 1 - ((1 - wanted) / 0.8) ** (1 / 1.5))
    return max(0.0, math.log(score / (1 - score)))


class Layer(NamedTuple):
    """What a layer said: by model, in the order in which they were asked."""

    answers: dict[str, str]
    own: dict[str, float | None]
    peers: dict[str, dict[str, float | None]]
    """By judge, then by model."""


def mixed_first(
    constants: Constants, mapped: Mapping[str, float], layer: Layer, keep: frozenset[str]
) -> dict[str, float]:
    """The scores after layer 1, of those who ran."""
    router, self_ = constants.first
    found: dict[str, float] = {}
    for name in layer.answers:
        own = layer.own[name]
        if not own and "missing_eight" not in keep:
            found[name] = mapped[name]
            continue
        found[name] = router * mapped[name] + self_ * (own or MISSING_FIRST)
    return found


def mixed_second(
    constants: Constants,
    mapped: Mapping[str, float],
    before: Mapping[str, float],
    first: Layer,
    second: Layer,
    judge: str,
    keep: frozenset[str],
) -> dict[str, float]:
    """The scores after layer 2, of all in `before`."""
    cross = second.peers.get(judge, {})
    found: dict[str, float] = {}
    for name in before:
        peer = cross.get(name)
        own = second.own.get(name)
        if name in second.answers and not own and "missing_eight" not in keep:
            found[name] = before[name]
        elif name in first.answers and name in second.answers:
            earlier = own if "same_self" in keep else first.own[name] or own
            router, one, two, judged = constants.again
            kept = router * mapped[name] + one * (earlier or MISSING_AGAIN) + two * (own or MISSING_AGAIN)
            found[name] = before[name] if peer is None else kept + judged * peer
        elif name in second.answers:
            router, self_ = constants.new
            found[name] = router * mapped[name] + self_ * (own or MISSING_AGAIN)
        elif peer is not None or "unseen_one" in keep:
            router, self_, judged = constants.unseen
            peer = UNSEEN_PEER if peer is None else peer
            found[name] = router * mapped[name] + self_ * UNSEEN_SELF + judged * peer
        else:
            found[name] = before[name]
    return found


class Faithful(Pooled[RouteMoaOptions]):
    """A `Compound`."""

    def __init__(self, pool: Pool, options: RouteMoaOptions, router: Known | None = None) -> None:
        """`router` in place of the folder that the pool names."""
        found = router or cast("Known | None", scorer_of(pool))
        super().__init__("routemoa", pool, options, found and found.identity)
        self.keep = _kept(options.keep)
        self._constants = POOLS[options.faithful or "small"]
        self._learned = Learned(pool, found)
        self._aggregator = self.named("aggregator", options.aggregator, pool.aggregator)
        if "wired_aggregator" in self.keep and not self._aggregator:
            raise UserError("routemoa: the aggregator of faithful= is fixed: name it with aggregator=NAME")
        self._forms: dict[str, Form] = {name: form_of(options.prompts, pool, name) for name in pool.members}

    def refuses(self, request: Request) -> str:
        """See `Selective`."""
        return refuses_all_but_text(self.pool, request)

    def agents(self, request: Request) -> Sequence[Agent]:
        """See `Compound`: any member may be asked."""
        plain = _plainly(request)
        return [as_agent(name, plain.sampling) for name in self.members if not self.pool.refuses(name, plain)]

    async def answer(self, request: Request, inside: Inside) -> Reply:
        """See `Compound`."""
        request, asks = _plainly(request), self._asking(inside)
        plan = await self._plan(asks, request)
        mapped, scores, chosen = plan.before, plan.after, list(plan.ask)
        layers: list[Layer] = []
        while True:
            last = len(layers) == self.options.layers - 1
            judge = "" if len(layers) != 1 or "confident_judge" in self.keep else _best(scores, layers[0].answers)
            layers.append(await self._ask(asks, request, chosen, layers, judge, last))
            if last:
                break
            turn = await self._turn(asks, request, mapped, scores, layers, judge)
            scores, chosen = turn.after, list(turn.ask)
            if turn.stop:
                break
        return await self._final(asks, request, layers[-1], scores)

    # Decisions

    async def _plan(self, asks: Asking, request: Request) -> FaithfulTurn:
        """The router's scores, mapped, and who answers first; one recorded step."""
        query = query_in(request.messages)

        async def turn(told: dict[str, Any]) -> Any:
            p = {name: thought.p for name, thought in self._learned.thoughts(query).items()}
            mapped = {name: power_map(score) for name, score in p.items()}
            order = self._order(request, p)
            gap = self._constants.gap if "gap_filter" in self.keep else None
            among = [name for name in order if gap is None or mapped[order[0]] - mapped[name] <= gap]
            after = {name: mapped[name] for name in among}
            return msgspec.to_builtins(FaithfulTurn(layer=0, before=mapped, after=after, ask=tuple(among[: self._k])))

        turn.__qualname__ = "turn"
        return msgspec.convert(await step(turn, {"of": request_digest(request), "by": self.identity}), FaithfulTurn)

    async def _turn(
        self, asks: Asking, request: Request, mapped: dict[str, float], scores: dict[str, float],
        layers: list[Layer], judge: str,
    ) -> FaithfulTurn:  # fmt: skip
        """The scores after a layer, and who is next; recorded for whoever reads it, though it only computes."""
        if len(layers) == 1:
            new = mixed_first(self._constants, mapped, layers[0], self.keep)
        elif len(layers) == 2:
            confident = max(layers[1].own, key=lambda name: layers[1].own[name] or 0.0)
            judge = judge or confident
            new = mixed_second(self._constants, mapped, scores, layers[0], layers[1], judge, self.keep)
        else:
            new = {}
        after = scores | new
        ask = tuple(sorted(after, key=lambda name: -after[name])[: self._k])
        stop = "score" if new and max(new.values()) > self._constants.stop else ""

        async def turn(told: dict[str, Any]) -> Any:
            found = FaithfulTurn(
                layer=len(layers), before=scores, after=after, ask=ask, judge=judge, stop=stop,
                own=layers[-1].own, peers=layers[-1].peers.get(judge, {}),
            )  # fmt: skip
            return msgspec.to_builtins(found)

        turn.__qualname__ = "turn"
        told = {"of": request_digest(request), "layer": len(layers), "own": layers[-1].own, "peers": layers[-1].peers}
        return msgspec.convert(await step(turn, told), FaithfulTurn)

    def _order(self, request: Request, p: Mapping[str, float]) -> list[str]:
        """By score; exact ties by the prices of reply and prompt. Mended, by utility."""
        if "cost_ties" in self.keep:
            prices = {name: self.pool.price(name) or (0.0, 0.0) for name in p}
            return sorted(p, key=lambda name: (-p[name], prices[name][1], prices[name][0]))
        options = self.options
        weights = Weights(options.cost, options.latency, options.reference, options.slo)
        return [one.name for one in rank(candidates(self.pool, self.observed, request, p), weights)]

    @property
    def _k(self) -> int:
        return self.options.k

    # Calls

    def _asking(self, inside: Inside) -> Asking:
        options = self.options
        if "waits_for_all" in self.keep:
            options = msgspec.structs.replace(options, quorum=len(self.members) + 1)
        return Asking(inside, self.pool, self.observed, options)

    async def _ask(
        self, asks: Asking, request: Request, names: Sequence[str], layers: Sequence[Layer], judge: str, last: bool
    ) -> Layer:
        """One layer. Who gives no answer has said nothing, which is an answer as well."""
        number = len(layers) + 1
        orders: dict[str, list[str]] = {}
        calls: list[Call] = []
        for name in names:
            orders[name] = list(layers[-1].answers) if layers else []
            if name == judge:
                orders[name] = [other for other in orders[name] if other != name]
                rng(f"shown {name}").shuffle(orders[name])
            shown = [layers[-1].answers[other] for other in orders[name]]
            wanted = asking(request, self._forms[name], shown=shown, judged=number > 1, assessed=not last)
            calls.append(Call(f"{name} {number}", name, wanted))
        heard = await asks.ask_all(calls, await asks.admit(f"layer {number}", calls))
        layer = Layer({}, {}, {})
        for name in names:
            text = _text(heard, f"{name} {number}")
            judged = len(orders[name]) if number > 1 else 0
            said = read(text, self._forms[name], judged=judged)
            layer.answers[name] = text if "raw_json" in self.keep else said.answer
            layer.own[name] = said.own
            layer.peers[name] = dict(zip(orders[name], said.peers, strict=False))
        return layer

    async def _final(self, asks: Asking, request: Request, layer: Layer, scores: Mapping[str, float]) -> Reply:
        """What the aggregator makes of the last layer's answers."""
        names = sorted(scores, key=lambda name: -scores[name])
        if "wired_aggregator" in self.keep:
            names = [self._aggregator, *(name for name in names if name != self._aggregator)]
        if "no_fallback" in self.keep:
            names = names[:1]
        shown = list(layer.answers.values())
        calls = [
            Call(f"{name} (final)", name, aggregating(request, self._forms[name], shown))
            for name in names[: 1 + self.options.k * (self.options.layers - 1)]
        ]
        found = await asks.one("final", calls)
        if found is not None:
            call, reply = found
            if "raw_json" in self.keep:
                return Reply(reply.message, finish=reply.finish)
            return Reply(assistant(read(reply.text, self._forms[call.member]).answer), finish=reply.finish)
        best = next((name for name in names if layer.answers.get(name)), "")
        if not best or "no_fallback" in self.keep:
            raise asks.nobody("aggregate")
        return Reply(assistant(layer.answers[best]))


def _plainly(request: Request) -> Request:
    request = plainly(request, 0.0)
    if request.sampling.max_tokens is not None:
        return request
    return msgspec.structs.replace(request, sampling=msgspec.structs.replace(request.sampling, max_tokens=MAX_TOKENS))


def _kept(text: str) -> frozenset[str]:
    names = {name.strip() for name in text.split(",") if name.strip()}
    if names <= {"all"}:
        return frozenset(DEFECTS)
    if names == {"none"}:
        return frozenset()
    if unknown := sorted(names - set(DEFECTS)):
        raise UserError(f"routemoa: keep= takes all, none or some of {', '.join(DEFECTS)}; found {unknown[0]!r}")
    return frozenset(names)


def _best(scores: Mapping[str, float], among: Mapping[str, Any]) -> str:
    return min(among, key=lambda name: (-scores[name], name))


def _text(heard: Heard, key: str) -> str:
    reply = heard.replies.get(key) or heard.cut.get(key)
    return "" if reply is None else reply.text
