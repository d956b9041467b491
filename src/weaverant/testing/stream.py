"""A completion as server-sent events, in the shape OpenAI gives them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from itertools import zip_longest
from typing import Any, Literal

import msgspec

from weaverant.testing.completions import TOKEN
from weaverant.testing.connection import Exchange

Ending = Literal["", "cut", "stall", "error", "odd"]
"""How a stream goes: well; the connection closes in its middle, within an event; it falls silent there; an error comes
as an event; well, but with comments and CRLF, in chunks of 7 bytes that heed neither events nor characters."""

EVENTS = "text/event-stream; charset=utf-8"
DONE = b"data: [DONE]\n\n"
SILENCE_S = 3600.0


async def send(
    exchange: Exchange, events: list[bytes], seconds: float, ending: Ending, headers: dict[str, str]
) -> None:
    """Write the events, spread over that time."""
    exchange.begin(200, headers, EVENTS)
    if ending == "odd":
        events = list(_oddly(events))
    whole = len(events) if ending in ("", "odd") else len(events) // 2
    if seconds or whole < len(events):
        for event in events[:whole]:
            await asyncio.sleep(seconds / len(events))
            await exchange.write(event)
    else:
        await exchange.write(b"".join(events))
    match ending:
        case "cut":
            await exchange.write(events[whole][:-9])
            exchange.connection.close()
        case "stall":
            await asyncio.sleep(SILENCE_S)
        case "error":
            await exchange.write(event_of({"error": {"message": "the engine died on purpose", "code": 500}}) + DONE)
            exchange.end()
        case _:
            exchange.end()


def events_of(completion: dict[str, Any], include_usage: bool) -> list[bytes]:
    """All events of a reply, `[DONE]` the last. Choices take turns, as they do in real streams."""
    head = {name: completion[name] for name in ("id", "created", "model")} | {"object": "chat.completion.chunk"}
    tail: dict[str, Any] = {"usage": None} if include_usage else {}
    each = (_deltas(choice) for choice in completion["choices"])
    pieces = [{**head, "choices": [one], **tail} for turn in zip_longest(*each) for one in turn if one]
    if "prompt_token_ids" in completion:
        pieces[0]["prompt_token_ids"] = completion["prompt_token_ids"]
    found = [event_of(piece) for piece in pieces]
    if include_usage:
        found.append(event_of({**head, "choices": [], "usage": completion["usage"]}))
    return [*found, DONE]


def event_of(value: object) -> bytes:
    return b"data: " + msgspec.json.encode(value) + b"\n\n"


def _deltas(choice: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The choices of one index, in order."""
    message, index = choice["message"], choice["index"]
    listed: dict[str, list[Any]] = choice.get("logprobs") or {}
    logprobs = listed.get("content") or []
    ids: list[int] = choice.get("token_ids") or []

    def piece(delta: dict[str, Any], **more: Any) -> dict[str, Any]:
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None, **more}

    yield piece({"role": "assistant", "content": ""})
    for text in TOKEN.findall(message.get("reasoning_content") or ""):
        yield piece({"reasoning_content": text})
    for n, text in enumerate(TOKEN.findall(message.get("content") or "")):
        more: dict[str, Any] = {"logprobs": {"content": logprobs[n : n + 1]}} if logprobs else {}
        yield piece({"content": text}, **more, **({"token_ids": ids[n : n + 1]} if ids else {}))
    for n, call in enumerate(message.get("tool_calls") or ()):
        yield from (piece({"tool_calls": [{"index": n, **part}]}) for part in _call_parts(call))
    yield piece({}, finish_reason=choice["finish_reason"])


def _call_parts(call: dict[str, Any]) -> Iterator[dict[str, Any]]:
    function = call["function"]
    yield {"id": call["id"], "type": "function", "function": {"name": function["name"], "arguments": ""}}
    arguments = function["arguments"]
    for start in range(0, len(arguments), 5):
        yield {"function": {"arguments": arguments[start : start + 5]}}


def _oddly(events: list[bytes]) -> Iterator[bytes]:
    data = b": processing\r\n\r\n" + b": still at it\r\n\r\n".join(event.replace(b"\n", b"\r\n") for event in events)
    return (data[start : start + 7] for start in range(0, len(data), 7))
