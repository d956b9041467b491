"""Both HTTP clients and the proxies of the environment, against a real proxy process."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator

import pytest

from weaverant.engines.http.client.transport import Answer, Lost, acquire, release
from weaverant.testing.proxy import MockProxy
from weaverant.testing.server import MockServer

PASSWORD = "p@ss:w/rd"


@pytest.fixture(scope="module")
def proxy() -> Iterator[MockProxy]:
    with MockProxy("me", PASSWORD) as running:
        yield running


@pytest.fixture(scope="module")
def server() -> Iterator[MockServer]:
    with MockServer() as running:
        yield running


@pytest.fixture(scope="module")
def secure() -> Iterator[MockServer]:
    with MockServer(tls=True) as running:
        yield running


@pytest.fixture(autouse=True)
def _trusted(monkeypatch: pytest.MonkeyPatch, secure: MockServer, no_proxies: None) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(secure.ca))


def get(client: str, *urls: str) -> list[Answer]:
    async def main() -> list[Answer]:
        transport = acquire(client)
        try:
            return [await transport.send("GET", url, {}, seconds=20, most=1_000_000) for url in urls]
        finally:
            await release(transport)

    return asyncio.run(main())


def lose(client: str, url: str) -> Lost:
    with pytest.raises(Lost) as caught:
        get(client, url)
    assert PASSWORD not in str(caught.value) and "p%40ss" not in str(caught.value)
    return caught.value


def grown(proxy: MockProxy, before: dict) -> dict[str, int]:
    after = proxy.stats()
    return {
        name: after[name] - before[name] for name in ("connects", "forwarded", "refused") if after[name] != before[name]
    }


@pytest.mark.parametrize("names", [("HTTP_PROXY", "HTTPS_PROXY"), ("http_proxy", "https_proxy"), ("ALL_PROXY",)])
def test_requests_go_through_the_proxy_of_the_environment(
    client: str, proxy: MockProxy, server: MockServer, secure: MockServer, names: tuple, monkeypatch: pytest.MonkeyPatch
):
    for name in names:
        monkeypatch.setenv(name, proxy.url)
    before = proxy.stats()
    found = get(client, server.url + "/models?a=b", *[secure.url + "/models"] * 3)
    assert [answer.status for answer in found] == [200] * 4 and all(b'"mock"' in answer.body for answer in found)
    assert grown(proxy, before) == {"forwarded": 1, "connects": 1}


def test_a_proxy_without_scheme_and_for_one_scheme_only(
    client: str, proxy: MockProxy, server: MockServer, secure: MockServer, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("https_proxy", proxy.url.removeprefix("http://"))
    before = proxy.stats()
    get(client, server.url + "/models", secure.url + "/models")
    assert grown(proxy, before) == {"connects": 1}


@pytest.mark.parametrize("no_proxy", ["127.0.0.1", "*", "other.example, 127.0.0.1", "127.0.0.1:{port}"])
def test_no_proxy_is_honoured(
    client: str, proxy: MockProxy, server: MockServer, no_proxy: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("http_proxy", proxy.url)
    before = proxy.stats()
    monkeypatch.setenv("no_proxy", no_proxy.format(port=server.port))
    get(client, server.url + "/models")
    assert grown(proxy, before) == {}
    monkeypatch.setenv("no_proxy", "example.com")
    get(client, server.url + "/models")
    assert grown(proxy, before) == {"forwarded": 1}


@pytest.mark.parametrize("login", ["", "me:wrong@"])
def test_a_proxy_that_refuses_us(
    client: str, proxy: MockProxy, server: MockServer, secure: MockServer, login: str, monkeypatch: pytest.MonkeyPatch
):
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, proxy.address.replace("//", "//" + login))
    before = proxy.stats()
    lost = lose(client, secure.url + "/models")
    assert "407" in lost.text and "user:password" in lost.text and f"127.0.0.1:{proxy.port}" in lost.text
    assert (lost.kind, lost.sent, lost.final) == ("connection", False, True)
    assert get(client, server.url + "/models")[0].status == 407
    assert grown(proxy, before) == {"refused": 2}


def test_a_proxy_that_reaches_nothing(client: str, proxy: MockProxy, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("https_proxy", proxy.url)
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))
        lost = lose(client, f"https://127.0.0.1:{unheard.getsockname()[1]}/")
    assert "502" in lost.text and (lost.sent, lost.final) == (False, False)


def test_a_proxy_that_is_not_there(client: str, server: MockServer, monkeypatch: pytest.MonkeyPatch):
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{unheard.getsockname()[1]}"
        monkeypatch.setenv("all_proxy", f"http://me:{PASSWORD.replace('/', '%2F').replace('@', '%40')}@{place}")
        for scheme in ("http", "https"):
            lost = lose(client, f"{scheme}://127.0.0.1:{server.port}/")
            assert lost.text == f"the proxy {place}: connection refused" and not lost.sent


@pytest.mark.parametrize("url", ["socks5://me:p%40ss@127.0.0.1:9", "https://127.0.0.1:9", "http://127.0.0.1:port"])
def test_a_proxy_of_another_kind_is_refused_in_words(
    client: str, server: MockServer, url: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("http_proxy", url)
    lost = lose(client, server.url + "/models")
    assert "expected http://host:port" in lost.text and "HTTP_PROXY" in lost.text and lost.final and not lost.sent
