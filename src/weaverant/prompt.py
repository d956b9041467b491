"""Prompt templates: Jinja in a sandbox, where a missing variable is an error and never an empty string."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import Any

from jinja2 import StrictUndefined, TemplateError, TemplateSyntaxError, UndefinedError, meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from weaverant.errors import UserError

_environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, autoescape=False)


class Template:
    """A compiled template. `text` is its source, `variables` the names it reads."""

    __slots__ = ("_render", "_where", "text", "variables")

    def __init__(self, text: str, where: str) -> None:
        self.text = text
        self._where = where
        try:
            self.variables = frozenset(meta.find_undeclared_variables(_environment.parse(text)))
            template = _environment.from_string(text)
        except TemplateSyntaxError as error:
            raise UserError(
                f"{where} is not a Jinja template: {error.message} in its line {error.lineno}. "
                "Write a literal '{{' as {{ '{{' }}"
            ) from None
        template.globals = dict(template.globals)  # a ChainMap that every rendering would walk: three times the cost
        self._render = template.render

    def render(self, variables: dict[str, Any]) -> str:
        try:
            return self._render(variables)
        except UndefinedError as error:
            raise UndefinedError(self._complaint(error, variables)) from None
        except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
            raise UserError(self._complaint(error, variables)) from None

    def _complaint(self, error: Exception, variables: dict[str, Any]) -> str:
        kind = "" if isinstance(error, UndefinedError) else f"{type(error).__name__}: "
        missing, unread = sorted(self.variables - variables.keys()), sorted(variables.keys() - self.variables)
        near = [close for name in missing for close in get_close_matches(name, unread, 1)]
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        return f"{self._where}: {kind}{error}{hint}; it was given: {', '.join(variables) or 'nothing'}"


def read_prompt(prompt: str | Path, folder: Path, where: str) -> str:
    """The template's text. A relative path is looked up beside the file that made the agent."""
    if isinstance(prompt, str):
        return prompt
    path = prompt if prompt.is_absolute() else folder / prompt
    try:
        return path.read_text("utf-8").removesuffix("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{where}: cannot read the prompt file {str(path)!r}: {error}") from None
