"""What a seed draws: rows, stages, limits, and what goes wrong in each life of the run."""

from __future__ import annotations

from collections.abc import Mapping
from random import Random
from typing import Any, Literal, cast

import msgspec
from msgspec import Struct

from weaverant.testing.weaves import VOICES
from weaverant.testing.world.disk import Fault
from weaverant.testing.world.server import Weather
from weaverant.testing.world.weaving import RECIPES

End = Literal["none", "disk", "moment", "stop", "leave"]
"""How a life is cut short: by the disk at one of its calls, by a kill or a power cut at a moment, by `stop()`, by a
caller who leaves the loop."""


class LifePlan(Struct, frozen=True):
    """One life. All times are seconds from its start."""

    end: End = "none"
    fault: Fault = "kill"
    at: int = 0
    """At which call the disk fails."""
    syncs: bool = False
    """Count only its syncs."""
    moment: float = 0.0
    grace: float = 30.0
    again: float = 0.0
    """When `stop` is called a second time; 0 for never."""
    after: int = 0
    """How many tasks the caller takes before leaving."""
    weather: Weather = Weather()
    effects: float = 0.0
    """Share of users' functions that raise."""
    processes: float = 0.0
    """Share of those in processes that have no good end."""
    jumps: tuple[tuple[float, float], ...] = ()
    """(when, by how many seconds) the wall clock jumps."""
    pauses: tuple[tuple[float, float], ...] = ()
    intruder: float = 0.0
    """When a second process tries to open the run; 0 for never."""
    edition: int = 0
    room: float = 0.0
    """The budget, as a share of what the run needs; 0 for none."""
    retry: bool = False
    """Whether this session takes up again what has failed so far."""
    pilot: int = 0
    """How many rows it works on; 0 for all."""
    commit: float = 0.002
    """Seconds that the journal's worker takes for a group, on average."""
    tick: float = 1e-6


class Earlier(Struct, frozen=True):
    """A run before. It ends with its lives, finished or not."""

    lives: tuple[LifePlan, ...]
    rows: tuple[Any, ...]


class TrialPlan(Struct, frozen=True):
    recipe: int
    rows: tuple[Any, ...]
    lives: tuple[LifePlan, ...]
    concurrency: int
    in_flight: int | None
    segment_bytes: int
    frame_bytes: int
    trials: int
    fuse: bool
    http: bool
    """Whether the server is asked through the HTTP engine's pool."""
    overrides: Mapping[str, Mapping[str, Any]] = {}
    earlier: Earlier | None = None
    """The run whose steps are reused."""

    @property
    def before(self) -> TrialPlan | None:
        """That of the earlier run."""
        if self.earlier is None:
            return None
        past = self.earlier
        return msgspec.structs.replace(self, lives=past.lives, rows=past.rows, overrides={}, earlier=None)

    @property
    def budgeted(self) -> bool:
        return any(life.room for life in self.lives)


QUIET = LifePlan()
"""Nothing goes wrong."""


def draw(seed: int) -> TrialPlan:
    """The same plan for the same seed, for ever."""
    random = Random(f"plan {seed}")
    recipe = random.choice((0, 0, 0, 1, 2, 3))
    edited = recipe == 0 and random.random() < 0.2
    budgeted = random.random() < 0.3
    lives = [_life(random, budgeted) for _ in range(random.choice((1, 1, 2, 2, 3, 4)))]
    if edited:
        since = random.randint(1, len(lives))
        lives = [_edition(life, number >= since) for number, life in enumerate(lives)]
    plan = TrialPlan(
        recipe % len(RECIPES),
        tuple(_row(random, edited) for _ in range(random.randint(1, 5))),
        tuple(lives),
        random.choice((1, 2, 8, 1_000)),
        random.choice((None, 1, 2)),
        random.choice((1_000, 4_000, 64 << 20)),
        random.choice((200, 2_000, 1 << 20)),
        random.choice((1, 1, 1, 2)),
        random.random() < 0.1,
        not budgeted and random.random() < 0.2,
    )
    return _with_others(plan, Random(f"others {seed}"))


def _with_others(plan: TrialPlan, random: Random) -> TrialPlan:
    """Some of the lives are pilots, and some of the runs reuse an earlier one."""
    rows = plan.rows
    lives = tuple(
        msgspec.structs.replace(
            life,
            pilot=random.randint(1, len(rows)) if random.random() < 0.2 else 0,
            processes=random.choice((0.0, 0.0, 0.3)),
        )
        for life in plan.lives
    )
    if random.random() >= 0.2:
        return msgspec.structs.replace(plan, lives=lives)
    edited = any(life.edition for life in lives)
    others = random.choice((rows, rows, rows, rows[::-1], rows[1:], (_row(random, edited), *rows)))
    past = Earlier(tuple(_life(random, False) for _ in range(random.choice((1, 1, 2)))), others)
    changed = random.choice((*VOICES, None))
    overrides = {} if changed is None else {changed.name: {"temperature": 0.25}}
    return msgspec.structs.replace(plan, lives=lives, earlier=past, overrides=overrides)


def last(plan: TrialPlan) -> LifePlan:
    """A life in which nothing goes wrong any more, after all that were drawn."""
    edition = max((life.edition for life in plan.lives), default=0)
    return LifePlan(edition=edition, room=100.0 if plan.budgeted else 0.0)


def _edition(life: LifePlan, edited: bool) -> LifePlan:
    return msgspec.structs.replace(life, edition=int(edited))


def _row(random: Random, edited: bool) -> Any:
    kind = random.random()
    if kind < 0.04:
        return random.choice((7, {"id": "\ud800"}, {"id": float("nan"), "deep": _deep(300)}, {"seed": 1 << 70}))
    mood = random.choice(("calm", "tough", "failing", "racy")) if not edited else "calm"
    return {
        "id": random.choice(("same", "same", "\0", str(random.random()))),
        "seed": random.randrange(1 << 30),
        "failing": mood in ("failing", "racy"),
        "racy": mood == "racy",
        "tough": mood == "tough",
        "edited": edited and random.random() < 0.7,
        "pad": random.choice(("", "", "a pad of some length ", "giant " * 11_000 if random.random() < 0.1 else "")),
    }


def odd(row: Any) -> bool:
    """Whether it is giant, or none that can be worked on."""
    return not isinstance(row, dict) or len(cast("dict[str, Any]", row).get("pad", "x" * 100)) > 99


def timeless(row: Any) -> bool:
    """Whether what becomes of it depends on no timing."""
    return isinstance(row, dict) and not cast("dict[str, Any]", row).get("failing", True)


def _deep(levels: int) -> Any:
    value: Any = 0
    for _ in range(levels):
        value = [value]
    return value


def _life(random: Random, budgeted: bool) -> LifePlan:
    end: End = random.choice(("disk", "disk", "disk", "moment", "moment", "stop", "leave", "none"))
    moment = random.expovariate(1 / 0.15)
    trouble = random.choice((0.0, 0.0, 0.03, 0.2))
    faults: tuple[Fault, ...] = ("kill", "power", "power", "full", "eio") if end == "disk" else ("kill", "power")
    fault = random.choice(faults)
    return LifePlan(
        end=end,
        fault=fault,
        at=int(random.expovariate(1 / 12.0)),
        syncs=fault in ("power", "eio") and random.random() < 0.5,
        moment=moment,
        grace=random.choice((0.0, 0.05, 30.0)),
        again=random.choice((0.0, 0.0, 0.02)),
        after=random.randrange(4),
        weather=Weather(
            random.choice((0.002, 0.02, 0.02)),
            trouble,
            random.choice((0.0, 0.0, 0.0, 0.02)),
            random.choice((1, 3, 1_000, 1_000)),
        ),
        effects=random.choice((0.0, 0.0, 0.1)),
        jumps=_moments(random, 3_600.0),
        pauses=tuple((when, abs(by)) for when, by in _moments(random, 60.0)),
        intruder=moment * random.random() if random.random() < 0.15 else 0.0,
        room=random.choice((0.1, 0.5, 2.0)) if budgeted else 0.0,
        retry=random.random() < 0.15,
        commit=random.choice((1e-4, 2e-3, 2e-2)),
        tick=random.choice((1e-7, 1e-6, 1e-3)),
    )


def _moments(random: Random, far: float) -> tuple[tuple[float, float], ...]:
    count = random.choice((0, 0, 0, 1, 2))
    return tuple((random.expovariate(1 / 0.1), random.uniform(-far, far)) for _ in range(count))
