"""From files to a `Table`: rows with `scores` by model, or flat columns with one for each model.

Any format of `weaverant run --input` is read. A mistake is a `UserError` with the file and the line: a grade that
cannot be read is never taken for one that was not given.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard, cast

from weaverant.errors import UserError
from weaverant.protocols import Unreadable
from weaverant.routing.table import Graded, Table
from weaverant.sources.files import located

QUERY = ("query", "question", "prompt")
SET = ("set", "task", "task_name", "dataset")
KINDS = ("cost", "latency")
"""Of flat columns `cost:MODEL` and `latency:MODEL`."""
TRUTHS = {"true": 1.0, "false": 0.0}


class Row(NamedTuple):
    """One record and where it stands: `FILE:LINE`."""

    where: str
    values: Mapping[str, Any]
    file: str


def read_table(
    spec: str | Path, *, query: str | None = None, set: str | None = None, models: Sequence[str] | None = None
) -> Table:
    """The table in a file, a folder or a glob. `query` and `set` name columns, `models` those wanted.

    Of several files without a column that tells the set, each file's name does. `UserError` for what cannot be read.
    """
    rows = list(_rows(str(spec)))
    if not rows:
        raise UserError(f"the table {str(spec)!r} has no rows; expected one for each graded query")
    several = len({row.file for row in rows}) > 1
    if models is not None:
        _check_wanted(rows, models, str(spec))
    flat = _Flat.of([row for row in rows if "scores" not in row.values], query, set, models)
    graded = [_nested(row, models) if "scores" in row.values else flat.scores(row) for row in rows]
    found = [
        Graded(_query(row, query), scores, cost, latency, _set(row, set, several))
        for row, (scores, cost, latency) in zip(rows, graded, strict=True)
    ]
    try:
        return Table.of(found, models)
    except UserError as error:
        raise UserError(f"the table {str(spec)!r}: {error}") from None


def _check_wanted(rows: Sequence[Row], models: Sequence[str], spec: str) -> None:
    """`UserError` for a model that no row names. Of flat rows any column may be meant."""
    nested = {name: None for row in rows if "scores" in row.values for name in _named(row, "scores")}
    columns = {name: None for row in rows if "scores" not in row.values for name in row.values}
    names = [*sorted(nested), *columns]
    for name in models:
        if name not in names:
            found = ", ".join(map(repr, names[:20])) + (" ..." if len(names) > 20 else "")
            raise UserError(f"the table {spec!r}: no row has a score of the model {name!r}; found {found}")


def read_queries(spec: str | Path, query: str | None = None) -> list[str]:
    """Texts alone: the query of each row of a table, or each line of a `.txt`."""
    if str(spec).endswith(".txt"):
        try:
            return [line for line in Path(spec).read_text(encoding="utf-8").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{str(spec)!r} cannot be read: {error}") from None
    return [_query(row, query) for row in _rows(str(spec))]


def _rows(spec: str) -> Iterator[Row]:
    for file, where, found in located(spec):
        if isinstance(found, Unreadable):
            raise UserError(f"{found.where}: {found.text}")
        yield Row(where, found, file)


def _query(row: Row, named: str | None) -> str:
    name = named or next((name for name in QUERY if name in row.values), None)
    if name is None or name not in row.values:
        expected = f"the column {named!r}" if named else f"a query in {', '.join(QUERY[:-1])} or {QUERY[-1]}"
        raise UserError(
            f"{row.where}: expected {expected}; found {_shown(row.values)}. Name the column: --query-column NAME"
        )
    text = row.values[name]
    if not isinstance(text, str) or not text.strip():
        raise UserError(f"{row.where}: expected a text in {name!r}; found {text!r:.60}")
    return text


def _set(row: Row, named: str | None, several: bool) -> str:
    name = named or next((name for name in SET if name in row.values), None)
    if name is None:
        return os.path.basename(row.file).partition(".")[0] if several else ""
    if name not in row.values:
        raise UserError(f"{row.where}: expected the column {name!r}; found {_shown(row.values)}")
    found = row.values[name]
    return "" if found is None else str(found)


Numbers = dict[str, float]


def _nested(row: Row, models: Sequence[str] | None) -> tuple[Numbers, Numbers, Numbers]:
    """Of a row with `scores`, `cost` and `latency` by model."""
    scores, cost, latency = (_named(row, field) for field in ("scores", *KINDS))
    wanted = set(scores) if models is None else set(models)
    given = {name: _score(row, name, value) for name, value in scores.items() if name in wanted}
    for field, values in zip(KINDS, (cost, latency), strict=True):
        if models is None and (strange := sorted(set(values) - set(scores))):
            raise UserError(f"{row.where}: {field!r} has {strange[0]!r}, of which 'scores' knows nothing")
    return (
        _present(given),
        _present({name: _amount(row, "cost", name, value) for name, value in cost.items() if name in wanted}),
        _present({name: _amount(row, "latency", name, value) for name, value in latency.items() if name in wanted}),
    )


def _named(row: Row, field: str) -> Mapping[str, Any]:
    found = row.values.get(field)
    if found is None and field != "scores":
        return {}
    if not isinstance(found, Mapping):
        raise UserError(f"{row.where}: expected {field!r} to be numbers by model; found {found!r:.60}")
    return cast("Mapping[str, Any]", found)


class _Flat(NamedTuple):
    """Which columns of flat rows say what."""

    models: tuple[str, ...]
    asked: bool
    """Whether the models were named by whoever reads the table."""

    @staticmethod
    def of(rows: Sequence[Row], query: str | None, set_: str | None, models: Sequence[str] | None) -> _Flat:
        """The columns named, or those of which at least half of what they hold are grades."""
        if models is not None or not rows:
            return _Flat(tuple(models or ()), True)
        apart = {query, set_, *QUERY, *SET}
        good: dict[str, int] = {}
        for row in rows:
            for name, value in row.values.items():
                if name not in apart and name.partition(":")[0] not in KINDS and not _absent(value):
                    good[name] = good.get(name, 0) + (1 if _is_grade(value) else -1)
        found = tuple(name for name, balance in good.items() if balance >= 0)
        if not found:
            raise UserError(
                f"{rows[0].where}: expected 'scores' by model, or a column of numbers from 0 to 1 (or true and false) "
                f"for each model; found {_shown(rows[0].values)}"
            )
        return _Flat(found, False)

    def scores(self, row: Row) -> tuple[Numbers, Numbers, Numbers]:
        scores = {name: _score(row, name, row.values.get(name)) for name in self.models}
        cost, latency = (
            {name: _amount(row, kind, name, row.values.get(f"{kind}:{name}")) for name in self.models} for kind in KINDS
        )
        for column in row.values:
            kind, colon, name = column.partition(":")
            if colon and kind in KINDS and name not in self.models and not self.asked:
                raise UserError(f"{row.where}: there is a column {column!r}, but none of grades called {name!r}")
        return _present(scores), _present(cost), _present(latency)


def _score(row: Row, model: str, value: Any) -> float | None:
    if _absent(value):
        return None
    found = _number(value)
    if found is None or not 0.0 <= found <= 1.0:
        raise UserError(
            f"{row.where}: expected a score of {model!r} from 0 to 1, or true or false; found {value!r:.60}. "
            "Scale it to that range; if that is no model, name those that are: --models NAME,NAME"
        )
    return found


def _amount(row: Row, kind: str, model: str, value: Any) -> float | None:
    if _absent(value):
        return None
    found = _number(value)
    if found is None or isinstance(value, bool) or found < 0.0:
        unit = "dollars" if kind == "cost" else "seconds"
        raise UserError(f"{row.where}: expected the {kind} of {model!r} in {unit}, 0 or more; found {value!r:.60}")
    return found


def _absent(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def _is_grade(value: Any) -> bool:
    found = _number(value)
    return found is not None and 0.0 <= found <= 1.0


def _number(value: Any) -> float | None:
    """A finite number, or a truth, in a value or a cell of text."""
    if isinstance(value, str):
        text = value.strip()
        if text.lower() in TRUTHS:
            return TRUTHS[text.lower()]
        try:
            value = float(text)
        except ValueError:
            return None
    return float(value) if _is_number(value) and math.isfinite(value) else None


def _is_number(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, (int, float))


def _present(values: Mapping[str, float | None]) -> Numbers:
    return {name: value for name, value in values.items() if value is not None}


def _shown(values: Mapping[str, Any]) -> str:
    names = list(values)
    return "the columns " + ", ".join(map(repr, names[:8])) + (" ..." if len(names) > 8 else "")
