"""Calls that wait for a place: fair between agents, the oldest row of an agent first.

Start-time fair queueing (Goyal, Vin, Cheng: SIGCOMM 1996), by the time that calls hold a place: an agent's clock
advances by what its calls take, and the agent whose clock shows least goes first. One that was away starts at the
clock of the call served last, so it can neither save up turns nor be made to pay for a quiet hour. What a call will
take is not known when it begins: the agent's mean is charged, and put right when it ends.
"""

from __future__ import annotations

import asyncio
from heapq import heapify, heappop, heappush, heapreplace
from typing import Any, NamedTuple

from weaverant.engines.http.pool.call import Call

MOST_AGENTS = 1_000
"""Clocks kept of agents that have nothing to do."""


class Entry(NamedTuple):
    """One wait of a call, in the order in which an agent's calls are served. The future is the wait's own: once it is
    over the call may wait again, for something else, while this entry is still there."""

    again: int
    order: int
    number: int
    call: Call
    future: asyncio.Future[Any]

    @property
    def over(self) -> bool:
        return self.future.done()


class Agent:
    """One agent's clock and its waiting calls."""

    __slots__ = ("calls", "clock", "mean", "running", "stamp")

    def __init__(self, clock: float) -> None:
        self.clock = clock
        self.mean = 0.0
        self.running = 0
        self.calls: list[Entry] = []
        self.stamp = 0
        """Of its turn in the queue; an older turn of the same agent counts no more."""


class Queue:
    """Calls whose future is done are left out; whoever made it so says so: `gone`."""

    def __init__(self) -> None:
        self._agents: dict[str, Agent] = {}
        self._turns: list[tuple[float, int, Agent]] = []
        self._clock = 0.0
        self._count = 0
        self._gone = 0
        self.size = 0
        """How many wait."""

    def push(self, call: Call) -> None:
        """A call waits from now on, for its future; one that has been sent before goes before those that have not."""
        assert call.future is not None
        agent = self._agent(call.agent)
        self._count += 1
        heappush(agent.calls, Entry(0 if call.requests else 1, call.ctx.order, self._count, call, call.future))
        self.size += 1
        if len(agent.calls) == 1:
            self._line_up(agent)

    def head(self) -> Call | None:
        """The call whose turn it is; it stays."""
        turns = self._turns
        while turns:
            clock, stamp, agent = turns[0]
            calls = agent.calls
            while calls and calls[0].over:
                heappop(calls)
                self._gone -= 1
            if stamp != agent.stamp or not calls:
                heappop(turns)
            elif clock < agent.clock:
                self._count += 1
                agent.stamp = self._count
                heapreplace(turns, (agent.clock, agent.stamp, agent))
            else:
                return calls[0].call
        return None

    def next(self, most: int) -> list[Call]:
        """Some of the calls whose turn is soon, of the same agent as the head's, roughly in order; after `head`."""
        return [entry.call for entry in self._turns[0][2].calls[1:most] if not entry.over]

    def pop(self) -> None:
        """The head leaves; at once after `head`."""
        heappop(self._turns[0][2].calls)
        self.size -= 1

    def gone(self) -> None:
        """A call that waited is to be left out: cancelled, or failed."""
        self.size -= 1
        self._gone += 1
        if self._gone > 64 and self._gone > self.size:
            for agent in self._agents.values():
                agent.calls = [entry for entry in agent.calls if not entry.over]
                heapify(agent.calls)
            self._gone = 0

    def waiting(self) -> list[Call]:
        """All that wait, in no order."""
        return [entry.call for agent in self._agents.values() for entry in agent.calls if not entry.over]

    def begin(self, name: str) -> float:
        """A call of the agent got a place. What is returned is to be given to `end`."""
        agent = self._agents.get(name) or self._agent(name)
        if agent.clock > self._clock:
            self._clock = agent.clock
        elif not agent.running and not agent.calls:
            agent.clock = self._clock
        agent.running += 1
        agent.clock += agent.mean
        return agent.mean

    def end(self, name: str, charged: float, seconds: float) -> None:
        """The call gave its place back after so many seconds."""
        agent = self._agents[name]
        agent.running -= 1
        agent.clock += seconds - charged
        agent.mean = 0.9 * agent.mean + 0.1 * seconds if agent.mean else seconds
        if agent.calls and seconds < charged:
            self._line_up(agent)

    def _agent(self, name: str) -> Agent:
        agent = self._agents.get(name)
        if agent is None:
            if len(self._agents) >= MOST_AGENTS:
                self._agents = {n: a for n, a in self._agents.items() if a.calls or a.running}
            agent = self._agents[name] = Agent(self._clock)
        elif not agent.calls and not agent.running and agent.clock < self._clock:
            agent.clock = self._clock
        return agent

    def _line_up(self, agent: Agent) -> None:
        self._count += 1
        agent.stamp = self._count
        heappush(self._turns, (agent.clock, agent.stamp, agent))
        if len(self._turns) > 64 + 4 * len(self._agents):
            self._turns = [turn for turn in self._turns if turn[1] == turn[2].stamp]
            heapify(self._turns)
