"""The data sets of a finished run of `malt`, by any rule: a pure fold over its journal. No model is asked.

`FOLDER/sft-ROLE.jsonl`, `preference-ROLE.jsonl`, `dropped.jsonl`, and `star-generator.jsonl` for the baseline: the
attempts whose own answer is right, which is what STaR (arXiv 2203.14465) learns from the same samples.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from weaverant import run, workflow
from weaverant.cli.show import storyteller
from weaverant.errors import UserError
from weaverant.export import open_sink, row_order
from weaverant.journal import JournalReader
from weaverant.recipes.malt.exports import dropped_counts, grown_of, preference_samples, sft_samples
from weaverant.recipes.malt.grading import grader_for
from weaverant.recipes.malt.values import Rule
from weaverant.rundir import load_config
from weaverant.story import Story

STAR = "star-generator.jsonl"
JUDGED_AT_ONCE = 500
"""Questions whose attempts are in memory at once."""


class Sets(NamedTuple):
    """What was written: lines by file name, and why there is no file for STaR, if there is none."""

    lines: dict[str, int]
    no_star: str = ""


def finished_run(directory: Path) -> int:
    """How many trees the run has. `UserError` where it is no run of `malt`, or has none."""
    config = load_config(directory)
    if config.stages != ["malt"]:
        raise UserError(f"{str(directory)!r} is a run of {' -> '.join(config.stages)}: expected one of the recipe malt")
    trees = sum(task.state == "done" for task in JournalReader(directory).tasks())
    if not trees:
        raise UserError(f"the run {str(directory)!r} has no tree yet: expected one that has finished")
    return trees


def write_sets(directory: Path, folder: Path, rule: Rule | None) -> Sets:
    """Write them all, in the order of the rows: the same run and rule give the same bytes. The folder shows under its
    name once it is whole; one that is there already stays as it is."""
    if folder.is_dir():
        return sets_in(folder)
    unfinished = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    checker = load_config(directory).parameters.get("checker", "auto")
    no_star = _why_no_star(directory, checker)
    with open_sink(str(unfinished), lambda path: None) as sink:
        for stories in _batches(_stories(directory), JUDGED_AT_ONCE):
            for story in stories:
                for samples in (sft_samples, preference_samples, dropped_counts):
                    for sample in samples(story, rule):
                        sink.add(sample, "malt")
            if not no_star:
                for sample in star_samples(stories, checker):
                    sink.add(sample, "star")
    if no_star:
        (unfinished / "no-star.txt").write_text(no_star + "\n", "utf-8")
    unfinished.rename(folder)
    return sets_in(folder)


def star_samples(stories: list[Story], checker: str) -> Iterator[dict[str, Any]]:
    """What STaR keeps of the trees' attempts: each text once whose own answer is right, whatever grew under it."""
    trees = [(story, grown) for story in stories if (grown := grown_of(story)) is not None]
    families = [(story, grown, next(iter(grown.families))) for story, grown in trees]
    rows = [
        {"row": story.row, "checker": checker, "texts": [node.text for node in family.nodes]}
        for story, _, family in families
    ]
    for (story, grown, family), verdicts in zip(families, _judged(rows), strict=True):
        for node, right in zip(family.nodes, verdicts, strict=True):
            if right and not grown.unusable(node):
                prompt = [{"role": message.role, "content": message.text} for message in grown.prompt(family)]
                yield {
                    "_file": STAR,
                    "messages": [*prompt, {"role": "assistant", "content": node.text}],
                    "task": story.key,
                    "role": "generator",
                    "value": 1.0,
                }


@workflow
async def judged(row: dict[str, Any]) -> list[bool]:
    """Which of the texts are right by the row's checker. Asks no model."""
    grader = grader_for(row["row"], row["checker"])
    return [(await grader.judge(text)).right for text in row["texts"]]


def _judged(rows: list[dict[str, Any]]) -> list[list[bool]]:
    found: dict[int, list[bool]] = {}
    for task in run(judged, rows, models={}, journal=False):
        if task.state != "done":
            raise UserError(f"an attempt could not be graded: {task.reason}: {task.where}")
        found[int(task.key.split(".")[1])] = task.result
    return [found[number] for number in range(len(rows))]


def _why_no_star(directory: Path, checker: str) -> str:
    """Where the trees were graded by what cannot be had again here."""
    story = next(story for story in _stories(directory))
    told: str = story.result["checker"]
    if grader_for(story.row, checker).checker == told:
        return ""
    return f"the trees were graded by {told!r}, a Python function that no command can call again"


def _stories(directory: Path) -> Iterator[Story]:
    """The tasks that are done, in the order of the rows."""
    reader = JournalReader(directory)
    keys = sorted((task.task for task in reader.tasks() if task.state == "done"), key=row_order)
    found = reader.places(keys)
    teller = storyteller(directory, reader)
    for _, events in reader.histories({key: found[key] for key in keys}):
        yield teller.tell(events)


def _batches(stories: Iterator[Story], size: int) -> Iterator[list[Story]]:
    batch: list[Story] = []
    for story in stories:
        batch.append(story)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def sets_in(folder: Path) -> Sets:
    """What the folder holds."""
    lines: Counter[str] = Counter()
    for path in sorted(folder.glob("*.jsonl")):
        with path.open("rb") as file:
            lines[path.name] = sum(1 for _ in file)
    why = folder / "no-star.txt"
    return Sets(dict(lines), why.read_text("utf-8").strip() if why.exists() else "")
