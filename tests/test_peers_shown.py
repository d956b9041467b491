"""What a person sees of a run on peers is true: who works on it, what it has done, what cannot be asked of it.

Real processes, real signals, a real server; all through the command.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import re
import secrets
import signal
import subprocess
import termios
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest

from peers_world import (
    CountingModel,
    begin,
    begun,
    call,
    command,
    end_all,
    nothing_left,
    office_pid,
    peer_pids,
    processes,
    signal_to,
    steps_done,
    wait_until,
    write_rows,
)
from weaverant.errors import JournalCorrupt
from weaverant.events import PeerOpened, StepEnded, TaskEnded, TaskStarted, TaskTaken
from weaverant.journal import JournalReader, SegmentJournal
from weaverant.journal.homes import epochs_of, fence, home_of, new_epoch
from weaverant.journal.steady import steadily
from weaverant.peers.given import labels_of
from weaverant.protocols import Load, Note, Tally
from weaverant.runtime.notes import merged
from weaverant.swarm.places import KEY_VARIABLE

RUN = ["run", "wf.py:twice", "--input", "rows.jsonl", "--run", "out", "--max-failures", "1"]
PLACED = """
from weaverant import Agent, workflow

here = Agent("here", prompt="{{ n }}")
there = Agent("there", prompt="{{ n }}", place="gpu")


@workflow
async def afar(row):
    return await there(n=await here(n=row["n"]))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """With 60 rows. Nothing is left behind by who ended in order."""
    write_rows(tmp_path, 60)
    with nothing_left(tmp_path):
        yield tmp_path


def begin_run(folder: Path, model: CountingModel, peers: int, *changes: str) -> subprocess.Popen[str]:
    driver = begin(folder, *RUN, "--model", model.url, *(["--peers", str(peers)] if peers else []), *changes)
    wait_until(lambda: steps_done(folder / "out") > 10)
    return driver


def kill(driver: subprocess.Popen[str]) -> None:
    driver.kill()
    driver.wait()


def shown(folder: Path, run: str = "out") -> dict[str, Any]:
    found = call(folder, "show", run, "--json")
    assert found.returncode == 0, found.stderr
    return json.loads(found.stdout)


def states(folder: Path, run: str = "out") -> list[str]:
    return [peer["state"] for peer in shown(folder, run)["peers"]]


# Who works on it


@pytest.mark.timeout(90)
def test_peers_whose_command_was_killed_are_at_work_until_they_end(folder: Path, model: CountingModel):
    write_rows(folder, 400)
    model.latency = 0.5
    driver = begin_run(folder, model, 2, "--concurrency", "4")
    assert shown(folder)["state"] == "running" and states(folder) == ["working"] * 2
    assert "running now" in call(folder, "show", "out").stdout
    kill(driver)
    assert shown(folder)["state"] == "working" and states(folder) == ["working"] * 2
    said = call(folder, "show", "out").stdout
    assert "peers still work, without the command" in said and "killed" not in said
    told: list[str] = []
    while processes(folder):
        state = shown(folder)["state"]
        told += [state] if told[-1:] != [state] else []
    assert told[:1] == ["working"] and set(told) <= {"working", "ending", "killed"}, told
    assert told == sorted(told, key=["working", "ending", "killed"].index), told
    assert shown(folder)["state"] == "killed" and states(folder) == ["interrupted"] * 2
    assert not (folder / "out" / "peers" / "key").exists(), "nobody is there who could need it"


def test_only_peers_that_were_killed_may_have_cut_calls_off(folder: Path, model: CountingModel):
    """The command asks nobody: where it was killed, and its peers stopped in order, all that was asked is recorded."""
    model.latency = 0.3
    kill(begin_run(folder, model, 2, "--concurrency", "4"))
    signal_to(office_pid(folder / "out"))
    driver = begin(folder, "resume", "out", "--peers", "2")
    wait_until(lambda: len(shown(folder)["peers"]) == 4 and states(folder).count("working") == 2)
    told = shown(folder)
    assert told["cut_off"] == {"calls": 0, "sessions": 0, "peers": 0}, told["peers"]
    assert "cut off" not in call(folder, "show", "out").stdout
    signal_to(peer_pids(folder / "out")[0])
    wait_until(lambda: shown(folder)["cut_off"]["peers"] == 1, what="a peer that is missed")
    wait_until(lambda: "working" in states(folder), what="the other one at work")
    kill(driver)
    end_all(folder)
    told = shown(folder)["cut_off"]
    assert told["peers"] in (2, 3), "the one that replaced the first may hold no row yet"
    assert told == {"calls": 0, "sessions": 0, "peers": told["peers"]}
    ended = call(folder, "resume", "out", "--max-failures", "1")
    assert ended.returncode == 3, ended.stderr
    assert f"cut off     what was in flight when {told['peers']} peers ended by a kill: a bill may have" in ended.stdout


def test_calls_that_peers_cut_off_count_where_nobody_closed_the_session(folder: Path, model: CountingModel):
    model.latency = 30.0
    driver = begin(folder, *RUN, "--model", model.url, "--peers", "1", "--concurrency", "4", "--grace", "0.5")
    wait_until(lambda: len(model.calls) == 4)
    kill(driver)
    wait_until(lambda: not processes(folder), what="peers that stop for want of the command")
    assert shown(folder)["cut_off"] == {"calls": 4, "sessions": 0, "peers": 0}


def test_a_killed_peer_is_not_at_work(folder: Path, model: CountingModel):
    write_rows(folder, 400)
    kill(begin_run(folder, model, 2, "--concurrency", "4"))
    signal_to(office_pid(folder / "out"))
    killed = peer_pids(folder / "out")[0]
    signal_to(killed)
    wait_until(lambda: killed not in processes(folder))
    found = shown(folder)
    assert found["state"] == "working"
    assert {peer["pid"] == killed: peer["state"] for peer in found["peers"]} == {True: "killed", False: "working"}
    end_all(folder)
    wait_until(lambda: not processes(folder))
    assert shown(folder)["state"] == "killed" and states(folder) == ["killed"] * 2


@pytest.mark.timeout(90)
def test_a_directory_that_joined_a_store_tells_what_is_true(
    folder: Path, model: CountingModel, monkeypatch: pytest.MonkeyPatch
):
    """Where it cannot know, it says so, and never that the run was killed."""
    write_rows(folder, 400)
    model.latency = 0.5
    monkeypatch.setenv(KEY_VARIABLE, secrets.token_hex(32))
    store = f"file://{folder}/store"
    driver = begin_run(folder, model, 1, "--store", store, "--concurrency", "4")
    joined = begin(folder, "join", "joined", "--store", store)
    here = home_of(folder / "joined", 2)
    wait_until(lambda: here.exists() and JournalReader(folder / "joined", (2,)).calls() > 0)
    assert shown(folder, "joined")["state"] == "running"
    assert call(folder, "fetch", store, "fetched").returncode == 0
    assert shown(folder, "fetched")["state"] == "running" and states(folder, "fetched")[0] == "working"
    with monkeypatch.context() as without:
        without.delenv(KEY_VARIABLE)
        assert shown(folder, "joined")["state"] == "running", "its own peer works"
        assert shown(folder, "fetched")["state"] == "unseen"
        assert "unseen" in states(folder, "fetched") and "killed" not in states(folder, "fetched")
        said = call(folder, "show", "fetched").stdout
        assert "nobody is seen at work on it from here" in said and "once nobody works on it elsewhere" in said
    kill(driver)
    wait_until(lambda: shown(folder, "joined")["state"] == "working", 15)
    assert shown(folder)["state"] in ("working", "ending")
    assert joined.wait(30) == 0
    wait_until(lambda: not processes(folder))
    assert (shown(folder)["state"], shown(folder, "joined")["state"]) == ("killed", "unseen")
    assert "left joined: the run was stopped" in (folder / "output.txt").read_text()


def test_a_peer_that_holds_no_row_is_idle(folder: Path, model: CountingModel):
    write_rows(folder, 1)
    model.latency = 12.0  # two plain lines of progress at the least
    driver = begin(folder, *RUN, "--model", model.url, "--peers", "2")
    wait_until(lambda: (folder / "out").exists() and sorted(states(folder)) == ["idle", "working"])
    assert "idle: it holds no row" in call(folder, "show", "out").stdout
    assert driver.wait(30) == 0
    output = (folder / "output.txt").read_text()
    assert "2 peers, 1 of them without a row" in output
    assert "no office" not in output and "2 of them without a row" not in output
    assert states(folder) == ["finished"] * 2


# What it has done


class Screen:
    """The progress of a driver, as a terminal shows it."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.text = ""
        ours, theirs = os.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, (24).to_bytes(2, "little") + (200).to_bytes(2, "little") + bytes(4))
        self.driver = subprocess.Popen(
            command(*arguments), stdout=subprocess.DEVNULL, stderr=theirs, stdin=subprocess.DEVNULL, text=True,
            cwd=folder, env={**os.environ, "TERM": "xterm", "NO_COLOR": "1"},
        )  # fmt: skip
        os.close(theirs)
        begun.append(self.driver)
        self._ours = ours
        self._reading = threading.Thread(target=self._read)
        self._reading.start()

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self._ours, 65536)
            except OSError:  # the other side is closed
                break
            self.text += data.decode(errors="replace")
        os.close(self._ours)

    def wait(self) -> int:
        code = self.driver.wait(60)
        self._reading.join()
        return code

    def numbers(self, pattern: str) -> list[float]:
        return [float(found.replace(",", "")) for found in re.findall(pattern, self.text)]


def test_totals_never_go_down_whoever_dies_and_are_those_of_show(folder: Path, model: CountingModel):
    write_rows(folder, 360)
    (folder / "mended").touch()
    model.latency = 0.1
    priced = model.url.replace("#", "?price=1000,1000#")
    screen = Screen(folder, *RUN, "--model", priced, "--peers", "3", "--concurrency", "9")
    run = folder / "out"
    for steps, who in ((150, "peer"), (300, "office"), (450, "peer")):
        wait_until(lambda steps=steps: steps_done(run) > steps)
        assert signal_to(office_pid(run) if who == "office" else peer_pids(run)[0])
    assert screen.wait() == 0, screen.text
    calls, dollars = screen.numbers(r"([\d,]+) calls, "), screen.numbers(r"tokens/s, \$([\d.,]+)")
    rows = screen.numbers(r"([\d,]+) of 360 \(")
    assert len(calls) > 10 and len(dollars) == len(calls) == len(rows), screen.text
    for told in (calls, dollars, rows):
        assert told == sorted(told), told
    found = shown(folder)
    assert calls[-1] == found["agents"][0]["calls"] + found["agents"][1]["calls"]
    assert dollars[-1] == pytest.approx(found["spent"]["total"], abs=0.01) and dollars[-1] > 0
    assert rows[-1] == 360


def test_a_resumed_run_goes_on_counting_where_it_was(folder: Path, model: CountingModel):
    write_rows(folder, 200)
    (folder / "mended").touch()
    kill(begin_run(folder, model, 2, "--concurrency", "4"))
    end_all(folder)
    before = JournalReader(folder / "out").calls()
    screen = Screen(folder, "resume", "out", "--peers", "2")
    assert screen.wait() == 0, screen.text
    calls, found = screen.numbers(r"([\d,]+) calls, "), shown(folder)
    assert calls == sorted(calls) and calls[0] >= before
    assert calls[-1] == sum(agent["calls"] for agent in found["agents"])
    tokens, rates = screen.numbers(r"([\d.]+) tokens/s"), screen.numbers(r"calls, ([\d,.]+)/s, ")
    assert tokens[-1] <= 2 * rates[-1] + 1, "a call takes two of them, and rates are those of this session"


def table_of(folder: Path) -> list[dict[str, str]]:
    """The table of peers in `show`, by its heads."""
    lines = call(folder, "show", "out").stdout.splitlines()
    start = next(number for number, line in enumerate(lines) if line.split()[:2] == ["peer", "process"])
    heads = re.split(r"\s{2,}", lines[start].strip())
    ends = [lines[start].index(head) + len(head) for head in heads]
    found: list[dict[str, str]] = []
    for line in lines[start + 1 :]:
        if not line.strip() or not line.startswith("  "):
            break
        begins = [0, *ends[:-1]]
        found.append({h: line[a:b].strip() for h, a, b in zip(heads, begins, [*ends[:-1], None], strict=True)})
    return found


@pytest.mark.parametrize("spread", [False, True])
def test_who_answered_calls_of_others_is_told_durably_and_the_calls_add_up(
    folder: Path, model: CountingModel, spread: bool
):
    """A session of one process, then peers one of which is killed while it answers for the others."""
    (folder / "wf.py").write_text(PLACED.replace(', place="gpu"', "") if spread else PLACED)
    flags = ["--spread", "roles"] if spread else ["--label", "gpu=1"]
    alone = begin(folder, "run", "wf.py:afar", *RUN[2:], "--model", model.url, "--concurrency", "4")
    wait_until(lambda: steps_done(folder / "out") > 10)
    alone.send_signal(signal.SIGTERM)
    assert alone.wait(20) == 4
    driver = begin(folder, "resume", "out", "--peers", "3", *flags)

    def hosts() -> set[int]:
        return {event.host for event in JournalReader(folder / "out").events() if isinstance(event, StepEnded)} - {0}

    wait_until(hosts)
    first = min(hosts())
    assert signal_to(json.loads((home_of(folder / "out", first) / "lock").read_text())["pid"])
    assert driver.wait(40) == 0, (folder / "output.txt").read_text()
    found, shown_table = shown(folder), table_of(folder)
    peers, own = found["peers"], found["one_process"]
    steps = [event for event in JournalReader(folder / "out").events() if isinstance(event, StepEnded)]
    agents = sum(agent["calls"] for agent in found["agents"])
    assert sum(peer["calls"] for peer in peers) + own["calls"] == agents == len(steps) >= 120
    assert sum(peer["ended"] for peer in peers) + own["ended"] == 60 and own["calls"] > 10
    answered = {peer["epoch"]: peer["answered"] for peer in peers if peer["answered"]}
    assert first in answered and len(answered) >= 2, "one that was killed, and one that came after it"
    assert sum(answered.values()) == sum(event.host > 0 for event in steps) > 20
    for peer in peers:
        if peer["answered"]:
            assert peer["labels"], "nobody asks those who offer nothing"
    assert [row["peer"] for row in shown_table] == ["-", *(str(peer["epoch"]) for peer in peers)]
    assert shown_table[0]["process"] == "one process"
    for column, of in (("calls", agents), ("rows ended", 60), ("answered for others", sum(answered.values()))):
        assert sum(int(row[column]) for row in shown_table) == of, column


def test_one_that_joined_for_its_label_says_what_it_has_answered(folder: Path, model: CountingModel):
    (folder / "wf.py").write_text(PLACED)
    driver = begin(folder, "run", "wf.py:afar", *RUN[2:], "--model", model.url, "--peers", "1")
    wait_until(lambda: steps_done(folder / "out") == 60, what="all calls that need no label")
    joined = call(folder, "join", "out", "--label", "gpu")
    assert joined.returncode == 0, joined.stderr
    assert "0 rows ended here, and 60 calls of other peers' rows answered" in joined.stderr
    assert driver.wait(20) == 0
    assert [(row["calls"], row["answered for others"]) for row in table_of(folder)] == [("120", "0"), ("0", "60")]


def test_a_server_has_one_line_whoever_asks_it_and_the_dead_are_not_counted(folder: Path, model: CountingModel):
    write_rows(folder, 600)
    (folder / "mended").touch()
    model.latency = 0.4
    given = [*RUN, "--model", model.url.replace("#", "?start=4&connections=12#"), "--concurrency", "12"]
    screen = Screen(folder, *given, "--peers", "3")
    run = folder / "out"
    pattern = r"#m  (\d+) of (\d+) in flight, [\d.]+ s"

    def most() -> int:
        return max((int(flying) for flying, _ in re.findall(pattern, screen.text)), default=0)

    wait_until(lambda: most() > 8, what="the sum of three peers, each of which has four places")
    assert signal_to(peer_pids(run)[0])
    seen = steps_done(run)
    wait_until(lambda: steps_done(run) > seen + 60)
    time.sleep(0.5)
    screen.driver.send_signal(signal.SIGTERM)
    assert screen.wait() == 4
    blocks = screen.text.split("of 600 (")[1:]
    lines = [[line for line in block.splitlines() if " in flight, " in line] for block in blocks]
    assert max(map(len, lines)) == 1, "one server, one line"
    asked = [[int(found) for found in re.findall(pattern, each[0])[0]] for each in lines if each]
    assert all(flying <= places <= 12 for flying, places in asked), asked
    assert all(float(n) <= 12 for n in screen.numbers(r"in flight: \d+ rows, (\d+) calls"))
    assert "starting 3 peers" in screen.text and "more\x1b" not in screen.text


def test_notes_of_peers_are_added_up_by_server():
    notes: list[Note] = [
        Load("a", 3, 4, 1.0), Tally(1, "one waits", "{} wait"), "a text", Load("b", 1, 1), Load("a", 1_000, 1_000, 3.0, "paused"),
        "a text", Tally(2, "one waits", "{} wait"), Load("a", 0, 1),
    ]  # fmt: skip
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(notes), type=list[Note]) == notes, "as they travel"
    assert merged(notes) == [
        "a  1,003 of 1,005 in flight, 2 s; paused (1 of 3 peers)", "3 wait", "a text", "b  1 of 1 in flight"
    ]  # fmt: skip


# What a limit means


def test_a_simulated_models_slots_are_those_of_the_whole_run(folder: Path):
    write_rows(folder, 16)
    simulated = "simulated:latency=0.6,jitter=0,slots=4"
    ran = call(folder, *RUN, "--model", simulated, "--peers", "2", "--in-flight", "8")
    assert ran.returncode == 0, ran.stderr
    times = sorted(event.time for event in JournalReader(folder / "out").events() if isinstance(event, StepEnded))
    assert len(times) == 32
    most = max(sum(first <= each < first + 0.5 for each in times) for first in times)
    assert most == 4, "a place is free for another call once one has had it for 0.6 s"


# What is refused, at once


@pytest.mark.parametrize(
    ("host", "why"),
    [
        ("192.0.2.7", "cannot be listened at here"),
        ("no.such.host.invalid", "no address is known"),
        ("0.0.0.0", "others could not find it"),
        ("::", "others could not find it"),
    ],
)
def test_a_host_that_is_not_here_is_refused_before_anything_is_made(folder: Path, host: str, why: str):
    simulated = ["--model", "simulated:latency=0"]
    assert call(folder, *RUN[:-3], "there", *simulated, "--limit", "3").returncode == 0
    for words in (
        [*RUN, *simulated, "--peers", "2", "--host", host],
        ["resume", "there", "--retry", "failed", "--peers", "2", "--host", host],
        ["join", "out", "--store", f"file://{folder}/store", "--host", host],
    ):
        refused = call(folder, *words)
        assert refused.returncode == 2, refused.stderr
        assert why in refused.stderr and repr(host) in refused.stderr and "Expected one address" in refused.stderr
        assert "Traceback" not in refused.stderr
    assert not (folder / "out").exists() and not (folder / "there" / "peers").exists()


def refused(folder: Path, *arguments: str) -> str:
    began = time.monotonic()
    ran = call(folder, *arguments)
    assert ran.returncode == 2, ran.stderr
    assert "Traceback" not in ran.stderr and ran.stderr.count("\n") == 1, ran.stderr
    assert time.monotonic() - began < 15, "it is said at once, on a slow machine"
    return ran.stderr


def test_a_run_that_cannot_be_joined_says_why(folder: Path, model: CountingModel):
    write_rows(folder, 400)
    assert "holds no run" in refused(folder, "join", "out")
    driver = begin_run(folder, model, 0, "--concurrency", "2")
    assert "one process works on the run" in refused(folder, "join", "out")
    driver.send_signal(signal.SIGINT)
    assert driver.wait(20) == 4
    assert "has stopped (interrupted), and nobody works on it" in refused(folder, "join", "out")
    driver = begin(folder, "resume", "out", "--peers", "1", "--concurrency", "2")
    wait_until(lambda: len(peer_pids(folder / "out")) == 1)
    assert "--label 'gpu=1'" in refused(folder, "join", "out", "--label", "gpu=1")
    environment = {**os.environ, KEY_VARIABLE: secrets.token_hex(32)}
    other = subprocess.run(
        command("join", "out"), capture_output=True, text=True, timeout=30, check=False, cwd=folder, env=environment
    )
    assert other.returncode == 2 and "does not hold the key of this run" in other.stderr, other.stderr
    assert epochs_of(folder / "out") == [1], "nobody who was refused has made a home"
    kill(driver)
    time.sleep(0.6)
    assert "the command that worked on the run" in refused(folder, "join", "out")
    end_all(folder)
    assert "the command that worked on the run" in refused(folder, "join", "out")
    assert call(folder, "resume", "out", "--quiet", "--concurrency", "64").returncode == 3
    assert "has finished: there is nothing to join" in refused(folder, "join", "out")


def test_a_run_in_a_store_that_cannot_be_joined_says_why(
    folder: Path, model: CountingModel, monkeypatch: pytest.MonkeyPatch
):
    write_rows(folder, 400)
    store = f"file://{folder}/store"
    assert f"the store {store!r} holds no run" in refused(folder, "join", "new", "--store", store)
    with monkeypatch.context() as key:
        key.setenv(KEY_VARIABLE, secrets.token_hex(32))
        driver = begin_run(folder, model, 1, "--store", store, "--concurrency", "2")
    assert KEY_VARIABLE in refused(folder, "join", "new", "--store", store)
    assert not (folder / "new").exists()
    monkeypatch.setenv(KEY_VARIABLE, secrets.token_hex(32))
    kill(driver)
    end_all(folder)
    assert "the command that worked on the run" in refused(folder, "join", "new", "--store", store)
    assert call(folder, "resume", "out", "--quiet", "--concurrency", "64").returncode == 3
    for directory in ("new", "newer"):
        assert "has finished: there is nothing to join" in refused(folder, "join", directory, "--store", store)
    assert len(list((folder / "store" / "peers").glob("0*"))) == 1, "nobody who was refused has made a home"


def test_who_has_other_files_is_refused_and_not_said_to_have_joined(folder: Path, model: CountingModel):
    """As on a host where they are missing, or older. The way out is theirs: the run itself has not changed."""
    write_rows(folder, 400)
    model.latency = 0.5
    begin_run(folder, model, 1, "--concurrency", "2")
    for name in ("wf.py", "rows.jsonl"):
        path, other = folder / name, folder / "other"
        path.rename(other)
        said = refused(folder, "join", "out")
        assert f"{str(path)!r} is not on this host" in said and "the same path as where the run began" in said
        path.write_bytes(other.read_bytes().replace(b"first", b"changed").replace(b'"n": 399', b'"n": 398'))
        said = refused(folder, "join", "out")
        assert "Copy the file from the host where the run began" in said and "--reuse" not in said
        assert ("wf.py" if name == "wf.py" else "the input") in said
        other.replace(path)
    assert "joined" not in (folder / "output.txt").read_text()
    begin(folder, "join", "out", "--label", "gpu")
    wait_until(lambda: "joined out as a peer, offering gpu; Ctrl-C leaves" in (folder / "output.txt").read_text())
    wait_until(lambda: len(epochs_of(folder / "out")) == 5 and JournalReader(folder / "out", (5,)).calls() > 0)
    for driver in begun[:2]:
        driver.send_signal(signal.SIGINT)
    assert [driver.wait(30) for driver in begun[:2]] == [4, 0]
    assert "all rows have begun" not in (folder / "output.txt").read_text()


def test_a_peer_that_comes_when_all_rows_have_begun_says_so_once(folder: Path, model: CountingModel):
    write_rows(folder, 8)
    model.latency = 5.0
    driver = begin(folder, *RUN, "--model", model.url, "--peers", "1")
    wait_until(lambda: len(model.calls) == 8)
    joined = call(folder, "join", "out")
    assert joined.returncode == 0 and driver.wait(30) == 0
    lines = joined.stderr.splitlines()
    assert [line.partition(";")[0].partition(":")[0] for line in lines] == [
        "joined out as a peer", "all rows have begun", "left out",
    ], lines  # fmt: skip
    assert "a smaller --in-flight leaves more to share" in lines[1]


def test_processes_name_the_run_by_its_whole_path(folder: Path, model: CountingModel):
    begin_run(folder, model, 1)
    pids = [office_pid(folder / "out"), *peer_pids(folder / "out")]
    for pid in pids:
        assert str(folder / "out") in Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    assert begun[0].wait(40) == 3


def test_what_is_for_peers_is_refused_without_them(folder: Path):
    for flags in (["--label", "gpu"], ["--spread", "roles"], ["--host", "127.0.0.1"], ["--address", "127.0.0.1:6379"]):
        assert f"{flags[0]} is" in refused(folder, *RUN, "--model", "simulated:", *flags)
    assert not (folder / "out").exists()


@pytest.mark.parametrize("label", ["", "=2", "gpu=0", "gpu=3", "gpu=x"])
def test_labels_are_looked_at_before_there_is_a_directory(folder: Path, label: str):
    said = refused(folder, *RUN, "--model", "simulated:", "--peers", "2", "--label", label)
    assert f"--label {label!r}" in said
    assert not (folder / "out").exists()
    assert labels_of(2, ["gpu=1", "cpu"], ()) == [("gpu", "cpu"), ("cpu",)]


def test_a_label_that_nobody_offers_is_told_with_the_way_out(folder: Path):
    (folder / "wf.py").write_text(PLACED)
    driver = begin(folder, *[*RUN[:1], "wf.py", *RUN[2:]], "--model", "simulated:latency=0", "--peers", "1")
    said = lambda: (folder / "output.txt").read_text()  # noqa: E731
    wait_until(lambda: "no peer offers 'gpu', and calls wait for one: weaverant join out --label gpu" in said())
    begin(folder, "join", "out", "--label", "gpu")
    assert driver.wait(40) == 0, said()
    assert begun[1].wait(10) == 0
    assert "left out: nothing is left to do here" in said()
    assert [peer["labels"] for peer in shown(folder)["peers"]] == [[], ["gpu"]]


def test_the_key_of_a_killed_driver_does_not_stay(folder: Path, model: CountingModel):
    write_rows(folder, 200)
    key = folder / "out" / "peers" / "key"
    for again in (["--peers", "2"], []):
        write_rows(folder, 200)
        kill(begin_run(folder, model, 2, "--concurrency", "8"))
        end_all(folder)
        assert key.exists(), "nobody was left to remove it"
        assert call(folder, "resume", "out", *again).returncode == 3
        assert not key.exists()
        os.rename(folder / "out", folder / f"out{len(again)}")


# Read while peers take over


def started(number: int) -> TaskStarted:
    return TaskStarted(f"0.{number}.0", 0, 1.0, b"d" * 16, {"n": number})


def ended(number: int) -> TaskEnded:
    return TaskEnded(f"0.{number}.0", 0, "done", "", "", {"n": number}, 1.0, 2.0)


async def write(run: Path, epoch: int, *events: Any) -> None:
    journal = SegmentJournal(run, epoch=epoch)
    for event in (PeerOpened(epoch, 1.0, "host", 1, "0"), *events):
        journal.append(event)
    await journal.close()


def counts(run: Path, epoch: int) -> tuple[int, int]:
    """Tasks that began and that ended in a peer's journal."""
    found = list(JournalReader(run, (epoch,)).events())
    return sum(isinstance(event, TaskStarted) for event in found), sum(isinstance(event, TaskEnded) for event in found)


def move(run: Path, giver: int, taker: int) -> None:
    """A row begins at one peer, which is ended, and ends at another."""
    asyncio.run(write(run, giver, started(1)))
    fence(home_of(run, giver), "it was not heard")
    asyncio.run(write(run, taker, TaskTaken("0.1.0", 0, 1, 2.0, (started(1),)), ended(1)))


def reads(pid: int, home: Path) -> bool:
    """Whether the process has a file of that journal open."""
    with suppress(OSError):
        return any(os.readlink(file).startswith(str(home / "journal")) for file in Path(f"/proc/{pid}/fd").iterdir())
    return False


@pytest.mark.parametrize("noticed", [True, False])
def test_journals_are_read_again_where_a_row_moved_between_them(tmp_path: Path, noticed: bool):
    """The row begins at one peer after that one's journal was read, and ends at another before that one's is."""
    assert [new_epoch(tmp_path), new_epoch(tmp_path)] == [1, 2]
    seen: list[tuple[int, int]] = []

    def read() -> tuple[int, int]:
        first = counts(tmp_path, 1)
        if not seen:
            move(tmp_path, 1, 2)
        second = counts(tmp_path, 2)
        seen.append((first[0] + second[0], first[1] + second[1]))
        if noticed and seen[-1][0] < seen[-1][1]:
            raise JournalCorrupt("more has ended than began")
        return seen[-1]

    assert steadily(tmp_path, read) == (1, 1)
    assert seen == [(0, 1), (1, 1)]


def test_damage_is_told_at_once_where_nothing_moves(tmp_path: Path):
    asked: list[int] = []
    asyncio.run(write(tmp_path, new_epoch(tmp_path), started(1)))

    def read() -> None:
        asked.append(1)
        raise JournalCorrupt("as it was found")

    with pytest.raises(JournalCorrupt, match="as it was found"):
        steadily(tmp_path, read)
    assert asked == [1]


def test_show_of_a_run_whose_peers_take_over_meanwhile(folder: Path):
    """It is stopped where it has read one journal and not yet the other."""
    write_rows(folder, 0)
    assert call(folder, *RUN, "--model", "simulated:").returncode == 0
    run, many = folder / "out", 20_000
    assert [new_epoch(run) for _ in range(3)] == [1, 2, 3]
    asyncio.run(write(run, 2, *(event(n) for n in range(2, many) for event in (started, ended))))
    with (folder / "shown.json").open("w") as out:
        show = subprocess.Popen(command("show", "out", "--json"), stdout=out, cwd=folder)
    wait_until(lambda: reads(show.pid, home_of(run, 2)) or show.poll() is not None)
    show.send_signal(signal.SIGSTOP)
    assert reads(show.pid, home_of(run, 2)), "it was too fast"
    move(run, 1, 3)
    show.send_signal(signal.SIGCONT)
    assert show.wait(30) == 0
    stage = json.loads((folder / "shown.json").read_text())["stages"][0]
    assert (stage["rows"], stage["done"], stage["left"]) == (many - 1, many - 1, 0)
