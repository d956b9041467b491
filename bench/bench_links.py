"""What a model call costs that travels: two processes on loopback, CPU (user and system) of both, bytes on the wire.

The host's engine answers at once. W1 and W2 are the conversations of `workloads.py`, without a runtime around them;
`growing` is ten turns whose history grows by a question and an answer of about 1 kB each. `paced`: the engine takes
50 to 150 ms, so that calls come one by one. `alone`: the same driver and engine in one process, no link between them.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import cProfile
import gc
import os
import pstats
import random
import resource
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import report
import workloads

from weaverant.engines.scripted import Scripted
from weaverant.message import Message, Reply, Request, Sampling, user
from weaverant.protocols import CallContext, Engine
from weaverant.runtime.collector import thresholds
from weaverant.swarm.listener import Listener, dial
from weaverant.swarm.travel import AfarEngine, HostedEngines

GOAL = 0.05
"""Milliseconds of CPU per travelling call, both ends together."""
TURNS = 10
SAMPLING = Sampling(temperature=0.7, max_tokens=1024)


def answer(request: Request) -> Reply | Awaitable[Reply]:
    if request.agent == "slow":
        return slowly(request)
    return Reply(workloads.answer(request.agent, request.seed, len(request.messages)), model="scripted")


async def slowly(request: Request) -> Reply:
    await asyncio.sleep(0.05 + request.seed % 1_000 / 10_000)
    return Reply(workloads.TALK[request.seed % 512], model="scripted")


class Measured:
    """Calls of one kind of conversation; each is told from the others by its number."""

    def __init__(self, engine: Engine, release: Callable[[str], None]) -> None:
        self.calls = 0
        self._engine = engine
        self._release = release

    async def say(self, task: str, agent: str, seed: int, messages: tuple[Message, ...]) -> Message:
        self.calls += 1
        request = Request(agent, "m", messages, SAMPLING, seed=seed)
        return (await self._engine.generate(request, CallContext(task, order=self.calls))).message

    async def w1(self, number: int) -> None:
        task, rng = f"0.{number}.0", random.Random(number)
        said = user(workloads.QUESTIONS[number % 512])
        for round_ in range(1, workloads.ROUNDS + 1):
            said = await self.say(task, "teacher" if round_ % 2 else "student", rng.getrandbits(31), (said,))
            found = await self.say(task, "extractor", rng.getrandbits(31), (said,))
            if (await self.say(task, "matcher", rng.getrandbits(31), (found,) * min(round_, 3))).text == "yes":
                break
        self._release(task)

    async def w2(self, number: int) -> None:
        task, rng = f"0.{number}.0", random.Random(number)
        said = user(workloads.SHORT_QUESTIONS[number % 512])
        for hop in range(workloads.RING_HOPS):
            said = await self.say(task, "right" if hop % 2 else "left", rng.getrandbits(31), (said,))
        self._release(task)

    async def paced(self, number: int) -> None:
        task, rng = f"0.{number}.0", random.Random(number)
        said = user(workloads.QUESTIONS[number % 512])
        for _ in range(TURNS):
            said = await self.say(task, "slow", rng.getrandbits(31), (said,))
        self._release(task)

    async def growing(self, number: int) -> None:
        task, rng = f"0.{number}.0", random.Random(number)
        history: tuple[Message, ...] = ()
        for turn in range(TURNS):
            question = user(f"{number}.{turn}: {workloads.QUESTIONS[(number + turn) % 512]}")
            history = (*history, question)
            history = (*history, await self.say(task, "teacher", rng.getrandbits(31), history))
        self._release(task)

    async def many(self, kind: str, calls: int, in_flight: int) -> None:
        conversation: Callable[[int], Awaitable[None]] = getattr(self, kind)
        numbers = iter(range(1 << 30))
        until = self.calls + calls

        async def work() -> None:
            while self.calls < until:
                await conversation(next(numbers))

        await asyncio.gather(*(work() for _ in range(in_flight)))


async def host(port: int, key: bytes, share: int, profile: bool) -> None:
    hosted = HostedEngines({"m": Scripted(answer, name="scripted")})

    def serve(link: Any, kind: str, body: Any) -> Any:
        return cpu() if kind == "cpu" else hosted.serve(link, kind, body)

    link = await dial(f"127.0.0.1:{port}", key, "host", serve, share=share)
    with cProfile.Profile() if profile else contextlib.nullcontext() as measured:
        await link.lost
    if measured is not None:
        print("--- the host")
        pstats.Stats(measured).sort_stats("tottime").print_stats(28)


def cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


async def travelling(kind: str, calls: int, in_flight: int, share: int, profile: bool = False) -> dict[str, float]:
    key, up = os.urandom(32), asyncio.get_running_loop().create_future()
    listener = await Listener.open("127.0.0.1", 0, key, "owner", lambda *_: None, up.set_result, share=share)
    command = [sys.executable, __file__, "--host", listener.address.rpartition(":")[2], "--share", str(share)]
    child = await asyncio.create_subprocess_exec(
        *command, *(["--profile"] if profile else []), stdin=asyncio.subprocess.PIPE
    )
    assert child.stdin is not None
    try:
        child.stdin.write(key)
        child.stdin.close()
        link = await asyncio.wait_for(up, 10)
        measured = Measured(AfarEngine("scripted", "m", lambda: [link]), link.release)
        await measured.many(kind, calls // 10, in_flight)
        calls_before, ours, theirs = measured.calls, cpu(), await link.ask("cpu", None)
        sent, received, wall = link.sent, link.received, time.perf_counter()
        with cProfile.Profile() if profile else contextlib.nullcontext() as profiled:
            await measured.many(kind, calls, in_flight)
        wall, ours, theirs = time.perf_counter() - wall, cpu() - ours, await link.ask("cpu", None) - theirs
        if profiled is not None:
            pstats.Stats(profiled).sort_stats("tottime").print_stats(28)
        done = measured.calls - calls_before
        found = {
            "owner": 1000 * ours / done,
            "host": 1000 * theirs / done,
            "bytes": (link.sent - sent + link.received - received) / done,
            "calls/s": done / wall,
            "held": len(link.outbox) + len(link.inbox),
        }
        link.close()
        await listener.close()
        await asyncio.wait_for(child.wait(), 10)
        return found
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()


async def alone(kind: str, calls: int, in_flight: int) -> float:
    measured = Measured(Scripted(answer, name="scripted"), lambda _: None)
    began = cpu()
    await measured.many(kind, calls, in_flight)
    return 1000 * (cpu() - began) / measured.calls


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=20_000)
    parser.add_argument("--host", type=int, help="be the host of one measurement")
    parser.add_argument("--share", type=int, default=512)
    parser.add_argument("--brief", action="store_true", help="256 in flight alone, no results kept")
    parser.add_argument("--profile", metavar="KIND", nargs="?", const="growing")
    options = parser.parse_args()
    gc.set_threshold(*thresholds(1_024))  # as in a run
    if options.host:
        asyncio.run(host(options.host, sys.stdin.buffer.read(32), options.share, options.profile is not None))
        return
    if options.profile:
        print(asyncio.run(travelling(options.profile, options.calls, 256, options.share, True)))
        return
    lines, rows = [], []
    for kind in ("w1", "w2", "growing", "paced"):
        by_itself = asyncio.run(alone(kind, options.calls // (2 if kind == "paced" else 1), 256))
        rows.append(report.row(f"{kind}/alone: CPU ms a call", by_itself))
        for in_flight in (256,) if options.brief else (64, 256, 1_024):
            for share in (512, 0):
                if kind == "paced" and not share:
                    continue
                calls = min(options.calls, 40 * in_flight) if kind == "paced" else options.calls
                found = asyncio.run(travelling(kind, calls, in_flight, share))
                spent, name = found["owner"] + found["host"], "shared" if share else "not shared"
                lines.append(
                    [f"{kind}, {name}", in_flight]
                    + [f"{1000 * us:.1f}" for us in (found["owner"], found["host"], spent, by_itself)]
                    + [found["bytes"], found["calls/s"]]
                )
                label = f"{kind}/{name}/{in_flight}: "
                met = (f"<= {GOAL}", spent <= GOAL) if share and kind in ("w1", "w2") else (None, None)
                rows.append(report.row(label + "CPU ms a call, both ends", spent, *met))
                rows.append(report.row(label + "bytes a call", found["bytes"]))
                assert found["held"] == 0, "what all tasks released is still held"
    report.table(["us a call", "in flight", "owner", "host", "both", "alone", "bytes a call", "calls/s wall"], lines)
    if not options.brief:
        report.finish("bench-links", rows)


if __name__ == "__main__":
    main()
