"""Two requests of one call beside each other: the first reply wins, the other request is cut off."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, NamedTuple

from weaverant.engines.http.attempt import Trouble
from weaverant.engines.http.pool.replica import Replica
from weaverant.message import Reply


class Sent(NamedTuple):
    """One request's end."""

    outcome: Reply | Trouble
    replica: Replica


Runner = asyncio.Task[Sent | None]


async def race(
    first: Coroutine[Any, Any, Sent], second: Callable[[], Coroutine[Any, Any, Sent | None]], delay: float
) -> list[Sent]:
    """How the requests ended that were not cut off, the winner's end first.

    After `delay` seconds the first gets company. Where `second` finds no room it gives None, and is asked again after
    twice as long. While neither has replied both go on. Cancelling the race cuts off both.
    """
    runners: list[Runner] = [asyncio.create_task(first)]
    try:
        while not await _ends_within(runners[0], delay):
            runners[1:] = [asyncio.create_task(second())]
            await asyncio.wait(runners, return_when=asyncio.FIRST_COMPLETED)
            if not _found_no_room(runners[1]):
                break
            delay *= 2
        if not any(map(_replied, runners)):
            await asyncio.wait(runners)
    finally:
        await _cut_off(runners)
    ends = [sent for runner in runners if not runner.cancelled() and (sent := runner.result()) is not None]
    return sorted(ends, key=lambda sent: not isinstance(sent.outcome, Reply))


async def _ends_within(runner: Runner, seconds: float) -> bool:
    await asyncio.wait((runner,), timeout=seconds)
    return runner.done()


def _found_no_room(runner: Runner) -> bool:
    return runner.done() and runner.exception() is None and runner.result() is None


def _replied(runner: Runner) -> bool:
    """Raises what the request raised."""
    sent = runner.result() if runner.done() else None
    return sent is not None and isinstance(sent.outcome, Reply)


async def _cut_off(runners: Sequence[Runner]) -> None:
    going = [runner for runner in runners if not runner.done()]
    for runner in going:
        runner.cancel()
    if going:
        await asyncio.wait(going)
