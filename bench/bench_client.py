"""CPU per model call over HTTP, everything included: workflow, journal with fdatasync, pool, client.

Beside it, in the same run, its parts: the bare clients against the same server (aiohttp, and our own transport, with
nothing around them), and the same workflow with the same journal but no HTTP, its replies coming from a timer. And the
bare clients under the lean runtime of `lean.py`: a body is encoded, a reply is decoded, and there is no pool.
Requests are 4 kB, replies 1.6 kB, 8 calls a row. CPU is that of the whole process.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.request import urlopen

import aiohttp
import lean
import msgspec
import report

from weaverant import Agent, Reply, Request, run, workflow
from weaverant.engines.http.client import transport
from weaverant.message import Usage, assistant
from weaverant.protocols import CallContext

CALLS_A_ROW = 8
GOALS = {"all included, fast": 0.12, "all included, dependable": 0.30}
"""Milliseconds of CPU a call."""


class Measured(NamedTuple):
    cpu: float
    """Milliseconds a call."""
    rate: float
    """Calls per second."""
    most: int
    """Requests in flight."""


BODY = json.dumps({"model": "m", "messages": [{"role": "user", "content": "x" * 4_000}]}).encode()

talker = Agent("talker", prompt="{{ text }} {{ turn }}")


@workflow
async def talk(row):
    """Calls one after another, with 4 kB prompts."""
    return [len(await talker(text=row["text"], turn=turn)) for turn in range(row["turns"])]


@contextmanager
def server(seconds: float) -> Iterator[str]:
    command = [sys.executable, str(Path(__file__).with_name("light_server.py")), str(seconds)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.kill()
        process.communicate()


def stats(url: str) -> dict[str, int]:
    with urlopen(f"{url}/stats") as answer:
        return json.loads(answer.read())


def whole(
    url: str, client: str, calls: int, in_flight: int, connections: int = 0, turns: int = CALLS_A_ROW
) -> Measured:
    """Of a run with its journal."""
    most = connections or in_flight
    address = f"{url}/v1?client={client}&connections={most}&start={most}#light"
    made, cpu, rate = _run(address, calls, in_flight, turns)
    assert made.ledger.usage().requests == made.ledger.calls == stats(url)["total"]
    return Measured(cpu, rate, stats(url)["most"])


class Timer:
    """An engine that answers after so many seconds, without a server."""

    identity = "timer"

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    async def generate(self, request: Request, ctx: CallContext) -> Reply:
        loop = asyncio.get_running_loop()
        over = loop.create_future()
        loop.call_later(self.seconds, over.set_result, None)
        await over
        return Reply(assistant("word " * 280), Usage(1_000, 280), "timer")


def core(seconds: float, calls: int, in_flight: int) -> Measured:
    """The same run with no HTTP in it."""
    _, cpu, rate = _run(Timer(seconds), calls, in_flight, CALLS_A_ROW)
    return Measured(cpu, rate, in_flight)


def _run(models, calls: int, in_flight: int, turns: int):
    rows = [{"text": "x" * 4_000, "turns": turns} for _ in range(calls // turns)]
    with tempfile.TemporaryDirectory() as folder:
        made = run(
            talk, rows, models=models, directory=Path(folder) / "run", concurrency=in_flight, in_flight=in_flight
        )
        cpu, wall = time.process_time(), time.perf_counter()
        asyncio.run(_drain(made))
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    assert made.state == "finished" and made.ledger.stages[0].done == len(rows), made.error
    return made, 1e3 * cpu / made.ledger.calls, made.ledger.calls / wall


async def _drain(made) -> None:
    async for _ in made:
        pass


class Unpooled:
    """A bare client as an engine: one server, no slots, retries, limits, gauges or secrets."""

    identity = "unpooled"

    def __init__(self, url: str, client: str) -> None:
        self.url = f"{url}/v1/chat/completions"
        self.client = client
        self.wire = None

    async def generate(self, request: Request, ctx: CallContext) -> Reply:
        body = _encode({"model": "m", "messages": [{"role": m.role, "content": m.content} for m in request.messages]})
        if self.wire is None:
            self.wire = transport.acquire(self.client)
        answer = await self.wire.send("POST", self.url, {}, body, seconds=600, most=1 << 30)
        completion = _decode(answer.body)
        message, usage = completion["choices"][0]["message"], completion["usage"]
        return Reply(assistant(message["content"]), Usage(usage["prompt_tokens"], usage["completion_tokens"]), "m")

    async def close(self) -> None:
        await transport.release(self.wire)


_encode, _decode = msgspec.json.Encoder().encode, msgspec.json.Decoder().decode


def leanly(url: str, client: str, calls: int, in_flight: int) -> Measured:
    """The same workflow and a journal in the lean runtime."""
    rows = [{"text": "x" * 4_000, "turns": CALLS_A_ROW} for _ in range(calls // CALLS_A_ROW)]
    hops, cpu, wall = lean.weave(lean.talk, rows, in_flight, engine=Unpooled(url, client))
    assert hops == stats(url)["total"]
    return Measured(1e3 * cpu / hops, hops / wall, stats(url)["most"])


def bare(url: str, client: str, calls: int, in_flight: int) -> Measured:
    """The same of a client alone, with a worker for each request in flight."""
    if client == "aiohttp":
        return asyncio.run(_bare_aiohttp(url, calls, in_flight))
    return asyncio.run(_bare(url, client, calls, in_flight))


async def _bare(url: str, client: str, calls: int, in_flight: int) -> Measured:
    wire = transport.acquire(client)

    async def one() -> None:
        answer = await wire.send("POST", f"{url}/v1/chat/completions", {}, BODY, seconds=600, most=1 << 30)
        assert answer.status == 200

    try:
        return await _timed(one, url, calls, in_flight)
    finally:
        await transport.release(wire)


async def _bare_aiohttp(url: str, calls: int, in_flight: int) -> Measured:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def one() -> None:
            async with session.post(f"{url}/v1/chat/completions", data=BODY) as answer:
                await answer.read()

        return await _timed(one, url, calls, in_flight)


async def _timed(one: Callable[[], Awaitable[None]], url: str, calls: int, in_flight: int) -> Measured:
    left = iter(range(calls))

    async def work() -> None:
        for _ in left:
            await one()

    cpu, wall = time.process_time(), time.perf_counter()
    await asyncio.gather(*(work() for _ in range(in_flight)))
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return Measured(1e3 * cpu / calls, calls / wall, stats(url)["most"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=40_000)
    parser.add_argument(
        "--uvloop", action="store_true", help="on its event loop in place of asyncio's; install it first"
    )
    options = parser.parse_args()
    if options.uvloop:
        import uvloop

        asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    calls = options.calls
    lines, rows = [], []
    for in_flight, seconds in ((512, 0.2), (4_000, 1.0)):
        size = max(calls, 10 * in_flight)
        measured = {"core alone, no HTTP": core(seconds, size, in_flight)}
        for name, measure, client in (
            ("bare aiohttp", bare, "aiohttp"),
            ("bare fast", bare, "fast"),
            ("lean runtime, fast", leanly, "fast"),
            ("lean runtime, aiohttp", leanly, "dependable"),
            ("all included, fast", whole, "fast"),
            ("all included, dependable", whole, "dependable"),
        ):
            with server(seconds) as url:
                measured[name] = measure(url, client, size, in_flight)
        for name, (cpu, rate, most) in measured.items():
            lines.append([name, f"{in_flight:,}", f"{cpu:.4f}", rate, f"{most:,}"])
            goal = GOALS.get(name)
            met = None if goal is None else cpu <= goal
            about = f"{name}, {in_flight} in flight: CPU ms a call"
            rows.append(report.row(about, cpu, goal and f"<= {goal}", met))
    with server(0.02) as url:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        cpu, rate, most = whole(url, "fast", 40_000, 20_000, connections=100, turns=2)
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    lines.append(["20,000 calls on 100 connections", f"{most:,}", f"{cpu:.4f}", rate, f"{most:,}"])
    rows.append(report.row("20,000 waiting on 100 connections: most in flight", most, "<= 100", most <= 100))
    rows.append(report.row("20,000 waiting on 100 connections: CPU ms a call", cpu))
    rows.append(report.row("20,000 waiting on 100 connections: peak memory grew by, MiB", grown))
    report.table(["what", "in flight", "CPU ms/call", "calls/s", "most at once"], lines)
    report.finish("bench-client", rows)


if __name__ == "__main__":
    main()
