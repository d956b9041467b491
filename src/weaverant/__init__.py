"""weaverant makes training data for language models with teams of agents.

Rows go in, a workflow in plain async Python works on them, data to train on comes out; every step is journaled, so
nothing is lost and nothing is paid twice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from weaverant.agent import Agent
from weaverant.errors import StepFailed, UserError, WeaverantError
from weaverant.message import Message, Reply, Request, Usage
from weaverant.recipe import exporter
from weaverant.story import Step, Story
from weaverant.task import Task
from weaverant.workflow import (
    Stages,
    deadline,
    group,
    now,
    process_step,
    reject,
    rng,
    step,
    workflow,
)

if TYPE_CHECKING:
    from weaverant.launch import Run, resume, run

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


def __getattr__(name: str) -> Any:
    """`run`, `resume` and `Run` load with their first use: a workflow's file needs none of what they bring."""
    if name in ("Run", "resume", "run"):
        from weaverant import launch

        return getattr(launch, name)
    raise AttributeError(f"module 'weaverant' has no attribute {name!r}")
