"""The end of what peers of an earlier session still do on a run, before another session begins."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec

from weaverant.errors import JournalError, WeaverantError
from weaverant.journal.homes import epochs_of, fence_of, home_of
from weaverant.journal.shelf import shelf_of
from weaverant.swarm.places import drop_key

PATIENCE_S = 60.0
"""What calls in flight get, where an office lives to tell its peers to stop."""
LOOK_S = 0.1
ANSWER_S = 10.0
"""Seconds for an office to answer: on a busy host it may be slow, and its peers' calls are paid for."""
ANOTHER_SESSION = "another session began"
"""Why the homes of an earlier one's peers are fenced."""


async def end_peers(run: Path) -> None:
    """Return when no peer's journal counts any further. Those that live stop in order where they can be told so: what
    they have asked for is paid and recorded. All journals are here then. Raises `JournalError`."""
    shelf = shelf_of(run)
    shelf.fetch()  # nothing else goes on yet, and a command that goes on with a run has done it before
    open_homes = [epoch for epoch in epochs_of(run) if fence_of(home_of(run, epoch)) is None]
    if not open_homes:
        drop_key(run)
        return
    await _stop_in_order(run)
    try:
        for epoch in open_homes:
            await asyncio.to_thread(shelf.fence, epoch, ANOTHER_SESSION)
    except OSError as error:
        raise JournalError(
            f"the journals of earlier peers of {str(run)!r} cannot be ended: {error.strerror or error}. Nothing was "
            "asked; free or repair the disk, then resume"
        ) from error
    drop_key(run)


async def _stop_in_order(run: Path) -> None:
    from weaverant.swarm import messages as words  # deferred: most runs have no peers
    from weaverant.swarm.listener import answers_nothing, dial
    from weaverant.swarm.places import find_office, read_key

    office = await asyncio.to_thread(find_office, run)
    if office is None:
        return
    try:
        link = await dial(office.address, read_key(run), "successor", answers_nothing, 3.0)
        await link.ask(words.STOP, words.Stop("interrupted", why=ANOTHER_SESSION), timeout=ANSWER_S)
        for _ in range(round(PATIENCE_S / LOOK_S)):
            if not msgspec.convert(await link.ask(words.STATUS, None, timeout=ANSWER_S), words.Status).working:
                break
            await asyncio.sleep(LOOK_S)
        await link.ask(words.END, None, timeout=ANSWER_S)
        link.close()
    except (WeaverantError, OSError, TimeoutError):
        return
