"""`weaverant run --dry-run`: everything is loaded and opened, the plan is printed, nothing is called or written.

The first messages are no guess: the workflow is begun on the first row, in memory, and stopped at its first step.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from weaverant.binding import Binding, Bound
from weaverant.cli.text import clipped, counted, indented, message_lines
from weaverant.events import NO_USAGE, Event, TaskEnded
from weaverant.export import GENERIC
from weaverant.launch import Run
from weaverant.message import Usage
from weaverant.protocols import Clock
from weaverant.runtime.feed import as_row
from weaverant.runtime.progress import money
from weaverant.runtime.terminal import visible
from weaverant.step import Ask, ModelAsk
from weaverant.task import TaskRun

PROMPT_LINES = 3


def print_plan(run: Run, directory: Path | None, missing: Sequence[str]) -> int:
    """Print what would happen, and of which keys are `missing`; gives exit code 0."""
    try:
        print(visible("\n".join(_plan(run, directory))))
        for text in dict.fromkeys(missing):
            print(visible(f"warning: {text}"))
    finally:
        asyncio.run(run.close_engines())
    return 0


def _plan(run: Run, directory: Path | None) -> Iterator[str]:
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
        yield from _agent(bound)
    if run.source.rereadable:
        yield from _first_row(run)
    yield "dry run: no model was called, nothing was written"


def _agent(bound: Bound) -> Iterator[str]:
    described = bound.describe()
    yield f"agent {bound.agent.name}: model {bound.agent.model!r} -> {bound.identity}"
    settings = [f"{name}={value!r}" for name, value in described["sampling"].items()]
    settings += [f"tools={sorted(bound.tools)}"] if bound.tools else []
    settings += [f"output={bound.output.spec.name}"] if bound.output is not None else []
    if settings:
        yield f"  {', '.join(settings)}"
    for part in ("system", "prompt"):
        if described[part] is not None:
            yield from indented(clipped(described[part], PROMPT_LINES, 400), f"  {part}: ", " " * 10)
    yield ""


def _first_row(run: Run) -> Iterator[str]:
    value = next(run.source.rows(0), None)
    if value is None:
        yield "the input has no rows"
        return
    row, unreadable = as_row(value, 0, run.config.trials)
    if unreadable is not None:
        yield f"the first row cannot be read: {unreadable.text} ({unreadable.where})"
        return
    shown = clipped(json.dumps(row.value, ensure_ascii=False), 1, 400)
    yield f"first row   {shown}"
    probe = Probe(run.binding)
    task = TaskRun(probe, run.recipe.stages[0], row)
    try:
        task.begin()
    finally:
        task.close()
    yield from probe.lines()
    yield ""


class Probe:
    """A peer that starts a task, answers nothing, and keeps the first thing it asked for."""

    def __init__(self, binding: Binding) -> None:
        self.binding = binding
        self.clock: Clock = time
        self._first: Ask | None = None
        self._end: TaskEnded | None = None

    def lines(self) -> Iterator[str]:
        """What the task did first."""
        if self._first is not None and isinstance(self._first, ModelAsk):
            yield f"the first call on it, by agent {self._first.name!r}, would send"
            for message in self._first.messages:
                yield from message_lines(message, 20, 2_000)
        elif self._first is not None:
            yield f"its first step is {self._first.name}(...), which a dry run does not call"
        elif self._end is not None:
            text = f": {self._end.reason}: {self._end.value}" if self._end.state != "done" else ""
            yield f"it ends before its first step, {self._end.state}{text}"

    def write(self, event: Event, durable: Callable[[], None] | None, blobs: Mapping[bytes, str] | None) -> None:
        if isinstance(event, TaskEnded):
            self._end = event

    def launch(self, run: TaskRun, ask: Ask) -> None:
        self._first = self._first or ask

    def cancel(self, ask: Ask) -> None: ...

    def charge(self, run: TaskRun, ask: Ask, usage: Usage | None) -> Usage:
        return usage or NO_USAGE

    def abandon(self, run: TaskRun) -> None: ...

    def call_later(self, delay: float, callback: Callable[[], None]) -> Any:
        """Timers never fire."""
        return _NoTimer()

    def ended(self, run: TaskRun, event: TaskEnded, value: Any) -> None: ...


class _NoTimer:
    def cancel(self) -> None: ...
