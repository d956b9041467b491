"""`weaverant route learn`: a run's feedback folded into a router."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from weaverant.cli.streams import put
from weaverant.cli.text import counted
from weaverant.cli.text import table as columns
from weaverant.errors import UserError
from weaverant.routing.evidence import Evidence
from weaverant.routing.folder import check_folder
from weaverant.routing.folding import Folded, learn, read_evidence, read_kept, written
from weaverant.routing.router import Router
from weaverant.rundir import load_config


def learn_command(options: argparse.Namespace) -> int:
    folder, router = Path(options.router), Router.open(options.router)
    out = Path(options.out or options.router)
    if options.out:
        check_folder(out, replace=False, forced=False)
    evidence, kept = read_evidence(folder), read_kept(folder)
    found = learn(router, options.run, evidence, kept, load_config(Path(options.run)).run)
    if not found.scores + found.before:
        raise UserError(
            f"the run {options.run!r} has no feedback on a router's replies: its workflow gives it with "
            "`await weaverant.feedback(reply, SCORE)`. The router was left as it is"
        )
    if found.scores or options.out:
        router.aside |= written(evidence, kept)
        router.save(out, replace=not options.out)
    if not options.quiet:
        put("\n".join(_told(found, evidence)))
        put(f"{out}: the router" + ("" if found.scores or options.out else ", as it was"))
    return 0


def _told(found: Folded, evidence: Evidence) -> Iterator[str]:
    before = (
        f"; {counted(found.before, 'score')} had been learned before and did not count again" if found.before else ""
    )
    replies = "1 reply" if found.replies == 1 else f"{found.replies:,} replies"
    yield f"{counted(found.scores, 'score')} of {replies}{before}"
    rows: list[list[str]] = []
    for name, each in sorted(found.models.items()):
        right, expected = each.right / each.outcomes, each.expected / each.outcomes
        rows.append([name, f"{each.outcomes:,}", f"{right:.3f}", f"{expected:.3f}", f"{right - expected:+.3f}"])
    if rows:
        yield from columns(["model", "outcomes", "right", "expected", "gained"], rows)
    if new := sorted(name for name, each in found.models.items() if not each.known):
        yield f"not known to the router, counted beside it for pools that have them: {', '.join(new)}"
    believed = sorted(judge for judge in evidence.trust if evidence.weight(judge))
    yield f"judges that are believed: {', '.join(believed) or 'none'}"
