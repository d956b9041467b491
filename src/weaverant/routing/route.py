"""One model chosen for each request: `route:pool.json`.

The best by `utility` is asked the whole request, with its tools, output, conversation and images; where it fails, is
silent or late, the next one is, by a ranking that is made anew. What chances of being right a router's folder does not
tell are those of the pool's cards. Feedback teaches the router, and counts for models that it does not know.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, cast

import msgspec
from msgspec import Meta

from weaverant.agent import Agent
from weaverant.compound import Inside
from weaverant.errors import StepFailed, UserError
from weaverant.message import Reply, Request
from weaverant.routing.asking import Admitted, Asked, Asking, Call, by_prior, options_of, request_digest
from weaverant.routing.expected import candidates
from weaverant.routing.folding import read_kept
from weaverant.routing.learning import Known, Learned, Lesson
from weaverant.routing.pool import Pool
from weaverant.routing.pooled import Pooled, as_agent
from weaverant.routing.prompts import query_in
from weaverant.routing.scores import Scorer
from weaverant.routing.utility import Candidate, Ranked, Weights, rank, refused
from weaverant.workflow import now, step

_Weight = Annotated[float, Meta(ge=0.0)]


class RouteOptions(Asked, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The options of `route:FILE?cost=0.1&quality=0.8`."""

    cost: _Weight = 0.1
    """What a call that costs the reference is worth, in chances of being right."""
    latency: _Weight = 0.05
    """What a call that takes the slo is worth."""
    reference: _Weight = 0.0
    """US dollars; 0: the expected cost of the dearest model."""
    slo: _Weight = 0.0
    """Seconds; 0: the 95th percentile of the slowest model."""
    quality: Annotated[float, Meta(ge=0.0, le=1.0)] = 0.0
    """A chance of being right that is enough: the cheapest model that has it goes first. 0: the best by utility."""


class Choice(msgspec.Struct, frozen=True):
    """A decision, as its step records it."""

    ranked: tuple[Ranked, ...]
    """Those that may be asked, the first to be asked first."""
    refused: dict[str, str]
    """Why the others may not."""
    admitted: Admitted
    """The conditions for the first."""
    note: str = ""
    """Why the router had no say, where it had none."""


def open_route(spec: str, parts: int = 1) -> Route:
    """What `route:` names; `UserError` where that is none. `parts` as for `open_engine`."""
    file, _, options = spec.partition("?")
    wanted = options_of("route", options, RouteOptions)
    return Route(Pool.open(file, parts), wanted)


class Route(Pooled[RouteOptions]):
    """A `Compound`; `Teachable`."""

    def __init__(self, pool: Pool, options: RouteOptions = RouteOptions(), scorer: Scorer | None = None) -> None:  # noqa: B008
        """`scorer` in place of the folder that the pool names."""
        self.scorer = scorer or scorer_of(pool)
        super().__init__("route", pool, options, self.scorer and self.scorer.identity)
        told = cast("Known | None", self.scorer if hasattr(self.scorer, "update") else None)
        self.learned = Learned(pool, told, kept=read_kept(pool.router))
        self._weights = Weights(options.cost, options.latency, options.reference, options.slo, options.quality)

    def refuses(self, request: Request) -> str:
        """See `Selective`."""
        reasons = {name: self.pool.refuses(name, request) for name in self.members}
        return "; ".join(f"{name}: {why}" for name, why in reasons.items()) if all(reasons.values()) else ""

    def agents(self, request: Request) -> Sequence[Agent]:
        """See `Compound`. With tools or an output nothing is known beforehand."""
        if request.tools or request.output is not None:
            return []
        return [as_agent(name, request.sampling) for name in self.members if not self.pool.refuses(name, request)]

    def status(self) -> list[str]:
        """See `Observed` of the protocols: models that have drifted."""
        return self.learned.alarms()

    def lesson(self, note: Any, score: float) -> Any:
        """See `Teachable`."""
        query, name, p = note
        return msgspec.to_builtins(Lesson(query, {name: score}, {name: p}, score=score))

    def learn(self, lesson: Any) -> None:
        """See `Teachable`."""
        self.learned.take(msgspec.convert(lesson, Lesson))

    async def answer(self, request: Request, inside: Inside) -> Reply:
        """See `Compound`."""
        asking, left = self.asking(inside), list(self.members)
        short: Reply | None = None
        while left:
            choice = await self._choose(asking, request, left)
            asking.missed |= {name: why for name, why in choice.refused.items() if name not in asking.missed}
            if not choice.admitted.ask:
                break
            (name,) = choice.admitted.ask
            left.remove(name)
            heard = await asking.ask_all([Call(name, name, request)], choice.admitted)
            for reply in (*heard.replies.values(), *heard.cut.values()):
                note = [query_in(request.messages), name, choice.ranked[0].p]
                if reply.finish != "length" or request.sampling.max_tokens is not None:
                    inside.note = note
                    return reply
                if short is None:
                    short, inside.note = reply, note
        if short is None:
            short = await asking.insisted([Call(name, name, request) for name in by_prior(self.pool)])
        if short is None:
            raise asking.nobody("answer")
        return short

    async def _choose(self, asking: Asking, request: Request, left: Sequence[str]) -> Choice:
        """Rank those that have not been asked, in a recorded step."""
        at, money = now().timestamp(), asking.left

        async def choose(asked: dict[str, Any]) -> Any:
            note = ""
            try:
                scores = await asyncio.to_thread(chances, self.pool, self.scorer, query_in(request.messages))
            except StepFailed as failure:
                scores, note = chances(self.pool, None, ""), f"the router could not score: {failure}"
            scores = {name: self._taught(name, p) for name, p in scores.items()}
            found = self._candidates(request, {name: scores[name] for name in left})
            ranked, why = rank(found, self._weights), refused(found)
            calls = [Call(one.name, one.name, request) for one in ranked]
            admitted = asking.admitted(calls, 1, at, money)
            why |= admitted.refused
            ranked = [one for one in ranked if one.name not in why]
            return msgspec.to_builtins(Choice(tuple(ranked), why, admitted, note))

        choose.__qualname__ = "choose"
        told = {
            "of": request_digest(request),
            "among": list(left),
            "left": money,
            "missed": dict(asking.missed),
            "by": self.identity,
        }
        return msgspec.convert(await step(choose, told), Choice)

    def _taught(self, name: str, p: float) -> float:
        """With the outcomes of a model that no router knows; the router's own say is in `p`."""
        known = self.scorer is not None and name in self.scorer.models
        return p if known else self.learned.own(name, p).p

    def _candidates(self, request: Request, p: Mapping[str, float]) -> list[Candidate]:
        told = cast("Any", self.scorer)
        cost, latency = getattr(told, "cost", {}), getattr(told, "latency", {})
        return candidates(self.pool, self.observed, request, p, cost, latency)


def chances(pool: Pool, scorer: Scorer | None, query: str) -> dict[str, float]:
    """The chance of each member to be right on that query: the router's; of a model that the router does not know, that
    of the one it is said to be like; else its card's. `StepFailed` where the router asks a server in vain."""
    known: dict[str, float] = {}
    if scorer is not None:
        scores = scorer.predict([query])
        known = {name: float(p) for name, p in zip(scores.models, scores.p[0], strict=True)}
    found: dict[str, float] = {}
    for name, card in pool.cards.items():
        found[name] = known[name] if name in known else known.get(card.like, pool.prior(name))
    return found


def scorer_of(pool: Pool) -> Scorer | None:
    """The router whose folder the pool names; `UserError` where there is none."""
    if pool.router is None:
        return None
    from weaverant.routing.router import Router  # deferred: few pools have one

    scorer = Router.open(pool.router)
    for name, card in pool.cards.items():
        if card.like and card.like not in scorer.models:
            raise UserError(
                f"the model {name!r} of the pool is said to be like {card.like!r}, which the router does not know"
            )
    return scorer
