"""What became of a struck run, by its results, its journals and the model's log.

All processes read one machine's clock, so times can be compared. A step is *acknowledged* where its record counts: it
stands in a peer's journal before its fence. That holds then:

* each step is acknowledged once, in one journal, and no call for it comes to the model after its record was made;
* a call that comes again is of a step that was in flight at a struck peer: asked before its journal's end, not recorded
  there, and the next one of a row that was open at that end (the first one, of a leased row whose beginning was not
  durable either, or of a row whose lease was not). So it comes once more for each such journal at most, and a peer that may have 64 rows in flight
  loses 64 calls at most. Where the link to the model was cut, the system delivers what the struck peer had sent once
  the link is there again, though others have gone on meanwhile: such calls were in flight, too. A peer that stood still
  sends nothing on waking, but for one call: the one that it was about to write, and had looked for the last time.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

from msgspec import Struct, field

from chaos.chain import STEPS
from chaos.ends import NEVER, Ends
from chaos.faults import Struck
from chaos.model import Call, read_log
from chaos.scene import IN_FLIGHT
from weaverant.events import RowsCut, RowsDone, RowsTaken, StepEnded, TaskEnded, TaskStarted, TaskTaken
from weaverant.journal import JournalReader
from weaverant.journal.homes import epochs_of, fence_of, home_of

NOTICED_S = MOVED_S = 10.0
READ_S = 0.05
"""What a request may lie in a socket before the model server reads it; and files have the time of the system's last tick."""
DURABLE_S = 1.0
"""What a busy disk may take to make an event durable."""
Pair = tuple[int, int]
"""A row and one of its steps."""


class Home(Struct):
    """A journal up to its fence."""

    tasks: dict[int, int] = {}
    """Rows that were open at its end, with how many of their steps were recorded."""
    began: set[int] = set()
    """All rows that ever were in it."""
    leases: dict[int, tuple[int, int]] = {}
    """Those that were not done, by number."""
    held: dict[int, tuple[int, int, float]] = {}
    """All that ever were, as they were cut at last, and since when."""
    taken: list[RowsTaken] = field(default_factory=list[RowsTaken])
    moved: list[tuple[int, float]] = field(default_factory=list[tuple[int, float]])
    """Rows that came from other journals, and when."""


class Journals(Struct):
    recorded: dict[Pair, list[tuple[int, float]]]
    """Each record of a step that counts: epoch, and when it was made."""
    homes: dict[int, Home]


class Verdict(Struct):
    """Of one trial. Times in seconds since the fault; None where there is nothing to be noticed or moved."""

    noticed: float | None = None
    moved: float | None = None
    """The first row of the struck peer that another went on with, or its lease."""
    twice: int = 0
    """Calls that came again."""
    in_flight: int = 0
    """Steps that were asked for by the struck peers and not recorded at their ends."""
    others: list[int] = field(default_factory=list[int])
    """Peers that somebody else killed: nothing here did, and no process does it to itself. They count as struck."""
    faults: list[str] = field(default_factory=list[str])
    """What did not hold."""


def results_of(run: Path, out: Path) -> dict[str, object]:
    """Results by key, of `weaverant export`. ValueError where a key comes twice."""
    command = [sys.executable, "-m", "weaverant", "export", str(run), "--as", "raw", "--out", str(out)]
    subprocess.run(command, check=True, capture_output=True)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    found = {row["key"]: row["result"] for row in rows}
    if len(found) < len(rows):
        raise ValueError(f"{len(rows) - len(found)} rows came twice")
    return found


def read(run: Path) -> Journals:
    """All journals, each up to its fence."""
    recorded: defaultdict[Pair, list[tuple[int, float]]] = defaultdict(list)
    homes: defaultdict[int, Home] = defaultdict(lambda: Home({}, set(), {}))
    for batch in JournalReader(run).batches():
        home = homes[batch.place.epoch]
        for event in batch.events:
            match event:
                case TaskStarted():
                    home.tasks[_row(event.task)] = 0
                    home.began.add(_row(event.task))
                case TaskTaken():
                    home.began.add(_row(event.task))
                    home.tasks[_row(event.task)] = sum(isinstance(each, StepEnded) for each in event.events)
                    home.moved.append((_row(event.task), event.time))
                case StepEnded():
                    home.tasks[_row(event.task)] += 1
                    recorded[event.input["id"], event.input["n"]].append((batch.place.epoch, event.time))
                case TaskEnded():
                    home.tasks.pop(_row(event.task))
                case RowsTaken():
                    home.leases[event.number] = event.start, event.stop
                    home.held[event.number] = event.start, event.stop, event.time
                    home.taken.append(event)
                case RowsCut():
                    home.leases[event.number] = home.leases[event.number][0], event.stop
                    start, _, since = home.held[event.number]
                    home.held[event.number] = start, event.stop, since
                case RowsDone():
                    home.leases.pop(event.number)
                case _:
                    pass
    return Journals(recorded, homes)


def judge(run: Path, ends: Ends, log: Path, rows: int, struck: Struck) -> Verdict:
    """Of the journals, which are all in this directory, and the log; results and exit codes are compared elsewhere."""
    verdict, journals, asked = Verdict(), read(run), read_log(log)
    verdict.others = [] if struck.resume else _killed_by_others(run, ends, struck)
    may = _in_flight(verdict, ends, journals, asked, struck)
    _count(verdict, journals, asked, rows)
    _repeats(verdict, journals, asked, may, struck)
    _time(verdict, ends, journals, struck)
    open_homes = [epoch for epoch in epochs_of(run) if fence_of(home_of(run, epoch)) is None]
    if open_homes:
        verdict.faults.append(f"homes without a fence: {open_homes}")
    return verdict


def _killed_by_others(run: Path, ends: Ends, struck: Struck) -> list[int]:
    return [epoch for epoch in epochs_of(run) if epoch not in struck.epochs and ends.why(epoch) == "its process ended"]


def _count(verdict: Verdict, journals: Journals, asked: dict[Pair, list[Call]], rows: int) -> None:
    pairs = {(row, step) for row in range(rows) for step in range(STEPS)}
    missing, extra = pairs - journals.recorded.keys(), journals.recorded.keys() - pairs
    if missing or extra:
        verdict.faults.append(f"{len(missing)} steps are not recorded, {len(extra)} are none")
    more = [pair for pair, records in journals.recorded.items() if len(records) > 1]
    if more:
        verdict.faults.append(
            f"{len(more)} steps are acknowledged more than once, as {_told(more[0], journals, asked)}"
        )
    unasked = sum(pair not in asked for pair in journals.recorded)
    if unasked:
        verdict.faults.append(f"{unasked} recorded steps were never asked")


def _in_flight(
    verdict: Verdict, ends: Ends, journals: Journals, asked: dict[Pair, list[Call]], struck: Struck
) -> Counter[Pair]:
    """Steps that were in flight at struck peers, and at how many of them."""
    found: Counter[Pair] = Counter()
    for epoch, home in journals.homes.items():
        if epoch not in verdict.others and not (struck.most and (struck.resume or epoch in struck.epochs)):
            continue
        ended = ends.time(epoch)
        unsaid = {row: 0 for span in home.leases.values() for row in range(*span) if row not in home.began}
        pairs = [pair for pair in (unsaid | home.tasks).items() if pair in asked]
        in_time = [pair for pair in pairs if _came_in_time(asked[pair], ended)]
        late = [pair for pair in set(pairs) - set(in_time) if _came_late(asked[pair], struck)]
        cut_off = in_time + late
        found.update(cut_off)
        if len(late) > struck.late:
            told = _told(late[0], journals, asked)
            verdict.faults.append(f"peer {epoch} asked {len(late)} steps when others had them, as {told}")
        if len(cut_off) > IN_FLIGHT:
            verdict.faults.append(f"peer {epoch} had {len(cut_off)} steps in flight, of {IN_FLIGHT} that it may")
    if struck.most:
        found.update((row, 0) for row in unleased(journals, asked, struck))
    verdict.in_flight = found.total()
    return found


def unleased(journals: Journals, asked: dict[Pair, list[Call]], struck: Struck) -> list[int]:
    """Rows that were begun as the fault struck, so fresh from the office that the lease was not durable yet: the call
    was on its way, and no journal tells of the row until another takes it."""
    held = [span for home in journals.homes.values() for span in home.held.values()]
    first = {
        pair[0]: min(call.time for call in calls) for pair, calls in asked.items() if pair[1] == 0 < len(calls) - 1
    }
    return [
        row
        for row, when in first.items()
        if struck.time - DURABLE_S < when <= struck.time + READ_S
        and not any(start <= row < stop and since <= when for start, stop, since in held)
    ]


def _came_in_time(calls: list[Call], ended: float) -> bool:
    """Asked by the peer that ended. What was asked once, and right behind the end, was asked by whoever had it next."""
    first = min(call.time for call in calls)
    return first <= ended or (len(calls) > 1 and first <= ended + READ_S)


def _came_late(calls: list[Call], struck: Struck) -> bool:
    """Once others had asked as well."""
    return len(calls) > 1 and any(_held_back(call, struck) for call in calls)


def _held_back(call: Call, struck: Struck) -> bool:
    return bool(struck.held_back) and call.where.startswith(struck.held_back)


def _repeats(
    verdict: Verdict, journals: Journals, asked: dict[Pair, list[Call]], may: Counter[Pair], struck: Struck
) -> None:
    late = [
        (pair, bool(may[pair]) and _held_back(call, struck))
        for pair, records in journals.recorded.items()
        for call in asked.get(pair, [])
        if call.time > min(when for _, when in records)
    ]
    wrong = [pair for pair, held_back in late if not held_back]
    if not wrong and len(late) > struck.late:
        wrong = [pair for pair, _ in late]
    if wrong:
        told = _told(wrong[0], journals, asked)
        verdict.faults.append(f"{len(wrong)} steps were asked after they were acknowledged, as {told}")
    again = {pair: len(calls) - 1 for pair, calls in asked.items() if len(calls) > 1}
    verdict.twice = sum(again.values())
    wrong = [pair for pair, more in again.items() if more > may[pair]]
    if wrong:
        verdict.faults.append(
            f"{len(wrong)} steps were asked again and had not been in flight at a struck peer, as "
            f"{_told(wrong[0], journals, asked)}"
        )


def _time(verdict: Verdict, ends: Ends, journals: Journals, struck: Struck) -> None:
    if struck.office:
        later = ends.office(struck.office + 1)
        if later < NEVER:
            verdict.noticed = later - struck.time
        else:
            verdict.faults.append("no other office began")
    elif struck.epochs:
        verdict.noticed = max(ends.time(epoch) for epoch in struck.epochs) - struck.time
        verdict.moved = _moved(journals, struck)
    if struck.moves and verdict.moved is None:
        verdict.faults.append(f"no row of {struck.epochs} ran elsewhere")
    if verdict.noticed is not None and verdict.noticed > NOTICED_S:
        verdict.faults.append(f"noticed after {verdict.noticed:.1f} s")
    if verdict.moved is not None and verdict.moved > MOVED_S:
        verdict.faults.append(f"rows ran elsewhere after {verdict.moved:.1f} s")


def _moved(journals: Journals, struck: Struck) -> float | None:
    left = [journals.homes[epoch] for epoch in struck.epochs]
    tasks = {row for home in left for row in home.tasks}
    spans = [span for home in left for span in home.leases.values()]
    times = [
        when
        for epoch, home in journals.homes.items()
        if epoch not in struck.epochs
        for when in (
            *(when for row, when in home.moved if row in tasks),
            *(
                took.time
                for took in home.taken
                if any(took.start < stop and start < took.stop for start, stop in spans)
            ),
        )
        if when > struck.time
    ]
    return min(times) - struck.time if times else None


def _row(task: str) -> int:
    return int(task.split(".")[1])


def _told(pair: Pair, journals: Journals, asked: dict[Pair, list[Call]]) -> str:
    calls = ", ".join(f"{call.time:.3f} by {call.where}" for call in asked.get(pair, []))
    records = ", ".join(f"{when:.3f} in {epoch}" for epoch, when in journals.recorded.get(pair, []))
    return f"row {pair[0]} step {pair[1]} (asked {calls}; recorded {records or 'never'})"
