"""The only place of the journal that changes files, so that tests can break every one of these calls.

Paths are `pathlib.Path`, sizes and offsets are bytes. Every method raises `OSError` as the system does.
`weaverant.testing.disk.FaultyDisk` kills or fails at a chosen call.
"""

from __future__ import annotations

import os
from pathlib import Path


class Disk:
    """Plain system calls. Holds no state: one instance may serve many files and threads."""

    def create(self, path: Path) -> int:
        """A descriptor for writing a file that must not exist yet."""
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)

    def overwrite(self, path: Path) -> int:
        """A descriptor for writing a file anew, whether it exists or not; never through a link."""
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)

    def reopen(self, path: Path) -> int:
        """A descriptor for reading an existing file and, once `truncate` has gone there, for writing at its end. Not
        with O_APPEND: where a store is what counts, another process may have written the same bytes there before."""
        return os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)

    def make_directory(self, path: Path) -> None:
        """Return when the directory is there and its entry is on the medium, whoever created it."""
        path.mkdir(exist_ok=True)
        self.sync_directory(path.parent)

    def write(self, file: int, data: bytes | bytearray | memoryview) -> None:
        """Write everything at the file's end, however often the system writes less than it was given."""
        view = memoryview(data)
        while view:
            view = view[os.write(file, view) :]

    def sync(self, file: int) -> None:
        """Return when the file's content is on the medium (fdatasync)."""
        os.fdatasync(file)

    def sync_directory(self, path: Path) -> None:
        """Return when the directory's entries are on the medium."""
        sync_path(path)

    def truncate(self, file: int, size: int) -> None:
        os.ftruncate(file, size)
        os.lseek(file, size, os.SEEK_SET)

    def rename(self, source: Path, target: Path) -> None:
        os.rename(source, target)

    def remove(self, path: Path) -> None:
        os.unlink(path)

    def close(self, file: int) -> None:
        os.close(file)


def sync_path(path: Path) -> None:
    """Return when a file's content, or a directory's entries, are on the medium, whoever wrote them."""
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)
