"""Peers that would ask other models than the run does are refused before they lease a row."""

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
    results_of,
    wait_until,
    write_rows,
)
from weaverant.events import PeerOpened, RowsTaken
from weaverant.journal import JournalReader
from weaverant.journal.homes import epochs_of, fence_of, home_of
from weaverant.swarm.places import KEY_VARIABLE, find_office

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
