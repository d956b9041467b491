"""Rows between stages: results become the next stage's rows, and groups close when all that could join has ended."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, cast

from weaverant.protocols import Unreadable
from weaverant.row import child_key, group_key, row_digest
from weaverant.runtime.ledger import Ledger
from weaverant.task import Row
from weaverant.trace import plain
from weaverant.workflow import Group, Workflow

Refused = tuple[Row, Unreadable]


class StageBook:
    """Which rows the results of a stage become, and when a group may be formed. Counts what enters in the ledger."""

    def __init__(self, stages: Sequence[Workflow | Group], ledger: Ledger) -> None:
        self.stages = stages
        self._ledger = ledger
        self._members: dict[int, list[Row]] = {i: [] for i, stage in enumerate(stages) if isinstance(stage, Group)}

    def enter(self, row: Row, result: Any) -> list[Row | Refused]:
        """The rows that the result of a done task is for the next stage, so far as they can start now. What is no
        mapping is refused there, as a row that cannot be read."""
        stage = row.stage + 1
        if stage == len(self.stages):
            return []
        items = cast("list[Any]", result) if isinstance(result, list) else [result]
        rows = [self._child(row, n, item) for n, item in enumerate(items)]
        refused = [got for got in rows if isinstance(got, tuple)]
        fit = [got for got in rows if isinstance(got, Row)]
        members = self._members.get(stage)
        if members is not None:
            members.extend(fit)
            fit = []
        self._ledger.stages[stage].rows += len(fit) + len(refused)
        return [*fit, *refused]

    def _child(self, parent: Row, number: int, value: Any) -> Row | Refused:
        key, stage = child_key(parent.key, number), parent.stage + 1
        try:
            row = Row(key, stage, parent.order, row_digest(value, 0), value, (parent.key,))
        except (ValueError, OverflowError, RecursionError) as error:  # a run without a journal has not stored it yet
            row = Row(key, stage, parent.order, b"", None, (parent.key,))
            return row, Unreadable(f"the row cannot be stored: {error}", key)
        return row if isinstance(value, dict) else (row, _no_row(row, self.stages[stage].name))

    def close_groups(self) -> list[Row | Refused]:
        """Form the groups of every stage whose parents have all ended. Call only when the source is at its end."""
        formed: list[Row | Refused] = []
        for stage in sorted(self._members):
            if any(before.left for before in self._ledger.stages[:stage]):
                break
            formed += self._form(stage, self._members.pop(stage))
            if formed:
                break
        return formed

    @property
    def waiting(self) -> bool:
        """There are groups still to be formed."""
        return bool(self._members)

    def _form(self, stage: int, members: list[Row]) -> list[Row | Refused]:
        group = self.stages[stage]
        assert isinstance(group, Group)
        gathered: dict[str, tuple[Any, list[Row]]] = {}
        formed: list[Row | Refused] = []
        for row in sorted(members, key=lambda row: _natural(row.key)):
            try:
                by = plain(group.by(row.value), f"the key of group {group.name!r}")
            except Exception as error:  # the boundary to a user's code
                text = f"group {group.name!r} has no key for it: {error!r}; it has: {', '.join(map(repr, row.value))}"
                formed.append((row, Unreadable(text, row.key)))
                continue
            gathered.setdefault(repr(by), (by, []))[1].append(row)
        formed += [self._group_row(stage, group.name, by, rows) for by, rows in gathered.values()]
        self._ledger.stages[stage].rows += len(formed)
        return formed

    @staticmethod
    def _group_row(stage: int, name: str, by: Any, rows: list[Row]) -> Row:
        names = [repr(by), *(f"{row.key}:{row.digest.hex()}" for row in rows)]
        value = [row.value for row in rows]
        parents = tuple(dict.fromkeys(parent for row in rows for parent in row.parents))
        order = min(row.order for row in rows)
        return Row(group_key(stage, name, names), stage, order, row_digest(value, 0), value, parents)


def _no_row(row: Row, stage: str) -> Unreadable:
    found = type(row.value).__name__
    return Unreadable(f"stage {stage!r} takes rows, which are mappings; the stage before returned {found}", row.key)


def key_of(got: Row | Refused) -> str:
    """The key of a row, whether it can be used or not."""
    return got[0].key if isinstance(got, tuple) else got.key


def _natural(key: str) -> list[tuple[int, str]]:
    """Keys in the order of the source: numbers by value."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"[./]", key)]
