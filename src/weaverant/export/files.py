"""The files that samples go to. Nothing shows under its name before all of it is written."""

from __future__ import annotations

import gzip
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Protocol, cast

from weaverant.errors import UserError, WeaverantError, is_full
from weaverant.export.samples import Sample, decode, encode

FILE_FIELD = "_file"
"""The field of a sample that names the file it goes to, inside the folder that `--out` names."""

SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")
BATCH = 1_000
"""Samples of a parquet file that are in memory at once."""


class Writer(Protocol):
    """One file in the making."""

    def add(self, line: bytes) -> None: ...

    def finish(self) -> None:
        """Everything is under `path` now."""
        ...

    def give_up(self) -> None:
        """Leave nothing behind but what has been finished."""
        ...


class Lines:
    """`.jsonl`, and `.jsonl.gz` without time and name inside, so that equal samples make equal bytes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._unfinished = path.with_name(path.name + ".tmp")
        self._unfinished.unlink(missing_ok=True)
        self._raw = self._unfinished.open("xb")  # never through a link, which may lead anywhere
        self._file: BinaryIO = self._raw
        if path.name.endswith(".gz"):
            self._file = cast("BinaryIO", gzip.GzipFile("", "wb", 6, self._raw, mtime=0))

    def add(self, line: bytes) -> None:
        self._file.write(line)
        self._file.write(b"\n")

    def finish(self) -> None:
        self._close()
        self._unfinished.replace(self._path)

    def give_up(self) -> None:
        with suppress(OSError):
            try:
                self._close()
            finally:
                self._unfinished.unlink(missing_ok=True)

    def _close(self) -> None:
        try:
            if self._file is not self._raw:
                self._file.close()
        finally:
            self._raw.close()


class Parquet:
    """`.parquet`: lines first, then columns, because only all samples together tell the columns and their types."""

    def __init__(self, path: Path) -> None:
        self._arrow, self._parquet = _pyarrow(path)
        self._path = path
        self._unfinished = path.with_name(path.name + ".tmp")
        self._text = path.with_name(path.name + ".jsonl")
        self._lines = Lines(self._text)
        self._schema: Any = None
        self._batch: list[Sample] = []

    def add(self, line: bytes) -> None:
        self._lines.add(line)
        self._batch.append(decode(line))
        if len(self._batch) == BATCH:
            self._widen()

    def finish(self) -> None:
        self._widen()
        self._lines.finish()
        arrow = self._arrow
        self._unfinished.unlink(missing_ok=True)
        try:
            with self._parquet.ParquetWriter(self._unfinished, self._schema or arrow.schema([])) as writer:
                for batch in self._batches():
                    writer.write_table(arrow.Table.from_pylist(batch, schema=self._schema))
        finally:
            self._text.unlink(missing_ok=True)
        self._unfinished.replace(self._path)

    def give_up(self) -> None:
        self._lines.give_up()
        with suppress(OSError):
            self._unfinished.unlink(missing_ok=True)

    def _widen(self) -> None:
        """Let the schema hold the samples of the batch, too."""
        if not self._batch:
            return
        arrow = self._arrow
        try:
            found = arrow.Table.from_pylist(self._batch).schema
            known = found if self._schema is None else self._schema
            self._schema = arrow.unify_schemas([known, found], promote_options="permissive")
        except arrow.ArrowException as error:
            raise UserError(
                f"the samples do not fit into columns: {error}. Fields of one name need one type; .jsonl takes any"
            ) from None
        self._batch = []

    def _batches(self) -> Iterator[list[Sample]]:
        with self._text.open("rb") as file:
            while batch := [decode(line) for line in islice(file, BATCH)]:
                yield batch


class StandardOutput:
    """`-`."""

    def add(self, line: bytes) -> None:
        sys.stdout.buffer.write(line + b"\n")

    def finish(self) -> None:
        sys.stdout.buffer.flush()

    def give_up(self) -> None: ...


class Sink:
    """Takes samples; `counts` tells how many went to each file. Leaving it by an exception leaves no file."""

    def __init__(self, out: str, check: Callable[[Path], None]) -> None:
        self.counts: dict[str, int] = {}
        self._out = out
        self._check = check
        self._writers: dict[str, Writer] = {}
        self._split: bool | None = None

    def __enter__(self) -> Sink:
        return self

    def add(self, sample: Sample, where: str) -> None:
        """`where` is who made the sample, for the text of an error. `NotFinite` leaves everything as it was."""
        split = FILE_FIELD in sample
        if self._split not in (None, split):
            raise UserError(f"{where}: some samples name their file in {FILE_FIELD!r} and some do not; name it in all")
        self._split = split
        name = self._name(sample, where) if split else self._out
        line = encode({key: value for key, value in sample.items() if key != FILE_FIELD}, where)
        writer = self._writers.get(name)
        if writer is None:
            writer = self._writers[name] = self._open(name)
        try:
            writer.add(line)
        except OSError as error:
            raise _unwritten(name, error) from error
        self.counts[name] = self.counts.get(name, 0) + 1

    def _name(self, sample: Sample, where: str) -> str:
        """Where a sample that names its file goes."""
        name: object = sample[FILE_FIELD]
        if not isinstance(name, str) or Path(name).name != name or not name.isprintable():
            raise UserError(f"{where}: {FILE_FIELD!r} is {name!r}; expected a plain file name like 'sft.jsonl'")
        if self._out == "-" or self._out.endswith(SUFFIXES) or Path(self._out).is_file():
            raise UserError(
                f"{where} makes several files ({name!r} is one), so --out must be a folder; found {self._out!r}"
            )
        return str(Path(self._out) / name)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if kind is not None:
            for writer in self._writers.values():
                writer.give_up()
            return
        if not self._writers and (self._out == "-" or self._out.endswith(SUFFIXES)):
            self._writers[self._out] = self._open(self._out)
            self.counts[self._out] = 0
        try:
            for name, writer in self._writers.items():
                try:
                    writer.finish()
                except OSError as error:
                    raise _unwritten(name, error) from error
        finally:
            for writer in self._writers.values():
                writer.give_up()

    def _open(self, name: str) -> Writer:
        if name == "-":
            return StandardOutput()
        path = Path(name)
        if not name.endswith(SUFFIXES):
            raise UserError(
                f"cannot tell the format of {name!r} by its name; expected one ending in {', '.join(SUFFIXES)}"
            )
        self._check(path)
        return _new_file(path)


def open_sink(out: str, check: Callable[[Path], None] = lambda path: None) -> Sink:
    """The files of one export: `-`, a file, or a folder for samples that name their files. `check` raises for a file
    that must not be written."""
    return Sink(out, check)


def _new_file(path: Path) -> Writer:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(path.parent, os.W_OK):
            raise PermissionError(13, "no permission to write there")
        return Parquet(path) if path.suffix == ".parquet" else Lines(path)
    except OSError as error:
        if is_full(error):
            raise _unwritten(str(path), error) from error
        raise UserError(f"the file {str(path)!r} cannot be written: {error.strerror}") from None


def _unwritten(name: str, error: OSError) -> Exception:
    """What to raise. A pipe that nobody reads any more is nothing to tell of, and stays as it is."""
    if isinstance(error, BrokenPipeError):
        return error
    why = error.strerror or error
    if name == "-":
        return WeaverantError(f"standard output cannot be written: {why}. What came before is no whole export")
    return WeaverantError(
        f"the file {name!r} cannot be written: {why}. Nothing of it was kept: free some room, or choose another place "
        "with --out"
    )


def _pyarrow(path: Path) -> tuple[Any, Any]:
    try:
        import pyarrow  # pyright: ignore[reportMissingImports]
        import pyarrow.parquet as parquet  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise UserError(
            f"{str(path)!r} needs pyarrow, which is not installed: pip install 'weaverant[data]', or choose .jsonl"
        ) from None
    return cast("Any", pyarrow), cast("Any", parquet)
