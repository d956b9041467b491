"""The answer to a call as it travels from its host to the peer that owns the task: plain data, made sure of."""

from __future__ import annotations

from typing import Any

import msgspec

from weaverant.errors import Misdirected, StepFailed, Unavailable
from weaverant.message import Choice, Message, Reply, Tokens, Usage
from weaverant.runtime.outcome import checked
from weaverant.step import message_of, message_value

FAILURES = {kind.__name__: kind for kind in (StepFailed, Unavailable, Misdirected)}


def reply_body(reply: Any, model: str) -> list[Any]:
    """A reply as it travels. `StepFailed` where an engine gave what is none."""
    if type(reply) is not Reply or type(reply.message) is not Message or type(reply.usage) is not Usage:
        reply = checked(reply, model)
    message = reply.message
    if (
        reply.tokens is None
        and not reply.more
        and reply.finish == "stop"
        and type(message.content) is str
        and message.role == "assistant"
        and not message.tool_calls
        and message.tool_call_id is None
        and message.reasoning is None
    ):
        return [message.content, reply.usage, reply.model]
    return [[_choice_value(choice) for choice in reply.choices], reply.usage, reply.model]


def reply_of(body: list[Any]) -> Reply:
    """The inverse of `reply_body`. `ValueError` or `TypeError` for what is none."""
    value, usage, model = body
    if type(value) is str:
        return Reply(Message("assistant", value), Usage(*usage), model)
    first, *more = map(_choice_of, value)
    return Reply(first.message, Usage(*usage), model, first.finish, first.tokens, tuple(more))


def failure_body(failure: StepFailed) -> dict[str, Any]:
    """A failure as it travels."""
    name = next(known.__name__ for known in type(failure).__mro__ if known.__name__ in FAILURES)
    try:
        detail = msgspec.to_builtins(failure.detail)
    except (TypeError, ValueError, RecursionError):
        detail = repr(failure.detail)
    return {"failed": [name, failure.kind, failure.text, detail, failure.usage, failure.forget]}


def failure_of(body: dict[str, Any]) -> StepFailed:
    """The inverse of `failure_body`. `ValueError` and its like for what is none."""
    name, kind, text, detail, usage, forget = body["failed"]
    failure = FAILURES[name](kind, text, detail, None if usage is None else Usage(*usage))
    failure.forget = tuple((path, fingerprint, occurrence) for path, fingerprint, occurrence in forget)
    return failure


def _choice_value(choice: Choice) -> list[Any]:
    return [message_value(choice.message), choice.finish, msgspec.to_builtins(choice.tokens)]


def _choice_of(value: list[Any]) -> Choice:
    message, finish, tokens = value
    return Choice(message_of(message), finish, msgspec.convert(tokens, Tokens | None))
