"""The counts of a run on peers: what each has told, and what earlier sessions left."""

from __future__ import annotations

from collections import Counter
from copy import deepcopy
from operator import sub
from pathlib import Path

import msgspec
from msgspec.structs import astuple

from weaverant.events import NO_USAGE
from weaverant.journal import JournalReader
from weaverant.message import Usage, total
from weaverant.runtime.ledger import Ledger, StageCounts
from weaverant.swarm import messages as words
from weaverant.swarm.office import add_to


class PeersLedger(Ledger):
    """What all peers have told last, those that are gone included, and what earlier sessions left. An office knows only
    who has come to it: whom one before it knew is remembered here."""

    def __init__(self, stages: list[str]) -> None:
        super().__init__(stages)
        self.before: list[StageCounts] = list(self.stages)
        """Rows that had ended when the session began."""
        self.earlier_usage = NO_USAGE
        """What earlier sessions recorded."""
        self._told: dict[int, words.Member] = {}
        """By epoch."""
        self._settled: tuple[int, Usage] | None = None

    def take(self, members: list[words.Member]) -> None:
        """What they have told last. One that is not there any more counts as gone."""
        before, self._told = self._told, {member.epoch: member for member in members}
        for epoch, member in before.items():
            now = self._told.get(epoch)
            if now is None:
                self._told[epoch] = msgspec.structs.replace(member, state="gone")
            elif now.counts.calls < member.counts.calls:  # a new office has not heard a beat of it yet
                self._told[epoch] = msgspec.structs.replace(now, counts=member.counts)
        stages = deepcopy(self.before)
        for member in self._told.values():
            add_to(stages, member.counts.stages, member.state != "working")
        for stage, shown in zip(stages, self.stages, strict=True):
            stage.rows = max(stage.rows, shown.rows)  # what had begun at one that is gone is begun again by others
        self.stages = stages

    def settle(self, run: Path) -> None:
        """What the journals say: of a peer that was killed, nobody has told the last. Raises `JournalError`."""
        reader = JournalReader(run)
        for number, counts in reader.counts().items():
            stage = self.stages[number]
            stage.done, told = counts.done, stage.rows
            _make_up(stage.rejected, counts.rejected)
            _make_up(stage.failed, counts.failed)
            stage.rows = max(told, counts.total - counts.superseded)
        used = map(sub, astuple(total(list(reader.usage().values()))), astuple(self.earlier_usage))
        self._settled = reader.calls() - self.earlier_calls, Usage(*used)

    def usage(self) -> Usage:
        if self._settled is not None:
            return self._settled[1]
        return total([NO_USAGE, *(told.counts.usage for told in self._told.values())])

    @property
    def calls(self) -> int:
        return sum(told.counts.calls for told in self._told.values()) if self._settled is None else self._settled[0]

    @property
    def cut(self) -> int:
        """Calls that were cut off."""
        return sum(told.counts.cut for told in self._told.values())


def _make_up(reasons: Counter[str], total: int) -> None:
    """The reasons of the last, nobody knows."""
    if missing := total - reasons.total():
        reasons["(untold)"] += missing
