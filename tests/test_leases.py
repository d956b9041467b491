"""The lease book: what it grants and when, by hand, and in simulated worlds that try to break it; and books that are
broken, which the worlds must find."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise

import pytest

from simulated_leases import Broken, weave
from weaverant.swarm.leases import Cut, Grant, Holding, LeaseBook, Orders, Record, Stranger
from weaverant.swarm.spans import Claim, Spans, fold
from weaverant.swarm.tails import Lease

WORLDS = 1_000
WITHIN = 200
"""Worlds in which a planted fault must be found."""
G1, G2, G3 = 1 << 40, 2 << 40, 3 << 40


def new_book(total: int | None = 1000, **sizes: int) -> LeaseBook:
    return LeaseBook(1, (), (), total, 0.0, closed_homes=(), **({"rows": 100, "least": 10} | sizes))


def holdings(grants: Iterable[Grant], begun: int = 0) -> list[Holding]:
    return [Holding(grant.number, grant.start, grant.stop, grant.start + begun, grant.prior) for grant in grants]


def take(book: LeaseBook, epoch: int, wants: int, now: float = 0.0) -> list[Grant]:
    """Grants that the peer has told of."""
    grants = book.beat(epoch, wants, (), now).grants
    book.beat(epoch, 0, holdings(grants), now)
    return grants


# Worlds


def test_every_row_ends_once_in_every_world():
    seen: Counter[str] = Counter()
    for seed in range(WORLDS):
        try:
            seen += weave(seed).seen
        except Broken as broken:
            pytest.fail(f"world {seed}: {broken}")
    happened = {"lost", "death", "stall", "leave", "fence", "office killed", "office stalled", "cut", "found ended"}
    print(f"{WORLDS:,} worlds: {dict(seen)}")
    assert happened <= seen.keys() and min(seen[what] for what in happened) > WORLDS // 4, seen


class GrantsBeforeAllHaveJoined(LeaseBook):
    def _settle(self) -> None:
        awaited, self._awaited = self._awaited, set()
        super()._settle()
        self._awaited = awaited


class ForgetsPrior(LeaseBook):
    def _set_free(self, lease, start, prior):
        super()._set_free(lease, start, ())


class DoesNotWaitForTheFence(LeaseBook):
    def silent(self, now):
        found = super().silent(now)
        for epoch in found:
            self.gone(epoch, ())
        return found


class GrantsAgainUnderANewNumber(LeaseBook):
    def beat(self, epoch, wants, holdings, now):
        told = list(holdings)
        if epoch in self._peers:
            peer = self._peers[epoch]
            for lease in [lease for number, lease in peer.untold.items() if number not in {h.number for h in told}]:
                del peer.untold[lease.number], peer.leases[lease.number]
                self._number += 1
                lease.number = self._number
                peer.untold[lease.number] = peer.leases[lease.number] = lease
        return super().beat(epoch, wants, told, now)


class GrantsOnce(LeaseBook):
    def beat(self, epoch, wants, holdings, now):
        orders = super().beat(epoch, wants, holdings, now)
        for lease in self._peers[epoch].untold.values():
            self._tails.add(lease)
        self._peers[epoch].untold.clear()
        return orders


class FreesLostGrants(LeaseBook):
    def beat(self, epoch, wants, holdings, now):
        told = list(holdings)
        if epoch in self._peers:
            peer = self._peers[epoch]
            for lease in [lease for number, lease in peer.untold.items() if number not in {h.number for h in told}]:
                self._leave(peer, lease)
                self._set_free(lease, lease.start, lease.prior)
        return super().beat(epoch, wants, told, now)


class StealsWithoutConsent(LeaseBook):
    def _ask(self, peer, wants):
        super()._ask(peer, wants)
        if (lease := peer.asked) is not None and lease.live and lease.asked:
            self.cut(lease.epoch, lease.number, lease.wanted)


class LosesTheCutTail(LeaseBook):
    def _shrink(self, peer, lease, stop):
        free, self._set_free = self._set_free, lambda *_: None
        super()._shrink(peer, lease, stop)
        self._set_free = free


class ForgetsItsGeneration(LeaseBook):
    def __init__(self, *given, **more):
        super().__init__(*given, **more)
        self._number = 1 << 40


class RevivesEndedLeases(LeaseBook):
    def beat(self, epoch, wants, holdings, now):
        told = list(holdings)
        for holding in told:
            if epoch in self._peers and holding.number not in self._peers[epoch].leases:
                lease = Lease(epoch, holding.number, holding.start, holding.stop, holding.prior)
                self._enter(self._peers[epoch], lease)
        return super().beat(epoch, wants, told, now)


class ReadsHomesOnlyOnce(LeaseBook):
    def gone(self, epoch, records=None):
        super().gone(epoch, ())

    leave = gone


class TakesEndsForWhatWasGranted(LeaseBook):
    def done(self, epoch, number, stop):
        super().done(epoch, number, 1 << 60)


class LetsTheDeadJoin(LeaseBook):
    def join(self, epoch, holdings, now):
        self._ended.clear()
        super().join(epoch, holdings, now)


class SaysTooEarlyThatNothingIsLeft(LeaseBook):
    @property
    def finished(self):
        return self._settled and self.total is not None and not self.free


BROKEN = [
    GrantsBeforeAllHaveJoined, ForgetsPrior, DoesNotWaitForTheFence, GrantsAgainUnderANewNumber, GrantsOnce,
    FreesLostGrants, StealsWithoutConsent, LosesTheCutTail, ForgetsItsGeneration, RevivesEndedLeases,
    ReadsHomesOnlyOnce, TakesEndsForWhatWasGranted, LetsTheDeadJoin, SaysTooEarlyThatNothingIsLeft,
]  # fmt: skip


@pytest.mark.parametrize("book", BROKEN)
def test_worlds_find_planted_faults(book):
    for seed in range(WITHIN):
        try:
            weave(seed, book)
        except Broken as broken:
            print(f"{book.__name__}: in world {seed} of {WITHIN}, {broken}")
            return
    pytest.fail(f"{book.__name__} lives through {WITHIN} worlds")


# Sizes


def test_pieces_shrink_towards_a_known_end():
    book = new_book(total=1000, rows=100, least=10)
    for epoch in (1, 2):
        book.join(epoch, (), 0.0)
    sizes = [grant.stop - grant.start for n in range(40) for grant in take(book, 1 + n % 2, 100)]
    assert sum(sizes) == 1000 and book.free == 0 and book.leased == 1000
    assert sizes[:6] == [100] * 6 and sizes[6] == 100 and sizes[7:10] == [75, 57, 42]
    assert all(a >= b for a, b in pairwise(sizes)) and set(sizes[-3:-1]) == {10}


def test_pieces_grow_where_the_end_is_not_known():
    book = new_book(total=None, rows=100, least=10)
    book.join(1, (), 0.0)
    assert [grant.stop - grant.start for _ in range(6) for grant in take(book, 1, 1000)] == [10, 20, 40, 80, 100, 100]


def test_a_peer_gets_what_it_wants_in_grants_of_so_many_rows_at_most():
    book = new_book(total=100_000, rows=100, least=10)
    book.join(1, (), 0.0)
    assert [grant.stop - grant.start for grant in take(book, 1, 250)] == [100, 100, 50]
    assert [grant.stop - grant.start for grant in take(book, 1, 1)] == [10]
    assert take(book, 1, 0) == []


# Grants


def test_a_grant_is_given_again_until_it_is_told_of():
    book = new_book(total=25)
    book.join(1, (), 0.0)
    first = book.beat(1, 10, (), 0.0).grants
    assert first == [Grant(G1 + 1, 0, 10)]
    assert book.beat(1, 10, (), 0.5).grants == first, "what is on its way is wanted no more"
    both = book.beat(1, 20, (), 1.0).grants
    assert both == [*first, Grant(G1 + 2, 10, 20)]
    assert book.beat(1, 0, holdings(first), 1.5).grants == both[1:]
    book.done(1, G1 + 2, 20)
    assert book.beat(1, 0, (), 2.0).grants == []
    assert (book.leased, book.free, book.ended) == (10, 5, 10)


def test_what_is_free_again_is_leased_first_the_lowest_before_all_and_to_several():
    book = new_book(total=100_000, rows=100)
    for epoch in (1, 2, 3):
        book.join(epoch, (), 0.0)
    assert [take(book, epoch, 100)[0].start for epoch in (1, 2, 3, 1)] == [0, 100, 200, 300]
    book.gone(1)
    assert book.free == 100_000 - 200
    assert [(g.start, g.stop, g.prior) for g in take(book, 2, 60)] == [(0, 60, (1,))]
    assert [(g.start, g.stop, g.prior) for g in take(book, 3, 60)] == [(60, 100, (1,)), (300, 320, (1,))]
    book.leave(3)
    assert [(g.start, g.stop, g.prior) for g in take(book, 2, 50)] == [(60, 100, (1, 3)), (200, 210, (3,))]


def test_all_is_said_to_be_done_once_it_is():
    book = new_book(total=10)
    book.join(1, (), 0.0)
    (grant,) = take(book, 1, 10)
    assert not book.beat(1, 0, holdings([grant]), 1.0).nothing_left and not book.finished
    book.done(1, grant.number, grant.stop)
    book.done(1, grant.number, grant.stop)
    assert book.beat(1, 5, (), 1.0) == Orders([], [], True) and book.finished and book.ended == 10


# Stealing


def test_the_longest_tail_is_halved_with_its_holders_consent():
    book = new_book(total=40, least=20)
    for epoch in (1, 2, 3, 4):
        book.join(epoch, (), 0.0)
    (long,), (short,) = take(book, 1, 20), take(book, 2, 20)
    book.beat(2, 0, holdings([short], 15), 0.1)
    assert book.beat(3, 20, (), 0.2) == Orders([], [], False)
    ask = [Cut(long.number, 10)]
    assert book.beat(1, 0, holdings([long]), 0.3).cuts == ask
    assert book.beat(1, 0, holdings([long]), 0.4).cuts == ask, "the answer may have been lost"
    assert book.beat(3, 20, (), 0.5) == Orders([], [], False), "nothing is free before the consent"
    assert book.beat(2, 0, holdings([short], 15), 0.6).cuts == [], "one ask on behalf of one peer"
    assert book.beat(4, 20, (), 0.7).cuts == []
    assert book.beat(2, 0, holdings([short], 15), 0.8).cuts == [Cut(short.number, 37)], "the other lease is asked now"
    book.cut(1, long.number, 12)
    assert book.beat(1, 0, holdings([long], 12), 0.9).cuts == []
    assert [(g.start, g.stop, g.prior) for g in take(book, 3, 20, 1.0)] == [(12, 20, ())]


def test_an_ask_is_forgotten_after_a_while_and_a_refusal_is_respected_as_long():
    book = new_book(total=20, least=20)
    for epoch in (1, 2):
        book.join(epoch, (), 0.0)
    (lease,) = take(book, 1, 20)

    def asked(now: float) -> list[Cut]:
        book.beat(2, 5, (), now)
        return book.beat(1, 0, holdings([lease]), now).cuts

    assert asked(1.0) == asked(3.0) == [Cut(lease.number, 10)]
    assert book.beat(1, 0, holdings([lease]), 5.0).cuts == [], "after a lease time it is forgotten"
    assert asked(5.1) == [Cut(lease.number, 10)]
    book.cut(1, lease.number, lease.stop)
    assert asked(6.0) == asked(9.0) == []
    assert asked(10.1) == [Cut(lease.number, 10)]


def test_a_holding_with_an_earlier_stop_is_a_consent_and_a_late_one_changes_nothing():
    book = new_book(total=20, least=20)
    for epoch in (1, 2):
        book.join(epoch, (), 0.0)
    (lease,) = take(book, 1, 20)
    shorter = Holding(lease.number, 0, 8, 8)
    book.beat(1, 0, [shorter], 1.0)
    book.beat(1, 0, holdings([lease]), 1.1)
    assert (book.leased, book.free) == (8, 12)
    book.done(1, lease.number, 8)
    book.beat(1, 0, [shorter], 1.2)
    assert (book.leased, book.free, book.ended) == (0, 12, 8)


def test_an_end_that_overtakes_a_consent_says_how_far_it_goes():
    book = new_book(total=20, least=20)
    book.join(1, (), 0.0)
    (lease,) = take(book, 1, 20)
    book.done(1, lease.number, 15)
    book.cut(1, lease.number, 15)
    assert (book.leased, book.free, book.ended) == (0, 5, 15)


# The end of a source


def test_leases_beyond_the_end_are_cut():
    book = new_book(total=None, least=10)
    for epoch in (1, 2):
        book.join(epoch, (), 0.0)
    first, second, third = take(book, 1, 10), take(book, 2, 10), take(book, 1, 20)
    assert [g.start for g in (*first, *second, *third)] == [0, 10, 20]
    book.leave(2)
    book.source_ended(15)
    assert (book.total, book.leased, book.free) == (15, 10, 5)
    book.done(1, first[0].number, 10)
    book.done(1, third[0].number, 20)
    assert [(g.start, g.stop, g.prior) for g in take(book, 1, 10)] == [(10, 15, (2,))]
    with pytest.raises(ValueError, match="ends after 9 tasks and had 10"):
        book.source_ended(9)


def test_who_looks_behind_the_end_learns_only_that_there_is_nothing():
    book = new_book(total=None, least=64)
    for epoch in (1, 2):
        book.join(epoch, (), 0.0)
    (first,), (second,) = take(book, 1, 64), take(book, 2, 64)
    book.source_ended(64)
    book.done(2, second.number, 64)
    assert (book.total, book.leased, book.ended) == (64, 64, 0) and not book.finished
    book.source_ended(10)
    book.source_ended(64)
    assert (book.total, book.leased) == (10, 10)
    book.done(1, first.number, 10)
    assert book.finished and book.ended == 10


def test_a_total_that_was_known_stays():
    book = new_book(total=20)
    book.source_ended(20)
    with pytest.raises(ValueError, match="ends after 19 tasks and had 20"):
        book.source_ended(19)


# Silence


def test_who_is_unheard_for_a_lease_time_is_silent_and_free_only_behind_its_fence():
    book = new_book(total=20, least=20)
    for epoch in (1, 2):
        book.join(epoch, (), 0.0)
    take(book, 1, 20)
    book.beat(2, 0, (), 3.0)
    assert book.earliest_deadline == 4.0 and book.silent(3.9) == []
    assert book.silent(4.0) == book.silent(4.1) == [1] and book.earliest_deadline == 7.0
    for late in (lambda: book.beat(1, 0, (), 4.2), lambda: book.join(1, (), 4.2), lambda: book.done(1, G1 + 1, 20)):
        with pytest.raises(Stranger, match="epoch 1"):
            late()
    assert book.beat(2, 20, (), 4.3).grants == []
    book.gone(1)
    book.gone(1)
    assert [(g.start, g.stop, g.prior) for g in book.beat(2, 20, (), 4.4).grants] == [(0, 20, (1,))]
    with pytest.raises(Stranger):
        book.join(1, (), 5.0)
    assert book.silent(5.0) == []


def test_a_book_that_was_deaf_gives_peers_time_to_be_heard():
    book = new_book()
    for epoch in (1, 2):
        book.join(epoch, (), 0.0)
        book.beat(epoch, 0, (), 1.0)
    assert book.silent(60.0) == []
    book.beat(1, 0, (), 60.5)
    assert book.silent(61.9) == [] and book.silent(62.1) == [2]


# Restarts


def restarted(**more: object) -> LeaseBook:
    """Of homes 1 (open), 2 (open), 3 (fenced) and 4 (closed)."""
    records = [
        Record(3, G1 + 1, 0, 10, False), Record(4, G1 + 2, 10, 20, True), Record(1, G1 + 3, 20, 30, False),
        Record(4, G1 + 4, 40, 50, False), Record(2, G1 + 5, 45, 50, False), Record(1, G1 + 6, 0, 5, False),
    ]  # fmt: skip
    return LeaseBook(2, records, [1, 2], 60, 0.0, closed_homes=[3, 4], rows=100, least=100, **more)


def test_a_new_office_grants_nothing_before_all_open_homes_are_known():
    book = restarted()
    book.join(5, (), 0.0)
    assert book.waiting == [1, 2] and book.beat(5, 100, (), 0.1).grants == []
    with pytest.raises(Stranger):
        book.beat(1, 0, (), 0.1)
    book.join(1, [Holding(G1 + 3, 20, 28, 25), Holding(G1 + 6, 0, 5, 5, (3,))], 0.2)
    assert book.waiting == [2] and book.beat(5, 100, (), 3.0).grants == []
    book.beat(1, 0, (), 3.0)
    assert book.silent(4.5) == [2] and book.beat(5, 100, (), 4.6).grants == [] and not book.finished
    with pytest.raises(ValueError, match="read again"):
        book.gone(2)
    book.gone(2, [Record(2, G1 + 5, 45, 50, False), Record(2, G1 + 7, 50, 55, False)])
    assert (book.leased, book.ended, book.free) == (13, 10, 37)
    granted = [(grant.start, grant.stop, grant.prior) for grant in book.beat(5, 100, (), 4.7).grants]
    assert granted == [
        (5, 10, (3,)), (28, 40, ()), (40, 45, (4,)), (45, 50, (2, 4)), (50, 55, (2,)), (55, 60, ()),
    ]  # fmt: skip


def test_peers_end_and_cut_leases_while_the_office_waits():
    book = restarted()
    book.join(1, [Holding(G1 + 3, 20, 30, 25), Holding(G1 + 6, 0, 5, 5, (3,))], 0.2)
    book.done(1, G1 + 6, 5)
    book.cut(1, G1 + 3, 27)
    book.leave(1)
    book.join(2, (), 0.3)
    assert (book.leased, book.ended) == (0, 15)
    granted = [(grant.start, grant.stop, grant.prior) for grant in book.beat(2, 100, (), 0.4).grants]
    assert granted[:3] == [(5, 10, (3,)), (20, 27, (1,)), (27, 40, ())]


def test_what_a_peer_that_joins_again_does_not_hold_is_read_in_its_home():
    book = restarted()
    book.join(2, (), 0.2)
    book.join(1, [Holding(G1 + 6, 0, 5, 5, (3,))], 0.2)
    assert [(g.start, g.stop, g.prior) for g in book.beat(2, 100, (), 0.4).grants][1] == (20, 30, (1,))


def test_who_may_join():
    book = restarted()
    for epoch in (3, 4):
        with pytest.raises(Stranger):
            book.join(epoch, (), 0.1)
    for epoch in (1, 2, 7, 6):
        book.join(epoch, (), 0.1)
        book.join(epoch, (), 0.2)
    with pytest.raises(Stranger):
        book.join(9, [Holding(G1 + 9, 0, 5, 5)], 0.3)
    assert book.peers == 4


def test_a_generation_grants_above_all_before():
    with pytest.raises(ValueError, match="generation 1 is not above 1"):
        LeaseBook(1, [Record(1, G1 + 1, 0, 1, True)], (), 1, 0.0, closed_homes=[1])
    book = restarted()
    for epoch in (1, 2):
        book.join(epoch, (), 0.0)
    assert next(grant.number for grant in take(book, 1, 5)) == G2 + 1


def test_sessions_of_one_process_have_begun_some_rows():
    whole = [Record(0, 0, 0, 10, True), Record(0, 0, 12, 15, True)]
    book = LeaseBook(1, whole, (), 30, 0.0, closed_homes=(), rows=100, least=100, began=[(0, 20)])
    book.join(1, (), 0.0)
    assert (book.ended, book.free) == (13, 17)
    granted = [(g.start, g.stop, g.prior) for g in take(book, 1, 100)]
    assert granted == [(10, 12, (0,)), (15, 20, (0,)), (20, 30, ())]


# Spans


def test_folded_claims_are_those_of_every_single_row():
    for seed in range(300):
        draw = random.Random(seed)
        claims = []
        for number in range(draw.randrange(12)):
            start = draw.randrange(30)
            fate = draw.choice(("held", "done", "free"))
            claims.append(Claim(start, start + draw.randrange(12), number, draw.randrange(5), fate))
        pieces = list(fold(draw.sample(claims, len(claims))))
        rows = {row: piece for piece in pieces for row in range(piece.start, piece.stop)}
        assert sorted(rows) == list(range(max((claim.stop for claim in claims if claim.start < claim.stop), default=0)))
        for row, piece in rows.items():
            over = [claim for claim in claims if claim.start <= row < claim.stop]
            held = any(claim.fate == "held" for claim in over)
            fate = "held" if held else max(over, key=lambda claim: claim.number).fate if over else "free"
            assert (piece.fate, piece.epochs) == (fate, tuple(sorted({claim.epoch for claim in over}))), seed


def test_spans_are_those_of_every_single_row():
    for seed in range(300):
        draw = random.Random(seed)
        spans, rows = Spans(), dict[int, tuple[int, ...]]()
        for _ in range(40):
            start = draw.randrange(60)
            stop = start + draw.randrange(8)
            if draw.random() < 0.6:
                if not any(row in rows for row in range(start, stop)):
                    prior = (draw.randrange(2),)
                    spans.add(start, stop, prior)
                    rows |= dict.fromkeys(range(start, stop), prior)
            elif draw.random() < 0.9:
                taken = spans.take(draw.randrange(1, 6))
                assert (taken is None) == (not rows)
                if taken is not None:
                    assert taken.start == min(rows)
                    assert {rows.pop(row) for row in range(taken.start, taken.stop)} == {taken.prior}
            else:
                spans.clip(start)
                rows = {row: prior for row, prior in rows.items() if row < start}
            assert spans.rows == len(rows), seed


# Cost


def test_a_thousand_peers_and_a_hundred_thousand_leases_are_cheap():
    """A peer that holds 100 leases beats and asks for more; at 10,000 tasks a second a lease of 1,024 ends every 0.1 s."""
    book = LeaseBook(1, (), (), 200_000, 0.0, closed_homes=(), rows=1, least=1)
    held = {epoch: [] for epoch in range(1, 1001)}
    for epoch in held:
        book.join(epoch, (), 0.0)
    while book.leased < 100_000:
        for epoch, grants in held.items():
            grants += book.beat(epoch, 60, holdings(grants), 1.0).grants
    for epoch, grants in held.items():
        book.beat(epoch, 0, holdings(grants), 1.0)
    began = time.process_time()
    for epoch, grants in held.items():
        book.beat(epoch, 0, holdings(grants), 2.0)
    beat = (time.process_time() - began) / len(held)
    epoch, ends = 1, 0
    began = time.process_time()
    for epoch in held:
        for grant in held[epoch][:20]:
            book.done(epoch, grant.number, grant.stop)
            ends += 1
    end = (time.process_time() - began) / ends
    began = time.process_time()
    for epoch in range(1, 501):
        book.gone(epoch)
    gone = (time.process_time() - began) / 500
    print(f"us: beat with 100 leases {beat * 1e6:.0f}, end {end * 1e6:.1f}, gone with 80 leases {gone * 1e6:.0f}")
    assert beat < 2e-3 and end < 1e-4 and gone < 2e-2, (beat, end, gone)
