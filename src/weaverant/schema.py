"""Types at the border to a model: an agent's `output=` and its `tools=`.

Imported when the first agent that has either is bound, because pydantic's machinery takes about 0.1 s to load
(`bench/bench_startup.py`).
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable
from typing import Any, cast, get_type_hints

import jsonschema
import referencing
from pydantic import ConfigDict, TypeAdapter, ValidationError, create_model
from pydantic.errors import PydanticSchemaGenerationError, PydanticUserError
from referencing.exceptions import Unresolvable

from weaverant.errors import UserError
from weaverant.jsontext import NotJson, decode, find_json
from weaverant.message import OutputSchema, ToolSpec

_THOUGHT = "<think>", "</think>"
_FENCE = re.compile(r"```[a-zA-Z0-9_-]*[ \t]*\n")
_LONGEST_COMPLAINT = 2_000
_NOWHERE: referencing.Registry[Any] = referencing.Registry()
"""Without one, jsonschema would fetch what a `$ref` names from the network."""


class Misfit(Exception):
    """A reply or a tool's arguments do not fit; the text says where, for the model to mend it."""


def _unwrapped(text: str) -> str:
    """The reply without the thoughts that a server left in front of it, and out of its code fence."""
    body = text.strip()
    if body.startswith(("{", "[")):
        return body
    begin, end = _THOUGHT
    if body.startswith(begin) and end not in body:
        raise Misfit(f"it has no answer: what {begin} begins never ends")
    if end in body:
        body = body.partition(end)[2].strip()
    fence = _FENCE.match(body)
    return body[fence.end() : -3].strip() if fence and body.endswith("```") else body


class Output:
    """An agent's output type: the JSON schema for the server, and the parser of replies."""

    def __init__(self, kind: Any, where: str) -> None:
        self._adapter: TypeAdapter[Any] | None = None
        if isinstance(kind, dict):
            schema = cast("dict[str, Any]", kind)
            self._check_schema(schema, where)
            name = str(schema.get("title", "output"))
        else:
            try:
                self._adapter = TypeAdapter(kind)
                schema = self._adapter.json_schema()
            except (PydanticSchemaGenerationError, PydanticUserError) as error:
                raise UserError(
                    f"{where}: output={kind!r} is no type that JSON can be read into: {error}. "
                    "Expected a pydantic model, a type such as list[int], or a JSON schema as a dict"
                ) from None
            name = getattr(kind, "__name__", "output")
        self._validator = jsonschema.Draft202012Validator(schema, registry=_NOWHERE)
        self.spec = OutputSchema(re.sub(r"[^a-zA-Z0-9_-]", "_", name)[:64], schema)

    @staticmethod
    def _check_schema(schema: dict[str, Any], where: str) -> None:
        try:
            jsonschema.Draft202012Validator.check_schema(schema)
        except jsonschema.SchemaError as error:
            raise UserError(f"{where}: output= is not a JSON schema: {error.message}") from None

    def parse(self, text: str) -> Any:
        """The reply as the output type, or `Misfit`.

        The reply is JSON, alone or in one code fence; or it holds JSON, behind `<think>...</think>` or inside prose,
        and exactly one of its objects and arrays fits. Nothing is guessed and nothing is mended.
        """
        body = _unwrapped(text)
        try:
            decode(body)
        except NotJson as error:
            return self._only(body, Misfit(f"not JSON: {error}"))
        return self._read(body)

    def _only(self, body: str, misfit: Misfit) -> Any:
        """The one value in the text that fits, which may be there several times."""
        try:
            found = find_json(body)
        except NotJson as error:
            raise Misfit(f"not JSON: {error}") from None
        fitting: dict[str, Any] = {}
        for text in found:
            try:
                value = self._read(text)
            except Misfit as reason:
                misfit = reason
            else:
                fitting.setdefault(json.dumps(decode(text), sort_keys=True), value)
        if len(fitting) > 1:
            raise Misfit(f"it holds {len(fitting)} different JSON values that fit; give only the one you mean")
        if fitting:
            return fitting.popitem()[1]
        raise misfit if len(found) < 2 else Misfit(f"of its {len(found)} JSON values none fits; the last: {misfit}")

    def _read(self, text: str) -> Any:
        """JSON text as the output type."""
        if self._adapter is not None:
            try:
                return self._adapter.validate_json(text)
            except ValidationError as error:
                raise Misfit(complaint(error)) from None
        value = decode(text)
        try:
            self._validator.validate(value)  # pyright: ignore[reportUnknownMemberType]
        except jsonschema.ValidationError as error:
            raise Misfit(f"at {error.json_path}: {error.message}"[:_LONGEST_COMPLAINT]) from None
        except RecursionError:
            raise Misfit("it is nested too deeply") from None
        except Unresolvable as error:
            raise UserError(
                f"the JSON schema in output= has a $ref that leads nowhere: {error}. Expected one within the schema; "
                "nothing is fetched"
            ) from None
        return value


class Tool:
    """A typed Python function that a model may call. The docstring is its description."""

    def __init__(self, function: Callable[..., Any], where: str) -> None:
        self.function = function
        self.name = function.__name__
        fields: dict[str, Any] = {}
        try:
            hints = get_type_hints(function)
            for parameter in inspect.signature(function).parameters.values():
                if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                    raise UserError(f"{where}: tool {self.name!r} takes *{parameter.name}: name each argument")
                if parameter.name not in hints:
                    raise UserError(f"{where}: tool {self.name!r} needs a type for its argument {parameter.name!r}")
                default = ... if parameter.default is parameter.empty else parameter.default
                fields[parameter.name] = (hints[parameter.name], default)
            self._arguments = create_model(self.name, __config__=ConfigDict(extra="forbid"), **fields)
            schema = self._arguments.model_json_schema()
        except (PydanticSchemaGenerationError, PydanticUserError, NameError) as error:
            raise UserError(f"{where}: tool {self.name!r} has a type that JSON cannot express: {error}") from None
        self.spec = ToolSpec(self.name, inspect.getdoc(function) or self.name, schema)

    def arguments(self, text: str) -> dict[str, Any]:
        """The model's JSON as keyword arguments, or `Misfit`."""
        try:
            decode(text or "{}")
            parsed = self._arguments.model_validate_json(text or "{}")
        except NotJson as error:
            raise Misfit(f"not JSON: {error}") from None
        except ValidationError as error:
            raise Misfit(complaint(error)) from None
        return {name: getattr(parsed, name) for name in type(parsed).model_fields}


def complaint(error: ValidationError) -> str:
    """A validation error in the few words that a model needs to mend its reply."""
    lines = [
        f"{'.'.join(str(part) for part in item['loc']) or 'reply'}: {item['msg']}"
        for item in error.errors(include_url=False, include_context=False, include_input=False)
    ]
    return "; ".join(lines)[:_LONGEST_COMPLAINT]
