"""Models behind OpenAI-compatible servers: one client, one server (`endpoint`), many replicas (`pool`)."""

from weaverant.engines.http.address import parse
from weaverant.engines.http.batch.batched import Batched
from weaverant.engines.http.pool.pool import Pool
from weaverant.protocols import Engine

__all__ = ["Batched", "Pool", "open_served"]


def open_served(spec: str, parts: int = 1) -> Engine:
    """The engine for one server's model: asked live, or through the server's batch API. `parts`: see `Pool`."""
    address = parse(spec)
    return Batched(address) if address.options.batch else Pool([spec], parts=parts)
