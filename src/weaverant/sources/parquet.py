"""Parquet files, read a batch at a time. Needs the extra `weaverant[data]`."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import Any, TypeAlias, cast

from weaverant.errors import UserError
from weaverant.protocols import Unreadable
from weaverant.sources.record import Row, pass_over

BATCH = 1024
_ERRORS = (OSError, ValueError, LookupError, TypeError, ArithmeticError, NotImplementedError, RuntimeError, MemoryError)
"""What pyarrow raises for files that are damaged, or hold what it cannot turn into values of Python."""


class _Batch:
    """Decoded when its first row is wanted, so that passing over it is cheap."""

    __slots__ = ("_batch", "_rows")

    def __init__(self, batch: Any) -> None:
        self._batch = batch
        self._rows: list[dict[str, Any]] | None = None

    def __getitem__(self, index: int) -> dict[str, Any]:
        rows = self._rows
        if rows is None:
            rows = self._rows = cast("list[dict[str, Any]]", self._batch.to_pylist())
        return rows[index]


Place: TypeAlias = tuple[_Batch, int] | Unreadable


class Parquet:
    """`.parquet`."""

    def records(self, path: str, start: int) -> tuple[Iterator[Place], int]:
        return pass_over(self._records(path), start)

    def _records(self, path: str) -> Iterator[Place]:
        arrow = _pyarrow()
        seen = 0
        try:
            with arrow.ParquetFile(path) as file:
                for batch in file.iter_batches(BATCH):
                    rows = _Batch(batch)
                    for index in range(batch.num_rows):
                        yield rows, index
                    seen += batch.num_rows
        except _ERRORS as error:
            yield Unreadable(f"the file cannot be read on: {error}", f"{path}[{seen}]")

    def row(self, path: str, record: Place) -> Row:
        if isinstance(record, Unreadable):
            return record
        batch, index = record
        try:
            return batch[index]
        except _ERRORS as error:
            return Unreadable(f"the row cannot be read: {error}", f"{path}, row {index} of a batch")

    def count(self, path: str) -> int | None:
        try:
            return _pyarrow().read_metadata(path).num_rows
        except _ERRORS:
            return None


def _pyarrow() -> Any:
    try:
        return import_module("pyarrow.parquet")
    except ModuleNotFoundError:
        raise UserError(
            "reading .parquet files needs pyarrow, which is not installed. Run: pip install 'weaverant[data]'"
        ) from None
