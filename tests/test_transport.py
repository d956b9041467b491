"""Both HTTP clients against real servers: what they send, what they read, and every way a connection fails."""

from __future__ import annotations

import asyncio
import gc
import gzip
import random
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from ssl import SSLContext

import pytest

from weaverant.engines.http.client.transport import MOST_HEAD, Answer, Lost, Transport, acquire, choose, release
from weaverant.errors import UserError
from weaverant.testing.server import MockServer
from weaverant.testing.tls import Certificate, Kind, context

MOST = 60_000_000
BODY = b'{"model": "m", "messages": [{"role": "user", "content": "x"}]}'
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
Play = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@pytest.fixture(params=["fast", "dependable"])
def client(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def run(client: str, main: Callable[[Transport], Awaitable]):
    """`main` in a loop of its own, after which nothing of the client may be left."""

    async def whole():
        before = asyncio.all_tasks()
        transport = acquire(client)
        try:
            found = await main(transport)
        finally:
            await release(transport)
        for _ in range(20):
            await asyncio.sleep(0)
        assert asyncio.all_tasks() == before
        return found

    found = asyncio.run(whole())
    gc.collect()  # a connection that was left open warns now, and warnings are errors
    return found


@asynccontextmanager
async def wire(play: Play, host: str = "127.0.0.1", ssl: SSLContext | None = None) -> AsyncIterator[str]:
    """A server for whose every connection `play` is run; then the connection is closed. Gives its URL."""
    tasks: set[asyncio.Task] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await play(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            tasks.discard(task)
            writer.close()

    server = await asyncio.start_server(serve, host, 0, limit=1 << 26, ssl=ssl)
    try:
        yield f"{'https' if ssl else 'http'}://{host}:{server.sockets[0].getsockname()[1]}/"
    finally:
        server.close()
        for task in tuple(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def read(reader: asyncio.StreamReader) -> tuple[str, bytes]:
    """A request's head and body."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    length = [line.partition(":")[2] for line in head.split("\r\n") if line.lower().startswith("content-length:")]
    return head, await reader.readexactly(int(length[0])) if length else b""


def test_a_connection_that_took_long_to_open_is_used(client: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("weaverant.engines.http.client.connection.IDLE_S", 0.3)
    with MockServer(tls=True) as server:
        monkeypatch.setenv("SSL_CERT_FILE", str(server.ca))

        async def main(transport: Transport) -> list[int]:
            server.pause(1.0)
            asking = [post(transport, f"{server.url}/chat/completions", BODY) for _ in range(200)]
            return [answer.status for answer in await asyncio.gather(*asking)]

        assert run(client, main) == [200] * 200


def test_what_came_unasked_while_the_loop_was_busy_is_no_answer(client: str):
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        one, _ = listener.accept()
        with one:
            one.recv(65_536)
            one.sendall(OK)
            time.sleep(0.05)
            one.sendall(OK.replace(b"hello", b"stray"))
            two, _ = listener.accept()
            with two:
                two.recv(65_536)
                two.sendall(OK)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()

    async def main(transport: Transport) -> bytes:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        await post(transport, url)
        time.sleep(0.2)  # noqa: ASYNC251 - a busy loop is the point
        return (await post(transport, url)).body

    with listener:
        assert run(client, main) == b"hello"
        thread.join()


def answers(*pieces: bytes, pause: float = 0.0, again: bool = True) -> Play:
    """Answers every request of a connection with these pieces; without `again` only the first, and closes."""

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await read(reader)
            for piece in pieces:
                writer.write(piece)
                await asyncio.sleep(pause)
            if not again:
                return

    return play


async def post(transport: Transport, url: str, body: bytes = b"{}", **options) -> Answer:
    return await transport.send("POST", url, {"X-A": "b"}, body, **{"seconds": 20.0, "most": MOST, **options})


def ask(client: str, play: Play, **options) -> Answer:
    """One request to a server that plays so."""

    async def main(transport: Transport) -> Answer:
        async with wire(play) as url:
            return await post(transport, url, **options)

    return run(client, main)


def lose(client: str, play: Play, **options) -> Lost:
    with pytest.raises(Lost) as caught:
        ask(client, play, **options)
    return caught.value


# What is sent and read


def test_a_request_is_sent_as_given(client: str):
    heads: list[tuple[str, bytes]] = []

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(2):
            heads.append(await read(reader))
            writer.write(OK)

    async def main(transport: Transport) -> None:
        async with wire(play) as url:
            await post(transport, url + "v1/a%20b?c=d&e#frag", b"body")
            await transport.send("GET", url, {}, seconds=9, most=9)

    run(client, main)
    (first, body), (second, nothing) = heads
    assert first.startswith("POST /v1/a%20b?c=d&e HTTP/1.1\r\n") and body == b"body" and nothing == b""
    lines = {line.lower() for line in first.split("\r\n")[1:]}
    assert {"x-a: b", "accept-encoding: gzip, deflate", "content-length: 4"} < lines
    assert not any(line.startswith(("user-agent", "content-type", "cookie")) for line in lines)
    assert second.startswith("GET / HTTP/1.1\r\n") and "content-length" not in second.lower()


def test_a_line_break_in_a_header_is_refused_and_not_shown(client: str):
    async def main(transport: Transport) -> None:
        for headers in (
            {"A": "sk-secret\r\nB: c"},
            {"A": "sk-secret\nB"},
            {"A\rB": "c"},
            {"A": "sk-secret\0"},
            {"A": "sk-secret\u20ac"},
        ):
            with pytest.raises(ValueError, match="line break") as caught:
                await transport.send("POST", "http://127.0.0.1:9/", headers, seconds=1, most=1)
            assert "sk-secret" not in str(caught.value)

    run(client, main)


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


def test_a_body_may_last_until_the_connection_is_closed(client: str):
    found = ask(client, answers(b"HTTP/1.1 200 OK\r\n\r\nhel", b"lo", pause=0.01, again=False))
    assert found.body == b"hello"
    packed = gzip.compress(LONG)
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n"
    assert ask(client, answers(head + packed, again=False)).body == LONG
    assert "cut off" in lose(client, answers(head + packed[:-9], again=False)).text


def test_redirects_are_returned_and_empty_answers_are_empty(client: str):
    found = ask(client, answers(b"HTTP/1.1 307 No\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n"))
    assert (found.status, found.headers["location"], found.body) == (307, "http://127.0.0.1:1/", b"")
    assert ask(client, answers(b"HTTP/1.1 204 No\r\nContent-Encoding: gzip\r\n\r\n")).body == b""


def test_cookies_are_not_kept(client: str):
    heads: list[str] = []

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            heads.append((await read(reader))[0].lower())
            writer.write(b"HTTP/1.1 200 OK\r\nSet-Cookie: a=b\r\nContent-Length: 0\r\n\r\n")

    async def main(transport: Transport) -> None:
        async with wire(play) as url:
            await post(transport, url)
            await post(transport, url)

    run(client, main)
    assert len(heads) == 2 and not any("cookie" in head for head in heads)


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


def test_more_than_was_announced_spoils_the_connection_but_not_the_answer(client: str):
    async def main(transport: Transport) -> None:
        connections = 0

        async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal connections
            connections += 1
            number = connections
            await read(reader)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n%d" % number)
            await asyncio.sleep(0.02)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nX")
            await read(reader)

        async with wire(play) as url:
            for number in range(1, 4):
                assert (await post(transport, url)).body == b"%d" % number
                await asyncio.sleep(0.1)

    run(client, main)


def reset(writer: asyncio.StreamWriter) -> None:
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


@pytest.mark.parametrize("after", [b"", b"HTTP/1.1 2", OK[:-2]])
def test_a_reset_is_lost_and_never_sent_again(client: str, after: bytes):
    seen: list[bytes] = []

    async def main(transport: Transport) -> Lost:
        async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await read(reader)
            writer.write(OK)
            seen.append((await read(reader))[1])
            writer.write(after)
            await asyncio.sleep(0.02)
            reset(writer)

        async with wire(play) as url:
            await post(transport, url)  # so that the connection is a kept one
            with pytest.raises(Lost) as caught:
                await post(transport, url, b"pay")
            return caught.value

    lost = run(client, main)
    assert (lost.kind, lost.sent, seen) == ("connection", True, [b"pay"])


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


# Time


def test_the_deadline_holds_however_an_answer_drips(client: str):
    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        while True:
            writer.write(b"x")
            await asyncio.sleep(0.01)

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(60)

    for play in (drip, silent):
        began = time.monotonic()
        lost = lose(client, play, seconds=0.6)
        assert 0.55 < time.monotonic() - began < 1.1
        assert (lost.kind, lost.sent, lost.text) == ("timeout", True, "no answer in time")


def test_an_answer_that_falls_silent_is_given_up(client: str):
    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read(reader)
        await asyncio.sleep(0.7)  # longer than `idle`: an answer may take its time to begin
        for piece in (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", b"x", b"x", b"x"):
            writer.write(piece)
            await asyncio.sleep(0.2)
        await asyncio.sleep(60)

    began = time.monotonic()
    lost = lose(client, play, idle=0.4)
    assert lost.kind == "timeout" and "stopped for 0.4 s" in lost.text and time.monotonic() - began < 4


def test_a_listener_that_takes_no_connection_is_given_up(client: str):
    async def main(transport: Transport) -> Lost:
        with pytest.raises(Lost) as caught:
            await post(transport, f"http://127.0.0.1:{port}/", seconds=0.5)
        return caught.value

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port = listener.getsockname()[1]
        waiting = [socket.socket() for _ in range(4)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(("127.0.0.1", port))
        began = time.monotonic()
        lost = run(client, main)
        for one in waiting:
            one.close()
    assert 0.4 < time.monotonic() - began < 1.5
    assert (lost.kind, lost.sent) == ("timeout", False) and "no connection within 0.5 s" in lost.text


# Connections


def count_connections(client: str, calls: int, at_once: int, tail: bytes = OK) -> int:
    connections = 0

    async def main(transport: Transport) -> None:
        async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal connections
            connections += 1
            await answers(tail)(reader, writer)

        async with wire(play) as url:
            for _ in range(calls // at_once):
                await asyncio.gather(*(post(transport, url) for _ in range(at_once)))

    run(client, main)
    return connections


def test_connections_are_kept_while_servers_keep_them(client: str):
    assert count_connections(client, 200, 10) == 10
    assert count_connections(client, 20, 1, OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")) == 20
    assert count_connections(client, 20, 1, OK.replace(b"1.1", b"1.0")) == 20


def test_a_connection_that_was_closed_while_idle_fails_no_request(client: str):
    """Closed without the loop having had a turn to learn of it."""
    served = 0

    def serve(listener: socket.socket) -> socket.socket:
        peer, _ = listener.accept()
        peer.settimeout(20)
        assert peer.recv(10_000)
        peer.sendall(OK)
        return peer

    async def main(transport: Transport) -> None:
        nonlocal served
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.settimeout(20)
            url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
            for _ in range(300):
                peer, found = await asyncio.gather(asyncio.to_thread(serve, listener), post(transport, url))
                assert found.body == b"hello"
                served += 1
                peer.close()

    run(client, main)
    assert served == 300


HASTY = """
import random, select, socket
odds = random.Random(5)
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
while True:
    peer, _ = listener.accept()
    data = b""
    while select.select([peer], [], [], odds.uniform(0.0005, 0.003))[0]:
        more = peer.recv(65536)
        data += more
        if not more:
            break
        if data.endswith(b"."):
            print(data.rpartition(b"\\n")[2].decode(), flush=True)
            peer.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: 5\\r\\n\\r\\nhello")
            data = b""
    peer.close()
"""
"""Closes each connection at about the time at which the next request comes; prints the requests it has answered."""


def test_a_request_that_meets_a_closing_connection_is_never_served_twice(client: str):
    odds = random.Random(7)
    lost: dict[str, Lost] = {}
    with subprocess.Popen([sys.executable, "-c", HASTY], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        url = f"http://127.0.0.1:{server.stdout.readline().strip()}/"

        async def main(transport: Transport) -> None:
            for number in range(500):
                try:
                    await post(transport, url, b"%d." % number)
                except Lost as one:
                    lost[f"{number}."] = one
                await asyncio.sleep(odds.uniform(0.0003, 0.003))

        run(client, main)
        server.kill()
        served = server.stdout.read().split()
    assert len(served) == len(set(served)) >= 500 - len(lost)
    assert not {number for number, one in lost.items() if not one.sent} & set(served)
    assert client == "dependable" or len(lost) <= 5  # 4 of 6,000 were measured: a reset, of which nobody can be sure


def test_idle_connections_are_closed(client: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(f"weaverant.engines.http.client.{'connection' if client == 'fast' else client}.IDLE_S", 0.3)
    closed = asyncio.Event()

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read(reader)
        writer.write(OK)
        assert await reader.read() == b""
        closed.set()

    async def main(transport: Transport) -> None:
        async with wire(play) as url:
            await post(transport, url)
            began = time.monotonic()
            await asyncio.wait_for(closed.wait(), 5)
            assert time.monotonic() - began > 0.2

    run(client, main)


def test_cancelling_closes_the_connection(client: str):
    async def main(transport: Transport) -> None:
        gone = asyncio.Event()

        async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await read(reader)
            assert await reader.read() == b""
            gone.set()

        async with wire(play) as url:
            call = asyncio.ensure_future(post(transport, url))
            await asyncio.sleep(0.1)
            call.cancel()
            await asyncio.wait_for(gone.wait(), 2)
            assert await asyncio.gather(call, return_exceptions=True) != [None] and call.cancelled()

    run(client, main)


def test_hundreds_of_cancelled_requests_leave_nothing_behind(client: str):
    with MockServer("hang") as server:

        async def main(transport: Transport) -> None:
            for rest in (0.0, 0.001, 0.5):  # while they connect, and while they wait
                calls = [asyncio.ensure_future(post(transport, server.url + "/chat/completions")) for _ in range(512)]
                await asyncio.sleep(rest)
                for call in calls:
                    call.cancel()
                await asyncio.gather(*calls, return_exceptions=True)
                assert all(call.cancelled() for call in calls)

        run(client, main)
        for _ in range(100):
            if not server.stats()["in_flight"]:
                break
            time.sleep(0.05)
        assert server.stats()["in_flight"] == 0


def test_closing_ends_what_is_in_flight_and_opens_nothing_again(client: str):
    async def main() -> list[Lost]:
        async with wire(lambda reader, writer: asyncio.sleep(60)) as url:
            transport = acquire(client)
            call = asyncio.ensure_future(post(transport, url))
            await asyncio.sleep(0.1)
            await release(transport)
            found = await asyncio.gather(call, post(transport, url), return_exceptions=True)
            assert all(isinstance(one, Lost) and one.kind == "connection" for one in found), found
            return found

    first, later = asyncio.run(main())
    assert first.sent and not later.sent and "closed" in first.text and "closed" in later.text


# Errors of the network


def test_why_there_is_no_connection_is_said_plainly(client: str):
    async def main(transport: Transport) -> tuple[Lost, Lost, Lost]:
        with socket.socket() as unheard:
            unheard.bind(("127.0.0.1", 0))
            urls = (
                f"http://127.0.0.1:{unheard.getsockname()[1]}/",
                "http://no-such-host.invalid/",
                "http://bad..name/",
            )
            return await asyncio.gather(*(post(transport, url) for url in urls), return_exceptions=True)

    refused, unknown, bad = run(client, main)
    assert (refused.text, refused.sent, refused.final) == ("connection refused", False, False)
    assert unknown.text.startswith("its name is not known") and not unknown.sent and not unknown.final
    assert bad.final and "'bad..name' is no host name" in bad.text


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("untrusted", "unable to get local issuer certificate"),
        ("expired", "certificate has expired"),
        ("good", "certificate is not valid for '127.0.0.2'"),
    ],
)
def test_a_certificate_that_is_not_to_be_trusted_is_final(
    client: str, kind: Kind, says: str, monkeypatch: pytest.MonkeyPatch
):
    certificate = Certificate(kind)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate.ca))

    async def main(transport: Transport) -> Lost:
        async with wire(
            answers(OK), "127.0.0.2" if kind == "good" else "127.0.0.1", context(certificate.server)
        ) as url:
            with pytest.raises(Lost) as caught:
                await post(transport, url)
            return caught.value

    lost = run(client, main)
    assert "certificate verify failed" in lost.text and says in lost.text and len(lost.text) < 120
    assert (lost.kind, lost.sent, lost.final) == ("connection", False, True)


def test_tls_with_the_authority_of_the_environment(client: str, monkeypatch: pytest.MonkeyPatch):
    with MockServer(tls=True) as server:
        monkeypatch.setenv("SSL_CERT_FILE", str(server.ca))

        async def main(transport: Transport) -> list[Answer]:
            url = server.url + "/models"
            return [await transport.send("GET", url, {}, seconds=20, most=MOST) for _ in range(5)]

        assert [found.status for found in run(client, main)] == [200] * 5


def test_tls_to_a_server_that_speaks_none(client: str):
    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(5)
        writer.write(OK)
        await reader.read()

    async def main(transport: Transport) -> Lost:
        async with wire(play) as url:
            with pytest.raises(Lost) as caught:
                await post(transport, url.replace("http", "https"))
            return caught.value

    lost = run(client, main)
    assert (lost.text, lost.sent, lost.final) == ("TLS failed: wrong version number", False, True)


# Sharing


def test_all_users_of_a_loop_share_connections(client: str):
    connections = 0

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await answers(OK)(reader, writer)

    async def main() -> None:
        async with wire(play) as url:
            one, other = acquire(client), acquire(client)
            assert one is other
            await post(one, url)
            await release(one)
            await post(other, url)
            await release(other)
            with pytest.raises(Lost, match="closed"):
                await post(other, url)
            fresh = acquire(client)
            await post(fresh, url)
            await release(fresh)

    asyncio.run(main())
    asyncio.run(main())
    assert connections == 4


def test_the_fast_client_is_taken_where_it_is_installed_and_missed_in_words():
    assert (choose(""), choose("dependable"), choose("fast")) == ("fast", "dependable", "fast")
    script = (
        "import sys; sys.modules['httptools'] = None\n"
        "from weaverant.engines.http.client.transport import choose\n"
        "assert choose('') == 'dependable'\n"
        "choose('fast')"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 1 and UserError.__name__ in done.stderr and "client=dependable" in done.stderr
