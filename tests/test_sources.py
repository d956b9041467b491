"""Sources: every format, every kind of damage, any start."""

from __future__ import annotations

import gzip
import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from random import Random

import pytest

from weaverant import run
from weaverant.errors import UserError
from weaverant.protocols import Source, Unreadable
from weaverant.sources import Files, MemoryRows, StandardInput, open_source

ROWS = [{"id": n, "text": f"caf\u00e9 {n}"} for n in range(5)]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


def read(source: Source, start: int = 0) -> list:
    return list(source.rows(start))


def write(path: Path, content: str | bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def files_of(folder: Path) -> dict[str, list]:
    """The same five rows in every format that needs no extra."""
    table = [{"id": str(row["id"]), "text": row["text"]} for row in ROWS]
    cells = [[row["id"], row["text"]] for row in table]
    return {
        write(folder / "a.jsonl", LINES): ROWS,
        write(folder / "b.jsonl", b"\xef\xbb\xbf\n  \n" + LINES.replace("\n", "\r\n\r\n").encode().rstrip()): ROWS,
        write(folder / "c.jsonl.gz", gzip.compress(LINES.encode())): ROWS,
        write(folder / "d.json", json.dumps(ROWS)): ROWS,
        write(folder / "e.csv", "id,text\r\n" + "\r\n".join(map(",".join, cells))): table,
        write(folder / "f.tsv", b"\xef\xbb\xbf" + ("id\ttext\n\n" + "\n".join(map("\t".join, cells))).encode()): table,
    }


def test_every_format_from_any_row(tmp_path: Path):
    for path, rows in files_of(tmp_path).items():
        source = open_source(path)
        for start in range(7):
            assert read(source, start) == rows[start:], path
        assert source.rereadable and source.name == path and source.count() in (None, len(rows))


def test_a_folder_and_a_glob_are_read_in_the_order_of_paths(tmp_path: Path):
    files = files_of(tmp_path / "data" / "deep")
    write(tmp_path / "data" / ".hidden.jsonl", "{}")
    write(tmp_path / "data" / ".git" / "x.jsonl", "{}")
    write(tmp_path / "data" / "README.md", "# no rows")
    every = [row for rows in files.values() for row in rows]
    source = open_source(str(tmp_path / "data"))
    for start in (0, 1, 5, 12, 29, 30, 31):
        assert read(source, start) == every[start:]
    assert read(open_source(str(tmp_path / "data" / "**" / "[ab].jsonl"))) == ROWS + ROWS


def test_a_large_file_from_any_row(tmp_path: Path):
    """Lines are passed over by blocks: blank ones, long ones, bad ones and a mark at the beginning count as they do
    where each is read."""
    odds = Random(5)
    kinds = [b'{"a": 1}', b"", b" \t", b"\r", b"{", b'{"b": "' + b"x" * 5_000 + b'"}', b"  [1]  "]
    lines = odds.choices(kinds, k=2_000)
    lines[1_500] = b'{"c": "' + b"y" * 600_000 + b'"}'
    numbers = [number for number, line in enumerate(lines, 1) if line.strip()]
    for begin, end in ((b"", b"\n"), (b"\xef\xbb\xbf", b""), (b"\xef\xbb\xbf\n", b"\r\n")):
        path = write(tmp_path / "large.jsonl", begin + b"\n".join(lines) + end)
        source, first = open_source(path), begin.count(b"\n")
        rows = read(source)
        assert len(rows) == source.count() == len(numbers)
        for row, number in zip(rows, numbers, strict=True):
            line = lines[number - 1]
            assert row == json.loads(line) if b'"' in line else row.where == f"{path}:{number + first}"
        for start in (0, 1, len(rows) - 1, len(rows), len(rows) + 1, *odds.sample(range(len(rows)), 20)):
            assert read(source, start) == rows[start:]


def test_a_bad_line_is_a_row_that_says_where(tmp_path: Path):
    bad = [b'{"a": 1}', b'{"a": ', b"[1, 2]", b'"text"', b'{"a": "\xff"}', b"", b"[" * 100_000, b"\x00", b'{"a": 2}']
    path = write(tmp_path / "bad.jsonl", b"\n".join(bad))
    rows = read(open_source(path))
    assert rows[0] == {"a": 1} and rows[-1] == {"a": 2} and len(rows) == 8
    assert [row.where for row in rows[1:-1]] == [f"{path}:{line}" for line in (2, 3, 4, 5, 7, 8)]
    says = ["not JSON", "not a JSON object", "not a JSON object", "not UTF-8", "not a JSON object", "not JSON"]
    for row, text in zip(rows[1:-1], says, strict=True):
        assert isinstance(row, Unreadable) and row.text.startswith(text) and len(row.text) < 300
    assert read(open_source(path), 4) == rows[4:]


def test_a_gzip_file_that_breaks_off(tmp_path: Path):
    whole = gzip.compress(os.urandom(50_000).hex().encode() + b"\n" + LINES.encode())
    cut = write(tmp_path / "cut.jsonl.gz", whole[:-20])
    rows = read(open_source(cut))
    assert isinstance(rows[-1], Unreadable) and "breaks off" in rows[-1].text
    (row,) = read(open_source(write(tmp_path / "no.jsonl.gz", LINES)))
    assert row.where.endswith("no.jsonl.gz:1") and "breaks off" in row.text


def test_a_json_file_that_is_no_array(tmp_path: Path):
    (row,) = read(open_source(write(tmp_path / "a.json", LINES)))
    assert "not a JSON array" in row.text and "name it .jsonl" in row.text
    mixed = read(open_source(write(tmp_path / "b.json", '[{"a": 1}, 3, {"a": 2}]')))
    assert mixed[0] == {"a": 1} and mixed[2] == {"a": 2}
    assert mixed[1] == Unreadable("not a JSON object; it reads '3'", f"{tmp_path / 'b.json'}[1]")


def test_bad_lines_of_a_table(tmp_path: Path):
    path = write(tmp_path / "a.csv", b'x,y\n1,2\n1,2,3\n\xff,2\n"two\nlines",2\n1\n"a"b,2\n4,"open')
    rows = read(open_source(path))
    assert rows[0] == {"x": "1", "y": "2"} and rows[3] == {"x": "two\nlines", "y": "2"}
    bad = [(row.where.rpartition(":")[2], row.text) for row in rows if isinstance(row, Unreadable)]
    assert [line for line, _ in bad] == ["3", "4", "7", "8", "9"]
    assert "3 cells where the header has 2" in bad[0][1] and "not UTF-8" in bad[1][1]
    long = "x" * 1_000_000
    assert read(open_source(write(tmp_path / "b.csv", f"text\n{long}\n"))) == [{"text": long}]


def test_passing_over_lines_is_cheap(tmp_path: Path):
    path = tmp_path / "big.jsonl"
    row = json.dumps({"values": list(range(300))}) + "\n"
    path.write_text(row * 20_000)
    seconds = []
    for start in (0, 19_999):
        began = time.process_time()
        assert len(read(Files(str(path)), start)) == 20_000 - start
        seconds.append(time.process_time() - began)
    assert seconds[1] < seconds[0] / 3


def test_parquet_without_its_extra_names_it(tmp_path: Path):
    path = write(tmp_path / "a.parquet", b"")
    hide = "import sys; sys.modules['pyarrow'] = None\n"
    code = hide + f"from weaverant.sources import open_source; list(open_source({path!r}).rows(0))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "UserError: reading .parquet files needs pyarrow" in done.stderr and "weaverant[data]" in done.stderr


def test_parquet(tmp_path: Path):
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [{"n": n, "tags": ["a", str(n)]} for n in range(3000)]
    path = tmp_path / "a.parquet"
    parquet.write_table(arrow.Table.from_pylist(rows), path)
    source = open_source(str(path))
    assert source.count() == 3000 and read(source) == rows and read(source, 2999) == rows[2999:]
    (row,) = read(open_source(write(tmp_path / "bad.parquet", b"PAR1 no")))
    assert isinstance(row, Unreadable)


def test_memory_rows():
    source = MemoryRows([{"a": 1}, 7, {"a": 2}], "mine")
    assert source.count() == 3 and source.rereadable and source.name == "mine"
    assert read(source, 2) == [{"a": 2}]
    assert read(source)[1] == Unreadable("a row of type int, expected a mapping; it reads 7", "mine[1]")
    assert read(source) == read(source)


def test_rows_that_are_none_are_a_users_error():
    for given in (None, 7):
        with pytest.raises(UserError, match="found an object of type"):
            run("malt", given, models="simulated:")


def test_a_generator_is_read_once_and_lazily():
    taken = []

    def numbers():
        for n in range(10):
            taken.append(n)
            yield {"n": n}

    source = MemoryRows(numbers())
    assert not source.rereadable and source.count() is None and taken == []
    rows = source.rows(2)
    assert next(rows) == {"n": 2} and taken == [0, 1, 2]
    assert next(source.rows(5)) == {"n": 5}
    with pytest.raises(UserError, match="can be read only once: row 0 was asked for after 6"):
        next(source.rows(0))


def test_standard_input():
    code = "from weaverant.sources import open_source; s = open_source('-'); print(s.name, s.rereadable, *s.rows(1))"
    done = subprocess.run(
        [sys.executable, "-c", code], input='{"a": 1}\n\n{"a": 2}\nno\n', capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("- False {'a': 2} Unreadable(") and "<stdin>:4" in done.stdout
    source = StandardInput(io.BytesIO(b'{"a": 1}\n{"a": 2}\n'))
    assert next(source.rows(0)) == {"a": 1} and read(source, 1) == [{"a": 2}]
    with pytest.raises(UserError, match="'standard input' can be read only once"):
        read(source, 0)


def test_arithmetic():
    source = open_source("arithmetic:weave")
    assert read(source, 10)[0] == read(source)[10] and source.count() > 1000
    with pytest.raises(UserError, match="no arithmetic pool 'wave'; expected one of weave"):
        open_source("arithmetic:wave")


def test_a_pipe_is_refused_at_once_and_left_out_of_folders(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.jsonl")
    with pytest.raises(UserError, match=r"--input - < .*pipe\.jsonl"):
        open_source(str(tmp_path / "pipe.jsonl"))
    write(tmp_path / "rows.jsonl", LINES)
    assert read(open_source(str(tmp_path))) == ROWS


def test_an_input_that_is_not_there_is_a_users_error(tmp_path: Path):
    write(tmp_path / "documents.jsonl", LINES)
    (tmp_path / "empty").mkdir()
    for spec, says in [
        ("document.jsonl", "near it: .*documents.jsonl.*expected a file ending in .jsonl"),
        ("no/such/folder.jsonl", "there is no folder .* either"),
        ("*.parquet", "no file fits the glob"),
        ("empty", "has no file we can read"),
    ]:
        with pytest.raises(UserError, match=says):
            open_source(str(tmp_path / spec))
    with pytest.raises(UserError, match="cannot tell the format"):
        open_source(write(tmp_path / "notes.txt", "hi"))
    with pytest.raises(UserError, match="the input is empty"):
        open_source("")
    source = open_source(write(tmp_path / "gone.jsonl", LINES))
    os.remove(tmp_path / "gone.jsonl")
    with pytest.raises(UserError, match="cannot be opened: No such file"):
        read(source)
