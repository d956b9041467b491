"""The tutorial as its reader does it: the pieces put together, the commands typed, on fewer rows. And the mock server as
docs/models.md tells of it."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from weaverant.sources import open_source
from weaverant.sources.arithmetic import last_number
from weaverant.testing.scenarios import SCENARIOS

TUTORIAL = Path(__file__).parents[1] / "docs" / "tutorial.md"
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ROWS = {200: 20, 400: 30, 50: 20}
"""Rows that the tutorial takes, and those that are taken here. A task that it looks at is number 17."""

ANSWERS = {row["question"]: row["answer"] for row in open_source("arithmetic:weave").rows(0)}


@dataclass
class Reader:
    """Does what the tutorial says, in a folder of their own."""

    folder: Path
    said: dict[str, subprocess.CompletedProcess[str]]
    """What each of the tutorial's commands printed."""

    def read(self) -> None:
        for language, text in BLOCK.findall(TUTORIAL.read_text()):
            if language == "python":
                self.put(text)
            else:
                self.said |= {line: self.type(line) for line in text.splitlines()}

    def put(self, text: str) -> None:
        """Into the file that its first line names, else into `pairs.py`."""
        named = re.match(r"# (\w+\.py)\n", text)
        with (self.folder / (named[1] if named else "pairs.py")).open("a") as file:
            file.write(text + "\n\n")

    def type(self, command: str) -> subprocess.CompletedProcess[str]:
        words = shlex.split(re.sub(r"--limit (\d+)", lambda found: f"--limit {ROWS[int(found[1])]}", command))
        program = {"weaverant": [sys.executable, "-m", "weaverant"], "python": [sys.executable]}[words[0]]
        return subprocess.run(
            [*program, *words[1:]], cwd=self.folder, capture_output=True, text=True, timeout=60, check=False
        )

    def output(self, begin: str) -> str:
        """What the first command printed that begins so."""
        return next(one.stdout for command, one in self.said.items() if command.startswith(begin))

    def ledger(self, run: str) -> dict[str, Any]:
        return json.loads(self.type(f"weaverant show {run} --json").stdout)

    def lines(self, file: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / file).read_text().splitlines()]


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    reader = Reader(tmp_path_factory.mktemp("tutorial"), {})
    reader.read()
    return reader


def stages(run: dict[str, Any]) -> dict[str, tuple[int, int, int, int]]:
    """(rows, done, rejected, failed) by stage."""
    return {
        stage["name"]: (stage["rows"], stage["done"], sum(stage["rejected"].values()), sum(stage["failed"].values()))
        for stage in run["stages"]
    }


def test_every_command_of_the_tutorial_does_what_it_says(reader: Reader):
    assert len(reader.said) >= 12
    for command, one in reader.said.items():
        assert one.returncode == 0, f"{command}\n{one.stdout}{one.stderr}"
        assert "Warning" not in one.stderr and "error" not in one.stderr, f"{command}\n{one.stderr}"


def test_the_summary_prints_the_ledger_and_a_finished_run_has_nothing_left(reader: Reader):
    rows, done, rejected, failed = stages(reader.ledger("runs/pairs"))["pairs"]
    assert (rows, done + rejected, failed) == (20, 20, 0) and done and rejected
    assert f"rows 20 = done {done} + rejected {rejected} + failed 0 + left 0" in reader.output("weaverant run pairs.py")
    assert f"rejected: all alike {rejected}" in reader.output("weaverant run pairs.py")
    assert "nothing to do" in reader.said["weaverant resume runs/pairs"].stderr


def test_the_exports_hold_what_the_tutorial_says(reader: Reader):
    done = stages(reader.ledger("runs/pairs"))["pairs"][1]
    pairs = reader.lines("pairs.jsonl")
    assert len(pairs) == done
    for pair in pairs:
        prompt, chosen, rejected = (pair[side][-1]["content"] for side in ("prompt", "chosen", "rejected"))
        assert last_number(chosen) == ANSWERS[prompt] != last_number(rejected)
    chats, attempts = reader.lines("sft.jsonl"), reader.lines("attempts.jsonl")
    assert len(chats) == len(attempts) == 4 * done
    assert Counter(chat["messages"][-1]["content"] for chat in chats) == Counter(one["reply"] for one in attempts)
    assert all(one["prompt"] in ANSWERS and one["tokens"] > 0 for one in attempts)


def test_a_reused_run_answers_for_the_rows_it_had(reader: Reader):
    (solver,) = reader.ledger("runs/pairs2")["agents"]
    assert (solver["name"], solver["calls"], solver["reused"]) == ("solver", 4 * 30, 4 * 20)


def test_typed_replies_come_from_the_pretended_model_and_say_so(reader: Reader):
    run = reader.ledger("runs/checked")
    assert stages(run) == {"checked": (20, 20, 0, 0)}
    assert {agent["name"]: agent["calls"] for agent in run["agents"]} == {"solver": 20, "judge": 20}
    assert "SIMULATED" in reader.output("weaverant run checked.py")
    done = reader.type("weaverant export runs/checked --as raw --out -")
    assert {type(json.loads(line)["result"]["right"]) for line in done.stdout.splitlines()} == {bool}


def test_stages_group_the_results_of_the_first(reader: Reader):
    run = stages(reader.ledger("runs/merged"))
    done = run["pairs"][1]
    groups = [line["result"] for line in reader.lines("merged.jsonl")]
    assert run["merge"] == (len(groups), len(groups), 0, 0)
    assert len({group["right"] for group in groups}) == len(groups) > 1
    questions = [question for group in groups for question in group["questions"]]
    assert len(questions) == len(set(questions)) == done and set(questions) <= set(ANSWERS)


def test_the_script_runs_and_goes_on_with_nothing_the_second_time(reader: Reader):
    *tasks, state, ledger = reader.output("python pairs.py").splitlines()
    assert len(tasks) == 20 and state == "finished 0 runs/pairs-py"
    *again, state, earlier = reader.type("python pairs.py").stdout.splitlines()
    assert (again, state, earlier) == ([], "finished 0 runs/pairs-py", ledger)
    assert re.fullmatch(r"pairs: rows 20 = done \d+ \+ rejected \d+ \+ failed 0 \+ left 0", ledger)


def test_without_a_model_that_takes_schemas_the_run_is_refused_before_its_first_row(reader: Reader):
    refused = reader.type("weaverant run checked.py --input arithmetic:weave --model embedded:tiny --run runs/refused")
    assert refused.returncode == 2 and "agent 'judge' cannot be answered by 'embedded:tiny" in refused.stderr
    assert "--model strong=" in refused.stderr and not (reader.folder / "runs" / "refused").exists()


def test_the_mock_server_of_the_models_page_starts_and_answers(reader: Reader):
    page = TUTORIAL.with_name("models.md").read_text()
    (section,) = [text for text in page.split("\n## ") if text.startswith("Try it against a mock server")]
    server, client = BLOCK.findall(section)[0][1].splitlines()
    words = shlex.split(server.replace("--port 8123", "--port 0 --with-parent"))
    with subprocess.Popen(
        [sys.executable, *words[1:]], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as mock:
        assert mock.stdout is not None and mock.stdin is not None
        here = f"127.0.0.1:{int(mock.stdout.readline())}"
        command = client.replace("qa.py", "pairs.py:pairs").replace("docs.jsonl", "arithmetic:weave")
        done = reader.type(f"{command.replace('127.0.0.1:8123', here)} --limit 50 --attempts 1 --run mocked")
        mock.stdin.close()
    assert done.returncode == 0 and "+ failed 0 + left 0" in done.stdout, done.stdout + done.stderr
    (solver,) = reader.ledger("mocked")["agents"]
    assert (solver["calls"], sum(solver["failures"].values())) == (20, 0)
    named = set(re.findall(r"`([a-z0-9]+(?:-[a-z0-9]+)*)`", section)) - {"simulated", "output", "price", "metrics"}
    assert {"fault-429-retry-after", "hang", "echo"} <= named <= set(SCENARIOS)


def test_a_directory_that_holds_a_run_is_refused_with_the_ways_out_of_both_doors(reader: Reader):
    again = reader.type("weaverant run pairs.py --input arithmetic:weave --model embedded:tiny --run runs/pairs")
    assert again.returncode == 2 and "'runs/pairs' already holds a run" in again.stderr
    assert all(way in again.stderr for way in ("weaverant resume", "weaverant.resume(", "--run", "directory="))
