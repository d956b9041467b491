"""Both HTTP clients against real servers: what they send and read, how long they wait, how they end, and what keeps them away."""

from __future__ import annotations

import asyncio
import re
import socket
import subprocess
import sys
import time

import pytest

from played_server import MOST, OK, answers, ask, lose, post, read, run, wire
from weaverant.engines.http.client.transport import Answer, Lost, Transport, acquire, choose, release
from weaverant.errors import UserError
from weaverant.testing.server import MockServer
from weaverant.testing.tls import Certificate, Kind, context

pytestmark = pytest.mark.usefixtures("no_proxies")


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
    assert (lost.kind, lost.sent) == ("timeout", False)
    assert re.search(r"no connection within 0\.[45]\d* s", lost.text), lost.text


# Ends


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
    assert (lost.text, lost.sent, lost.final) == (
        "TLS failed: wrong version number (does it speak http:// and no TLS?)", False, True,
    )  # fmt: skip


# Which client


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
