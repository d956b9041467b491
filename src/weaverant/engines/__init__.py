"""What answers chat requests. `open_engine` makes one from the text of a `--model` option.

Each kind lives in a module of its own, imported only when a spec names it, and knows none of the others.
"""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from importlib import import_module
from typing import NamedTuple, cast

from weaverant.errors import UserError
from weaverant.protocols import Engine


class Kind(NamedTuple):
    """`opener` is "module:attribute", called with what follows `scheme:`, or with the whole spec of a URL."""

    opener: str
    example: str


KINDS = {
    "http": Kind("weaverant.engines.http:Pool.open", "http://localhost:8000/v1#model-name"),
    "https": Kind("weaverant.engines.http:Pool.open", "https://api.openai.com/v1#gpt-5-mini"),
    "embedded": Kind("weaverant.engines.embedded:EmbeddedEngine.open", "embedded:tiny"),
    "scripted": Kind("weaverant.engines.scripted:Scripted.open", "scripted:replies.jsonl"),
    "simulated": Kind("weaverant.engines.simulated:Simulated.open", "simulated:latency=0.2,slots=64,tokens=200"),
    "cache": Kind("weaverant.engines.cache:Cached", "cache:./cache|http://localhost:8000/v1#model-name"),
}


def open_engine(spec: str) -> Engine:
    """The engine a spec names; `UserError` if it names none. A URL without `#model` is asked for its model."""
    scheme, colon, rest = spec.strip().partition(":")
    kind = KINDS.get(scheme)
    if kind is None or not colon:
        raise _unknown(spec, scheme)
    opener = _load(kind.opener)
    if scheme == "cache":
        directory, bar, inner = rest.partition("|")
        if not bar or not directory:
            raise UserError(f"{spec!r} is no cache; expected cache:FOLDER|MODEL, for example {kind.example}")
        return opener(open_engine(inner), directory)
    return opener(spec.strip() if scheme in ("http", "https") else rest)


def _load(opener: str) -> Callable[..., Engine]:
    module, _, path = opener.partition(":")
    found: object = import_module(module)
    for name in path.split("."):
        found = getattr(found, name)
    return cast(Callable[..., Engine], found)


def _unknown(spec: str, scheme: str) -> UserError:
    examples = "\n".join(f"  {kind.example}" for kind in KINDS.values())
    near = get_close_matches(scheme, KINDS, 1)
    hint = f" Did you mean {near[0] + ':'!r}?" if near else ""
    # What follows the colon may carry a key, so it is not shown.
    return UserError(f"no kind of model is called {scheme[:24]!r}.{hint} Expected one of\n{examples}")
