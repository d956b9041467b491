"""A run's events, folded into what its rows took and how fast its calls went."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from typing import NamedTuple

from weaverant.events import (
    AgentBound,
    Capacity,
    Event,
    RunClosed,
    RunOpened,
    StepEnded,
    TaskEnded,
    TaskReopened,
    TaskStarted,
)


class Kept(NamedTuple):
    """A call that an earlier run (`reused`) or a cache answered for nothing."""

    fingerprint: bytes
    model: str
    """The name its engine is given for."""
    prompt_tokens: int
    completion_tokens: int
    reused: bool


class Row:
    """What one trial of a row of the source took, with all that was made of it."""

    __slots__ = (
        "by_hour", "calls", "clock", "completion_tokens", "cost", "digest", "failed", "kept", "open", "prompt_tokens",
        "rejected", "seconds",
    )  # fmt: skip

    def __init__(self) -> None:
        self.open = 0
        """Tasks that have not ended."""
        self.digest = b""
        self.failed = self.rejected = False
        self.clock = 0.0
        """Seconds of its longest task from start to end."""
        self.cost = self.by_hour = self.seconds = 0.0
        """`by_hour` is the part of the cost that is for servers' time."""
        self.calls = self.prompt_tokens = self.completion_tokens = 0
        self.kept: tuple[Kept, ...] = ()
        """Calls that are in none of the sums."""


class Load:
    """Calls of one engine, and the seconds that they took."""

    __slots__ = ("calls", "seconds")

    def __init__(self) -> None:
        self.calls = 0
        self.seconds = 0.0


class Seen:
    """What the events say that it was told of."""

    def __init__(self, capacities: Mapping[str, Capacity | None], identities: Mapping[str, str]) -> None:
        """`capacities` by the name an engine is given for: empty where nobody noted them, None where the engine does
        not tell. `identities`: what answers, by the same names."""
        self.rows: dict[str, Row] = {}
        self.budget = 0.0
        self.apart = 0.0
        """Dollars of groups."""
        self.dearest = 0.0
        """Dollars of one call."""
        self.bound = 0.0
        """Dollars that one call could have cost at most; 0 where nobody noted it."""
        self.capacities = capacities
        self.loads: dict[str, Load] = {}
        """By the name an engine is given for: the model's own, or `*`."""
        self.asked: set[str] = set()
        """The names of engines whose calls are in some row, those that were answered without them included."""
        self._identities = identities
        self._models: dict[str, str] = {}
        self._ends = array("d")
        self._before = self._opened = self._last = 0.0

    @property
    def ended(self) -> dict[str, Row]:
        return {key: row for key, row in self.rows.items() if not row.open}

    @property
    def hourly(self) -> float:
        """Dollars an hour of all servers that are needed and are paid by the hour."""
        return sum(map(self.hourly_of, self.asked))

    @property
    def latency(self) -> float:
        """Seconds of a call, on average."""
        calls = sum(load.calls for load in self.loads.values())
        return sum(load.seconds for load in self.loads.values()) / calls if calls else 0.0

    @property
    def wall(self) -> float:
        """Seconds from the start of each session to the end of its last call, all of them together."""
        return self._before + self._last - self._opened

    def hourly_of(self, model: str) -> float:
        told = self.capacities.get(model)
        return 0.0 if told is None else told.hourly

    def free(self, model: str) -> bool:
        """Whether it is one that runs in this process, which takes no request and costs nothing."""
        return self._identities.get(model, "").startswith("embedded:")

    def pace(self, since: float) -> float:
        """Calls a second from that share of the wall time on."""
        wall = self.wall
        return sum(end >= since * wall for end in self._ends) / ((1 - since) * wall) if wall > 0 else 0.0

    def see(self, event: Event) -> None:
        match event:
            case RunOpened():
                self._before = self.wall
                self._opened = self._last = event.time
                self.budget = event.budget
            case RunClosed():
                self.bound = max(self.bound, event.bound)
            case AgentBound():
                model = str(event.agent.get("model", ""))
                self._models[event.spec] = model if model in self._identities else "*"
            case StepEnded():
                self._step(event)
            case TaskStarted() | TaskEnded() | TaskReopened():
                if "@" not in event.task:
                    self._task(event)
            case _:
                pass

    def _task(self, event: TaskStarted | TaskEnded | TaskReopened) -> None:
        row = self.rows.setdefault(event.task.partition("/")[0], Row())
        row.open += -1 if isinstance(event, TaskEnded) else 1
        if isinstance(event, TaskEnded):
            row.failed |= event.state == "failed"
            row.rejected |= event.state == "rejected"
            row.clock = max(row.clock, event.clock)
        elif isinstance(event, TaskReopened):
            row.failed = False
        elif not event.stage:
            row.digest = event.digest

    def _step(self, event: StepEnded) -> None:
        self._last = event.time
        if event.kind != "model" or event.inside:
            return
        model, usage = self._models.get(event.spec, "*"), event.usage
        kept = event.reused or self._from_cache(event, model)
        self.dearest = max(self.dearest, usage.cost)
        if "@" in event.task:
            self.apart += usage.cost
            if not kept:
                self._ends.append(self.wall)
            return
        self.asked.add(model)
        row = self.rows[event.task.partition("/")[0]]
        if kept:
            tokens = (usage.prompt_tokens, usage.completion_tokens)
            row.kept += (Kept(event.fingerprint, model, *tokens, event.reused),)
        else:
            self._took(row, event, model)

    def _took(self, row: Row, event: StepEnded, model: str) -> None:
        seconds, usage = event.clock - event.started, event.usage
        self._ends.append(self.wall)
        load = self.loads.setdefault(model if model in self.capacities else "*", Load())
        load.calls += 1
        load.seconds += seconds
        row.calls += 1
        row.seconds += seconds
        row.cost += usage.cost
        row.by_hour += usage.cost if self.hourly_of(model) else 0.0
        row.prompt_tokens += usage.prompt_tokens
        row.completion_tokens += usage.completion_tokens

    def _from_cache(self, event: StepEnded, model: str) -> bool:
        """Whether a reply cost no request. A model in this process takes none either."""
        usage = event.usage
        asked = usage.requests or usage.cost or event.outcome != "reply"
        return not asked and not self.free(model)
