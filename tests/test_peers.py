"""One run on many processes, and what becomes of it when they are killed, stopped, interrupted, and begun again.

As a script this is the long form: `python tests/test_peers.py 20` disturbs 20 runs by seed, `python tests/test_peers.py
7-7` the one of seed 7. Real processes, real signals, a real server.
"""

from __future__ import annotations

import asyncio
import gzip
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest

from peers_world import (
    CountingModel,
    asked_twice,
    balance,
    begin,
    begun,
    call,
    end_all,
    exported,
    faults,
    nothing_left,
    office_pid,
    peer_pids,
    processes,
    results_of,
    signal_to,
    steps_done,
    wait_until,
    write_rows,
)
from weaverant.journal import JournalReader
from weaverant.journal.homes import epochs_of, home_of
from weaverant.summary import fold
from weaverant.swarm.listener import answers_nothing, dial
from weaverant.swarm.messages import STOP, Stop
from weaverant.swarm.office import DRIVER_S
from weaverant.swarm.peer import BEAT_S
from weaverant.swarm.places import find_office, read_key

RUN = ["run", "wf.py:twice", "--input", "rows.jsonl", "--run", "out", "--max-failures", "1"]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """With 60 rows. Nothing is left behind by who ended in order."""
    write_rows(tmp_path, 60)
    with nothing_left(tmp_path):
        yield tmp_path


def start(
    folder: Path, model: CountingModel, peers: int, *changes: str, workflow: str = "twice"
) -> subprocess.Popen[str]:
    arguments = ["run", f"wf.py:{workflow}", *RUN[2:], "--model", model.url, "--peers", str(peers), *changes]
    return begin(folder, *arguments)


def resumed(folder: Path, *changes: str) -> subprocess.CompletedProcess[str]:
    ran = call(folder, "resume", "out", *changes)
    assert ran.returncode in (0, 3), ran.stderr
    return ran


def is_right(folder: Path, rows: int | list[int] = 60, workflow: str = "twice", *, mended: bool = False) -> None:
    assert faults(folder / "out") == []
    balance(folder / "out")
    numbers = range(rows) if isinstance(rows, int) else rows
    assert exported(folder) == results_of(workflow, numbers, mended=mended)


# The same as one process


@pytest.mark.parametrize("workflow", ["staged", "grouped"])
def test_peers_make_what_one_process_makes(folder: Path, model: CountingModel, workflow: str):
    (folder / "mended").touch()
    ran = call(
        folder, "run", f"wf.py:{workflow}", *RUN[2:], "--model", model.url, "--peers", "3", "--concurrency", "12"
    )
    assert ran.returncode == 0, ran.stderr
    assert "finished" in ran.stdout
    is_right(folder, 60, workflow, mended=True)
    assert asked_twice(folder / "out", model.calls) == []
    assert len(epochs_of(folder / "out")) == 3
    again = call(folder, "resume", "out", "--peers", "2")
    assert again.returncode == 0, again.stderr


def test_few_rows_are_shared_out(folder: Path, model: CountingModel):
    """Any one of the peers could begin all of them at once."""
    (folder / "mended").touch()
    model.latency = 1.0
    ran = call(folder, *RUN, "--model", model.url, "--peers", "3")
    assert ran.returncode == 0, ran.stderr
    parts = [sum(1 for _ in JournalReader(folder / "out", [epoch]).tasks()) for epoch in (1, 2, 3)]
    assert sum(parts) == 60 and min(parts) >= 0.2 * 60, parts
    is_right(folder, mended=True)
    assert asked_twice(folder / "out", model.calls) == []


def test_some_rows_fail_and_are_tried_again(folder: Path, model: CountingModel):
    ran = call(folder, *RUN, "--model", model.url, "--peers", "2")
    assert ran.returncode == 3, ran.stderr
    is_right(folder)
    assert "failed 2" in ran.stdout, ran.stdout
    again = [word if word != "out" else "again" for word in RUN]
    asked = len(model.calls)
    assert call(folder, *again, "--model", model.url, "--reuse", "out").returncode == 3
    assert len(model.calls) == asked and exported(folder, "again") == exported(folder)
    (folder / "mended").touch()
    asked = len(model.calls)
    again = call(folder, "resume", "out", "--retry", "failed", "--peers", "2")
    assert again.returncode == 0, again.stderr
    assert len(model.calls) == asked + 2, "only what had not been asked is asked"
    assert faults(folder / "out") == []
    shown = call(folder, "show", "out")
    assert shown.returncode == 0
    assert "done 57 + rejected 3 + failed 0 + left 0" in shown.stdout


def test_failed_rows_of_peers_are_tried_again_by_one_process(folder: Path, model: CountingModel):
    assert call(folder, *RUN, "--model", model.url, "--peers", "2").returncode == 3
    (folder / "mended").touch()
    asked = len(model.calls)
    again = call(folder, "resume", "out", "--retry", "failed")
    assert again.returncode == 0, again.stderr
    assert len(model.calls) == asked + 2
    assert faults(folder / "out") == []
    assert "done 57 + rejected 3 + failed 0 + left 0" in call(folder, "show", "out").stdout
    task = call(folder, "show", "out", "--task", "0.22.0")
    assert task.returncode == 0, task.stderr


def test_trials_and_a_limit(folder: Path, model: CountingModel):
    (folder / "mended").touch()
    ran = call(folder, *RUN, "--model", model.url, "--peers", "2", "--trials", "3", "--limit", "20")
    assert ran.returncode == 0, ran.stderr
    assert faults(folder / "out") == []
    assert len(exported(folder)) == 57


def test_rows_that_cannot_be_read(folder: Path, model: CountingModel):
    lines = (folder / "rows.jsonl").read_text().splitlines()
    lines[7], lines[41] = "{not json", '"no object"'
    (folder / "rows.jsonl").write_text("\n".join(lines))
    assert call(folder, *RUN, "--model", model.url, "--peers", "2").returncode == 3
    is_right(folder, [n for n in range(60) if n not in (7, 41)])
    assert "unreadable" in call(folder, "show", "out").stdout


def test_a_source_whose_length_nobody_knows(folder: Path, model: CountingModel):
    with gzip.open(folder / "rows.jsonl.gz", "wt") as rows:
        rows.write((folder / "rows.jsonl").read_text())
    (folder / "rows.jsonl").unlink()
    ran = call(folder, *RUN[:3], "rows.jsonl.gz", *RUN[4:], "--model", model.url, "--peers", "3", "--limit", "1000")
    assert ran.returncode == 3, ran.stderr
    is_right(folder)
    assert "left 0" in ran.stdout


@pytest.mark.parametrize("rows", [0, 2])
def test_more_peers_than_rows(folder: Path, model: CountingModel, rows: int):
    write_rows(folder, rows)
    ran = call(folder, *RUN, "--model", model.url, "--peers", "4")
    assert ran.returncode == 0, ran.stderr
    is_right(folder, rows)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--peers", "0"], "--peers"),
        (["--peers", "2", "--no-journal"], "--no-journal"),
        (["--peers", "2", "--pilot", "5"], "--pilot"),
        (["--peers", "2", "--input", "-"], "only once"),
    ],
)
def test_bad_usage_is_2(folder: Path, model: CountingModel, arguments: list[str], words: str):
    run = [word for word in RUN if word not in ("--run", "out")] if "--no-journal" in arguments else RUN
    found = call(folder, *run, "--model", model.url, *arguments, stdin='{"n": 1}\n')
    assert found.returncode == 2, found.stderr
    assert words in found.stderr
    assert "Traceback" not in found.stderr
    assert model.calls == []
    assert not (folder / "out" / "peers").exists()


def test_peers_without_a_session_are_told_so(folder: Path, model: CountingModel):
    assert call(folder, *RUN, "--model", model.url).returncode == 3
    found = subprocess.run(
        [sys.executable, "-m", "weaverant.peers", "peer", "out"],
        capture_output=True, text=True, timeout=30, check=False, cwd=folder,
    )  # fmt: skip
    assert found.returncode == 2
    assert "no session with peers" in found.stderr


# Interrupted


def test_ctrl_c_stops_in_order_and_is_4(folder: Path, model: CountingModel):
    write_rows(folder, 200)
    driver = start(folder, model, 2, "--concurrency", "8")
    wait_until(lambda: steps_done(folder / "out") > 40)
    driver.send_signal(signal.SIGINT)
    assert driver.wait(20) == 4
    assert processes(folder) == {}
    assert fold(folder / "out").state == "interrupted"
    between = call(folder, "export", "out", "--as", "raw", "--out", "-")
    assert between.returncode == 0, between.stderr
    asked = len(model.calls)
    resumed(folder, "--peers", "3")
    is_right(folder, 200)
    assert asked_twice(folder / "out", model.calls) == [], "what was in flight had been waited for"
    assert len(model.calls) > asked


@pytest.mark.parametrize("office", [False, True])
def test_sigterm_to_all_cuts_off_no_calls(folder: Path, model: CountingModel, office: bool):
    """As a service's manager ends all processes at once; an office that is among them ends."""
    write_rows(folder, 100)
    driver = start(folder, model, 2, "--concurrency", "8")
    wait_until(lambda: steps_done(folder / "out") > 30)
    model.latency = 1.5
    asked = len(model.calls)
    wait_until(lambda: len(model.calls) > asked + 4)
    for pid in [*peer_pids(folder / "out"), driver.pid, *([office_pid(folder / "out")] if office else [])]:
        signal_to(pid, signal.SIGTERM)
    assert driver.wait(40) == 4
    model.latency = 0.05
    resumed(folder, "--peers", "2")
    is_right(folder, 100)
    assert asked_twice(folder / "out", model.calls) == []


def test_ctrl_c_at_once(folder: Path, model: CountingModel):
    """While the processes begin."""
    for moment in (0.4, 0.9):
        changes = (
            ["run", *RUN[1:], "--model", model.url] if not (folder / "out/run.json").exists() else ["resume", "out"]
        )
        driver = begin(folder, *changes, "--peers", "2", "--concurrency", "4")
        time.sleep(moment)
        driver.send_signal(signal.SIGINT)
        code = driver.wait(25)
        assert code in (4, 130, -2), (code, (folder / "output.txt").read_text())
        wait_until(lambda: processes(folder) == {}, 3)
    if (folder / "out/run.json").exists():
        resumed(folder)
        is_right(folder)
        assert asked_twice(folder / "out", model.calls) == []


def test_ctrl_c_twice(folder: Path, model: CountingModel):
    model.latency = 30.0
    driver = start(folder, model, 2, "--concurrency", "4")
    wait_until(lambda: len(peer_pids(folder / "out")) == 2)
    time.sleep(0.7)
    driver.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert driver.poll() is None, "calls in flight have their grace"
    began = time.monotonic()
    driver.send_signal(signal.SIGINT)
    assert driver.wait(20) == 4
    assert time.monotonic() - began < 4.0
    assert processes(folder) == {}
    model.latency = 0.05
    resumed(folder, "--peers", "2")
    is_right(folder)


# Killed


def killed(folder: Path, model: CountingModel, disturb: Callable[[Path], object], *changes: str) -> int:
    """A run of two peers in whose midst something is done to it; its exit code."""
    driver = start(folder, model, 2, "--concurrency", "8", *changes)
    wait_until(lambda: steps_done(folder / "out") > 30)
    disturb(folder / "out")
    try:
        code = driver.wait(40)
    finally:
        driver.kill()
    stage, said = fold(folder / "out").ledger.stages[0], (folder / "output.txt").read_text()
    counts = f"(done {stage.done}, rejected {stage.rejected.total()}, failed {stage.failed.total()})"
    assert f"{stage.rows} of {stage.rows} rows {counts}" in said, said
    return code


def test_a_killed_peer_is_replaced(folder: Path, model: CountingModel):
    write_rows(folder, 100)
    dead: list[int] = []

    def kill(run: Path) -> None:
        dead.append(peer_pids(run)[0])
        assert signal_to(dead[0])

    assert killed(folder, model, kill) == 3
    is_right(folder, 100)
    assert asked_twice(folder / "out", model.calls, dead) == []
    assert len(epochs_of(folder / "out")) == 3


def test_a_killed_office_is_replaced(folder: Path, model: CountingModel):
    write_rows(folder, 100)
    assert killed(folder, model, lambda run: signal_to(office_pid(run))) == 3
    is_right(folder, 100)
    assert asked_twice(folder / "out", model.calls) == [], "no peer died"
    assert len(epochs_of(folder / "out")) == 2


@pytest.mark.parametrize("peers", [0, 2])
def test_a_killed_driver_is_resumed(folder: Path, model: CountingModel, peers: int):
    write_rows(folder, 100)
    driver = start(folder, model, 2, "--concurrency", "8")
    wait_until(lambda: steps_done(folder / "out") > 30)
    driver.kill()
    driver.wait()
    resumed(folder, *(("--peers", str(peers)) if peers else ()))
    is_right(folder, 100)
    assert asked_twice(folder / "out", model.calls) == [], "peers had time to end"


@pytest.mark.slow
def test_a_resume_that_comes_late_cuts_off_no_calls(folder: Path, model: CountingModel):
    """The office has missed its driver and told all to stop; then the next session tells it to."""
    write_rows(folder, 100)
    driver = start(folder, model, 2, "--concurrency", "8")
    wait_until(lambda: steps_done(folder / "out") > 30)
    model.latency = 9.0
    driver.kill()
    driver.wait()
    time.sleep(DRIVER_S + 0.6)
    model.latency = 0.05
    resumed(folder, "--peers", "2")
    is_right(folder, 100)
    assert asked_twice(folder / "out", model.calls) == []


def test_all_killed_at_once(folder: Path, model: CountingModel):
    write_rows(folder, 100)
    driver = start(folder, model, 2, "--concurrency", "8")
    wait_until(lambda: steps_done(folder / "out") > 30)
    driver.kill()
    dead = end_all(folder)
    driver.wait()
    shown = call(folder, "show", "out")
    assert shown.returncode == 0, shown.stderr
    resumed(folder, "--peers", "2")
    is_right(folder, 100)
    assert asked_twice(folder / "out", model.calls, dead) == []


@pytest.mark.parametrize("peers", [0, 2])
def test_an_office_and_its_driver_killed_together(folder: Path, model: CountingModel, peers: int):
    """The next session stands in for the office, tells the peers to stop, and waits for what they have asked."""
    write_rows(folder, 100)
    model.latency = 0.4
    driver = start(folder, model, 2, "--concurrency", "16")
    wait_until(lambda: steps_done(folder / "out") > 30)
    signal_to(office_pid(folder / "out"))
    driver.kill()
    driver.wait()
    resumed(folder, *(("--peers", str(peers)) if peers else ()))
    is_right(folder, 100)
    assert asked_twice(folder / "out", model.calls, []) == [], "peers had time to end"
    assert all(call.answered < float("inf") for call in model.calls), "no call was cut off"
    assert len(epochs_of(folder / "out")) == 2 + peers


def test_peers_that_stop_already_are_not_hurried(folder: Path, model: CountingModel):
    """By a session that begins while they wait for what they have asked."""
    write_rows(folder, 60)
    model.latency = 0.2
    driver = start(folder, model, 2, "--concurrency", "16")
    wait_until(lambda: steps_done(folder / "out") > 16)
    model.latency = 1.5
    time.sleep(0.5)
    driver.kill()
    driver.wait()
    asyncio.run(tell_to_stop(folder / "out"))
    time.sleep(BEAT_S)
    model.latency = 0.05  # of those that come from now on
    resumed(folder, "--peers", "2")
    is_right(folder)
    assert asked_twice(folder / "out", model.calls, []) == [], "peers had time to end"


async def tell_to_stop(run: Path) -> None:
    """As an office does that misses its driver."""
    office = find_office(run)
    assert office is not None
    link = await dial(office.address, read_key(run), "test", answers_nothing)
    await link.ask(STOP, Stop("interrupted", why="its driver is gone"))
    link.close()


def test_of_many_killed_the_one_that_lives_ends_in_order(folder: Path, model: CountingModel):
    """The dead are not waited for, and the one that stands still only until it must call nobody."""
    write_rows(folder, 100)
    driver = start(folder, model, 3, "--concurrency", "12")
    wait_until(lambda: steps_done(folder / "out") > 30 and len(peer_pids(folder / "out")) == 3)
    dead, still, living = peer_pids(folder / "out")
    for pid, number in ((dead, signal.SIGKILL), (still, signal.SIGSTOP), (office_pid(folder / "out"), signal.SIGKILL)):
        assert signal_to(pid, number)
    driver.kill()
    driver.wait()
    own = journaled(folder / "out", living)
    resumed(folder, "--peers", "1")
    signal_to(still, signal.SIGCONT)
    is_right(folder, 100)
    assert journaled(folder / "out", living) > own
    assert asked_twice(folder / "out", model.calls, [dead, still]) == []
    wait_until(lambda: still not in processes(folder), 10, "that it leaves")
    assert len(epochs_of(folder / "out")) == 4, "it did not join again"


def journaled(run: Path, pid: int) -> int:
    """Model steps in the home of that process."""
    epoch = next(each for each in epochs_of(run) if f'"pid":{pid},' in (home_of(run, each) / "lock").read_text())
    return JournalReader(run, [epoch]).calls()


def test_a_stopped_peer_is_given_up_and_comes_back_as_another(folder: Path, model: CountingModel):
    write_rows(folder, 220)
    dead: list[int] = []

    def stop(run: Path) -> None:
        pid = peer_pids(run)[0]
        dead.append(pid)
        signal_to(pid, signal.SIGSTOP)
        wait_until(lambda: pid not in peer_pids(run), 15, "that it is given up")
        signal_to(pid, signal.SIGCONT)

    assert killed(folder, model, stop, "--concurrency", "4") == 3
    is_right(folder, 220)
    assert asked_twice(folder / "out", model.calls, dead) == []


def test_a_stopped_peer_asks_nothing_once_others_have_its_rows(folder: Path, model: CountingModel):
    """Calls that it had let go, and that waited for one of the model's few connections, stay with it for good. The others
    end the run before it wakes up, so whatever comes then is its own."""
    write_rows(folder, 150)
    model.latency = 0.2
    model_url = model.url.replace("#", "?connections=6#")
    limits = ("--concurrency", "40", "--in-flight", "40", "--peers", "1")
    driver = begin(folder, *RUN, "--model", model_url, *limits)
    wait_until(lambda: peer_pids(folder / "out"))
    joined = subprocess.Popen([sys.executable, "-m", "weaverant.peers", "peer", "out"], cwd=folder)
    begun.append(joined)  # type: ignore[arg-type]
    wait_until(lambda: len(epochs_of(folder / "out")) == 2 and JournalReader(folder / "out", [2]).calls() > 5)
    joined.send_signal(signal.SIGSTOP)
    stopped = time.monotonic()
    assert driver.wait(60) == 3
    assert {call.key for call in model.calls if call.came < stopped and call.answered > stopped}, "in a burst"
    is_right(folder, 150)
    time.sleep(2 * model.latency)
    model.forget()
    joined.send_signal(signal.SIGCONT)
    assert joined.wait(20) == 0
    time.sleep(2 * model.latency)
    assert model.calls == []


def test_a_stopped_office_is_replaced(folder: Path, model: CountingModel):
    write_rows(folder, 200)
    assert killed(folder, model, lambda run: signal_to(office_pid(run), signal.SIGSTOP)) == 3
    is_right(folder, 200)
    assert asked_twice(folder / "out", model.calls) == []


def test_a_peer_leaves_in_order(folder: Path, model: CountingModel):
    write_rows(folder, 100)
    assert killed(folder, model, lambda run: signal_to(peer_pids(run)[0], signal.SIGTERM)) == 3
    is_right(folder, 100)
    assert asked_twice(folder / "out", model.calls) == []
    assert len(epochs_of(folder / "out")) == 2, "it is not replaced"


def test_a_peer_joins_by_hand(folder: Path, model: CountingModel):
    write_rows(folder, 120)
    model.latency = 0.2
    joined: list[subprocess.Popen[bytes]] = []

    def join(run: Path) -> None:
        joined.append(subprocess.Popen([sys.executable, "-m", "weaverant.peers", "peer", "out"], cwd=folder))

    assert killed(folder, model, join) == 3
    assert joined[0].wait(10) == 0
    is_right(folder, 120)
    assert asked_twice(folder / "out", model.calls) == []
    assert len(epochs_of(folder / "out")) == 3
    assert any(JournalReader(folder / "out", [3]).tasks()), "it has worked"


# What does not go on


def test_peers_that_cannot_begin_are_started_three_times(folder: Path, model: CountingModel):
    text = (folder / "wf.py").read_text()
    broken = 'import sys\nif "peer" in sys.argv:\n    raise LookupError("only there")\n'
    (folder / "wf.py").write_text(text.replace("import os\n", f"import os\n{broken}", 1))
    ran = call(folder, *RUN, "--model", model.url, "--peers", "2")
    assert ran.returncode == 1, ran.stderr
    assert "3 processes ended one after the other" in ran.stderr
    assert "only there" in ran.stderr
    assert model.calls == [] and processes(folder) == {}
    assert fold(folder / "out").state == "broken"
    assert call(folder, "resume", "out").returncode == 3
    is_right(folder)


def test_a_row_that_ends_its_process_ends_the_run(folder: Path, model: CountingModel):
    text = (folder / "wf.py").read_text()
    deadly = '    if row["n"] == 30 and not os.path.exists("mended"):\n        os._exit(9)\n'
    text = text.replace("async def twice(row):\n", f"async def twice(row):\n{deadly}", 1)
    (folder / "wf.py").write_text(text)
    ran = call(folder, *RUN, "--model", model.url, "--peers", "2")
    assert ran.returncode == 1, ran.stderr
    assert "exit code 9" in ran.stderr
    assert processes(folder) == {}
    (folder / "mended").touch()
    resumed(folder, "--retry", "failed", "--peers", "2")
    is_right(folder, mended=True)


def test_a_second_driver_is_refused(folder: Path, model: CountingModel):
    write_rows(folder, 400)  # it lasts longer than two refusals, on a busy machine too
    driver = start(folder, model, 2, "--concurrency", "4")
    wait_until(lambda: steps_done(folder / "out") > 10)
    for peers in ([], ["--peers", "2"]):
        second = call(folder, "resume", "out", *peers)
        assert second.returncode in (1, 2, 4), second.stderr
        assert "Traceback" not in second.stderr
        assert "One run has one writer" in second.stderr
    driver.send_signal(signal.SIGINT)
    assert driver.wait(40) == 4
    resumed(folder)
    is_right(folder, 400)
    assert asked_twice(folder / "out", model.calls) == []


SLOW = """
import time
from weaverant import Agent, workflow

say = Agent("say", prompt="{{ n }}")


@workflow
async def slow(row):
    await say(n=row["n"])
    if row["n"] == 1:
        time.sleep(5.5)  # longer than a lease
    return row["n"]
"""


def test_a_row_that_computes_for_long_keeps_its_peer(folder: Path):
    (folder / "slow.py").write_text(SLOW)
    write_rows(folder, 4)
    simulated = ["--model", "simulated:latency=0.05", "--run", "out", "--peers", "2"]
    ran = call(folder, "run", "slow.py", "--input", "rows.jsonl", *simulated)
    assert ran.returncode == 0, ran.stderr
    assert [peer.state for peer in fold(folder / "out").peers] == ["finished"] * 2


# By seed


def disturbed(folder: Path, model: CountingModel, seed: int, rows: int = 90) -> list[str]:
    """Sessions with peers and without, all of them disturbed but the last. What was wrong."""
    chance = Random(seed)
    workflow = chance.choice(["twice", "staged", "grouped"])
    write_rows(folder, rows)
    dead: set[int] = set()
    told: list[str] = []
    run, wrong = folder / "out", list[str]()
    for session in range(chance.randint(2, 5)):
        peers = chance.choice([0, 1, 2, 2, 3])
        driver = begin(folder, *_session(run, workflow, model, peers, chance.random() < 0.3))
        done: list[str] = []
        for _ in range(chance.randint(1, 2)):
            before = steps_done(run)
            if chance.random() < 0.3:
                time.sleep(chance.random() * 1.5)
            else:
                _wait_for(driver, run, before + chance.randrange(1, rows))
            done.append(_disturb(run, driver, folder, chance, dead, done))
            told.append(f"{session} ({peers}): {done[-1]}")
            if chance.random() < 0.3 and (run / "journal").exists():
                shown = call(folder, "show", "out")
                if shown.returncode:
                    wrong.append(f"show while it runs: {shown.stderr}")
        code = driver.wait(80)
        if code not in (0, 3, 4, -signal.SIGKILL, 130, -signal.SIGINT):
            wrong.append(f"session {session} ended with {code}: {(folder / 'output.txt').read_text()[-2000:]}")
        if chance.random() < 0.4:
            (folder / "mended").touch()
        for look in (
            (["show", "out"], ["export", "out", "--as", "raw", "--out", "-"]) if (run / "run.json").exists() else ()
        ):
            seen = call(folder, *look)
            if seen.returncode:
                wrong.append(f"{look}: {seen.stderr}")
    (folder / "mended").touch()
    ended = call(folder, *_session(run, workflow, model, chance.choice([0, 1, 3]), True))
    if ended.returncode:
        return [*wrong, f"the last session ended with {ended.returncode}: {ended.stderr[-3000:]}", workflow, *told]
    wrong += faults(run) + asked_twice(run, model.calls, dead)
    if exported(folder) != results_of(workflow, range(rows)):
        wrong.append("the export differs")
    shown = call(folder, "show", "out").stdout
    if "left 0" not in shown or any(f"left {digit}" in shown for digit in "123456789-"):
        wrong.append(f"show tells of rows that are left: {shown}")
    return [*wrong, workflow, *told] if wrong else []


def _session(run: Path, workflow: str, model: CountingModel, peers: int, retry: bool) -> list[str]:
    if (run / "run.json").exists():
        words = ["resume", "out", *(["--retry", "failed"] if retry else [])]
    else:
        words = ["run", f"wf.py:{workflow}", *RUN[2:], "--model", model.url]
    return [*words, "--concurrency", "8", *(["--peers", str(peers)] if peers else [])]


def _wait_for(driver: subprocess.Popen[str], run: Path, steps: int) -> None:
    until = time.monotonic() + 20
    while driver.poll() is None and steps_done(run) < steps and time.monotonic() < until:
        time.sleep(0.01)


def _disturb(
    run: Path, driver: subprocess.Popen[str], folder: Path, chance: Random, dead: set[int], done: list[str]
) -> str:
    """Something happens to the session, to which that was done before. `dead` gets the pids of those that may lose what
    they have in flight: who is killed or stopped, who is told twice to hurry, and peers with nobody left to tell them
    that another session begins."""
    what = chance.choice(
        [
            "peer",
            "peer",
            "peers",
            "office",
            "office and peer",
            "driver",
            "all",
            "leave",
            "interrupt",
            "stop",
            "office stop",
        ]
    )
    peers = peer_pids(run)
    ends = {"driver", "office", "office and peer", "office stop", "all"}
    if (what in ends and ends & {*done}) or (what == "interrupt" and what in done):
        dead.update((driver.pid, *peers))
    match what:
        case "peer" if peers:
            dead.add(pid := chance.choice(peers))
            signal_to(pid)
        case "peers":
            dead.update(peers)
            for pid in peers:
                signal_to(pid)
        case "office":
            signal_to(office_pid(run))
        case "office and peer":
            signal_to(office_pid(run))
            time.sleep(chance.random() * 0.2)
            dead.update(peers[:1])
            for pid in peers[:1]:
                signal_to(pid)
        case "driver":
            dead.add(driver.pid)
            driver.kill()
        case "all":
            dead.add(driver.pid)
            driver.kill()
            dead.update(end_all(folder))
        case "leave" if peers:
            signal_to(pid := chance.choice(peers), signal.SIGTERM)
            dead.update([pid] if "leave" in done else [])
        case "interrupt":
            driver.send_signal(signal.SIGINT)
        case "stop" if peers:
            dead.add(pid := chance.choice(peers))
            signal_to(pid, signal.SIGSTOP)
            time.sleep(chance.choice([1.0, 6.0]))
            signal_to(pid, signal.SIGCONT)
        case "office stop":
            pid = office_pid(run)
            signal_to(pid, signal.SIGSTOP)
            time.sleep(chance.choice([1.0, 5.0]))
            signal_to(pid, signal.SIGCONT)
        case _:
            pass
    return what


@pytest.mark.timeout(120)
@pytest.mark.parametrize("seed", [1])
def test_disturbed_runs(folder: Path, model: CountingModel, seed: int):
    assert disturbed(folder, model, seed) == []


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_many_disturbed_runs():
    done = subprocess.run([sys.executable, __file__, "30"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def main(seeds: str) -> int:
    first, _, last = seeds.rpartition("-")
    bad = 0
    with CountingModel() as model:
        for seed in range(int(first or 1), int(last) + 1):
            with tempfile.TemporaryDirectory() as folder:
                began = time.perf_counter()
                try:
                    wrong = disturbed(Path(folder), model, seed)
                    until = time.monotonic() + 15
                    while processes(Path(folder)) and time.monotonic() < until:
                        time.sleep(0.1)
                finally:
                    left = end_all(Path(folder))
                wrong += [f"left behind: {left}"] if left else []
                bad += bool(wrong)
                print(f"seed {seed}: {time.perf_counter() - began:.0f} s", *wrong, sep="\n  ", flush=True)
                model.forget()
    print(f"{bad} of the runs went wrong")
    return bad


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]) > 0)
