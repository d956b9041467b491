"""Where the processes of a run find each other: the office's address in its directory or its store, and the run's key,
which is in no store."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path

import msgspec
from msgspec import Struct

from weaverant.errors import UserError
from weaverant.journal.shelf import shelf_of
from weaverant.swarm.keys import KEY_BYTES, new_key

KEY_VARIABLE = "WEAVERANT_RUN_KEY"
"""Where hosts without a directory in common get the run's key from, in hexadecimal digits."""
AT = ".at"
_OFFICE = "office."


class Office(Struct, frozen=True):
    """Where an office listens. Of several, the one of the highest generation holds."""

    generation: int
    address: str
    host: str
    pid: int


def offices(run: Path, suffix: str = "") -> list[int]:
    """The generations of all offices that there ever were, ascending; with `AT`, of those that told where they are."""
    names = shelf_of(run).objects.names("peers")
    fitting = (name for name in names if name.startswith(_OFFICE) and name.endswith(suffix))
    numbers = (name.removeprefix(_OFFICE).removesuffix(suffix) for name in fitting)
    return sorted(int(number) for number in numbers if number.isdecimal())


def find_office(run: Path) -> Office | None:
    """The last, once it has told where it is. Never an earlier one: it may live, and belong to a session that is over.
    May take as long as the run's store does."""
    with suppress(OSError, msgspec.DecodeError):
        for generation in offices(run)[-1:]:
            return msgspec.json.decode(shelf_of(run).objects.get(f"peers/{_OFFICE}{generation}{AT}"), type=Office)
    return None


def new_generation(run: Path) -> int:
    """Take the next one. Two that ask at once get different ones. Raises `OSError`."""
    while True:
        generation = max(offices(run), default=0) + 1
        if shelf_of(run).objects.create(f"peers/{_OFFICE}{generation}", secrets.token_bytes(16)):
            return generation


def publish(run: Path, office: Office) -> None:
    """Tell where an office listens; whole or not at all. Raises `OSError`."""
    shelf_of(run).objects.create(f"peers/{_OFFICE}{office.generation}{AT}", msgspec.json.encode(office))


def make_key(run: Path) -> bytes:
    """A new key for the run's links, which only its owner can read; or the one that the environment gives. Raises
    `OSError`, and `UserError` where that is none."""
    key, unfinished = _given_key() or new_key(), run / "peers" / "tmp.key"
    with suppress(FileNotFoundError):
        unfinished.unlink()
    file = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.write(file, key.hex().encode())
    finally:
        os.close(file)
    unfinished.replace(run / "peers" / "key")
    return key


def read_key(run: Path) -> bytes:
    """The one in the environment, or else that in the directory. `UserError` where there is none: no session with peers
    is going on."""
    if (given := _given_key()) is not None:
        return given
    path = run / "peers" / "key"
    try:
        key = bytes.fromhex(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            f"the key {str(path)!r} cannot be read ({error}): no session with peers works on this run, or it is "
            f"another user's. On another host than the driver's the variable {KEY_VARIABLE} gives it"
        ) from None
    if len(key) != KEY_BYTES:
        raise UserError(f"the key {str(path)!r} is none: expected {KEY_BYTES} bytes in hexadecimal digits")
    return key


def knows_key(run: Path) -> bool:
    """Whether the environment or the directory has one."""
    return bool(os.environ.get(KEY_VARIABLE)) or (run / "peers" / "key").exists()


def check_key_given() -> None:
    """`UserError` where the environment has no key, and peers on other hosts could not get one."""
    if _given_key() is None:
        raise UserError(
            f"peers on other hosts find the run's key in the variable {KEY_VARIABLE}, and it is not set: give it "
            f"{2 * KEY_BYTES} random hexadecimal digits, here and where each node's Ray is started"
        )


def _given_key() -> bytes | None:
    text = os.environ.get(KEY_VARIABLE)
    if not text:
        return None
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise UserError(f"the variable {KEY_VARIABLE} holds no key: expected {KEY_BYTES} bytes in hexadecimal digits")
    return key


def drop_key(run: Path, key: bytes | None = None) -> None:
    """The session is over; where it is not known to be the last, that whose `key` this is."""
    path = run / "peers" / "key"
    with suppress(OSError):
        if key is None or path.read_text() == key.hex():
            path.unlink()
