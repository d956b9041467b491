"""Prompt templates: Jinja in a sandbox, where a missing variable is an error and never an empty string."""

from __future__ import annotations

from collections.abc import Sized
from difflib import get_close_matches
from pathlib import Path
from typing import Any, cast

from jinja2 import StrictUndefined, TemplateError, TemplateSyntaxError, UndefinedError, meta, nodes
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from weaverant.errors import UserError

MOST_REPEATED = 1_000_000
"""Characters or items that `*` may make."""
MOST_BITS = 100_000
"""Of a whole number that `*` or `**` may make."""


class Sandbox(ImmutableSandboxedEnvironment):
    """Templates reach their variables, and nothing of Python, of files or of the network.

    Jinja bounds `range`, this bounds `*` and `**`, which else would be worked out where a template is only loaded.
    Loops within loops are not bounded: a template can waste time as any program can.
    """

    intercepted_binops = frozenset(("*", "**"))

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        del self.globals["lipsum"]  # makes any amount of text in one call

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if _size(operator, left, right) > 1:
            raise OverflowError(f"the result of {operator!r} would be too large for a template")
        return super().call_binop(context, operator, left, right)


def _size(operator: str, left: Any, right: Any) -> float:
    """How large a result would be, as a share of the most that is allowed."""
    if isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length() * max(right, 0) if operator == "**" else left.bit_length() + right.bit_length()
        return bits / MOST_BITS
    repeated, times = (right, left) if isinstance(left, int) else (left, right)
    if isinstance(repeated, str | bytes | list | tuple) and isinstance(times, int):
        return len(cast("Sized", repeated)) * times / MOST_REPEATED
    return 0


_environment = Sandbox(undefined=StrictUndefined, autoescape=False)


class Template:
    """A compiled template. `text` is its source, `variables` the names it reads."""

    __slots__ = ("_format", "_names", "_render", "_where", "text", "variables")

    def __init__(self, text: str, where: str) -> None:
        self.text = text
        self._where = where
        try:
            tree = _environment.parse(text)
            self.variables = frozenset(meta.find_undeclared_variables(tree))
            template = _environment.from_string(text)
        except TemplateSyntaxError as error:
            raise UserError(
                f"{where} is not a Jinja template: {error.message} in its line {error.lineno}. "
                "Write a literal '{{' as {{ '{{' }}"
            ) from None
        template.globals = dict(template.globals)  # a ChainMap that every rendering would walk: three times the cost
        self._render = template.render
        self._format, self._names = _plain(tree) or ("", None)

    def render(self, variables: dict[str, Any]) -> str:
        if self._names is not None:
            for name in self._names:
                if type(variables.get(name)) is not str:
                    break
            else:
                return self._format % variables
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


def _plain(tree: nodes.Template) -> tuple[str, tuple[str, ...]] | None:
    """A format of Python's own and the names in it, for a template that is text and names and no more, as most are.
    Where all of these are texts, it gives what Jinja gives, in a tenth of the time (`bench/bench_pieces.py`)."""
    parts: list[str] = []
    names: dict[str, None] = {}
    for output in tree.body:
        if not isinstance(output, nodes.Output):
            return None
        for part in output.nodes:
            match part:
                case nodes.TemplateData(data=text):
                    parts.append(text.replace("%", "%%"))
                case nodes.Name(name=name) if name != "self":  # Jinja's own, whatever is given
                    parts.append(f"%({name})s")
                    names[name] = None
                case _:
                    return None
    return "".join(parts), tuple(names)


def read_prompt(prompt: str | Path, folder: Path, where: str) -> str:
    """The template's text. A relative path is looked up beside the file that made the agent."""
    if isinstance(prompt, str):
        return prompt
    path = prompt if prompt.is_absolute() else folder / prompt
    try:
        return path.read_text("utf-8").removesuffix("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{where}: cannot read the prompt file {str(path)!r}: {error}") from None
