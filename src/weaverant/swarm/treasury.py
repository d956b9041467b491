"""The cap of a run on peers: the office's account of who may spend how much. It reads no clock and does no I/O.

At every instant the allowances of the peers that may live, and what the journals of all others tell, are at most the
cap. A journal that has ended is read for what was really spent there, and only then its peer's allowance is free.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from weaverant.errors import JournalError
from weaverant.events import Shortfall
from weaverant.journal import JournalReader
from weaverant.journal.homes import OWN
from weaverant.journal.shelf import shelf_of
from weaverant.runtime.budget import ROUNDING
from weaverant.swarm.messages import Given, Money

AHEAD = 32
"""A piece for calls to come is no more than this part of a peer's share of the cap."""


class Treasury:
    """All amounts are US dollars. A new one gives nothing until all that lived before it have joined or have ended.

    Who waits for money is served in turn. What all of them have and may yet get for calls in flight is shared evenly:
    where money is short, who has more than its part gives back what comes free there before it uses it itself.
    """

    def __init__(self, cap: float, awaited: Iterable[int], ended: Iterable[int], planned: int = 1) -> None:
        """`awaited` are peers that may live, of whose allowances nobody knows yet; `ended` those who do not. The first
        of `planned` ones to ask leaves the others theirs."""
        self._cap = cap
        self._missing = planned
        """Peers that are to come for the first time."""
        self._awaited = set(awaited)
        self._ended = set(ended)
        self._counted: set[int] | None = None
        self._spent = 0.0
        """In the journals of those counted, and by earlier sessions."""
        self._allowances: dict[int, float] = {}
        """Of those who live, and of those whose journals are not counted yet."""
        self._told: dict[int, Money] = {}
        """By those who live."""
        self._queue: dict[int, None] = {}
        """Who waits for money, in the order in which they are to be served."""
        self._asked: set[int] = set()
        """Who was told that money is short, since it is."""
        self._answered: set[int] = set()
        """Who has told of its money after that."""
        self.used_up = False
        """Nothing that is in flight can make room for a call that waits."""

    @property
    def left(self) -> float:
        """What nobody has."""
        return self._cap - self._spent - sum(self._allowances.values())

    @property
    def short(self) -> Shortfall | None:
        """What waits for money; None where nothing does."""
        waiting = [told.waiting for _, told in sorted(self._told.items()) if told.waiting is not None]
        if not waiting:
            return None
        return Shortfall(sum(one.calls for one in waiting), waiting[0].first, max(one.most for one in waiting))

    def join(self, epoch: int, money: Money | None) -> None:
        """A peer begins, or comes with what it has."""
        self._awaited.discard(epoch)
        self._missing -= epoch not in self._told
        self._take(epoch, money or Money(0, 0.0))

    def beat(self, epoch: int, money: Money) -> Given | None:
        """What a peer has from now on; None where it has told something newer. It must have joined."""
        if not self._take(epoch, money):
            return None
        if money.need:
            self._queue.setdefault(epoch)
        else:
            self._queue.pop(epoch, None)
        tight = self._is_tight()
        if epoch in self._asked:
            self._answered.add(epoch)
        if not tight:
            self._asked, self._answered = set(), set()
        if money.need and self._knows and money.need <= self._free_for(epoch):
            self._allowances[epoch] += self._piece(epoch, money, tight)
            del self._queue[epoch]
        elif self._is_used_up():
            self.used_up = True
        if tight:
            self._asked.add(epoch)
        return Given(self._allowances[epoch], tight, self._part if tight else 0.0)

    def end(self, epoch: int) -> None:
        """Its home is fenced: what it has spent is to be read there."""
        self._awaited.discard(epoch)
        self._told.pop(epoch, None)
        self._queue.pop(epoch, None)
        self._ended.add(epoch)

    @property
    def to_count(self) -> list[int] | None:
        """Whose journals are to be read by now, all together; None where nothing is new."""
        return None if self._ended == self._counted else sorted(self._ended)

    def counted(self, epochs: Iterable[int], dollars: float) -> None:
        """So much was spent or set aside in these journals and by sessions of one process."""
        self._counted, self._spent = set(epochs), dollars
        for epoch in self._counted:
            self._allowances.pop(epoch, None)

    @property
    def _knows(self) -> bool:
        """Whether it can be said what is left. The allowance of one that ended before it joined here is unknown until
        its journal is counted."""
        return (
            not self._awaited
            and self._counted is not None
            and not self._ended - self._counted - self._allowances.keys()
        )

    def _take(self, epoch: int, money: Money) -> bool:
        if epoch in self._told and money.serial <= self._told[epoch].serial:
            return False
        self._told[epoch] = money
        self._allowances[epoch] = money.have
        return True

    def _free_for(self, epoch: int) -> float:
        """What is left once those have what they lack who are to be served before."""
        free = self.left + self._cap * ROUNDING
        for other in self._queue:
            if other == epoch:
                break
            free -= self._told[other].need
        return free

    def _piece(self, epoch: int, money: Money, tight: bool) -> float:
        """For all calls that wait, and something for the next: little against the cap, and the less the less is left.
        Where money is short, nothing for the next, and the others that wait have their part."""
        room = self._part - (money.have - money.floor)
        if tight:
            piece = min(money.wants, self.left / len(self._queue), room)
            return max(money.need, min(piece, self._free_for(epoch)))
        peers = len(self._told) + max(0, self._missing)
        ahead = min(self.left / (2 * peers), self._cap / (AHEAD * peers))
        return max(money.need, min(max(money.wants, ahead), self.left / peers, room))

    @property
    def _part(self) -> float:
        """What a peer that wants it may have for calls in flight, where all who do have as much, and those that are
        missed, too."""
        held = {epoch: max(0.0, self._allowances[epoch] - told.floor) for epoch, told in self._told.items()}
        those = sum(epoch in self._queue or dollars > 0.0 for epoch, dollars in held.items())
        return max(0.0, self.left + sum(held.values())) / max(1, those + max(0, self._missing))

    def _is_tight(self) -> bool:
        """Whether there is too little for the calls that have waited longest."""
        return self._knows and sum(self._told[epoch].need for epoch in self._queue) > self.left + self._cap * ROUNDING

    def _is_used_up(self) -> bool:
        if self._counted != self._ended or not self._knows:
            return False
        floor = self._spent + sum(told.floor for told in self._told.values())
        most = self._cap * (1 + ROUNDING / 2)
        if self._answered >= self._told.keys() and any(floor + told.least > most for told in self._told.values()):
            return True
        return floor > self._cap * (1 + 2 * ROUNDING)


def spent_in(run: Path, epochs: Sequence[int]) -> float:
    """US dollars that were spent or set aside in the journals of these epochs, which have ended, and by sessions of one
    process. A task that moved between them counts where it is. Raises `JournalError`, `JournalCorrupt`."""
    try:
        shelf = shelf_of(run)
        for epoch in epochs:
            shelf.fence(epoch, "it has ended")
        shelf.fetch([OWN, *epochs])
    except OSError as error:
        raise JournalError(f"a journal of {str(run)!r} cannot be ended: {error.strerror or error}") from error
    reader = JournalReader(run, [OWN, *epochs])
    return sum(usage.cost for usage in reader.usage().values()) + reader.reserved().dollars
