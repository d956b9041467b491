"""Where everything meets: a recipe, rows, models and a directory become a run.

`run(...)` makes a new run, `resume(...)` continues one. Both give a `Run`: iterate over it, with `async for` or,
where no event loop is at hand (a script, a notebook), with a plain `for`.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from weaverant.errors import UserError
from weaverant.events import RunOpened
from weaverant.found import place_of
from weaverant.given import (
    Models,
    Rows,
    bind,
    check_asked,
    check_bounded,
    config_given,
    limits_given,
    objects_given,
    recipe_given,
    recipe_of_run,
    source_given,
    specs_again,
)
from weaverant.journal import JournalReader
from weaverant.journal.homes import OWN
from weaverant.journal.shelf import begin_store, shelf_of, store_of
from weaverant.recipe import Recipe, is_loading, recipe_of
from weaverant.rundir import (
    check_unchanged,
    default_directory,
    load_config,
    save_config,
    with_models_of,
)
from weaverant.runtime.unfinished import Retry
from weaverant.session import Run
from weaverant.sources import MemoryRows, open_source
from weaverant.workflow import Stages, Workflow


def run(
    workflow: Workflow | Stages | Recipe | str | Path,
    rows: Rows,
    *,
    models: Models,
    directory: str | Path | None = None,
    journal: bool = True,
    trials: int = 1,
    limit: int | None = None,
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
    parameters: Mapping[str, Any] | None = None,
    reuse: str | Path | None = None,
    pilot: int | None = None,
    store: str | None = None,
    **limits: Any,
) -> Run:
    """Prepare a new run.

    `workflow` is a `@workflow`, `Stages`, a file or a recipe's name; `rows` a list, any iterable, or what `--input`
    takes; `models` an engine or spec for all agents, or a mapping by model name; a list of
    specs is replicas of one model. `directory` is new or empty; by
    default `runs/NAME-TIME`. `journal=False` stores nothing. `trials` runs each row so often, `limit` takes the first
    rows only. `overrides` are fields of agents by agent name, `parameters` the workflow's keyword arguments. `reuse`
    names an earlier run whose recorded steps answer where they can. `pilot` works on the first rows only and stops
    there, to be resumed; `estimate` of `weaverant.pilot` says what the rest will take. `store` is a URL (`s3://...`,
    `file://...`) where the journal is before a step counts, so that other hosts can go on with the run. `limits` are
    the fields of `weaverant.runtime.limits.Limits`, `budget=5` among them. Raises `UserError`.
    """
    if is_loading():
        raise UserError(
            "this file starts a run while it is being loaded, so every command that loads it would run it again. "
            "Put run(...) under: if __name__ == '__main__':"
        )
    recipe = recipe_given(workflow).with_parameters(dict(parameters or {}))
    check_asked(trials, limit, pilot, journal, directory)
    bounds = limits_given(limits, "run", run.__kwdefaults__)
    source = source_given(rows)
    binding, own, specs = bind(models, recipe, overrides or {})
    check_bounded(binding, bounds)
    found = place_of(workflow) if isinstance(workflow, Workflow | Stages) else ""
    config = config_given(recipe.given, recipe, binding, specs, source, trials, limit)
    config = msgspec.structs.replace(
        config,
        overrides={agent: dict(fields) for agent, fields in (overrides or {}).items()},
        parameters=dict(parameters or {}),
        limits=dict(limits),
        reuse=None if reuse is None else str(Path(reuse).resolve()),
        id=secrets.token_hex(8),
        found=found,
        objects=objects_given(workflow, found, rows, specs),
    )
    if reuse is not None:
        load_config(Path(reuse))
    path = None
    if journal:
        path = default_directory(recipe.name) if directory is None else Path(directory)
        save_config(path, config, None if store is None else partial(begin_store, path, store))
    return Run(recipe, config, binding, own, source, bounds, path, resumed=False, pilot=pilot)


def resume(
    directory: str | Path,
    *,
    workflow: Workflow | Stages | None = None,
    rows: Rows | None = None,
    models: Models | None = None,
    retry: str | bool | None = None,
    pilot: int | None = None,
    **limits: Any,
) -> Run:
    """Prepare to continue a run: finished tasks stay, unfinished ones carry on, nothing acknowledged is paid again.

    A run that was made from objects (rows in memory, engines, a workflow that stands in no file) needs them again.
    `retry` takes failed tasks up again: True for all, or the reason they failed for. `pilot` stops the run again once
    so many of its first rows have ended. The last budget holds unless another is given, 0 for none. Raises
    `RunChanged` where code, prompts or models are not what the run began with, naming what is.
    """
    path = Path(directory)
    config = load_config(path)
    shelf_of(path).fetch((OWN,))
    recipe = recipe_of(workflow) if workflow is not None else recipe_of_run(config)
    recipe = recipe.with_parameters(config.parameters)
    if rows is None:
        if "rows" in config.objects:
            raise UserError(f"the run {str(path)!r} was made from rows in memory: give them again, rows=...")
        # What standard input brought is in the journal; there is nothing more to read.
        source = MemoryRows(iter(()), "-") if config.input == "-" else open_source(config.input)
    else:
        source = source_given(rows)
    binding, own, specs = bind(models if models is not None else specs_again(config), recipe, config.overrides)
    found = config_given(config.workflow, recipe, binding, specs, source, config.trials, config.limit)
    # What stands in a store is never changed, so a run there keeps the models that it began with.
    fresh = found.identities != config.identities and store_of(path) is None and not JournalReader(path).calls()
    if fresh:
        config = with_models_of(config, found)
    check_unchanged(path, config, found)
    bounds = limits_given({**config.limits, **_last_budget(path), **limits}, "resume", resume.__kwdefaults__)
    check_bounded(binding, bounds)
    which = None if not retry else Retry(None if retry is True else retry)
    return Run(
        recipe, config, binding, own, source, bounds, path, resumed=True, retry=which, pilot=pilot, fresh=fresh,
        specs=specs,
    )  # fmt: skip


def _last_budget(directory: Path) -> dict[str, float]:
    """The budget of the session before, which need not be that of the first."""
    opened = [event for event in JournalReader(directory).run_events() if isinstance(event, RunOpened)]
    return {"budget": opened[-1].budget} if opened else {}
