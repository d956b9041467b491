"""What an engine or a user's function gave, made sure that a journal which holds it can be read again."""

from __future__ import annotations

from typing import Any, get_args

import msgspec

from weaverant.errors import RAISED, StepFailed, place_of, shown
from weaverant.message import MOST_COUNTED, MOST_DOLLARS, FinishReason, Message, Reply, Usage


def checked(reply: Any, model: str) -> Reply:
    """The reply, if a journal that holds it can be read again. Anybody may write an engine."""
    if type(reply) is Reply and _is_plain(reply):
        return reply
    try:
        return _decode(_encode(reply))
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        text = f"the engine of {model!r} gave what is no Reply: {error}. Expected weaverant.Reply, found {reply!r:.200}"
        raise StepFailed("engine", text) from None


def _is_plain(reply: Reply) -> bool:
    """A bare text with its usage, each field of the type it is declared with: the common case, without a copy."""
    message, usage = reply.message, reply.usage
    return (
        type(message) is Message
        and type(message.content) is str
        and message.role == "assistant"
        and message.tool_calls == ()
        and message.tool_call_id is None
        and message.reasoning is None
        and reply.finish in _FINISHES
        and reply.tokens is None
        and reply.more == ()
        and type(reply.model) is str
        and reply.model.isascii()
        and type(usage) is Usage
        and type(usage.cost) is float
        and type(usage.unsure) is float
        and type(usage.prompt_tokens) is int
        and type(usage.completion_tokens) is int
        and type(usage.cached_tokens) is int
        and type(usage.reasoning_tokens) is int
        and type(usage.requests) is int
        and 0.0 <= usage.cost <= MOST_DOLLARS
        and 0.0 <= usage.unsure <= MOST_DOLLARS
        and 0 <= usage.prompt_tokens | usage.completion_tokens <= MOST_COUNTED  # their bits: neither is beyond it
        and 0 <= usage.cached_tokens | usage.reasoning_tokens | usage.requests <= MOST_COUNTED
    )


_FINISHES = frozenset(get_args(FinishReason))
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Reply).decode
_decode_usage = msgspec.msgpack.Decoder(Usage).decode


def failure_in(error: BaseException) -> StepFailed:
    """What was raised, as the workflow gets it."""
    if not isinstance(error, StepFailed):
        place = place_of(error)
        return StepFailed(type(error).__name__, shown(error), {RAISED: place} if place else None)
    if error.usage is not None:
        error.usage = _checked_usage(error.usage)
    return error


def _checked_usage(usage: Any) -> Usage | None:
    """The usage, if a journal that holds it can be read again. Anybody may write an engine."""
    try:
        return _decode_usage(_encode(usage))
    except (TypeError, ValueError, OverflowError, RecursionError):
        return None
