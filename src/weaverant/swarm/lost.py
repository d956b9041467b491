"""What can go wrong between two peers."""

from __future__ import annotations

from weaverant.errors import WeaverantError


class LinkLost(WeaverantError):
    """The other side is gone. Whether it got what was asked is unknown."""


class WrongKey(LinkLost):
    """The other side does not hold the key of this run, or is no peer at all."""


class Refused(WeaverantError):
    """The other side answered an ask with an error. Its text is all that is known."""
