"""Real runs on peers, measured from outside: `weaverant run` with all its processes.

CPU is user and system of the whole tree: the driver, its office and its peers, as the kernel counts them. What a hop
costs is looked at while the run is going: between the moments when a fifth and four fifths of the hops were done, as
the journals tell.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from weaverant.events import PeerOpened, StepEnded, TaskEnded
from weaverant.journal import JournalReader
from weaverant.journal.homes import OWN, epochs_of

BENCH = Path(__file__).parent
ANSWERS = f"scripted:{BENCH / 'dummy_answers.py'}"
EVERY_S = 0.03
CORES = os.cpu_count() or 1


class Told(NamedTuple):
    """What the journals of a run tell."""

    rows: int
    """That have ended as done."""
    hops: int
    travelled: int
    """Hops whose agent's role the peer that owns the row does not have."""
    times: list[float]
    """When each hop was done, in order."""


class Ran(NamedTuple):
    cpu: float
    """Seconds of the whole tree, beginning and end included."""
    looks: list[tuple[float, float]]
    """Time and CPU seconds so far, as they were looked at."""
    told: Told


def write_rows(path: Path, rows: int, row: Callable[[int], dict[str, Any]]) -> None:
    with path.open("w") as file:
        file.writelines(json.dumps(row(number)) + "\n" for number in range(rows))


def environment() -> dict[str, str]:
    """In which a workflow and a script of this folder can be imported."""
    path = os.pathsep.join(filter(None, (str(BENCH), os.environ.get("PYTHONPATH", ""))))
    return {**os.environ, "PYTHONPATH": path}


def start(
    workflow: str, rows: Path, directory: Path, *options: object, model: str = ANSWERS
) -> subprocess.Popen[bytes]:
    """`weaverant run` with these options, of a workflow `FILE:NAME` of this folder."""
    shutil.rmtree(directory, ignore_errors=True)
    command = [sys.executable, "-m", "weaverant", "run", BENCH / workflow, "--input", rows, "--model", model]
    command += ["--run", directory, "--quiet", *options]
    return subprocess.Popen(
        [str(part) for part in command], env=environment(), stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def reap(process: subprocess.Popen[bytes]) -> float:
    """CPU seconds of the process and of all that it has reaped, which of a run on peers are all. It must end well."""
    spent = _reap(process, 0)
    assert spent is not None
    return spent


def _reap(process: subprocess.Popen[bytes], flags: int) -> float | None:
    ended, status, usage = os.wait4(process.pid, flags)
    if not ended:
        return None
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, f"{process.args} ended with {process.returncode}"
    return usage.ru_utime + usage.ru_stime


def cpu_now(pid: int) -> float:
    """Seconds, user and system, of a process that lives, of its children, and of those that it has reaped."""
    total = 0
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    for number, last in ((pid, 15), *((int(child), 13) for child in children)):
        try:
            fields = Path(f"/proc/{number}/stat").read_text().rpartition(") ")[2].split()
        except OSError:
            continue  # it has ended meanwhile
        total += sum(map(int, fields[11:last]))
    return total / os.sysconf("SC_CLK_TCK")


Command = tuple[str, Path, Path, Sequence[object]]
"""Workflow, file of rows, directory of the run, options."""


def together(commands: Sequence[Command], model: str = ANSWERS) -> list[Ran]:
    """These runs, all at the same time."""
    processes = [start(flow, file, run, *options, model=model) for flow, file, run, options in commands]
    looks: list[list[tuple[float, float]]] = [[] for _ in commands]
    spent: list[float | None] = [None] * len(commands)
    while None in spent:
        for n, process in enumerate(processes):
            if spent[n] is None:
                now, cpu = time.time(), cpu_now(process.pid)
                looks[n].append((now, cpu))
                spent[n] = _reap(process, os.WNOHANG)
        time.sleep(EVERY_S)
    return [Ran(cpu or 0.0, look, read(run)) for cpu, look, (_, _, run, _) in zip(spent, looks, commands, strict=True)]


def read(run: Path) -> Told:
    rows = travelled = 0
    times: list[float] = []
    spread = (run / "peers").exists()
    for epoch in (OWN, *epochs_of(run)):
        roles: Sequence[str] = ()
        for event in JournalReader(run, (epoch,)).events():
            match event:
                case PeerOpened():
                    roles = [label.removeprefix("role:") for label in event.labels if label.startswith("role:")]
                case TaskEnded():
                    rows += event.state == "done"
                case StepEnded():
                    times.append(event.time)
                    travelled += spread and bool(roles) and event.name not in roles
                case _:
                    pass
    return Told(rows, len(times), travelled, sorted(times))


class Cost(NamedTuple):
    """What a hop costs while a run is going, and what it costs to begin and end one."""

    ms_a_hop: float
    """CPU, of all processes."""
    hops_a_second: float
    share: float
    """Of this machine's cores that the run had meanwhile: others may work here too."""
    begin: float
    """CPU seconds that are not the hops'."""
    told: Told


def cost(runs: Sequence[Ran]) -> Cost:
    """Of runs side by side, which count as one."""
    times = sorted(moment for run in runs for moment in run.told.times)
    first, last = times[len(times) // 5], times[4 * len(times) // 5]
    hops = bisect_left(times, last) - bisect_left(times, first)
    cpu = sum(_at(run.looks, last) - _at(run.looks, first) for run in runs)
    told = Told(sum(run.told.rows for run in runs), len(times), sum(run.told.travelled for run in runs), times)
    begin = sum(run.cpu for run in runs) - cpu / hops * len(times)
    return Cost(1e3 * cpu / hops, hops / (last - first), cpu / (last - first) / CORES, begin, told)


def _at(looks: list[tuple[float, float]], moment: float) -> float:
    """CPU seconds until then."""
    n = min(max(1, bisect_left(looks, (moment, 0.0))), len(looks) - 1)
    (then, before), (later, after) = looks[n - 1], looks[n]
    return before + (after - before) * (moment - then) / (later - then)
