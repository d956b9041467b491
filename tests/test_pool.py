"""A pool of replicas against real server processes: who gets which call, when, how often, and at what price."""

from __future__ import annotations

import asyncio
import json
import os
import re
import resource
import socket
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from heapq import heappop, heappush
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from weaverant import Agent, run, workflow
from weaverant.cli.options import models_of
from weaverant.engines import open_engine
from weaverant.engines.http import Pool
from weaverant.engines.http.pool.call import Call
from weaverant.engines.http.pool.queue import Queue
from weaverant.errors import Misdirected, StepFailed, Unavailable, UserError
from weaverant.message import Reply, Request, Sampling, user
from weaverant.protocols import CallContext
from weaverant.testing.server import MockServer
from weaverant.testing.settings import Settings

QUIET = {name: getattr(Settings(), name) for name in Settings.__struct_fields__}


@pytest.fixture(scope="module")
def processes() -> Iterator[list[MockServer]]:
    with MockServer() as first, MockServer() as second, MockServer() as third:
        yield [first, second, third]


@pytest.fixture
def servers(processes: list[MockServer]) -> list[MockServer]:
    """Three servers, as they are by default."""
    for server in processes:
        server.control(**QUIET)
        server.reset()
    return processes


def address(base: str, **options: Any) -> str:
    return f"{base}?{urlencode(options)}#m"


def pool(servers: list[MockServer], **options: Any) -> Pool:
    return Pool([address(server.url, **options) for server in servers])


def request(number: int, agent: str = "a", tokens: int | None = 16) -> Request:
    return Request(agent, "m", (user(f"question {number}"),), Sampling(max_tokens=tokens), seed=number)


def answer(engine: Pool, number: int, agent: str = "a", task: str | None = None, order: int = 0) -> Awaitable[Reply]:
    return engine.generate(request(number, agent), CallContext(str(number) if task is None else task, order=order))


def perform(main: Callable[[Pool], Awaitable[Any]], engine: Pool) -> Any:
    """Run it, close the engine, and see that nothing of the engine is left in the loop."""

    async def whole() -> Any:
        loop = asyncio.get_running_loop()
        try:
            return await asyncio.wait_for(main(engine), 60)
        finally:
            await engine.close()
            assert asyncio.all_tasks() == {asyncio.current_task()}
            mine = [each for each in loop._scheduled if not each.cancelled() and "engines.http" in repr(each)]  # type: ignore
            assert mine == []

    return asyncio.run(whole())


async def many(engine: Pool, count: int, width: int, first: int = 0) -> list[Reply]:
    """So many calls, so many of them at once."""
    numbers = iter(range(first, first + count))
    replies: list[Reply] = []

    async def work() -> None:
        for number in numbers:
            replies.append(await answer(engine, number))

    await asyncio.gather(*(work() for _ in range(width)))
    return replies


async def failed(call: Awaitable[Reply]) -> StepFailed:
    with pytest.raises(StepFailed) as caught:
        await call
    return caught.value


def totals(servers: list[MockServer], what: str = "total") -> list[int]:
    return [server.stats()[what] for server in servers]


async def until(done: Callable[[], bool]) -> None:
    """Return once it is so, which a busy machine may take a while for."""
    async with asyncio.timeout(10):
        while not done():  # noqa: ASYNC110 - nothing tells but looking
            await asyncio.sleep(0.02)


def a_closed_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


# Which replica


@pytest.mark.slow
def test_bounded_servers_are_kept_busy_and_each_call_is_one_request(servers: list[MockServer]):
    kinds = ((4, 0.05), (8, 0.1), (16, 0.2))
    for server, (slots, latency) in zip(servers, kinds, strict=True):
        server.control(latency=latency, slots=slots, skew=0.5)
    engine = Pool(
        [address(server.url, connections=slots + 2) for server, (slots, _) in zip(servers, kinds, strict=True)]
    )

    async def main(engine: Pool) -> float:
        load = asyncio.create_task(many(engine, 100_000, 40))
        await asyncio.sleep(3)
        before, began = totals(servers, "busy"), time.monotonic()
        await asyncio.sleep(2)
        busy = sum(totals(servers, "busy")) - sum(before)
        used = busy / (time.monotonic() - began) / sum(slots for slots, _ in kinds)
        load.cancel()
        await asyncio.gather(load, return_exceptions=True)
        return used

    assert perform(main, engine) > 0.75
    assert all(stats["total"] == stats["distinct"] for stats in (server.stats() for server in servers))


def test_the_share_of_a_replica_that_slows_down_moves_to_the_others(servers: list[MockServer]):
    for server in servers:
        server.control(latency=0.05)

    async def main(engine: Pool) -> list[int]:
        load = asyncio.create_task(many(engine, 100_000, 16))
        await asyncio.sleep(1.5)
        servers[0].control(latency=0.5)
        await asyncio.sleep(2)
        before = totals(servers, "answered")
        await asyncio.sleep(1.5)
        load.cancel()
        await asyncio.gather(load, return_exceptions=True)
        return [now - then for now, then in zip(totals(servers, "answered"), before, strict=True)]

    slow, *others = perform(main, pool(servers, connections=16))
    assert min(others) > 0 and slow < 0.2 * (slow + sum(others)), "a third would be its share"


def where(reply: Reply) -> str:
    """The port that the request came to, as an echoing server tells."""
    return json.loads(reply.text)["headers"]["host"].rpartition(":")[2]


def test_a_task_stays_at_its_replica_and_tasks_spread(servers: list[MockServer]):
    engine = Pool([address(server.scenario("echo")) for server in servers])

    async def task(engine: Pool, name: str) -> set[str]:
        return {where(await answer(engine, number, task=name)) for number in range(4)}

    async def main(engine: Pool) -> list[set[str]]:
        return [await task(engine, f"task-{number}") for number in range(60)]

    places = perform(main, engine)
    assert all(len(ports) == 1 for ports in places)
    shares = Counter(port for ports in places for port in ports)
    assert set(shares) == {str(server.port) for server in servers} and max(shares.values()) < 40
    assert perform(main, Pool([address(server.scenario("echo")) for server in reversed(servers)])) == places


def test_tasks_stay_at_their_replicas_where_calls_wait_as_well(servers: list[MockServer]):
    for server in servers:
        server.control(latency=0.02)
    engine = Pool([address(server.scenario("echo"), connections=4) for server in servers])

    async def task(engine: Pool, order: int) -> list[str]:
        return [where(await answer(engine, number, task=f"task-{order}", order=order)) for number in range(6)]

    async def main(engine: Pool) -> list[list[str]]:
        return await asyncio.gather(*(task(engine, order) for order in range(100)))

    places = perform(main, engine)
    most = [Counter(ports).most_common(1)[0][1] for ports in places]
    assert sum(most) > 0.65 * 600  # of three calls at random, less than half go to the place that gets most
    assert min(Counter(port for ports in places for port in ports).values()) > 120


def test_replicas_come_and_go_while_calls_are_made(servers: list[MockServer]):
    for server in servers:
        server.control(latency=0.02)
    first, second, _ = servers

    async def main(engine: Pool) -> None:
        load = asyncio.create_task(many(engine, 600, 12))
        await asyncio.sleep(0.3)
        assert totals(servers)[1] == 0
        await engine.add(address(second.url))
        await asyncio.sleep(0.5)
        assert totals(servers)[1] > 0
        await engine.remove(f"{first.url}#m")
        left = first.stats()
        assert left["in_flight"] == 0 and left["abandoned"] == 0
        replies = await load
        assert len(replies) == 600 and sum(reply.usage.requests for reply in replies) == 600
        assert first.stats()["total"] == left["total"] and sum(totals(servers)) == 600
        assert len(engine.status()) == 1 and engine.status()[0].startswith(f"{second.url}#m  0 of ")
        with pytest.raises(UserError, match=f"no replica at {first.url}; it has: {second.url}#m"):
            await engine.remove(f"{first.url}#m")
        with pytest.raises(UserError, match=r"is not the model 'm'.*name=NAME"):
            await engine.add(f"{first.url}#other")

    perform(main, pool([first]))


@pytest.mark.parametrize("gone", [0, 1])
def test_of_two_replicas_at_one_server_the_one_that_is_named_goes(servers: list[MockServer], gone: int):
    addresses = [address(servers[0].url, connections=number) for number in (2, 3)]

    async def main(engine: Pool) -> int:
        await engine.remove(addresses[gone])
        servers[0].control(latency=0.1)
        await many(engine, 20, 20)
        return servers[0].stats()["in_flight_max"]

    assert perform(main, Pool(addresses)) == (3, 2)[gone]


def test_a_file_of_replicas_is_followed_and_its_bad_lines_are_told(servers: list[MockServer], tmp_path: Path):
    file = tmp_path / "replicas.txt"
    file.write_text(f"# two of them\n{servers[0].url}\n\n{servers[1].url}#m\nhttp://me:hunter2@host/v1\n")
    engine = open_engine(f"pool:{file}#m")
    assert isinstance(engine, Pool) and engine.identity == "http:m"
    assert [line.partition("  ")[0] for line in engine.status()[:2]] == [f"{server.url}#m" for server in servers[:2]]
    assert "replicas.txt:5 is left out" in engine.status()[2] and "hunter2" not in str(engine.status())

    async def main(engine: Pool) -> None:
        await many(engine, 30, 3)
        assert min(totals(servers)[:2]) > 0
        file.write_text("")
        await until(lambda: "has no replica" in engine.status()[0])
        waiting = [asyncio.create_task(answer(engine, number)) for number in (1_000, 1_001)]
        await asyncio.sleep(0.1)
        assert "2 waiting for a place" in engine.status() and not waiting[0].done()
        file.write_text(f"{servers[2].url}#m\n{servers[0].url}#other\n")
        assert [reply.usage.requests for reply in await asyncio.gather(*waiting)] == [1, 1]
        assert totals(servers)[2] == 2 and "is not the model 'm'" in engine.status()[-1]

    perform(main, engine)


def test_what_cannot_be_a_pool_is_refused(servers: list[MockServer], tmp_path: Path):
    a, b = servers[0].url, servers[1].url
    both = open_engine(f"pool:{a}?price=1,2#m, {b}?price=1,2#m")
    assert isinstance(both, Pool) and len(both.status()) == 2 and both.identity == "http:m"
    assert open_engine(f"pool:{a}?name=x#m,{b}?name=x#n").identity == "http:x"
    with pytest.raises(UserError, match=f"{b}#n is not the model 'm'"):
        open_engine(f"pool:{a}#m,{b}#n")
    with pytest.raises(UserError, match=f"{b}#m has timeout=7 and {a}#m has timeout=600"):
        open_engine(f"pool:{a}#m,{b}?timeout=7#m")
    with pytest.raises(UserError, match="cannot be read"):
        open_engine(f"pool:{tmp_path / 'nothing'}")
    (tmp_path / "empty").write_text("# none yet\n")
    with pytest.raises(UserError, match="has no address yet"):
        open_engine(f"pool:{tmp_path / 'empty'}")


def test_servers_given_for_one_name_are_its_replicas(servers: list[MockServer]):
    specs = [f"{server.url}#m" for server in servers[:2]]
    given = models_of([f"small={specs[0]}", "embedded:tiny", f"small={specs[1]}"])
    assert given == {"small": f"pool:{specs[0]},{specs[1]}", "*": "embedded:tiny"}
    with pytest.raises(UserError, match="is no server"):
        models_of([specs[0], "embedded:tiny"])
    writer = Agent("writer", model="small", prompt="{{ text }}")

    @workflow
    async def echo(row: dict[str, str]) -> str:
        return await writer(text=row["text"])

    made = run(echo, [{"text": str(n)} for n in range(40)], models={"small": specs}, journal=False).wait()
    assert made.state == "finished" and made.ledger.ended_rows == 40 and made.config.models == {"small": given["small"]}
    assert min(totals(servers)[:2]) > 0 and sum(totals(servers)) == 40


# Failures and limits


def test_a_replica_that_is_killed_and_comes_back_loses_nothing(servers: list[MockServer]):
    for server in servers[:2]:
        server.control(latency=0.05)

    async def main(mortal: MockServer, engine: Pool) -> list[Reply]:
        load = asyncio.create_task(many(engine, 600, 24))
        await asyncio.sleep(0.8)
        mortal.stop()
        replies = await load
        mortal.start()
        while not mortal.stats()["total"]:  # it is used again, a probe's wait later
            replies += await many(engine, 20, 4, 20 * len(replies))
            await asyncio.sleep(0.2)
        return replies

    with MockServer(latency=0.05) as mortal:
        engine = pool([*servers[:2], mortal])
        replies = perform(lambda engine: main(mortal, engine), engine)
    assert len({reply.text for reply in replies}) == len(replies) >= 620
    again = sum(reply.usage.requests - 1 for reply in replies)
    assert 1 <= again <= 24 + 10  # what it had in flight, and a few probes


def test_a_failing_replica_costs_a_call_one_request_and_no_time(servers: list[MockServer]):
    servers[0].control(scenario="fault-500")

    async def main(engine: Pool) -> tuple[list[Reply], float]:
        began = time.monotonic()
        return [await answer(engine, number) for number in range(30)], time.monotonic() - began

    replies, seconds = perform(main, pool(servers[:2], retries=1))
    requests = Counter(reply.usage.requests for reply in replies)
    assert set(requests) == {1, 2} and requests[2] == totals(servers)[0] <= 10 and totals(servers)[1] == 30
    assert seconds < 5  # ten waits of a call by itself would be as long


def test_a_server_that_is_away_for_a_while_uses_up_no_retries(servers: list[MockServer]):
    async def main(server: MockServer, engine: Pool) -> list[Reply]:
        await answer(engine, 0)
        server.stop()
        calls = [asyncio.create_task(answer(engine, number)) for number in range(1, 20)]
        await asyncio.sleep(1.5)
        server.start()
        return await asyncio.gather(*calls)

    with MockServer() as server:
        replies = perform(lambda engine: main(server, engine), pool([server], retries=0))
        stats = server.stats()
    assert max(reply.usage.requests for reply in replies) >= 2 and stats["total"] == stats["answered"] == 19


def test_a_connection_that_breaks_uses_up_a_retry(servers: list[MockServer]):
    async def main(engine: Pool) -> StepFailed:
        servers[0].control(scenario="ok")
        await answer(engine, 0)
        servers[0].control(scenario="reset")
        return await failed(answer(engine, 1))

    for retries in (0, 1):
        servers[0].reset()
        failure = perform(main, pool(servers[:1], retries=retries))
        assert failure.kind == "connection" and failure.usage is not None
        assert failure.usage.requests == failure.detail["requests"] == retries + 1
        assert totals(servers)[0] == retries + 2


def test_where_nothing_has_ever_answered_all_that_wait_fail_soon_and_say_why():
    url = f"http://127.0.0.1:{a_closed_port()}/v1"

    async def main(engine: Pool) -> list[StepFailed]:
        failures = await asyncio.gather(*(failed(answer(engine, number)) for number in range(100)))
        return [*failures, await failed(answer(engine, 100))]

    began = time.monotonic()
    failures = perform(main, Pool([address(url, retries=1)]))
    assert time.monotonic() - began < 10
    assert {failure.kind for failure in failures} == {"connection"}
    assert all(f"{url}#m has never answered: is it up" in failure.text for failure in failures)
    assert max(failure.detail["requests"] for failure in failures) <= 2 and failures[-1].detail["requests"] == 1


def test_a_call_whose_other_request_may_have_been_billed_was_sent(servers: list[MockServer]):
    """The first is refused for its key, after its second was sent to a server that broke off."""
    first, second = servers[:2]

    async def main(engine: Pool) -> list[StepFailed]:
        await many(engine, 100, 10)
        first.control(scenario="fault-401", latency=0.4)
        second.control(scenario="drop-mid-body", latency=0.4)
        return [await failed(answer(engine, number)) for number in range(200, 212)]

    engine = Pool([address(server.url, hedge=0.5, retries=0, price="1,1") for server in (first, second)])
    failures = [failure for failure in perform(main, engine) if failure.usage is not None]
    unsure = [failure for failure in failures if failure.usage is not None and failure.usage.unsure]
    assert unsure and not any(isinstance(failure, Unavailable) for failure in unsure)


def test_a_refusal_pauses_the_replica_for_all_calls(servers: list[MockServer]):
    async def main(engine: Pool) -> tuple[list[Reply], float]:
        began = time.monotonic()
        first = asyncio.create_task(answer(engine, 0))
        await until(lambda: "paused" in engine.status()[0])
        servers[0].control(scenario="ok")
        others = [asyncio.create_task(answer(engine, number)) for number in range(1, 10)]
        await asyncio.sleep(0.1)
        assert totals(servers)[0] == 1 and re.search(rf"paused [12] s \({told[status]}\)", engine.status()[0])
        return await asyncio.gather(first, *others), time.monotonic() - began

    told = {"429": "rate limit", "503": "it answered 503, and said when to come back"}
    for status in told:
        servers[0].control(scenario=f"fault-{status}-retry-after")
        servers[0].reset()
        replies, seconds = perform(main, pool(servers[:1]))
        assert 1.0 <= seconds < 5 and totals(servers)[0] == 11
        assert [reply.usage.requests for reply in replies] == [2] + 9 * [1]


def test_a_refusal_in_doubt_is_shown_as_what_it_is(servers: list[MockServer]):
    async def main(engine: Pool) -> str:
        calls = [asyncio.create_task(failed(answer(engine, number))) for number in range(2)]
        await until(lambda: "paused" in engine.status()[0])
        shown = engine.status()[0]
        assert all(isinstance(failure, Misdirected) for failure in await asyncio.gather(*calls))
        return shown

    servers[0].control(scenario="fault-404", latency=0.5, skew=1.0)
    shown = perform(main, pool(servers[:1]))
    assert "(it answered 404, and has replied to no call yet)" in shown and "rate limit" not in shown


def test_a_server_that_refuses_what_is_too_much_answers_all_in_the_end(servers: list[MockServer]):
    servers[0].control(slots=4, latency=0.02, reject=True)
    replies = perform(lambda engine: many(engine, 150, 30), pool(servers[:1], timeout=50))
    assert len(replies) == 150 and sum(reply.usage.requests for reply in replies) == totals(servers)[0]
    assert totals(servers)[0] < 300


def test_other_replicas_take_over_what_one_refuses(servers: list[MockServer]):
    servers[0].control(scenario="fault-429-retry-after-long")
    began = time.monotonic()
    replies = perform(lambda engine: many(engine, 60, 6), pool(servers[:2], timeout=20))
    assert len(replies) == 60 and time.monotonic() - began < 10
    assert totals(servers)[0] == sum(reply.usage.requests - 1 for reply in replies) <= 6


def test_calls_fail_where_no_replica_can_be_used_for_longer_than_their_time(servers: list[MockServer]):
    servers[0].control(scenario="fault-429-retry-after-long")

    async def main(engine: Pool) -> list[StepFailed]:
        return await asyncio.gather(*(failed(answer(engine, number)) for number in range(40)))

    began = time.monotonic()
    failures = perform(main, pool(servers[:1], timeout=2))
    assert 1.9 <= time.monotonic() - began < 8
    assert {failure.kind for failure in failures} == {"rate_limit"}
    sent = [failure for failure in failures if failure.detail["requests"]]
    assert len(sent) == totals(servers)[0] < 40
    assert all("would come after the call's 2 s" in failure.text for failure in sent)
    assert all("no server could be used" in failure.text for failure in failures if failure not in sent)


def test_a_call_in_the_queue_ends_at_its_deadline(servers: list[MockServer]):
    """Its first request fails; its second never gets a place, because another call holds the only one."""

    async def main(engine: Pool) -> tuple[StepFailed, float]:
        await answer(engine, 0)
        servers[0].control(scenario="fault-500")
        began = time.monotonic()
        first = asyncio.create_task(failed(answer(engine, 1)))
        await until(lambda: "500" in servers[0].stats()["statuses"])
        servers[0].control(scenario="hang")
        second = asyncio.create_task(failed(answer(engine, 2)))
        failure = await first
        seconds = time.monotonic() - began
        assert (await second).kind == "timeout"
        return failure, seconds

    failure, seconds = perform(main, pool(servers[:1], timeout=1.5, backoff=1, connections=1))
    assert failure.kind == "server" and 1.4 <= seconds < 3 and failure.detail["requests"] == 1
    assert "no place for another try within its 1.5 s" in failure.text


@pytest.mark.parametrize(("what", "limit", "least"), [("rpm", 30, 30), ("tpm", 3_000, 22)])
def test_rate_limits_are_kept_without_being_refused(servers: list[MockServer], what: str, limit: int, least: int):
    """A server that enforces 30 calls in 3 seconds (its minute), or the tokens of 25, and a pool that was told the same
    for 60. In 4.5 seconds that is 45 calls, or 37."""
    servers[0].control(minute=3.0, tokens=80, **{what: limit})
    engine = pool(servers[:1], **{what: 20 * limit})

    async def main(engine: Pool) -> None:
        async def one(number: int) -> Reply:
            return await engine.generate(request(number, tokens=80), CallContext(str(number)))

        load = [asyncio.create_task(one(number)) for number in range(200)]
        await until(lambda: "waits for its rate limit" in engine.status()[0])
        await asyncio.sleep(4.5)
        for each in load:
            each.cancel()
        await asyncio.gather(*load, return_exceptions=True)

    perform(main, engine)
    stats = servers[0].stats()
    assert stats["answered"] >= least and stats["total"] - stats["answered"] <= 0.1 * stats["total"] + 1


# Second requests


def test_a_second_request_saves_calls_from_a_stuck_replica(servers: list[MockServer]):
    async def main(engine: Pool) -> tuple[list[Reply], float]:
        await many(engine, 1_000, 4)
        for server in servers:
            server.reset()
        servers[0].control(scenario="hang")
        began = time.monotonic()
        replies, seconds = await many(engine, 8, 8, 1_000), time.monotonic() - began
        await until(lambda: servers[0].stats()["in_flight"] == 0)
        return replies, seconds

    replies, seconds = perform(main, pool(servers[:2], hedge=0.9999))
    stuck, _ = totals(servers[:2])
    assert 1 <= stuck <= 8 and seconds < 5 and totals(servers)[1] == 8
    # A second request that is cut off as the first is answered may not have reached the server that counts it.
    assert 8 + stuck <= sum(reply.usage.requests for reply in replies) <= 16
    assert servers[0].stats()["abandoned"] == stuck


def test_few_calls_get_a_second_request_even_where_all_are_slow(servers: list[MockServer]):
    async def main(engine: Pool) -> list[Reply]:
        replies = await many(engine, 200, 4)
        for server in servers[:2]:
            server.control(latency=0.1)
        return replies + await many(engine, 200, 8, 1_000)

    replies = perform(main, pool(servers[:2], hedge=0.5))
    second = sum(reply.usage.requests - 1 for reply in replies)
    # One that was cut off before a byte of it was sent counts as well.
    assert 400 < sum(totals(servers)) <= 400 + second and second <= 0.05 * 400
    alone = perform(lambda engine: many(engine, 100, 4, 5_000), pool(servers[2:], hedge=0.5))
    assert all(reply.usage.requests == 1 for reply in alone)


# The queue


def short(number: int, agent: str = "a") -> Request:
    return request(number, agent, tokens=1)


def long(number: int) -> Request:
    """More than is left of 6,000 tokens a minute once anything was sent: it waits for a minute."""
    return request(number, tokens=5_980)


@pytest.mark.parametrize("why", ["cancelled", "older", "other"])
def test_a_short_call_does_not_wait_for_the_tokens_of_a_long_one(servers: list[MockServer], why: str):
    async def main(engine: Pool) -> None:
        await engine.generate(short(0), CallContext("0"))
        first = asyncio.create_task(engine.generate(long(1), CallContext("1", order=1)))
        await asyncio.sleep(0.05)
        agent, order = ("b", 2) if why == "other" else ("a", 0 if why == "older" else 2)
        second = asyncio.create_task(engine.generate(short(2, agent), CallContext("2", order=order)))
        await asyncio.sleep(0.05)
        if why == "cancelled":
            first.cancel()
        await asyncio.wait_for(second, 10)
        first.cancel()
        await asyncio.wait([first])

    perform(main, pool(servers[:1], tpm=6_000))
    assert servers[0].stats()["total"] == 2


def test_a_call_whose_turn_comes_goes_to_any_replica_with_room(servers: list[MockServer]):
    one, two = servers[:2]
    one.control(latency=1.0)
    two.control(latency=0.1)

    async def main(engine: Pool) -> None:
        def ask(asked: Request, order: int) -> asyncio.Task[Reply]:
            return asyncio.create_task(engine.generate(asked, CallContext("t", order=order)))

        calls = [ask(short(0), 0), ask(short(1), 1)]  # one each
        await asyncio.sleep(0)
        calls += [ask(long(2), 2), ask(short(3), 3)]
        await asyncio.gather(*calls)

    addresses = [address(one.url, connections=1), address(two.url, connections=1, tpm=6_000)]
    perform(main, Pool(addresses))
    assert [server.stats()["total"] for server in (one, two)] == [2, 2]


def test_agents_with_calls_of_any_length_get_the_same_share_of_the_places():
    """Simulated, to be exact: 8 places; one agent with 100 calls of 10 s at a time, one with 10 calls of 1 s, and one
    with 10 calls of 3 s that comes later. Each gets its share of the time, and what was before counts no more."""
    kinds = {"heavy": (100, 10.0, 0.0), "light": (10, 1.0, 0.0), "late": (10, 3.0, 1_000.0)}
    queue = Queue()
    loop = asyncio.new_event_loop()
    ends: list[tuple[float, int, str, float]] = []  # of a call in a place: when, a number, whose, what was charged
    held: Counter[str] = Counter()
    came = 0

    def come(agent: str, now: float) -> None:
        nonlocal came
        came += 1
        call = Call(request(came, agent), CallContext("", order=came), now)
        call.future = loop.create_future()
        queue.push(call)

    def fill(now: float) -> None:
        while len(ends) < 8 and (call := queue.head()) is not None:
            queue.pop()
            assert call.future is not None
            call.future.cancel()
            heappush(ends, (now + kinds[call.agent][1], call.ctx.order, call.agent, queue.begin(call.agent)))

    starts = sorted((when, agent) for agent, (calls, _, when) in kinds.items() for _ in range(calls))
    now = 0.0
    while now < 2_000.0:
        while starts and starts[0][0] <= now:
            come(starts.pop(0)[1], now)
        fill(now)
        now, _, agent, charged = heappop(ends)
        queue.end(agent, charged, kinds[agent][1])
        if 500.0 < now < 1_000.0 or now > 1_500.0:
            held[f"{agent} {now > 1_000.0}"] += int(kinds[agent][1])
        come(agent, now)
    loop.close()
    for agent in ("heavy", "light"):
        assert held[f"{agent} False"] == pytest.approx(8 * 500 / 2, rel=0.05)
    for agent in kinds:
        assert held[f"{agent} True"] == pytest.approx(8 * 500 / 3, rel=0.05)


def test_an_agent_with_ten_times_as_many_calls_starves_no_other(servers: list[MockServer]):
    servers[0].control(latency=0.05)

    async def main(engine: Pool) -> Counter[str]:
        done: Counter[str] = Counter()

        async def work(agent: str, number: int) -> None:
            while True:
                number += 1
                await answer(engine, number, agent)
                done[agent] += 1

        calls = [asyncio.create_task(work("heavy", 100_000 * n)) for n in range(1, 101)]
        await asyncio.sleep(1)
        calls += [asyncio.create_task(work("light", 100_000 * n)) for n in range(200, 210)]
        await asyncio.sleep(0.3)
        done.clear()
        await asyncio.sleep(1.5)
        for each in calls:
            each.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        return done

    done = perform(main, pool(servers[:1], connections=4))
    assert done["heavy"] > 0 and 0.7 < done["light"] / done["heavy"] < 1.4


def test_within_an_agent_the_oldest_row_goes_first(servers: list[MockServer]):
    servers[0].control(latency=0.02)
    ended: list[int] = []

    async def one(engine: Pool, order: int) -> None:
        await answer(engine, order, order=order)
        ended.append(order)

    async def main(engine: Pool) -> None:
        await asyncio.gather(*(one(engine, order) for order in (9, 4, 7, 1, 8, 3)))

    perform(main, pool(servers[:1], connections=1))
    assert ended == [9, 1, 3, 4, 7, 8]  # the first found the place free


def resident() -> int:
    """Bytes of memory this process has now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs /proc")
def test_twenty_thousand_calls_wait_for_a_hundred_connections(servers: list[MockServer]):
    count = 20_000

    async def main(engine: Pool) -> tuple[float, float]:
        await many(engine, 10, 10, count)
        servers[0].control(scenario="hang")
        before = resident()
        calls = [
            asyncio.create_task(answer(engine, number, f"agent {number % 3}", order=number)) for number in range(count)
        ]
        await asyncio.sleep(1)
        each = (resident() - before) / count
        for call in calls[:-2_000]:
            call.cancel()  # also those that hold a place
        servers[0].control(scenario="ok", latency=0.01)
        began = time.process_time()
        replies = await asyncio.gather(*calls[-2_000:])
        seconds = (time.process_time() - began) / len(replies)
        await asyncio.gather(*calls, return_exceptions=True)
        assert len({reply.text for reply in replies}) == 2_000
        assert {reply.usage.requests for reply in replies} == {1}
        return each, seconds

    each, seconds = perform(main, pool(servers[:1], connections=100))
    stats = servers[0].stats()
    assert stats["in_flight_max"] <= 100 and stats["connections"] <= 300
    assert each < 12_000 and seconds < 0.003


def test_cancelled_calls_free_their_places(servers: list[MockServer]):
    servers[0].control(scenario="hang")

    async def main(engine: Pool) -> Reply:
        calls = [asyncio.create_task(answer(engine, number)) for number in range(6)]
        await until(lambda: servers[0].stats()["in_flight"] == 2)
        assert engine.status()[-1] == "4 waiting for a place"
        for call in (calls[3], calls[0], calls[1]):
            call.cancel()
        await until(lambda: totals(servers)[0] == 4 and servers[0].stats()["in_flight"] == 2)
        assert engine.status()[-1] == "1 waiting for a place"
        servers[0].control(scenario="ok")
        for call in (calls[2], calls[4]):
            call.cancel()
        reply = await calls[5]
        await until(lambda: servers[0].stats()["abandoned"] == 4)
        return reply

    assert perform(main, pool(servers[:1], connections=2)).usage.requests == 1


def test_closing_ends_calls_wherever_they_are_and_the_pool_opens_again(servers: list[MockServer]):
    async def main(engine: Pool) -> None:
        servers[0].control(scenario="fault-500")
        asleep = asyncio.create_task(failed(answer(engine, 0)))
        await asyncio.sleep(0.1)
        servers[0].control(scenario="hang")
        calls = [asyncio.create_task(failed(answer(engine, number))) for number in range(1, 5)]
        await asyncio.sleep(0.1)
        await engine.close()
        assert [failure.kind for failure in await asyncio.gather(asleep, *calls)] == 5 * ["connection"]
        servers[0].control(scenario="ok")
        assert (await answer(engine, 9)).usage.requests == 1

    engine = pool(servers[:1], connections=2)
    perform(main, engine)
    perform(main, engine)


# Money


class Wallet:
    """A purse with so many dollars; writes down what it was asked."""

    def __init__(self, dollars: float) -> None:
        self.dollars = dollars
        self.asked: list[float] = []
        self.more = asyncio.Event()

    def affords(self, dollars: float) -> bool:
        return dollars <= self.dollars

    async def afford(self, dollars: float, claim: str = "") -> None:
        self.asked.append(dollars)
        while dollars > self.dollars:
            self.more.clear()
            await self.more.wait()


def paid(engine: Pool, number: int, wallet: Wallet, tokens: int | None = 16) -> Awaitable[Reply]:
    return engine.generate(request(number, tokens=tokens), CallContext(str(number), purse=wallet))


@pytest.mark.parametrize("client", ["fast", "dependable"])
def test_one_engine_serves_several_event_loops_one_after_the_other(servers: list[MockServer], client: str):
    engine = Pool([f"{servers[0].url}?client={client}&rpm=6000#m"])

    async def main(first: int) -> int:
        calls = [
            asyncio.ensure_future(engine.generate(request(n), CallContext(str(n)))) for n in range(first, first + 60)
        ]
        done, rest = await asyncio.wait(calls, timeout=0.3 if first == 100 else None)
        for call in rest:  # as a run does that is left
            call.cancel()
        return sum(call.exception() is None for call in done)

    async def last() -> int:
        try:
            return await main(200)
        finally:
            await engine.close()

    servers[0].control(latency=0.05)
    assert [asyncio.run(work) for work in (main(0), main(100), last())][::2] == [60, 60]


def test_a_server_that_refuses_and_names_no_time_is_not_asked_all_the_time(servers: list[MockServer]):
    async def main(engine: Pool) -> list[BaseException | Reply]:
        await many(engine, 4, 4)
        servers[0].control(scenario="fault-429-retry-after-0")
        return await asyncio.gather(
            *(engine.generate(request(n), CallContext(str(n))) for n in range(100, 110)), return_exceptions=True
        )

    ends = perform(main, pool(servers[:1], timeout=4))
    assert all(isinstance(end, StepFailed) and end.kind == "rate_limit" for end in ends)
    assert totals(servers)[0] < 40


def test_money_is_set_aside_before_each_request_and_unknown_bills_count(servers: list[MockServer]):
    servers[0].control(scenario="fault-504*1")
    wallet = Wallet(1.0)
    reply = perform(lambda engine: paid(engine, 1, wallet), pool(servers[:1], price="1000,2000"))
    assert reply.usage.requests == 2 and len(wallet.asked) == 2
    once = wallet.asked[0]
    assert once > 16 * 2000 / 1e6 and wallet.asked[1] == pytest.approx(2 * once)
    known = (reply.usage.prompt_tokens * 1000 + reply.usage.completion_tokens * 2000) / 1e6
    assert reply.usage.unsure == pytest.approx(once) and reply.usage.cost == pytest.approx(known + once)


def test_a_request_whose_bill_is_known_to_be_nothing_is_not_set_aside_for(servers: list[MockServer]):
    servers[0].control(scenario="fault-500*1")
    wallet = Wallet(1.0)
    reply = perform(lambda engine: paid(engine, 1, wallet), pool(servers[:1], price="1000,2000"))
    assert reply.usage.requests == 2 and wallet.asked[0] == wallet.asked[1] and reply.usage.unsure == 0.0


def test_a_failure_tells_what_it_may_have_cost(servers: list[MockServer]):
    servers[0].control(scenario="hang")
    wallet = Wallet(1.0)
    engine = pool(servers[:1], price="1000,2000", timeout=0.3)
    failure = perform(lambda engine: failed(paid(engine, 1, wallet)), engine)
    assert failure.kind == "timeout" and failure.usage is not None and failure.usage.requests == 1
    assert failure.usage.cost == failure.usage.unsure == wallet.asked[0] > 0


def test_a_call_that_closing_cut_off_tells_what_it_may_have_cost(servers: list[MockServer]):
    servers[0].control(scenario="hang")
    wallet = Wallet(1.0)

    async def main(engine: Pool) -> StepFailed:
        call = asyncio.create_task(failed(paid(engine, 1, wallet)))
        await asyncio.sleep(0.3)
        await engine.close()
        return await call

    usage = perform(main, pool(servers[:1], price="1000,2000")).usage
    assert usage is not None and usage.requests == 1 and usage.cost == usage.unsure == wallet.asked[0] > 0


def test_money_is_set_aside_only_for_calls_that_have_a_place(servers: list[MockServer]):
    async def main(engine: Pool) -> None:
        wallet = Wallet(1.0)
        servers[0].control(scenario="hang")
        calls = [asyncio.create_task(paid(engine, number, wallet)) for number in range(10)]
        await until(lambda: totals(servers)[0] == 1)
        assert len(wallet.asked) == 1, "nine wait for the place of the first"
        servers[0].control(scenario="ok")
        calls[0].cancel()
        await asyncio.gather(*calls[1:])
        assert len(wallet.asked) == 10

    perform(main, pool(servers[:1], connections=1, price="1000,2000"))


def test_what_waits_for_money_uses_up_no_rate_limit(servers: list[MockServer]):
    class Poor(Wallet):
        """Has the money only once it was asked for it."""

        def affords(self, dollars: float) -> bool:
            return bool(self.asked)

    async def main(engine: Pool) -> float:
        began = time.monotonic()
        await asyncio.gather(*(paid(engine, number, Poor(9.0)) for number in range(30)))
        return time.monotonic() - began

    seconds = perform(main, pool(servers[:1], rpm=600, price="1,1"))
    assert 1.5 < seconds < 3.0, "ten at once, then ten a second; twice as many would take 5 s"


def test_a_call_that_waits_for_money_gives_its_place_back_when_it_is_cancelled(servers: list[MockServer]):
    async def main(engine: Pool) -> Reply:
        poor = asyncio.create_task(paid(engine, 1, Wallet(0.0)))
        await asyncio.sleep(0.05)
        poor.cancel()
        await asyncio.wait([poor])
        assert poor.cancelled() and totals(servers)[0] == 0
        return await answer(engine, 2)

    assert perform(main, pool(servers[:1], connections=1, price="1000,2000"))


def test_a_call_that_waits_for_money_between_two_tries_ends_at_its_deadline(servers: list[MockServer]):
    servers[0].control(scenario="drop-mid-body")

    class Slow(Wallet):
        async def afford(self, dollars: float, claim: str = "") -> None:
            if self.asked:
                await asyncio.sleep(3)
            await super().afford(dollars, claim)

        def affords(self, dollars: float) -> bool:
            return not self.asked or dollars <= max(self.asked)

    wallet = Slow(9.0)
    began = time.monotonic()
    engine = pool(servers[:1], price="1000,2000", timeout=1, retries=3)
    failure = perform(lambda engine: failed(paid(engine, 1, wallet)), engine)
    assert 1.0 <= time.monotonic() - began < 2.5 and "no money" in failure.text
    assert servers[0].stats()["total"] == 1 and failure.usage is not None and failure.usage.requests == 1


def test_what_has_no_bound_is_refused_under_a_budget(servers: list[MockServer]):
    wallet = Wallet(1.0)
    unpriced, priced, free = pool(servers[:1]), pool(servers[:1], price="1,2"), pool(servers[:1], price="0")
    assert "price=IN,OUT" in unpriced.unbounded(request(1)) and f"{servers[0].url}#m" in unpriced.unbounded(request(1))
    assert priced.unbounded(request(1)) == free.unbounded(request(1, tokens=None)) == ""
    assert "max_tokens" in priced.unbounded(request(1, tokens=None))
    failure = perform(lambda engine: failed(paid(engine, 1, wallet)), unpriced)
    assert failure.kind == "budget" and "price=IN,OUT" in failure.text and totals(servers)[0] == 0
    perform(lambda engine: paid(engine, 1, wallet, None), free)
    assert wallet.asked == []


def test_the_second_request_is_set_aside_for_as_well(servers: list[MockServer]):
    wallet = Wallet(10.0)

    async def main(engine: Pool) -> list[Reply]:
        await many(engine, 1_000, 4)
        servers[0].control(scenario="hang")
        return await asyncio.gather(*(paid(engine, number, wallet) for number in range(1_000, 1_008)))

    replies = perform(main, pool(servers[:2], hedge=0.9999, price="1000,2000"))
    hedged = [reply for reply in replies if reply.usage.requests == 2]
    assert hedged and len(wallet.asked) == 8 + len(hedged)
    assert all(reply.usage.unsure == pytest.approx(wallet.asked[0]) for reply in hedged)
    assert max(wallet.asked) == pytest.approx(2 * min(wallet.asked))


def test_a_server_paid_by_the_hour_is_shared_by_the_calls_it_works_on(servers: list[MockServer]):
    servers[0].control(latency=0.3)
    wallet = Wallet(1.0)

    async def main(engine: Pool) -> tuple[list[Reply], float]:
        began = time.monotonic()
        replies = await asyncio.gather(*(paid(engine, number, wallet) for number in range(4)))
        return replies, time.monotonic() - began

    replies, seconds = perform(main, pool(servers[:1], hourly=3600))
    assert 0.29 < sum(reply.usage.cost for reply in replies) <= seconds and wallet.asked == []
    assert all(reply.usage.unsure == 0.0 for reply in replies)


# Gauges


async def pages(text: str, requests: Counter[str]) -> asyncio.Server:
    """A server that answers every chat after half a second, and GET /metrics with that text, or 404 where it is empty."""
    chat = json.dumps({"choices": [{"message": {"content": "x"}}]})

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := (await reader.readuntil(b"\r\n\r\n")).decode():
                requests[head.split()[1]] += 1
                assert "authorization" not in head.lower() or "/chat/" in head
                if "/chat/" in head:
                    length = int(head.lower().partition("content-length:")[2].split()[0])
                    await reader.readexactly(length)
                    await asyncio.sleep(0.5)
                body = chat if "/chat/" in head else text
                line = "200 OK" if body else "404 Not Found"
                writer.write(f"HTTP/1.1 {line}\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    return await asyncio.start_server(serve, "127.0.0.1", 0)


@pytest.mark.parametrize(
    ("text", "polls"),
    [
        ("vllm:num_requests_running 3\nvllm:num_requests_waiting 0\n", range(2, 5)),
        ("", range(1, 2)),
        ("hello", range(1, 2)),
    ],
)
def test_gauges_are_asked_for_while_calls_are_made_and_only_where_there_are_some(
    text: str, polls: range, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("WEAVERANT_API_KEY", "general")

    async def main() -> Counter[str]:
        requests: Counter[str] = Counter()
        server = await pages(text, requests)
        async with server:
            engine = Pool([address(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1")])
            for number in range(3):
                await answer(engine, number)
            asked = requests.copy()
            await asyncio.sleep(1.3)
            assert requests["/metrics"] <= asked["/metrics"] + 1  # idle: nobody asks
            await engine.close()
        return requests

    requests = asyncio.run(main())
    assert requests["/v1/chat/completions"] == 3 and requests["/metrics"] in polls
