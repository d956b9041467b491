"""The files and batches of one server: `/files` and `/batches` as OpenAI has them, asked until they answer."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import NamedTuple, TypeVar

import msgspec
from msgspec import Struct

from weaverant.engines.http.batch.files import PATH
from weaverant.engines.http.chat import wire
from weaverant.engines.http.client.transport import Answer, Lost
from weaverant.engines.http.endpoint import Endpoint, retry_after
from weaverant.errors import StepFailed

SMALL_S, LARGE_S = 60.0, 1800.0
"""Seconds for one HTTP request: a question, a file."""

LONGEST_WAIT_S = 60.0

PATIENCE_S = 26 * 3600.0
"""Seconds without an answer after which a batch that stands is given up; it has a day to end."""

MOST_FILE = 2_000_000_000
"""Bytes of a file that is fetched."""

OLDEST_S = 31 * 86_400.0
"""OpenAI deletes a batch's files after 30 days, so that an older batch has nothing to give."""

FILE_PAGES = 20
"""Pages of 100 files that are looked through, newest first, for those without a batch. They cost nothing."""

_T = TypeVar("_T")


class Refused(Exception):
    """The server said no for good, or nothing for too long. `status` is 0 where none came; `unsure`: it may have done
    what it was asked, as an answer was lost."""

    def __init__(self, failure: StepFailed, status: int = 0, unsure: bool = False) -> None:
        super().__init__(failure)
        self.failure = failure
        self.status = status
        self.unsure = unsure


class _Setback(NamedTuple):
    """A request that has to be repeated, after `wait` seconds if the server says so, unless it is `final`. `unsure`: it
    may have been done all the same."""

    failure: StepFailed
    status: int = 0
    wait: float | None = None
    final: bool = False
    unsure: bool = False


class Counts(Struct):
    total: int | None = None
    completed: int | None = None
    failed: int | None = None


class Complaint(Struct):
    """Why a batch was refused. `line` counts from 1; None where the whole file is at fault."""

    code: str | None = None
    message: str | None = None
    line: int | None = None


class Complaints(Struct):
    data: list[Complaint] | None = None


class BatchState(Struct):
    """A batch as the server describes it."""

    id: str
    status: str = ""
    input_file_id: str | None = None
    output_file_id: str | None = None
    error_file_id: str | None = None
    errors: Complaints | None = None
    created_at: float | None = None
    request_counts: Counts | None = None
    metadata: dict[str, str] | None = None

    @property
    def outcome(self) -> str:
        """`completed`, `failed`, `expired` or `cancelled`; empty while it goes on."""
        status = self.status.lower()
        return status if status in ("completed", "failed", "expired", "cancelled") else ""

    @property
    def complaints(self) -> list[Complaint]:
        return (self.errors.data if self.errors is not None else None) or []

    @property
    def marks(self) -> dict[str, str]:
        return self.metadata or {}


class FileState(Struct):
    id: str
    filename: str = ""
    created_at: float | None = None


_Listed = TypeVar("_Listed", BatchState, FileState)


class _Batches(Struct):
    data: list[BatchState]
    has_more: bool | None = None


class _Files(Struct):
    data: list[FileState]
    has_more: bool | None = None


class BatchApi:
    """Every method waits out what passes (a dropped connection, 5xx, 429 and its Retry-After), then raises `Refused`.

    Until a batch stands it is patient for the address's `timeout`, or for `retries` further requests where the server
    has never answered; after that for longer than a batch may take.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._answered = False
        self.trouble = ""
        """Why the last request has to be repeated; empty where all is well."""

    async def upload(self, content_type: str, body: bytes) -> str:
        """The file's id."""
        file = await self._ask("POST", "files", _read(FileState), body=body, content_type=content_type, seconds=LARGE_S)
        return file.id

    async def create(self, file: str, metadata: dict[str, str]) -> BatchState:
        """A batch of the file. Where an answer was lost the list is asked first: two would be paid twice."""
        asked = {"input_file_id": file, "endpoint": PATH, "completion_window": "24h", "metadata": metadata}

        async def stands() -> BatchState | None:
            return next((batch for batch in await self.batches() if batch.input_file_id == file), None)

        return await self._ask("POST", "batches", _read(BatchState), body=msgspec.json.encode(asked), stands=stands)

    async def retrieve(self, batch: str) -> BatchState:
        return await self._ask("GET", f"batches/{batch}", _read(BatchState), patience=PATIENCE_S)

    async def content(self, file: str) -> bytes:
        def whole(answer: Answer) -> bytes:
            if answer.too_large:
                raise Refused(StepFailed("server", f"the file {file} has more than {MOST_FILE:,} bytes"), answer.status)
            return answer.body

        path = f"files/{file}/content"
        return await self._ask("GET", path, whole, seconds=LARGE_S, most=MOST_FILE, patience=PATIENCE_S)

    async def delete(self, file: str) -> None:
        try:
            await self._ask("DELETE", f"files/{file}", lambda answer: None)
        except Refused as refused:
            if not 400 <= refused.status < 500:
                raise

    async def batches(self) -> list[BatchState]:
        """The newest first, none older than its files."""
        found: list[BatchState] = []
        while True:
            page = await self._ask("GET", "batches", _read(_Batches), query=_after("limit=100", found))
            found += page.data
            if not page.has_more or not page.data or seconds_since(page.data[-1].created_at) > OLDEST_S:
                return found

    async def files(self) -> list[FileState]:
        """Uploaded for batches, the newest first; none where the server lists no files."""
        found: list[FileState] = []
        for _ in range(FILE_PAGES):
            try:
                page = await self._ask("GET", "files", _read(_Files), query=_after("limit=100&purpose=batch", found))
            except Refused as refused:
                if 400 <= refused.status < 500:
                    return found
                raise
            found += page.data
            if not page.has_more or not page.data or seconds_since(page.data[-1].created_at) > OLDEST_S:
                break
        return found

    async def _ask(
        self,
        method: str,
        path: str,
        read: Callable[[Answer], _T],
        *,
        query: str = "",
        body: bytes = b"",
        content_type: str = "application/json",
        seconds: float = SMALL_S,
        most: int = 64_000_000,
        patience: float = 0.0,
        stands: Callable[[], Awaitable[_T | None]] | None = None,
    ) -> _T:
        """What `read` makes of the answer; `stands`, asked before each repetition, may know that it is not needed.
        Where there is no `stands` it matters nothing how often it is done."""
        began = time.monotonic()
        tries = 0
        while True:
            tries += 1
            sent = self._endpoint.send(
                method, path, query=query, body=body, content_type=content_type, seconds=seconds, most=most
            )
            found = await self._once(sent, read)
            if not isinstance(found, _Setback):
                self.trouble = ""
                return found
            failure = found.failure
            failure.text = f"{method} {self._endpoint.name}/{path}: {failure.text}"
            wait = self._wait(tries) if found.wait is None else found.wait
            waited = time.monotonic() - began
            if found.final or self._spent(tries, waited + wait, patience):
                failure.text += f"; tried {tries} times in {waited:.0f} s" if tries > 1 else ""
                raise Refused(failure, found.status, found.unsure and stands is not None)
            self.trouble = failure.text
            await asyncio.sleep(wait)
            try:
                if stands is not None and (known := await stands()) is not None:
                    return known
            except Refused as refused:
                refused.unsure = found.unsure
                raise

    async def _once(self, sent: Awaitable[Answer], read: Callable[[Answer], _T]) -> _T | _Setback:
        try:
            answer = await sent
        except Lost as lost:
            return _Setback(StepFailed(lost.kind, self._endpoint.shown(lost.text)), 0, None, lost.final, lost.sent)
        self._answered = True
        status = answer.status
        if not 200 <= status < 300:
            wait = retry_after(answer.headers)
            final = status < 500 and status not in (408, 429)
            failure = wire.failure(status, answer.body, self._endpoint.key)
            return _Setback(failure, status, wait, final, status >= 500)
        try:
            return read(answer)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            return _Setback(StepFailed("server", f"the answer is not as expected: {error}"), status, unsure=True)

    def _wait(self, tries: int) -> float:
        longest = min(LONGEST_WAIT_S, self._endpoint.address.options.backoff * 2.0 ** min(tries - 1, 20))
        return random.uniform(longest / 2, longest)

    def _spent(self, tries: int, waited: float, patience: float) -> bool:
        options = self._endpoint.address.options
        if not self._answered:
            return tries > options.retries
        return waited > (patience or options.timeout)


def _read(kind: type[_T]) -> Callable[[Answer], _T]:
    return lambda answer: msgspec.json.decode(answer.body, type=kind)


def _after(query: str, found: list[BatchState] | list[FileState]) -> str:
    return f"{query}&after={found[-1].id}" if found else query


def seconds_since(created: float | None) -> float:
    """By our clock; 0 where the server does not say. Some servers count milliseconds."""
    now = time.time()
    return max(0.0, now - (created / 1000 if created > 1e11 else created)) if created else 0.0
