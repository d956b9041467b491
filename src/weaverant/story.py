"""A task read back from the journal: its row, its steps with the messages that were sent, its end.

Everything that looks at a finished run reads stories: `show --task`, the exporters, the recipes' own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, cast

from jinja2 import TemplateError
from msgspec import Struct

from weaverant.agent import Agent
from weaverant.branch import is_within
from weaverant.events import (
    NO_USAGE,
    CostReserved,
    EndState,
    Outcome,
    StepEnded,
    StepKind,
    TaskEnded,
    TaskEvent,
    TaskReopened,
    TaskStarted,
    TaskSuperseded,
    TimerFired,
)
from weaverant.history import in_order, sensible
from weaverant.message import Message, Reply, Usage
from weaverant.step import message_of, reply_of
from weaverant.trace import Texts


class Step(Struct):
    """One recorded step."""

    number: int
    kind: StepKind
    name: str
    """The agent, the tool or the function."""
    path: str
    occurrence: int
    outcome: Outcome
    messages: tuple[Message, ...] = ()
    """What was sent to the model."""
    tools: list[dict[str, Any]] = []
    """The tools it could call: name, description, JSON schema of the parameters."""
    output: dict[str, Any] | None = None
    """What its reply had to fit: name, JSON schema. It was sent beside the messages, or within them where a server
    takes none; which of the two is not recorded."""
    reply: Reply | None = None
    arguments: Any = None
    """What a tool or function was called with: `[positional, by name]`."""
    value: Any = None
    """What a tool or function returned; of a failure, `[text, detail]`."""
    reason: str = ""
    """The kind of a failure."""
    usage: Usage = NO_USAGE
    model: str = ""
    seed: int = 0
    reused: bool = False
    started: float = 0.0
    ended: float = 0.0
    """On the task's clock, in seconds."""
    follows: int | None = None
    """The step whose reply it goes on from within one call of its agent: with the results of tools, or, where its last
    message is the user's, because that reply did not fit the output."""
    inside: str = ""
    """The branch whose steps have made the reply, where a compound model did; `made_of` gives them."""


MOST_SAID = 1 << 27
"""Messages that the steps of one task send in all, as references a gibibyte: those of a talk of 11,000 turns. A small
file may claim far more."""


class Story(Struct):
    """One task's whole story. `state` is None while it is unfinished."""

    key: str
    stage: int
    row: Any
    steps: list[Step]
    parents: tuple[str, ...] = ()
    state: EndState | None = None
    result: Any = None
    reason: str = ""
    where: str = ""
    seconds: float = 0.0
    unasked: int = 0
    diverged: str = ""
    attempts: int = 1
    superseded: bool = False

    @property
    def model_steps(self) -> list[Step]:
        """The steps in which a model answered."""
        return [step for step in self.steps if step.kind == "model" and step.reply is not None]

    def made_of(self, step: Step) -> list[Step]:
        """The steps that a compound model's reply is made of, those of compounds inside it included; none for a reply
        of an engine."""
        return [one for one in self.steps if step.inside and is_within(one.path, step.inside)]


class Storyteller:
    """Folds a task's events into its story. `agents` are the run's `AgentBound` descriptions by `spec`."""

    def __init__(self, agents: Mapping[str, Mapping[str, Any]], blob: Callable[[bytes], str]) -> None:
        with sensible("the run"):
            self._agents = {spec: _agent(described) for spec, described in agents.items()}
        self._described = agents
        self._blob = blob
        self._said = 0

    def tell(self, events: Iterable[TaskEvent]) -> Story:
        story = Story("", 0, None, [])
        with sensible("a task"):
            self._fold(story, events)
        return story

    def _fold(self, story: Story, events: Iterable[TaskEvent]) -> None:
        self._said = 0
        texts = Texts()
        numbered: list[Step | None] = []
        for event in in_order(events):
            match event:
                case TaskStarted():
                    story.key, story.stage, story.parents = event.task, event.stage, event.parents
                    story.row = texts.unpack(event.row, self._blob)
                case StepEnded():
                    step = self._step(event, texts, numbered)
                    numbered.append(step)
                    story.steps.append(step)
                case TimerFired():
                    numbered.append(None)
                case TaskEnded():
                    _end(story, event, texts.unpack(event.value, self._blob))
                case TaskReopened():
                    story.state = None
                    story.attempts += 1
                case TaskSuperseded():
                    story.superseded = True
                case CostReserved():
                    pass

    def _step(self, event: StepEnded, texts: Texts, numbered: list[Step | None]) -> Step:
        asked = texts.unpack(event.input, self._blob)
        value = texts.unpack(event.value, self._blob)
        step = Step(
            len(numbered), event.kind, event.name, event.path, event.occurrence, event.outcome,
            reason=event.reason, usage=event.usage, model=event.model, seed=event.seed, reused=event.reused,
            started=event.started, ended=event.clock, inside=event.inside,
        )  # fmt: skip
        if event.kind == "model":
            step.messages = self._messages(event, asked, numbered)
            step.follows = asked[0] if isinstance(asked, list) and isinstance(asked[0], int) else None
            self._said += len(step.messages)
            if self._said > MOST_SAID:
                raise ValueError(f"its steps send more than {MOST_SAID:,} messages in all")
            described = self._described.get(event.spec, {})
            step.tools, step.output = described.get("tools", []), described.get("output")
            if event.outcome == "reply":
                step.reply = reply_of(value, event.usage, event.model)
                return step
        else:
            step.arguments = asked
        step.value = value
        return step

    def _messages(self, event: StepEnded, asked: Any, numbered: list[Step | None]) -> tuple[Message, ...]:
        agent = self._agents.get(event.spec)
        if agent is None or asked is None:
            return ()
        if isinstance(asked, dict):
            return _rendered(agent, (), cast("dict[str, Any]", asked))
        first: Any
        rest: list[Any]
        first, rest, *talk = asked
        added = tuple(message_of(value) for value in rest)
        if not isinstance(first, dict):
            return (*_said(numbered, first), *added)
        if talk:
            step, skip = talk
            said = _said(numbered, step)
            added = (*said[_place(skip, len(said)) :], *added)
        return _rendered(agent, added, cast("dict[str, Any]", first))


def _rendered(agent: Agent, history: tuple[Message, ...], variables: dict[str, Any]) -> tuple[Message, ...]:
    try:
        return agent.messages(history=history, **variables)
    except TemplateError as error:
        raise ValueError(f"a prompt of {agent.name!r} cannot be rendered: {error}") from error


def _said(numbered: list[Step | None], number: Any) -> tuple[Message, ...]:
    """All that a step sent, and its reply."""
    step = numbered[_place(number, len(numbered) - 1)]
    if step is None or step.reply is None:
        raise ValueError(f"step {len(numbered)} goes on from one that has no reply")
    return (*step.messages, step.reply.message)


def _place(number: Any, most: int) -> int:
    """A place that events name. Python would take a negative one as well, and be wrong."""
    if type(number) is not int or not 0 <= number <= most:
        raise ValueError(f"found {number!r} where a number from 0 to {most} should be")
    return number


def _end(story: Story, event: TaskEnded, value: Any) -> None:
    story.state, story.reason, story.where = event.state, event.reason, event.where
    story.result, story.seconds = value, event.clock
    story.unasked, story.diverged = event.unasked, event.diverged


def _agent(described: Mapping[str, Any]) -> Agent:
    return Agent(described["name"], prompt=described["prompt"], system=described["system"], folder=Path())
