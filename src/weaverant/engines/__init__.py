"""What answers chat requests. `open_engine` makes one from the text of a `--model` option.

Each kind lives in a module of its own, imported only when a spec names it, and knows none of the others.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from importlib import import_module
from typing import NamedTuple, cast

from weaverant.compound import Served, is_compound
from weaverant.errors import UserError


class Kind(NamedTuple):
    """`opener` is "module:attribute", called with what follows `scheme:`; the one of model servers with all of it."""

    opener: str
    example: str


_POOL = "weaverant.engines.http:open_served"

_PARTED = ("pool", "simulated", "malt", "moa", "smoa", "self-moa", "route", "routemoa")
"""Kinds besides those servers whose opener also takes in how many parts a server is shared."""

KINDS = {
    "http": Kind(_POOL, "http://localhost:8000/v1#model-name"),
    "https": Kind(_POOL, "https://api.openai.com/v1#gpt-5-mini"),
    "openai": Kind(_POOL, "openai:gpt-5-mini"),
    "anthropic": Kind(_POOL, "anthropic:claude-haiku-4-5"),
    "google": Kind(_POOL, "google:gemini-2.5-flash"),
    "mistral": Kind(_POOL, "mistral:mistral-small-latest"),
    "deepseek": Kind(_POOL, "deepseek:deepseek-v4-flash"),
    "together": Kind(_POOL, "together:openai/gpt-oss-120b"),
    "groq": Kind(_POOL, "groq:openai/gpt-oss-20b"),
    "openrouter": Kind(_POOL, "openrouter:openai/gpt-oss-120b"),
    "pool": Kind("weaverant.engines.http:Pool.gather", "pool:http://a:8000/v1#model-name,http://b:8000/v1#model-name"),
    "embedded": Kind("weaverant.engines.embedded:EmbeddedEngine.open", "embedded:tiny"),
    "scripted": Kind("weaverant.engines.scripted:Scripted.open", "scripted:replies.jsonl"),
    "simulated": Kind("weaverant.engines.simulated:Simulated.open", "simulated:latency=0.2,slots=64,tokens=200"),
    "cache": Kind("weaverant.engines.cache:Cached", "cache:./cache|http://localhost:8000/v1#model-name"),
    "malt": Kind("weaverant.recipes.malt.served:open_team", "malt:models.json"),
    "moa": Kind("weaverant.routing.moa:open_moa", "moa:pool.json"),
    "smoa": Kind("weaverant.routing.smoa:open_smoa", "smoa:pool.json"),
    "self-moa": Kind("weaverant.routing.selfmoa:open_selfmoa", "self-moa:pool.json"),
    "route": Kind("weaverant.routing.route:open_route", "route:pool.json"),
    "routemoa": Kind("weaverant.routing.routemoa:open_routemoa", "routemoa:pool.json"),
}


def open_engine(spec: str, parts: int = 1) -> Served:
    """What a spec names, an engine or a compound; `UserError` if it names none. A URL without `#model` is asked for its
    model. With `parts` it makes one part of so many of what the spec lets a server be asked: `rpm`, `tpm`,
    `connections`; of a simulated one `slots`."""
    scheme, colon, rest = spec.strip().partition(":")
    kind = KINDS.get(scheme)
    if kind is None or not colon:
        raise _unknown(spec, scheme)
    opener = _load(kind.opener)
    if scheme == "cache":
        directory, bar, inner = rest.partition("|")
        if not bar or not directory:
            raise UserError(f"that is no cache; expected cache:FOLDER|MODEL, for example {kind.example}")
        kept = open_engine(inner, parts)
        if is_compound(kept):
            raise UserError(
                f"a cache keeps what an engine says, and {kept.identity!r} asks others: put it around those"
            )
        return opener(kept, directory)
    if kind.opener == _POOL:
        return opener(spec.strip(), parts)
    return opener(rest, parts) if scheme in _PARTED else opener(rest)


def pooled(specs: Sequence[str]) -> str:
    """One spec for several: they are replicas of one model. `UserError` where they cannot be."""
    if len(specs) == 1:
        return specs[0]
    for spec in specs:
        scheme = spec.strip().partition(":")[0]
        kind = KINDS.get(scheme)
        if kind is None or kind.opener != KINDS["http"].opener:
            raise UserError(
                "two models were given for the same agents, and one of them is no server. Expected each name once, "
                f"--model NAME=SPEC (in Python models={{NAME: SPEC}}), or servers of one model, as "
                f"{KINDS['http'].example}"
            )
    return "pool:" + ",".join(specs)


def doubts(spec: str) -> list[str]:
    """What is no error in a spec that can be opened, and yet is probably not meant, in one line each."""
    scheme, _, rest = spec.strip().partition(":")
    if scheme == "cache":
        return doubts(rest.partition("|")[2])
    if KINDS[scheme].opener not in (_POOL, KINDS["pool"].opener):
        return []
    from weaverant.engines.http.unlisted import unlisted  # deferred, as every kind is

    return unlisted(spec)


def _load(opener: str) -> Callable[..., Served]:
    module, _, path = opener.partition(":")
    found: object = import_module(module)
    for name in path.split("."):
        found = getattr(found, name)
    return cast(Callable[..., Served], found)


def _hosted(word: str) -> list[str]:
    """Specs of the hosted models that are called nearly so; the nearest first."""
    from weaverant.engines.http.money.prices import tables  # deferred, as every kind is

    known = {model: provider for provider, table in reversed(tables().items()) for model in table.models}
    return [f"{known[model]}:{model}" for model in get_close_matches(word, known, 1, 0.75)]


_HOST = re.compile(r"[\w.-]+:\d+(/|$|#|\?)")
"""The beginning of an address without its scheme."""


def _unknown(spec: str, scheme: str) -> UserError:
    examples = "\n".join(f"  {kind.example}" for kind in KINDS.values())
    near = [f"{kind}:" for kind in get_close_matches(scheme, KINDS, 1)] or ([] if ":" in spec else _hosted(spec))
    hint = f" Did you mean {near[0]!r}?" if near else ""
    if not hint and _HOST.match(spec):
        hint = " A server's address begins with http:// or https://."
    # What follows the colon may carry a key, so it is not shown; nor is what is no word and near to no model's name.
    word = scheme.isalpha() and len(scheme) <= 16
    known = f"no kind of model is called {scheme!r}" if word or near else "that is no model"
    return UserError(f"{known}.{hint} Expected one of\n{examples}")
