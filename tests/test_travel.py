"""A model call that travels to another peer comes back as it would have been at home."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from typing import Any

import pytest

from linked import echo, go, pair, until
from weaverant import Agent, run, workflow
from weaverant.errors import Misdirected, StepFailed, Unavailable, WeaverantError
from weaverant.message import (
    Choice,
    ImagePart,
    Message,
    OutputSchema,
    Reply,
    Request,
    Sampling,
    TextPart,
    Tokens,
    ToolCall,
    ToolSpec,
    Usage,
    assistant,
    user,
)
from weaverant.protocols import CallContext
from weaverant.runtime.permit import RevocablePermit
from weaverant.step import Turn
from weaverant.swarm.link import Link, LinkLost, Refused
from weaverant.swarm.purses import Till
from weaverant.swarm.travel import AfarEngine, HostedEngines


class Played:
    """An engine that does what it is told, and notes what it was asked."""

    identity = "played"

    def __init__(self, play: Callable[[Request, CallContext], Any]) -> None:
        self.asked: list[tuple[Request, CallContext]] = []
        self._play = play

    async def generate(self, request: Request, ctx: CallContext) -> Reply:
        self.asked.append((request, ctx))
        answer = self._play(request, ctx)
        return await answer if asyncio.iscoroutine(answer) else answer

    async def close(self) -> None: ...


ASKED = Request("agent", "m", (user("how?"),))
CTX = CallContext("0.7.0", "1.2", 3, 44)


def hosted(play: Callable[[Request, CallContext], Any]) -> tuple[Played, HostedEngines]:
    engine = Played(play)
    return engine, HostedEngines({"m": engine}, "run")


def afar(*hosts: Link) -> AfarEngine:
    return AfarEngine("played", "m", lambda: hosts)


class Random:
    """Values for every field of what travels."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)

    def text(self) -> str:
        return self.rng.choice("aé\U0001f41c\n") * self.rng.choice((0, 1, 9, 70, 700)) + str(self.rng.randrange(5))

    def some(self, make: Callable[[], Any], most: int = 3) -> tuple[Any, ...]:
        return tuple(make() for _ in range(self.rng.randint(0, most)))

    def maybe(self, make: Callable[[], Any]) -> Any:
        return make() if self.rng.random() < 0.5 else None

    def number(self) -> int:
        return self.rng.choice((0, 1, 200, 70_000, (1 << 44) - 1))

    def real(self) -> float:
        return self.rng.choice((0.0, 1.0, -0.25, 1e-9, self.rng.random()))

    def plain(self) -> dict[str, Any]:
        return {self.text(): self.rng.choice((None, True, 1, 2.5, self.text(), [self.text()], {"k": [1]}))}

    def message(self) -> Message:
        parts = lambda: self.rng.choice((TextPart, ImagePart))(self.text())  # noqa: E731
        content = self.text() if self.rng.random() < 0.7 else self.some(parts)
        calls = self.some(lambda: ToolCall(self.text(), self.text(), self.text())) if self.rng.random() < 0.3 else ()
        role = self.rng.choice(("system", "user", "assistant", "assistant", "tool"))
        return Message(role, content, calls, self.maybe(self.text), self.maybe(self.text))

    def usage(self) -> Usage:
        counts = [self.number() for _ in range(4)]
        return Usage(*counts, abs(self.real()), self.number(), abs(self.real()))

    def tokens(self) -> Tokens:
        top = self.some(lambda: {self.text(): self.real()})
        return Tokens(self.some(self.number), self.some(self.text), self.some(self.real), top, self.some(self.number))

    def finish(self) -> Any:
        return self.rng.choice(("stop", "length", "tool_calls", "content_filter", "other"))

    def reply(self) -> Reply:
        choice = lambda: Choice(self.message(), self.finish(), self.maybe(self.tokens))  # noqa: E731
        more = self.some(choice) if self.rng.random() < 0.3 else ()
        if self.rng.random() < 0.3:
            return Reply(assistant(self.text()), self.usage(), self.text())
        return Reply(self.message(), self.usage(), self.text(), self.finish(), self.maybe(self.tokens), more)

    def request(self) -> Request:
        sampling = Sampling(
            self.maybe(self.real), self.maybe(self.real), self.maybe(self.number), self.some(self.text),
            self.rng.random() < 0.5, self.plain(), self.rng.randint(1, 9), self.rng.randint(0, 9),
        )  # fmt: skip
        tools = self.some(lambda: ToolSpec(self.text(), self.text(), self.plain()))
        output = self.maybe(lambda: OutputSchema(self.text(), self.plain()))
        seed = self.rng.getrandbits(31)
        return Request(self.text(), self.text(), self.some(self.message, 6), sampling, tools, output, seed)

    def failure(self) -> StepFailed:
        kind = self.rng.choice((StepFailed, Unavailable, Misdirected))
        failure = kind(self.text(), self.text(), self.maybe(self.plain), self.maybe(self.usage))
        failure.forget = self.some(lambda: (self.text(), self.rng.randbytes(16), self.number()))
        return failure


@pytest.mark.parametrize("share", [512, 0, 8])
def test_every_field_of_requests_and_replies_survives(share: int):
    made = Random(share)
    replies: dict[int, Reply | StepFailed] = {}

    def play(request: Request, ctx: CallContext) -> Reply:
        found = replies[ctx.order]
        if isinstance(found, StepFailed):
            raise found
        return found

    async def test():
        engine, host = hosted(play)
        async with pair(there=host.serve, share=share) as (ours, _):
            away = afar(ours)
            assert away.identity == "played"
            requests = [made.request() for _ in range(40)]
            for order in range(400):
                replies[order] = made.reply() if order % 4 else made.failure()
                request = made.rng.choice(requests)
                task, path, occurrence = f"0.{order % 5}.0", made.text(), made.number()
                ctx = CallContext(task, path, occurrence, order, "is not sent", None, Turn())
                try:
                    came: Any = await away.generate(request, ctx)
                except StepFailed as failure:
                    came = failure
                asked, there = engine.asked.pop()
                assert asked == request
                assert (there.task, there.path, there.occurrence, there.order) == (task, path, occurrence, order)
                assert there.run == "run" and there.purse is None
                gone = replies[order]
                if isinstance(gone, StepFailed):
                    assert type(came) is type(gone)
                    for field in ("kind", "text", "detail", "usage", "forget"):
                        assert getattr(came, field) == getattr(gone, field), field
                else:
                    assert came == gone
                    assert type(came.usage) is Usage and type(came.usage.cost) is float
                if made.rng.random() < 0.2:
                    ours.release(task)

    go(test)


def test_a_growing_conversation_sends_what_is_new():
    async def test():
        _, host = hosted(lambda request, ctx: Reply(assistant(f"answer {len(request.messages)} " + "a" * 300)))
        async with pair(there=host.serve) as (ours, _):
            history: tuple[Message, ...] = ()
            sizes: list[int] = []
            for turn in range(40):
                history = (*history, user(f"question {turn} " + "q" * 300))
                before = ours.sent
                reply = await afar(ours).generate(Request("agent", "m", history), CTX)
                sizes.append(ours.sent - before)
                history = (*history, reply.message)
        assert max(sizes) < 1_100 and max(sizes[1:]) - min(sizes[1:]) < 350

    go(test)


def test_what_an_engine_gets_wrong_fails_its_call_as_at_home():
    def play(request: Request, ctx: CallContext) -> Any:
        if request.agent == "bug":
            return {}["missing"]
        return request.agent if request.agent == "text" else Reply("no message")  # type: ignore[arg-type]

    async def test():
        _, host = hosted(play)
        async with pair(there=host.serve) as (ours, _):
            for agent, kind, text in (
                ("bug", "KeyError", "'missing'"),
                ("text", "engine", "the engine of 'm' gave what is no Reply"),
                ("reply", "engine", "the engine of 'm' gave what is no Reply"),
            ):
                with pytest.raises(StepFailed) as failed:
                    await afar(ours).generate(Request(agent, "m", ()), CTX)
                assert failed.value.kind == kind and failed.value.text.startswith(text)
            with pytest.raises(StepFailed, match="cannot travel"):
                await afar(ours).generate(Request("a", "m", (), Sampling(extra={"o": object()})), CTX)
            with pytest.raises(StepFailed, match="cannot travel"):
                await afar(ours).generate(Request("a", "m", (user("\ud800"),)), CTX)
            with pytest.raises(Unavailable, match="no model 'other' is hosted"):
                await AfarEngine("played", "other", lambda: [ours]).generate(ASKED, CTX)
            for body in (None, [], [1] * 8, ["m", "", "", 0, 0, 0, "terms", []]):
                with pytest.raises(Refused, match="that is no call"):
                    await ours.ask("call", body)
            with pytest.raises(Refused, match="nothing that a host"):
                await ours.ask("other", None)

    go(test)


def test_an_answer_that_is_none_fails_the_call():
    async def test():
        async with pair(there=lambda link, kind, body: body[2]) as (ours, _):
            answers: list[Any] = [[], [1, 2, 3], ["x", [1] * 20, ""], {}, {"failed": ["No", 1]}, 7, [[], [0], ""]]
            for answer in answers:
                with pytest.raises(StepFailed, match="no reply"):
                    await afar(ours).generate(ASKED, CallContext("0.0.0", answer))

    go(test)


class NotedPurse:
    """Sets aside what it is asked to, and remembers that; what does not fit waits until `more`."""

    def __init__(self, room: float = 100.0) -> None:
        self.asked: list[tuple[float, str]] = []
        self.room = room
        self.more = asyncio.Event()

    async def afford(self, dollars: float, claim: str = "") -> None:
        self.asked.append((dollars, claim))
        if dollars > self.room:
            await self.more.wait()

    def affords(self, dollars: float) -> bool:
        return dollars <= self.room


class Dear(Played):
    """An engine whose requests cost 3 dollars at the most, and that asks its purse before each."""

    claims = False

    def worst(self, request: Request) -> float:
        return 3.0

    def unbounded(self, request: Request) -> str:
        return "no price is known" if request.agent == "unknown" else ""


def dear(hosts: Callable[[], list[Link]], till: Till, claims: bool = False) -> AfarEngine:
    real = Dear(lambda request, ctx: None)
    real.claims = claims
    return AfarEngine("played", "m", hosts, real, till)


def paying(play: Callable[[CallContext], Any]) -> HostedEngines:
    return hosted(lambda request, ctx: play(ctx))[1]


def test_what_a_call_may_cost_is_set_aside_by_its_owner_before_it_leaves():
    async def test():
        purse, till = NotedPurse(room=1.0), Till()
        seen: list[bool] = []

        async def play(ctx: CallContext) -> Reply:
            assert ctx.purse is not None
            seen.extend([ctx.purse.affords(3.0), ctx.purse.affords(3.5)])
            await ctx.purse.afford(3.0)
            return Reply(assistant("paid"), Usage(cost=2.5))

        async with pair(there=paying(play).serve, here=till.serve) as (ours, _):
            call = asyncio.create_task(dear(lambda: [ours], till).generate(ASKED, CallContext("0", purse=purse)))
            await until(lambda: purse.asked == [(3.0, "")])
            await asyncio.sleep(0.02)
            assert seen == [], "nothing leaves before its money is there"
            purse.more.set()
            reply = await call
            assert seen == [True, False] and purse.asked == [(3.0, "")], "nothing is asked for twice"
            assert (reply.usage.cost, reply.usage.unsure) == (2.5, 0.0)
            assert dear(lambda: [ours], till).unbounded(Request("unknown", "m", ())) == "no price is known"

    go(test)


@pytest.mark.parametrize("claims", [False, True])
def test_a_host_that_needs_more_asks_for_it_and_waits(claims: bool):
    """With claims nothing is set aside beforehand: it would hide what stands under the claim."""

    async def test():
        purse, till, claim = NotedPurse(room=5.0), Till(), "batch" if claims else ""
        paid: list[float] = []

        async def play(ctx: CallContext) -> Reply:
            assert ctx.purse is not None
            for dollars in (3.0, 4.0, 6.0):
                await ctx.purse.afford(dollars, claim)
                paid.append(dollars)
            return Reply(assistant("paid"), Usage(cost=6.0))

        async with pair(there=paying(play).serve, here=till.serve) as (ours, theirs):
            away = dear(lambda: [ours], till, claims)
            call = asyncio.create_task(away.generate(ASKED, CallContext("0", purse=purse)))
            await until(lambda: len(purse.asked) == 3)
            await asyncio.sleep(0.02)
            assert paid == [3.0, 4.0] and not call.done()
            purse.more.set()
            assert (await call).usage.cost == 6.0
            assert purse.asked == [(3.0, claim), (4.0, claim), (6.0, claim)]
            with pytest.raises(Refused, match="it has ended"):
                await theirs.ask("afford", (1, 1.0, ""))
            for body in (None, [1], [1, -1.0, ""], [1, float("nan"), ""], ["x", 1.0, ""]):
                with pytest.raises(Refused, match="nothing that"):
                    await theirs.ask("afford", body)

    go(test)


def test_what_a_lost_host_may_have_spent_is_counted_and_stays_set_aside():
    async def test():
        purse, till, turn = NotedPurse(), Till(), Turn()
        begun = asyncio.Event()

        async def never(ctx: CallContext) -> Reply:
            assert ctx.purse is not None
            await ctx.purse.afford(4.0)
            begun.set()
            await asyncio.sleep(100)
            raise AssertionError

        async def play(ctx: CallContext) -> Reply:
            assert ctx.purse is not None
            await ctx.purse.afford(3.5)
            return Reply(assistant("paid"), Usage(cost=2.0, unsure=0.5))

        def fail(ctx: CallContext) -> Reply:
            raise StepFailed("server", "no", usage=Usage(cost=1.0))

        for last, cost, unsure in ((play, 6.0, 4.5), (fail, 5.0, 4.0)):
            async with (
                pair(there=paying(never).serve, here=till.serve) as (first, _),
                pair(there=paying(last).serve, here=till.serve) as (second, _),
            ):
                hosts = [first]
                begun.clear()
                purse.asked.clear()
                turn.kept = 0.0
                away = dear(lambda hosts=hosts: hosts, till)
                call = asyncio.create_task(away.generate(ASKED, CallContext("0", purse=purse, turn=turn)))
                await begun.wait()
                first.close()
                await until(lambda: turn.waiting)
                assert turn.kept == 4.0, "it may be taken back, and that is not"
                hosts.append(second)
                (outcome,) = await asyncio.gather(call, return_exceptions=True)
                assert isinstance(outcome, Reply | StepFailed) and outcome.usage is not None
                usage = outcome.usage
                assert (usage.cost, usage.unsure, usage.requests) == (cost, unsure, 1)
                assert purse.asked[:3] == [(3.0, ""), (4.0, ""), (7.0, "")]
                assert purse.asked[3:] == ([(7.5, "")] if last is play else [])

    go(test)


def test_a_call_that_never_left_for_a_lost_host_has_cost_nothing():
    async def test():
        purse, till, turn = NotedPurse(), Till(), Turn()

        async def never(ctx: CallContext) -> Reply:
            await asyncio.sleep(100)
            raise AssertionError

        host = paying(never)
        async with (
            pair(there=host.serve, here=till.serve, window=1) as (first, _),
            pair(there=paying(lambda ctx: Reply(assistant("paid"), Usage(cost=2.0))).serve) as (second, _),
        ):
            hosts = [first]
            away = dear(lambda: hosts, till)
            busy = asyncio.create_task(away.generate(ASKED, CallContext("0", purse=NotedPurse())))
            await until(lambda: host.open == 1)
            call = asyncio.create_task(away.generate(ASKED, CallContext("1", purse=purse, turn=turn)))
            await until(lambda: turn.waiting)
            hosts[:] = [second]
            first.close()
            assert (await call).usage.cost == 2.0 and turn.kept == 0.0
            assert (await busy).usage.cost == 5.0, "the other one may have cost 3 there"

    go(test)


def test_a_call_goes_to_another_host_when_its_own_is_lost_or_drains():
    async def test():
        begun = asyncio.Event()

        async def never(*_: Any) -> Reply:
            begun.set()
            await asyncio.sleep(100)
            raise AssertionError

        mute, dying = hosted(never)
        _, draining = hosted(lambda request, ctx: Reply(assistant("from one that drains")))
        _, alive = hosted(lambda request, ctx: Reply(assistant("alive")))
        draining.draining = True
        async with (
            pair(there=dying.serve) as (first, far),
            pair(there=draining.serve) as (second, _),
            pair(there=alive.serve) as (third, _),
        ):
            hosts = [first]
            away = AfarEngine("played", "m", lambda: hosts)
            call = asyncio.create_task(away.generate(ASKED, CTX))
            await begun.wait()
            hosts += [second]
            far.close()
            await first.lost
            await asyncio.sleep(0.05)
            assert not call.done() and len(mute.asked) == 1
            hosts += [third]
            assert (await call).text == "alive"
            for _ in range(20):
                assert (await away.generate(ASKED, CTX)).text == "alive"
            assert draining.served == 0

    go(test)


def test_a_call_without_a_host_waits_for_one_and_costs_nothing_meanwhile():
    async def test():
        _, host = hosted(lambda request, ctx: Reply(assistant("here")))
        async with pair(there=host.serve) as (ours, _):
            hosts: list[Link] = []
            away = AfarEngine("played", "m", lambda: hosts)
            turns = [Turn() for _ in range(3)]
            calls = [asyncio.create_task(away.generate(ASKED, CallContext("0.0.0", turn=turn))) for turn in turns]
            await asyncio.sleep(0.02)
            assert all(turn.waiting for turn in turns)
            calls[2].cancel()
            await asyncio.wait([calls[2]])
            assert turns[2].waiting  # as the run that stops wants to know
            hosts.append(ours)
            began = time.monotonic()
            away.notify()
            assert [(await call).text for call in calls[:2]] == ["here"] * 2
            assert time.monotonic() - began < 0.15
            assert not turns[0].waiting and 0.01 < turns[0].waited < 0.2
            hosts.clear()
            late = asyncio.create_task(away.generate(ASKED, CTX))
            await asyncio.sleep(0.01)
            hosts.append(ours)  # and nobody says so
            assert (await late).text == "here"

    go(test)


def test_a_call_that_waits_for_room_on_its_link_waits():
    async def test():
        go_on = asyncio.Event()

        async def held(*_: Any) -> Reply:
            await go_on.wait()
            return Reply(assistant("done"))

        engine, host = hosted(held)
        async with pair(there=host.serve, window=1) as (ours, _):
            turns = [Turn(), Turn()]
            calls = [asyncio.create_task(afar(ours).generate(ASKED, CallContext("0", turn=turn))) for turn in turns]
            await until(lambda: len(engine.asked) == 1)
            assert [turn.waiting for turn in turns] == [False, True]
            go_on.set()
            await asyncio.gather(*calls)
            assert [turn.waiting for turn in turns] == [False, False] and turns[1].waited > 0

    go(test)


def test_a_call_that_waits_for_room_on_a_link_that_breaks_is_asked_elsewhere():
    async def test():
        async def never(*_: Any) -> Reply:
            await asyncio.sleep(100)
            raise AssertionError

        engine, host = hosted(never)
        other, elsewhere = hosted(never)
        async with pair(there=host.serve, window=1) as (first, _), pair(there=elsewhere.serve) as (second, _):
            hosts = [first]
            away, turn = AfarEngine("played", "m", lambda: hosts), Turn()
            calls = [asyncio.create_task(away.generate(ASKED, ctx)) for ctx in (CTX, CallContext("0.1.0", turn=turn))]
            await until(lambda: len(engine.asked) == 1)
            assert turn.waiting
            hosts.append(second)
            first.close()
            await until(lambda: len(other.asked) == 2)
            assert not turn.waiting
            for call in calls:
                call.cancel()

    go(test)


def test_a_peer_that_others_gave_up_is_asked_nothing_for():
    """It may have stood still with the call under way to its host; should it turn out to live, the call is made."""

    async def test():
        names, gone = set[str](), [True]

        def departed(name: str) -> bool:
            names.add(name)
            return gone[0]

        engine = Played(lambda request, ctx: Reply(assistant("here")))
        host = HostedEngines({"m": engine}, "run", departed=departed)
        async with pair(there=host.serve) as (ours, theirs):
            turn = Turn()
            call = asyncio.create_task(afar(ours).generate(ASKED, CallContext("0", turn=turn)))
            await until(lambda: turn.waiting)
            assert engine.asked == []
            assert names == {theirs.name}
            gone[0] = False
            assert (await call).text == "here"

    go(test)


def test_a_call_travels_only_with_a_permit_and_its_host_asks_its_own():
    async def test():
        given = {"here": False, "there": True}
        permits = {at: RevocablePermit(lambda at=at: given[at]) for at in given}
        engine = Played(lambda request, ctx: Reply(assistant(str(ctx.permit is permits["there"]))))
        host = HostedEngines({"m": engine}, "run", permits["there"])
        async with pair(there=host.serve) as (ours, _):
            turn = Turn()
            ctx = CallContext("0", turn=turn, permit=permits["here"])
            call = asyncio.create_task(afar(ours).generate(ASKED, ctx))
            await until(lambda: turn.waiting)
            await asyncio.sleep(0.02)
            assert host.served == 0
            given["here"] = True
            permits["here"].go_on()
            assert (await call).text == "True"
            assert not turn.waiting and turn.waited > 0.01

    go(test)


def test_cancelling_a_call_stops_its_engine():
    async def test():
        stopped = asyncio.Event()

        async def slow(*_: Any) -> Reply:
            try:
                await asyncio.sleep(100)
            finally:
                stopped.set()
            raise AssertionError

        engine, host = hosted(slow)
        async with pair(there=host.serve) as (ours, _):
            turn = Turn()
            call = asyncio.create_task(afar(ours).generate(ASKED, CallContext("0", turn=turn)))
            await until(lambda: len(engine.asked) == 1)
            assert not turn.waiting
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            await stopped.wait()
            await until(lambda: ours.open == 0)

    go(test)


def test_calls_go_where_fewer_are_open():
    async def test():
        async def slow(*_: Any) -> Reply:
            await asyncio.sleep(0.05)
            return Reply(assistant("slow"))

        tired, slowly = hosted(slow)
        fresh, quickly = hosted(lambda request, ctx: Reply(assistant("quick")))
        async with pair(there=slowly.serve) as (first, _), pair(there=quickly.serve) as (second, _):
            away = afar(first, second)

            async def one_by_one() -> None:
                for _ in range(50):
                    await away.generate(ASKED, CTX)

            await asyncio.gather(*(one_by_one() for _ in range(8)))
            assert len(tired.asked) + len(fresh.asked) == 400
            assert 1 <= len(tired.asked) <= 100  # of 400, where chance would give 200

    go(test)


def test_a_whole_run_asks_a_model_on_another_peer(tmp_path):
    speaker = Agent("speaker", model="far", prompt="{{ text }}")

    @workflow
    async def talk(row):
        said = [row["text"]]
        for _ in range(4):
            said.append(await speaker(text=" / ".join(said)))
        return {"said": said}

    async def test():
        engine, host = hosted(lambda request, ctx: Reply(assistant(f"{len(request.messages[0].text)} " + "w" * 600)))
        async with pair(there=host.serve) as (ours, _):
            rows = [{"text": f"row {n} " + "x" * 600} for n in range(50)]
            made = run(talk, rows, models={"far": afar(ours)}, directory=tmp_path / "run")
            done = [task async for task in made]
            assert len(done) == 50 and made.state == "finished" and made.ledger.stages[0].done == 50
            assert len(engine.asked) == 200
            assert engine.asked[0][1].task.count(".") == 2
            assert ours.outbox.saved > 0

    go(test)


def test_nothing_but_calls_is_served():
    _, host = hosted(lambda request, ctx: None)

    async def test():
        async with pair(there=host.serve, here=echo) as (ours, theirs):
            ours.close()
            with pytest.raises(LinkLost):
                await ours.ask("call", None)
            await theirs.lost

    go(test)
    with pytest.raises(WeaverantError):
        host.serve(None, "x", None)  # type: ignore[arg-type]
