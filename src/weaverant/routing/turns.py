"""What a call of RouteMoA is made of: its options, its decisions, and what it has heard so far."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from weaverant.compound import Inside, beyond_text
from weaverant.journal import BlobStore, JournalReader
from weaverant.message import Reply, Request
from weaverant.routing.asking import Admitted, Asked, Asking
from weaverant.routing.assess import Assessed, Form
from weaverant.routing.evidence import Verdict
from weaverant.routing.keys import Key
from weaverant.routing.learning import Session, Thought
from weaverant.routing.pool import Pool
from weaverant.routing.prompts import Prompts
from weaverant.routing.utility import Ranked
from weaverant.story import Storyteller

_Share = Annotated[float, Meta(ge=0.0, le=1.0)]
_Many = Annotated[int, Meta(ge=1)]
_Weight = Annotated[float, Meta(ge=0.0)]

JUDGES = ("self", "peer", "agreement")
AUTO = "auto"


class RouteMoaOptions(Asked, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The options of `routemoa:FILE?layers=3&k=3`."""

    layers: _Many = 3
    """At most; a call asks at most `k * layers + 1` times."""
    k: _Many = 3
    """Models in a layer, at most."""
    cost: _Weight = 0.1
    """What a call that costs the reference is worth, in chances of being right."""
    latency: _Weight = 0.05
    """What a call that takes the slo is worth."""
    reference: _Weight = 0.0
    """US dollars; 0: the expected cost of the dearest model."""
    slo: _Weight = 0.0
    """Seconds; 0: the 95th percentile of the slowest model."""
    within: _Weight = 0.0
    """Seconds for the whole: no layer begins that would end later, as far as is known; 0: no limit."""
    judges: str = AUTO
    """Who judges, of `self,peer,agreement`, joined by commas; empty: nobody, and replies are plain texts. `auto`: all
    of them, but models are asked for scores only as far as feedback shows that answers get better by it."""
    aggregator: str = ""
    """Who writes the final answer where none stands; empty: the pool's, else the best at it as far as is known."""
    prompts: Prompts = "auto"
    """`auto`: `tiny` for embedded members, `chat` for the others."""
    enough: _Share = 0.0
    """A probability of being right at which it stops; 0: none."""
    clear: _Share = 0.8
    """The probability from which one answer stands against others without an aggregator."""
    close: _Share = 0.05
    """Two judge where the best two are as close as that."""
    session: Session = "opening"
    """What tells a session, in which the first model is kept: `opening`, `system` or `none`."""
    margin: _Weight = 0.05
    """The utility that another model must have more to come first in a session."""
    switches: Annotated[int, Meta(ge=0)] = 2
    """Changes of the first model in a session, at most."""
    explore: _Share = 0.0
    """The share of what is spent (of calls, where any price is unknown or 0) that may go to learning of little known
    models."""
    faithful: Literal["", "small", "large"] = ""
    """The original's algorithm, with the constants of one of its pools. Of the options above only `prompts`, `budget`,
    `deadline`, `quorum`, `k`, `layers` and `aggregator` hold then."""
    keep: str = "all"
    """Of `faithful`: the defects that it keeps, by name, joined by commas; `all` or `none`."""

    def calls(self, members: int) -> int:
        """See `Asked`."""
        return min(self.k, members) * self.layers + 1

    def __post_init__(self) -> None:
        if self.keep != "all" and not self.faithful:
            raise ValueError("'keep' takes faithful=small or faithful=large")


class Turn(msgspec.Struct, frozen=True, kw_only=True, tag="turn"):
    """One decision of a call, as its step records it."""

    layer: int
    """Layers that have answered before it."""
    thoughts: dict[str, Thought]
    """Of each model, before anything was asked; in the first decision alone."""
    before: dict[str, float]
    """The probability that each is right, before the last layer's judges were heard."""
    after: dict[str, float]
    """And after."""
    verdicts: dict[str, list[Verdict]]
    """Of each answer, what its judges said."""
    weights: dict[str, float]
    """What each judge is believed, 0 for whom nothing speaks."""
    ranked: tuple[Ranked, ...]
    """Who may be asked, the best first, with reasons."""
    refused: dict[str, str]
    """Why the others may not."""
    ask: tuple[str, ...] = ()
    """The next layer."""
    assessed: bool = True
    """Whether its models are asked for scores, in the same replies."""
    judges: tuple[str, ...] = ()
    """Those of them that judge the answers so far."""
    admitted: Admitted | None = None
    """The conditions under which they are asked."""
    stop: str = ""
    """Why there is no next layer: `layers`, `agreement`, `value`, `good enough`, `deadline`, `nobody left`."""
    stands: str = ""
    """Whose answer is the final one; empty where they are to be aggregated."""
    best: float = 0.0
    """The probability that the best answer so far is right."""
    reach: float = 0.0
    """The probability that any is, of those given and those of the next layer."""
    discerning: float = 0.0
    """How much of the difference going on is thought to gain."""
    aggregators: tuple[str, ...] = ()
    """Who writes it, the first that can."""
    held: str = ""
    """Who came first because the session had it, although another was better."""
    explored: str = ""
    """Who was asked to learn of it."""
    spent: float = 0.0
    """US dollars, by this call so far."""
    seconds: float = 0.0
    """Since it began."""


class FaithfulTurn(msgspec.Struct, frozen=True, kw_only=True, tag="faithful"):
    """One decision in `faithful` mode."""

    layer: int
    """Layers that have answered before it."""
    before: dict[str, float]
    """Scores, which are no probabilities; before anything was asked those of the router, mapped."""
    after: dict[str, float]
    """Of those that may be asked."""
    ask: tuple[str, ...]
    """The next layer, if it does not stop."""
    judge: str = ""
    own: dict[str, float | None] = {}
    """The last layer's self-scores, as far as they could be read."""
    peers: dict[str, float | None] = {}
    """The judge's scores."""
    stop: str = ""
    """`score`: one is above the threshold."""


class Play:
    """One call, as far as it has come. All of it follows from what is recorded."""

    def __init__(self, request: Request, asking: Asking, inside: Inside) -> None:
        self.request = request
        self.asking = asking
        self.inside = inside
        self.began = asyncio.get_running_loop().time()
        self.before = inside.used().cost
        self.layer = 0
        self.calls = 0
        self.answers: dict[str, Assessed] = {}
        """The newest of each model."""
        self.replies: dict[str, Reply] = {}
        self.keys: dict[str, Key | None] = {}
        self.failed: dict[str, str] = {}
        self.verdicts: dict[str, dict[str, float]] = {}
        """By model, then by judge."""
        self.thoughts: dict[str, Thought] = {}
        self.posterior: dict[str, float] = {}
        self.assessed: bool | None = None
        """Whether scores are asked for; None before the first decision."""
        self.asked_first: tuple[str, ...] = ()
        """The first layer."""
        self.aggregated_by = ""
        self.first: Turn | None = None
        """The decision after the first layer."""
        self.first_keys: dict[str, Key | None] = {}
        """What was answered by then."""

    @property
    def seconds(self) -> float:
        """Since it began, on the task's clock. Like `spent` not for code within a step, which runs on another loop."""
        return asyncio.get_running_loop().time() - self.began

    @property
    def spent(self) -> float:
        return self.asking.spent - self.before

    def said(self, name: str) -> list[Verdict]:
        return [Verdict(judge, claim) for judge, claim in sorted(self.verdicts.get(name, {}).items())]


def form_of(prompts: Prompts, pool: Pool, name: str) -> Form:
    """How a member is asked."""
    embedded = pool.members[name].identity.startswith("embedded:")
    return "tiny" if prompts == "tiny" or (prompts == "auto" and embedded) else "json"


def refuses_all_but_text(pool: Pool, request: Request) -> str:
    """Of a compound whose members' answers become one text."""
    if asked := beyond_text(request):
        return f"what several models say becomes one plain text, and this agent asks for {asked}"
    reasons = {name: pool.refuses(name, request) for name in pool.members}
    return "; ".join(f"{name}: {why}" for name, why in reasons.items()) if all(reasons.values()) else ""


def traces(run: str | Path) -> Iterator[tuple[str, list[Turn | FaithfulTurn]]]:
    """Of each task of a run that was routed, its key and the decisions, in the order in which they were taken."""
    directory = Path(run)
    reader = JournalReader(directory)
    teller = Storyteller({}, BlobStore(directory / "blobs").get)
    for task, events in reader.all_histories():
        steps = teller.tell(events).steps
        turns = [step for step in steps if step.kind == "effect" and step.name == "turn" and step.outcome == "reply"]
        if turns:
            yield task, [msgspec.convert(step.value, Turn | FaithfulTurn) for step in turns]
