"""Real journals, damaged: what is read is the whole history, or an error; a shorter one only where its end is torn."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from fuzz_runs import make_run
from weaverant.errors import JournalError, UserError
from weaverant.events import Event, StepEnded, TaskEnded, TaskReopened, TaskStarted, TaskSuperseded
from weaverant.journal import JournalReader
from weaverant.journal.disk import Disk
from weaverant.journal.store import SegmentStore

DOCUMENTED = (JournalError, UserError)
TRAILER_BYTES = 24


class Kept(NamedTuple):
    """A journal as it should be read."""

    directory: Path
    events: list[Event]
    sealed: bool
    """Whether the last segment has its index."""


class Damage(NamedTuple):
    """Bytes from `begin` to `end` of a segment are not what was written; of one that was cut, `end` is its size."""

    segment: int
    begin: int
    end: int
    shifts: bool = False


@cache
def journals(folder: Path) -> tuple[Kept, Kept]:
    """One of a run that ended, in two segments, and the same as if it had been killed before its index was written."""
    ended, killed = folder / "ended", folder / "killed"
    make_run(ended)
    events = list(JournalReader(ended).events())
    shutil.copytree(ended, killed)
    last = sorted((killed / "journal").iterdir())[-1]
    data = last.read_bytes()
    events_end = struct.unpack("<4sIQQ", data[-TRAILER_BYTES:])[2]
    last.write_bytes(data[:events_end])
    return Kept(ended, events, True), Kept(killed, events, False)


def frames(data: bytes) -> Iterator[tuple[int, int]]:
    """Where frames begin and end, by their own word: a second reading of docs/data-format.md."""
    at = 16
    while data[at : at + 4] == b"\xf5wvj":
        end = at + 13 + int.from_bytes(data[at + 4 : at + 8], "little")
        yield at, end
        at = end


def journal(odds: Random, folder: Path) -> None:
    kept = odds.choice(journals(folder))
    copy = folder / "run"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(kept.directory, copy)
    paths = sorted((copy / "journal").iterdir())
    number = odds.randrange(len(paths))
    whole = paths[number].read_bytes()
    damage, data = damaged(whole, number, odds)
    paths[number].write_bytes(data)
    events = attempt(lambda: list(JournalReader(copy).events()))
    if events is not None and events != kept.events:
        assert events == kept.events[: len(events)], f"another history after {damage}"
        assert number == len(paths) - 1 and may_be_torn(whole, damage, kept.sealed), f"shorter after {damage}"
    compare(JournalReader(copy), events)
    recovered(copy, events)


def damaged(data: bytes, number: int, odds: Random) -> tuple[Damage, bytes]:
    at = odds.randrange(len(data))
    starts = [start for start, _ in frames(data)]
    if odds.random() < 0.3:
        at = odds.choice(starts)
    to = min(len(data), at + odds.choice((1, 4, 13, 500, 5_000)))
    match odds.randrange(5):
        case 0:
            turned = data[at] ^ (1 << odds.randrange(8))
            return Damage(number, at, at + 1), data[:at] + bytes((turned,)) + data[at + 1 :]
        case 1:
            return Damage(number, at, to), data[:at] + bytes(to - at) + data[to:]
        case 2:
            return Damage(number, at, len(data)), data[:at]
        case 3:
            start, end = odds.choice(list(frames(data)))
            piece = odds.choice((data[start:end], data[start : start + 20], odds.randbytes(30)))
            return Damage(number, at, at, at not in starts), data[:at] + piece + data[at:]
        case _:
            return Damage(number, at, to, True), data[:at] + data[to:]


def may_be_torn(whole: bytes, damage: Damage, sealed: bool) -> bool:
    """Whether a crash while the last frames were written could look the same. Without an index nothing tells how long
    the segment was; what stands whole behind the damage does, unless it was moved and nothing tells by how much."""
    if damage.end == len(whole):
        return True
    indexed = sealed and damage.end <= len(whole) - TRAILER_BYTES
    intact = any(start >= damage.end for start, _ in frames(whole))
    return not indexed and (damage.shifts or not intact)


def attempt(ask: Callable[[], Any]) -> Any:
    """The answer, or None for an error that is documented. All others are faults."""
    try:
        return ask()
    except DOCUMENTED:
        return None


def compare(reader: JournalReader, events: list[Event] | None) -> None:
    """What the indexes answer is an error, or what folding all events gives."""
    asked: dict[str, Callable[[], Any]] = {
        "tasks": lambda: {summary.task: (summary.stage, summary.state) for summary in reader.tasks()},
        "unfinished": lambda: sorted(reader.unfinished()),
        "calls": reader.calls,
        "about the run": lambda: list(reader.run_events()),
        "counts": lambda: {stage: counts.done for stage, counts in reader.counts().items()},
        "histories": lambda: dict(reader.histories(reader.places([*states(events or [])]))),
        "usage": lambda: reader.usage() and None,
        "reserved": lambda: reader.reserved() and None,
    }
    expected = None if events is None else folded(events)
    for name, ask in asked.items():
        answer = attempt(ask)
        if answer is not None and expected is not None and name in expected:
            assert answer == expected[name], f"{name}: {answer} is not {expected[name]}"


def states(events: list[Event]) -> dict[str, tuple[int, str | None]]:
    """Stage and state of every task, by what happened to it last; superseded is for good."""
    found: dict[str, tuple[int, str | None]] = {}
    for event in events:
        match event:
            case TaskStarted():
                found[event.task] = (event.stage, None)
            case TaskEnded() if found[event.task][1] != "superseded":
                found[event.task] = (event.stage, event.state)
            case TaskReopened():
                found[event.task] = (found[event.task][0], None)
            case TaskSuperseded() if event.task in found:
                found[event.task] = (found[event.task][0], "superseded")
            case _:
                pass
    return found


def folded(events: list[Event]) -> dict[str, Any]:
    tasks = states(events)
    return {
        "tasks": tasks,
        "unfinished": sorted(task for task, (_, state) in tasks.items() if state is None),
        "calls": sum(isinstance(event, StepEnded) and event.kind == "model" for event in events),
        "about the run": [event for event in events if not hasattr(event, "task")],
        "counts": {
            stage: sum(one == (stage, "done") for one in tasks.values()) for stage in {one for one, _ in tasks.values()}
        },
        "histories": {task: [event for event in events if getattr(event, "task", None) == task] for task in tasks},
    }


def recovered(copy: Path, before: list[Event] | None) -> None:
    """Opening for writing keeps all that reading gave, and refuses where reading does."""
    store = SegmentStore(copy / "journal", Disk(), sync=False)
    try:
        opened = attempt(lambda: (store.recover(), True))
    finally:
        store.close()
    after = attempt(lambda: list(JournalReader(copy).events()))
    assert after == before, f"recovery changed {len(before or ())} events to {len(after or ())}"
    assert before is not None or opened is None or after is None
