"""`weaverant export`: a pure fold over a run's journal into training data.

Samples come in the order of the rows, so the same run gives the same bytes however its tasks arrived. Tasks that a
changed group superseded do not count. Memory is bounded: stories are read a thousand at a time.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from weaverant.cli.options import named, near
from weaverant.cli.show import storyteller
from weaverant.errors import UserError
from weaverant.export import GENERIC, messages, open_sink, row_order
from weaverant.given import recipe_of_run
from weaverant.journal import JournalReader
from weaverant.recipe import StoryExporter, samples_of
from weaverant.rundir import RunConfig, load_config
from weaverant.summary import has_finished


def export_command(options: argparse.Namespace) -> int:
    directory = Path(options.directory)
    counts = export(directory, options.form, options.out, agent=options.agent, state=options.state)
    for name, count in counts.items():
        print(f"{'standard output' if name == '-' else name}: {count:,} samples", file=sys.stderr)
    if not has_finished(directory):
        print(f"the run has not finished: export again after `weaverant resume {directory}`", file=sys.stderr)
    return 0


def export(directory: Path, form: str, out: str, *, agent: str | None = None, state: str = "done") -> dict[str, int]:
    """Write the samples that the exporter `form` makes of each task in `state`; gives their number by file.

    `raw`, `preference` and a workflow's own exporters see the tasks of the last stage, `messages` those of all
    stages. Raises `UserError`, `JournalCorrupt`.
    """
    config = load_config(directory)
    exporter = find_exporter(form, config)
    if agent is not None:
        _check_agent(agent, form, config)
    reader = JournalReader(directory)
    stages = range(len(config.stages)) if exporter is messages else (len(config.stages) - 1,)
    keys = [task.task for task in reader.tasks() if task.state == state and task.stage in stages]
    keys.sort(key=row_order)
    places = reader.places(keys)
    teller = storyteller(directory, reader)
    with open_sink(out) as sink:
        for _, events in reader.histories({key: places[key] for key in keys}):
            story = teller.tell(events)
            for sample in samples_of(exporter, form, story):
                if agent is None or sample.get("agent") == agent:
                    sink.add(sample, f"exporter {form!r}")
    return sink.counts


def find_exporter(form: str, config: RunConfig) -> StoryExporter:
    """The workflow's own exporter of that name, else the generic one."""
    own: dict[str, StoryExporter] = {}
    try:
        own = dict(recipe_of_run(config).exporters)
    except UserError as error:
        # A generic export does not need the file, which may have moved since.
        if form not in GENERIC:
            raise UserError(f"the exporter {form!r} is not a generic one, and {error}") from None
    found = own.get(form) or GENERIC.get(form)
    if found is None:
        known = {**own, **GENERIC}
        raise UserError(
            f"there is no exporter {form!r}{near(form, known)}; there are: {named(known)}. "
            "A function in the workflow's file with @exporter adds one"
        )
    return found


def _check_agent(agent: str, form: str, config: RunConfig) -> None:
    if form != "messages":
        raise UserError(f"--agent chooses the steps of --as messages; it means nothing to {form!r}: leave it out")
    if config.agents and agent not in config.agents:
        raise UserError(f"the run has no agent {agent!r}{near(agent, config.agents)}; it has: {named(config.agents)}")
