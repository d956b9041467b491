"""`weaverant export`: a pure fold over a run's journal into training data.

Samples come in the order of the rows, so the same run gives the same bytes however its tasks arrived. Tasks that a
changed group superseded do not count. Memory is bounded: stories are read a thousand at a time.
"""

from __future__ import annotations

import argparse
import ast
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from msgspec import Struct, field

from weaverant.cli.fetch import bring
from weaverant.cli.options import named, near
from weaverant.cli.show import storyteller
from weaverant.cli.streams import tell
from weaverant.cli.text import counted
from weaverant.errors import UserError
from weaverant.export import (
    CUT_SHORT,
    GENERIC,
    LEFT_OUT,
    Inherited,
    NotFinite,
    Sink,
    Written,
    cut_texts,
    messages,
    open_sink,
    preference,
    raw,
    row_order,
)
from weaverant.given import recipe_of_run
from weaverant.history import sensible
from weaverant.journal import JournalReader
from weaverant.recipe import StoryExporter, recipe_names, samples_of
from weaverant.rundir import RunConfig, load_config
from weaverant.story import Story
from weaverant.summary import has_finished


class Exported(Struct):
    """What an export came to."""

    files: dict[str, int]
    """Samples by file."""
    left_out: Counter[str] = field(default_factory=Counter[str])
    """Samples that were not written, by reason."""
    cut: Counter[str] = field(default_factory=Counter[str])
    """Of an exporter that sees whole tasks: how many had replies that were cut short, by why."""


def export_command(options: argparse.Namespace) -> int:
    directory = Path(options.directory)
    bring(directory)
    exported = export(
        directory,
        options.form,
        options.out,
        agent=options.agent,
        state=options.state,
        keep_cut=options.keep_cut,
        force=options.force,
    )
    for line in _told(exported, options.form):
        tell(line)
    if not any(exported.files.values()) and not exported.left_out:
        tell(_nothing(options))
    if not has_finished(directory):
        tell(f"the run has not finished: export again after `weaverant resume {directory}`")
    return 0


def _told(exported: Exported, form: str) -> Iterator[str]:
    for name, count in exported.files.items():
        yield f"{'standard output' if name == '-' else name}: {counted(count, 'sample')}"
    if exported.left_out:
        yield f"left out: {_ranked(exported.left_out)}" + (
            "; --keep-cut keeps what was cut short" if exported.left_out.keys() & set(CUT_SHORT.values()) else ""
        )
    for why, count in exported.cut.items():
        whose = "--as raw keeps them" if form == "raw" else f"to leave them out is up to --as {form}"
        yield f"{counted(count, 'task')} with replies that were {why}: {whose}"


def _nothing(options: argparse.Namespace) -> str:
    whose = f" of agent {options.agent!r}" if options.agent else ""
    stage = "" if options.form == "messages" else " of the last stage"
    return f"--as {options.form} made no sample{whose} from the tasks{stage} that are {options.state}"


def _ranked(counts: Counter[str]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in counts.most_common())


def export(
    directory: Path,
    form: str,
    out: str,
    *,
    agent: str | None = None,
    state: str = "done",
    keep_cut: bool = False,
    force: bool = False,
) -> Exported:
    """Write the samples that the exporter `form` makes of each task in `state`.

    `raw`, `preference` and a workflow's own exporters see the tasks of the last stage, `messages` those of all
    stages. What `messages` and `preference` make of replies that were cut short is left out, unless `keep_cut`.
    A file that is there already and not from the same export of this run is replaced only with `force`.
    Raises `UserError`, `JournalCorrupt`.
    """
    config = load_config(directory)
    exporter = find_exporter(form, config)
    if agent is not None:
        _check_agent(agent, form, config)
    if keep_cut and exporter is raw:
        raise UserError("--keep-cut keeps samples that other forms leave out; --as raw leaves none out: leave it out")
    kept = set(CUT_SHORT.values()) if keep_cut else set[str]()
    exported = Exported({})
    written = Written(directory, f"{form}, agent {agent}, {state}", force)
    with open_sink(out, written.check) as sink:
        for sample in _samples(directory, exporter, form, state, exported.cut):
            if agent is not None and sample.get("agent") != agent:
                continue
            why = str(sample.pop(LEFT_OUT, ""))
            if not why or why in kept:
                why = _not_added(sink, sample, form)
            if why:
                exported.left_out[why] += 1
    exported.files = sink.counts
    written.keep(Path(name) for name in sink.counts if name != "-")
    return exported


def _not_added(sink: Sink, sample: dict[str, Any], form: str) -> str:
    """Write the sample; empty, or why it cannot be."""
    try:
        sink.add(sample, f"exporter {form!r}")
    except NotFinite as error:
        return str(error)
    return ""


def _samples(
    directory: Path, exporter: StoryExporter, form: str, state: str, cut: Counter[str]
) -> Iterator[dict[str, Any]]:
    """All samples, in the order of the rows, those to be left out included."""
    reader = JournalReader(directory)
    last = len(load_config(directory).stages) - 1
    before = Inherited()
    if exporter is preference:
        for stage in range(last):
            for story in _stories(directory, reader, range(stage, stage + 1), "done"):
                before.add(story)
    for story in _stories(directory, reader, range(last + 1) if exporter is messages else range(last, last + 1), state):
        texts = cut_texts(story, before.of(story))
        if exporter is preference:
            yield from samples_of(partial(preference, cut=texts), form, story)
        else:
            if exporter is not messages:
                cut.update(set(texts.values()))
            yield from samples_of(exporter, form, story)


def _stories(directory: Path, reader: JournalReader, stages: range, state: str) -> Iterator[Story]:
    keys = [task.task for task in reader.tasks() if task.state == state and task.stage in stages]
    with sensible("the run"):  # their keys, as the index has them
        keys.sort(key=row_order)
        found = reader.places(keys)
        places = {key: found[key] for key in keys}
    teller = storyteller(directory, reader)
    for _, events in reader.histories(places):
        yield teller.tell(events)


def find_exporter(form: str, config: RunConfig) -> StoryExporter:
    """The workflow's own exporter of that name, else the generic one, for which the workflow's file is not run."""
    own: dict[str, StoryExporter] = {}
    try:
        if form not in GENERIC or _may_define(config, form):
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


def _may_define(config: RunConfig, form: str) -> bool:
    """Whether the workflow's file has something of that name at its top; found by reading it. Of a packaged recipe that
    is not where it was, this installation's own tells."""
    file = Path(config.found.rpartition(":")[0] or config.file)
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return not file.is_file() and config.workflow in recipe_names()
    return any(form in _names(node) for node in tree.body)


def _names(node: ast.stmt) -> Iterator[str]:
    """What a statement binds, as far as it can be an exporter."""
    if isinstance(node, ast.FunctionDef):
        yield node.name
    elif isinstance(node, ast.ImportFrom):
        yield from (alias.asname or alias.name for alias in node.names)
    elif isinstance(node, ast.Assign):
        yield from (ast.unparse(target) for target in node.targets)


def _check_agent(agent: str, form: str, config: RunConfig) -> None:
    if form != "messages":
        raise UserError(f"--agent chooses the steps of --as messages; it means nothing to {form!r}: leave it out")
    if config.agents and agent not in config.agents:
        raise UserError(f"the run has no agent {agent!r}{near(agent, config.agents)}; it has: {named(config.agents)}")
