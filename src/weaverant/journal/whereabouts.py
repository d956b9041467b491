"""Where the tasks of one journal have their events, as its index tells."""

from __future__ import annotations

from msgspec import Struct

from weaverant.journal.counts import contradiction
from weaverant.journal.index import BEGAN, OPEN, TAKEN
from weaverant.journal.parts import Part, Place


class Whereabouts(Struct):
    """A task in one journal: the frames with its events there."""

    places: list[Place]
    copy: int = 0
    open: bool = False
    reopened: bool = False


def left_in(parts: list[Part]) -> dict[str, Whereabouts]:
    """Its tasks that were open at the end of some segment, as they are now. `JournalCorrupt` where one has events in an
    earlier segment than it began in."""
    found: dict[str, Whereabouts] = {}
    strays: set[str] = set()
    for part in parts:
        for late in part.summary.late:
            before = found.setdefault(late.task, Whereabouts([], late.copy))
            before.copy = max(before.copy, late.copy)
            if late.state != OPEN:
                before.open, before.places = False, []
        for entry in part.summary.unfinished:
            begins = bool(entry.flags & (BEGAN | TAKEN))
            if entry.flags & BEGAN and entry.task in strays:
                raise contradiction(part.path.parent, f"task {entry.task!r} has events before it begins")
            now = found.get(entry.task)
            if entry.state != OPEN and (now is None or not now.open):
                strays.add(entry.task)
                continue
            if now is None or not now.open or begins:
                now = found[entry.task] = Whereabouts([], max(entry.copy, 0 if now is None else now.copy))
            now.open = True
            now.reopened |= entry.state == OPEN and not begins
            now.places.extend(part.places(entry.frames))
    return found


def places_in(parts: list[Part], wanted: frozenset[str]) -> dict[str, tuple[int, list[Place]]]:
    """The frames of each of these tasks since it began there or was last taken there, and its copy."""
    pieces: list[dict[str, tuple[int, list[Place]]]] = []
    begun: set[str] = set()
    for part in reversed(parts):
        if len(begun) == len(wanted):
            break
        mine = [entry for entry in part.entries() if entry.task in wanted and entry.task not in begun]
        pieces.append({entry.task: (entry.copy, part.places(entry.frames)) for entry in mine})
        begun.update(entry.task for entry in mine if entry.flags & (BEGAN | TAKEN))
    found: dict[str, tuple[int, list[Place]]] = {}
    for piece in reversed(pieces):
        for task, (copy, places) in piece.items():
            before, earlier = found.get(task, (0, []))
            found[task] = max(copy, before), [*earlier, *places]
    return found
