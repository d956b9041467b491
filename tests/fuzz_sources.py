"""Files of rows, whole and spoilt: what is read is what another parser reads, or `Unreadable`; nothing else happens."""

from __future__ import annotations

import csv
import gzip
import io
import json
from importlib.util import find_spec
from pathlib import Path
from random import Random
from typing import Any, NoReturn

from fuzz_data import row, spoilt, text
from weaverant.errors import UserError
from weaverant.protocols import Unreadable
from weaverant.sources import StandardInput, open_source


def sources(odds: Random, folder: Path) -> None:
    kinds = [jsonl, jsonl, packed, array, table, columns if find_spec("pyarrow") else table]
    odds.choice(kinds)(odds, folder)


def jsonl(odds: Random, folder: Path) -> None:
    """Each line on its own: damage in one is not seen in another. Standard input reads the same."""
    lines = [line(odds) for _ in range(odds.randrange(8))]
    data = b"".join(lines)
    found = read(folder / "a.jsonl", data)
    expected = [strict(each) for each in data.removeprefix(b"\xef\xbb\xbf").split(b"\n") if each.strip()]
    assert len(found) == len(expected)
    for got, wanted in zip(found, expected, strict=True):
        agree(got, wanted)
    assert [got for got in StandardInput(io.BytesIO(data)).rows(0) if isinstance(got, dict)] == rows_in(found)


def packed(odds: Random, folder: Path) -> None:
    """What is packed and spoilt gives the first of its rows, and then says that it breaks off."""
    rows = [row(odds) for _ in range(5)]
    whole = gzip.compress(b"".join(json.dumps(one).encode() + b"\n" for one in rows), mtime=0)
    data = spoilt(whole, odds)
    found = read(folder / "a.jsonl.gz", data)
    assert rows_in(found) == rows or data != whole


def array(odds: Random, folder: Path) -> None:
    rows = [row(odds) for _ in range(odds.randrange(5))]
    data = json.dumps(rows, ensure_ascii=odds.random() < 0.5).encode()
    if odds.random() < 0.7:
        data = spoilt(data, odds)
    found = read(folder / "a.json", data)
    try:
        wanted = json.loads(data.removeprefix(b"\xef\xbb\xbf").decode(), parse_constant=refuse)
    except UnicodeDecodeError:
        return  # which of its items it is in, only the one that is read tells
    except (ValueError, RecursionError):
        assert not rows_in(found)
        return
    if isinstance(wanted, list) and storable(wanted):
        for got, one in zip(found, wanted, strict=False):
            agree(got, one)


def table(odds: Random, folder: Path) -> None:
    """What Python's own writer wrote comes back; spoilt, it is rows or `Unreadable`."""
    end, delimiter = odds.choice((("csv", ","), ("tsv", "\t")))
    header = list(dict.fromkeys(["a", *(text(odds) for _ in range(odds.randrange(4)))]))
    cells = [["x", *(text(odds) for _ in header[1:])] for _ in range(odds.randrange(5))]
    made = io.StringIO()
    csv.writer(made, delimiter=delimiter).writerows([header, *cells])
    whole = made.getvalue().encode()
    assert read(folder / f"a.{end}", whole) == [dict(zip(header, each, strict=True)) for each in cells]
    read(folder / f"a.{end}", spoilt(whole, odds))


def columns(odds: Random, folder: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    kinds = [pyarrow.timestamp("ns"), pyarrow.int64(), pyarrow.string(), pyarrow.duration("us"), pyarrow.float64()]
    given = {
        f"c{n}": pyarrow.array([1, None, 2**62], pyarrow.int64()).cast(kind, safe=False) for n, kind in enumerate(kinds)
    }
    path = folder / "whole.parquet"
    parquet.write_table(pyarrow.table(given), path)
    whole = path.read_bytes()
    assert len(read(path, whole)) == 3
    read(folder / "a.parquet", spoilt(whole, odds))


def line(odds: Random) -> bytes:
    plain = json.dumps(row(odds), ensure_ascii=odds.random() < 0.5).encode()
    if odds.random() < 0.4:
        plain = spoilt(plain, odds)
    if odds.random() < 0.1:
        plain = odds.choice(
            (b"[" * 100_000, b'{"a":' * 50_000, b'{"a":' + b"9" * 5_000 + b"}", b'{"a":1e999}', b"\xff\xfe")
        )
    return plain + odds.choice((b"\n", b"\n", b"\r\n", b"\n\n", b""))


def read(path: Path, data: bytes) -> list[Any]:
    """All rows, which are the same from any of them on."""
    path.write_bytes(data)
    source = open_source(str(path))
    found = list(source.rows(0))
    assert all(isinstance(got, dict | Unreadable) for got in found)
    for start in {1, len(found) // 2, len(found) + 3}:
        assert list(map(shown, source.rows(start))) == list(map(shown, found[start:]))
    count = source.count()
    assert count is None or path.suffix == ".parquet" or count == len(found)
    assert source.identity()
    return found


def rows_in(found: list[Any]) -> list[Any]:
    return [got for got in found if isinstance(got, dict)]


def shown(got: Any) -> str:
    return repr(got)


def strict(data: bytes) -> Any:
    """The row in a line, by Python's own parser; `UserError` stands for none."""
    try:
        found = json.loads(data.decode(), parse_constant=refuse)
    except (ValueError, RecursionError):
        return UserError
    return found if isinstance(found, dict) else UserError


def refuse(_: str) -> NoReturn:
    raise ValueError


def agree(got: Any, wanted: Any) -> None:
    """A row is what the other parser reads; what only that one takes cannot be stored."""
    if isinstance(got, Unreadable):
        assert wanted is UserError or not isinstance(wanted, dict) or not storable(wanted), (got, wanted)
    else:
        assert repr(got) == repr(wanted), (got, wanted)


def storable(value: Any) -> bool:
    """No half of a surrogate pair, no infinity, no number of thousands of digits."""
    try:
        said = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (ValueError, RecursionError):
        return False
    return said.isascii() or not any("\ud800" <= c <= "\udfff" for c in said)
