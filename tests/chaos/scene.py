"""The processes of one run: the model, the driver with its office and its peers on the near host, a peer far away; or a
Ray of both hosts, and what it starts there."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from chaos import rays
from chaos.chain import STEPS
from chaos.hosts import ADDRESSES, FAR_AT_MODEL, MODEL, Host, Hosts
from weaverant.errors import UserError
from weaverant.journal.lock import Holder
from weaverant.swarm.places import KEY_VARIABLE, find_office, read_key

NEAR_PEERS = 2
PRIVATE: tuple[Host, ...] = ("near", "far")
"""Hosts that have disks of their own, where any has."""
IN_FLIGHT = 64
"""Rows at once of each peer, and so calls."""
LONG_S = 30.0
"""Seconds that a link is cut, or a process stands still."""
LIVES_S = 40.0
"""What the far peer may take to find that all is over: a cut off one looks for an office for 15 s."""
RAY_STARTS_S = 60.0
"""What one node of Ray may take to be there, of two cores that others use too."""


class Hung(Exception):
    """Something that had to come did not."""


def until(true: Callable[[], bool], seconds: float, what: str) -> None:
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            raise Hung(f"{what}: not within {seconds:.0f} s")
        time.sleep(0.02)


class Scene:
    """`folder` is the trial's own. `close` leaves no process and no mount, whatever happened."""

    def __init__(
        self, hosts: Hosts, folder: Path, rows: int, latency: float, long_s: float = LONG_S, *, private: bool = False
    ) -> None:
        """`private`: each host has a disk of its own, and the run is in a store."""
        self.hosts = hosts
        self.folder = folder
        self.disk = folder / "disk"
        """Where a file system is mounted that is not everybody's, with the run."""
        self.run = self.disk / "run" if private else folder / "run"
        self.store = folder / "store" if private else None
        self.log = folder / "model.log"
        self.rows = rows
        self.long_s = long_s
        self.codes: list[int] = []
        """Exit codes of the driver's sessions."""
        self.driver: subprocess.Popen[bytes]
        self.far: subprocess.Popen[bytes] | None = None
        self._latency = latency
        self._secrets = {KEY_VARIABLE: secrets.token_hex(32)} if private else {}
        self._swarm = ["--host", ADDRESSES["near"]]
        self._model: subprocess.Popen[bytes] | None = None
        self._started: list[subprocess.Popen[bytes]] = []
        self._read = 0
        self._calls = 0

    # To begin and to end

    def begin(self, *, far: bool = True, small_disk: int = 0, small_home: bool = False, ray: bool = False) -> None:
        """Start all; return once the far peer has joined. `small_disk`: MiB of a file system of the run's own. `ray`:
        nobody joins, a Ray of both hosts has a peer on each."""
        if small_disk:
            self.disk.mkdir()
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={small_disk}m", "tmpfs", self.disk], check=True)
            self.run = self.disk / "run"
        if self.store is not None:
            self.disk.mkdir()
            self.store.mkdir()
            for host in PRIVATE:
                self.hosts.give_disk(host, self.disk)
        options = ["--address", MODEL, "--log", str(self.log), "--latency", str(self._latency)]
        self._model = self._start("model", ["-m", "chaos.model", *options], "model", subprocess.PIPE)
        assert self._model.stdout is not None
        port = int(self._model.stdout.readline())
        if ray:
            self._start_ray()
        rows = self.folder / "rows.jsonl"
        rows.write_text("".join(f'{{"id": {n}, "text": "begin {n}"}}\n' for n in range(self.rows)))
        at_once = str(NEAR_PEERS * IN_FLIGHT)
        workflow = str(Path(__file__).with_name("chain.py"))
        self._drive([
            "run", workflow, "--input", str(rows), "--model", f"http://{MODEL}:{port}/v1#m", "--run", str(self.run),
            "--concurrency", at_once, "--in-flight", at_once,
        ])  # fmt: skip
        if ray:
            until(lambda: FAR_AT_MODEL in self.log.read_text(), 40.0, "a call of a far peer")
        elif far:
            self.join(small_home=small_home)

    def resume(self) -> None:
        self._drive(["resume", str(self.run)])

    def join(self, *, small_home: bool = False) -> None:
        """A peer on the far host, that has leased rows."""
        until(self._can_join, 20.0, "a session that can be joined")
        peer = ["weaverant.peers", "peer"] if self.store is None else ["weaverant", "join"]
        module = ["chaos.small_home"] if small_home else peer
        where = ["--host", ADDRESSES["far"], *self._in_store()]
        self.far = self._start("far", ["-m", *module, str(self.run), *where], "far")
        far = self.far.pid
        until(lambda: far in self.epochs().values(), 20.0, "a far peer that begins to write")

    def wait(self, seconds: float) -> None:
        """For the end of the driver's session."""
        try:
            self.codes.append(self.driver.wait(seconds))
        except subprocess.TimeoutExpired:
            raise Hung(f"the driver's session: no end after {seconds:.0f} s") from None

    def last_code(self) -> int | None:
        """The far peer's exit code; None where there was none."""
        if self.far is None:
            return None
        try:
            return self.far.wait(LIVES_S)
        except subprocess.TimeoutExpired:
            raise Hung(f"the far peer: no end {LIVES_S:.0f} s after the run's") from None

    def strays(self) -> list[int]:
        """Processes that still work on this run."""
        mark = str(self.run).encode()
        found: list[int] = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                if mark in path.read_bytes().split(b"\0") and int(path.parent.name) != os.getpid():
                    found.append(int(path.parent.name))
            except OSError:
                continue
        return found

    def close(self) -> None:
        for process in self._started:
            if process.poll() is None:
                process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
        until(self._cleared, 10.0, "the end of killed processes")
        mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
        for mount in reversed([mount for mount in mounts if mount.startswith(f"{self.folder}/")]):
            subprocess.run(["umount", "--lazy", mount], check=False)
        shutil.rmtree(self.folder, ignore_errors=True)

    # What goes on

    def calls(self) -> int:
        """Calls that came to the model so far."""
        if self.log.exists():
            with self.log.open("rb") as file:
                file.seek(self._read)
                new = file.read()
            self._read += len(new)
            self._calls += new.count(b"\n")
        return self._calls

    def reach(self, share: float, seconds: float) -> None:
        """Wait until that share of all steps was asked for."""
        wanted = share * self.rows * STEPS

        def there() -> bool:
            if self.driver.poll() is not None:
                raise Hung(f"the session ended with {self.driver.returncode} before the fault")
            return self.calls() >= wanted

        until(there, seconds, f"{share:.0%} of the run")

    def epochs(self) -> dict[int, int]:
        """The processes of all peers so far, by epoch."""
        found: dict[int, int] = {}
        for run in self.directories():
            for lock in (run / "peers").glob("[0-9]*/lock"):
                with suppress(OSError, msgspec.DecodeError):
                    holder = msgspec.json.decode(lock.read_bytes().strip(b" \n\0"), type=Holder)
                    found[int(lock.parent.name)] = holder.pid
        return found

    def home(self, epoch: int) -> Path:
        return self.run / "peers" / f"{epoch:06}"

    def near(self) -> dict[int, int]:
        """The near peers' processes that live, by epoch."""
        there = self.hosts.processes("near")
        return {epoch: pid for epoch, pid in self.epochs().items() if pid in there}

    def far_epochs(self) -> list[int]:
        """Those of far peers that live, the last one at the end."""
        there = self.hosts.processes("far")
        return sorted(epoch for epoch, pid in self.epochs().items() if pid in there)

    def raylet(self, host: Host) -> int:
        """The process that is Ray's node on that host."""
        found = [pid for pid in self.hosts.processes(host) if _name(pid) == "raylet"]
        if len(found) != 1:
            raise Hung(f"the {host} host has {len(found)} raylets; expected one")
        return found[0]

    def office(self) -> int:
        """Its process; of one that is just beginning, once it can be found."""
        until = time.monotonic() + 10
        while (found := find_office(self.meeting)) is None:
            assert time.monotonic() < until, "no office begins"
            time.sleep(0.05)
        return found.pid

    @property
    def meeting(self) -> Path:
        """Where processes of the run find each other: its directory, or its store."""
        return self.run if self.store is None else self.store

    def directories(self) -> list[Path]:
        """The run's on all hosts, as this process sees them."""
        return [self.run] if self.store is None else [self.hosts.seen(host, self.run) for host in PRIVATE]

    def whole(self) -> Path:
        """A directory with all of the run, once it is over."""
        if self.store is None:
            return self.run
        fetched = self.folder / "fetched"
        command = [sys.executable, "-m", "weaverant", "fetch", self.store.as_uri(), str(fetched)]
        subprocess.run(command, check=True, capture_output=True)
        return fetched

    def _in_store(self) -> list[str]:
        return [] if self.store is None else ["--store", self.store.as_uri()]

    def _can_join(self) -> bool:
        if self.store is not None:
            return find_office(self.store) is not None
        try:
            read_key(self.run)
        except UserError:
            return False
        return find_office(self.run) is not None

    def _drive(self, arguments: Sequence[str]) -> None:
        peers = ["--peers", str(NEAR_PEERS), *self._swarm, *self._in_store()]
        self.driver = self._start("near", ["-m", "weaverant", *arguments, *peers], "driver")

    def _start_ray(self) -> None:
        self._secrets |= rays.environment()
        self._swarm = ["--swarm", "ray", "--address", rays.ADDRESS]
        for host in ("near", "far"):
            starts = self._start(host, rays.start(host, self.folder), f"ray-{host}")
            try:
                code = starts.wait(RAY_STARTS_S)
            except subprocess.TimeoutExpired:
                raise Hung(f"Ray on the {host} host: not there after {RAY_STARTS_S:.0f} s") from None
            if code:
                raise Hung(f"Ray could not be started on the {host} host: exit code {code}")

    def _cleared(self) -> bool:
        """Whether nothing is left; what there is, is killed. Ray's processes begin others, so once may not do."""
        left = {*self.strays(), *self.hosts.processes()}
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return not left

    def _start(
        self, host: Host, arguments: Sequence[str], name: str, out: int | None = None
    ) -> subprocess.Popen[bytes]:
        here = Path(__file__).parents[1]
        path = os.pathsep.join(filter(None, (str(here.parent / "src"), str(here), os.environ.get("PYTHONPATH"))))
        environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        with (self.folder / f"{name}.out").open("ab") as log:
            process = subprocess.Popen(
                self.hosts.on(host, [sys.executable, *arguments]), stdin=subprocess.DEVNULL, stdout=out or log,
                stderr=log, env={**environment, **self._secrets, "PYTHONPATH": path}, start_new_session=True,
            )  # fmt: skip
        self._started.append(process)
        return process


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""
