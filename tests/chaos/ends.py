"""When and why peers' journals were ended: as fences in the shared directory tell, or the last pieces in a store."""

from __future__ import annotations

from pathlib import Path

import msgspec

from weaverant.journal.chain import FencePiece
from weaverant.journal.homes import fence_of, home_of

NEVER = float("inf")


class Ends:
    """Of the run in a directory, or in the store in one."""

    def __init__(self, place: Path, in_store: bool) -> None:
        self._place = place
        self._in_store = in_store

    def time(self, epoch: int) -> float:
        """From then on its writer acknowledges nothing (Unix seconds); `NEVER` where it was not ended."""
        if self._in_store:
            path = self._piece(epoch)
            return NEVER if path is None else path.stat().st_ctime  # when it got its name
        path = home_of(self._place, epoch) / "fenced"
        return path.stat().st_mtime if path.exists() else NEVER

    def why(self, epoch: int) -> str:
        """Empty where it was not ended."""
        if not self._in_store:
            fence = fence_of(home_of(self._place, epoch))
            return "" if fence is None else fence.why
        path = self._piece(epoch)
        return "" if path is None else msgspec.json.decode(path.read_bytes(), type=FencePiece).why

    def office(self, generation: int) -> float:
        """When that office began; `NEVER` where it did not."""
        path = self._place / "peers" / f"office.{generation}"
        return path.stat().st_mtime if path.exists() else NEVER

    def _piece(self, epoch: int) -> Path | None:
        """The fence in the store. The mark that one is wanted ends nothing: pieces before the fence count."""
        pieces = [path for path in (home_of(self._place, epoch) / "journal").glob("*") if path.name.isdecimal()]
        last = max(pieces, key=lambda path: int(path.name), default=None)
        return last if last is not None and last.read_bytes()[:1] == b"{" else None
