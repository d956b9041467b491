"""A run in a store: private directories, lost nodes, stalled peers, fences that agree, objects that are not whole."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

import weaverant
from weaverant.cli import main
from weaverant.errors import JournalCorrupt, JournalError, UserError
from weaverant.events import PeerOpened, RowsDone, RunOpened
from weaverant.journal import BlobStore, JournalReader, SegmentJournal
from weaverant.journal.chain import Chain, Shipper
from weaverant.journal.homes import Fenced, fence_of, home_of
from weaverant.journal.mirror import Mirror
from weaverant.journal.objects import Folder, Objects, Patient, open_objects
from weaverant.journal.segment import pack_frame, pack_header
from weaverant.journal.shelf import attach, begin_store
from weaverant.message import digest

ROWS, CALLS = 120, 6
WORKFLOW = """
from weaverant import Agent, workflow

writer = Agent("writer", prompt="Write about {{ text }}")


@workflow
async def talk(row):
    texts = []
    for n in range(6):
        texts.append(await writer(text=f"{row['n']} {n}"))
    return {"texts": texts}
"""


# One journal


def new_store(tmp_path: Path) -> str:
    """A store with a run, whose first directory is `own`."""
    own = tmp_path / "own"
    (own / "peers").mkdir(parents=True)
    (own / "run.json").write_text("{}")
    begin_store(own, f"file://{tmp_path}/store", b"{}")
    return f"file://{tmp_path}/store"


def directory(tmp_path: Path, name: str, url: str) -> Path:
    attach(tmp_path / name, url)
    return tmp_path / name


def write(run: Path, epoch: int, count: int) -> None:
    async def all_of_them() -> None:
        journal = SegmentJournal(run, epoch=epoch)
        for number in range(count):
            journal.append(RowsDone(number, 0.0))
            await journal.flush()
        await journal.close()

    asyncio.run(all_of_them())


def numbers(run: Path, epoch: int) -> list[int]:
    return [event.number for event in JournalReader(run, (epoch,)).run_events() if isinstance(event, RowsDone)]


def piece(position: int, number: int) -> bytes:
    """A frame of the first segment."""
    import zstandard

    start = pack_header() if position == 0 else b""
    frame = pack_frame(
        0, b"\x91\x93\xa5whole" + bytes((number,)) + b"\x00", position + len(start), zstandard.ZstdCompressor()
    )
    return start + frame


def test_another_directory_gets_the_same_files(tmp_path: Path):
    url = new_store(tmp_path)
    own, other = tmp_path / "own", directory(tmp_path, "other", url)
    epoch = Mirror(own, url).new_epoch()
    write(own, epoch, 20)
    mirror = Mirror(other, url)
    mirror.fetch()
    assert numbers(other, epoch) == list(range(20))
    mine, theirs = (home_of(run, epoch) / "journal" / "000001.wvj" for run in (own, other))
    assert theirs.read_bytes() == mine.read_bytes()
    mirror.fence(epoch, "it is over")
    Mirror(own, url).fetch((epoch,))
    assert fence_of(home_of(own, epoch)) == fence_of(home_of(other, epoch)) is not None
    assert numbers(own, epoch) == list(range(20))


def test_one_of_many_creates_an_object(tmp_path: Path):
    store = Folder(tmp_path)
    for turn in range(20):
        with ThreadPoolExecutor(8) as threads:
            won = list(threads.map(lambda n, turn=turn: store.create(f"a/{turn}", bytes([n]) * 9_999), range(8)))
        assert won.count(True) == 1
        assert store.get(f"a/{turn}") == bytes([won.index(True)]) * 9_999
    assert sorted(map(int, store.names("a"))) == list(range(20)), "nothing else is seen there"


@pytest.mark.parametrize("seed", range(6))
def test_fences_at_once_agree_with_each_other_and_with_the_writer(tmp_path: Path, seed: int):
    """A writer that goes on as fast as it can, and five that fence it: all see one end, behind all that counts."""
    url = new_store(tmp_path)
    epoch = Mirror(tmp_path / "own", url).new_epoch()
    store = open_objects(url)
    shipper = Shipper(Chain(store, epoch), store, 0)
    acknowledged: list[int] = []

    def go_on() -> None:
        position = 0
        with suppress(Fenced):
            while True:
                data = piece(position, len(acknowledged) % 100)
                shipper.piece(data)
                position += len(data)
                acknowledged.append(len(acknowledged) % 100)

    hosts = [directory(tmp_path, f"host{n}", url) for n in range(5)]
    writer = threading.Thread(target=go_on)
    writer.start()
    time.sleep(0.01 * seed)
    with ThreadPoolExecutor(5) as threads:
        list(threads.map(lambda run: Mirror(run, url).fence(epoch, "silent"), hosts))
    writer.join()
    ends = {fence_of(home_of(run, epoch)) for run in hosts}
    assert len(ends) == 1 and None not in ends
    assert all(numbers(run, epoch)[: len(acknowledged)] == acknowledged for run in hosts)
    assert all(len(numbers(run, epoch)) <= len(acknowledged) + 1 for run in hosts), "one was under way at most"
    late = directory(tmp_path, "late", url)
    Mirror(late, url).fence(epoch, "once more")
    assert fence_of(home_of(late, epoch)) in ends


class Stalling:
    """A store that stands still for one of its users before it creates a piece, as a paused process would."""

    def __init__(self, store: Objects) -> None:
        self.reached, self.go_on = threading.Event(), threading.Event()
        self._store = store

    def create(self, name: str, data: bytes) -> bool:
        if "/journal/" in name:
            self.reached.set()
            assert self.go_on.wait(10)
        return self._store.create(name, data)

    def get(self, name: str) -> bytes:
        return self._store.get(name)

    def names(self, folder: str) -> list[str]:
        return self._store.names(folder)


def test_one_that_stalls_while_it_fences_gets_the_answer_of_the_others(tmp_path: Path):
    url = new_store(tmp_path)
    own, slow, quick = tmp_path / "own", directory(tmp_path, "slow", url), directory(tmp_path, "quick", url)
    epoch = Mirror(own, url).new_epoch()
    store = open_objects(url)
    shipper = Shipper(Chain(store, epoch), store, 0)
    shipper.piece(piece(0, 1))
    stalled = Mirror(slow, url)
    stalled.objects = stalling = Stalling(stalled.objects)
    thread = threading.Thread(target=stalled.fence, args=(epoch, "slowly"))
    thread.start()
    assert stalling.reached.wait(10)
    shipper.piece(piece(len(piece(0, 1)), 2))  # acknowledged, behind the end that the stalled one has seen
    Mirror(quick, url).fence(epoch, "quickly")
    with pytest.raises(Fenced):
        shipper.piece(piece(2 * len(piece(0, 1)) - len(pack_header()), 3))
    stalling.go_on.set()
    thread.join()
    assert numbers(slow, epoch) == numbers(quick, epoch) == [1, 2]
    assert fence_of(home_of(slow, epoch)) == fence_of(home_of(quick, epoch))


def pieces(tmp_path: Path, epoch: int) -> list[Path]:
    return sorted((tmp_path / "store" / "peers" / f"{epoch:06}" / "journal").iterdir())


@pytest.mark.parametrize("harm", ["cut", "changed", "missing"])
def test_a_piece_that_is_not_whole_is_not_taken(tmp_path: Path, harm: str):
    url = new_store(tmp_path)
    own, other = tmp_path / "own", directory(tmp_path, "other", url)
    epoch = Mirror(own, url).new_epoch()
    write(own, epoch, 5)
    last = pieces(tmp_path, epoch)[-2 if harm == "missing" else -1]
    data = bytearray(last.read_bytes())
    data[len(data) // 2] ^= 1
    if harm == "missing":
        last.unlink()
    else:
        last.write_bytes(last.read_bytes()[:-1] if harm == "cut" else bytes(data))
    with pytest.raises(JournalCorrupt, match=last.name):
        Mirror(other, url).fetch()
    with pytest.raises(JournalCorrupt, match=last.name):
        Mirror(other, url).fence(epoch, "now")
    assert fence_of(home_of(other, epoch)) is None
    assert numbers(other, epoch) == list(range(5 - (harm == "missing")))


def test_what_a_killed_writer_had_not_finished_is_no_object(tmp_path: Path):
    url = new_store(tmp_path)
    own, other = tmp_path / "own", directory(tmp_path, "other", url)
    epoch = Mirror(own, url).new_epoch()
    write(own, epoch, 2)
    unfinished = pieces(tmp_path, epoch)[0].with_name(".000000000009999.abc.tmp")
    unfinished.write_bytes(b"half of a pie")
    Mirror(other, url).fence(epoch, "killed")
    assert numbers(other, epoch) == [0, 1]


def test_a_copy_that_a_crash_has_harmed_is_fetched_again(tmp_path: Path):
    url = new_store(tmp_path)
    own, other = tmp_path / "own", directory(tmp_path, "other", url)
    epoch = Mirror(own, url).new_epoch()
    write(own, epoch, 9)
    Mirror(other, url).fetch()
    path = home_of(other, epoch) / "journal" / "000001.wvj"
    whole = path.read_bytes()
    path.write_bytes(whole[:40] + bytes(60))
    Mirror(other, url).fetch()
    assert path.read_bytes() == whole


class Flaky:
    """A store that does not answer every second time, and has done what it was asked in half of those."""

    def __init__(self, store: Objects) -> None:
        self._random = random.Random(7)
        self._store = store

    def _stumble(self, act: Callable[[], Any]) -> Any:
        fate = self._random.randrange(4)
        if fate == 0:
            raise TimeoutError("no answer: nothing was done")
        answer = act()
        if fate == 1:
            raise ConnectionResetError("no answer: it was done")
        return answer

    def create(self, name: str, data: bytes) -> bool:
        return self._stumble(lambda: self._store.create(name, data))

    def get(self, name: str) -> bytes:
        return self._stumble(lambda: self._store.get(name))

    def names(self, folder: str) -> list[str]:
        return self._stumble(lambda: self._store.names(folder))


def test_answers_that_were_lost_are_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("weaverant.journal.objects.FIRST_WAIT_S", 0.001)
    url = new_store(tmp_path)
    mirror = Mirror(tmp_path / "own", url)
    mirror.objects = Patient(Flaky(open_objects(url)))
    epochs = [mirror.new_epoch() for _ in range(3)]
    assert epochs == [1, 2, 3]
    shipper, position = mirror.shipper(2), 0
    for number in range(10):
        data = piece(position, number)
        shipper.piece(data)
        position += len(data)
    mirror.fence(2, "over")
    assert numbers(tmp_path / "own", 2) == list(range(10))


def test_a_store_that_does_not_come_back_ends_the_journal_and_not_the_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Patient.__init__, "__defaults__", (0.3,))
    url = new_store(tmp_path)
    own = tmp_path / "own"
    epoch = Mirror(own, url).new_epoch()
    failed: list[JournalError] = []
    told: list[int] = []

    async def go_on() -> None:
        journal = SegmentJournal(own, epoch=epoch, on_failure=failed.append)
        journal.append(RowsDone(1, 0.0), lambda: told.append(1))
        await journal.flush()
        (tmp_path / "store").rename(tmp_path / "away")
        journal.append(RowsDone(2, 0.0), lambda: told.append(2))
        with pytest.raises(JournalError):
            await journal.flush()
        await journal.close()

    asyncio.run(go_on())
    assert told == [1] and len(failed) == 1 and "is it mounted?" in str(failed[0])
    assert not (tmp_path / "store").exists(), "nothing is made where a mount is missing"
    (tmp_path / "away").rename(tmp_path / "store")
    other = directory(tmp_path, "other", url)
    Mirror(other, url).fence(epoch, "over")
    assert numbers(other, epoch) == [1]


def test_of_two_sessions_that_write_the_runs_own_journal_one_goes_on(tmp_path: Path):
    url = new_store(tmp_path)
    own, other = tmp_path / "own", directory(tmp_path, "other", url)

    async def both() -> None:
        first = SegmentJournal(own, on_failure=lambda _: None)
        first.append(RunOpened(0, 1.0, "first"))
        await first.flush()
        second = SegmentJournal(other)  # seals what the first had open
        second.append(RunOpened(1, 2.0, "second"))
        await second.flush()
        first.append(RunOpened(2, 3.0, "first again"))
        with pytest.raises(JournalError, match="another process goes on with the run"):
            await first.flush()
        await first.close()
        await second.close()

    asyncio.run(both())
    Mirror(own, url).fetch()
    for run in (own, other):
        opened = [event for event in JournalReader(run).run_events() if isinstance(event, RunOpened)]
        assert [event.version for event in opened] == ["first", "second"]


def test_long_texts_are_there_before_the_step_that_has_them(tmp_path: Path):
    url = new_store(tmp_path)
    own, other = tmp_path / "own", directory(tmp_path, "other", url)
    epoch = Mirror(own, url).new_epoch()
    text = "long " * 50_000
    key = digest(text.encode())

    async def go_on() -> None:
        journal = SegmentJournal(own, epoch=epoch)
        journal.append(PeerOpened(epoch, 0.0, "h", 1, "v", ()), blobs={key: text})
        await journal.flush()
        assert BlobStore(other / "blobs").get(key) == text
        await journal.close()

    asyncio.run(go_on())
    third = directory(tmp_path, "third", url)
    assert Mirror(third, url).fetch_blobs() == 1
    shutil.rmtree(tmp_path / "store")
    assert BlobStore(third / "blobs").get(key) == text


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("memory://run", "other processes would not see the run"),
        ("s3://key:secret@bucket/run", "no secret"),
        ("s3://bucket/run?secret=x", "no secret"),
        ("s3://key:se/cret@bucket/run", "no secret"),
        ("file://key:secret@host/run", "no secret"),
        ("nosuch://bucket/run", "weaverant\\[store\\]"),
        ("file://NAME", "expected file:///absolute/path, a plain path.*found 'file://NAME'"),
        ("FILE://NAME/x", "expected file:///absolute/path"),
        ("file:NAME", "expected file:///absolute/path"),
        ("local://NAME", "expected file:///absolute/path"),
        ("s3:bucket/run", "s3://BUCKET/NAME; found 's3:bucket/run'"),
        ("://x", "expected file:///absolute/path"),
        ("", "expected file:///absolute/path"),
    ],
)
def test_what_is_no_store_is_a_users_error(tmp_path: Path, url: str, says: str):
    with pytest.raises(UserError, match=says) as refused:
        begin_store(tmp_path, url, b"{}")
    assert "secret@" not in str(refused.value) and "se/cret" not in str(refused.value)
    assert not (tmp_path / "store.json").exists()


class Overwriting(Folder):
    """A store whose server takes no notice of conditions."""

    def create(self, name: str, data: bytes) -> bool:
        (self._path / name).unlink(missing_ok=True)
        return super().create(name, data)


def test_a_store_that_cannot_tell_who_was_first_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    overwriting = Overwriting(tmp_path / "store", "run.json")
    monkeypatch.setattr("weaverant.journal.shelf.open_objects", lambda url: overwriting)
    with pytest.raises(UserError, match="who of several was the first"):
        begin_store(tmp_path / "own", "file:///store", b"{}")


def plain_run(tmp_path: Path, store: str, directory: str = "runs/one") -> int:
    """`weaverant run` of one row in this process. The exit code."""
    (tmp_path / "wf.py").write_text(WORKFLOW)
    (tmp_path / "rows.jsonl").write_text('{"n": 1}\n')
    words = ["run", "wf.py", "--input", "rows.jsonl", "--model", "simulated:latency=0", "--quiet"]
    return main([*words, "--run", directory, "--store", store])


def test_a_store_that_is_refused_leaves_no_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Else the next `run` would find a run there, and `resume` go on with it without the store."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "holds").mkdir()
    (tmp_path / "holds" / "run.json").write_text("{}")
    (tmp_path / "there").mkdir()
    for store in ("s3://bucket/x", "nosuch://b/x", "/proc/none/x", "file/below", "holds", "file://NAME"):
        for directory in ("runs/one", "there"):
            assert plain_run(tmp_path, store, directory) == 2, store
            assert "store" in capsys.readouterr().err
            assert not (tmp_path / "runs").exists() and list((tmp_path / "there").iterdir()) == []
    assert plain_run(tmp_path, "good") == 0
    assert plain_run(tmp_path, "good", "there") == 2
    assert "already holds a run" in capsys.readouterr().err and list((tmp_path / "there").iterdir()) == []


def test_ctrl_c_while_a_store_is_asked_leaves_no_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    class Interrupted(Folder):
        def create(self, name: str, data: bytes) -> bool:
            assert (tmp_path / "runs" / "one" / "store.json").exists(), "killed here, it is no run without a store"
            assert not (tmp_path / "runs" / "one" / "run.json").exists()
            raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    (tmp_path / "wf.py").write_text(WORKFLOW)
    monkeypatch.setattr("weaverant.journal.shelf.open_objects", lambda url: Interrupted(tmp_path / "store", "run.json"))
    with pytest.raises(KeyboardInterrupt):
        weaverant.run("wf.py", [{"n": 1}], models="simulated:", directory="runs/one", store="store")
    assert not (tmp_path / "runs").exists()


def test_a_plain_path_is_a_store_wherever_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """It is noted as an absolute one, and is the same place as its URL."""
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "sub")
    assert plain_run(tmp_path / "sub", "../store", "one") == 0
    assert json.loads((tmp_path / "sub" / "one" / "store.json").read_text())["url"] == f"file://{tmp_path}/store"
    monkeypatch.chdir(tmp_path)
    assert main(["resume", "sub/one", "--store", "store", "--quiet"]) == 0
    for number, same in enumerate(("store", "store/", f"file://{tmp_path}/sub/../store", f"{tmp_path}/store")):
        assert main(["fetch", same, f"fetched{number}"]) == 0
        assert main(["fetch", f"file://{tmp_path}/store", f"fetched{number}"]) == 0
        assert JournalReader(tmp_path / f"fetched{number}").calls() == CALLS


@pytest.mark.parametrize("words", [["fetch", "file://store", "one"], ["resume", "one", "--store", "file://store"],
                                   ["join", "one", "--store", "file://store"]])  # fmt: skip
def test_two_slashes_are_refused_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str]
):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    assert "expected file:///absolute/path, a plain path" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_password_is_in_no_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    assert plain_run(tmp_path, "store", "one") == 0
    for url in ("s3://key:secret@bucket/run", "s3://key:sec/ret@bucket/run", "file://key:secret@host/run"):
        for words in (["fetch", url, "one"], ["resume", "one", "--store", url], ["join", "one", "--store", url]):
            assert main(words) == 2
        assert plain_run(tmp_path, url, "two") == 2
        said = capsys.readouterr()
        assert "secret@" not in said.out + said.err and "ret@" not in said.out + said.err, said.err
        assert said.err.count("must hold no secret") == 4


def test_who_waits_for_a_missing_store_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`show` says after 2 s what it waits for, and goes on with what is here."""
    monkeypatch.chdir(tmp_path)
    assert plain_run(tmp_path, "store", "one") == 0
    (tmp_path / "store").rename(tmp_path / "away")
    began = time.monotonic()
    show = subprocess.Popen(
        [sys.executable, "-m", "weaverant", "show", "one"], cwd=tmp_path, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert show.stderr is not None
    assert "waiting for the store" in (said := show.stderr.readline()) and "/store'" in said and "6 s" in said
    out, err = show.communicate(timeout=60)
    assert show.returncode == 0 and "is it mounted?" in err and "done 1" in out, (out, err)
    assert time.monotonic() - began < 30, "on a slow machine; the patience of those that work is 60 s"


# Whole runs, in processes


class Hosts:
    """Hosts that share nothing but a store: each process has a directory of its own."""

    def __init__(self, tmp_path: Path, url: str, more: dict[str, str]) -> None:
        self.url = url
        self._tmp_path = tmp_path
        self._env = {**os.environ, **more, "WEAVERANT_RUN_KEY": secrets.token_hex(32)}
        self._all: list[subprocess.Popen[bytes]] = []
        (tmp_path / "wf.py").write_text(WORKFLOW)
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"n": n}) + "\n" for n in range(ROWS)))

    def command(self, *words: str) -> subprocess.Popen[bytes]:
        log = self._tmp_path / f"{len(self._all)}.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", "weaverant", *words],
                cwd=self._tmp_path, env=self._env, stdout=out, stderr=out, start_new_session=True,
            )  # fmt: skip
        self._all.append(process)
        return process

    def run(self, peers: int, latency: float = 0.05) -> subprocess.Popen[bytes]:
        return self.command(
            "run", "wf.py", "--input", "rows.jsonl", "--model", f"simulated:latency={latency}", "--run", "first",
            "--peers", str(peers), "--concurrency", "24", "--store", self.url, "--quiet",
        )  # fmt: skip

    def join(self, name: str) -> subprocess.Popen[bytes]:
        return self.command("join", "--store", self.url, name)

    def end(self, process: subprocess.Popen[bytes], code: int | None = 0) -> None:
        found = process.wait(60)
        log = (self._tmp_path / f"{self._all.index(process)}.log").read_text()
        assert code in (found, None), log

    def done(self, command: str, *words: str) -> str:
        return subprocess.run(
            [sys.executable, "-m", "weaverant", command, *words],
            cwd=self._tmp_path, env=self._env, capture_output=True, check=True, text=True, timeout=60,
        ).stdout  # fmt: skip

    def check(self, name: str, other: str) -> None:
        """All rows are there, each once, and no step is recorded twice: here and where it is fetched to."""
        self.done("fetch", self.url, other)
        for run in (name, other):
            rows = [json.loads(line) for line in self.done("export", run, "--as", "raw", "--out", "-").splitlines()]
            assert sorted(row["row"]["n"] for row in rows) == list(range(ROWS))
            assert {len(row["result"]["texts"]) for row in rows} == {CALLS}
            reader = JournalReader(self._tmp_path / run)
            assert reader.calls() == ROWS * CALLS, "what was acknowledged is not asked again"

    def close(self) -> None:
        for process in self._all:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@contextmanager
def hosts_of(tmp_path: Path, url: str, more: dict[str, str] | None = None) -> Iterator[Hosts]:
    hosts = Hosts(tmp_path, url, more or {})
    try:
        yield hosts
    finally:
        hosts.close()


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    with hosts_of(tmp_path, f"file://{tmp_path}/store") as made:
        yield made


def wait_for(what: Callable[[], bool], seconds: float = 30.0) -> None:
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until
        time.sleep(0.02)


def steps_of(url: str, tmp_path: Path, epoch: int) -> int:
    """How many pieces a peer has put into the store."""
    with suppress(OSError):
        return len(open_objects(url).names(f"peers/{epoch:06}/journal"))
    return 0


def test_a_run_goes_on_while_its_store_is_away_for_a_while(hosts: Hosts, tmp_path: Path):
    run = hosts.run(2)
    wait_for(lambda: steps_of(hosts.url, tmp_path, 2) > 5)
    (tmp_path / "store").rename(tmp_path / "away")
    time.sleep(2.0)
    (tmp_path / "away").rename(tmp_path / "store")
    hosts.end(run)
    hosts.check("first", "other")


def test_nothing_is_lost_with_a_node_and_its_disk(hosts: Hosts, tmp_path: Path):
    """Of two hosts that joined one is killed with its directory, and the other stands still for longer than its lease."""
    run = hosts.run(1, latency=0.4)
    wait_for(lambda: (tmp_path / "store" / "peers" / "office.1.at").exists())
    lost = hosts.join("lost")
    wait_for(lambda: (tmp_path / "lost" / "peers").is_dir() and len(list((tmp_path / "lost" / "peers").iterdir())) == 1)
    stalled = hosts.join("stalled")
    wait_for(lambda: all(steps_of(hosts.url, tmp_path, epoch) > 2 for epoch in (1, 2, 3)))
    lost.kill()
    lost.wait()
    shutil.rmtree(tmp_path / "lost")
    stalled.send_signal(signal.SIGSTOP)
    time.sleep(5.5)
    stalled.send_signal(signal.SIGCONT)
    hosts.end(run)
    hosts.end(stalled)
    hosts.check("first", "other")


def test_another_host_goes_on_with_what_a_lost_one_drove(hosts: Hosts, tmp_path: Path):
    run = hosts.run(2)
    wait_for(lambda: all(steps_of(hosts.url, tmp_path, epoch) > 5 for epoch in (1, 2)))
    pids = [int(line.split()[0]) for line in subprocess.check_output(["ps", "-eo", "pid,args"], text=True).splitlines()[1:]
            if f"{tmp_path}" in line or str(run.pid) == line.split()[0]]  # fmt: skip
    children = subprocess.run(["pgrep", "-P", str(run.pid)], capture_output=True, text=True).stdout.split()
    for pid in {run.pid, *pids, *map(int, children)}:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    run.wait()
    shutil.rmtree(tmp_path / "first")
    hosts.end(hosts.command("resume", "second", "--store", hosts.url, "--peers", "2", "--quiet"))
    hosts.check("second", "other")


# S3, by a server


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def s3() -> Iterator[dict[str, str]]:
    """moto's server in a process of its own, and the environment that leads to it."""
    pytest.importorskip("s3fs")
    pytest.importorskip("moto")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_for(lambda: answers(port))
        yield {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "y",
            "AWS_DEFAULT_REGION": "us-east-1",
        }  # fmt: skip
    finally:
        server.kill()
        server.wait()


MAKE_BUCKET = "import fsspec; fsspec.filesystem('s3').mkdir('bucket')"
RACE = """
from concurrent.futures import ThreadPoolExecutor
from weaverant.journal.objects import open_objects
store = open_objects("s3://bucket/race")
for turn in range(10):
    with ThreadPoolExecutor(16) as threads:
        won = list(threads.map(lambda n: store.create(f"a/{turn}", bytes([n])), range(16)))
    assert won.count(True) == 1 and store.get(f"a/{turn}") == bytes([won.index(True)]), won
assert sorted(map(int, store.names("a"))) == list(range(10)) and store.names("nothing") == []
"""


@pytest.mark.heavy
def test_a_run_in_s3_loses_nothing_with_a_node(tmp_path: Path, s3: dict[str, str]):
    for code in (MAKE_BUCKET, RACE):
        subprocess.run([sys.executable, "-c", code], env={**os.environ, **s3}, check=True, timeout=60)
    with hosts_of(tmp_path, "s3://bucket/runs/one", s3) as hosts:
        run = hosts.run(1, latency=0.3)
        wait_for(lambda: (tmp_path / "first" / "peers" / "000001").is_dir())
        lost = hosts.join("lost")
        wait_for(lambda: any((tmp_path / "lost").glob("peers/*/journal/000001.wvj")))
        path = next((tmp_path / "lost").glob("peers/*/journal/000001.wvj"))
        wait_for(lambda: path.stat().st_size > 2_000)
        lost.kill()
        lost.wait()
        shutil.rmtree(tmp_path / "lost")
        hosts.end(run)
        hosts.check("first", "other")


def test_an_object_is_in_the_store_or_refused_while_the_store_comes_and_goes(tmp_path: Path):
    """As a mount does. What stands at its place meanwhile is an empty directory."""
    place, away = tmp_path / "store", tmp_path / "away"
    objects, over = open_objects(str(place)), threading.Event()
    assert objects.create("run.json", b"{}")

    def flip() -> None:
        number = 0
        while not over.is_set():
            place.rename(away)
            place.mkdir()
            time.sleep(0.0005)
            place.rename(tmp_path / f"stray{number}")
            away.rename(place)
            time.sleep(0.0005)
            number += 1

    flipping = threading.Thread(target=flip)
    flipping.start()
    refused = 0
    try:
        for number in range(400):
            while True:
                try:
                    assert objects.create(f"peers/{number:06}/journal/0", b"piece")
                    break
                except OSError as error:
                    if error.errno != errno.ENODEV:
                        raise
                    refused += 1
    finally:
        over.set()
        flipping.join()
    assert refused and [objects.get(f"peers/{number:06}/journal/0") for number in range(400)] == [b"piece"] * 400
    assert not [path for stray in tmp_path.glob("stray*") for path in stray.rglob("*")]
