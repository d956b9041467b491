"""Replicas of one model behind one name: an engine that picks, retries and keeps to the limits."""

from __future__ import annotations

import asyncio
import random
import resource
import time
from collections.abc import Sequence

import msgspec

from weaverant.engines.http.address import parse
from weaverant.engines.http.attempt import Trouble
from weaverant.engines.http.endpoint import Endpoint
from weaverant.errors import StepFailed
from weaverant.message import Reply, Request, Usage
from weaverant.protocols import CallContext

FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 30.0


class Pool:
    """An engine over the replicas at these addresses. What each may do stands in its address, see `Options`."""

    def __init__(self, addresses: Sequence[str]) -> None:
        self._replicas = [Endpoint(parse(address)) for address in addresses]
        self._options = self._replicas[0].address.options
        self._places = asyncio.Semaphore(self._options.connections or _half_of_the_files())

    @classmethod
    def open(cls, spec: str) -> Pool:
        return cls([spec])

    @property
    def identity(self) -> str:
        return f"http:{self._replicas[0].model}"

    async def generate(self, request: Request, ctx: CallContext) -> Reply:
        replica = self._replicas[0]
        left = self._options.timeout
        attempt = 0
        while True:
            attempt += 1
            async with self._places:
                began = time.monotonic()
                outcome, _ = await replica.attempt(request, left)
                left -= time.monotonic() - began
            if isinstance(outcome, Reply):
                usage = msgspec.structs.replace(outcome.usage, requests=attempt)
                return msgspec.structs.replace(outcome, usage=usage)
            wait = _wait(attempt, outcome.retry_after)
            if not outcome.again or attempt > self._options.retries or wait >= left:
                raise self._final(outcome, attempt, wait)
            await asyncio.sleep(wait)
            left -= wait

    async def close(self) -> None:
        for replica in self._replicas:
            await replica.close()

    def _final(self, trouble: Trouble, attempts: int, wait: float) -> StepFailed:
        failure = trouble.failure
        text = failure.text
        if attempts > 1:
            text += f"; tried {attempts} times"
        if trouble.again and attempts <= self._options.retries:
            text += f"; the next try, in {wait:.1f} s, would come after the call's {self._options.timeout:g} s"
        detail = {"requests": attempts, "status": trouble.status}
        return StepFailed(failure.kind, text, detail, Usage(requests=attempts))


def _half_of_the_files() -> int:
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 65_536 if limit == resource.RLIM_INFINITY else max(16, limit // 2)


def _wait(attempt: int, retry_after: float | None) -> float:
    """Seconds until the next try. The chance in it keeps calls that failed together from coming back together."""
    if retry_after is not None:
        return retry_after + random.uniform(0, 0.1 * retry_after + 0.05)
    longest = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0 ** (attempt - 1))
    return random.uniform(longest / 2, longest)
