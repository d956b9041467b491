"""Both HTTP clients against real servers: bodies of any size and coding, in pieces, without end, and broken."""

from __future__ import annotations

import asyncio
import gzip
import random
import subprocess
import sys
import time
import zlib

import pytest

from played_server import OK, answers, ask, lose, post, read, run, wire
from weaverant.engines.http.client.transport import MOST_HEAD, Answer, Transport

pytestmark = pytest.mark.usefixtures("no_proxies")


# Codings and framing


LONG = bytes(random.Random(1).randbytes(300_000))

RAW_DEFLATE = zlib.compressobj(9, zlib.DEFLATED, -15)


@pytest.mark.parametrize(
    ("coding", "packed"),
    [
        ("gzip", gzip.compress(LONG)),
        ("x-gzip", gzip.compress(LONG[:7]) + gzip.compress(LONG[7:]) + b"\0" * 9),
        ("deflate", zlib.compress(LONG)),
        ("Deflate", RAW_DEFLATE.compress(LONG) + RAW_DEFLATE.flush()),
        ("identity", LONG),
    ],
)
def test_bodies_are_decompressed(client: str, coding: str, packed: bytes):
    head = f"HTTP/1.1 200 OK\r\nContent-Encoding: {coding}\r\nContent-Length: {len(packed)}\r\n\r\n".encode()
    assert ask(client, answers(head, packed[:99_999], packed[99_999:])).body == LONG


CHUNKED = (
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
    b"HTTP/1.1 201 Made\r\nTransfer-Encoding: chunked\r\nX-A: 1\r\nx-a: 2\r\n\r\n"
    b"2\r\nhe\r\n1;ext=1\r\nl\r\n0002\r\nlo\r\n0\r\nTrailer: x\r\n\r\n"
)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_an_answer_in_pieces_of_any_size(client: str, size: int):
    for whole in (CHUNKED, OK):
        found = ask(client, answers(*(whole[at : at + size] for at in range(0, len(whole), size))))
        assert found.body == b"hello" and found.status == (201 if whole is CHUNKED else 200)
        assert "link" not in found.headers and found.headers.get("x-a", "2") == "2"


def test_an_answer_has_nothing_of_the_one_before_it(client: str):
    """Trailers, headers, and whether it is compressed, on one connection."""
    packed = gzip.compress(b"hello")
    parts = [
        CHUNKED.replace(b"Trailer: x\r\n", b"Trailer: x\r\nRetry-After: 9\r\n"),
        OK,
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nX-A: b\r\nContent-Length: %d\r\n\r\n%s" % (len(packed), packed),
        OK,
    ]

    async def main(transport: Transport) -> list[Answer]:
        connections = 0

        async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal connections
            connections += 1
            assert connections == 1
            for part in parts * 2:
                await read(reader)
                writer.write(part)

        async with wire(play) as url:
            return [await post(transport, url) for _ in parts * 2]

    found = run(client, main)
    assert [answer.body for answer in found] == [b"hello"] * 8
    assert [answer.status for answer in found] == [201, 200, 200, 200] * 2
    names = [sorted(answer.headers.keys() & {"trailer", "retry-after", "x-a", "content-encoding"}) for answer in found]
    assert names == [["x-a"], [], ["content-encoding", "x-a"], []] * 2


def test_a_body_may_last_until_the_connection_is_closed(client: str):
    found = ask(client, answers(b"HTTP/1.1 200 OK\r\n\r\nhel", b"lo", pause=0.01, again=False))
    assert found.body == b"hello"
    packed = gzip.compress(LONG)
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n"
    assert ask(client, answers(head + packed, again=False)).body == LONG
    assert "cut off" in lose(client, answers(head + packed[:-9], again=False)).text


def test_the_pieces_of_a_stream_come_as_they_are_sent(client: str):
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    times: list[tuple[bytes, float]] = []
    found = ask(
        client,
        answers(head + b"3\r\nabc\r\n", b"2\r\nde\r\n", b"0\r\n\r\n", pause=0.1),
        on_data=lambda piece: times.append((piece, time.monotonic())),
    )
    assert found.body == b"" and [piece for piece, _ in times] == [b"abc", b"de"]
    assert times[1][1] - times[0][1] > 0.05
    refusal = b"HTTP/1.1 429 No\r\nContent-Length: 2\r\n\r\nno"
    assert ask(client, answers(refusal), on_data=times.clear).body == b"no"


def test_what_on_data_raises_ends_the_request(client: str):
    def refuse(piece: bytes) -> None:
        raise LookupError(piece)

    with pytest.raises(LookupError, match="hello"):
        ask(client, answers(OK), on_data=refuse)


def test_an_answer_before_the_request_is_sent_whole_is_read(client: str):
    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno")
        await writer.drain()

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno")
        await asyncio.sleep(1)

    for way in (play, slow):
        found = ask(client, way, body=b"x" * 30_000_000)
        assert (found.status, found.body) == (413, b"no")


@pytest.mark.parametrize("size", [0, 65_535, 65_536, 65_537, 1_100_000, 20_000_000])
def test_a_body_of_any_size_arrives(client: str, size: int):
    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        _, body = await read(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n%010d" % zlib.crc32(body))

    body = random.Random(size).randbytes(size)
    assert int(ask(client, play, body=body).body) == zlib.crc32(body)


# Limits


def test_a_large_body_is_taken_below_the_limit_and_cut_off_above(client: str):
    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await read(reader)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 50000000\r\n\r\n")
            for _ in range(50):
                writer.write(b"x" * 1_000_000)
                await writer.drain()

    assert ask(client, play, most=50_000_000) == Answer(
        200, {"content-length": "50000000"}, b"x" * 50_000_000, too_large=False
    )
    cut = ask(client, play, most=49_999_999)
    assert cut.too_large and cut.body == b"" and cut.status == 200


def test_a_bomb_is_cut_off_before_it_fills_the_memory():
    """Two gigabytes of zeros in two megabytes, in a process that may have one."""
    script = """
import asyncio, gzip, resource
from weaverant.engines.http.client.transport import acquire, release
packed = gzip.compress(bytes(1 << 28)) * 8
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
async def serve(reader, writer):
    await reader.readuntil(b"\\r\\n\\r\\n")
    writer.write(b"HTTP/1.1 200 OK\\r\\nContent-Encoding: gzip\\r\\nContent-Length: %d\\r\\n\\r\\n" % len(packed) + packed)
async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = "http://127.0.0.1:%d/" % server.sockets[0].getsockname()[1]
    for client in ("fast", "dependable"):
        transport = acquire(client)
        answer = await transport.send("POST", url, {}, seconds=60, most=100_000_000)
        print(answer.too_large, len(answer.body))
        await release(transport)
    server.close()
asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.stdout == "True 0\n" * 2, done.stderr


@pytest.mark.parametrize("head", ["one line", "many lines", "one endless line"])
def test_a_head_of_a_megabyte_is_refused(client: str, head: str):
    lines = {"one line": b"A: " + b"a" * 1_000_000 + b"\r\n\r\n", "many lines": b"Aa: bcdef\r\n" * 90_000 + b"\r\n"}
    whole = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n" + lines.get(head, b"A: " + b"a" * 1_000_000)
    lost = lose(client, answers(*(whole[at : at + 50_000] for at in range(0, len(whole), 50_000))))
    assert lost.kind == "connection" and lost.sent and len(lost.text) < 300


def test_headers_of_some_size_are_read(client: str):
    value = "a" * (MOST_HEAD // 2)
    found = ask(client, answers(f"HTTP/1.1 200 OK\r\nA: {value}\r\nContent-Length: 0\r\n\r\n".encode()))
    assert found.headers["a"] == value


# Broken answers


BROKEN = {
    "garbage": b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
    "a head cut off": b"HTTP/1.1 200 OK\r\nContent-Le",
    "a body cut off": b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello",
    "a chunk cut off": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nhello",
    "no last chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
    "a chunk of no size": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\nhello\r\n",
    "a length that is none": b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nhello",
    "gzip damaged": b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 5\r\n\r\nhello",
    "gzip cut off": b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 9\r\n\r\n" + gzip.compress(b"x")[:9],
    "an unknown coding": b"HTTP/1.1 200 OK\r\nContent-Encoding: br\r\nContent-Length: 5\r\n\r\nhello",
    "another protocol": b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\nhello",
}


@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_answer_is_lost(client: str, broken: str):
    lost = lose(client, answers(BROKEN[broken], again=False))
    assert (lost.kind, lost.sent, lost.final) == ("connection", True, False) and len(lost.text) < 200
    assert "<" not in lost.text and "Error" not in lost.text
