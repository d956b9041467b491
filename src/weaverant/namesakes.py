"""Agents that share a name. All that counts, sets and exports by agent takes them for one.

A file may hold several teams of the same roles, of which a row gets one, and a workflow may make an agent for a row.
What nobody means is one workflow that itself names two different agents of one name.
"""

from __future__ import annotations

import dataclasses
import dis
import inspect
from collections.abc import Iterable, Iterator
from types import CodeType, FunctionType
from typing import Any

from weaverant.agent import Agent
from weaverant.errors import is_users
from weaverant.recipe import function_of
from weaverant.workflow import Group, Workflow


def namesakes(stages: Iterable[Workflow | Group]) -> Iterator[tuple[Agent, Agent]]:
    """Pairs of one name among the agents that the stages name, in their code or in functions that it names."""
    first: dict[str, Agent] = {}
    for agent in _named([function_of(stage) for stage in stages]):
        other = first.setdefault(agent.name, agent)
        if other is not agent:
            yield other, agent


def differences(one: Agent, other: Agent) -> str:
    """The fields in which two agents differ, with their values; empty where there are none."""
    names = [field.name for field in dataclasses.fields(Agent) if field.name != "folder"]
    values = {name: (getattr(one, name), getattr(other, name)) for name in names}
    return ", ".join(f"{name} is {a!r:.60} and {b!r:.60}" for name, (a, b) in values.items() if a != b)


def _named(functions: list[Any]) -> Iterator[Agent]:
    seen = set[int]()
    unread = list(functions)
    while unread:
        function = inspect.unwrap(unread.pop(0))
        if not isinstance(function, FunctionType) or not is_users(function.__code__.co_filename):
            continue
        for value in _globals(function):
            if id(value) in seen:
                continue
            seen.add(id(value))
            if isinstance(value, Agent):
                yield value
            else:
                unread.append(function_of(value) if isinstance(value, Workflow | Group) else value)


def _globals(function: FunctionType) -> Iterator[object]:
    """What the function's code, and the code in it, reads from its module."""
    codes = [function.__code__]
    while codes:
        code = codes.pop()
        codes += [const for const in code.co_consts if isinstance(const, CodeType)]
        for instruction in dis.get_instructions(code):
            if instruction.opname == "LOAD_GLOBAL" and instruction.argval in function.__globals__:
                yield function.__globals__[instruction.argval]
