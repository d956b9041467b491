"""docs/data-format.md is true: its reader reads what we write, its tables name what the code has."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any, get_args

import msgspec

from weaverant.events import Event, StepEnded, TaskEnded, TaskStarted
from weaverant.journal import SegmentJournal, segment
from weaverant.journal.codec import tag_of
from weaverant.journal.index import Summary, TaskEntry
from weaverant.message import Usage
from weaverant.trace import Texts

DOCUMENT = (Path(__file__).parent.parent / "docs" / "data-format.md").read_text()

SHORT, REPEATED, LONG = "short", "a text long enough to be numbered", "a text for a blob " * 4_000


def fields_named(row: str) -> list[str]:
    """The field names of one table row: code words at the start of each comma-separated piece, notes taken out."""
    bare = re.sub(r"\([^()]*\)", "", row)
    return re.findall(r"`(\w+)`", bare.split(". ")[0])


def test_the_reader_of_the_document_reads_a_run(tmp_path: Path):
    value = {"one": [REPEATED, SHORT], "two": LONG, "three": 1.5}
    texts = Texts()
    events: list[Event] = [
        TaskStarted("t", 0, 1.0, b"d", texts.pack(value)),
        StepEnded("t", "0", b"f", 0, "model", "a", "s", texts.pack([LONG, REPEATED]), "reply",
                  texts.pack("a new text, said for the first time"), 0.0, 1.0, 2.0),
        TaskEnded("t", 0, "done", "", "", texts.pack([value, "a new text, said for the first time"]), 1.0, 3.0),
    ]  # fmt: skip

    async def write() -> None:
        journal = SegmentJournal(tmp_path, segment_bytes=100)
        for event in events:
            journal.append(event, blobs=texts.blobs)
            await journal.flush()
        await journal.close()

    asyncio.run(write())
    code = re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL)[-1]
    scope: dict[str, Any] = {}
    exec(compile(code, "docs/data-format.md", "exec"), scope)
    start, step, end = scope["read_journal"](tmp_path, tmp_path)
    assert start[:6] == ["start", "t", 0, 1.0, b"d", value]
    assert step[8] == [LONG, REPEATED] and step[10] == "a new text, said for the first time"
    assert end[6] == [value, step[10]] and end[3] == "done"
    assert len(list((tmp_path / "journal").iterdir())) > 1


def test_every_event_and_field_is_documented_in_order():
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", DOCUMENT.split("## Events")[1].split("###")[0], re.MULTILINE))
    for kind in get_args(Event):
        assert fields_named(rows[tag_of(kind)]) == list(kind.__struct_fields__), kind
    assert fields_named(re.findall(r"`usage` is an array: (.*)\.", DOCUMENT)[0]) == list(Usage.__struct_fields__)


def test_the_index_is_documented_in_order():
    index = DOCUMENT.split("## The index")[1]
    names = [name for row in re.findall(r"^\| (`.*?) \|", index, re.MULTILINE) for name in fields_named(row)]
    assert names == list(Summary.__struct_fields__)
    assert "`[" + ", ".join(TaskEntry.__struct_fields__) + "]`" in index


def test_the_version_is_documented():
    assert f"Format **{segment.MAJOR}.{segment.MINOR}**" in DOCUMENT
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(Usage())) == [0, 0, 0, 0, 0.0, 1, 0.0]
