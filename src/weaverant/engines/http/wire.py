"""Chat completions as bytes: `encode` a request, `decode` a reply, and say what a failed one means.

Unknown, absent and null fields are tolerated; a reply that is lost or garbled is a `StepFailed`.
Reasoning is read from replies and never sent back: servers differ on whether they accept it.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec
from msgspec import Struct

from weaverant.errors import StepFailed
from weaverant.message import FinishReason, Message, Reply, Request, TextPart, ToolCall, Usage

SHOWN = 300
"""Characters of a server's own words kept in a failure."""


def encode(request: Request, model: str, *, limit_field: str = "max_tokens") -> bytes:
    """The JSON body. `sampling.extra` goes in last, so it can replace any field."""
    body: dict[str, Any] = {"model": model, "messages": [_said(message) for message in request.messages]}
    body["seed"] = request.seed
    sampling = request.sampling
    if sampling.temperature is not None:
        body["temperature"] = sampling.temperature
    if sampling.top_p is not None:
        body["top_p"] = sampling.top_p
    if sampling.max_tokens is not None:
        body[limit_field] = sampling.max_tokens
    if sampling.stop:
        body["stop"] = sampling.stop
    if sampling.logprobs:
        body["logprobs"] = True
    if request.tools:
        body["tools"] = [{"type": "function", "function": tool} for tool in request.tools]
    if request.output is not None:
        name = re.sub(r"[^A-Za-z0-9_-]", "_", request.output.name)[:64] or "output"
        schema = {"name": name, "schema": request.output.schema}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    body.update(sampling.extra)
    try:
        return _encode(body)
    except UnicodeEncodeError as error:
        raise StepFailed(
            "request", f"a message holds half a surrogate pair, which UTF-8 cannot carry: {error.reason}"
        ) from None
    except (TypeError, ValueError, RecursionError) as error:
        raise StepFailed("request", f"the request cannot be written as JSON: {error}") from None


def decode(body: bytes, key: str | None = None) -> Reply:
    """The first choice as a reply, or `StepFailed` of kind `server`. `usage.requests` is the caller's to set."""
    answer = _decode(body, key)
    if not answer.choices:
        raise StepFailed("server", f"the reply has no choices; it reads {shown(body, key)!r}")
    choice = answer.choices[0]
    said = choice.message
    calls = tuple(
        ToolCall(call.id or f"call_{n}", call.function.name, _arguments(call.function.arguments))
        for n, call in enumerate(said.tool_calls or ())
    )
    text = said.content if isinstance(said.content, str) else "".join(p.text or "" for p in said.content or ())
    message = Message("assistant", text, calls, None, said.reasoning_content or said.reasoning or None)
    return Reply(message, _usage(answer.usage), answer.model or "", _finish(choice.finish_reason))


def failure(status: int, body: bytes, key: str | None = None) -> StepFailed:
    """What an HTTP status that is not 200 means, in the server's own words."""
    text, code = _complaint(body, key)
    if status == 429:
        return StepFailed("rate_limit", f"the server is limiting us (429): {text}")
    if status >= 500 or status == 408:
        return StepFailed("server", f"the server failed ({status}): {text}")
    if code == "context_length_exceeded" or (status in (400, 413, 422) and _TOO_LONG.search(text)):
        return StepFailed("context", f"the prompt is too long for the model ({status}): {text}")
    hint = _HINTS.get(status, "")
    return StepFailed("request", f"the server refused the request ({status}): {text}{hint}")


def true_status(body: bytes) -> int:
    """200, or the status of an error that came under HTTP status 200, as some gateways send it."""
    if b'"error"' not in body:
        return 200
    try:
        found = _decode_error(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return 200
    if not isinstance(found.error, _Error) or bytes(found.choices) not in (b"", b"null", b"[]"):
        return 200
    code = found.error.code
    return code if isinstance(code, int) and 400 <= code < 600 else 500


def shown(body: bytes, key: str | None) -> str:
    """The beginning of a body, for people. Some servers repeat the key they were sent; it is not shown."""
    if key:
        body = body.replace(key.encode(), b"[key]")
    text = " ".join(body[: 4 * SHOWN].decode(errors="replace").split())
    return text[:SHOWN] + "..." if len(text) > SHOWN else text


class _Function(Struct):
    name: str
    arguments: str | dict[str, Any] | None = None


class _Call(Struct):
    function: _Function
    id: str | None = None


class _Piece(Struct):
    text: str | None = None


class _Said(Struct):
    content: str | list[_Piece] | None = None
    tool_calls: list[_Call] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class _Choice(Struct):
    message: _Said
    finish_reason: str | None = None


class _PromptDetails(Struct):
    cached_tokens: int | None = None


class _CompletionDetails(Struct):
    reasoning_tokens: int | None = None


class _Spent(Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _PromptDetails | None = None
    completion_tokens_details: _CompletionDetails | None = None
    cost: float | None = None


class _Completion(Struct):
    choices: list[_Choice] | None = None
    usage: _Spent | None = None
    model: str | None = None


class _Error(Struct):
    message: str | None = None
    code: str | int | None = None


class _Complaint(Struct):
    error: _Error | str | None = None
    message: str | None = None
    detail: Any = None
    code: str | int | None = None
    choices: msgspec.Raw = msgspec.Raw()


_encode = msgspec.json.Encoder().encode
_decode_completion = msgspec.json.Decoder(_Completion).decode
_decode_error = msgspec.json.Decoder(_Complaint).decode

_TOO_LONG = re.compile(
    r"context[ _](length|window|size)|maximum model len|max_model_len|prompt is too long|too many (input )?tokens"
    r"|exceeds? .{0,40}\btokens\b",
    re.IGNORECASE,
)
_HINTS = {
    401: ". Name the environment variable that holds the key: ...?key_env=NAME",
    403: ". Name the environment variable that holds the key: ...?key_env=NAME",
    404: ". Check the model name after # and that the address ends as the server expects, often in /v1",
}
_FINISHES: dict[str | None, FinishReason] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "content_filter": "content_filter",
}


def _said(message: Message) -> dict[str, Any]:
    said: dict[str, Any] = {"role": message.role, "content": message.content}
    if not isinstance(message.content, str):
        said["content"] = [
            {"type": "text", "text": part.text}
            if isinstance(part, TextPart)
            else {"type": "image_url", "image_url": {"url": part.url}}
            for part in message.content
        ]
    if message.tool_calls:
        said["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
    if message.tool_call_id is not None:
        said["tool_call_id"] = message.tool_call_id
    return said


def _decode(body: bytes, key: str | None) -> _Completion:
    try:
        return _decode_completion(body)
    except RecursionError:
        problem = "is nested too deeply"
    except UnicodeDecodeError as error:
        problem = f"is not UTF-8 ({error.reason})"
    except msgspec.ValidationError as error:
        problem = f"is no chat completion: {error}"
    except msgspec.DecodeError as error:
        problem = f"is not JSON: {error}"
    raise StepFailed("server", f"the reply {problem}; it reads {shown(body, key)!r}")


def _usage(spent: _Spent | None) -> Usage:
    if spent is None:
        return Usage()
    prompt, completion = spent.prompt_tokens_details, spent.completion_tokens_details
    return Usage(
        prompt_tokens=spent.prompt_tokens or 0,
        completion_tokens=spent.completion_tokens or 0,
        cached_tokens=(prompt.cached_tokens or 0) if prompt else 0,
        reasoning_tokens=(completion.reasoning_tokens or 0) if completion else 0,
        cost=spent.cost or 0.0,
    )


def _finish(reason: str | None) -> FinishReason:
    return _FINISHES.get(reason, "other")


def _arguments(arguments: str | dict[str, Any] | None) -> str:
    if isinstance(arguments, str):
        return arguments
    return _encode(arguments or {}).decode()


def _complaint(body: bytes, key: str | None) -> tuple[str, str | int | None]:
    try:
        found = _decode_error(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return shown(body, key) or "no text", None
    if isinstance(found.error, _Error):
        text, code = found.error.message, found.error.code
    else:
        text, code = found.error or found.message, found.code
    return shown(text.encode(errors="replace") if text else body, key) or "no text", code
