"""Where a server is and which environment variable holds its key: `URL?key_env=NAME#model`.

Keys are never part of an address, so an address may be shown, logged and kept in a run directory.
"""

from __future__ import annotations

import os
import re
from urllib.parse import parse_qsl, urlencode, urlsplit

from msgspec import Struct

from weaverant.errors import UserError

_SECRET = re.compile(r"key|token|secret|passw|auth|credential|sig", re.IGNORECASE)
_WAY_OUT = "Put the key into an environment variable and name it: https://host/v1?key_env=NAME#model"


class Address(Struct, frozen=True):
    """A server's base URL (no query, no slash at the end), the query every request carries, and the rest."""

    base: str
    query: str = ""
    model: str = ""
    key_env: str | None = None

    @property
    def host(self) -> str:
        return urlsplit(self.base).hostname or ""

    def url(self, path: str) -> str:
        return f"{self.base}/{path}" + (f"?{self.query}" if self.query else "")


def parse(spec: str) -> Address:
    """The address in a spec. `UserError` if it is no URL or holds a secret; the message never shows one."""
    try:
        parts = urlsplit(spec.strip())
        fine = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        raise UserError(_no_url(spec)) from None
    if parts.username is not None or parts.password is not None:
        raise UserError(f"the URL of {parts.hostname!r} holds a user or a password. {_WAY_OUT}")
    if not fine:
        raise UserError(_no_url(spec))
    kept: list[tuple[str, str]] = []
    key_env: str | None = None
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name == "key_env":
            key_env = value
        elif _SECRET.search(name):
            raise UserError(f"the URL of {parts.hostname!r} has a parameter {name!r}, which looks secret. {_WAY_OUT}")
        else:
            kept.append((name, value))
    path = parts.path.rstrip("/").removesuffix("/chat/completions")
    return Address(f"{parts.scheme}://{parts.netloc}{path}", urlencode(kept), parts.fragment, key_env)


def find_key(address: Address, key_env: str | None = None) -> str | None:
    """The key: from the named variable, which must be set, else OPENAI_API_KEY for OpenAI's own host and
    WEAVERANT_API_KEY for any other, where it may be absent."""
    named = key_env or address.key_env
    required = named is not None or address.host == "api.openai.com"
    name = named or ("OPENAI_API_KEY" if required else "WEAVERANT_API_KEY")
    key = os.environ.get(name, "").strip()
    if not key and required:
        raise UserError(
            f"{address.host!r} needs a key, expected in the environment variable {name!r}, which is not set. "
            f"Set it (export {name}=...), or name another: ?key_env=NAME"
        )
    if not key.isascii() or not key.isprintable():
        raise UserError(
            f"the key in {name!r} holds characters that no HTTP header can carry; was it copied whole, on one line?"
        )
    return key or None


def _no_url(spec: str) -> str:
    # What precedes the first slash may be user:password@host, so only the scheme is shown.
    return (
        f"{spec.partition(':')[0][:12]!r}... is no address of a model server; "
        "expected http://host:port/v1#model or https://host/v1#model"
    )
