"""A disk that breaks at a chosen moment: for crash trials and full-disk tests of whatever writes a journal."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path
from typing import Literal

from weaverant.journal.disk import Disk

Break = Literal["kill", "power"] | int
"""`kill`: SIGKILL to this process. `power`: the same, and what was not synced is lost. A number: that errno."""


class FaultyDisk(Disk):
    """Counts the boundaries around every change of a file and breaks at the one numbered `at`.

    Each call has a boundary before and after it, a write also one in its middle, when the first `torn` bytes (half of
    it by default) have reached the file. `crossed` names the boundaries so far: a first run without `at` lists all
    there are. An errno lasts: later changes fail too, but truncating works unless the medium is read-only or broken.
    """

    def __init__(self, at: int = -1, fault: Break = "kill", torn: int | None = None) -> None:
        self.crossed: list[str] = []
        self._at = at
        self._fault = fault
        self._torn = torn
        self._broken = False
        self._paths: dict[int, Path] = {}
        self._synced: dict[Path, int] = {}

    def create(self, path: Path) -> int:
        self._cross(f"before create {path.name}")
        file = self._opened(super().create(path), path, 0)
        self._cross(f"after create {path.name}")
        return file

    def overwrite(self, path: Path) -> int:
        self._cross(f"before overwrite {path.name}")
        file = self._opened(super().overwrite(path), path, 0)
        self._cross(f"after overwrite {path.name}")
        return file

    def reopen(self, path: Path) -> int:
        return self._opened(super().reopen(path), path, path.stat().st_size)

    def make_directory(self, path: Path) -> None:
        self._cross(f"before make {path.name}")
        super().make_directory(path)
        self._cross(f"after make {path.name}")

    def write(self, file: int, data: bytes | bytearray | memoryview) -> None:
        name = self._paths[file].name
        self._cross(f"before write {name}")
        torn = len(data) // 2 if self._torn is None else min(self._torn, len(data))
        super().write(file, memoryview(data)[:torn])
        self._cross(f"within write {name}")
        super().write(file, memoryview(data)[torn:])
        self._cross(f"after write {name}")

    def sync(self, file: int) -> None:
        name = self._paths[file].name
        self._cross(f"before sync {name}")
        super().sync(file)
        self._synced[self._paths[file]] = os.fstat(file).st_size
        self._cross(f"after sync {name}")

    def sync_directory(self, path: Path) -> None:
        self._cross(f"before sync of folder {path.name}")
        super().sync_directory(path)
        self._cross(f"after sync of folder {path.name}")

    def truncate(self, file: int, size: int) -> None:
        if self._broken and self._fault != errno.ENOSPC:
            self._fail()
        if not self._broken:
            self._cross(f"before truncate {self._paths[file].name}")
        super().truncate(file, size)
        if not self._broken:
            self._cross(f"after truncate {self._paths[file].name}")

    def rename(self, source: Path, target: Path) -> None:
        self._cross(f"before rename {target.name}")
        super().rename(source, target)
        self._synced[target] = self._synced.pop(source, 0)
        self._cross(f"after rename {target.name}")

    def remove(self, path: Path) -> None:
        self._cross(f"before remove {path.name}")
        super().remove(path)
        self._synced.pop(path, None)
        self._cross(f"after remove {path.name}")

    def close(self, file: int) -> None:
        self._paths.pop(file, None)
        super().close(file)

    def _opened(self, file: int, path: Path, synced: int) -> int:
        self._paths[file] = path
        self._synced[path] = synced
        return file

    def _cross(self, name: str) -> None:
        self.crossed.append(name)
        if len(self.crossed) - 1 == self._at or self._broken:
            self._broken = True
            self._fail()

    def _fail(self) -> None:
        if isinstance(self._fault, int):
            raise OSError(self._fault, os.strerror(self._fault))
        if self._fault == "power":
            for path, size in self._synced.items():
                os.truncate(path, min(size, path.stat().st_size))
        os.kill(os.getpid(), signal.SIGKILL)
