"""Reads the usual answer at a glance: status 200, of a stated length, not compressed, all of it come in one piece.

Any other is the parser's (`reader.py`), and so is one whose head is not written in the one plain way: of what is odd
two readers might make two things. A test compares both on thousands of answers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from weaverant.engines.http.client.transport import MOST_HEAD, Answer

_LINES = rb"""(?:
    (?: [ABD-OQ-SV-Zabd-oq-sv-z][0-9A-Za-z-]*
      | [Cc](?: ontent-[Tt]ype | ache-[Cc]ontrol | onnection(?=:\ [Kk]eep-[Aa]live\r) ) )
    :\  [!-~\x80-\xff] [ -~\x80-\xff]* \r\n
)*"""
"""Headers that say nothing of where the body ends, how it is coded, and whether the connection stays: the names of
those that do begin with C, P, T or U."""

_USUAL = re.compile(
    rb"HTTP/1\.1\ 200\ [ -~]*\r\n" + _LINES + rb"[Cc]ontent-[Ll]ength:\ ([0-9]{1,9})\r\n" + _LINES + rb"\r\n",
    re.VERBOSE,
)


class Headers(Mapping[str, str]):
    """Those of a plain head, which are taken apart when somebody asks for one: of most answers nobody does."""

    __slots__ = ("_head", "_known")

    def __init__(self, head: bytes) -> None:
        self._head = head
        self._known: dict[str, str] | None = None

    def get(self, key: str, default: Any = None) -> Any:
        return self._all().get(key, default)

    def __getitem__(self, key: str) -> str:
        return self._all()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())

    def _all(self) -> dict[str, str]:
        if self._known is None:
            lines = self._head.decode("latin-1").split("\r\n")[1:-2]
            pairs = (line.partition(": ") for line in lines)
            self._known = {name.lower(): value for name, _, value in pairs}
        return self._known


def read_whole(data: memoryview, most: int) -> Answer | None:
    """The answer that these bytes are, neither more nor less; None where they are not or may not be the usual one."""
    found = _USUAL.match(data)
    if found is None:
        return None
    end, length = found.end(), int(found[1])
    if end > MOST_HEAD or length > most or end + length != len(data):
        return None
    return Answer(200, Headers(found[0]), data[end:].tobytes())
