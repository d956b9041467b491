"""How a server, or the model itself, is told the JSON schema that a reply must satisfy.

Servers differ in what they take, so the form is a matter of the wire and no part of a request's fingerprint.
"""

from __future__ import annotations

import json
import re
from typing import Any, cast

import msgspec

from weaverant.engines.http.attempt import Trouble
from weaverant.message import Message, OutputSchema, TextPart, digest

TOLD = (
    "Your final answer must be one JSON value that satisfies the JSON schema below, and nothing else: no words before "
    "or after it, no code fence.\n\n"
)

_REFUSED = re.compile(
    rb"response_?format|json_?schema|guided|structured|grammar"
    rb"|(unknown|unrecogni[sz]ed|unsupported|unexpected|extra) (field|key|argument|parameter|input|property)",
    re.IGNORECASE,
)
_REFUSING = frozenset((400, 422, 501))
_ODD = re.compile(r"[^A-Za-z0-9_-]")
_STRICT = {
    *("type", "properties", "required", "additionalProperties", "items", "enum", "const", "anyOf"),
    *("$ref", "$defs", "definitions", "title", "description"),
    *("pattern", "format", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
    *("minItems", "maxItems"),
}
"""Keywords that every server's strict mode takes, as far as OpenAI documents its own."""
_NAMED = ("properties", "$defs", "definitions")


def response_format(output: OutputSchema) -> dict[str, Any]:
    """`strict` is asked for only where the schema qualifies: elsewhere OpenAI refuses the request."""
    described: dict[str, Any] = {"name": _ODD.sub("_", output.name)[:64] or "output", "schema": output.schema}
    if output.schema.get("type") == "object" and strict(output.schema):
        described["strict"] = True
    return {"type": "json_schema", "json_schema": described}


def strict(schema: Any) -> bool:
    """Whether all objects in the schema require all their properties and allow no others, and nothing in it is
    outside the subset that strict modes share."""
    if not isinstance(schema, dict):
        return False
    told = cast("dict[str, Any]", schema)
    kinds = told.get("type", ())
    kinds = (kinds,) if isinstance(kinds, str) else kinds
    if "$ref" in told:
        return len(told) == 1
    if not told.keys() <= _STRICT or not (kinds or told.keys() & {"enum", "const", "anyOf"}):
        return False
    if "array" in kinds and "items" not in told:
        return False
    if "object" in kinds or "properties" in told:
        names = told.get("properties", {}).keys()
        if told.get("additionalProperties") is not False or set(told.get("required", ())) != names:
            return False
    inner = [part for keyword in _NAMED for part in told.get(keyword, {}).values()]
    inner += told.get("anyOf", [])
    if "items" in told:
        inner.append(told["items"])
    return all(map(strict, inner))


def in_prompt(messages: tuple[Message, ...], output: OutputSchema) -> tuple[Message, ...]:
    """The messages with the schema at the end of their last system message, or in a new first one."""
    told = TOLD + json.dumps(output.schema, ensure_ascii=False)
    places = [n for n, message in enumerate(messages) if message.role == "system"]
    if not places:
        return (Message("system", told), *messages)
    place = places[-1]
    said = messages[place].content
    content = f"{said}\n\n{told}" if isinstance(said, str) else (*said, TextPart(told))
    return (*messages[:place], Message("system", content), *messages[place + 1 :])


class Schemas:
    """Which schemas a server has refused. One by one: it may take others, or refuse this one for what is in it."""

    def __init__(self, told: str) -> None:
        """`told` is the option `schema`: "server", "prompt", or empty for whoever takes it."""
        self._told = told
        self._refused: set[bytes] = set()

    def prompted(self, output: OutputSchema | None) -> bool:
        """Whether the model is told the schema in its prompt."""
        if output is None or self._told == "server":
            return False
        return self._told == "prompt" or (bool(self._refused) and _digest(output) in self._refused)

    def learn(self, output: OutputSchema | None, trouble: Trouble, body: bytes) -> bool:
        """A request that had the schema failed: whether it is to be sent once more with the schema in the prompt,
        because the server says in `body` that it does not know what to do with one."""
        if output is None or self._told or trouble.status not in _REFUSING or trouble.failure.kind == "context":
            return False
        if _REFUSED.search(body) is None:
            return False
        self._refused.add(_digest(output))
        return True


def _digest(output: OutputSchema) -> bytes:
    return digest(msgspec.msgpack.encode(output))
