"""A run's directory for the fuzzers to spoil, the same bytes every time: all kinds of events, two segments, a blob."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from msgspec.msgpack import Ext

from weaverant.events import (
    AgentBound,
    CostReserved,
    Event,
    RunClosed,
    RunOpened,
    SourceEnded,
    StepEnded,
    TaskEnded,
    TaskReopened,
    TaskStarted,
    TaskSuperseded,
    TimerFired,
)
from weaverant.journal import BlobStore
from weaverant.journal.codec import encode_into, new_payload
from weaverant.journal.disk import Disk
from weaverant.journal.index import SegmentIndex
from weaverant.journal.store import SegmentStore
from weaverant.message import Usage, digest
from weaverant.rundir import RunConfig, save_config
from weaverant.trace import BLOB_REF, TEXT_REF

LONG = "a text that is long enough to be a blob " * 2_000
TASKS = 24
AGENT = {
    "name": "writer",
    "model": "strong",
    "identity": "m",
    "prompt": "Write about {{ text }}",
    "system": "You write.",
    "sampling": {},
    "tools": [],
    "output": None,
}


def make_run(directory: Path) -> None:
    """The directory of a run that finished in its second session."""
    config = RunConfig(
        "w.py", "w.py", ["first", "second"], "rows.jsonl", {"*": "simulated:"}, {"*": "simulated"}, {"writer": "spec"},
        "code", created=1.0, rows=TASKS, id="0123",
    )  # fmt: skip
    save_config(directory, config)
    store = SegmentStore(directory / "journal", Disk(), sync=False)
    store.recover()
    BlobStore(directory / "blobs").put({digest(LONG.encode()): LONG})
    for session in range(2):
        index = SegmentIndex()
        for frame, events in enumerate(groups(session)):
            payload = new_payload()
            for event in events:
                encode_into(event, payload, -1)
                index.note([event], frame)
            store.write([(payload, len(events))], index)
        store.seal(index)


def groups(session: int) -> Iterator[list[Event]]:
    """The events of each frame."""
    now = 1000.0 + session
    yield [RunOpened(session, now, "0.1", 5.0)]
    if not session:
        yield [AgentBound("spec", AGENT)]
    for number in range(session * TASKS // 2, (session + 1) * TASKS // 2):
        yield from _task(number, now)
    if session:
        yield [TaskReopened("0.3.0/0", now, 1), *_end("0.3.0/0", 3, now, "done"), TaskSuperseded("0.5.0/0", "", now)]
        yield [SourceEnded(TASKS, now)]
    yield [RunClosed("finished" if session else "interrupted", now)]


def _task(number: int, now: float) -> Iterator[list[Event]]:
    task = f"0.{number}.0" + "/0" * (number % 2)
    text: Any = f"the text of row {number}, long enough to be shared"
    blob = Ext(BLOB_REF, digest(LONG.encode()))
    row = {"n": number, "text": blob if number % 6 == 0 else text}
    shared = Ext(TEXT_REF, b"\0")
    usage = Usage(10, 20, cost=0.5)
    start = TaskStarted(task, number % 2, now, task.encode(), row)
    reserve = CostReserved(task, "", b"f" * 16, 0, 0.5, "", now, "writer")
    key = task, "", b"f" * 16, 0
    first = StepEnded(*key, "model", "writer", "spec", {"text": shared}, "reply", "a reply", 0.0, 1.0, now, usage, "m")
    yield [start, reserve] if number % 3 else [start]
    yield [first, TimerFired(task, "", 0, 1.5, now)]
    called = StepEnded(*key[:3], 1, "effect", "counted", "", [[shared], {}], "reply", {"letters": 3}, 1.0, 2.0, now)
    again = StepEnded(
        task, "1", b"g" * 16, 0, "model", "writer", "spec", [0, [["user", "more"]]], "reply",
        [["assistant", "more", [["c", "tool", "{}"]], None, "I think"], "tool_calls"], 2.0, 3.0, now, usage, "m",
    )  # fmt: skip
    failed = StepEnded(*key[:2], b"h" * 16, 0, "model", "writer", "spec", {"text": "x"}, "failure", ["why", None], 3.0,
                       4.0, now, usage, "m", reason="server")  # fmt: skip
    yield [called, again, failed] if number % 4 else [called]
    if number % 8:
        yield _end(task, number, now, ("done", "rejected", "done", "failed")[number % 4])


def _end(task: str, number: int, now: float, state: Any) -> list[Event]:
    value: Any = {"text": "it broke"} if state == "failed" else {"said": Ext(TEXT_REF, b"\0"), "n": number}
    return [TaskEnded(task, number % 2, state, "" if state == "done" else "why", "", value, 4.0, now)]
