"""The best few models, asked in layers as long as that is worth it: `routemoa:pool.json` (RouteMoA, arXiv 2601.18130).

A router says who is likely to be right. The best few that go well together answer, and say in the same reply how sure
they are; from the second layer on the best of the layer before judges the others' answers, unseen who gave which. What
all of them say weighs as much as feedback has shown it to be worth. Each decision is one recorded step, `turn`: what
was thought before and after, who is asked next and why, or why it stops. `faithful=small|large` is the original.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import msgspec

from weaverant.agent import Agent
from weaverant.compound import Inside
from weaverant.message import Reply, Request, assistant
from weaverant.routing.asking import Call, by_prior, options_of, plainly, request_digest
from weaverant.routing.assess import Assessed, Form, aggregating, asking, read
from weaverant.routing.deciding import Deciding, Seen
from weaverant.routing.evidence import Verdict
from weaverant.routing.faithful import Faithful
from weaverant.routing.folding import read_evidence, read_kept
from weaverant.routing.keys import Key, agreement, key_of, outcomes
from weaverant.routing.learning import (
    Known,
    Learned,
    Lesson,
    session_of,
)
from weaverant.routing.pool import Pool
from weaverant.routing.pooled import Pooled, as_agent
from weaverant.routing.prompts import query_in
from weaverant.routing.route import scorer_of
from weaverant.routing.turns import Play, RouteMoaOptions, Turn, form_of, refuses_all_but_text
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
        aggregator = self.named("aggregator", options.aggregator, pool.aggregator)
        self._deciding = Deciding(pool, options, self.learned, self.observed, aggregator)
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
            reply = await self._last(play, turn)
        else:
            text, finish = await self._final(play, turn)
            reply = Reply(assistant(text), finish=finish)
        inside.note = _note(play, reply.text, self._deciding.chooses)
        return reply

    def lesson(self, note: Any, score: float) -> Any:
        """See `Teachable`."""
        keys = {name: Key(*key) if key else None for name, key in note["keys"].items()}
        final = Key(*note["final"]) if note["final"] else None
        found = Lesson(
            note["query"],
            outcomes(keys, final, score, note["prior"]),
            note["prior"],
            msgspec.convert(note["verdicts"], dict[str, list[Verdict]]),
            note["aggregator"],
            score,
            _right(note["stood"], final, score),
            note["could"],
            tuple(note["layer"]),
            note["assessed"],
        )
        return msgspec.to_builtins(found)

    def learn(self, lesson: Any) -> None:
        """See `Teachable`."""
        self.learned.take(msgspec.convert(lesson, Lesson))

    # Decisions

    async def _turn(self, play: Play) -> Turn:
        """Decide what comes next, in a recorded step."""
        query, session = query_in(play.request.messages), session_of(play.request.messages, self.options.session)
        draw, coin = rng("explore").getrandbits(31), rng("scores").getrandbits(31)
        seen = Seen(now().timestamp(), play.seconds, play.spent, play.asking.left, session, draw, coin)

        async def turn(told: dict[str, Any]) -> Any:
            thoughts = play.thoughts or await asyncio.to_thread(self.learned.thoughts, query)
            return msgspec.to_builtins(self._deciding.turn(play, thoughts, seen, partial(self._calls, play)))

        turn.__qualname__ = "turn"
        told = {
            "of": request_digest(play.request),
            "by": self.identity,
            "answers": {name: _plain(key) for name, key in play.keys.items()},
            "said": {name: [[*each] for each in map(msgspec.structs.astuple, play.said(name))] for name in play.keys},
            "missed": dict(play.failed),
            "left": seen.left,
            "seconds": seen.seconds,
            "draw": draw,
        }
        found = msgspec.convert(await step(turn, told), Turn)
        play.thoughts, play.posterior = play.thoughts or found.thoughts, found.after
        play.assessed, play.asked_first = found.assessed, play.asked_first or found.ask
        if play.layer == 1:
            play.first, play.first_keys = found, dict(play.keys)
        self._deciding.noted(found, session)
        return found

    # Calls

    async def _layer(self, play: Play, turn: Turn) -> None:
        """Ask one layer, and take down what it says."""
        assert turn.admitted is not None
        judging = {name: self._others(play, name, turn.judges) for name in turn.ask}
        for name, shown in judging.items():
            rng(f"shown {play.layer} {name}").shuffle(shown)
        calls = [self._call(play, name, judging[name], turn.judges, turn.assessed) for name in turn.ask]
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

    def _calls(self, play: Play, names: Sequence[str], judges: Sequence[str], assessed: bool) -> list[Call]:
        return [self._call(play, name, self._others(play, name, judges), judges, assessed) for name in names]

    def _call(self, play: Play, name: str, shown: Sequence[str], judges: Sequence[str], assessed: bool) -> Call:
        answers = [play.answers[other].answer for other in shown]
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
        if said.own is not None and key is not None and "self" in self._deciding.judges:
            play.verdicts.setdefault(name, {})[f"self/{name}"] = said.own

    def _agreement(self, play: Play) -> None:
        """Those who have seen each other's answers agree more easily: that is another judge."""
        if "agreement" in self._deciding.judges:
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


def _plain(key: Key | None) -> list[str] | None:
    return None if key is None else [key.kind, key.said]


def _note(play: Play, text: str, chosen: bool) -> dict[str, Any]:
    """What the reply would teach: see `RouteMoa.lesson`."""
    first = play.first if play.first and not (play.first.stop and play.first.stands) else None
    best = max(first.after, key=lambda name: first.after[name]) if first and first.after else ""
    return {
        "stood": [_plain(play.first_keys[best]), first.after[best]] if first and best else [None, 0.0],
        "could": max(0.0, first.reach - first.best) if first else 0.0,
        "layer": play.asked_first,
        "assessed": play.assessed if chosen else None,
        "query": query_in(play.request.messages),
        "final": _plain(key_of(text)),
        "keys": {name: _plain(key) for name, key in play.keys.items()},
        "prior": {name: thought.p for name, thought in play.thoughts.items()},
        "verdicts": {name: [[each.judge, each.claim] for each in play.said(name)] for name in play.keys},
        "aggregator": play.aggregated_by,
    }


def _right(stood: tuple[list[str] | None, float], final: Key | None, score: float) -> float:
    """How right the answer was that stood before the call went on: what the score says of it, else its probability."""
    key, p = stood
    return outcomes({"": Key(*key)}, final, score, {"": p}).get("", p) if key else p
