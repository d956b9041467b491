"""Models made of other models, and the trained team of MALT served as one."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import weaverant
from peers_world import (
    CountingModel,
    begin,
    call,
    exported,
    faults,
    nothing_left,
    peer_pids,
    signal_to,
    steps_done,
    wait_until,
)
from weaverant import Agent, Message, Reply, Story, UserError, deadline, workflow
from weaverant.cli.show import story_lines, storyteller
from weaverant.compound import Inside
from weaverant.engines import open_engine
from weaverant.engines.embedded import EmbeddedEngine
from weaverant.engines.scripted import Scripted
from weaverant.errors import StepFailed
from weaverant.events import StepEnded
from weaverant.journal import JournalReader
from weaverant.message import ImagePart, Request, Sampling, Usage, assistant, user
from weaverant.pilot import estimate
from weaverant.protocols import CallContext
from weaverant.recipes.malt.served import MaltTeam, Played, question_in, read_answer
from weaverant.recipes.malt.systems import G_R, MA, G
from weaverant.summary import document, fold
from weaverant.testing.server import MockServer

asker = Agent("asker", prompt="{{ question }}", model="solver")


@workflow
async def ask(row: dict[str, Any]) -> dict[str, Any]:
    reply = await asker.reply(question=row["question"])
    return {"said": reply.text, "model": reply.model, "tokens": reply.usage.completion_tokens}


WORKFLOW = """
from weaverant import Agent, workflow

asker = Agent("asker", prompt="{{ question }}", model="solver")


@workflow
async def ask(row):
    first = await asker(question=row["question"])
    return {"first": first, "second": await asker(question=row["question"])}
"""

QUESTIONS = [{"question": f"What is {n} + 1?"} for n in range(6)]


def team(engine: Any, shape: Any = MA, **played: Any) -> MaltTeam:
    return MaltTeam(shape, {role: engine for role, _ in shape.cast}, Played(**played))


def stories(run: Path) -> list[Story]:
    reader = JournalReader(run)
    teller = storyteller(run, reader)
    return [teller.tell(reader.task_events(task.task)) for task in reader.tasks()]


def counted(run: Path) -> dict[tuple[str, str], int]:
    return {(agent["kind"], agent["name"]): agent["calls"] for agent in document(fold(run))["agents"]}


# The team of MALT


def test_a_team_on_the_tiny_model_answers_as_its_roles_asked_by_hand_would(tmp_path: Path):
    (tmp_path / "models.json").write_text('{"base": "embedded:tiny"}')
    spec = f"malt:{tmp_path / 'models.json'}?team=ma"
    run = weaverant.run(ask, "arithmetic:weave", models={"solver": spec}, limit=6, directory=tmp_path / "run").wait()
    assert run.exit_code == 0
    assert counted(tmp_path / "run") == {
        ("compound", "asker"): 6,
        **{("model", f"solver/{role}"): 18 for role in ("generator", "verifier", "refiner")},
    }
    tiny = EmbeddedEngine.open("tiny")

    async def by_hand(story: Story) -> list[str]:
        """Each role asked with the seed of its step; of the first pass's generator on, three passes."""
        question, finals = story.row["question"], []
        seeds = {(step.name, step.path): step.seed for step in story.steps}
        for branch in ("call0.0", "call0.1", "call0.2"):
            prompt, said = question, ""
            for role, ending in (("generator", ""), ("verifier", "\ncheck:"), ("refiner", "\nanswer:")):
                prompt = f"{prompt}\n{said}" if said else prompt
                messages, seed = (user(prompt + ending),), seeds[f"solver/{role}", branch]
                request = Request(role, role, messages, Sampling(temperature=1.0, max_tokens=40), seed=seed)
                said = (await tiny.generate(request, CallContext(""))).text
            finals.append(said)
        return finals

    async def all_by_hand() -> list[list[str]]:
        try:
            return [await by_hand(story) for story in told]
        finally:
            await tiny.close()

    told = stories(tmp_path / "run")
    for story, finals in zip(told, asyncio.run(all_by_hand()), strict=True):
        answers = [re.findall(r"\d+", said)[-1] for said in finals]
        most = max(Counter(answers).values())
        wanted = next(said for said, answer in zip(finals, answers, strict=True) if answers.count(answer) == most)
        assert story.result["said"] == wanted
        assert story.result["tokens"] == 0 and story.result["model"].startswith("malt:ma@")
    assert len({story.result["said"] for story in told}) > 1


def test_the_vote_takes_the_majority_and_else_the_first():
    votes: dict[str, list[str]] = {"#### 7|#### 8|so #### 8.0": ["1"], "a 7|b 8|c 9": ["0"], "none|none|7": ["2"]}
    for said, winner in votes.items():
        replies = said.split("|")

        def say(request: Request, ctx: CallContext, replies: list[str] = replies) -> str:
            return replies[int(ctx.path[-1])] if request.agent.endswith("refiner") else "hm"

        run = weaverant.run(ask, QUESTIONS[:1], models={"solver": team(Scripted(say))}, journal=False)
        assert [task.result["said"] for task in run] == [replies[int(winner[0])]]


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("#### 1,000", "number 1000"),
        ("it is \\boxed{(C)}", "choice C"),
        ("#### Paris.", "exact paris"),
        ("so 12 and 13", "number 13"),
        ("no idea", None),
        ("####  ", None),
    ],
)
def test_answers_are_read_without_a_gold_one(text: str, answer: str | None):
    assert read_answer(text, "auto") == answer
    assert read_answer("the answer is 12 eggs", "number") == "12"


def test_a_shorter_pipeline_leaves_its_role_out(tmp_path: Path):
    seen: list[str] = []

    def say(request: Request) -> str:
        seen.append(f"{request.agent} {request.messages[-1].text.count('Critique')}")
        return "#### 5"

    for shape in (G, G_R):
        weaverant.run(ask, QUESTIONS[:1], models={"solver": team(Scripted(say), shape, passes=1)}, journal=False).wait()
    assert seen == ["solver/generator 0", "solver/generator 0", "solver/refiner 1"]


def test_what_the_asking_agent_sets_of_its_sampling_holds_for_every_role():
    seen: list[Sampling] = []

    def say(request: Request) -> str:
        seen.append(request.sampling)
        return "#### 5"

    cold = Agent("cold", prompt="{{ question }}", model="solver", temperature=0.0, max_tokens=99, stop=["END"])

    @workflow
    async def asks(row: dict[str, Any]) -> str:
        return await cold(question=row["question"])

    weaverant.run(asks, QUESTIONS[:1], models={"solver": team(Scripted(say), passes=1)}, journal=False).wait()
    assert seen == [Sampling(0.0, None, 99, ("END",))] * 3


def test_instructions_stand_before_the_question_and_conversations_are_refused():
    assert question_in((Message("system", "Be brief."), user("Why?"))) == "Be brief.\n\nWhy?"
    with pytest.raises(StepFailed, match="request: a MALT team answers one question"):
        question_in((user("Why?"), assistant("So."), user("And?")))
    with pytest.raises(StepFailed, match="image"):
        question_in((Message("user", (ImagePart("https://x/y.png"),)),))


def test_a_pass_that_outgrows_its_model_has_no_vote():
    def say(request: Request, ctx: CallContext) -> str:
        if request.agent.endswith("verifier") and ctx.path.endswith(where):
            raise StepFailed("context", "too long")
        return "#### 5"

    where = ""
    for where, state in ((".0", "done"), ("", "failed")):  # noqa: B007
        (task,) = weaverant.run(ask, QUESTIONS[:1], models={"solver": team(Scripted(say))}, journal=False)
        assert (task.state, task.reason) == (state, "" if state == "done" else "context")


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("malt:{0}", "no model for sft generator, dpo verifier, dpo refiner.*[?]team=sa or [?]team=ma"),
        ("malt:{0}?team=nobody", "expected team= one of sa, ma.*found 'nobody'"),
        ("malt:{0}?team=g_v", "expected team= one of"),
        ("malt:{0}?team=ma&passes=0", "passes must be at least 1"),
        ("malt:{0}?team=ma&votes=3", "unknown field `votes`.*Expected some of passes=N"),
        ("malt:{0}?team=ma&passes=many", "Expected some of passes=N"),
        ("malt:nowhere.json", "'nowhere.json' cannot be read"),
        ("malt:{1}?team=ma", "names itself as one of its models"),
        ("cache:kept|malt:{0}?team=ma", "a cache keeps what an engine says.*around those"),
        ("malt:{2}?team=ma", "cannot open the embedded model"),
    ],
)
def test_a_team_that_cannot_be_opened_says_why(tmp_path: Path, spec: str, said: str):
    models = tmp_path / "models.json", tmp_path / "itself.json", tmp_path / "gone.json"
    models[0].write_text('{"base": "embedded:tiny"}')
    models[1].write_text(json.dumps({"base": f"malt:{models[1]}?team=ma"}))
    models[2].write_text('{"base": "embedded:no/such/folder"}')
    with pytest.raises(UserError, match=f"(?s){said}"):
        open_engine(spec.format(*models))


@pytest.mark.parametrize(
    ("fields", "what"), [({"output": int}, "output="), ({"n": 2}, "n"), ({"logprobs": True}, "log prob"), ({}, "")]
)
def test_what_a_team_cannot_do_is_refused_before_the_first_call(fields: dict[str, Any], what: str):
    demanding = Agent("demanding", prompt="{{ question }}", model="solver", **fields)
    binding = weaverant.binding.Binding({"solver": team(Scripted("#### 5"))})
    if what:
        with pytest.raises(UserError, match=f"one plain text.*{what}.*--model solver=http"):
            binding.bound(demanding)
    else:
        assert [bound.agent.name for bound in binding.all()] == []
        binding.bound(demanding)
        assert len(binding.all()) == 4 and set(binding.models) == {
            "solver/generator",
            "solver/verifier",
            "solver/refiner",
        }


def test_a_name_that_is_also_a_member_s_is_refused():
    with pytest.raises(UserError, match="'solver/verifier' is given, and is a member of another"):
        weaverant.binding.Binding({"solver": team(Scripted("5")), "solver/verifier": Scripted("6")})


def test_an_identity_names_kind_options_and_members_and_no_path(tmp_path: Path):
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "models.json").write_text('{"base": "embedded:tiny"}')
    identities = [
        open_engine(f"malt:{tmp_path}/{folder}/models.json?{options}").identity
        for folder in ("here", "there")
        for options in ("team=ma", "team=ma&passes=5", "team=sa", "team=ma&prompts=chat", "team=ma&answers=exact")
    ]
    assert identities[:5] == identities[5:] and len(set(identities)) == 5
    assert team(Scripted("a")).identity != team(Scripted("b")).identity


# Any compound


class Loyal:
    """Asks one member after the other until one replies; whole requests."""

    def __init__(self, **members: Any) -> None:
        self.members = members
        self.identity = f"loyal:{sorted((name, member.identity) for name, member in members.items())}"

    def agents(self, request: Request) -> list[Agent]:
        return []

    async def answer(self, request: Request, inside: Inside) -> Reply:
        for name in self.members:
            try:
                return await inside.ask(name, request)
            except StepFailed as failure:
                last = failure
        raise last

    async def close(self) -> None: ...


def test_compounds_compose(tmp_path: Path):
    """A team whose generator is a team, behind what asks one after the other; the story tells who was made of whom."""
    base = Scripted("#### 5")
    inner = MaltTeam(MA, {"generator": team(base, passes=2), "verifier": base, "refiner": base}, Played(passes=1))
    run = weaverant.run(ask, QUESTIONS[:2], models=Loyal(only=inner), directory=tmp_path / "run").wait()
    assert run.exit_code == 0
    assert counted(tmp_path / "run") == {
        ("compound", "asker"): 2,
        ("compound", "*/only"): 2,
        ("compound", "*/only/generator"): 2,
        ("model", "*/only/verifier"): 2,
        ("model", "*/only/refiner"): 2,
        **{("model", f"*/only/generator/{role}"): 4 for role in ("generator", "verifier", "refiner")},
    }
    story = stories(tmp_path / "run")[0]
    outer = story.steps[-1]
    assert outer.name == "asker" and len(story.made_of(outer)) == len(story.steps) - 1 == 10
    within = next(step for step in story.steps if step.name == "*/only/generator")
    assert len(story.made_of(within)) == 6 and story.made_of(story.steps[0]) == []
    assert any(outer.inside in line and "only they count" in line for line in story_lines(story, 9, 999))


def test_tools_and_outputs_pass_through_a_compound_that_takes_whole_requests(tmp_path: Path):
    """Its tools are called and its replies mended for the asking agent, not within."""

    def weigh(what: str) -> int:
        """Weigh something."""
        return len(what)

    def say(request: Request) -> Message:
        last = request.messages[-1]
        if request.tools:
            call = weaverant.message.ToolCall("c", "weigh", '{"what": "hay"}')
            return Message("assistant", "", (call,)) if last.role == "user" else assistant(f"it weighs {last.text}")
        return assistant("4" if "cannot be used" in last.text else "four")

    tooled = Agent("tooled", prompt="{{ question }}", tools=[weigh])
    typed = Agent("typed", prompt="{{ question }}", output=int)

    @workflow
    async def asks(row: dict[str, Any]) -> Any:
        return [await tooled(question=row["question"]), await typed(question=row["question"])]

    (task,) = weaverant.run(asks, QUESTIONS[:1], models=Loyal(one=Scripted(say)), directory=tmp_path / "run")
    assert task.result == ["it weighs 3", 4]
    found = counted(tmp_path / "run")
    assert {found.pop(key) for key in list(found) if key[0] == "tool"} == {1}
    assert found == {("compound", "tooled"): 2, ("compound", "typed"): 2, ("model", "*/one"): 4}


def test_a_conversation_that_grows_is_read_back_as_it_was_sent(tmp_path: Path):
    """A step names the one that it goes on from, within as well, so that turns do not take room for all before them."""
    seen: list[tuple[Message, ...]] = []

    def say(request: Request) -> str:
        seen.append(request.messages)
        return f"said {len(request.messages)}, at some length, so that it is numbered"

    host = Agent("host", system="Be kind.", prompt="{{ question }}", model="solver")

    @workflow
    async def talks(row: dict[str, Any]) -> int:
        history: list[Message] = []
        for turn in range(30):
            question = f"turn {turn}, at some length, so that it is numbered"
            history += [user(question), assistant(await host(question=question, history=history))]
        return len(history)

    models = {"solver": Loyal(one=Scripted(say))}
    (task,) = weaverant.run(talks, [{}], models=models, directory=tmp_path / "run")
    assert task.result == 60
    (story,) = stories(tmp_path / "run")
    assert [step.messages for step in story.steps if step.inside] == seen
    assert [step.messages for step in story.steps if not step.inside] == seen
    named = [event for event in JournalReader(tmp_path / "run").events() if isinstance(event, StepEnded)]
    assert max(len(str(event.input)) for event in named) < 400


def test_a_compound_that_breaks_fails_its_call_and_the_workflow_may_catch_it(tmp_path: Path):
    class Broken(Loyal):
        async def answer(self, request: Request, inside: Inside) -> Any:
            if "is 0" in request.messages[0].text:
                raise LookupError("lost")
            return "no reply" if "is 1" in request.messages[0].text else await inside.ask("stranger", request)

    @workflow
    async def asks(row: dict[str, Any]) -> str:
        try:
            return await asker(question=row["question"])
        except StepFailed as failure:
            return str(failure)

    found = [
        task.result for task in weaverant.run(asks, QUESTIONS[:3], models=Broken(one=Scripted("x")), journal=False)
    ]
    assert found[0] == "LookupError: lost"
    assert "gave what is no Reply" in found[1] and "has no member 'stranger'; it has: 'one'" in found[2]


def test_a_compound_knows_what_its_calls_have_used_and_replay_tells_it_the_same(tmp_path: Path):
    """Replies and failures, of members' members as well; never the same twice, and nothing of other calls."""
    seen: list[tuple[float, ...]] = []
    asked: list[str] = []

    def say(request: Request, ctx: CallContext) -> Reply:
        asked.append(request.agent)
        if request.agent.endswith("bad"):
            raise StepFailed("server", "sick", usage=Usage(cost=0.5))
        return Reply(assistant("well"), Usage(cost=0.25))

    class Counts(Loyal):
        async def answer(self, request: Request, inside: Inside) -> Reply:
            before = inside.used().cost
            with contextlib.suppress(StepFailed):
                await inside.ask("bad", request)
            between = inside.used().cost
            alone = await asyncio.create_task(self.apart(request, inside))
            reply = await inside.ask("good", request)
            seen.append((before, between, alone, inside.used().cost))
            if fails and "is 1" in request.messages[0].text:
                raise LookupError("lost")
            return reply

        async def apart(self, request: Request, inside: Inside) -> float:
            await inside.ask("good", request)
            return inside.used().cost

    fails = True
    good = Loyal(one=Scripted(say, identity="1"))
    models = {"solver": Counts(bad=Scripted(say, identity="2"), good=good)}
    weaverant.run(ask, QUESTIONS[:2], models=models, directory=tmp_path / "run").wait()
    assert seen == [(0.0, 0.5, 0.25, 1.0)] * 2
    fails = False
    seen.clear()
    asked.clear()
    again = {"workflow": ask, "rows": QUESTIONS[:2], "models": models}
    assert weaverant.resume(tmp_path / "run", **again, retry=True).wait().exit_code == 0
    assert seen == [(0.0, 0.5, 0.25, 1.0)] and asked == []


def test_a_deadline_cancels_what_is_asked_inside(tmp_path: Path):
    async def slowly(request: Request) -> str:
        await asyncio.sleep(30)
        return "late"

    @workflow
    async def hurried(row: dict[str, Any]) -> str:
        try:
            async with deadline(0.2):
                return await asker(question=row["question"])
        except TimeoutError:
            return "in vain"

    began = time.monotonic()
    models = {"solver": team(Scripted(slowly))}
    (task,) = weaverant.run(hurried, QUESTIONS[:1], models=models, directory=tmp_path / "run")
    assert task.result == "in vain" and time.monotonic() - began < 20
    (story,) = stories(tmp_path / "run")
    assert [(step.name, step.outcome) for step in story.steps] == [("solver/generator", "cancelled")] * 3


def test_a_retry_asks_again_what_failed_inside_and_no_more(tmp_path: Path):
    sick, calls = True, Counter[str]()

    def say(request: Request, ctx: CallContext) -> str:
        calls[request.agent] += 1
        if sick and request.agent == "solver/verifier" and ctx.path.endswith(".1"):
            raise StepFailed("server", "sick")
        return "#### 5"

    models = {"solver": team(Scripted(say, identity="it"))}
    run = weaverant.run(ask, QUESTIONS[:2], models=models, directory=tmp_path / "run").wait()
    assert run.exit_code == 3 and {task.state for task in JournalReader(tmp_path / "run").tasks()} == {"failed"}
    sick = False
    calls.clear()
    again = {"workflow": ask, "rows": QUESTIONS[:2], "models": models}
    assert weaverant.resume(tmp_path / "run", **again, retry=True).wait().exit_code == 0
    assert calls["solver/generator"] == 0 and calls["solver/verifier"] == 2
    assert [story.result["said"] for story in stories(tmp_path / "run")] == ["#### 5"] * 2


def test_a_retry_leaves_alone_what_failed_behind_a_reply_that_stays(tmp_path: Path):
    """The row fails for another reason; what had failed inside a compound that replied would be paid for in vain."""
    calls, mended = Counter[str](), False

    def first(request: Request) -> str:
        calls["first"] += 1
        raise StepFailed("server", "never there")

    def second(request: Request) -> str:
        calls["second"] += 1
        return "well"

    def third(request: Request) -> str:
        if not mended:
            raise StepFailed("server", "not yet")
        return "at last"

    class Both(Loyal):
        async def answer(self, request: Request, inside: Inside) -> Reply:
            found = await asyncio.gather(*(inside.ask(name, request) for name in self.members), return_exceptions=True)
            return next(one for one in found if isinstance(one, Reply))

    other = Agent("other", prompt="{{ question }}")

    @workflow
    async def asks(row: dict[str, Any]) -> list[str]:
        return [await asker(question=row["question"]), await other(question=row["question"])]

    both = Both(first=Scripted(first, identity="1"), second=Scripted(second, identity="2"))
    models = {"solver": both, "*": Scripted(third, identity="3")}
    assert weaverant.run(asks, QUESTIONS[:1], models=models, directory=tmp_path / "run").wait().exit_code == 3
    mended = True
    again = weaverant.resume(tmp_path / "run", workflow=asks, rows=QUESTIONS[:1], models=models, retry=True).wait()
    assert again.exit_code == 0 and calls == {"first": 1, "second": 1}


def test_a_retry_of_a_useless_reply_asks_again_what_it_was_made_of(tmp_path: Path):
    words = "four"
    typed = Agent("typed", prompt="{{ question }}", model="solver", output=int, repairs=0)

    @workflow
    async def asks(row: dict[str, Any]) -> int:
        return await typed(question=row["question"])

    models = {"solver": Loyal(outer=Loyal(inner=Scripted(lambda request: words, identity="1")))}
    run = weaverant.run(asks, QUESTIONS[:2], models=models, directory=tmp_path / "run").wait()
    assert run.exit_code == 3 and run.ledger.stages[0].failed == {"output": 2}
    words = "4"
    again = weaverant.resume(tmp_path / "run", workflow=asks, rows=QUESTIONS[:2], models=models, retry=True)
    assert [task.result for task in again] == [4, 4]


def test_another_member_costs_only_what_it_is_asked(tmp_path: Path):
    """`--reuse`: a fourth pass is three calls a row, although the asking agent's model is another."""
    calls = Counter[str]()

    def say(request: Request) -> str:
        calls[request.agent] += 1
        return "#### 5"

    base = Scripted(say, identity="it")
    for passes, wanted in ((3, 18), (4, 6)):
        calls.clear()
        models = {"solver": team(base, passes=passes)}
        old = {} if passes == 3 else {"reuse": tmp_path / "3"}
        run = weaverant.run(ask, QUESTIONS[:2], models=models, directory=tmp_path / str(passes), **old).wait()
        assert run.exit_code == 0 and calls.total() == wanted


def test_the_models_page_is_true():
    page = (Path(__file__).parent.parent / "docs" / "models.md").read_text()
    (section,) = [text for text in page.split("\n## ") if text.startswith("Models made of models")]
    assert set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)) == set(Played.__struct_fields__)
    (example,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    names: dict[str, Any] = {"__name__": __name__}
    exec(example, names)
    strong = Scripted(lambda request: "of " + request.messages[0].text.split("only that.\n\n")[1].replace("\n\n", "+"))
    layer = names["Layer"](strong, Scripted("one"), Scripted("two"))
    (task,) = weaverant.run(ask, QUESTIONS[:1], models=layer, journal=False)
    assert task.result["said"] == "of one+two" and task.result["model"].startswith("layer:scripted")


# Money, exports, real servers and processes


@pytest.fixture
def folder(tmp_path: Path, model: CountingModel):
    (tmp_path / "ask.py").write_text(WORKFLOW)
    (tmp_path / "models.json").write_text(json.dumps({"base": model.url}))
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))
    with nothing_left(tmp_path):
        yield tmp_path


RUN = ("run", "ask.py", "--input", "rows.jsonl", "--run", "out", "--model", "solver=malt:models.json?team=ma")
CALLS = len(QUESTIONS) * 2 * 9


def test_the_cost_is_that_of_the_calls_inside(tmp_path: Path):
    with MockServer(price="100,1000") as server:
        url = f"{server.url}?price=100,1000#mock"
        (tmp_path / "models.json").write_text(json.dumps({"base": url}))
        models = {"solver": f"malt:{tmp_path}/models.json?team=ma&answers=exact"}
        run = weaverant.run(ask, QUESTIONS, models=models, directory=tmp_path / "run").wait()
        billed = server.bill()
        assert run.exit_code == 0 and len(billed) == len(QUESTIONS) * 9
        assert run.spent == pytest.approx(sum(item.get("dollars", 0) for item in billed))
        told = document(fold(tmp_path / "run"))
        assert told["spent"]["total"] == pytest.approx(run.spent)
        outer = next(agent for agent in told["agents"] if agent["kind"] == "compound")
        assert outer["cost"] == outer["prompt_tokens"] == outer["requests"] == 0
        assert JournalReader(tmp_path / "run").calls() == len(billed)
        found = estimate(tmp_path / "run")
        assert found.calls.value == len(billed) and found.cost.value == pytest.approx(run.spent) and found.cached == 0


def test_a_budget_holds_inside_a_compound_and_a_larger_one_goes_on(tmp_path: Path):
    with MockServer() as server:
        url = f"{server.url}?price=100,1000#mock"
        (tmp_path / "models.json").write_text(json.dumps({"base": url}))
        models = {"solver": f"malt:{tmp_path}/models.json?team=ma"}
        short = Agent("asker", prompt="{{ question }}", model="solver", max_tokens=50)

        @workflow
        async def asks(row: dict[str, Any]) -> str:
            return await short(question=row["question"])

        run = weaverant.run(asks, QUESTIONS, models=models, directory=tmp_path / "run", budget=0.5).wait()
        assert run.state == "budget" and 0 < run.spent <= 0.5
        again = weaverant.resume(tmp_path / "run", workflow=asks, rows=QUESTIONS, budget=100.0).wait()
        assert again.state == "finished" and server.stats()["answered"] == len(QUESTIONS) * 9


def test_a_budget_needs_prices_of_all_members(tmp_path: Path, server: MockServer):
    (tmp_path / "models.json").write_text(json.dumps({"base": f"{server.url}#mock"}))
    models = {"solver": f"malt:{tmp_path}/models.json?team=ma"}
    named = Agent("asker", prompt="{{ question }}", model="solver")
    binding, _, _ = weaverant.given.bind(models, weaverant.recipe.recipe_of(ask), {})
    binding.bound(named)
    with pytest.raises(UserError, match="agent 'solver/generator' cannot work under a budget"):
        weaverant.given.check_bounded(binding, weaverant.given.limits_given({"budget": 1.0}, "run", ()))


def test_kill_9_within_a_compound_call_pays_nothing_twice(folder: Path, model: CountingModel):
    driver, out = begin(folder, *RUN, "--concurrency", "4"), folder / "out"
    wait_until(lambda: (out / "journal").exists() and steps_done(out) > 20, what="some calls")
    driver.kill()
    driver.wait()
    kept = [event for event in JournalReader(out).events() if isinstance(event, StepEnded) and not event.inside]
    numbers = {event.usage.prompt_tokens for event in kept}
    before = {one.key for one in model.calls if one.number in numbers}
    asked = len(model.calls)
    assert 20 < len(before) == len(kept) < CALLS
    again = call(folder, "resume", "out")
    assert again.returncode == 0, again.stderr
    assert not before & {one.key for one in model.calls[asked:]}
    assert len(model.calls) - asked == CALLS - len(kept)
    assert call(folder, "resume", "out").returncode == 0 and len(model.calls) == asked + CALLS - len(kept)
    whole = call(folder, *[word.replace("out", "whole") if word == "out" else word for word in RUN])
    assert whole.returncode == 0 and exported(folder) == exported(folder, "whole")


@pytest.mark.parametrize("placed", [False, True])
def test_peers_work_on_compounds_and_their_calls_travel(folder: Path, model: CountingModel, placed: bool):
    if placed:
        (folder / "ask.py").write_text(WORKFLOW.replace('model="solver"', 'model="solver", place="gpu"'))
    label = ["--label", "gpu=1"] if placed else []
    found = call(folder, *RUN, "--peers", "2", *label)
    assert found.returncode == 0, found.stderr
    assert faults(folder / "out") == [] and len(model.calls) == CALLS
    told = document(fold(folder / "out"))
    assert sum(peer["calls"] for peer in told["peers"]) == CALLS
    assert len({one.pid for one in model.calls}) == (1 if placed else 2)
    if placed:
        assert 0 < sum(peer["answered"] for peer in told["peers"]) <= CALLS
    alone = call(folder, *[word if word != "out" else "alone" for word in RUN])
    assert alone.returncode == 0 and exported(folder) == exported(folder, "alone")


def test_a_peer_that_dies_within_a_compound_call_leaves_it_to_the_others(folder: Path, model: CountingModel):
    model.latency = 0.2
    driver, out = begin(folder, *RUN, "--peers", "2", "--concurrency", "8"), folder / "out"
    wait_until(lambda: (out / "peers").exists() and steps_done(out) > 12, what="some calls")
    assert signal_to(peer_pids(out)[0])
    assert driver.wait(80) == 0, (folder / "output.txt").read_text()
    assert faults(out) == []
    kept = {event.usage.prompt_tokens for event in JournalReader(out).events() if isinstance(event, StepEnded)}
    answered = Counter(one.key for one in model.calls if one.number in kept)
    assert max(answered.values()) == 1 and len(answered) == CALLS


def test_the_command_line_shows_exports_and_estimates_compounds(folder: Path, model: CountingModel):
    dry = call(folder, *RUN, "--dry-run")
    assert dry.returncode == 0 and "agent solver/verifier: model 'solver/verifier' -> http:m" in dry.stdout
    assert "by agent 'solver/generator', would send" in dry.stdout and not model.calls
    pilot = call(folder, *RUN, "--pilot", "2")
    assert pilot.returncode == 0 and "asker (compound)" in pilot.stdout
    changed = call(folder, "resume", "out", "--model", "solver=malt:models.json?team=ma&passes=5")
    assert changed.returncode == 2 and "model 'solver' (was 'malt:ma@" in changed.stderr
    assert call(folder, "resume", "out").returncode == 0 and len(model.calls) == CALLS
    shown = call(folder, "show", "out").stdout
    assert re.search(rf"all agents +{CALLS} ", shown) and re.search(r"asker \(compound\) +12 ", shown)
    assert "requests " not in shown
    for agent, samples in (("asker", 12), ("solver/refiner", 36)):
        found = call(folder, "export", "out", "--as", "messages", "--agent", agent, "--out", "-")
        lines = [json.loads(line) for line in found.stdout.splitlines()]
        assert len(lines) == samples and {line["agent"] for line in lines} == {agent}
