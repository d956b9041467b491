"""Whether every task of a run began once: one that had ended and begins again would be asked and paid for again."""

from __future__ import annotations

from collections.abc import Sequence

from weaverant.journal import JournalReader
from weaverant.row import belongs, stage_of
from weaverant.workflow import Group, Workflow


def check_stages(reader: JournalReader) -> None:
    """`ValueError` where a task ended in a stage that is not its own, in a later segment than it began in: there it
    would count. Reads summaries."""
    for late in reader.ended_late():
        if not belongs(late.task, late.stage):
            raise ValueError(f"task {late.task!r} ends in stage {late.stage}, which is not its own")


def call_roll(
    reader: JournalReader, stages: Sequence[Workflow | Group], trials: int, started: int | None, waiting: Sequence[str]
) -> None:
    """`ValueError` where the tasks that began are not the first `started` of the source (None where somebody has made
    sure of them) and, in a run without groups, all rows that results made but those `waiting` to begin. Reads
    summaries; the maps only to name the task, and where an older version wrote them."""
    roll = reader.roll()
    if started is not None and not roll.is_of_source(started, trials):
        raise _contradiction(reader, f"{started} tasks of the source began, and they are not its first {started}")
    if reader.made() is None or any(isinstance(stage, Group) for stage in stages):
        return  # what began after the first stage was read task by task
    for stage in range(1, len(stages)):
        if not roll.is_of_results(stage, [key for key in waiting if stage_of(key) == stage]):
            raise _contradiction(reader, f"the tasks that began in stage {stage} are not the rows that results made")


def _contradiction(reader: JournalReader, what: str) -> ValueError:
    seen: set[str] = set()
    for task in reader.tasks():
        if task.task in seen:
            return ValueError(f"task {task.task!r} begins twice")
        seen.add(task.task)
    return ValueError(what)
