"""What docs/input.md promises, by the command: what a row is, what a broken one costs, and how to find its key."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from weaverant import run
from weaverant.cli import main

WORKFLOW = """
from weaverant import Agent, Stages, group, workflow

speaker = Agent("speaker", prompt="Say {{ n }}")

@workflow
async def say(row):
    return {"n": row["n"], "said": await speaker(n=row["n"]), "id": row.get("id", "")}

@group(by="id")
async def together(rows):
    return {"n": sorted(row["n"] for row in rows)}

grouped = Stages(say, together)
"""

MODEL = ("--model", "simulated:latency=0", "--quiet")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w.py").write_text(WORKFLOW)
    return tmp_path


def go(name: str, content: bytes, *flags: str, workflow: str = "w.py:say") -> int:
    Path(name).write_bytes(content)
    return main(["run", workflow, "--input", name, "--run", "out", *MODEL, *flags])


def printed(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    capsys.readouterr()
    assert main(arguments) == code
    return capsys.readouterr().out


def raw(capsys: pytest.CaptureFixture[str], state: str = "done") -> list[dict[str, object]]:
    lines = printed(capsys, "export", "out", "--as", "raw", "--state", state, "--out", "-").splitlines()
    return [json.loads(line) for line in lines]


def test_broken_lines_are_failed_rows_with_their_place(folder: Path, capsys: pytest.CaptureFixture[str]):
    lines = [b'\xef\xbb\xbf{"n": 1}', b"", b'{"n": 2', b"  ", b'{"n": 3}', b"[4]", b'{"n": 1e400}', b'{"n": NaN}']
    assert go("rows.jsonl", b"\n".join(lines), "--max-failures", "1") == 3
    assert [(each["key"], each["row"]) for each in raw(capsys)] == [("0.0.0", {"n": 1}), ("0.2.0", {"n": 3})]
    failed = raw(capsys, "failed")
    assert [(each["key"], each["reason"], each["where"]) for each in failed] == [
        (f"0.{row}.0", "unreadable", f"rows.jsonl:{line}") for row, line in ((1, 3), (3, 6), (4, 7), (5, 8))
    ]
    assert "Number out of range" in json.dumps(failed[2]["result"])


def test_a_truncated_gzip_is_one_failed_row_and_code_3(folder: Path, capsys: pytest.CaptureFixture[str]):
    lines = b"".join(b'{"n": "%s"}\n' % os.urandom(20).hex().encode() for _ in range(2_000))
    assert go("rows.jsonl.gz", gzip.compress(lines)[:30_000]) == 3
    (failed,) = raw(capsys, "failed")
    done = len(raw(capsys))
    assert 0 < done < 2_000 and failed["key"] == f"0.{done}.0" and failed["where"] == f"rows.jsonl.gz:{done + 1}"


def test_input_that_goes_away_is_code_1(folder: Path):
    def rows():
        yield {"n": 1}
        raise ConnectionError("the database is gone")

    going = run("w.py:say", rows(), models="simulated:latency=0", directory="out")
    assert [task.state for task in going] == ["done"] and (going.state, going.exit_code) == ("source", 1)


def test_cells_are_text_and_equal_rows_are_each_worked_on(folder: Path, capsys: pytest.CaptureFixture[str]):
    assert go("rows.csv", b'n,id\n3,\n3,\n"a\nb",x\n1\n', "--limit", "3", "--trials", "2") == 0
    found = raw(capsys)
    assert [each["key"] for each in found] == [f"0.{row}.{trial}" for row in range(3) for trial in range(2)]
    assert [each["row"] for each in found[::2]] == [{"n": "3", "id": ""}] * 2 + [{"n": "a\nb", "id": "x"}]
    replies = [each["result"]["said"] for each in found]  # type: ignore[index]
    assert len(set(replies)) == 6, "each trial of each of the equal rows has a sample of its own"


def test_find_tells_the_key_of_a_row(folder: Path, capsys: pytest.CaptureFixture[str]):
    rows = [{"n": 5, "id": "x=1"}, {"n": 5}, {"n": "5"}, {"id": "x=1"}, {"n": None, "id": "long" * 2_000}]
    assert go("rows.jsonl", "\n".join(map(json.dumps, rows)).encode(), "--max-failures", "1") == 3
    assert printed(capsys, "show", "out", "--find", "id=x=1").splitlines() == [
        '0.0.0  done  {"n": 5, "id": "x=1"}',
        '0.3.0  failed  {"id": "x=1"}',
    ]
    assert [line[:5] for line in printed(capsys, "show", "out", "--find", "n=5").splitlines()] == [
        "0.0.0", "0.1.0", "0.2.0",
    ]  # fmt: skip
    (found,) = json.loads(printed(capsys, "show", "out", "--find", "n=null", "--json"))
    assert found == {"key": "0.4.0", "state": "done", "row": rows[4]}
    for wanted, says in (("n=6", "has begun no row with 'n' = '6'"), ("n", "expected FIELD=VALUE")):
        assert main(["show", "out", "--find", wanted]) == 2
        assert says in capsys.readouterr().err


def test_groups_are_not_found_but_name_their_members(folder: Path, capsys: pytest.CaptureFixture[str]):
    rows = [{"n": n, "id": "even" if n % 2 == 0 else "odd"} for n in range(4)]
    assert go("rows.jsonl", "\n".join(map(json.dumps, rows)).encode(), workflow="w.py:grouped") == 0
    found = printed(capsys, "show", "out", "--find", "id=odd").splitlines()
    assert [line[:5] for line in found] == ["0.1.0", "0.3.0"]
    (group,) = (str(each["key"]) for each in raw(capsys) if each["result"] == {"n": [1, 3]})
    assert group.startswith("1@") and "made from 0.1.0, 0.3.0" in printed(capsys, "show", "out", "--task", group)


def shell(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "weaverant", *arguments]


def test_a_run_inside_its_own_input_is_no_input(folder: Path, capsys: pytest.CaptureFixture[str]):
    """It is killed, resumed, and exported into its directory; the next one reads the same rows as it did."""
    Path("data").mkdir()
    Path("data/rows.jsonl").write_text("".join(f'{{"n": {n}}}\n' for n in range(20)))
    os.chdir("data")
    begin = ("run", "../w.py:say", "--input", ".", "--run", "runs/one", "--quiet")
    ran = subprocess.Popen(shell(*begin, "--model", "simulated:latency=0.2,slots=4,jitter=0"))
    until = time.monotonic() + 30
    while not (files := list(Path("runs/one/journal").glob("*"))) or files[0].stat().st_size < 1_500:
        assert time.monotonic() < until
        time.sleep(0.02)
    ran.kill()
    ran.wait()
    assert main(["resume", "runs/one", "--quiet"]) == 0
    assert main(["export", "runs/one", "--out", "runs/one/data.jsonl"]) == 0
    assert main(["run", "../w.py:say", "--input", ".", "--run", "runs/two", *MODEL]) == 0
    for name in ("runs/one", "runs/two"):
        found = json.loads(printed(capsys, "show", name, "--json"))
        assert (found["rows"], found["stages"][0]["done"], found["stages"][0]["failed"]) == (20, 20, {})
    assert main(["run", "../w.py:say", "--input", "runs/one", *MODEL]) == 2
    assert "is the directory of a run" in capsys.readouterr().err


def test_a_run_that_has_only_begun_is_no_input_either(folder: Path, capsys: pytest.CaptureFixture[str]):
    """Its process ended between its `run.json` and its journal."""
    assert go("rows.jsonl", b'{"n": 1}') == 0
    Path("data/begun").mkdir(parents=True)
    Path("out/run.json").rename("data/begun/run.json")
    Path("data/run.json").write_text('[{"n": 7}]')
    assert main(["run", "w.py:say", "--input", "data", "--run", "other", *MODEL]) == 0
    assert [json.loads(line)["row"] for line in printed(capsys, "export", "other", "--out", "-").splitlines()] == [
        {"n": 7}
    ]
