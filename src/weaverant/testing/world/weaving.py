"""The workflows of a simulated world: random programs that tell a witness what they have seen.

What a workflow has seen is the one proof that needs no trust in the code under test: it must be in the journal, and
nobody may be asked for it again, whatever breaks afterwards.
"""

from __future__ import annotations

from contextlib import suppress
from random import Random
from typing import Any

from msgspec import Struct, field

from weaverant.errors import StepFailed
from weaverant.message import Reply
from weaverant.task import Task
from weaverant.testing.weaves import VOICES, Op, Weave, mix, program
from weaverant.testing.world.server import number_in
from weaverant.workflow import Group, Stages, Workflow, deadline, group, process_step, reject, step, workflow

PATIENCE = 3_600.0
"""Seconds that a workflow waits for a process."""

UNBOUNDED = 5
"""The label of those whose workflow waits without end."""

FATES = (
    "endless process",
    "dead process",
    "process dead at rest",
    "value that cannot be sent",
    "value that cannot be read",
)
"""What becomes of a process, or of what it gave."""


class Effect(Struct):
    """One execution of a user's function."""

    life: int
    failed: bool


class Witness(Struct):
    """What was seen outside the core, all lives together."""

    life: int = 0
    edition: int = 0
    """Which version of the programs the workflows read: an edit that no hash of code can notice."""
    trouble: float = 0.0
    """Share of effects that raise."""
    doom: float = 0.0
    """Share of processes to which something happens."""
    random: Random = field(default_factory=lambda: Random(0))
    calls: list[tuple[int, int]] = []
    """(life, number of the request) of outcomes that a workflow saw."""
    effects: list[Effect] = []
    seen_effects: list[tuple[int, int]] = []
    ends: list[tuple[int, Task]] = []
    """(life, task) as the caller got them."""
    fate: str = ""
    """Of the process that a function runs in now."""

    def saw(self, text: str) -> None:
        number = number_in(text)
        if number is not None:
            self.calls.append((self.life, number))

    def saw_effect(self, number: int | None) -> None:
        if number is not None:
            self.seen_effects.append((self.life, number))

    def ran(self) -> int:
        """A user's function ran: its number. Some raise."""
        failed = self.random.random() < self.trouble
        self.effects.append(Effect(self.life, failed))
        number = len(self.effects) - 1
        if failed:
            raise self.random.choice((ValueError, LookupError, OSError, Unsendable))(f"an effect fails #{number}#")
        return number

    def computed(self, value: dict[str, Any]) -> dict[str, Any]:
        """What a function gave that ran in a process; now and then that is no more, or never was."""
        if self.random.random() < self.doom:
            self.fate = self.random.choice(FATES[value["label"] == UNBOUNDED :])
        if self.fate.startswith("value"):
            return {**value, "said": Odd(self.fate, f"no value #{value['number']}#")}
        return value


class Unsendable(Exception):
    """Raised, it cannot be pickled and read again."""

    def __init__(self, text: str, *, needed: int = 0) -> None:
        super().__init__(text, needed)

    def __str__(self) -> str:
        return str(self.args[0])


class Odd:
    """What cannot be pickled, or cannot be read again."""

    def __init__(self, fate: str, text: str) -> None:
        self._fate, self._text = fate, text

    def __reduce__(self) -> Any:
        if self._fate == "value that cannot be sent":
            raise ValueError(self._text)
        return _no_odd, (self._text,)


def _no_odd(text: str) -> Odd:
    raise ValueError(text)


class _Here:
    """The world that runs now: workflows are plain functions and get nothing but a row."""

    witness = Witness()


def witnessed(witness: Witness) -> None:
    """From now on workflows tell this one."""
    _Here.witness = witness


async def note(label: int, value: str) -> dict[str, Any]:
    return {"label": label, "said": [value], "number": _Here.witness.ran()}


def note_in_a_thread(label: int, value: str) -> dict[str, Any]:
    return {"label": label, "said": [value], "number": _Here.witness.ran()}


def note_in_a_process(label: int, value: str) -> dict[str, Any]:
    return _Here.witness.computed({"label": label, "said": [value], "number": _Here.witness.ran()})


class Loom(Weave):
    """Interprets a program, and tells what it sees."""

    def __init__(self, pad: str) -> None:
        super().__init__()
        self._pad = pad

    async def _ask(self, value: str, voice: int, question: int, about: bool) -> str:
        return mix(await ask(voice, f"q{question}", value + self._pad if about else ""))

    async def _risky(self, value: str, voice: int, question: int, about: bool) -> str:
        return mix(await ask(voice, f"q{question}!", value + self._pad if about else ""))

    async def _effect(self, value: str, label: int) -> str:
        noted = await _noted(label, value)
        noted["said"].append("changed by the workflow")
        return mix(noted["said"], noted["label"])

    async def _publish(self, value: str, label: int) -> str:
        self.board.append(value)
        noted = await _noted(label, mix(self.board))
        self.board += noted["said"]
        return mix(self.board)


async def ask(voice: int, question: str, about: str) -> str:
    """A reply's text, or the failure; told either way."""
    try:
        reply: Reply = await VOICES[voice].reply(question=question, about=about)
    except StepFailed as failure:
        _Here.witness.saw(failure.text)
        raise
    _Here.witness.saw(reply.model)
    return reply.text


async def _noted(label: int, value: str) -> dict[str, Any]:
    witness = _Here.witness
    try:
        noted = await _notes(label, value)
    except StepFailed as failure:
        witness.saw_effect(number_in(failure.text))
        raise
    witness.saw_effect(noted["number"])
    return noted


async def _notes(label: int, value: str) -> dict[str, Any]:
    if label % 2 == 0:
        return await step(note if label % 4 else note_in_a_thread, label, value)
    if label != UNBOUNDED:
        with suppress(TimeoutError):
            async with deadline(PATIENCE):
                return await process_step(note_in_a_process, label, value)
    return await process_step(note_in_a_process, UNBOUNDED, value)


def _program(row: dict[str, Any]) -> Op:
    seed = row["seed"] + (1_000_003 * _Here.witness.edition if row["edited"] else 0)
    own = program(row["seed"], failing=row["failing"], racy=row["racy"], tough=row["tough"])
    return own if seed == row["seed"] else ("then", own[1], program(seed, failing=False, racy=False))


@workflow
async def woven(row: dict[str, Any]) -> Any:
    loom = Loom(row["pad"])
    value = await loom.run(_program(row), "0")
    if row["seed"] % 11 == 0:
        return reject("drawn", value=value)
    return {"value": value, "board": loom.board, "pad": row["pad"]}


@workflow
async def spread(row: dict[str, Any]) -> Any:
    value = await Loom(row["pad"]).run(_program(row), "0")
    items = [{"value": mix(value, n), "side": (int(value[0], 16) + n) % 2} for n in range(row["seed"] % 4)]
    return [*items, "no row"] if row["seed"] % 13 == 0 else items


@workflow
async def continued(row: dict[str, Any]) -> Any:
    return {**row, "value": mix(await ask(0, "go on", row["value"]))}


@group(by="side")
async def merged(rows: list[dict[str, Any]]) -> Any:
    said = await ask(0, "merge", mix([row["value"] for row in rows]))
    return [{"value": mix(said), "side": len(rows)}]


RECIPES: tuple[Workflow | Stages, ...] = (
    woven,
    Stages(spread, continued),
    Stages(spread, merged),
    Stages(spread, continued, merged, continued),
)


def stages_of(recipe: Workflow | Stages) -> tuple[Workflow | Group, ...]:
    return recipe.stages if isinstance(recipe, Stages) else (recipe,)
