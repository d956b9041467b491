"""The command line: `weaverant run | resume | show | export | train | improve | route | recipes | models | init`.

Exit codes: 0 all finished; 1 the run could not go on, or an output could not be written; 2 bad usage; 3 finished but
some rows failed; 4 stopped and resumable; 5 the budget is used up, resumable with a larger one. A user's mistake is one
message on standard error and no traceback.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from weaverant.cli.streams import prepare, put, settle, tell
from weaverant.errors import UserError, WeaverantError

COULD_NOT_GO_ON = 1
BAD_USAGE = 2
SOME_FAILED = 3
STOPPED = 4
"""To be resumed."""
INTERRUPTED = 130
"""Ctrl-C in a command that leaves nothing to resume: what shells report for SIGINT."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; gives the exit code."""
    prepare()
    given = sys.argv[1:] if arguments is None else arguments
    try:
        return _command(given)
    except UserError as error:
        return complain(error, BAD_USAGE)
    except WeaverantError as error:
        return complain(error, COULD_NOT_GO_ON)
    except BrokenPipeError:  # as in `weaverant show DIR | head`: whoever reads has enough
        return COULD_NOT_GO_ON
    except KeyboardInterrupt:
        return STOPPED if list(given[:1]) == ["resume"] else INTERRUPTED
    finally:
        settle()


def _command(arguments: Sequence[str]) -> int:
    from weaverant.cli.arguments import parse

    try:
        options = parse(arguments)
    except SystemExit:  # --help and --version
        put("", end="")
        raise
    code: int = options.command(options)
    return code


def complain(error: BaseException | str, code: int) -> int:
    """Tell what went wrong; gives the code back."""
    tell(f"weaverant: error: {error}")
    return code
