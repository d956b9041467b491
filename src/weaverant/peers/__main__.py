"""`python -m weaverant.peers office|peer RUN`: what the driver starts. People join with `weaverant join RUN`."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import threading
from pathlib import Path

import msgspec

from weaverant.errors import JournalError, UserError, WeaverantError, shown
from weaverant.journal.shelf import attach_once
from weaverant.session import EXIT_CODES


def main() -> int:
    """The process's exit code."""
    parser = argparse.ArgumentParser(prog="python -m weaverant.peers", description=__doc__)
    parser.add_argument("what", choices=("office", "peer"))
    parser.add_argument("directory", type=Path)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--label", action="append", default=[])
    parser.add_argument("--store", help="make the directory one of the run in that store, where it is none yet")
    parser.add_argument("--leashed", action="store_true", help="end at once when standard input does")
    options = parser.parse_args()
    try:
        return asyncio.run(_office(options) if options.what == "office" else _peer(options))
    except WeaverantError as error:
        print(f"weaverant: {shown(error)}", file=sys.stderr)
        return EXIT_CODES["journal"] if isinstance(error, JournalError) else 2 if isinstance(error, UserError) else 1


async def _office(options: argparse.Namespace) -> int:
    from weaverant.swarm.office import Office, Plan
    from weaverant.swarm.places import read_key

    plan = msgspec.json.decode(sys.stdin.buffer.readline(), type=Plan)
    _heed(options)
    await Office(options.directory, read_key(options.directory), plan, options.host).run()
    return 0


async def _peer(options: argparse.Namespace) -> int:
    from weaverant.peers.member import Member

    _heed(options)
    if options.store is not None:
        attach_once(options.directory, options.store)
    return await Member(options.directory, options.host, tuple(options.label)).work()


def _heed(options: argparse.Namespace) -> None:
    """Whoever started this process may die without a word, and then nobody would end it."""

    def watch() -> None:
        while os.read(0, 4096):
            pass
        os._exit(1)

    if options.leashed:
        threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    sys.exit(main())
