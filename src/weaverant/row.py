"""Rows and the keys of tasks.

A task's key is text: `SOURCE.INDEX.TRIAL` for a row of a source, `PARENT/ORDINAL` for a row that an earlier stage
made, `STAGE@HASH` for a group. A row's own `id` is kept and never trusted to be unique.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from weaverant.message import digest

_canonical = msgspec.msgpack.Encoder(order="deterministic").encode


def source_key(source: int, index: int, trial: int) -> str:
    return f"{source}.{index}.{trial}"


def child_key(parent: str, ordinal: int) -> str:
    return f"{parent}/{ordinal}"


def parent_key(child: str) -> str:
    """The inverse of `child_key`."""
    return child.rpartition("/")[0]


def group_key(stage: int, name: str, members: Iterable[str]) -> str:
    """A group is named by its stage and the hash of its name and members: another member, another group."""
    return f"{stage}@{digest(_canonical([name, *members])).hex()}"


def stage_of(key: str) -> int:
    """The stage that a task of this key belongs to, 0 being the first. `ValueError` for what is no key."""
    root, *children = key.split("/")
    stage, at, _ = root.partition("@")
    if not at and (place := source_place(key)) and source_key(*place) != root:
        raise ValueError(f"{key!r} is no task's key")
    return len(children) + (int(stage) if at else 0)


def belongs(key: str, stage: int) -> bool:
    """Whether this is the stage of the key's task."""
    if "@" not in key:
        return key.count("/") == stage
    try:
        return stage_of(key) == stage
    except ValueError:
        return False


def source_place(key: str) -> tuple[int, int, int] | None:
    """(source, index, trial) of the source row a key goes back to; None for a group and what came of one."""
    if "@" in key:
        return None
    source, index, trial = key.partition("/")[0].split(".")
    return int(source), int(index), int(trial)


def row_digest(row: Any, trial: int) -> bytes:
    """What `--reuse` finds a row by, wherever it stands in the input: its content and its trial."""
    return digest(_canonical([row, trial]))
