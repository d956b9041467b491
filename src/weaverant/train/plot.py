"""`loss.svg`: the loss over the steps, and of DPO how likely both sides became against the reference."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import ceil, floor, log10
from pathlib import Path
from typing import Any

WIDTH, HEIGHT, LEFT, TOP, GAP = 640, 220, 64, 34, 58
"""Pixels of a panel, and of the margins around it."""
POINTS = 600
"""Of a line at most: the means of as many stretches of steps."""

PANELS = (
    ("loss", (("loss", "#4059ad"),)),
    ("change against the reference, nats a reply", (("chosen_change", "#2a9d8f"), ("rejected_change", "#c8553d"))),
)
HEAD = '<svg xmlns="http://www.w3.org/2000/svg" width="{w}" height="{h}" font-family="sans-serif" font-size="12">'
STYLE = (
    "<style>.page{fill:#fff}text{fill:#1f2328}.rule{stroke:#d1d9e0}@media(prefers-color-scheme:dark)"
    "{.page{fill:#0d1117}text{fill:#e6edf3}.rule{stroke:#3d444d}}</style>"
)
"""It follows the reader's choice of light or dark."""


def plot(lines: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw what the lines of `metrics.jsonl` hold."""
    panels = [(title, curves) for title, curves in PANELS if lines and curves[0][0] in lines[0]]
    parts = [HEAD.format(w=WIDTH + LEFT + 20, h=TOP + len(panels) * (HEIGHT + GAP))]
    parts += [STYLE, '<rect class="page" width="100%" height="100%"/>']
    for number, (title, curves) in enumerate(panels):
        parts += _panel(lines, title, curves, TOP + number * (HEIGHT + GAP))
    path.write_text("\n".join([*parts, "</svg>\n"]))


def _panel(
    lines: Sequence[dict[str, Any]], title: str, curves: Sequence[tuple[str, str]], top: int
) -> list[str]:  # fmt: skip
    drawn = {name: thinned([(line["step"], line[name]) for line in lines]) for name, _ in curves}
    values = [y for points in drawn.values() for _, y in points]
    marks = ticks(min(values), max(values))
    low, high = marks[0], marks[-1]
    first, last = lines[0]["step"], max(lines[-1]["step"], lines[0]["step"] + 1)

    def x(step: float) -> float:
        return LEFT + (step - first) / (last - first) * WIDTH

    def y(value: float) -> float:
        return top + (high - value) / (high - low) * HEIGHT

    parts = [f'<text x="{LEFT}" y="{top - 8}">{title}</text>']
    for value in marks:
        at = f'y1="{y(value):.1f}" y2="{y(value):.1f}"'
        parts.append(f'<line class="rule" x1="{LEFT}" x2="{LEFT + WIDTH}" {at}/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{value:g}</text>')
    for step in (mark for mark in ticks(first, last) if first <= mark <= last and mark == int(mark)):
        parts.append(f'<text x="{x(step):.1f}" y="{top + HEIGHT + 16}" text-anchor="middle">{step:.0f}</text>')
    parts.append(f'<text x="{LEFT + WIDTH}" y="{top + HEIGHT + 32}" text-anchor="end">step</text>')
    for number, (name, colour) in enumerate(curves):
        path = " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in drawn[name])
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        if len(drawn[name]) == 1:
            ((step, value),) = drawn[name]
            parts.append(f'<circle cx="{x(step):.1f}" cy="{y(value):.1f}" r="3" fill="{colour}"/>')
        if len(curves) > 1:
            at = LEFT + WIDTH - 130 * (len(curves) - number - 1)
            parts.append(f'<text x="{at}" y="{top - 8}" style="fill:{colour}" text-anchor="end">{name}</text>')
    return parts


def ticks(low: float, high: float) -> list[float]:
    """Round numbers, three to eight of them, from below `low` to above `high`; 1, 2 or 5 times a power of ten apart."""
    width = (high - low) or abs(low) or 1.0
    step = next(
        size
        for power in range(floor(log10(width)) - 1, floor(log10(width)) + 2)
        for size in (1 * 10.0**power, 2 * 10.0**power, 5 * 10.0**power)
        if width / size <= 5
    )
    begin, end = floor(low / step), max(ceil(high / step), floor(low / step) + 1)
    return [round(number * step, 12) for number in range(begin, end + 1)]


def thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points, or the means of `POINTS` stretches of them."""
    if len(points) <= POINTS:
        return list(points)
    cuts = [len(points) * at // POINTS for at in range(POINTS + 1)]
    return [
        (sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part))
        for part in (points[begin:end] for begin, end in pairwise(cuts))
    ]
