"""The addresses of a pool: written out, or in a file that may change while the run goes on."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import NamedTuple

import msgspec

from weaverant.engines.http.address import Address, parse
from weaverant.engines.http.key import HIDDEN, looks_random
from weaverant.engines.http.presets import PRESETS
from weaverant.errors import UserError

_STARTS = rf"(?:https?://|(?:{'|'.join(PRESETS)}):)"
_COMMA = re.compile(rf"\s*,\s*(?={_STARTS})")
_ADDRESS = re.compile(_STARTS)

SETTLED_S = 0.2
"""A file that was changed more recently than this may be half written."""


def split(spec: str) -> list[str] | None:
    """The addresses of `URL,URL`; None where the spec names a file. A comma inside an address stays."""
    return _COMMA.split(spec.strip().rstrip(",")) if _ADDRESS.match(spec.strip()) else None


class Listed(NamedTuple):
    """What stands in a file: addresses in its order, each once, and what is wrong with other lines."""

    addresses: list[Address]
    wrong: list[str]


class Roster:
    """A file with one address a line and comments after `#` at a line's beginning; `FILE#model` says which model an
    address without one means."""

    def __init__(self, spec: str) -> None:
        path, _, self.model = spec.partition("#")
        self.path = Path(path)
        self._seen: tuple[int, int] | None = None

    def changed(self) -> Listed | None:
        """What it says; None where it says what it said last time, or cannot be read just now."""
        try:
            stat = self.path.stat()
            if self._seen == (stat.st_mtime_ns, stat.st_size):
                return None
            if self._seen is not None and 0.0 <= time.time() - stat.st_mtime < SETTLED_S:
                return None
            text = self.path.read_text(errors="replace")
        except OSError:
            return None
        self._seen = (stat.st_mtime_ns, stat.st_size)
        return self._read(text)

    def first(self) -> Listed:
        """What it says at the start, when it must be there."""
        listed = self.changed()
        if listed is None:
            named = HIDDEN if looks_random(self.path.name) else repr(str(self.path))
            raise UserError(
                f"the pool's file {named} cannot be read; expected addresses, one a line, "
                "or write them out: pool:http://a:8000/v1#model,http://b:8000/v1#model"
            )
        return listed

    def _read(self, text: str) -> Listed:
        found: dict[Address, None] = {}
        wrong: list[str] = []
        for number, line in enumerate(text.splitlines(), 1):
            line = line.strip()
            if not line or line.startswith("#"):
                continue
            try:
                found[self._address(line)] = None
            except UserError as error:
                wrong.append(f"{self.path.name}:{number} is left out: {error}")
        return Listed(list(found), wrong)

    def _address(self, line: str) -> Address:
        address = parse(line)
        if address.model or not self.model:
            return address
        return msgspec.structs.replace(address, model=self.model)
