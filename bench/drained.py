"""A workflow with a slow call in its middle, and a script that answers it when it is told to: for `peers_drain.py`.

What is asked is written to `asked.PID` in the folder DRAIN_FOLDER. While there is no file `go` there, slow calls wait:
those with an odd seed until there is a file `answer`, the others for ever.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from weaverant import Agent, Reply, Request, workflow
from weaverant.message import assistant
from weaverant.protocols import CallContext

TEXT = "What was said is here for its length, as what agents say is long. " * 8
first, slow, last = (Agent(name, prompt="{{ text }}") for name in ("first", "slow", "last"))


@workflow
async def drained(row):
    said = await first(text=row["question"])
    said = await slow(text=said)
    return {"said": await last(text=said)}


class Gate:
    """What the slow calls of this process wait for."""

    def __init__(self, folder: Path) -> None:
        self.go, self._answer = folder / "go", folder / "answer"
        self.asked = os.open(folder / f"asked.{os.getpid()}", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._open: asyncio.Future[None] | None = None

    async def answered(self) -> None:
        if self._open is None:
            self._open = asyncio.get_running_loop().create_future()
            self._look(self._open)
        await asyncio.shield(self._open)

    def _look(self, opened: asyncio.Future[None]) -> None:
        if self._answer.exists():
            opened.set_result(None)
        else:
            asyncio.get_running_loop().call_later(0.05, self._look, opened)


async def reply(request: Request, ctx: CallContext) -> Reply:
    global gate
    gate = gate or Gate(Path(os.environ["DRAIN_FOLDER"]))
    os.write(gate.asked, f"{ctx.task} {request.agent} {request.seed & 1}\n".encode())
    if request.agent == "slow" and not gate.go.exists():
        await (gate.answered() if request.seed & 1 else asyncio.sleep(3600))
    return Reply(assistant(f"{ctx.task} {request.agent}: {TEXT}"), model="dummy")


gate: Gate | None = None
