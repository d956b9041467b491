"""What engines have to tell while a run goes on: lines for people, of which those of several peers become one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median

from weaverant.protocols import Load, Note, Tally


def merged(notes: Sequence[Note]) -> list[str]:
    """The notes of all peers: one line for each server and each thing that is counted, in the order in which they
    first came. Said by several, a text stands once."""
    loads: dict[str, list[Load]] = {}
    tallies: dict[str, list[Tally]] = {}
    lines: dict[str, None] = {}
    for note in notes:
        if isinstance(note, Load):
            loads.setdefault(note.server, []).append(note)
            lines.setdefault(f"load {note.server}")
        elif isinstance(note, Tally):
            tallies.setdefault(note.many, []).append(note)
            lines.setdefault(f"tally {note.many}")
        else:
            lines.setdefault(f"text {note}")
    found: list[str] = []
    for line in lines:
        kind, _, what = line.partition(" ")
        if kind == "load":
            found.append(_line(loads[what]))
        elif kind == "tally":
            first = tallies[what][0]
            found.append(str(Tally(sum(each.count for each in tallies[what]), first.one, first.many)))
        else:
            found.append(what)
    return found


def _line(loads: Sequence[Load]) -> str:
    """One server, as several peers find it: the sums, the median of what a call takes, and trouble that some have."""
    seconds = [each.seconds for each in loads if each.seconds]
    whole = Load(
        loads[0].server, sum(each.in_flight for each in loads), sum(each.places for each in loads),
        median(seconds) if seconds else 0.0, _trouble(each.trouble for each in loads),
    )  # fmt: skip
    return str(whole)


def _trouble(told: Iterable[str]) -> str:
    all_of_them = list(told)
    some = [trouble for trouble in all_of_them if trouble]
    if not some or len(some) == len(all_of_them) == 1:
        return some[0] if some else ""
    return f"{some[0]} ({len(some)} of {len(all_of_them)} peers)"
