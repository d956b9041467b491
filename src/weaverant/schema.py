"""Types at the border to a model: an agent's `output=` and its `tools=`.

Imported when the first agent that has either is bound, because pydantic's machinery costs 60 ms to load.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable
from typing import Any, cast, get_type_hints

import jsonschema
from pydantic import ConfigDict, TypeAdapter, ValidationError, create_model
from pydantic.errors import PydanticSchemaGenerationError, PydanticUserError

from weaverant.errors import UserError
from weaverant.message import OutputSchema, ToolSpec

_FENCED = re.compile(r"\A\s*```[a-zA-Z0-9_-]*\s*\n(.*?)\n?\s*```\s*\Z", re.DOTALL)
_LONGEST_COMPLAINT = 2_000


class Misfit(Exception):
    """A reply or a tool's arguments do not fit; the text says where, for the model to mend it."""


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
        self._plain_schema = schema
        self.spec = OutputSchema(re.sub(r"[^a-zA-Z0-9_-]", "_", name)[:64], schema)

    @staticmethod
    def _check_schema(schema: dict[str, Any], where: str) -> None:
        try:
            jsonschema.Draft202012Validator.check_schema(schema)
        except jsonschema.SchemaError as error:
            raise UserError(f"{where}: output= is not a JSON schema: {error.message}") from None

    def parse(self, text: str) -> Any:
        """The reply as the output type, or `Misfit`. JSON alone or JSON in one fence, nothing guessed."""
        fenced = _FENCED.match(text)
        body = fenced.group(1) if fenced else text.strip()
        if self._adapter is not None:
            try:
                return self._adapter.validate_json(body)
            except ValidationError as error:
                raise Misfit(complaint(error)) from None
        try:
            value = json.loads(body)
            jsonschema.Draft202012Validator(self._plain_schema).validate(value)  # pyright: ignore[reportUnknownMemberType]
        except json.JSONDecodeError as error:
            raise Misfit(f"not JSON: {error}") from None
        except jsonschema.ValidationError as error:
            raise Misfit(f"at {error.json_path}: {error.message}"[:_LONGEST_COMPLAINT]) from None
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
            parsed = self._arguments.model_validate_json(text or "{}")
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
