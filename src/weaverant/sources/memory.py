"""Rows that are Python objects already: a list, or anything that can be iterated."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

from weaverant.protocols import Unreadable
from weaverant.sources.once import Once
from weaverant.sources.record import Row


class MemoryRows:
    """A sequence can be read from any index, any number of times. An iterator or a generator is read once, lazily;
    what was read of it is gone. An item that is no mapping becomes an `Unreadable`, and an `Unreadable` stays one."""

    def __init__(self, rows: Iterable[Mapping[str, Any] | Unreadable], name: str = "memory") -> None:
        self._name = name
        self._sequence = cast("Sequence[object]", rows) if isinstance(rows, Sequence) else None
        self._once = Once(rows, name)

    @property
    def name(self) -> str:
        return self._name

    @property
    def rereadable(self) -> bool:
        return self._sequence is not None

    def identity(self) -> None:
        return None

    def count(self) -> int | None:
        return None if self._sequence is None else len(self._sequence)

    def rows(self, start: int) -> Iterator[Row]:
        if self._sequence is None:
            for index, item in self._once.items(start):
                yield self._row(index, item)
        else:
            for index in range(start, len(self._sequence)):
                yield self._row(index, self._sequence[index])

    def _row(self, index: int, item: object) -> Row:
        if isinstance(item, Mapping):
            return cast("Mapping[str, Any]", item)
        if isinstance(item, Unreadable):
            return item
        kind = type(item).__name__
        return Unreadable(f"a row of type {kind}, expected a mapping; it reads {item!r:.80}", f"{self._name}[{index}]")
