"""`weaverant run` and `weaverant resume`: prepare, go on until the end or a signal, tell what came of it."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from weaverant import launch
from weaverant.cli import SOME_FAILED, STOPPED, complain
from weaverant.cli.advice import next_steps
from weaverant.cli.driver import Driver
from weaverant.cli.fetch import attach_new, waiting_for
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
from weaverant.cli.streams import Unwritten, put, settle, tell
from weaverant.cli.text import counted
from weaverant.errors import JournalError, UserError, WeaverantError, is_full
from weaverant.journal.objects import store_url
from weaverant.journal.shelf import shelf_of, store_of
from weaverant.pilot import estimate
from weaverant.recipe import Recipe
from weaverant.rundir import check_free, default_directory, load_config, resume_in_python
from weaverant.runtime.threads import StepThread
from weaverant.session import EXIT_CODES, Run
from weaverant.summary import Examples, fold, has_finished, of_run

if TYPE_CHECKING:
    from weaverant.peers.driver import PeersRun

LAST_SECONDS = 1.0
"""What threads have to end, once the run has."""


def run_command(options: argparse.Namespace) -> int:
    recipe: Recipe = options.recipe
    directory: str | None = options.run
    if options.no_journal and directory is not None:
        raise UserError("--no-journal stores nothing, so it has no --run directory; leave one of the two out")
    if options.dry_run and directory is not None:
        check_free(Path(directory))
    if options.no_journal and options.store is not None:
        raise UserError("--no-journal stores nothing, so it has no --store; leave one of the two out")
    if options.store is not None:
        options.store = store_url(options.store)
    if options.dry_run:
        from weaverant.engines.http.key import keyless

        with keyless() as missing:
            run = _prepared(options)
        place = None if options.no_journal else Path(directory or default_directory(recipe.name))
        return print_plan(run, place, missing)
    return _drive_all(lambda: _prepared(options), options)


def _prepared(options: argparse.Namespace) -> Run:
    recipe: Recipe = options.recipe
    return launch.run(
        recipe,
        input_for(options.input, recipe),
        models=models_for(options.model, recipe),
        directory=None if options.dry_run else options.run,
        journal=not (options.no_journal or options.dry_run),
        trials=options.trials,
        limit=options.limit,
        overrides=overrides_of(options.set, recipe),
        parameters=parameters_of(options, recipe),
        reuse=options.reuse,
        pilot=options.pilot,
        store=None if options.dry_run else options.store,
        **limits_of(options),
    )


def resume_command(options: argparse.Namespace) -> int:
    path = Path(options.directory)
    if options.store is not None:
        attach_new(path, options.store)
    with waiting_for(path):
        shelf_of(path).fetch()
    config = load_config(path)
    retry = retry_of(options.retry)
    if retry is None and has_finished(path):
        summary = fold(path)
        tell(f"{options.directory}: this run has finished, there is nothing to do.")
        if not options.quiet:
            _show(next_steps(summary), path)
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

    def prepare() -> Run:
        limits = limits_of(options)
        return launch.resume(path, rows=options.input, models=models, retry=retry, pilot=options.pilot, **limits)

    return _drive_all(prepare, options)


def _drive_all(prepare: Callable[[], Run], options: argparse.Namespace) -> int:
    """In this process, or on peers; what takes rows of all of them is done by one process afterwards."""
    if options.swarm != "ray" and options.address is not None:
        raise UserError("--address is that of a Ray cluster: give --swarm ray as well, or leave it out")
    if options.swarm == "local" and options.peers is None:
        for flag in ("label", "spread", "host"):
            if getattr(options, flag):
                raise UserError(f"--{flag} is for a run with peers: give --peers N as well, or leave it out")
        return _drive(prepare(), options.quiet)
    from weaverant.peers.driver import PeersRun
    from weaverant.peers.given import check_options, labels_of
    from weaverant.swarm.crew import LocalCrew
    from weaverant.swarm.listener import check_host
    from weaverant.swarm.places import check_key_given

    new = vars(options)
    check_options(options.peers, new.get("no_journal", False), options.pilot, new.get("reuse"), options.input)
    if options.swarm == "local":
        labels_of(options.peers, options.label, ())
        if options.host is not None:
            check_host(options.host)
        run = prepare()
        assert run.directory is not None or options.no_journal
        crew = LocalCrew(run.directory or Path(), options.host or "127.0.0.1")
        spread, host = options.spread is not None, options.host or ""
        on_peers = PeersRun(run, options.peers, crew, labels=options.label, spread=spread, host=host)
        code = _drive(on_peers, options.quiet)
    else:
        if options.host is not None:
            raise UserError("with --swarm ray each peer listens at its node's own address: leave --host out")
        store = options.store or ("directory" in options and store_of(Path(options.directory)))
        if store and options.address is not None:
            check_key_given()
        from weaverant.swarm.raycrew import RayCrew
        from weaverant.swarm.rays import Cluster

        with Cluster(options.address) as cluster:
            run = prepare()
            crew = RayCrew(cluster, run.directory or Path(), run.config.run)
            peers = cluster.nodes if options.peers is None else options.peers
            on_peers = PeersRun(run, peers, crew, labels=options.label, spread=options.spread is not None)
            code = _drive(on_peers, options.quiet)
    if on_peers.state != "grouping" or on_peers.directory is None:
        return code
    given = launch.resume(on_peers.directory, rows=run.source.name, models=run.specs, **limits_of(options))
    return _drive(given, options.quiet)


def _drive(run: Run | PeersRun, quiet: bool) -> int:
    """Go on to the end; print the summary; give the exit code, also where Ctrl-C comes before or after the run."""
    try:
        return _driven(run, quiet)
    except KeyboardInterrupt:
        if run.directory is None:
            raise
        if run.state in ("ready", "running"):
            tell(f"stopped before it began; go on with: weaverant resume {shlex.quote(str(run.directory))}")
            return STOPPED
        return run.exit_code


def _driven(run: Run | PeersRun, quiet: bool) -> int:
    examples, before = Examples(), threading.enumerate()
    driver = Driver(run, examples.add, quiet)
    try:
        driver.go_on()
    except JournalError as error:
        if run.directory is None or not is_full(error.__cause__):
            raise
        again = f"weaverant resume {shlex.quote(str(run.directory))}"
        return complain(f"{error}. Nothing was asked; go on with: {again}", EXIT_CODES["journal"])
    seen = False
    if not quiet:
        if isinstance(run, Run) and (run.directory is None or not run.resumed):
            summary = of_run(run, examples)
        else:
            assert run.directory is not None
            summary = fold(run.directory)
        seen = _show(report(summary), run.directory)
        if isinstance(run, Run) and run.state == "pilot":
            _show(forecast(estimate(run)), run.directory)
        if run.directory is not None and not run.resumed and not run.source.rereadable and run.state != "finished":
            rows = counted(run.ledger.stages[0].rows, "row")
            tell(f"of {run.source.name!r} the run has kept the {rows} that were read; what came after them is gone")
    if run.error is not None and not (seen and _seen_together()):  # else the summary has said it there
        complain(run.error if isinstance(run.error, WeaverantError) else repr(run.error), run.exit_code)
    own = set(threading.enumerate()) - set(before)
    waited = [each for each in own if not each.daemon or isinstance(each, StepThread)]
    _leave(run.exit_code, waited, 0.0 if driver.signals > 1 else LAST_SECONDS)
    return run.exit_code


def _seen_together() -> bool:
    """Whether standard output and standard error go to one terminal or file."""
    try:
        return os.path.sameopenfile(sys.stdout.fileno(), sys.stderr.fileno())
    except (OSError, ValueError):
        return False


def _show(lines: Iterable[str], directory: Path | None) -> bool:
    """Whether it could be: what has become of the rows does not hang on it."""
    try:
        put("\n".join(lines))
    except BrokenPipeError:
        return False
    except Unwritten as error:
        again = "" if directory is None else f". The run is not touched by it: weaverant show {directory}"
        tell(f"weaverant: warning: {str(error).partition('. ')[0]}{again}")
        return False
    return True


def _leave(code: int, threads: list[threading.Thread], seconds: float) -> None:
    """End the process although these still run then: Python would wait for a `step` function that nobody waits for."""
    until = time.monotonic() + seconds
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))
    if any(thread.is_alive() for thread in threads):
        settle()
        os._exit(code)
