"""What the test server says: chat completions that are a function of the request's body."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, cast
from zlib import crc32

import jsonschema
import msgspec

from weaverant.engines.simulated import example
from weaverant.message import digest
from weaverant.testing.connection import Exchange
from weaverant.testing.settings import Settings

MARK = "[mock]"
TOKEN = re.compile(r"\s*\S+|\s+")
"""A word with the blanks before it. The tokens of a text, joined, are the text."""


class Call(msgspec.Struct, eq=False):
    """One request; `times` is how often this body has come, this time included."""

    exchange: Exchange
    raw: bytes
    body: dict[str, Any]
    digest: bytes
    times: int
    settings: Settings


def estimate(call: Call) -> int:
    """The tokens of a request as rate limits count them."""
    return len(call.raw) // 4 + (most_tokens(call.body) or call.settings.tokens) * choices_asked(call.body)


def most_tokens(body: dict[str, Any]) -> int:
    """The request's bound on the tokens of a reply; 0 where it has none."""
    return int(body.get("max_completion_tokens") or body.get("max_tokens") or 0)


def choices_asked(body: dict[str, Any]) -> int:
    return int(body.get("n") or 1)


def completion(call: Call, text: str | None = None, others: tuple[str, ...] = ()) -> dict[str, Any]:
    """A whole reply. Without a text it is the usual one; each of `others` is the text of a further choice."""
    text = usual(call) if text is None else text
    texts = (text, *others)
    spent = call.settings.tokens * len(texts) or sum(len(each.split()) for each in texts)
    most = most_tokens(call.body) * len(texts)
    finish = "length" if 0 < most < spent else "stop"
    return {
        "id": f"chatcmpl-{call.digest.hex()}",
        "object": "chat.completion",
        "created": 0,
        "model": call.body.get("model"),
        "choices": [
            {
                "index": index,
                "message": {"role": "assistant", "content": each},
                "finish_reason": finish,
                "logprobs": None,
            }
            for index, each in enumerate(texts)
        ],
        "usage": usage(len(call.raw) // 4, min(spent, most) if most else spent),
    }


def usage(prompt: int, completion: int) -> dict[str, Any]:
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def usual(call: Call) -> str:
    """JSON that fits the schema which the request asks for, otherwise a line that tells bodies apart."""
    schema = asked_schema(call.body)
    return f"{MARK} {call.digest.hex()}" if schema is None else fitting(schema, call.digest)


def fitting(schema: dict[str, Any], drawn: bytes) -> str:
    return msgspec.json.encode(example(schema, drawn)).decode()


def asked_schema(body: dict[str, Any]) -> dict[str, Any] | None:
    wanted: dict[str, Any] = body.get("response_format") or {}
    return wanted["json_schema"]["schema"] if wanted.get("type") == "json_schema" else None


def told_schema(body: dict[str, Any]) -> dict[str, Any] | None:
    """A schema that the messages show, as models without a field for it are told."""
    decoder = json.JSONDecoder()
    for text in (part for message in reversed(body.get("messages") or []) for part in _texts(message.get("content"))):
        at = text.find("{")
        while at >= 0:
            found: dict[str, Any] = {}
            try:
                found, _ = decoder.raw_decode(text, at)
            except ValueError:
                pass
            if found.keys() & {"type", "properties", "anyOf", "enum", "$ref"}:
                return found
            at = text.find("{", at + 1)
    return None


def misfit(schema: dict[str, Any], drawn: bytes) -> str:
    """JSON that does not fit the schema; `ValueError` where everything fits."""
    validator = jsonschema.Draft202012Validator(schema)
    values: list[Any] = [{"wrong": drawn.hex()}, drawn.hex(), -0.5, None, [[]], {}]
    for value in values:
        if not validator.is_valid(value):  # pyright: ignore[reportUnknownMemberType]
            return json.dumps(value)
    raise ValueError(f"everything fits the schema {schema}")


def with_logprobs(call: Call) -> dict[str, Any]:
    """`n` different choices, each with `logprobs` and `token_ids` where the request asks for them."""
    body = call.body
    others = (f"{MARK} choice {n} {digest(call.digest + bytes([n])).hex()}" for n in range(1, choices_asked(body)))
    answer = completion(call, others=tuple(others))
    for choice in answer["choices"]:
        tokens = TOKEN.findall(choice["message"]["content"])
        if body.get("logprobs"):
            choice["logprobs"] = {"content": [_logprob(token, int(body.get("top_logprobs") or 0)) for token in tokens]}
        if body.get("return_token_ids"):
            choice["token_ids"] = [token_id(token) for token in tokens]
    if body.get("return_token_ids"):
        answer["prompt_token_ids"] = [token_id(str(n)) for n in range(answer["usage"]["prompt_tokens"])]
    return answer


def token_id(token: str) -> int:
    return crc32(token.encode()) % 50_000


def _logprob(token: str, top: int) -> dict[str, Any]:
    """A token with its `top` likeliest, itself the first of them."""
    first = -(crc32(token.encode()) % 256) / 256
    ranked = [(token, first)] + [(f"{token}{n}", first - n) for n in range(1, top)]
    shown = [{"token": text, "logprob": value, "bytes": list(text.encode())} for text, value in ranked]
    return {**shown[0], "top_logprobs": shown[:top]}


def _texts(content: object) -> Iterator[str]:
    if isinstance(content, str):
        yield content
    elif isinstance(content, list):
        for part in cast("list[dict[str, Any]]", content):
            yield str(part.get("text") or "")
