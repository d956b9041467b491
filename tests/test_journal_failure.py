"""A disk that is full, read-only or broken ends the journal in order, and the run can be resumed from it."""

from __future__ import annotations

import asyncio
import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from weaverant.errors import JournalError
from weaverant.events import StepEnded
from weaverant.journal import BlobStore, JournalReader, SegmentJournal
from weaverant.journal.homes import Fence, fence, fence_of, home_of, new_epoch
from weaverant.message import digest
from weaverant.testing.disk import FaultyDisk

COUNT = 12
TEXT = "a long text " * 6_000


def step(number: int, size: int = 100) -> StepEnded:
    value = os.urandom(size).hex()
    return StepEnded(f"t{number}", "0", b"f" * 16, 0, "model", "a", "s", {}, "reply", value, 0.0, 1.0, 2.0)


class Outcome:
    def __init__(self) -> None:
        self.acknowledged: list[int] = []
        self.told: list[JournalError] = []
        self.raised: list[JournalError] = []


async def write(directory: Path, disk: FaultyDisk | None, outcome: Outcome, size: int = 100) -> None:
    """Two events a group, a blob in one, several segments; goes on until the journal refuses."""
    try:
        journal = SegmentJournal(directory, segment_bytes=700, disk=disk, on_failure=outcome.told.append)
    except JournalError as error:
        outcome.raised.append(error)
        return
    try:
        for number in range(COUNT):
            blobs = {digest(TEXT.encode()): TEXT} if number == 5 else None
            journal.append(step(number, size), lambda number=number: outcome.acknowledged.append(number), blobs)
            if number % 2:
                await journal.flush()
    except JournalError as error:
        outcome.raised.append(error)
        with pytest.raises(JournalError):
            journal.append(step(0))
        with pytest.raises(JournalError):
            await journal.flush()
    await journal.close()


def resumable(directory: Path, outcome: Outcome) -> None:
    tasks = [event.task for event in JournalReader(directory).events()]  # type: ignore[union-attr]
    assert tasks[: len(outcome.acknowledged)] == [f"t{number}" for number in outcome.acknowledged]
    before = len(tasks)
    again = Outcome()
    asyncio.run(write(directory, None, again))
    assert again.acknowledged == list(range(COUNT)) and not again.told and not again.raised
    assert sum(1 for _ in JournalReader(directory).events()) == before + COUNT
    assert BlobStore(directory / "blobs").get(digest(TEXT.encode())) == TEXT


@pytest.mark.parametrize("fault", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_every_call_that_can_fail(tmp_path: Path, fault: int):
    plain = FaultyDisk()
    asyncio.run(write(tmp_path / "plain", plain, Outcome()))
    assert len(plain.crossed) > 60
    for at in range(len(plain.crossed)):
        directory, outcome = tmp_path / f"{at}", Outcome()
        asyncio.run(write(directory, FaultyDisk(at, fault), outcome))
        assert len(outcome.told) + len(outcome.raised) > 0, plain.crossed[at]
        assert len(outcome.told) <= 1
        for error in outcome.told + outcome.raised:
            assert os.strerror(fault) in str(error) and "resume" in str(error)
        resumable(directory, outcome)


def test_a_full_disk_gives_back_what_the_unfinished_group_took(tmp_path: Path):
    plain = FaultyDisk()
    asyncio.run(write(tmp_path / "plain", plain, Outcome()))
    at = [i for i, name in enumerate(plain.crossed) if name == "within write 000001.wvj"][2]
    outcome = Outcome()
    asyncio.run(write(tmp_path / "run", FaultyDisk(at, errno.ENOSPC), outcome))
    reader = JournalReader(tmp_path / "run")
    assert len(list(reader.events())) == len(outcome.acknowledged) == 2
    last = list(reader.batches())[-1].next
    assert (tmp_path / "run" / "journal" / "000001.wvj").stat().st_size == last.offset


def test_a_failure_nobody_was_told_of_comes_out_of_close(tmp_path: Path):
    async def main() -> None:
        journal = SegmentJournal(tmp_path / "run", segment_bytes=700, disk=FaultyDisk(12, errno.EIO))
        for number in range(COUNT):
            journal.append(step(number))
        with pytest.raises(JournalError, match="resume"):
            await journal.close()
        await journal.close()

    asyncio.run(main())
    resumable(tmp_path / "run", Outcome())


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(place)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if done.returncode != 0:
        pytest.skip(f"a small tmpfs cannot be mounted: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_really_full_disk(small_disk: Path):
    outcome = Outcome()
    asyncio.run(write(small_disk, None, outcome, size=20_000))
    assert len(outcome.told) == 1 and os.strerror(errno.ENOSPC) in str(outcome.told[0])
    assert 0 < len(outcome.acknowledged) < COUNT
    subprocess.run(["mount", "-o", "remount,size=4m", str(small_disk)], check=True)
    resumable(small_disk, outcome)


def test_a_really_read_only_disk(small_disk: Path):
    asyncio.run(write(small_disk, None, Outcome()))
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(JournalError, match="writable"):
        SegmentJournal(small_disk)
    assert len(list(JournalReader(small_disk).events())) == COUNT


def test_a_home_on_a_full_disk_gets_its_fence(small_disk: Path):
    home = home_of(small_disk, new_epoch(small_disk))
    with suppress(OSError), (small_disk / "ballast").open("wb", buffering=0) as ballast:
        while ballast.write(bytes(512)):
            pass
    assert fence(home, "it was not heard") == fence_of(home) == Fence(0, 0, "it was not heard")
    assert sorted(os.listdir(home)) == ["fence", "fenced"]
