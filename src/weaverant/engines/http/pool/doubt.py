"""Whether a server that has replied to nobody yet is the wrong one, or the key or the model's name is. That ends a run
and fails no row."""

from __future__ import annotations

import math
import re
import time

from weaverant.engines.http.attempt import Trouble
from weaverant.engines.http.pool.call import Call
from weaverant.engines.http.pool.places import Places
from weaverant.engines.http.pool.replica import Replica

MISDIRECTED = frozenset((401, 403, 404, 405))
"""Statuses that, before the first reply, are the fault of a key, an address or the name of a model; so are redirects
and web pages."""

ABOUT_THE_PROMPT = re.compile("moderat|flagged", re.IGNORECASE)
"""What providers say where they refuse a prompt with 403."""

LOOK_S = 0.05
"""Seconds between two looks at what becomes of the others."""


class Doubt:
    """Of one pool."""

    def __init__(self, places: Places) -> None:
        self._places = places

    def misled(self, trouble: Trouble) -> bool:
        """Whether this is what comes of a wrong key or address, nobody ever having replied."""
        if self._places.replied_at > -math.inf or trouble.status >= 500:
            return False
        astray = trouble.page or trouble.status in MISDIRECTED or 300 <= trouble.status < 400
        return astray and not ABOUT_THE_PROMPT.search(trouble.failure.text)

    async def settle(self, call: Call, trouble: Trouble, replica: Replica) -> None:
        """Return once a reply came, or nothing is in flight any more: a firewall may have taken offence at this one
        prompt, and a refusal is faster than a reply. Nothing else is sent there meanwhile."""
        replicas = self._places.balance.replicas
        why = f"it answered {trouble.status}, and has replied to no call yet"
        while self._places.replied_at == -math.inf and any(other.window.in_flight for other in replicas):
            replica.health.pause(time.monotonic(), 2 * LOOK_S, why)
            await self._places.sleep(call, LOOK_S)
