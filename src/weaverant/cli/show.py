"""`weaverant show`: what a run amounts to, one task's whole story, or the key of a row. Reads only; the run may be
running."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import msgspec

from weaverant.cli.fetch import bring
from weaverant.cli.find import find, found_lines
from weaverant.cli.report import report, seconds
from weaverant.cli.streams import put
from weaverant.cli.text import as_text, clipped, counted, indented, message_lines
from weaverant.errors import UserError
from weaverant.events import AgentBound
from weaverant.history import sensible
from weaverant.journal import BlobStore, JournalReader
from weaverant.journal.steady import steadily
from weaverant.rundir import load_config
from weaverant.runtime.progress import money
from weaverant.story import Step, Story, Storyteller
from weaverant.summary import document, failure_text, fold

SHORT = (6, 500)
WHOLE = (10**9, 10**12)
"""Lines and characters of a text that are shown."""


def show_command(options: argparse.Namespace) -> int:
    directory = Path(options.directory)
    bring(directory)
    bounds = SHORT if sys.stdout.isatty() and not options.full else WHOLE
    if options.find is not None:
        if options.task is not None:
            raise UserError("--find gives keys and --task takes one; leave one of the two out")
        found = steadily(directory, lambda: find(directory, options.find))
        text = _document(msgspec.to_builtins(found)) if options.json else "\n".join(found_lines(found, bounds[1]))
    elif options.task is not None:
        story = steadily(directory, lambda: read_story(directory, options.task))
        with sensible(f"task {options.task!r}"):
            text = _document(msgspec.to_builtins(story)) if options.json else "\n".join(story_lines(story, *bounds))
    else:
        summary = fold(directory)
        with sensible(f"the run {str(directory)!r}"):
            text = _document(document(summary)) if options.json else "\n".join(report(summary))
    put(text)
    return 0


def _document(data: object) -> str:
    return json.dumps(data, ensure_ascii=False, indent=2)


def read_story(directory: Path, key: str) -> Story:
    """One task, or `UserError` with keys near to the one that is not there."""
    load_config(directory)
    reader = JournalReader(directory)
    events = reader.task_events(key)
    if not events:
        raise UserError(f"the run {str(directory)!r} has no task {key!r}. {_other_keys(reader, key)}")
    return storyteller(directory, reader).tell(events)


def storyteller(directory: Path, reader: JournalReader) -> Storyteller:
    """Tells the stories of this run's tasks."""
    agents = {event.spec: event.agent for event in reader.run_events() if isinstance(event, AgentBound)}
    return Storyteller(agents, BlobStore(directory / "blobs").get)


def _other_keys(reader: JournalReader, key: str) -> str:
    wanted = key.strip("./@")
    alike = list(islice((task.task for task in reader.tasks() if wanted and wanted in task.task), 5))
    if alike:
        return f"Near it: {', '.join(alike)}"
    first = list(islice((task.task for task in reader.tasks()), 3))
    if not first:
        return "It has no tasks yet"
    return f"A key is SOURCE.INDEX.TRIAL of a row, PARENT/N in a later stage; its first tasks: {', '.join(first)}"


def story_lines(story: Story, lines: int, characters: int) -> Iterator[str]:
    """The row, each step, the end."""
    yield f"task {story.key}" + (f"  (stage {story.stage})" if story.stage else "")
    if story.parents:
        yield f"  made from {clipped(', '.join(story.parents), 1, 300)}"
    yield from indented(clipped(as_text(story.row), lines, characters), "  row ", "      ")
    before: Step | None = None
    for step in story.steps:
        yield ""
        yield _heading(step)
        yield from _step(step, before, lines, characters)
        if step.reply is not None:
            before = step
    yield ""
    yield from _end(story, lines, characters)


def _heading(step: Step) -> str:
    path = f"  branch {step.path}" if step.path else ""
    model = f"  {step.model}" if step.model else ""
    used = step.usage
    tokens = ""
    if step.kind == "model" and step.outcome == "reply" and not step.inside:
        tokens = f"  {used.prompt_tokens:,} + {used.completion_tokens:,} tokens"
        tokens += f"  {money(used.cost)}" if used.cost else ""
    reused = "  reused" if step.reused else ""
    again = f"  ask {step.occurrence + 1}" if step.occurrence else ""
    took = f"{step.started:.3f} s + {seconds(step.ended - step.started)}"
    return f"step {step.number}: {step.kind} {step.name}{path}{again}  at {took}{model}{tokens}{reused}"


def _step(step: Step, before: Step | None, lines: int, characters: int) -> Iterator[str]:
    if step.kind == "model":
        messages = step.messages
        if before is not None and before.reply is not None:
            said = (*before.messages, before.reply.message)
            if len(said) < len(messages) and messages[: len(said)] == said:
                yield f"  (goes on from step {before.number})"
                messages = messages[len(said) :]
        for message in messages:
            yield from message_lines(message, lines, characters)
        if step.output is not None:
            yield f"  (with the JSON schema of {step.output['name']}, in the prompt where the server takes none)"
    else:
        yield from indented(clipped(_call(step), lines, characters), "      asked | ", "            | ")
    if step.inside:
        yield f"  (made by the steps in branch {step.inside}; only they count as calls, tokens and money)"
    yield from _outcome(step, lines, characters)


def _outcome(step: Step, lines: int, characters: int) -> Iterator[str]:
    if step.outcome == "cancelled":
        yield "  cancelled"
    elif step.outcome == "failure":
        text = str(step.value[0])
        yield from indented(clipped(f"{step.reason}: {text}", lines, characters), "     FAILED | ", "            | ")
    elif step.reply is not None:
        choices = step.reply.choices
        for number, choice in enumerate(choices, 1):
            about = [f"reply {number} of {len(choices)}"] if len(choices) > 1 else []
            if choice.finish not in ("stop", "tool_calls"):
                about.append(f"cut short: {choice.finish}")
            if about:
                yield f"  ({'; '.join(about)})"
            yield from message_lines(choice.message, lines, characters)
    else:
        yield from indented(clipped(as_text(step.value), lines, characters), "      value | ", "            | ")


def _call(step: Step) -> str:
    try:
        positional, by_name = step.arguments
        given = [json.dumps(value, ensure_ascii=False) for value in positional]
        given += [f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in by_name.items()]
    except (TypeError, ValueError, AttributeError):
        return f"{step.name}({as_text(step.arguments)})"
    return f"{step.name}({', '.join(given)})"


def _end(story: Story, lines: int, characters: int) -> Iterator[str]:
    if story.superseded:
        yield "superseded: its group changed, this result no longer counts"
    if story.attempts > 1:
        yield f"taken up again {counted(story.attempts - 1, 'time')}"
    if story.unasked:
        yield f"replay diverged: {story.unasked} recorded steps were not asked for again, first {story.diverged}"
    if story.state is None:
        yield "not ended yet"
        return
    reason = f": {story.reason}" if story.reason else ""
    where = f" at {story.where}" if story.where else ""
    yield f"{story.state}{reason}{where} after {seconds(story.seconds)}"
    shown = failure_text(story.result) if story.state == "failed" else as_text(story.result)
    yield from indented(clipped(shown, lines, characters), "  ", "  ")
