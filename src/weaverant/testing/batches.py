"""The test server's /v1/files and /v1/batches.

A batch takes `seconds`, its lines evenly done over that time; each line is answered as a live call with its body would
be, and billed at half the price. `control` changes how the next batches and requests go, `stats` tells what was asked.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Iterable
from email import message_from_bytes
from time import time
from typing import Any
from urllib.parse import parse_qs
from urllib.request import Request, urlopen

import msgspec
from msgspec import Struct

from weaverant.testing.batch_jobs import ENDED, ENDPOINT, Batch, File, Line, parsed
from weaverant.testing.connection import Exchange, Route

Answer = Callable[[Exchange, bytes, float], tuple[int, bytes]]
"""The status and body that a call with that body would get, billed at that share of the price."""

SHARE = 0.5


class Settings(Struct, forbid_unknown_fields=True):
    """`fates` and `troubles` are used up from the front, one a batch and one a request; then all goes well."""

    seconds: float = 0.2
    """From a batch's creation to its end."""
    delay: float = 0.0
    """Seconds before a request is worked on, and again before it is answered: moments to be killed in."""
    fates: list[str] = []
    """`expired`, `cancelled`: every second line is not done, as the error file says; with `bare-` before, no file says
    so. `missing`: it completes, with no word of every third line. `failed`: refused for its second line. `refused`:
    as a whole. `status-0`: every line's status is 0. `completed`."""
    troubles: dict[str, list[str]] = {}
    """By route (`POST /batches`): a status; `reset`: closed unread; `lost`: worked on, and closed without an answer."""
    most_lines: int = 0
    """Lines in batches under way beyond which a new one fails with `token_limit_exceeded`; 0: any."""
    metadata: bool = True
    """Whether it keeps the metadata of batches."""


class Batches:
    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._settings = Settings()
        self._files: dict[str, File] = {}
        self._batches: dict[str, Batch] = {}
        self._requests: Counter[str] = Counter()
        self._lines: Counter[str] = Counter()
        self._working: set[asyncio.Task[None]] = set()
        self._count = 0

    def routes(self) -> dict[str, Route]:
        """By the beginning of a path."""
        control: dict[str, Route] = {"/batch-control": self._control, "/batch-stats": self._stats}
        return {**control, "/v1/files": self._start, "/v1/batches": self._start}

    def _start(self, exchange: Exchange) -> None:
        task = asyncio.get_running_loop().create_task(self._troubled(exchange))
        self._working.add(task)
        task.add_done_callback(self._working.discard)

    async def _troubled(self, exchange: Exchange) -> None:
        kind, *rest = exchange.path.removeprefix("/v1/").split("/")
        route = "/".join((f"{exchange.method} /{kind}", *("{id}" for _ in rest[:1]), *rest[1:]))
        self._requests[route] += 1
        await asyncio.sleep(self._settings.delay)
        if exchange.left:
            return
        troubles = self._settings.troubles.get(route)
        trouble = troubles.pop(0) if troubles else ""
        if trouble.isdecimal():
            error = {"error": {"message": f"a {trouble} on purpose", "code": None}}
            exchange.reply(int(trouble), msgspec.json.encode(error), {"Retry-After": "0.2"})
            return
        status, answer = (0, b"") if trouble == "reset" else self._respond(exchange, route, rest[0] if rest else "")
        await asyncio.sleep(self._settings.delay)
        if trouble:
            exchange.connection.abort()
        else:
            exchange.reply(status, answer)

    def _respond(self, exchange: Exchange, route: str, named: str) -> tuple[int, bytes]:
        query = {name: values[0] for name, values in parse_qs(exchange.query).items()}
        file, batch = self._files.get(named), self._batches.get(named)
        for each in self._batches.values():
            each.advance(self._settings.seconds)
        match route:
            case "POST /files":
                return self._upload(exchange)
            case "GET /files":
                files = [file for file in self._files.values() if query.get("purpose") in (None, file.purpose)]
                return _page((file.shown() for file in files), query, 10_000)
            case "GET /files/{id}/content" if file:
                return 200, file.content
            case "DELETE /files/{id}" if file:
                del self._files[file.id]
                return _json({"id": file.id, "object": "file", "deleted": True})
            case "POST /batches":
                return self._create(exchange)
            case "GET /batches":
                return _page((batch.shown() for batch in self._batches.values()), query, 100)
            case "GET /batches/{id}" if batch:
                return _json(batch.shown())
            case "POST /batches/{id}/cancel" if batch:
                if batch.status not in ENDED:
                    batch.fate = "cancelled"
                    batch.finish()
                return _json(batch.shown())
            case _:
                return _refused(f"No such object: {named!r}", 404)

    def _upload(self, exchange: Exchange) -> tuple[int, bytes]:
        form = message_from_bytes(
            b"Content-Type: " + exchange.headers["content-type"].encode() + b"\n\n" + exchange.body
        )
        parts = {part.get_param("name", header="content-disposition"): part for part in form.walk()}
        sent, purpose = parts.get("file"), parts.get("purpose")
        name = sent.get_filename() if sent is not None else None
        if sent is None or purpose is None or not name or not name.endswith(".jsonl"):
            return _refused("Invalid file format for Batch API. Must be .jsonl")
        content, why = sent.get_payload(decode=True), purpose.get_payload(decode=True)
        assert isinstance(content, bytes) and isinstance(why, bytes)
        return _json(self._keep(name, content, why.decode()).shown())

    def _keep(self, name: str, content: bytes, purpose: str) -> File:
        self._count += 1
        file = File(f"file-{self._count}", name, purpose, content, int(time()))
        self._files[file.id] = file
        return file

    def _create(self, exchange: Exchange) -> tuple[int, bytes]:
        asked = parsed(exchange.body) or {}
        file = self._files.get(asked.get("input_file_id", ""))
        metadata = msgspec.convert(asked.get("metadata") or {}, dict[str, str])
        if file is None or file.purpose != "batch":
            return _refused(f"Invalid input file: {asked.get('input_file_id')!r}")
        if asked.get("endpoint") != ENDPOINT or asked.get("completion_window") != "24h":
            return _refused("Invalid endpoint or completion window")
        if len(metadata) > 16 or any(len(key) > 64 or len(value) > 512 for key, value in metadata.items()):
            return _refused("Invalid metadata: 16 pairs of 64 and 512 characters at most")

        def answer(line: Line) -> tuple[int, bytes]:
            self._lines[line["custom_id"]] += 1
            return self._answer(exchange, msgspec.json.encode(line["body"]), SHARE)

        settings = self._settings
        batch = Batch(
            f"batch_{len(self._batches) + 1}",
            file,
            metadata if settings.metadata else {},
            settings.fates.pop(0) if settings.fates else "completed",
            answer,
            lambda name, content: self._keep(name, content, "batch_output").id,
        )
        under_way = sum(len(other.lines) for other in self._batches.values() if other.status not in ENDED)
        batch.validate(settings.most_lines - under_way if settings.most_lines else None)
        self._batches[batch.id] = batch
        return _json(batch.shown())

    def _control(self, exchange: Exchange) -> None:
        asked = parsed(exchange.body) or {}
        if asked.pop("forget", False):
            self.__init__(self._answer)
        self._settings = msgspec.convert({**msgspec.structs.asdict(self._settings), **asked}, Settings)
        exchange.json({})

    def _stats(self, exchange: Exchange) -> None:
        for batch in self._batches.values():
            batch.advance(self._settings.seconds)
        exchange.json(
            {
                "requests": self._requests,
                "lines": self._lines,
                "files": [file.filename for file in self._files.values() if file.purpose == "batch"],
                "batches": [batch.shown() for batch in self._batches.values()],
            }
        )


def control(root: str, **settings: Any) -> None:
    """Change the `Settings` of a running server; `forget=True` forgets all files, batches and counts first."""
    with urlopen(Request(f"{root}/batch-control", msgspec.json.encode(settings)), timeout=10):
        pass


def stats(root: str) -> dict[str, Any]:
    """`requests` by route, `lines`: how often each custom_id was worked on, `files`: the names of input files that are
    still there, `batches` as they would be listed, the oldest first."""
    with urlopen(f"{root}/batch-stats", timeout=10) as response:
        return json.load(response)


def _page(oldest_first: Iterable[dict[str, Any]], query: dict[str, str], most: int) -> tuple[int, bytes]:
    rows = list(oldest_first)[::-1]
    if "after" in query:
        rows = rows[[row["id"] for row in rows].index(query["after"]) + 1 :]
    limit = min(most, int(query.get("limit", 20)))
    shown = rows[:limit]
    ends = {"first_id": shown[0]["id"], "last_id": shown[-1]["id"]} if shown else {}
    return _json({"object": "list", "data": shown, "has_more": len(rows) > limit, **ends})


def _json(answer: Any, status: int = 200) -> tuple[int, bytes]:
    return status, msgspec.json.encode(answer)


def _refused(text: str, status: int = 400) -> tuple[int, bytes]:
    return _json({"error": {"message": text, "type": "invalid_request_error", "param": None, "code": None}}, status)
