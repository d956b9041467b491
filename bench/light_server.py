"""A chat server that does nothing but wait and answer, as light as asyncio allows: the client is what is measured.

`python bench/light_server.py SECONDS` prints its port. GET /stats tells how many requests came and how many at most
were in flight, the server's own `cpu` seconds, and by time.monotonic() when the `first` came and the `last` ended.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

BODY = json.dumps(
    {
        "id": "x",
        "object": "chat.completion",
        "model": "light",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "word " * 280}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 1000, "completion_tokens": 280, "total_tokens": 1280},
    }
).encode()
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
REPLY = HEAD % len(BODY) + BODY


class Connection(asyncio.Protocol):
    def __init__(self, seconds: float, counts: dict[str, float]) -> None:
        self.seconds = seconds
        self.counts = counts
        self.buffer = b""
        self.wanted = 0

    def connection_made(self, transport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        if not self.wanted:
            end = self.buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            head = self.buffer[:end].lower()
            at = head.find(b"content-length:")
            length = 0 if at < 0 else int(head[at + 15 :].split(b"\r\n", 1)[0])
            self.wanted = end + 4 + length
        if len(self.buffer) >= self.wanted:
            get, self.buffer, self.wanted = self.buffer.startswith(b"GET"), self.buffer[self.wanted :], 0
            self.other() if get else self.chat()

    def other(self) -> None:
        body = json.dumps({**self.counts, "cpu": time.process_time()}).encode()
        self.transport.write(HEAD % len(body) + body)

    def chat(self) -> None:
        counts = self.counts
        if not counts["total"]:
            counts["first"] = time.monotonic()
        counts["total"] += 1
        counts["in_flight"] += 1
        counts["most"] = max(counts["most"], counts["in_flight"])
        asyncio.get_running_loop().call_later(self.seconds, self.answer)

    def answer(self) -> None:
        self.counts["in_flight"] -= 1
        self.counts["last"] = time.monotonic()
        self.transport.write(REPLY)


async def main() -> None:
    seconds, counts = float(sys.argv[1]), {"total": 0, "in_flight": 0, "most": 0, "first": 0.0, "last": 0.0}
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(seconds, counts), "127.0.0.1", 0, backlog=16_384)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)  # it ends with the process that started it


if __name__ == "__main__":
    asyncio.run(main())
