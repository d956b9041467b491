"""A step as the workflow asks for it: what is wanted, under which key, and what became of it.

The key is (branch path, fingerprint, occurrence). Two sibling branches may ask the same question: their paths tell
them apart, so an answer never changes sides on replay.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol, get_args
from zlib import crc32

import msgspec

from weaverant.errors import StepFailed
from weaverant.events import StepKind
from weaverant.message import Choice, FinishReason, Message, Part, Reply, Request, Role, Tokens, ToolCall, Usage
from weaverant.talk import Talk

StepKey = tuple[str, bytes, int]


class Turn(msgspec.Struct):
    """Whether a call waits inside its engine, for its turn or for another try, and cannot have cost anything. The
    engine says so, and leaves it so when the call is cancelled; a run that is stopped takes such calls back at once,
    and gives its grace to the others."""

    waiting: bool = False
    waited: float = 0.0
    """Seconds: no part of the model's latency."""
    kept: float = 0.0
    """US dollars that stay set aside when the call is taken back while it waits: others may have spent them for it."""
    host: int = 0
    """The epoch of the peer that has answered, where the call travelled."""
    stake: Callable[[], Usage] | None = None
    """What the call has used if it is cut off now, with a bound for what nobody will know. An engine that can say sets
    it, for a call without a purse."""


class StepName(msgspec.Struct, eq=False):
    """What a step is called in its journal."""

    kind: StepKind
    name: str
    spec: str


class Ask(StepName, eq=False, kw_only=True):
    """One wanted outcome. Mutable while it is open; what is kept of it is the event `StepEnded`."""

    key: StepKey = ("", b"", 0)
    launched: bool = False
    """Given to the runtime to work on."""
    settled: bool = False
    """The workflow has seen the outcome, or waits no longer."""
    number: int = -1
    """Which step of its task this is, counted in journal order; -1 until it is journaled."""
    started: float = 0.0
    future: asyncio.Future[Any] | None = None
    """What the workflow waits for; None again once it has the outcome, which may be an exception that holds the ask."""
    handle: asyncio.Task[None] | None = None
    """The work on it."""


class Asks(Protocol):
    """An agent as a run uses it: what turns messages into a request."""

    def request(self, messages: tuple[Message, ...], seed: int = 0) -> Request: ...


class ModelAsk(Ask, eq=False):
    """A request to an engine. Its messages come from the agent's templates, `variables` and `history`. With a talk as
    `base` the history is that talk and `added`; with a step, they are all that step sent, its reply and `added`."""

    by: Asks
    model: str
    messages: tuple[Message, ...]
    variables: dict[str, Any]
    history: tuple[Message, ...] = ()
    base: Ask | Talk | None = None
    added: tuple[Message, ...] = ()
    seed: int = 0
    """Drawn when it is launched."""
    turn: Turn | None = None
    """Once its engine works on it."""
    place: str = ""
    """The label of the peers that are to ask."""
    inside: str = ""
    """The branch whose steps have made the reply, where a compound model did; empty for an engine's."""
    given: Reply | StepFailed | None = None
    """What came of them, until it is recorded."""
    optional: bool = False
    """Whether others can answer instead: where nobody can be asked it fails, and the run goes on."""


class EffectAsk(Ask, eq=False):
    """A user's function to run outside the workflow. `arguments` is plain data, kept for `show`."""

    call: Callable[[], Any]
    arguments: Any
    place: str


def seed_of(task: str, key: StepKey, attempt: int) -> int:
    """31 bits that depend on the step alone, so a repeated run draws the same samples; a retry draws others."""
    path, fingerprint, occurrence = key
    return crc32(f"|{task}|{path}|{occurrence}|{attempt}".encode(), crc32(fingerprint)) & 0x7FFF_FFFF


def reply_value(reply: Reply) -> Any:
    """A reply as the journal holds it: bare text where there is nothing else to tell."""
    message = reply.message
    content = message.content
    if reply.tokens is not None or reply.more:
        return [*_choice_value(reply), [_choice_value(choice) for choice in reply.more]]
    if type(content) is str and not message.tool_calls and message.reasoning is None and reply.finish == "stop":
        return content
    return [message_value(message), reply.finish]


def reply_of(value: Any, usage: Usage, model: str) -> Reply:
    """The inverse of `reply_value`."""
    if isinstance(value, str):
        return Reply(Message("assistant", value), usage, model)
    if len(value) == 2:
        return Reply(message_of(value[0]), usage, model, _finish_of(value[1]))
    first, more = _choice_of(value), tuple(map(_choice_of, value[3]))
    return Reply(first.message, usage, model, first.finish, first.tokens, more)


def _choice_value(choice: Choice | Reply) -> list[Any]:
    return [message_value(choice.message), choice.finish, msgspec.to_builtins(choice.tokens)]


def _choice_of(value: list[Any]) -> Choice:
    return Choice(message_of(value[0]), _finish_of(value[1]), msgspec.convert(value[2], Tokens | None))


def _finish_of(value: Any) -> FinishReason:
    if value not in _FINISHES:
        raise ValueError(f"{value!r} is no way for a reply to finish")
    return value


_FINISHES, _ROLES = frozenset(get_args(FinishReason)), frozenset(get_args(Role))


def message_value(message: Message) -> list[Any]:
    """`[role, content]`, and where there are any: tool calls, the call it answers, reasoning."""
    content: Any = message.content if isinstance(message.content, str) else msgspec.to_builtins(message.content)
    if not message.tool_calls and message.tool_call_id is None and message.reasoning is None:
        return [message.role, content]
    calls = [[call.id, call.name, call.arguments] for call in message.tool_calls]
    return [message.role, content, calls, message.tool_call_id, message.reasoning]


def message_of(value: list[Any]) -> Message:
    """The inverse of `message_value`. `ValueError` for what is none."""
    if value[0] not in _ROLES:
        raise ValueError(f"{value[0]!r} is no role of a message")
    content = value[1] if isinstance(value[1], str) else msgspec.convert(value[1], tuple[Part, ...])
    if len(value) == 2:
        return Message(value[0], content)
    calls, answered, reasoning = value[2:]
    if any(text is not None and not isinstance(text, str) for text in (answered, reasoning)):
        raise ValueError(f"{answered!r} and {reasoning!r}: texts or nothing were expected")
    return Message(value[0], content, tuple(map(_call_of, calls)), answered, reasoning)


def _call_of(value: Any) -> ToolCall:
    name, function, arguments = value
    if not (isinstance(name, str) and isinstance(function, str) and isinstance(arguments, str)):
        raise ValueError(f"{value!r} is no call of a tool")
    return ToolCall(name, function, arguments)
