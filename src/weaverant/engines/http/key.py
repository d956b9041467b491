"""API keys: where they come from, and how they stay out of everything that is shown or stored.

A key comes from an environment variable, or from a file that a variable or an address names. It is never part of an
address. `Key` shows itself to nobody; `reveal` is for the transport alone.
"""

from __future__ import annotations

import base64
import html
import json
import os
import re
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import NoReturn
from urllib.parse import quote, quote_plus

from weaverant.errors import UserError

HIDDEN = "[key]"
LARGEST_FILE = 16_384
_SURE = 8
"""Characters of an encoded form that are enough to be sure that it is no accident."""


class Shy(str):
    """A text that goes over the wire as it is, and that no dump of variables shows."""

    __slots__ = ()

    def __repr__(self) -> str:
        return repr(HIDDEN)


class ShyBytes(bytes):
    """The same for bytes, such as the head of a request."""

    __slots__ = ()

    def __repr__(self) -> str:
        return repr(HIDDEN.encode())


class Key:
    """A secret. `str`, `repr`, `format` and the like give `[key]`; it is neither pickled nor compared."""

    __slots__ = ("_forms", "_longest", "_value")

    def __init__(self, value: str) -> None:
        self._value = Shy(value)
        forms = sorted(_forms(value), key=len, reverse=True)
        self._longest = len(forms[0])
        self._forms = re.compile(b"|".join(re.escape(form) for form in forms))

    def __repr__(self) -> str:
        return HIDDEN

    def __reduce__(self) -> NoReturn:
        raise TypeError("a key is never stored")

    def reveal(self) -> str:
        """The secret itself, for the one header that carries it."""
        return self._value

    def bearer(self) -> str:
        """The value of an Authorization header."""
        return Shy(f"Bearer {str.__str__(self._value)}")

    def hide(self, text: bytes) -> bytes:
        """The text with the key taken out, in every form in which a server may repeat it."""
        return self._forms.sub(HIDDEN.encode(), text)

    def hide_in(self, text: bytes, most: int) -> bytes:
        """The first bytes of a text that may be huge, without the key or a part of it."""
        parts: list[bytes] = []
        at = 0
        for found in self._forms.finditer(text[: most + self._longest]):
            if found.start() >= most:
                break
            parts += [text[at : found.start()], HIDDEN.encode()]
            at = found.end()
        return b"".join((*parts, text[at:most]))


def _forms(value: str) -> set[bytes]:
    """Plain, in a URL, in HTML, in base64 with anything before and after it, in hexadecimal; each also within JSON, and
    in JSON within JSON."""
    raw = value.encode()
    urls = {quote(value, safe=""), quote(value), quote_plus(value)}
    lower = {re.sub(r"%[0-9A-F]{2}", lambda found: found.group().lower(), url) for url in urls}
    coded = {raw.hex(), raw.hex().upper()}
    for before in range(3):
        # Characters of base64 that depend on nothing but the key: those of the bytes before and after it are cut.
        code = base64.b64encode(b"\0" * before + raw)
        inner = code[-(-before * 8 // 6) : (before + len(raw)) * 8 // 6].decode()
        coded |= {inner, inner.replace("+", "-").replace("/", "_")}
    forms = {value, html.escape(value), *urls, *lower, *(code for code in coded if len(code) >= _SURE)}
    for _ in range(2):
        forms |= {_in_json(form) for form in forms}
        forms |= {form.replace("/", "\\/") for form in forms}
    return {form.encode() for form in forms}


def _in_json(text: str) -> str:
    return json.dumps(text)[1:-1]


_PREFIX = re.compile(r"^(sk-|sk_|pk-|gsk_|xai-|hf_|AIza|tgp_|r8_|nvapi-|ghp_|github_pat_|eyJ|Bearer\b)", re.IGNORECASE)
_RANDOM = re.compile(r"(?=(?:[A-Za-z]*\d){3})(?=\d*[A-Za-z])[A-Za-z0-9]{20,}")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def looks_secret(text: str) -> bool:
    """Whether a text begins as keys do. Used on names of models and parts of paths, which may be long and random."""
    return len(text) >= 12 and bool(_PREFIX.match(text))


def looks_random(text: str) -> bool:
    """Whether a text has letters and digits in one long mixture, as keys do. Used where nothing else of that kind
    belongs."""
    return looks_secret(text) or bool(_RANDOM.search(text))


def read_key(named: str | None, file: str | None, usual: str, required: bool, whose: str) -> Key | None:
    """The key from `file`, else from the variable `named`, which must be set, else from the `usual` one, which must be
    where a key is `required`.

    A variable NAME may also be given as NAME_FILE, the path of a file that holds the key. Whether others may read the
    file is not asked: keys that a container gets are readable by all in it. No message shows what was found.
    """
    if file:
        return _checked(_read(file, "the option key_file"), f"the file {file!r}")
    if named is not None and (not _NAME.fullmatch(named) or (looks_random(named) and not named.isupper())):
        raise UserError(
            "key_env names no environment variable; expected a name such as MY_KEY, not the key itself. "
            "Set it (export MY_KEY=...) and write ?key_env=MY_KEY"
        )
    name = named or usual
    key = os.environ.get(name, "").strip()
    if key:
        return _checked(key, f"the environment variable {name!r}")
    path = os.environ.get(f"{name}_FILE", "").strip()
    if path:
        return _checked(_read(path, f"the environment variable {name + '_FILE'!r}"), f"the file {path!r}")
    if required or named is not None:
        _miss(
            f"{whose!r} needs a key, expected in the environment variable {name!r}, which is not set. "
            f"Set it (export {name}=...) or {name}_FILE, or name another: ?key_env=NAME"
        )
    return None


_missing: ContextVar[list[str] | None] = ContextVar("_missing", default=None)


@contextmanager
def keyless() -> Generator[list[str]]:
    """For what calls nobody: in this block a key that is not there is no error, but one more text in the list."""
    texts: list[str] = []
    before = _missing.set(texts)
    try:
        yield texts
    finally:
        _missing.reset(before)


def _miss(text: str) -> None:
    texts = _missing.get()
    if texts is None:
        raise UserError(text)
    texts.append(text)


def is_set(name: str) -> bool:
    """Whether the variable, or its form with _FILE, has a value."""
    return bool(os.environ.get(name, "").strip() or os.environ.get(f"{name}_FILE", "").strip())


def _read(path: str, who: str) -> str:
    if looks_random(path) and "/" not in path:
        raise UserError(f"{who} names no file; expected the path of a file that holds the key, not the key itself")
    try:
        with Path(path).expanduser().open("rb") as file:
            return file.read(LARGEST_FILE).decode().strip()
    except OSError as error:
        raise UserError(f"{who} names {path!r}, which cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(
            f"{who} names {path!r}, which is no text; expected a file with the key and nothing else"
        ) from None


def _checked(key: str, where: str) -> Key:
    if not key:
        raise UserError(f"{where} holds no key: it is empty")
    if not key.isascii() or not key.isprintable() or " " in key:
        raise UserError(
            f"the key in {where} holds characters that no HTTP header can carry; was it copied whole, on one line?"
        )
    return Key(key)
