"""A run's events, folded into what its rows took and how fast its calls went."""

from __future__ import annotations

from array import array

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


class Row:
    """What one row of the source took, with all that was made of it."""

    __slots__ = (
        "calls", "clock", "completion_tokens", "cost", "failed", "open", "prompt_tokens", "rejected", "seconds",
    )  # fmt: skip

    def __init__(self) -> None:
        self.open = 0
        """Tasks that have not ended."""
        self.failed = self.rejected = False
        self.clock = 0.0
        """Seconds of its longest task from start to end."""
        self.cost = self.seconds = 0.0
        self.calls = self.prompt_tokens = self.completion_tokens = 0


class Load:
    """Calls of one engine, and the seconds that they took."""

    __slots__ = ("calls", "seconds")

    def __init__(self) -> None:
        self.calls = 0
        self.seconds = 0.0


class Seen:
    """What the events say that it was told of."""

    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}
        self.budget = 0.0
        self.apart = 0.0
        """Dollars of groups."""
        self.dearest = 0.0
        """Dollars of one call."""
        self.bound = 0.0
        """Dollars that one call could have cost at most; 0 where nobody noted it."""
        self.capacities: dict[str, Capacity | None] = {}
        """By the name an engine is given for; empty where nobody noted them, None where the engine does not tell."""
        self._by_model: dict[str, Load] = {}
        self._models: dict[str, str] = {}
        self._ends = array("d")
        self._before = self._opened = self._last = 0.0

    @property
    def ended(self) -> list[Row]:
        return [row for row in self.rows.values() if not row.open]

    @property
    def loads(self) -> dict[str, Load]:
        """By the name an engine is given for: the model's own, or `*`."""
        found: dict[str, Load] = {}
        for model, load in self._by_model.items():
            whole = found.setdefault(model if model in self.capacities else "*", Load())
            whole.calls += load.calls
            whole.seconds += load.seconds
        return found

    @property
    def wall(self) -> float:
        """Seconds from the start of each session to the end of its last call, all of them together."""
        return self._before + self._last - self._opened

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
                self.capacities = event.capacities or self.capacities
            case AgentBound():
                self._models[event.spec] = str(event.agent.get("model", ""))
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

    def _step(self, event: StepEnded) -> None:
        self._last = event.time
        if event.kind != "model" or event.reused:
            return
        self._ends.append(self.wall)
        self.dearest = max(self.dearest, event.usage.cost)
        if "@" in event.task:
            self.apart += event.usage.cost
            return
        seconds = event.clock - event.started
        load = self._by_model.setdefault(self._models.get(event.spec, ""), Load())
        load.calls += 1
        load.seconds += seconds
        row = self.rows[event.task.partition("/")[0]]
        row.calls += 1
        row.seconds += seconds
        row.cost += event.usage.cost
        row.prompt_tokens += event.usage.prompt_tokens
        row.completion_tokens += event.usage.completion_tokens
