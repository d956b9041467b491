"""A lean runtime: what a complete hop costs at least, where `least.py` has what a durable one does.

What it has of the real one is what no run that can be resumed and accounted for does without, each in the shortest
form known to us: a private loop for each workflow, which answers enter in the journal's order; steps keyed by branch,
fingerprint and occurrence, and looked up among those recorded; agents with templates and checked output; a seed for
each step; an engine's reply checked before it is believed; texts stored once; an index of the journal; counts by agent;
slots that give their turn to the oldest row; acknowledgements in slices.

A yardstick, never a way to run anything: what goes wrong raises. It has no failures, retries, time-outs, cancellation,
budget, limits, progress, fuse, stages, sources, tools, repairs, reuse or shutdown.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from asyncio.events import _get_running_loop, _set_running_loop
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from contextvars import Context, copy_context
from functools import partial
from heapq import heappop, heappush
from pathlib import Path
from typing import Any
from zlib import crc32

import least
import workloads
from msgspec import Struct
from msgspec.msgpack import Ext

from weaverant import Message, Reply, Request
from weaverant.events import StepEnded, TaskEnded, TaskStarted
from weaverant.message import Usage, digest, user
from weaverant.prompt import Template
from weaverant.protocols import CallContext, Engine

Key = tuple[str, bytes, int]


class Agent:
    """A role with its template and its form, compiled."""

    def __init__(self, name: str, prompt: str | None = None, output: Any = None) -> None:
        self.name = name
        self.head = name.encode()
        self.template = None if prompt is None else Template(prompt, name)
        self.parse = None if output is None else output.model_validate_json


class Ask(Struct, eq=False):
    """A step on its way."""

    key: Key
    by: Agent
    messages: tuple[Message, ...]
    input: Any
    future: asyncio.Future[Reply] | None
    started: float = 0.0
    work: asyncio.Task[None] | None = None


class Branch(asyncio.Task[Any]):
    """A task of a workflow, which knows where in it it is."""

    __slots__ = ("counts", "path")

    def __init__(self, work: Coroutine[Any, Any, Any], loop: Loop, path: str) -> None:
        self.path = path
        self.counts: dict[bytes, int] = {}
        super().__init__(work, loop=loop)


class Loop(asyncio.AbstractEventLoop):
    """A workflow's own."""

    def __init__(self, launch: Callable[[Ask], None]) -> None:
        self._launch = launch
        self._ready: list[tuple[Callable[..., None], tuple[Any, ...], Context]] = []
        self._fresh: list[Ask] = []
        self._recorded: dict[Key, Reply] = {}

    def call_soon(self, callback: Callable[..., None], *args: Any, context: Context | None = None) -> None:
        self._ready.append((callback, args, context or copy_context()))

    def get_debug(self) -> bool:
        return False

    def go_on(self) -> None:
        outer = _get_running_loop()
        _set_running_loop(self)
        try:
            while self._ready:
                ready, self._ready = self._ready, []
                for callback, args, context in ready:
                    context.run(callback, *args)
        finally:
            _set_running_loop(outer)
        fresh, self._fresh = self._fresh, []
        for ask in fresh:
            self._launch(ask)

    async def answer(self, by: Agent, messages: tuple[Message, ...], asked: Any) -> Reply:
        branch: Any = asyncio.current_task(self)
        fingerprint = digest(by.head + b"".join([message.digest for message in messages]))
        occurrence = branch.counts.get(fingerprint, 0)
        branch.counts[fingerprint] = occurrence + 1
        key = (branch.path, fingerprint, occurrence)
        if self._recorded and key in self._recorded:
            return self._recorded.pop(key)
        future: asyncio.Future[Reply] = asyncio.Future(loop=self)
        self._fresh.append(Ask(key, by, messages, asked, future))
        return await future


async def say(by: Agent, history: Sequence[Message]) -> Message:
    """A reply to what was said so far."""
    loop: Any = _get_running_loop()
    messages = tuple(history)
    for message in messages:
        if type(message) is not Message:
            raise TypeError
    return (await loop.answer(by, messages, messages)).message


async def ask(by: Agent, **variables: Any) -> Any:
    """A text or an object, in answer to the agent's prompt."""
    loop: Any = _get_running_loop()
    assert by.template is not None
    reply = await loop.answer(by, (Message("user", by.template.render(variables)),), variables)
    return reply.message.content if by.parse is None else by.parse(reply.message.content)


class Run:
    """Rows in flight, and what is counted of them. Without a `log` what ends is seen at once."""

    def __init__(self, engine: Engine, in_flight: int, log: least.Log | None) -> None:
        self.engine = engine
        self.log = log
        self.outer = asyncio.get_running_loop()
        self.slots = in_flight
        self.running: dict[Ask, Row] = {}
        self.waiting: list[tuple[int, int, Row, Ask]] = []
        self.counts: dict[str, list[tuple[float, Usage]]] = {}
        self.events: list[Any] = []
        self.index: dict[str, int] = {}
        self.hops = 0

    def submit(self, row: Row, ask: Ask) -> None:
        if len(self.running) < self.slots:
            self.running[ask] = row
            ask.started = time.monotonic() - row.zero
            ask.work = asyncio.Task(row.work(ask), loop=self.outer)
        else:
            heappush(self.waiting, (row.order, self.hops, row, ask))

    def write(self, event: Any, durable: Callable[[], None]) -> None:
        if self.log is None:
            self.outer.call_soon(durable)
            return
        self.log.append(event, durable)
        self.events.append(event)
        if len(self.events) == 512:
            for noted in self.events:
                self.index[noted.task] = self.index.get(noted.task, 0) + 1
            self.events.clear()

    def ended(self, ask: Ask, name: str, seconds: float, usage: Usage) -> None:
        self.hops += 1
        counts = self.counts.setdefault(name, [])
        counts.append((seconds, usage))
        if len(counts) == 512:
            counts.clear()  # added up by the hundred: next to nothing for each
        del self.running[ask]
        if self.waiting:
            _, _, row, following = heappop(self.waiting)
            self.submit(row, following)


class Row:
    """One workflow in flight."""

    __slots__ = ("_ended", "_key", "_loop", "_main", "_numbers", "_run", "order", "zero")

    def __init__(
        self, run: Run, order: int, flow: Coroutine[Any, Any, Any], row: Any, ended: Callable[[], None]
    ) -> None:
        self.order = order
        self.zero = time.monotonic()
        self._key = str(order)
        self._run = run
        self._ended = ended
        self._numbers: dict[str, int] = {}
        self._loop = Loop(partial(run.submit, self))
        run.write(TaskStarted(self._key, 0, time.time(), b"", self._pack(row)), _nothing)
        self._main = Branch(flow, self._loop, "")
        self._loop.go_on()

    async def work(self, ask: Ask) -> None:
        path, fingerprint, occurrence = ask.key
        seed = crc32(f"|{self._key}|{path}|{occurrence}|0".encode(), crc32(fingerprint)) & 0x7FFF_FFFF
        request = Request(ask.by.name, "default", ask.messages, seed=seed)
        reply = await self._run.engine.generate(request, CallContext(self._key, path, occurrence, self.order, ""))
        clock, usage = time.monotonic() - self.zero, _checked(reply)
        event = StepEnded(
            self._key, path, fingerprint, occurrence, "model", ask.by.name, "", self._pack(ask.input), "reply",
            self._pack(reply.message.content), ask.started, clock, time.time(), usage, reply.model, seed,
        )  # fmt: skip
        self._run.write(event, partial(self._show, ask, reply))
        self._run.ended(ask, ask.by.name, clock - ask.started, usage)

    def _show(self, ask: Ask, reply: Reply) -> None:
        future, ask.future = ask.future, None
        assert future is not None
        future.set_result(reply)
        self._loop.go_on()
        if self._main.done():
            value = self._pack(self._main.result())
            end = TaskEnded(self._key, 0, "done", "", "", value, time.monotonic() - self.zero, time.time())
            self._run.write(end, self._ended)
            del self._loop

    def _pack(self, value: Any) -> Any:
        """Plain data, each long text of it once."""
        if type(value) is str:
            if len(value) < 24:
                return value
            count = len(self._numbers)
            number = self._numbers.setdefault(value, count)
            return value if number == count else _REFS[number]
        if type(value) is dict:
            return {key: self._pack(item) for key, item in value.items()}
        if type(value) is Message:
            return [value.role, self._pack(value.content)]
        if type(value) is list or type(value) is tuple:
            return [self._pack(item) for item in value]
        return value


_REFS = tuple(Ext(1, bytes((number,))) for number in range(256))


def _nothing() -> None: ...


def _checked(reply: Reply) -> Usage:
    """The reply's usage, if a journal that holds it can be read again."""
    message, usage = reply.message, reply.usage
    if (
        type(reply) is not Reply
        or type(message) is not Message
        or type(message.content) is not str
        or message.tool_calls
        or type(usage) is not Usage
        or type(usage.cost) is not float
        or type(usage.prompt_tokens) is not int
        or type(usage.completion_tokens) is not int
        or not 0.0 <= usage.cost <= 1e9
        or not 0 <= usage.prompt_tokens | usage.completion_tokens < 1 << 53
    ):
        raise TypeError
    return usage


_teacher, _extractor, _matcher, _student = (Agent(name) for name in ("teacher", "extractor", "matcher", "student"))
_left, _right = Agent("left"), Agent("right")
_prompt = workloads.writer.prompt
assert isinstance(_prompt, str)
_writer, _critic = (Agent(name, _prompt, workloads.Said) for name in ("writer", "critic"))


async def w1(row: dict[str, str]) -> Any:
    """`workloads.w1`."""
    said, turns = user(row["question"]), []
    for round_ in range(1, workloads.ROUNDS + 1):
        said = await say(_teacher if round_ % 2 else _student, (said,))
        turns.append(said.content)
        found = await say(_extractor, (said,))
        if (await say(_matcher, (found,) * min(round_, 3))).content == "yes":
            break
    return {"question": row["question"], "turns": turns}


async def w2(row: dict[str, str]) -> Any:
    """`workloads.w2`."""
    said, turns = user(row["question"]), []
    for hop in range(workloads.RING_HOPS):
        said = await say(_right if hop % 2 else _left, (said,))
        turns.append(said.content)
    return {"question": row["question"], "turns": turns}


async def typed(row: dict[str, str]) -> Any:
    """`workloads.typed`."""
    said, turns = "", []
    for hop in range(workloads.RING_HOPS):
        said = (await ask(_critic if hop % 2 else _writer, question=row["question"], said=said)).text
        turns.append(said)
    return {"question": row["question"], "turns": turns}


_talker = Agent("talker", "{{ text }} {{ turn }}")


async def talk(row: dict[str, Any]) -> Any:
    """`bench_client.talk`."""
    return [len(await ask(_talker, text=row["text"], turn=turn)) for turn in range(row["turns"])]


class SlicedLog(least.Log):
    """A log whose acknowledgements hold the loop for 2 ms at a time."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._due: deque[Callable[[], None]] = deque()

    def _tell(self, acks: list[Callable[[], None]]) -> None:
        idle = not self._due
        self._due.extend(acks)
        if idle:
            self._slice()

    def _slice(self) -> None:
        due, until, told = self._due, time.monotonic() + 0.002, 0
        while due:
            due.popleft()()
            told += 1
            if told % 16 == 0 and due and time.monotonic() > until:
                self._loop.call_soon(self._slice)
                return


async def _weave(
    flow: Any, rows: Sequence[Any], engine: Engine, in_flight: int, path: Path | None
) -> tuple[int, float]:
    """Hops, CPU seconds."""
    log, left, over = None if path is None else SlicedLog(path), len(rows), asyncio.Event()
    run, numbered = Run(engine, in_flight, log), enumerate(rows)

    def start() -> None:
        for order, row in numbered:
            Row(run, order, flow(row), row, end)
            return

    def end() -> None:
        nonlocal left
        left -= 1
        if not left:
            over.set()
        run.outer.call_soon(start)

    cpu = time.process_time()
    for _ in range(in_flight):
        start()
    await over.wait()
    cpu = time.process_time() - cpu
    await engine.close()
    if log is not None:
        log.close()
    return run.hops, cpu


def weave(
    flow: Any, rows: Sequence[Any], in_flight: int, journal: bool = True, engine: Engine | None = None
) -> tuple[int, float, float]:
    """Hops, CPU seconds, wall seconds."""
    wall = time.perf_counter()
    with least.rare_collections(), tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log" if journal else None
        hops, cpu = asyncio.run(_weave(flow, rows, engine or workloads.Dummy(), in_flight, path))
    return hops, cpu, time.perf_counter() - wall
