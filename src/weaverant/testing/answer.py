"""What a scenario makes of a call."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, TypeAlias

import msgspec

from weaverant.testing.completions import Call
from weaverant.testing.connection import Exchange
from weaverant.testing.stream import Ending

Play: TypeAlias = Callable[[Exchange], Coroutine[Any, Any, None]]


class Answer(msgspec.Struct):
    """What becomes of a call. A `completion` is what the server's work is: it is billed, and sent as JSON or as a
    stream unless there is a `body` to send or something to `play` instead."""

    completion: dict[str, Any] | None = None
    status: int = 200
    headers: dict[str, str] = {}
    body: bytes | None = None
    kind: str = "application/json"
    play: Play | None = None
    ending: Ending = ""


Scenario: TypeAlias = Callable[[Call], Answer]


def error(status: int, text: str, headers: dict[str, str] | None = None) -> Answer:
    body = msgspec.json.encode({"error": {"message": text, "type": "invalid_request_error", "code": None}})
    return Answer(status=status, body=body, headers=headers or {})
