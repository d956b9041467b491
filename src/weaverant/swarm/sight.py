"""Who works on a run now, as far as this host can see: by the locks in its directory, and by what its office says."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import msgspec
from msgspec import Struct

from weaverant.errors import UserError, WeaverantError
from weaverant.journal import is_locked
from weaverant.journal.homes import epochs_of, fence_of, home_of
from weaverant.journal.shelf import store_of
from weaverant.swarm.listener import answers_nothing, dial
from weaverant.swarm.lost import WrongKey
from weaverant.swarm.messages import LOOK, Status
from weaverant.swarm.places import find_office, read_key

UNHEARD_S = 3.0
"""Seconds after which the command that started the peers is no more, where it has said nothing to their office."""
ANSWER_S = 2.0
"""Seconds for an office to answer."""


class Sight(Struct, frozen=True):
    """What was seen of the processes of a run whose journal tells of no end."""

    driver: bool
    """Whether the command that began the session, or that is the run, goes on."""
    alive: frozenset[int]
    """The peers whose processes are seen to live, by epoch."""
    office: Status | None
    """What the office says; None where none answers, or none was asked as the directory tells enough."""
    partial: bool
    """Whether others may be at work unseen: the run is in a store, and was not begun in this directory."""

    @property
    def state(self) -> str:
        """`running`; `working`: peers, without the command that started them; `ending`: peers that were told to stop;
        `unseen`: none, and this directory cannot tell; or `killed`."""
        told = self.office
        if self.driver or (self.alive and self.partial and told is None):
            return "running"
        if told is not None and (told.stop is not None or not told.working):
            return "ending"
        if self.alive or told is not None:
            return "working"
        return "unseen" if self.partial else "killed"


def look(run: Path) -> Sight:
    """May take some seconds, where an office does not answer."""
    driver = is_locked(run)
    homes = [epoch for epoch in epochs_of(run) if fence_of(home_of(run, epoch)) is None]
    alive = {epoch for epoch in homes if is_locked(home_of(run, epoch))}
    stored = store_of(run) is not None
    office = None
    if not driver and (alive or (homes and stored)):
        with suppress(WrongKey):
            office = ask_office(run)
    if office is not None:
        alive.update(member.epoch for member in office.members if member.state == "working")
        driver = stored and office.unheard < UNHEARD_S
    return Sight(driver, frozenset(alive), office, stored and not (run / "lock").exists())


def ask_office(run: Path) -> Status | None:
    """What the run's office says of it; None where none answers, or no key is known. `WrongKey` where who answers does
    not hold the same."""
    try:
        key = read_key(run)
    except UserError:
        return None
    with ThreadPoolExecutor(1) as thread:  # the caller may have an event loop
        return thread.submit(asyncio.run, _ask(run, key)).result()


async def _ask(run: Path, key: bytes) -> Status | None:
    office = await asyncio.to_thread(find_office, run)
    if office is None:
        return None
    try:
        link = await dial(office.address, key, "onlooker", answers_nothing, ANSWER_S)
        try:
            return msgspec.convert(await link.ask(LOOK, None, timeout=ANSWER_S), Status)
        finally:
            link.close()
    except WrongKey:
        raise
    except (WeaverantError, TimeoutError, ValueError):
        return None
