"""Prompt templates: Jinja in a sandbox, where a missing variable is an error and never an empty string."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import StrictUndefined, TemplateSyntaxError, meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from weaverant.errors import UserError

_environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, autoescape=False)


class Template:
    """A compiled template. `text` is its source, `variables` the names it reads."""

    __slots__ = ("_render", "text", "variables")

    def __init__(self, text: str, where: str) -> None:
        self.text = text
        try:
            self.variables = frozenset(meta.find_undeclared_variables(_environment.parse(text)))
            template = _environment.from_string(text)
        except TemplateSyntaxError as error:
            raise UserError(
                f"{where} is not a Jinja template: {error.message} in its line {error.lineno}. "
                "Write a literal '{{' as {{ '{{' }}"
            ) from None
        template.globals = dict(template.globals)  # a ChainMap that every rendering would walk: 6.8 us against 2.4
        self._render = template.render

    def render(self, variables: dict[str, Any]) -> str:
        return self._render(variables)


def read_prompt(prompt: str | Path, folder: Path, where: str) -> str:
    """The template's text. A relative path is looked up beside the file that made the agent."""
    if isinstance(prompt, str):
        return prompt
    path = prompt if prompt.is_absolute() else folder / prompt
    try:
        return path.read_text("utf-8").removesuffix("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{where}: cannot read the prompt file {str(path)!r}: {error}") from None
