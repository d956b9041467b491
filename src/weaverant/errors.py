"""Everything that can go wrong, drawn as a tree.

    WeaverantError
    ├── UserError               a mistake in a command, a file or a call; shown without a traceback, exit code 2
    │   ├── WorkflowError       a workflow did what cannot be recorded or replayed
    │   └── RunChanged          resume was asked to continue code, prompts or models that have changed
    ├── StepFailed(kind, text)  a step's recorded failure; workflows may catch it; the same live and replayed
    ├── JournalError            the journal cannot be read or written any more; the run ends, resumable
    │   └── JournalCorrupt      a bad frame before a good one: never repaired in silence
    └── RunLocked               another process writes this run

Messages say what happened, what was expected, what was found, and the way out.
"""

from __future__ import annotations

import sysconfig
from pathlib import Path
from traceback import extract_tb
from typing import Any


class WeaverantError(Exception):
    """The root of the tree."""


class UserError(WeaverantError):
    """A user's mistake. Its text is all the user needs to see."""


class WorkflowError(UserError):
    """A workflow tried what cannot be recorded or replayed (a raw socket, a thread, a step in a step)."""


class RunChanged(UserError):
    """What a resumed run would continue is not what it began with."""


class StepFailed(WeaverantError):
    """A step ended in a recorded failure.

    `kind` is a short word to branch and count on: `timeout`, `rate_limit`, `server`, `connection`, `request`,
    `output` (the reply never fitted the output type), `tool`, `context` (prompt too long), or the name of the
    exception that a `step` function raised. `text` is for people. `detail` is kept in the journal
    (the last reply of a failed repair, say).
    """

    def __init__(self, kind: str, text: str, detail: Any = None) -> None:
        super().__init__(kind, text)
        self.kind = kind
        self.text = text
        self.detail = detail
        self.forget: tuple[tuple[str, bytes, int], ...] = ()
        """Keys of the steps whose replies led here: a retry asks them again."""

    def __str__(self) -> str:
        return f"{self.kind}: {self.text}"


class JournalError(WeaverantError):
    """The journal cannot go on. What was acknowledged before is safe."""


class JournalCorrupt(JournalError):
    """A frame in the middle of a segment does not match its checksum."""


class RunLocked(WeaverantError):
    """Another living process holds the run directory."""


def failure_of(error: BaseException) -> tuple[StepFailed, str]:
    """What escaped from a user's code, as a failure with an address: `file.py:12 in function`."""
    failure = error if isinstance(error, StepFailed) else StepFailed(type(error).__name__, str(error))
    frames = extract_tb(error.__traceback__)
    users = [
        frame
        for frame in frames
        if frame.filename.startswith(_RECIPES) or not frame.filename.startswith(_NOT_THE_USERS)
    ]
    if not users:
        return failure, ""
    last = users[-1]
    return failure, f"{Path(last.filename).name}:{last.lineno} in {last.name}"


_RECIPES = str(Path(__file__).parent / "recipes")
_NOT_THE_USERS = (
    str(Path(__file__).parent / "."),
    sysconfig.get_path("stdlib"),
    sysconfig.get_path("purelib"),
    "<frozen",
)
