"""The best few models, asked in layers as long as that is worth it: `routemoa:pool.json` (RouteMoA, arXiv 2601.18130).

A router says who is likely to be right. The best few that go well together answer, and say in the same reply how sure
they are; from the second layer on the best of the layer before judges the others' answers, unseen who gave which. What
all of them say weighs as much as feedback has shown it to be worth. Each decision is one recorded step, `turn`: what
was thought before and after, who is asked next and why, or why it stops. `faithful=small|large` is the original.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, cast

import msgspec

from weaverant.agent import Agent
from weaverant.compound import Inside
from weaverant.errors import UserError
from weaverant.message import Reply, Request, assistant
from weaverant.routing import evidence as judged
from weaverant.routing.asking import Call, by_prior, options_of, plainly, request_digest
from weaverant.routing.assess import Assessed, Form, aggregating, asking, read
from weaverant.routing.evidence import Key, Verdict, agreement, key_of
from weaverant.routing.expected import candidates
from weaverant.routing.faithful import Faithful
from weaverant.routing.folding import read_evidence, read_kept
from weaverant.routing.learning import (
    Explored,
    Known,
    Learned,
    Lesson,
    Sessions,
    Thought,
    session_of,
    stays,
    thompson,
)
from weaverant.routing.pool import Pool
from weaverant.routing.pooled import Pooled, as_agent
from weaverant.routing.prompts import query_in
from weaverant.routing.ranking import burden, chosen, correlations, resolved
from weaverant.routing.route import scorer_of
from weaverant.routing.stopping import MOST_ERROR, reach, reason_to_stop, standing
from weaverant.routing.turns import JUDGES, Play, RouteMoaOptions, Turn, form_of, refuses_all_but_text
from weaverant.routing.utility import Candidate, Ranked, Weights, rank, refused
from weaverant.workflow import now, rng, step


def open_routemoa(spec: str, parts: int = 1) -> Pooled[Any]:
    """What `routemoa:` names; `UserError` where that is none. `parts` as for `open_engine`."""
    file, _, options = spec.partition("?")
    wanted = options_of("routemoa", options, RouteMoaOptions)
    pool = Pool.open(file, parts)
    return Faithful(pool, wanted) if wanted.faithful else RouteMoa(pool, wanted)


class RouteMoa(Pooled[RouteMoaOptions]):
    """A `Compound`; `Teachable`."""

    def __init__(
        self, pool: Pool, options: RouteMoaOptions = RouteMoaOptions(), router: Known | None = None  # noqa: B008
    ) -> None:  # fmt: skip
        """`router` in place of the folder that the pool names."""
        found = router or cast("Known | None", scorer_of(pool))
        super().__init__("routemoa", pool, options, found and found.identity)
        self.learned = Learned(pool, found, read_evidence(pool.router), read_kept(pool.router))
        self.sessions = Sessions()
        self.explored = Explored(options.explore)
        self._aggregator = self.named("aggregator", options.aggregator, pool.aggregator)
        self._judges = _judges_of(options.judges)
        self._together = correlations(found.models, found.correlation) if found else correlations((), _NONE)
        self._ece = found.ece if found else None
        self._forms: dict[str, Form] = {name: form_of(options.prompts, pool, name) for name in pool.members}

    def refuses(self, request: Request) -> str:
        """See `Selective`."""
        return refuses_all_but_text(self.pool, request)

    def agents(self, request: Request) -> Sequence[Agent]:
        """See `Compound`: any member may be asked."""
        plain = plainly(request)
        return [as_agent(name, plain.sampling) for name in self.members if not self.pool.refuses(name, plain)]

    def status(self) -> list[str]:
        """See `Observed` of the protocols: models that have drifted."""
        return self.learned.alarms()

    async def answer(self, request: Request, inside: Inside) -> Reply:
        """See `Compound`."""
        play = Play(plainly(request), self.asking(inside), inside)
        turn = await self._turn(play)
        while not turn.stop:
            await self._layer(play, turn)
            turn = await self._turn(play)
        if not any(play.keys.values()):
            return await self._last(play, turn)
        text, finish = await self._final(play, turn)
        inside.note = _note(play, text)
        return Reply(assistant(text), finish=finish)

    def lesson(self, note: Any, score: float) -> Any:
        """See `Teachable`."""
        keys = {name: Key(*key) if key else None for name, key in note["keys"].items()}
        final = Key(*note["final"]) if note["final"] else None
        found = Lesson(
            note["query"],
            judged.outcomes(keys, final, score, note["prior"]),
            note["prior"],
            msgspec.convert(note["verdicts"], dict[str, list[Verdict]]),
            note["aggregator"],
            score,
            note["best"],
            note["reach"],
        )
        return msgspec.to_builtins(found)

    def learn(self, lesson: Any) -> None:
        """See `Teachable`."""
        self.learned.take(msgspec.convert(lesson, Lesson))

    # Decisions

    async def _turn(self, play: Play) -> Turn:
        """Decide what comes next, in a recorded step."""
        at, left = now().timestamp(), play.asking.left
        draw, session = rng("explore").getrandbits(31), session_of(play.request.messages, self.options.session)
        query = query_in(play.request.messages)

        async def turn(told: dict[str, Any]) -> Any:
            thoughts = play.thoughts or await asyncio.to_thread(self.learned.thoughts, query)
            return msgspec.to_builtins(self._decided(play, thoughts, at, left, draw, session))

        turn.__qualname__ = "turn"
        told = {
            "of": request_digest(play.request),
            "by": self.identity,
            "answers": {name: _plain(key) for name, key in play.keys.items()},
            "said": {name: [[*each] for each in map(msgspec.structs.astuple, play.said(name))] for name in play.keys},
            "missed": dict(play.failed),
            "left": left,
            "seconds": play.seconds,
            "draw": draw,
        }
        found = msgspec.convert(await step(turn, told), Turn)
        play.thoughts, play.posterior = play.thoughts or found.thoughts, found.after
        if play.layer == 1:
            play.first = found
        spending = _spending(found.ranked)
        for name in found.ask:
            self.explored.spent(spending[name], name == found.explored)
        if found.ask and not play.layer:
            self.sessions.note(session, found.ask[0])
        return found

    def _decided(
        self, play: Play, thoughts: dict[str, Thought], at: float, left: float | None, draw: int, session: str
    ) -> Turn:
        """The decision itself, on what is known right now."""
        options, believed = self.options, self.learned.evidence
        discerning = believed.discernment.value
        prior = {name: thought.p for name, thought in thoughts.items()}
        said = {name: play.said(name) for name in play.keys}
        posterior = {name: believed.after(prior[name], said[name]) for name, key in play.keys.items() if key}
        p = prior | posterior
        found = self._candidates(play, p, at)
        weights = Weights(options.cost, options.latency, options.reference, options.slo)
        ranked = rank(found, weights)
        weights, why = resolved(ranked, weights), refused(found)
        held = "" if play.layer else self._held(ranked, thoughts, session)
        ranked.sort(key=lambda one: one.name != held)
        layer = chosen(ranked, options.k, weights, self._together)
        explored = "" if play.layer else self._exploring(thoughts, ranked, layer, draw)
        if explored:
            one = next(one for one in ranked if one.name == explored)
            layer = [*layer[: max(1, options.k - 1)], one] if options.k > 1 else [one]
        stop = reason_to_stop(
            keys=play.keys,
            posterior=posterior,
            layer=layer,
            weights=weights,
            together=self._together,
            calibration_error=self._ece,
            seconds_left=options.within - play.seconds if options.within else None,
            last=play.layer >= options.layers,
            enough=options.enough or None,
            discerning=discerning,
        )
        admitted = None
        if not stop:
            judges = self._judging(posterior, [one.name for one in layer])
            calls = [self._call(play, one.name, self._others(play, one.name, judges), judges) for one in layer]
            admitted = play.asking.admitted(calls, 0, at, left)
            why |= admitted.refused
            stop = "" if admitted.ask else "nobody left"
        sure = self._ece is not None and self._ece <= MOST_ERROR
        best, able = max(posterior.values(), default=0.0), reach(posterior, () if stop else layer, self._together)
        stands = standing(play.keys, posterior, options.clear if sure else 2.0) if stop else None
        aggregators = self._aggregators(ranked, weights) if stop and not stands else ()
        if stop and not stands and posterior:
            costs = {one.name: one for one in ranked}
            price = burden([costs[aggregators[0]].cost], costs[aggregators[0]].latency, weights) if aggregators else 0.0
            if discerning * (able - best) <= (price if sure else 0.0):  # nothing is gained by what it would write
                stands = max(posterior, key=lambda name: posterior[name])
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
            judges=self._judging(posterior, asked),
            admitted=admitted,
            stop=stop,
            stands=stands or "",
            best=best,
            reach=able,
            discerning=discerning,
            aggregators=() if stands else aggregators,
            held=held,
            explored=explored if explored in asked else "",
            spent=play.spent,
            seconds=play.seconds,
        )

    def _candidates(self, play: Play, p: Mapping[str, float], at: float) -> list[Candidate]:
        """All models; who has failed in this call, or rests after failures, is refused."""
        router = self.learned.router
        cost = router.cost if router else dict[str, float | None]()
        latency = router.latency if router else dict[str, float | None]()
        found = candidates(self.pool, self.observed, play.request, p, cost, latency)
        resting = {one.name for one in found if self.observed.health(one.name, at) == "open"}
        return [
            msgspec.structs.replace(one, refused="it gave no answer just now")
            if one.name in play.failed
            else msgspec.structs.replace(one, refused="its last calls failed")
            if one.name in resting and not one.refused
            else one
            for one in found
        ]

    def _held(self, ranked: Sequence[Ranked], thoughts: Mapping[str, Thought], session: str) -> str:
        utility = {one.name: one.utility for one in ranked}
        sd = {name: thought.sd for name, thought in thoughts.items()}
        return stays(self.sessions.of(session), utility, sd, self.options.margin, self.options.switches)

    def _exploring(
        self, thoughts: Mapping[str, Thought], ranked: Sequence[Ranked], layer: Sequence[Ranked], draw: int
    ) -> str:
        """Who is asked to learn of it; empty where that would be nobody else, or the share is used up."""
        if not self.options.explore or not ranked:
            return ""
        name = thompson({one.name: thoughts[one.name] for one in ranked}, draw)
        if name in {one.name for one in layer} or not self.explored.room(_spending(ranked)[name]):
            return ""
        return name

    def _judging(self, posterior: Mapping[str, float], asked: Sequence[str]) -> tuple[str, ...]:
        """The best of the layers before, where they are asked again."""
        if "peer" not in self._judges:
            return ()
        return tuple(name for name in judged.judges(posterior, self.options.close) if name in asked)

    def _aggregators(self, ranked: Sequence[Ranked], weights: Weights) -> tuple[str, ...]:
        able = [Candidate(one.name, self.learned.aggregating(one.name, one.p), one.cost, one.latency) for one in ranked]
        names = [one.name for one in rank(able, weights)]
        return tuple(sorted(names, key=lambda name: name != self._aggregator))

    # Calls

    async def _layer(self, play: Play, turn: Turn) -> None:
        """Ask one layer, and take down what it says."""
        assert turn.admitted is not None
        judging = {name: self._others(play, name, turn.judges) for name in turn.ask}
        for name, shown in judging.items():
            rng(f"shown {play.layer} {name}").shuffle(shown)
        calls = [self._call(play, name, judging[name], turn.judges) for name in turn.ask]
        heard = await play.asking.ask_all(calls, turn.admitted)
        play.layer += 1
        play.calls += len(calls)
        play.failed |= heard.missed
        replies, keys = heard.replies or heard.cut, dict(play.keys)
        told = {name: [play.answers[other].answer for other in judging[name]] for name in replies}
        said: dict[str, Assessed] = {}
        for name, reply in replies.items():
            play.failed.pop(name, None)
            judged = len(judging[name]) if name in turn.judges else 0
            said[name] = read(reply.text, self._forms[name], judged=judged, shown=told[name])
            self._take(play, name, reply, said[name])
        for name in [judge for judge in turn.judges if judge in said]:
            for other, claim in zip(judging[name], said[name].peers, strict=True):
                if claim is not None and play.keys[other] == keys[other]:  # a verdict goes with the answer it was on
                    play.verdicts.setdefault(other, {})[f"peer/{name}"] = claim
        self._agreement(play)

    def _others(self, play: Play, name: str, judges: Sequence[str]) -> list[str]:
        """Whose answers a model is shown. A judge does not see its own."""
        return sorted(other for other, key in play.keys.items() if key and not (name in judges and other == name))

    def _call(self, play: Play, name: str, shown: Sequence[str], judges: Sequence[str]) -> Call:
        answers = [play.answers[other].answer for other in shown]
        assessed = bool({"self", "peer"} & self._judges) and (self.options.k > 1 or self.options.layers > 1)
        form, judge = self._forms[name], name in judges
        request = asking(play.request, form, shown=answers, judged=judge, assessed=assessed, schema=form == "json")
        if request.output is not None and self.pool.refuses(name, request):
            request = msgspec.structs.replace(request, output=None)
        return Call(name, name, request)

    def _take(self, play: Play, name: str, reply: Reply, said: Assessed) -> None:
        """One reply: an answer, and what it says of itself."""
        key, before = key_of(said.answer), play.keys.get(name)
        if key is None and before is not None:
            return  # it had an answer, and now gives none
        if key != before:
            play.verdicts.pop(name, None)
        play.answers[name], play.replies[name], play.keys[name] = said, reply, key
        if said.own is not None and key is not None and "self" in self._judges:
            play.verdicts.setdefault(name, {})[f"self/{name}"] = said.own

    def _agreement(self, play: Play) -> None:
        """Those who have seen each other's answers agree more easily: that is another judge."""
        if "agreement" in self._judges:
            judge = "agreement" if play.layer == 1 else "agreement later"
            for name, claim in agreement(play.keys).items():
                said = play.verdicts.setdefault(name, {})
                said.pop("agreement", None)
                said[judge] = claim

    async def _final(self, play: Play, turn: Turn) -> tuple[str, Any]:
        """The final text: one answer that stands, or what is made of all; where nobody can make it, the best one."""
        best = turn.stands or min(turn.after, key=lambda name: (-turn.after[name], name))
        if not turn.stands:
            names = sorted(turn.after)
            rng("aggregate").shuffle(names)
            shown = [play.answers[name].answer for name in names]
            calls = [
                Call(f"{name} (final)", name, aggregating(play.request, self._forms[name], shown))
                for name in turn.aggregators
            ]
            room = self.options.k * self.options.layers + 1 - play.calls
            found = await play.asking.one("final", calls[:room])
            if found is not None:
                call, reply = found
                said = read(reply.text, self._forms[call.member], shown=shown)
                if said.answer:
                    play.aggregated_by = call.member
                    return said.answer, reply.finish
        return play.answers[best].answer, play.replies[best].finish

    async def _last(self, play: Play, turn: Turn) -> Reply:
        """Nobody has answered: one more may, plainly asked."""
        plain = {name: asking(play.request, self._forms[name], assessed=False) for name in self.members}
        names = [one.name for one in turn.ranked if one.name not in play.failed]
        room = self.options.k * self.options.layers + 1 - play.calls
        found = await play.asking.one("last", [Call(f"{name} (last)", name, plain[name]) for name in names[:room]])
        if found is not None:
            return Reply(found[1].message, finish=found[1].finish)
        play.asking.missed |= turn.refused
        reply = await play.asking.insisted([Call(name, name, plain[name]) for name in by_prior(self.pool)])
        if reply is None:
            raise play.asking.nobody("answer")
        return Reply(reply.message, finish=reply.finish)


def _judges_of(text: str) -> frozenset[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if unknown := sorted(set(names) - set(JUDGES)):
        raise UserError(f"routemoa: judges= takes some of {', '.join(JUDGES)}, joined by commas; found {unknown[0]!r}")
    return frozenset(names)


_NONE: Any = []
"""The correlations of a router that there is not."""


def _spending(ranked: Sequence[Ranked]) -> dict[str, float]:
    """What a call counts as in the share that explores: dollars where all cost some, else one each."""
    paid = all(one.cost > 0 for one in ranked)
    return {one.name: one.cost if paid else 1.0 for one in ranked}


def _plain(key: Key | None) -> list[str] | None:
    return None if key is None else [key.kind, key.said]


def _note(play: Play, text: str) -> dict[str, Any]:
    """What the reply would teach: see `RouteMoa.lesson`."""
    first = play.first if play.first and not (play.first.stop and play.first.stands) else None
    return {
        "best": first.best if first else 0.0,
        "reach": first.reach if first else 0.0,
        "query": query_in(play.request.messages),
        "final": _plain(key_of(text)),
        "keys": {name: _plain(key) for name, key in play.keys.items()},
        "prior": {name: thought.p for name, thought in play.thoughts.items()},
        "verdicts": {name: [[each.judge, each.claim] for each in play.said(name)] for name in play.keys},
        "aggregator": play.aggregated_by,
    }
