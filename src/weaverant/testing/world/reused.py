"""What must hold of a run that reuses an earlier one: what it took is what the earlier one recorded for the same
request of the same row, each record once; it paid for nothing that was there to be taken; it has no sample twice.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator

from weaverant.events import StepEnded
from weaverant.step import seed_of
from weaverant.testing.world.life import World
from weaverant.testing.world.record import Record

Fingerprints = dict[str, Counter[bytes]]
"""How many steps of each task, by what was asked."""


def reused(world: World, after: Record) -> Iterator[str]:
    if world.past is None:
        return
    then = world.past.record
    for (kind, number), events in after.reused.items():
        known = (then.calls if kind == "model" else then.effects).get(number)
        if len(events) > 1:
            yield f"reused: {kind} step {number} of the earlier run answers {len(events)} steps"
        for event in events:
            if known is None:
                yield f"reused: {event.task} got {kind} step {number}, which the earlier run does not hold"
            elif fault := _unlike(world, then, known, number, after, event):
                yield f"reused: {event.task} got {kind} step {number}, which {fault}"
    yield from _paid_again(then, after)
    yield from _twice(after)


def _unlike(world: World, then: Record, known: StepEnded, number: int, after: Record, event: StepEnded) -> str:
    """Why the record does not answer the step; empty where it does."""
    if then.starts[known.task].digest != after.starts[event.task].digest:
        return "is of another row"
    if event.usage.cost:
        return f"cost ${event.usage.cost} again"
    if event.kind == "model":
        now, asked = world.plan.overrides.get(event.name, {}).get("temperature"), world.server.log[number]
        if asked.temperature != now:
            return f"was asked at temperature {asked.temperature}, and {event.name!r} has {now} now"
    return "" if known.fingerprint == event.fingerprint else "is of another request"


def _paid_again(then: Record, after: Record) -> Iterator[str]:
    """A step was asked anew although a record of the same request of the row was there, and nobody had taken it."""
    there, taken, fresh = _recorded(then), Fingerprints(), Fingerprints()
    for event in after.events:
        if isinstance(event, StepEnded):
            steps = (taken if event.reused else fresh).setdefault(event.task, Counter())
            steps[event.fingerprint] += 1
    for task, source in _pairs(then, after).items():
        given = there.get(source, Counter()) if source else Counter[bytes]()
        for fingerprint in fresh.get(task, ()):
            left = given[fingerprint] - taken.get(task, Counter())[fingerprint]
            if left > 0:
                yield f"reused: {task} paid for a step of which {left} records of {source} were left"


def _recorded(then: Record) -> Fingerprints:
    """The values that a run holds, a key counted once."""
    keys = {(key, event.task) for key, events in then.outcomes.items() for event in events if event.outcome == "reply"}
    found: Fingerprints = {}
    for (_, _, fingerprint, _), task in keys:
        found.setdefault(task, Counter())[fingerprint] += 1
    return found


def _pairs(then: Record, after: Record) -> dict[str, str | None]:
    """Of equal rows each task has the next of the earlier ones, in the order in which both began."""
    waiting: dict[bytes, list[str]] = defaultdict(list)
    for task, start in then.starts.items():
        waiting[start.digest].append(task)
    return {
        task: waiting[start.digest].pop(0) if waiting[start.digest] else None for task, start in after.starts.items()
    }


def _twice(after: Record) -> Iterator[str]:
    """Two steps of a task that ask the same draw two samples."""
    seeds: Counter[tuple[str, bytes, int]] = Counter()
    for events in after.outcomes.values():
        event = events[-1]
        if event.kind == "model" and event.task not in after.reopened:
            seeds[event.task, event.fingerprint, event.seed] += 1
    for (task, _, seed), count in seeds.items():
        if count > 1:
            yield f"reused: {count} steps of {task} that ask the same have the sample of seed {seed}"


def own_sample(event: StepEnded) -> bool:
    """Whether a reused step has what it would have drawn itself."""
    return event.kind != "model" or event.seed == seed_of(
        event.task, (event.path, event.fingerprint, event.occurrence), 0
    )
