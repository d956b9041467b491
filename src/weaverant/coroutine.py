"""What gives a coroutine and is not written with `async`: marked, so that frameworks which look for that await it.

`asyncio.iscoroutinefunction` sees the mark. `inspect.iscoroutinefunction` does from Python 3.12 on; on 3.11 it looks at
nothing but the code of a function.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])

_MARK = "_is_coroutine"
"""The attribute that asyncio looks at, and the name of the object there that it has to be."""


def gives_coroutine(function: Function) -> Function:
    """Mark the function, or the class whose instances are called. A call costs what it did."""
    mark: Callable[[Any], Any] | None = getattr(inspect, "markcoroutinefunction", None)  # from 3.12 on
    if mark is not None:
        mark(function)
    else:
        setattr(function, _MARK, getattr(asyncio.coroutines, _MARK))
    return function
