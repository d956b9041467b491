"""Structured output: who is told the schema, what is read from a reply, and what a reply is in the journal."""

from __future__ import annotations

import asyncio
import json
import random
import time
from pathlib import Path
from typing import Any, Literal

import msgspec
import pytest
from pydantic import BaseModel, ConfigDict

from one_engine import replies
from weaverant import Agent, Reply, UserError, resume, run, workflow
from weaverant.engines.http import Pool
from weaverant.engines.http.chat import wire
from weaverant.engines.http.chat.structured import strict
from weaverant.engines.scripted import Scripted
from weaverant.events import StepEnded
from weaverant.journal import JournalReader
from weaverant.jsontext import MOST_FALSE, MOST_FOUND
from weaverant.message import (
    Choice,
    ImagePart,
    Message,
    OutputSchema,
    Request,
    Sampling,
    TextPart,
    Tokens,
    ToolCall,
    Usage,
    assistant,
    digest,
    system,
    user,
)
from weaverant.protocols import CallContext
from weaverant.schema import Misfit, Output
from weaverant.step import reply_of, reply_value
from weaverant.story import Story, Storyteller
from weaverant.task import Task
from weaverant.testing.server import MockServer

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


class Verdict(BaseModel):
    model_config = ConfigDict(extra="forbid")
    hard: bool
    score: float


# Who is told the schema


def asked(*messages: Message, schema: dict[str, Any] = SCHEMA, **fields: Any) -> Request:
    return Request("a", "m", messages or (user("go"),), output=OutputSchema("Thing", schema), **fields)


def sent(url: str, request: Request, **options: str) -> dict[str, Any]:
    (reply,) = replies(url, request, **options)
    return json.loads(reply.text)["body"]


def test_the_server_is_told_the_schema(server: MockServer):
    body = sent(server.scenario("echo"), asked())
    assert body["response_format"] == {"type": "json_schema", "json_schema": {"name": "Thing", "schema": SCHEMA}}
    assert body["messages"] == [{"role": "user", "content": "go"}]


def test_the_model_is_told_the_schema_in_its_last_system_message(server: MockServer):
    url = server.scenario("echo")
    body = sent(url, asked(), schema="prompt")
    assert "response_format" not in body
    told, question = body["messages"]
    assert told["role"] == "system" and told["content"].endswith(json.dumps(SCHEMA)) and question["content"] == "go"
    body = sent(url, asked(system("first"), user("x"), system("last"), user("go")), schema="prompt")
    assert [message["role"] for message in body["messages"]] == ["system", "user", "system", "user"]
    assert body["messages"][0]["content"] == "first"
    assert body["messages"][2]["content"] == "last\n\n" + told["content"]
    parts = Message("system", (TextPart("look"), ImagePart("data:image/png;base64,AA==")))
    body = sent(url, asked(parts, user("go")), schema="prompt")
    assert body["messages"][0]["content"][2] == {"type": "text", "text": told["content"]}


def test_a_server_that_takes_no_schema_is_asked_again_with_the_schema_in_the_prompt(server: MockServer):
    request = asked(seed=1)
    first, second = replies(server.scenario("no-schema"), request, msgspec.structs.replace(request, seed=2))
    assert (first.usage.requests, second.usage.requests) == (2, 1), "it is remembered"
    assert type(json.loads(first.text)["a"]) is int and server.stats()["total"] == 3


def test_many_calls_at_once_learn_it_together(server: MockServer):
    async def main() -> list[Reply]:
        engine = Pool([f"{server.scenario('no-schema')}#m"])
        try:
            return await asyncio.gather(*(engine.generate(asked(seed=n), CallContext("0")) for n in range(20)))
        finally:
            await engine.close()

    replies = asyncio.run(main())
    assert all(type(json.loads(reply.text)["a"]) is int for reply in replies)
    assert sum(reply.usage.requests for reply in replies) == server.stats()["total"] <= 40


def test_another_schema_is_offered_to_the_server_again(server: MockServer):
    other = asked(schema={"type": "object", "properties": {"b": {"type": "boolean"}}, "required": ["b"]})
    first, second, again = replies(server.scenario("no-schema"), asked(), other, other)
    assert [reply.usage.requests for reply in (first, second, again)] == [2, 2, 1]
    assert type(json.loads(again.text)["b"]) is bool


@pytest.mark.parametrize("schema", ["server", "prompt"])
def test_who_is_told_can_be_fixed(server: MockServer, schema: str):
    if schema == "prompt":
        assert replies(server.scenario("no-schema"), asked(), schema=schema)[0].usage.requests == 1
    else:
        with pytest.raises(Exception, match="response_format"):
            replies(server.scenario("no-schema"), asked(), schema=schema)
    assert server.stats()["total"] == 1


@pytest.mark.parametrize("scenario", ["fault-400", "fault-422", "context"])
def test_other_refusals_are_not_asked_again(server: MockServer, scenario: str):
    with pytest.raises(Exception, match=r"40|42"):
        replies(server.scenario(scenario), asked())
    assert server.stats()["total"] == 1


class Node(BaseModel):
    model_config = ConfigDict(extra="forbid")
    kind: Literal["a", "b"]
    children: list[Node]
    note: str | None


class Tree(BaseModel):
    model_config = ConfigDict(extra="forbid")
    root: Node


class Loose(BaseModel):
    hard: bool


class Optional(BaseModel):
    model_config = ConfigDict(extra="forbid")
    hard: bool = True


OBJECT = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}


@pytest.mark.parametrize(
    ("schema", "qualifies"),
    [
        (Verdict.model_json_schema(), True),
        (Tree.model_json_schema(), True),
        (OBJECT, True),
        (Loose.model_json_schema(), False),
        (Optional.model_json_schema(), False),
        ({"type": "object"}, False),
        ({"type": "array", "items": OBJECT}, False),
        (Node.model_json_schema(), False),  # its root is a reference
        ({**OBJECT, "required": []}, False),
        ({**OBJECT, "additionalProperties": True}, False),
        ({**OBJECT, "allOf": []}, False),
        ({**OBJECT, "properties": {"a": {}}}, False),
        ({**OBJECT, "properties": {"a": {"type": "array"}}}, False),
        ({**OBJECT, "properties": {"a": {"type": ["object", "null"]}}}, False),
        ({**OBJECT, "properties": {"a": {"type": "array", "items": {"type": "object"}}}}, False),
        ({**OBJECT, "properties": {"a": {"anyOf": [{"type": "integer"}, {"type": "object"}]}}}, False),
        ({**OBJECT, "properties": {"a": {"$ref": "#/$defs/x", "description": "d"}}, "$defs": {"x": OBJECT}}, False),
        ({**OBJECT, "properties": {"a": {"$ref": "#/$defs/x"}}, "$defs": {"x": OBJECT}}, True),
    ],
)
def test_strict_is_asked_only_where_the_schema_qualifies(schema: dict[str, Any], qualifies: bool):
    body = json.loads(wire.Bodies("m").encode(asked(schema=schema)))
    described = body["response_format"]["json_schema"]
    assert described.get("strict", False) is qualifies and described["schema"] == schema
    assert not strict(True)


# What is read from a reply

verdict = Output(Verdict, "here")
thing = Output(SCHEMA, "here")
RIGHT = '{"hard": true, "score": 0.5}'


@pytest.mark.parametrize(
    "text",
    [
        RIGHT,
        f" \n{RIGHT}\n",
        f"```json\n{RIGHT}\n```",
        f"```\n{RIGHT}```",
        f"Here it is:\n```json\n{RIGHT}\n```\nAnything else?",
        f"It is {RIGHT}.",
        f"<think>is it {{'hard': 1}}? or {RIGHT[:-1]}</think>\n\n{RIGHT}",
        f"so the answer must be true</think>\n```json\n{RIGHT}\n```",
        f"[1] says {RIGHT}; see [[page]], {{braces}} and {{1, 2}}, [12 items], \\frac{{1}}{{2}}, f[i]",
        f"{RIGHT} I mean {RIGHT}, that is " + '{"score": 0.5, "hard": true}',
        f'first {{"wrong": 1}} then {RIGHT}',
        f"[] {{}} {RIGHT}",
    ],
)
def test_the_one_json_value_that_fits_is_found(text: str):
    assert verdict.parse(text) == Verdict(hard=True, score=0.5)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("no json", "not JSON: Expecting value"),
        ("", "not JSON"),
        (RIGHT + ' or {"hard": false, "score": 0.5}', "2 different JSON values"),
        ('{"hard": true, "score": 1,}', "not JSON"),
        ("{'hard': true, 'score': 1}", "not JSON"),
        ('{"hard": true, "score": NaN}', "NaN is no JSON"),
        ('{"hard": true, "score": -Infinity}', "-Infinity is no JSON"),
        ('so {"hard": true, "score": NaN}', "NaN is no JSON"),
        ('{"hard": true, // yes\n "score": 1}', "not JSON"),
        ('{"hard": true, "score"', "not JSON"),
        ('{"verdict": ' + RIGHT + ",}", "not JSON"),
        ('well, {"verdict": ' + RIGHT, "not JSON"),
        ("[" + RIGHT + ", " + RIGHT, "not JSON"),
        ('{"verdict": ' + RIGHT + "}", "verdict: Extra inputs"),
        ("<think>" + RIGHT, "has no answer"),
        ("<think>" + RIGHT + "</think> I do not know", "not JSON"),
        ('{"hard": 1.5, "score": 1} {"hard": true}', "of its 2 JSON values none fits; the last: score: Field required"),
        ('{"hard": true, "score": ' + "1" * 5_000 + "}", "too long"),
    ],
)
def test_nothing_is_guessed_and_nothing_mended(text: str, says: str):
    with pytest.raises(Misfit) as caught:
        verdict.parse(text)
    assert says in str(caught.value)


def test_bare_values_are_read_only_where_they_stand_alone():
    number, text = Output(int, "here"), Output({"type": "string"}, "here")
    assert number.parse("7") == 7 and number.parse("```json\n7\n```") == 7 and text.parse('"a"') == "a"
    for wrong in ("The answer is 7", "7 or 8"):
        with pytest.raises(Misfit):
            number.parse(wrong)
    with pytest.raises(Misfit):
        text.parse("plain text")


PROSE = [
    "Sure! ",
    "the set {a, b} ",
    "see [1] ",
    "x[i] ",
    "it's ",
    "\n\n",
    "```",
    "json ",
    '"quoted" ',
    "50% ",
    "\\",
    "é🙂 ",
    ": ",
    ", ",
]


def drawn_value(draw: random.Random, depth: int = 0) -> Any:
    kinds = [None, True, -3, 0.25, 'a } ] \\ " { [ text', "```", "</thinking>", "é"]
    if depth > 3 or draw.random() < 0.4:
        return draw.choice(kinds)
    if draw.random() < 0.5:
        return [drawn_value(draw, depth + 1) for _ in range(draw.randrange(4))]
    return {draw.choice(["x", "y", 'k"', "{"]): drawn_value(draw, depth + 1) for _ in range(draw.randrange(4))}


def test_json_in_prose_is_found_exactly_where_one_value_fits():
    draw = random.Random(3)
    outcomes = {0: 0, 1: 0, 2: 0}
    for _ in range(3_000):
        fitting = [{"a": draw.randrange(3), "more": drawn_value(draw)} for _ in range(draw.choice([0, 1, 1, 2, 3]))]
        others = [
            value for value in (drawn_value(draw) for _ in range(draw.randrange(3))) if isinstance(value, dict | list)
        ]
        values = [*fitting, *others]
        draw.shuffle(values)
        text = "Well, " + "".join(
            "".join(draw.choices(PROSE, k=draw.randrange(4))) + json.dumps(value, indent=draw.choice([None, 2])) + " "
            for value in values
        )  # fmt: skip
        different = {json.dumps(value, sort_keys=True): value for value in fitting}
        outcomes[min(2, len(different))] += 1
        if len(different) == 1:
            assert thing.parse(text) == fitting[0], text
        else:
            with pytest.raises(Misfit):
                thing.parse(text)
    assert min(outcomes.values()) > 300


MEGABYTE = 1_000_000


@pytest.mark.parametrize(
    "unit",
    [
        "[", "{", '{"a":', "[[x", "[1 ", "[t", '["', '["\\"', "{}", "[1]", "{ ", "[ ", "[-", '{"a"} ', "```\n", "<think>",
        '{"a": 1} ', "[1,", '"', "\\", "{\n", "[0x ", " ", "</think>", '{"":[', "[{", '[""]["',
    ],
)  # fmt: skip
def test_a_megabyte_of_anything_takes_no_longer_than_reading_it(unit: str):
    text = (unit * (MEGABYTE // len(unit) + 1))[:MEGABYTE]
    for reply in (text, "x" + text, f"```json\n{text}\n```"):
        began = time.perf_counter()
        with pytest.raises(Misfit):
            verdict.parse(reply)
        assert time.perf_counter() - began < 5, "a quadratic search takes minutes"


def test_a_megabyte_of_prose_around_the_answer():
    filler = "It says here [that] one {may} write f(x)[i]. " * (MEGABYTE // 45)
    assert verdict.parse(filler + RIGHT + filler) == Verdict(hard=True, score=0.5)
    big = {"a": 1, "text": "x" * MEGABYTE, "list": list(range(50_000))}
    assert thing.parse("so: " + json.dumps(big)) == big


def test_the_search_is_bounded():
    with pytest.raises(Misfit, match="more than"):
        verdict.parse("x " + '{"b": 1} ' * (MOST_FOUND + 1) + RIGHT)
    with pytest.raises(Misfit, match="more than"):
        verdict.parse("x " + "[true story " * (MOST_FALSE + 1) + RIGHT)


# An agent against a server


def flow_of(agent: Agent, **variables: Any) -> Any:
    @workflow
    async def asks(row: Any) -> Any:
        return await agent(**variables)

    return asks


judge = Agent("judge", prompt="Judge", output=Verdict)


def one(flow: Any, models: Any, directory: Path | None = None) -> Task:
    (task,) = run(flow, [{"n": 1}], models=models, directory=directory, journal=directory is not None)
    return task


@pytest.mark.parametrize(
    ("scenario", "options", "requests"),
    [
        ("ok", "", 1),
        ("fenced", "", 1),
        ("no-schema", "", 2),
        ("fenced", "schema=prompt", 1),
        ("no-schema", "stream=1", 2),
    ],
)
def test_a_servers_reply_becomes_the_output_type(server: MockServer, scenario: str, options: str, requests: int):
    task = one(flow_of(judge), f"{server.scenario(scenario)}?{options}#m")
    assert task.state == "done" and Verdict(**task.result) and task.usage.requests == requests
    assert server.stats()["total"] == requests


def test_a_reply_that_never_fits_is_shown_its_fault_and_kept(server: MockServer, tmp_path: Path):
    task = one(flow_of(judge), f"{server.scenario('wrong-schema')}#m", tmp_path / "run")
    assert (task.state, task.reason) == ("failed", "output") and server.stats()["total"] == 1 + judge.repairs
    steps = told(tmp_path / "run").steps
    shown = [message.text for message in steps[-1].messages if message.role == "user"][1:]
    assert len(shown) == judge.repairs and all("hard: Field required" in text for text in shown)
    assert steps[-1].reply is not None and task.result["detail"] == {"reply": steps[-1].reply.text}


def told(directory: Path) -> Story:
    reader = JournalReader(directory)
    agents = {event.spec: event.agent for event in reader.run_events() if hasattr(event, "spec")}
    return Storyteller(agents, lambda key: "").tell(reader.task_events("0.0.0"))


# Several replies, tokens, and the journal

FULL = Reply(
    Message("assistant", "a first text of some length", (ToolCall("c", "f", "{}"),), None, "thinking"),
    Usage(1, 2, 3, 4, 0.5, 6),
    "who",
    "tool_calls",
    Tokens((1, 2), ("a", " first text that is as long as a sentence"), (-0.5, -1.5), ({"a": -0.5}, {}), (7, 8, 9)),
    (
        Choice(assistant("another text of some length"), "length", Tokens((3,))),
        Choice(Message("assistant", (TextPart("in parts"),)), "content_filter"),
    ),
)


@pytest.mark.parametrize(
    "reply",
    [
        FULL,
        msgspec.structs.replace(FULL, tokens=None),
        msgspec.structs.replace(FULL, more=()),
        Reply(assistant("bare")),
        Reply(assistant("cut"), finish="length"),
        Reply(assistant(""), tokens=Tokens()),
        Reply(assistant("x"), more=(Choice(assistant("y")),)),
    ],
)
def test_a_reply_survives_the_journals_form(reply: Reply):
    stored = msgspec.msgpack.decode(msgspec.msgpack.encode(reply_value(reply)))
    assert reply_of(stored, reply.usage, reply.model) == reply
    plain = reply.tokens is None and not reply.more
    assert isinstance(stored, str) == (plain and reply.finish == "stop") and (not plain or len(stored) in (2, 4))


def test_older_journals_are_read():
    call = ["c", "f", "{}"]
    assert reply_of("text", Usage(), "m") == Reply(assistant("text"), Usage(), "m")
    assert reply_of([["assistant", "text"], "length"], Usage(), "m") == Reply(assistant("text"), Usage(), "m", "length")
    old = [["assistant", "", [call], None, "so"], "tool_calls"]
    message = Message("assistant", "", (ToolCall(*call),), None, "so")
    assert reply_of(old, Usage(), "m") == Reply(message, Usage(), "m", "tool_calls")


def test_a_run_a_resumed_run_and_a_story_see_the_same_reply(server: MockServer, tmp_path: Path):
    agent = Agent("a", prompt="x", n=3, top_logprobs=2, extra={"return_token_ids": True})
    seen: list[Reply] = []
    stops: list[Any] = []

    @workflow
    async def asks(row: Any) -> Any:
        reply = await agent.reply()
        seen.append(reply)
        if stops:
            stops.pop()()
        return [await Agent("b", prompt="{{ text }}")(text=choice.text) for choice in reply.choices]

    where, models = tmp_path / "run", f"{server.scenario('logprobs')}#m"
    going = run(asks, [{"n": 1}], models=models, directory=where, grace=0)
    stops.append(going.stop)
    assert not list(going)
    (task,) = resume(where, workflow=asks, rows=[{"n": 1}], models=models)
    assert task.state == "done" and len(task.result) == 3 and server.stats()["models"] == {"m": server.stats()["total"]}
    live, replayed = seen
    assert live == replayed and len(live.choices) == 3
    for choice in live.choices:
        assert choice.tokens is not None and "".join(choice.tokens.texts) == choice.text and choice.tokens.ids
    step = told(where).steps[0]
    assert step.reply == live
    asking = [event for event in JournalReader(where).task_events("0.0.0") if isinstance(event, StepEnded)]
    assert [event.name for event in asking] == ["a", "b", "b", "b"], "the first was not asked again"


def test_an_engine_of_anybody_may_give_tokens():
    @workflow
    async def asks(row: Any) -> Any:
        reply = await Agent("a", prompt="x").reply()
        assert reply.tokens is not None and type(reply.tokens.logprobs[0]) is float
        return list(reply.tokens.logprobs)

    def answered(tokens: Any) -> Task:
        return one(asks, Scripted(lambda request: Reply(assistant("x"), tokens=tokens), identity="s"))

    assert answered(Tokens(texts=("x",), logprobs=(-1,))).result == [-1.0]
    for wrong in (Tokens(ids=("a",)), ["a"]):  # pyright: ignore
        assert answered(wrong).reason == "engine"


def test_several_replies_are_refused_where_one_must_go_on():
    def failure(**fields: Any) -> str:
        with pytest.raises(UserError) as refused:
            Agent("a", prompt="x", **fields)
        return str(refused.value)

    assert "agent 'a' has n=2 and output=" in failure(n=2, output=int)
    assert "agent 'a' has n=2 and tools=" in failure(n=2, tools=[print_it])
    for fields in ({"n": 0}, {"top_logprobs": -1}):
        assert "expected a whole number" in failure(**fields)


def print_it(text: str) -> None:
    """Prints."""


def test_an_engine_that_does_not_know_n_is_no_silent_loss(server: MockServer):
    task = one(flow_of(Agent("a", prompt="x", n=4)), Scripted("only one"))
    assert (task.state, task.reason) == ("failed", "choices")
    assert "asked for 4 replies" in task.result["text"] and "got 1" in task.result["text"]


# Fingerprints


def fingerprint(tmp_path: Path, agent: Agent) -> str:
    """As it stands in the journal, of a run of the one agent."""
    directory = tmp_path / agent.name
    one(flow_of(agent, x="hi"), Scripted(lambda request: '{"a": 1}', identity="script"), directory)
    (step,) = (event for event in JournalReader(directory).task_events("0.0.0") if isinstance(event, StepEnded))
    return step.fingerprint.hex()


@pytest.mark.parametrize(
    ("agent", "before"),
    [
        (Agent("plain", prompt="{{ x }}"), "2c57987cf428fd93fbf2e96bbff8c668"),
        (
            Agent(
                "a", prompt="Say {{ x }}", system="Be kind", temperature=0.5, max_tokens=7, stop=["END"], logprobs=True,
                extra={"top_k": 5},
            ),
            "7edfff67e4396d4a8eddc5417727426a",
        ),
        (Agent("typed", prompt="{{ x }}", output={"type": "object", "required": ["a"]}), "db08edee200ae41df8d2a3f46e0f5c9a"),
    ],
)  # fmt: skip
def test_fingerprints_are_those_of_the_first_release(tmp_path: Path, agent: Agent, before: str):
    assert fingerprint(tmp_path, agent) == before


def test_a_fingerprint_is_the_encoded_request_and_names_only_what_was_set(tmp_path: Path):
    def expected(name: str, sampling: dict[str, Any]) -> str:
        said = digest(b"user\0hi")
        return digest(digest(msgspec.msgpack.encode([name, "script", sampling, [], None])) + said).hex()

    assert fingerprint(tmp_path, Agent("bare", prompt="{{ x }}")) == expected("bare", {})
    warm = Agent("warm", prompt="{{ x }}", temperature=0.5)
    assert fingerprint(tmp_path, warm) == expected("warm", {"temperature": 0.5})
    assert msgspec.to_builtins(Sampling(n=2, top_logprobs=3)) == {"n": 2, "top_logprobs": 3}
