"""A picture of an evaluation: a bar for each system, with its interval."""

from __future__ import annotations

from collections.abc import Iterator

from weaverant.recipes.malt.svg import box, line, page, text
from weaverant.recipes.malt.systems import System
from weaverant.recipes.malt.tables import Evaluated

LEFT, WIDE, RIGHT = 170, 520, 190
ROW, TOP, BOTTOM = 24, 64, 34

SINGLE, VOTE = "#8d97a3", "#4a8bc7"
"""Single passes and votes; both stand out from either page, and dark and light whiskers from both."""


def bars(found: Evaluated, dark: bool | None = None) -> str:
    """The picture as SVG. The axis is whole, 0 to 100 %."""
    systems = found.systems
    height = TOP + ROW * len(systems) + BOTTOM
    said = found.outcomes
    title = f"Right answers to {said.problems:,} problems"
    return page(LEFT + WIDE + RIGHT, height, title, _shapes(found, systems, title, height), dark)


def _shapes(found: Evaluated, systems: list[System], title: str, height: int) -> Iterator[str]:
    said = found.outcomes
    seeds = "1 seed" if said.seeds == 1 else f"mean of {said.seeds} seeds"
    yield text(16, 26, title, font_size="16", font_weight="600")
    yield text(16, 46, f"{seeds}; whiskers: 95 % interval (Wilson)", "faint")
    end = LEFT + WIDE
    for x, words, fill in ((end - 60, "single pass", SINGLE), (end + 50, "vote", VOTE)):
        yield box(x, 17, 12, 12, fill)
        yield text(x + 18, 27, words, "faint")
    bottom = height - BOTTOM
    for percent in range(0, 101, 20):
        x = LEFT + WIDE * percent / 100
        yield line(x, TOP - 6, x, bottom)
        yield text(x, bottom + 18, f"{percent} %", "faint", "middle")
    for number, system in enumerate(systems):
        yield from _bar(found, system, TOP + ROW * number)


def _bar(found: Evaluated, system: System, top: float) -> Iterator[str]:
    accuracy = found.outcomes.accuracy(system)
    mean, middle = accuracy.spread.mean, top + ROW / 2
    low, high = (LEFT + WIDE * end for end in accuracy.interval)
    calls = "1 call" if system.calls == 1 else f"{system.calls} calls"
    yield text(LEFT - 10, middle + 4.5, system.name, anchor="end")
    yield box(LEFT, top + 4, WIDE * mean, ROW - 8, SINGLE if system.votes == 1 else VOTE)
    yield line(low, middle, high, middle, "ink", stroke_width="1.5")
    for x in (low, high):
        yield line(x, middle - 4, x, middle + 4, "ink", stroke_width="1.5")
    yield text(LEFT + WIDE + 12, middle + 4.5, f"{mean:.1%}", font_weight="600")
    yield text(LEFT + WIDE + 72, middle + 4.5, calls, "faint")
