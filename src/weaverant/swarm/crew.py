"""The processes of a run on this host: its office and its peers, started, watched and ended."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import msgspec

from weaverant.swarm.office import Plan

Kind = Literal["office", "peer"]
TAIL = 2_000
"""Characters of a process's last words that are kept."""


class Ended(NamedTuple):
    """A process that has ended: `code` is as `subprocess` gives it, negative for a signal, None where nobody knows.
    `seconds` it lived; `words` is what it said last on its standard error."""

    kind: Kind
    host: str
    pid: int
    code: int | None
    seconds: float
    words: str
    labels: tuple[str, ...] = ()


class Crew(Protocol):
    """Who starts processes, and knows when they end."""

    def start_office(self, plan: Plan) -> None: ...

    def start_peer(self, labels: Sequence[str]) -> None: ...

    def ended(self) -> list[Ended]:
        """Those that have ended since it was last asked."""
        ...

    @property
    def alive(self) -> int:
        """Peers' processes that have not ended."""
        ...

    def kill_office(self) -> None:
        """End it at once: it does not answer."""
        ...

    def kill(self) -> None:
        """End all at once."""
        ...


class _Process(NamedTuple):
    kind: Kind
    process: subprocess.Popen[bytes]
    began: float
    log: Path
    labels: tuple[str, ...]


class LocalCrew:
    """Processes of this host, in sessions of their own: Ctrl-C is the driver's affair."""

    def __init__(self, run: Path, host: str) -> None:
        self._run = run
        self._host = host
        self._processes: list[_Process] = []
        self._started = 0

    def start_office(self, plan: Plan) -> None:
        process = self._start("office", (), subprocess.PIPE)
        assert process.stdin is not None
        try:
            process.stdin.write(msgspec.json.encode(plan) + b"\n")
            process.stdin.close()
        except OSError:  # it has ended already, and is found so
            pass

    def start_peer(self, labels: Sequence[str]) -> None:
        self._start("peer", tuple(labels), subprocess.DEVNULL)

    def ended(self) -> list[Ended]:
        over = [each for each in self._processes if each.process.poll() is not None]
        self._processes = [each for each in self._processes if each not in over]
        return [
            Ended(
                each.kind, socket.gethostname(), each.process.pid, each.process.returncode,
                time.monotonic() - each.began, tail(each.log), each.labels,
            )
            for each in over
        ]  # fmt: skip

    @property
    def alive(self) -> int:
        return sum(each.kind == "peer" for each in self._processes)

    def kill_office(self) -> None:
        self._signal("office")

    def kill(self) -> None:
        self._signal("office")
        self._signal("peer")
        for each in self._processes:
            each.process.wait()

    def _signal(self, kind: Kind) -> None:
        for each in self._processes:
            if each.kind == kind and each.process.poll() is None:
                os.kill(each.process.pid, signal.SIGKILL)

    def _start(self, kind: Kind, labels: tuple[str, ...], stdin: int) -> subprocess.Popen[bytes]:
        self._started += 1
        logs = self._run / "peers" / "log"
        logs.mkdir(parents=True, exist_ok=True)
        log = logs / f"{socket.gethostname()}-{os.getpid()}-{self._started}.{kind}"
        arguments = command(kind, self._run, self._host, labels)
        with log.open("wb") as out:
            process = subprocess.Popen(arguments, stdin=stdin, stdout=out, stderr=out, start_new_session=True)
        self._processes.append(_Process(kind, process, time.monotonic(), log, labels))
        return process


def command(kind: Kind, run: Path, host: str, labels: Sequence[str], store: str = "") -> list[str]:
    """What a process of a run is started with; it listens at `host`. With a `store` its directory may not be there."""
    arguments = [sys.executable, "-m", "weaverant.peers", kind, os.path.abspath(run), "--host", host]
    arguments += ["--store", store] if store else []
    return [*arguments, *(word for label in labels for word in ("--label", label))]


def tail(path: Path) -> str:
    """A log's last words; none where there is no log."""
    try:
        return path.read_bytes()[-TAIL:].decode(errors="replace").strip()
    except OSError:
        return ""
