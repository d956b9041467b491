"""Journals rewritten event by event: what somebody could put into one who knows how it is made.

Whatever comes out has right checksums and, where nothing else is said, an index that fits the events.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import zstandard

from fuzz_data import ODD_NUMBERS, text, value
from fuzz_forgery import another_number, changed, payload_of
from fuzz_journal import frames
from weaverant.events import Event
from weaverant.journal.index import SegmentIndex, encode_index
from weaverant.journal.segment import (
    EVENTS,
    MAP,
    SUMMARY,
    pack_frame,
    pack_header,
    pack_trailer,
    segment_path,
)

ZSTD = zstandard.ZstdCompressor(level=1)
Written = list[Any]
"""An event as it is in the file: its tag, then its fields."""
Journal = list[list[list[Written]]]
"""Events by segment and frame."""
TASK, PATH, PRINT, OCCURRENCE = 1, 2, 3, 4
INPUT = 8
"""Of a step. The others have their places by tag."""
ABOUT_RUN = ("open", "agent", "source", "close")
HUGE = (-1, 10**6, 2**31, 2**40, 2**53, 2**63 - 1, 2**64 - 1, -(2**63), 1e308, -1e9, float("nan"), float("inf"))


def read(directory: Path) -> Journal:
    paths = sorted((directory / "journal").iterdir())
    return [[events for kind, events in map(_decoded, payloads(path)) if kind == EVENTS] for path in paths]


def payloads(path: Path) -> list[tuple[int, bytes]]:
    data = path.read_bytes()
    return [payload_of(data, *place) for place in frames(data)]


def _decoded(payload: tuple[int, bytes]) -> tuple[int, list[Written]]:
    kind, body = payload
    return kind, msgspec.msgpack.decode(body) if kind == EVENTS else []


def write(directory: Path, journal: Journal, odds: Random, lies: bool, sealed: bool) -> None:
    """The journal anew; `lies` puts a wrong number into an index."""
    for path in (directory / "journal").iterdir():
        path.unlink()
    liar = odds.randrange(len(journal)) if lies else -1
    for number, segment in enumerate(journal, 1):
        is_sealed = sealed or number < len(journal)
        path = segment_path(directory / "journal", number)
        path.write_bytes(_segment(number, segment, odds if number - 1 == liar else None, is_sealed))


def _segment(number: int, segment: list[list[Written]], liar: Random | None, sealed: bool) -> bytes:
    out, index = bytearray(pack_header()), SegmentIndex()
    for frame, events in enumerate(segment):
        packed = pack_frame(EVENTS, msgspec.msgpack.encode(events), len(out), ZSTD)
        for event in events:
            _note(index, event, frame)
        index.sizes.append(len(packed))
        out += packed
    if not sealed:
        return bytes(out)
    events_end, maps = len(out), []
    for payload in index.map_payloads():
        maps.append(len(out))
        out += pack_frame(MAP, _lied(payload, liar, 0.3), len(out), ZSTD)
    summary = len(out)
    out += pack_frame(SUMMARY, _lied(encode_index(index.summary(maps, number)), liar, 0.8), len(out), ZSTD)
    return bytes(out) + pack_trailer(events_end, summary)


def _note(index: SegmentIndex, event: Written, frame: int) -> None:
    """An event that cannot be decoded is in no index."""
    try:
        index.note([msgspec.convert(event, Event)], frame)
    except (ValueError, TypeError):
        return


def _lied(payload: bytes, odds: Random | None, share: float) -> bytes:
    if odds is None or odds.random() > share:
        return payload
    found: Any = msgspec.msgpack.decode(payload)
    another_number(found, odds)
    return msgspec.msgpack.encode(found)


def twice(journal: Journal) -> set[str]:
    """The tasks that begin or end more than once, or have two outcomes of a step, none of them being tried again."""
    seen: Counter[tuple[Any, ...]] = Counter()
    for event in (event for segment in journal for frame in segment for event in frame):
        if event[0] == "reopen":
            return set()
        if event[0] in ("start", "end") and len(event) > 1:
            seen[str(event[TASK]), event[0]] += 1
        elif event[0] == "step" and event[9:10] != ["cancelled"]:
            seen[str(event[TASK]), repr(event[2:5])] += 1
    return {task for (task, _), count in seen.items() if count > 1}


class Forger:
    """Changes a journal. `touched` are the tasks whose events are not what they were."""

    def __init__(self, journal: Journal, odds: Random) -> None:
        self.journal = journal
        self.touched: set[str] = set()
        self.about_run = False
        """Whether an event was changed that is no task's."""
        self.said: list[str] = []
        self._odds = odds
        self._tasks = sorted({event[TASK] for s in journal for f in s for event in f if event[0] == "start"})
        self._spoilt: list[Written] = []
        """Events that may lack parts, or have some of other types: they are changed no more."""

    def forge(self) -> None:
        """Something, drawn."""
        act: Callable[[], None] = self._odds.choice(
            (self.change, self.change, self.number, self.double, self.double, self.drop, self.move, self.turn,
             self.rekey, self.rebase, self.invent, self.another_task, self.cut, self.retext, self.relive)
        )  # fmt: skip
        act()

    def _draw(self, *tags: str) -> tuple[list[Written], int, Written]:
        """An event, with the frame that it is in and its place there."""
        found = [(frame, n, event) for segment in self.journal for frame in segment for n, event in enumerate(frame)]
        sound = [place for place in found if not any(place[2] is event for event in self._spoilt)]
        chosen = [place for place in sound if place[2][0] in tags] if tags else sound
        return self._odds.choice(chosen)

    def _mark(self, event: Written, how: str) -> None:
        self.said.append(f"{how} {event[:6]!r}"[:160])
        if event[0] in ABOUT_RUN or not isinstance(event[TASK], str):
            self.about_run = True
        else:
            self.touched.add(event[TASK])

    def change(self) -> None:
        """Other values somewhere in an event, of any type."""
        frame, place, event = self._draw()
        for _ in range(30):
            found = changed(event[1:], self._odds)
            if found != event[1:] and isinstance(found, list):
                self._mark(event, "change")
                frame[place] = [event[0], *found]
                self._mark([event[0], *(found or [None]), None], "to")
                self._spoilt.append(frame[place])
                return

    def number(self) -> None:
        """Another number of the same type, small or huge."""
        frame, place, event = self._draw()
        at = [n for n, part in enumerate(event) if type(part) in (int, float)]
        if at:
            self._mark(event, "number")
            found, n = [*event], self._odds.choice(at)
            found[n] = self._odds.choice((*HUGE, *ODD_NUMBERS, found[n] + 1, found[n] - 1))
            frame[place] = found
            self.said.append(f"{n}: {event[n]} -> {found[n]}")

    def double(self) -> None:
        """The same event again, at the same place or later, with something else in it perhaps."""
        frame, place, event = self._draw("start", "step", "end", "timer")
        again = [*event]
        if self._odds.random() < 0.5 and event[0] in ("step", "end"):
            again[-1 if event[0] == "end" else 10] = "FORGED"
            at = 6 if event[0] == "end" else 10
            again = [*event]
            again[at] = self._odds.choice(("FORGED", None, {"n": 1}, [], ["FORGED", None]))
        elif self._odds.random() < 0.3 and event[0] == "step":
            again[9], again[10], again[18:] = "failure", ["FORGED", None], ["server"]
        self._mark(event, "double")
        target, at = (frame, place + 1) if self._odds.random() < 0.5 else self._later(frame)
        target.insert(at, again)

    def _later(self, frame: list[Written]) -> tuple[list[Written], int]:
        every = [one for segment in self.journal for one in segment]
        after = every[next(n for n, one in enumerate(every) if one is frame) :]
        chosen = self._odds.choice(after)
        return chosen, len(chosen)

    def relive(self) -> None:
        """A task begins again in a segment of its own, and ends again perhaps."""
        _, _, start = self._draw("start")
        self._mark(start, "relive")
        every = [event for segment in self.journal for frame in segment for event in frame]
        ends = [event for event in every if event[0] == "end" and event[1:2] == start[1:2]]
        life = [[*event] for event in (start, *(ends if self._odds.random() < 0.5 else ()))]
        self.journal.insert(self._odds.choice((0, len(self.journal), self._odds.randrange(len(self.journal)))), [life])

    def drop(self) -> None:
        frame, place, event = self._draw()
        self._mark(event, "drop")
        del frame[place]

    def move(self) -> None:
        """An event to another place."""
        frame, place, event = self._draw()
        self._mark(event, "move")
        del frame[place]
        target = self._odds.choice(self._odds.choice(self.journal))
        target.insert(self._odds.randrange(len(target) + 1), event)

    def turn(self) -> None:
        """Two events of one task change places."""
        frame, place, event = self._draw("start", "step", "end", "timer", "reserve")
        every = [(one, n, e) for s in self.journal for one in s for n, e in enumerate(one)]
        found = [(one, n) for one, n, e in every if e[1:2] == event[1:2]]
        other, there = self._odds.choice(found)
        if other[there] != event:
            self._mark(event, "turn")
            frame[place], other[there] = other[there], frame[place]

    def rekey(self) -> None:
        """A step or a timer that nobody asked for, or that another one asked for."""
        frame, place, event = self._draw("step", "timer", "reserve")
        self._mark(event, "rekey")
        found = [*event]
        if event[0] == "timer":
            found[3] = self._odds.choice((0, 1, 5, 2**40))
        else:
            found[self._odds.choice((PATH, OCCURRENCE))] = self._odds.choice(("0", "7.7", 1, 10**6, "x" * 1000))
        frame[place] = found

    def rebase(self) -> None:
        """A conversation that goes on from a step which is to come, from itself, or from nowhere."""
        talks = [
            event for segment in self.journal for frame in segment for event in frame
            if event[0] == "step" and len(event) > INPUT and isinstance(event[INPUT], list) and event[5] == "model"
        ]  # fmt: skip
        if talks:
            event = self._odds.choice(talks)
            self._mark(event, "rebase")
            base = self._odds.choice((-1, 0, 1, 3, 7, 50, 2**31, 2**63, "0", None, 1.5, True, [], {}))
            asked = [*event[INPUT]]
            asked[self._odds.randrange(len(asked))] = base
            event[INPUT] = asked

    def retext(self) -> None:
        """A text that is not there, or a blob."""
        frame, place, event = self._draw("step", "start", "end")
        self._mark(event, "retext")
        packed = msgspec.msgpack.Ext(
            self._odds.choice((1, 1, 2, 2, 3)),
            self._odds.choice((b"\0", b"\1", b"\x09", b"\xff\xff", b"", b"x" * 16, b"/" * 16, b"\xff" * 40)),
        )
        at = {"step": self._odds.choice((8, 10)), "start": 5, "end": 6}[event[0]]
        frame[place] = [*event[:at], self._odds.choice((packed, [packed] * 3, {"text": packed})), *event[at + 1 :]]

    def invent(self) -> None:
        """An event that says what has never been."""
        odds = self._odds
        task = odds.choice(
            (*self._tasks, *self._tasks, "0.6.0", "0.99.0", "0.0.0/7", "1@00", "x", "", "-1.-1.-1", "0.1e3.0")
        )
        now = 1.8e9
        event: Written = odds.choice((
            ["open", odds.choice((0, 1, 10**9)), now, "9.9", odds.choice((0.0, 0.01, 1e-9, 1e12))],
            ["source", odds.choice((0, 1, 7, 10**15)), now],
            ["close", odds.choice(("finished", "budget", "\x1b[2J", "")), now],
            ["agent", "spec", odds.choice(({}, {"name": 1}, {"name": "x", "prompt": "{{ (", "system": None}))],
            ["start", task, odds.choice((0, 0, 1, 9)), now, b"d" * 16, odds.choice(({"n": 1}, None, 7, [])), ["0.0.0"]],
            ["end", task, odds.choice((0, 1)), odds.choice(("done", "failed", "rejected")), "", "",
             odds.choice(({"said": "FORGED"}, [], None, {"forget": 7}, {"forget": [[1, 2]]})), 1.0, now],
            ["reopen", task, now, odds.choice((0, 10**9))],
            ["superseded", task, "", now],
            ["reserve", task, "", b"f" * 16, 0, odds.choice((0.0, 0.5, 1e9, 99.9)), odds.choice(("", "batch")), now],
            ["timer", task, "", odds.choice((0, 10**9)), odds.choice((0.0, 1e9)), now],
            ["step", task, "", b"f" * 16, 0, odds.choice(("model", "effect")), "speaker", "spec", None, "reply",
             value(odds), 0.0, odds.choice((0.0, 1e9)), now],
        ))  # fmt: skip
        self._mark(event, "invent")
        target = odds.choice(odds.choice(self.journal))
        target.insert(odds.randrange(len(target) + 1), event)

    def another_task(self) -> None:
        """An event of one task becomes another's."""
        frame, place, event = self._draw("start", "step", "end", "timer", "reserve")
        _, _, other = self._draw("start")
        if event[TASK] != other[TASK]:
            self._mark(event, "another's")
            frame[place] = [event[0], self._odds.choice((other[TASK], other[TASK], text(self._odds))), *event[2:]]
            self._mark(frame[place], "now")

    def cut(self) -> None:
        """The last events are gone, as after a kill."""
        last = self.journal[-1]
        self.said.append("cut")
        for _ in range(self._odds.choice((1, 2, 5))):
            if len(last) > 1:
                last.pop()
