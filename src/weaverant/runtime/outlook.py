"""What a pilot learns from its engines, so that its estimate knows what the whole input may meet."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from weaverant.events import Capacity
from weaverant.message import Request
from weaverant.protocols import Engine


class Outlook:
    """Of the engines that tell: how much room one call needs under a budget, and how much they take at once."""

    def __init__(self, engines: Mapping[str, Engine]) -> None:
        """By the name of the model they are given for."""
        self.bound = 0.0
        """The most that any one call noted so far could have cost, in US dollars."""
        self._engines = engines

    def note(self, engine: Engine, request: Request) -> None:
        """A call begins. See `Priced`."""
        ask: Callable[[Request], float | None] | None = getattr(engine, "worst", None)
        if ask is not None:
            self.bound = max(self.bound, ask(request) or 0.0)

    def capacities(self) -> dict[str, Capacity | None]:
        """See `Sized`; by name, None for an engine that does not tell."""
        found: dict[str, Capacity | None] = {}
        for name, engine in self._engines.items():
            ask: Callable[[], Capacity] | None = getattr(engine, "capacity", None)
            found[name] = None if ask is None else ask()
        return found
