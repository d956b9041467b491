"""`loss.svg`: the loss over the steps, and of DPO how likely both sides became against the reference."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

WIDTH, HEIGHT, LEFT, TOP, GAP = 640, 220, 64, 34, 46
"""Pixels of a panel, and of the margins around it."""
POINTS = 600
"""Of a line at most: the means of as many stretches of steps."""

PANELS = (
    ("loss", (("loss", "#4059ad"),)),
    ("change against the reference, nats a reply", (("chosen_change", "#2a9d8f"), ("rejected_change", "#c8553d"))),
)
HEAD = '<svg xmlns="http://www.w3.org/2000/svg" width="{w}" height="{h}" font-family="sans-serif" font-size="12">'


def plot(lines: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw what the lines of `metrics.jsonl` hold."""
    panels = [(title, curves) for title, curves in PANELS if lines and curves[0][0] in lines[0]]
    parts = [HEAD.format(w=WIDTH + LEFT + 20, h=TOP + len(panels) * (HEIGHT + GAP))]
    parts.append('<rect width="100%" height="100%" fill="white"/>')
    for number, (title, curves) in enumerate(panels):
        parts += _panel(lines, title, curves, TOP + number * (HEIGHT + GAP))
    path.write_text("\n".join([*parts, "</svg>\n"]))


def _panel(
    lines: Sequence[dict[str, Any]], title: str, curves: Sequence[tuple[str, str]], top: int
) -> list[str]:  # fmt: skip
    drawn = {name: thinned([(line["step"], line[name]) for line in lines]) for name, _ in curves}
    values = [y for points in drawn.values() for _, y in points]
    low, high = min(values), max(values)
    high = high if high > low else low + 1.0
    first, last = lines[0]["step"], max(lines[-1]["step"], lines[0]["step"] + 1)

    def x(step: float) -> float:
        return LEFT + (step - first) / (last - first) * WIDTH

    def y(value: float) -> float:
        return top + (high - value) / (high - low) * HEIGHT

    parts = [f'<text x="{LEFT}" y="{top - 8}">{title}</text>']
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        value = low + share * (high - low)
        step = first + share * (last - first)
        parts.append(f'<line x1="{LEFT}" x2="{LEFT + WIDTH}" y1="{y(value):.1f}" y2="{y(value):.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{value:.3g}</text>')
        parts.append(f'<text x="{x(step):.1f}" y="{top + HEIGHT + 16}" text-anchor="middle">{step:.0f}</text>')
    for number, (name, colour) in enumerate(curves):
        path = " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in drawn[name])
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        if len(curves) > 1:
            at = LEFT + WIDTH - 130 * (len(curves) - number - 1)
            parts.append(f'<text x="{at}" y="{top - 8}" fill="{colour}" text-anchor="end">{name}</text>')
    return parts


def thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points, or the means of `POINTS` stretches of them."""
    if len(points) <= POINTS:
        return list(points)
    cuts = [len(points) * at // POINTS for at in range(POINTS + 1)]
    return [
        (sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part))
        for part in (points[begin:end] for begin, end in pairwise(cuts))
    ]
