"""Both HTTP clients read the same thousands of hostile answers: they must agree, and neither may hang."""

from __future__ import annotations

import asyncio
import gzip
import random
import zlib
from collections import Counter
from collections.abc import Iterator

from weaverant.engines.http.client.reader import Reader
from weaverant.engines.http.client.transport import Answer, Lost, acquire, release
from weaverant.engines.http.client.whole import read_whole

CASES = 2_000
MOST = 3_000
HEADS = (
    b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nServer: x\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"HTTP/1.1 404 Not Found\r\nconnection: close\r\n\r\n",
    b"HTTP/1.0 200 OK\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 201 OK\r\nContent-Length: %d\r\nX-A: b\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Encoding: deflate\r\nContent-Length: %d\r\n\r\n",
    b"HTTP/1.1 204 No Content\r\n\r\n",
)
TOKENS = (
    *(b"\r\n", b"\n", b"\r", b"\0", b" ", b":", b"\r\n\r\n", b"0\r\n\r\n", b"Content-Length: 3\r\n", b"\xff\xfe"),
    *(b"Transfer-Encoding: chunked\r\n", b"HTTP/1.1 200 OK\r\n", b"-1", b"99999999999999999999", b"g", b"\x1f\x8b\x08"),
)


def answer(odds: random.Random) -> bytes:
    """A whole answer, of which four in five are then spoilt."""
    head = odds.choice(HEADS)
    body = odds.randbytes(odds.choice((0, 1, 10, 1000, 2000))) * odds.choice((1, 1, 1, 5))
    if b"gzip" in head:
        body = gzip.compress(body, mtime=0)
    elif b"deflate" in head:
        body = zlib.compress(body)
    if b"chunked" in head:
        body = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces(body, odds)) + b"0\r\n\r\n"
    whole = bytearray((head % len(body) if b"%d" in head else head) + (b"" if b" 204 " in head else body))
    for _ in range(odds.choice((0, 1, 1, 2, 5))):
        at = odds.randrange(min(len(whole), odds.choice((60, 200, 5000)))) if whole else 0
        match odds.randrange(4):
            case 0:
                whole[at : at + 1] = odds.randbytes(1)
            case 1:
                whole[at:at] = odds.choice(TOKENS)
            case 2:
                del whole[at : at + odds.choice((1, 2, 10))]
            case _:
                del whole[at if odds.random() < 0.5 else -1 :]
    return bytes(whole)


def pieces(data: bytes, odds: random.Random) -> Iterator[bytes]:
    most = odds.choice((1, 7, 100, 10_000)) if len(data) < 300 else odds.choice((100, 1000, 10_000))
    at = 0
    while at < len(data):
        size = odds.randint(1, most)
        yield data[at : at + size]
        at += size


def overlong(whole: bytes) -> bool:
    """Whether more follows the answer. It depends on the time at which it comes whether a client sees that."""
    reader = Reader()
    reader.begin(MOST, None)
    return any(reader.feed(memoryview(whole)[at : at + 1]) for at in range(len(whole) - 1))


def in_words(found: Answer | Lost) -> tuple:
    """Which of two flaws of an answer is met first, its size or what follows, is each client's own affair."""
    if isinstance(found, Lost):
        return "lost", found.kind, found.sent, found.final
    return ("lost", "connection", True, False) if found.too_large else ("answer", found.status, found.body)


async def read_all(client: str, cases: list[tuple[bytes, int]]) -> list[tuple]:
    """What a client makes of each answer, sent in pieces and then closed."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            line = await reader.readuntil(b"\r\n\r\n")
            whole, seed = cases[int(line.split(b" ")[1][1:])]
            for piece in pieces(whole, random.Random(seed)):
                writer.write(piece)
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    transport = acquire(client)
    places = asyncio.Semaphore(20)

    async def ask(number: int) -> tuple:
        async with places:
            try:
                return in_words(await transport.send("POST", f"{url}{number}", {}, seconds=20, most=MOST))
            except Lost as lost:
                return in_words(lost)

    found = await asyncio.gather(*(ask(number) for number in range(len(cases))))
    await release(transport)
    server.close()
    return found


def test_both_clients_agree_on_thousands_of_broken_answers():
    odds = random.Random(11)
    cases = [(answer(odds), odds.getrandbits(32)) for _ in range(CASES)]
    fast, dependable = (asyncio.run(read_all(client, cases)) for client in ("fast", "dependable"))
    ends = Counter(found[0] for found in fast)
    assert min(ends["lost"], ends["answer"]) > CASES // 5
    assert not any(found[1] == "timeout" for found in fast + dependable)
    differ = [
        (whole[:300], one, other)
        for (whole, _), one, other in zip(cases, fast, dependable, strict=True)
        if one != other and not overlong(whole)
    ]
    assert differ == [], len(differ)


USUAL = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n",
    b"HTTP/1.1 200 OK\r\ndate: Fri, 21 Nov 2025 20:00:00 GMT\r\nserver: uvicorn\r\ncontent-length: %d\r\n\r\n",
    b"HTTP/1.1 200 \r\nContent-Length: %d\r\nConnection: keep-alive\r\nKeep-Alive: timeout=5\r\nX-A: \xe9 \xff\r\n\r\n",
)
ODD = (
    *(b"Connection: close\r\n", b"connection: keep-alive, x\r\n", b"TRANSFER-ENCODING: chunked\r\n", b"Upgrade: x\r\n"),
    *(
        b"content-length: 3\r\n",
        b"Content-Encoding: gzip\r\n",
        b"Proxy-Connection: close\r\n",
        b"X-B: a\r\nX-b:  c \r\n",
    ),
    *(
        b" folded\r\n",
        b"X : y\r\n",
        b"x\r\n",
        b": y\r\n",
        b"x:\r\n",
        b"x: \r\n",
        b"\tx: y\r\n",
        b"x: a\rb\r\n",
        b"x: \x01\x7f\r\n",
    ),
)


def usual(odds: random.Random) -> bytes:
    """An answer of the usual kind, of which three in four are then spoilt, in their heads most of all."""
    body = odds.randbytes(odds.choice((0, 1, 1000)))
    whole = bytearray(odds.choice(USUAL) % len(body) + body)
    for _ in range(odds.choice((0, 1, 1, 2))):
        end = whole.find(b"\r\n\r\n") + 2
        at = odds.randrange(max(1, end))
        match odds.randrange(5):
            case 0:
                whole[at : at + 1] = odds.randbytes(1)
            case 1:
                whole[at:at] = odds.choice(TOKENS)
            case 2:
                del whole[at : at + odds.choice((1, 2, 10))]
            case 3:
                lines = [at + 2 for at in range(len(whole)) if whole.startswith(b"\r\n", at, end)] or [0]
                at = odds.choice(lines)
                whole[at:at] = odds.choice(ODD)
            case _:
                whole += odds.choice((b"x", b"HTTP/1.1 200 OK\r\n\r\n"))
    return bytes(whole)


def read_in(*pieces: bytes) -> tuple[object, ...]:
    """What a reader makes of an answer that comes in these pieces."""
    reader = Reader()
    reader.begin(MOST, None)
    for piece in pieces:
        if reader.feed(memoryview(piece)):
            break
    if not reader.ended or reader.error is not None:
        return reader.ended, reader.keep
    found = reader.take()
    return found.status, dict(found.headers), found.body, found.too_large, reader.keep


def test_what_is_read_at_a_glance_is_what_the_parser_reads():
    """The parser is asked by an answer that comes in two pieces."""
    odds = random.Random(12)
    cases = [usual(odds) for _ in range(10 * CASES)]
    at_a_glance = sum(read_whole(memoryview(case), MOST) is not None for case in cases)
    assert len(cases) // 5 < at_a_glance < len(cases) // 2
    differ = [case for case in cases if read_in(case) != read_in(case[:1], case[1:])]
    assert differ == [], len(differ)
