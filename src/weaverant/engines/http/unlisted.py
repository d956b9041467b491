"""A hosted model whose name is not in the packaged price list: perhaps new, more often a slip of the pen."""

from __future__ import annotations

from difflib import get_close_matches

from weaverant.engines.http.address import Address, parse
from weaverant.engines.http.money.prices import tables
from weaverant.engines.http.pool.roster import split
from weaverant.engines.http.presets import preset_at


def unlisted(spec: str) -> list[str]:
    """One line for each model of the spec's servers that its provider's list lacks. Nothing is asked."""
    addresses = map(parse, split(spec.strip().removeprefix("pool:")) or ())
    return list(dict.fromkeys(filter(None, map(_doubt, addresses))))


def _doubt(address: Address) -> str:
    provider, model = preset_at(address.host).name, address.model
    table = tables().get(provider)
    if table is None or not model or model in table.models:
        return ""
    near = get_close_matches(model, table.models, 1)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    price = "" if address.options.price else " Its price is unknown"
    return f"{provider} lists no {model!r} (prices of {table.date}){hint}{price}"
