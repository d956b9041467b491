"""Throw-away certificates for servers on 127.0.0.1, good ones and bad ones."""

from __future__ import annotations

import shutil
import ssl
import tempfile
import weakref
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

Kind = Literal["good", "untrusted", "expired"]
"""`untrusted`: of another authority than the one to trust. `expired`: ended yesterday."""


class Certificate:
    """An authority (`ca`, to be trusted) and a server's certificate with its key (`server`), as PEM files.

    They last as long as this object. Needs the package `trustme`.
    """

    def __init__(self, kind: Kind = "good") -> None:
        import trustme  # of the development group, and seldom needed

        folder = tempfile.mkdtemp(prefix="weaverant-tls-")
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        self.ca = Path(folder, "ca.pem")
        self.server = Path(folder, "server.pem")
        now = datetime.now(UTC)
        authority = trustme.CA()
        authority.cert_pem.write_to_path(str(self.ca))
        issuer = trustme.CA() if kind == "untrusted" else authority
        begin, end = (-2, -1) if kind == "expired" else (-1, 30)
        issued = issuer.issue_cert(
            "127.0.0.1", "localhost", not_before=now + timedelta(begin), not_after=now + timedelta(end)
        )
        issued.private_key_and_cert_chain_pem.write_to_path(str(self.server))


def context(server: Path) -> ssl.SSLContext:
    """What a server needs to present that certificate."""
    found = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    found.load_cert_chain(server)
    return found
