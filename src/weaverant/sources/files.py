"""Rows from files: one, a folder of them (with its subfolders), or a glob, in the order of their paths."""

from __future__ import annotations

import os
from collections.abc import Iterator
from difflib import get_close_matches
from glob import glob, has_magic
from typing import Any, cast

from weaverant.errors import UserError
from weaverant.message import digest
from weaverant.sources.csv import Cells, SeparatedValues
from weaverant.sources.json_array import JsonArray
from weaverant.sources.jsonl import JsonLines
from weaverant.sources.parquet import Parquet
from weaverant.sources.record import Format, Row

SUFFIXES: dict[str, Format] = {
    ".jsonl": JsonLines(),
    ".jsonl.gz": JsonLines(),
    ".json": JsonArray(),
    ".csv": SeparatedValues(","),
    ".tsv": SeparatedValues("\t"),
    ".parquet": Parquet(),
}
END_BYTES = 1 << 20
RUN_BEGINS = b'{\n  "workflow": '
"""What the `run.json` of a run's directory begins with."""

_EXPECTED = (
    f"expected a file ending in {', '.join(SUFFIXES)}, a folder or a glob of such files, or - for standard input"
)


class Files:
    """The rows of the files that `spec` names when it is opened; hidden files and the directories of runs are
    left out of folders."""

    def __init__(self, spec: str) -> None:
        self._spec = spec
        self._files = [(path, _format(path)) for path in _find(spec)]

    @property
    def name(self) -> str:
        return self._spec

    @property
    def rereadable(self) -> bool:
        return True

    def identity(self) -> str:
        """Of each file its size, its first and its last MiB, as `bytes=12 ...`, a part for each check: quick for any
        size, and blind only to an edit of equal length in the middle of a large file."""
        sizes, firsts, lasts = zip(*(_ends(path) for path, _ in self._files), strict=True)
        hashes = {"sizes": [size.to_bytes(8, "little") for size in sizes], "first": firsts, "last": lasts}
        parts = {"files": len(sizes), "bytes": sum(sizes)}
        parts |= {name: digest(b"".join(each)).hex() for name, each in hashes.items()}
        return " ".join(f"{name}={value}" for name, value in parts.items())

    def count(self) -> int | None:
        total = 0
        for path, form in self._files:
            count = form.count(path)
            if count is None:
                return None
            total += count
        return total

    def rows(self, start: int) -> Iterator[Row]:
        for path, form in self._files:
            try:
                records, passed = form.records(path, start)
                start -= passed
                for record in records:
                    yield form.row(path, record)
            except OSError as error:
                raise UserError(f"the input {path!r} cannot be opened: {error.strerror or error}") from None


def located(spec: str) -> Iterator[tuple[str, str, Row]]:
    """Each row of what `Files` names, with its file and where it stands there: `FILE:LINE`, or `FILE[INDEX]`."""
    for path in _find(spec):
        form = _format(path)
        try:
            for number, record in enumerate(form.records(path, 0)[0]):
                yield path, _place(path, record, number), form.row(path, record)
        except OSError as error:
            raise UserError(f"the input {path!r} cannot be opened: {error.strerror or error}") from None


def _place(path: str, record: Any, number: int) -> str:
    if isinstance(record, Cells):
        return f"{path}:{record.line}"
    by_line = path.endswith((".jsonl", ".jsonl.gz")) and isinstance(record, tuple)
    return f"{path}:{cast('tuple[int, bytes]', record)[0]}" if by_line else f"{path}[{number}]"


def _ends(path: str) -> tuple[int, bytes, bytes]:
    """A file's size, and hashes of its first and last MiB."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            first = file.read(END_BYTES)
            file.seek(max(0, size - END_BYTES))
            return size, digest(first), digest(file.read(END_BYTES))
    except OSError as error:
        raise UserError(f"the input {path!r} cannot be opened: {error.strerror or error}") from None


def _find(spec: str) -> list[str]:
    if os.path.isdir(spec):
        if _is_run(spec):
            raise UserError(f"{spec!r} is the directory of a run; give the file that `weaverant export` made of it")
        paths = sorted(_inside(spec))
        if not paths:
            raise UserError(f"the folder {spec!r} has no file we can read; expected some in {', '.join(SUFFIXES)}")
        return paths
    if os.path.isfile(spec):
        return [spec]
    if os.path.exists(spec):
        raise UserError(
            f"{spec!r} is no regular file, and rows are read more than once; expected a file on disk, or JSON lines on "
            f"standard input: --input - < {spec}"
        )
    if has_magic(spec):
        paths = sorted(path for path in glob(spec, recursive=True) if os.path.isfile(path))
        if not paths:
            raise UserError(f"no file fits the glob {spec!r} from the folder {os.getcwd()!r}; {_EXPECTED}")
        return paths
    raise UserError(f"no file {spec!r}{_near(spec)}; {_EXPECTED}")


def _inside(folder: str) -> Iterator[str]:
    for parent, folders, names in os.walk(folder):
        folders[:] = [n for n in folders if not n.startswith(".") and not _is_run(os.path.join(parent, n))]
        for name in names:
            path = os.path.join(parent, name)
            if not name.startswith(".") and name.endswith(tuple(SUFFIXES)) and os.path.isfile(path):
                yield path


def _is_run(folder: str) -> bool:
    """Whether a run stores itself there: its files are no rows, and come and go while it goes on."""
    try:
        with open(os.path.join(folder, "run.json"), "rb") as file:
            return file.read(len(RUN_BEGINS)) == RUN_BEGINS
    except OSError:
        return False


def _format(path: str) -> Format:
    for suffix, form in SUFFIXES.items():
        if path.endswith(suffix):
            return form
    raise UserError(f"cannot tell the format of {path!r} by its name; {_EXPECTED}")


def _near(spec: str) -> str:
    folder, name = os.path.split(spec)
    if not os.path.isdir(folder or "."):
        return f" (there is no folder {folder!r} either)"
    close = get_close_matches(name, os.listdir(folder or "."), 3, 0.5)
    return f" (near it: {', '.join(os.path.join(folder, each) for each in close)})" if close else ""
