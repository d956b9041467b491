"""What the options' texts mean: models, settings of agents, parameters, limits."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import msgspec

from weaverant.engines import KINDS, pooled
from weaverant.errors import UserError
from weaverant.fields import SETTABLE
from weaverant.recipe import Parameter, Recipe
from weaverant.runtime.limits import Limits

_NAMED = re.compile(r"([A-Za-z_][\w-]*)=(.*)", re.DOTALL)


def models_of(given: Iterable[str]) -> dict[str, str]:
    """Specs by model name; `*` serves all others. `simulated:latency=0.2` has no name, `strong=embedded:tiny` has.
    Servers that are given for the same name are replicas of one model."""
    models: dict[str, list[str]] = {}
    for text in given:
        named = None if text.partition(":")[0] in KINDS else _NAMED.fullmatch(text)
        name, spec = named.groups() if named else ("*", text)
        models.setdefault(name, []).append(spec)
    return {name: pooled(specs) for name, specs in models.items()}


def models_for(given: Sequence[str], recipe: Recipe) -> dict[str, str]:
    """The models of a new run: those given, else the recipe's own."""
    if given:
        return models_of(given)
    if recipe.model is not None:
        return {"*": recipe.model}
    names = sorted({agent.model for agent in recipe.agents})
    example = names[0] if len(names) > 1 else "*"
    prefix = "" if example == "*" else f"{example}="
    raise UserError(
        f"no model was given, and {recipe.given!r} names none. Its agents ask for "
        f"{', '.join(map(repr, names)) or 'some'}: give them one with --model {prefix}http://HOST:8000/v1#NAME, "
        f"or try it offline, with pretended replies, with --model simulated:"
    )


def input_for(given: str | None, recipe: Recipe) -> str:
    """The rows of a new run: those given, else the recipe's own `SOURCE`, whose path is beside the recipe."""
    if given is not None:
        return given
    if recipe.source is None:
        raise UserError(
            f"no rows were given, and {recipe.given!r} names none. Expected --input with a file (.jsonl, .json, .csv, "
            ".tsv, .parquet), a folder, a glob, or - for standard input"
        )
    beside = recipe.path.parent / recipe.source
    return str(beside) if beside.exists() else recipe.source


def overrides_of(given: Iterable[str], recipe: Recipe) -> dict[str, dict[str, Any]]:
    """`--set agent.field=value`, checked. A value is JSON where it can be read as such, else text."""
    agents = {agent.name for agent in recipe.agents}
    changes: dict[str, dict[str, Any]] = {}
    for text in given:
        left, equals, value = text.partition("=")
        agent, dot, name = left.strip().rpartition(".")
        if not equals or not dot:
            raise UserError(f"--set {text!r}: expected AGENT.FIELD=VALUE, as in --set writer.temperature=0.2")
        if agent not in agents:
            raise UserError(
                f"--set {text!r}: there is no agent {agent!r}{near(agent, agents)}; there are: {named(agents)}"
            )
        if name not in SETTABLE:
            raise UserError(
                f"--set {text!r}: an agent has no field {name!r}{near(name, SETTABLE)} that can be set; "
                f"it has: {named(SETTABLE)}"
            )
        changes.setdefault(agent, {})[name] = converted(value, SETTABLE[name], f"--set {agent}.{name}")
    return changes


def parameters_of(options: argparse.Namespace, recipe: Recipe) -> dict[str, Any]:
    """The recipe's parameters that were given as flags."""
    given = {name: getattr(options, f"parameter:{name}", None) for name in recipe.parameters}
    return {
        name: _parameter(recipe.parameters[name], value) for name, value in given.items() if value is not None
    }  # fmt: skip


def _parameter(parameter: Parameter, value: Any) -> Any:
    flag = f"--{parameter.name.replace('_', '-')}"
    converted_value = converted(value, parameter.kind, flag) if isinstance(value, str) else value
    return msgspec.to_builtins(converted_value)


def converted(text: str, kind: Any, what: str) -> Any:
    """The text as a value of that type: as JSON where that fits, else as it stands."""
    try:
        return msgspec.convert(json.loads(text), kind)
    except (ValueError, msgspec.ValidationError):
        pass
    try:
        return msgspec.convert(text, kind, strict=False)
    except msgspec.ValidationError as error:
        raise UserError(f"{what}: {str(error).replace('`str`', 'text')}; found {text!r}") from None


def limits_of(options: argparse.Namespace) -> dict[str, Any]:
    """The bounds that were given; the others keep their defaults."""
    given = {name: getattr(options, name, None) for name in Limits.__struct_fields__}
    return {name: value for name, value in given.items() if value is not None}


def retry_of(text: str | None) -> str | bool | None:
    """`failed` is all of them, `failed:REASON` those."""
    if text is None:
        return None
    which, _, reason = text.partition(":")
    if which != "failed":
        raise UserError(
            f"--retry {text!r}: expected `failed` for all, or `failed:REASON`, as in --retry failed:timeout"
        )
    return reason or True


def near(name: str, known: Iterable[str]) -> str:
    """` (did you mean 'x'?)`, or nothing."""
    names = list(known)
    close = [each for each in names if name and each.startswith(name)] or get_close_matches(name, names, 1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def named(names: Iterable[str]) -> str:
    """The names in a row, for an error's text."""
    return ", ".join(sorted(names)) or "none"


def new_folder(text: str) -> Path:
    """A folder that is not there yet, or is empty. Nothing is ever overwritten."""
    folder = Path(text)
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise UserError(f"{text!r} is there already and not an empty folder; expected the name of a new one")
    return folder
