"""Whatever becomes of standard input, output and error (closed, full, unread, of few characters): the rows of a run and
its exit code do not hang on it, and a command that is there to print says in one line that it could not."""

from __future__ import annotations

import json
import os
import resource
import shlex
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

WORKFLOW = """
from weaverant import Agent, workflow

say = Agent("say", prompt="{{ n }}")

@workflow
async def w(row):
    assert row["n"] != 3
    return {"n": row["n"], "said": await say(n=row["n"]), "name": row["name"]}
"""
ROWS = 20
NAME = "é😀"
RUN = "run w.py --input rows.jsonl --model simulated:latency=0.01"
pytestmark = pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("w.py").write_text(WORKFLOW)
    Path("rows.jsonl").write_text("".join(json.dumps({"n": n, "name": NAME}) + "\n" for n in range(ROWS)))
    return tmp_path


def shell(
    command: str, redirected: str = "", limit: Callable[[], None] | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    line = f"{shlex.quote(sys.executable)} -m weaverant {command} {redirected}"
    return subprocess.run(
        ["sh", "-c", line], capture_output=True, text=True, timeout=60, env={**os.environ, **environment},
        preexec_fn=limit, check=False,
    )  # fmt: skip


def check_that_all_rows_ended(directory: str) -> None:
    shown = json.loads(shell(f"show {directory} --json").stdout)
    stage = shown["stages"][0]
    assert (shown["state"], shown["left"], stage["done"], stage["failed"]) == (
        "finished",
        0,
        ROWS - 1,
        {"AssertionError": 1},
    )
    lines = shell(f"export {directory} --out -").stdout.splitlines()
    assert [json.loads(line)["result"]["n"] for line in lines] == [n for n in range(ROWS) if n != 3]


def one_line(ran: subprocess.CompletedProcess[str]) -> str:
    assert ran.stderr.startswith("weaverant: error: ") and ran.stderr.count("\n") == 1, ran.stderr
    return ran.stderr


# A run goes on, and its code tells of the rows


@pytest.mark.parametrize("flag", ["", "--quiet"])
@pytest.mark.parametrize(
    "redirected",
    [">/dev/full", ">&-", "2>/dev/full", "2>&-", ">/dev/full 2>&1", "<&- >&- 2>&-"],
)
def test_a_run_ends_as_its_rows_do_whatever_its_output_goes_to(folder: Path, redirected: str, flag: str):
    ran = shell(f"{RUN} --run out {flag}", redirected)
    assert ran.returncode == 3, ran.stderr
    assert "Traceback" not in ran.stderr and "error:" not in ran.stderr
    told = redirected in (">/dev/full", ">&-") and not flag
    assert ("warning: standard output cannot be written" in ran.stderr) == told
    assert ("weaverant show out" in ran.stderr) == told
    check_that_all_rows_ended("out")


def test_a_run_ends_as_its_rows_do_when_nobody_reads_it(folder: Path):
    line = [sys.executable, "-m", "weaverant", *shlex.split(RUN), "--run", "out"]
    ran = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert ran.stdout is not None
    ran.stdout.close()
    assert ran.wait(60) == 3
    check_that_all_rows_ended("out")


# What is there to print says that it could not


@pytest.mark.parametrize(
    "command",
    ["show out", "show out --json", "export out --out -", "models", "recipes list", "--help", f"{RUN} --dry-run"],
)
def test_a_command_that_cannot_print_says_so_in_one_line(folder: Path, command: str):
    assert shell(f"{RUN} --run out --quiet").returncode == 3
    for redirected, why in ((">/dev/full", "No space left on device"), (">&-", "Bad file descriptor")):
        ran = shell(command, redirected)
        assert ran.returncode == 1
        assert f"standard output cannot be written: {why}" in one_line(ran)


def test_a_closed_pipe_ends_a_command_without_a_word(folder: Path):
    assert shell(f"{RUN} --run out --quiet").returncode == 3
    for command in ("show out --json", "export out --out -", "models"):
        ran = subprocess.Popen(
            [sys.executable, "-m", "weaverant", *command.split()], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert ran.stdout is not None and ran.stderr is not None
        ran.stdout.close()
        assert (ran.stderr.read(), ran.wait(60)) == (b"", 1)
        ran.stderr.close()


def test_characters_that_the_terminal_does_not_know_are_escaped_and_json_stays_json(folder: Path):
    assert shell(f"{RUN} --run out --quiet").returncode == 3
    told = shell("show out --task 0.1.0", PYTHONIOENCODING="ascii")
    assert told.returncode == 0 and r"\u00e9\ud83d\ude00" in told.stdout, told.stderr
    story = shell("show out --task 0.1.0 --json", PYTHONIOENCODING="ascii")
    assert story.stdout.isascii() and json.loads(story.stdout)["row"]["name"] == NAME


def test_a_closed_standard_input_is_bad_usage(folder: Path):
    ran = shell("run w.py --input - --model simulated: --run out", "<&-")
    assert ran.returncode == 2 and "standard input is closed" in one_line(ran)
    assert not Path("out").exists()


# Files that cannot be written to their end


def little_room() -> None:
    """As on a full disk: no file may grow beyond so many bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz", ".parquet"])
def test_an_export_to_a_full_disk_says_so_and_leaves_nothing(folder: Path, ending: str):
    if ending == ".parquet" and find_spec("pyarrow") is None:
        pytest.skip("pyarrow is not installed")
    assert shell(f"{RUN} --run out --quiet").returncode == 3
    ran = shell(f"export out --out data/rows{ending}", limit=little_room)
    assert ran.returncode == 1
    assert "File too large" in one_line(ran) and f"data/rows{ending}" in ran.stderr and "--out" in ran.stderr
    assert list(Path("data").iterdir()) == []
    assert shell(f"export out --out data/rows{ending}").returncode == 0


def test_a_recipe_is_copied_whole_or_not_at_all(folder: Path):
    ran = shell("recipes copy malt mine", limit=little_room)
    assert ran.returncode == 2 and "File too large" in one_line(ran)
    assert not Path("mine").exists()
    assert shell("recipes copy malt mine").returncode == 0
