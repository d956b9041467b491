"""RouteMoA as its authors' code runs it, constants and defects included; `keep` mends them one by one."""

from __future__ import annotations

from typing import Any

from weaverant.routing.pooled import Pooled
from weaverant.routing.turns import RouteMoaOptions


class Faithful(Pooled[RouteMoaOptions]):
    """A `Compound`."""

    def __init__(self, pool: Any, options: RouteMoaOptions, router: Any = None) -> None:
        super().__init__("routemoa", pool, options)
