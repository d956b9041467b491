"""Whether a reply is right, by any checker: rules, formulas, programs, a function of the user's.

Rules are pure and run where they stand. The others run in a process, each reply a recorded step, and what hangs or
dies there is wrong and says why; nothing of it is dropped.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, cast, get_args

from weaverant.errors import StepFailed, UserError
from weaverant.message import digest
from weaverant.recipe import load_module
from weaverant.recipes.malt import formulas, programs
from weaverant.recipes.malt.answers import Checker, answer_key
from weaverant.recipes.malt.limits import OutOfMemory, OutOfTime, limited
from weaverant.workflow import process_step

RULES: tuple[str, ...] = get_args(Checker)
NAMES = (*RULES, "math", "code")

SECONDS = 10.0
MEGABYTES = 4_000
"""What a user's function may take for one reply."""

Check = Callable[[str, dict[str, Any]], Any]
"""A user's checker: of a reply and its row. Gives whether it is right, None where no answer could be read, or both
`(answer, right)`. Importable, as it runs in another process."""


class Verdict(NamedTuple):
    """`answer` as it was read, for votes; None where it could not be, or where the checker reads none. `why` says why a
    reply is wrong that was not compared."""

    answer: str | None
    right: bool
    why: str = ""


class Grader(NamedTuple):
    """One row's judge."""

    checker: str
    gold: str
    judge: Callable[[str], Awaitable[Verdict]]
    read: Callable[[str], str | None]
    """The answer of a reply, without judging it: for rules only, None for others."""


def grader_for(row: Mapping[str, Any], checker: str = "auto") -> Grader:
    """The grader of a row by the name of a checker: `auto`, `number`, `choice`, `exact`, `math`, `code`, or
    `FILE.py:FUNCTION`. `UserError` where there is no such checker, or where the gold answer cannot be read."""
    answer = row.get("answer")
    if checker in RULES:
        key = answer_key(answer, cast("Checker", checker))

        async def ruled(reply: str) -> Verdict:
            said = key.read(reply)
            return Verdict(said, key.accepts(said), "unread" if said is None else "")

        return Grader(key.kind, key.gold, ruled, key.read)
    if checker == "math":
        formulas.available()
        return _elsewhere(checker, formulas.gold_of(answer), formulas.compared)
    if checker == "code":
        return _elsewhere(checker, programs.tests_of(answer), programs.tested)
    file, _, name = checker.rpartition(":")
    if not file.endswith(".py"):
        raise UserError(
            f"there is no checker {checker!r}; expected one of {', '.join(NAMES)}, or FILE.py:FUNCTION, a function of "
            "a reply and its row"
        )
    path = Path(file).resolve()
    written = _hash_of(path)
    return _of_user(checker, row, lambda reply, told: process_step(named_check, str(path), name, written, reply, told))


def grader_by(check: Check, row: Mapping[str, Any]) -> Grader:
    """The grader of a row by a user's function, which stands at the top of an importable module."""
    bounded = Bounded(check)
    return _of_user(bounded.__qualname__, row, lambda reply, told: process_step(bounded, reply, told))


def _elsewhere(checker: str, gold: str, compare: Callable[[str, str], tuple[str | None, bool, str]]) -> Grader:
    """By a function of ours: whatever it fails with says something of the reply, and is wrong."""

    async def judge(reply: str) -> Verdict:
        try:
            return Verdict(*await process_step(compare, gold, reply))
        except StepFailed as failure:
            if failure.kind in _OURS:
                raise
            return Verdict(None, False, failure.kind)

    return Grader(checker, gold, judge, _nothing)


_OURS = ("UserError", "ImportError", "ModuleNotFoundError", "OSError", "BlockingIOError", "FileNotFoundError")
"""Failures of the installation, the row or the machine: they fail the row."""


def _of_user(checker: str, row: Mapping[str, Any], ask: Callable[[str, dict[str, Any]], Awaitable[Any]]) -> Grader:
    """By a user's function. What it raises fails the row: a mistake of the checker is none of the reply."""
    gold, told = row.get("answer"), dict(row)

    async def judge(reply: str) -> Verdict:
        try:
            return Verdict(*await ask(reply, told))
        except StepFailed as failure:
            if failure.kind != "died":
                raise
            return Verdict(None, False, "died")

    return Grader(checker, "" if gold is None else str(gold), judge, _nothing)


def _nothing(reply: str) -> None:
    return None


def _hash_of(file: Path) -> str:
    """Of what is in the file, so that an edited checker is not answered from an old record."""
    try:
        return digest(file.read_bytes()).hex()
    except OSError as error:
        raise UserError(f"the checker's file {str(file)!r} cannot be read: {error.strerror}") from None


# In the other process


class Bounded:
    """A user's function within limits, and its verdict as plain data. Steps know it by the function's source."""

    def __init__(self, check: Check) -> None:
        self.__wrapped__ = check
        self.__qualname__ = getattr(check, "__qualname__", type(check).__qualname__)

    def __call__(self, reply: str, row: dict[str, Any]) -> tuple[str | None, bool, str]:
        try:
            return _verdict(limited(lambda: self.__wrapped__(reply, row), SECONDS, MEGABYTES))
        except OutOfTime:
            return None, False, "out of time"
        except OutOfMemory:
            return None, False, "out of memory"


def named_check(file: str, name: str, written: str, reply: str, row: dict[str, Any]) -> tuple[str | None, bool, str]:
    """What the function of that name in a user's file says. `written` is a hash of the file."""
    return Bounded(_function(file, name, written))(reply, row)


@cache
def _function(file: str, name: str, written: str) -> Check:
    function = getattr(load_module(Path(file)), name, None)
    if not callable(function):
        raise UserError(f"{file!r} has no function {name!r} to check replies with")
    return function


def _verdict(said: Any) -> tuple[str | None, bool, str]:
    """A user's verdict: a truth value, None, or `(answer, right)`."""
    if said is None:
        return None, False, "unread"
    if isinstance(said, bool):
        return None, said, ""
    if isinstance(said, Sequence) and not isinstance(said, str):
        parts = cast("Sequence[Any]", said)
        if len(parts) == 2 and (parts[0] is None or isinstance(parts[0], str)) and isinstance(parts[1], bool):
            return parts[0], parts[1], ""
    raise UserError(f"a checker gives True, False, None (no answer was found) or (answer, right); found {said!r:.200}")
