"""What a caller gave (a workflow, rows, models, limits), checked and opened."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, cast

import msgspec

from weaverant.binding import Binding
from weaverant.compound import Served, is_compound
from weaverant.engines import doubts, open_engine, pooled
from weaverant.errors import UserError
from weaverant.found import recipe_at
from weaverant.message import Request, Sampling
from weaverant.namesakes import differences, namesakes
from weaverant.protocols import Source
from weaverant.recipe import Recipe, load_recipe, recipe_of
from weaverant.rundir import RunConfig, resume_in_python
from weaverant.runtime.budget import unbounded
from weaverant.runtime.limits import Limits
from weaverant.sources import MemoryRows, open_source
from weaverant.workflow import Group, Stages, Workflow

_log = logging.getLogger("weaverant")

Rows = Source | Iterable[Any] | str | Path
Models = Mapping[str, Served | str | Sequence[str]] | Sequence[str] | Served | str


def recipe_given(workflow: Workflow | Stages | Recipe | str | Path) -> Recipe:
    if isinstance(workflow, Recipe):
        return workflow
    return recipe_of(workflow) if isinstance(workflow, Workflow | Stages) else load_recipe(str(workflow))


def recipe_of_run(config: RunConfig) -> Recipe:
    """The recipe that a run was made from, as its file is now. `UserError` if it was made from an object that stands
    in no file."""
    if config.found:
        return recipe_at(config.found)
    _, _, chosen = config.workflow.partition(".py:")
    file = Path(config.file)
    if not chosen and not config.workflow.endswith(".py") and file.name != "recipe.py":
        raise UserError(
            f"the run was made in Python from the workflow {config.workflow!r} of {config.file!r}: go on with it "
            f"there, {resume_in_python('DIRECTORY', config.objects)}"
        )
    if not file.is_file():
        return load_recipe(config.workflow)
    return load_recipe(f"{file}:{chosen}" if chosen else str(file))


def objects_given(workflow: object, found: str, rows: Rows, specs: Mapping[str, str]) -> list[str]:
    """What of a run's making only Python can give again. `found` is where its workflow stands."""
    kinds = {
        "workflow": isinstance(workflow, Workflow | Stages) and not found,
        "rows": not isinstance(rows, str | Path),
        "models": any(spec.startswith("object:") for spec in specs.values()),
    }
    return [name for name, is_object in kinds.items() if is_object]


def specs_again(config: RunConfig) -> Mapping[str, str]:
    objects = [name for name, spec in config.models.items() if spec.startswith("object:")]
    if objects:
        raise UserError(f"the run was made with engine objects for {objects}: give them again, models=...")
    return config.models


def source_given(rows: Rows) -> Source:
    if isinstance(rows, str | Path):
        return open_source(str(rows))
    if hasattr(rows, "rows") and hasattr(rows, "rereadable"):
        return rows  # pyright: ignore[reportReturnType]
    if not hasattr(rows, "__iter__") and not hasattr(rows, "__getitem__"):
        raise UserError(
            "rows: expected a list or another iterable of mappings, or what --input takes, such as a file's path; "
            f"found an object of type {type(rows).__name__!r}"
        )
    return MemoryRows(rows)  # pyright: ignore[reportArgumentType]


def check_asked(trials: int, limit: int | None, pilot: int | None, journal: bool, directory: str | Path | None) -> None:
    """`UserError` where these arguments of a new run cannot be meant, or not together."""
    if trials < 1:
        raise UserError(f"trials must be at least 1, found {trials}")
    if limit is not None and limit < 0:
        raise UserError(f"limit is a number of rows, not negative; found {limit}")
    if pilot is not None and (pilot < 1 or not journal):
        raise UserError(
            f"a pilot works on one row at least, and needs a journal to go on from; found pilot={pilot}, "
            f"journal={journal}"
        )
    if directory is not None and not journal:
        raise UserError("journal=False stores nothing, so it has no directory=; leave one of the two out")


def limits_given(values: Mapping[str, Any], function: str, known: Iterable[str] | None) -> Limits:
    """The limits among the keywords of `run` or `resume`, of which it knows the `known` itself."""
    fields = Limits.__struct_fields__
    for name in values.keys() - set(fields):
        near = get_close_matches(name, (*fields, *(known or ()), "models"), 1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise UserError(
            f"{function}(...) knows no {name!r}{hint} The limits of a run are: {', '.join(fields)}; and there is "
            "pilot. A workflow's own parameters are given to run(...) in parameters={...}"
        )
    try:
        return msgspec.convert(dict(values), Limits)
    except msgspec.ValidationError as error:
        raise UserError(f"{error}; the limits of a run are: {', '.join(fields)}") from None


def check_bounded(binding: Binding, limits: Limits) -> None:
    """Under a budget everybody must know what a call costs at most, before the first one is made."""
    for bound in binding.all() if limits.budget else ():
        engine = binding.engine(bound.agent.model)
        if engine is not None and (why := unbounded(engine, bound.request(()))):
            raise UserError(f"agent {bound.agent.name!r} cannot work under a budget: {why}")


def bind(
    models: Models, recipe: Recipe, overrides: Mapping[str, Mapping[str, Any]]
) -> tuple[Binding, list[Served], dict[str, str]]:
    """Open what is given as a spec, and bind the agents that the recipe's file defines."""
    named = models if isinstance(models, Mapping) else {"*": models}
    by_name = {name: _model(name, given) for name, given in named.items()}
    known = {agent.name for agent in recipe.agents}
    for name in overrides:
        if recipe.agents and name not in known:
            raise UserError(f"there is no agent {name!r} to set; there are: {', '.join(sorted(known))}")
    engines: dict[str, Served] = {}
    own: list[Served] = []
    for name, given in by_name.items():
        engine = open_engine(given) if isinstance(given, str) else given
        if isinstance(given, str):
            own.append(engine)
            for doubt in doubts(given):
                _log.warning("weaverant: warning: %s", doubt)
        engines[name] = engine
    asked = {agent.model for agent in recipe.agents}
    unused = sorted(set(by_name) - asked - {"*"})
    if asked and unused:
        raise UserError(
            f"no agent asks for the model {unused[0]!r}; they ask for: {', '.join(sorted(map(repr, asked)))}. "
            "A model without a name serves all others"
        )
    specs = {
        name: given if isinstance(given, str) else f"object:{engines[name].identity}" for name, given in by_name.items()
    }
    binding = Binding(engines, overrides)
    _bind_all(binding, recipe)
    return binding, own, specs


def _bind_all(binding: Binding, recipe: Recipe) -> None:
    """Bind the agents that the recipe's file defines. `UserError` where its workflow takes two for one."""
    for agent in recipe.agents:
        binding.bound(agent)
    for one, other in namesakes(recipe.stages):
        if differ := differences(one, other):
            raise UserError(
                f"{recipe.name!r} asks two agents that are called {one.name!r} and differ: {differ}. Give each a name "
                "of its own: tables, `--set`, overrides and `export --agent` go by it"
            )


def _model(name: str, given: object) -> Served | str:
    """A spec or an engine as it is; several specs are replicas of one model. `UserError` if it is nothing of that."""
    if isinstance(given, str):
        return given
    several = isinstance(given, Sequence)
    specs = list(cast(Sequence[object], given)) if several else []
    texts = [spec for spec in specs if isinstance(spec, str)]
    if texts and len(texts) == len(specs):
        return pooled(texts)
    if not isinstance(given, type) and (callable(getattr(given, "generate", None)) or is_compound(given)):
        return cast(Served, given)
    # What was given is not shown: it may hold a key.
    kind = type(given).__name__
    raise UserError(
        ("models" if name == "*" else f"models[{name!r}]") + ": expected an engine, a spec such as "
        "'http://localhost:8000/v1#NAME', a list of specs (servers of one model), or a mapping of models' names to "
        f"these; found {f'an empty {kind}' if several and not specs else f'an object of type {kind!r}'}"
    )


def config_given(
    workflow: str,
    recipe: Recipe,
    binding: Binding,
    specs: dict[str, str],
    source: Source,
    trials: int,
    limit: int | None,
) -> RunConfig:
    from weaverant import __version__

    rows = source.count()
    if rows is not None:
        rows = (rows if limit is None else min(rows, limit)) * trials
    return RunConfig(
        workflow=workflow,
        file=str(recipe.path),
        stages=[stage.name for stage in recipe.stages],
        input=absolute(source.name),
        models=specs,
        identities={name: one.identity for name, one in binding.served.items()},
        agents=_specs_by_name(binding),
        code=recipe.code,
        trials=trials,
        limit=limit,
        rows=rows,
        input_identity=source.identity(),
        version=__version__,
        created=time.time(),
        unpriced=_unpriced(binding),
        groups=[stage.name for stage in recipe.stages if isinstance(stage, Group)],
    )


def _unpriced(binding: Binding) -> list[str]:
    """The models of which nobody can say what even the smallest call costs at most: their price is unknown."""
    smallest = Request("", "", (), Sampling(max_tokens=1))
    return sorted(name for name, engine in binding.models.items() if unbounded(engine, smallest))


def _specs_by_name(binding: Binding) -> dict[str, str]:
    """The agents' specs; several agents of one name count together."""
    specs: dict[str, list[str]] = {}
    for bound in binding.all():
        specs.setdefault(bound.agent.name, []).append(bound.spec)
    return {name: "+".join(sorted(own)) for name, own in specs.items()}


def absolute(name: str) -> str:
    """A file's path as it can be found again from anywhere."""
    return str(Path(name).resolve()) if Path(name).exists() else name
