"""A peer leaves with 10,000 rows in its hands: what it costs that they go on elsewhere, and what is lost.

A real `weaverant run --peers 1`; once each row waits for a slow model call, two peers join it (`weaverant join`), and
the first is told to leave (SIGTERM). Half of its calls then get their answer, which it writes down; the other half
never would, and are cut after the grace of 2 s. The others take all rows, ask again what was cut, and go on with what
was answered. What was asked is what the script wrote down; what was acknowledged is what stands in the journals.

`CPU`: that of all processes of the run, from the signal until the last row was taken, with what the rows that were
taken before it have done meanwhile. `bytes`: of the events that bring a row with its past into the journal of the peer
that takes it, before compression, and what those journals grew by on the disk. `seconds`: from the end of the leaving
peer's journal until all rows run elsewhere.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import msgspec
import peering
import report
from workloads import QUESTIONS

from weaverant.events import PeerClosed, PeerOpened, StepEnded, TaskEnded, TaskTaken
from weaverant.journal import JournalReader
from weaverant.journal.homes import epochs_of, home_of

GRACE_S = 2.0
PATIENCE_S = 60.0


def cpu(pids: Iterable[int]) -> float:
    """Seconds, user and system, of processes that live."""
    total = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / os.sysconf("SC_CLK_TCK")


def processes(run: Path) -> dict[int, str]:
    """Those whose command names the run: what they are, by id."""
    found: dict[int, str] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().decode().split("\0")
        except OSError:
            continue
        if str(run) in words:
            found[int(folder.name)] = next((kind for kind in ("office", "peer", "join") if kind in words), "driver")
    return found


def asked(folder: Path) -> list[tuple[str, str, str]]:
    """Task, agent, and whether the seed is odd, of each call that reached the model."""
    lines = [line.split() for file in folder.glob("asked.*") for line in file.read_text().splitlines()]
    return [(task, agent, odd) for task, agent, odd in lines]


def wait_for(what: str, done: object, every: float = 0.2) -> None:
    until = time.monotonic() + PATIENCE_S
    while not done():  # pyright: ignore
        assert time.monotonic() < until, f"{what} did not come"
        time.sleep(every)


def disk(run: Path, epochs: Iterable[int]) -> int:
    return sum(file.stat().st_size for epoch in epochs for file in (home_of(run, epoch) / "journal").glob("*"))


def taken(run: Path, epochs: Iterable[int]) -> int:
    return sum(isinstance(event, TaskTaken) for epoch in epochs for event in JournalReader(run, (epoch,)).events())


def drain(folder: Path, rows: int) -> dict[str, float]:
    run, file = folder / "run", folder / "rows.jsonl"
    peering.write_rows(file, rows, lambda i: {"question": QUESTIONS[i % 512]})
    os.environ["DRAIN_FOLDER"] = str(folder)
    model = f"scripted:{peering.BENCH / 'drained.py'}"
    options = ("--peers", 1, "--concurrency", rows, "--in-flight", rows, "--grace", GRACE_S)
    command = peering.start("drained.py:drained", file, run, *options, model=model)
    joined: list[subprocess.Popen[bytes]] = []
    try:
        wait_for("the slow calls", lambda: sum(agent == "slow" for _, agent, _ in asked(folder)) == rows, 0.5)
        (leaving,) = (pid for pid, kind in processes(run).items() if kind == "peer")
        for _ in range(2):
            joined.append(
                subprocess.Popen(
                    [sys.executable, "-m", "weaverant", "join", str(run)],
                    env=peering.environment(), stderr=subprocess.DEVNULL,
                )
            )  # fmt: skip
        others = (2, 3)
        wait_for("others", lambda: len(epochs_of(run)) == 3 and all(has_begun(run, epoch) for epoch in others))
        time.sleep(1.5)  # until they have looked around
        living = list(processes(run))
        spent, size, began = cpu(living), disk(run, others), time.time()
        os.kill(leaving, signal.SIGTERM)
        time.sleep(0.2)
        (folder / "answer").touch()
        time.sleep(GRACE_S / 2)
        before_end = cpu(living)
        (folder / "go").touch()
        # The leaving peer's process is the driver's child: what it has used is seen there once it is reaped.
        driver = command.pid
        wait_for("the last row", lambda: taken(run, others) >= rows)
        spent_now = cpu(pid for pid in living if pid != leaving) + reaped(driver) - spent
        size = disk(run, others) - size
        peering.reap(command)
        for each in joined:
            assert each.wait(30) == 0
    finally:
        for each in (command, *joined):
            if each.poll() is None:
                each.send_signal(signal.SIGINT)
                each.wait(60)
    found = account(run, folder, rows, began)
    return found | {
        "cpu": 1e3 * spent_now / rows,
        "waiting": 1e3 * (before_end - spent) / rows,
        "disk": size / rows,
    }


def has_begun(run: Path, epoch: int) -> bool:
    return any(isinstance(event, PeerOpened) for event in JournalReader(run, (epoch,)).events())


def reaped(pid: int) -> float:
    """CPU seconds of children that the process has waited for."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")


def account(run: Path, folder: Path, rows: int, began: float) -> dict[str, float]:
    calls = Counter((task, agent) for task, agent, _ in asked(folder))
    first: set[tuple[str, str]] = set()
    steps: Counter[tuple[str, str]] = Counter()
    ends: Counter[str] = Counter()
    moved: list[TaskTaken] = []
    closed = began
    for epoch in epochs_of(run):
        for event in JournalReader(run, (epoch,)).events():
            match event:
                case StepEnded():
                    steps[event.task, event.name] += 1
                    if epoch == 1:
                        first.add((event.task, event.name))
                case TaskEnded():
                    ends[event.task] += event.state == "done"
                case TaskTaken():
                    moved.append(event)
                case PeerClosed():
                    closed = event.time if epoch == 1 else closed
                case _:
                    pass
    return {
        "lost": rows - sum(count > 0 for count in ends.values()),
        "twice": sum(count > 1 for count in ends.values()) + sum(count > 1 for count in steps.values()),
        "again": sum(calls[call] > 1 for call in first),
        "cut": sum(count > 1 for count in calls.values()),
        "answered": sum(agent == "slow" for _, agent in first),
        "moved": len(moved),
        "bytes": sum(len(msgspec.msgpack.encode(event)) for event in moved) / max(1, len(moved)),
        "closed": closed - began,
        "seconds": max(event.time for event in moved) - closed,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = drain(Path(folder), given.rows)
        shutil.rmtree(folder, ignore_errors=True)
        Path(folder).mkdir()
    lines = [
        ["rows that moved", f"{found['moved']:,.0f}"],
        ["of them answered in the grace", f"{found['answered']:,.0f}"],
        ["asked again, not having been acknowledged", f"{found['cut']:,.0f}"],
        ["seconds from the signal to the leaving journal's end", f"{found['closed']:.2f}"],
        ["seconds from there until all rows are elsewhere", f"{found['seconds']:.2f}"],
        ["CPU ms a row, from the signal on", f"{found['cpu']:.3f}"],
        ["of it until the grace's middle, answers written down", f"{found['waiting']:.3f}"],
        ["bytes a row, its past", f"{found['bytes']:,.0f}"],
        ["bytes a row, on the disk", f"{found['disk']:,.0f}"],
    ]
    report.table(["a peer leaves", ""], lines)
    rows = [
        report.row("rows lost", found["lost"], "== 0", found["lost"] == 0),
        report.row("rows or steps that ended twice", found["twice"], "== 0", found["twice"] == 0),
        report.row("calls asked again after they were acknowledged", found["again"], "== 0", found["again"] == 0),
        report.row("rows that moved", found["moved"], f"== {given.rows}", found["moved"] == given.rows),
        report.row("calls cut after the grace, and asked again", found["cut"]),
        report.row("CPU ms a row", found["cpu"]),
        report.row("bytes a row: its past, as it was brought along", found["bytes"]),
        report.row("bytes a row on the disk of those who took it", found["disk"]),
        report.row("s from the leaving journal's end until all rows are elsewhere", found["seconds"]),
    ]
    report.finish("peers-drain", rows)


if __name__ == "__main__":
    main()
