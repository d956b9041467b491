"""Which replicas a pool has: checked when they come, drained when they go, looked after while the pool is in use."""

from __future__ import annotations

import asyncio
import resource
import time
from collections.abc import Callable

from weaverant.engines.http.address import Address, Options
from weaverant.engines.http.pool.places import Places
from weaverant.engines.http.pool.replica import Replica
from weaverant.engines.http.pool.roster import Roster
from weaverant.errors import UserError
from weaverant.protocols import Note

LOOK_S = 1.0
"""Seconds between two looks at what changes by itself: servers' gauges, and the file of addresses."""

SHARED = ("timeout", "retries", "backoff", "hedge")
"""Options that concern a call, whichever replica it goes to."""


class Members:
    """Replicas are made in threads: their servers may have to be asked for a model or a price first."""

    def __init__(self, addresses: list[Address], roster: Roster | None, parts: int = 1) -> None:
        """With a `roster` the addresses are those of its file, and follow it. `parts`: see `Pool`."""
        self._parts = parts
        listed = None if roster is None else roster.first()
        known = list(dict.fromkeys(addresses)) if listed is None else listed.addresses
        if not known and (roster is None or not roster.model):
            raise UserError(
                "the pool has no address yet, so nobody can say which model it is; expected one address at least, "
                "or pool:FILE#MODEL" + "".join(f"\n  {line}" for line in (listed.wrong if listed is not None else ()))
            )
        self.options = known[0].options if known else Options()
        self.places = Places(self.options.timeout)
        self._balance = self.places.balance
        self._roster = roster
        self._listed = set(known) if roster is not None else set[Address]()
        self._wrong = [] if listed is None else listed.wrong
        self._leaving: set[Replica] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._watch: asyncio.Task[None] | None = None
        self._watched = True
        self.identity = f"http:{roster.model}" if roster is not None else ""
        for address in known:
            replica = Replica(address, _most(address, len(known), parts), time.monotonic(), parts)
            self.identity = self.identity if self._balance.replicas else replica.identity
            self._check(replica)
            self._balance.add(replica)

    def look_after(self, busy: Callable[[], bool]) -> None:
        """Keep looking at what changes by itself: at the file until `close`, at gauges while the pool is busy."""
        if self._watched and self._watch is None:
            self._watch = asyncio.create_task(self._watching(busy))

    def describe(self, now: float) -> list[Note]:
        """One for each replica, and for each that could not become one."""
        lines: list[Note] = [each.describe(now) for each in self._balance.replicas]
        lines += [f"{each.describe(now)}; leaving" for each in self._leaving]
        if not self._balance.replicas:
            where = f"; waiting for {str(self._roster.path)!r} to name one" if self._roster is not None else ""
            lines.append(f"{self.identity} has no replica{where}")
        return [*lines, *self._wrong]

    async def join(self, address: Address) -> None:
        """One more, from now on. `UserError` where it would not answer as the others do."""
        if any(each.address == address for each in self._balance.replicas):
            return
        most = _most(address, len(self._balance.replicas) + 1, self._parts)
        replica = await asyncio.to_thread(Replica, address, most, time.monotonic(), self._parts)
        if any(each.address == address for each in self._balance.replicas):
            return  # somebody was faster
        self._check(replica)
        self._balance.add(replica)
        self._watched = True
        self.places.changed()

    async def part(self, address: Address) -> None:
        """No more calls go there; returns once those in flight have ended."""
        there = [each for each in self._balance.replicas if _same_place(each.address, address)]
        replica = next((each for each in there if each.address == address), there[0] if there else None)
        if replica is None:
            known = ", ".join(each.name for each in self._balance.replicas) or "none"
            raise UserError(f"the pool has no replica at {address.base}; it has: {known}")
        self._balance.remove(replica)
        self._leaving.add(replica)
        replica.drained = asyncio.Event()
        if replica.window.in_flight:
            await replica.drained.wait()
        self._leaving.discard(replica)
        await replica.endpoint.close()

    def forsake(self) -> None:
        """What looked after them belonged to another event loop, which may have ended with it."""
        self._watch, self._watched = None, True
        self._tasks.clear()

    async def close(self) -> None:
        """Stop looking and let go of the connections."""
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.cancel()
        for replica in [*self._balance.replicas, *self._leaving]:
            await replica.endpoint.close()
        await asyncio.gather(*([watch] if watch is not None else []), *self._tasks, return_exceptions=True)

    def _check(self, replica: Replica) -> None:
        """Calls are answered alike whichever replica they go to, and treated alike."""
        if replica.address.options.batch:
            raise UserError(f"{replica.name} has batch={replica.address.options.batch:g}; a batch API has no replicas")
        if replica.identity != self.identity:
            raise UserError(
                f"{replica.name} is not the model {self.identity.removeprefix('http:')!r} that the pool's other "
                "replicas serve. If it answers as they do, give all of them the same ?name=NAME"
            )
        for name in SHARED:
            own, others = getattr(replica.address.options, name), getattr(self.options, name)
            if self._balance.replicas and own != others:
                first = self._balance.replicas[0].name
                raise UserError(f"{replica.name} has {name}={own:g} and {first} has {name}={others:g}; expected one")

    async def _watching(self, busy: Callable[[], bool]) -> None:
        try:
            while self._roster is not None or busy():
                if self._roster is not None:
                    await self._follow(self._roster)
                told = [each for each in self._balance.replicas if each.gauged]
                if told and busy():
                    await asyncio.gather(*(each.poll() for each in told if each.window.in_flight))
                    self.places.changed()
                self._watched = self._roster is not None or bool(told)
                if not self._watched:
                    return
                await asyncio.sleep(LOOK_S)
        finally:
            self._watch = None

    async def _follow(self, roster: Roster) -> None:
        listed = roster.changed()
        if listed is None:
            return
        self._wrong = listed.wrong
        gone, self._listed = self._listed - set(listed.addresses), set(listed.addresses)
        for address in listed.addresses:
            try:
                await self.join(address)
            except UserError as error:
                self._wrong.append(f"{address.base} is left out: {error}")
        for address in gone & {each.address for each in self._balance.replicas}:
            task = asyncio.create_task(self.part(address))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)


def _same_place(one: Address, other: Address) -> bool:
    return one.base == other.base and one.query == other.query and other.model in ("", one.model)


def _most(address: Address, replicas: int, parts: int) -> int:
    """Requests in flight at most: as the user says, else half of the files the process may open, shared out."""
    if address.options.connections:
        return max(1, address.options.connections // parts)
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = 65_536 if limit == resource.RLIM_INFINITY else limit
    return max(16, files // 2 // replicas)
