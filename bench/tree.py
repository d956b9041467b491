"""A command with all the processes that it starts: CPU, memory and time of them together, on Linux."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

TICKS = os.sysconf("SC_CLK_TCK")
EVERY = 0.2
"""Seconds between two looks at the processes."""


class Spent(NamedTuple):
    began: float
    """By time.monotonic()."""
    wall: float
    cpu: float
    """Seconds, of the whole tree."""
    memory: float
    """MB at most, of the whole tree, what processes share counted once."""
    code: int | None
    """The exit status; None where the time was over and all were killed."""
    output: str
    """The end of what was written to standard output and error."""


def watch(command: Sequence[object], seconds: float, cwd: Path, env: Mapping[str, str] | None = None) -> Spent:
    """Run the command in a session of its own, for so long at most."""
    with tempfile.TemporaryFile() as written:
        began = time.monotonic()
        process = subprocess.Popen(
            [str(part) for part in command],
            cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=written, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        cpu = memory = 0.0
        ended = reaped = 0
        while not ended and time.monotonic() - began < seconds:
            cpu, memory = max(cpu, _cpu(process.pid)), max(memory, _memory(process.pid))
            time.sleep(EVERY)
            ended, reaped, usage = os.wait4(process.pid, os.WNOHANG)
            cpu = max(cpu, usage.ru_utime + usage.ru_stime)
        wall = time.monotonic() - began
        _end(process.pid)
        process.returncode = os.waitstatus_to_exitcode(reaped) if ended else process.wait()
        size = written.seek(0, os.SEEK_END)
        written.seek(max(0, size - 8_000))
        text = written.read().decode(errors="replace")
    return Spent(began, wall, cpu, memory, process.returncode if ended else None, text)


def _members(session: int) -> Iterator[tuple[Path, list[str]]]:
    """The processes of a session, each with the fields of its stat that follow the command's name."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(") ")[2].split()
        except OSError:
            continue  # it has ended meanwhile
        if int(fields[3]) == session:
            yield folder, fields


def _cpu(session: int) -> float:
    """Seconds of all that live, and of their children that do not any more."""
    return sum(sum(map(int, fields[11:15])) for _, fields in _members(session)) / TICKS


def _memory(session: int) -> float:
    total = 0
    for folder, _ in _members(session):
        try:
            lines = (folder / "smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1e3


def _end(session: int) -> None:
    for folder, _ in _members(session):
        try:
            os.kill(int(folder.name), signal.SIGKILL)
        except ProcessLookupError:
            pass
