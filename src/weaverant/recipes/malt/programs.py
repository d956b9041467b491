"""Answers that are programs: the reply's code block must pass the row's tests, in a Python process of its own.

**This is no sandbox.** The program runs as this user, in an empty folder, with bounds on time, memory and the size of
files: against endless loops and full memories, not against malice. It can read files, use the network, and lie about
the tests if it sets out to. Run what you do not trust within a container or a virtual machine.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import signal
import subprocess
import sys
from contextlib import suppress
from tempfile import TemporaryDirectory
from typing import Any

from weaverant.errors import UserError
from weaverant.recipes.malt.limits import PATIENCE

SECONDS = 10
MEGABYTES = 1_000
FILE_MEGABYTES = 16

_BLOCK = re.compile(r"^```[ \t]*(?:python3?|py)?[ \t]*\n(.*?)(?:^```|\Z)", re.DOTALL | re.MULTILINE | re.IGNORECASE)

_HARNESS = """
import ctypes, json, os, resource, sys
told = json.loads(sys.stdin.buffer.read())
try:
    ctypes.CDLL(None).prctl(1, 9)  # Linux: killed when the process that waits for us is
except Exception:
    pass
os.set_inheritable(told["pipe"], False)
bounds = {resource.RLIMIT_CPU: told["seconds"], resource.RLIMIT_AS: told["bytes"],
          resource.RLIMIT_FSIZE: told["file"], resource.RLIMIT_CORE: 0}
for kind, most in bounds.items():
    resource.setrlimit(kind, (most, most))
def run(told):
    space, us = {"__name__": "reply"}, os.getpid()
    exec(compile(told.pop("code"), "<reply>", "exec"), space)
    exec(compile(told.pop("tests"), "<tests>", "exec"), space)
    if os.getpid() == us:  # no copy that the program made of itself
        os.write(told["pipe"], told["word"].encode())
    os._exit(0)
run(told)
"""


def tests_of(answer: Any) -> str:
    """A row's gold answer: Python that raises where the program is wrong. `UserError` where it cannot be compiled."""
    tests = answer if isinstance(answer, str) else ""
    try:
        if tests.strip():
            compile(tests, "<tests>", "exec")
            return tests
        why = "there are none"
    except (SyntaxError, ValueError) as error:
        why = str(error)
    raise UserError(f"a row needs its tests in 'answer', as Python source, for the checker 'code'; {why}")


def program_of(reply: str) -> str | None:
    """The last code block of a reply, of Python or of no named language; None where there is none."""
    blocks: list[str] = _BLOCK.findall(reply)
    return blocks[-1] if blocks and blocks[-1].strip() else None


def tested(tests: str, reply: str) -> tuple[str | None, bool, str]:
    """The reply's program, whether it passes, and why not where it did not come so far. For another process."""
    program = program_of(reply)
    if program is None:
        return None, False, "unread"
    why = _why_not(program, tests)
    return program, why is None, why or ""


def _why_not(program: str, tests: str) -> str | None:
    """None where the program passes; `out of time`, or empty where it does not."""
    word = secrets.token_hex(16)
    ours, theirs = os.pipe()
    told = {"code": program, "tests": tests, "word": word, "pipe": theirs, "seconds": SECONDS}
    told |= {"bytes": MEGABYTES * 1_000_000, "file": FILE_MEGABYTES * 1_000_000}
    try:
        with TemporaryDirectory(prefix="weaverant-code-", ignore_cleanup_errors=True) as folder:
            process = subprocess.Popen(
                [sys.executable, "-I", "-c", _HARNESS],
                stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                pass_fds=(theirs,), cwd=folder, start_new_session=True,
                env={"PATH": os.defpath, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "HOME": folder},
            )  # fmt: skip
            os.close(theirs)
            theirs = -1
            late = False
            try:
                process.communicate(json.dumps(told).encode(), timeout=PATIENCE * SECONDS)
            except subprocess.TimeoutExpired:
                late = True
            finally:
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)  # with what it started, as far as that stayed in its group
                process.wait()
        os.set_blocking(ours, False)  # a process of its that left the group may hold the other end
        with suppress(BlockingIOError):
            if os.read(ours, 64) == word.encode():
                return None
        return "out of time" if late or process.returncode in (-signal.SIGXCPU, -signal.SIGKILL) else ""
    finally:
        os.close(ours)
        if theirs >= 0:
            os.close(theirs)
