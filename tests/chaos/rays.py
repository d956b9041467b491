"""Ray on the two hosts: the head of a cluster near, its second node far, each at its own address, in a folder of its own.

As `docs/ray.md` has it, but small: one processor each, an object store as small as Ray takes it, and no dashboard.
"""

from __future__ import annotations

import secrets
from importlib.util import find_spec
from pathlib import Path

from chaos.hosts import ADDRESSES, Host

ADDRESS = f"{ADDRESSES['near']}:6379"
"""Of the head."""
STORE_BYTES = 80_000_000


def why_not() -> str:
    """Why there can be no Ray here; empty where there can."""
    return "" if find_spec("ray") else 'Ray is not installed in this environment: pip install "weaverant[ray]"'


def environment() -> dict[str, str]:
    """What all need who come to the cluster."""
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0"}


def start(host: Host, folder: Path) -> list[str]:
    """What Python is to be given to start that host's node, in a new folder; it returns once the node is there."""
    head = ["--head", "--port", ADDRESS.rpartition(":")[2], "--include-dashboard", "false"]
    where = head if host == "near" else ["--address", ADDRESS]
    return [
        "-m", "ray.scripts.scripts", "start", *where, "--node-ip-address", ADDRESSES[host],
        "--temp-dir", str(folder / f"ray-{host}"), "--num-cpus", "1", "--object-store-memory", str(STORE_BYTES),
        "--disable-usage-stats",
    ]  # fmt: skip
