"""Where a server is and how to treat it: `URL?key_env=NAME&rpm=600#model`, or `openai:model?rpm=600`.

Keys are never part of an address, so an address may be shown, logged and kept in a run directory. Parameters with the
names of `Options` are ours; all others are the server's, and are sent.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from difflib import get_close_matches
from typing import Any, Literal, NamedTuple
from urllib.parse import parse_qsl, urlencode, urlsplit

import msgspec
from msgspec import Struct

from weaverant.engines.http.key import Key, looks_random, looks_secret, read_key
from weaverant.engines.http.presets import PRESETS, Preset, preset_at
from weaverant.errors import UserError

_SECRET = re.compile(r"key|token|secret|passw|auth|credential|sig", re.IGNORECASE)
_WAY_OUT = "Put the key into an environment variable and name it: https://host/v1?key_env=NAME#model"


class Options(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """How to treat one server. A pool's replicas share `timeout`, `retries`, `backoff` and `hedge`."""

    key_env: str | None = None
    """The environment variable that holds the key."""
    key_file: str | None = None
    """A file that holds the key; or the environment variable `key_env` may name one, in NAME_FILE."""
    preset: str = ""
    """The hosted provider whose dialect, prices and key a server has that stands in front of it: a gateway's."""
    name: str = ""
    """Under which name the model counts in fingerprints, where replicas call the same model differently."""
    client: Literal["", "fast", "dependable"] = ""
    """`fast` (httptools) or `dependable` (aiohttp); by default the fast one where it is installed."""
    timeout: float = 600.0
    """Seconds for a call from its first request on, with all its retries; not for its wait for a free place."""
    retries: int = 4
    """Further requests after failures of the server; waiting out a rate limit or a dead server is none."""
    backoff: float = 0.5
    """Seconds before the first of them, and where a server refuses and does not say for how long; about twice as many
    before each next one, up to half a minute."""
    hedge: float = 0.0
    """A second request goes to another replica where the first takes longer than this share of calls; 0 never."""
    connections: int = 0
    """Requests in flight at most. 0: as many as the server is found to take."""
    start: int = 0
    """Requests in flight to begin with, where one knows what the server takes; 0: few, and more while it keeps up."""
    rpm: float = 0.0
    """Requests a minute at most; 0: what the server says, or no limit."""
    tpm: float = 0.0
    """Tokens a minute at most, of prompts and replies; 0: what the server says, or no limit."""
    price: str = ""
    """`IN,OUT` or `IN,OUT,CACHED` in dollars for a million tokens; `0`: it costs nothing."""
    image: int = 0
    """Tokens that one image of a prompt costs at most; 0: nobody knows, and a budget takes no images."""
    hourly: float = 0.0
    """Dollars an hour of a server of one's own, charged while it works."""
    stream: bool = False
    """Ask for the reply in pieces, so that a server which falls silent for `idle` seconds is noticed."""
    idle: float = 60.0
    schema: Literal["", "server", "prompt"] = ""
    """Who is told the schema of an output: the `server`, or the model, in its `prompt`; by default whoever takes it."""
    batch: float = 0.0
    """Seconds to gather calls for the server's batch API, at half the price and within a day; 0: ask at once."""
    poll: float = 0.0
    """Seconds between two looks at a batch; 0: a tenth of its age, from a second to a minute."""


class _Fit(NamedTuple):
    """What fits an option; all other options are texts."""

    kind: type[Any]
    expected: str
    test: Callable[[Any], bool]


def _from_0(value: float) -> bool:
    return 0 <= value < math.inf


def _above_0(value: float) -> bool:
    return 0 < value < math.inf


def _below_1(value: float) -> bool:
    return 0 <= value < 1


_COUNT = _Fit(int, "a whole number, 0 or more", _from_0)
_AMOUNT = _Fit(float, "a number, 0 or more", _from_0)
_SECONDS = _Fit(float, "a number of seconds, above 0", _above_0)
_FITS = {
    "client": _Fit(str, "fast or dependable", ("", "fast", "dependable").__contains__),
    "timeout": _SECONDS,
    "retries": _COUNT,
    "backoff": _SECONDS,
    "hedge": _Fit(float, "a share, 0 or more and below 1", _below_1),
    "connections": _COUNT,
    "start": _COUNT,
    "rpm": _AMOUNT,
    "tpm": _AMOUNT,
    "image": _COUNT,
    "hourly": _AMOUNT,
    "stream": _Fit(bool, "1 or 0 (true or false)", (True, False).__contains__),
    "idle": _SECONDS,
    "schema": _Fit(str, "server or prompt", ("", "server", "prompt").__contains__),
    "batch": _Fit(float, "a number of seconds, 0 or more", _from_0),
    "poll": _Fit(float, "a number of seconds, 0 or more", _from_0),
}
_ELSEWHERE = {"retry": "retries", "max_retries": "retries"}
"""What other clients call an option of ours, where the names are not alike enough."""


class Address(Struct, frozen=True):
    """A server's base URL (no query, no slash at the end), the query every request carries, and the rest."""

    base: str
    query: str = ""
    model: str = ""
    options: Options = Options()

    @property
    def host(self) -> str:
        return urlsplit(self.base).hostname or ""

    @property
    def preset(self) -> Preset:
        """What is known of the server."""
        return PRESETS[self.options.preset] if self.options.preset else preset_at(self.host)

    def url(self, path: str) -> str:
        return f"{self.base}/{path}" + (f"?{self.query}" if self.query else "")


def parse(spec: str) -> Address:
    """The address in a spec. `UserError` if it is none or holds a secret; the message never shows one."""
    text = _as_url(spec.strip())
    try:
        parts = urlsplit(text)
        fine = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        raise UserError(_no_url(spec)) from None
    if parts.username is not None or parts.password is not None:
        raise UserError(f"the URL of {parts.hostname!r} holds a user or a password. {_WAY_OUT}")
    if not fine:
        raise UserError(_no_url(spec))
    host = parts.hostname or ""
    if any(looks_secret(part) for part in (host, *re.split("[/,]", parts.path), *re.split("[/,]", parts.fragment))):
        raise UserError(f"an address holds what looks like a key. {_WAY_OUT}")
    own, kept = _parameters(parts.query, host)
    options = _options(own, host)
    if parts.scheme == "http" and preset_at(host).name:
        raise UserError(f"{host!r} would get the key unencrypted; expected https://{host}...")
    path = parts.path.rstrip("/").removesuffix("/chat/completions")
    return Address(f"{parts.scheme}://{parts.netloc}{path}", urlencode(kept), parts.fragment, options)


def find_key(address: Address) -> Key | None:
    """The key: from what the options name, which must be there, else from the provider's own variable, which must be
    set as well, else from WEAVERANT_API_KEY, which may be absent."""
    preset, options = address.preset, address.options
    return read_key(options.key_env, options.key_file, preset.key_env, bool(preset.name), address.host)


def _as_url(spec: str) -> str:
    """`openai:model?options` written out."""
    name, _, rest = spec.partition(":")
    preset = PRESETS.get(name)
    if preset is None:
        return spec
    model, _, query = rest.partition("?")
    if not model:
        raise UserError(f"{name}: names no model; expected one, as in {name}:{preset.example}")
    if "#" in query:
        raise UserError(f"{name}: names its model before the options and again behind #; expected {name}:MODEL?OPTIONS")
    return f"{preset.base}?{query}#{model}"


def _parameters(query: str, host: str) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """Ours and the server's. Whatever looks like a secret is refused, whichever it is, and never shown."""
    own: dict[str, str] = {}
    kept: list[tuple[str, str]] = []
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name in Options.__struct_fields__:
            # A file's name may be anything, and the variable's is looked at where it is read.
            if name not in ("key_env", "key_file") and looks_random(value):
                raise UserError(f"the URL of {host!r} has in {name!r} what looks like a key. {_WAY_OUT}")
            if own.setdefault(name, value) != value:
                raise UserError(f"the URL of {host!r} has {name!r} twice, with different values; expected one")
        elif looks_random(name) or looks_random(value):
            raise UserError(f"the URL of {host!r} has a parameter that looks like a key. {_WAY_OUT}")
        elif meant := _meant(name):
            raise UserError(
                f"the URL of {host!r} has a parameter {name!r}: did you mean {meant!r}? Parameters that are no options "
                "are sent to the server, and this one is too near to one of them to be sent unasked"
            )
        elif _SECRET.search(name):
            raise UserError(f"the URL of {host!r} has a parameter {name!r}, which looks secret. {_WAY_OUT}")
        else:
            kept.append((name, value))
    return own, kept


def _meant(name: str) -> str:
    """The option that a parameter is a slip of the pen from, or nothing."""
    lower = name.lower()
    near = get_close_matches(lower, Options.__struct_fields__, 1, 0.8)
    return _ELSEWHERE.get(lower) or (near[0] if near else "")


def _options(own: dict[str, str], host: str) -> Options:
    options = Options(**{name: _value(name, text, host) for name, text in own.items()})
    if options.preset and options.preset not in PRESETS:
        near = get_close_matches(options.preset, PRESETS, 1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise UserError(f"no provider is called {options.preset!r}.{hint} Expected one of {', '.join(PRESETS)}")
    return options


def _value(name: str, text: str, host: str) -> Any:
    fit = _FITS.get(name)
    if fit is None:
        return text
    value: object
    try:
        value = msgspec.convert(text, fit.kind, strict=False)
    except msgspec.ValidationError:
        value = None
    if value is None or not fit.test(value):
        raise UserError(f"the URL of {host!r}: {name}={text[:40]!r}: expected {fit.expected}")
    return value


def _no_url(spec: str) -> str:
    # What precedes the first slash may be user:password@host, so only the scheme is shown, if it can be one.
    scheme = spec.partition(":")[0][:12]
    shown = f"{scheme!r}..." if scheme.isalpha() and not looks_random(spec.strip()) else "this"
    return f"{shown} is no address of a model server; expected http://host:port/v1#model or https://host/v1#model"
