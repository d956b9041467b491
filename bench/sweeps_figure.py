"""The picture of `malt_sweeps.py`: a group of bars for each base, a bar for each vote, with its interval."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

from weaverant.recipes.malt.svg import box, line, page, text

LEFT, WIDE, RIGHT = 290, 440, 80
ROW, GAP, TOP, BOTTOM = 24, 34, 60, 34
UNTRAINED, TRAINED = "#8d97a3", "#4a8bc7"


class Bar(NamedTuple):
    """A share in 0..1 with its interval."""

    group: str
    name: str
    value: float
    low: float
    high: float
    trained: bool


def figure(bars: Iterable[Bar]) -> str:
    """The picture as SVG. The axis is whole, 0 to 100 %."""
    groups = [(name, list(found)) for name, found in groupby(bars, key=lambda bar: bar.group)]
    height = TOP + BOTTOM + sum(GAP + ROW * len(found) for _, found in groups)
    title = "Votes on held-out problems, by base, branching n and theta"
    return page(LEFT + WIDE + RIGHT, height, title, _shapes(groups, title, height))


def _shapes(groups: Sequence[tuple[str, list[Bar]]], title: str, height: int) -> Iterator[str]:
    yield text(16, 26, title, font_size="16", font_weight="600")
    yield text(16, 46, "grey: untrained; blue: MALT; whiskers: 95 % interval (Wilson)", "faint")
    bottom = height - BOTTOM
    for percent in range(0, 101, 20):
        x = LEFT + WIDE * percent / 100
        yield line(x, TOP, x, bottom)
        yield text(x, bottom + 18, f"{percent} %", "faint", "middle")
    top = TOP
    for name, bars in groups:
        yield text(16, top + GAP - 10, f"base: {name}", font_weight="600")
        top += GAP
        for bar in bars:
            yield from _bar(bar, top)
            top += ROW


def _bar(bar: Bar, top: float) -> Iterator[str]:
    middle = top + ROW / 2
    low, high = (LEFT + WIDE * end for end in (bar.low, bar.high))
    yield text(LEFT - 10, middle + 4.5, bar.name, anchor="end")
    yield box(LEFT, top + 4, WIDE * bar.value, ROW - 8, TRAINED if bar.trained else UNTRAINED)
    yield line(low, middle, high, middle, "ink", stroke_width="1.5")
    for x in (low, high):
        yield line(x, middle - 4, x, middle + 4, "ink", stroke_width="1.5")
    yield text(LEFT + WIDE + 12, middle + 4.5, f"{bar.value:.1%}", font_weight="600")
