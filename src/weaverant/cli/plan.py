"""`weaverant run --dry-run`: everything is loaded and opened, the plan is printed, nothing is called or written.

The first messages are no guess: the workflow is begun on the first row, in memory, see `begun.py`.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

from weaverant.binding import Bound
from weaverant.cli import BAD_USAGE, complain
from weaverant.cli.begun import Begun
from weaverant.cli.streams import put
from weaverant.cli.text import clipped, counted, indented, message_lines
from weaverant.export import GENERIC
from weaverant.protocols import Unreadable
from weaverant.runtime.feed import as_row
from weaverant.runtime.progress import money
from weaverant.session import Run
from weaverant.step import ModelAsk

PROMPT_LINES = 3

LOOKED_AT = 10
"""Rows that are begun, to find mistakes."""


def print_plan(run: Run, directory: Path | None, missing: Sequence[str]) -> int:
    """Print what would happen, and of which keys are `missing`; gives the exit code: 0, or 2 where the first rows
    show a mistake in the workflow."""
    wrong: list[str] = []
    try:
        put("\n".join(_plan(run, directory, wrong)))
        for text in dict.fromkeys(missing):
            put(f"warning: {text}")
    finally:
        asyncio.run(run.close_engines())
    for text in wrong:
        complain(text, BAD_USAGE)
    return BAD_USAGE if wrong else 0


def _plan(run: Run, directory: Path | None, wrong: list[str]) -> Iterator[str]:
    recipe, config = run.recipe, run.config
    yield f"recipe      {recipe.name} ({recipe.path})"
    yield f"stages      {' -> '.join(stage.name for stage in recipe.stages)}"
    values = {name: config.parameters.get(name, parameter.default) for name, parameter in recipe.parameters.items()}
    if values:
        yield f"parameters  {', '.join(f'{name}={value!r}' for name, value in values.items())}"
    yield f"run         {'nowhere: --no-journal' if directory is None else directory} (not made: --dry-run)"
    yield f"exports     {', '.join({**GENERIC, **recipe.exporters})}"
    rows = "an unknown number of rows" if config.rows is None else counted(config.rows, "row")
    trials = "" if config.trials == 1 else f", {config.trials} trials of each"
    yield f"input       {config.input}: {rows}{trials}"
    for name, spec in config.models.items():
        yield f"model       {'all others' if name == '*' else name}: {spec}"
    if run.limits.budget:
        yield f"budget      {money(run.limits.budget)}: no call is made that might pass it"
    yield ""
    for bound in run.binding.all():
        yield from _agent(bound, config.models)
    if run.source.rereadable:
        yield from _first_rows(run, wrong)
    yield "dry run: no model was called, nothing was written"


def _agent(bound: Bound, models: Mapping[str, str]) -> Iterator[str]:
    described = bound.describe()
    member = "/" in bound.scope
    spec = bound.identity if member else models.get(bound.scope, bound.identity)
    kind, _, model = bound.identity.partition(":")
    found = f" ({model})" if kind == "http" and model not in spec else ""  # the server was asked for its only model
    yield f"agent {bound.agent.name}: model {bound.agent.model!r} -> {spec}{found}"
    settings = [f"{name}={value!r}" for name, value in described["sampling"].items()]
    settings += [f"tools={sorted(bound.tools)}"] if bound.tools else []
    settings += [f"output={bound.output.spec.name}"] if bound.output is not None else []
    if settings:
        yield f"  {', '.join(settings)}"
    plan: Callable[[], list[str]] | None = getattr(bound.compound, "plan", None)
    for line in plan() if plan is not None else ():
        yield f"  {line}"
    for part in ("system", "prompt"):
        if described[part] is not None:
            yield from indented(clipped(described[part], PROMPT_LINES, 400), f"  {part}: ", " " * 10)
    yield ""


def _first_rows(run: Run, wrong: list[str]) -> Iterator[str]:
    """What the first row asks first that can be read; of the first few, those that cannot, and what is `wrong` before
    any model was asked."""
    limit = LOOKED_AT if run.config.limit is None else min(LOOKED_AT, run.config.limit)
    begun: list[Begun] = []
    broken: list[Unreadable] = []
    for number, value in enumerate(islice(run.source.rows(0), limit)):
        row, unreadable = as_row(value, number * run.config.trials, run.config.trials)
        if unreadable is not None:
            broken.append(unreadable)
            continue
        begun.append(Begun(run, row))
        if len(begun) == 1:
            yield f"first row   {clipped(json.dumps(row.value, ensure_ascii=False), 1, 400)}"
            yield from _first_step(begun[0])
            yield ""
    if broken:
        yield f"{len(broken)} of the first {counted(len(begun) + len(broken), 'row')} cannot be read and would fail:"
        yield f"  {broken[0].where}: {broken[0].text}" + (" ..." if len(broken) > 1 else "")
        yield ""
    if not begun:
        yield "the input has no rows that can be begun"
    stillborn = [one.stillborn for one in begun if one.stillborn]
    if 0 < len(stillborn) < len(begun):
        verb = "fails" if len(stillborn) == 1 else "fail"
        yield f"{len(stillborn)} of the first {counted(len(begun), 'row')} {verb} before a first step:"
        yield f"  {stillborn[0]}" + (" ..." if len(stillborn) > 1 else "")
        yield ""
    wrong += _faults(begun)


def _first_step(begun: Begun) -> Iterator[str]:
    first, end = begun.first, begun.end
    if isinstance(first, ModelAsk):
        yield f"the first call on it, by agent {first.name!r}, would send"
        for message in first.messages:
            yield from message_lines(message, 20, 2_000)
    elif first is not None:
        yield f"its first step is {first.name}(...), which a dry run does not call"
    elif end is not None:
        why = begun.stillborn or end.reason
        yield f"it ends before its first step, {end.state}{f': {why}' if why else ''}"


def _faults(begun: Sequence[Begun]) -> Iterator[str]:
    """Variables that no template gets; and what keeps every one of the rows from its first step."""
    faults = Counter(one.undefined for one in begun if one.undefined)
    for text, count in faults.items():
        yield text + (f" (so in {count} of the first {len(begun)} rows)" if len(begun) > 1 else "")
    if begun and not faults and all(one.stillborn for one in begun):
        yield f"none of the first {len(begun)} rows comes to its first step: {begun[0].stillborn}"
