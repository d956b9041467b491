"""How the test server answers: well, or in one of the ways servers fail.

`NAME*N` fails only the first N times a body comes and answers well after that.
"""

from __future__ import annotations

import asyncio
import gzip
import time
from collections.abc import Awaitable, Callable
from email.utils import formatdate
from typing import Any, NamedTuple, TypeAlias

import msgspec
from aiohttp import web

from weaverant.engines.simulated import example

MARK = "[mock]"


class Call(NamedTuple):
    """One request; `times` is how often this body has come, this time included."""

    request: web.Request
    raw: bytes
    body: dict[str, Any]
    digest: bytes
    times: int


Answer: TypeAlias = Callable[[Call], Awaitable[web.StreamResponse]]


def find(name: str) -> Answer:
    """The answer of a scenario, `ValueError` if there is none of that name."""
    plain, _, times = name.partition("*")
    answer = SCENARIOS.get(plain)
    if answer is None:
        raise ValueError(f"no scenario {plain!r}; expected one of {', '.join(SCENARIOS)}")
    if not times:
        return answer

    async def at_first(call: Call) -> web.StreamResponse:
        return await (answer if call.times <= int(times) else ok)(call)

    return at_first


async def ok(call: Call) -> web.StreamResponse:
    return _json(_completion(call, _text(call)))


async def echo(call: Call) -> web.StreamResponse:
    """The text is the request's body as it came, after the names and values of its headers."""
    headers = {name.lower(): value for name, value in call.request.headers.items()}
    return _json(_completion(call, msgspec.json.encode({"headers": headers, "body": call.body}).decode()))


async def tool(call: Call) -> web.StreamResponse:
    """Calls the first tool of the request, with arguments that fit its schema."""
    function = call.body["tools"][0]["function"]
    arguments = msgspec.json.encode(example(function["parameters"], call.digest)).decode()
    answer = _completion(call, None)
    answer["choices"][0]["finish_reason"] = "tool_calls"
    answer["choices"][0]["message"]["tool_calls"] = [
        {"id": "call_a", "type": "function", "function": {"name": function["name"], "arguments": arguments}}
    ]
    return _json(answer)


async def reasoning(call: Call) -> web.StreamResponse:
    answer = _completion(call, _text(call))
    answer["choices"][0]["message"]["reasoning_content"] = "let me think"
    answer["usage"]["completion_tokens_details"] = {"reasoning_tokens": 3}
    answer["usage"]["prompt_tokens_details"] = {"cached_tokens": 2}
    return _json(answer)


async def hang(call: Call) -> web.StreamResponse:
    await asyncio.sleep(3600)
    return await ok(call)


async def drop_mid_body(call: Call) -> web.StreamResponse:
    """Promises a length, sends half of it, closes."""
    whole = msgspec.json.encode(_completion(call, _text(call)))
    response = web.StreamResponse(headers={"Content-Type": "application/json", "Content-Length": str(len(whole))})
    await response.prepare(call.request)
    await response.write(whole[: len(whole) // 2])
    assert call.request.transport is not None
    call.request.transport.close()
    return response


async def reset(call: Call) -> web.StreamResponse:
    """Breaks the connection before a byte of the reply is sent."""
    assert call.request.transport is not None
    call.request.transport.abort()
    return web.Response(status=500)


async def malformed(call: Call) -> web.StreamResponse:
    return _bytes(b'{"id": "x", "choices": [{"message": {"content": "cut off')


async def truncated_utf8(call: Call) -> web.StreamResponse:
    whole = msgspec.json.encode(_completion(call, "caf\u00e9"))
    return _bytes(whole.replace("\u00e9".encode(), "\u00e9".encode()[:1]))


async def huge(call: Call) -> web.StreamResponse:
    """A hundred megabytes, in chunks."""
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    await response.prepare(call.request)
    for _ in range(100):
        await response.write(b" " * 1_000_000)
    return response


async def slow_drip(call: Call) -> web.StreamResponse:
    """A byte every 5 ms: a connection that is never idle and never done."""
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    await response.prepare(call.request)
    for byte in msgspec.json.encode(_completion(call, _text(call))):
        await response.write(bytes([byte]))
        await asyncio.sleep(0.005)
    return response


async def chunked(call: Call) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    await response.prepare(call.request)
    whole = msgspec.json.encode(_completion(call, _text(call)))
    for start in range(0, len(whole), 7):
        await response.write(whole[start : start + 7])
    return response


async def redirect(call: Call) -> web.StreamResponse:
    return web.Response(status=307, headers={"Location": "http://127.0.0.1:9/elsewhere/v1?token=hidden"})


async def gzipped(call: Call) -> web.StreamResponse:
    return _bytes(gzip.compress(msgspec.json.encode(_completion(call, _text(call)))), encoding="gzip")


async def gzip_broken(call: Call) -> web.StreamResponse:
    return _bytes(b"this is no gzip", encoding="gzip")


async def html(call: Call) -> web.StreamResponse:
    return web.Response(text="<html><body>Welcome</body></html>", content_type="text/html")


async def no_choices(call: Call) -> web.StreamResponse:
    return _bytes(b'{"id": "x", "choices": []}')


async def deep(call: Call) -> web.StreamResponse:
    return _bytes(b'{"x": ' + b"[" * 200_000)


async def error_in_200(call: Call) -> web.StreamResponse:
    return _json({"error": {"message": "provider overloaded", "code": 502}})


async def context(call: Call) -> web.StreamResponse:
    text = "This model's maximum context length is 4096 tokens. However, you requested 9000 tokens."
    return _json({"error": {"message": text, "type": "BadRequestError"}}, 400)


async def leak(call: Call) -> web.StreamResponse:
    """Repeats the key it was sent, as some gateways do."""
    sent = call.request.headers.get("Authorization", "none")
    return _json({"error": {"message": f"Incorrect API key provided: {sent}"}}, 401)


async def rate_limited_until(call: Call) -> web.StreamResponse:
    """429 with Retry-After as an HTTP date, a second or two from now."""
    return _status(429, {"Retry-After": formatdate(time.time() + 2, usegmt=True)})


def fault(status: int, headers: dict[str, str] | None = None) -> Answer:
    async def answer(call: Call) -> web.StreamResponse:
        return _status(status, headers)

    return answer


SCENARIOS: dict[str, Answer] = {
    "ok": ok,
    "echo": echo,
    "tool": tool,
    "reasoning": reasoning,
    "no-models": ok,
    "two-models": ok,
    **{f"fault-{status}": fault(status) for status in (400, 401, 403, 404, 408, 422, 429, 500, 502, 503, 504)},
    "fault-429-retry-after": fault(429, {"Retry-After": "1"}),
    "fault-429-retry-after-date": rate_limited_until,
    "fault-429-retry-after-long": fault(429, {"Retry-After": "3600"}),
    "context": context,
    "leak": leak,
    "hang": hang,
    "drop-mid-body": drop_mid_body,
    "reset": reset,
    "malformed": malformed,
    "truncated-utf8": truncated_utf8,
    "huge": huge,
    "slow-drip": slow_drip,
    "chunked": chunked,
    "redirect": redirect,
    "gzip": gzipped,
    "gzip-broken": gzip_broken,
    "html": html,
    "no-choices": no_choices,
    "deep": deep,
    "error-in-200": error_in_200,
}


def _text(call: Call) -> str:
    wanted: dict[str, Any] = call.body.get("response_format") or {}
    if wanted.get("type") == "json_schema":
        return msgspec.json.encode(example(wanted["json_schema"]["schema"], call.digest)).decode()
    return f"{MARK} {call.digest.hex()}"


def _completion(call: Call, text: str | None) -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    return {
        "id": f"chatcmpl-{call.digest.hex()}",
        "object": "chat.completion",
        "created": 0,
        "model": call.body.get("model"),
        "choices": [{"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}],
        "usage": {"prompt_tokens": len(call.raw) // 4, "completion_tokens": len((text or "").split())},
    }


def _json(answer: dict[str, Any], status: int = 200) -> web.Response:
    return web.Response(status=status, body=msgspec.json.encode(answer), content_type="application/json")


def _bytes(body: bytes, encoding: str | None = None) -> web.Response:
    headers = {"Content-Encoding": encoding} if encoding else None
    return web.Response(body=body, content_type="application/json", headers=headers)


def _status(status: int, headers: dict[str, str] | None = None) -> web.Response:
    body = msgspec.json.encode({"error": {"message": f"a {status} on purpose", "code": None}})
    return web.Response(status=status, body=body, content_type="application/json", headers=headers)
