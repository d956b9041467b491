"""The counts of a run on peers: what each has told, and what earlier sessions left."""

from __future__ import annotations

from collections import Counter
from copy import deepcopy
from pathlib import Path

from weaverant.events import NO_USAGE
from weaverant.journal import JournalReader
from weaverant.message import Usage, total
from weaverant.runtime.ledger import Ledger, StageCounts
from weaverant.swarm import messages as words
from weaverant.swarm.messages import Counts
from weaverant.swarm.office import add_to


class PeersLedger(Ledger):
    """What all peers have told, and what earlier sessions left."""

    def __init__(self, stages: list[str]) -> None:
        super().__init__(stages)
        self.before: list[StageCounts] = list(self.stages)
        """Rows that had ended when the session began."""
        self._told: list[Counts] = []

    def take(self, members: list[words.Member]) -> None:
        """What they have told last."""
        self._told = [member.counts for member in members]
        stages = deepcopy(self.before)
        for member in members:
            add_to(stages, member.counts.stages, member.state != "working")
        self.stages = stages

    def settle(self, run: Path) -> None:
        """What the journals say has ended: of a peer that was killed, nobody has told the last."""
        for number, counts in JournalReader(run).counts().items():
            stage = self.stages[number]
            stage.done, told = counts.done, stage.rows
            _make_up(stage.rejected, counts.rejected)
            _make_up(stage.failed, counts.failed)
            stage.rows = max(told, stage.ended)

    def usage(self) -> Usage:
        return total([NO_USAGE, *(told.usage for told in self._told)])

    @property
    def calls(self) -> int:
        return sum(told.calls for told in self._told)


def _make_up(reasons: Counter[str], total: int) -> None:
    """The reasons of the last, nobody knows."""
    if missing := total - reasons.total():
        reasons["(untold)"] += missing
