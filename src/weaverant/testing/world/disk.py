"""A disk with a page cache: what was written is lost at a power cut, in part and in any order, unless it was synced.

Files are real (in memory, `/dev/shm`), so that readers read what they always read. Beside them the disk knows what
has reached its medium: the content of each file and the entries of each folder at their last sync.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Literal, NoReturn

from msgspec import Struct

from weaverant.journal.disk import Disk
from weaverant.testing.world.loop import Death

SECTOR = 32
"""Bytes that reach the medium together or not at all: as small as everything else in a simulated world, where a whole
segment would fit into one sector of a real disk."""

Fault = Literal["kill", "power", "full", "eio"]
"""At a drawn call: the process is killed; the power is cut; the disk is full from now on; the call fails with EIO."""


class Inode:
    """A file: its bytes on the medium, and what has been done to it since the last sync."""

    def __init__(self, durable: bytes = b"") -> None:
        self.durable = durable
        self.changes: list[tuple[int, bytes]] = []
        """(offset, data); without data the file was cut there."""

    def settle(self) -> None:
        self.durable = self.states()[-1]
        self.changes.clear()

    def states(self) -> list[bytes]:
        """The content after each change, the durable one first."""
        found = [self.durable]
        for offset, data in self.changes:
            before = found[-1][:offset].ljust(offset, b"\0")
            found.append(before + data + found[-1][offset + len(data) :] if data else before)
        return found

    def survivor(self, random: Random) -> bytes:
        """What a power cut leaves: the changes up to some byte of one of them, or each sector as it was after any of
        them, most of them after the last, in a file of any of its sizes."""
        states = self.states()
        kept = random.randrange(len(states))
        if random.random() < 0.3:
            torn = states[min(kept + 1, len(states) - 1)]
            return torn[: random.randint(min(len(states[kept]), len(torn)), len(torn))]
        written = random.choice((0.5, 0.9))
        end = len(states[-1] if random.random() < 0.7 else states[kept])
        sectors: list[bytes] = []
        for start in range(0, end, SECTOR):
            state = states[-1] if random.random() < written else states[random.randrange(len(states))]
            sectors.append(state[start : start + SECTOR].ljust(SECTOR, b"\0"))
        return b"".join(sectors)[:end]


Entries = dict[str, Inode | None]
"""What a folder holds; None for a folder in it."""


class Folder(Struct):
    """A folder's entries on the medium, and the changes since: a name and what it is from then on, `()` for gone."""

    durable: Entries = {}
    changes: list[list[tuple[str, Inode | tuple[()] | None]]] = []

    def settle(self) -> None:
        for change in self.changes:
            _apply(self.durable, change)
        self.changes.clear()


class SimulatedDisk(Disk):
    """One machine's disk. It outlives the processes that use it: `begin` a life with what is to go wrong in it."""

    def __init__(self, root: Path, random: Random) -> None:
        """`root` is an existing folder; what is in it already is on the medium."""
        self.root = root
        self.counts: Counter[str] = Counter()
        """Faults that have happened, by kind."""
        self.crossed = 0
        """Calls of this life that could have failed."""
        self.dead = False
        self._random = random
        self._fault: Fault | None = None
        self._at = 0
        self._syncs = False
        self._inodes: dict[Path, Inode] = {}
        self._folders: dict[Path, Folder] = {root: Folder()}
        self._open: dict[int, Path] = {}

    def begin(self, fault: Fault | None = None, at: int = 0, syncs: bool = False) -> None:
        """A process starts. The `at`-th call that changes something, from 0, fails in this way; with `syncs` the
        `at`-th sync of a file, when most is at stake."""
        self._fault, self._at, self._syncs, self.crossed = fault, at, syncs, 0
        self.dead = False
        self._open.clear()

    def die(self, power: bool) -> NoReturn:
        """The process ends now, and with it, where the power is cut, all that was not synced."""
        if not self.dead:
            self.dead = True
            self.counts["power cut" if power else "kill"] += 1
            if power:
                self._cut(self.root)
        raise Death

    # What the journal calls

    def create(self, path: Path) -> int:
        return self._new(path, super().create)

    def overwrite(self, path: Path) -> int:
        return self._new(path, super().overwrite)

    def reopen(self, path: Path) -> int:
        file = super().reopen(path)
        self._open[file] = path
        return file

    def make_directory(self, path: Path) -> None:
        self._cross()
        if not path.exists():
            path.mkdir()
            self._folders[path] = Folder()
            self._note(path, None)
        self.sync_directory(path.parent)

    def write(self, file: int, data: bytes | bytearray | memoryview) -> None:
        if self._due(writes=True):
            self._append(file, bytes(data)[: self._random.randrange(len(data) + 1)])
            self._fail()
        self._append(file, bytes(data))

    def sync(self, file: int) -> None:
        inode = self._inode(file)
        if self._due(syncs=True):
            if self._fault == "eio":  # the kernel marks the pages clean: they are read back, and never written
                inode.changes.clear()
            elif self._random.random() < 0.5:
                inode.settle()
            self._fail()
        inode.settle()

    def sync_directory(self, path: Path) -> None:
        self._cross()
        if path in self._folders:
            self._folders[path].settle()

    def truncate(self, file: int, size: int) -> None:
        self._cross()
        super().truncate(file, size)
        self._inode(file).changes.append((size, b""))

    def rename(self, source: Path, target: Path) -> None:
        self._cross()
        super().rename(source, target)
        inode = self._inodes[target] = self._inodes.pop(source)
        self._folders[source.parent].changes.append([(source.name, ()), (target.name, inode)])

    def remove(self, path: Path) -> None:
        self._cross()
        super().remove(path)
        self._inodes.pop(path)
        self._folders[path.parent].changes.append([(path.name, ())])

    def close(self, file: int) -> None:
        self._open.pop(file, None)
        super().close(file)

    # How it fails

    def _cross(self, writes: bool = False) -> None:
        if self._due(writes):
            self._fail()

    def _due(self, writes: bool = False, syncs: bool = False) -> bool:
        """Whether this call, which may change something, is to fail."""
        if self.dead:
            raise OSError(errno.EIO, "the process is dead")
        if self._syncs and not syncs:
            return False
        self.crossed += 1
        if self._fault == "full":
            return writes and self.crossed > self._at
        return self._fault is not None and self.crossed == self._at + 1

    def _fail(self) -> NoReturn:
        if self._fault in ("kill", "power"):
            self.die(self._fault == "power")
        code = errno.ENOSPC if self._fault == "full" else errno.EIO
        self.counts["full disk" if self._fault == "full" else "failed write or sync"] += 1
        raise OSError(code, os.strerror(code))

    def _append(self, file: int, data: bytes) -> None:
        offset = os.fstat(file).st_size
        super().write(file, data)
        self._inode(file).changes.append((offset, data))

    def _new(self, path: Path, opened: Callable[[Path], int]) -> int:
        self._cross(writes=True)
        file = opened(path)
        self._open[file] = path
        self._note(path, self._inodes.setdefault(path, Inode()))
        if self._inodes[path].durable or self._inodes[path].changes:
            self._inodes[path].changes.append((0, b""))
        return file

    def _note(self, path: Path, what: Inode | None) -> None:
        self._folders[path.parent].changes.append([(path.name, what)])

    def _inode(self, file: int) -> Inode:
        return self._inodes[self._open[file]]

    # What a power cut leaves

    def _cut(self, folder: Path) -> None:
        found = self._folders[folder]
        entries, changes = found.durable, found.changes
        if self._random.random() < 0.5:
            changes = changes[: self._random.randint(0, len(changes))]
        else:
            changes = [change for change in changes if self._random.random() < 0.5]
        for change in changes:
            _apply(entries, change)
        found.changes = []
        for path in list(folder.iterdir()):
            if path.name not in entries and (path in self._folders or path in self._inodes):
                self._forget(path)
        for name, inode in entries.items():
            if inode is None:
                self._cut(self._remade(folder / name))
            else:
                self._restore(folder / name, inode)

    def _remade(self, path: Path) -> Path:
        path.mkdir(exist_ok=True)
        self._folders.setdefault(path, Folder())
        return path

    def _restore(self, path: Path, inode: Inode) -> None:
        inode.durable = inode.survivor(self._random)
        inode.changes.clear()
        path.write_bytes(inode.durable)
        self._inodes[path] = inode

    def _forget(self, path: Path) -> None:
        if path in self._folders:
            shutil.rmtree(path)
            self._folders = {each: it for each, it in self._folders.items() if not each.is_relative_to(path)}
        else:
            path.unlink()
        self._inodes = {each: it for each, it in self._inodes.items() if not each.is_relative_to(path)}


def _apply(entries: Entries, change: list[tuple[str, Inode | tuple[()] | None]]) -> None:
    for name, what in change:
        if what == ():
            entries.pop(name, None)
        else:
            entries[name] = what  # pyright: ignore[reportArgumentType]
