"""Replies of servers, whole and as streams: a `Reply` that can be stored and sent again, or `StepFailed`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import msgspec

from fuzz_data import cut_up, spoilt, text, value
from weaverant.engines.http.chat import wire
from weaverant.engines.http.chat.completion import told
from weaverant.engines.http.chat.sse import Events
from weaverant.engines.http.chat.stream import Stream
from weaverant.errors import StepFailed
from weaverant.message import Message, Reply, Request, user
from weaverant.step import reply_of, reply_value


def calls(odds: Random, folder: Path) -> None:
    """A completion: as it should be, with odd parts, or spoilt."""
    whole = completion(odds)
    if odds.random() < 0.5:
        whole = odd(whole, odds)
    body = json.dumps(whole).encode()
    if odds.random() < 0.4:
        body = spoilt(body, odds)
    check(lambda: wire.decode(body))
    wire.true_status(body)
    wire.event_status(body)
    said = wire.failure(odds.choice((400, 401, 413, 429, 500)), body)
    assert len(said.text) < 1_000


def streams(odds: Random, folder: Path) -> None:
    """The same reply, in any pieces, is the same as in one; a spoilt stream ends somehow."""
    whole = completion(odds)
    events = [f"data: {json.dumps(part)}\n\n".encode() for part in parts(whole, odds)]
    body = (b"".join(events) + b"data: [DONE]\n\n").replace(b"\n", odds.choice((b"\n", b"\r\n", b"\r")))
    found, expected = check(lambda: gathered(body, odds)), check(lambda: wire.decode(json.dumps(whole).encode()))
    assert found is not None and expected is not None and found.choices == expected.choices, (found, expected)
    spoiled = spoilt(body, odds)
    check(lambda: gathered(spoiled, odds))
    assert feed(cut_up(spoiled, odds)) == reference(spoiled)


def check(read: Callable[[], Reply]) -> Reply | None:
    try:
        reply = read()
    except StepFailed:
        return None
    stored = msgspec.msgpack.decode(msgspec.msgpack.encode(reply_value(reply)))
    assert reply_of(stored, reply.usage, reply.model) == reply
    assert 0 <= reply.usage.prompt_tokens <= 10**9 and 0 <= reply.usage.cost <= 1e6
    for choice in reply.choices:
        assert all(isinstance(call.arguments, str) and isinstance(call.name, str) for call in choice.message.tool_calls)
    told(reply)
    again: tuple[Message, ...] = (user("hi"), *(choice.message for choice in reply.choices))
    json.loads(wire.Bodies("m").encode(Request("a", "m", again)))
    return reply


def gathered(body: bytes, odds: Random) -> Reply:
    stream = Stream()
    for piece in cut_up(body, odds):
        stream.feed(piece)
        assert isinstance(stream.settled, bool) and isinstance(stream.spoke, bool)
    found = stream.end()
    if stream.failed is not None or stream.garbled is not None or found is None:
        raise StepFailed("server", f"{stream.garbled!r}")
    return wire.reply(found, stream.raw)


def completion(odds: Random) -> dict[str, Any]:
    usage = {"prompt_tokens": odds.randrange(100), "completion_tokens": odds.randrange(100)}
    return {"model": "m", "choices": [choice(odds, n) for n in range(odds.choice((1, 1, 3)))], "usage": usage}


def choice(odds: Random, index: int) -> dict[str, Any]:
    wanted = [
        {
            "id": f"c{n}",
            "index": n,
            "type": "function",
            "function": {"name": "f", "arguments": json.dumps(value(odds, 1))},
        }
        for n in range(odds.choice((0, 0, 1, 3)))
    ]
    said = {"role": "assistant", "content": text(odds), "reasoning_content": text(odds) or None, "tool_calls": wanted}
    return {"index": index, "message": said, "finish_reason": odds.choice(("stop", "length", "tool_calls", "odd"))}


def parts(whole: dict[str, Any], odds: Random) -> list[dict[str, Any]]:
    """The pieces in which a server may send it, the choices in turns."""
    pieces: list[dict[str, Any]] = []
    for one in whole["choices"]:
        said = one["message"]
        deltas: list[dict[str, Any]] = [{"role": "assistant", "reasoning_content": said["reasoning_content"]}]
        deltas += [{"content": letters} for letters in halves(said["content"], odds)]
        for call in said["tool_calls"]:
            deltas.append({"tool_calls": [{**call, "function": {"name": call["function"]["name"], "arguments": ""}}]})
            for letters in halves(call["function"]["arguments"], odds):
                deltas.append({"tool_calls": [{"index": call["index"], "function": {"arguments": letters}}]})
        pieces += [{"choices": [{"index": one["index"], "delta": delta}]} for delta in deltas]
        pieces.append({"choices": [{"index": one["index"], "delta": {}, "finish_reason": one["finish_reason"]}]})
    return [*pieces, {"choices": [], "usage": whole["usage"], "model": whole["model"]}]


def halves(said: str, odds: Random) -> tuple[str, str]:
    at = odds.randrange(len(said) + 1)
    return said[:at], said[at:]


def odd(found: Any, odds: Random) -> Any:
    """With values where others belong, and huge or nested ones."""
    if odds.random() < 0.08:
        return odds.choice(ODD) if odds.random() < 0.5 else value(odds)
    if isinstance(found, list):
        return [odd(part, odds) for part in found]
    if isinstance(found, dict):
        return {key: odd(part, odds) for key, part in found.items() if odds.random() < 0.97}
    return found


DEEP: Any = []
for _ in range(150):
    DEEP = [DEEP]
ODD = (
    10**30,
    -(10**30),
    1e308,
    DEEP,
    {"x": 10**30},
    {"": DEEP},
    "\ud800",
    "x" * 10_000,
    [None] * 50,
    {"error": "no"},
    -1,
)


# A second reading of the HTML standard's section 9.2.6


def reference(body: bytes) -> list[tuple[bytes, bytes]]:
    found: list[tuple[bytes, bytes]] = []
    kind, data = b"", []
    for line in [*re.split(b"\r\n|\n|\r", body.removeprefix(b"\xef\xbb\xbf")), b""]:
        if not line:
            found += [(kind, b"\n".join(data))] if data else []
            kind, data = b"", []
        name, _, said = line.partition(b":")
        said = said[1:] if said[:1] == b" " else said
        if name == b"data":
            data.append(said)
        elif name == b"event":
            kind = said
    return found


def feed(pieces: list[bytes]) -> list[tuple[bytes, bytes]]:
    events = Events()
    found = [event for piece in pieces for event in events.feed(piece)]
    return [tuple(event) for event in (*found, *events.end())]


def _streamed(body: bytes) -> None:
    stream = Stream()
    for at in range(0, len(body), 1_000):
        stream.feed(body[at : at + 1_000])
    stream.end()


def _delta(call: str, index: int = 0) -> bytes:
    return b'data: {"choices":[{"index":%d,"delta":{"tool_calls":[%s]}}]}\n\n' % (index, call.encode())


GROWING: dict[str, Callable[[int], Any]] = {
    "calls": lambda n: _streamed(b"".join(_delta(f'{{"index":{i},"id":"c{i}"}}') for i in range(n))),
    "calls all numbered 0": lambda n: _streamed(b"".join(_delta(f'{{"index":0,"id":"c{i}"}}') for i in range(n))),
    "pieces of one call": lambda n: _streamed(_delta('{"index":0,"function":{"arguments":"ab"}}') * n),
    "choices": lambda n: _streamed(b"".join(_delta("", i) for i in range(n))),
    "a line without end": lambda n: _streamed(b"data: " + b"x" * 20 * n),
    "lines of data": lambda n: _streamed(b"data: x\n" * n),
    "carriage returns": lambda n: feed([b"data: x\r"] * n),
    "calls in one body": lambda n: wire.decode(
        json.dumps({"choices": [{"message": {"tool_calls": [{}] * n}}]}).encode()
    ),
    "brackets": lambda n: wire.failure(500, b"[" * n),
}
