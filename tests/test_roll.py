"""Tasks that had ended and begin again in another segment: a resume tells it, before it asks and pays for anything."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from forging import forged, left_off
from fuzz_begun import Begun, Voice, ends_of, go_on, resumed
from fuzz_events import Journal, Written
from weaverant import Agent, Stages, resume, run, workflow
from weaverant.errors import JournalCorrupt
from weaverant.journal import JournalReader
from weaverant.journal.index import SegmentIndex
from weaverant.summary import fold


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Begun]:
    return left_off(tmp_path_factory.mktemp("begun"))


def refusal(one: Begun, directory: Path, retry: bool = False) -> str:
    """What stops the run when it is resumed, before any call."""
    left = resumed(one.recipe, directory, retry)
    with pytest.raises(JournalCorrupt) as told:
        go_on(left)
    (voice,) = left.binding.models.values()
    assert isinstance(voice, Voice)
    assert voice.asked == 0
    return str(told.value)


def of(journal: Journal, task: str, *tags: str) -> list[Written]:
    events = (event for segment in journal for frame in segment for event in frame)
    return [event for event in events if event[0] in tags and event[1] == task]


def ended(journal: Journal, depth: int, state: str = "done") -> str:
    """The first task of a stage that ended so."""
    events = (event for segment in journal for frame in segment for event in frame if event[0] == "end")
    return next(event[1] for event in events if event[1].count("/") == depth and event[3] == state)


def begun_late(journal: Journal) -> str:
    """A task that has not ended, and began in a later segment than the first."""
    events = (event for segment in journal[1:] for frame in segment for event in frame if event[0] == "start")
    return next(event[1] for event in events if not of(journal, event[1], "end"))


def take(journal: Journal, event: Written) -> Written:
    for segment in journal:
        for frame in segment:
            if any(one is event for one in frame):
                frame[:] = [one for one in frame if one is not event]
    return event


@pytest.mark.parametrize("sealed", [True, False])
@pytest.mark.parametrize("retry", [True, False])
@pytest.mark.parametrize(
    ("recipe", "depth", "state"),
    [("woven", 0, "done"), ("woven", 0, "failed"), ("woven", 0, "rejected"), ("split", 0, "done"), ("split", 1, "done"),
     ("joined", 0, "done"), ("joined", 1, "done")],
)  # fmt: skip
def test_a_finished_task_that_begins_again_is_told(
    originals: dict[str, Begun], tmp_path: Path, recipe: str, depth: int, state: str, sealed: bool, retry: bool
):
    """In a later stage it was asked once more, and another row was left out; of the source something else was told."""

    def begin(journal: Journal) -> None:
        task = ended(journal, depth, state)
        journal.append([of(journal, task, "start")])

    directory = forged(originals[recipe], tmp_path, begin, sealed)
    error = refusal(originals[recipe], directory, retry)
    assert "begins twice" in error or "has failed by its index" in error, error
    assert refusal(originals[recipe], directory, retry) == error, "resumed once more"


@pytest.mark.parametrize(("recipe", "depth"), [("woven", 0), ("split", 0), ("split", 1), ("joined", 0), ("joined", 1)])
def test_a_task_with_two_lives_is_told(originals: dict[str, Begun], tmp_path: Path, recipe: str, depth: int):
    """Nothing was paid again, but a row was left out: as many had begun as there should be."""

    def live_again(journal: Journal) -> None:
        journal.append([of(journal, ended(journal, depth), "start", "end")])

    error = refusal(originals[recipe], forged(originals[recipe], tmp_path, live_again))
    assert "begins twice" in error or "rows were made for it" in error, error


@pytest.mark.parametrize("first", [True, False])
def test_an_unfinished_task_with_a_whole_life_elsewhere_is_told(
    originals: dict[str, Begun], tmp_path: Path, first: bool
):
    def live_before(journal: Journal) -> None:
        task = begun_late(journal)
        end = [*of(journal, ended(journal, 0), "end")[0]]
        end[1] = task
        journal.insert(0 if first else len(journal), [[*of(journal, task, "start"), end]])

    error = refusal(originals["woven"], forged(originals["woven"], tmp_path, live_before))
    assert "begins twice" in error, error


def test_a_step_in_an_earlier_segment_than_its_task_begins_in_is_told(originals: dict[str, Begun], tmp_path: Path):
    """It was asked again."""

    def move_back(journal: Journal) -> None:
        journal[0][0].append(take(journal, of(journal, begun_late(journal), "step")[0]))

    error = refusal(originals["woven"], forged(originals["woven"], tmp_path, move_back))
    assert "has events before it begins" in error, error


def test_a_late_end_in_another_stage_is_told(originals: dict[str, Begun], tmp_path: Path):
    """The counts of two stages were wrong."""

    def elsewhere(journal: Journal) -> None:
        end = of(journal, ended(journal, 1), "end")[0]
        take(journal, of(journal, "0.6.0", "end")[0])  # one is left, or there would be fewer than none
        take(journal, end)
        journal.append([[[*end[:2], 0, *end[3:]]]])

    error = refusal(originals["split"], forged(originals["split"], tmp_path, elsewhere))
    assert "ends in stage 0, which is not its own" in error, error


@pytest.mark.parametrize("fields", [("number", "roll"), ("number", "roll", "made")])
@pytest.mark.parametrize("recipe", ["woven", "split", "joined"])
def test_older_indexes_are_read_by_task(
    originals: dict[str, Begun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: str, fields: tuple[str, ...]
):
    one, summary = originals[recipe], SegmentIndex.summary
    older = {"number": 0, "roll": None, "made": None}

    def begin(journal: Journal) -> None:
        journal.append([of(journal, ended(journal, 0), "start")])

    with monkeypatch.context() as patch:
        patch.setattr(
            SegmentIndex,
            "summary",
            lambda index, maps, number=0: msgspec.structs.replace(
                summary(index, maps, number), **{field: older[field] for field in fields}
            ),
        )
        sound = forged(one, tmp_path / "sound", lambda journal: None)
        twice = forged(one, tmp_path / "twice", begin)
    assert refusal(one, twice)
    left = resumed(recipe, sound)
    go_on(left)
    assert left.state == "finished"
    assert ends_of(sound) == one.ends


speaker = Agent("speaker", prompt="{{ ask }} of {{ text }}")


@workflow
async def parts(row):
    said = await speaker(ask="part", text=str(row["n"]))
    return [{"n": row["n"], "part": part, "said": said} for part in range(row["n"] % 4)]


@workflow
async def again(row):
    return {**row, "again": await speaker(ask="again", text=row["said"])}


RECIPE = Stages(parts, again, again)


@pytest.mark.parametrize("trials", [1, 3])
@pytest.mark.parametrize("stop", [3, 10, 31, 60])
def test_runs_that_nobody_has_changed_go_on(tmp_path: Path, trials: int, stop: int):
    """Whatever had begun when they were left: rows, trials, and what results made, over three stages."""
    rows = [{"n": n} for n in range(9)]
    directory = tmp_path / "run"
    first = run(RECIPE, rows, models=Voice(), directory=directory, trials=trials, in_flight=5, grace=0.0)
    go_on(first, stop)
    while True:
        left = resume(directory, workflow=RECIPE, rows=rows, models=Voice())
        go_on(left, stop)
        if left.state == "finished":
            break
    counts = {stage: counts.done for stage, counts in JournalReader(directory).counts().items()}
    children = sum(n % 4 for n in range(9)) * trials
    assert counts == {0: 9 * trials, 1: children, 2: children}
    assert [stage.left for stage in fold(directory).ledger.stages] == [0, 0, 0]
