"""Layers of models, sparse ones, one model many times, and one model chosen: `moa`, `smoa`, `self-moa`, `route`."""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import numpy as np
import pytest

import weaverant
from weaverant import Agent, Message, Reply, Story, UserError, workflow
from weaverant.cli.show import storyteller
from weaverant.engines import KINDS, open_engine
from weaverant.engines.scripted import Scripted
from weaverant.errors import StepFailed
from weaverant.journal import JournalReader
from weaverant.message import ImagePart, Request, Sampling, TextPart, ToolCall, assistant, system, user
from weaverant.protocols import CallContext
from weaverant.routing.asking import by_prior
from weaverant.routing.moa import Moa, MoaOptions
from weaverant.routing.pool import Card, Pool, PoolFile
from weaverant.routing.prompts import Chat, agreed
from weaverant.routing.reading import read_table
from weaverant.routing.route import Route, RouteOptions
from weaverant.routing.scores import Scores
from weaverant.routing.selfmoa import SelfMoa, SelfMoaOptions
from weaverant.routing.smoa import Smoa, SmoaOptions, by_scores, read_roles, read_verdict
from weaverant.routing.training import train
from weaverant.routing.utility import Candidate, Weights, rank, refused
from weaverant.summary import document, fold

asker = Agent("asker", prompt="{{ question }}", model="solver")


@workflow
async def ask(row: dict[str, Any]) -> dict[str, Any]:
    reply = await asker.reply(question=row["question"])
    return {"said": reply.text, "model": reply.model, "finish": reply.finish, "cost": reply.usage.cost}


QUESTIONS = [{"question": f"What is {n} + 1?"} for n in range(12)]
NAMES = ("a", "b", "c")


class Voices:
    """Members who say what a function says, and are counted."""

    def __init__(self, say: Any = None, names: Sequence[str] = NAMES) -> None:
        self.asked: list[tuple[str, Request]] = []
        self._say = say or (lambda name, request: f"{name} says so")
        self.members = {name: Scripted(self._voice(name), identity=f"voice:{name}") for name in names}

    def _voice(self, name: str) -> Any:
        async def say(request: Request, ctx: CallContext) -> Any:
            self.asked.append((name, request))
            said = self._say(name, request)
            return await said if asyncio.iscoroutine(said) else said

        return say

    def pool(self, cards: Mapping[str, Card] | None = None, **fields: Any) -> Pool:
        return Pool(self.members, cards, **fields)

    @property
    def count(self) -> Counter[str]:
        return Counter(name for name, _ in self.asked)


def one(compound: Any, rows: Sequence[Any] = QUESTIONS[:1], flow: Any = ask, **options: Any) -> Any:
    (task,) = weaverant.run(flow, rows, models={"solver": compound}, journal=False, **options)
    assert task.state == "done", task
    return task.result


def stories(run: Path) -> list[Story]:
    reader = JournalReader(run)
    teller = storyteller(run, reader)
    return [teller.tell(reader.task_events(task.task)) for task in reader.tasks()]


def decisions(story: Story, name: str = "") -> list[Any]:
    """What the compounds decided, in order."""
    return [step.value for step in story.steps if step.kind == "effect" and step.name.startswith(name)]


# Equals


def test_of_equal_priors_the_cheapest_goes_first_and_whose_price_nobody_knows_last(tmp_path: Path):
    models = {
        "a": {"model": "http://127.0.0.1:9/v1#a"},
        "b": {"model": "http://127.0.0.1:9/v1#b", "price": [2, 9]},
        "c": {"model": "http://127.0.0.1:9/v1?price=1,4#c"},
        "d": {"model": "http://127.0.0.1:9/v1#d", "price": [1, 4]},
        "e": {"model": "http://127.0.0.1:9/v1#e", "price": [9, 9], "prior": 0.6},
    }
    (tmp_path / "pool.json").write_text(json.dumps({"models": models}))
    assert by_prior(Pool.open(tmp_path / "pool.json")) == ["e", "c", "d", "b", "a"]


@pytest.mark.parametrize("kind", ["self-moa", "moa", "smoa"])
def test_of_equals_the_cheapest_is_the_one_that_is_asked(kind: str):
    cards = {"a": Card("", price=(5, 5)), "b": Card("", price=(9, 9)), "c": Card("", price=(1, 1))}
    voices = Voices()
    compounds = {
        "self-moa": SelfMoa(voices.pool(cards), SelfMoaOptions(samples=2)),
        "moa": Moa(voices.pool(cards), MoaOptions(layers=1)),
        "smoa": Smoa(voices.pool(cards), SmoaOptions(roles=False, rounds=1, proposers="a,b", skip=False)),
    }
    one(compounds[kind])
    assert set(voices.count) == ({"c"} if kind != "smoa" else {"a", "b", "c"})


def test_prices_that_change_who_goes_first_make_another_compound(tmp_path: Path):
    """Of two that are equal on their cards, and whose prices stand in their addresses."""
    identities: set[str] = set()
    for price in (1, 2, 9):
        models = {"a": "http://127.0.0.1:9/v1?price=5,5#a", "b": f"http://127.0.0.1:9/v1?price={price},{price}#b"}
        (tmp_path / "pool.json").write_text(json.dumps({"models": models}))
        identities.add(open_engine(f"moa:{tmp_path / 'pool.json'}").identity)
    assert len(identities) == 2


# Mixture of agents


@pytest.mark.parametrize(("layers", "calls"), [(1, 1), (2, 4), (3, 7), (5, 13)])
def test_moa_makes_as_many_calls_as_the_paper_says(layers: int, calls: int):
    voices = Voices()
    one(Moa(voices.pool(), MoaOptions(layers=layers, aggregator="b", skip=False)))
    assert len(voices.asked) == calls == len(NAMES) * (layers - 1) + 1
    assert voices.count["b"] == layers


def test_each_layer_is_told_what_the_last_one_said_behind_the_agents_own_instructions():
    own = Agent("asker", system="Be brief.", prompt="{{ question }}", model="solver", temperature=0.2, max_tokens=9)

    @workflow
    async def flow(row: dict[str, Any]) -> str:
        return await own(question=row["question"])

    voices = Voices(lambda name, request: f"{name} in {len(voices.asked)}")
    said = one(Moa(voices.pool(aggregator="c"), MoaOptions(skip=False)), flow=flow)
    assert said == "c in 7"
    assert all(request.sampling == Sampling(0.2, max_tokens=9) for _, request in voices.asked)
    first, second, last = (voices.asked[n][1].messages for n in (0, 3, 6))
    assert first == (system("Be brief."), user("What is 0 + 1?"))
    for messages, told in ((second, "a in 1 b in 2 c in 3"), (last, "a in 4 b in 5 c in 6")):
        assert messages[1:] == first[1:] and messages[0].text.startswith("Be brief.\n\nSeveral models")
        assert re.findall(r"\w in \d", messages[0].text) == re.findall(r"\w in \d", told)
    assert second[0] != last[0]


def test_a_temperature_is_set_where_the_agent_sets_none():
    voices = Voices()
    one(Moa(voices.pool(), MoaOptions(layers=2, temperature=0.4, skip=False)))
    assert {request.sampling.temperature for _, request in voices.asked} == {0.4}


@pytest.mark.parametrize(
    ("said", "calls"), [("#### 7", 3), ("the number {n} comes to \\boxed{{7}}", 3), ("{n}", 4), ("  Yes. ", 3)]
)
def test_where_all_agree_nobody_is_asked_to_sum_up(said: str, calls: int):
    voices = Voices(lambda name, request: said.format(n=name))
    result = one(Moa(voices.pool(), MoaOptions(layers=2)))
    assert len(voices.asked) == calls
    if calls == 3:
        assert result["said"] == said.format(n="a")


def test_what_agrees():
    assert agreed(["so #### 7", "#### 7."]) and agreed(["Yes", " yes.\n"]) and not agreed(["#### 7", "#### 8"])
    assert not agreed(["7", "it is 7"])


def test_an_output_is_asked_of_the_aggregator_alone_and_is_never_skipped():
    typed = Agent("typed", prompt="{{ question }}", model="solver", output=list[int])

    @workflow
    async def flow(row: dict[str, Any]) -> Any:
        return await typed(question=row["question"])

    voices = Voices(lambda name, request: "[1, 2]" if request.output else "one and two")
    assert one(Moa(voices.pool(aggregator="b"), MoaOptions(layers=2)), flow=flow) == [1, 2]
    assert [name for name, request in voices.asked if request.output] == ["b"] and len(voices.asked) == 4


def test_several_replies_come_from_the_aggregator():
    many = Agent("many", prompt="{{ question }}", model="solver", n=2)

    @workflow
    async def flow(row: dict[str, Any]) -> Any:
        return [choice.text for choice in (await many.reply(question=row["question"])).choices]

    def say(name: str, request: Request) -> Any:
        more = (weaverant.message.Choice(assistant("two")),) if request.sampling.n == 2 else ()
        return Reply(assistant("one"), more=more)

    assert one(Moa(Voices(say).pool(), MoaOptions(layers=2)), flow=flow) == ["one", "two"]


def test_tools_are_refused_with_the_way_out():
    def weigh(what: str) -> int:
        """Weigh."""
        return 1

    tooled = Agent("tooled", prompt="{{ question }}", model="solver", tools=[weigh])
    pool = Voices().pool()
    for compound in (Moa(pool), Smoa(pool), SelfMoa(pool)):
        binding = weaverant.binding.Binding({"solver": compound})
        with pytest.raises(UserError, match=r"share this agent's tools. route:pool.json passes tools on"):
            binding.bound(tooled)


def test_conversations_and_images_pass_through_layers():
    talker = Agent("talker", prompt=None, model="solver")
    said = [user("Why?"), assistant("So."), Message("user", (TextPart("And this?"), ImagePart("https://x/y.png")))]

    @workflow
    async def flow(row: dict[str, Any]) -> str:
        return await talker(history=said)

    voices = Voices()
    one(Moa(voices.pool(), MoaOptions(layers=2, skip=False)), flow=flow)
    assert all(request.messages[-3:] == tuple(said) for _, request in voices.asked)


# Sparse mixture of agents


def leader(name: str, request: Request, *, keep: Any = (1, 3), end: bool = False) -> str:
    text = request.messages[-1].text
    if "Invent them" in text:
        return 'Here: ["a calm nurse", "a quick smith", "an old sailor"]'
    if "You lead a debate" in text:
        return f"I think {json.dumps({'why': 'so', 'keep': keep, 'end': end})}"
    return f"{name} on {len(request.messages[0].text)}"


@pytest.mark.parametrize("rounds", [1, 2, 3])
def test_smoa_makes_as_many_calls_as_the_paper_says(rounds: int):
    voices = Voices(leader)
    one(Smoa(voices.pool(), SmoaOptions(rounds=rounds, skip=False)))
    assert len(voices.asked) == 1 + rounds * (len(NAMES) + 1) + 1


def test_each_plays_a_role_and_is_told_what_was_kept():
    voices = Voices(leader)
    one(Smoa(voices.pool(), SmoaOptions(judge="c", aggregator="b", skip=False)))
    named = [(name, request.messages) for name, request in voices.asked]
    assert [name for name, _ in named] == ["c", "a", "b", "c", "c", "a", "b", "c", "c", "b"]
    roles = ("a calm nurse", "a quick smith", "an old sailor")
    for at, role in ((1, 0), (2, 1), (3, 2), (5, 0), (6, 1), (7, 2)):
        assert roles[role] in named[at][1][0].text and named[at][1][-1].text == "What is 0 + 1?"
    assert "What is 0 + 1?" in named[4][1][-1].text and "[3]\nc on" in named[4][1][-1].text
    kept = named[5][1][0].text
    assert "[1]\na on" in kept and "[2]\nc on" in kept and "b on" not in kept
    assert "b on" not in named[9][1][0].text


def test_the_judge_may_end_the_debate():
    voices = Voices(lambda name, request: leader(name, request, end=True))
    one(Smoa(voices.pool(), SmoaOptions(rounds=5, skip=False)))
    assert len(voices.asked) == 1 + 4 + 1


def test_roles_are_written_once_for_each_task():
    """A task is known by its instructions."""
    brief, long = (
        Agent("asker", system=text, prompt="{{ question }}", model="solver") for text in ("Be brief.", "Take time.")
    )

    @workflow
    async def flow(row: dict[str, Any]) -> str:
        return await (brief if row["n"] % 2 else long)(question=row["question"])

    voices = Voices(leader)
    rows = [{"n": n, **row} for n, row in enumerate(QUESTIONS[:6])]
    smoa = Smoa(voices.pool(), SmoaOptions(rounds=1, skip=False))
    weaverant.run(flow, rows, models={"solver": smoa}, journal=False, concurrency=1, in_flight=1).wait()
    asked = [request.messages[-1].text for _, request in voices.asked if "Invent them" in request.messages[-1].text]
    assert len(asked) == 2 and "Take time." in asked[0] and "Be brief." in asked[1]
    assert len(voices.asked) == 2 + 6 * 5


@pytest.mark.parametrize(
    ("text", "keep", "end", "drawn"),
    [
        ('{"keep": [1, 3], "end": false}', (0, 2), False, False),
        ('so ```json\n{"why": "x", "keep": [2], "end": true}\n```', (1,), True, False),
        ('{"keep": [2, 2, 1], "end": "true"}', (1, 0), False, False),
        ('{"keep": [1, 2, 3, 4]}', None, False, True),
        ('{"keep": [0, 9]}', None, False, True),
        ('{"keep": "1"}', None, False, True),
        ('{"keep": [true, 1.0]}', None, False, True),
        ('{"keep": [1], "end": true} no: {"keep": [4], "end": false}', (3,), False, False),
        ('{"keep": [1, ', None, False, True),
        ("I like 1 and 3", None, False, True),
        ("", None, False, True),
    ],
)
def test_what_judges_say_is_read_and_chance_decides_where_it_cannot_be(text: str, keep: Any, end: bool, drawn: bool):
    found = read_verdict(text, 4, 2, Random(7))
    assert (found.end, found.drawn) == (end, drawn)
    assert found.keep == keep if keep else len(set(found.keep)) == 2 and max(found.keep) < 4
    assert found == read_verdict(text, 4, 2, Random(7))


def test_chance_draws_among_all_answers():
    drawn = {read_verdict("no", 4, 2, Random(seed)).keep for seed in range(200)}
    assert len(drawn) == 6


def test_roles_are_read_from_lists_of_texts_and_of_objects():
    assert read_roles('["x"] or ["a nurse", "a smith"]') == ["a nurse", "a smith"]
    assert read_roles('[{"job": "nurse", "temper": "calm"}, 7, ""]') == ["nurse, calm"]
    assert read_roles("none") == read_roles('["a') == []


def test_a_small_judge_s_scores_choose():
    assert by_scores("peers: 1 9 3 9", 4, 2, Random(1)).keep == (1, 3)
    assert by_scores("peers: 1 9", 4, 2, Random(1)).drawn


# One model, several samples


def test_self_moa_asks_one_model_with_different_seeds_and_sums_up():
    voices = Voices(lambda name, request: str(request.seed))
    one(SelfMoa(voices.pool(), SelfMoaOptions(model="b", samples=4)))
    assert voices.count == {"b": 5} and len({request.seed for _, request in voices.asked}) == 5
    assert voices.asked[-1][1].messages[0].text.count("[4]") == 1
    voices.asked.clear()
    one(SelfMoa(voices.pool({"c": Card("", prior=0.9)}), SelfMoaOptions(samples=2, aggregator="a")))
    assert voices.count == {"c": 2, "a": 1}


# One model chosen


class Known:
    """A `Scorer` that knows what it is told."""

    identity = "known"

    def __init__(self, **p: float) -> None:
        self.p = p
        self.models = tuple(sorted(p))

    def predict(self, queries: Sequence[str]) -> Scores:
        p = np.array([[self.p[name] for name in self.models] for _ in queries])
        return Scores(self.models, p, np.zeros_like(p), np.ones_like(p))


def test_the_best_by_utility_is_asked_the_whole_request():
    voices = Voices()
    cards = {"a": Card("", prior=0.5), "b": Card("", prior=0.95, price=(1, 1)), "c": Card("", prior=0.8)}
    assert one(Route(voices.pool(cards)))["said"] == "b says so"
    scorer = Known(a=0.95, b=0.1)
    voices.asked.clear()
    assert one(Route(voices.pool(cards), scorer=scorer))["said"] == "a says so"
    like = {**cards, "c": Card("", like="a")}
    tie = Route(voices.pool(like), RouteOptions(), scorer)
    assert one(tie)["said"] == "a says so" and voices.count == {"a": 2}


def test_tools_outputs_conversations_and_images_reach_the_one_that_is_chosen():
    def weigh(what: str) -> int:
        """Weigh something."""
        return len(what)

    def say(name: str, request: Request) -> Message:
        last = request.messages[-1]
        if request.tools:
            tool = ToolCall("c", "weigh", '{"what": "hay"}')
            return Message("assistant", "", (tool,)) if last.role == "user" else assistant(f"it weighs {last.text}")
        return assistant("4" if "cannot be used" in last.text else "four")

    tooled = Agent("tooled", prompt="{{ question }}", model="solver", tools=[weigh])
    typed = Agent("typed", prompt="{{ question }}", model="solver", output=int)
    talker = Agent("talker", model="solver", n=1)
    said = [user("Why?"), assistant("So."), Message("user", (TextPart("And this?"), ImagePart("https://x/y.png")))]

    @workflow
    async def flow(row: dict[str, Any]) -> Any:
        question = row["question"]
        return [await tooled(question=question), await typed(question=question), await talker(history=said)]

    voices = Voices(say)
    cards = {
        "a": Card("", prior=0.9, tools=False, modalities=frozenset(["text", "image"])),
        "b": Card("", prior=0.8, modalities=frozenset(["text"])),
        "c": Card("", prior=0.1),
    }
    assert one(Route(voices.pool(cards)), flow=flow) == ["it weighs 3", 4, "four"]
    assert [name for name, _ in voices.asked] == ["b", "b", "a", "a", "a"]
    assert voices.asked[-1][1].messages == tuple(said)


def test_nobody_who_can_is_told_before_the_first_call():
    def weigh(what: str) -> int:
        """Weigh."""
        return 1

    route = Route(Pool({"tiny": open_engine("embedded:tiny"), "b": Scripted("x")}, {"b": Card("", tools=False)}))
    tooled = Agent("tooled", prompt="{{ question }}", model="solver", tools=[weigh])
    with pytest.raises(UserError, match=r"b: it calls no tools; tiny: .*no tools"):
        weaverant.binding.Binding({"solver": route}).bound(tooled)


def test_a_router_s_folder_decides_by_the_query(tmp_path: Path):
    """A real router, trained on graded answers: each question goes to who is good at its kind."""
    table = [
        {
            "query": f"{word} {n} and {n + 1}",
            "scores": {"adder": float(word == "add"), "speller": float(word == "spell")},
        }
        for n in range(60)
        for word in ("add", "spell")
    ]
    (tmp_path / "table.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table))
    train(read_table(tmp_path / "table.jsonl")).router.save(tmp_path / "learned")
    models = dict.fromkeys(("adder", "speller", "other"), "simulated:latency=0")
    models["other"] = {"model": models["other"], "prior": 0.4}  # pyright: ignore[reportArgumentType]
    (tmp_path / "pool.json").write_text(json.dumps({"models": models, "router": "learned"}))
    rows = [{"question": f"{word} {n} and {n + 1}"} for n in range(70, 76) for word in ("add", "spell")]
    run = weaverant.run(ask, rows, models={"solver": f"route:{tmp_path}/pool.json"}, directory=tmp_path / "run").wait()
    assert run.exit_code == 0
    for story in stories(tmp_path / "run"):
        asked = [step.name for step in story.steps if step.kind == "model" and not step.inside]
        assert asked == ["solver/adder" if "add" in story.row["question"] else "solver/speller"]
        ranked = {one["name"]: one["p"] for one in decisions(story, "choose")[0]["ranked"]}
        assert ranked["other"] == 0.4 and sorted(ranked.values())[0] < 0.3 < 0.7 < sorted(ranked.values())[2]
    text = (tmp_path / "pool.json").read_text().replace('"prior": 0.4', '"like": "nobody"')
    (tmp_path / "pool.json").write_text(text)
    with pytest.raises(UserError, match="'other' of the pool is said to be like 'nobody'"):
        open_engine(f"route:{tmp_path}/pool.json")


def test_a_router_that_cannot_score_leaves_it_to_the_cards(tmp_path: Path):
    class Deaf(Known):
        def predict(self, queries: Sequence[str]) -> Scores:
            raise StepFailed("server", "no vectors")

    voices = Voices()
    route = Route(voices.pool({"b": Card("", prior=0.9)}), scorer=Deaf(a=1.0))
    weaverant.run(ask, QUESTIONS[:1], models={"solver": route}, directory=tmp_path / "run").wait()
    (story,) = stories(tmp_path / "run")
    assert voices.count == {"b": 1} and decisions(story)[0]["note"] == "the router could not score: server: no vectors"


def test_a_quality_that_is_enough_is_had_at_least_cost():
    found = [Candidate("best", 0.95, 1.0, 1.0), Candidate("cheap", 0.8, 0.1, 1.0), Candidate("free", 0.5, 0.0, 1.0)]
    for quality, order in ((0.0, "best cheap free"), (0.8, "cheap best free"), (0.4, "free cheap best")):
        assert [one.name for one in rank(found, Weights(quality=quality))] == order.split()
    assert [one.name for one in rank(found, Weights(quality=0.99))] == ["best", "cheap", "free"]


def test_ranks_do_not_depend_on_the_order_and_ties_go_by_cost_latency_and_name():
    found = [
        Candidate("d", 0.5, 1.0, 2.0), Candidate("c", 0.5, 1.0, 1.0), Candidate("b", 0.5, 1.0, 1.0),
        Candidate("a", 0.5, 2.0, 1.0), Candidate("e", 0.5, None, None), Candidate("x", 0.9, 0.0, 0.0, "ill"),
    ]  # fmt: skip
    weights = Weights(cost=0.0, latency=0.0)
    wanted = ["b", "c", "d", "a", "e"]
    for seed in range(50):
        Random(seed).shuffle(found)
        assert [one.name for one in rank(found, weights)] == wanted
    assert refused(found) == {"x": "ill"}


def test_utilities_are_as_written():
    found = [Candidate("a", 0.9, 0.02, 4.0), Candidate("b", 0.8, 0.01, None), Candidate("c", 0.7, None, 1.0)]
    by_name = {one.name: one for one in rank(found, Weights(cost=0.5, latency=0.2, reference=0.04, slo=8.0))}
    assert by_name["a"].utility == pytest.approx(0.9 - 0.5 * 0.5 - 0.2 * 0.5)
    assert by_name["b"].utility == pytest.approx(0.8 - 0.5 * 0.25 - 0.2 * 0.5)
    assert by_name["c"].utility == pytest.approx(0.7 - 0.5 * 0.5 - 0.2 * 0.125)
    assert "cost unknown" in by_name["c"].reason and "p95 4 s" in by_name["a"].reason


def test_ties_are_decided_alike_in_every_run(tmp_path: Path):
    said: list[Any] = []
    for n, names in enumerate((("a", "b", "c"), ("c", "b", "a"))):
        voices = Voices(names=names)
        models = {"solver": Route(voices.pool())}
        weaverant.run(ask, QUESTIONS, models=models, directory=tmp_path / str(n)).wait()
        said.append([story.result for story in stories(tmp_path / str(n))])
        assert voices.count == {"a": 12}
    assert said[0] == said[1]
    told = decisions(stories(tmp_path / "0")[0], "choose")
    assert [one["name"] for one in told[0]["ranked"]] == ["a", "b", "c"] and "p 0.500" in told[0]["ranked"][0]["reason"]


# Together


def test_compounds_compose_and_a_run_is_what_its_steps_say(tmp_path: Path):
    """route over moa over self-moa."""
    voices = Voices(lambda name, request: f"{name} {request.seed}")
    inner = SelfMoa(voices.pool(), SelfMoaOptions(samples=2))
    moa = Moa(Pool({"many": inner, "b": voices.members["b"]}, {"many": Card("", prior=0.9)}), MoaOptions(layers=2))
    route = Route(Pool({"moa": moa, "c": voices.members["c"]}, {"moa": Card("", prior=0.9)}))
    run = weaverant.run(ask, QUESTIONS[:2], models={"solver": route}, directory=tmp_path / "run").wait()
    assert run.exit_code == 0
    assert voices.count == {"a": 2 * (2 + 1) * 2, "b": 2}
    for story in stories(tmp_path / "run"):
        outer = next(step for step in story.steps if step.name == "asker")
        assert outer.path == "" and len(story.made_of(outer)) == len(story.steps) - 1
    names = {agent["name"]: agent["kind"] for agent in document(fold(tmp_path / "run"))["agents"]}
    assert names["solver/moa/many"] == names["solver/moa"] == names["asker"] == "compound"
    assert names["solver/moa/many/a"] == names["solver/moa/b"] == "model"


@pytest.mark.parametrize("kind", ["moa", "smoa", "self-moa", "route"])
def test_the_embedded_model_plays_in_each_of_them(tmp_path: Path, kind: str):
    tiny = "embedded:tiny"
    (tmp_path / "pool.json").write_text(json.dumps({"models": {"a": tiny, "b": tiny}, "aggregator": "b"}))
    short = Agent("asker", prompt="{{ question }}", model="solver", max_tokens=40, temperature=1.0)

    @workflow
    async def flow(row: dict[str, Any]) -> str:
        return await short(question=row["question"])

    extra = "" if kind == "route" else "?skip=false"
    calls = {"moa": 2 * 2 + 1, "smoa": 2 * (2 + 1) + 1, "self-moa": 6 + 1, "route": 1}[kind]
    models = {"solver": f"{kind}:{tmp_path / 'pool.json'}{extra}"}
    told: list[Any] = []
    for number in (1, 2):
        directory = tmp_path / str(number)
        run = weaverant.run(flow, "arithmetic:weave", models=models, limit=3, directory=directory).wait()
        assert run.exit_code == 0
        told.append([story.result for story in stories(directory)])
        steps = [
            step for story in stories(directory) for step in story.steps if step.kind == "model" and not step.inside
        ]
        failed = [step for step in steps if step.outcome == "failure"]
        cut = [step for step in steps if step.reply is not None and step.reply.finish == "length"]
        assert all(step.failure.kind == "context" for step in failed)
        assert 3 * calls <= len(steps) <= 3 * calls + len(failed) + len(cut), "others are asked for no answer only"
    assert told[0] == told[1] and all(told[0])


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("moa:{0}?layer=2", "unknown field `layer`.*Expected some of budget, deadline, quorum, layers"),
        ("moa:{0}?layers=0", ">= 1"),
        ("moa:{0}?aggregator=z", "moa: aggregator='z' is none of the pool's models: 'a', 'b'"),
        ("moa:{0}?proposers=a,a", "expected different names"),
        ("moa:{0}?proposers=a,z", "'z' is none"),
        ("smoa:{0}?judge=z", "smoa: judge='z'"),
        ("smoa:{0}?k=two", "Expected"),
        ("self-moa:{0}?model=z", "self-moa: model='z'"),
        ("route:{0}?quality=2", "<= 1"),
        ("route:{0}?budget=-1", ">= 0"),
        ("route:{0}?cost=inf", "'cost' has to be a finite number"),
        ("route:{0}?latency=nan", "latency"),
        ("moa:{0}?layers=2&layers=3", "'layers' is given twice"),
        ("moa:{0}?temperature=-3", ">= 0"),
        ("smoa:{0}?temperature=inf", "'temperature' has to be a finite number"),
        ("self-moa:{0}?temperature=-1", ">= 0"),
        ("moa:{0}?quorum=9", "moa: quorum=9 is more than the 2 that are ever asked together"),
        ("self-moa:{0}?quorum=7", "quorum=7 is more than the 6"),
        ("routemoa:{0}?keep=raw_json", "'keep' takes faithful=small"),
        ("route:nowhere.json", "cannot be read"),
        ("moa:{1}", "names itself as one of its models"),
        ("cache:kept|moa:{0}", "a cache keeps what an engine says"),
    ],
)
def test_what_cannot_be_opened_says_why(tmp_path: Path, spec: str, said: str):
    (tmp_path / "pool.json").write_text('{"models": {"a": "embedded:tiny", "b": "embedded:tiny"}}')
    (tmp_path / "itself.json").write_text('{"models": {"a": "route:itself.json"}}')
    with pytest.raises(UserError, match=f"(?s){said}"):
        open_engine(spec.format(tmp_path / "pool.json", tmp_path / "itself.json"))


def test_identities_name_options_cards_and_members_and_no_path(tmp_path: Path):
    for folder, names in (("here", "ab"), ("there", "ba")):
        (tmp_path / folder).mkdir()
        models = dict.fromkeys(names, "embedded:tiny")
        (tmp_path / folder / "pool.json").write_text(json.dumps({"models": models}))
    specs = ["moa:{}", "moa:{}?layers=2", "moa:{}?skip=false", "smoa:{}", "self-moa:{}", "route:{}", "route:{}?cost=1"]
    found = [
        [open_engine(spec.format(tmp_path / folder / "pool.json")).identity for spec in specs]
        for folder in ("here", "there")
    ]
    assert found[0] == found[1] and len(set(found[0])) == len(specs)
    plain, told = Pool({"a": Scripted("x")}), Pool({"a": Scripted("x")}, {"a": Card("", prior=0.6)})
    assert Route(plain).identity != Route(told).identity != Route(told, scorer=Known(a=1.0)).identity


def test_prompts_keep_what_is_said_in_its_place():
    chat = Chat()
    messages = (user("Why?"),)
    assert chat.improve(messages, []) == messages
    told = chat.improve(messages, ["x {{ y }}", "z"], role="a nurse")
    assert "a nurse" in told[0].text and "[1]\nx {{ y }}" in told[0].text and told[1:] == messages


def test_the_page_names_every_option_with_its_default():
    page = (Path(__file__).parent.parent / "docs" / "routing.md").read_text()
    (section,) = [text for text in page.split("\n## ") if text.startswith("moa, smoa, self-moa, route")]
    told: dict[str, tuple[set[str], str]] = {}
    for names, kinds, defaults in re.findall(r"^\| (`[^|]+`) \| ([^|]+) \| ([^|]+) \|", section, re.MULTILINE):
        for name, default in zip(re.findall(r"`(\w+)`", names), defaults.split(", "), strict=False):
            told[name] = (set(kinds.split(", ")), default)
    options = {"moa": MoaOptions, "smoa": SmoaOptions, "self-moa": SelfMoaOptions, "route": RouteOptions}
    wanted: dict[str, set[str]] = {}
    for kind, struct in options.items():
        for field in msgspec.structs.fields(struct):
            wanted.setdefault(field.name, set()).add(kind)
            if field.default not in ("", True, "auto"):
                assert told[field.name][1] == f"{field.default:g}", field.name
    assert {name: set(options) if kinds == {"all"} else kinds for name, (kinds, _) in told.items()} == wanted
    (section,) = [text for text in page.split("\n## ") if text.startswith("A pool")]
    pool = re.search(r"```json\n(.*?)```", section, re.DOTALL)
    assert pool and msgspec.json.decode(pool[1], type=PoolFile).models["small"]
    fields = set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`[^|]+`) \|", section, re.MULTILINE))))
    assert fields == {*Card.__struct_fields__, *PoolFile.__struct_fields__} - {"models"}


def test_the_pages_name_every_compound_of_a_pool_and_their_examples_fit_readmes_agent():
    docs = Path(__file__).parent.parent / "docs"
    kinds = [kind for kind, what in KINDS.items() if what.opener.startswith("weaverant.routing")]
    assert len(kinds) == 5
    operations, models = (docs / "operations.md").read_text(), (docs / "models.md").read_text()
    for kind in kinds:
        assert f"`{kind}:" in operations and f"`{kind}:" in models, kind
    for line in (docs / "routing.md").read_text().splitlines():
        if line.startswith("weaverant run "):
            assert re.search(rf"--model '?({'|'.join(kinds)}):", line), "README's agent names no model"
