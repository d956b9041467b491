"""What several test files share: one server process for all tests of a file, as if new in each."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from peers_world import CountingModel
from weaverant.testing.server import MockServer

# Commands behave here as they do at users', also where all this was begun by a shell in its background.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="module")
def running() -> Iterator[MockServer]:
    with MockServer() as server:
        yield server


@pytest.fixture
def server(running: MockServer) -> MockServer:
    """A server that remembers no request."""
    running.reset()
    return running


@pytest.fixture(scope="module")
def counting() -> Iterator[CountingModel]:
    with CountingModel() as model:
        yield model


@pytest.fixture
def model(counting: CountingModel) -> CountingModel:
    """A model that remembers no call, and tells of each who asked it."""
    counting.forget()
    counting.latency = 0.05
    return counting


@pytest.fixture(params=["fast", "dependable"])
def client(request: pytest.FixtureRequest) -> str:
    """Each HTTP client."""
    return request.param


@pytest.fixture
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever proxies the environment names."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
