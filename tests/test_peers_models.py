"""Which models and rows peers work with: those that the session was given, and no others."""

from __future__ import annotations

import json
import math
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from peers_world import (
    CountingModel,
    begin,
    call,
    command,
    end_all,
    exported,
    faults,
    nothing_left,
    peer_pids,
    results_of,
    signal_to,
    steps_done,
    wait_until,
    write_rows,
)
from weaverant.events import PeerOpened, RowsTaken
from weaverant.journal import JournalReader
from weaverant.journal.homes import epochs_of, fence_of, home_of
from weaverant.swarm.places import KEY_VARIABLE, find_office
from weaverant.testing.server import MockServer

ROWS = 12


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """`here` and `there` are two hosts: what a run's spec names is found in both, and is not the same."""
    write_rows(tmp_path, ROWS)
    for host in ("here", "there"):
        (tmp_path / host).mkdir()
    with nothing_left(tmp_path):
        yield tmp_path


@pytest.fixture
def models(folder: Path) -> Iterator[tuple[CountingModel, CountingModel]]:
    with CountingModel(latency=1.5) as ours, CountingModel() as theirs:
        (folder / "here" / "servers").write_text(ours.url.replace("#m", "#large") + "\n")
        (folder / "there" / "servers").write_text(theirs.url.replace("#m", "#small") + "\n")
        yield ours, theirs


def opened(run: Path) -> list[PeerOpened]:
    return [event for event in JournalReader(run).run_events() if isinstance(event, PeerOpened)]


def run(folder: Path, *more: str) -> list[str]:
    given = ["run", f"{folder}/wf.py:twice", "--input", f"{folder}/rows.jsonl", "--model", "pool:servers"]
    return [*given, "--run", f"{folder}/out", "--peers", "1", "--in-flight", "4", *more]


@pytest.mark.parametrize("kind", ["shared", "store"])
def test_a_peer_with_another_model_is_refused_before_it_leases_anything(
    folder: Path, models: tuple[CountingModel, CountingModel], kind: str, monkeypatch: pytest.MonkeyPatch
):
    """Before anybody has answered, with nothing but the run's own word to go by, and afterwards."""
    monkeypatch.setenv(KEY_VARIABLE, secrets.token_hex(32))
    ours, theirs = models
    store = ["--store", f"file://{folder}/store"] if kind == "store" else []
    driver, out = begin(folder / "here", *run(folder, *store)), folder / "out"
    private = folder / "private" if store else out
    wait_until(lambda: (out / "peers").exists() and find_office(out) is not None, what="an office")
    for asked in (False, True):
        if asked:
            wait_until(lambda: JournalReader(out).calls() > 0, what="the first reply")
        refused = call(folder / "there", "join", str(private), *store)
        assert refused.returncode == 2, refused.stderr
        assert "expected 'http:large', found 'http:small'" in refused.stderr, refused.stderr
        assert "pool:servers" in refused.stderr and "join again" in refused.stderr
        assert refused.stderr.count("error:") == 1
    shutil.copy(folder / "here" / "servers", folder / "there" / "servers")
    joined = subprocess.Popen(command("join", str(private), *store), cwd=folder / "there", stderr=subprocess.DEVNULL)
    assert driver.wait(60) == 0, (folder / "here" / "output.txt").read_text()
    assert joined.wait(20) == 0
    assert theirs.calls == [] and len(ours.calls) == 2 * ROWS
    assert exported(folder) == results_of("twice", range(ROWS)) and faults(out) == []
    silent = [epoch for epoch in epochs_of(out) if list(JournalReader(out, [epoch]).run_events()) == []]
    assert len(silent) == 2, "those that were refused have written nothing"


def test_a_peer_that_cannot_open_the_models_leaves_at_once(folder: Path, models: tuple[CountingModel, CountingModel]):
    """Nobody waits for it until its lease is over, and the others go on."""
    driver, out = begin(folder / "here", *run(folder)), folder / "out"
    wait_until(lambda: (out / "peers").exists() and find_office(out) is not None, what="an office")
    (folder / "there" / "servers").unlink()
    refused = call(folder / "there", "join", str(out))
    assert refused.returncode == 2 and "servers" in refused.stderr
    fences = [fence.why for epoch in epochs_of(out) if (fence := fence_of(home_of(out, epoch))) is not None]
    assert fences == ["it left: refused"]
    assert driver.wait(60) == 0, (folder / "here" / "output.txt").read_text()
    assert exported(folder) == results_of("twice", range(ROWS))


def test_a_run_that_asked_nobody_goes_on_with_other_models_on_its_peers(
    folder: Path, models: tuple[CountingModel, CountingModel]
):
    """They open what the session was given, and not what the run began with."""
    ours, theirs = models
    ours.latency = 60.0
    driver, out = begin(folder / "here", *run(folder)), folder / "out"
    wait_until(
        lambda: (
            any(isinstance(event, PeerOpened | RowsTaken) for event in JournalReader(out).run_events())
            if (out / "journal").exists()
            else False
        ),
        what="a peer",
    )
    driver.kill()
    driver.wait()
    end_all(folder)
    other = theirs.url.replace("#m", "#small")
    again = call(folder / "here", "resume", str(out), "--peers", "2", "--model", other)
    assert again.returncode == 0, again.stderr
    assert all(call.answered == math.inf for call in ours.calls)
    assert len(theirs.calls) == 2 * ROWS
    assert json.loads((out / "run.json").read_text())["identities"] == {"*": "http:small"}
    assert exported(folder) == results_of("twice", range(ROWS)) and faults(out) == []


# The same models at another address, the same rows at another place


@pytest.mark.timeout(90)
def test_what_a_resume_was_given_reaches_all_peers(folder: Path):
    """Those that it starts, those that replace them, one that joins, and the process that forms groups afterwards."""
    write_rows(folder, 40)
    given = ["run", "wf.py:grouped", "--input", "rows.jsonl", "--run", "out", "--max-failures", "1"]
    with CountingModel(latency=0.2) as first, CountingModel(latency=0.3) as second:
        driver = begin(folder, *given, "--model", first.url, "--peers", "2", "--concurrency", "4")
        wait_until(lambda: steps_done(folder / "out") > 8, what="some replies")
        driver.kill()
        driver.wait()
        end_all(folder)
        asked = len(first.calls)
        (folder / "rows.jsonl").rename(folder / "moved.jsonl")
        changes = ["--model", second.url, "--input", "moved.jsonl", "--concurrency", "4"]
        driver = begin(folder, "resume", "out", "--peers", "2", *changes)
        wait_until(lambda: len(second.calls) > 8, what="calls at the new address")
        killed = peer_pids(folder / "out")[0]
        signal_to(killed)
        joined = subprocess.Popen(command("join", "out"), cwd=folder, stderr=subprocess.DEVNULL)
        wait_until(lambda: len(opened(folder / "out")) == 6, what="two, two more, one that replaces, one that joins")
        second.latency, output = 0.02, folder / "output.txt"
        assert driver.wait(60) == 3, output.read_text()
        assert joined.wait(20) == 0
        assert len(first.calls) == asked, "nobody asked at the old address any more"
        assert any(call.key.startswith("fourth") for call in second.calls), "nor where the groups were formed"
        assert "another begins: " not in output.read_text(), "no peer had anything to complain of"
    assert json.loads((folder / "out" / "run.json").read_text())["models"] == {"*": first.url}
    assert exported(folder) == results_of("grouped", range(40), mended=False)


@pytest.mark.parametrize("wrong", ["http://127.0.0.1:9/v1?retries=0#m", "http://127.0.0.1:9/v1?retries=0#n"])
def test_the_advice_after_a_wrong_address_works_with_peers(folder: Path, wrong: str):
    """Also where the model's name was wrong: nobody has been asked yet."""
    given = ["run", "wf.py:twice", "--input", "rows.jsonl", "--run", "out", "--peers", "2"]
    stopped = call(folder, *given, "--model", wrong)
    assert stopped.returncode == 4, stopped.stderr
    assert (
        "go on:      weaverant resume out\n" in stopped.stdout and "--model SPEC: the right address" in stopped.stdout
    )
    with CountingModel() as right:
        again = call(folder, "resume", "out", "--peers", "2", "--model", right.url)
        assert again.returncode == 0, again.stderr
        assert len(right.calls) == 2 * ROWS
    assert exported(folder) == results_of("twice", range(ROWS)) and faults(folder / "out") == []


def test_another_model_at_another_address_is_refused_with_peers(folder: Path):
    """Once somebody has answered."""
    given = ["run", "wf.py:twice", "--input", "rows.jsonl", "--run", "out", "--peers", "1", "--in-flight", "2"]
    with CountingModel(latency=0.3) as first, CountingModel() as second:
        driver = begin(folder, *given, "--model", first.url)
        wait_until(lambda: steps_done(folder / "out") > 1, what="some replies")
        driver.kill()
        driver.wait()
        end_all(folder)
        refused = call(folder, "resume", "out", "--peers", "1", "--model", second.url.replace("#m", "#small"))
        assert refused.returncode == 2 and "was 'http:m', is 'http:small'" in refused.stderr, refused.stderr
        assert second.calls == []


@pytest.mark.parametrize("status", [401, 404])
@pytest.mark.parametrize("peers", ["1", "2", None], ids=["one peer", "two peers", "one process"])
def test_a_wrong_key_or_address_is_2_with_peers_too(folder: Path, status: int, peers: str | None):
    with MockServer(scenario=f"fault-{status}") as server:
        given = ["run", "wf.py:twice", "--input", "rows.jsonl", "--run", "out", "--model", f"{server.url}#m"]
        stopped = call(folder, *given, *([] if peers is None else ["--peers", peers]))
        assert stopped.returncode == 2, stopped.stdout + stopped.stderr
        assert "--model SPEC: the right address" in stopped.stdout
