"""A server of `bench/` as a process of its own, which ends with the block."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import ProxyHandler, build_opener

_direct = build_opener(ProxyHandler({}))


@contextmanager
def serving(script: str, *arguments: object) -> Iterator[str]:
    """The URL of `python bench/SCRIPT ARGUMENTS`, which prints its port."""
    command = [sys.executable, str(Path(__file__).with_name(script)), *map(str, arguments)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.kill()
        process.communicate()


def told(url: str, path: str) -> Any:
    """What the server says at that path."""
    with _direct.open(url + path, timeout=10) as answer:
        return json.load(answer)
