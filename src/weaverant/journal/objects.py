"""A store: objects by name that are created once, whole and durably, and never changed.

That one of several who create the same name at once is told that it did, and all others that they did not, is what
everything in a store rests on: reads and plain writes alone cannot make two processes agree (Herlihy 1991).
"""

from __future__ import annotations

import errno
import os
import random
import re
import secrets
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Protocol, TypeVar

from weaverant.errors import JournalError, UserError
from weaverant.journal.disk import sync_path

PATIENCE_S = 60.0
"""Seconds for which a store that does not answer is asked again."""
FIRST_WAIT_S, LONGEST_WAIT_S = 0.1, 5.0
HOPELESS = frozenset((errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR))
"""What asking again does not mend."""
FILE = "file://"
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")

T = TypeVar("T")


class Objects(Protocol):
    """Names are relative paths of plain characters. All methods may be called from any thread, and raise `OSError`."""

    def create(self, name: str, data: bytes) -> bool:
        """Return when the object is durable where any host can read it; False where one of that name was there."""
        ...

    def get(self, name: str) -> bytes:
        """The whole object; `FileNotFoundError` where there is none."""
        ...

    def names(self, folder: str) -> list[str]:
        """The last parts of all names right under this one, those of folders too. What was created before is there."""
        ...


class Folder:
    """The objects are files under a directory, which several hosts may mount."""

    def __init__(self, path: Path, mark: str = "") -> None:
        """`mark` is the name of the object that was created first, by which the directory is told from the place where
        it should be mounted."""
        self._path = path
        self._mark = mark

    def create(self, name: str, data: bytes) -> bool:
        path = PurePosixPath(name)
        unfinished = str(path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp"))
        with self._opened(name) as root:
            try:
                file = os.open(unfinished, _NEW, 0o666, dir_fd=root)
            except FileNotFoundError:
                _make_folder(root, path.parent)
                file = os.open(unfinished, _NEW, 0o666, dir_fd=root)
            try:
                try:
                    view = memoryview(data)
                    while view:
                        view = view[os.write(file, view) :]
                    os.fsync(file)
                finally:
                    os.close(file)
                os.link(unfinished, name, src_dir_fd=root, dst_dir_fd=root)
            except FileExistsError:
                return False
            finally:
                with suppress(OSError):
                    os.unlink(unfinished, dir_fd=root)
                _sync(root, path.parent)  # also where it was there: who made it may have died before this
        return True

    def get(self, name: str) -> bytes:
        with self._opened(name) as root:
            file = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=root)
            with open(file, "rb") as opened:
                return opened.read()

    def names(self, folder: str) -> list[str]:
        try:
            with self._opened(folder) as root:
                file = os.open(folder or ".", _FOLDER, dir_fd=root)
                try:
                    return [name for name in os.listdir(file) if not name.startswith(".")]
                finally:
                    os.close(file)
        except FileNotFoundError:
            return []

    @contextmanager
    def _opened(self, name: str) -> Generator[int]:
        """The directory, made sure of. All that follows is about this one, whatever is mounted there meanwhile."""
        try:
            root = os.open(self._path, _FOLDER)
        except FileNotFoundError:
            if name != self._mark:
                if self._mark:
                    raise self._away() from None
                raise
            self._path.mkdir(parents=True, exist_ok=True)
            sync_path(self._path.parent)
            root = os.open(self._path, _FOLDER)
        try:
            if self._mark and name != self._mark:
                try:
                    os.stat(self._mark, dir_fd=root)
                except FileNotFoundError:
                    raise self._away() from None
            yield root
        finally:
            os.close(root)

    def _away(self) -> OSError:
        return OSError(errno.ENODEV, f"there is no run in {str(self._path)!r}: is it mounted?")


class Patient:
    """Asks again for a while where a store does not answer. An object whose creation was not answered is created again:
    `create` tells whether what stands there is what was given."""

    def __init__(self, objects: Objects, patience: float = PATIENCE_S) -> None:
        self.patience = patience
        """Seconds for which it is asked again; 0: it is asked once."""
        self._objects = objects

    def create(self, name: str, data: bytes) -> bool:
        return self._again(lambda: self._objects.create(name, data) or self._objects.get(name) == data)

    def get(self, name: str) -> bytes:
        return self._again(lambda: self._objects.get(name))

    def names(self, folder: str) -> list[str]:
        return self._again(lambda: self._objects.names(folder))

    def _again(self, ask: Callable[[], T]) -> T:
        until, wait = time.monotonic() + self.patience, FIRST_WAIT_S
        while True:
            try:
                return ask()
            except FileNotFoundError:
                raise
            except OSError as error:
                if error.errno in HOPELESS or isinstance(error, PermissionError) or time.monotonic() + wait > until:
                    raise
            time.sleep(wait * random.uniform(0.5, 1.0))
            wait = min(2 * wait, LONGEST_WAIT_S)


def store_url(text: str) -> str:
    """A store's address as it is noted and compared, from what a person gives: a URL, or a path; that is made absolute.
    `UserError` where it cannot be one, without what may be a password in it."""
    scheme, colon, rest = text.partition("://")
    if colon and ("?" in rest or ":" in rest.rpartition("@")[0]) and not text.startswith(f"{FILE}/"):
        raise UserError(
            "a store's address is written into the run's directory, and must hold no secret: leave password and query "
            "out; credentials come from the environment, as fsspec and its file systems take them"
        )
    if text.startswith(f"{FILE}/") or (text and not colon and not _SCHEME.match(text)):
        return f"{FILE}/{os.path.abspath(text.removeprefix(FILE)).lstrip('/')}"
    if not colon or not _SCHEME.fullmatch(f"{scheme}:") or scheme.lower() in ("file", "local"):
        raise UserError(
            f"a store's address: expected file:///absolute/path, a plain path, or a URL such as s3://BUCKET/NAME; "
            f"found {text!r}"
        )
    if scheme == "memory":
        raise UserError("memory:// is this process's own: other processes would not see the run. Try file:///PATH")
    return text.rstrip("/")


def open_objects(url: str) -> Objects:
    """The store at an address, as it answers at once. Raises what `store_url` does."""
    url = store_url(url)
    if url.startswith(FILE):
        return Folder(Path(url.removeprefix(FILE)).resolve(), "run.json")
    from weaverant.journal.remote import Remote

    return Remote(url)


def unreachable(url: str, error: OSError) -> JournalError:
    """For people."""
    return JournalError(f"the store {url!r} cannot be used: {error}. Nothing that was acknowledged is lost")


_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def _make_folder(root: int, path: PurePosixPath) -> None:
    if path == path.parent:
        return
    _make_folder(root, path.parent)
    with suppress(FileExistsError):
        os.mkdir(path, dir_fd=root)
        _sync(root, path.parent)


def _sync(root: int, path: PurePosixPath) -> None:
    """Make the names in the directory durable."""
    file = os.open(path, _FOLDER, dir_fd=root)
    try:
        os.fsync(file)
    finally:
        os.close(file)
