"""Whether calls may go out now, in a process whose tasks others take when they do not hear of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class RevocablePermit:
    """See `protocols.Permit`. `may_call` tells what holds now, by a clock and not by a timer: after the process stood
    still no timer of its own has run yet."""

    def __init__(self, may_call: Callable[[], bool]) -> None:
        self._may_call = may_call
        self._again: asyncio.Future[None] | None = None

    def __call__(self) -> bool:
        return self._may_call()

    async def wait(self) -> None:
        while not self._may_call():
            if self._again is None:
                self._again = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._again)

    def go_on(self) -> None:
        """It may be given again: who waits looks."""
        again, self._again = self._again, None
        if again is not None:
            again.set_result(None)
