"""`weaverant run` and `weaverant resume`: prepare, go on until the end or a signal, tell what came of it."""

from __future__ import annotations

import argparse
import asyncio
import os
import shlex
import sys
import threading
from contextlib import suppress
from pathlib import Path
from types import FrameType

from weaverant import launch
from weaverant.cli import SOME_FAILED, complain
from weaverant.cli.advice import next_steps
from weaverant.cli.forecast import forecast
from weaverant.cli.options import (
    input_for,
    limits_of,
    models_for,
    models_of,
    overrides_of,
    parameters_of,
    retry_of,
)
from weaverant.cli.plan import print_plan
from weaverant.cli.report import report
from weaverant.cli.signals import Signals
from weaverant.cli.text import counted, exact
from weaverant.errors import UserError, WeaverantError
from weaverant.launch import EXIT_CODES, Run
from weaverant.pilot import estimate
from weaverant.recipe import Recipe
from weaverant.rundir import default_directory, load_config, resume_in_python
from weaverant.runtime.progress import Progress, is_live, money
from weaverant.runtime.terminal import visible
from weaverant.runtime.watch import holder
from weaverant.summary import Examples, fold, has_finished, of_run


def run_command(options: argparse.Namespace) -> int:
    recipe: Recipe = options.recipe
    directory: str | None = options.run
    if options.no_journal and directory is not None:
        raise UserError("--no-journal stores nothing, so it has no --run directory; leave one of the two out")
    if options.dry_run and directory is not None and (Path(directory) / "run.json").exists():
        raise UserError(f"{directory!r} already holds a run; choose another directory with --run")
    if options.dry_run:
        from weaverant.engines.http.key import keyless

        with keyless() as missing:
            run = _prepared(options)
        place = None if options.no_journal else Path(directory or default_directory(recipe.name))
        return print_plan(run, place, missing)
    return _drive(_prepared(options), options.quiet)


def _prepared(options: argparse.Namespace) -> Run:
    recipe: Recipe = options.recipe
    return launch.run(
        recipe,
        input_for(options.input, recipe),
        models=models_for(options.model, recipe),
        directory=options.run,
        journal=not (options.no_journal or options.dry_run),
        trials=options.trials,
        limit=options.limit,
        overrides=overrides_of(options.set, recipe),
        parameters=parameters_of(options, recipe),
        reuse=options.reuse,
        pilot=options.pilot,
        **limits_of(options),
    )


def resume_command(options: argparse.Namespace) -> int:
    path = Path(options.directory)
    config = load_config(path)
    retry = retry_of(options.retry)
    if retry is None and has_finished(path):
        summary = fold(path)
        print(f"{options.directory}: this run has finished, there is nothing to do.", file=sys.stderr)
        if not options.quiet:
            print(visible("\n".join(next_steps(summary))))
        return SOME_FAILED if summary.ledger.failed else 0
    models = {**config.models, **models_of(options.model)}
    given = {
        "rows": options.input is not None,
        "models": not any(spec.startswith("object:") for spec in models.values()),
    }
    missing = [name for name in config.objects if not given.get(name)]
    if missing:
        raise UserError(
            f"the run {str(path)!r} was made in Python with what no command can make again ({', '.join(missing)}): "
            f"go on with it there, {resume_in_python(path, missing)}"
            + (", or give its models with --model NAME=SPEC" if missing == ["models"] else "")
        )
    run = launch.resume(path, rows=options.input, models=models, retry=retry, pilot=options.pilot, **limits_of(options))
    return _drive(run, options.quiet)


def _drive(run: Run, quiet: bool) -> int:
    """Go on to the end; print the summary; give the exit code."""
    driver = _Driver(run, quiet)
    with driver.signals:
        asyncio.run(driver.go())
    if not quiet:
        resumed = run.resumed and run.directory is not None
        summary = fold(run.directory) if resumed and run.directory else of_run(run, driver.examples)
        print(visible("\n".join(report(summary))), flush=True)
        if run.state == "pilot":
            print(visible("\n".join(forecast(estimate(run)))), flush=True)
    if run.error is not None:
        complain(run.error if isinstance(run.error, WeaverantError) else repr(run.error), run.exit_code)
    if driver.signals.count > 1:
        _leave(run.exit_code)
    return run.exit_code


def _leave(code: int) -> None:
    """End the process although threads still run: Python would wait for a `step` function that nobody waits for."""
    others = [thread for thread in threading.enumerate() if not thread.daemon and thread is not threading.main_thread()]
    if others:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


class _Driver:
    """A run with its progress and its signals."""

    def __init__(self, run: Run, quiet: bool) -> None:
        self.examples = Examples()
        self.signals = Signals(self._stop, self._leave)
        self._stops = 0
        self._run = run
        self._quiet = quiet
        self._progress = Progress(run, run.config.rows, sys.stderr, is_live(sys.stderr) and not quiet)
        run.tell = self._progress.say

    async def go(self) -> None:
        loop = asyncio.get_running_loop()
        self.signals.listen()
        # The run prepares itself before the loop gets its next turn, and knows then what it takes up again.
        loop.call_soon(self._announce)
        drawing = None if self._quiet else loop.create_task(self._progress.draw())
        try:
            async for task in self._run:
                self.examples.add(task)
        finally:
            if drawing is not None:
                drawing.cancel()
                with suppress(asyncio.CancelledError):
                    await drawing
                if self._run.state != "ready":
                    self._progress.finish()

    def _announce(self) -> None:
        if self._run.state == "ready":
            return  # it could not begin; the error says why
        if self._run.state == "budget":
            self._say(
                f"nothing was asked: {exact(self._run.spent)} have been spent, more than the budget of "
                f"{money(self._run.limits.budget)}. Go on with a larger one: --budget DOLLARS"
            )
        again = self._run.unfinished.reopened
        if again:
            reasons = ", ".join(f"{reason} {count:,}" for reason, count in sorted(again.items()))
            self._say(f"taking up {counted(sum(again.values()), 'failed row')} again: {reasons}")
        if self._run.directory is not None:
            self._say(f"run directory: {self._run.directory}")

    def _stop(self) -> None:
        calls = self._run.sent
        self._run.stop("interrupted")
        self._stops += 1
        if self._stops == 1:
            grace = self._run.limits.grace
            self._say(
                f"stopping: {counted(calls, 'call')} in flight may finish, for {grace:g} s at most; {self._left()}. "
                "Ctrl-C again stops at once"
            )
        elif self._stops == 2:
            self._say("stopping at once")

    def _left(self) -> str:
        return "what is left can be resumed" if self._run.directory else "the rest is lost, as nothing is stored"

    def _leave(self, frame: FrameType | None) -> None:
        """The loop is held, so nothing can end in order. As after `kill -9` the journal has all that is needed. Said
        without Python's buffers: they may be in use where the signal came."""
        who = holder(frame) or "something"
        text = f"\nstopped at once, while {who} held the event loop; {self._left()}"
        if self._run.directory is not None:
            where, name = shlex.quote(str(self._run.directory)), self._run.config.workflow
            text += f": weaverant resume {where}, or once the code is mended weaverant run {name} ... --reuse {where}"
        os.write(2, f"{text}\n".encode())
        os._exit(EXIT_CODES["interrupted"])

    def _say(self, text: str) -> None:
        if not self._quiet:
            self._progress.say(text)
