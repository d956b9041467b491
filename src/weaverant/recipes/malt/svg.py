"""Pictures as SVG text: a page that reads in light and in dark, and a few shapes. No library."""

from __future__ import annotations

from collections.abc import Iterable
from xml.sax.saxutils import escape, quoteattr

_LIGHT = {"page": "#ffffff", "ink": "#1f2328", "faint": "#59636e", "rule": "#d1d9e0", "edge": "#8c959f"}
_DARK = {"page": "#0d1117", "ink": "#e6edf3", "faint": "#9198a1", "rule": "#3d444d", "edge": "#6e7681"}

DARK_INK = "#1f2328"
"""On a coloured box, which is light on either page."""

_BAD, _EVEN, _GOOD = (240, 160, 110), (250, 240, 215), (130, 190, 235)
"""Orange to blue, which people who see no red or green tell apart, too; all light enough for dark ink."""


def page(width: float, height: float, title: str, shapes: Iterable[str], dark: bool | None = None) -> str:
    """The whole picture. It follows the reader's choice of light or dark, unless `dark` says which."""
    light, night = _style(_LIGHT), _style(_DARK)
    style = f"{light}@media(prefers-color-scheme:dark){{{night}}}" if dark is None else night if dark else light
    body = "\n".join(shapes)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" '
        f'height="{height:g}" role="img" font-family="system-ui,Helvetica,Arial,sans-serif" font-size="13">\n'
        f"<title>{escape(title)}</title>\n<style>{style}</style>\n"
        f'<rect class="page" width="{width:g}" height="{height:g}"/>\n{body}\n</svg>\n'
    )


def text(x: float, y: float, words: str, kind: str = "ink", anchor: str = "start", **more: str) -> str:
    """A line of text; `kind` is ink, faint, or on (for what stands on a coloured box)."""
    return (
        f'<text x="{x:g}" y="{y:g}" class={quoteattr(kind)} text-anchor="{anchor}"{_more(more)}>{escape(words)}</text>'
    )


def box(x: float, y: float, width: float, height: float, fill: str, **more: str) -> str:
    """A rectangle with slightly round corners."""
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="3" fill="{fill}"{_more(more)}/>'
    )  # fmt: skip


def line(x1: float, y1: float, x2: float, y2: float, kind: str = "rule", **more: str) -> str:
    """A straight line; `kind` is rule, edge or ink."""
    return f'<path d="M{x1:g} {y1:g}L{x2:g} {y2:g}" class="{kind}line"{_more(more)}/>'


def branch(x1: float, y1: float, x2: float, y2: float) -> str:
    """A line from a parent's right side to a child's left side, bent in the middle."""
    middle = (x1 + x2) / 2
    return f'<path d="M{x1:g} {y1:g}C{middle:g} {y1:g} {middle:g} {y2:g} {x2:g} {y2:g}" class="edgeline"/>'


def colour(value: float) -> str:
    """Of a value in 0..1: orange, pale at 0.5, blue."""
    ends, share = ((_BAD, _EVEN), value * 2) if value < 0.5 else ((_EVEN, _GOOD), value * 2 - 1)
    mixed = (round(a + (b - a) * min(1.0, max(0.0, share))) for a, b in zip(*ends, strict=True))
    return "#" + "".join(f"{part:02x}" for part in mixed)


def _style(colours: dict[str, str]) -> str:
    return (
        f".page{{fill:{colours['page']}}}.ink{{fill:{colours['ink']}}}.faint{{fill:{colours['faint']}}}"
        f".on{{fill:{DARK_INK}}}"
        + "".join(f".{kind}line{{stroke:{colours[kind]};fill:none}}" for kind in ("rule", "edge", "ink"))
    )  # fmt: skip


def _more(attributes: dict[str, str]) -> str:
    return "".join(f" {name.replace('_', '-')}={quoteattr(value)}" for name, value in attributes.items())
