"""Text for people: clipped values, messages, tables."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from weaverant.message import Message


def counted(number: int, what: str) -> str:
    """`1 call`, `1,024 calls`."""
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def clipped(text: str, lines: int, characters: int) -> str:
    """The first lines and characters, and how much was left out."""
    kept = "\n".join(text.split("\n")[:lines])[:characters]
    return kept if len(kept) == len(text) else f"{kept} ... ({len(text) - len(kept):,} more characters)"


def indented(text: str, first: str, rest: str) -> Iterator[str]:
    """The text's lines, each behind its margin."""
    for number, line in enumerate(text.replace("\r\n", "\n").split("\n")):
        yield (rest if number else first) + line


def message_lines(message: Message, lines: int, characters: int) -> Iterator[str]:
    """One message: its role in the margin, its text, its tool calls."""
    margin = f"  {message.role:>9} | "
    rest = " " * 12 + "| "
    if message.reasoning:
        yield from indented(clipped(f"(thinks) {message.reasoning}", lines, characters), margin, rest)
        margin = rest
    text = message.text if isinstance(message.content, str) else _parts(message)
    if text or not message.tool_calls:
        yield from indented(clipped(text, lines, characters), margin, rest)
        margin = rest
    for call in message.tool_calls:
        yield from indented(clipped(f"calls {call.name}({call.arguments})", lines, characters), margin, rest)
        margin = rest


def _parts(message: Message) -> str:
    return "\n".join(
        getattr(part, "text", None) or f"[image {getattr(part, 'url', '')[:60]}]" for part in message.content
    )


def as_text(value: Any) -> str:
    """A value as people read it: a text as it is, data as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=2)


def exact(dollars: float) -> str:
    """US dollars to a hundredth of a cent, or three digits of less."""
    return f"${dollars:,.4f}" if dollars >= 0.001 or not dollars else f"${dollars:.3g}"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Columns as wide as they must be: the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    for row in (heads, *rows):
        first, *others = (
            cell.ljust(width) if number == 0 else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        yield "  ".join(("  " + first, *others)).rstrip()
