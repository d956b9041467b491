"""A call that waits for a line of a batch, and the batch it waits for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable

import msgspec

from weaverant.engines.http.attempt import Trouble
from weaverant.engines.http.batch.api import BatchState, seconds_since
from weaverant.engines.http.batch.files import Line
from weaverant.engines.http.chat.completion import told
from weaverant.errors import StepFailed
from weaverant.message import Reply, Request, Usage, digest
from weaverant.protocols import CallContext


def custom_id(request: Request, body: bytes, ctx: CallContext) -> str:
    """The same for the same call in every session of its run, and no other call's: 32 hexadecimal digits.

    The seed tells apart what the body may not: some providers take no seed, so that it is not in the body.
    """
    where = (ctx.run, ctx.task, ctx.path, ctx.occurrence, request.seed, digest(body))
    return digest(msgspec.msgpack.encode(where)).hex()


class Call:
    """Waits for the line with its identity, through as many batches as it takes. `size` is that of its body in bytes;
    `worst` is the most that one line costs, in dollars."""

    def __init__(self, identity: str, request: Request, size: int, ctx: CallContext, worst: float) -> None:
        self.identity = identity
        self.request = request
        self.size = size
        self.tries = 0
        """Batches that the call was put into."""
        self.lost = 0
        """Of these the ones that may have worked on it, and bill it, although no answer came."""
        self.waiters = 0
        self.entry = asyncio.Lock()
        self.placed = False
        """Whether it has found its line, or waits to become one."""
        self.batch: Asked | None = None
        self.answer: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._worst = worst
        self._purse = ctx.purse
        self._turn = ctx.turn
        self.permit = ctx.permit

    def waits(self, waiting: bool) -> None:
        """Whether it waits to become a line for the first time."""
        if self._turn is not None:
            self._turn.waiting = waiting and not self.tries

    async def afford(self) -> None:
        """Set aside what its lines may cost. A resumed run sets it aside for the same call, and it counts once."""
        if self._purse is not None:
            await self._purse.afford(self._worst * (1 + self.lost), claim=self.identity)

    def settle(self, reply: Reply, cost: float) -> None:
        if not self.answer.done():
            unsure = self._worst * self.lost + (0.0 if told(reply) else max(0.0, self._worst - cost))
            used = msgspec.structs.replace(reply.usage, cost=cost + unsure, requests=self.tries, unsure=unsure)
            self.answer.set_result(msgspec.structs.replace(reply, usage=used))

    def fail(self, trouble: Trouble) -> None:
        failure = trouble.failure
        text = failure.text + (f"; tried in {self.tries} batches" if self.tries > 1 else "")
        unsure = self._worst * (self.lost + trouble.billed)
        detail = {"requests": self.tries, "status": trouble.status}
        usage = Usage(requests=self.tries, cost=unsure, unsure=unsure)
        self.broken(StepFailed(failure.kind, text, detail, usage))

    def broken(self, error: BaseException) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)


class Asked:
    """A batch and the calls that wait for it. One with a `state` at first is adopted: another session asked it."""

    def __init__(self, number: int, calls: Iterable[Call] = (), state: BatchState | None = None) -> None:
        self.number = number
        self.calls = {call.identity: call for call in calls}
        for call in self.calls.values():
            call.batch = self
        self.state = state
        self.order: list[str] = []
        """The identities of the lines as they were sent; empty where it is adopted."""
        self.lines: dict[str, Line] = {}
        """Answers to calls that have not come yet, or not again."""
        self.begun = False
        self.ended = False
        self._began = time.monotonic() - (seconds_since(state.created_at) if state is not None else 0.0)

    @property
    def name(self) -> str:
        return f"the batch {self.state.id!r}" if self.state is not None else "a batch"

    @property
    def age(self) -> float:
        """Seconds since the server was asked."""
        return time.monotonic() - self._began

    @property
    def going(self) -> bool:
        return self.begun and not self.ended

    @property
    def accepted(self) -> bool:
        """Whether the server has taken it and worked on it."""
        return self.state is not None and self.state.outcome not in ("", "failed")

    def add(self, call: Call) -> None:
        call.batch = self
        self.calls[call.identity] = call

    def take(self) -> list[Call]:
        """All calls that still wait, which then wait no more."""
        calls = list(self.calls.values())
        self.calls = {}
        for call in calls:
            call.batch = None
        return calls

    def progress(self, of: int) -> str:
        counts = self.state.request_counts if self.state is not None else None
        done = ((counts.completed or 0) + (counts.failed or 0)) if counts is not None else 0
        total = (counts.total if counts is not None else 0) or len(self.order) or len(self.calls)
        asked = f"asked {_span(self.age)} ago" if self.state is not None else "being sent"
        return f"batch {self.number} of {of}, {done:,} of {total:,} lines done, {asked}"


def _span(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6_000 else f"{seconds / 3_600:.1f} h"
