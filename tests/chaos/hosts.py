"""Two hosts and the place of the model, made of network namespaces of this machine; their links can be cut.

Needs root and `ip`. Each pair has a link of its own, so that the hosts can lose each other and still reach the model. A
host may have a disk of its own, a mount that only its processes see, and may lose it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

Host = Literal["near", "far", "model"]
MODEL = "10.83.9.9"
"""Where the model listens, as seen by both hosts."""
ADDRESSES: dict[Host, str] = {"near": "10.83.1.1", "far": "10.83.1.2", "model": MODEL}
MOUNT = 'mount -t tmpfs -o size=256m tmpfs "$0"'
NEAR_AT_MODEL, FAR_AT_MODEL = "10.83.2.1:", "10.83.3.1:"
"""What the addresses begin with that the hosts have at the model."""
LINKS: tuple[tuple[Host, Host, str], ...] = (
    ("near", "far", "10.83.1"),
    ("near", "model", "10.83.2"),
    ("far", "model", "10.83.3"),
)


def why_not() -> str:
    """Why there can be no such hosts here; empty where there can."""
    if os.geteuid() != 0:
        return "needs root, to make network namespaces"
    missing = [name for name in ("ip", "nsenter", "unshare") if shutil.which(name) is None]
    if missing:
        return f"needs {' and '.join(missing)}"
    name = f"wv{os.getpid()}x"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if made.returncode:
        return f"network namespaces cannot be made here: {made.stderr.strip()}"
    subprocess.run(["ip", "netns", "del", name], check=True)
    return ""


class Hosts:
    """`with Hosts() as hosts:`; the namespaces are gone at the end."""

    def __init__(self) -> None:
        self._tag = f"wv{os.getpid()}"
        self._disks: dict[Host, subprocess.Popen[bytes]] = {}
        """Processes that do nothing but hold the mounts of a host."""

    def __enter__(self) -> Self:
        try:
            for host in ADDRESSES:
                _ip("netns", "add", self._name(host))
                self._in(host, "link", "set", "lo", "up")
            for one, other, net in LINKS:
                _ip("link", "add", _link(other), "netns", self._name(one), "type", "veth",
                    "peer", "name", _link(one), "netns", self._name(other))  # fmt: skip
                for last, (host, whither) in enumerate(((one, other), (other, one)), 1):
                    self._in(host, "address", "add", f"{net}.{last}/24", "dev", _link(whither))
                    self._in(host, "link", "set", _link(whither), "up")
            self._in("model", "address", "add", f"{MODEL}/32", "dev", "lo")
            self._in("near", "route", "add", MODEL, "via", "10.83.2.2")
            self._in("far", "route", "add", MODEL, "via", "10.83.3.2")
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        for host in list(self._disks):
            self.lose_disk(host)
        for host in ADDRESSES:
            subprocess.run(["ip", "netns", "del", self._name(host)], capture_output=True, check=False)

    def on(self, host: Host, command: Sequence[str]) -> list[str]:
        """The command that runs this one on that host, in the same process."""
        disk = self._disks.get(host)
        mounts = [] if disk is None else [f"--mount=/proc/{disk.pid}/ns/mnt"]
        return ["nsenter", f"--net=/run/netns/{self._name(host)}", *mounts, *command]

    def processes(self, host: Host | None = None) -> list[int]:
        """All that run on that host, or on any, whoever has begun them."""
        hosts: list[Host] = [host] if host else list(ADDRESSES)
        places = [Path("/run/netns", self._name(each)) for each in hosts]
        there = {place.stat().st_ino for place in places if place.exists()}
        found: list[int] = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                if (path / "ns/net").stat().st_ino in there:
                    found.append(int(path.name))
            except OSError:  # it has ended
                continue
        return found

    # Disks

    def give_disk(self, host: Host, path: Path) -> None:
        """What the host begins from now on has an empty file system there, that no other process sees. It ends with
        the last process that has it."""
        command = ["unshare", "--mount", "sh", "-c", f"{MOUNT} && echo && exec cat >/dev/null", str(path)]
        disk = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
        self._disks[host] = disk
        assert disk.stdout is not None
        if disk.stdout.readline() != b"\n":
            raise RuntimeError(f"a file system of the {host} host's own cannot be made")

    def lose_disk(self, host: Host) -> None:
        disk = self._disks.pop(host)
        disk.kill()
        disk.wait()
        for end in (disk.stdin, disk.stdout):
            assert end is not None
            end.close()

    def seen(self, host: Host, path: Path) -> Path:
        """Where this process finds what stands on that host at this path; nothing, where its disk is lost."""
        disk = self._disks.get(host)
        return Path(f"/proc/{disk.pid}/root{path}") if disk is not None else Path("/proc/0")

    def hide(self, host: Host, path: Path, by: Path) -> None:
        """That host sees another directory there, as where a mount is missing, until `show`."""
        subprocess.run(self.on(host, ["mount", "--bind", str(by), str(path)]), check=True)

    def show(self, host: Host, path: Path) -> None:
        subprocess.run(self.on(host, ["umount", str(path)]), check=True)

    # Links

    def cut(self, at: Literal["near", "far"], *, from_model: bool = False) -> None:
        """Take the link between the hosts down, at that end; the far host's to the model, too, with `from_model`."""
        self._in(at, "link", "set", _link("far" if at == "near" else "near"), "down")
        if from_model:
            self._in("model", "link", "set", _link("far"), "down")

    def mend(self) -> None:
        """All links are up again."""
        self._in("near", "link", "set", _link("far"), "up")
        self._in("far", "link", "set", _link("near"), "up")
        self._in("model", "link", "set", _link("far"), "up")

    def _name(self, host: Host) -> str:
        return f"{self._tag}{host}"

    def _in(self, host: Host, *arguments: str) -> None:
        _ip("-n", self._name(host), *arguments)


def _link(whither: Host) -> str:
    return f"to-{whither}"


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
