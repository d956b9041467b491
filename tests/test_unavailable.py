"""A model that nobody answers for: the run stops, its rows stay open, and it is finished once somebody is there."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from weaverant import Agent, resume, run, workflow
from weaverant.cli import main
from weaverant.errors import RunChanged, Unavailable
from weaverant.events import CostReserved
from weaverant.journal import JournalReader
from weaverant.session import Run
from weaverant.summary import document, fold
from weaverant.testing.server import MockServer

asker = Agent("asker", prompt="{{ n }} {{ turn }}", max_tokens=20)
ROWS = [{"n": n} for n in range(60)]


@workflow
async def two_turns(row: Any) -> int:
    return sum([len(await asker(n=row["n"], turn=turn)) for turn in range(2)])


def finish(going: Run) -> Run:
    for _ in going:
        pass
    return going


def counts(going: Run) -> tuple[int, int, int]:
    """Rows done, failed, left."""
    stage = going.ledger.stages[0]
    return stage.done, stage.failed.total(), len(ROWS) - stage.done - stage.failed.total()


def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def test_a_mistyped_model_is_put_right_where_nothing_was_answered(tmp_path: Path):
    """Its name is part of the run, and of each agent in it: but nothing depends on it yet."""
    directory = tmp_path / "run"
    wrong = finish(run(two_turns, ROWS, models=f"http://127.0.0.1:{port()}/v1?retries=0#nope", directory=directory))
    assert (wrong.state, wrong.ledger.calls) == ("server", 0)
    with MockServer(latency=0.05) as server:
        again = resume(directory, workflow=two_turns, rows=ROWS, models=f"{server.url}#m", concurrency=5)
        for ended, _ in enumerate(again):
            if not ended:
                again.stop()
        assert again.state == "interrupted" and fold(directory).config.identities == {"*": "http:m"}
        with pytest.raises(RunChanged, match=r"model '\*' \(was 'http:m', is 'http:other'\)"):
            resume(directory, workflow=two_turns, rows=ROWS, models=f"{server.url}#other")
        last = finish(resume(directory, workflow=two_turns, rows=ROWS))
        assert last.exit_code == 0 and counts(last) == (60, 0, 0) and server.stats()["total"] == 120


def test_where_nobody_was_ever_there_no_row_fails(tmp_path: Path):
    free = port()
    url = f"http://127.0.0.1:{free}/v1?retries=1&backoff=0.1#m"
    first = finish(run(two_turns, ROWS, models=url, directory=tmp_path / "run"))
    assert (first.state, first.exit_code, first.ledger.failed) == ("server", 4, 0)
    assert isinstance(first.error, Unavailable) and "has never answered: is it up" in str(first.error)
    with MockServer(port=free) as server:
        again = finish(resume(tmp_path / "run", workflow=two_turns, rows=ROWS, models=url))
        assert (again.state, again.exit_code) == ("finished", 0) and counts(again) == (60, 0, 0)
        assert server.stats()["total"] == 120


def test_an_outage_longer_than_a_calls_time_costs_only_what_was_sent(tmp_path: Path):
    with MockServer(latency=0.1) as server:
        spec = f"{server.url}?timeout=3&connections=4&backoff=0.1#m"
        going = run(two_turns, ROWS, models=spec, directory=tmp_path / "run")
        for ended, _ in enumerate(going, 1):
            if ended == 10:
                server.stop()
        done, failed, left = counts(going)
        assert (going.state, going.exit_code) == ("server", 4), going.error
        # At most the four in flight, and four that the dying server's queue of connections still took.
        assert failed <= 8 and left >= 60 - 10 - 4 - 8 and done + failed + left == 60
        assert "connection refused" in str(going.error)
        server.start()
        again = finish(resume(tmp_path / "run", workflow=two_turns, rows=ROWS, models=spec))
        assert again.state == "finished" and counts(again) == (60 - failed, failed, 0)


WRONG = {
    "/scenario/fault-401/v1": "(401)",
    "/scenario/fault-403/v1": "(403)",
    "/nowhere": "(404)",
    "/scenario/redirect/v1": "redirects (307)",
    "/scenario/html/v1": "'<html><body>Welcome",
    "/scenario/html/v1?stream=1": "'<html><body>Welcome",
}


@pytest.mark.parametrize("path", WRONG)
def test_a_wrong_key_or_address_is_one_error_and_fails_no_row(tmp_path: Path, path: str):
    options = "price=100,100&start=4"
    with MockServer(latency=0.05) as server:
        wrong, right = f"{server.root}{path}{'&' if '?' in path else '?'}{options}#m", f"{server.url}?{options}#m"
        going = finish(run(two_turns, ROWS, models=wrong, directory=tmp_path / "run", budget=10))
        assert (going.state, going.exit_code) == ("server", 2) and counts(going) == (0, 0, 60)
        assert WRONG[path] in str(going.error) and "the key, the address" in str(going.error)
        assert server.stats()["total"] <= 4 + 4, "hardly anything is sent while it is in doubt"
        assert document(fold(tmp_path / "run"))["spent"]["total"] == 0.0
        assert counts(finish(resume(tmp_path / "run", workflow=two_turns, rows=ROWS, models=right))) == (60, 0, 0)


def test_a_prompt_that_is_refused_before_others_are_replied_to_fails_its_row_alone(tmp_path: Path):
    rows = [{"n": "DROP TABLE"}, *ROWS[1:]]
    with MockServer("firewall", latency=0.2) as server:
        going = finish(run(two_turns, rows, models=f"{server.url}#m", directory=tmp_path / "run"))
        assert (going.state, going.exit_code) == ("finished", 3) and counts(going) == (59, 1, 0)
        assert going.ledger.stages[0].failed == {"request": 1}


def test_the_command_says_once_that_the_key_or_the_address_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    Path("w.py").write_text(
        "from weaverant import Agent, workflow\n\nsay = Agent('say', prompt='{{ n }}')\n\n"
        "@workflow\nasync def said(row):\n    return await say(n=row['n'])\n"
    )
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    with MockServer() as server:
        model = f"{server.scenario('fault-403')}#m"
        assert main(["run", "w.py", "--input", "rows.jsonl", "--model", model, "--run", "out"]) == 2
        said = capsys.readouterr()
        errors = [line for line in said.err.splitlines() if line.startswith("weaverant: error: ")]
        assert len(errors) == 1 and "a 403 on purpose" in errors[0] and "failed 0 + left 60" in said.out
        assert main(["resume", "out", "--model", f"{server.url}#m"]) == 0


def test_what_stopped_a_run_is_said_once_in_one_place(tmp_path: Path):
    """On a terminal the summary has said it already; where the two go apart, each has it."""
    (tmp_path / "w.py").write_text(
        "from weaverant import Agent, workflow\n\nsay = Agent('say', prompt='{{ n }}')\n\n"
        "@workflow\nasync def said(row):\n    return await say(n=row['n'])\n"
    )
    (tmp_path / "rows.jsonl").write_text('{"n": 1}\n')
    with MockServer() as server:
        model = f"{server.scenario('fault-401')}#mistyped"
        command = [sys.executable, "-m", "weaverant", "run", "w.py", "--input", "rows.jsonl", "--model", model]
        apart = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        together = subprocess.run(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        quiet = subprocess.run([*command, "--quiet"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert {apart.returncode, together.returncode, quiet.returncode} == {2}
    for said in (apart.stdout, apart.stderr, together.stdout, quiet.stdout.decode()):
        assert said.count("a 401 on purpose") == 1
        assert "WEAVERANT_API_KEY" in said and "the model's name (after #)" in said
    assert "weaverant: error" not in together.stdout and "the right name of the model" in together.stdout


def test_a_key_that_expires_stops_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    with MockServer(latency=0.05, slots=1) as server:
        spec = f"{server.url}?connections=1#m"
        going = run(two_turns, ROWS, models=spec, directory=tmp_path / "run")
        for ended, _ in enumerate(going, 1):
            if ended == 3:
                server.control(scenario="fault-401")
        done, failed, left = counts(going)
        assert going.state == "server" and failed == 0 and left == 60 - done > 40
        assert "the run stopped (server): request: the server refused the request (401)" in caplog.text
        server.control(scenario="ok")
        assert counts(finish(resume(tmp_path / "run", workflow=two_turns, rows=ROWS, models=spec))) == (60, 0, 0)


def test_a_run_whose_last_row_cannot_be_read_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """By another path to the same file."""
    lines = [json.dumps(row) for row in ROWS]
    (tmp_path / "rows.jsonl").write_text("\n".join([*lines, "broken{"]) + "\n")
    monkeypatch.chdir(tmp_path)
    free = port()
    spec = f"http://127.0.0.1:{free}/v1?retries=0#m"
    stopped = finish(run(two_turns, "rows.jsonl", models=spec, directory=tmp_path / "run"))
    assert stopped.state == "server" and stopped.ledger.failed == 1
    with MockServer(port=free):
        again = finish(resume(tmp_path / "run", workflow=two_turns, models=spec))
    stage = again.ledger.stages[0]
    assert (again.state, stage.done, stage.failed.total()) == ("finished", 60, 1)


@pytest.mark.parametrize("scenario", ["hang", "fault-500", "fault-429", "fault-429-retry-after-endless"])
def test_where_a_server_never_replies_only_what_was_sent_fails(tmp_path: Path, scenario: str):
    with MockServer() as server:
        spec = f"{server.scenario(scenario)}?timeout=2&retries=1&backoff=0.1#m"
        going = finish(run(two_turns, ROWS, models=spec, directory=tmp_path / "run", max_failures=1))
        done, failed, left = counts(going)
        assert going.state == "server" and done == 0 and left + failed == 60 and left >= 30
        assert failed <= server.stats()["total"]
        server.control(scenario="ok")
        again = finish(resume(tmp_path / "run", workflow=two_turns, rows=ROWS, models=f"{server.url}#m"))
        assert counts(again) == (left, failed, 0)


def test_what_was_set_aside_for_a_call_that_was_never_sent_is_free_again(tmp_path: Path):
    spec = f"http://127.0.0.1:{port()}/v1?retries=1&backoff=0.1&price=1000,1000#m"
    going = finish(run(two_turns, ROWS, models=spec, directory=tmp_path / "run", budget=5))
    assert going.state == "server" and going.ledger.spent().total == 0.0
    reserved = [event for event in JournalReader(tmp_path / "run").events() if isinstance(event, CostReserved)]
    assert any(event.dollars > 0 for event in reserved), "before the first attempt to connect"
    assert document(fold(tmp_path / "run"))["spent"]["total"] == 0.0


@pytest.mark.parametrize("price", ["", "&price=1,1"])
def test_a_stop_while_the_server_is_down_waits_only_for_calls_that_may_have_cost_something(tmp_path: Path, price: str):
    """Those in flight when it died may have been billed, where there is a price: they have their grace."""
    free = port()
    spec = f"http://127.0.0.1:{free}/v1?timeout=60&connections=4&backoff=20{price}#m"
    stopped = 0.0
    with MockServer(port=free, latency=0.1) as server:
        going = run(two_turns, ROWS, models=spec, directory=tmp_path / "run", grace=3)

        def stop() -> None:
            nonlocal stopped
            stopped = time.monotonic()
            going.stop()

        for ended, _ in enumerate(going, 1):
            if ended == 10:
                server.stop()
                threading.Timer(1.5, stop).start()
        took = time.monotonic() - stopped
    assert going.state == "interrupted" and (took >= 2.9 if price else took < 2.0), took
    failed = going.ledger.failed
    with MockServer(port=free) as server:
        again = finish(resume(tmp_path / "run", workflow=two_turns, rows=ROWS, models=spec))
        assert again.state == "finished" and counts(again) == (60 - failed, failed, 0)
