"""The fault gate in short, and the tests of its parts: a disk that forgets, a clock that waits for nobody.

The long forms: `make faults` (10,000 seeds) and `make faults-mutants` (each planted bug within 500 seeds).
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from weaverant.errors import JournalError
from weaverant.events import Event, TaskStarted
from weaverant.journal import JournalReader, SegmentJournal, writer
from weaverant.testing.world.disk import SimulatedDisk
from weaverant.testing.world.loop import Death, Stuck, VirtualClock, VirtualLoop, VirtualWorker
from weaverant.testing.world.mutants import MUTANTS, hunt
from weaverant.testing.world.plan import draw
from weaverant.testing.world.trial import trial

WORLD = [sys.executable, "-W", "error", "-m", "weaverant.testing.world"]


def tell(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*WORLD, *arguments], capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )


@pytest.fixture(autouse=True)
def light_collections() -> Iterator[None]:
    """A trial collects after each life: what the tests have loaded need not be looked at each time."""
    gc.freeze()
    yield
    gc.unfreeze()


# The gate


def test_a_hundred_and_twenty_seeds():
    verdicts = [trial(seed) for seed in range(120)]
    assert [(verdict.seed, verdict.faults) for verdict in verdicts if verdict.faults] == []
    counts = sum((verdict.counts for verdict in verdicts[1:]), verdicts[0].counts)
    for kind in (
        "kill",
        "power cut",
        "full disk",
        "failed write or sync",
        "failed call",
        "cancelled call",
        "odd reply",
        "pilot",
        "reused step",
    ):
        assert counts[kind] > 3, counts


def test_a_trial_is_the_same_in_every_process():
    """Its story, every request and every byte that was journaled; whatever order Python hashes in."""
    drawn = range(1_000)
    seeds = [
        next(seed for seed in drawn if draw(seed).http and len(draw(seed).lives) > 1),
        next(seed for seed in drawn if draw(seed).recipe == 3 and draw(seed).budgeted),
        next(seed for seed in drawn if draw(seed).earlier and any(life.processes for life in draw(seed).lives)),
    ]
    for seed in seeds:
        one, other = (tell(str(seed), PYTHONHASHSEED=hashing) for hashing in ("1", "2"))
        assert one.returncode == 0, one.stdout + one.stderr
        assert "journal " in one.stdout and one.stdout == other.stdout


@pytest.mark.parametrize(
    "name",
    [
        *("shown early", "no lock", "lost failures", "lost timers", "counted twice", "cut at nothing"),
        *("any agent", "pilot again", "lost process"),
    ],
)
def test_a_planted_bug_is_caught(name: str):
    caught = hunt(name, 60)
    assert caught.seed is not None, f"{MUTANTS[name].about}: not caught"
    assert trial(caught.seed).faults == [], "it is the bug that is caught, and not the seed"


def test_the_gate_counts_and_ends_with_json():
    done = tell("--seeds", "4", "--first", "10")
    assert done.returncode == 0, done.stdout + done.stderr
    last = json.loads(done.stdout.splitlines()[-1])
    assert last["target"] == "faults" and last["rows"][0] == {"name": "faults", "value": 0, "goal": 0, "met": True}


FAILING = """
import sys
from weaverant.testing.world.__main__ import main
from weaverant.testing.world.mutants import planted
sys.argv = ["world", *sys.argv[1:]]
with planted("shown early"):
    raise SystemExit(main())
"""


def test_a_failing_seed_prints_the_command_that_replays_it():
    done = subprocess.run([sys.executable, "-c", FAILING, "--seeds", "6"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    again = next(line for line in done.stdout.splitlines() if "again: python -m weaverant.testing.world" in line)
    seed = again.split()[-1]
    alone = subprocess.run([sys.executable, "-c", FAILING, seed], capture_output=True, text=True, check=False)
    assert alone.returncode == 1 and "FAULT acknowledged: " in alone.stdout
    assert alone.stdout.splitlines()[1] in done.stdout


@pytest.mark.slow
@pytest.mark.timeout(3_600)
def test_two_thousand_seeds():
    done = tell("--seeds", "2000", "--first", "100000")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.timeout(3_600)
def test_every_planted_bug_is_caught():
    done = tell("--mutants")
    assert done.returncode == 0, done.stdout + done.stderr


# The loop


def test_time_passes_only_when_everybody_waits():
    clock = VirtualClock(1e9, tick=0.0)
    loop = VirtualLoop(clock, Random(0))

    async def naps() -> list[float]:
        async def nap(hours: float) -> float:
            await asyncio.sleep(3_600 * hours)
            return clock.monotonic()

        return await asyncio.gather(nap(3), nap(1), nap(2))

    began = time.perf_counter()
    assert loop.run_until_complete(naps()) == [10_800, 3_600, 7_200]
    loop.close()
    assert clock.time() == 1e9 + 10_800
    assert time.perf_counter() - began < 5


def test_waiting_for_nothing_is_stuck():
    loop = VirtualLoop(VirtualClock(0), Random(0))
    for_ever = loop.create_future()
    with pytest.raises(Stuck, match="nothing can wake"):
        loop.run_until_complete(for_ever)
    loop.close()


# The disk, and the journal on it


def started(number: int) -> Event:
    return TaskStarted(f"0.{number}.0", 0, 0.0, b"row", {"n": number, "text": os.urandom(60).hex()})


async def write(root: Path, disk: SimulatedDisk, count: int) -> list[int]:
    """So many events in one group; the numbers of those that were acknowledged."""
    loop: Any = asyncio.get_running_loop()
    acknowledged: list[int] = []
    journal = SegmentJournal(root, disk=disk, worker=VirtualWorker(loop, Random(0), 0.001), segment_bytes=2_000)
    for number in range(count):
        journal.append(started(number), lambda number=number: acknowledged.append(number))
    await journal.flush()
    await journal.close()
    return acknowledged


def process(root: Path, disk: SimulatedDisk, count: int) -> list[int] | None:
    """None: it died. Its lock goes with it."""
    loop = VirtualLoop(VirtualClock(0), Random(0))
    before = descriptors()
    try:
        return loop.run_until_complete(write(root, disk, count))
    except Death:
        return None
    finally:
        for task in asyncio.all_tasks(loop):
            task._log_destroy_pending = False  # type: ignore[attr-defined]
        loop.close()
        for file in descriptors() - before:
            os.close(file)


def descriptors() -> set[int]:
    return {int(name) for name in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{name}")}


def count_of(root: Path) -> int:
    return sum(isinstance(event, TaskStarted) for event in JournalReader(root).events())


def test_a_disk_keeps_what_was_synced_and_any_part_of_the_rest(tmp_path: Path):
    sizes: set[int] = set()
    for seed in range(200):
        root = tmp_path / str(seed)
        root.mkdir()
        disk = SimulatedDisk(root, Random(seed))
        file = disk.create(root / "file")
        disk.sync_directory(root)
        disk.write(file, b"a" * 300)
        disk.sync(file)
        disk.write(file, b"b" * 300)
        disk.write(file, b"c" * 300)
        with pytest.raises(Death):
            disk.die(power=True)
        left = (root / "file").read_bytes()
        assert left[:300] == b"a" * 300 and set(left[300:]) <= set(b"bc\0")
        sizes.add(len(left))
        os.close(file)
    assert min(sizes) == 300 and max(sizes) == 900 and len(sizes) > 20


def test_a_folder_forgets_entries_that_were_not_synced(tmp_path: Path):
    there = 0
    for seed in range(40):
        root = tmp_path / str(seed)
        root.mkdir()
        disk = SimulatedDisk(root, Random(seed))
        os.close(disk.create(root / "file"))
        with pytest.raises(Death):
            disk.die(power=True)
        there += (root / "file").exists()
    assert 5 < there < 35


def test_a_power_cut_within_a_group_of_frames_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Whatever part of a group, of its index or of the segment's header reached the disk, the run can go on."""
    monkeypatch.setattr(writer, "FRAME_BYTES", 300)
    crashes = 0
    for at in range(60):
        for seed in range(6):
            root = tmp_path / f"{at}-{seed}"
            root.mkdir()
            disk = SimulatedDisk(root, Random(100 * at + seed))
            disk.begin("power", at)
            crashes += process(root, disk, 20) is None
            left = count_of(root)
            disk.begin()
            assert process(root, disk, 3) == [0, 1, 2]
            assert count_of(root) == left + 3
    assert crashes > 200


def test_a_repair_that_fails_loses_nothing(tmp_path: Path):
    """Whichever call of it fails, of a segment that was killed at any call behind its first sync."""
    failed = 0
    for killed_at in range(20):
        root = tmp_path / str(killed_at)
        root.mkdir()
        disk = SimulatedDisk(root, Random(killed_at))
        disk.begin("kill", killed_at)
        if process(root, disk, 5) is not None:
            break
        left = count_of(root)
        for at in range(30):
            disk.begin("eio", at)
            try:
                process(root, disk, 0)
            except JournalError:
                failed += left > 0
                assert count_of(root) == left, (killed_at, at)
            else:
                break
    assert failed > 20
