"""The connection to a Ray cluster, and the one place where Ray is imported. None without a token, no endless wait."""

from __future__ import annotations

import os
import queue
import re
import secrets
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any, Self, TypeVar

from weaverant.errors import UserError, shown

T = TypeVar("T")
NAMESPACE = "weaverant"
"""Of the actors, in Ray."""
CONNECT_S = 15.0
"""Ray itself would try an address that nobody answers for minutes."""
LOCAL_S = 120.0
SHUT_S = 10.0
"""Seconds that Ray has to let go."""


class Cluster:
    """A connection to Ray, to be used by a `with`: at its end a Ray that it started is shut down."""

    def __init__(self, address: str | None = None) -> None:
        """Without an `address`, `HOST:PORT`, a Ray is started on this host. Raises `UserError`."""
        _check_address(address)
        _authenticate(address)
        self.errands = Errands()
        options: dict[str, Any] = {"address": address or "local", "namespace": NAMESPACE, "log_to_driver": False}
        if address is None:
            options["include_dashboard"] = False
        began = self.errands.do(lambda: ray().init(**options, logging_level="ERROR"))
        where = "Ray could not be started here" if address is None else f"no Ray answers at {address!r} as it should"
        advice = f"{where}: expected the address of its GCS (`ray start` tells it), the cluster's token, and a node of \
the cluster on this host"
        try:
            error = began.exception(timeout=LOCAL_S if address is None else CONNECT_S)
        except TimeoutError:
            raise UserError(f"{advice}. It was waited for for {CONNECT_S:g} s") from None
        if isinstance(error, UserError):
            raise error
        if error is not None:
            raise UserError(f"{advice}. Ray says: {last_line(error)}") from None
        self.nodes = len(self.workplaces())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(TimeoutError):
            self.errands.do(lambda: ray().shutdown()).exception(timeout=SHUT_S)

    def alive(self) -> list[dict[str, Any]]:
        """Its nodes, in Ray's words."""
        return [node for node in ray().nodes() if node["Alive"]]

    def workplaces(self, labels: Sequence[str] = ()) -> list[str]:
        """Ids of the nodes for peers: those that offer all these resources; else those with a processor to offer, if
        there are any."""
        alive = self.alive()
        if labels:
            return [node["NodeID"] for node in alive if all(node["Resources"].get(label, 0) > 0 for label in labels)]
        return [each["NodeID"] for each in alive if each["Resources"].get("CPU", 0) > 0] or [
            each["NodeID"] for each in alive
        ]


class Errands:
    """One thread that asks things of Ray, in order. A Ray that does not answer holds it, and nobody else."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        threading.Thread(target=self._go, name="ray", daemon=True).start()

    def do(self, errand: Callable[[], T]) -> Future[T]:
        done: Future[T] = Future()

        def work() -> None:
            try:
                done.set_result(errand())
            except BaseException as error:  # SystemExit too: Ray ends processes by it
                done.set_exception(error)

        self._queue.put(work)
        return done

    def _go(self) -> None:
        while True:
            self._queue.get()()


def last_line(error: BaseException) -> str:
    """What Ray says at last: the lines before tell where in Ray it was."""
    lines = [line.strip() for line in shown(error).splitlines() if line.strip()]
    return re.sub(r"^weaverant\.errors\.\w+: ", "", lines[-1]) if lines else type(error).__name__


def _check_address(address: str | None) -> None:
    if address is None:
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or "/" in host:
        raise UserError(f"--address is Ray's, HOST:PORT, as `ray start` tells it; found {address!r}")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=3.0).close()
    except (OSError, OverflowError) as error:
        raise UserError(f"no Ray answers at {address!r}: {error}") from None


def _authenticate(address: str | None) -> None:
    """Ray runs whatever code it is given: no cluster without a token, but where `RAY_AUTH_MODE=disabled` says so."""
    loaded = "ray" in sys.modules
    given = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    if address is None:
        if not given:
            os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)  # in no file: nothing is left of it
    elif os.environ.get("RAY_AUTH_MODE", "").lower() == "disabled":
        return
    elif not given and not (Path.home() / ".ray" / "auth_token").is_file():
        raise UserError(
            f"there is no token for the Ray cluster at {address!r}, and whoever reaches a cluster that asks for none "
            "can run code on it. Start each node with RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH=FILE, and set both "
            "here; or, in a network that only you can reach, RAY_AUTH_MODE=disabled"
        )
    os.environ["RAY_AUTH_MODE"] = "token"
    if loaded:  # a workflow's file may import ray, which reads the variable then
        ray()._raylet.Config.initialize("")


def ray() -> Any:
    """The package. Raises `UserError` where it is not installed."""
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")  # under `uv run` Ray would send the working folder
    try:
        import ray as package  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError(f'--swarm ray needs Ray: pip install "weaverant[ray]" ({error})') from None
    return package  # pyright: ignore[reportUnknownVariableType]
