"""Members' specs, as they are opened: files looked up beside the pool, and a card's price put into an address."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import parse_qsl

from weaverant.engines import KINDS
from weaverant.engines.http.pool.roster import split

_FILES = frozenset(("malt", "moa", "smoa", "self-moa", "route", "routemoa", "scripted", "embedded"))
"""Kinds of specs that name a file or a folder."""


def beside(folder: Path, spec: str) -> str:
    """The spec, its file as it is found from anywhere."""
    kind, _, rest = spec.strip().partition(":")
    name, mark, options = rest.partition("?")
    if kind in _FILES and name and (folder / name).exists():
        return f"{kind}:{(folder / name).resolve()}{mark}{options}"
    return spec


def with_price(spec: str, price: tuple[float, float]) -> str | None:
    """The spec with that price, in dollars for a million tokens of prompt and of reply, in each address that has none
    of its own: so it counts in the ledger and for every budget. None where the spec can take no price."""
    kind, _, rest = spec.strip().partition(":")
    if kind == "cache":
        folder, bar, inner = rest.partition("|")
        found = with_price(inner, price) if bar else None
        return None if found is None else f"{kind}:{folder}|{found}"
    if kind == "pool":
        addresses = split(rest)
        return None if addresses is None else "pool:" + ",".join(_priced(one, price) for one in addresses)
    known = KINDS.get(kind)
    return _priced(spec.strip(), price) if known is not None and known.opener == KINDS["http"].opener else None


def says_price(spec: str) -> bool:
    """Whether every address in it has a price of its own."""
    kind, _, rest = spec.strip().partition(":")
    if kind == "cache":
        return says_price(rest.partition("|")[2])
    addresses = split(rest if kind == "pool" else spec)
    return bool(addresses) and all("price" in _options(one) for one in addresses)


def is_batched(spec: str) -> bool:
    """Whether its replies come in batches, hours later."""
    kind, _, rest = spec.strip().partition(":")
    if kind == "cache":
        return is_batched(rest.partition("|")[2])
    return any(_options(one).get("batch", "0").strip("0.") for one in split(rest if kind == "pool" else spec) or ())


def _options(address: str) -> dict[str, str]:
    return dict(parse_qsl(address.partition("#")[0].partition("?")[2], keep_blank_values=True))


def _priced(address: str, price: tuple[float, float]) -> str:
    if {"price", "hourly"} & _options(address).keys():
        return address  # what is paid by the hour is not paid by the token as well
    place, hash_, model = address.partition("#")
    return f"{place}{'&' if '?' in place else '?'}price={_number(price[0])},{_number(price[1])}{hash_}{model}"


def _number(value: float) -> str:
    """As an option's value: no letters, which might be taken for a key's."""
    return f"{value:.12f}".rstrip("0").rstrip(".")
