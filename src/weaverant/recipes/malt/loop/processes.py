"""Processes that end with this one, in whatever way it ends, with all that they started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from weaverant.recipes.malt.loop import leash


class Leashed:
    """A command in a process group of its own. `out` is where it writes: a file, or `subprocess.PIPE`."""

    def __init__(self, command: Sequence[str], out: IO[bytes] | int, environment: Mapping[str, str] = {}) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-S", "-E", leash.__file__, *command],
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=subprocess.STDOUT,
            env=os.environ | environment,
            start_new_session=True,
        )

    @property
    def ended(self) -> bool:
        """Whether the command has ended; what it left behind is ended then, too."""
        if self.process.returncode is None:
            # Seen without being waited for: its number, which is that of the group, is nobody else's until then.
            found = os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)
            if found is None:
                return False
            self.end()
        return True

    def end(self) -> int:
        """End it with all that it started; its exit code."""
        if self.process.returncode is None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            if self.process.stdin is not None:
                self.process.stdin.close()
        return self.process.wait()


def last_words(log: Path, lines: int = 8) -> str:
    """The end of a log, for an error's text."""
    try:
        told = log.read_bytes()[-8_000:].decode(errors="replace").strip().splitlines()
    except OSError:
        return ""
    return "\n".join(f"  {line[:400]}" for line in told[-lines:])
