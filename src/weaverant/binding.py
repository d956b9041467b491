"""Agents in a run: which engine serves which model name, what `--set` overrides, and what a request is made of."""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, cast

import msgspec

from weaverant.agent import Agent
from weaverant.compound import Compound, Served, compounded, inner_agent, is_compound, with_members
from weaverant.errors import UserError
from weaverant.message import Message, OutputSchema, Reply, Request, Sampling, ToolSpec, digest
from weaverant.prompt import Template
from weaverant.protocols import Engine
from weaverant.replay import WorkflowLoop
from weaverant.step import Ask, ModelAsk
from weaverant.talk import Talk
from weaverant.trace import plain

if TYPE_CHECKING:
    from weaverant.schema import Output, Tool

_canonical = msgspec.msgpack.Encoder(order="deterministic").encode


class Bound:
    """An agent in a run: who answers for it, its compiled templates, and what all its fingerprints begin with."""

    def __init__(self, agent: Agent, served: Served, scope: str, passing: Request | None = None) -> None:
        """`served` answers for the model, under the name `scope`. With `passing` its requests have the sampling, tools
        and output of that one, and what is replied is not looked at."""
        where = f"agent {agent.name!r}"
        self.agent = agent
        self.identity = served.identity
        self.scope = scope
        self.compound: Compound | None = served if is_compound(served) else None
        self.inner: dict[Agent, Agent] = {}
        """Agents of the compound, as they are asked for this one."""
        self.templates = agent.templates
        self.output: Output | None = None
        self.tools: dict[str, Tool] = {}
        if agent.output is not str or agent.tools:
            from weaverant import schema  # deferred: pydantic's machinery loads slowly

            self.output = None if agent.output is str else schema.Output(agent.output, where)
            self.tools = {tool.__name__: schema.Tool(tool, where) for tool in agent.tools}
        self.plain = self.output is None and not self.tools
        """Whether a call is one request, and its value the reply's text."""
        self.tool_specs: tuple[ToolSpec, ...] = tuple(tool.spec for tool in self.tools.values())
        self.output_spec: OutputSchema | None = self.output and self.output.spec
        self.sampling = _sampling(agent, where)
        if passing is not None:
            self.tool_specs, self.output_spec, self.sampling = passing.tools, passing.output, passing.sampling
        asked = [agent.name, self.identity, self.sampling, self.tool_specs, self.output_spec]
        self.head = digest(_canonical(asked))
        self.spec = digest(self.head + _canonical([self._text("prompt"), self._text("system")])).hex()[:16]

    def _text(self, which: str) -> str | None:
        template = cast("Template | None", getattr(self.templates, which))
        return None if template is None else template.text

    def describe(self) -> dict[str, Any]:
        """What the journal keeps of it: enough to render any of its prompts again."""
        return {
            "name": self.agent.name,
            "model": self.agent.model,
            "identity": self.identity,
            "prompt": self._text("prompt"),
            "system": self._text("system"),
            "sampling": msgspec.to_builtins(self.sampling),
            "tools": msgspec.to_builtins(self.tool_specs),
            "output": msgspec.to_builtins(self.output_spec),
        }

    def request(self, messages: tuple[Message, ...], seed: int = 0) -> Request:
        agent = self.agent
        return Request(agent.name, agent.model, messages, self.sampling, self.tool_specs, self.output_spec, seed)

    def ask(
        self,
        messages: tuple[Message, ...],
        variables: dict[str, Any],
        history: tuple[Message, ...] = (),
        base: Ask | Talk | None = None,
        added: tuple[Message, ...] = (),
    ) -> ModelAsk:
        """What to open in the workflow's loop, under `fingerprint(messages)`."""
        agent = self.agent
        return ModelAsk(
            "model", agent.name, self.spec, self, agent.model, messages, variables, history, base, added,
            place=agent.place,
        )  # fmt: skip

    def reply(self, loop: WorkflowLoop, ask: ModelAsk) -> Awaitable[Reply]:
        """What comes of the ask: its engine's reply, or that of the compound."""
        if self.compound is None:
            return loop.answer(ask, self.fingerprint(ask.messages))
        return compounded(loop, cast("Binding", loop.binding), self, ask)

    def fingerprint(self, messages: tuple[Message, ...]) -> bytes:
        return digest(self.head + b"".join([message.digest for message in messages]))


def _sampling(agent: Agent, where: str) -> Sampling:
    return Sampling(
        agent.temperature,
        agent.top_p,
        agent.max_tokens,
        tuple(agent.stop),
        agent.logprobs,
        cast("dict[str, Any]", plain(dict(agent.extra), f"{where}: extra")),
        agent.n,
        agent.top_logprobs,
    )


MOST_BOUND = 4_096
"""Agents kept compiled. A workflow may make an agent for each row; the oldest are compiled again when they return."""


class Binding:
    """What answers for which model name, and the agents as this run uses them."""

    def __init__(self, models: Mapping[str, Served], overrides: Mapping[str, Mapping[str, Any]] | None = None) -> None:
        self.served: dict[str, Served] = {}
        """All that was given, and the members of compounds as `NAME/MEMBER`."""
        self._given = list(models)
        for name, one in models.items():
            for within, member in with_members(name, one):
                if within in self.served:
                    raise UserError(f"the model {within!r} is given, and is a member of another: call one otherwise")
                self.served[within] = member
        self.models = {name: cast("Engine", one) for name, one in self.served.items() if not is_compound(one)}
        """The engines among them."""
        self._passing: dict[bytes, Bound] = {}
        self._overrides = overrides or {}
        self.known: dict[Agent, Bound] = {}
        """Agents that were bound already, compiled."""
        self._specs: set[str] = set()
        self.fresh: list[Bound] = []
        """Agents bound since somebody last looked: their `AgentBound` events are still to be written."""

    def bound(self, agent: Agent) -> Bound:
        bound = self.known.get(agent)
        if bound is None:
            if len(self.known) >= MOST_BOUND:
                del self.known[next(iter(self.known))]
            bound = self.known[agent] = self._bind(agent)
            self._note(bound)
            if bound.compound is not None:
                for inner in bound.compound.agents(bound.request(())):
                    self.bound(inner_agent(bound, inner))
        return bound

    def passing(self, model: str, place: str, request: Request) -> Bound:
        """Who passes such a request on to a member of a compound, whose name in the run is `model`. It has the
        member's name."""
        key = _canonical([model, place, request.sampling, request.tools, request.output])
        bound = self._passing.get(key)
        if bound is None:
            if len(self._passing) >= MOST_BOUND:
                del self._passing[next(iter(self._passing))]
            bound = Bound(Agent(model, model=model, place=place), self.served[model], model, request)
            _check_served(bound, self.served[model])
            self._passing[key] = bound
            self._note(bound)
        return bound

    def engine(self, model: str) -> Engine | None:
        """The engine that answers for a model's name: its own, else the one for all. None where nothing does, or a
        compound."""
        found = self.served.get(self._scope(model))
        return None if is_compound(found) else cast("Engine | None", found)

    def all(self) -> list[Bound]:
        return list(self.known.values())

    def _scope(self, model: str) -> str:
        """The name under which it is served."""
        return model if model in self.served else "*"

    def _note(self, bound: Bound) -> None:
        if bound.spec not in self._specs:
            self._specs.add(bound.spec)
            self.fresh.append(bound)

    def _bind(self, agent: Agent) -> Bound:
        changes = self._overrides.get(agent.name)
        if changes:
            known = [field.name for field in dataclasses.fields(agent) if field.name not in ("name", "folder")]
            unknown = sorted(set(changes) - set(known))
            if unknown:
                raise UserError(f"agent {agent.name!r} has no field {unknown[0]!r}; it has: {', '.join(known)}")
            agent = dataclasses.replace(agent, **dict(changes))
        scope = self._scope(agent.model)
        served = self.served.get(scope)
        if served is None:
            known = ", ".join(sorted(map(repr, self._given))) or "none"
            raise UserError(
                f"agent {agent.name!r} asks the model {agent.model!r}, which has no engine (given: {known}). "
                f"Give it one: --model {agent.model}=http://HOST:8000/v1#NAME, or one for all: "
                f"--model http://HOST:8000/v1#NAME. In Python: models={{{agent.model!r}: 'http://HOST:8000/v1#NAME'}}"
            )
        bound = Bound(agent, served, scope)
        _check_served(bound, served)
        return bound


def _check_served(bound: Bound, served: Served) -> None:
    """`UserError` where the model can answer no call of the agent: see `Selective`."""
    ask: Callable[[Request], str] | None = getattr(served, "refuses", None)
    why = "" if ask is None else ask(bound.request(()))
    if why:
        agent = bound.agent
        given = agent.model.partition("/")[0] if "/" in bound.scope else agent.model  # a member is given with the whole
        own = given not in ("default", "*")
        model = given if own else "strong"
        first = "" if own else f"let it ask for a model of its own, Agent({agent.name!r}, model={model!r}, ...), and "
        raise UserError(
            f"agent {agent.name!r} cannot be answered by {served.identity!r}: {why}. Way out: {first}"
            f"give that model another engine with --model {model}=http://HOST:8000/v1#NAME, or --model "
            f"{model}=simulated: for pretended replies; in Python with models={{{model!r}: ..., '*': ...}}"
        )
