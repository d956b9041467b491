"""What a run amounts to: its ledger, cost and latency by agent, failures with examples, where replay diverged.

`fold` reads it from a run's directory, in one pass and bounded memory, also while the run is being written;
`of_run` takes it from a run that has just ended. `document` is the form for machines, and `row_costs` tells what
a row takes.
"""

from weaverant.summary.account import Divergence, Examples, Failure, Summary, failure_text, of_run, positive
from weaverant.summary.costs import row_costs
from weaverant.summary.document import document
from weaverant.summary.fold import fold, has_ended, has_finished
from weaverant.summary.roster import PeerSummary

__all__ = [
    "Divergence",
    "Examples",
    "Failure",
    "PeerSummary",
    "Summary",
    "document",
    "failure_text",
    "fold",
    "has_ended",
    "has_finished",
    "of_run",
    "positive",
    "row_costs",
]
