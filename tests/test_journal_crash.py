"""kill -9 and power cuts of a real writer at every boundary of every write: nothing acknowledged is lost.

Run as a script, this file is the writer: it forks once per trial, so that a trial costs milliseconds.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from weaverant.events import Event, RunClosed, StepEnded, TaskEnded, TaskStarted
from weaverant.journal import BlobStore, JournalReader, SegmentJournal
from weaverant.journal.index import rebuild
from weaverant.journal.parts import Parts
from weaverant.journal.segment import Segment
from weaverant.journal.store import Repair
from weaverant.message import digest
from weaverant.testing.disk import FaultyDisk

EVENTS = 12
SEGMENT_BYTES = 300
TEXTS = {number: f"text {number} " * 9_000 for number in (4, 9)}


def event(number: int) -> Event:
    task = f"rows:{number // 3}:0"
    if number % 3 == 0:
        return TaskStarted(task, 0, float(number), b"row" + bytes([number]), {"number": number})
    if number % 3 == 2:
        return TaskEnded(task, 0, "done", "", "", {"number": number}, 1.0, float(number))
    value = digest(TEXTS[number].encode()) if number in TEXTS else b"y" * 150
    return StepEnded(task, "0", b"f" * 16, 0, "model", "a", "s", number, "reply", value, 0.0, 1.0, float(number))


async def write(directory: Path, disk: FaultyDisk, acks: int, start: int = 0) -> None:
    """Two events a group; the number of each goes into the pipe `acks` once it is durable."""
    journal = SegmentJournal(directory, segment_bytes=SEGMENT_BYTES, disk=disk)
    for number in range(start, start + EVENTS):
        blobs = {digest(TEXTS[number].encode()): TEXTS[number]} if number in TEXTS else None
        journal.append(event(number), lambda number=number: os.write(acks, bytes([number])) and None, blobs)
        if number % 2:
            await journal.flush()
    await journal.close()


def trial(directory: Path, disk: FaultyDisk, start: int = 0) -> bytes:
    """What was acknowledged before the writer died."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        asyncio.run(write(directory, disk, writer, start))
        os._exit(0)
    os.close(writer)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) in (0, -signal.SIGKILL)
    with os.fdopen(reader, "rb") as acks:
        return acks.read()


def numbers_in(directory: Path) -> list[int]:
    """Which events are there, read in full, blobs included."""
    found: list[int] = []
    for each in JournalReader(directory).events():
        number = each.row["number"] if isinstance(each, TaskStarted) else 0
        number = each.value["number"] if isinstance(each, TaskEnded) else number
        if isinstance(each, StepEnded):
            number = each.input
            if number in TEXTS:
                assert BlobStore(directory / "blobs").get(each.value) == TEXTS[number]
        found.append(number)
    return found


def check(directory: Path, acknowledged: list[int]) -> None:
    """Read while torn; repair by opening; go on writing; the indexes must tell what a full scan tells."""
    torn = numbers_in(directory)
    assert torn[: len(acknowledged)] == acknowledged
    assert torn == list(range(len(torn)))
    more = trial(directory, FaultyDisk(), start=len(torn))
    assert list(more) == list(range(len(torn), len(torn) + EVENTS))
    assert numbers_in(directory) == list(range(len(torn) + EVENTS))
    for part in Parts(directory / "journal").now():
        with Segment(part.path) as segment:
            assert segment.trailer() is not None
            index, _ = rebuild(segment)
            assert index.summary(part.summary.maps, part.number if part.summary.number else 0) == part.summary
            assert list(index.tasks.values()) == list(part.entries())
    last = len(torn) + EVENTS - 1
    assert list(JournalReader(directory).unfinished()) == ([] if last % 3 == 2 else [f"rows:{last // 3}:0"])


def trials(root: Path, fault: str) -> None:
    """Crash at every boundary; then crash once more, while the next process repairs."""
    plain = FaultyDisk()
    (root / "plain").mkdir()
    asyncio.run(write(root / "plain", plain, os.open(os.devnull, os.O_WRONLY)))
    count = len(plain.crossed)
    assert count > 80, plain.crossed
    for at in range(count):
        directory = root / f"{at}"
        directory.mkdir()
        acknowledged = list(trial(directory, FaultyDisk(at, fault, torn=at % 40)))  # type: ignore[arg-type]
        there = len(numbers_in(directory))
        more = trial(directory, FaultyDisk(at * 7 % 40, fault, torn=at % 17), start=there)  # type: ignore[arg-type]
        check(directory, list(range(more[-1] + 1)) if more else acknowledged)
    print(count)


@pytest.mark.parametrize("fault", ["kill", "power"])
def test_nothing_acknowledged_is_lost(tmp_path: Path, fault: str):
    command = [sys.executable, "-W", "error", __file__, str(tmp_path), fault]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 80


def test_a_crash_while_sealing_leaves_nothing_to_cut(tmp_path: Path):
    """The repair says what it did: the events of a half-sealed segment stay, its half index goes."""
    plain = FaultyDisk()
    asyncio.run(write(tmp_path / "plain", plain, os.open(os.devnull, os.O_WRONLY)))
    last = max(i for i, name in enumerate(plain.crossed) if name.startswith("within write"))
    command = [sys.executable, "-W", "error", __file__, str(tmp_path / "run"), "kill", str(last)]
    subprocess.run(command, capture_output=True, check=True)

    async def reopen() -> Repair | None:
        journal = SegmentJournal(tmp_path / "run")
        await journal.close()
        return journal.repair

    repair = asyncio.run(reopen())
    assert repair is not None and repair.cut > 0
    assert numbers_in(tmp_path / "run") == list(range(EVENTS))


if __name__ == "__main__":
    if len(sys.argv) > 3:
        trial(Path(sys.argv[1]), FaultyDisk(int(sys.argv[3])))
    else:
        trials(Path(sys.argv[1]), sys.argv[2])


def test_a_sealed_segment_is_on_the_medium_before_another_follows(tmp_path: Path):
    """Who sealed it may have been killed before its last sync, and a power cut may come after the next opening."""

    async def session(disk: FaultyDisk) -> None:
        journal = SegmentJournal(tmp_path / "run", disk=disk)
        journal.append(RunClosed("finished", 1.0))
        await journal.close()

    asyncio.run(session(FaultyDisk()))
    disk = FaultyDisk()
    asyncio.run(session(disk))
    assert disk.crossed.index("after sync 000001.wvj") < disk.crossed.index("before create 000002.wvj")
