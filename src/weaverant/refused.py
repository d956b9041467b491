"""What asyncio offers and a workflow cannot have, since nobody could replay it: each says so, and the way out."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from types import FrameType
from typing import Any, NoReturn

from weaverant.errors import WorkflowError

_STEP = "Put the work in a function and await step(function, ...): it runs once and its result is recorded"
_AWAIT = "Await the coroutine instead"

_REFUSED = {
    "threads or raw I/O ({})": (
        _STEP,
        ("run_in_executor", "call_soon_threadsafe", "add_reader", "add_writer", "sock_recv", "sock_sendall"),
    ),
    "raw I/O ({})": (
        _STEP,
        (
            "create_connection", "create_server", "create_datagram_endpoint", "create_unix_connection",
            "create_unix_server", "subprocess_exec", "subprocess_shell", "connect_read_pipe", "connect_write_pipe",
            "getaddrinfo", "getnameinfo", "add_signal_handler", "sock_accept", "sock_connect", "sock_sendfile",
            "sendfile", "start_tls",
        ),
    ),
    "{}": (_AWAIT, ("run_forever", "run_until_complete")),
}  # fmt: skip
"""By what it is called: the way out, and the methods of an event loop."""


def refuse_all(loop: type) -> None:
    """Make those methods of a workflow's loop raise `WorkflowError`."""
    for called, (way_out, names) in _REFUSED.items():
        for name in names:
            setattr(loop, name, _refusal(called.format(name), way_out))


def _refusal(called: str, way_out: str) -> Callable[..., NoReturn]:
    def refused(*_: Any, **__: Any) -> NoReturn:
        raise WorkflowError(f"a workflow cannot use {called}: it could not be replayed after a crash. {way_out}")

    return refused


def refuse_unordered(frame: FrameType | None, coro: Coroutine[Any, Any, Any]) -> None:
    """`as_completed` puts coroutines into a set, so which of them becomes which branch would be chance."""
    while frame is not None and frame.f_globals.get("__name__") == "asyncio.tasks":
        if frame.f_code.co_name == "as_completed" or "AsCompleted" in frame.f_code.co_qualname:
            coro.close()
            raise WorkflowError(
                "asyncio.as_completed starts coroutines in an order that differs from life to life. "
                "Give it tasks: asyncio.as_completed([asyncio.create_task(c) for c in coroutines])"
            )
        frame = frame.f_back
