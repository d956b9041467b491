"""weaverant makes training data for language models with teams of agents.

Rows go in, a workflow in plain async Python works on them, data to train on comes out; every step is journaled, so
nothing is lost and nothing is paid twice.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from weaverant.agent import Agent
from weaverant.errors import StepFailed, UserError, WeaverantError
from weaverant.message import Message, Reply, Request, Usage
from weaverant.workflow import (
    Stages,
    deadline,
    feedback,
    group,
    now,
    process_step,
    reject,
    rng,
    step,
    workflow,
)

if TYPE_CHECKING:
    from weaverant.launch import resume, run
    from weaverant.recipe import exporter
    from weaverant.session import Run
    from weaverant.story import Step, Story
    from weaverant.task import Task

__version__ = "0.1.0"

__all__ = [
    "Agent",
    "Message",
    "Reply",
    "Request",
    "Run",
    "Stages",
    "Step",
    "StepFailed",
    "Story",
    "Task",
    "Usage",
    "UserError",
    "WeaverantError",
    "deadline",
    "exporter",
    "feedback",
    "group",
    "now",
    "process_step",
    "reject",
    "resume",
    "rng",
    "run",
    "step",
    "workflow",
]


_LATER = {
    "Run": "launch",
    "Step": "story",
    "Story": "story",
    "Task": "task",
    "exporter": "recipe",
    "resume": "launch",
    "run": "launch",
}
"""What loads with its first use, and its module: a workflow's file needs none of what they bring."""


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module 'weaverant' has no attribute {name!r}")
    return getattr(import_module(f"weaverant.{_LATER[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
