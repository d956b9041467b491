"""A model server that answers with a digest of what it was asked, after `--latency` seconds, and logs every call.

`python -m chaos.model --address A --log FILE` prints its port. Each line of the log is a call that came whole, which is
a call that is paid, whoever is there to take the reply: when it came (Unix seconds), row, step, and from where.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import re
import time
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import msgspec

KEY = re.compile(r"row (\d+) step (\d+): ")
WRITE_S = 0.05
"""Seconds between writes of the log."""
LENGTH = re.compile(rb"(?i)content-length: *(\d+)")


class Call(NamedTuple):
    """One line of the log."""

    time: float
    row: int
    step: int
    where: str


class Message(msgspec.Struct):
    content: str


class Body(msgspec.Struct):
    messages: list[Message]


class Connection(asyncio.Protocol):
    """One connection: calls one after the other."""

    def __init__(self, log: list[str], latency: float) -> None:
        self._log = log
        self._latency = latency
        self._got = b""
        self._where = ""
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        host, port = transport.get_extra_info("peername")[:2]
        self._where = f"{host}:{port}"

    def data_received(self, data: bytes) -> None:
        self._got += data
        while (end := self._got.find(b"\r\n\r\n")) >= 0:
            found = LENGTH.search(self._got, 0, end)
            stop = end + 4 + (int(found[1]) if found else 0)
            if len(self._got) < stop:
                return
            body, self._got = self._got[end + 4 : stop], self._got[stop:]
            self._answer(body)

    def _answer(self, body: bytes) -> None:
        if not body:
            self._send({"object": "list", "data": [{"id": "m", "object": "model"}]})
            return
        text = msgspec.json.decode(body, type=Body).messages[-1].content
        key = KEY.match(text)
        assert key is not None, text
        self._log.append(f"{time.time():.6f} {key[1]} {key[2]} {self._where}\n")
        reply = {
            "id": "c", "object": "chat.completion", "created": 0, "model": "m",
            "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": digest(text)}}],
            "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
        }  # fmt: skip
        asyncio.get_running_loop().call_later(self._latency, self._send, reply)

    def _send(self, reply: object) -> None:
        if not self._transport.is_closing():
            data = msgspec.json.encode(reply)
            head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
            self._transport.write(head.encode() + data)


def digest(text: str) -> str:
    """What the model answers."""
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


def read_log(path: Path) -> dict[tuple[int, int], list[Call]]:
    """The calls of each (row, step), in the order in which they came."""
    calls: defaultdict[tuple[int, int], list[Call]] = defaultdict(list)
    for line in path.read_text().splitlines():
        when, row, step, where = line.split()
        calls[int(row), int(step)].append(Call(float(when), int(row), int(step), where))
    return calls


async def serve(address: str, path: Path, latency: float) -> None:
    log: list[str] = []
    server = await asyncio.get_running_loop().create_server(lambda: Connection(log, latency), address, 0, backlog=4096)
    print(json.dumps(server.sockets[0].getsockname()[1]), flush=True)
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    while True:
        await asyncio.sleep(WRITE_S)
        lines, log[:] = "".join(log), []
        if lines:
            os.write(file, lines.encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--address", required=True)
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--latency", type=float, default=0.05)
    options = parser.parse_args()
    asyncio.run(serve(options.address, options.log, options.latency))


if __name__ == "__main__":
    main()
