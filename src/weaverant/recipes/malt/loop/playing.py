"""Runs within a loop: begun, or gone on with where they stand; and the seconds that phases took."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from weaverant import Run, resume
from weaverant.cli.driver import Driver
from weaverant.errors import WeaverantError
from weaverant.recipes.malt.loop.kept import read_json, write_json
from weaverant.summary import fold, has_finished
from weaverant.workflow import Workflow

SECONDS = "seconds.json"


class Stopped(WeaverantError):
    """A run ended before its end, in order; `code` is what the command ends with. The same command goes on."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.code = code


class Played(NamedTuple):
    """What a finished run came to. `cost` in US dollars."""

    calls: int
    cost: float
    rows: int
    failed: int
    priced: bool


def play(
    directory: Path,
    begin: Callable[[], Run],
    models: Mapping[str, str],
    budget: float,
    quiet: bool = False,
    workflow: Workflow | None = None,
) -> Played:
    """Bring the run in the directory to its end, whatever is there of it. `begin` makes a new one; `models` say where
    those of one that goes on are now, `budget` what it may cost in all, 0 for no cap. Raises `Stopped`, or what running
    raises."""
    if not (directory / "run.json").exists():
        shutil.rmtree(directory, ignore_errors=True)
        going = begin()
    elif has_finished(directory):
        return played(directory)
    else:
        going = resume(directory, workflow=workflow, models=dict(models), budget=budget)
    Driver(going, lambda _: None, quiet).go_on()
    if going.state != "finished":
        why = going.state if going.error is None else f"{going.state}: {going.error}"
        more = " with a larger --budget" if going.state == "budget" else ""
        raise Stopped(f"stopped ({why}) in {directory}; the same command goes on{more}", going.exit_code)
    return played(directory)


def played(directory: Path) -> Played:
    """What the run has come to so far."""
    found = fold(directory)
    ledger = found.ledger
    return Played(
        ledger.calls,
        ledger.usage().cost,
        ledger.stages[0].rows,
        sum(ledger.stages[0].failed.values()),
        not found.config.unpriced,
    )


@contextmanager
def timed(folder: Path, phase: str) -> Generator[None]:
    """Adds the seconds by the clock to those of earlier sessions; those of a session that was killed are lost."""
    began = time.monotonic()
    try:
        yield
    finally:
        folder.mkdir(parents=True, exist_ok=True)
        found: dict[str, Any] = read_json(folder / SECONDS) or {}
        found[phase] = round(found.get(phase, 0.0) + time.monotonic() - began, 1)
        write_json(folder / SECONDS, found)


def seconds_of(folder: Path) -> dict[str, float]:
    """Seconds by phase."""
    return read_json(folder / SECONDS) or {}
