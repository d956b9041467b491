"""`weaverant models`: which hosted providers there are, what their models cost, or what a server lists."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from typing import Any

from weaverant.cli.options import named, near
from weaverant.cli.streams import put
from weaverant.cli.text import table
from weaverant.engines.http.address import Address, find_key, parse
from weaverant.engines.http.key import is_set
from weaverant.engines.http.listing import NotListed, list_models
from weaverant.engines.http.money import openrouter
from weaverant.engines.http.money.prices import Price, listed, tables
from weaverant.engines.http.presets import PRESETS, Preset
from weaverant.errors import UserError, WeaverantError

_PRICED_IN = "Dollars for a million tokens"


def models_command(options: argparse.Namespace) -> int:
    where: str | None = options.where
    rows, note = _listed(where)
    if options.json:
        put(json.dumps({"models" if where else "providers": rows, "note": note}, ensure_ascii=False, indent=2))
        return 0
    if rows:
        heads = list(rows[0])
        put("\n".join(table(heads, [[_cell(row[head]) for head in heads] for row in rows])))
    put(note)
    return 0


def _listed(where: str | None) -> tuple[list[dict[str, Any]], str]:
    if where is None:
        return [_provider(preset) for preset in PRESETS.values()], "Their models and prices: weaverant models PROVIDER"
    name, _, model = where.partition(":")
    preset = PRESETS.get(name)
    if preset is not None:
        return _of_model(preset, parse(where).model) if model else _of_provider(preset)
    if "://" not in where:
        rows = _of_all(where)
        if rows:
            return rows, f"{_PRICED_IN}, by provider; use one: --model {rows[0]['provider']}:{where}"
        known = where.isalpha() and len(where) <= 16
        asked = f"there is no provider {where!r}{near(where, PRESETS)}" if known else "that is no provider and no URL"
        raise UserError(f"{asked}; there are: {named(PRESETS)}. Or give a server's URL: http://localhost:8000/v1")
    return _of_server(parse(where))


def _provider(preset: Preset) -> dict[str, Any]:
    found = tables().get(preset.name)
    return {
        "provider": preset.name,
        "base": preset.base,
        "key": preset.key_env,
        "set": is_set(preset.key_env),
        "models": len(found.models) if found is not None else None,
        "prices of": found.date if found is not None else "now",
    }


def _of_model(preset: Preset, model: str) -> tuple[list[dict[str, Any]], str]:
    rows, note = _of_provider(preset)
    found = [row for row in rows if row["model"] == model]
    if not found:
        hint = near(model, (row["model"] for row in rows))
        raise UserError(
            f"the price of that model of {preset.name!r} is not known{hint}; those that are: "
            f"weaverant models {preset.name}. It may be used all the same, with price=IN,OUT where there is a budget"
        )
    return found, note.partition("; use one: ")[0] + f"; use it: --model {preset.name}:{model}"


def _of_all(model: str) -> list[dict[str, Any]]:
    """Every provider in the packaged tables that has a model of this name."""
    prices = {provider: listed(provider, model) for provider in tables()}
    return [{"provider": name, "model": model, **_priced(price)} for name, price in prices.items() if price is not None]


def _of_provider(preset: Preset) -> tuple[list[dict[str, Any]], str]:
    found = tables().get(preset.name)
    use = f"use one: --model {preset.name}:{preset.example}"
    if found is None:
        try:
            prices: Mapping[str, Price | None] = openrouter.models(Address(preset.base), None)
        except NotListed as error:
            raise WeaverantError(f"the models of {preset.name!r} could not be read: {error}") from None
        source = f"read from {preset.base}/models now; a model's dearest provider may cost more"
    else:
        prices = {name: listed(preset.name, name) for name in found.models}
        source = f"of {found.date}, from {found.source}"
    rows = [{"model": name, **_priced(price)} for name, price in sorted(prices.items())]
    return rows, f"{_PRICED_IN}, {source}; {use}"


def _of_server(address: Address) -> tuple[list[dict[str, Any]], str]:
    """What the server lists now; of a known provider with the packaged prices."""
    provider = address.preset.name
    try:
        names = list_models(address, find_key(address))
    except NotListed as error:
        lacks = error.status == 404 and not address.base.endswith("/v1")
        hint = f". A server's address often ends in /v1: weaverant models {address.base}/v1" if lacks else ""
        raise WeaverantError(f"{address.base} gave no list of models: {error}{hint}") from None
    rows: list[dict[str, Any]] = [{"model": name} for name in names]
    if provider:
        rows = [{**row, **_priced(listed(provider, row["model"]))} for row in rows]
    example = names[0] if names else "NAME"
    return rows, f"{len(names):,} model{'s' * (len(names) != 1)}; use one: --model {address.base}#{example}"


def _priced(price: Price | None) -> dict[str, Any]:
    if price is None:
        return dict.fromkeys(("input", "output", "cached", "context", "most output", "date"))
    return {
        "input": price.input,
        "output": price.output,
        "cached": price.cached,
        "context": price.context or None,
        "most output": price.most_output or None,
        "date": price.date or None,
    }


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "set" if value else "not set"
    if isinstance(value, int):
        return f"{value:,}"
    return "-" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
