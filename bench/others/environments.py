"""The other libraries: which versions, where their environments are, and the commands that make and drive them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from others.asked import texts
from tree import Spent, watch

ROOT = Path(__file__).parent.parent.parent
ENVIRONMENTS = ROOT / ".venv-others"
SETTLED = {
    "HF_HUB_OFFLINE": "1",
    "LANGSMITH_TRACING": "false",
    "NEMO_TELEMETRY_ENABLED": "false",
    "TELEMETRY_ENABLED": "false",
    "OPENAI_API_KEY": "none",
}
"""Nobody asks anything of the network but the mock server, nor sends telemetry while it is measured."""


class Peer(NamedTuple):
    name: str
    requirements: tuple[str, ...]
    """With versions pinned; what a peer forgets to ask for stands beside it."""

    @property
    def python(self) -> Path:
        return ENVIRONMENTS / self.name / "bin" / "python"

    @property
    def driver(self) -> Path:
        return Path(__file__).with_name(f"on_{self.name.replace('-', '_')}.py")


PEERS = (
    Peer("distilabel", ("distilabel[openai]==1.5.3", "requests>=2.32")),
    Peer("bespokelabs-curator", ("bespokelabs-curator==0.1.31",)),
    Peer("data-designer", ("data-designer==0.9.6",)),
    Peer("sdg-hub", ("sdg-hub==0.9.4",)),
    Peer("langgraph", ("langgraph==1.2.22", "langchain-openai==1.7.3")),
)


def install(peer: Peer, seconds: float) -> str:
    """Make the peer's environment where it does not stand already. Why it cannot be made; empty where it stands."""
    folder = ENVIRONMENTS / peer.name
    done = folder / ".installed"
    wanted = "\n".join(peer.requirements)
    if done.exists() and done.read_text() == wanted:
        return ""
    pip = [peer.python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", *peer.requirements]
    for command in ([sys.executable, "-m", "venv", "--clear", folder], pip):
        try:
            ran = subprocess.run(command, check=False, capture_output=True, text=True, timeout=seconds)
        except subprocess.TimeoutExpired:
            return f"not installed within {seconds:.0f} s"
        if ran.returncode:
            return f"not installed: {last_line(ran.stderr)}"
    done.write_text(wanted)
    return ""


def drive(peer: Peer, url: str, rows: int, at_once: int, seconds: float, folder: Path, stages: int = 1) -> Spent:
    """Run the peer over so many rows, with an empty folder as its home."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    asked = ["--url", f"{url}/v1", "--rows", rows, "--at-once", at_once, "--stages", stages, "--folder", folder]
    env = {**os.environ, **SETTLED, "HOME": str(folder)}
    return watch([peer.python, peer.driver, *asked], seconds, folder, env)


def drive_ours(model: str, rows: int, at_once: int, seconds: float, folder: Path, workflow: str = "once") -> Spent:
    """`weaverant run` on a JSONL file, with its journal, as everybody runs it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in texts(rows)))
    command = [sys.executable, "-m", "weaverant", "run", f"{Path(__file__).with_name('ours.py')}:{workflow}"]
    options = ["--input", "rows.jsonl", "--run", "run", "--model", model, "--concurrency", at_once]
    return watch([*command, *options], seconds, folder)


def told(spent: Spent) -> dict[str, object]:
    """What a driver told in its last line; empty where it did not come so far."""
    line = last_line(spent.output)
    return json.loads(line) if line.startswith('{"package"') else {}


def last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")
