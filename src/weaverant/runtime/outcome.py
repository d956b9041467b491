"""What an engine or a user's function gave, made sure that a journal which holds it can be read again."""

from __future__ import annotations

from types import NoneType
from typing import Any, get_args

import msgspec
from msgspec.structs import astuple

from weaverant.errors import RAISED, StepFailed, place_of, shown
from weaverant.message import FinishReason, Message, Reply, Usage


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
    message = reply.message
    return (
        _types(reply) == _REPLY
        and _types(message) == _MESSAGE
        and _types(reply.usage) == _USAGE
        and reply.finish in _FINISHES
        and message.role == "assistant"
        and not (message.tool_calls or reply.more)
    )


def _types(value: Any) -> tuple[type, ...]:
    return tuple(map(type, astuple(value)))


_REPLY = (Message, Usage, str, str, NoneType, tuple)
_MESSAGE = (str, str, tuple, NoneType, NoneType)
_USAGE = (int, int, int, int, float, int, float)
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
