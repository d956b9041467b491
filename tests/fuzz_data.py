"""Random data for the fuzzers: plain values with odd texts in them, and bytes that are spoilt."""

from __future__ import annotations

from random import Random
from typing import Any

ODD_TEXTS = (
    *("", " ", "\0", "\n", "\r\n", "a\tb", '"', "\\", "'", "{", "[", "]", "}", ":", ",", "null", "NaN", "{{ x }}"),
    *("\x1b[2J", "\x9b31m", "\u2028", "é", "€", "😀", "a\u0301", "\ufeff", "\ufffe", "../../x", "x" * 300, "1e999"),
)
ODD_NUMBERS = (0, -1, 1, 2**31, 2**53 + 1, 2**63 - 1, -(2**63), 2**64 - 1, 0.0, -0.0, 1e308, 5e-324, 0.1, 1.5)
TOKENS = (
    *(b"\0", b"\xff", b"\xf5wvj", b"\xf5end", b"\x89WVJ", b'"', b"{", b"[", b"]", b"}", b",", b":", b"\n", b"\r\n"),
    *(b"\xef\xbb\xbf", b"\\u0000", b"\\ud800", b"1e999", b"NaN", b"null", b"-", b"data: ", b"\x28\xb5\x2f\xfd"),
)


def text(odds: Random) -> str:
    if odds.random() < 0.5:
        return odds.choice(ODD_TEXTS)
    return "".join(odds.choice("abcdefgh 0123456789.,-_") for _ in range(odds.choice((1, 5, 20, 60))))


def value(odds: Random, depth: int = 3) -> Any:
    """What JSON and the journal can hold."""
    kind = odds.randrange(8 if depth else 5)
    if kind >= 5:
        many = range(odds.choice((0, 1, 2, 4)))
        if kind == 5:
            return [value(odds, depth - 1) for _ in many]
        return {text(odds): value(odds, depth - 1) for _ in many}
    return (text(odds), odds.choice(ODD_NUMBERS), odds.randrange(-1000, 1000), odds.choice((True, False)), None)[kind]


def row(odds: Random) -> dict[str, Any]:
    return {text(odds): value(odds, 2) for _ in range(odds.randrange(4))}


def spoilt(data: bytes, odds: Random, times: tuple[int, ...] = (1, 1, 2, 4)) -> bytes:
    """With bits turned, bytes put in, taken out, doubled or moved, or the end cut off."""
    found = bytearray(data)
    for _ in range(odds.choice(times)):
        at = odds.randrange(len(found) + 1)
        to = min(len(found), at + odds.choice((1, 1, 2, 8, 100)))
        match odds.randrange(6):
            case 0 if at < len(found):
                found[at] ^= 1 << odds.randrange(8)
            case 1:
                found[at:at] = odds.choice(TOKENS) * odds.choice((1, 1, 1, 50))
            case 2:
                del found[at:to]
            case 3:
                found[to:to] = found[at:to]
            case 4:
                elsewhere = odds.randrange(len(found) + 1)
                found[elsewhere:elsewhere] = found[at:to]
            case _:
                if odds.random() < 0.3:
                    del found[at:]
    return bytes(found)


def cut_up(data: bytes, odds: Random) -> list[bytes]:
    """The same bytes in pieces of any size."""
    pieces: list[bytes] = []
    most, at = odds.choice((1, 3, 40, 1000)), 0
    while at < len(data):
        size = odds.randint(1, most)
        pieces.append(data[at : at + size])
        at += size
    return pieces
