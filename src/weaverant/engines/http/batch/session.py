"""The batches of one run at one server: gathers calls, sends them, waits, hands out what comes back.

The server's list of batches is the only record. A batch carries the run's digest, each line the identity of its call;
so whoever resumes the run finds every batch, even one whose answer nobody lived to see, and waits for it.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Coroutine, Iterable
from typing import Any

from weaverant.engines.http.attempt import Trouble
from weaverant.engines.http.batch.api import BatchApi, BatchState, Refused
from weaverant.engines.http.batch.calls import Asked, Call
from weaverant.engines.http.batch.files import Line, encode_line, multipart, read_answers
from weaverant.engines.http.batch.past import Mark, look_back
from weaverant.engines.http.batch.waiting import OPENAI, Limits, Waiting
from weaverant.engines.http.endpoint import Endpoint
from weaverant.errors import StepFailed
from weaverant.message import Reply, Usage, digest

SLICE = 100
"""Lines made or read at a stretch, between which live calls get their turn."""

FIRST_POLL_S, LAST_POLL_S = 1.0, 60.0

CROWDED = "token_limit_exceeded"
"""How OpenAI says that an account's limit of enqueued tokens is reached."""

GONE = (404, 410)

NOTHING = Usage(requests=0)
"""What a call used whose line was never sent."""

_ENDS = {
    "completed": "completed without a line for this call",
    "expired": "expired before it came to this call",
    "cancelled": "was cancelled before it came to this call",
}

_living: set[str] = set()
"""The sessions in this process: what they have asked is not to be adopted."""


class RunBatches:
    """Belongs to one event loop. `run` is empty where nothing tells the run from others; then nothing is adopted.
    `share` is what a batch costs of the price."""

    def __init__(self, endpoint: Endpoint, run: str, share: float, limits: Limits = OPENAI) -> None:
        session = secrets.token_hex(8)
        self._mark = Mark(digest(run.encode()).hex() if run else session, session, endpoint.model)
        self._resumable = bool(run)
        self._endpoint = endpoint
        self._api = BatchApi(endpoint)
        self._options = endpoint.address.options
        self._share = share
        self._calls: dict[str, Call] = {}
        self._waiting = Waiting(self._options.batch, self._send, self._any_going, limits)
        self._found: dict[str, Asked] = {}
        """By identity: batches with lines for calls that nobody waits for now."""
        self._batches: list[Asked] = []
        self._past: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        _living.add(session)

    async def reply(self, call: Call) -> Reply:
        """The line's reply, or `StepFailed`. Two equal calls at a time wait for the same line."""
        call = self._calls.setdefault(call.identity, call)
        call.waiters += 1
        try:
            async with call.entry:  # should the first not come through, the next tries
                if not call.placed:
                    await call.afford()
                    await self._know_the_past()
                    self._place(call)
                    call.placed = True
            return await asyncio.shield(call.answer)
        finally:
            call.waiters -= 1
            if not call.waiters:
                self._forget(call)

    def status(self) -> list[str]:
        of = len(self._batches)
        said = [f"{batch.progress(of)}; it goes on if the run stops" for batch in self._batches if batch.going]
        if self._waiting:
            crowd = ", the account's limit of enqueued tokens is near" if self._waiting.crowded else ""
            said.append(f"{len(self._waiting):,} calls wait to become a batch{crowd}")
        if self._api.trouble:
            said.append(self._api.trouble)
        return [f"{self._endpoint.model}: {line}" for line in said]

    def forsaken(self) -> bool:
        """Whether its event loop was another, with which its tasks have ended: what it asked is to be adopted."""
        if self._loop is asyncio.get_running_loop():
            return False
        _living.discard(self._mark.session)
        return True

    async def close(self) -> None:
        """Let go of all calls. The batches go on at the server."""
        _living.discard(self._mark.session)
        self._waiting.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for call in self._calls.values():
            call.broken(StepFailed("connection", "the engine was closed; what it asked goes on at the server"))

    # Calls

    async def _know_the_past(self) -> None:
        """Before the first batch: what earlier sessions of the run have asked."""
        if not self._resumable:
            return
        if self._past is None or (self._past.done() and self._past.exception() is not None):
            self._past = self._spawn(self._look_back())
        try:
            await asyncio.shield(self._past)
        except Refused as refused:
            failure = refused.failure  # one for all that wait, so each call gets its own
            raise StepFailed(failure.kind, failure.text, {"requests": 0, "status": refused.status}, NOTHING) from None

    async def _look_back(self) -> None:
        for state, identities in await look_back(self._api, self._mark, _living):
            # Of several batches with the same line the newest counts: the line was asked again.
            self._found.update(dict.fromkeys(identities, Asked(0, state=state)))

    def _place(self, call: Call) -> None:
        """Put the call where its line is, else among those that wait for a batch."""
        batch = self._found.pop(call.identity, None)
        if batch is None:
            self._waiting.add(call)
            return
        call.tries = 1
        line = batch.lines.pop(call.identity, None)
        if line is not None:
            self._settle(call, line)
        elif batch.ended:
            self._missing(batch, call)
        else:
            batch.add(call)
            self._begin(batch)

    def _forget(self, call: Call) -> None:
        """Nobody waits for the call. A line that was sent stays in its batch, should the call be asked again."""
        del self._calls[call.identity]
        self._waiting.drop(call)
        if call.batch is not None:
            call.batch.calls.pop(call.identity, None)
            self._found[call.identity] = call.batch

    def _again(self, call: Call, trouble: Trouble) -> None:
        if not trouble.again or call.tries > self._options.retries:
            call.fail(trouble)
        elif call.lost:
            self._spawn(self._once_more(call), [call])
        else:
            self._waiting.add(call)

    async def _once_more(self, call: Call) -> None:
        await call.afford()
        if call.waiters:
            self._waiting.add(call)

    # Batches

    def _send(self, calls: list[Call]) -> None:
        for call in calls:
            call.tries += 1
        self._begin(Asked(0, calls))

    def _any_going(self) -> bool:
        return any(batch.going for batch in self._batches)

    def _begin(self, batch: Asked) -> None:
        if not batch.begun:
            batch.begun = True
            self._batches.append(batch)
            batch.number = len(self._batches)
            self._spawn(self._carry(batch), batch.calls.values())

    async def _carry(self, batch: Asked) -> None:
        try:
            if batch.state is None:
                batch.state = await self._ask(batch)
            if batch.state is not None:
                state = await self._end_of(batch, batch.state)
                await self._hand_out(batch, state)
                self._see_to_the_rest(batch, state)
        except Refused as refused:
            self._fail(batch, refused)
        finally:
            batch.ended = True
            self._waiting.ended(batch.accepted)

    async def _ask(self, batch: Asked) -> BatchState | None:
        """Send the batch; None where nobody waits for it any more."""
        lines: list[bytes] = []
        for call in list(batch.calls.values()):
            if call.identity in batch.calls:
                lines.append(encode_line(call.identity, self._endpoint.body(call.request)))
                batch.order.append(call.identity)
            if len(lines) % SLICE == 0:
                await asyncio.sleep(0)
        if not lines:
            return None
        file = await self._api.upload(*multipart(self._mark.filename(batch.number), lines))
        for call in list(batch.calls.values()):
            if call.permit is not None:
                await call.permit.wait()  # others may have asked meanwhile
        return await self._api.create(file, self._mark.metadata(batch.number))

    async def _end_of(self, batch: Asked, state: BatchState) -> BatchState:
        """Asking delays the batch by a tenth of its time at most, and by a minute, or as the address says."""
        adopted = not batch.order
        while not state.outcome:
            if not adopted:
                await asyncio.sleep(self._options.poll or min(LAST_POLL_S, max(FIRST_POLL_S, batch.age / 10)))
            adopted = False
            batch.state = state = await self._api.retrieve(state.id)
        return state

    async def _hand_out(self, batch: Asked, state: BatchState) -> None:
        for file in (state.output_file_id, state.error_file_id):
            if not file:
                continue
            for number, line in enumerate(read_answers(await self._api.content(file)), 1):
                if number % SLICE == 0:
                    await asyncio.sleep(0)
                if line is None:
                    continue
                call = batch.calls.pop(line.custom_id, None)
                if call is not None:
                    call.batch = None
                    self._settle(call, line)
                elif self._found.get(line.custom_id) is batch:
                    batch.lines[line.custom_id] = line

    def _settle(self, call: Call, line: Line) -> None:
        answer = line.answer()
        if isinstance(answer, Trouble):
            answer.failure.text = self._endpoint.shown(answer.failure.text)
            outcome = answer
        else:
            outcome = self._endpoint.judge(answer)
        if isinstance(outcome, Reply):
            price, cost = self._endpoint.price, outcome.usage.cost
            if not cost and price is not None:
                cost = price.cost(outcome.usage) * self._share
            call.settle(outcome, cost)
        else:
            self._again(call, outcome)

    # Lines that never came

    def _see_to_the_rest(self, batch: Asked, state: BatchState) -> None:
        batch.ended = True
        if state.outcome == "failed":
            self._blame(batch, state)
            return
        for call in batch.take():
            self._missing(batch, call)

    def _missing(self, batch: Asked, call: Call) -> None:
        """No file has a line for the call. What a batch leaves undone that was broken off is not paid for."""
        outcome = batch.state.outcome if batch.state is not None else ""
        if outcome == "completed":
            call.lost += 1
        kind = "timeout" if outcome == "expired" else "server"
        failure = StepFailed(kind, f"{batch.name} {_ENDS.get(outcome, 'is gone')}")
        self._again(call, Trouble(failure, "server", again=True))

    def _blame(self, batch: Asked, state: BatchState) -> None:
        """The batch never began. The lines it names are at fault; where it names none, all are."""
        complaints = state.complaints
        if any(complaint.code == CROWDED for complaint in complaints):
            self._wait_for_room(batch)
            return
        lines = {batch.order[one.line - 1]: one for one in complaints if one.line and one.line <= len(batch.order)}
        whole = next((one for one in complaints if not one.line), None)
        for call in batch.take():
            cause = lines.get(call.identity, whole)
            if cause is None:
                said = "other lines of it" if complaints else "no reason it gave"
                failure = StepFailed("server", f"{batch.name} failed for {said}")
                self._again(call, Trouble(failure, "server", again=True))
            else:
                said = self._endpoint.shown(f"{cause.code or 'error'}: {cause.message or 'no text'}")
                call.fail(Trouble(StepFailed("request", f"{batch.name} was refused: {said}"), "call"))

    def _wait_for_room(self, batch: Asked) -> None:
        """Over the account's limit of enqueued tokens: smaller batches, one after the other. It uses up no try while
        a smaller one may help."""
        calls = batch.take()
        self._waiting.refused(len(calls))
        for call in calls:
            call.tries -= self._any_going() or len(calls) > 1
            failure = StepFailed("rate_limit", f"{batch.name} was refused: {CROWDED}")
            self._again(call, Trouble(failure, "limit", again=True))

    def _fail(self, batch: Asked, refused: Refused) -> None:
        """What stood, or may stand, may have been paid for. Where it is gone it is asked again; what was refused is
        not."""
        stood = batch.state is not None or refused.unsure
        gone = batch.state is not None and refused.status in GONE
        for call in batch.take():
            call.lost += stood
            self._again(call, Trouble(refused.failure, "server", again=gone, status=refused.status))

    def _spawn(self, work: Coroutine[Any, Any, None], calls: Iterable[Call] = ()) -> asyncio.Task[None]:
        """A task of ours. Should it break, so do these calls, rather than wait for ever."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)

        def over(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            if not task.cancelled() and (error := task.exception()) is not None:
                for call in list(calls):
                    call.broken(error)

        task.add_done_callback(over)
        return task
