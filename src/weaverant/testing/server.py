"""An OpenAI-compatible server for tests: a real process, real sockets, exact counts, faults on demand.

`python -m weaverant.testing.server` prints its port as its first line. Replies are a function of the request's body
(its seed included). GET /stats tells what was asked so far; POST /reset forgets it. A scenario (see `scenarios.py`)
is chosen by the path (/scenario/NAME/v1), the header X-Scenario, the model's name, or --scenario, in this order.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import weakref
from collections import Counter
from types import TracebackType
from typing import Any
from urllib.request import Request as Get
from urllib.request import urlopen

import msgspec
from aiohttp import web

from weaverant.message import digest
from weaverant.testing.scenarios import SCENARIOS, Call, find

STARTUP_S = 20.0


class Server:
    """Counts and answers. `latency` is in seconds; `slots` calls are served at once, the others queue."""

    def __init__(self, scenario: str = "ok", latency: float = 0.0, slots: int = 100_000) -> None:
        find(scenario)
        self._scenario = scenario
        self._latency = latency
        self._slots = asyncio.Semaphore(slots)
        self._connections: weakref.WeakSet[Any] = weakref.WeakSet()
        self._forget()

    def _forget(self) -> None:
        self._counts = Counter({"total": 0, "answered": 0, "abandoned": 0, "connections": 0, "in_flight": 0})
        self._in_flight_max = 0
        self._models: Counter[str] = Counter()
        self._bodies: Counter[bytes] = Counter()

    def app(self) -> web.Application:
        app = web.Application(client_max_size=1 << 30)
        for prefix in ("/v1", "/scenario/{scenario}/v1"):
            app.router.add_post(prefix + "/chat/completions", self.complete)
            app.router.add_get(prefix + "/models", self.models)
        app.router.add_get("/stats", self.stats)
        app.router.add_post("/reset", self.reset)
        return app

    async def complete(self, request: web.Request) -> web.StreamResponse:
        raw = await request.read()
        body: dict[str, Any] = msgspec.json.decode(raw)
        model = str(body.get("model", ""))
        key = digest(raw)
        if request.transport not in self._connections:
            self._connections.add(request.transport)
            self._counts["connections"] += 1
        self._bodies[key] += 1
        self._models[model] += 1
        self._counts["total"] += 1
        self._counts["in_flight"] += 1
        self._in_flight_max = max(self._in_flight_max, self._counts["in_flight"])
        try:
            async with self._slots:
                if self._latency:
                    await asyncio.sleep(self._latency)
                answer = find(self._named(request, model))
                response = await answer(Call(request, raw, body, key, self._bodies[key]))
            self._counts["answered"] += response.status == 200
            return response
        except asyncio.CancelledError:
            self._counts["abandoned"] += 1
            raise
        except ConnectionError:  # the client left while a stream was being written to it
            self._counts["abandoned"] += 1
            return web.Response()
        finally:
            self._counts["in_flight"] -= 1

    async def models(self, request: web.Request) -> web.Response:
        scenario = request.match_info.get("scenario", "")
        names = {"no-models": [], "two-models": ["mock", "other"]}.get(scenario, ["mock"])
        return web.json_response({"object": "list", "data": [{"id": name} for name in names]})

    async def stats(self, request: web.Request) -> web.Response:
        return web.json_response(
            {
                **self._counts,
                "in_flight_max": self._in_flight_max,
                "distinct": len(self._bodies),
                "most_repeated": max(self._bodies.values(), default=0),
                "models": self._models,
            }
        )

    async def reset(self, request: web.Request) -> web.Response:
        in_flight = self._counts["in_flight"]
        self._forget()
        self._counts["in_flight"] = in_flight
        return web.json_response({})

    def _named(self, request: web.Request, model: str) -> str:
        chosen = request.match_info.get("scenario") or request.headers.get("X-Scenario")
        return chosen or (model if model.partition("*")[0] in SCENARIOS else self._scenario)


class MockServer:
    """`with MockServer() as server:` runs the server as a process of its own on a free port of 127.0.0.1.

    It ends with the block, and with the process that started it, even if that one is killed.
    """

    def __init__(self, scenario: str = "ok", *, latency: float = 0.0, slots: int = 100_000, port: int = 0) -> None:
        options = f"--scenario={scenario} --latency={latency} --slots={slots} --port={port} --with-parent".split()
        self._command = [sys.executable, "-m", "weaverant.testing.server", *options]
        self._process: subprocess.Popen[str] | None = None
        self.port = port

    def __enter__(self) -> MockServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start, or start again on the same port."""
        process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            process.communicate()
            raise RuntimeError(f"the mock server ended with {process.returncode}; its error is above")
        self._process = process
        self.port = int(line)
        self._command[-2] = f"--port={self.port}"

    def stop(self) -> None:
        """Kill the process: connections break as they do when a server dies."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    @property
    def root(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """The base URL: what goes before `#model`."""
        return f"{self.root}/v1"

    def scenario(self, name: str) -> str:
        """The base URL under which every model behaves as `name` says."""
        return f"{self.root}/scenario/{name}/v1"

    def stats(self) -> dict[str, Any]:
        """`total`, `answered` (status 200 sent whole), `abandoned` (by the client), `distinct` bodies,
        `most_repeated` (how often one body came), `in_flight`, `in_flight_max`, `connections`, `models`."""
        with urlopen(f"{self.root}/stats", timeout=10) as response:
            return json.load(response)

    def reset(self) -> None:
        with urlopen(Get(f"{self.root}/reset", method="POST"), timeout=10):
            pass


async def serve(server: Server, port: int, with_parent: bool) -> None:
    """Serve until cancelled, or until standard input closes."""
    runner = web.AppRunner(server.app(), access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port, backlog=8192, reuse_address=True)
    await site.start()
    print(runner.addresses[0][1], flush=True)
    closed = asyncio.Event()
    if with_parent:
        asyncio.get_running_loop().add_reader(sys.stdin.fileno(), lambda: sys.stdin.buffer.read(1) or closed.set())
    await closed.wait()
    await runner.cleanup()


def main() -> None:
    options = argparse.ArgumentParser(prog="python -m weaverant.testing.server", description=__doc__)
    options.add_argument("--port", type=int, default=0, help="0 takes a free one")
    options.add_argument("--scenario", default="ok", help=f"one of {', '.join(SCENARIOS)}; NAME*2 only twice a body")
    options.add_argument("--latency", type=float, default=0.0, help="seconds a reply takes")
    options.add_argument("--slots", type=int, default=100_000, help="calls served at once")
    options.add_argument("--with-parent", action="store_true", help="end when standard input closes")
    found = options.parse_args()
    try:
        asyncio.run(serve(Server(found.scenario, found.latency, found.slots), found.port, found.with_parent))
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()
