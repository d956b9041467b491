"""One model asked several times, then asked what its answers come to: `self-moa:pool.json`, after Li et al. 2025.

With n samples that is n+1 calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import msgspec
from msgspec import Meta

from weaverant.agent import Agent
from weaverant.compound import Inside
from weaverant.message import Reply, Request
from weaverant.routing.asking import Asked, Call, by_prior, options_of, plainly
from weaverant.routing.pool import Pool
from weaverant.routing.pooled import Merging, Pooled
from weaverant.routing.prompts import Prompts, words_for


class SelfMoaOptions(Asked, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The options of `self-moa:FILE?model=NAME&samples=6`."""

    model: str = ""
    """Who answers; empty: the model with the highest prior, of equals the cheapest."""
    samples: Annotated[int, Meta(ge=1)] = 6
    aggregator: str = ""
    """Who writes the reply; empty: the model itself."""
    skip: bool = True
    """Ask no aggregator where one answer stands, or all agree."""
    temperature: Annotated[float, Meta(ge=0.0)] | None = 0.7
    """Where the asking agent sets none."""
    prompts: Prompts = "auto"
    """`auto`: those of the small models where every member is an embedded one, else `chat`."""

    def calls(self, members: int) -> int:
        """See `Asked`."""
        return self.samples + 1


def open_selfmoa(spec: str, parts: int = 1) -> SelfMoa:
    """What `self-moa:` names; `UserError` where that is none. `parts` as for `open_engine`."""
    file, _, options = spec.partition("?")
    wanted = options_of("self-moa", options, SelfMoaOptions)
    return SelfMoa(Pool.open(file, parts), wanted)


class SelfMoa(Pooled[SelfMoaOptions]):
    """A `Compound`."""

    def __init__(self, pool: Pool, options: SelfMoaOptions = SelfMoaOptions()) -> None:  # noqa: B008
        super().__init__("self-moa", pool, options)
        self._model = self.named("model", options.model, by_prior(pool)[0])
        aggregator = self.named("aggregator", options.aggregator, self._model)
        self._words = words_for(options.prompts, self.members)
        self._merging = Merging(self, self._words, aggregator, options.skip, options.temperature)

    def together(self) -> int:
        """See `Pooled`."""
        return self.options.samples

    def refuses(self, request: Request) -> str:
        """See `Selective`."""
        return self._merging.refuses("self-moa", request, [self._model])

    def agents(self, request: Request) -> Sequence[Agent]:
        """See `Compound`."""
        return self._merging.agents(request, [self._model])

    async def answer(self, request: Request, inside: Inside) -> Reply:
        """See `Compound`. Where the model gives no answer at all the pool's others are asked, one after the other."""
        asking = self.asking(inside)
        plain = plainly(request, self.options.temperature)
        plain = msgspec.structs.replace(plain, messages=self._words.ask(request.messages))
        calls = [Call(f"{self._model} {number}", self._model, plain) for number in range(1, self.options.samples + 1)]
        admitted = await asking.admit("samples", calls)
        asking.missed |= admitted.refused
        heard = await asking.ask_all(calls, admitted)
        return await self._merging.final(asking, request, heard.replies or heard.cut)
