"""`endpoint:URL#MODEL`: the embeddings of any server that speaks OpenAI's `/v1/embeddings`.

Address, key, client and proxies are those of models over HTTP (`endpoint:https://host/v1?key_env=NAME#MODEL`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import msgspec
import numpy as np
from numpy.typing import NDArray

from weaverant.engines.http.address import find_key, parse
from weaverant.engines.http.chat.wire import shown
from weaverant.engines.http.client.transport import Answer, Lost, acquire, release
from weaverant.errors import StepFailed, UserError
from weaverant.routing.encoders.vectors import Vectors, unit

BATCH = 64
"""Texts to a request."""
TRIES = 4
SECONDS = 60.0
"""Until a request must be answered."""
LONGEST = 256_000_000
"""Bytes of an answer."""


class _Embedding(msgspec.Struct):
    index: int
    embedding: list[float]


class _Embeddings(msgspec.Struct):
    data: list[_Embedding]


class Endpoint:
    """Blocks while the server works: not to be called on an event loop that has other work. `StepFailed` where the
    server gives nothing."""

    def __init__(self, spec: str, dims: int = 0) -> None:
        self._address = parse(spec)
        if not self._address.model:
            raise UserError("which model makes the vectors? Expected endpoint:URL#MODEL; found no #MODEL")
        self._key = find_key(self._address)
        self._dims = dims

    @classmethod
    def fit(cls, rest: str, texts: Sequence[str], seed: int) -> Endpoint:
        made = cls(rest)
        made._dims = made.encode(texts[:1]).shape[1]
        return made

    @classmethod
    def load(cls, rest: str, arrays: Mapping[str, NDArray[np.generic]]) -> Endpoint:
        return cls(rest, int(arrays["dims"][0]))

    @property
    def dims(self) -> int:
        return self._dims

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        return {"dims": np.array([self._dims])}

    def encode(self, texts: Sequence[str]) -> Vectors:
        parts = [texts[start : start + BATCH] for start in range(0, len(texts), BATCH)]
        with ThreadPoolExecutor(1) as thread:  # the caller may be inside an event loop
            found = thread.submit(asyncio.run, self._all(parts)).result()
        return unit(np.concatenate(found)) if found else np.zeros((0, self._dims), dtype=np.float32)

    async def _all(self, parts: Sequence[Sequence[str]]) -> list[Vectors]:
        return [await self._some(part) for part in parts]

    async def _some(self, texts: Sequence[str]) -> Vectors:
        body = msgspec.json.encode({"model": self._address.model, "input": list(texts)})
        for number in range(TRIES):
            last = number == TRIES - 1
            try:
                answer = await self._send(body)
            except Lost as error:
                if last or error.final:
                    raise self._failed(error.kind, shown(str(error).encode(errors="replace"), self._key)) from None
                answer = None
            if answer is not None and answer.status == 200:
                return self._vectors(answer.body, len(texts))
            if answer is not None and (last or (answer.status < 500 and answer.status != 429)):
                kind = "server" if answer.status >= 500 else "rate_limit" if answer.status == 429 else "request"
                raise self._failed(kind, f"status {answer.status}: {shown(answer.body, self._key)}")
            await asyncio.sleep(0.2 * 2**number)
        raise AssertionError("the last try returns or raises")

    async def _send(self, body: bytes) -> Answer:
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "weaverant"}
        if self._key is not None:
            headers["Authorization"] = self._key.bearer()
        client = acquire(self._address.options.client)
        try:
            url = self._address.url("embeddings")
            return await client.send("POST", url, headers, body, seconds=SECONDS, most=LONGEST)
        finally:
            await release(client)

    def _vectors(self, body: bytes, count: int) -> Vectors:
        try:
            data = sorted(msgspec.json.decode(body, type=_Embeddings).data, key=lambda each: each.index)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise self._failed("server", f"an answer that holds no embeddings ({error})") from None
        widths = {len(each.embedding) for each in data}
        if [each.index for each in data] != list(range(count)) or len(widths) != 1:
            raise self._failed(
                "server", f"{len(data)} embeddings of {len(widths)} lengths where {count} were asked for"
            )
        if self._dims not in (0, *widths):
            raise self._failed("server", f"embeddings of {widths.pop()} numbers where the router knows {self._dims}")
        found = np.array([each.embedding for each in data], dtype=np.float32)
        if not np.isfinite(found).all():
            raise self._failed("server", "embeddings that are no finite numbers")
        return found

    def _failed(self, kind: str, text: str) -> StepFailed:
        return StepFailed(kind, f"{self._address.base}/embeddings gave {text}")
