"""Conversations that grow: the journal names what was said before, and reads back as what was sent."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from weaverant import Agent, Message, Reply, resume, rng, run, workflow
from weaverant.events import AgentBound, StepEnded
from weaverant.journal import BlobStore, JournalReader
from weaverant.message import Request, TextPart, assistant, digest, system, user
from weaverant.protocols import CallContext
from weaverant.story import Story, Storyteller

TURNS = 12
plain = Agent("plain", prompt="{{ text }}")
instructed = Agent("instructed", system="Be brief, turn {{ text }}.", prompt="{{ text }}")
bare = Agent("bare")


class Sent:
    """Answers at once and notes what came. `stop` is called at the request with this number."""

    identity = "sent"

    def __init__(self, stop_at: int = -1) -> None:
        self.requests: list[tuple[Message, ...]] = []
        self.stop_at = stop_at
        self.stop: Any = None

    async def generate(self, request: Request, ctx: CallContext) -> Reply:
        self.requests.append(request.messages)
        if len(self.requests) == self.stop_at:
            self.stop()
        return Reply(assistant(f"reply to {len(request.messages)} messages: {request.messages[-1].text}"))

    async def close(self) -> None:
        pass


@workflow
async def grows(row: Any) -> Any:
    history: list[Message] = []
    for turn in range(row["turns"]):
        text = f"what do you say in turn {turn} of them all?"
        reply = await plain.reply(text=text, history=history)
        history += [user(text), reply.message]
    return len(history)


@workflow
async def mappings(row: Any) -> Any:
    """As in OpenAI's API, the prompt being part of the history."""
    history: list[dict[str, str]] = []
    for turn in range(row["turns"]):
        history.append({"role": "user", "content": f"what do you say in turn {turn} of them all?"})
        history.append({"role": "assistant", "content": await bare(history=history)})
    return len(history)


@workflow
async def two_speak(row: Any) -> Any:
    """Two agents in turn, one of them with a system message of its own."""
    history: list[Message] = []
    for turn in range(row["turns"]):
        text = f"what do you say in turn {turn} of them all?"
        reply = await (instructed if turn % 2 else plain).reply(text=text, history=history)
        history += [user(text), reply.message]
    return len(history)


@workflow
async def branches(row: Any) -> Any:
    """Goes back and on another way, changes what was said, and says the same again."""
    history: list[Message] = []
    for turn in range(row["turns"]):
        reply = await plain.reply(text=f"what do you say in turn {turn} of them all?", history=history)
        history += [user(f"what do you say in turn {turn} of them all?"), reply.message]
    for cut in (4, 6, 6, 9):
        await instructed(text="And now to something quite different.", history=history[:cut])
    changed = [user("This was never said by anybody at all."), *history[1:]]
    return [await plain(text="Go on, please, as you did before.", history=changed) for _ in range(2)]


ALL = [grows, mappings, two_speak, branches]


def stories(directory: Path) -> list[Story]:
    reader = JournalReader(directory)
    agents = {event.spec: event.agent for event in reader.run_events() if isinstance(event, AgentBound)}
    teller = Storyteller(agents, BlobStore(directory / "blobs").get)
    return [teller.tell(reader.task_events(task.task)) for task in reader.tasks()]


@pytest.mark.parametrize("flow", ALL, ids=lambda flow: flow.name)
def test_what_was_sent_is_read_back(tmp_path: Path, flow: Any):
    engine = Sent()
    assert run(flow, [{"turns": TURNS}], models=engine, directory=tmp_path / "run").wait().exit_code == 0
    (story,) = stories(tmp_path / "run")
    assert [step.messages for step in story.steps] == engine.requests


@pytest.mark.parametrize("flow", ALL, ids=lambda flow: flow.name)
@pytest.mark.parametrize("stop_at", [3, 7, TURNS])
def test_a_conversation_goes_on_after_a_stop(tmp_path: Path, flow: Any, stop_at: int):
    engine = Sent(stop_at)
    rows = [{"turns": TURNS}]
    going = run(flow, rows, models=engine, directory=tmp_path / "run")
    engine.stop = going.stop
    assert going.wait().exit_code == 4
    assert resume(tmp_path / "run", workflow=flow, rows=rows, models=engine).wait().exit_code == 0
    (story,) = stories(tmp_path / "run")
    assert [step.messages for step in story.steps] == engine.requests


@pytest.mark.parametrize("flow", [grows, mappings, two_speak], ids=lambda flow: flow.name)
def test_the_journal_grows_with_the_turns(tmp_path: Path, flow: Any):
    """Naming every message anew, 160 turns took eleven times the bytes of 40."""
    from weaverant.journal.codec import encode_into

    sizes: list[int] = []
    for turns in (40, 160):
        directory = tmp_path / str(turns)
        run(flow, [{"turns": turns}], models=Sent(), directory=directory).wait()
        buffer = bytearray()
        for event in JournalReader(directory).events():
            encode_into(event, buffer, len(buffer))
        sizes.append(len(buffer))
    assert sizes[1] < 4.4 * sizes[0]


SAME = "You are one of two who talk, and you were told so."
WAYS = {
    "by its agent": (Agent("told", system=SAME), []),
    "by its history": (Agent("told"), [system(SAME)]),
}
way = ""


@workflow
async def told(row: Any) -> Any:
    agent, opening = WAYS[way]
    history = list(opening)
    for turn in range(row["turns"]):
        history.append(user(f"what do you say in turn {turn} of them all?"))
        history.append((await agent.reply(history=history)).message)
    return len(history)


@pytest.mark.parametrize(("first", "then"), [list(WAYS), list(WAYS)[::-1]])
def test_a_system_message_may_come_from_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: str, then: str
):
    """The messages are the same, so the steps before a stop are the same, whoever gave the system message."""
    engine, rows = Sent(stop_at=7), [{"turns": TURNS}]
    monkeypatch.setitem(globals(), "way", first)
    going = run(told, rows, models=engine, directory=tmp_path / "run")
    engine.stop = going.stop
    assert going.wait().exit_code == 4
    monkeypatch.setitem(globals(), "way", then)
    assert resume(tmp_path / "run", workflow=told, rows=rows, models=engine).wait().exit_code == 0
    assert len(engine.requests) == TURNS
    (story,) = stories(tmp_path / "run")
    assert [step.messages for step in story.steps] == engine.requests


class Hashes(Sent):
    """Answers with a hash of all that it was sent, so each recorded reply tells whether its messages are right."""

    async def generate(self, request: Request, ctx: CallContext) -> Reply:
        await super().generate(request, ctx)
        await asyncio.sleep(0.001 * (len(self.requests) % 3))
        return Reply(assistant(hashed(request.messages)))


def hashed(messages: tuple[Message, ...]) -> str:
    return digest(b"".join(message.digest for message in messages)).hex()


@workflow
async def wild(row: Any) -> Any:
    """Branches that go on from each other's conversations, cut them, change them, and write them as mappings."""
    pool: list[list[Any]] = [[]]

    async def talk(branch: int) -> None:
        chance = rng(str(branch))
        for _ in range(12):
            history = list(chance.choice(pool[-6:]))
            if chance.random() < 0.2:
                history = history[: chance.randrange(len(history) + 1)]
            if history and chance.random() < 0.1:
                history[chance.randrange(len(history))] = user("This was never said by anybody at all.")
            if chance.random() < 0.2:
                history = [item if isinstance(item, dict) else as_mapping(item) for item in history]
            agent = chance.choice([plain, instructed, bare])
            text = f"question {chance.randrange(9)} of those that are asked"
            history += [user(text)] if agent is bare else []
            reply = await agent.reply(history=history, **({} if agent is bare else {"text": text}))
            pool.append([*history, *([] if agent is bare else [user(text)]), reply.message])

    await asyncio.gather(*(talk(branch) for branch in range(3)))
    return len(pool)


def as_mapping(message: Message) -> dict[str, str]:
    return {"role": message.role, "content": message.text}


def test_wild_conversations_are_read_back(tmp_path: Path):
    rows, directory = [{"n": n} for n in range(20)], tmp_path / "run"
    engine = Hashes(stop_at=200)
    going = run(wild, rows, models=engine, directory=directory)
    engine.stop = going.stop
    assert going.wait().exit_code == 4
    engine.stop_at = 400
    going = resume(directory, workflow=wild, rows=rows, models=engine)
    engine.stop = going.stop
    assert going.wait().exit_code == 4
    assert resume(directory, workflow=wild, rows=rows, models=engine).wait().exit_code == 0
    told = [step for story in stories(directory) for step in story.model_steps]
    assert len(told) == 20 * 3 * 12
    assert all(step.reply is not None and step.reply.text == hashed(step.messages) for step in told)
    steps = [event for event in JournalReader(directory).events() if isinstance(event, StepEnded)]
    assert sum(isinstance(step.input, list) and len(step.input) == 4 for step in steps) > 200


class Parts(Sent):
    """Its messages are made of parts."""

    async def generate(self, request: Request, ctx: CallContext) -> Reply:
        reply = await super().generate(request, ctx)
        return Reply(Message("assistant", (TextPart(reply.text), TextPart(" And so on."))))


def test_a_reply_of_parts_is_recorded_as_it_is(tmp_path: Path):
    engine, rows = Parts(stop_at=7), [{"turns": TURNS}]
    going = run(grows, rows, models=engine, directory=tmp_path / "run")
    engine.stop = going.stop
    assert going.wait().exit_code == 4
    assert resume(tmp_path / "run", workflow=grows, rows=rows, models=engine).wait().exit_code == 0
    assert len(engine.requests) == TURNS, "no step is asked again"
    (story,) = stories(tmp_path / "run")
    assert [step.messages for step in story.steps] == engine.requests
