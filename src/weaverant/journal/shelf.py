"""Where a run's journals are kept: in its directory, or in a store of which every host has a directory of its own.

`store.json` in the directory tells which. All that reads journals of others, ends them or finds other processes asks
the shelf first; what is in the directory then is read as files, as ever.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import msgspec
from msgspec import Struct

from weaverant.errors import UserError
from weaverant.journal import homes
from weaverant.journal.chain import Shipper
from weaverant.journal.mirror import Mirror
from weaverant.journal.objects import Folder, Objects, open_objects, store_url

FILE = "store.json"


class Store(Struct, frozen=True):
    """What `store.json` holds."""

    url: str
    part: bool = False
    """Only what a peer needed was brought here."""


class Shelf(Protocol):
    """The journals of one run, as one process sees them. May be called from several threads."""

    objects: Objects
    """What processes of the run tell each other by."""

    def shipper(self, epoch: int) -> Shipper | None:
        """For the one who opens this journal for writing; None where its files are all there is."""
        ...

    def fetch(self, epochs: Collection[int] | None = None) -> None:
        """Return when these journals, or all, are here as they are now. Raises `JournalError`, `JournalCorrupt`."""
        ...

    def fence(self, epoch: int, why: str) -> None:
        """End a peer's journal: what counts of it is here then, and nothing more is acknowledged. Raises `OSError`."""
        ...

    def is_fenced(self, epoch: int) -> bool:
        """Whether somebody has ended this peer's journal, or is about to. Raises `OSError`."""
        ...

    def new_epoch(self) -> int:
        """Make the home of a new peer. Two that ask at once get different ones. Raises `OSError`."""
        ...

    def fetch_blob(self, path: Path) -> bool:
        """Whether the file of a text that is missing could be brought here."""
        ...


class Shared:
    """All processes see one directory."""

    def __init__(self, run: Path) -> None:
        self.objects: Objects = Folder(run)
        self._run = run

    def shipper(self, epoch: int) -> Shipper | None:
        return None

    def fetch(self, epochs: Collection[int] | None = None) -> None:
        pass

    def fence(self, epoch: int, why: str) -> None:
        homes.fence(homes.home_of(self._run, epoch), why)

    def is_fenced(self, epoch: int) -> bool:
        return homes.is_fenced(homes.home_of(self._run, epoch))

    def new_epoch(self) -> int:
        return homes.new_epoch(self._run)

    def fetch_blob(self, path: Path) -> bool:
        return False


_mirrors: dict[tuple[Path, str], Mirror] = {}
"""One for each directory: it knows what has been brought there."""


def shelf_of(run: Path) -> Shelf:
    """That of the run in this directory. Raises `UserError` where its store cannot be used."""
    store = store_of(run)
    if store is None:
        return Shared(run)
    key = run.resolve(), store.url
    if key not in _mirrors:
        _mirrors.setdefault(key, Mirror(run, store.url))
    return _mirrors[key]


def store_of(run: Path) -> Store | None:
    """Where the run's store is; None where its directory is all there is."""
    path = run / FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=Store)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        raise UserError(f"{str(path)!r} does not tell where the run's store is: {error}") from None


def begin_store(run: Path, url: str, config: bytes) -> None:
    """Put a new run's `run.json` into a store, and note in its directory, which is made, that it is there: first, so
    that no run that has a store is ever taken for one that has none. `UserError` where the store holds a run, cannot be
    reached, or cannot tell who of several created an object first."""
    url = store_url(url)
    objects = open_objects(url)
    try:
        with suppress(FileNotFoundError):
            objects.get("run.json")
            raise UserError(
                f"the store {url!r} already holds a run. Go on with it (`weaverant resume DIR --store {url}`), or give "
                "another place"
            )
        _note(run, Store(url))
        if not objects.create("run.json", config) or objects.create("run.json", config):
            raise UserError(
                f"the store {url!r} does not tell who of several was the first to create an object, which two hosts "
                "cannot do without. S3, Google Cloud Storage, Azure and file:// do, with current versions of fsspec's "
                "packages and of the server"
            )
    except OSError as error:
        raise _unusable(url, error) from None


def run_in(url: str) -> bytes:
    """The `run.json` of the run that a store holds. `UserError` where it holds none, or cannot be asked."""
    try:
        return open_objects(url).get("run.json")
    except FileNotFoundError:
        raise UserError(f"the store {url!r} holds no run: expected what `weaverant run --store` made") from None
    except OSError as error:
        raise _unusable(url, error) from None


def attach(run: Path, url: str, part: bool = False) -> None:
    """Make this directory one of the run in a store, to be filled, or with a `part` of it. Raises `UserError`."""
    url, known = store_url(url), store_of(run)
    there = run / "run.json"
    if known is None and there.exists():
        raise UserError(f"{str(run)!r} holds a run that has no store: it has one from its beginning or none")
    if known is not None and store_url(known.url) != url:
        raise UserError(f"the run in {str(run)!r} is in the store {known.url!r}, and not in {url!r}")
    data = run_in(url)
    if there.exists() and there.read_bytes() != data:
        raise UserError(f"{str(run)!r} and the store {url!r} hold different runs")
    _note(run, Store(url, part))
    try:
        (run / "peers").mkdir(exist_ok=True)
        there.write_bytes(data)
    except OSError as error:
        raise _unwritable(run, error) from None


def attach_once(run: Path, url: str) -> None:
    """Make this directory one with a part of the run in a store, where it is none yet. Several processes of a host may
    do so at once. Raises `UserError`."""
    try:
        run.mkdir(parents=True, exist_ok=True)
        folder = os.open(run, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            if store_of(run) is None:
                attach(run, url, part=True)
        finally:
            os.close(folder)
    except OSError as error:
        raise _unwritable(run, error) from None


def _note(run: Path, store: Store) -> None:
    unfinished = run / f"{FILE}.tmp"
    try:
        run.mkdir(parents=True, exist_ok=True)
        unfinished.write_bytes(msgspec.json.encode(store) + b"\n")
        unfinished.replace(run / FILE)
    except OSError as error:
        raise _unwritable(run, error) from None


def _unusable(url: str, error: OSError) -> UserError:
    return UserError(f"the store {url!r} cannot be used: {error}")


def _unwritable(run: Path, error: OSError) -> UserError:
    return UserError(f"the run directory {str(run)!r} cannot be written: {error.strerror}")
