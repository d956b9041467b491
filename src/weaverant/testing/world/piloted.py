"""What must hold of a pilot: it begins no other rows, ends them all unless something stops it, and is told truly."""

from __future__ import annotations

from collections.abc import Iterator

from weaverant.errors import UserError
from weaverant.events import RunClosed
from weaverant.pilot import estimate
from weaverant.testing.world.life import Life, World
from weaverant.testing.world.record import Record
from weaverant.testing.world.server import BOUND

CENT = 1e-9


def piloted(world: World, life: Life, before: Record, after: Record) -> Iterator[str]:
    held = life.plan.pilot * world.plan.trials
    if not held:
        if life.state == "pilot":
            yield "pilot: a run of all rows ended as a pilot"
        return
    begun, earlier = _begun(after), _begun(before)
    if begun > max(held, earlier):
        yield f"pilot: {begun} tasks were begun, {held} were to be"
    if life.state == "pilot":
        if begun < held or begun >= len(world.plan.rows) * world.plan.trials:
            yield f"pilot: it ended with {begun} tasks of {held} to be and {len(world.plan.rows)} rows"
        if open_tasks := [task for task, state in after.states.items() if state is None and "@" not in task]:
            yield f"pilot: it ended, and these have not: {open_tasks}"
    if life.orderly:
        yield from _bound(world, after)
    yield from _estimated(world, after)


def _begun(record: Record) -> int:
    return sum(not start.stage for start in record.starts.values())


def _bound(world: World, after: Record) -> Iterator[str]:
    """What one call may cost is noted for the estimate."""
    closed = [event for event in after.events if isinstance(event, RunClosed)]
    asked = any(asked.life == world.lives - 1 for asked in world.log)
    if asked and not world.plan.http and closed[-1].bound != BOUND:
        yield f"pilot: a call may cost ${BOUND}, and its end says ${closed[-1].bound}"


def _estimated(world: World, after: Record) -> Iterator[str]:
    """The estimate rests on the rows that have ended, with all that was made of them, and on what the journal holds."""
    roots = {task.partition("/")[0] for task in after.states if "@" not in task}
    unended = {task.partition("/")[0] for task, state in after.states.items() if state is None and "@" not in task}
    try:
        found = estimate(world.directory)
    except UserError:
        if roots - unended:
            yield f"pilot: nothing is told of {len(roots - unended)} rows that have ended"
        return
    if (found.rows, found.unfinished) != (len(roots - unended), len(unended)):
        yield f"pilot: {found.rows} rows ended and {found.unfinished} did not, told of {len(roots)} and {len(unended)}"
    if abs(found.spent - after.accounted) > CENT:
        yield f"pilot: ${found.spent} were spent by the estimate, ${after.accounted} by the journal"
