"""What peers, the office and the driver of a run say to each other: plain data, and none of it a secret."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from weaverant.events import NO_USAGE, Shortfall
from weaverant.message import Usage
from weaverant.protocols import Note
from weaverant.swarm.terms import Cut, Holding, Orders

JOIN, BEAT, LEAVE, PULSE = "join", "beat", "leave", "pulse"
"""What peers ask of the office."""
STATUS, STOP, DIED, END = "status", "stop", "died", "end"
"""What the driver asks of the office."""
LOOK = "look"
"""What anybody asks of it who only looks: answered as `STATUS`, and no sign of life of the driver."""


class StageTold(Struct, frozen=True, array_like=True):
    """The ledger of one stage, as `runtime.ledger.StageCounts`."""

    rows: int
    done: int
    nulls: int
    rejected: dict[str, int]
    failed: dict[str, int]


class Counts(Struct, frozen=True, array_like=True):
    """What a peer has done so far, and what it is at."""

    stages: list[StageTold]
    calls: int = 0
    usage: Usage = NO_USAGE
    rows_in_flight: int = 0
    calls_in_flight: int = 0
    sent: int = 0
    """Those of its calls that wait for nothing any more inside their engine."""
    notes: list[Note] = []
    cut: int = 0


class Money(Struct, frozen=True, array_like=True):
    """What a peer tells of its money, in US dollars. Of several that come, the one with the highest `serial` holds."""

    serial: int
    have: float
    """Its allowance: the most that it has spent and set aside together, durably."""
    floor: float = 0.0
    """What of it will not come free again."""
    need: float = 0.0
    """What it lacks for the call that has waited longest; 0: no call waits."""
    least: float = 0.0
    """All that this call asks for."""
    wants: float = 0.0
    """All that its waiting calls ask for."""
    waiting: Shortfall | None = None


class Given(Struct, frozen=True, array_like=True):
    """A peer's `allowance` from now on, never less than it told. `recall`: others need what it does not need itself,
    and what it has for calls in flight beyond its `part`, in US dollars, once that comes free."""

    allowance: float
    recall: bool = False
    part: float = 0.0


class Join(Struct, frozen=True, array_like=True):
    """A peer begins, or comes to a new office with what it holds. `address` is where other peers reach it."""

    epoch: int
    host: str
    pid: int
    address: str
    labels: tuple[str, ...]
    holdings: list[Holding]
    money: Money | None = None


class Joined(Struct, frozen=True, array_like=True):
    """`lease`: seconds after which an unheard peer is given up. `share`: how many peers the run's limits are for."""

    lease: float
    share: int
    limits: dict[str, Any]
    roles: tuple[str, ...] = ()
    """Agents each of which has peers of its own: a label with the name of its own place."""
    budget: float = 0.0
    """The run's cap, in US dollars; 0: none. Infinite: none, and an earlier session had one."""
    models: dict[str, str] = {}
    """Specs by name, and where the rows are: what this session was given; none: as `run.json` says."""
    input: str = ""


class Beat(Struct, frozen=True, array_like=True):
    """A peer lives: it could take so many tasks more, and holds these leases. `done` are leases that are whole, with
    where they ended; `cuts` answer what the office asked for."""

    epoch: int
    wants: int
    holdings: list[Holding]
    done: list[tuple[int, int]]
    cuts: list[Cut]
    source_rows: int | None
    counts: Counts
    roster: int = 0
    """The version of the roster that it knows."""
    money: Money | None = None


class Listed(Struct, frozen=True, array_like=True):
    """A peer, as the others see it."""

    epoch: int
    address: str
    labels: tuple[str, ...]


class Stop(Struct, frozen=True, array_like=True):
    """All are to stop. `grace` is in seconds, None for the limits' own; `hurry` counts the times that calls in flight
    got less of it."""

    state: str
    grace: float | None = None
    hurry: int = 1
    why: str = ""
    short: Shortfall | None = None
    """Of a stop for money: what it lacked."""
    misdirected: bool = False
    """Of a stop for a server: the key or the address is wrong, as it seems."""

    @property
    def patience(self) -> float:
        """To compare stops by: the limits' own grace is neither none nor endless."""
        return 1.0 if self.grace is None else self.grace


class Answer(Struct, frozen=True, array_like=True):
    """What the office says to a beat. `roster` is there where another is in force than the peer knows."""

    orders: Orders
    stop: Stop | None
    version: int
    roster: list[Listed] | None
    money: Given | None = None


class Leave(Struct, frozen=True, array_like=True):
    """A peer's journal is closed, and its home fenced: `state` is why it stopped. `misdirected`: as of a `Stop`."""

    epoch: int
    state: str
    why: str
    counts: Counts
    misdirected: bool = False


class Member(Struct, frozen=True, array_like=True):
    """A peer for people. `state` is `working`, or why it is gone."""

    epoch: int
    host: str
    pid: int
    labels: tuple[str, ...]
    state: str
    counts: Counts
    why: str = ""


class Status(Struct, frozen=True, array_like=True):
    """The run as the office sees it. `working` peers have joined and not left, or are to join it again: they live, as
    far as anybody knows."""

    working: int
    finished: bool
    total: int | None
    ended: int
    stop: Stop | None
    members: list[Member]
    generation: int
    unheard: float = 0.0
    """Seconds since the driver was heard."""
    begun: bool = False
    """No row is left that could begin."""
