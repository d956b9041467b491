"""Where a server is and how to treat it: `URL?key_env=NAME&rpm=600#model`.

Keys are never part of an address, so an address may be shown, logged and kept in a run directory. Parameters with the
names of `Options` are ours; all others are the server's, and are sent.
"""

from __future__ import annotations

import os
import re
from typing import Literal
from urllib.parse import parse_qsl, urlencode, urlsplit

import msgspec
from msgspec import Struct

from weaverant.errors import UserError

_SECRET = re.compile(r"key|token|secret|passw|auth|credential|sig", re.IGNORECASE)
_WAY_OUT = "Put the key into an environment variable and name it: https://host/v1?key_env=NAME#model"


class Options(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """How to treat one server. A pool's replicas share `timeout`, `retries` and `hedge`."""

    key_env: str | None = None
    """The environment variable that holds the key."""
    key_file: str | None = None
    """A file that holds the key; or the environment variable `key_env` may name one, in NAME_FILE."""
    name: str = ""
    """Under which name the model counts in fingerprints, where replicas call the same model differently."""
    client: Literal["", "fast", "dependable"] = ""
    """`fast` (httptools) or `dependable` (aiohttp); by default the fast one where it is installed."""
    timeout: float = 600.0
    """Seconds for a call from its first request on, with all its retries; not for its wait for a free place."""
    retries: int = 4
    """Further requests after failures of the server; waiting out a rate limit or a dead server is none."""
    hedge: float = 0.0
    """A second request goes to another replica where the first takes longer than this share of calls; 0 never."""
    connections: int = 0
    """Requests in flight at most. 0: as many as the server is found to take."""
    rpm: float = 0.0
    """Requests a minute at most; 0: what the server says, or no limit."""
    tpm: float = 0.0
    """Tokens a minute at most, of prompts and replies; 0: what the server says, or no limit."""
    price: str = ""
    """`IN,OUT` or `IN,OUT,CACHED` in dollars for a million tokens; `0`: it costs nothing."""
    hourly: float = 0.0
    """Dollars an hour of a server of one's own, charged while it works."""
    stream: bool = False
    """Ask for the reply in pieces, so that a server which falls silent for `idle` seconds is noticed."""
    idle: float = 60.0
    schema: Literal["", "server", "prompt"] = ""
    """Who is told the schema of an output: the `server`, or the model, in its `prompt`; by default whoever takes it."""
    batch: float = 0.0
    """Seconds to gather calls for the server's batch API, at half the price and within a day; 0: ask at once."""


class Address(Struct, frozen=True):
    """A server's base URL (no query, no slash at the end), the query every request carries, and the rest."""

    base: str
    query: str = ""
    model: str = ""
    options: Options = Options()

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
    own: dict[str, str] = {}
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name in Options.__struct_fields__:
            own[name] = value
        elif _SECRET.search(name):
            raise UserError(f"the URL of {parts.hostname!r} has a parameter {name!r}, which looks secret. {_WAY_OUT}")
        else:
            kept.append((name, value))
    path = parts.path.rstrip("/").removesuffix("/chat/completions")
    try:
        options = msgspec.convert(own, Options, strict=False)
    except msgspec.ValidationError as error:
        raise UserError(f"the URL of {parts.hostname!r}: {error}") from None
    return Address(f"{parts.scheme}://{parts.netloc}{path}", urlencode(kept), parts.fragment, options)


def find_key(address: Address) -> str | None:
    """The key: from the named variable, which must be set, else OPENAI_API_KEY for OpenAI's own host and
    WEAVERANT_API_KEY for any other, where it may be absent."""
    named = address.options.key_env
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
