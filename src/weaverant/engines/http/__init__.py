"""Models behind OpenAI-compatible servers: one client, one server (`endpoint`), many replicas (`pool`)."""

from weaverant.engines.http.pool import Pool

__all__ = ["Pool"]
