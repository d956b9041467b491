"""Mixture of agents: `moa:pool.json`, after Wang et al. 2024 (arXiv 2406.04692).

Layers of proposers answer the question, each told what the layer before it said; an aggregator writes the one reply.
With n proposers and L layers that is n(L-1)+1 calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import msgspec
from msgspec import Meta

from weaverant.agent import Agent
from weaverant.compound import Inside
from weaverant.message import Reply, Request
from weaverant.routing.asking import Asked, Asking, Call, by_prior, options_of, plainly
from weaverant.routing.pool import Pool
from weaverant.routing.pooled import Merging, Pooled
from weaverant.routing.prompts import Prompts, words_for


class MoaOptions(Asked, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The options of `moa:FILE?layers=3&aggregator=NAME`."""

    layers: Annotated[int, Meta(ge=1)] = 3
    """With that of the aggregator."""
    proposers: str = ""
    """Names joined by commas; empty: all models of the pool."""
    aggregator: str = ""
    """Who writes the reply; empty: the pool's aggregator, else the model with the highest prior, of equals the
    cheapest."""
    skip: bool = True
    """Ask no aggregator where one answer stands, or all agree; `false` is the paper's plain form."""
    temperature: Annotated[float, Meta(ge=0.0)] | None = 0.7
    """Where the asking agent sets none."""
    prompts: Prompts = "auto"
    """`auto`: those of the small models where every member is an embedded one, else `chat`."""

    def calls(self, members: int) -> int:
        """See `Asked`."""
        proposers = len(self.proposers.split(",")) if self.proposers else members
        return proposers * (self.layers - 1) + 1


def open_moa(spec: str, parts: int = 1) -> Moa:
    """What `moa:` names; `UserError` where that is none. `parts` as for `open_engine`."""
    file, _, options = spec.partition("?")
    wanted = options_of("moa", options, MoaOptions)
    return Moa(Pool.open(file, parts), wanted)


class Moa(Pooled[MoaOptions]):
    """A `Compound`."""

    def __init__(self, pool: Pool, options: MoaOptions = MoaOptions()) -> None:  # noqa: B008
        super().__init__("moa", pool, options)
        self._proposers = self.several("proposers", options.proposers)
        aggregator = self.named("aggregator", options.aggregator, pool.aggregator or by_prior(pool)[0])
        self._words = words_for(options.prompts, self.members)
        self._merging = Merging(self, self._words, aggregator, options.skip, options.temperature)

    def refuses(self, request: Request) -> str:
        """See `Selective`."""
        return self._merging.refuses("moa", request, self._proposers)

    def agents(self, request: Request) -> Sequence[Agent]:
        """See `Compound`."""
        return self._merging.agents(request, self._proposers if self.options.layers > 1 else ())

    async def answer(self, request: Request, inside: Inside) -> Reply:
        """See `Compound`. Who gives no answer is left out of its layer; a layer in which nobody does is left out."""
        asking = self.asking(inside)
        said: dict[str, Reply] = {}
        for layer in range(1, self.options.layers):
            said = await self._layer(asking, request, layer, said) or said
        return await self._merging.final(asking, request, said)

    async def _layer(self, asking: Asking, request: Request, layer: int, said: dict[str, Reply]) -> dict[str, Reply]:
        """What its proposers say to what was said before."""
        asked = self._asked(request, said)
        calls = [Call(name, name, asked) for name in self._proposers]
        admitted = await asking.admit(f"layer {layer}", calls)
        asking.missed |= admitted.refused
        heard = await asking.ask_all(calls, admitted)
        return heard.replies or heard.cut

    def _asked(self, request: Request, said: dict[str, Reply]) -> Request:
        answers = [self._words.read(reply.text) for reply in said.values()]
        messages = self._words.improve(request.messages, answers) if answers else self._words.ask(request.messages)
        return msgspec.structs.replace(plainly(request, self.options.temperature), messages=messages)
