"""The models that a compound chooses among: `pool.json`.

    {"models": {"small": "http://HOST:8000/v1#NAME",
                "large": {"model": "openai:gpt-5-mini", "context": 400000, "tools": true,
                          "modalities": ["text", "image"], "price": [0.25, 2.0], "prior": 0.8, "like": "OTHER"}},
     "router": "FOLDER", "aggregator": "large"}

Only `models` is required. A SPEC is what `--model` takes; files and folders that are not absolute are looked up beside
`pool.json`. The order of the names means nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Set
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import msgspec
from msgspec import Meta

from weaverant.compound import Served, is_compound
from weaverant.engines import open_engine
from weaverant.errors import UserError
from weaverant.message import ImagePart, Message, Request, Sampling, Usage, user
from weaverant.routing.specs import beside, is_batched, says_price, with_price

Modality = Literal["text", "image"]
_Dollars = Annotated[float, Meta(ge=0.0)]

PRIOR = 0.5
"""The chance of being right of whom nobody knows anything."""

BYTES_A_TOKEN = 4
"""Of English text. An estimate, for prompts that nobody has counted."""


class Card(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is known of a member beforehand."""

    model: str
    """Its spec, as for `--model`."""
    context: Annotated[int, Meta(gt=0)] | None = None
    """Tokens of prompt and reply together; None: its server will tell."""
    tools: bool | None = None
    """Whether it can call tools; None: where its engine does not refuse them."""
    modalities: frozenset[Modality] | None = None
    """What it can read; None: what its engine does not refuse."""
    price: tuple[_Dollars, _Dollars] | None = None
    """US dollars for a million tokens of prompt and of reply, as if it stood in the member's address, unless that has
    one; None: what its engine says."""
    prior: Annotated[float, Meta(ge=0.0, le=1.0)] | None = None
    """The chance that it is right, where no router knows it."""
    like: str = ""
    """Another name that the router knows, whose score it takes until it has its own."""


class PoolFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    models: dict[str, str | Card]
    router: str = ""
    """A folder that `weaverant route train` made."""
    aggregator: str = ""
    """Who writes the final answer, where the compound's options name nobody."""


EXPECTED = (
    '{"models": {NAME: SPEC or {"model": SPEC, "context": TOKENS, "tools": true, "modalities": ["text", "image"], '
    '"price": [IN, OUT], "prior": P, "like": NAME}, ...}, "router": FOLDER, "aggregator": NAME}'
)


class Pool:
    """The members that a `pool.json` names, opened."""

    def __init__(
        self,
        members: Mapping[str, Served],
        cards: Mapping[str, Card] | None = None,
        router: Path | None = None,
        aggregator: str = "",
        billed: Set[str] = frozenset(),
        scored: Set[str] = frozenset(),
    ) -> None:
        """Of members opened by others, who need no cards. `billed` are those whose replies say what they cost, `scored`
        those whom the router knows, by name or as `like`."""
        given = cards or {}
        self.members: dict[str, Served] = {name: members[name] for name in sorted(members)}
        """By name, in the order of the names."""
        self.cards: dict[str, Card] = {name: given.get(name) or Card("") for name in self.members}
        self.router = router
        """The folder of the router, if the file names one."""
        self.aggregator = aggregator
        self.batched = frozenset(name for name, card in self.cards.items() if is_batched(card.model))
        """Those whose replies come in batches, hours later."""
        self._billed = billed
        self._scored = scored
        self._prices: dict[str, tuple[float, float] | None] = {}

    @classmethod
    def open(cls, file: str | Path, parts: int = 1) -> Pool:
        """Opens all members, one engine for equal specs. `UserError` where the file, a name or a spec cannot be meant.
        `parts` as for `open_engine`."""
        path = Path(file).expanduser()
        found = _read(path)
        cards = {name: Card(one) if isinstance(one, str) else one for name, one in found.models.items()}
        _check(found, cards, path)
        router = path.parent / Path(found.router).expanduser() if found.router else None
        scored = _check_router(router, cards, path)
        resolved = path.resolve()
        if resolved in _opening:
            raise UserError(f"the pool {str(path)!r} names itself as one of its models")
        _opening.append(resolved)
        try:
            specs = {name: beside(path.parent, card.model) for name, card in cards.items()}
            billed: set[str] = set()
            for name, card in cards.items():
                if card.price is None:
                    continue
                if says_price(specs[name]):
                    cards[name] = msgspec.structs.replace(card, price=None)
                elif priced := with_price(specs[name], card.price):
                    specs[name] = priced
                    billed.add(name)
            engines = {spec: open_engine(spec, parts) for spec in dict.fromkeys(specs[name] for name in sorted(specs))}
        finally:
            _opening.pop()
        return cls(
            {name: engines[spec] for name, spec in specs.items()}, cards, router, found.aggregator, billed, scored
        )

    def told(self) -> Any:
        """What makes it another pool, as plain data without paths: identities, and what the cards say."""
        cards = {name: msgspec.structs.replace(card, model="") for name, card in self.cards.items()}
        identities = {name: member.identity for name, member in self.members.items()}
        said = {name: msgspec.to_builtins(card, order="deterministic") for name, card in cards.items()}
        return [identities, said, self.aggregator]

    def prior(self, name: str) -> float:
        """The chance that it is right, where no router says more."""
        prior = self.cards[name].prior
        return PRIOR if prior is None else prior

    def refuses(self, name: str, request: Request) -> str:
        """Why it cannot answer that request, if it has messages those too; empty where it can, as far as is known."""
        card = self.cards[name]
        if request.tools and card.tools is False:
            return "it calls no tools"
        if card.modalities is not None and "image" not in card.modalities and any(map(_has_image, request.messages)):
            return "it reads no images"
        needed = prompt_tokens(request.messages) + (request.sampling.max_tokens or 0)
        if card.context is not None and needed > card.context:
            return f"about {needed:,} tokens are more than its {card.context:,}"
        ask: Callable[[Request], str] | None = getattr(self.members[name], "refuses", None)
        return "" if ask is None else ask(request)

    def price(self, name: str) -> tuple[float, float] | None:
        """US dollars for a token of prompt and of reply; None where nobody says. What cannot cost anything costs 0."""
        if name not in self._prices:
            given = self.cards[name].price
            self._prices[name] = _asked_price(self.members[name]) if given is None else (given[0] / 1e6, given[1] / 1e6)
        return self._prices[name]

    def plan(self, routed: bool) -> list[str]:
        """The members with their prices, and what the router says of them where one is asked, for people."""
        lines = [f"member {name}: {member.identity}, {self._cost(name)}" for name, member in self.members.items()]
        if not routed:
            return lines
        others = [name for name in self.members if name not in self._scored]
        told = f"; by their cards' priors: {', '.join(others)}" if others else ""
        if self.router is None:
            return [*lines, f"no router{told}"]
        return [*lines, f"router {self.router}: scores {', '.join(sorted(self._scored))}{told}"]

    def _cost(self, name: str) -> str:
        price = self.price(name)
        if price is None:
            return "a price of its members" if is_compound(self.members[name]) else "price unknown"
        return f"${price[0] * 1e6:.4g} and ${price[1] * 1e6:.4g} a million tokens in and out" if any(price) else "free"

    def unbilled(self, name: str, usage: Usage) -> float:
        """US dollars that a call took by its card's price, where nothing else says what its replies cost."""
        price = self.cards[name].price
        if price is None or name in self._billed or usage.cost or not usage.requests:
            return 0.0
        return (usage.prompt_tokens * price[0] + usage.completion_tokens * price[1]) / 1e6

    def worst(self, name: str, request: Request) -> float | None:
        """The most that one such request can cost, in dollars; None where nobody can say."""
        member = self.members[name]
        ask: Callable[[Request], float | None] | None = getattr(member, "worst", None)
        bound = None if ask is None else ask(request)
        if bound is not None:
            return bound
        price, limit = self.price(name), request.sampling.max_tokens
        if price == (0.0, 0.0):
            return 0.0
        if self.cards[name].price is None or price is None or limit is None:
            return None
        bytes_ = sum(len(message.text.encode()) + _AROUND for message in request.messages)
        return bytes_ * price[0] + limit * max(1, request.sampling.n) * price[1]

    async def close(self) -> None:
        """Close the members, each once."""
        for member in {id(member): member for member in self.members.values()}.values():
            await member.close()


def prompt_tokens(messages: tuple[Message, ...]) -> int:
    """About how many tokens these are."""
    return sum(len(message.text.encode()) for message in messages) // BYTES_A_TOKEN + 4 * len(messages)


_AROUND = 32
"""Bytes that a chat template may put around a message, at most."""

_opening: list[Path] = []
"""Pools that are being opened right now: one may be behind a member of another, and never of itself."""


def _read(path: Path) -> PoolFile:
    try:
        text = path.read_bytes()
        found = msgspec.json.decode(text, type=PoolFile)
        json.loads(text, object_pairs_hook=_once)
        return found
    except OSError as error:
        raise UserError(f"the pool {str(path)!r} cannot be read: {error.strerror}") from None
    except (msgspec.DecodeError, ValueError) as error:
        raise UserError(f"the pool {str(path)!r}: {error}. Expected {EXPECTED}") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(name for n, (name, _) in enumerate(pairs) if name in [other for other, _ in pairs[:n]])
        raise ValueError(f"{twice!r} is named twice")
    return found


def _check(found: PoolFile, cards: Mapping[str, Card], path: Path) -> None:
    where = f"the pool {str(path)!r}"
    if not cards:
        raise UserError(f"{where} has no models. Expected {EXPECTED}")
    for name in cards:
        if not name.strip() or "/" in name:
            raise UserError(f"{where}: a model is called {name!r}; expected a name without '/'")
    if found.aggregator and found.aggregator not in cards:
        raise UserError(f"{where}: the aggregator {found.aggregator!r} is none of its models: {known(cards)}")


class _Router(msgspec.Struct):
    """What is looked at of a router's `router.json`."""

    models: list[str]


def _check_router(router: Path | None, cards: Mapping[str, Card], path: Path) -> frozenset[str]:
    """Whom the router knows. Its scores go by names, so one that knows nobody is refused. Whether it is there at all is
    the business of whoever asks it."""
    where = f"the pool {str(path)!r}"
    if router is None:
        if like := [name for name, card in cards.items() if card.like]:
            raise UserError(
                f"{where}: the model {like[0]!r} is said to be like {cards[like[0]].like!r}, which only a router can "
                'know, and the pool has none. Expected "router": FOLDER, or "prior" in place of "like"'
            )
        return frozenset()
    from weaverant.routing.folder import FACTS, read_facts  # deferred: few pools have a router

    if not (router / FACTS).exists():
        return frozenset()
    models = read_facts(router, _Router).models
    scored = frozenset(name for name, card in cards.items() if name in models or card.like in models)
    if not scored:
        raise UserError(
            f"{where}: none of its models is known to its router, by name or as `like`: {known(cards)}. The router "
            f"{str(router)!r} knows {known(dict.fromkeys(models))}"
        )
    return scored


def known(names: Mapping[str, Any]) -> str:
    """The names, for a message."""
    return ", ".join(map(repr, sorted(names)))


def _asked_price(member: Served) -> tuple[float, float] | None:
    """What an engine takes for a token, found out by what it says of requests that differ in one respect."""
    if not callable(getattr(member, "generate", None)):
        return None  # a compound's calls have prices of their own
    if getattr(member, "unbounded", None) is None:
        return 0.0, 0.0  # see `Costly`: its calls cost nothing
    worst = cast("Callable[[Request], float | None] | None", getattr(member, "worst", None))
    if worst is None:
        return None
    costs = [worst(Request("", "", (user("a" * size),), Sampling(max_tokens=limit))) for size, limit in _PROBES]
    if None in costs:
        return None
    least, longer, wordier = cast("list[float]", costs)
    return (longer - least) / _PROBE, (wordier - least) / _PROBE


_PROBE = 1_000
_PROBES = (1, _PROBE), (1 + _PROBE, _PROBE), (1, 2 * _PROBE)
"""Bytes and `max_tokens`, the latter with as many digits: they are a part of the body that is counted."""


def _has_image(message: Message) -> bool:
    return not isinstance(message.content, str) and any(isinstance(part, ImagePart) for part in message.content)
