"""What a run taught, folded into a router's folder: `weaverant route learn`, and what is kept there beside the router.

Every score counts once, however often its run is folded: the folder remembers which are in.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec

from weaverant.errors import UserError
from weaverant.journal import BlobStore, JournalReader
from weaverant.message import digest
from weaverant.routing.evidence import Evidence
from weaverant.routing.folder import EVIDENCE, KEPT
from weaverant.routing.learning import Kept, Known, Lesson
from weaverant.story import Step, Storyteller
from weaverant.workflow import feedback

T = TypeVar("T")


class Scored(NamedTuple):
    """One score that a workflow gave."""

    lesson: Lesson
    reply: str
    """Which reply of the run it is of."""
    mark: str
    """Tells it from all others of the run."""


class Tally(msgspec.Struct):
    """What became of one model's answers."""

    known: bool
    """To the router."""
    outcomes: int = 0
    right: float = 0.0
    """Outcomes, summed."""
    expected: float = 0.0
    """What was thought of them beforehand, summed."""


class Folded(msgspec.Struct):
    """What a run gave."""

    scores: int = 0
    """That were taken in."""
    before: int = 0
    """That had been taken in before."""
    replies: int = 0
    """That those scores are of."""
    models: dict[str, Tally] = {}


def scored(run: str | Path) -> Iterator[Scored]:
    """All that feedback has recorded in a run, task by task."""
    directory = Path(run)
    reader = JournalReader(directory)
    teller = Storyteller({}, BlobStore(directory / "blobs").get)
    for task, events in reader.all_histories():
        for step in teller.tell(events).steps:
            if step.kind == "effect" and step.name == feedback.__name__ and step.outcome == "reply":
                try:
                    lesson = msgspec.convert(step.value, Lesson)
                except msgspec.ValidationError:
                    continue  # that of another compound, or a user's own function of that name
                yield Scored(lesson, f"{task} {_branch(step)}", _mark(task, step))


def lessons(run: str | Path) -> Iterator[Lesson]:
    """What those teach."""
    return (one.lesson for one in scored(run))


def learn(
    router: Known, run: str | Path, evidence: Evidence | None = None, kept: Kept | None = None, identity: str = ""
) -> Folded:
    """Fold a run's lessons into a router, into what judges are worth, and into what is kept beside them. Scores of the
    run `identity` (else of that folder) that are in there do not count again. Nothing is saved."""
    found, believed, held = Folded(), evidence or Evidence(), kept or Kept()
    of = identity or str(Path(run).resolve())
    marks, replies = set(held.runs.get(of, ())), set[str]()
    for lesson, reply, mark in scored(run):
        if mark in marks:
            found.before += 1
            continue
        marks.add(mark)
        replies.add(reply)
        found.scores += 1
        if lesson.assessed is not None:
            expected = max((lesson.prior[name] for name in lesson.layer), default=0.0)
            believed.heard(lesson.assessed, lesson.score - expected, lesson.layer)
        for name, outcome in sorted(lesson.outcomes.items()):
            tally = found.models.setdefault(name, Tally(name in router.models))
            tally.outcomes += 1
            tally.right += outcome
            tally.expected += lesson.prior.get(name, outcome)
            if tally.known:
                router.update(lesson.query, name, outcome)
            if name in lesson.prior:
                believed.learn(lesson.prior[name], lesson.verdicts.get(name, ()), outcome)
        if lesson.could:
            believed.discernment.learn(lesson.score - lesson.best, lesson.could)
        held.add(lesson, router.models)
    if marks:
        held.runs[of] = sorted(marks)
    found.replies = len(replies)
    return found


def _branch(step: Step) -> str:
    """Of the reply."""
    try:
        return str(step.arguments[0][0])
    except (TypeError, LookupError):
        return ""


def _mark(task: str, step: Step) -> str:
    value = msgspec.msgpack.encode(step.value, order="deterministic")
    told = f"{task}\0{step.path}\0{step.occurrence}\0".encode()
    return digest(told + value).hex()[:16]


def read_evidence(folder: Path | None) -> Evidence:
    """What judges are worth, as it was saved beside a router; nothing is known where nothing was. `UserError` for a
    damaged file."""
    return _read(folder, EVIDENCE, Evidence)


def read_kept(folder: Path | None) -> Kept:
    """What `learn` had no other place for. Like `read_evidence`."""
    return _read(folder, KEPT, Kept)


def written(evidence: Evidence, kept: Kept) -> dict[str, bytes]:
    """Both as files, by name: for `Router.aside`."""
    whole = {EVIDENCE: evidence, KEPT: kept}
    return {name: msgspec.json.format(msgspec.json.encode(each)) for name, each in whole.items()}


def _read(folder: Path | None, name: str, kind: type[T]) -> T:
    try:
        return msgspec.json.decode((folder / name).read_bytes(), type=kind) if folder else kind()
    except FileNotFoundError:
        return kind()
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise UserError(f"the router {str(folder)!r} is damaged: {name} cannot be read ({error})") from None
