"""What became of one request: a reply, or trouble that says whose it is and what may help."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

from msgspec import Struct

from weaverant.errors import StepFailed
from weaverant.message import Reply

Blame = Literal["call", "limit", "server", "network", "nobody"]
"""`call`: this request is refused, and would be anywhere. `limit`: the server is willing, later (429). `server`: it
failed (5xx, a garbled reply, no reply in time). `network`: there is no connection to it, or it broke. `nobody`: it was
never sent, and is to wait, see `HELD`."""


class Trouble(NamedTuple):
    """A request that gave no reply."""

    failure: StepFailed
    blame: Blame
    again: bool = False
    """Whether the same request may succeed another time or elsewhere."""
    billed: bool = False
    """Whether the server may have worked on it, so that it may cost money nobody can tell."""
    retry_after: float | None = None
    """Seconds the server asked everybody to wait."""
    status: int = 0
    """The HTTP status; 0 where none came."""
    page: bool = False
    """What came is a web page."""


HELD = Trouble(StepFailed("held", "nothing may be asked now"), "nobody", again=True)
"""The permit was not given, and nothing was sent."""


class Attempt(Struct, frozen=True):
    """One request's end. `headers` are those of the answer, where there was one."""

    outcome: Reply | Trouble
    headers: Mapping[str, str] = {}
    untold: bool = False
    """The model has a price, and the reply does not say what it used: it may cost more than it seems to."""
