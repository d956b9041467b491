"""The end of what peers of an earlier session still do on a run, before another session begins."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Generator, Iterable
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from weaverant.errors import JournalError, WeaverantError
from weaverant.journal.homes import epochs_of, fence_of, home_of
from weaverant.journal.lock import has_ended
from weaverant.journal.shelf import shelf_of
from weaverant.swarm.places import drop_key, find_office, new_generation, offices, read_key

PATIENCE_S = 60.0
"""What calls in flight get, where their peers can be told to stop."""
LOOK_S = 0.1
ANSWER_S = 10.0
"""Seconds for an office to answer: on a busy host it may be slow, and its peers' calls are paid for."""
ANOTHER_SESSION = "another session began"
"""Why the homes of an earlier one's peers are fenced."""
LOCAL = "127.0.0.1"


async def end_peers(run: Path, host: str = "", *, wait: bool = True) -> None:
    """Return when no peer's journal counts any further. Those that live stop in order, told by their office or by one
    that this process stands in for it (at `host`, or where the last one listened): what they have asked for is paid and
    recorded. All journals are here then. Raises `JournalError`.

    Whose process is seen to have ended is not waited for; nor, without an office, anybody where `wait` is False.
    """
    shelf = shelf_of(run)
    shelf.fetch()  # nothing else goes on yet, and a command that goes on with a run has done it before
    if not (epochs_of(run) or await asyncio.to_thread(offices, run)):
        drop_key(run)
        return
    if not await _stop_in_order(run) and wait:
        await _fence(run, [epoch for epoch in _open_homes(run) if has_ended(home_of(run, epoch))])
        if _open_homes(run):
            await _stand_in(run, host)
    # An office takes its number before it looks for the key, a peer makes its home before it looks for an office: who
    # comes later than this finds none.
    drop_key(run)
    with _told(run):
        await asyncio.to_thread(new_generation, run)
    shelf.fetch()
    await _fence(run, _open_homes(run))


def _open_homes(run: Path) -> list[int]:
    return [epoch for epoch in epochs_of(run) if fence_of(home_of(run, epoch)) is None]


async def _fence(run: Path, epochs: Iterable[int]) -> None:
    with _told(run):
        for epoch in epochs:
            await asyncio.to_thread(shelf_of(run).fence, epoch, ANOTHER_SESSION)


@contextmanager
def _told(run: Path) -> Generator[None]:
    try:
        yield
    except OSError as error:
        raise JournalError(
            f"the journals of earlier peers of {str(run)!r} cannot be ended: {error.strerror or error}. Nothing was "
            "asked; free or repair the disk, then resume"
        ) from error


async def _stop_in_order(run: Path) -> bool:
    """False where there is no office, or none any more before all have stopped."""
    from weaverant.swarm import messages as words  # deferred: most runs have no peers
    from weaverant.swarm.listener import answers_nothing, dial

    office = await asyncio.to_thread(find_office, run)
    if office is None:
        return False
    try:
        link = await dial(office.address, read_key(run), "successor", answers_nothing, ANSWER_S)
        await link.ask(words.STOP, words.Stop("interrupted", why=ANOTHER_SESSION), timeout=ANSWER_S)
        for _ in range(round(PATIENCE_S / LOOK_S)):
            if not msgspec.convert(await link.ask(words.STATUS, None, timeout=ANSWER_S), words.Status).working:
                break
            await asyncio.sleep(LOOK_S)
        await link.ask(words.END, None, timeout=ANSWER_S)
        link.close()
    except (WeaverantError, OSError, TimeoutError):
        return False
    return True


async def _stand_in(run: Path, host: str) -> None:
    """Be the office of peers that may live, until they have stopped in order or were not heard for a lease time."""
    from weaverant.swarm.messages import Stop  # deferred: most runs have no peers
    from weaverant.swarm.office import Office, Plan

    stop, plan = Stop("interrupted", why=ANOTHER_SESSION), Plan(0, None, 1, {})
    # Without the peers' key, or on a full disk, it reaches nobody.
    with suppress(WeaverantError, OSError, TimeoutError):
        host = host or await asyncio.to_thread(_last_host, run)
        office = await asyncio.to_thread(Office, run, read_key(run), plan, host, stop)
        async with asyncio.timeout(PATIENCE_S):
            await office.run()


def _last_host(run: Path) -> str:
    """Where the last office listened, if it was on this host."""
    office = find_office(run)
    host = LOCAL if office is None else office.address.rpartition(":")[0].strip("[]")
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        socket.create_server((host, 0), family=family).close()
    except OSError:
        return LOCAL
    return host
