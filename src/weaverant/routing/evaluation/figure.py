"""`reliability.svg`, what was told against what was found, and `cost.svg`, accuracy for money. They follow the
reader's choice of light or dark."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from html import escape
from math import ceil, floor, log10, sqrt

from weaverant.routing.evaluation.calibration import Calibration
from weaverant.routing.evaluation.judge import Evaluation, Priced

SIDE, LEFT, TOP, RIGHT, BOTTOM = 320, 64, 52, 220, 52
"""Pixels of a panel, and of the margins around it."""
ROUTER, SINGLE, PLAIN = "#3b7dd8", "#c8553d", "#7d8590"
"""Each stands out from either page."""
_STYLE = (
    "<style>.page{fill:#fff}text{fill:#1f2328}.rule{stroke:#d1d9e0}.faint{stroke:#8c959f;fill:none}"
    "@media(prefers-color-scheme:dark){.page{fill:#0d1117}text{fill:#e6edf3}.rule{stroke:#3d444d}"
    ".faint{stroke:#6e7681}}</style>"
)


def reliability(answers: Calibration, choices: Calibration) -> str:
    """Two panels: all answers, and the chosen ones. A dot's area is its share of the predictions."""
    width = 2 * (LEFT + SIDE) + 24
    return _page(width, [*_reliable(answers, "all answers", 0), *_reliable(choices, "chosen answers", SIDE + LEFT)])


def money(found: Evaluation, priced: Priced) -> str:
    """The curve, each model, and blind mixing of the cheapest and the best single one."""
    return _page(LEFT + SIDE + RIGHT, _priced(found, priced))


def _page(width: int, shapes: Iterable[str]) -> str:
    height = TOP + SIDE + BOTTOM
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
            'font-family="system-ui,Helvetica,Arial,sans-serif" font-size="12">',
            _STYLE,
            '<rect class="page" width="100%" height="100%"/>',
            *shapes,
            "</svg>\n",
        ]
    )


def _reliable(found: Calibration, title: str, shift: int) -> Iterator[str]:
    left = LEFT + shift
    yield _text(left, TOP - 26, title, weight="600")
    yield _text(left, TOP - 10, f"expected calibration error {found.ece:.3f}")
    marks = [(at, f"{at:g}") for at in (0, 0.25, 0.5, 0.75, 1.0)]
    yield from _grid(left, marks, marks)
    yield _text(left + SIDE / 2, TOP + SIDE + 36, "across: told; up: found", anchor="middle")
    yield _line([(left, TOP + SIDE), (left + SIDE, TOP)], "faint", dashed=True)
    total = sum(one.count for one in found.bins)
    path = [(left + one.told * SIDE, TOP + (1 - one.found) * SIDE) for one in found.bins]
    yield f'<polyline points="{_points(path)}" fill="none" stroke="{ROUTER}" stroke-width="1.5"/>'
    for one, (x, y) in zip(found.bins, path, strict=True):
        words = f"told {one.told:.3f}, found {one.found:.3f}, {one.count:,} answers"
        yield _dot(x, y, 2 + 16 * sqrt(one.count / total), ROUTER, words, opacity=0.55)


def _priced(found: Evaluation, priced: Priced) -> Iterator[str]:
    accuracy = found.line("router").accuracy
    oracle = found.line("oracle").accuracy.value
    dear = max(point.cost for point in (*priced.models.values(), *priced.curve)) or 1.0
    known = [point.score for point in (*priced.models.values(), *priced.curve)]
    low, high = min([*known, accuracy.low]), max([*known, oracle, accuracy.high])
    step = _step(high - low or 0.1)
    low, high = step * floor(low / step), step * ceil(high / step)
    apart = _step(dear)

    def at(cost: float, score: float) -> tuple[float, float]:
        return LEFT + cost / dear * SIDE, TOP + (high - score) / (high - low) * SIDE

    yield _text(LEFT, TOP - 26, "right answers (%) for money", weight="600")
    if priced.area is not None:
        yield _text(LEFT, TOP - 10, f"area {priced.area.value:.3f}; blind mixing has 0.5")
    across = [(n * apart / dear, f"{1000 * n * apart:.3g}") for n in range(int(dear / apart + 1e-9) + 1)]
    rungs = round((high - low) / step)
    yield from _grid(LEFT, across, [(n / rungs, f"{100 * (low + n * step):.3g}") for n in range(rungs + 1)])
    yield _text(LEFT + SIDE / 2, TOP + SIDE + 36, "dollars per 1,000 queries", anchor="middle")
    yield _line([at(0, oracle), at(dear, oracle)], "faint", dashed=True)
    yield _text(LEFT + SIDE + 6, at(0, oracle)[1] + 4, "oracle")
    ends = [priced.models[name] for name in (priced.cheapest, priced.single)]
    yield _line([at(point.cost, point.score) for point in ends], "faint", dashed=True)
    curve = _points(at(point.cost, point.score) for point in sorted(priced.curve, key=lambda point: point.cost))
    yield f'<polyline points="{curve}" fill="none" stroke="{ROUTER}" stroke-width="2"/>'
    beside: list[tuple[float, str]] = []
    for name, point in priced.models.items():
        x, y = at(point.cost, point.score)
        yield _dot(x, y, 4, SINGLE if name == priced.single else PLAIN, name)
        beside.append((y, f"{name} {100 * point.score:.1f}"))
    x, y = at(priced.curve[-1].cost, priced.curve[-1].score)
    yield _dot(x, y, 5, ROUTER, "router, likeliest choices")
    beside.append((y, f"router {100 * priced.curve[-1].score:.1f}"))
    yield from _names(sorted(beside), at(0, oracle)[1])


def _names(beside: list[tuple[float, str]], taken: float) -> Iterator[str]:
    """At the right, each as near to its height as the one above it lets it."""
    lowest = taken
    for y, words in beside:
        lowest = max(y, lowest + 14)
        yield _text(LEFT + SIDE + 6, lowest + 4, words if len(words) <= 28 else words[:13] + "…" + words[-14:])


def _step(span: float) -> float:
    """A round number that goes into it some four to eight times."""
    ten = 10 ** floor(log10(span / 4))
    return max(ten * n for n in (1, 2, 5) if 4 * ten * n <= span * (1 + 1e-9))


def _grid(left: int, across: list[tuple[float, str]], up: list[tuple[float, str]]) -> Iterator[str]:
    """Marks, each at its share of the side."""
    for share, words in up:
        y = TOP + (1 - share) * SIDE
        yield f'<line class="rule" x1="{left}" x2="{left + SIDE}" y1="{y:g}" y2="{y:g}"/>'
        yield _text(left - 6, y + 4, words, anchor="end")
    for share, words in across:
        yield _text(left + share * SIDE, TOP + SIDE + 16, words, anchor="middle")


def _text(x: float, y: float, words: str, anchor: str = "start", weight: str = "400") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}">{escape(words)}</text>'


def _dot(x: float, y: float, radius: float, fill: str, words: str, opacity: float = 1.0) -> str:
    return (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}" fill="{fill}" fill-opacity="{opacity:g}">'
        f"<title>{escape(words)}</title></circle>"
    )


def _line(path: list[tuple[float, float]], kind: str, *, dashed: bool) -> str:
    dashes = ' stroke-dasharray="4 4"' if dashed else ""
    return f'<polyline class="{kind}" points="{_points(path)}"{dashes}/>'


def _points(path: Iterable[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in path)
