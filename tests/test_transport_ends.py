"""How connections end: with their event loop, and under TLS at any moment of a request."""

from __future__ import annotations

import asyncio
import gc
import random
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from played_server import OK, answers, post, wire
from weaverant.engines.http.client.transport import Lost, acquire, release
from weaverant.testing.tls import Certificate, context

pytestmark = pytest.mark.usefixtures("no_proxies")


# Event loops


@contextmanager
def one_answer() -> Iterator[tuple[str, list[bytes]]]:
    """The URL of a server that answers one request and waits for what comes next; it is in the list at the end."""
    after: list[bytes] = []

    def serve() -> None:
        peer, _ = listener.accept()
        with peer:
            peer.settimeout(20)
            peer.recv(10_000)
            peer.sendall(OK)
            after.append(peer.recv(1))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(20)
        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/", after
        thread.join()


def test_connections_that_nobody_gives_back_end_with_their_loop(client: str):
    with one_answer() as (url, after):

        async def main() -> None:
            transport = acquire(client)
            await post(transport, url)
            assert acquire(client) is transport

        asyncio.run(main())
    assert after == [b""], "the process lives on, and the server has seen the end"


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_loop_that_is_closed_without_ending_its_generators_is_forgotten(client: str):
    async def main() -> None:
        async with wire(answers(OK)) as url:
            await post(acquire(client), url)

    async def later() -> None:
        await release(acquire(client))

    loop = asyncio.new_event_loop()
    loop.run_until_complete(main())
    loop.close()
    forgotten = weakref.ref(loop)
    del loop
    asyncio.run(later())
    gc.collect()
    assert forgotten() is None


# TLS

HASTY = """
import random, select, socket, ssl, sys
odds = random.Random(5)
trust = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
trust.load_cert_chain(sys.argv[1])
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
while True:
    peer, _ = listener.accept()
    try:
        peer = trust.wrap_socket(peer, server_side=True)
        data = b""
        while peer.pending() or select.select([peer], [], [], odds.uniform(0.0005, 0.003))[0]:
            more = peer.recv(65536)
            data += more
            if not more:
                break
            if data.endswith(b"."):
                print(data.rpartition(b"\\n")[2].decode(), flush=True)
                peer.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: 5\\r\\n\\r\\nhello")
                data = b""
        if odds.random() < 0.5:
            peer.settimeout(0)
            peer.unwrap()
    except OSError:
        pass
    peer.close()
"""
"""As its namesake in test_transport_connections.py, with TLS: half of the connections end with a farewell."""


@contextmanager
def closing(certificate: Certificate) -> Iterator[str]:
    """The URL of a server that answers one request of each connection, and closes it."""
    trust = context(certificate.server)

    def serve() -> None:
        while True:
            try:
                peer, _ = listener.accept()
            except OSError:
                return
            with trust.wrap_socket(peer, server_side=True) as secure:
                secure.recv(10_000)
                secure.sendall(OK)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"https://127.0.0.1:{listener.getsockname()[1]}/"
        finally:
            listener.shutdown(socket.SHUT_RDWR)  # which ends `accept`
            thread.join()


def loops() -> list[Callable[[], asyncio.AbstractEventLoop]]:
    """Those that are installed: uvloop's sockets and transports differ from asyncio's."""
    try:
        import uvloop
    except ModuleNotFoundError:
        return [asyncio.new_event_loop]
    return [asyncio.new_event_loop, uvloop.new_event_loop]


each_loop = pytest.mark.parametrize("new_loop", loops(), ids=lambda loop: loop.__module__.partition(".")[0])


@each_loop
def test_a_connection_of_tls_that_was_closed_while_idle_fails_no_request(
    client: str, new_loop: Callable[[], asyncio.AbstractEventLoop], monkeypatch: pytest.MonkeyPatch
):
    """However far the event loop has got in learning of it, which takes it several turns."""
    certificate = Certificate()
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate.ca))

    async def main(url: str) -> None:
        transport = acquire(client)
        for turns in range(12):
            assert (await post(transport, url)).body == b"hello"
            time.sleep(0.02)  # noqa: ASYNC251 - the loop sees nothing of what comes
            for _ in range(turns):
                await asyncio.sleep(0)

    with closing(certificate) as url, asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(main(url))


@each_loop
def test_a_request_that_meets_a_closing_connection_of_tls_is_never_served_twice(
    client: str, new_loop: Callable[[], asyncio.AbstractEventLoop], monkeypatch: pytest.MonkeyPatch
):
    odds = random.Random(7)
    lost: dict[str, Lost] = {}
    certificate = Certificate()
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate.ca))
    command = [sys.executable, "-c", HASTY, str(certificate.server)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        url = f"https://127.0.0.1:{server.stdout.readline().strip()}/"

        async def main() -> None:
            transport = acquire(client)
            for number in range(200):
                try:
                    await post(transport, url, b"%d." % number)
                except Lost as one:
                    lost[f"{number}."] = one
                await asyncio.sleep(odds.uniform(0.0003, 0.003))

        try:
            with asyncio.Runner(loop_factory=new_loop) as runner:
                runner.run(main())
        finally:
            server.kill()
        served = server.stdout.read().split()
    assert len(served) == len(set(served)) >= 200 - len(lost)
    assert not {number for number, one in lost.items() if not one.sent} & set(served)
    assert all(one.kind == "connection" for one in lost.values()), "none hung until its deadline"
