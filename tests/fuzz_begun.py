"""Runs that were begun and left off, for the fuzzers to forge: conversations, branches, timers, tools, groups, a budget.

All that a model says is a function of what it is asked, so whatever becomes of a run, its rows end alike.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from weaverant import Agent, Message, Reply, Stages, StepFailed, group, reject, resume, run, step, workflow
from weaverant.cli.show import storyteller
from weaverant.journal import JournalReader
from weaverant.journal.disk import Disk
from weaverant.message import Request, ToolCall, Usage, assistant, digest, user
from weaverant.protocols import CallContext
from weaverant.runtime.surroundings import Surroundings
from weaverant.session import Run
from weaverant.story import Story
from weaverant.testing.world.life import EPOCH
from weaverant.testing.world.loop import VirtualClock, VirtualLoop, VirtualWorker

ROWS = [{"n": n, "text": f"the text of row {n}, long enough to be named by a number"} for n in range(7)]
LARGE = {"n": 7, "text": "a text that lives in a blob, because of its length. " * 1_300}


class Voice:
    """Answers at once; under a budget it sets money aside first. After `most` requests it stops the run."""

    identity = "voice"

    def __init__(self, most: int = -1) -> None:
        self.most = most
        self.asked = 0
        self.stop: Callable[[], None] = lambda: None

    def unbounded(self, request: Request) -> str:
        return ""

    async def generate(self, request: Request, ctx: CallContext) -> Reply:
        if ctx.purse is not None:
            await ctx.purse.afford(0.5)
        self.asked += 1
        if self.asked == self.most:
            self.stop()
        await asyncio.sleep(0)
        said = digest(repr(request.messages).encode()).hex()
        if "fail" in request.messages[-1].text:
            raise StepFailed("server", f"it is down, says {said}", usage=Usage(cost=0.25))
        if request.tools and len(request.messages) < 3:
            message = Message("assistant", "", (ToolCall("c", "look_up", f'{{"word": "{said}"}}'),))
            return Reply(message, Usage(5, 0, cost=0.25), "voice", "tool_calls")
        return Reply(assistant(f"it says {said}"), Usage(10, 5, cost=0.25), "voice")

    async def close(self) -> None:
        """Nothing is held."""


async def look_up(word: str) -> str:
    """Look a word up."""
    return f"the meaning of {word}"


async def count(text: str) -> dict[str, Any]:
    return {"letters": len(text), "of": [text]}


speaker = Agent("speaker", prompt="{{ ask }} of {{ text }}")
tooled = Agent("tooled", prompt="look up {{ text }}", tools=[look_up])
talker = Agent("talker", system="You talk of {{ word }}.", prompt="{{ word }}")


@workflow
async def weave(row: Any) -> Any:
    """Two branches that ask alike, a talk of some turns, a timer, a function, a tool; rows 2 and 3 do not pass."""
    text = row["text"]
    said = await asyncio.gather(*(speaker(ask=f"part {n // 2}", text=text) for n in range(4)))
    history: list[Message] = []
    for turn in range(6):
        word = f"turn {turn} of the talk about row {row['n']}"
        reply = await talker.reply(word=word, history=history)
        history += [user(word), reply.message]
    await asyncio.sleep(0.001)
    counted = await step(count, said[0])
    if row["n"] == 2:
        await speaker(ask="fail", text="")
    if row["n"] == 3:
        return reject("odd", said=said)
    return {"n": row["n"], "said": said, "last": history[-1].text, "counted": counted, "found": await tooled(text=text)}


@workflow
async def splits(row: Any) -> Any:
    said = await speaker(ask="split", text=row["text"])
    if row["n"] == 2:
        await speaker(ask="fail", text="")
    return [{"n": row["n"], "part": part, "said": said} for part in range(row["n"] % 3)]


@workflow
async def passes(row: Any) -> Any:
    return {**row, "again": await speaker(ask="again", text=row["said"])}


@group(by="part")
async def joins(rows: list[Any]) -> Any:
    return {"rows": rows, "of all": await speaker(ask="all", text=" ".join(row["again"] for row in rows))}


@workflow
async def closes(row: Any) -> Any:
    return {"rows": len(row["rows"]), "said": await speaker(ask="close", text=row["of all"])}


RECIPES = {"woven": weave, "split": Stages(splits, passes), "joined": Stages(splits, passes, joins, closes)}
STOPS = {"woven": (35, 25), "split": (5, 3), "joined": (8, 5)}
"""At which of their requests its first two sessions are left."""
IN_FLIGHT = {"woven": 2, "split": 4, "joined": 4}
"""Of two at once not all rows have begun by then."""


class End(NamedTuple):
    """What a task has come to."""

    state: str
    result: Any
    said: list[str]


Ends = dict[str, End]
"""By task."""


class Begun(NamedTuple):
    """A run that was left twice, and what its tasks come to when it is left in peace."""

    recipe: str
    directory: Path
    ends: Ends


@cache
def begun(folder: Path) -> tuple[Begun, ...]:
    """Each recipe with and without a budget; its last session ended in order, or was killed."""
    return tuple(_begun(folder, recipe, budget) for recipe in RECIPES for budget in (0.0, 100.0))


def _begun(folder: Path, recipe: str, budget: float) -> Begun:
    directory = folder / f"begun-{recipe}-{budget:g}"
    rows = [*ROWS, LARGE] if recipe == "woven" else ROWS
    first = run(
        RECIPES[recipe],
        rows,
        models=Voice(),
        directory=directory,
        budget=budget,
        in_flight=IN_FLIGHT[recipe],
        grace=0.0,
    )
    go_on(first, STOPS[recipe][0])
    go_on(resumed(recipe, directory), STOPS[recipe][1])
    whole = directory.with_name(directory.name + "-whole")
    shutil.copytree(directory, whole)
    go_on(resumed(recipe, whole))
    return Begun(recipe, directory, ends_of(whole))


def resumed(recipe: str, directory: Path, retry: bool = False) -> Run:
    rows = [*ROWS, LARGE] if recipe == "woven" else ROWS
    return resume(directory, workflow=RECIPES[recipe], rows=rows, models=Voice(), retry=retry)


def go_on(left: Run, most: int = -1) -> None:
    """To the end, or to the request with this number, in an event loop whose time is simulated: it runs the same way
    each time, and what waits for ever raises `Stuck`."""
    (voice,) = left.binding.models.values()
    assert isinstance(voice, Voice)
    voice.most, voice.stop = most, left.stop
    clock, odds = VirtualClock(EPOCH), Random(0)
    loop = VirtualLoop(clock, odds)
    left.surroundings = Surroundings(clock, Unsynced(), VirtualWorker(loop, odds, 0.001), 1_500, watched=False)
    left.tell = lambda text: None
    try:
        loop.run_until_complete(_drive(left))
    finally:
        loop.close()


async def _drive(left: Run) -> None:
    async for _ in left:
        pass


class Unsynced(Disk):
    """A disk as fast as its cache: no power is cut here."""

    def sync(self, file: int) -> None:
        """Nothing."""


def ends_of(directory: Path) -> Ends:
    """Every task that ended."""
    reader = JournalReader(directory)
    teller = storyteller(directory, reader)
    keys = [task.task for task in reader.tasks() if task.state not in (None, "superseded")]
    stories = (teller.tell(events) for _, events in reader.histories(reader.places(keys)))
    return {story.key: End(str(story.state), story.result, _said(story)) for story in stories}


def _said(story: Story) -> list[str]:
    """What was asked and answered, in no order: that of branches differs. A retry asks again."""
    steps = story.steps if story.state != "failed" else []
    return sorted(
        repr((step.messages, step.reply and step.reply.message, step.arguments, step.value)) for step in steps
    )
