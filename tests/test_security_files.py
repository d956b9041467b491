"""What reaches a terminal steers nothing; what is written goes through no link, and belongs to whoever the umask says."""

from __future__ import annotations

import gzip
import json
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import weaverant
from weaverant import Agent, workflow
from weaverant.engines.scripted import Scripted
from weaverant.errors import JournalError
from weaverant.protocols import Unreadable
from weaverant.runtime.progress import Progress
from weaverant.sources import open_source

STEERING = "\x1b[2J\x1b]0;owned\x07\x1b]52;c;aGk=\x07\x9b31m\r\x08\x7f\u202egnp.exe\ud800"
"""Clears the screen, names the window, fills the clipboard, colours, overwrites, turns text around; half a pair."""
SAFE = STEERING.removesuffix("\ud800")

WORKFLOW = """
from weaverant import Agent, workflow
asker = Agent("asker", prompt="Say {{ text }}", repairs=0)
@workflow
async def ask(row):
    said = await asker(text=row["text"])
    if row["n"] == 1:
        raise ValueError(said)
    return {"said": said}
"""


def command(*arguments: str, mask: int = 0o022) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "weaverant.cli", *arguments], capture_output=True, text=True, timeout=120, check=False,
        umask=mask,
    )  # fmt: skip


def steering(said: str) -> set[str]:
    return {c for c in said if (c < " " and c not in "\n\t") or "\x7f" <= c < "\xa0" or c in "\u202e\u2066"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("w.py").write_text(WORKFLOW)
    Path("rows.jsonl").write_text("".join(json.dumps({"n": n, "text": SAFE, SAFE: n}) + "\n" for n in range(3)))
    Path("script.jsonl").write_text(json.dumps({"reply": f"said {SAFE}"}) + "\n")
    return tmp_path


def made(mask: int = 0o022) -> subprocess.CompletedProcess[str]:
    given = ("--input", "rows.jsonl", "--model", "scripted:script.jsonl", "--run", "run", "--max-failures", "1")
    return command("run", "w.py", *given, mask=mask)


def test_no_command_lets_rows_and_replies_steer_the_terminal(folder: Path):
    ran = made()
    assert ran.returncode == 3, ran.stderr
    shown = [ran]
    for words in (["show", "run"], ["show", "run", "--task", "0.0.0"], ["show", "run", "--task", "0.1.0", "--full"]):
        shown += [command(*words), command(*words, "--json")]
    shown.append(command("run", "w.py", "--input", "rows.jsonl", "--model", "scripted:script.jsonl", "--dry-run"))
    for done in shown:
        assert done.returncode in (0, 3), done.stderr
        assert steering(done.stdout) == steering(done.stderr) == set()
    assert "\\u001b[2J" in shown[3].stdout and "\\u009b31m" in shown[3].stdout and "\\u202e" in shown[3].stdout
    story = json.loads(command("show", "run", "--task", "0.0.0", "--json").stdout)
    assert story["row"] == {"n": 0, "text": SAFE, SAFE: 0} and story["result"] == {"said": f"said {SAFE}"}
    exported = command("export", "run", "--as", "raw", "--out", "data.jsonl")
    assert exported.returncode == 0
    samples = [json.loads(line) for line in Path("data.jsonl").read_text().splitlines()]
    assert [sample["result"]["said"] for sample in samples] == [f"said {SAFE}"] * 2  # data is data


def test_what_engines_tell_steers_neither_the_terminal_nor_the_progress(tmp_path: Path):
    class Telling(Scripted):
        def status(self) -> list[str]:
            return [f"server says {STEERING}"]

    run = weaverant.run(said, [{"n": 1}], models=Telling("hi"))
    for live in (True, False):
        with (tmp_path / "shown").open("w", encoding="utf-8") as stream:
            progress = Progress(run, 1, stream, live)
            progress.finish()
            progress.say(f"note {STEERING}")
        shown = (tmp_path / "shown").read_text()
        for own in ("\x1b[K", "\x1b[J"):
            shown = shown.replace(own, "")
        assert "note \\u001b[2J" in shown
        assert "\x1b]" not in shown and "\x9b" not in shown and "\x1b[2J" not in shown
    assert run.wait().state == "finished"


agent = Agent("agent", prompt="Say {{ n }}")


@workflow
async def said(row: dict[str, Any]) -> str:
    return await agent(n=row["n"])


def test_an_error_that_quotes_a_file_steers_nothing(folder: Path):
    Path("bad.jsonl").write_text(f'{{"n": 1, "text": "x"}}\n{SAFE}\n')
    done = command("run", "w.py", "--input", "bad.jsonl", "--model", f"scripted:{SAFE}.jsonl")
    assert done.returncode == 2 and steering(done.stderr) == set()
    for words in (
        ["show", SAFE],
        ["export", f"run{SAFE}", "--out", "-"],
        ["recipes", "copy", SAFE, "x"],
        ["models", SAFE],
    ):
        done = command(*words)
        assert done.returncode == 2 and done.stderr and steering(done.stderr + done.stdout) == set()


# Links


LINKS: dict[str, Callable[[], subprocess.CompletedProcess[str]]] = {
    "run/exports.json.tmp": lambda: command("export", "run", "--as", "raw", "--out", "data.jsonl"),
    "run/exports.json": lambda: command("export", "run", "--as", "raw", "--out", "data.jsonl"),
    "data.jsonl.tmp": lambda: command("export", "run", "--as", "raw", "--out", "data.jsonl"),
    "data.jsonl.gz.tmp": lambda: command("export", "run", "--as", "raw", "--out", "data.jsonl.gz"),
    "run/lock": lambda: command("resume", "run", "--retry", "failed"),
    "run/journal/000002.wvj": lambda: command("resume", "run", "--retry", "failed"),
}


@pytest.mark.parametrize("link", LINKS)
def test_nothing_is_written_through_a_link_that_somebody_left(folder: Path, link: str):
    assert made().returncode == 3
    victim = folder / "victim"
    victim.write_text("precious")
    Path(link).unlink(missing_ok=True)
    Path(link).symlink_to(victim)
    done = LINKS[link]()
    assert "Traceback" not in done.stderr
    assert victim.read_text() == "precious" and not victim.is_symlink()


def test_an_export_replaces_a_link_only_if_told_to_and_never_what_it_leads_to(folder: Path):
    made()
    victim = folder / "victim"
    victim.write_text("precious")
    Path("data.jsonl").symlink_to(victim)
    assert command("export", "run", "--out", "data.jsonl").returncode == 2
    assert command("export", "run", "--out", "data.jsonl", "--force").returncode == 0
    assert victim.read_text() == "precious" and not Path("data.jsonl").is_symlink()


def test_a_blob_is_written_through_no_link(tmp_path: Path):
    long = "x" * 70_000
    list(weaverant.run(said, [{"n": long}], models=Scripted("hi"), directory=tmp_path / "a"))
    (blob,) = (tmp_path / "a" / "blobs").glob("*/*.zst")
    victim = tmp_path / "victim"
    victim.write_text("precious")
    run = weaverant.run(said, [{"n": long}], models=Scripted("hi"), directory=tmp_path / "b")
    planted = tmp_path / "b" / "blobs" / blob.parent.name / f"{blob.stem}.tmp"
    planted.parent.mkdir(parents=True)
    planted.symlink_to(victim)
    run.wait()
    assert isinstance(run.error, JournalError) and victim.read_text() == "precious"


# Permissions


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_all_files_have_the_rights_that_the_umask_leaves_and_no_more(folder: Path, mask: int):
    assert made(mask).returncode == 3
    assert command("export", "run", "--out", "data.jsonl", mask=mask).returncode == 0
    paths = [Path("run"), *Path("run").rglob("*"), Path("data.jsonl")]
    assert len(paths) > 5
    for path in paths:
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode & mask == 0 and mode & 0o7000 == 0, (path, oct(mode))
        assert path.is_dir() or not mode & 0o111


# Rows that fill the memory


def test_a_packed_line_without_end_is_a_row_that_cannot_be_read(tmp_path: Path):
    path = tmp_path / "bomb.jsonl.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(b'{"n": 1}\n{"x": "')
        for _ in range(300):
            file.write(bytes(1 << 20))
        file.write(b'"}\n{"n": 2}\n')
    assert path.stat().st_size < 4_000_000
    first, bomb, last = open_source(str(path)).rows(0)
    assert (first, last) == ({"n": 1}, {"n": 2})
    assert isinstance(bomb, Unreadable) and "a line of more than 268,435,456 bytes" in bomb.text
    assert bomb.where.endswith("bomb.jsonl.gz:2")


def test_columns_of_one_name_are_no_row_unless_they_say_the_same(tmp_path: Path):
    path = tmp_path / "a.csv"
    path.write_text("a,b,a\n1,2,3\n4,5,4\n")
    lost, same = open_source(str(path)).rows(0)
    assert isinstance(lost, Unreadable) and "the column 'a' more than once, here with '1' and '3'" in lost.text
    assert same == {"a": "4", "b": "5"}


def test_a_journal_that_was_copied_as_text_is_damaged_and_not_empty(tmp_path: Path):
    list(weaverant.run(said, [{"n": 1}], models=Scripted("hi"), directory=tmp_path / "run"))
    (segment,) = (tmp_path / "run" / "journal").iterdir()
    as_text = segment.read_bytes().replace(b"\r\n", b"\n")
    segment.write_bytes(as_text)
    with pytest.raises(JournalError, match=r"damaged at offset 0.*was it copied as text"):
        weaverant.resume(tmp_path / "run", workflow=said, rows=[{"n": 1}], models=Scripted("hi"), retry=True).wait()
    assert segment.read_bytes() == as_text


def test_a_frame_that_claims_too_much_takes_no_memory(tmp_path: Path):
    """In a process that cannot have the memory at all."""
    code = """
import resource, struct, sys
from pathlib import Path
from zlib import crc32
from weaverant.errors import JournalCorrupt
from weaverant.journal import JournalReader
from weaverant.journal.segment import MARKER, pack_header
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
body = b"\\x28\\xb5\\x2f\\xfd\\xe0" + struct.pack("<Q", 1 << 31) + b"\\1\\0\\0"
frame = MARKER + struct.pack("<II", len(body), crc32(body, crc32(b"\\1", 16))) + b"\\1" + body
folder = Path(sys.argv[1]) / "journal"
folder.mkdir()
(folder / "000001.wvj").write_bytes(pack_header() + frame)
try:
    list(JournalReader(folder.parent).events())
except JournalCorrupt as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert "claims to unpack to 2,147,483,648 bytes" in done.stdout
