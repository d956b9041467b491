"""Money that was set aside for steps whose end is not recorded: what nobody knows the bill of."""

from __future__ import annotations

from collections.abc import Iterable

from weaverant.events import CostReserved, Event, StepEnded

Reserved = tuple[str, str, bytes, int]
"""A step of a run: task, path, fingerprint, occurrence."""


class Reservations:
    """A fold over `CostReserved` and `StepEnded`."""

    __slots__ = ("open",)

    def __init__(self) -> None:
        self.open: dict[Reserved, dict[str, CostReserved]] = {}
        """By step and claim."""

    def follow(self, events: Iterable[Event]) -> Reservations:
        """See these of one task, or of several, in the order of their journal. Gives itself."""
        for event in events:
            if isinstance(event, CostReserved):
                self.add(event)
            elif isinstance(event, StepEnded):
                self.close(event)
        return self

    def add(self, event: CostReserved) -> None:
        """A later event of the same claim takes the place of an earlier one; one of $0 ends it."""
        key = (event.task, event.path, event.fingerprint, event.occurrence)
        claims = self.open.setdefault(key, {})
        claims[event.claim] = event
        if not event.dollars:
            del claims[event.claim]
            if not claims:
                del self.open[key]

    def close(self, event: StepEnded) -> None:
        """The step has ended: its usage says what it cost, what was set aside included where nobody knows. One that
        an earlier run answered says nothing of requests that were sent before."""
        if self.open and not event.reused:
            self.open.pop((event.task, event.path, event.fingerprint, event.occurrence), None)

    def tasks(self) -> list[str]:
        return list(dict.fromkeys(task for task, *_ in self.open))

    def by_agent(self) -> dict[str, tuple[int, float]]:
        """How many steps, and how many dollars, by agent."""
        found: dict[str, tuple[int, float]] = {}
        for claims in self.open.values():
            name = next(iter(claims.values())).name
            steps, dollars = found.get(name, (0, 0.0))
            found[name] = steps + 1, dollars + sum(event.dollars for event in claims.values())
        return found

    @property
    def dollars(self) -> float:
        return sum(event.dollars for claims in self.open.values() for event in claims.values())
