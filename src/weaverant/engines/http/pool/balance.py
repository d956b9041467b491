"""The replicas of a pool, and which of them a call goes to.

A session (a task) has two of them, by rendezvous hashing: its prompts share beginnings, which the servers' prefix
caches hold, and a replica that comes or goes moves only its own sessions. The first gets the call unless it is
notably more loaded than the second; where neither has room, any replica that has: none idles while calls wait. While
they do, a replica with room gets, of the next few calls, one that is at home there.
"""

from __future__ import annotations

import math
import random
from zlib import crc32

from weaverant.engines.http.pool.call import Call
from weaverant.engines.http.pool.replica import Replica

NOTABLY = 1.6
"""How much more loaded the first of the two must be."""

IDLE_LOAD = 0.25
"""Added to every load: a few calls in an empty window are no reason to leave a warm cache."""

SLOWER = 1.6
"""How much slower counts as slower: replies differ in length, so latencies do as well."""

SLOWEST = 4.0
"""A replica counts as at most so many times slower than the other, so that it still gets calls to prove itself."""

SLACK_S = 0.1
"""Added to every latency: a few milliseconds are no reason to leave a warm cache."""

MOST_SESSIONS = 50_000
"""Sessions whose two replicas are remembered."""


class Balance:
    """The replicas, and which of them a call goes to."""

    def __init__(self) -> None:
        self.replicas: list[Replica] = []
        self._homes: dict[str, tuple[Replica, Replica]] = {}

    def add(self, replica: Replica) -> None:
        self.replicas.append(replica)
        self._homes.clear()

    def remove(self, replica: Replica) -> None:
        self.replicas.remove(replica)
        self._homes.clear()

    def choose(self, call: Call, now: float) -> Replica | None:
        """The replica for the call; None where none has room for it now."""
        replicas = self.replicas
        if len(replicas) == 1:
            only = replicas[0]
            return only if only.ready(call, now) else None
        if replicas and not call.tried:
            first, second = self._two(call.ctx.task)
            if first.ready(call, now):
                return second if _worth_leaving(first, second, now) and second.ready(call, now) else first
            if second.ready(call, now):
                return second
        ready = [replica for replica in replicas if replica.ready(call, now)]
        return self._least(call, ready) if ready else None

    def other(self, call: Call, taken: Replica, now: float) -> Replica | None:
        """The least loaded replica with room, but for `taken`."""
        ready = [each for each in self.replicas if each is not taken and each.ready(call, now)]
        return self._least(call, ready) if ready else None

    def untried(self, call: Call, now: float) -> bool:
        """Whether a replica has room now that has not failed the call."""
        return any(each not in call.tried and each.ready(call, now) for each in self.replicas)

    def soonest(self, now: float) -> float:
        """Seconds until a replica is neither paused nor out; inf where only a probe under way will tell."""
        return min((replica.health.wait(now) for replica in self.replicas), default=math.inf)

    def wait(self, call: Call, now: float) -> float:
        """Seconds until a replica may have room for the call; inf where only the end of a request will tell."""
        return min((replica.wait(call, now) for replica in self.replicas), default=math.inf)

    def at_home(self, call: Call, replica: Replica) -> bool:
        """Whether it is the first of the call's two."""
        session = call.ctx.task
        return bool(session) and self._two(session)[0] is replica

    @property
    def answered(self) -> bool:
        """Whether any has ever answered."""
        return any(replica.health.answered for replica in self.replicas)

    def _least(self, call: Call, ready: list[Replica]) -> Replica:
        return min(ready, key=lambda each: (each in call.tried, each.load()))

    def _two(self, session: str) -> tuple[Replica, Replica]:
        if not session:
            first, second = random.sample(self.replicas, 2)
            return first, second
        homes = self._homes.get(session)
        if homes is None:
            if len(self._homes) >= MOST_SESSIONS:
                self._homes.clear()
            key = crc32(session.encode(errors="replace"))
            first, second = sorted(self.replicas, key=lambda each: _rank(key, each.salt))[:2]
            homes = self._homes[session] = (first, second)
        return homes


def _worth_leaving(first: Replica, second: Replica, now: float) -> bool:
    one, other = first.latency(now), second.latency(now)
    slower = min(SLOWEST, max(1.0, (one + SLACK_S) / (other + SLACK_S) / SLOWER)) if one and other else 1.0
    return (first.load() + IDLE_LOAD) * slower > NOTABLY * (second.load() + IDLE_LOAD)


def _rank(key: int, salt: int) -> int:
    """A hash of both. CRCs are linear, so they are mixed (the finaliser of splitmix64)."""
    mixed = ((key << 32 | salt) * 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
    mixed = ((mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    mixed = ((mixed ^ mixed >> 27) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return mixed ^ mixed >> 31
