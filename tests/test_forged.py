"""Runs whose journals were forged, with right checksums: each is told, where `tests/fuzz_resume.py` found it was not."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from msgspec.msgpack import Ext

from forging import Edit, forged, left_off
from fuzz_begun import Begun, ends_of, go_on, resumed
from fuzz_events import Journal, Written
from weaverant import Agent, Reply, run, workflow
from weaverant.cli import main
from weaverant.cli.show import storyteller
from weaverant.errors import JournalCorrupt
from weaverant.events import StepEnded
from weaverant.journal import JournalReader
from weaverant.journal.index import SegmentIndex
from weaverant.message import Request, Usage, assistant
from weaverant.protocols import CallContext
from weaverant.summary import fold


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Begun]:
    return left_off(tmp_path_factory.mktemp("begun"))


def told(one: Begun, directory: Path, retry: bool = False) -> str:
    """What stops the run when it is resumed; empty where it finishes."""
    try:
        left = resumed(one.recipe, directory, retry)
        go_on(left)
    except JournalCorrupt as error:
        return str(error)
    assert left.error is None or isinstance(left.error, JournalCorrupt), repr(left.error)
    return "" if left.error is None else str(left.error)


def events(journal: Journal) -> list[Written]:
    return [event for segment in journal for frame in segment for event in frame]


def of(journal: Journal, tag: str, task: str) -> list[Written]:
    return [event for event in events(journal) if event[0] == tag and event[1] == task]


def unfinished(journal: Journal) -> str:
    """A task that began, has a step, and has not ended."""
    ended = {event[1] for event in events(journal) if event[0] == "end"}
    return next(event[1] for event in events(journal) if event[0] == "step" and event[1] not in ended)


def put(journal: Journal, event: Written) -> None:
    """Into the last frame."""
    journal[-1][-1].append(event)


def replace(event: Written, at: int, value: Any) -> None:
    event[at] = value


def test_what_nobody_has_changed_goes_on(originals: dict[str, Begun], tmp_path: Path):
    for name, one in originals.items():
        directory = forged(one, tmp_path / name, lambda journal: None)
        assert told(one, directory) == ""
        assert ends_of(directory) == one.ends


def again(journal: Journal) -> None:
    event = of(journal, "step", unfinished(journal))[0]
    put(journal, [*event[:10], "another reply", *event[11:]])


def begins_twice(journal: Journal) -> None:
    event = of(journal, "start", unfinished(journal))[0]
    put(journal, [*event[:5], {"n": 0, "text": "another row"}, *event[6:]])


def ends_twice(journal: Journal) -> None:
    event = next(event for event in events(journal) if event[0] == "end")
    put(journal, [*event[:6], {"said": "another"}, *event[7:]])


def taken_up(journal: Journal) -> None:
    event = next(event for event in events(journal) if event[0] == "end" and event[3] == "done")
    put(journal, ["reopen", event[1], event[8], 0])


def superseded(journal: Journal) -> None:
    put(journal, ["superseded", "0.0.0", "", 1.8e9])


def unknown(journal: Journal) -> None:
    event = of(journal, "start", "0.0.0")[0]
    put(journal, [event[0], "0.99.0", *event[2:]])


def no_key(journal: Journal) -> None:
    event = of(journal, "start", "0.0.0")[0]
    put(journal, [event[0], "0.1e3.0", *event[2:]])


def no_text(journal: Journal) -> None:
    replace(of(journal, "step", unfinished(journal))[-1], 8, Ext(1, b"\xff\xff"))


def no_blob(journal: Journal) -> None:
    replace(of(journal, "step", unfinished(journal))[-1], 8, Ext(2, b"x" * 16))


def odd_reference(journal: Journal) -> None:
    replace(of(journal, "step", unfinished(journal))[-1], 8, Ext(3, b"\0"))


def odd_role(journal: Journal) -> None:
    replace(of(journal, "step", unfinished(journal))[0], 10, [["wizard", "x", [], None, None], "stop"])


def odd_call(journal: Journal) -> None:
    replace(of(journal, "step", unfinished(journal))[0], 10, [["assistant", "", [[7, {}, None]], None, None], "stop"])


def odd_failure(journal: Journal) -> None:
    event = of(journal, "step", unfinished(journal))[0]
    event[9], event[10] = "failure", "ab"


def other_kind(journal: Journal) -> None:
    replace(of(journal, "step", unfinished(journal))[0], 5, "effect")


def gives_money_back(journal: Journal) -> None:
    replace(of(journal, "step", unfinished(journal))[0], 14, [10, 5, 0, 0, -1e9, 1, 0.0])


def no_number(journal: Journal) -> None:
    replace(of(journal, "step", unfinished(journal))[0], 12, float("nan"))


FORGED: dict[str, tuple[Edit, str]] = {
    "a step has two outcomes": (again, "two outcomes"),
    "a task begins twice": (begins_twice, "makes? no sense|contradicts itself"),
    "a task ends twice": (ends_twice, "contradicts itself|are unfinished"),
    "a task that was done is taken up again": (taken_up, "contradicts itself|has not failed"),
    "a task of no group is superseded": (superseded, "it has no group"),
    "a row that there is not": (unknown, "is unfinished, and"),
    "a key that is none": (no_key, "no sense"),
    "a text that there is not": (no_text, "IndexError"),
    "a blob that there is not": (no_blob, "is missing"),
    "a reference of a kind that there is not": (odd_reference, "unknown kind"),
    "a role that there is not": (odd_role, "wizard"),
    "a tool call of other types": (odd_call, "no call of a tool"),
    "a failure without a text": (odd_failure, "no failure's text"),
    "a model's step that is a function's": (other_kind, "kind 'effect'"),
    "a cost below zero": (gives_money_back, "Expected `float` >= 0"),
    "a time that is no number": (no_number, "Expected `float` >= 0"),
}


@pytest.mark.parametrize("name", FORGED)
def test_what_no_run_can_have_written_is_told(originals: dict[str, Begun], tmp_path: Path, name: str):
    edit, expected = FORGED[name]
    directory = forged(originals["woven"], tmp_path, edit)
    error = told(originals["woven"], directory)
    assert re.search(expected, error), error
    assert told(originals["woven"], directory) == error, "resumed once more"


def test_a_result_that_made_other_rows_than_there_are_ends_the_run(originals: dict[str, Begun], tmp_path: Path):
    """The groups of the stages after it could never form: it used to wait for ever."""

    def another_result(journal: Journal) -> None:
        replace(of(journal, "end", "0.5.0")[0], 6, "no rows")

    error = told(originals["joined"], forged(originals["joined"], tmp_path, another_result))
    assert "no row that a result" in error, error


def test_a_row_that_was_begun_before_its_parent_ended_is_told(originals: dict[str, Begun], tmp_path: Path):
    """It was begun anew, and the row of another parent was left out."""

    def drop_end(journal: Journal) -> None:
        for segment in journal:
            for frame in segment:
                frame[:] = [event for event in frame if event[:2] != ["end", "0.1.0"]]

    for recipe in ("split", "joined"):
        error = told(originals[recipe], forged(originals[recipe], tmp_path / recipe, drop_end))
        assert re.search("began before the task ended|no row that a result|rows were made", error), error


def test_a_retry_of_what_has_failed_by_the_index_alone_is_told(originals: dict[str, Begun], tmp_path: Path):
    """`next()` found no end, and what it raised came out of an asynchronous generator as a RuntimeError."""
    one = originals["woven"]

    def move_start(journal: Journal) -> None:
        failed = next(event for event in events(journal) if event[0] == "end" and event[3] == "failed")
        other = unfinished(journal)
        for event in of(journal, "end", failed[1]):
            event[1] = other
        put(journal, [*failed[:1], failed[1], *failed[2:]])
        of(journal, "start", other)[0][1] = "0.98.0"

    error = told(one, forged(one, tmp_path, move_start), retry=True)
    assert error


def test_clocks_that_run_backwards_delay_nothing(originals: dict[str, Begun], tmp_path: Path):
    """A timer set at an hour that was forged waited for thirty years; `Stuck` is raised after a month."""
    one = originals["woven"]

    def run_ahead(journal: Journal) -> None:
        for event in of(journal, "step", unfinished(journal))[:1]:
            event[12] = 1e9

    directory = forged(one, tmp_path, run_ahead)
    assert told(one, directory) == ""
    assert ends_of(directory) == one.ends


@pytest.mark.parametrize("sealed", [True, False])
def test_segments_that_have_changed_their_names_are_told(originals: dict[str, Begun], tmp_path: Path, sealed: bool):
    one = originals["woven"]
    directory = forged(one, tmp_path, lambda journal: None)
    paths = sorted((directory / "journal").iterdir())
    first, second = paths[:2] if sealed else (paths[0], paths[-1])
    aside = directory / "aside"
    first.rename(aside), second.rename(first), aside.rename(second)
    number = int(paths.index(second)) + 1
    expected = f"it was written as segment {number:06}"
    assert expected in told(one, directory)
    for ask in (
        partial(fold, directory),
        lambda: list(JournalReader(directory).events()),
        JournalReader(directory).calls,
    ):
        with pytest.raises(JournalCorrupt, match=expected):
            ask()


def test_segments_of_older_versions_have_no_number(
    originals: dict[str, Begun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    one = originals["woven"]
    summary = SegmentIndex.summary
    with monkeypatch.context() as older:
        older.setattr(SegmentIndex, "summary", lambda index, maps, number=0: summary(index, maps))
        directory = forged(one, tmp_path, lambda journal: None)
    assert told(one, directory) == ""
    assert ends_of(directory) == one.ends


@pytest.mark.parametrize("base", [-1, 10**6, 2**63, "0", None, True, 1.0, {}])
@pytest.mark.parametrize("place", [2, 3])
def test_talks_go_on_from_a_step_before_them(originals: dict[str, Begun], tmp_path: Path, base: Any, place: int):
    """A negative number named a step from the end, a text one from the start."""
    one = originals["woven"]
    changed: list[str] = []

    def rebase(journal: Journal) -> None:
        talk = next(e for e in events(journal) if e[0] == "step" and isinstance(e[8], list) and len(e[8]) == 4)
        talk[8][place] = base
        changed.append(talk[1])

    directory = forged(one, tmp_path, rebase)
    assert main(["show", str(directory), "--task", changed[0]]) == 1
    reader = JournalReader(directory)
    with pytest.raises(JournalCorrupt, match="where a number from 0 to"):
        storyteller(directory, reader).tell(reader.task_events(changed[0]))


def test_a_task_of_another_type_is_nobodys(originals: dict[str, Begun], tmp_path: Path, capsys: Any):
    """One that cannot be a key of a mapping ended `show --task` with a TypeError."""

    def odd_task(journal: Journal) -> None:
        replace(of(journal, "step", "0.0.0")[-1], 1, Ext(1, b"\0"))

    directory = forged(originals["woven"], tmp_path, odd_task)
    main(["show", str(directory), "--task", "0.0.0"])
    assert "Traceback" not in capsys.readouterr().err


def test_a_key_that_is_none_has_no_order(originals: dict[str, Begun], tmp_path: Path, capsys: Any):
    """Samples come in the order of keys: an export of it ended with a ValueError."""

    def odd_key(journal: Journal) -> None:
        for tag in ("start", "end"):
            event = of(journal, tag, "0.0.0")[0]
            put(journal, [event[0], "0,22", *event[2:]])

    directory = forged(originals["woven"], tmp_path, odd_key)
    assert main(["export", str(directory), "--as", "raw", "--out", "-"]) == 1
    assert "'0,22'" in capsys.readouterr().err


def test_a_summary_whose_counts_do_not_add_up_is_an_error(originals: dict[str, Begun], tmp_path: Path):
    """It was shown, with fewer than no rows left."""
    directory = forged(originals["split"], tmp_path, ends_twice)
    with pytest.raises(JournalCorrupt, match="do not add up"):
        fold(directory)


def test_a_small_journal_that_claims_a_talk_without_end_is_refused(originals: dict[str, Begun], tmp_path: Path):
    """Each step sends all that the one before it sent: a file of 200 kB took 16 GB."""

    def talk_on(journal: Journal) -> None:
        step = next(event for event in events(journal) if event[0] == "step" and event[5] == "model")
        many = [["user", ""]] * 20
        journal[-1].append(
            [["step", step[1], "long", b"f" * 16, n, *step[5:8], [n, many] if n else {}, "reply", "x", *step[11:]]
             for n in range(8_000)]
        )  # fmt: skip

    directory = forged(originals["split"], tmp_path, talk_on)
    reader = JournalReader(directory)
    task = max((task.task for task in reader.tasks()), key=lambda task: len(reader.task_events(task)))
    with pytest.raises(JournalCorrupt):
        storyteller(directory, reader).tell(reader.task_events(task))


NONSENSE = [
    Usage(cost=-1.0), Usage(cost=float("nan")), Usage(cost=float("inf")), Usage(-1), Usage(2**63), Usage(0, 0, 2**44),
    Usage(unsure=-0.5), Usage(requests=-1),
]  # fmt: skip


@pytest.mark.parametrize("usage", NONSENSE, ids=repr)
def test_an_engine_that_says_nonsense_of_its_usage_has_failed(tmp_path: Path, usage: Usage):
    """It would give money back to a budget, or spoil all sums."""
    speaker = Agent("speaker", prompt="{{ n }}")

    class Odd:
        identity = "odd"

        async def generate(self, request: Request, ctx: CallContext) -> Reply:
            return Reply(assistant("said"), usage)

        async def close(self) -> None:
            """Nothing is held."""

    @workflow
    async def asks(row: Any) -> Any:
        return await speaker(n=row["n"])

    (task,) = run(asks, [{"n": 1}], models=Odd(), directory=tmp_path / "run")
    assert (task.state, task.reason) == ("failed", "engine")
    assert [event.usage.cost for event in JournalReader(tmp_path / "run").events() if isinstance(event, StepEnded)] == [
        0
    ]
