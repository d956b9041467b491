"""Which files a run's exports wrote, remembered in its directory: the same export may replace them, and no others."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import msgspec
from msgspec import Struct

from weaverant.errors import UserError


class _File(Struct):
    """`how` is the export, `size` in bytes and `changed` in nanoseconds tell whether somebody else wrote it since."""

    how: str
    size: int
    changed: int


class Written:
    """The files of one export, `how` in words. With `force` it replaces whatever is there."""

    def __init__(self, run: Path, how: str, force: bool = False) -> None:
        self._path = run / "exports.json"
        self._how = how
        self._force = force

    def check(self, path: Path) -> None:
        """`UserError` if a file is there that this export did not write, or that was changed since."""
        if self._force or not path.exists():
            return
        if self._known().get(str(path.absolute())) != self._as_is(path):
            raise UserError(
                f"the file {str(path)!r} is there already, and is not what this export of this run last wrote there. "
                "Choose another name with --out, or replace the file with --force"
            )

    def keep(self, paths: Iterable[Path]) -> None:
        """Remember the files as they are now. Where the run's directory cannot be written they are nobody's."""
        known = self._known() | {str(path.absolute()): self._as_is(path) for path in paths}
        unfinished = self._path.with_name(self._path.name + ".tmp")
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
            with unfinished.open("x") as file:  # never through a link, which may lead anywhere
                file.write(json.dumps(msgspec.to_builtins(known), indent=2) + "\n")
            unfinished.replace(self._path)

    def _as_is(self, path: Path) -> _File:
        found = path.stat()
        return _File(self._how, found.st_size, found.st_mtime_ns)

    def _known(self) -> dict[str, _File]:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=dict[str, _File])
        except (OSError, msgspec.DecodeError):
            return {}
