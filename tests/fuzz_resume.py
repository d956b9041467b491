"""Runs with forged journals, resumed, shown and exported: each ends in a documented error, or with counts that add up
and, of every task whose own events nobody has changed, with the result that it has undisturbed."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from random import Random

from fuzz_begun import Begun, Ends, begun, ends_of, go_on, resumed
from fuzz_events import Forger, read, twice, write
from fuzz_forgery import ask
from fuzz_journal import DOCUMENTED, attempt, states
from weaverant.events import Event
from weaverant.journal import JournalReader
from weaverant.runtime.ledger import Ledger
from weaverant.session import Run
from weaverant.summary import fold

COMMANDS = (
    ["show", "RUN"],
    ["show", "RUN", "--json"],
    ["export", "RUN", "--as", "raw", "--out", "-"],
    ["export", "RUN", "--as", "messages", "--out", "-"],
    ["export", "RUN", "--as", "preference", "--out", "-"],
)


def runs(odds: Random, folder: Path) -> None:
    one = odds.choice(begun(folder))
    copy = folder / "forged"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(one.directory, copy)
    forger = Forger(read(copy), odds)
    for _ in range(odds.choice((0, 1, 1, 1, 2, 4))):
        forger.forge()
    lies = odds.random() < 0.15
    write(copy, forger.journal, odds, lies, sealed=odds.random() < 0.7)
    swapped = odds.random() < 0.1 and swap(copy, odds)
    try:
        check(one, copy, forger, odds, lies, swapped)
    except BaseException as error:
        error.add_note(f"{one.recipe}: {'; '.join(forger.said)}; lies {lies}, swapped {swapped}")
        raise


def swap(copy: Path, odds: Random) -> bool:
    """Two segments change their names."""
    paths = sorted((copy / "journal").iterdir())
    if len(paths) < 2:
        return False
    one, other = odds.sample(paths, 2)
    aside = one.with_name("aside")
    one.rename(aside)
    other.rename(one)
    aside.rename(other)
    return True


def check(one: Begun, copy: Path, forger: Forger, odds: Random, lies: bool, swapped: bool) -> None:
    commands = odds.sample(COMMANDS, 2)
    for command in commands:
        ask(command, copy)
    task = odds.choice(sorted(one.ends))
    ask(["show", "RUN", "--task", task], copy)
    before = attempt(lambda: list(JournalReader(copy).events()))
    if told := attempt(lambda: fold(copy)):
        counts_add_up(told.ledger)
    run = attempt(lambda: resumed(one.recipe, copy, retry=odds.random() < 0.2))
    if run is None:
        return
    error = ended_with(run)
    assert error is None or isinstance(error, DOCUMENTED), repr(error)
    assert not swapped or error is not None, "swapped segments were taken"
    if error is None:
        assert run.state in ("finished", "budget"), run.state
        adds_up(run)
    if error is None and run.state == "finished" and before is not None:
        finished(one, run, copy, forger, lies, before)
    for command in commands:
        ask(command, copy)


def ended_with(run: Run) -> BaseException | None:
    try:
        go_on(run)
    except DOCUMENTED as error:
        return error
    return run.error


def counts_add_up(ledger: Ledger) -> None:
    for stage in ledger.stages:
        assert min(stage.rows, stage.done, stage.rejected.total(), stage.failed.total(), stage.left) >= 0, str(stage)


def adds_up(run: Run) -> None:
    counts_add_up(run.ledger)
    for stage in run.ledger.stages:
        assert run.state != "finished" or not stage.left, stage
    spent = run.spent
    assert 0 <= spent < 1e15, spent


def finished(one: Begun, run: Run, copy: Path, forger: Forger, lies: bool, begun_with: list[Event]) -> None:
    """What a run that has finished says is in its journal, and what nobody has forged is as it was."""
    if lies:  # who is believed are the indexes; to look into the events costs what they are there to save
        return
    events = list(JournalReader(copy).events())
    last = states(events)
    for number, stage in enumerate(run.ledger.stages):
        found = Counter(state for at, state in last.values() if at == number and state != "superseded")
        told = {"done": stage.done, "rejected": stage.rejected.total(), "failed": stage.failed.total()}
        assert {**dict.fromkeys(told, 0), **found} == told, (number, told, found)
    told = attempt(lambda: fold(copy))
    if told is not None:
        for mine, its in zip(told.ledger.stages, run.ledger.stages, strict=True):
            assert (mine.rows, mine.done, mine.left) == (its.rows, its.done, its.left), (str(mine), str(its))
    ends: Ends | None = attempt(lambda: ends_of(copy))
    if double := twice(forger.journal):
        assert ends is None, f"there are two of something in {double}, and nobody told"
        before = {task for task, (_, state) in states(begun_with).items() if state is None}
        assert not double & before, f"{double & before} went on with two of something"
    for task, end in (ends or {}).items():
        if not related(task, forger):
            expected = one.ends.get(task)
            assert expected is not None and end[:2] == expected[:2], (task, end, expected)
            assert forger.about_run or end.said == expected.said, (task, end.said, expected.said)
    for task in one.ends:
        if ends is not None and not related(task, forger):
            assert task in ends, f"{task} was lost"


def related(task: str, forger: Forger) -> bool:
    """Whether the task's events, or those of one whose results it may be, are not what they were."""
    return any(task == one or task.startswith(f"{one}/") or "@" in task for one in forger.touched)
