"""The journal on real files: what goes in comes out, in order, and damage is never passed over in silence."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from weaverant.errors import JournalCorrupt, JournalError, RunLocked, UserError
from weaverant.events import (
    AgentBound,
    Event,
    RunClosed,
    RunOpened,
    SourceEnded,
    StepEnded,
    TaskEnded,
    TaskReopened,
    TaskStarted,
    TaskSuperseded,
    TimerFired,
)
from weaverant.journal import BlobStore, JournalReader, NullJournal, SegmentJournal, StageCounts, segment
from weaverant.journal.blobs import blob_path
from weaverant.journal.codec import encode_into, new_payload
from weaverant.journal.disk import Disk
from weaverant.journal.index import SegmentIndex
from weaverant.journal.store import SegmentStore
from weaverant.message import Usage, digest
from weaverant.testing.journal import MemoryJournal


def start(task: str, stage: int = 0) -> TaskStarted:
    return TaskStarted(task, stage, 1.0, task.encode(), {"text": f"row of {task}"})


def step(task: str, value: str = "reply", model: str = "m") -> StepEnded:
    key = task, "0", b"f" * 16, 0
    return StepEnded(*key, "model", "a", "s", {}, "reply", value, 0.0, 1.0, 2.0, Usage(10, 20, cost=0.5), model)


def end(task: str, state: Any = "done", stage: int = 0) -> TaskEnded:
    return TaskEnded(task, stage, state, "", "", {"value": task}, 1.0, 3.0)


ALL_KINDS: list[Event] = [
    RunOpened(0, 1.0, "0.1"),
    AgentBound("spec", {"name": "writer"}),
    start("t1"),
    step("t1"),
    TimerFired("t1", "0", 0, 1.0, 2.0),
    end("t1", "failed"),
    TaskReopened("t1", 4.0, 1),
    TaskSuperseded("t1", "t2", 5.0),
    SourceEnded(1, 6.0),
    RunClosed("finished", 7.0),
]


async def write(directory: Path, events: list[Event], **options: Any) -> None:
    journal = SegmentJournal(directory, **options)
    for event in events:
        journal.append(event)
        if random.random() < 0.01:
            await asyncio.sleep(0)
    await journal.close()


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(work)


def unsealed(directory: Path, groups: list[list[Event]]) -> Path:
    """A journal as a killed process leaves it: one segment, one frame for each group."""
    directory.mkdir(exist_ok=True)
    store, index = SegmentStore(directory / "journal", Disk(), sync=False), SegmentIndex()
    store.recover()
    for events in groups:
        payload = segment_payload(events)
        store.write([(payload, len(events))], index)
    store.close()
    return directory / "journal" / "000001.wvj"


def segment_payload(events: list[Event]) -> bytearray:
    payload = new_payload()
    for event in events:
        encode_into(event, payload, -1)
    return payload


async def reopen(directory: Path) -> SegmentJournal:
    journal = SegmentJournal(directory)
    await journal.close()
    return journal


def test_every_kind_comes_back_in_order(tmp_path: Path):
    run(write(tmp_path, ALL_KINDS))
    run(write(tmp_path, ALL_KINDS[:2]))
    reader = JournalReader(tmp_path)
    assert list(reader.events()) == ALL_KINDS + ALL_KINDS[:2]
    assert reader.task_events("t1") == ALL_KINDS[2:8]
    assert reader.task_events("nobody") == []
    about_run = [ALL_KINDS[0], ALL_KINDS[1], ALL_KINDS[8], ALL_KINDS[9]]
    assert list(reader.run_events()) == about_run + ALL_KINDS[:2]
    assert reader.usage() == {"m": Usage(10, 20, cost=0.5)}


def test_a_directory_without_a_journal_is_an_empty_one(tmp_path: Path):
    reader = JournalReader(tmp_path)
    assert list(reader.events()) == [] and reader.unfinished() == {} and reader.counts() == {}
    run(write(tmp_path, []))
    assert list(reader.events()) == [] and not list((tmp_path / "journal").iterdir())


def test_acknowledged_in_order_and_only_when_on_disk(tmp_path: Path):
    async def main() -> None:
        journal = SegmentJournal(tmp_path)
        seen: list[int] = []

        def landed(number: int) -> None:
            seen.append(number)
            on_disk = sum(1 for _ in JournalReader(tmp_path).events())
            assert on_disk > number

        for number in range(50):
            journal.append(step(f"t{number}"), lambda number=number: landed(number))
            if number % 7 == 0:
                await asyncio.sleep(0.001)
        await journal.flush()
        assert seen == list(range(50))
        await journal.close()
        await journal.close()
        with pytest.raises(JournalError, match="closed"):
            journal.append(start("t"))

    run(main())


def test_what_cannot_be_encoded_leaves_the_journal_whole(tmp_path: Path):
    async def main() -> None:
        journal = SegmentJournal(tmp_path)
        journal.append(start("t1"))
        with pytest.raises(TypeError):
            journal.append(TaskStarted("t2", 0, 1.0, b"", object()))
        with pytest.raises(UnicodeEncodeError):
            journal.append(step("t2", "\ud800"))
        journal.append(end("t1"))
        await journal.close()

    run(main())
    assert list(JournalReader(tmp_path).events()) == [start("t1"), end("t1")]


def test_twenty_thousand_acknowledgements_do_not_stall_the_loop(tmp_path: Path):
    async def main() -> None:
        journal = SegmentJournal(tmp_path)
        count = worst = 0.0
        futures = [asyncio.get_running_loop().create_future() for _ in range(20_000)]

        def landed(future: asyncio.Future[None]) -> None:
            time.sleep(0.0001)
            future.set_result(None)

        for future in futures:
            journal.append(step("t"), lambda future=future: landed(future))
        while not futures[-1].done():
            before = time.perf_counter()
            await asyncio.sleep(0)
            worst = max(worst, time.perf_counter() - before)
            count += 1
        await journal.close()
        assert count > 20, "the acknowledgements came in one go"
        assert worst < 1.0, "in one go they take two seconds"

    run(main())


@pytest.mark.parametrize("kind", [NullJournal, MemoryJournal])
def test_journals_without_files_keep_order_too(kind: type[NullJournal]):
    async def main() -> None:
        journal = kind()
        seen: list[int] = []
        for number, event in enumerate(ALL_KINDS):
            journal.append(event, lambda number=number: seen.append(number))
        assert not seen
        await journal.flush()
        assert seen == list(range(len(ALL_KINDS)))
        await journal.close()
        with pytest.raises(JournalError):
            journal.append(ALL_KINDS[0])
        if isinstance(journal, MemoryJournal):
            assert journal.events() == ALL_KINDS

    run(main())


GROUPS: list[list[Event]] = [[start("t1"), step("t1")], [step("t1", "x" * 300)], [step("t1"), end("t1")]]
FLAT = [event for group in GROUPS for event in group]


def flips(path: Path) -> Any:
    """The file with each of its bits flipped in turn: gives the bit's byte."""
    data = path.read_bytes()
    for position in range(len(data)):
        for bit in range(8):
            path.write_bytes(data[:position] + bytes([data[position] ^ 1 << bit]) + data[position + 1 :])
            yield position
    path.write_bytes(data)


def test_a_flipped_bit_in_an_open_segment(tmp_path: Path):
    path = unsealed(tmp_path, GROUPS)
    with segment.Segment(path) as file:
        last = [frame.offset for frame in file.frames()][-1]
    for position in flips(path):
        damaged = path.read_bytes()
        if position >= last:
            assert list(JournalReader(tmp_path).events()) == FLAT[:-2]
            continue
        with pytest.raises(JournalCorrupt, match=r"000001\.wvj"):
            list(JournalReader(tmp_path).events())
        with pytest.raises(JournalCorrupt, match="Nothing was changed"):
            SegmentStore(tmp_path / "journal", Disk(), sync=False).recover()
        assert path.read_bytes() == damaged
    assert list(JournalReader(tmp_path).events()) == FLAT


def test_a_flipped_bit_in_a_sealed_segment(tmp_path: Path):
    """Events are right or refused; so is what the index says."""
    run(write(tmp_path, FLAT))
    run(write(tmp_path, [start("t2")]))
    questions: list[Callable[[], Any]] = [
        lambda: list(JournalReader(tmp_path).events()),
        lambda: JournalReader(tmp_path).unfinished(),
        lambda: list(JournalReader(tmp_path).tasks()),
    ]
    answers = [ask() for ask in questions]
    refused = 0
    for _ in flips(tmp_path / "journal" / "000001.wvj"):
        for ask, answer in zip(questions, answers, strict=True):
            try:
                assert ask() == answer
            except JournalCorrupt:
                refused += 1
    assert refused > 1_000
    assert [ask() for ask in questions] == answers


def test_a_tail_torn_at_every_byte(tmp_path: Path):
    path = unsealed(tmp_path, GROUPS)
    data = path.read_bytes()
    with segment.Segment(path) as file:
        ends = [segment.HEADER_BYTES] + [frame.end for frame in file.frames()]
    whole = [0, 2, 3, 5]
    for size in range(len(data)):
        path.write_bytes(data[:size])
        kept = max((count for end, count in zip(ends, whole, strict=True) if end <= size), default=0)
        assert list(JournalReader(tmp_path).events()) == FLAT[:kept]
        repair = asyncio.run(reopen(tmp_path)).repair
        good = max((end for end in ends if end <= size), default=0) if kept else 0
        assert repair is not None and repair.cut == size - good
        assert list(JournalReader(tmp_path).events()) == FLAT[:kept]
        assert path.exists() == (kept > 0)


def test_zeros_at_the_end_are_a_torn_tail(tmp_path: Path):
    path = unsealed(tmp_path, GROUPS)
    with path.open("ab") as file:
        file.write(bytes(5_000))
    assert list(JournalReader(tmp_path).events()) == FLAT
    run(write(tmp_path, [start("t2")]))
    assert list(JournalReader(tmp_path).events()) == [*FLAT, start("t2")]


@pytest.mark.parametrize("sealed", [True, False])
def test_a_header_that_lost_bytes_is_damage(tmp_path: Path, sealed: bool):
    """All frames stand somewhere else then, and none of them matches its place."""
    path = unsealed(tmp_path, GROUPS)
    if sealed:
        run(write(tmp_path, []))
    whole = path.read_bytes()
    for begin in range(16):
        for lost in (1, 4, 16 - begin):
            path.write_bytes(whole[:begin] + whole[begin + lost :])
            with pytest.raises(JournalCorrupt, match="damaged at offset 0"):
                list(JournalReader(tmp_path).events())
    for size in range(16):
        path.write_bytes(whole[:size])  # as a crash leaves it
        assert list(JournalReader(tmp_path).events()) == []


def test_a_missing_or_shortened_segment_is_named(tmp_path: Path):
    for _ in range(3):
        run(write(tmp_path, FLAT))
    second = tmp_path / "journal" / "000002.wvj"
    data = second.read_bytes()
    second.write_bytes(data[:-1])
    for use in (lambda: list(JournalReader(tmp_path).events()), lambda: SegmentJournal(tmp_path)):
        with pytest.raises(JournalCorrupt, match=r"000002\.wvj"):
            use()
    second.unlink()
    for use in (lambda: list(JournalReader(tmp_path).events()), lambda: SegmentJournal(tmp_path)):
        with pytest.raises(JournalCorrupt, match=r"000002 .* is missing"):
            use()
    second.write_bytes(data)
    assert list(JournalReader(tmp_path).events()) == FLAT * 3


def rewrite_header(path: Path, major: int, minor: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(segment, "MAJOR", major)
        patch.setattr(segment, "MINOR", minor)
        head = segment.pack_header()
    path.write_bytes(head + path.read_bytes()[len(head) :])


def test_formats_newer_than_this_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    class Novelty(StepEnded.__mro__[1], frozen=True, array_like=True, tag="novelty"):  # type: ignore[misc]
        task: list[int]

    class LongerEnd(SourceEnded, frozen=True, array_like=True, tag="source"):
        added: str = ""

    events: list[Any] = [start("t1"), Novelty([1]), LongerEnd(1, 6.0, "more")]
    path = unsealed(tmp_path, [events, [end("t1")]])
    with pytest.raises(JournalCorrupt, match="decoded"):
        list(JournalReader(tmp_path).events())
    rewrite_header(path, segment.MAJOR, segment.MINOR + 1, monkeypatch)
    assert list(JournalReader(tmp_path).events()) == [start("t1"), SourceEnded(1, 6.0), end("t1")]
    assert JournalReader(tmp_path).counts() == {0: StageCounts(done=1)}
    with pytest.raises(UserError, match="upgrade"):
        SegmentJournal(tmp_path)
    rewrite_header(path, segment.MAJOR + 1, 0, monkeypatch)
    for use in (lambda: list(JournalReader(tmp_path).events()), lambda: SegmentJournal(tmp_path)):
        with pytest.raises(UserError, match="Upgrade"):
            use()


def test_a_reader_follows_a_writer(tmp_path: Path):
    async def main() -> None:
        journal = SegmentJournal(tmp_path, segment_bytes=500)
        reader = JournalReader(tmp_path)
        place, seen = None, 0
        for number in range(40):
            journal.append(step(f"t{number}", "x" * 100))
            await journal.flush()
            for batch in reader.batches(place):
                place = batch.next
                assert [event.task for event in batch.events] == [f"t{seen}"]  # type: ignore[union-attr]
                seen += 1
            assert seen == number + 1
        await journal.close()
        assert list(reader.batches(place)) == []

    run(main())
    assert len(list((tmp_path / "journal").iterdir())) > 3


def test_one_writer_at_a_time(tmp_path: Path):
    code = (
        "import sys, asyncio; from weaverant.journal import SegmentJournal\n"
        "journal = SegmentJournal(sys.argv[1]); print('open', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"open\n"
        with pytest.raises(RunLocked, match=rf"process {holder.pid} on host .* since 20.*kill {holder.pid}"):
            SegmentJournal(tmp_path)
        assert list(JournalReader(tmp_path).events()) == []
        holder.kill()
    assert (tmp_path / "lock").exists()
    run(write(tmp_path, FLAT))
    (tmp_path / "lock").write_bytes(b"rubbish")
    run(write(tmp_path, FLAT))
    assert list(JournalReader(tmp_path).events()) == FLAT * 2


def test_a_run_directory_that_cannot_be_made(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(JournalError, match="writable directory"):
        SegmentJournal(tmp_path / "file" / "run")


def test_blobs_are_checked(tmp_path: Path):
    text = "long text, with a lone surrogate \ud800 " * 3_000
    key = digest(text.encode(errors="surrogatepass"))

    async def main() -> None:
        journal = SegmentJournal(tmp_path)
        journal.append(start("t1"), blobs={key: text})
        journal.append(start("t2"), blobs={key: text})
        await journal.close()

    run(main())
    store, path = BlobStore(tmp_path / "blobs"), blob_path(tmp_path / "blobs", key)
    assert store.get(key) == text
    other = digest(b"other")
    with pytest.raises(JournalCorrupt, match="missing"):
        store.get(other)
    blob_path(tmp_path / "blobs", other).parent.mkdir()
    blob_path(tmp_path / "blobs", other).write_bytes(path.read_bytes())
    with pytest.raises(JournalCorrupt, match="digest differs"):
        store.get(other)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(JournalCorrupt, match="damaged"):
        store.get(key)
