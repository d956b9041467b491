"""The ways servers fail: garbled replies, broken and silent connections, errors."""

from __future__ import annotations

import asyncio
import time
from email.utils import formatdate

import msgspec

from weaverant.testing.answer import Answer, Scenario, error
from weaverant.testing.completions import Call, completion
from weaverant.testing.connection import Exchange
from weaverant.testing.stream import SILENCE_S, Ending

# Garbled replies


def malformed(call: Call) -> Answer:
    return Answer(completion(call), body=b'{"id": "x", "choices": [{"message": {"content": "cut off')


def truncated_utf8(call: Call) -> Answer:
    whole = completion(call, "caf\u00e9")
    return Answer(whole, body=msgspec.json.encode(whole).replace("\u00e9".encode(), "\u00e9".encode()[:1]))


def gzip_broken(call: Call) -> Answer:
    return Answer(completion(call), body=b"this is no gzip", headers={"Content-Encoding": "gzip"})


def html(call: Call) -> Answer:
    return Answer(completion(call), body=b"<html><body>Welcome</body></html>", kind="text/html; charset=utf-8")


def no_choices(call: Call) -> Answer:
    return Answer(completion(call), body=b'{"id": "x", "choices": []}')


def absurd_usage(call: Call) -> Answer:
    """A good reply, said to be of more tokens than 64 bits can count, and to give money back."""
    whole = msgspec.json.encode({**completion(call), "usage": {}})
    told = b'"usage":{"prompt_tokens":-7,"completion_tokens":%d,"cost":-1000.0}' % 10**25
    return Answer(completion(call), body=whole.replace(b'"usage":{}', told))


def absurd_limits(call: Call) -> Answer:
    """A good reply, with headers that tell of a rate limit what cannot be."""
    told = {"limit": "100000", "remaining": "7", "reset": "Mon, 01 Jan 2024 00:00:00 +99999999999999999"}
    return Answer(completion(call), headers={f"x-ratelimit-{what}-requests": text for what, text in told.items()})


def deep(call: Call) -> Answer:
    return Answer(completion(call), body=b'{"x": ' + b"[" * 200_000)


# Broken and silent connections


def hang(call: Call) -> Answer:
    """Never answers; no work is done."""

    async def play(exchange: Exchange) -> None:
        await asyncio.sleep(SILENCE_S)

    return Answer(play=play)


def drop_mid_body(call: Call) -> Answer:
    """Promises a length, sends half of it, closes."""
    whole = completion(call)
    data = msgspec.json.encode(whole)

    async def play(exchange: Exchange) -> None:
        exchange.promise(len(data), data[: len(data) // 2])
        exchange.connection.close()

    return Answer(whole, play=play)


def reset(call: Call) -> Answer:
    """Resets the connection when the work is done, before a byte of the reply is sent."""

    async def play(exchange: Exchange) -> None:
        exchange.connection.abort()

    return Answer(completion(call), play=play)


def reset_storm(call: Call) -> Answer:
    """Resets every connection of the server."""

    async def play(exchange: Exchange) -> None:
        for connection in list(exchange.connection.siblings):
            connection.abort()

    return Answer(completion(call), play=play)


def ending(how: Ending) -> Scenario:
    return lambda call: Answer(completion(call), ending=how)


# Errors


def fault(status: int, headers: dict[str, str] | None = None) -> Scenario:
    return lambda call: error(status, f"a {status} on purpose", headers)


def rate_limited_until(call: Call) -> Answer:
    """429 with Retry-After as an HTTP date, a second or two from now."""
    return error(429, "a 429 on purpose", {"Retry-After": formatdate(time.time() + 2, usegmt=True)})


def redirect(call: Call) -> Answer:
    return Answer(status=307, body=b"", headers={"Location": "http://127.0.0.1:9/elsewhere/v1?token=hidden"})


def error_in_200(call: Call) -> Answer:
    return Answer(body=msgspec.json.encode({"error": {"message": "provider overloaded", "code": 502}}))


def context(call: Call) -> Answer:
    return error(400, "This model's maximum context length is 4096 tokens. However, you requested 9000 tokens.")


def leak(call: Call) -> Answer:
    """Repeats the key it was sent, as some gateways do."""
    return error(403, f"Incorrect API key provided: {call.exchange.headers.get('authorization', 'none')}")
