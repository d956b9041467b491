"""Chat completions as bytes: `Bodies` encode requests, `decode` a reply, and say what a failed one means.

A reply that is lost or garbled is a `StepFailed`. Reasoning is read from replies and never sent back: servers differ
on whether they accept it.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec
from msgspec import Raw, Struct

from weaverant.engines.http.chat.completion import Completion, read, read_plain
from weaverant.engines.http.chat.structured import in_prompt, response_format
from weaverant.engines.http.key import Key
from weaverant.engines.http.presets import OTHER, Preset
from weaverant.errors import StepFailed
from weaverant.message import Message, OutputSchema, Reply, Request, Sampling, TextPart, ToolSpec

SHOWN = 300
"""Characters of a server's own words kept in a failure."""

MOST_FORMS = 256
"""Bodies that are remembered. A workflow may make an agent for each row."""


class Bodies:
    """Requests to one model as JSON, in the provider's dialect."""

    def __init__(self, model: str, preset: Preset = OTHER) -> None:
        self._model = model
        self._preset = preset
        self._forms: dict[tuple[int, bool, bool], _Form] = {}
        """By the identity of the sampling, which a form keeps alive. All requests of an agent have the very same
        objects: to compare what is in them would take longer."""

    def encode(self, request: Request, *, schema_in_prompt: bool = False, stream: bool = False) -> bytes:
        """The body. `sampling.extra` goes in last, so it can replace any field.

        An output's schema goes to the server, or into the prompt; a stream is asked to end with the usage.
        """
        messages, output = request.messages, request.output
        key = id(request.sampling), schema_in_prompt, stream
        form = self._forms.get(key)
        if output is not None and schema_in_prompt:
            messages = in_prompt(messages, output)
        try:
            if form is None or form.tools is not request.tools or form.output is not output:
                form = self._remember(key, request)
            said = _encode(list(map(_said, messages)))
        except UnicodeEncodeError as error:
            raise StepFailed(
                "request", f"a message holds half a surrogate pair, which UTF-8 cannot carry: {error.reason}"
            ) from None
        except (TypeError, ValueError, RecursionError) as error:
            raise StepFailed("request", f"the request cannot be written as JSON: {error}") from None
        return form.text.replace(_SEED, b"%d" % request.seed).replace(_MESSAGES, said)

    def _remember(self, key: tuple[int, bool, bool], request: Request) -> _Form:
        if len(self._forms) >= MOST_FORMS:
            self._forms.clear()
        body = self._body(request, *key[1:])
        form = self._forms[key] = _Form(request.sampling, request.tools, request.output, _encode(body))
        return form

    def _body(self, request: Request, schema_in_prompt: bool, stream: bool) -> dict[str, Any]:
        preset, output = self._preset, request.output
        body: dict[str, Any] = {"model": self._model, "messages": Raw(_MESSAGES), "seed": Raw(_SEED)}
        _sample(body, request.sampling, preset.limit_field)
        if request.tools:
            body["tools"] = [{"type": "function", "function": tool} for tool in request.tools]
        if output is not None and not schema_in_prompt:
            body["response_format"] = response_format(output)
        elif output is not None and preset.json_object and output.schema.get("type") == "object":
            body["response_format"] = {"type": "json_object"}
        if stream:
            body["stream"] = True
            body["stream_options"] = {"include_usage": True}
        preset.adapt(body, request)
        body.update(request.sampling.extra)
        return body


class _Form(Struct, frozen=True):
    """The body that all requests of an agent share, but for what stands in its gaps."""

    sampling: Sampling
    tools: tuple[ToolSpec, ...]
    output: OutputSchema | None
    text: bytes


_MESSAGES, _SEED = b"\0messages", b"\0seed"
"""The gaps. No JSON holds a null."""


def decode(body: bytes, key: Key | None = None) -> Reply:
    """All choices as a reply, or `StepFailed` of kind `server`. `usage.requests` is the caller's to set."""
    try:
        completion = _decode_completion(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise StepFailed("server", f"the reply {garbled(error)}; it reads {shown(body, key)!r}") from None
    return reply(completion, body, key)


def reply(completion: Completion, body: bytes, key: Key | None = None) -> Reply:
    """As `decode`, of a completion already read; `body` is what is shown of one without choices."""
    plain = read_plain(completion)
    if plain is not None:
        return plain
    for choice in completion.choices or ():
        if choice.error is not None:
            error = shown(str(choice.error).encode(errors="replace"), key)
            raise StepFailed("server", f"the server broke off within the reply: {error}")
    found = read(completion)
    if found is None:
        raise StepFailed("server", f"the reply has no choices; it reads {shown(body, key)!r}")
    return found


def garbled(error: Exception) -> str:
    """What is wrong with bytes that should have been a chat completion, after "the reply"."""
    if isinstance(error, RecursionError):
        return "is nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return f"is not UTF-8 ({error.reason})"
    if isinstance(error, msgspec.ValidationError):
        return f"is no chat completion: {error}"
    return f"is not JSON: {error}"


def failure(status: int, body: bytes, key: Key | None = None) -> StepFailed:
    """What an HTTP status that is not 200 means, in the server's own words."""
    text, code = _complaint(body, key)
    if not text.endswith(".."):
        text = text.removesuffix(".")  # it goes on, with a hint or how often it was tried
    if status == 429:
        return StepFailed("rate_limit", f"the server is limiting us (429): {text}")
    if status >= 500 or status == 408:
        return StepFailed("server", f"the server failed ({status}): {text}")
    if code == "context_length_exceeded" or (status in (400, 413, 422) and _TOO_LONG.search(text)):
        return StepFailed("context", f"the prompt is too long for the model ({status}): {text}")
    hint = _REFUSED if key is not None and status in (401, 403) else _HINTS.get(status, "")
    return StepFailed("request", f"the server refused the request ({status}): {text}{hint}")


def true_status(body: bytes) -> int:
    """Of what is no reply: 200, or the status of an error that came under HTTP status 200, as some gateways send it."""
    try:
        found = _decode_error(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return 200
    if not isinstance(found.error, _Error) or bytes(found.choices) not in (b"", b"null", b"[]"):
        return 200
    return _status(found.error.code)


def event_status(data: bytes) -> int:
    """The status of an error that came as an event of a stream."""
    try:
        found = _decode_error(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return 500
    return _status(found.error.code if isinstance(found.error, _Error) else found.code)


def shown(body: bytes, key: Key | None) -> str:
    """The beginning of a body, for people. Some servers repeat the key they were sent; it is not shown."""
    begun = body[: 4 * SHOWN] if key is None else key.hide_in(body, 4 * SHOWN)
    text = " ".join(begun.decode(errors="replace").split())
    return text[:SHOWN] + "..." if len(text) > SHOWN else text


class _Error(Struct):
    message: str | None = None
    code: str | int | None = None


class _Complaint(Struct):
    error: _Error | str | None = None
    message: str | None = None
    detail: Any = None
    code: str | int | None = None
    choices: Raw = Raw()


_encode = msgspec.json.Encoder().encode
_decode_completion = msgspec.json.Decoder(Completion).decode
_decode_error = msgspec.json.Decoder(_Complaint).decode

_TOO_LONG = re.compile(
    r"context[ _](length|window|size)|maximum model len|max_model_len|prompt is too long|too many (input )?tokens"
    r"|exceeds? .{0,40}\btokens\b",
    re.IGNORECASE,
)
_REFUSED = ". A key was sent, and did not open this: is it this server's, and may it use this model?"
_KEYLESS = (
    ". No key was sent. It is read from the environment variable WEAVERANT_API_KEY, or from the one that the address "
    "names: ...?key_env=NAME"
)
_HINTS = {
    401: _KEYLESS,
    403: _KEYLESS,
    404: ". Check the model name after # and that the address ends as the server expects, often in /v1",
}


def _sample(body: dict[str, Any], sampling: Sampling, limit_field: str) -> None:
    if sampling.temperature is not None:
        body["temperature"] = sampling.temperature
    if sampling.top_p is not None:
        body["top_p"] = sampling.top_p
    if sampling.max_tokens is not None:
        body[limit_field] = sampling.max_tokens
    if sampling.stop:
        body["stop"] = sampling.stop
    if sampling.n != 1:
        body["n"] = sampling.n
    if sampling.logprobs or sampling.top_logprobs:
        body["logprobs"] = True
    if sampling.top_logprobs:
        body["top_logprobs"] = sampling.top_logprobs


def _said(message: Message) -> Message | dict[str, Any]:
    if message.content and type(message.content) is str and not message.tool_calls and message.reasoning is None:
        return message  # its fields are those of the wire
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


def _status(code: str | int | None) -> int:
    return code if isinstance(code, int) and 400 <= code < 600 else 500


def _complaint(body: bytes, key: Key | None) -> tuple[str, str | int | None]:
    try:
        found = _decode_error(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return shown(body, key) or "no text", None
    if isinstance(found.error, _Error):
        text, code = found.error.message, found.error.code
    else:
        text, code = found.error or found.message, found.code
    return shown(text.encode(errors="replace") if text else body, key) or "no text", code
