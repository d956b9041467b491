"""What the compounds of a pool have in common: members, identity, and how several answers become one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Generic, TypeVar

import msgspec

from weaverant.agent import Agent
from weaverant.compound import Inside, Served
from weaverant.errors import UserError
from weaverant.message import Reply, Request, Sampling, digest
from weaverant.routing.asking import Asked, Asking, Call, by_prior, plainly, wholly
from weaverant.routing.observed import Observed
from weaverant.routing.pool import Pool, known
from weaverant.routing.prompts import Words, agreed

Options = TypeVar("Options", bound=Asked)


class Pooled(Generic[Options]):
    """A `Compound` whose members are those of a pool, less `refuses`, `agents` and `answer`."""

    def __init__(self, kind: str, pool: Pool, options: Options, *made_of: Any) -> None:
        """`made_of` is what else makes it another than its like."""
        self.kind = kind
        self.pool = pool
        self.options = options
        self.members: dict[str, Served] = pool.members
        self.observed = Observed()
        if options.quorum > (most := self.together()):
            raise UserError(f"{kind}: quorum={options.quorum} is more than the {most} that are ever asked together")
        told = [msgspec.to_builtins(options), pool.told(), by_prior(pool), *made_of]
        self.identity = f"{kind}@{digest(msgspec.msgpack.encode(told, order='deterministic')).hex()[:16]}"

    def together(self) -> int:
        """How many calls there are at the same time, at most."""
        return len(self.members)

    def plan(self) -> list[str]:
        """What a dry run tells of it, in lines."""
        calls = self.options.calls(len(self.members))
        more = "" if self.kind == "routemoa" else " (more where members fail)"
        budget = f", for ${self.options.budget:.4g} at most" if self.options.budget else ""
        routed = self.kind in ("route", "routemoa")
        return [f"at most {calls} call{'s' * (calls > 1)} a request{more}{budget}", *self.pool.plan(routed)]

    def worst(self, request: Request) -> float | None:
        """The most that a call can cost, in dollars, so that a compound with a budget may be the member of another."""
        return self.options.budget or None

    async def close(self) -> None:
        """See `Compound`."""
        await self.pool.close()

    def asking(self, inside: Inside) -> Asking:
        """For one call."""
        return Asking(inside, self.pool, self.observed, self.options)

    def named(self, option: str, name: str, default: str) -> str:
        """The member that an option names; `UserError` where it is none."""
        if name and name not in self.members:
            raise UserError(f"{self.kind}: {option}={name!r} is none of the pool's models: {known(self.members)}")
        return name or default

    def several(self, option: str, names: str) -> list[str]:
        """Those that an option names, joined by commas; all where it names none."""
        found = [self.named(option, name.strip(), "") for name in names.split(",")] if names else list(self.members)
        if "" in found or len(set(found)) < len(found):
            raise UserError(f"{self.kind}: {option}={names!r}: expected different names joined by commas")
        return found


class Merging:
    """How a compound whose members propose comes to one reply."""

    def __init__(
        self, pooled: Pooled[Any], words: Words, aggregator: str, skip: bool, temperature: float | None
    ) -> None:
        """`aggregator` writes the final answer; where it cannot, another does, by what is known beforehand."""
        self._pool = pooled.pool
        self._words = words
        self._skip = skip
        self._temperature = temperature
        others = [name for name in by_prior(pooled.pool) if name != aggregator]
        self.aggregators = [aggregator, *others]

    def refuses(self, kind: str, request: Request, proposers: Sequence[str]) -> str:
        """See `Selective`."""
        if request.tools:
            return (
                f"{kind} asks several models for texts that become one, and no two of them could share this agent's "
                "tools. route:pool.json passes tools on to the one that it chooses"
            )
        plain, whole = plainly(request, self._temperature), wholly(request, self._temperature)
        for names, wanted in ((proposers, plain), (self.aggregators, whole)):
            reasons = {name: self._pool.refuses(name, wanted) for name in names}
            if all(reasons.values()):
                return "; ".join(f"{name}: {why}" for name, why in reasons.items())
        return ""

    def agents(self, request: Request, proposers: Sequence[str]) -> list[Agent]:
        """See `Compound`: who is asked, each as it is asked."""
        plain = plainly(request, self._temperature)
        asked = dict.fromkeys([*proposers, self.aggregators[0]])
        return [as_agent(name, plain.sampling) for name in asked if not self._pool.refuses(name, plain)]

    async def final(self, asking: Asking, request: Request, said: Mapping[str, Reply]) -> Reply:
        """The one reply that these come to; where there are none, that of the first aggregator who has one of its own.
        Where nobody can write it the first of them stands, if a text will do."""
        texts = [self._words.read(reply.text) for reply in said.values()]
        sampling = request.sampling
        free = request.output is None and sampling.n == 1 and not (sampling.logprobs or sampling.top_logprobs)
        if said and self._skip and free and agreed(texts):
            first = next(iter(said.values()))
            return Reply(first.message, finish=first.finish)
        messages = self._words.final(request.messages, texts) if said else self._words.ask(request.messages)
        whole = msgspec.structs.replace(wholly(request, self._temperature), messages=messages)
        calls = [Call(f"{name} (final)", name, whole) for name in self.aggregators]
        found = await asking.one("final", calls)
        chosen = found[1] if found else next(iter(said.values())) if said and free else await asking.insisted(calls)
        if chosen is None:
            raise asking.nobody("write the final answer")
        return Reply(chosen.message, finish=chosen.finish, tokens=chosen.tokens, more=chosen.more)


def as_agent(name: str, sampling: Sampling) -> Agent:
    """A member as it is asked for whole requests, for those who look at a run before its first call."""
    return Agent(
        name,
        model=name,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        max_tokens=sampling.max_tokens,
        stop=sampling.stop,
        logprobs=sampling.logprobs,
        top_logprobs=sampling.top_logprobs,
        n=sampling.n,
        extra=sampling.extra,
    )
