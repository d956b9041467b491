"""What the office tells, over real links: who is to stop, who still works, and whom nobody finds any more."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from peers_world import wait_until
from weaverant.errors import UserError
from weaverant.journal.homes import fence, home_of, is_fenced, new_epoch
from weaverant.swarm import messages as words
from weaverant.swarm.ending import end_peers
from weaverant.swarm.link import Link
from weaverant.swarm.listener import answers_nothing, dial
from weaverant.swarm.messages import Answer, Beat, Counts, Join, Status, Stop
from weaverant.swarm.office import Office, Plan
from weaverant.swarm.peer import Peer
from weaverant.swarm.places import drop_key, find_office, make_key


@asynccontextmanager
async def office(run: Path) -> AsyncGenerator[Link]:
    """A link to the office of a run that has one."""
    key = make_key(run)
    working = asyncio.create_task(Office(run, key, Plan(1, 10, 1, {}), "127.0.0.1").run())
    await asyncio.to_thread(wait_until, lambda: find_office(run))
    place = find_office(run)
    assert place is not None
    link = await dial(place.address, key, "test", answers_nothing)
    try:
        yield link
        if not link.lost.done():
            await link.ask(words.END, None)
    finally:
        link.close()
        await working


def looped(scene: Callable[[Path], Coroutine[Any, Any, None]]) -> Callable[[Path], None]:
    """A test that runs on an event loop."""

    def test(run: Path) -> None:
        asyncio.run(scene(run))

    test.__doc__ = scene.__doc__
    return test


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "peers").mkdir()
    return tmp_path


async def status(link: Link) -> Status:
    return msgspec.convert(await link.ask(words.STATUS, None), Status)


async def join(link: Link, epoch: int) -> None:
    await link.ask(words.JOIN, Join(epoch, "here", 1, "127.0.0.1:1", (), []))


async def beat(link: Link, epoch: int) -> Answer:
    told: Any = await link.ask(words.BEAT, Beat(epoch, 0, [], [], [], None, Counts([])))
    return msgspec.convert(told, Answer)


@looped
async def test_to_stop_is_said_again_without_hurry(run: Path):
    """By a driver that did not hear the answer, and by the next session after the office had missed its driver."""
    async with office(run) as link:
        epoch = new_epoch(run)
        await join(link, epoch)
        assert (await beat(link, epoch)).stop is None
        for _ in range(3):
            await link.ask(words.STOP, Stop("interrupted"))
            assert (await beat(link, epoch)).stop == Stop("interrupted", None, 1)
        await link.ask(words.STOP, Stop("interrupted", 0.0))
        assert (await beat(link, epoch)).stop == Stop("interrupted", 0.0, 2)
        await link.ask(words.STOP, Stop("interrupted"))
        assert (await beat(link, epoch)).stop == Stop("interrupted", 0.0, 2), "who is to hurry is not told to wait"


@looped
async def test_who_waits_for_its_calls_for_ever_may_be_told_to_stop(run: Path):
    async with office(run) as link:
        epoch = new_epoch(run)
        await join(link, epoch)
        await link.ask(words.STOP, Stop("budget", math.inf))
        await link.ask(words.STOP, Stop("interrupted"))
        assert (await beat(link, epoch)).stop == Stop("budget", None, 2)


@looped
async def test_a_peer_that_is_to_join_again_works(run: Path):
    """Else whoever stops the run, with a new office, would take it for over and end what has calls in flight."""
    epoch = new_epoch(run)
    async with office(run) as link:
        assert (await status(link)).working == 1
        await join(link, epoch)
        assert (await status(link)).working == 1
        new = new_epoch(run)
        await join(link, new)
        assert (await status(link)).working == 2


@looped
async def test_no_office_of_an_earlier_session_is_found(run: Path):
    """It lives and could not be told that the session is over. A peer that begins late would lease rows from it."""
    async with office(run) as link:
        early = new_epoch(run)
        key = bytes.fromhex((run / "peers" / "key").read_text())
        drop_key(run)
        await end_peers(run)
        assert is_fenced(home_of(run, early))
        assert (await status(link)).stop is None, "it was not told"
        late = Peer(run, key, new_epoch(run), "127.0.0.1:1", (), time)
        with pytest.raises(UserError, match="key"):
            await late.join()
        assert (await status(link)).members == []


@looped
async def test_an_office_that_begins_late_belongs_to_no_session(run: Path):
    new_epoch(run)
    early = make_key(run)
    await end_peers(run)
    late = Office(run, early, Plan(1, 10, 1, {}), "127.0.0.1")
    with pytest.raises(UserError, match="key"):
        await late.run()
    make_key(run)
    with pytest.raises(UserError, match="another session"):
        await late.run()


@looped
async def test_an_office_without_open_homes_is_ended(run: Path):
    """Peers of the next session would find it, and it does not know their key."""
    fence(home_of(run, new_epoch(run)), "it left: finished")
    async with office(run) as link:
        await end_peers(run)
        async with asyncio.timeout(5):
            await link.lost
        assert find_office(run) is None
