"""Standard input, output and error, which may be closed, full, a pipe that nobody reads, or know few characters."""

from __future__ import annotations

import codecs
import json
import os
import sys
from collections.abc import Callable
from typing import TextIO

from weaverant.errors import WeaverantError
from weaverant.runtime.terminal import visible


class Unwritten(WeaverantError):
    """Standard output took not all that was to be told."""


def prepare() -> None:
    """Give each of the three a place where it has none: a file of the run would get its number otherwise, and what is
    printed would go there. Standard output says so when it is written to, standard error has nobody to tell. What an
    encoding does not know is shown as JSON would, and JSON stays JSON."""
    for number, mode in enumerate((os.O_WRONLY, os.O_RDONLY, os.O_WRONLY)):  # a closed input cannot be read either
        if not _is_open(number):
            os.set_inheritable(os.open(os.devnull, mode), True)
    # Python leaves these out where they are closed.
    sys.stdout = sys.stdout or open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    reconfigure: Callable[..., None] | None = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None and sys.stdout.errors in ("strict", "surrogateescape"):
        codecs.register_error("weaverant", _escaped)
        reconfigure(errors="weaverant")


def put(text: str, end: str = "\n") -> None:
    """Print to standard output, at once. `Unwritten`, or `BrokenPipeError` where its reader has gone."""
    try:
        print(visible(text), end=end, flush=True)
    except BrokenPipeError:
        unread(sys.stdout)
        raise
    except OSError as error:
        unread(sys.stdout)
        raise Unwritten(
            f"standard output cannot be written: {error.strerror or error}. "
            "Expected a terminal, a pipe or a file with room on its disk"
        ) from None


def tell(text: str) -> None:
    """Print to standard error, where somebody may see it."""
    try:
        print(visible(text), file=sys.stderr, flush=True)
    except OSError:
        unread(sys.stderr)


def settle() -> None:
    """Whatever Python still holds for the two is written, or forgotten: it must not raise once more at exit."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            unread(stream)


def unread(stream: TextIO) -> None:
    """Nobody reads this any more: what still comes goes nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def _escaped(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    return json.dumps(error.object[error.start : error.end])[1:-1], error.end
