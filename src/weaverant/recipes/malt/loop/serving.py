"""Model servers of trained folders that the embedded engine does not run: started, waited for, ended with the work.

`transformers` and `vllm` are commands that those packages bring; any other is a template with `{folder}`, `{port}` and
`{name}`: `python -m sglang.launch_server --model-path {folder} --port {port} --served-model-name {name}`.
"""

from __future__ import annotations

import json
import shlex
import shutil
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from weaverant.errors import UserError, WeaverantError
from weaverant.recipes.malt.loop.processes import Leashed, last_words
from weaverant.train.watch import Say

KNOWN = {
    "transformers": "transformers serve {folder} --host 127.0.0.1 --port {port}",
    "vllm": "vllm serve {folder} --host 127.0.0.1 --port {port} --served-model-name {name}",
}
PATIENCE = 900.0
"""Seconds that a server has to load its weights."""
LOOK_EVERY = 0.3


def check_sampling(folder: Path, how: str | None) -> None:
    """`UserError` where all replies of a server of that folder would be one and the same."""
    if how != "transformers":
        return
    path = folder / "generation_config.json"
    try:
        config: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        config = {}
    except (OSError, ValueError) as error:
        raise UserError(f"{str(path)!r} cannot be read: {error}") from None
    if config.get("do_sample") is not True:
        raise UserError(
            f'`transformers serve` samples only where {path} says "do_sample": true; it does not, so all replies to a '
            "prompt would be one, and nothing could be learned. Expected that line there, or another --serve"
        )


class Server:
    """One folder's server on a free port of this host. `spec` is what `--model` takes."""

    def __init__(self, folder: Path, how: str, log: Path) -> None:
        self.folder, self.log = folder, log
        self.port = _free_port()
        # transformers serves what it is given under that very name, a folder under its path
        self.name = str(folder) if how == "transformers" else folder.name
        template = KNOWN.get(how, how)
        log.parent.mkdir(parents=True, exist_ok=True)
        self._out = log.open("wb")
        environment = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
        self._process = Leashed(command_of(template, folder, self.port, self.name), self._out, environment)
        self._began = time.monotonic()

    @property
    def spec(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1?price=0,0#{self.name}"

    def wait(self, patience: float = PATIENCE) -> None:
        """Until it lists its model, or says that it is well. `WeaverantError` with its last lines where it ends before
        that, or does not come within `patience` seconds."""
        while not self._answers():
            if self._process.ended:
                raise WeaverantError(f"the server of {self.folder} ended before it was ready; {self._words()}")
            if time.monotonic() - self._began > patience:
                raise WeaverantError(f"the server of {self.folder} was not ready in {patience:g} s; {self._words()}")
            time.sleep(LOOK_EVERY)

    def check(self) -> None:
        """`WeaverantError` where it has died."""
        if self._process.ended:
            raise WeaverantError(f"the server of {self.folder} has died; {self._words()}")

    def end(self) -> None:
        """End it with all that it started."""
        self._process.end()
        self._out.close()

    def _words(self) -> str:
        return f"its last lines, of {self.log}:\n{last_words(self.log)}"

    def _answers(self) -> bool:
        """That of transformers lists what its cache holds, or fails to: it says at /health that it is well."""
        listed = _get(f"http://127.0.0.1:{self.port}/v1/models")
        names = {str(one.get("id")) for one in (listed or {}).get("data", [])}
        return self.name in names or _get(f"http://127.0.0.1:{self.port}/health") is not None


@contextmanager
def served(specs: Iterable[str], how: str | None, logs: Path, say: Say) -> Generator[Mapping[str, str]]:
    """What to ask in place of each spec: of a folder the address of its server, of anything else itself. Equal folders
    share a server. `UserError` where there are folders and nobody says `how`."""
    found = list(dict.fromkeys(specs))
    folders = [spec for spec in found if is_folder(spec)]
    if folders and how is None:
        raise UserError(
            f"nothing here runs {folders[0]!r}: the embedded engine takes the packaged model's family alone. Expected "
            f"--serve with {', '.join(KNOWN)}, or a command with {{folder}}, {{port}} and {{name}}"
        )
    servers: dict[str, Server] = {}
    try:
        for spec in folders:
            say(f"starting a server of {spec}")
            log = logs / f"server-{len(servers) + 1}.log"
            servers[spec] = Server(Path(spec), how or "", log)
        for server in servers.values():
            server.wait()
        try:
            yield {spec: servers[spec].spec if spec in servers else spec for spec in found}
        except WeaverantError:
            for server in servers.values():
                server.check()  # it tells more than that nobody answered
            raise
    finally:
        for server in servers.values():
            server.end()


def is_folder(spec: str) -> bool:
    """Whether a spec is a folder that wants a server."""
    return ":" not in spec.partition("/")[0] and Path(spec).is_dir()


def command_of(template: str, folder: Path, port: int | str, name: str) -> list[str]:
    """The command, its program beside this Python's where it is there."""
    try:
        words = shlex.split(template)
        filled = [word.format(folder=folder, port=port, name=name) for word in words]
    except (ValueError, LookupError) as error:
        raise UserError(
            f"--serve {template!r}: {error}. Expected a command with {{folder}}, {{port}} and {{name}}"
        ) from None
    if not any("{port}" in word for word in words):
        raise UserError(f"--serve {template!r} does not say {{port}}: expected a command with {{folder}} and {{port}}")
    beside = Path(sys.executable).parent / filled[0]  # a path that is absolute stays what it is
    program = str(beside) if beside.is_file() else shutil.which(filled[0])
    if program is None:
        raise UserError(f"--serve: there is no program {filled[0]!r} here")
    return [program, *filled[1:]]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _get(url: str) -> dict[str, Any] | None:
    """What is there; an empty mapping where it is no JSON mapping, None where nobody answers well."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=5) as answer:
            found: object = json.loads(answer.read() or b"{}")
            return found if isinstance(found, dict) else {}  # pyright: ignore[reportUnknownVariableType]
    except ValueError:
        return {}
    except (urllib.error.URLError, OSError):
        return None
