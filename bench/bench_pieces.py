"""What the pieces of a hop cost, each beside what it was chosen over: prompts, the journal, looks at a connection.

Microseconds of CPU, the best of five rounds. Events have 1.2 kB, the prompt two variables.
"""

from __future__ import annotations

import asyncio
import socket
import sqlite3
import tempfile
import time
from collections.abc import Callable
from contextvars import Context
from pathlib import Path

import msgspec
import report
from jinja2 import StrictUndefined
from jinja2.sandbox import ImmutableSandboxedEnvironment

from weaverant.engines.http.client import tcp
from weaverant.events import StepEnded
from weaverant.journal import SegmentJournal
from weaverant.prompt import Template

ROUNDS = 5
PROMPT = "Question: {{ question }}\nAnswer: {{ answer }}\nIs it right?"
VALUES = {"question": "x" * 200, "answer": "y" * 200}
EVENT = StepEnded(
    "0.17.0", "0.1", b"f" * 16, 0, "model", "solver", "s" * 16, {"text": "x" * 400}, "reply", "y" * 680, 1.0, 2.0, 3.0
)
GROUP, GROUPS = 1_024, 20


def cost(piece: Callable[[], object], times: int, clock: Callable[[], float] = time.process_time) -> float:
    """Microseconds of one call."""
    seconds: list[float] = []
    for _ in range(ROUNDS):
        began = clock()
        for _ in range(times):
            piece()
        seconds.append(clock() - began)
    return 1e6 * min(seconds) / times


def prompts() -> dict[str, float]:
    jinja = ImmutableSandboxedEnvironment(undefined=StrictUndefined).from_string(PROMPT)
    ours = Template(PROMPT, "the prompt")
    assert ours.render(VALUES) == jinja.render(VALUES)
    return {
        "a prompt rendered": cost(lambda: ours.render(VALUES), 20_000),
        "a prompt rendered by Jinja as it comes": cost(lambda: jinja.render(VALUES), 20_000),
    }


async def tasks() -> dict[str, float]:
    """A task that ends at once: begun by the event loop, as `asyncio.Task` does it, and begun where it is made, as
    Python 3.12's eager tasks are (here the loop's `call_soon` is stood in for while the task is made)."""
    loop = asyncio.get_running_loop()

    async def nothing() -> None: ...

    def at_once(callback: Callable[[], None], *, context: Context) -> None:
        context.run(callback)

    def begin_at_once() -> None:
        loop.__dict__["call_soon"] = at_once
        asyncio.Task(nothing(), loop=loop)
        del loop.__dict__["call_soon"]

    found: dict[str, float] = {}
    pieces = {"begun by the loop": lambda: asyncio.Task(nothing(), loop=loop), "begun at once": begin_at_once}
    for name, piece in pieces.items():
        seconds: list[float] = []
        for _ in range(ROUNDS):
            began = time.process_time()
            for _ in range(200):
                over = loop.create_future()
                loop.call_soon(lambda over=over, piece=piece: ([piece() for _ in range(100)], over.set_result(None)))
                await over
                await asyncio.sleep(0)
            seconds.append(time.process_time() - began)
        found[f"a task that ends at once, {name}"] = 1e6 * min(seconds) / 20_000
    return found


async def journal(folder: Path) -> dict[str, float]:
    made = SegmentJournal(folder / "run")
    appended = cost(lambda: made.append(EVENT), 4_000, time.thread_time)  # of the loop's thread, not of the writing one
    await made.flush()
    seconds: list[float] = []
    for _ in range(ROUNDS):
        began = time.process_time()
        for _ in range(200):
            made.append(EVENT)
            await made.flush()
        seconds.append(time.process_time() - began)
    await made.close()
    return {"an event appended": appended, "a group of one event, written and durable": 1e6 * min(seconds) / 200}


async def stores(folder: Path) -> dict[str, float]:
    """Microseconds of wall time for an event, in durable groups of 1,024."""
    made = SegmentJournal(folder / "groups")
    began = time.perf_counter()
    for _ in range(GROUPS):
        for _ in range(GROUP):
            made.append(EVENT)
        await made.flush()
    ours = time.perf_counter() - began
    await made.close()
    table = sqlite3.connect(folder / "groups.db")
    table.execute("pragma journal_mode = wal")
    table.execute("pragma synchronous = full")
    table.execute("create table events (number integer primary key, task text, event blob)")
    encode = msgspec.msgpack.Encoder().encode
    began = time.perf_counter()
    for _ in range(GROUPS):
        with table:
            rows = ((EVENT.task, encode(EVENT)) for _ in range(GROUP))
            table.executemany("insert into events (task, event) values (?, ?)", rows)
    theirs = time.perf_counter() - began
    table.close()
    each = 1e6 / (GROUP * GROUPS)
    return {
        "an event in durable groups of 1,024 (wall)": ours * each,
        "the same in SQLite (wall)": theirs * each,
    }


def connections() -> dict[str, float]:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        watch = tcp.Watch(client)
        return {
            "a look whether a connection is fit": cost(watch.stirs, 20_000),
            "the kernel asked for a connection's state": cost(lambda: tcp.state(client), 20_000),
        }


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        measured = prompts() | connections()
        measured |= asyncio.run(tasks()) | asyncio.run(journal(folder)) | asyncio.run(stores(folder))
    report.table(["piece", "us"], [[name, f"{us:.2f}"] for name, us in measured.items()])
    report.finish("bench-pieces", [report.row(f"{name}: us", us) for name, us in measured.items()])


if __name__ == "__main__":
    main()
