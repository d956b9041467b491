"""`weaverant join`: one more peer for a run that others work on, from this host."""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path

from weaverant.cli.fetch import attach_new
from weaverant.cli.streams import tell
from weaverant.errors import UserError
from weaverant.peers.member import Member
from weaverant.rundir import load_config
from weaverant.summary import has_finished
from weaverant.swarm.lost import LinkLost
from weaverant.swarm.places import read_key


def join_command(options: argparse.Namespace) -> int:
    directory = Path(options.directory).resolve()
    if options.store is not None:
        attach_new(directory, options.store, part=True)
    load_config(directory)
    if has_finished(directory):
        raise UserError(f"the run in {options.directory!r} has finished: there is nothing to join")
    read_key(directory)
    offers = f", offering {', '.join(options.label)}" if options.label else ""
    tell(f"joining {options.directory} as a peer{offers}; Ctrl-C leaves in order, and others go on with its rows")
    try:
        return asyncio.run(Member(directory, options.host, tuple(options.label)).work())
    except LinkLost as error:
        raise UserError(
            f"the session that works on {options.directory!r} does not answer: {error}. Join while `weaverant run "
            "--peers` or `weaverant resume --peers` goes on"
        ) from None
