"""CPU per model call over HTTP, everything included: workflow, journal with fdatasync, pool, client.

Beside it, in the same run and against the same server, the bare clients: aiohttp with nothing around it, and our own
transport with nothing around it. Requests are 4 kB, replies 1.6 kB, 8 calls a row. CPU is that of the whole process.
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
from urllib.request import urlopen

import aiohttp
import report

from weaverant import Agent, run, workflow
from weaverant.engines.http.client import transport

CALLS_A_ROW = 8
GOALS = {"fast": 0.12, "dependable": 0.30}
"""Milliseconds of CPU a call."""

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
) -> tuple[float, float, int]:
    """(CPU ms a call, calls per second, requests in flight at most) of a run with its journal."""
    rows = [{"text": "x" * 4_000, "turns": turns} for _ in range(calls // turns)]
    address = f"{url}/v1?client={client}&connections={connections or in_flight}#light"
    with tempfile.TemporaryDirectory() as folder:
        made = run(
            talk, rows, models=address, directory=Path(folder) / "run", concurrency=in_flight, in_flight=in_flight
        )
        cpu, wall = time.process_time(), time.perf_counter()
        asyncio.run(_drain(made))
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    assert made.state == "finished" and made.ledger.stages[0].done == len(rows), made.error
    assert made.ledger.usage().requests == made.ledger.calls == stats(url)["total"]
    return 1e3 * cpu / made.ledger.calls, made.ledger.calls / wall, stats(url)["most"]


async def _drain(made) -> None:
    async for _ in made:
        pass


def bare(url: str, client: str, calls: int, in_flight: int) -> tuple[float, float, int]:
    """The same of a client alone, with a worker for each request in flight."""
    if client == "aiohttp":
        return asyncio.run(_bare_aiohttp(url, calls, in_flight))
    return asyncio.run(_bare(url, client, calls, in_flight))


async def _bare(url: str, client: str, calls: int, in_flight: int) -> tuple[float, float, int]:
    wire = transport.acquire(client)

    async def one() -> None:
        answer = await wire.send("POST", f"{url}/v1/chat/completions", {}, BODY, seconds=600, most=1 << 30)
        assert answer.status == 200

    try:
        return await _timed(one, url, calls, in_flight)
    finally:
        await transport.release(wire)


async def _bare_aiohttp(url: str, calls: int, in_flight: int) -> tuple[float, float, int]:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def one() -> None:
            async with session.post(f"{url}/v1/chat/completions", data=BODY) as answer:
                await answer.read()

        return await _timed(one, url, calls, in_flight)


async def _timed(one: Callable[[], Awaitable[None]], url: str, calls: int, in_flight: int) -> tuple[float, float, int]:
    left = iter(range(calls))

    async def work() -> None:
        for _ in left:
            await one()

    cpu, wall = time.process_time(), time.perf_counter()
    await asyncio.gather(*(work() for _ in range(in_flight)))
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return 1e3 * cpu / calls, calls / wall, stats(url)["most"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=40_000)
    calls = parser.parse_args().calls
    lines, rows = [], []
    for in_flight, seconds in ((512, 0.2), (4_000, 1.0)):
        measures = [(f"bare {client}", bare, client) for client in ("aiohttp", "fast")]
        measures += [(f"all included, {client}", whole, client) for client in ("fast", "dependable")]
        for name, measure, client in measures:
            with server(seconds) as url:
                cpu, rate, most = measure(url, client, calls, in_flight)
            lines.append([name, f"{in_flight:,}", f"{cpu:.4f}", rate, f"{most:,}"])
            goal = GOALS[client] if measure is whole else None
            rows.append(
                report.row(
                    f"{name}, {in_flight} in flight: CPU ms a call",
                    cpu,
                    None if goal is None else f"<= {goal}",
                    None if goal is None else cpu <= goal,
                )
            )
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
