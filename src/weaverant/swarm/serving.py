"""What the other side of a link asked: the work on it, and its answer."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import Any

from weaverant.errors import WeaverantError, shown
from weaverant.swarm.frames import UNENCODABLE, Answered, Asked, Denied, Dropped, Said, Told
from weaverant.swarm.outbox import Outbox


class Serving:
    """Answers what is asked, at most `window` asks at a time. Each gets one answer, whatever becomes of the work."""

    def __init__(
        self, serve: Callable[[str, Any], Any], say: Callable[[Said], None], outbox: Outbox, window: int
    ) -> None:
        self._serve = serve
        self._say = say
        self._outbox = outbox
        self._window = window
        self._work: dict[int, tuple[asyncio.Task[None], Any]] = {}
        """By the number of the ask: the task, and what it awaits."""
        self._news: set[asyncio.Task[None]] = set()
        """For what was told."""

    def __len__(self) -> int:
        """How many are worked on."""
        return len(self._work)

    def asked(self, said: Asked) -> bool:
        """False where that is more than may be asked."""
        number, owner = said.number, said.owner
        if len(self._work) >= self._window or number in self._work:
            return False
        if owner:
            self._outbox.adopt(owner)
        try:
            answer = self._serve(said.kind, said.body)
        except Exception as error:  # the boundary to what is served
            self._deny(number, error)
            return True
        if inspect.isawaitable(answer):
            task = asyncio.Task(self._await(number, answer, owner), loop=asyncio.get_running_loop())
            self._work[number] = (task, answer)
        else:
            self._answer(number, answer, owner)
        return True

    def told(self, said: Told) -> None:
        """The same without an answer. What is raised is for the loop to report."""
        try:
            answer = self._serve(said.kind, said.body)
        except Exception as error:  # the boundary to what is served
            self._report(said, error)
            return
        if inspect.isawaitable(answer):
            task = asyncio.Task(self._hear_out(said, answer), loop=asyncio.get_running_loop())
            self._news.add(task)
            task.add_done_callback(self._news.discard)

    def stop(self, number: int) -> None:
        """Cancel the work. A task that is cancelled before its first step runs no line of its own."""
        task, work = self._work.get(number, (None, None))
        if task is not None:
            task.add_done_callback(lambda _: self._stopped(number, work))
            task.cancel()

    def stop_all(self) -> None:
        """Cancel all that was asked. What was told is heard out."""
        for number in list(self._work):
            self.stop(number)

    async def _await(self, number: int, work: Awaitable[Any], owner: str) -> None:
        try:
            answer = await work
        except asyncio.CancelledError:
            self._say(Dropped(number))
        except Exception as error:  # the boundary to what is served
            self._deny(number, error)
        else:
            self._answer(number, answer, owner)
        finally:
            self._work.pop(number, None)

    async def _hear_out(self, said: Told, work: Awaitable[Any]) -> None:
        try:
            await work
        except Exception as error:  # the boundary to what is served
            self._report(said, error)

    def _report(self, said: Told, error: Exception) -> None:
        loop = asyncio.get_running_loop()
        loop.call_exception_handler({"message": f"what was told ({said.kind!r}) was not served", "exception": error})

    def _stopped(self, number: int, work: Any) -> None:
        if self._work.pop(number, None) is not None:
            if inspect.iscoroutine(work):
                work.close()
            self._say(Dropped(number))

    def _answer(self, number: int, answer: Any, owner: str) -> None:
        try:
            self._say(Answered(number, self._outbox.pack(answer, owner)))
        except UNENCODABLE as error:
            self._outbox.undo(owner)
            self._deny(number, error)

    def _deny(self, number: int, error: Exception) -> None:
        text = shown(error) if isinstance(error, WeaverantError) else f"{type(error).__name__}: {shown(error)}"
        self._say(Denied(number, text))
