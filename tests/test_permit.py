"""Calls without a permit: nothing of them reaches the server, and they go on as if nothing had been when it is given."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from peers_world import CountingModel
from weaverant.engines.http.client.transport import Held, acquire, release
from weaverant.engines.http.pool.pool import Pool
from weaverant.message import Reply, Request, Sampling, user
from weaverant.protocols import CallContext
from weaverant.runtime.permit import RevocablePermit
from weaverant.step import Turn

CLIENTS = ["fast", "dependable"]
PAUSE_S = 0.15


@pytest.fixture
def model() -> Iterator[CountingModel]:
    with CountingModel(0.02) as model:
        yield model


class Given:
    """A permit that is given for so many looks, and then not until `again`."""

    def __init__(self, looks: int = 0) -> None:
        self.looks = looks
        self.held = 0
        """Looks at which it was not."""
        self.permit = RevocablePermit(self._look)

    def again(self) -> None:
        self.looks = 1 << 30
        self.permit.go_on()

    def _look(self) -> bool:
        self.looks -= 1
        self.held += self.looks < 0
        return self.looks >= 0


def asked(number: int = 0) -> Request:
    return Request("a", "m", (user(f"question {number}"),), Sampling(max_tokens=16), seed=number)


def perform(main: Callable[[Pool], Awaitable[Any]], address: str) -> Any:
    async def whole() -> Any:
        engine = Pool.open(address)
        try:
            return await asyncio.wait_for(main(engine), 20)
        finally:
            await engine.close()

    return asyncio.run(whole())


def with_options(model: CountingModel, **options: object) -> str:
    return model.url.replace("#", "?" + "&".join(f"{name}={value}" for name, value in options.items()) + "#")


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("looks", range(5))
def test_a_held_call_is_sent_once_and_later(model: CountingModel, client: str, looks: int):
    """Wherever it is when the permit ends: in the queue, on a new connection, right before it is written."""
    given, turn = Given(looks), Turn()

    async def main(engine: Pool) -> Reply:
        call = asyncio.ensure_future(engine.generate(asked(), CallContext("t", turn=turn, permit=given.permit)))
        await asyncio.sleep(PAUSE_S)
        if given.held:
            assert not model.calls, "nothing has come to the server"
            assert not call.done()
            assert turn.waiting, "a stop takes it back"
            given.again()
        return await call

    reply = perform(main, with_options(model, client=client))
    assert reply.usage.requests == 1
    assert len(model.calls) == 1
    assert given.held or looks >= 3, "it was looked at less often than thought"


@pytest.mark.parametrize("client", CLIENTS)
def test_a_kept_connection_is_written_to_only_with_a_permit(model: CountingModel, client: str):
    url, headers = model.url.partition("#")[0] + "/chat/completions", {"Content-Type": "application/json"}
    body = b'{"model": "m", "messages": [{"role": "user", "content": "hello"}]}'

    async def main() -> None:
        transport = acquire(client)
        try:
            for looks in range(3):
                assert (await transport.send("POST", url, headers, body, seconds=5.0, most=10_000)).status == 200
                before = len(model.calls)
                given = Given(looks)
                try:
                    await transport.send("POST", url, headers, body, seconds=5.0, most=10_000, permit=given.permit)
                except Held:
                    assert given.held
                else:
                    assert looks == 2, "it is looked at twice at least"
                await asyncio.sleep(3 * model.latency)
                assert len(model.calls) == before + (given.held == 0)
        finally:
            await release(transport)

    asyncio.run(main())


def test_what_waits_in_the_pool_stays_there(model: CountingModel):
    """Many calls were let go, and the server takes two at a time."""
    open_until = math.inf
    permit = RevocablePermit(lambda: time.monotonic() < open_until)

    async def main(engine: Pool) -> None:
        nonlocal open_until
        open_until = time.monotonic() + 0.4
        calls = [
            asyncio.ensure_future(engine.generate(asked(number), CallContext(str(number), permit=permit)))
            for number in range(100)
        ]
        await asyncio.sleep(0.4 + 3 * model.latency)
        before = len(model.calls)
        assert 2 <= before < 90
        late = [call for call in model.calls if call.came > open_until]
        assert len(late) <= 2, "only what was written to the two connections may be read later"
        await asyncio.sleep(5 * model.latency)
        assert len(model.calls) == before
        open_until = time.monotonic() + 60
        permit.go_on()
        replies = await asyncio.gather(*calls)
        assert {reply.usage.requests for reply in replies} == {1}

    perform(main, with_options(model, connections=2))
    assert len(model.calls) == len({call.key for call in model.calls}) == 100


def test_a_held_call_uses_up_neither_its_time_nor_its_tries(model: CountingModel):
    given = Given()

    async def main(engine: Pool) -> Reply:
        call = asyncio.ensure_future(engine.generate(asked(), CallContext("t", permit=given.permit)))
        await asyncio.sleep(0.6)
        given.again()
        return await call

    assert perform(main, with_options(model, timeout=0.3, retries=0)).usage.requests == 1


def test_a_held_call_can_be_cancelled_and_costs_nothing(model: CountingModel):
    given, turn = Given(), Turn()

    async def main(engine: Pool) -> None:
        call = asyncio.ensure_future(engine.generate(asked(), CallContext("t", turn=turn, permit=given.permit)))
        await asyncio.sleep(0.05)
        assert turn.stake is not None and turn.stake().requests == 0
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert turn.waiting, "it waited to its end"

    perform(main, model.url)
    assert model.calls == []


def test_a_hedge_is_held_and_its_first_request_goes_on(model: CountingModel):
    model.latency = 0.005
    with CountingModel(0.005) as other:
        addresses = ",".join(with_options(each, hedge=0.5, connections=4) for each in (model, other))

        async def whole() -> Reply:
            engine = Pool.gather(addresses)
            try:
                # Only the last eight find nobody waiting and may be hedged: two of the ten hedges in 200 calls are left.
                await asyncio.gather(*(engine.generate(asked(n), CallContext(str(n))) for n in range(200)))
                model.latency = other.latency = 3.0  # much longer than the calls before, also on a busy machine
                given = Given(3)  # in the pool, before a connection is taken, before it is written to
                reply = await asyncio.wait_for(engine.generate(asked(999), CallContext("t", permit=given.permit)), 20)
                assert given.held, "there was a second request to be held"
                return reply
            finally:
                await engine.close()

        assert asyncio.run(whole()).usage.requests == 1
        assert sum(call.key == "question 999|999" for call in (*model.calls, *other.calls)) == 1
