"""A hosted model through its batch API (`?batch=SECONDS`): half the price, within a day, in the same run as live ones.

Calls are gathered for that many seconds from the first one waiting, at most `Limits` of them, and sent as one
batch. The runtime holds a call in flight until its batch ends, so `--concurrency` bounds how large a batch can get.
Files are never deleted after a batch: a kill before the journal is written must find them.
"""

from __future__ import annotations

from weaverant.engines.http.address import Address
from weaverant.engines.http.batch.calls import Call, custom_id
from weaverant.engines.http.batch.session import RunBatches
from weaverant.engines.http.batch.waiting import OPENAI, Limits
from weaverant.engines.http.endpoint import Endpoint
from weaverant.errors import UserError
from weaverant.message import Reply, Request
from weaverant.protocols import CallContext

SHARE = 0.5
"""What a request in a batch costs of the live price, where no preset says."""


class Batched:
    """See `Engine`. Nothing but the server remembers a batch; a resumed run finds its own in the server's list."""

    claims = True
    """See `Claiming`."""

    def __init__(self, address: Address, limits: Limits = OPENAI) -> None:
        preset = address.preset
        if preset.name and not preset.batch:
            raise UserError(
                f"{preset.name!r} has no batch API of OpenAI's kind; ask its models live, without the option batch"
            )
        self._endpoint = Endpoint(address)
        self._share = preset.batch or SHARE
        self._limits = limits
        self._runs: dict[str, RunBatches] = {}
        self.identity = f"http:{address.options.name or self._endpoint.model}"

    async def generate(self, request: Request, ctx: CallContext) -> Reply:
        body = self._endpoint.body(request)
        call = Call(custom_id(request, body, ctx), request, len(body), ctx, self.worst(request) or 0.0)
        run = self._runs.get(ctx.run)
        if run is None or run.forsaken():
            run = self._runs[ctx.run] = RunBatches(self._endpoint, ctx.run, self._share, self._limits)
        return await run.reply(call)

    def unbounded(self, request: Request) -> str:
        return self._endpoint.unbounded(request)

    def worst(self, request: Request) -> float | None:
        worst = self._endpoint.worst(request)
        return None if worst is None else worst * self._share

    def status(self) -> list[str]:
        return [line for run in self._runs.values() for line in run.status()]

    async def close(self) -> None:
        """Calls in flight fail; their batches go on at the server. A later call opens it again."""
        runs, self._runs = self._runs, {}
        for run in runs.values():
            await run.close()
        await self._endpoint.close()
