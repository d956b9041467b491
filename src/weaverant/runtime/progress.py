"""Progress on standard error: a block redrawn in place on a terminal, a plain line now and then elsewhere.

`snapshot` reads a run, `block` and `line` turn a snapshot into text (pure functions), `Progress` draws.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from collections.abc import Sequence
from typing import Protocol, TextIO

from msgspec import Struct

from weaverant.runtime.functions import Functions, functions
from weaverant.runtime.ledger import Ledger, StageCounts
from weaverant.runtime.limits import Limits
from weaverant.runtime.terminal import visible

REDRAW_EVERY = 0.25
FIRST_LINE_AFTER = 1.0
LINE_EVERY = 5.0
RATE_OVER = 15.0
QUIET = 10.0
"""Seconds, all five. Rates are those of the last `RATE_OVER` seconds; where no row has ended for `QUIET`, the function
is named that has run longest, if it has for as long."""

BAR = 24
"""Columns of the bar."""

NOTES = 4
"""Lines of what engines tell that are shown."""

NARROW = 90
"""Columns under which there is no bar: the counts matter more."""


class Watched(Protocol):
    """What is looked at of a run."""

    @property
    def ledger(self) -> Ledger: ...
    @property
    def in_flight(self) -> tuple[int, int]: ...
    @property
    def state(self) -> str: ...
    @property
    def spent(self) -> float: ...
    @property
    def priced(self) -> bool: ...
    @property
    def limits(self) -> Limits: ...
    @property
    def notes(self) -> list[str]: ...


class StageProgress(Struct, frozen=True):
    """Counts of one stage. `rows` is how many there are as far as anybody knows; `known` says that it is all."""

    name: str
    rows: int
    known: bool
    done: int
    rejected: int
    failed: int

    @property
    def ended(self) -> int:
        return self.done + self.rejected + self.failed


class Snapshot(Struct, frozen=True):
    """A run at one moment. Rows, calls and dollars are those of all its sessions, `elapsed` and rates are this one's.
    Rates are per second; `eta` is seconds, or None while nothing tells, or all has stopped, or hangs."""

    stages: tuple[StageProgress, ...]
    rows_in_flight: int
    calls_in_flight: int
    calls: int
    call_rate: float
    token_rate: float
    cost: float
    elapsed: float
    eta: float | None
    state: str = "running"
    budget: float = 0.0
    notes: tuple[str, ...] = ()
    """What engines have to tell."""
    priced: bool = True
    """Whether somebody knows what the calls cost."""
    longest: str = ""
    """The function that has run longest, where it seems to be what all wait for."""


class Pace:
    """Rates, from what was counted a moment ago and at the start."""

    def __init__(self, now: float) -> None:
        self._began = now
        self._marks: deque[tuple[float, int, int]] = deque([(now, 0, 0)])
        self._ended: int = 0
        self._ended_at = now
        """When a row was last seen to have ended."""

    def look(self, watched: Watched, total: int | None, now: float, afoot: Functions | None = None) -> Snapshot:
        """`total` is how many rows the first stage will have, where that is known; `afoot` what functions run."""
        ledger = watched.ledger
        stages = tuple(_stage(counts, total if n == 0 else None) for n, counts in enumerate(ledger.stages))
        usage = ledger.usage()
        call_rate, token_rate = self._rates(now, ledger.calls, usage.prompt_tokens + usage.completion_tokens)
        rows_in_flight, calls_in_flight = watched.in_flight
        calls = ledger.earlier_calls + ledger.calls
        longest, eta = self._longest(stages, afoot, now), None
        if watched.state == "running" and not longest:
            eta = self._eta(stages, ledger.earlier, now)
        return Snapshot(
            stages, rows_in_flight, calls_in_flight, calls, call_rate, token_rate, watched.spent, now - self._began,
            eta, watched.state, watched.limits.budget, tuple(map(visible, watched.notes)),
            watched.priced, visible(longest),
        )  # fmt: skip

    def _rates(self, now: float, calls: int, tokens: int) -> tuple[float, float]:
        marks = self._marks
        marks.append((now, calls, tokens))
        while len(marks) > 2 and now - marks[1][0] >= RATE_OVER:
            marks.popleft()
        then, calls_then, tokens_then = marks[0]
        span = now - then
        return ((calls - calls_then) / span, (tokens - tokens_then) / span) if span > 0 else (0.0, 0.0)

    def _eta(self, stages: Sequence[StageProgress], earlier: int, now: float) -> float | None:
        """At the pace of this session, for runs of one stage: how many rows a later one gets, nobody knows."""
        first = stages[0]
        ended = first.ended - earlier
        if len(stages) > 1 or not first.known or ended <= 0 or first.ended == first.rows:
            return None
        eta = (now - self._began) / ended * (first.rows - first.ended)
        return eta if now - self._ended_at < max(QUIET, eta) else None

    def _longest(self, stages: Sequence[StageProgress], afoot: Functions | None, now: float) -> str:
        ended = sum(stage.ended for stage in stages)
        if ended != self._ended:
            self._ended, self._ended_at = ended, now
        longest = None if afoot is None else afoot.longest()
        if afoot is None or longest is None or now - max(self._ended_at, longest.since) < QUIET:
            return ""
        more = f", and {len(afoot) - 1:,} more" if len(afoot) > 1 else ""
        return f"waiting for {longest.name}() for {span(now - longest.since)}, row {longest.row}{more}"


def _stage(counts: StageCounts, total: int | None) -> StageProgress:
    rows = counts.rows if total is None else max(total, counts.rows)
    return StageProgress(
        counts.name, rows, total is not None, counts.done, counts.rejected.total(), counts.failed.total()
    )


def block(shot: Snapshot, width: int, colour: bool = False) -> list[str]:
    """The lines of the live block, none longer than `width` columns."""
    name_width = max(len(stage.name) for stage in shot.stages)
    lines = [_stage_line(stage, name_width, colour, width >= NARROW) for stage in shot.stages]
    lines.append(
        f"{shot.calls:,} calls, {shot.call_rate:,.1f}/s, {short(shot.token_rate)} tokens/s, {_cost(shot)}; "
        f"in flight: {shot.rows_in_flight:,} rows, {shot.calls_in_flight:,} calls"
    )
    lines += _first(shot.notes, NOTES)
    if shot.longest:
        lines.append(shot.longest)
    ending = "" if shot.state in ("running", "ready", "finished") else f"; stopping ({shot.state})"
    left = "" if shot.eta is None else f", about {span(shot.eta)} left"
    lines.append(f"{span(shot.elapsed)} elapsed{left}{ending}")
    return [fit(text, width) for text in lines]


def line(shot: Snapshot) -> str:
    """The same in one plain line."""
    stages = "; ".join(
        ("" if len(shot.stages) == 1 else f"{stage.name}: ")
        + f"{stage.ended:,} of {stage.rows:,} rows{_so_far(stage)} (done {stage.done:,}, rejected {stage.rejected:,}, "
        f"failed {stage.failed:,})"
        for stage in shot.stages
    )
    left = "" if shot.eta is None else f", about {span(shot.eta)} left"
    notes = "".join(f"; {text}" for text in (*_first(shot.notes, NOTES), shot.longest) if text)
    return (
        f"{stages}; {shot.rows_in_flight:,} rows in flight; {shot.calls:,} calls, {shot.call_rate:,.1f}/s, "
        f"{short(shot.token_rate)} tokens/s, {_cost(shot)}; {span(shot.elapsed)} elapsed{left}{notes}"
    )


def _cost(shot: Snapshot) -> str:
    if not shot.cost and not shot.priced:
        return "cost unknown"
    if not shot.budget:
        return money(shot.cost)
    digits = 4 if 0 < shot.cost < 1 or shot.budget < 1 else 2
    return f"${shot.cost:,.{digits}f} of ${shot.budget:,.{digits}f}"


def _first(notes: Sequence[str], most: int) -> list[str]:
    more = len(notes) - most
    return [*notes[:most], f"and {more} more"] if more > 0 else list(notes)


def _stage_line(stage: StageProgress, name_width: int, colour: bool, bar: bool) -> str:
    counts = f"{stage.ended:,} of {stage.rows:,}{_so_far(stage)}"
    if bar and stage.known and stage.rows:
        filled = BAR * stage.ended // stage.rows
        counts = f"{'█' * filled}{'░' * (BAR - filled)} {counts} ({100 * stage.ended / stage.rows:.0f} %)"
    failed = f"failed {stage.failed:,}"
    if colour and stage.failed:
        failed = f"\x1b[31m{failed}\x1b[0m"
    return f"{stage.name:<{name_width}}  {counts}  done {stage.done:,}  rejected {stage.rejected:,}  {failed}"


def _so_far(stage: StageProgress) -> str:
    return "" if stage.known else " so far"


def fit(text: str, width: int) -> str:
    """Cut to `width` columns; escape codes take none, and one that was opened is closed."""
    kept: list[str] = []
    columns = at = 0
    while at < len(text):
        if text[at] == "\x1b":
            end = text.index("m", at) + 1
            kept.append(text[at:end])
            at = end
            continue
        if columns == width:
            break
        kept.append(text[at])
        columns += 1
        at += 1
    cut = "".join(kept)
    return cut + "\x1b[0m" if cut.count("\x1b") % 2 else cut


def span(seconds: float) -> str:
    """`42 s`, `3:07`, `2:03:07`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes}:{rest:02}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def short(number: float) -> str:
    """Three digits and a letter: `950`, `12.3k`, `4.56M`."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{letter}"
    return f"{number:.0f}"


def money(dollars: float) -> str:
    """US dollars, with more digits where there are few."""
    return f"${dollars:,.2f}" if dollars >= 1 or not dollars else f"${dollars:.4f}"


class Progress:
    """Draws a run's progress on `stream` until it is cancelled; `say` puts a line above it."""

    def __init__(self, watched: Watched, total: int | None, stream: TextIO, live: bool) -> None:
        self._watched = watched
        self._total = total
        self._stream = stream
        self._live = live
        self._colour = live and "NO_COLOR" not in os.environ
        self._pace = Pace(time.monotonic())
        self._functions: Functions | None = None
        self._drawn = 0

    async def draw(self) -> None:
        """Runs until it is cancelled; the last state is drawn by `finish`."""
        self._functions = functions()
        if self._live:
            while True:
                self._redraw(self._look())
                await asyncio.sleep(REDRAW_EVERY)
        await asyncio.sleep(FIRST_LINE_AFTER)
        while True:
            self._put(line(self._look()) + "\n")
            await asyncio.sleep(LINE_EVERY)

    def finish(self) -> None:
        """Leave the last state standing."""
        shot = self._look()
        if self._live:
            self._redraw(shot)
            self._drawn = 0
        else:
            self._put(line(shot) + "\n")

    def say(self, text: str) -> None:
        """One line that stays, above the block."""
        self._put(self._erase() + visible(text) + "\n")
        self._drawn = 0
        if self._live:
            self._redraw(self._look())

    def _look(self) -> Snapshot:
        return self._pace.look(self._watched, self._total, time.monotonic(), self._functions)

    def _redraw(self, shot: Snapshot) -> None:
        lines = block(shot, self._width(), self._colour)
        self._put(self._erase() + "".join(f"{text}\x1b[K\n" for text in lines))
        self._drawn = len(lines)

    def _erase(self) -> str:
        return f"\x1b[{self._drawn}A\r\x1b[J" if self._drawn else ""

    def _width(self) -> int:
        try:
            columns = os.get_terminal_size(self._stream.fileno()).columns
        except (OSError, ValueError):
            columns = 0
        # One column less: a full line would wrap, and the block could not be found again. 0: the terminal cannot tell.
        return max(20, columns - 1) if columns else 79

    def _put(self, text: str) -> None:
        """A terminal that went away, or a pipe that nobody reads any more, must not end the run."""
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):
            pass


def is_live(stream: TextIO) -> bool:
    """Whether lines on this stream can be redrawn."""
    return stream.isatty() and os.environ.get("TERM", "") not in ("", "dumb")
