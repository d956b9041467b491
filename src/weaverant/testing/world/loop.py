"""An event loop in which time passes only when everybody waits, so that a run of hours takes milliseconds.

The order of callbacks is asyncio's own, and nothing enters from outside: the same program runs the same way each time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Generator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from itertools import count
from random import Random
from typing import Any, cast

from weaverant.errors import WeaverantError
from weaverant.journal.worker import Work
from weaverant.runtime.workers import Died


class Stuck(Exception):
    """Nothing is ready, no timer is set, and somebody still waits: it would be for ever."""


class Death(KeyboardInterrupt):
    """The simulated process ends here. A KeyboardInterrupt, since nothing may take that for an error of its own."""


class Endless(Exception):
    """What was to run elsewhere never ends: its future is never done."""


LONGEST = 30 * 86_400.0
"""Seconds of simulated time after which a life counts as stuck, too."""


class VirtualClock:
    """Implements `protocols.Clock`. Each look at it takes `tick` seconds, so that code which works in slices of time
    is cut somewhere; `jump` moves the wall clock alone, `pause` lets time pass in which the process does not run."""

    def __init__(self, wall: float, tick: float = 1e-6) -> None:
        self.now = 0.0
        self.tick = tick
        self._wall = wall

    def monotonic(self) -> float:
        self.now += self.tick
        return self.now

    def time(self) -> float:
        return self._wall + self.now

    def jump(self, seconds: float) -> None:
        self._wall += seconds

    def pause(self, seconds: float) -> None:
        self.now += seconds


class _Task(asyncio.Task[Any]):
    """Hashed by its number: sets of tasks are walked in the same order in each process."""

    def __init__(self, loop: VirtualLoop, coro: Coroutine[Any, Any, Any], **options: Any) -> None:
        self._serial = loop.number()
        super().__init__(coro, loop=loop, **options)

    def __hash__(self) -> int:
        return self._serial


class _Future(asyncio.Future[Any]):
    def __init__(self, loop: VirtualLoop) -> None:
        self._serial = loop.number()
        super().__init__(loop=loop)

    def __hash__(self) -> int:
        return self._serial


class VirtualLoop(asyncio.BaseEventLoop):
    """asyncio's loop on a `VirtualClock`. What would run in a thread runs on the loop, a little later."""

    def __init__(self, clock: VirtualClock, random: Random) -> None:
        super().__init__()
        self.clock = clock
        self._random = random
        self._until = clock.now + LONGEST
        self._selector = self
        self.number = count().__next__
        self.set_task_factory(_Task)  # pyright: ignore[reportArgumentType]
        self.complaints: list[str] = []
        """What nobody awaited or caught."""
        self.set_exception_handler(self._complain)

    def create_future(self) -> asyncio.Future[Any]:
        return _Future(self)

    def time(self) -> float:
        return self.clock.now

    def select(self, timeout: float | None) -> Sequence[Any]:
        """In place of waiting for sockets: nothing comes, time passes."""
        if timeout is None or self.clock.now > self._until:
            raise Stuck("nothing can wake what still waits" if timeout is None else "it goes on and on")
        self.clock.now += timeout
        return ()

    def run_in_executor(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, executor: Executor | None, func: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        done = self.create_future()
        timer = self.call_later(self._random.expovariate(1_000.0), self._perform, done, func, args)
        done.add_done_callback(lambda _: timer.cancel())
        return done

    def _complain(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.complaints.append(f"{context['message']}: {context.get('exception')!r}")

    def unended(self) -> list[str]:
        """Tasks, the running one apart."""
        running = asyncio.current_task(self)
        return [f"task {task!r:.120}" for task in asyncio.all_tasks(self) if task is not running]

    def unfired(self) -> list[str]:
        """Timers that are set and not cancelled."""
        timers = cast("list[asyncio.TimerHandle]", self._scheduled)  # pyright: ignore
        return [f"timer {handle!r:.120}" for handle in timers if not handle.cancelled()]

    def _perform(self, done: asyncio.Future[Any], func: Callable[..., Any], args: tuple[Any, ...]) -> None:
        if done.cancelled():
            return
        try:
            with _no_loop():
                value = func(*args)
        except Endless:
            return
        except (
            ValueError, TypeError, LookupError, ArithmeticError, RuntimeError, OSError, WeaverantError, Died,
        ) as error:  # fmt: skip
            done.set_exception(error)
        else:
            done.set_result(value)

    def _process_events(self, event_list: object) -> None: ...

    def _write_to_self(self) -> None: ...


@contextmanager
def _no_loop() -> Generator[None]:
    """As in a thread."""
    loop = asyncio.events._get_running_loop()  # pyright: ignore[reportPrivateUsage]
    asyncio.events._set_running_loop(None)  # pyright: ignore[reportPrivateUsage]
    try:
        yield
    finally:
        asyncio.events._set_running_loop(loop)  # pyright: ignore[reportPrivateUsage]


class VirtualWorker:
    """Implements `journal.worker.Worker`: the journal's thread, as callbacks of the loop, in order, some time later."""

    def __init__(self, loop: VirtualLoop, random: Random, seconds: float) -> None:
        self._loop = loop
        self._random = random
        self._seconds = seconds
        self._waiting: list[Work] = []
        self._timer: asyncio.TimerHandle | None = None

    def do(self, work: Work) -> None:
        self._waiting.append(work)
        if len(self._waiting) == 1:
            self._begin()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        while self._waiting:
            self._waiting.pop(0)()

    def _begin(self) -> None:
        self._timer = self._loop.call_later(self._random.expovariate(1 / self._seconds), self._next)

    def _next(self) -> None:
        self._waiting[0]()
        del self._waiting[0]
        if self._waiting:
            self._begin()
