"""A simulated swarm around the real lease book: peers, homes, links and offices on a simulated clock.

Links delay, lose, repeat and reorder; peers die, stall beyond their lease, leave and come; offices are killed and
replaced. What counts is written to simulated homes, and every write is checked.
"""

from __future__ import annotations

import random
from collections import Counter
from heapq import heappop, heappush
from itertools import count

from weaverant.swarm.leases import Grant, Holding, LeaseBook, Orders, Record, Stranger

LEASE = 4.0
"""Seconds."""
BEAT = 0.5
LONGEST = 1000.0
"""Simulated seconds after which a world is stuck."""


class Broken(Exception):
    """An invariant does not hold."""


class Home:
    """A journal: what its writer wrote until it was fenced."""

    def __init__(self, world: World, epoch: int) -> None:
        self.world, self.epoch = world, epoch
        self.fenced = self.closed = False
        self.leases: dict[int, Record] = {}
        self.ended: set[int] = set()

    @property
    def open(self) -> bool:
        return not self.fenced and not self.closed

    def taken(self, grant: Grant) -> None:
        if not self.open:
            return
        for home in self.world.homes.values():
            for record in home.leases.values():
                if record.start < grant.stop and grant.start < record.stop:
                    if record.number >= grant.number:
                        raise Broken(f"number: {grant} after {record}")
                    if home.open and not record.done:
                        raise Broken(f"two holders: {self.epoch} takes {grant}, {home.epoch} has {record}")
        self.leases[grant.number] = Record(self.epoch, grant.number, grant.start, grant.stop, False)

    def cut(self, number: int, stop: int) -> None:
        if self.open:
            self.leases[number] = Record(self.epoch, number, self.leases[number].start, stop, False)

    def done(self, number: int) -> None:
        if self.open:
            record = self.leases[number]
            self.leases[number] = Record(self.epoch, number, record.start, record.stop, True)

    def end(self, row: int) -> None:
        if not self.open:
            return
        if row in self.world.ended:
            raise Broken(f"ended twice: row {row} in {self.world.ended[row]} and {self.epoch}")
        self.world.ended[row] = self.epoch
        self.ended.add(row)


class Held:
    """A lease at its peer."""

    def __init__(self, grant: Grant) -> None:
        self.number, self.start, self.stop, self.prior = grant.number, grant.start, grant.stop, grant.prior
        self.next = grant.start
        self.missing = grant.stop - grant.start
        """Rows that have not ended."""
        self.done = False


class Peer:
    """Simulated: it does with rows what a peer does, and all that the book relies on."""

    def __init__(self, world: World, epoch: int) -> None:
        self.world, self.epoch = world, epoch
        self.home = world.homes[epoch] = Home(world, epoch)
        self.alive = True
        self.wakes = self.unheard = 0.0
        self.generation = 0
        """Of the office it goes with, 0 for none."""
        self.joined = self.told_all = False
        self.slots = world.random.choice((1, 3, 6))
        self.leases: dict[int, Held] = {}
        self.highest = 0
        self.running = 0
        self.unaccepted: dict[tuple[str, int], tuple[object, ...]] = {}
        world.after(0.0, self, self.beat)

    def beat(self) -> None:
        self.world.after(BEAT, self, self.beat)
        self.tell()

    def tell(self) -> None:
        if not self.joined:
            self.send("join", self.holdings())
            return
        for key, content in self.unaccepted.items():
            self.send(key[0], *content)
        unstarted = sum(held.stop - held.next for held in self.leases.values())
        self.send("beat", max(0, 2 * self.slots - unstarted), self.holdings())

    def holdings(self) -> list[Holding]:
        return [Holding(held.number, held.start, held.stop, held.next, held.prior) for held in self.leases.values()]

    def send(self, kind: str, *content: object) -> None:
        if self.world.now >= self.unheard:
            self.world.send(self.world, self.world.hear, self, self.generation, kind, content)

    def hear(self, generation: int, kind: str, content: object) -> None:
        if generation < self.generation:
            return
        if generation > self.generation:  # another office: what this one holds is told to it before all else
            self.generation, self.joined = generation, False
            self.tell()
        elif kind == "joined":
            self.joined = True
        elif kind == "stranger" and content == "join":
            self.die()
            self.world.after(1.0, self.world, self.world.arrive)
        elif kind == "stranger":
            self.joined = False
            self.tell()
        elif kind == "accepted":
            self.unaccepted.pop(content, None)
            if content[0] == "done":
                self.leases.pop(content[1], None)
        elif kind == "orders" and self.joined:
            self.follow(content)

    def follow(self, orders: Orders) -> None:
        if orders.nothing_left and not self.told_all:
            self.told_all = True
            if len(self.world.ended) < self.world.rows:
                raise Broken(
                    f"not ended: {self.world.rows - len(self.world.ended)} rows, and nothing is said to be left"
                )
        for grant in orders.grants:
            if grant.number > self.highest:
                self.highest = grant.number
                self.home.taken(grant)
                self.leases[grant.number] = Held(grant)
                self.world.seen["grant"] += 1
                self.world.seen["grant with prior"] += bool(grant.prior)
        for cut in orders.cuts:
            held = self.leases.get(cut.number)
            if held is not None and not held.done:
                stop = max(cut.stop, held.next)
                if stop < held.stop:
                    self.world.seen["cut"] += 1
                    self.give_up(held, stop)
                self.unaccepted["cut", held.number] = (held.number, held.stop)
        self.work()

    def give_up(self, held: Held, stop: int) -> None:
        held.missing -= held.stop - stop
        held.stop = stop
        self.home.cut(held.number, stop)
        self.look(held)

    def look(self, held: Held) -> None:
        if not held.missing and not held.done:
            held.done = True
            self.home.done(held.number)
            self.unaccepted["done", held.number] = (held.number, held.stop)
            self.tell()

    def work(self) -> None:
        for held in list(self.leases.values()):
            while self.running < self.slots and held.next < held.stop:
                if held.next >= self.world.rows:  # it learns no more than that there is none with this number
                    self.unaccepted["source", held.next] = (held.next,)
                    self.give_up(held, held.next)
                    break
                row, held.next = held.next, held.next + 1
                if any(row in self.world.homes[epoch].ended for epoch in held.prior if epoch in self.world.homes):
                    held.missing -= 1
                    self.world.seen["found ended"] += 1
                    self.look(held)
                    continue
                self.running += 1
                self.world.after(self.world.random.uniform(0.05, self.world.slowness), self, self.end, held, row)

    def end(self, held: Held, row: int) -> None:
        self.running -= 1
        self.home.end(row)
        held.missing -= 1
        self.look(held)
        self.work()

    def die(self) -> None:
        self.alive = False

    def leave(self) -> None:
        if self.home.open:
            self.home.closed = True
        self.send("leave")
        self.alive = False


class World:
    """One seed: what is drawn, what happens, and whether it ends as it should."""

    def __init__(self, seed: int, book: type[LeaseBook] = LeaseBook) -> None:
        self.make_book = book
        self.random = draw = random.Random(seed)
        self.now = 0.0
        self.events: list[tuple[float, int, object, object, tuple[object, ...]]] = []
        self.sequence = count()
        self.seen: Counter[str] = Counter()
        self.homes: dict[int, Home] = {}
        self.peers: dict[int, Peer] = {}
        self.ended: dict[int, int] = {}
        """Rows, and the home that each ended in."""
        self.rows = draw.choice((1, 40, 120, 250))
        self.known = self.rows if draw.random() < 0.6 else None
        self.sizes = {"rows": draw.choice((4, 16, 64)), "least": draw.choice((1, 2, 4)), "planned": 1 + seed % 4}
        self.slowness = draw.choice((0.2, 1.0, 3.0))
        self.loss = draw.choice((0.0, 0.05, 0.3))
        self.delay = draw.choice((0.01, 0.2, 1.5))
        self.peace = draw.uniform(5.0, 30.0)
        self.epochs = count(1)
        self.generation = 0
        self.wakes = 0.0
        self.alive = True
        self.book: LeaseBook | None = None
        self.fencing: set[int] = set()
        self.before()
        self.read_homes()
        for _ in range(draw.choice((1, 2, 4, 6))):
            self.after(draw.choice((0.0, 3.0)), self, self.arrive)
        for _ in range(draw.randrange(0, 14)):
            self.after(draw.uniform(0.2, self.peace), self, draw.choice(self.faults()))

    def before(self) -> None:
        """Sessions of one process may have ended some rows, and begun others."""
        home = self.homes[0] = Home(self, 0)
        self.began, self.whole = [], 0
        if self.random.random() < 0.3:
            self.whole = self.random.randrange(self.rows)
            begun = self.random.randint(self.whole, self.rows)
            for row in (*range(self.whole), *(row for row in range(self.whole, begun) if self.random.random() < 0.5)):
                home.end(row)
            self.began = [(self.whole, begun)]
        home.closed = True

    # The clock and the links

    def after(self, seconds: float, who: World | Peer, what: object, *content: object) -> None:
        heappush(self.events, (self.now + seconds, next(self.sequence), who, what, content))

    def send(self, who: World | Peer, what: object, *content: object) -> None:
        calm = self.now > self.peace
        if not calm and self.random.random() < self.loss:
            self.seen["lost"] += 1
            return
        delay = self.random.uniform(0.001, 0.1 if calm else self.delay)
        self.after(delay, who, what, *content)
        if not calm and self.random.random() < self.loss / 3:
            self.after(delay + self.random.uniform(0.0, 2.0), who, what, *content)

    def run(self) -> None:
        """Broken, if anything does not hold; AssertionError never."""
        while not self.over():
            self.now, _, who, what, content = heappop(self.events)
            if self.now > LONGEST:
                raise Broken(f"stuck: {len(self.ended)} of {self.rows} rows ended, {self.state()}")
            if not who.alive:
                continue
            if self.now < who.wakes:
                self.after(who.wakes - self.now, who, what, *content)
                continue
            what(*content)
        if self.book.ended != self.rows or self.book.total != self.rows:
            raise Broken(f"counts: {self.state()}")

    def over(self) -> bool:
        """All living peers have been told that nothing is left, and the office of now says so, too."""
        if self.now <= self.peace or self.book is None or not self.book.finished:
            return False
        living = [peer for peer in self.peers.values() if peer.alive]
        return bool(living) and all(peer.told_all for peer in living)

    def state(self) -> str:
        book = self.book
        if book is None:
            return "no office"
        return f"leased {book.leased}, free {book.free}, ended {book.ended}, total {book.total}, waits {book.waiting}"

    # The office

    def read_homes(self) -> None:
        """A new office: each home is read at a time of its own, and peers go on writing meanwhile."""
        self.generation += 1
        open_homes = [home.epoch for home in self.homes.values() if home.open]
        closed_homes = [home.epoch for home in self.homes.values() if not home.open]
        records: list[Record] = []
        if self.whole:
            records.append(Record(0, 0, 0, self.whole, True))
        last, slowest = 0.0, self.random.choice((0.5, 2.0))
        for home in list(self.homes.values()):
            last = max(last, delay := self.random.uniform(0.0, slowest))
            self.after(delay, self, lambda home=home: records.extend(home.leases.values()))
        self.after(last, self, self.open_book, self.generation, records, open_homes, closed_homes)

    def open_book(self, generation: int, records: list[Record], open_homes: list[int], closed_homes: list[int]) -> None:
        if generation != self.generation:
            return
        self.fencing = set()
        self.book = self.make_book(
            generation, records, open_homes, self.known, self.now,
            closed_homes=closed_homes, lease=LEASE, began=self.began, **self.sizes,
        )  # fmt: skip
        self.after(0.0, self, self.tick, generation)

    def tick(self, generation: int) -> None:
        if generation != self.generation or self.book is None:
            return
        self.after(0.25, self, self.tick, generation)
        for epoch in self.book.silent(self.now):
            if epoch not in self.fencing:
                self.fencing.add(epoch)
                self.after(self.random.uniform(0.0, 0.5), self, self.fence, generation, epoch)

    def fence(self, generation: int, epoch: int) -> None:
        if generation == self.generation and self.book is not None:
            self.make_fence(epoch)
            self.book.gone(epoch, list(self.homes[epoch].leases.values()))

    def make_fence(self, epoch: int) -> None:
        home = self.homes[epoch]
        self.seen["fence"] += home.open
        home.fenced |= not home.closed

    def hear(self, peer: Peer, generation: int, kind: str, content: tuple[object, ...]) -> None:
        book = self.book
        if book is None:
            return  # nobody is there
        if generation != self.generation:
            self.answer(peer, "office", None)
            return
        try:
            if kind == "join":
                book.join(peer.epoch, content[0], self.now)
                self.answer(peer, "joined", None)
            elif kind == "beat":
                self.answer(peer, "orders", book.beat(peer.epoch, *content, self.now))
            elif kind == "cut":
                book.cut(peer.epoch, *content)
                self.answer(peer, "accepted", ("cut", content[0]))
            elif kind == "done":
                book.done(peer.epoch, *content)
                self.answer(peer, "accepted", ("done", content[0]))
            elif kind == "source":
                book.source_ended(*content)
                self.answer(peer, "accepted", ("source", content[0]))
            elif kind == "leave":
                book.leave(peer.epoch, list(peer.home.leases.values()))
        except Stranger:
            self.answer(peer, "stranger", kind)
        except ValueError as error:
            raise Broken(f"the source: {error}") from error

    def answer(self, peer: Peer, kind: str, content: object) -> None:
        self.send(peer, peer.hear, self.generation, kind, content)

    # What happens to them

    def faults(self) -> list[object]:
        ways = [self.kill_peer, self.stall_peer, self.leave, self.arrive, self.kill_office, self.stall_office]
        return [*ways, self.cut_off, self.black_out]

    def some(self) -> Peer | None:
        living = [peer for peer in self.peers.values() if peer.alive]
        return self.random.choice(living) if living else None

    def arrive(self) -> None:
        epoch = next(self.epochs)
        self.peers[epoch] = Peer(self, epoch)
        self.seen["arrival"] += 1

    def kill_peer(self) -> None:
        if (peer := self.some()) is not None:
            self.seen["death"] += 1
            peer.die()
            self.after(self.random.uniform(0.0, 6.0), self, self.arrive)

    def stall_peer(self) -> None:
        if (peer := self.some()) is not None:
            self.seen["stall"] += 1
            peer.wakes = self.now + self.random.uniform(0.5, 3 * LEASE)

    def leave(self) -> None:
        if (peer := self.some()) is not None:
            self.seen["leave"] += 1
            peer.leave()
            self.after(self.random.uniform(0.0, 6.0), self, self.arrive)

    def kill_office(self) -> None:
        if self.book is not None:
            self.seen["office killed"] += 1
            self.book = None
            for epoch in self.fencing:  # it was about to: a dead office fences now or never
                if self.random.random() < 0.5:
                    self.make_fence(epoch)
            self.after(self.random.choice((0.1, 1.0, 8.0)), self, self.read_homes)

    def cut_off(self) -> None:
        """What a peer sends gets nowhere for a while; what is on the way to it arrives."""
        if (peer := self.some()) is not None:
            self.seen["cut off"] += 1
            peer.unheard = self.now + self.random.uniform(0.5, 3 * LEASE)

    def black_out(self) -> None:
        """The office dies, and some peers that have leases on the way are cut off from the next one."""
        self.seen["black out"] += 1
        self.kill_office()
        for _ in self.peers:
            self.cut_off()

    def stall_office(self) -> None:
        self.seen["office stalled"] += 1
        self.wakes = self.now + self.random.uniform(1.0, 3 * LEASE)


def weave(seed: int, book: type[LeaseBook] = LeaseBook) -> World:
    world = World(seed, book)
    world.run()
    return world
