"""Test servers as processes of their own, which die with whoever started them."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Self


class Child:
    """`with` starts and ends `python -m MODULE`, which prints its port as its first line."""

    def __init__(self, module: str, port: int) -> None:
        self.port = port
        self._module = module
        self._process: subprocess.Popen[str] | None = None

    def options(self) -> Sequence[str]:
        """The command line's options, but the port."""
        return ()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start, or start again on the same port; then all counts are zero again."""
        command = [sys.executable, "-m", self._module, *self.options(), f"--port={self.port}", "--with-parent"]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            process.communicate()
            raise RuntimeError(f"{self._module} ended with {process.returncode}; its error is above")
        self._process = process
        self.port = int(line)

    def pause(self, seconds: float) -> None:
        """Freeze the process for so long: connections to it are opened by the kernel, and nothing answers."""
        process = self._process
        if process is not None:
            process.send_signal(signal.SIGSTOP)
            threading.Timer(seconds, process.send_signal, (signal.SIGCONT,)).start()

    def stop(self) -> None:
        """Kill the process: connections break as they do when a server dies."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


async def live(server: asyncio.Server, with_parent: bool) -> None:
    """Tell the port, then serve until cancelled, or until standard input closes."""
    print(server.sockets[0].getsockname()[1], flush=True)
    closed = asyncio.Event()
    if with_parent:
        asyncio.get_running_loop().add_reader(sys.stdin.fileno(), lambda: sys.stdin.buffer.read(1) or closed.set())
    await closed.wait()
    server.close()
