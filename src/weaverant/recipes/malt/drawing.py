"""A picture of one question's tree: attempts, critiques, refinements, each coloured by its value, texts shortened."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from weaverant.recipes.malt.svg import box, branch, colour, line, page, text
from weaverant.recipes.malt.tree import Refinement, Tree

MARGIN, GAP = 16, 46
WIDTHS = (260, 270, 300)
"""Of attempts, critiques, refinements, in pixels."""
LEAF, BETWEEN = 22, 4
TOP = 96
CHARACTER = 6.65
"""Pixels a character takes in the boxes, at most, with a fixed-width font of 11."""
BOLD = 8.6
"""The same for the marks."""
LINE = 14
FONT = "ui-monospace,SFMono-Regular,Menlo,Consolas,monospace"
HEADS = ("generator", "verifier", "refiner")


class Node(NamedTuple):
    """A reply where it is drawn. `words` stand in the box, `mark` at its right end."""

    words: str
    value: float
    mark: str
    children: list[Node]

    @property
    def leaves(self) -> int:
        return sum(child.leaves for child in self.children) or 1


def drawn(tree: Tree, dark: bool | None = None) -> str:
    """The tree as SVG. The more of the leaves under a reply are right, the bluer it is; the number says it, too."""
    nodes = _nodes(tree)
    rows = sum(node.leaves for node in nodes)
    height = TOP + rows * (LEAF + BETWEEN) + MARGIN
    width = 2 * MARGIN + sum(WIDTHS) + 2 * GAP
    return page(width, height, f"The tree over: {tree['question']}", _shapes(tree, nodes, width), dark)


def _nodes(tree: Tree) -> list[Node]:
    return [
        Node(
            attempt["text"],
            attempt["value"],
            f"{attempt['value']:.2f}",
            [
                Node(
                    critique["text"],
                    critique["value"],
                    f"{critique['value']:.2f}",
                    [Node(leaf["text"], leaf["value"], _mark(leaf), []) for leaf in critique["refinements"]],
                )
                for critique in attempt["critiques"]
            ],
        )
        for attempt in tree["attempts"]
    ]


def _mark(leaf: Refinement) -> str:
    """The answer that was read, and whether it is right."""
    said = "" if leaf["answer"] is None else shortened(leaf["answer"], 12) + " "
    return said + ("✓" if leaf["value"] else "✗")


def _shapes(tree: Tree, nodes: Sequence[Node], width: float) -> Iterator[str]:
    room = int((width - 2 * MARGIN) / (CHARACTER * 1.25))
    for number, words in enumerate(folded(tree["question"], room, 2)):
        yield text(MARGIN, 28 + 18 * number, words, font_size="15", font_weight="600")
    lines = min(2, -(-len(tree["question"]) // room))
    yield text(MARGIN, 28 + 18 * lines, f"gold answer: {shortened(tree['gold'], 80)}", "faint")
    right = width - MARGIN
    for number in range(5):
        yield box(right - 72 + 12 * number, 52, 12, 12, colour(number / 4))
    yield text(right - 78, 62, "value 0", "faint", "end")
    yield text(right, 62, "1", "faint", "end")
    left = MARGIN
    for head, wide in zip(HEADS, WIDTHS, strict=True):
        yield text(left, TOP - 10, head, "faint", font_weight="600")
        left += wide + GAP
    yield line(MARGIN, TOP - 4, right, TOP - 4)
    yield from _column(nodes, 0, MARGIN, TOP + BETWEEN, None)


def _column(
    nodes: Sequence[Node], level: int, left: float, top: float, parent: tuple[float, float] | None
) -> Iterator[str]:
    """The nodes under one parent from `top` on, and all under them; a branch from the parent to each."""
    for node in nodes:
        height = node.leaves * (LEAF + BETWEEN) - BETWEEN
        middle = top + height / 2
        if parent is not None:
            yield branch(*parent, left, middle)
        yield from _box(node, left, top, WIDTHS[min(level, 2)], height)
        if node.children:
            start = (left + WIDTHS[level], middle)
            yield from _column(node.children, level + 1, left + WIDTHS[level] + GAP, top, start)
        top += height + BETWEEN


def _box(node: Node, left: float, top: float, width: float, height: float) -> Iterator[str]:
    """As high as its leaves; the words as many lines as fit, the value at the right."""
    yield box(left, top, width, height, colour(node.value))
    room = int((width - 24 - BOLD * len(node.mark)) / CHARACTER)
    lines = folded(node.words, room, max(1, int((height - 4) // LINE)))
    first = top + height / 2 - LINE * (len(lines) - 1) / 2 + 4
    for number, words in enumerate(lines):
        yield text(left + 8, first + LINE * number, words, "on", font_family=FONT, font_size="11")
    yield text(left + width - 8, top + height / 2 + 4, node.mark, "on", "end", font_size="12", font_weight="700")


def folded(words: str, room: int, lines: int) -> list[str]:
    """The text in at most so many lines of so many characters, broken at blanks where it can be; what is too much
    ends with an ellipsis."""
    left = " ".join(words.split())
    found: list[str] = []
    while left and len(found) < lines - 1 and len(left) > room:
        cut = left.rfind(" ", 1, room + 1)
        cut = room if cut < room // 3 else cut
        found.append(left[:cut])
        left = left[cut:].lstrip()
    return [*found, shortened(left, room)]


def shortened(words: str, room: int) -> str:
    """The text in so many characters."""
    return words if len(words) <= room else words[: max(0, room - 1)].rstrip(" .,;") + "…"
