"""`weaverant fetch`: get a run from a store into a directory."""

from __future__ import annotations

import argparse
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from threading import Timer

from weaverant.cli.streams import put, tell
from weaverant.cli.text import counted
from weaverant.errors import JournalError
from weaverant.journal.homes import epochs_of
from weaverant.journal.mirror import Mirror
from weaverant.journal.shelf import attach, shelf_of, store_of
from weaverant.rundir import check_free

READER_S = 6.0
"""Seconds for which a store is asked again by who only reads, and has something here to read."""
SILENT_S = 2.0
"""As many after which a wait is spoken of."""


def fetch_command(options: argparse.Namespace) -> int:
    path = Path(options.directory)
    attach_new(path, options.url)
    shelf = shelf_of(path)
    assert isinstance(shelf, Mirror)
    with waiting_for(path):
        shelf.fetch()
        texts = shelf.fetch_blobs()
    journals, new = counted(1 + len(epochs_of(path)), "journal"), counted(texts, "long text")
    put(f"{path}: {journals} and {new} as {options.url} has them")
    return 0


def bring(path: Path) -> None:
    """Before a run is read: have here what its store has. Where that cannot be asked, say how old it is what is here;
    a directory that holds some of the journals only, as one that joined does, is not read then."""
    store, shelf = store_of(path), shelf_of(path)
    if store is None or not isinstance(shelf, Mirror):
        return
    shelf.patient.patience = READER_S
    try:
        with waiting_for(path):
            shelf.fetch()
    except JournalError as error:
        if store.part:
            raise
        shelf.patient.patience = 0.0  # who looks for those that work on it asks once more, and waits no longer
        tell(f"weaverant: warning: {error}. What follows is what {str(path)!r} had before")


@contextmanager
def waiting_for(path: Path) -> Generator[None]:
    """Say so, once, where the store of the run in that directory keeps its user waiting."""
    store, shelf = store_of(path), shelf_of(path)
    if store is None or not isinstance(shelf, Mirror):
        yield
        return
    patience = f"one that does not answer is given up after {shelf.patient.patience:.0f} s"
    timer = Timer(SILENT_S, tell, (f"weaverant: waiting for the store {store.url!r}: {patience}",))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def attach_new(path: Path, url: str, part: bool = False) -> None:
    """Make it a directory of the run in that store: a new one, or one that is that already."""
    if not (path / "run.json").exists() and store_of(path) is None:
        check_free(path)
    attach(path, url, part)
