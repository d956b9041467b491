"""A simulated swarm: 1,000 peers, of which each dies once an hour, weave 10^8 rows through the real lease book.

A peer has 64 rows in flight, each for six seconds. Once a second of the simulated clock it looks at what has ended and
what it was told, and beats. Links take 1 to 200 ms, so that messages overtake one another, and lose one in a thousand.
A dead peer is fenced once it is silent; another joins after a minute. Messages are MessagePack and four bytes more.

Checked for every row: no peer takes it while an unfenced one has it; it ends once, and before the book says that
nothing is left. Ten minutes on two cores; `--rows` for less. Draws the figure of `docs/leases.md`.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import time
from collections import Counter, deque
from collections.abc import Iterator
from heapq import heappop, heappush
from itertools import count
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import msgspec
import report

from weaverant.swarm.leases import Grant, Holding, LeaseBook, Orders, Stranger

SIZES = (64, 256, 1024, 4096)
IN_FLIGHT = 64
"""Rows a peer."""
TAKES = 6.0
"""Seconds a row."""
BEAT, LEASE, FENCE, TICK = 1.0, 4.0, 0.05, 0.25
"""Seconds: between two beats; until a silent peer is lost; to make a fence; between two looks at who is silent."""
LIFE, AGAIN = 3600.0, 60.0
"""Seconds: how long a peer lives in the mean, how long until another stands in for it."""
LOST = 0.001
STARTS = math.ceil(IN_FLIGHT / TAKES * BEAT)
"""Rows a beat at most, so that not all start at once."""
AHEAD = 3 * STARTS
"""A peer asks for more when it has fewer rows that it could start."""
SAMPLE = 32
"""One in so many calls of the book is timed."""
INTERRUPTED = 1e-3
"""Seconds: a call that took longer has waited for the processor, and is not counted."""
MINUTES = 15
SHARE = 0.02
FIGURE = Path(__file__).parent.parent / "docs" / "figures" / "leases.svg"

encode = msgspec.msgpack.Encoder().encode


class Held:
    """A lease at its peer."""

    __slots__ = ("done", "left", "next", "number", "prior", "start", "stop")

    def __init__(self, grant: Grant) -> None:
        self.number, self.start, self.stop, self.prior = grant.number, grant.start, grant.stop, grant.prior
        self.next = grant.start
        self.left = grant.stop - grant.start
        """Rows that have not ended."""
        self.done = False


class Peer:
    __slots__ = ("alive", "epoch", "flights", "heard", "highest", "joined", "leases", "running", "unaccepted")

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch
        self.alive = True
        self.joined = False
        self.heard: list[tuple[float, str, Any]] = []
        """What is on its way here, with when it comes."""
        self.leases: dict[int, Held] = {}
        self.highest = 0
        self.running = 0
        self.flights: deque[tuple[float, Held, int, int]] = deque()
        """Rows in flight, and when they end."""
        self.unaccepted: dict[tuple[str, int], int] = {}


class Swarm:
    """One lease size. `rows` end, or AssertionError says which invariant does not hold."""

    def __init__(self, rows: int, peers: int, size: int, seed: int) -> None:
        self.rows, self.size = rows, size
        self.random = random.Random(f"{seed} {size}")
        self.book = LeaseBook(
            1, (), (), rows, 0.0, closed_homes=(), rows=size, least=min(64, size), lease=LEASE, planned=peers
        )
        self.ended, self.held = bytearray(rows), bytearray(rows)
        self.now = 0.0
        self.events: list[tuple[float, int, Any, tuple[Any, ...]]] = []
        self.order, self.epochs = count(), count(1)
        self.peers: dict[int, Peer] = {}
        self.fencing: set[int] = set()
        self.counts: Counter[str] = Counter()
        self.calls, self.timed, self.spent = 0, 0, 0.0
        self.alive_seconds = self.busy_seconds = 0.0
        self.finished = False
        for _ in range(peers):
            self.after(self.random.uniform(0.0, BEAT), self.arrive)
        self.after(0.0, self.tick)

    def after(self, seconds: float, what: Any, *content: Any) -> None:
        heappush(self.events, (self.now + seconds, next(self.order), what, content))

    def run(self) -> dict[str, float]:
        began = time.process_time()
        while not self.finished:
            self.now, _, what, content = heappop(self.events)
            what(*content)
        missing = self.rows - self.ended.count(1)
        assert not missing, f"{missing} rows were lost"
        assert self.book.ended == self.rows and self.book.finished, "the book counts otherwise"
        for peer in self.peers.values():
            self.account(peer)
        counts = self.counts
        seconds = self.spent / self.timed * self.calls
        return {
            "size": self.size, "rows": self.rows, "hours": self.now / 3600, "deaths": counts["deaths"],
            "leases": counts["grants"], "twice": (counts["started"] - self.rows) / self.rows,
            "again": counts["rows granted again"] / self.rows,
            "messages": counts["messages"] / self.rows, "bytes": counts["bytes"] / self.rows,
            "beats": counts["beats"] / self.rows, "others": (counts["messages"] - counts["beats"]) / self.rows,
            "busy": self.busy_seconds / self.alive_seconds, "book": seconds / self.now,
            "book_per_row": seconds / self.rows, "cpu": time.process_time() - began,
            "missing": missing, "cuts": counts["cuts"], "lost": counts["lost"],
        }  # fmt: skip

    # Peers come and go

    def arrive(self) -> None:
        epoch = next(self.epochs)
        peer = self.peers[epoch] = Peer(epoch)
        self.alive_seconds -= self.now
        self.after(self.random.expovariate(1 / LIFE), self.die, peer)
        self.beat(peer)

    def die(self, peer: Peer) -> None:
        if not self.finished:
            self.counts["deaths"] += 1
            self.settle(peer)
            self.account(peer)
            peer.alive = False
            self.after(AGAIN, self.arrive)

    def account(self, peer: Peer) -> None:
        """The peer's life is over, or all are."""
        if peer.alive:
            self.alive_seconds += self.now
            for until, _, start, stop in peer.flights:
                self.busy_seconds -= (stop - start) * (until - self.now) / IN_FLIGHT

    def tick(self) -> None:
        self.after(TICK, self.tick)
        for epoch in self.book.silent(self.now):
            assert not self.peers[epoch].alive, "a living peer is fenced"
            if epoch not in self.fencing:
                self.fencing.add(epoch)
                self.after(FENCE, self.fence, epoch)

    def fence(self, epoch: int) -> None:
        for held in self.peers.pop(epoch).leases.values():
            if not held.done:
                self.held[held.start : held.stop] = bytes(held.stop - held.start)
        self.book.gone(epoch, ())
        self.fencing.discard(epoch)

    # What a peer does

    def beat(self, peer: Peer) -> None:
        if not peer.alive:
            return
        self.after(BEAT, self.beat, peer)
        self.settle(peer)
        self.listen(peer)
        self.start(peer)
        if not peer.joined:
            self.send(peer, "join", ())
            return
        for (kind, number), stop in peer.unaccepted.items():
            self.send(peer, kind, (number, stop))
        holdings = [Holding(held.number, held.start, held.stop, held.next, held.prior) for held in peer.leases.values()]
        unstarted = sum(held.stop - held.next for held in peer.leases.values())
        self.send(peer, "beat", (self.size if unstarted < AHEAD else 0, holdings))

    def settle(self, peer: Peer) -> None:
        """Rows end."""
        while peer.flights and peer.flights[0][0] <= self.now:
            _, held, start, stop = peer.flights.popleft()
            assert self.ended.find(1, start, stop) < 0, "a row has ended twice"
            self.ended[start:stop] = b"\x01" * (stop - start)
            peer.running -= stop - start
            self.end(peer, held, stop - start)

    def end(self, peer: Peer, held: Held, rows: int) -> None:
        held.left -= rows
        if not held.left and not held.done:
            held.done = True
            self.held[held.start : held.stop] = bytes(held.stop - held.start)
            peer.unaccepted["done", held.number] = held.stop

    def start(self, peer: Peer) -> None:
        room = min(STARTS, IN_FLIGHT - peer.running)
        for held in list(peer.leases.values()):
            while room > 0 and held.next < held.stop:
                start = self.unended(peer, held) if held.prior else held.next
                stop = min(held.stop, start + room)
                if held.prior and (known := self.ended.find(1, start, stop)) >= 0:
                    stop = known
                if start < stop:
                    peer.flights.append((self.now + TAKES, held, start, stop))
                    peer.running += stop - start
                    room -= stop - start
                    self.counts["started"] += stop - start
                    self.busy_seconds += (stop - start) * TAKES / IN_FLIGHT
                held.next = stop
            if room <= 0:
                break

    def unended(self, peer: Peer, held: Held) -> int:
        """The next row that has not ended in an earlier home, as the journals there tell."""
        found = self.ended.find(0, held.next, held.stop)
        start = found if found >= 0 else held.stop
        if start > held.next:
            self.end(peer, held, start - held.next)
        return start

    def listen(self, peer: Peer) -> None:
        come = [message for message in peer.heard if message[0] <= self.now]
        peer.heard = [message for message in peer.heard if message[0] > self.now]
        for _, kind, content in sorted(come, key=lambda message: message[0]):
            if kind == "joined":
                peer.joined = True
            elif kind == "orders":
                self.follow(peer, content)
            elif peer.unaccepted.pop(content, None) is not None and content[0] == "done":
                del peer.leases[content[1]]

    def follow(self, peer: Peer, orders: Orders) -> None:
        if orders.nothing_left:
            self.finished = True
        for grant in orders.grants:
            if grant.number > peer.highest:
                peer.highest = grant.number
                assert self.held.find(1, grant.start, grant.stop) < 0, "a row has two holders"
                self.held[grant.start : grant.stop] = b"\x01" * (grant.stop - grant.start)
                peer.leases[grant.number] = Held(grant)
                self.counts["grants"] += 1
                self.counts["rows granted again"] += grant.stop - grant.start if grant.prior else 0
        for cut in orders.cuts:
            held = peer.leases.get(cut.number)
            if held is not None and not held.done:
                stop = max(cut.stop, held.next)
                self.counts["cuts"] += stop < held.stop
                self.held[stop : held.stop] = bytes(held.stop - stop)
                less, held.stop = held.stop - stop, stop
                peer.unaccepted["cut", held.number] = stop
                self.end(peer, held, less)

    # The links, and the office

    def on_the_way(self, kind: str, message: Any) -> float | None:
        """Seconds; None for a message that is lost."""
        self.counts["messages"] += 1
        self.counts["beats"] += kind in ("beat", "orders")
        self.counts["bytes"] += len(encode(message)) + 4
        if self.random.random() < LOST:
            self.counts["lost"] += 1
            return None
        return self.random.uniform(0.001, 0.2)

    def send(self, peer: Peer, kind: str, content: tuple[Any, ...]) -> None:
        seconds = self.on_the_way(kind, (kind, peer.epoch, content))
        if seconds is not None:
            self.after(seconds, self.hear, peer, kind, content)

    def answer(self, peer: Peer, kind: str, content: Any) -> None:
        seconds = self.on_the_way(kind, (kind, content))
        if seconds is not None:
            peer.heard.append((self.now + seconds, kind, content))

    def hear(self, peer: Peer, kind: str, content: tuple[Any, ...]) -> None:
        self.calls += 1
        timed = self.calls % SAMPLE == 0
        began = time.perf_counter() if timed else 0.0
        answer: tuple[str, Any]
        try:
            if kind == "beat":
                answer = "orders", self.book.beat(peer.epoch, *content, self.now)
            elif kind == "join":
                self.book.join(peer.epoch, (), self.now)
                answer = "joined", None
            else:
                (self.book.done if kind == "done" else self.book.cut)(peer.epoch, *content)
                answer = "accepted", (kind, content[0])
        except Stranger:
            assert not peer.alive, "a living peer is a stranger"
            return
        if timed and (seconds := time.perf_counter() - began) < INTERRUPTED:
            self.timed += 1
            self.spent += seconds
        self.answer(peer, *answer)


def weave(work: tuple[int, int, int, int]) -> dict[str, float]:
    return Swarm(*work).run()


# What is told


def lines(found: list[dict[str, float]]) -> Iterator[list[Any]]:
    for each in found:
        yield [
            f"{each['size']:,} rows", each["deaths"], each["leases"], f"{each['twice']:.3%}", f"{each['again']:.2%}",
            f"{each['beats']:.4f}", f"{each['others']:.4f}", each["bytes"], f"{each['busy']:.2%}",
            f"{each['book']:.2%}", each["hours"],
        ]  # fmt: skip


HEAD = [
    "a lease", "deaths", "leases", "run twice", "leased again", "beats/row", "others/row", "bytes/row", "slots busy",
    "book, of a core", "hours",
]  # fmt: skip


def svg(found: list[dict[str, float]]) -> str:
    """Over the size of a lease, both axes logarithmic: what a row costs, and what deaths cost."""
    curves = {
        "control messages a row, beats apart": ("others", "#205080"),
        "share of rows leased again after a death": ("again", "#a05020"),
        "share of rows run twice": ("twice", "#207040"),
    }
    low, high = -5, 0

    def x(size: float) -> float:
        return 70 + 340 * math.log(size / SIZES[0]) / math.log(SIZES[-1] / SIZES[0])

    def y(value: float) -> float:
        return 30 + 220 * (high - math.log10(max(value, 10**low))) / (high - low)

    def text(at_x: float, at_y: float, words: str, anchor: str = "middle", fill: str = "black") -> str:
        return f'<text x="{at_x:.0f}" y="{at_y:.0f}" text-anchor="{anchor}" fill="{fill}">{words}</text>'

    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 720 300" font-family="sans-serif" font-size="12">',
        '<rect width="720" height="300" fill="white"/>',
    ]
    for power in range(low, high + 1):
        value = 10.0**power
        parts.append(f'<line x1="70" x2="410" y1="{y(value):.0f}" y2="{y(value):.0f}" stroke="#dddddd"/>')
        parts.append(text(62, y(value) + 4, f"{value:g}" if power >= -4 else "1e-5", "end"))
    parts += [text(x(each["size"]), 270, f"{each['size']:,}") for each in found]
    parts.append(text(240, 290, "rows of a lease at most"))
    for words, (key, colour) in curves.items():
        points = [(x(each["size"]), y(each[key])) for each in found]
        line = " ".join(f"{at_x:.1f},{at_y:.1f}" for at_x, at_y in points)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{at_x:.1f}" cy="{at_y:.1f}" r="3" fill="{colour}"/>' for at_x, at_y in points]
        parts.append(text(points[-1][0] + 10, points[-1][1] + 4, words, "start", colour))
    return "\n".join((*parts, "</svg>\n"))


def results(found: list[dict[str, float]], minutes: float) -> list[dict[str, Any]]:
    cpu = sum(each["cpu"] for each in found) / 60
    made = [
        report.row("minutes of all sizes", minutes, f"<= {MINUTES}", minutes <= MINUTES),
        report.row("minutes of CPU of all sizes", cpu, f"<= {2 * MINUTES}", cpu <= 2 * MINUTES),
    ]
    for each in found:
        name = f"leases of {each['size']:.0f}"
        flight = each["deaths"] * IN_FLIGHT / each["rows"]
        made += [
            report.row(f"{name}: rows lost", each["missing"], "0, none twice, none with two", not each["missing"]),
            report.row(
                f"{name}: per cent of rows run twice", 100 * each["twice"],
                f"<= {100 * flight:.4f}: in flight at a death", each["twice"] <= flight,
            ),
            report.row(f"{name}: per cent of rows leased again", 100 * each["again"]),
            report.row(f"{name}: control messages a row, beats apart", each["others"]),
            report.row(f"{name}: control messages a row", each["messages"]),
            report.row(f"{name}: bytes of control messages a row", each["bytes"]),
            report.row(f"{name}: share of slots busy", each["busy"]),
            report.row(f"{name}: the book's share of a core", each["book"], f"< {SHARE}", each["book"] < SHARE),
        ]  # fmt: skip
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000_000)
    parser.add_argument("--peers", type=int, default=1_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--figure", type=Path, help=f"default for 10^8 rows: {FIGURE.name} in docs/figures")
    options = parser.parse_args()
    began = time.monotonic()
    with get_context("spawn").Pool(options.processes) as pool:
        work = [(options.rows, options.peers, size, options.seed) for size in SIZES]
        found = pool.map(weave, work, chunksize=1)
    minutes = (time.monotonic() - began) / 60
    report.table(HEAD, list(lines(found)))
    print(f"{options.peers:,} peers, {options.rows:,} rows, {minutes:.1f} minutes, CPU of each size:", end=" ")
    print(", ".join(f"{each['cpu']:.0f} s" for each in found))
    if options.figure or options.rows == parser.get_default("rows"):
        (options.figure or FIGURE).write_text(svg(found))
    report.finish("sim-peers", results(found, minutes))


if __name__ == "__main__":
    main()
