"""Requests to an engine that is made for them, in an event loop of its own."""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import urlencode

from weaverant.engines.http import Pool
from weaverant.message import Reply, Request
from weaverant.protocols import CallContext


def pool(url: str, model: str = "m", **options: Any) -> Pool:
    """Over one address with these options."""
    return Pool([f"{url}{'&' if '?' in url else '?'}{urlencode(options)}#{model}"])


def replies(url: str, *requests: Request, model: str = "m", **options: Any) -> list[Reply]:
    """The replies to requests made one after another."""

    async def main() -> list[Reply]:
        engine = pool(url, model, **options)
        try:
            return [await engine.generate(request, CallContext("0")) for request in requests]
        finally:
            await engine.close()

    return asyncio.run(main())
