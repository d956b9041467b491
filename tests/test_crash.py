"""kill -9 of a run at random moments and at the boundaries of its journal's writes; then it is resumed to its end.

As a script this is the long form: `python tests/test_crash.py 200` prints a table and ends with 1 if a trial failed.
A forked child is one life of a run: real processes, a real server, real files.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import pytest

from weaverant import Agent, Stages, group, resume, run, step, workflow
from weaverant.events import StepEnded, TaskEnded
from weaverant.journal import BlobStore, JournalReader
from weaverant.runtime.surroundings import Surroundings
from weaverant.story import Storyteller
from weaverant.testing.disk import FaultyDisk
from weaverant.testing.server import MockServer

ROWS = [{"n": n, "text": f"row {n} " * (12_000 if n == 5 else 3)} for n in range(12)]
LONGEST_LIFE = 60

writer = Agent("writer", model="big", prompt="Write about {{ text }}")
judge = Agent("judge", model="small", prompt="Choose from {{ drafts }}")


async def tidy(text: str) -> dict[str, Any]:
    return {"tidy": text.lower()}


@workflow
async def drafted(row: dict[str, Any]) -> Any:
    drafts = await asyncio.gather(*(writer(text=row["text"]) for _ in range(3)))
    if row["n"] == 7:
        raise LookupError("the row that fails")
    await asyncio.sleep(0.01)
    tidied = await step(tidy, drafts[0])
    return [
        {"even": row["n"] % 2 == 0, "drafts": drafts, "tidied": tidied, "text": row["text"]},
        {"even": True, "n": row["n"]},
    ]


@workflow
async def judged(row: dict[str, Any]) -> Any:
    return {**row, "best": await judge(drafts=row.get("drafts", row.get("n")))}


@group(by="even")
async def merged(rows: list[dict[str, Any]]) -> Any:
    return {"best": await judge(drafts=[row["best"] for row in rows]), "members": len(rows)}


RECIPE = Stages(drafted, judged, merged, judged)


def live(directory: Path, url: str, disk: FaultyDisk) -> None:
    """One life, in a child: to the end of the run or its own."""
    models = {"big": f"{url}#big", "small": f"{url}#small"}
    if (directory / "run.json").exists():
        going = resume(directory, workflow=RECIPE, rows=ROWS, models=models)
    else:
        going = run(RECIPE, ROWS, models=models, directory=directory, concurrency=16, max_failures=1.0)
    going.surroundings = Surroundings(disk=disk, segment_bytes=6_000)

    async def drain() -> None:
        async for _ in going:
            pass

    asyncio.run(drain())
    if going.exit_code != 3:
        raise SystemExit(f"the run ended with {going.exit_code}: {going.state} {going.error}")


class Death(NamedTuple):
    """After so many seconds, or at a boundary of the disk."""

    after: float | None = None
    at: int = -1
    fault: Any = "kill"
    torn: int | None = None


def life(directory: Path, url: str, death: Death) -> bool:
    """False: it was killed."""
    child = os.fork()
    if child == 0:
        try:
            live(directory, url, FaultyDisk(death.at, death.fault, death.torn))
            os._exit(0)
        except BaseException as error:
            print(f"{directory}: {error!r}", file=sys.stderr, flush=True)
            os._exit(1)
    if death.after is not None:
        time.sleep(death.after)
        os.kill(child, signal.SIGKILL)
    give_up = time.monotonic() + LONGEST_LIFE
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0):
        if time.monotonic() > give_up:
            os.kill(child, signal.SIGKILL)
            raise TimeoutError(f"{directory}: a life without end after {death}")
        time.sleep(0.002)
    code = os.waitstatus_to_exitcode(ended[1])
    assert code in (0, -signal.SIGKILL), f"{directory}: a life ended with {code} after {death}"
    return code == 0


class Found(NamedTuple):
    """What a run's journal says: its results, its task ends, its paid steps."""

    results: dict[str, Any]
    ends: Counter[str]
    paid: Counter[Any]
    left: int


def found(directory: Path) -> Found:
    reader = JournalReader(directory)
    teller = Storyteller({}, BlobStore(directory / "blobs").get)
    tasks = {task.task: task.state for task in reader.tasks() if task.state != "superseded"}
    results: dict[str, Any] = {}
    for task, events in reader.histories(reader.places(tasks.keys())):
        story = teller.tell(events)
        results[task] = (story.state, story.reason, story.result, story.unasked)
    events = list(reader.events())
    ends = Counter(event.task for event in events if isinstance(event, TaskEnded))
    paid = Counter(
        (event.task, event.path, event.fingerprint, event.occurrence)
        for event in events
        if isinstance(event, StepEnded) and event.kind == "model"
    )
    return Found(results, ends, paid, sum(counts.left for counts in reader.counts().values()))


class Outcome(NamedTuple):
    faults: list[str]
    deaths: int
    repeated: int
    """Calls that were made again because they were not acknowledged at a kill."""


def trial(directory: Path, server: MockServer, deaths: list[Death], expected: Found) -> Outcome:
    faults: list[str] = []
    died = requests = known = 0
    for death in [*deaths, Death()]:
        server.reset()
        ended = life(directory, server.url, death)
        died += not ended
        if not ended and not (directory / "journal").exists():
            requests += server.stats()["total"]
            continue
        after = found(directory).paid.total()
        stats = server.stats()
        requests += stats["total"]
        if stats["total"] != stats["distinct"]:
            faults.append("a call was made twice in one life")
        if ended and stats["total"] != after - known:
            faults.append(f"{stats['total']} calls for {after - known} new steps")
        known = after
        if ended:
            break
    there = found(directory)
    if there.results != expected.results:
        faults.append("results differ")
    if set(there.ends.values()) != {1} or there.ends.keys() != expected.ends.keys() or there.left:
        faults.append("the ledger does not add up")
    if there.paid != expected.paid:
        faults.append("a step was paid twice, or another than undisturbed")
    return Outcome(faults, died, requests - expected.paid.total())


def plan(count: int, boundaries: int, seconds: float) -> list[list[Death]]:
    """So many trials that die one to three times at random moments, then as many at boundaries of the journal's
    writes; from 200 on, each boundary has its trial."""
    random = Random(count)
    moments = [[Death(after=random.random() * seconds) for _ in range(random.randint(1, 3))] for _ in range(count)]
    stride = 1 if count >= 200 else max(1, boundaries // count)
    torn = [random.randrange(200) for _ in range(boundaries)]
    return moments + [
        [Death(at=at, fault="power" if at % 2 else "kill", torn=torn[at]), Death(after=random.random() * seconds)]
        for at in range(0, boundaries, stride)
    ]


def trials(root: Path, count: int) -> int:
    with MockServer(latency=0.004) as server:
        plain, start = FaultyDisk(), time.perf_counter()
        life(root / "plain", server.url, Death())
        seconds = time.perf_counter() - start
        expected = found(root / "plain")
        assert server.stats()["total"] == expected.paid.total(), "undisturbed, each step is one call"
        (root / "counted").mkdir()
        boundaries = count_boundaries(root / "counted" / "run", server.url, plain)
        outcomes: dict[int, Outcome] = {}
        for number, deaths in enumerate(plan(count, boundaries, seconds)):
            outcomes[number] = trial(root / str(number), server, deaths, expected)
            for fault in outcomes[number].faults:
                print(f"trial {number}: {fault} after {deaths}", file=sys.stderr)
    bad = sum(bool(outcome.faults) for outcome in outcomes.values())
    kills = sum(outcome.deaths for outcome in outcomes.values())
    again = sum(outcome.repeated for outcome in outcomes.values())
    print(
        f"trials {len(outcomes)}   kills {kills}   faults {bad}   boundaries {boundaries}   tasks {len(expected.results)}"
    )
    print(
        f"calls undisturbed {expected.paid.total()}   repeated, all unacknowledged {again} ({again / max(1, kills):.1f} a kill)"
    )
    return bad


def count_boundaries(directory: Path, url: str, disk: FaultyDisk) -> int:
    """How many there are in an undisturbed life."""
    child = os.fork()
    if child == 0:
        live(directory, url, disk)
        (directory / "boundaries").write_text(str(len(disk.crossed)))
        os._exit(0)
    os.waitpid(child, 0)
    return int((directory / "boundaries").read_text())


def in_a_process(count: int) -> subprocess.CompletedProcess[str]:
    """Forking is for a process without threads, and pytest's has some."""
    return subprocess.run(
        [sys.executable, "-W", "error", __file__, str(count)], capture_output=True, text=True, check=False
    )


def test_twenty_deaths():
    done = in_a_process(10)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_hundred_deaths():
    done = in_a_process(200)
    assert done.returncode == 0, done.stdout + done.stderr


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        failed = trials(Path(folder), int(sys.argv[1]))
        print(f"{time.perf_counter() - began:.0f} s")
    sys.exit(failed > 0)
