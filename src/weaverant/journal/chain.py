"""One journal in a store: a chain of pieces, each named by how many bytes stand before it. Its last may be a fence.

A piece is what a writer made durable at once, bytes of one segment: all pieces in order are all segments in order, byte
for byte. Whoever goes on creates the name that follows, and only one can: the writer, or one who ends the journal by
putting a fence there. So a writer whose piece stands there knows that no fence stands before it, those who fence agree
for ever, and nobody's clock or pause matters.
"""

from __future__ import annotations

import secrets
import time
from pathlib import PurePosixPath

import msgspec
from msgspec import Struct

from weaverant.journal.homes import OWN, Fenced
from weaverant.journal.objects import Objects

LOOK_S = 1.0
"""Seconds between a writer's looks for the mark that somebody wants it to end."""


class FencePiece(Struct, frozen=True):
    """The last piece of a journal that was ended; JSON, which no other piece begins like."""

    why: str
    nonce: str
    """Tells it from all others."""


class Chain:
    """The names of one journal's objects."""

    def __init__(self, objects: Objects, epoch: int) -> None:
        self._objects = objects
        self._home = PurePosixPath(home_name(epoch))
        self.epoch = epoch

    def positions(self) -> list[int]:
        """Where pieces begin, ascending."""
        names = self._objects.names(str(self._home / "journal"))
        return sorted(int(name) for name in names if name.isdecimal())

    def get(self, position: int) -> bytes:
        return self._objects.get(self._name(position))

    def add(self, position: int, data: bytes) -> bool:
        """Whether this is the piece that stands there from now on."""
        return self._objects.create(self._name(position), data)

    def fence(self, position: int, why: str) -> None:
        """Put a fence there, unless another piece is there."""
        self.add(position, msgspec.json.encode(FencePiece(why, secrets.token_hex(8))))

    def mark(self) -> None:
        """Ask the writer to stop: one that goes on fast could always be ahead of a fence. No more than that hangs on
        it."""
        self._objects.create(str(self._home / "fenced"), b"")

    def is_marked(self) -> bool:
        try:
            self._objects.get(str(self._home / "fenced"))
        except FileNotFoundError:
            return False
        return True

    def _name(self, position: int) -> str:
        return str(self._home / "journal" / f"{position:015}")


class Shipper:
    """The writer's side of a store: what goes there before it is acknowledged. Used by one thread at a time."""

    def __init__(self, chain: Chain, objects: Objects, position: int) -> None:
        """`position` is the end of what stands there."""
        self._chain = chain
        self._objects = objects
        self._position = position
        self._looked = time.monotonic()

    def piece(self, data: bytes) -> None:
        """Return when the next owner can read it. Raises `OSError`; `Fenced` where others have ended the journal."""
        now = time.monotonic()
        if self._chain.epoch != OWN and now - self._looked > LOOK_S:
            self._looked = now
            if self._chain.is_marked():
                raise Fenced(UNHEARD)
        if not self._chain.add(self._position, data):
            raise Fenced("another process goes on with the run" if self._chain.epoch == OWN else UNHEARD)
        self._position += len(data)

    def is_last(self) -> bool:
        """Whether nobody has written behind what went there. Not while a piece is on its way."""
        return all(position < self._position for position in self._chain.positions())

    def blob(self, name: str, data: bytes) -> None:
        """Texts of the same name are the same."""
        self._objects.create(f"blobs/{name}", data)


UNHEARD = "the others have not heard of this peer for too long, and go on with its rows"


def home_name(epoch: int) -> str:
    """As `home_of`, in a store."""
    return f"peers/{epoch:06}" if epoch else ""
