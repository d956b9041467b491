"""Everything that can go wrong, drawn as a tree.

    WeaverantError
    ├── UserError               a mistake in a command, a file or a call; shown without a traceback, exit code 2
    │   ├── WorkflowError       a workflow did what cannot be recorded or replayed
    │   └── RunChanged          resume was asked to continue code, prompts or models that have changed
    ├── StepFailed(kind, text)  a step's recorded failure; workflows may catch it; the same live and replayed
    │   └── Unavailable         nobody could be asked: never recorded, the run stops, resumable
    │       └── Misdirected     for a wrong key or address, as it seems
    ├── JournalError            the journal cannot be read or written any more; the run ends, resumable
    │   └── JournalCorrupt      a bad frame before a good one: never repaired in silence
    └── RunLocked               another process writes this run

Messages say what happened, what was expected, what was found, and the way out.
"""

from __future__ import annotations

import errno
import sysconfig
from collections.abc import Mapping, Sequence
from pathlib import Path
from traceback import extract_tb
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from weaverant.message import Usage


class WeaverantError(Exception):
    """The root of the tree."""


class UserError(WeaverantError):
    """A user's mistake. Its text is all the user needs to see."""


class WorkflowError(UserError):
    """A workflow tried what cannot be recorded or replayed (a raw socket, a thread, a step in a step)."""


class RunChanged(UserError):
    """What a resumed run would continue is not what it began with. `changes` names what is not."""

    def __init__(self, text: str, changes: Sequence[str] = ()) -> None:
        super().__init__(text)
        self.changes = tuple(changes)


class StepFailed(WeaverantError):
    """A step ended in a recorded failure.

    `kind` is a short word to branch and count on: `timeout`, `rate_limit`, `server`, `connection`, `request`,
    `output` (the reply never fitted the output type), `tool`, `context` (prompt too long), or the name of the
    exception that a `step` function raised. `text` is for people. `detail` is kept in the journal: the last reply of a
    failed repair (`reply`), the line that raised in a step's function (`raised`).
    """

    def __init__(self, kind: str, text: str, detail: Any = None, usage: Usage | None = None) -> None:
        kind, text = shown(kind), shown(text)
        super().__init__(kind, text)
        self.kind = kind
        self.text = text
        self.detail = detail
        self.usage = usage
        """What the requests behind the failure used, where an engine knows; where a workflow catches it, what its step
        is charged."""
        self.forget: tuple[tuple[str, bytes, int], ...] = ()
        """Keys of the steps whose replies led here: a retry asks them again."""

    def __str__(self) -> str:
        return f"{self.kind}: {self.text}"


class Unavailable(StepFailed):
    """There is nobody to ask, and nothing was asked: no failure of the row. The run stops, and the call is asked when
    it is resumed."""


class Misdirected(Unavailable):
    """Nobody there has ever given a reply, and what came instead speaks of a wrong key or address: a mistake in the
    settings."""


class JournalError(WeaverantError):
    """The journal cannot go on. What was acknowledged before is safe."""


class JournalCorrupt(JournalError):
    """A frame in the middle of a segment does not match its checksum."""


class RunLocked(WeaverantError):
    """Another living process holds the run directory."""


_NO_ROOM = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG))


def is_full(error: BaseException | None) -> bool:
    """Whether a disk, a quota or a file had no room: with some more, the same command goes on."""
    return isinstance(error, OSError) and error.errno in _NO_ROOM


def failure_of(error: BaseException, row: Any = None) -> tuple[StepFailed, str]:
    """What escaped from a user's code that worked on the row, as a failure with an address: `file.py:12 in function`,
    and where a step's function raised it, the place in there as well."""
    failure = _as_failure(error, row)
    detail = failure.detail
    raised = cast("dict[str, Any]", detail).get(RAISED) if isinstance(detail, dict) else None
    return failure, ", raised at ".join(filter(None, (place_of(error), raised)))


RAISED = "raised"
"""In the detail of a step's failure: the place in the user's code that raised it."""


def place_of(error: BaseException) -> str:
    """The innermost line of a user's code that the error came through; empty where it came through none."""
    frames = extract_tb(error.__traceback__)
    users = [frame for frame in frames if is_users(frame.filename)]
    return f"{Path(users[-1].filename).name}:{users[-1].lineno} in {users[-1].name}" if users else ""


def is_users(filename: str) -> bool:
    """Whether a file of code is the user's: none of Python's, of a package's, or of ours that is no recipe."""
    return filename.startswith(_RECIPES) or not filename.startswith(_NOT_THE_USERS)


def _as_failure(error: BaseException, row: Any) -> StepFailed:
    """A group counts as the first failure in it; what any failure behind the error hung on is kept for a retry."""
    leaves = _leaves(error)
    first = leaves[0]
    if isinstance(first, StepFailed):
        failure = StepFailed(first.kind, first.text, first.detail)
    else:
        failure = StepFailed(type(first).__name__, shown(first) + _hint(first, row))
    if len(leaves) > 1:
        failure.text += f" (and {len(leaves) - 1} more in the group)"
    failure.forget = tuple(key for behind in _behind(error) for key in behind.forget)
    return failure


def _hint(error: BaseException, row: Any) -> str:
    """What a short text of Python's leaves out."""
    if isinstance(error, KeyError) and error.args and _raised_by_user(error):
        fields = _fields(row)
        if fields and error.args[0] not in fields:
            return (
                f"; the row has: {', '.join(map(repr, fields[:_MOST_FIELDS]))}{' ...' * (len(fields) > _MOST_FIELDS)}"
            )
    if isinstance(error, AttributeError | TypeError) and "'coroutine'" in shown(error):
        return "; did you forget `await`?"
    return ""


_MOST_FIELDS = 30


def _raised_by_user(error: BaseException) -> bool:
    frames = extract_tb(error.__traceback__)
    return bool(frames) and is_users(frames[-1].filename)


def _fields(row: Any) -> list[str]:
    """The names in a row; of a group's rows, those of all."""
    rows = cast("Sequence[Any]", row if isinstance(row, list) else [row])
    return list(
        dict.fromkeys(name for one in rows if isinstance(one, Mapping) for name in cast("Mapping[str, Any]", one))
    )


def _leaves(error: BaseException) -> list[BaseException]:
    if not isinstance(error, BaseExceptionGroup):
        return [error]
    inside: tuple[BaseException, ...] = error.exceptions  # pyright: ignore[reportUnknownMemberType,reportUnknownVariableType]
    return [leaf for part in inside for leaf in _leaves(part)]


def _behind(error: BaseException) -> list[StepFailed]:
    """The failures of steps among the error, its leaves, and what they were raised from."""
    found: list[StepFailed] = []
    unseen: list[BaseException | None] = [*_leaves(error)]
    seen: set[int] = set()
    while unseen:
        one = unseen.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            if isinstance(one, StepFailed):
                found.append(one)
            unseen += [one.__cause__, one.__context__]
            unseen += [] if _leaves(one) == [one] else _leaves(one)
    return found


def shown(value: object) -> str:
    """Anything as text that can be stored: what is raised may carry no text, or fail even at giving one."""
    try:
        return str(value).encode(errors="backslashreplace").decode()
    except Exception:  # an exception of a user's making may fail even at this
        return f"a {type(value).__name__} whose text cannot be made"


_RECIPES = str(Path(__file__).parent / "recipes")
_NOT_THE_USERS = (
    str(Path(__file__).parent / "."),
    sysconfig.get_path("stdlib"),
    sysconfig.get_path("purelib"),
    "<frozen",
)
