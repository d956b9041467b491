"""Users' functions as steps: what `step` and an agent's tools come to."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec

from weaverant.bytecode import compiled
from weaverant.message import digest
from weaverant.replay import current_loop
from weaverant.step import EffectAsk
from weaverant.trace import plain

_canonical = msgspec.msgpack.Encoder(order="deterministic").encode


async def effect(
    kind: Any, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], place: str = "thread"
) -> Any:
    """Run a user's function outside the workflow and record what it gave. Shared by `step` and the tools."""
    name = getattr(function, "__qualname__", type(function).__qualname__)
    loop = current_loop(f"step({name})")
    arguments = plain([list(args), kwargs], f"an argument of {name}()")
    ask = EffectAsk(kind, name, "", partial(function, *args, **kwargs), arguments, place)
    return await loop.answer(ask, digest(_canonical([kind, name, source_digest(function).hex(), arguments])))


_sources: dict[Any, bytes] = {}


def source_digest(function: Callable[..., Any]) -> bytes:
    """A hash of a function's source, so that an edited function is not answered from an old run's record."""
    if isinstance(function, partial):
        bound = plain([list(function.args), function.keywords], f"an argument bound to {function.func!r}")
        return digest(source_digest(function.func) + _canonical(bound))
    code: Any = getattr(inspect.unwrap(function), "__code__", None)
    written = type(function) if code is None and not inspect.isbuiltin(function) else function
    key = written if code is None else code
    found = _sources.get(key)
    if found is None:
        try:
            text = inspect.getsource(written).encode()
        except (OSError, TypeError):  # built in, or written at a prompt
            text = f"{written.__module__}.{written.__qualname__}".encode()
            text += b"" if code is None else compiled(code)
        found = _sources[key] = digest(text)
    return found
