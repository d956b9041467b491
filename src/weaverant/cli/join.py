"""`weaverant join`: one more peer for a run that others work on, from this host."""

from __future__ import annotations

import argparse
import asyncio
from functools import partial
from pathlib import Path

from weaverant.cli.fetch import attach_new, waiting_for
from weaverant.cli.report import STATES
from weaverant.cli.streams import tell
from weaverant.cli.text import counted
from weaverant.errors import UserError
from weaverant.journal.homes import OWN
from weaverant.journal.shelf import run_in, shelf_of
from weaverant.peers.joining import check_joinable, check_key, check_labels
from weaverant.peers.member import Member
from weaverant.swarm.listener import check_host
from weaverant.swarm.lost import LinkLost

WHY = {"left": "as it was told to", "finished": "nothing is left to do here", "interrupted": "the run was stopped"}

ALL_BEGUN = "all rows have begun: this peer takes over what others leave (a smaller --in-flight leaves more to share)"


def join_command(options: argparse.Namespace) -> int:
    directory = Path(options.directory).resolve()
    check_host(options.host)
    check_labels(options.label)
    if options.store is not None:
        run_in(options.store)
        check_key(directory, options.store)
        attach_new(directory, options.store, part=True)
    with waiting_for(directory):
        shelf_of(directory).fetch((OWN,))
    check_joinable(directory)
    offers = f", offering {', '.join(options.label)}" if options.label else ""
    member = Member(directory, options.host, tuple(options.label))
    member.joined = partial(
        tell, f"joined {options.directory} as a peer{offers}; Ctrl-C leaves in order, and others go on with its rows"
    )
    member.idle = partial(tell, ALL_BEGUN)
    try:
        code = asyncio.run(member.work())
    except LinkLost as error:
        raise UserError(
            f"the session that works on {options.directory!r} does not answer: {error}. Join while `weaverant run "
            "--peers` or `weaverant resume --peers` goes on"
        ) from None
    why = WHY.get(member.state) or STATES.get(member.state, member.state)
    tell(f"left {options.directory}: {why}; {counted(member.rows, 'row')} ended here{_answered(member)}")
    return code


def _answered(member: Member) -> str:
    return f", and {counted(member.answered, 'call')} of other peers' rows answered" if member.answered else ""
