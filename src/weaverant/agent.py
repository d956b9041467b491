"""Agents: a role in a workflow, as immutable data, and the call that makes it speak.

A call is a scope: each model call, tool call and repair inside it is a recorded step. `binding.py` has a run's side of
it.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import sys
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Never, cast

import msgspec

from weaverant import fields
from weaverant.coroutine import gives_coroutine
from weaverant.effect import effect
from weaverant.errors import StepFailed, UserError
from weaverant.message import Message, Reply, ToolCall, user
from weaverant.replay import WorkflowLoop, current_loop
from weaverant.step import Ask, ModelAsk
from weaverant.talk import TALK_FROM, Talk, Talks
from weaverant.trace import SCALARS, plain

if TYPE_CHECKING:
    from weaverant.binding import Binding, Bound
    from weaverant.prompt import Template
    from weaverant.schema import Output


def _calling_folder() -> Path:
    """The folder of the file that makes an agent: where its prompt files are."""
    frame = sys._getframe(1)  # pyright: ignore[reportPrivateUsage]
    while frame.f_back is not None and frame.f_globals.get("__name__") in (__name__, "dataclasses"):
        frame = frame.f_back
    file = frame.f_globals.get("__file__")
    return Path(file).parent if file else Path()


History = Sequence[Message | Mapping[str, Any]]
"""Earlier messages of a conversation: `Message`s, or mappings with `role` and `content` as in OpenAI's API."""


@gives_coroutine
@dataclass(frozen=True, eq=False)
class Agent:
    """A role: who it is, what it is asked, who answers, in what form.

    Await it with the variables of its prompt: `answer = await solver(question=...)`. The value is the reply's text,
    or an instance of `output`. `reply(...)` gives the whole `Reply`, `history=` puts earlier messages before the
    prompt. Raises `StepFailed` when no usable answer came. Fields that cannot be meant (`temperature="hot"`) are a
    `UserError` at once.
    """

    name: str
    _: dataclasses.KW_ONLY
    prompt: str | Path | None = None
    """A Jinja template, or a file with one, beside the file that makes the agent. None: only `history` is sent."""
    system: str | Path | None = None
    """The instructions: a template, too, with the same variables."""
    model: str = "default"
    """The name that `--model NAME=...` gives an engine to."""
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    stop: Sequence[str] = ()
    logprobs: bool = False
    """Ask for each token's log probability, for `reply(...).tokens`."""
    top_logprobs: int = 0
    """Ask for that many alternatives to each token, too."""
    n: int = 1
    """Replies to the one prompt, for `reply(...).choices`; awaiting the agent gives the first. One request, whose
    prompt is read once; not with `output` or `tools`, whose further turns would go on from one of them."""
    extra: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """More fields for the server's request, as they are."""
    output: Any = str
    """`str`, a pydantic model, any type JSON can be read into, or a JSON schema."""
    repairs: int = 2
    """How often a reply that does not fit `output` is shown its fault and asked again."""
    tools: Sequence[Callable[..., Any]] = ()
    """Typed functions, sync or async, that the model may call; each call is a recorded step."""
    turns: int = 8
    """How many replies one call may take with its tools."""
    place: str = ""
    """In a run with peers, the label of those that are to make its calls, where the model is at hand; empty: whoever
    has the row. In one process it means nothing."""
    folder: Path = field(default_factory=_calling_folder, repr=False)

    def __post_init__(self) -> None:
        fields.check(self.name, vars(self))

    @gives_coroutine
    def __call__(self, *unnamed: Never, history: History = (), **variables: Any) -> Coroutine[Any, Any, Any]:
        """Ask; the reply's text, or its value as `output`."""
        if unnamed:
            self._refuse(unnamed)
        return _converse(self, history, variables, whole=False)

    @gives_coroutine
    def reply(self, *unnamed: Never, history: History = (), **variables: Any) -> Coroutine[Any, Any, Reply]:
        """Ask; the last reply whole: message, usage, finish reason, who answered."""
        if unnamed:
            self._refuse(unnamed)
        return _converse(self, history, variables, whole=True)

    def messages(self, *unnamed: Never, history: History = (), **variables: Any) -> tuple[Message, ...]:
        """The messages that a call with these variables sends."""
        if unnamed:
            self._refuse(unnamed)
        return self.templates.messages(cast("dict[str, Any]", plain(variables, "variables")), _messages(history))

    @cached_property
    def templates(self) -> Templates:
        """The agent's compiled templates."""
        return Templates(self)

    def _refuse(self, unnamed: tuple[object, ...]) -> Never:
        reads = ", ".join(f"{name}=..." for name in self.templates.variables) or "NAME=..."
        raise TypeError(
            f"agent {self.name!r} takes its prompt's variables by name: expected {self.name}({reads}); "
            f"found {len(unnamed)} without a name"
        )


class Templates:
    """An agent's compiled templates."""

    __slots__ = ("prompt", "system")

    def __init__(self, agent: Agent) -> None:
        where = f"agent {agent.name!r}"
        self.prompt = self._compile(agent.prompt, agent.folder, f"{where}: prompt")
        self.system = self._compile(agent.system, agent.folder, f"{where}: system")

    @staticmethod
    def _compile(source: str | Path | None, folder: Path, where: str) -> Template | None:
        if source is None:
            return None
        from weaverant.prompt import Template, read_prompt  # Jinja loads where the first prompt is read

        return Template(read_prompt(source, folder, where), where)

    @property
    def variables(self) -> list[str]:
        """The names that they read."""
        return sorted(set[str]().union(*(part.variables for part in (self.system, self.prompt) if part is not None)))

    def messages(self, variables: dict[str, Any], history: tuple[Message, ...]) -> tuple[Message, ...]:
        if self.system is None:
            if self.prompt is None:
                return history
            if not history:
                return (Message("user", self.prompt.render(variables)),)
        opening = () if self.system is None else (Message("system", self.system.render(variables)),)
        closing = () if self.prompt is None else (Message("user", self.prompt.render(variables)),)
        return opening + history + closing


async def _converse(agent: Agent, history: History, variables: dict[str, Any], whole: bool) -> Any:
    """One call of an agent: the first request, the tools' turns, the repairs. Gives the reply `whole`, or its value."""
    loop = current_loop(agent)
    binding = cast("Binding", loop.binding)
    bound = binding.known.get(agent) or binding.bound(agent)
    if variables:
        variables = _variables(bound, variables)
    earlier = _messages(history) if history else ()
    messages = bound.templates.messages(variables, earlier)
    if len(earlier) < TALK_FROM:
        ask = bound.ask(messages, variables, earlier)
        engine = bound.compound is None  # asked here, one frame less for each step
        reply = await (loop.answer(ask, bound.fingerprint(messages)) if engine else bound.reply(loop, ask))
    else:
        ask, reply = await talk_on(loop, bound, messages, variables, earlier)
    if bound.sampling.n > 1 + len(reply.more):
        raise _too_few(bound, ask, reply)
    if bound.plain:
        return reply if whole else reply.message.text
    scope = _Scope(loop, bound, messages, ask, reply)
    await scope.use_tools()
    value = scope.reply.message.text if bound.output is None else await scope.parse(bound.output)
    return scope.reply if whole else value


_converse.__qualname__ = "Agent.__call__"  # what Python says was never awaited, where somebody forgot to


async def talk_on(
    loop: WorkflowLoop,
    bound: Bound,
    messages: tuple[Message, ...],
    variables: dict[str, Any],
    earlier: tuple[Message, ...],
    optional: bool = False,
) -> tuple[ModelAsk, Reply]:
    """A request with a long history: its journal names the step whose conversation that begins with, if there is one.
    The conversation may go on from here in turn."""
    talks = loop.talks = loop.talks or Talks()
    talk = talks.before(earlier)
    if talk is None:
        ask = bound.ask(messages, variables, earlier)
    else:
        ask = bound.ask(messages, variables, base=talk, added=earlier[talk.length :])
    ask.optional = optional
    reply = await bound.reply(loop, ask)
    skip = 0 if bound.templates.system is None else 1
    start = skip if talk is None else skip + talk.length
    talks.add(Talk(talk, (*messages[start:], reply.message), ask.number, skip))
    return ask, reply


def _variables(bound: Bound, variables: dict[str, Any]) -> dict[str, Any]:
    if not _FIELDS.isdisjoint(variables):
        _refuse_fields(bound, variables)
    return {
        name: value if type(value) in SCALARS else plain(value, f"variable {name!r}")
        for name, value in variables.items()
    }


def _refuse_fields(bound: Bound, variables: Mapping[str, Any]) -> None:
    """In other libraries a call takes them; here they would be variables that no template reads."""
    for name in sorted(_FIELDS.intersection(variables).difference(bound.templates.variables)):
        raise UserError(
            f"agent {bound.agent.name!r}: {name}= is no variable of its prompt but a field of the agent. Set it there, "
            f"Agent({bound.agent.name!r}, ..., {name}=...), or make another agent of it with dataclasses.replace"
        )


_FIELDS = frozenset(
    ("temperature", "top_p", "max_tokens", "stop", "logprobs", "top_logprobs", "extra", "output", "tools")
)
"""Those that nobody means as a variable."""


def _too_few(bound: Bound, ask: Ask, reply: Reply) -> StepFailed:
    name, n = bound.agent.name, bound.sampling.n
    failure = StepFailed(
        "choices",
        f"agent {name!r} asked for {n} replies to one prompt (n={n}) and got {1 + len(reply.more)}: what answers for "
        f"{bound.agent.model!r} does not know n. Leave n= out and call the agent {n} times",
        {"reply": reply.message.text},
    )
    failure.forget = (ask.key,)
    return failure


def _messages(history: History) -> tuple[Message, ...]:
    try:
        items = tuple(history)  # once: it may be a generator
        for item in items:
            if type(item) is not Message:
                return tuple(map(_message, items))
    except (msgspec.ValidationError, TypeError, ValueError) as error:
        raise UserError(
            f"history= holds what is no message: {error}. Expected Message objects, or mappings such as "
            "{'role': 'user', 'content': '...'}"
        ) from None
    return cast("tuple[Message, ...]", items)


def _message(item: Message | Mapping[str, Any]) -> Message:
    return item if isinstance(item, Message) else msgspec.convert(dict(item), Message, strict=False)


class _Scope:
    """The turns of one call after the first reply."""

    def __init__(self, loop: WorkflowLoop, bound: Bound, messages: tuple[Message, ...], ask: Ask, reply: Reply) -> None:
        self.loop = loop
        self.bound = bound
        self.messages = messages
        self.ask = ask
        self.reply = reply

    async def use_tools(self) -> None:
        turns = 1
        while self.bound.tools and self.reply.message.tool_calls:
            if turns >= self.bound.agent.turns:
                raise self._failure("tool", f"still calls tools after {turns} turns (turns={turns})")
            turns += 1
            calls = self.reply.message.tool_calls
            results = await asyncio.gather(*(self._call_tool(call) for call in calls))
            await self._go_on(tuple(results))

    async def parse(self, output: Output) -> Any:
        from weaverant.schema import Misfit

        for left in range(self.bound.agent.repairs, -1, -1):
            try:
                return output.parse(self.reply.message.text)
            except Misfit as misfit:
                if not left:
                    raise self._failure("output", f"the reply does not fit {output.spec.name}: {misfit}") from None
                await self._go_on((user(_REPAIR.format(misfit)),))
        raise AssertionError("unreachable: the last repair returns or raises")

    async def _go_on(self, added: tuple[Message, ...]) -> None:
        self.messages = (*self.messages, self.reply.message, *added)
        self.ask = self.bound.ask(self.messages, {}, base=self.ask, added=added)
        self.reply = await self.bound.reply(self.loop, self.ask)

    async def _call_tool(self, call: ToolCall) -> Message:
        from weaverant.schema import Misfit

        tool = self.bound.tools.get(call.name)
        try:
            if tool is None:
                raise Misfit(f"there is no tool {call.name!r}; there are: {', '.join(self.bound.tools)}")
            arguments = tool.arguments(call.arguments)
            value = await effect("tool", tool.function, (), arguments)
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        except (Misfit, StepFailed) as error:
            text = f"error: {error}"
        return Message("tool", text, tool_call_id=call.id)

    def _failure(self, kind: str, text: str) -> StepFailed:
        failure = StepFailed(kind, f"agent {self.bound.agent.name!r}: {text}", {"reply": self.reply.message.text})
        failure.forget = (self.ask.key,)
        return failure


_REPAIR = (
    "Your reply cannot be used: {}\n\nAnswer again, with nothing but JSON that satisfies the schema you were given."
)
