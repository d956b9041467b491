"""A request and the one beside it: who wins, who is cut off, and what becomes of both where none replies."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from itertools import pairwise
from typing import Any

import pytest

from weaverant.engines.http.address import parse
from weaverant.engines.http.attempt import Trouble
from weaverant.engines.http.pool.race import Sent, race
from weaverant.engines.http.pool.replica import Replica
from weaverant.errors import StepFailed
from weaverant.message import Reply, assistant

FAST, SLOW = 0.02, 30.0


class Track:
    """Requests that take so many seconds, and what became of them."""

    def __init__(self, replica: Replica) -> None:
        self.replica = replica
        self.begun: dict[str, float] = {}
        self.cut_off: list[str] = []

    async def runs(self, name: str, seconds: float, replies: bool = True) -> Sent:
        self.begun[name] = time.monotonic()
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            self.cut_off.append(name)
            raise
        trouble = Trouble(StepFailed("server", name), "server", again=True)
        return Sent(Reply(assistant(name)) if replies else trouble, self.replica)

    async def no_room(self) -> None:
        self.begun[f"no room {len(self.begun)}"] = time.monotonic()


@pytest.fixture
def track() -> Track:
    return Track(Replica(parse("http://127.0.0.1:9/v1#m"), 1, 0.0))


def said(ends: list[Sent]) -> list[str]:
    return [end.outcome.text if isinstance(end.outcome, Reply) else end.outcome.failure.text for end in ends]


def held(first: Coroutine[Any, Any, Sent], second: Any, delay: float = FAST) -> list[str]:
    return said(asyncio.run(race(first, second, delay)))


def test_a_first_request_that_is_in_time_gets_no_company(track: Track):
    assert held(track.runs("first", FAST), lambda: track.runs("second", FAST), SLOW) == ["first"]
    assert list(track.begun) == ["first"]


@pytest.mark.parametrize(
    ("first", "second", "winner", "loser"), [(SLOW, FAST, "second", "first"), (1.0, SLOW, "first", "second")]
)
def test_the_first_reply_wins_and_the_other_request_is_cut_off(
    track: Track, first: float, second: float, winner: str, loser: str
):
    assert held(track.runs("first", first), lambda: track.runs("second", second)) == [winner]
    assert track.cut_off == [loser]


@pytest.mark.parametrize("replies", [True, False])
def test_a_failure_wins_only_where_the_other_fails_as_well(track: Track, replies: bool):
    found = held(track.runs("first", 0.3, replies), lambda: track.runs("second", FAST, replies=False))
    assert found == ["first", "second"] and track.cut_off == []


def test_where_there_is_no_room_it_asks_again_after_twice_as_long(track: Track):
    assert held(track.runs("first", 1.1), track.no_room, 0.1) == ["first"]
    times = list(track.begun.values())
    waits = [after - before for before, after in pairwise(times)]
    assert len(waits) == 3 and all(wait >= least for wait, least in zip(waits, (0.1, 0.2, 0.4), strict=True))


def test_cancelling_the_race_cuts_off_both(track: Track):
    async def main() -> None:
        racing = asyncio.create_task(race(track.runs("first", SLOW), lambda: track.runs("second", SLOW), FAST))
        await asyncio.sleep(0.5)
        racing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await racing

    asyncio.run(main())
    assert sorted(track.cut_off) == ["first", "second"]
