"""The money of a call that travels: the peer that owns its task sets it aside, in its own journal, before the host
sends anything, and settles it when the task has the reply.

What a first request may cost goes along with the call. A host that needs more (for another try, a dearer server, a
batch) asks for it over the link that the call came by, and waits.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

import msgspec

from weaverant.errors import StepFailed, WeaverantError
from weaverant.events import NO_USAGE
from weaverant.message import Dollars, Reply, Usage
from weaverant.protocols import Purse
from weaverant.step import Turn
from weaverant.swarm.frames import UNDECODABLE
from weaverant.swarm.link import Link

AFFORD = "afford"
"""Asked by the host: [number, dollars, claim], answered by nothing once they are set aside."""

Paid = tuple[int, float]
"""What goes along with a call: its number with its owner, and the US dollars that are set aside for it."""


class Outlay:
    """The money of one call, on the side that pays. All amounts are US dollars."""

    def __init__(self, number: int, purse: Purse, turn: Turn | None) -> None:
        self.number = number
        self.link: Link | None = None
        """The host that may ask for more."""
        self.sent = False
        """Whether the call has left for it."""
        self._purse = purse
        self._turn = turn
        self._granted = 0.0
        """What the host may spend."""
        self._lost = 0.0
        """What hosts may have spent that were lost with the call."""

    async def prepay(self, link: Link, dollars: float) -> Paid:
        """Set aside what the host may spend without asking. Nothing has left for it yet."""
        self.link, self.sent, self._granted = None, False, 0.0
        if dollars:
            await self._purse.afford(self._lost + dollars)
        self.link, self._granted = link, dollars
        return self.number, dollars

    async def afford(self, dollars: float, claim: str) -> None:
        """The host needs so much in all. What it buys under a claim another host finds again."""
        await self._purse.afford(self._lost + dollars, claim)
        if not claim:
            self._granted = max(self._granted, dollars)

    def leaves(self) -> None:
        self.sent = True

    def lose(self) -> None:
        """The host is lost. Nobody will know what it has spent."""
        if self.sent:
            self._lost += self._granted
            self.link, self.sent, self._granted = None, False, 0.0
            if self._turn is not None:
                self._turn.kept = self._lost

    def charged(self, reply: Reply) -> Reply:
        return msgspec.structs.replace(reply, usage=self.used(reply.usage)) if self._lost else reply

    def used(self, usage: Usage = NO_USAGE) -> Usage:
        """All that the call has used, where the last host tells so much."""
        lost = self._lost
        return usage + Usage(requests=0, cost=lost, unsure=lost) if lost else usage


class Till:
    """Calls with money that are out at other peers."""

    def __init__(self) -> None:
        self._out: dict[int, Outlay] = {}
        self._count = 0

    def open(self, purse: Purse, turn: Turn | None) -> Outlay:
        self._count += 1
        outlay = self._out[self._count] = Outlay(self._count, purse, turn)
        return outlay

    def close(self, outlay: Outlay) -> None:
        """The call is over: no host gets more for it."""
        del self._out[outlay.number]

    def serve(self, link: Link, kind: str, body: Any) -> Awaitable[None]:
        """Answers "afford" of those that host a call; `WeaverantError` for anything else."""
        try:
            if kind != AFFORD:
                raise TypeError(f"{kind!r}")
            number, dollars, claim = msgspec.convert(body, tuple[int, Dollars, str])
        except UNDECODABLE as error:
            raise WeaverantError(f"that is nothing that a peer's host asks: {error}") from None
        outlay = self._out.get(number)
        if outlay is None or outlay.link is not link:
            raise WeaverantError("that call is not out here: it has ended, or is asked elsewhere")
        return outlay.afford(dollars, claim)


class PurseAfar:
    """Implements `Purse` for the host: the money is with the peer at the other end of the link."""

    def __init__(self, link: Link, number: int, dollars: float) -> None:
        self._link = link
        self._number = number
        self._granted = dollars

    async def afford(self, dollars: float, claim: str = "") -> None:
        if claim or dollars > self._granted:
            await self._link.ask(AFFORD, (self._number, dollars, claim))
            self._granted = max(self._granted, 0.0 if claim else dollars)

    def affords(self, dollars: float) -> bool:
        """What has to be asked for first takes its time, so it is never there at once."""
        return dollars <= self._granted


def failed(outlay: Outlay, failure: StepFailed) -> StepFailed:
    """The failure, with what was lost before. Where nobody knows its usage all that is set aside is charged."""
    if failure.usage is not None:
        failure.usage = outlay.used(failure.usage)
    return failure
