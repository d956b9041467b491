"""A chat server with so many places, whose calls take as long as their row and stage say, whoever asks and however.

`python bench/slots_server.py SLOTS` prints its port. What does not find a place waits in its order. GET /log tells of
each call that was answered: stage, row, when it came, began and ended (time.monotonic()).
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import re
import sys
import time

from weaverant.testing.connection import Connection, Exchange
from weaverant.testing.slots import Slots

ASKED = re.compile(rb"(write|criticise|revise) row (\d+):")
STAGES = ("write", "criticise", "revise")
MEDIAN = 0.2
SIGMA = 0.8
"""Of the lognormal seconds that a call takes; their mean is 0.275, one in a thousand takes longer than 2.3."""


def seconds(stage: str, row: int) -> float:
    """How long that call takes: the same for every client."""
    drawn = hashlib.sha256(f"{stage} {row}".encode()).digest()
    first = (int.from_bytes(drawn[:4], "big") + 1) / 2**32
    second = int.from_bytes(drawn[4:8], "big") / 2**32
    return MEDIAN * math.exp(SIGMA * math.sqrt(-2 * math.log(first)) * math.cos(2 * math.pi * second))


class Call:
    """A request on its way."""

    def __init__(self, exchange: Exchange, stage: str, row: int) -> None:
        self.exchange = exchange
        self.stage = stage
        self.row = row
        self.came = time.monotonic()
        self.began = 0.0


class Server:
    def __init__(self, slots: int) -> None:
        self.log: list[tuple[str, int, float, float, float]] = []
        self.slots: Slots[Call] = Slots(slots, self.start)

    def serve(self, exchange: Exchange) -> None:
        found = ASKED.search(exchange.body)
        if exchange.path == "/log":
            exchange.json(self.log)
        elif found:
            self.slots.enter(Call(exchange, found[1].decode(), int(found[2])))
        else:
            exchange.json(completion("ready"))  # a peer's look whether somebody is there

    def start(self, call: Call) -> None:
        call.began = time.monotonic()
        asyncio.get_running_loop().call_later(seconds(call.stage, call.row), self.end, call)

    def end(self, call: Call) -> None:
        self.log.append((call.stage, call.row, call.came, call.began, time.monotonic()))
        self.slots.leave(call)
        if not call.exchange.left:
            call.exchange.json(completion(f"{call.stage}: " + "word " * 60))


def completion(text: str) -> dict[str, object]:
    message = {"role": "assistant", "content": text}
    return {
        "id": "x",
        "object": "chat.completion",
        "created": 0,
        "model": "slots",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 61, "total_tokens": 161},
    }


async def main() -> None:
    service = Server(int(sys.argv[1]))
    known: set[Connection] = set()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(service.serve, known), "127.0.0.1", 0, backlog=16_384)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)  # it ends with the process that started it


if __name__ == "__main__":
    asyncio.run(main())
