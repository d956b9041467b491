"""A command whose end is also that of whoever started it: `python leash.py COMMAND ...`, with a pipe as standard input.

Standard library only, because it starts beside every training and server. When the pipe closes, which it does however
its owner ends (kill -9 included), the whole process group goes. Its code is the command's, 128 + N after signal N.
"""

import os
import signal
import subprocess
import sys
import threading


def _wait_for_the_end_of_the_pipe() -> None:
    while os.read(0, 1):
        pass
    os.killpg(os.getpgrp(), signal.SIGKILL)


def main(command: list[str]) -> int:
    """The command's exit code."""
    try:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    except OSError as error:
        print(f"{command[0]!r} cannot be started: {error.strerror}", file=sys.stderr)
        return 127
    threading.Thread(target=_wait_for_the_end_of_the_pipe, daemon=True).start()
    code = child.wait()
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(code)  # the thread holds standard input
