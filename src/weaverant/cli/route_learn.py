"""`weaverant route learn`: a run's feedback folded into a router."""

from __future__ import annotations

import argparse
from pathlib import Path

from weaverant.cli.streams import put
from weaverant.errors import UserError
from weaverant.routing.folder import check_folder
from weaverant.routing.learning import learn, read_evidence, save_evidence
from weaverant.routing.router import Router


def learn_command(options: argparse.Namespace) -> int:
    router, out = Router.open(options.router), Path(options.out or options.router)
    if options.out:
        check_folder(out, replace=False)
    evidence = read_evidence(Path(options.router))
    count = learn(router, options.run, evidence)
    if not count:
        raise UserError(
            f"the run {options.run!r} has no feedback on a router's replies: its workflow gives it with "
            "`await weaverant.feedback(reply, SCORE)`. The router was left as it is"
        )
    router.save(out, replace=not options.out)
    save_evidence(evidence, out)
    if not options.quiet:
        believed = sorted(judge for judge in evidence.trust if evidence.weight(judge))
        put(f"{count:,} replies with feedback; judges that are believed: {', '.join(believed) or 'none'}")
        put(f"{out}: the router")
    return 0
