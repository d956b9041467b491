"""One JSON array of objects in a file. The whole file is read into memory; for large data prefer `.jsonl`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

import msgspec

from weaverant.protocols import Unreadable
from weaverant.sources.record import Row, decode_object, excerpt, pass_over

Item: TypeAlias = tuple[int, msgspec.Raw] | Unreadable
"""An item, not decoded, with its index; or why the file holds none."""


class JsonArray:
    """`.json`."""

    def records(self, path: str, start: int) -> tuple[Iterator[Item], int]:
        return pass_over(self._records(path), start)

    def _records(self, path: str) -> Iterator[Item]:
        text = Path(path).read_bytes()
        try:
            items = msgspec.json.decode(text.removeprefix(b"\xef\xbb\xbf"), type=list[msgspec.Raw])
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            problem = f"not a JSON array of objects: {error}; it reads {excerpt(text)}"
            yield Unreadable(f"{problem}. If it has one object a line, name it .jsonl", path)
            return
        yield from enumerate(items)

    def row(self, path: str, record: Item) -> Row:
        if isinstance(record, Unreadable):
            return record
        index, text = record
        return decode_object(bytes(text), f"{path}[{index}]")

    def count(self, path: str) -> None:
        return None
