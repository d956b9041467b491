"""What an earlier run (`--reuse`) tells of the rows that are left: how many of them it has, and what calls cost that it
answered."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Set
from pathlib import Path

from weaverant.errors import UserError
from weaverant.events import StepEnded
from weaverant.journal import JournalReader
from weaverant.rundir import RunConfig, load_config

ENDED_WELL = frozenset(("done", "rejected"))
"""States of rows whose calls need not be asked again."""


class Earlier:
    """The earlier run, and the one that it was answered by itself, and so on. Those that are not there any more tell
    nothing."""

    def __init__(self, config: RunConfig) -> None:
        self._journals = [JournalReader(directory) for directory in _chain(config)]
        tasks = self._journals[0].tasks() if self._journals else ()
        self._rows = Counter(task.row for task in tasks if not task.stage and task.state in ENDED_WELL)

    def has(self, digest: bytes) -> bool:
        """Whether it has a row of this content, and trial."""
        return digest in self._rows

    def left(self, begun: Iterable[bytes]) -> int:
        """How many of its rows are none of those."""
        return (self._rows - Counter(begun)).total()

    def prices(self, wanted: Set[bytes]) -> dict[bytes, float]:
        """US dollars that a call of such a fingerprint cost, on average, by fingerprint; of those that some run paid
        for. Reads the journals until all are found."""
        found: dict[bytes, float] = {}
        for journal in self._journals:
            if missing := wanted - found.keys():
                found.update(_paid(journal, missing))
        return found


def _chain(config: RunConfig) -> Iterator[Path]:
    """The directories of the runs before, the last first."""
    been: set[str] = set()
    while config.reuse is not None and config.reuse not in been:
        been.add(config.reuse)
        directory = Path(config.reuse)
        try:
            config = load_config(directory)
        except UserError:
            return
        yield directory


def _paid(journal: JournalReader, wanted: Set[bytes]) -> dict[bytes, float]:
    """Means over replies that it asked for itself, what is only a bound apart."""
    dollars: defaultdict[bytes, float] = defaultdict(float)
    calls: Counter[bytes] = Counter()
    for event in journal.events():
        if isinstance(event, StepEnded) and event.fingerprint in wanted and event.usage.requests and not event.reused:
            calls[event.fingerprint] += event.outcome == "reply"
            dollars[event.fingerprint] += event.usage.cost - event.usage.unsure
    return {fingerprint: dollars[fingerprint] / count for fingerprint, count in calls.items() if count}
