"""What journals tell of leases: how a new office learns what the one before it knew."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from weaverant.events import Event, RowsCut, RowsDone, RowsLeft, RowsTaken
from weaverant.journal import JournalReader
from weaverant.journal.homes import OWN, epochs_of, fence_of, home_of
from weaverant.journal.shelf import shelf_of
from weaverant.swarm.terms import Record


def leases_of(run: Path, epoch: int) -> list[Record]:
    """Those that a peer's journal tells of."""
    shelf_of(run).fetch((epoch,))
    return leases_in(epoch, JournalReader(run, (epoch,)).run_events())


def leases_in(epoch: int, events: Iterable[Event]) -> list[Record]:
    """Those of which these events of a peer's journal tell."""
    taken: dict[int, RowsTaken] = {}
    stops: dict[int, int] = {}
    done: set[int] = set()
    for event in events:
        if isinstance(event, RowsTaken):
            taken[event.number] = event
        elif isinstance(event, RowsCut):
            stops[event.number] = event.stop
        elif isinstance(event, RowsDone):
            done.add(event.number)
    return [
        Record(epoch, number, event.start, stops.get(number, event.stop), number in done)
        for number, event in taken.items()
    ]


def last_survey(run: Path) -> RowsLeft:
    """What there was when the session began."""
    found = RowsLeft(0, (), (), 0.0)
    for event in JournalReader(run, (OWN,)).run_events():
        if isinstance(event, RowsLeft):
            found = event
    return found


def known(run: Path) -> tuple[list[Record], list[int], list[int]]:
    """All leases of this session and what there was before it, the homes that are open, and those that are not."""
    shelf_of(run).fetch()
    before = last_survey(run)
    every = epochs_of(run)
    epochs = [epoch for epoch in every if epoch > before.last]
    open_homes = [epoch for epoch in epochs if fence_of(home_of(run, epoch)) is None]
    records = [record for epoch in epochs for record in leases_of(run, epoch)]
    return [*_before(before), *records], open_homes, [epoch for epoch in every if epoch not in open_homes]


def _before(survey: RowsLeft) -> Iterator[Record]:
    for start, stop in survey.whole:
        yield Record(OWN, 0, start, stop, True)
    for start, stop, epochs in survey.left:
        for epoch in epochs:
            yield Record(epoch, 0, start, stop, False)
