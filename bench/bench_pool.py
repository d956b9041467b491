"""The pool against servers with limits: real processes, each figure from the servers' own counts.

Saturation: three servers with bounded slots and skewed service times. Slow-down: one of them becomes ten times slower.
A silent queue: a server that never refuses, with and without metrics. Rate limits: 600 requests and 60,000 tokens a
minute, enforced. `--quick` shortens all of it.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from contextlib import ExitStack
from typing import Any

import report

from weaverant.engines.http import Pool
from weaverant.errors import StepFailed
from weaverant.message import Request, Sampling, user
from weaverant.protocols import CallContext
from weaverant.testing.server import MockServer


class Load:
    """Keeps `width` calls open on a pool, each one another request."""

    def __init__(self, pool: Pool, width: int, prompt: str = "hello", sampling: Sampling | None = None) -> None:
        self.pool = pool
        self.prompt = prompt
        self.sampling = sampling or Sampling()
        self.done = self.failed = self.count = 0
        self.tasks = [asyncio.create_task(self._work()) for _ in range(width)]

    async def _work(self) -> None:
        while True:
            self.count += 1
            number = self.count
            request = Request("agent", "m", (user(f"{self.prompt} {number}"),), self.sampling, seed=number)
            try:
                await self.pool.generate(request, CallContext(str(number), order=number))
                self.done += 1
            except StepFailed:
                self.failed += 1

    async def stop(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await self.pool.close()


def addresses(servers: list[MockServer], **options: Any) -> list[str]:
    query = "&".join(f"{name}={value}" for name, value in options.items())
    return [f"{server.url}?{query}#m" for server in servers]


async def measured(servers: list[MockServer], seconds: float, what: str) -> list[int]:
    """By how much that count of each server grew in that time."""
    before = [server.stats()[what] for server in servers]
    await asyncio.sleep(seconds)
    return [server.stats()[what] - b for server, b in zip(servers, before, strict=True)]


async def saturation(scale: float) -> list[dict[str, Any]]:
    """Share of the slots' time that is used, from the servers' own busy seconds."""
    kinds = ((16, 0.2), (32, 0.3), (64, 0.4))
    with ExitStack() as stack:
        servers = [stack.enter_context(MockServer(latency=latency, slots=slots, skew=0.8)) for slots, latency in kinds]
        load = Load(Pool(addresses(servers)), 400)
        await asyncio.sleep(60 * scale)
        before, began = [server.stats()["busy"] for server in servers], time.monotonic()
        await asyncio.sleep(30 * scale)
        passed = time.monotonic() - began
        busy = [server.stats()["busy"] - b for server, b in zip(servers, before, strict=True)]
        in_flight = [server.stats()["in_flight"] for server in servers]
        await load.stop()
    used = sum(busy) / (passed * sum(slots for slots, _ in kinds))
    lines = [report.row("saturation: share of three servers' slots in use", used, ">= 0.98", used >= 0.98)]
    for (slots, _), number in zip(kinds, in_flight, strict=True):
        lines.append(report.row(f"saturation: in flight at the server with {slots} slots", number))
    return lines


async def slow_down(scale: float) -> list[dict[str, Any]]:
    """How long until a server of three that becomes ten times slower gets less than a tenth of the new calls; what is
    fair then is a twenty-first."""
    with ExitStack() as stack:
        servers = [stack.enter_context(MockServer(latency=0.1, slots=32)) for _ in range(3)]
        load = Load(Pool(addresses(servers)), 200)
        await asyncio.sleep(30 * scale)
        servers[0].control(latency=1.0)
        began, moved = time.monotonic(), None
        while moved is None and time.monotonic() - began < 30:
            sent = await measured(servers, 1.0, "total")
            if sent[0] <= 0.1 * sum(sent):
                moved = time.monotonic() - began
        rate = sum(await measured(servers, 5, "answered")) / 5
        await load.stop()
    name = "slow-down: seconds until a server ten times slower gets less than a tenth of the calls"
    return [
        report.row(name, moved, "<= 5", moved is not None and moved <= 5),
        report.row("slow-down: calls a second that all three answer afterwards, of 672", rate),
    ]


async def silent_queue(metrics: str, scale: float) -> dict[str, Any]:
    """Requests in flight at a server of 48 slots that queues what is above them and refuses nothing."""
    with MockServer(latency=0.25, slots=48, skew=0.5, metrics=metrics) as server:
        load = Load(Pool(addresses([server])), 600)
        await asyncio.sleep(60 * scale)
        seen: list[int] = []
        for _ in range(20):
            await asyncio.sleep(scale / 2)
            seen.append(server.stats()["in_flight"])
        await load.stop()
    mean = sum(seen) / len(seen) / 48
    name = f"silent queue, {'with metrics' if metrics else 'no metrics'}: in flight over slots"
    return report.row(name, mean, "0.95 to 1.5", 0.95 <= mean <= 1.5)


async def rate_limits(minutes: float) -> list[dict[str, Any]]:
    """A server that enforces 600 requests and 60,000 tokens a minute, each in turn the one that binds."""
    rows: list[dict[str, Any]] = []
    for name, prompt, most, limit in (
        ("requests", "short", 16, 600.0),
        ("tokens", "x" * 1_200, 200, 60_000.0),
    ):
        with MockServer(latency=0.1, rpm=600, tpm=60_000, tokens=most) as server:
            pool = Pool(addresses([server], rpm=600, tpm=60_000))
            load = Load(pool, 64, prompt, Sampling(max_tokens=most))
            await asyncio.sleep(5)
            before = server.stats()
            await asyncio.sleep(60 * minutes)
            after = server.stats()
            await load.stop()
        key = "answered" if name == "requests" else "tokens"
        share = (after[key] - before[key]) / minutes / limit
        total = after["total"] - before["total"]
        refused = (after["statuses"].get("429", 0) - before["statuses"].get("429", 0)) / max(1, total)
        rows.append(report.row(f"rate limit on {name}: share of it used", share, ">= 0.95", share >= 0.95))
        rows.append(report.row(f"rate limit on {name}: share of calls refused", refused, "< 0.01", refused < 0.01))
    return rows


async def measure(scale: float) -> list[dict[str, Any]]:
    """All of it; what is known is printed as it comes, because it takes minutes."""
    rows: list[dict[str, Any]] = []

    def take(found: list[dict[str, Any]]) -> None:
        rows.extend(found)
        for row in found:
            print(f"  {row['name']}: {row['value']}", file=sys.stderr, flush=True)

    take(await saturation(scale))
    take(await slow_down(scale))
    for metrics in ("", "vllm"):
        take([await silent_queue(metrics, scale)])
    take(await rate_limits(max(0.5, scale)))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a third of the time, and rougher")
    rows = asyncio.run(measure(0.3 if parser.parse_args().quick else 1.0))
    lines = [
        [r["name"], f"{r['value']:.3f}", r["goal"] or "", {True: "yes", False: "no"}.get(r["met"], "")] for r in rows
    ]
    report.table(["what", "value", "goal", "met"], lines)
    report.finish("bench-pool", rows)


if __name__ == "__main__":
    main()
