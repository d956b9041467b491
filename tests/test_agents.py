"""Agents: templates, typed output with repairs, tools; each model call, tool call and repair is a recorded step."""

from __future__ import annotations

import asyncio
import gc
import inspect
import json
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from weaverant import Agent, Message, Reply, StepFailed, UserError, process_step, resume, run, step, workflow
from weaverant.engines.scripted import Scripted
from weaverant.journal import JournalReader
from weaverant.message import Request, ToolCall, assistant, user
from weaverant.recipe import recipe_of
from weaverant.story import Story, Storyteller
from weaverant.task import Task


class Verdict(BaseModel):
    hard: bool
    score: float


judge = Agent("judge", prompt="Judge {{ text }}", output=Verdict)


def one(flow: Any, script: Any, directory: Path | None = None, **options: Any) -> Task:
    options["journal"] = directory is not None
    (task,) = run(flow, [{"n": 1}], models=Scripted(script, identity="script"), directory=directory, **options)
    return task


def calling(agent: Agent, **variables: Any) -> Any:
    @workflow
    async def calls(row: Any) -> Any:
        return await agent(**variables)

    return calls


def story(directory: Path) -> Story:
    reader = JournalReader(directory)
    agents = {event.spec: event.agent for event in reader.run_events() if hasattr(event, "spec")}
    return Storyteller(agents, lambda key: "").tell(reader.task_events("0.0.0"))


# Templates


def test_prompt_system_and_history_make_the_messages():
    agent = Agent("a", system="You are {{ who }}.", prompt="{{ text }}!")
    sent = agent.messages(who="kind", text="hi", history=[user("before"), assistant("yes")])
    assert [(message.role, message.text) for message in sent] == [
        ("system", "You are kind."), ("user", "before"), ("assistant", "yes"), ("user", "hi!"),
    ]  # fmt: skip


@pytest.mark.parametrize("given", [iter, reversed, lambda said: (one for one in said), lambda said: map(dict, said)])
def test_a_history_that_can_be_read_once_is_sent_whole(given):
    said = [{"role": "user", "content": "before"}, {"role": "assistant", "content": "yes"}]
    if given is iter:
        said = [user("before"), assistant("yes")]
    sent = Agent("talker", prompt="now").messages(history=given(said))
    texts = ["yes", "before"] if given is reversed else ["before", "yes"]
    assert [message.text for message in sent] == [*texts, "now"]


def test_a_history_that_is_none_is_a_users_error():
    with pytest.raises(UserError, match=r"history= holds what is no message: .*Expected Message objects"):
        Agent("talker", prompt="now").messages(history=5)


def test_a_missing_variable_fails_its_row_by_name():
    task = one(calling(Agent("a", prompt="{{ present }} {{ absent }}"), present=1), "never")
    assert (task.state, task.reason) == ("failed", "UndefinedError")
    assert task.result["text"] == "agent 'a': prompt: 'absent' is undefined; it was given: present"
    assert task.where.startswith("test_agents.py:") and task.where.endswith("in calls")


def test_a_misspelt_variable_is_named_with_the_one_that_was_meant():
    task = one(calling(Agent("a", system="{{ questoin }}", prompt="x"), question="q", n=1), "never")
    expected = "'questoin' is undefined (did you mean 'question'?); it was given: question, n"
    assert task.result["text"] == f"agent 'a': system: {expected}"


def test_a_template_that_fails_says_whose_it_is_and_what_it_was_given():
    task = one(calling(Agent("a", prompt="{{ n + 'x' }}"), n=1), "never")
    assert (task.reason, "in calls" in task.where) == ("UserError", True)
    text = task.result["text"]
    assert text.startswith("agent 'a': prompt: TypeError: ") and text.endswith("; it was given: n")


def test_a_field_of_the_agent_given_to_a_call_is_no_silent_variable():
    task = one(calling(Agent("poet", prompt="About {{ topic }}"), topic="a", temperature=0.0), "never")
    assert "'poet': temperature= is no variable of its prompt but a field of the agent" in task.result["text"]
    assert one(calling(Agent("chef", prompt="At {{ temperature }}"), temperature=180), "well").state == "done"


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="asyncio.iscoroutinefunction is deprecated there")
def test_frameworks_that_look_for_coroutine_functions_see_them():
    for called in (judge, judge.reply, Agent.__call__, Agent.reply):
        assert asyncio.iscoroutinefunction(called)
        assert inspect.iscoroutinefunction(called) or sys.version_info < (3, 12)
    assert not asyncio.iscoroutinefunction(judge.messages)


def test_variables_have_names():
    agent = Agent("a", system="{{ style }}", prompt="{{ question }}")
    for way in (agent, agent.reply):

        @workflow
        async def asks(row: Any, way: Any = way) -> Any:
            return await way("What?")

        task = one(asks, "never")
        assert (task.reason, task.where.endswith("in asks")) == ("TypeError", True)
        assert "expected a(question=..., style=...); found 1 without a name" in task.result["text"]
    with pytest.raises(TypeError, match="by name"):
        agent.messages("What?")  # pyright: ignore[reportArgumentType]


# What an agent's fields may hold

WRONG = [
    ("temperature", "hot", "a number, 0 or more"), ("temperature", -0.1, "a number, 0 or more"),
    ("temperature", float("nan"), "a number"), ("temperature", True, "a number"), ("top_p", 0, "above 0"),
    ("top_p", 1.01, "1 at most"), ("max_tokens", 0, "1 or more"), ("max_tokens", -5, "1 or more"),
    ("max_tokens", 2.5, "a whole number"), ("stop", "\n", "a list of texts"), ("stop", [1], "a list of texts"),
    ("repairs", -1, "0 or more"), ("turns", 0, "1 or more"), ("n", 0, "1 or more"), ("top_logprobs", -1, "0 or more"),
    ("logprobs", "yes", "True or False"), ("model", "", "a name"), ("model", None, "a name"),
    ("prompt", 7, "a template as text"), ("extra", ["a"], "a mapping"), ("extra", {1: 2}, "a mapping"),
    ("tools", "f", "a list of functions"), ("tools", ["f"], "a list of functions"),
]  # fmt: skip


@pytest.mark.parametrize(("field", "value", "expected"), WRONG, ids=[f"{name}={value}" for name, value, _ in WRONG])
def test_a_field_that_cannot_be_meant_is_refused_wherever_it_is_set(field: str, value: Any, expected: str):
    with pytest.raises(UserError) as made:
        Agent("a", **{"prompt": "x", field: value})
    assert str(made.value).startswith(f"agent 'a': {field}={value!r}: expected ") and expected in str(made.value)
    flow = calling(here, text="t")
    recipe = replace(recipe_of(flow), agents=(here,))
    with pytest.raises(UserError) as overridden:
        run(recipe, [{"n": 1}], models=Scripted("x"), overrides={"here": {field: value}}, journal=False)
    assert str(overridden.value) == str(made.value).replace("agent 'a'", "agent 'here'")


here = Agent("here", prompt="{{ text }}")


def test_an_agent_needs_a_name_and_what_it_sends_must_be_data():
    for name in ("", None, 3):
        with pytest.raises(UserError, match="expected a name"):
            Agent(name)  # pyright: ignore[reportArgumentType]
    task = one(calling(Agent("a", prompt="x", extra={"hook": object()})), "never")
    assert "agent 'a': extra cannot be stored" in task.result["text"]


def test_the_edges_of_the_fields_are_allowed():
    agent = Agent("a", prompt="", temperature=0, top_p=1, max_tokens=1, stop=("x",), repairs=0, turns=1, n=1)
    assert one(calling(agent), "said").result == "said"


# Names, and engines that cannot


def pair(one: Agent, other: Agent) -> Any:
    return replace(recipe_of(calling(one)), agents=(one, other))


hard, true = Agent("judge_", prompt="Is it hard?"), Agent("judge_", prompt="Is it true?", temperature=0.5)
teams = {"hard": hard, "true": true}
hard_again = replace(hard)


async def asks_true() -> str:
    return await true()


@workflow
async def asks_both(row: Any) -> Any:
    return [await hard(), await asks_true()]


@workflow
async def asks_one_of_a_team(row: Any) -> Any:
    return [await teams["true"](), hard.name]


@workflow
async def asks_the_same_twice(row: Any) -> Any:
    return [await hard(), await hard_again()]


def test_two_different_agents_that_a_workflow_asks_need_two_names():
    with pytest.raises(UserError) as refused:
        one(asks_both, "x")
    text = str(refused.value)
    assert "two agents that are called 'judge_'" in text and "'Is it hard?' and 'Is it true?'" in text
    assert "temperature is None and 0.5" in text


def test_equal_agents_and_those_of_teams_may_share_a_name():
    assert one(asks_the_same_twice, "x").result == ["x", "x"]
    assert one(asks_one_of_a_team, "x").result == ["x", "judge_"]


def test_agents_made_for_a_row_may_share_a_name():
    @workflow
    async def asks(row: Any) -> Any:
        return [await Agent("critic", prompt=f"{row['n']} {n}")() for n in range(3)]

    assert one(asks, lambda request: request.messages[0].text).result == ["1 0", "1 1", "1 2"]


def test_an_engine_that_can_answer_no_call_of_an_agent_is_refused_before_the_first_row(tmp_path: Path):
    typed, tool = Agent("typed", prompt="x", output=Verdict), Agent("armed", prompt="x", model="arms", tools=[broken])
    for agent, what, model in ((typed, "no output schema", "strong"), (tool, "no tools", "arms")):
        for spec in ("embedded:tiny", f"cache:{tmp_path}/kept|embedded:tiny"):
            with pytest.raises(UserError) as refused:
                run(pair(agent, agent), [{"n": 1}], models=spec, directory=tmp_path / "run")
            text = str(refused.value)
            assert f"agent {agent.name!r} cannot be answered by 'embedded:tiny" in text and what in text
            assert f"--model {model}=" in text and f"models={{{model!r}: ..." in text
    assert not (tmp_path / "run").exists()


# What a workflow's author forgets


def failed(function: Any, row: Any) -> Task:
    (task,) = run(workflow(function), [row], models=Scripted("x"), journal=False)
    assert task.state == "failed"
    return task


def test_a_field_that_the_row_lacks_is_told_with_those_it_has():
    async def reads(row: Any) -> Any:
        return row["question"]

    async def looks(row: Any) -> Any:
        return {"a": 1}[row["id"]]

    task = failed(reads, {"id": 1, "q": 2})
    assert (task.reason, task.result["text"]) == ("KeyError", "'question'; the row has: 'id', 'q'")
    assert failed(looks, {"id": "id"}).result["text"] == "'id'"


def test_a_forgotten_await_is_told_as_such(recwarn: pytest.WarningsRecorder):
    agent = Agent("a", prompt="{{ text }}")

    async def returns(row: Any) -> Any:
        return {"one": agent(text="x"), "more": [agent(text="y"), (agent(text="z"),)]}

    async def passes(row: Any) -> Any:
        return await agent(text=[agent(text="x"), agent(text="y")])

    for function, reason in ((returns, "result"), (passes, "UserError")):
        task = failed(function, {"n": 1})
        assert (task.reason, "did you forget `await`?" in task.result["text"]) == (reason, True)
    gc.collect()
    assert not [warning for warning in recwarn if issubclass(warning.category, RuntimeWarning)]


def test_a_call_that_nobody_awaits_is_told_by_a_name_that_users_know():
    with pytest.warns(RuntimeWarning, match="coroutine 'Agent.__call__' was never awaited"):
        Agent("a", prompt="x")()


def divides(by: int) -> float:
    return 1 / by


async def waits_and_divides(by: int) -> float:
    await asyncio.sleep(0)
    return divides(by)


@pytest.mark.parametrize(("way", "function"), [(step, divides), (step, waits_and_divides), (process_step, divides)])
def test_a_failed_step_tells_where_it_was_taken_and_where_it_was_raised(way: Any, function: Any):
    async def steps(row: Any) -> Any:
        return await way(function, 0)

    task = failed(steps, {"n": 1})
    taken, raised = task.where.split(", raised at ")
    line = divides.__code__.co_firstlineno + 1
    assert taken.startswith("test_agents.py:") and taken.endswith("in steps")
    assert raised == f"test_agents.py:{line} in divides"


def test_a_prompt_file_lies_beside_its_agent(tmp_path: Path):
    (tmp_path / "prompt.md").write_text("From a file: {{ text }}\n")
    agent = Agent("a", prompt=Path("prompt.md"), folder=tmp_path)
    assert agent.messages(text="x")[0].text == "From a file: x"
    with pytest.raises(UserError, match="cannot read the prompt file"):
        Agent("a", prompt=Path("nowhere.md"), folder=tmp_path).messages()


def test_a_row_cannot_write_templates():
    agent = Agent("a", prompt="{{ text }}")
    assert agent.messages(text="{{ 7 * 7 }} {% raw %}")[0].text == "{{ 7 * 7 }} {% raw %}"


def test_reply_gives_the_whole_reply():
    agent = Agent("a", prompt="x")

    @workflow
    async def replies(row: Any) -> Any:
        reply = await agent.reply()
        assert isinstance(reply, Reply)
        return [reply.text, reply.finish, reply.usage.completion_tokens]

    assert one(replies, "two words").result == ["two words", "stop", 2]


# Typed output


def test_a_reply_is_read_into_its_type():
    @workflow
    async def judged(row: Any) -> Any:
        verdict = await judge(text="t")
        assert isinstance(verdict, Verdict)
        return verdict

    assert one(judged, '```json\n{"hard": true, "score": 0.5}\n```').result == {"hard": True, "score": 0.5}


def test_a_repair_shows_the_fault_and_is_a_step(tmp_path: Path):
    script = ['{"hard": "perhaps"}', "no json", '{"hard": false, "score": 1}']
    assert one(calling(judge, text="t"), script, tmp_path / "run").result == {"hard": False, "score": 1.0}
    told = story(tmp_path / "run")
    assert len(told.steps) == 3
    shown = told.steps[2].messages
    assert [message.role for message in shown] == ["user", "assistant", "user", "assistant", "user"]
    assert "score" in shown[2].text and shown[1].text == script[0]


def test_after_the_last_repair_the_reply_is_kept():
    task = one(calling(judge, text="t"), "never json")
    assert (task.state, task.reason) == ("failed", "output")
    assert task.result["detail"] == {"reply": "never json"}


def test_retry_asks_the_reply_again_that_did_not_fit(tmp_path: Path):
    asked: Counter[int] = Counter()

    def script(request: Request) -> str:
        asked[len(request.messages)] += 1
        return "junk" if asked.total() <= 3 else '{"hard": true, "score": 2}'

    flow = calling(judge, text="t")
    assert one(flow, script, tmp_path / "run").reason == "output"
    engine = Scripted(script, identity="script")
    (task,) = resume(tmp_path / "run", workflow=flow, rows=[{"n": 1}], models=engine, retry=True)
    assert task.state == "done"
    assert asked.total() == 4, "the replies that were shown their fault stay; the last one is asked again"


@pytest.mark.parametrize(("output", "reply", "value"), [
    (int, "7", 7), (list[int], "[1, 2]", [1, 2]), (dict[str, bool], '{"a": true}', {"a": True}),
    ({"type": "object", "required": ["a"]}, '{"a": 1}', {"a": 1}),
])  # fmt: skip
def test_output_is_any_type_that_json_is_read_into(output: Any, reply: str, value: Any):
    assert one(calling(Agent("a", prompt="x", output=output)), reply).result == value


# Tools

looked: Counter[str] = Counter()


async def look_up(word: str, times: int = 1) -> dict[str, Any]:
    """Look a word up."""
    looked[word] += 1
    return {"means": word * times}


def broken(word: str) -> str:
    """Breaks."""
    raise LookupError(f"no {word}")


def wants(*calls: tuple[str, Any]) -> Message:
    made = (
        ToolCall(f"c{n}", name, arguments if isinstance(arguments, str) else json.dumps(arguments))
        for n, (name, arguments) in enumerate(calls)
    )
    return Message("assistant", "", tuple(made))


tooled = Agent("tooled", prompt="Use tools", tools=[look_up, broken], turns=3)


def test_tools_are_called_at_once_and_recorded(tmp_path: Path):
    looked.clear()
    script = [wants(("look_up", {"word": "a"}), ("look_up", {"word": "b", "times": 2})), "done"]
    assert one(calling(tooled), script, tmp_path / "run").result == "done"
    assert looked == {"a": 1, "b": 1}
    told = story(tmp_path / "run")
    assert Counter((step.kind, step.name) for step in told.steps) == {("model", "tooled"): 2, ("tool", "look_up"): 2}
    assert [message.text for message in told.steps[-1].messages[2:]] == ['{"means": "a"}', '{"means": "bb"}']


def test_what_a_tool_does_wrong_is_told_to_the_model(tmp_path: Path):
    script = [
        wants(("look_up", {"wrong": 1}), ("nowhere", {}), ("broken", {"word": "x"}), ("look_up", "no json")),
        "done",
    ]
    assert one(calling(tooled), script, tmp_path / "run").result == "done"
    texts = [message.text for message in story(tmp_path / "run").steps[-1].messages[2:]]
    assert len(texts) == 4 and all(text.startswith("error:") for text in texts)
    assert "word" in texts[0] and "look_up" in texts[1] and "no x" in texts[2]


def test_a_model_that_never_stops_calling_tools_fails():
    task = one(calling(tooled), lambda request: wants(("look_up", {"word": "a"})))
    assert (task.reason, "turns=3" in task.result["text"]) == ("tool", True)


def test_a_tool_runs_once_over_a_crash(tmp_path: Path):
    looked.clear()
    stops: list[Any] = []

    async def script(request: Request) -> Any:
        if len(request.messages) == 1:
            return wants(("look_up", {"word": "a"}))
        if stops:
            stops.pop()()
            await asyncio.sleep(60)
        return f"saw {request.messages[-1].text}"

    engine, flow = Scripted(script, identity="script"), calling(tooled)
    going = run(flow, [{"n": 1}], models=engine, directory=tmp_path / "run", grace=0)
    stops.append(going.stop)
    assert not list(going)
    (task,) = resume(tmp_path / "run", workflow=flow, rows=[{"n": 1}], models=engine)
    assert task.result == 'saw {"means": "a"}'
    assert looked == {"a": 1}


def test_a_retry_calls_no_tool_again_whose_failure_the_model_was_told(tmp_path: Path):
    calls, down = Counter[str](), [True]

    def flaky(word: str) -> str:
        """Fails."""
        calls[word] += 1
        raise LookupError(f"no {word}")

    told = Agent("told", prompt="Use tools", tools=[flaky])

    @workflow
    async def flow(row: Any) -> Any:
        return [await told(), await Agent("last", prompt="Last")()]

    def script(request: Request) -> Any:
        if request.agent == "last" and down[0]:
            raise StepFailed("server", "down")
        return "done" if request.agent == "last" or len(request.messages) > 1 else wants(("flaky", {"word": "a"}))

    engine = Scripted(script, identity="script")
    run(flow, [{"n": 1}], models=engine, directory=tmp_path / "run", max_failures=1.0).wait()
    down.clear()
    down.append(False)
    (task,) = resume(tmp_path / "run", workflow=flow, rows=[{"n": 1}], models=engine, retry=True)
    assert task.result == ["done", "done"] and calls == {"a": 1}
    assert story(tmp_path / "run").unasked == 0


def test_a_tool_cannot_ask_an_agent():
    async def asks(word: str) -> str:
        """Asks."""
        return await judge(text=word)

    agent = Agent("a", prompt="x", tools=[asks])
    seen: list[str] = []

    def script(request: Request) -> Any:
        seen.append(request.messages[-1].text)
        return wants(("asks", {"word": "a"})) if len(request.messages) == 1 else "done"

    assert one(calling(agent), script).result == "done"
    assert "works only inside a workflow" in seen[-1]


# Overrides, failures


def test_overrides_change_an_agent_for_one_run():
    seen: list[Request] = []

    def script(request: Request) -> str:
        seen.append(request)
        return '{"hard": true, "score": 1}'

    one(calling(judge, text="t"), script, overrides={"judge": {"temperature": 0.3, "prompt": "Other {{ text }}"}})
    assert (seen[0].sampling.temperature, seen[0].messages[0].text) == (0.3, "Other t")


def test_equal_requests_get_seeds_of_their_own():
    seen: list[int] = []

    @workflow
    async def asks(row: Any) -> Any:
        agent = Agent("a", prompt="same")
        await asyncio.gather(agent(), agent(), agent())
        await agent()

    def script(request: Request) -> str:
        seen.append(request.seed)
        return "x"

    one(asks, script)
    first = list(seen)
    one(asks, script)
    assert len(set(first)) == 4 and seen == first * 2


def test_a_failure_can_be_caught_and_answered_by_another():
    @workflow
    async def falls_back(row: Any) -> Any:
        try:
            return await Agent("weak", prompt="x")()
        except StepFailed as failure:
            return [failure.kind, await Agent("strong", prompt="x")()]

    script = {"weak": [StepFailed("timeout", "slow")], "strong": "fine"}
    assert one(falls_back, script).result == ["timeout", "fine"]
