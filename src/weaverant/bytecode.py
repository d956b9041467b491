"""Code without its source: what is hashed of a function that was written at a prompt."""

from __future__ import annotations

from types import CodeType
from typing import cast


def compiled(code: object) -> bytes:
    """A constant, or code with its constants, without addresses and in an order that hashing does not change."""
    if isinstance(code, CodeType):
        return b"".join((code.co_code, repr(code.co_names).encode(), *map(compiled, code.co_consts)))
    if isinstance(code, frozenset):
        return b"".join(sorted(map(compiled, cast("frozenset[object]", code))))
    return repr(code).encode()
