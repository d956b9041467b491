"""`weaverant show DIR --find FIELD=VALUE`: from what a user knows of a row to its key."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from msgspec import Struct

from weaverant.cli.text import clipped
from weaverant.errors import UserError
from weaverant.events import TaskStarted
from weaverant.history import sensible
from weaverant.journal import BlobStore, JournalReader
from weaverant.rundir import load_config
from weaverant.trace import Texts


class Found(Struct, frozen=True):
    """A task whose row has the value."""

    key: str
    state: str
    """`done`, `rejected`, `failed`, `superseded`, or `left` while it has not ended."""
    row: dict[str, Any]


def find(directory: Path, wanted: str) -> list[Found]:
    """The tasks whose row has that value, in order of their start; VALUE is a text, or anything else as JSON. Reads the
    whole journal. `UserError` where there is none."""
    field, equals, value = wanted.partition("=")
    if not equals:
        raise UserError(f"--find is {wanted!r}; expected FIELD=VALUE, as in --find id=x1")
    load_config(directory)
    reader = JournalReader(directory)
    with sensible(f"the run {str(directory)!r}"):
        rows = {key: row for key, row in _rows(reader, BlobStore(directory / "blobs")) if _has(row, field, value)}
    if not rows:
        raise UserError(
            f"the run {str(directory)!r} has begun no row with {field!r} = {value!r}. Rows that have not begun, and "
            "those that could not be read, are not found"
        )
    return [Found(task.task, task.state or "left", rows[task.task]) for task in reader.tasks() if task.task in rows]


def found_lines(found: list[Found], characters: int) -> Iterator[str]:
    for each in found:
        yield f"{each.key}  {each.state}  {clipped(json.dumps(each.row, ensure_ascii=False), 1, characters)}"


def _rows(reader: JournalReader, blobs: BlobStore) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every task with its row; a group's is a list of rows, and none."""
    for event in reader.events():
        if isinstance(event, TaskStarted):
            row = cast("object", event.row)
            if isinstance(row, dict):
                yield event.task, Texts().unpack(row, blobs.get)


def _has(row: dict[str, Any], field: str, value: str) -> bool:
    if field not in row:
        return False
    found = row[field]
    return found == value or (not isinstance(found, str) and json.dumps(found, ensure_ascii=False) == value)
