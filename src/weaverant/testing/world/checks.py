"""What must hold after each life, whatever went wrong in it. Each fault is a line that begins with its invariant.

Every check compares the journal with something that the journal knows nothing of: what the server was asked and
billed, what workflows and callers have seen, and counts over all events made without the indexes.
"""

from __future__ import annotations

from collections.abc import Iterator

from weaverant.events import StepEnded
from weaverant.journal import JournalReader
from weaverant.testing.world.life import Life, World
from weaverant.testing.world.piloted import piloted
from weaverant.testing.world.record import Record
from weaverant.testing.world.reused import reused
from weaverant.testing.world.server import Asked, CallKey

CENT = 1e-9
"""Dollars by which sums of floats may differ."""


def check(world: World, life: Life, before: Record, after: Record) -> Iterator[str]:
    """`before` and `after` are the journal at the life's start and end."""
    yield from life.faults
    yield from acknowledged(world, before, after)
    yield from asked_again(world, life, before)
    yield from once(after)
    yield from ledger(world, life, after)
    yield from indexes(world, after)
    yield from money(world, life, after)
    yield from reused(world, after)
    yield from piloted(world, life, before, after)
    if life.orderly:
        yield from recorded(world, life, before, after)


def acknowledged(world: World, before: Record, after: Record) -> Iterator[str]:
    """What a workflow or the caller has seen is in the journal, and what was there is still there."""
    witness = world.witness
    for _, number in witness.calls:
        if number not in after.calls and ("model", number) not in after.reused:
            yield f"acknowledged: a workflow saw the outcome of request {number}, and the journal has lost it"
    for _, number in witness.seen_effects:
        if number not in after.effects and ("effect", number) not in after.reused:
            yield f"acknowledged: a workflow saw the value of effect {number}, and the journal has lost it"
    for _, task in witness.ends:
        if all(end.state != task.state for end in after.ends.get(task.key, [])):
            yield f"acknowledged: the caller got {task.key} as {task.state}, and the journal does not say so"
    if after.events[: len(before.events)] != before.events and not _never_acted(world, before, after):
        yield "acknowledged: the journal has changed what it held before"


def _never_acted(world: World, before: Record, after: Record) -> bool:
    """Whether the process died before it had done anything: what a kill left in the page cache alone may be lost to a
    power cut, as long as nobody has acted on it."""
    acted = any(asked.life == world.lives - 1 for asked in world.server.log)
    return not acted and after.events == before.events[: len(after.events)]


def asked_again(world: World, life: Life, before: Record) -> Iterator[str]:
    """Nobody is asked for what the journal held when the life began, unless a retry has forgotten it."""
    log = world.server.log
    recorded = [*before.calls.items(), *((number, event) for (_, number), [event, *_] in before.reused.items())]
    known = {
        (event.task, event.path, event.occurrence, log[number].key[3])
        for number, event in recorded
        if event.kind == "model" and event.task not in before.reopened
    }
    if life.plan.retry:
        known = {key for key in known if before.states[key[0]] != "failed"}
    for asked in log:
        if asked.life == world.lives - 1 and asked.key in known:
            yield f"asked again: request {asked.number} for {_named(asked.key)}, whose outcome was recorded before"
    keys: set[CallKey] = set()
    for asked in log:
        if asked.life == world.lives - 1:
            if asked.key in keys:
                yield f"asked again: request {asked.number} for {_named(asked.key)}, twice in one life"
            if not asked.retry:
                keys.add(asked.key)


def once(after: Record) -> Iterator[str]:
    """Each step has one outcome, each timer fires once, each task ends once; with a retry once more."""
    most = {task: 1 + after.reopened[task] for task in after.starts}
    for key, found in after.outcomes.items():
        if len(found) > most[key[0]]:
            yield f"once: {len(found)} outcomes of step {key}"
    for key, count in after.timers.items():
        if count > most[key[0]]:
            yield f"once: timer {key} fired {count} times"
    for task, ends in after.ends.items():
        if len(ends) > most[task]:
            yield f"once: {task} ended {len(ends)} times"


def ledger(world: World, life: Life, after: Record) -> Iterator[str]:
    """What the run counts is what is in the journal; a finished run has no row left."""
    if life.run is None or not life.orderly:
        return
    told = life.run.ledger
    finished = life.state == "finished"
    for number, counts in after.stages().items():
        stage = told.stages[number]
        ends = (stage.done, stage.rejected.total(), stage.failed.total())
        if ends != (counts["done"], counts["rejected"], counts["failed"]):
            yield f"ledger: stage {number} says {stage}, the journal has {dict(counts)}"
        if finished and (stage.left or stage.rows != counts.total()):
            yield f"ledger: a finished run: stage {number} says {stage}, the journal has {dict(counts)}"
    if finished and after.stages()[0].total() != len(world.plan.rows) * world.plan.trials:
        yield f"ledger: {after.stages()[0].total()} tasks of {len(world.plan.rows)} rows x {world.plan.trials}"
    cost = told.earlier_cost + told.usage().cost
    if abs(cost - after.usage.cost) > CENT:
        yield f"ledger: cost ${cost} told, ${after.usage.cost} in the journal"


def indexes(world: World, after: Record) -> Iterator[str]:
    """The indexes tell a resume what a scan of all events tells."""
    reader = JournalReader(world.directory)
    states = {task.task: task.state for task in reader.tasks()}
    found = {task: after.states[task] for task in after.starts}
    if states != found:
        yield f"index: tasks are {states}, by a scan {found}"
    left = {task for task, state in found.items() if state is None}
    if set(reader.unfinished()) != left:
        yield f"index: unfinished are {sorted(reader.unfinished())}, by a scan {sorted(left)}"
    cost = sum(usage.cost for usage in reader.usage().values())
    reserved = reader.reserved().dollars
    if abs(cost - after.usage.cost) > CENT or abs(cost + reserved - after.accounted) > CENT:
        yield f"index: ${cost} and ${reserved} set aside, by a scan ${after.usage.cost} and ${after.accounted}"


def money(world: World, life: Life, after: Record) -> Iterator[str]:
    """Under a budget what the journal says was spent or set aside covers the bill, and never passes the cap."""
    bill, log = world.bill, world.log
    if world.plan.budgeted:
        if bill > after.accounted + CENT:
            yield f"covered: the bill is ${bill}, and the journal knows of ${after.accounted}"
        most = max(world.caps)
        if max(bill, after.accounted) > most + CENT:
            yield f"cap: ${most} were allowed; the bill is ${bill}, accounted ${after.accounted}"
    known = world.orderly and not any(asked.unsure or asked.end in ("open", "error") for asked in log)
    if life.state == "finished" and known and abs(after.usage.cost - bill) > CENT:
        yield f"ledger: the bill is ${bill}, the steps cost ${after.usage.cost}"


def recorded(world: World, life: Life, before: Record, after: Record) -> Iterator[str]:
    """After an orderly end every answer that came is recorded, and nothing was recorded that nobody said."""
    for asked in world.server.log:
        if asked.life != world.lives - 1:
            continue
        if asked.end == "cancelled":
            if life.state == "finished" and not _cancelled(after, asked):
                yield f"recorded: request {asked.number} was cancelled, and the journal does not say so"
        elif not asked.retry and asked.end not in ("open", "error", "engine") and _missing(after, asked):
            yield f"recorded: the outcome of request {asked.number} ({asked.end}) is not in the journal"
    for number, event in after.calls.items():
        if number not in before.calls and world.server.log[number].key[0] != event.task:
            yield f"recorded: request {number} was made for another task than {event.task}"


def _missing(after: Record, asked: Asked) -> bool:
    """Whether an outcome that the task still waited for is not recorded."""
    return asked.number not in after.calls and not _cancelled(after, asked) and asked.key[0] not in after.ends


def _cancelled(after: Record, asked: Asked) -> bool:
    """Whether the workflow has given the step up."""
    task, path, occurrence, _ = asked.key
    return any((key[0], key[1], key[3]) == (task, path, occurrence) for key in after.cancelled)


def _named(key: CallKey) -> str:
    return f"{key[0]}, branch {key[1] or 'root'!r}, occurrence {key[2]}"


def outcomes(record: Record, task: str) -> dict[tuple[str, bytes, int], StepEnded]:
    """The recorded outcomes of one task."""
    return {key[1:]: found[-1] for key, found in record.outcomes.items() if key[0] == task}
