"""How much at once, and when to give up. All bounds of a run are here."""

from __future__ import annotations

import math

import msgspec

from weaverant.errors import UserError


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Every field is a bound that a user may set."""

    concurrency: int = 1024
    """Calls in flight at once for each model, waiting for a place at its server included. The oldest rows go first."""
    in_flight: int | None = None
    """Rows in flight at once; None means four for each call in flight, and at least 64."""
    threads: int = 16
    """`step` functions and tools that run at once, those apart that were given up and cannot be ended."""
    grace: float = 30.0
    """Seconds that calls in flight are given to finish when a run is stopped."""
    max_failures: float = 0.5
    """The error fuse: the share of failed rows that stops the run (`Fuse`); 1 never does."""
    fuse_after: int = 50
    """Rows from the session's first on that the fuse looks at, and twice as many, and so on."""
    budget: float = 0.0
    """US dollars that all sessions of the run may cost together; 0 is no bound."""

    def __post_init__(self) -> None:
        for name in ("concurrency", "threads", "fuse_after"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, found {getattr(self, name)}")
        if not 0 < self.max_failures <= 1:
            raise UserError(f"max_failures is a share, above 0 and at most 1; found {self.max_failures}")
        if self.in_flight is not None and self.in_flight < 1:
            raise UserError(f"in_flight must be at least 1, found {self.in_flight}; left out it is four for each call")
        if not self.grace >= 0:
            raise UserError(f"grace is a number of seconds, not negative; found {self.grace}")
        if not 0 <= self.budget < math.inf:
            raise UserError(f"budget is an amount of US dollars, above 0, or 0 for none; found {self.budget}")

    @property
    def tasks(self) -> int:
        return self.in_flight or max(64, 4 * self.concurrency)
