"""An OpenAI-compatible server for tests: a real process, real sockets, exact counts, faults on demand.

`python -m weaverant.testing.server` prints its port as its first line. Replies are a function of the request's body
(its seed included). GET /stats tells what was asked so far, GET /bill what it costs; POST /reset forgets both; POST
/control changes settings. A scenario (see `scenarios.py`) is chosen by the path (/scenario/NAME/v1), the header
X-Scenario, the model's name, or the settings, in this order.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import ssl
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal
from urllib.request import HTTPSHandler, ProxyHandler, Request, build_opener

import msgspec

from weaverant.testing import tls as certificates
from weaverant.testing.bill import Item
from weaverant.testing.child import Child, live
from weaverant.testing.scenarios import SCENARIOS, find
from weaverant.testing.service import Service
from weaverant.testing.settings import Settings, described

BACKLOG = 16_384


class MockServer(Child):
    """`with MockServer() as server:` runs the server as a process of its own on a free port of 127.0.0.1.

    It ends with the block, and with the process that started it, even if that one is killed. `settings` are those of
    `Settings`, by name. With `tls` it speaks https, with a certificate of the authority in the file `ca`; `untrusted`
    and `expired` are certificates that a client must refuse.
    """

    def __init__(
        self,
        scenario: str = "ok",
        *,
        port: int = 0,
        tls: bool | Literal["untrusted", "expired"] = False,
        **settings: Any,
    ) -> None:
        super().__init__("weaverant.testing.server", port)
        find(scenario)
        self.settings = Settings(scenario, **settings)
        self._certificate = certificates.Certificate("good" if tls is True else tls) if tls else None
        # Our own questions take no proxy, and are answered even by a server that nobody should trust.
        anybody = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        anybody.check_hostname = False
        anybody.verify_mode = ssl.CERT_NONE
        self._opener = build_opener(ProxyHandler({}), HTTPSHandler(context=anybody))

    def options(self) -> Sequence[str]:
        chosen = [f"--settings={msgspec.json.encode(self.settings).decode()}"]
        return [*chosen, f"--certificate={self._certificate.server}"] if self._certificate else chosen

    @property
    def ca(self) -> Path:
        """The PEM file of the authority to trust."""
        if self._certificate is None:
            raise ValueError("this server has no certificate; start it as MockServer(tls=True)")
        return self._certificate.ca

    @property
    def root(self) -> str:
        return f"{'https' if self._certificate else 'http'}://127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """The base URL: what goes before `#model`."""
        return f"{self.root}/v1"

    def scenario(self, name: str) -> str:
        """The base URL under which every model behaves as `name` says."""
        return f"{self.root}/scenario/{name}/v1"

    def stats(self) -> dict[str, Any]:
        """What happened since the start or the last `reset`.

        `total` calls came, `answered` were sent whole with status 200, `abandoned` by the client; `streams` asked for
        a stream; `statuses` says how often each status was sent. `distinct` bodies, `most_repeated` how often one
        body came, `models`, `connections` that carried a first call. `in_flight` now and at most (`in_flight_max`);
        `running` have a place and `waiting` have none. `busy` are the seconds of all places taken, since the start.
        `tokens` were admitted, as `tpm` counts them. `billed` are dollars.
        """
        return self._ask("/stats")

    def bill(self) -> list[dict[str, Any]]:
        """Every call whose work was done while there was a price: its `digest` (of the body, in hexadecimal), `model`,
        `prompt_tokens`, `completion_tokens` and `dollars`. A call that its client left is worked on and billed
        nevertheless, unless it still waited for a place; so is one whose reply is garbled or lost on purpose. One
        that gets an error or hangs is not. A stream is billed whole when it begins."""
        return [msgspec.structs.asdict(item) for item in msgspec.convert(self._ask("/bill"), list[Item])]

    def reset(self) -> None:
        """Forget all counts and the bill; calls in flight go on."""
        self._ask("/reset", {})

    def control(self, **settings: Any) -> None:
        """Change settings while it runs; calls that have begun go on as they were."""
        self.settings = msgspec.convert(self._ask("/control", settings), Settings)

    def _ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        with self._opener.open(Request(self.root + path, data), timeout=10) as response:
            return json.load(response)


async def serve(service: Service, port: int, certificate: Path | None, with_parent: bool) -> None:
    """Serve until cancelled, or until standard input closes."""
    context = certificates.context(certificate) if certificate else None
    loop = asyncio.get_running_loop()
    server = await loop.create_server(service.connection, "127.0.0.1", port, backlog=BACKLOG, ssl=context)
    await live(server, with_parent)


def main() -> None:
    parser = argparse.ArgumentParser(
        "python -m weaverant.testing.server",
        description=__doc__,
        epilog=_told(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--certificate", type=Path, help="speak https: a PEM file with a key and its certificates")
    parser.add_argument("--settings", default="{}", help='JSON, like {"latency": 0.1, "slots": 8, "scenario": "echo"}')
    parser.add_argument("--with-parent", action="store_true", help="end when standard input closes")
    found = parser.parse_args()
    try:
        service = Service(msgspec.json.decode(found.settings, type=Settings))
    except ValueError as error:
        names = ", ".join(Settings.__struct_fields__)
        parser.exit(2, f"--settings {found.settings}: {error}; the settings are: {names}; --help tells more\n")
    try:
        asyncio.run(serve(service, found.port, found.certificate, found.with_parent))
    except OSError as error:
        parser.exit(2, f"cannot serve at port {found.port}: {error}\n")
    except KeyboardInterrupt:
        pass


def _told() -> str:
    """The settings and the scenarios, for --help."""
    settings = [
        textwrap.fill(f"{name}: {text}", 100, initial_indent="  ", subsequent_indent="      ")
        for name, text in described().items()
    ]
    names = textwrap.fill(
        ", ".join(SCENARIOS), 100, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False
    )
    return "\n".join(
        ["settings:", *settings, "", "scenarios (NAME*N is NAME for the first N times a body comes):", names]
    )


if __name__ == "__main__":
    main()
