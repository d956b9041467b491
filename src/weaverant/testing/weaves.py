"""Random workflows, and an engine whose answers depend on request and seed alone while its timing does not.

`weave` is a workflow: the row's `seed` draws a program (nested gathers with equal requests in sibling branches,
fallbacks, deadlines, races, recursion, sub-workflows, effects, queues, sleeps), which it interprets. `crash.py` lets
rows live and die. Two lives of a row never have the same timing, so whatever depends on timing and is not recorded
shows itself as a difference between them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from random import Random
from typing import Any

from weaverant.agent import Agent
from weaverant.errors import StepFailed
from weaverant.message import Message, Reply, Request, ToolCall, assistant, digest
from weaverant.protocols import CallContext
from weaverant.workflow import deadline, now, rng, step, workflow

SLOWEST = 0.004
"""Seconds; deadlines and sleeps are of the same order, so that every race goes either way."""

Op = tuple[Any, ...]
"""A piece of a program: its kind, and what that kind takes."""


def mix(*parts: Any) -> str:
    """A short text that depends on all parts."""
    return digest(repr(parts).encode()).hex()[:8]


async def note(label: int, value: str) -> dict[str, Any]:
    """The effect of the programs. Its list is for the workflow to change."""
    return {"label": label, "said": [value]}


async def look_up(word: str) -> str:
    """Look a word up."""
    return mix("meaning", word)


plain_voice = Agent("plain", prompt="{{ question }} {{ about }}")
typed_voice = Agent("typed", prompt="{{ question }} {{ about }}", output=int, repairs=1)
tool_voice = Agent("tooled", prompt="{{ question }} {{ about }}", tools=[look_up])
VOICES = (plain_voice, plain_voice, typed_voice, tool_voice)


# Programs

CALM = ("ask", "same", "gather", "then", "effect", "sleep", "recur", "sub", "bounded", "group", "rng")
FAILING = ("risky", "fallback", "raises", "guarded")
TOUGH = ("tries", "salvage")
"""They meet failures, and what they make of them depends on no timing."""
RACY = ("first", "deadline", "wait_for", "publish", "queue", "background", "completed", "now", "cleanup")


def program(seed: int, *, failing: bool, racy: bool, tough: bool = False) -> Op:
    """The same program for the same arguments, for ever. Calm ones depend on no timing and never fail."""
    kinds = CALM + FAILING * failing + RACY * racy + TOUGH * 2 * tough
    drawing = _Drawing(Random(seed), kinds)
    trunk = drawing.random.choice(("gather", "bounded", "group", *(RACY[:1] + RACY[4:5]) * racy))
    return "then", (trunk, tuple(drawing.op(3) for _ in range(3))), drawing.op(3)


class _Drawing:
    def __init__(self, random: Random, kinds: Sequence[str]) -> None:
        self.random = random
        self.kinds = kinds
        self.left = 24

    def op(self, depth: int) -> Op:
        self.left -= 1
        kind = self.random.choice(self.kinds)
        if depth == 0 or self.left <= 0:
            kind = "risky" if "risky" in self.kinds and self.random.random() < 0.3 else "ask"
        match kind:
            case "ask" | "risky" | "tries":
                return kind, self.random.randrange(4), self.random.randrange(6), self.random.random() < 0.5
            case "same":
                return "gather", (self.op(depth - 1),) * self.random.randint(2, 4)
            case "gather" | "group" | "first" | "queue" | "bounded" | "completed" | "salvage":
                return kind, tuple(self.op(depth - 1) for _ in range(self.random.randint(2, 4)))
            case "then" | "fallback":
                return kind, self.op(depth - 1), self.op(depth - 1)
            case "effect" | "publish" | "raises" | "rng" | "now":
                return kind, self.random.randrange(6)
            case "sleep":
                return kind, self.random.random() * SLOWEST
            case "deadline" | "wait_for":
                return kind, self.random.random() * 3 * SLOWEST, self.op(depth - 1)
            case "recur":
                return kind, self.random.randint(1, 2), self.op(depth - 1)
            case _:
                return kind, self.op(depth - 1)


class Weave:
    """Interprets a program. Each kind of operation is a method from a text to a text."""

    def __init__(self) -> None:
        self.board: list[str] = []
        """What branches published, in the order in which they did."""

    async def run(self, op: Op, value: str) -> str:
        return await getattr(self, f"_{op[0]}")(value, *op[1:])

    async def _ask(self, value: str, voice: int, question: int, about: bool) -> str:
        return mix(await VOICES[voice](question=f"q{question}", about=value if about else ""))

    async def _risky(self, value: str, voice: int, question: int, about: bool) -> str:
        return mix(await VOICES[voice](question=f"q{question}!", about=value if about else ""))

    async def _tries(self, value: str, voice: int, question: int, about: bool) -> str:
        for attempt in range(3):
            try:
                return await self._risky(mix(value, attempt), voice, question, True)
            except StepFailed:
                continue
        return mix(value, "in vain")

    async def _salvage(self, value: str, ops: Sequence[Op]) -> str:
        answers = await asyncio.gather(*(self.run(op, value) for op in ops), return_exceptions=True)
        return mix([answer if isinstance(answer, str) else "failed" for answer in answers])

    async def _gather(self, value: str, ops: Sequence[Op]) -> str:
        return mix(await asyncio.gather(*(self.run(op, value) for op in ops)))

    async def _group(self, value: str, ops: Sequence[Op]) -> str:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self.run(op, value)) for op in ops]
        return mix([task.result() for task in tasks])

    async def _bounded(self, value: str, ops: Sequence[Op]) -> str:
        places = asyncio.Semaphore(2)

        async def one(op: Op) -> str:
            async with places:
                return await self.run(op, value)

        return mix(await asyncio.gather(*map(one, ops)))

    async def _then(self, value: str, first: Op, second: Op) -> str:
        return await self.run(second, await self.run(first, value))

    async def _effect(self, value: str, label: int) -> str:
        noted = await step(note, label, value)
        noted["said"].append("changed by the workflow")
        return mix(noted)

    async def _sleep(self, value: str, seconds: float) -> str:
        await asyncio.sleep(seconds)
        return value

    async def _recur(self, value: str, depth: int, op: Op) -> str:
        value = await self.run(op, value)
        return await self._recur(value, depth - 1, op) if depth else value

    async def _sub(self, value: str, op: Op) -> str:
        return await part({"op": op, "value": value, "weave": self})

    async def _rng(self, value: str, label: int) -> str:
        return mix(value, rng(str(label)).random())

    async def _now(self, value: str, label: int) -> str:
        return mix(value, label, now().timestamp())

    async def _raises(self, value: str, label: int) -> str:
        if int(value[:1] or "0", 16) % 3 == 0:
            raise ValueError(f"{label} {value}")
        return value

    async def _guarded(self, value: str, op: Op) -> str:
        try:
            return await self.run(op, value)
        except* (ValueError, StepFailed) as errors:
            value = mix([str(error) for error in errors.exceptions])
        return value

    async def _fallback(self, value: str, op: Op, other: Op) -> str:
        try:
            return await self.run(op, value)
        except StepFailed as failure:
            return await self.run(other, mix(failure.kind))

    async def _first(self, value: str, ops: Sequence[Op]) -> str:
        tasks = {asyncio.create_task(self.run(op, value)) for op in ops}
        done, rest = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in rest:
            task.cancel()
        return mix([task.exception() is None and task.result() for task in done])

    async def _deadline(self, value: str, seconds: float, op: Op) -> str:
        try:
            async with deadline(seconds):
                return await self.run(op, value)
        except TimeoutError:
            return mix(value, "late")

    async def _wait_for(self, value: str, seconds: float, op: Op) -> str:
        try:
            return await asyncio.wait_for(self.run(op, value), seconds)
        except TimeoutError:
            return mix(value, "too late")

    async def _publish(self, value: str, label: int) -> str:
        self.board.append(value)
        noted = await step(note, label, mix(self.board))
        self.board += noted["said"]
        return mix(self.board)

    async def _queue(self, value: str, ops: Sequence[Op]) -> str:
        waiting: asyncio.Queue[Op] = asyncio.Queue()
        got: list[str] = []
        for op in ops:
            waiting.put_nowait(op)

        async def work() -> None:
            while not waiting.empty():
                got.append(await self.run(waiting.get_nowait(), value))

        await asyncio.gather(work(), work())
        return mix(got)

    async def _completed(self, value: str, ops: Sequence[Op]) -> str:
        tasks = [asyncio.create_task(self.run(op, value)) for op in ops]
        return mix([await first for first in asyncio.as_completed(tasks)])

    async def _background(self, value: str, op: Op) -> str:
        self._kept = asyncio.create_task(self.run(op, value))
        return value

    async def _cleanup(self, value: str, op: Op) -> str:
        try:
            return await self.run(op, value)
        except asyncio.CancelledError:
            self.board.append("cancelled")
            await step(note, 7, value)
            raise
        finally:
            self.board.append("left")


@workflow
async def part(row: Any) -> str:
    return await row["weave"].run(row["op"], row["value"])


@workflow
async def weave(row: dict[str, Any]) -> dict[str, Any]:
    """The workflow of the row's seed: {"seed": 7, "failing": true, "racy": false}."""
    loom = Weave()
    value = await loom.run(program(row["seed"], failing=row["failing"], racy=row["racy"]), "0")
    return {"value": value, "board": loom.board}


def row_of(seed: int) -> dict[str, Any]:
    """A third of the rows is calm, a third may fail, a third may also race."""
    return {"seed": seed, "failing": seed % 3 > 0, "racy": seed % 3 == 2}


class Moody:
    """An engine: what it says is a function of (request, seed), how long it takes is drawn anew in each `life`."""

    identity = "moody"

    def __init__(self, life: int, slowest: float = SLOWEST) -> None:
        self.random = Random(life)
        self._slowest = slowest
        self.calls = 0

    async def generate(self, request: Request, ctx: CallContext) -> Reply:
        self.calls += 1
        await asyncio.sleep(self.random.random() * self._slowest)
        return Reply(self.say(request), model=self.identity)

    def say(self, request: Request) -> Message:
        said = digest(repr((request.messages, request.seed)).encode())
        if "!" in request.messages[0].text and said[0] % 4 == 0:
            raise StepFailed("server", f"moody {said[1] % 3}", {"seen": ("by", said[1])})
        if request.tools and len(request.messages) < 4 and said[0] % 2:
            calls = tuple(ToolCall(f"c{n}", "look_up", f'{{"word": "w{said[n] % 3}"}}') for n in range(2))
            return Message("assistant", "", calls)
        if request.output is not None:
            mended = len(request.messages) > 1 and "!" not in request.messages[0].text
            return assistant(str(said[1]) if said[2] % 3 or mended else "no number")
        return assistant(f"says {said.hex()}")

    async def close(self) -> None:
        """Nothing is held."""
