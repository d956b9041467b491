"""The peers that host what this one does not: a link to each while it is on the roster, and the engines behind it."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from contextlib import suppress

from weaverant.protocols import Engine
from weaverant.step import ModelAsk
from weaverant.swarm.link import Link
from weaverant.swarm.listener import dial
from weaverant.swarm.lost import LinkLost
from weaverant.swarm.messages import Listed
from weaverant.swarm.purses import Till
from weaverant.swarm.travel import AfarEngine

PING = "ping"
PING_S = 1.0
"""Seconds between two questions whether the other side is there."""
DEAF_S = 4.0
"""Seconds without an answer after which a link is given up, whatever TCP makes of it."""


def role(agent: str) -> str:
    """The label of the peers that have this agent as their role."""
    return f"role:{agent}"


class Neighbours:
    """What calls of agents with a place need. `own` are the labels that this peer offers itself, `roles` the agents
    that have peers of their own."""

    def __init__(
        self, name: str, key: bytes, own: Collection[str], roles: Collection[str], engines: Mapping[str, Engine]
    ) -> None:
        self._name = name
        self._key = key
        self._own = frozenset(own)
        self._roles = frozenset(roles)
        self._models = engines
        self._listed: dict[str, Listed] = {}
        """By address."""
        self._links: dict[str, Link] = {}
        self._keeping: dict[str, asyncio.Task[None]] = {}
        self._till = Till()
        self._engines: dict[tuple[str, str], AfarEngine] = {}
        """By label and model."""

    def engine(self, ask: ModelAsk) -> Engine | None:
        """Who makes this call: an engine on other peers, None for this one itself."""
        label = ask.place or (role(ask.name) if ask.name in self._roles else "")
        if not label or label in self._own:
            return None
        found = self._engines.get((label, ask.model))
        if found is None:
            model = self._models.get(ask.model) or self._models["*"]
            name = ask.model if ask.model in self._models else "*"

            def hosts(label: str = label) -> list[Link]:
                return [link for at, link in self._links.items() if label in self._listed[at].labels]

            found = self._engines[label, ask.model] = AfarEngine(model.identity, name, hosts, model, self._till)
        return found

    def update(self, roster: Collection[Listed], myself: int) -> None:
        """These peers there are now."""
        useful = {each.address: each for each in roster if each.epoch != myself and set(each.labels) - self._own}
        for address in [address for address in self._keeping if address not in useful]:
            self._keeping.pop(address).cancel()
            if (link := self._links.pop(address, None)) is not None:
                link.close()
        self._listed = useful
        for address, link in self._links.items():
            link.epoch = useful[address].epoch  # it may have joined again as another
        for address in useful.keys() - self._keeping.keys():
            self._keeping[address] = asyncio.get_running_loop().create_task(self._keep(address))

    def release(self, task: str) -> None:
        """The task has ended: nothing that was said for it is needed again."""
        for link in self._links.values():
            link.release(task)

    async def close(self) -> None:
        tasks = list(self._keeping.values())
        self.update((), -1)
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _keep(self, address: str) -> None:
        """A link there, until cancelled; one that is lost or deaf is made anew."""
        while True:
            try:
                link = await dial(address, self._key, self._name, self._till.serve, DEAF_S)
            except LinkLost:
                await asyncio.sleep(PING_S)
                continue
            self._links[address] = link
            link.epoch = self._listed[address].epoch
            for engine in self._engines.values():
                engine.notify()
            try:
                with suppress(LinkLost, TimeoutError):
                    while True:
                        await link.ask(PING, None, timeout=DEAF_S)
                        await asyncio.sleep(PING_S)
            finally:
                if self._links.get(address) is link:
                    del self._links[address]
                link.close()
