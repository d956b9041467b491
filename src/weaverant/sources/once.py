"""A stream that can be read only once, and knows how far it has been."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

from weaverant.errors import UserError

T = TypeVar("T")


class Once(Generic[T]):
    """Items with their index. Reading can go on from where it stopped, or further on, never back."""

    def __init__(self, items: Iterable[T], name: str) -> None:
        self._items = iter(items)
        self._name = name
        self._next = 0

    def items(self, start: int) -> Iterator[tuple[int, T]]:
        if start < self._next:
            raise UserError(
                f"{self._name!r} can be read only once: row {start} was asked for after {self._next} had been read. "
                "Put the rows into a file or a list to read them again."
            )
        for item in self._items:
            index = self._next
            self._next += 1
            if index >= start:
                yield index, item
