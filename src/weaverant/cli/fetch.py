"""`weaverant fetch`: get a run from a store into a directory."""

from __future__ import annotations

import argparse
from pathlib import Path

from weaverant.cli.streams import put, tell
from weaverant.cli.text import counted
from weaverant.errors import JournalError
from weaverant.journal.homes import epochs_of
from weaverant.journal.mirror import Mirror
from weaverant.journal.shelf import attach, shelf_of, store_of
from weaverant.rundir import check_free


def fetch_command(options: argparse.Namespace) -> int:
    path = Path(options.directory)
    attach_new(path, options.url)
    shelf = shelf_of(path)
    assert isinstance(shelf, Mirror)
    shelf.fetch()
    texts = shelf.fetch_blobs()
    journals, new = counted(1 + len(epochs_of(path)), "journal"), counted(texts, "long text")
    put(f"{path}: {journals} and {new} as {options.url} has them")
    return 0


def bring(path: Path) -> None:
    """Before a run is read: have here what its store has. Where that cannot be asked, say how old it is what is here;
    a directory that holds some of the journals only, as one that joined does, is not read then."""
    store = store_of(path)
    if store is None:
        return
    try:
        shelf_of(path).fetch()
    except JournalError as error:
        if store.part:
            raise
        tell(f"weaverant: warning: {error}. What follows is what {str(path)!r} had before")


def attach_new(path: Path, url: str, part: bool = False) -> None:
    """Make it a directory of the run in that store: a new one, or one that is that already."""
    if not (path / "run.json").exists():
        check_free(path)
    attach(path, url, part)
