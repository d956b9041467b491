"""Stages and groups: rows of rows, groups that close, resume at every point, superseded groups."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any
from zlib import crc32

import msgspec
import pytest
import zstandard

from weaverant import Agent, Stages, StepFailed, UserError, group, resume, run, workflow
from weaverant.engines.scripted import Scripted
from weaverant.errors import JournalCorrupt
from weaverant.journal import JournalReader, segment
from weaverant.journal.segment import EVENTS, HEADER_BYTES, MAP, SUMMARY, Segment
from weaverant.message import Request
from weaverant.runtime.ledger import Ledger
from weaverant.session import Run
from weaverant.summary import fold

say = Agent("say", prompt="{{ text }}")
ROWS = [{"n": n} for n in range(5)]


class Replies:
    def __init__(self) -> None:
        self.asked: list[str] = []
        self.down: set[str] = set()
        self.stop_at = ""
        self.stop: Any = None
        self.engine = Scripted(self.reply, identity="replies")

    async def reply(self, request: Request) -> str:
        text = request.messages[0].text
        self.asked.append(text)
        if text in self.down:
            raise StepFailed("server", "down")
        if text == self.stop_at and self.stop is not None:
            stop, self.stop = self.stop, None
            stop()
            await asyncio.sleep(60)
        await asyncio.sleep(0.005 * (len(self.asked) % 3))
        return text.upper()


@workflow
async def splits(row: Any) -> Any:
    said = await say(text=f"split {row['n']}")
    return [{"n": row["n"], "part": part, "said": said} for part in range(row["n"] % 3)]


@workflow
async def speaks(row: Any) -> Any:
    return {**row, "word": await say(text=f"speak {row['n']}.{row['part']}")}


@group(by="part")
async def joins(rows: list[Any]) -> Any:
    text = await say(text="join " + " ".join(str(row["n"]) for row in rows))
    return {"part": rows[0]["part"], "ns": [row["n"] for row in rows], "text": text}


@workflow
async def closes(row: Any) -> Any:
    return [row["ns"], await say(text=f"close {row['part']}")]


ALL = Stages(splits, speaks, joins, closes)
EXPECTED = [[[1, 2, 4], "CLOSE 0"], [[2], "CLOSE 1"]]


def last(going: Run) -> list[Any]:
    return sorted(task.result for task in going if task.stage == 3)


def ledger(going: Run) -> list[tuple[int, int, int]]:
    return _counts(going.ledger)


def shown(directory: Path) -> list[tuple[int, int, int]]:
    """What `show` makes of the journal."""
    return _counts(fold(directory).ledger)


def _counts(ledger: Ledger) -> list[tuple[int, int, int]]:
    return [(stage.rows, stage.done, stage.left) for stage in ledger.stages]


WHOLE = [(5, 5, 0), (4, 4, 0), (2, 2, 0), (2, 2, 0)]


def test_results_are_the_rows_of_the_next_stage(tmp_path: Path):
    going = run(ALL, ROWS, models=Replies().engine, directory=tmp_path / "run")
    assert last(going) == EXPECTED
    assert ledger(going) == WHOLE
    assert going.exit_code == 0


@pytest.mark.parametrize(
    "at", ["split 0", "split 4", "speak 1.0", "speak 4.0", "join 2", "join 1 2 4", "close 0", "close 1"]
)
def test_a_stopped_run_carries_on_where_it_stood(tmp_path: Path, at: str):
    replies = Replies()
    replies.stop_at = at
    going = run(ALL, ROWS, models=replies.engine, directory=tmp_path / "run", grace=0, in_flight=2)
    replies.stop = going.stop
    seen = last(going)
    assert going.exit_code == 4
    assert ledger(going) == shown(tmp_path / "run")
    again = resume(tmp_path / "run", workflow=ALL, rows=ROWS, models=replies.engine)
    assert sorted([*seen, *last(again)]) == EXPECTED
    assert ledger(again) == WHOLE
    unasked_twice = {text for text in replies.asked if replies.asked.count(text) > 1}
    assert at in unasked_twice and len(unasked_twice) <= 2, "only what was in flight is asked again"


def as_1_1_wrote_it(path: Path) -> None:
    """Write a sealed segment anew, its index without what 1.2 added."""
    with Segment(path) as old:
        trailer = old.trailer()
        assert trailer is not None
        frames = list(old.frames(HEADER_BYTES, path.stat().st_size - segment.TRAILER_BYTES))
    head = segment.pack_header()[:10] + (1).to_bytes(2, "little")
    data = bytearray(head + crc32(head).to_bytes(4, "little"))
    maps: list[int] = []
    summary, zstd = 0, zstandard.ZstdCompressor(1)
    for frame in frames:
        payload = frame.payload
        if frame.kind == MAP:
            maps.append(len(data))
            payload = msgspec.msgpack.encode([entry[:6] for entry in msgspec.msgpack.decode(payload)])
        elif frame.kind == SUMMARY:
            summary = len(data)
            events, stages, unfinished, late, *rest = msgspec.msgpack.decode(payload, strict=False)[:12]
            rest[5] = maps
            trimmed = [entry[:6] for entry in unfinished], [entry[:3] for entry in late]
            payload = msgspec.msgpack.encode([events, stages, *trimmed, *rest])
        data += segment.pack_frame(frame.kind, payload, len(data), zstd)
    path.write_bytes(data + segment.pack_trailer(trailer.events_end, summary))


@workflow
async def repeats(row: Any) -> Any:
    return [row["word"], await say(text=f"repeat {row['n']}.{row['part']}")]


PLAIN = Stages(splits, speaks, repeats)


@pytest.mark.parametrize("older", [False, True], ids=["made is told", "written by 1.1"])
@pytest.mark.parametrize(
    "at", ["split 0", "split 4", "speak 1.0", "speak 2.1", "speak 4.0", "repeat 2.0", "repeat 4.0"]
)
def test_stages_without_groups_carry_on_where_they_stood(tmp_path: Path, at: str, older: bool):
    replies, directory = Replies(), tmp_path / "run"
    seen: list[Any] = []
    for session, text in enumerate((at, "repeat 2.1")):
        replies.stop_at = text
        if session == 0:
            going = run(PLAIN, ROWS, models=replies.engine, directory=directory, grace=0, in_flight=2)
        else:
            going = resume(directory, workflow=PLAIN, rows=ROWS, models=replies.engine, grace=0, in_flight=2)
        replies.stop = going.stop
        seen += list(going)
        assert ledger(going) == shown(directory)
        if older and session == 0:
            as_1_1_wrote_it(directory / "journal" / "000001.wvj")
    assert (JournalReader(directory).made() is None) == older
    again = resume(directory, workflow=PLAIN, rows=ROWS, models=replies.engine)
    seen += list(again)
    assert len({task.key for task in seen}) == len(seen) == 5 + 4 + 4
    assert sorted(task.result[1] for task in seen if task.stage == 2) == [
        "REPEAT 1.0", "REPEAT 2.0", "REPEAT 2.1", "REPEAT 4.0",
    ]  # fmt: skip
    assert ledger(again) == [(5, 5, 0), (4, 4, 0), (4, 4, 0)]
    asked_again = {text for text in replies.asked if replies.asked.count(text) > 1}
    assert at in asked_again and len(asked_again) <= 4, "only what was in flight is asked again"


def test_a_resume_reads_no_finished_results(tmp_path: Path):
    """It cannot tell that one of them was damaged; who reads the results can."""
    replies, directory = Replies(), tmp_path / "run"
    rows = [{"n": n} for n in range(40)]
    run(PLAIN, rows, models=replies.engine, directory=directory, in_flight=2).wait()
    path = directory / "journal" / "000001.wvj"
    with Segment(path) as whole:
        frames = [frame for frame in whole.frames(HEADER_BYTES, whole.trailer().events_end) if frame.kind == EVENTS]
    data = bytearray(path.read_bytes())
    data[frames[len(frames) // 2].end - 1] ^= 1
    path.write_bytes(data)
    count = len(replies.asked)
    again = resume(directory, workflow=PLAIN, rows=rows, models=replies.engine)
    assert not list(again) and again.exit_code == 0 and len(replies.asked) == count
    assert ledger(again) == [(40, 40, 0), (39, 39, 0), (39, 39, 0)]
    with pytest.raises(JournalCorrupt, match="damaged"):
        list(JournalReader(directory).events())


def test_a_run_of_stages_that_has_ended_stays_ended(tmp_path: Path):
    replies = Replies()
    run(ALL, ROWS, models=replies.engine, directory=tmp_path / "run").wait()
    count = len(replies.asked)
    again = resume(tmp_path / "run", workflow=ALL, rows=ROWS, models=replies.engine)
    assert not list(again)
    assert ledger(again) == WHOLE
    assert len(replies.asked) == count


def test_a_group_that_gains_a_member_is_superseded(tmp_path: Path):
    replies = Replies()
    replies.down = {"split 1"}
    going = run(ALL, ROWS, models=replies.engine, directory=tmp_path / "run")
    assert last(going) == [[[2], "CLOSE 1"], [[2, 4], "CLOSE 0"]]
    assert going.exit_code == 3
    replies.down.clear()
    replies.asked.clear()
    again = resume(tmp_path / "run", workflow=ALL, rows=ROWS, models=replies.engine, retry=True)
    assert last(again) == [[[1, 2, 4], "CLOSE 0"]]
    assert replies.asked == ["split 1", "speak 1.0", "join 1 2 4", "close 0"]
    assert ledger(again) == WHOLE
    states = [task.state for task in JournalReader(tmp_path / "run").tasks()]
    assert states.count("superseded") == 2, "the old group and what came of it"
    third = resume(tmp_path / "run", workflow=ALL, rows=ROWS, models=replies.engine)
    assert not list(third)
    assert ledger(third) == WHOLE


@pytest.mark.parametrize("at", ["split 1", "close 0", "at once"])
def test_a_session_that_stops_before_its_groups_form_again_counts_what_had_ended(tmp_path: Path, at: str):
    """The second session takes up row 1, which had failed, and ends before groups can form, or when they have."""
    replies, directory = Replies(), tmp_path / "run"
    replies.down = {"split 1"}
    run(ALL, ROWS, models=replies.engine, directory=directory).wait()
    replies.down = set()
    replies.stop_at = at
    again = resume(directory, workflow=ALL, rows=ROWS, models=replies.engine, retry=True, grace=0)
    replies.stop = again.stop
    if at == "at once":
        again.stop()
    again.wait()
    assert again.state == "interrupted"
    ends = [(stage.done, stage.failed.total()) for stage in again.ledger.stages]
    assert ends == [(stage.done, stage.failed.total()) for stage in fold(directory).ledger.stages]
    assert ends == {
        "split 1": [(4, 0), (3, 0), (2, 0), (2, 0)],
        "close 0": [(5, 0), (4, 0), (2, 0), (1, 0)],
        "at once": [(4, 0), (3, 0), (2, 0), (2, 0)],
    }[at]  # fmt: skip
    assert all(stage.left >= 0 for stage in again.ledger.stages)
    third = resume(directory, workflow=ALL, rows=ROWS, models=replies.engine)
    assert last(third) == EXPECTED[:1] and ledger(third) == WHOLE


def test_a_group_that_failed_is_taken_up_again(tmp_path: Path):
    replies = Replies()
    replies.down = {"join 1 2 4"}
    run(ALL, ROWS, models=replies.engine, directory=tmp_path / "run").wait()
    replies.down.clear()
    replies.asked.clear()
    again = resume(tmp_path / "run", workflow=ALL, rows=ROWS, models=replies.engine, retry=True)
    assert last(again) == [EXPECTED[0]]
    assert replies.asked == ["join 1 2 4", "close 0"]
    assert ledger(again) == WHOLE


def test_members_come_in_the_order_of_their_keys():
    @workflow
    async def late(row: Any) -> Any:
        await asyncio.sleep(0.02 - row["n"] * 0.001)
        return row

    @group()
    async def listed(rows: list[Any]) -> Any:
        return [row["n"] for row in rows]

    rows = [{"n": n} for n in range(12)]
    tasks = list(run(Stages(late, listed), rows, models=Replies().engine, journal=False))
    assert [task.result for task in tasks if task.stage == 1] == [list(range(12))]


@pytest.mark.timeout(30)
@pytest.mark.parametrize("by", [lambda row: row["nowhere"], lambda row: 1 / 0, lambda row: object()])
def test_a_row_without_a_group_fails_alone(by: Any):
    @workflow
    async def same(row: Any) -> Any:
        return row

    @group(by=lambda row: by(row) if row["n"] == 2 else 0)
    async def counted(rows: list[Any]) -> Any:
        return len(rows)

    going = run(Stages(same, counted), ROWS, models=Replies().engine, journal=False)
    assert sorted((task.state, str(task.result)) for task in going if task.stage == 1)[0] == ("done", "4")
    assert going.ledger.stages[1].failed == {"unreadable": 1}


def test_stages_begin_with_a_workflow():
    with pytest.raises(UserError, match="must begin"):
        Stages(joins, splits)


def test_trials_are_rows_of_their_own(tmp_path: Path):
    going = run(ALL, ROWS, models=Replies().engine, directory=tmp_path / "run", trials=2, in_flight=3)
    threading.Timer(0.02, going.stop).start()
    seen = list(going)
    again = resume(tmp_path / "run", workflow=ALL, rows=ROWS, models=Replies().engine)
    seen += list(again)
    assert sorted(task.result for task in seen if task.stage == 3) == [
        [[1, 1, 2, 2, 4, 4], "CLOSE 0"],
        [[2, 2], "CLOSE 1"],
    ]
    assert len({task.key for task in seen}) == len(seen) == 10 + 8 + 2 + 2


# Two groups, one after the other


@workflow
async def tagged(row: Any) -> Any:
    await say(text=f"tag {row['n']}")
    return {"n": row["n"]} if row["n"] == 1 else {"n": row["n"], "tag": "a"}


@group(by="tag")
async def counted(rows: list[Any]) -> Any:
    return {"tag": "b", "count": len(rows)}


@workflow
async def passed_on(row: Any) -> Any:
    return {**row, "passed": True}


@group()
async def summed(rows: list[Any]) -> Any:
    return {"counts": [row["count"] for row in rows]}


def totals(going: Run) -> list[tuple[int, int, int]]:
    return [(stage.rows, stage.done, stage.failed.total()) for stage in going.ledger.stages]


@pytest.mark.timeout(60)
def test_a_group_after_a_group_forms_again_with_what_a_retry_brought(tmp_path: Path):
    replies, flow = Replies(), Stages(tagged, counted, passed_on, summed)
    replies.down = {"tag 2"}
    first = run(flow, ROWS, models=replies.engine, directory=tmp_path / "run", max_failures=1.0)
    assert [task.result for task in first if task.stage == 3] == [{"counts": [3]}]
    assert totals(first) == [(5, 4, 1), (2, 1, 1), (1, 1, 0), (1, 1, 0)], "row 1 has no tag, row 2 failed"
    replies.down = set()
    again = resume(tmp_path / "run", workflow=flow, rows=ROWS, models=replies.engine, retry="server")
    assert [task.result for task in again if task.stage == 3] == [{"counts": [4]}]
    assert totals(again) == [(5, 5, 0), (2, 1, 1), (1, 1, 0), (1, 1, 0)]
    assert len(replies.asked) == 6
    third = resume(tmp_path / "run", workflow=flow, rows=ROWS, models=replies.engine)
    assert list(third) == []
    assert totals(third) == totals(again)


def test_what_is_no_mapping_is_no_row_of_the_next_stage():
    @workflow
    async def words(row: Any) -> Any:
        return [{"n": row["n"]}, "word"]

    going = run(Stages(words, passed_on), ROWS[:2], models=Replies().engine, journal=False, max_failures=1.0)
    tasks = [task for task in going if task.stage == 1]
    assert sorted((task.state, task.reason) for task in tasks) == [("done", "")] * 2 + [("failed", "unreadable")] * 2
