"""RouteMoA as a model: who is asked, who judges whom, when it stops, and what its journal tells."""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import weaverant
from peers_world import CountingModel, begin, call, exported, nothing_left, steps_done, wait_until
from routing_simulated import SimulatedRouter, ask, pool_of, saying
from weaverant import UserError
from weaverant.cli.show import story_lines, storyteller
from weaverant.engines import open_engine
from weaverant.engines.scripted import Scripted
from weaverant.errors import StepFailed
from weaverant.events import StepEnded
from weaverant.journal import JournalReader
from weaverant.message import Request
from weaverant.routing.evidence import Trust
from weaverant.routing.folding import lessons
from weaverant.routing.routemoa import RouteMoa
from weaverant.routing.turns import RouteMoaOptions, Turn, traces
from weaverant.testing.server import MockServer

ROWS = [{"question": f"What is {n} + 1?"} for n in range(12)]


def routed(tmp_path: Path, moa: RouteMoa, rows: Any = ROWS[:1], **changed: Any) -> tuple[list[Any], list[list[Turn]]]:
    """The results, and each row's decisions."""
    run = weaverant.run(ask, rows, models={"solver": moa}, directory=tmp_path / "run", **changed)
    results = [task.result if task.state == "done" else task.reason for task in run]
    return results, [turns for _, turns in traces(tmp_path / "run")]


def moa(p: dict[str, Any], members: dict[str, Any], ece: float | None = 0.02, **options: Any) -> RouteMoa:
    options = {"judges": "self,peer,agreement"} | options  # always; by itself it asks for scores as far as that pays
    return RouteMoa(pool_of(**members), RouteMoaOptions(**options), SimulatedRouter(p, ece))


def calls(run: Path) -> Counter[str]:
    reader = JournalReader(run)
    teller = storyteller(run, reader)
    stories = [teller.tell(reader.task_events(task.task)) for task in reader.tasks()]
    return Counter(step.name for story in stories for step in story.model_steps if not step.inside)


P = {"a": 0.8, "b": 0.7, "c": 0.6, "d": 0.3}


def test_one_layer_that_agrees_is_all(tmp_path: Path):
    members = {name: saying("#### 7" if name != "c" else "it is 7\n#### 7.0") for name in P}
    results, (turns,) = routed(tmp_path, moa(P, members, cost=0.0, latency=0.0))
    assert results == ["#### 7"]
    assert calls(tmp_path / "run") == {"solver/a": 1, "solver/b": 1, "solver/c": 1}
    first, last = turns
    assert first.ask == ("a", "b", "c") and first.layer == 0 and first.before == P and not first.stop
    assert last.stop == "agreement" and last.stands == "a" and last.after == {"a": 0.8, "b": 0.7, "c": 0.6}
    assert [each.name for each in last.ranked] == ["a", "b", "c", "d"] and last.aggregators == ()
    assert {each.judge: each.claim for each in last.verdicts["a"]} == {"agreement": 1.0, "self/a": 0.9}
    assert set(last.weights.values()) == {0.0}


@pytest.mark.parametrize(("layers", "k"), [(1, 1), (1, 3), (2, 2), (3, 3), (4, 1)])
def test_it_never_asks_more_than_k_times_layers_and_one(tmp_path: Path, layers: int, k: int):
    """Of those that never agree and are never sure; the last call is an aggregator's."""
    members = {name: saying(f"#### {n}", peers=0.5) for n, name in enumerate(P)}
    routed(tmp_path, moa(P, members, None, layers=layers, k=k, cost=0.0, latency=0.0))
    found = calls(tmp_path / "run")
    assert found.total() <= k * layers + 1
    assert found.total() == (layers if k == 1 else k * layers + 1) or k == 1


def test_the_last_aggregates_what_does_not_agree(tmp_path: Path):
    seen: list[Request] = []
    members = {"a": saying("#### 1", seen=seen), "b": saying("#### 2"), "c": saying("#### 3")}
    results, (turns,) = routed(tmp_path, moa(P, members, None, layers=1, aggregator="a"))
    assert results == ["#### 1"] and turns[-1].stop == "layers" and turns[-1].aggregators == ("a", "b", "c")
    asked = seen[-1].messages[0].text
    assert all(f"#### {n}\n" in asked for n in (1, 2, 3)) and "score" not in asked
    assert calls(tmp_path / "run")["solver/a"] == 2


def test_the_aggregator_is_chosen_and_not_wired(tmp_path: Path):
    """The best at it as far as is known; where it fails, the next one."""
    p = {"a": 0.8, "b": 0.7}

    def say(request: Request) -> str:
        if "score" not in request.messages[0].text:
            raise StepFailed("server", "down")
        return '{"answer": "#### 1"}'

    results, (turns,) = routed(
        tmp_path, moa(p, {"a": Scripted(say), "b": saying("#### 2")}, None, layers=1, latency=0.0)
    )
    assert turns[-1].aggregators == ("a", "b") and results == ["#### 2"]


def test_the_judge_is_the_best_of_the_layer_before_and_never_grades_itself(tmp_path: Path):
    """It sees the others' answers, without names, in an order of chance; others see them all."""
    seen: dict[str, list[Request]] = {name: [] for name in "abc"}
    members = {name: saying(f"#### {n}", peers=0.25, seen=seen[name]) for n, name in enumerate("abc", 1)}
    p = {"a": 0.8, "b": 0.7, "c": 0.6}
    _, rows = routed(tmp_path, moa(p, members, None, layers=2, cost=0.0, latency=0.0), ROWS)
    orders = set[str]()
    for turns in rows:
        assert turns[1].judges == ("a",)
        assert {name: [v.judge for v in said] for name, said in turns[2].verdicts.items()} == {
            "a": ["agreement later", "self/a"],
            "b": ["agreement later", "peer/a", "self/b"],
            "c": ["agreement later", "peer/a", "self/c"],
        }
    judging = [request for request in seen["a"] if "peer_scores" in request.messages[0].text]
    for request in judging:
        text = request.messages[0].text
        assert "#### 1" not in text and "a list of 2 prob" in text
        orders.add("".join(re.findall("#### (.)", text)))
    assert len(judging) == 12 and orders == {"23", "32"}
    assert not any("peer_scores" in request.messages[0].text for name in "bc" for request in seen[name])


def test_a_verdict_goes_with_the_answer_that_it_was_on(tmp_path: Path):
    """`b` changes its answer while it is judged, and `c` does not."""
    asked = Counter[str]()

    def changing(request: Request) -> str:
        asked["b"] += 1
        return json.dumps({"answer": f"#### {20 + asked['b']}"})

    members = {"a": saying("#### 1", None, 0.25), "b": Scripted(changing), "c": saying("#### 3", None, 0.5)}
    for p in ({"a": 0.8, "b": 0.7, "c": 0.6}, {"a": 0.77, "b": 0.6, "c": 0.75}):
        _, (turns,) = routed(tmp_path / str(p["b"]), moa(p, members, None, layers=2, cost=0.0, latency=0.0))
        said = {
            name: {v.judge: v.claim for v in found if "peer" in v.judge} for name, found in turns[2].verdicts.items()
        }
        assert said["b"] == {} and said["c"] == {"peer/a": 0.25}


def test_two_judge_where_the_best_two_are_close(tmp_path: Path):
    members = {name: saying(f"#### {n}", peers=0.25) for n, name in enumerate("abc", 1)}
    p = {"a": 0.72, "b": 0.7, "c": 0.6}
    _, (turns,) = routed(tmp_path, moa(p, members, None, layers=2, cost=0.0, latency=0.0))
    assert turns[1].judges == ("a", "b")
    said = {name: [v.judge for v in verdicts if "peer" in v.judge] for name, verdicts in turns[2].verdicts.items()}
    assert said == {"a": ["peer/b"], "b": ["peer/a"], "c": ["peer/a", "peer/b"]}


def test_a_judge_that_is_believed_changes_who_stands(tmp_path: Path):
    """`b` is known to say .9 of itself when it is right; and to be right then."""
    model = moa({"a": 0.6, "b": 0.5}, {"a": saying("#### 1", 0.9), "b": saying("#### 2", 0.9)}, layers=1)
    trust = Trust()
    for n in range(200):
        trust.learn(0.95 if n % 2 else 0.35, float(n % 2), 0.5)
    model.learned.evidence.trust["self/b"] = trust
    results, (turns,) = routed(tmp_path, model)
    assert results == ["#### 2"] and turns[-1].stands == "b" and turns[-1].weights["self/b"] > 0.5
    assert turns[-1].before["b"] == 0.5 and turns[-1].after["b"] > 0.9 and turns[-1].after["a"] == 0.6


def test_a_missing_score_and_a_broken_envelope_move_nothing(tmp_path: Path):
    said = iter(['{"answer": "#### 1", "self_score": ', "{'answer': '#### 1'}"])
    members = {"a": Scripted(lambda request: next(said)), "b": saying("#### 1", None)}
    results, (turns,) = routed(tmp_path, moa({"a": 0.6, "b": 0.5}, members, layers=1, judges="self,peer"))
    assert results == ["#### 1"] and turns[-1].verdicts == {"a": [], "b": []}
    assert turns[-1].after == {"a": 0.6, "b": 0.5}


def test_it_stops_where_another_layer_is_not_worth_it(tmp_path: Path):
    members = {"a": saying("#### 1"), "b": saying("#### 2")}
    p = {"a": 0.97, "b": 0.3}
    _, (turns,) = routed(tmp_path / "sure", moa(p, members, k=1))
    assert turns[-1].stop == "value" and turns[-1].stands == "a"
    _, (turns,) = routed(tmp_path / "unsure", moa(p, members, None, k=1))
    assert turns[-1].stop == "layers"
    _, (turns,) = routed(tmp_path / "enough", moa({"a": 0.6, "b": 0.59}, members, k=1, enough=0.6, cost=0.0))
    assert turns[-1].stop == "good enough"


def test_without_judges_replies_are_asked_for_and_read_as_they_are(tmp_path: Path):
    seen: list[Request] = []
    model = moa({"a": 0.9}, {"a": saying('{"answer": 1}', seen=seen)}, k=1, layers=1)
    results, _ = routed(tmp_path, model)
    assert "self_score" not in seen[0].messages[0].text
    assert results == ["1"]


@pytest.mark.parametrize(("seconds", "layers", "stop"), [(0.4, 2, "deadline"), (60.0, 4, "layers")])
def test_no_layer_begins_after_its_time(tmp_path: Path, seconds: float, layers: int, stop: str):
    """Of members that take a quarter of a second and never agree."""

    def member(answer: str) -> Scripted:
        async def say(_: Request) -> str:
            await asyncio.sleep(0.25)
            return json.dumps({"answer": answer, "self_score": 0.5})

        return Scripted(say, identity=answer)

    members = {"a": member("#### 1"), "b": member("#### 2")}
    model = moa({"a": 0.6, "b": 0.6}, members, None, layers=4, within=seconds)
    _, (turns,) = routed(tmp_path, model)
    assert turns[-1].stop == stop and turns[-1].layer == layers
    assert all(0.25 * turn.layer <= turn.seconds < 0.25 * turn.layer + 5 for turn in turns)


def test_who_fails_is_replaced_within_the_bound(tmp_path: Path):
    def down(request: Request) -> str:
        raise StepFailed("server", "down")

    members = {"a": Scripted(down, identity="1"), "b": Scripted(down, identity="2"), "c": saying("#### 3")}
    results, (turns,) = routed(tmp_path / "three", moa(P, members | {"d": saying("#### 4")}, k=2, layers=2))
    assert turns[0].ask == ("a", "b") and "no answer" in turns[1].refused["a"] and turns[1].ask[0] == "c"
    assert results == ["#### 3"]
    results, _ = routed(tmp_path / "last", moa(P, members | {"d": Scripted(down)}, k=2, layers=1))
    assert results == ["#### 3"]
    results, _ = routed(tmp_path / "none", moa({"a": 0.5}, {"a": Scripted(down)}, k=1, layers=1))
    assert results == ["pool"]


def test_who_gives_scores_and_no_answer_is_asked_plainly(tmp_path: Path):
    def say(request: Request) -> str:
        return '{"self_score": 0.9}' if "self_score" in request.messages[0].text else "#### 7"

    results, (turns,) = routed(tmp_path, moa({"a": 0.8, "b": 0.7}, {"a": Scripted(say), "b": Scripted(say)}, layers=1))
    assert results == ["#### 7"] and turns[-1].verdicts == {"a": [], "b": []}
    assert calls(tmp_path / "run").total() == 3


def test_a_run_that_is_resumed_decides_the_same_and_pays_nothing(tmp_path: Path):
    asked = Counter[str]()

    def counting(name: str) -> Scripted:
        def say(request: Request) -> str:
            asked[name] += 1
            return json.dumps({"answer": f"#### {name}", "self_score": 0.5, "peer_scores": [0.5, 0.5]})

        return Scripted(say, identity=name)

    def made() -> RouteMoa:
        return moa({"1": 0.8, "2": 0.7, "3": 0.6}, {name: counting(name) for name in "123"}, None, layers=2)

    first, turns = routed(tmp_path, made(), ROWS[:3])
    before = asked.total()
    again = weaverant.resume(tmp_path / "run", workflow=ask, rows=ROWS[:3], models={"solver": made()}).wait()
    assert again.exit_code == 0 and asked.total() == before and len(first) == len(turns) == 3


def test_the_command_line_shows_each_decision(tmp_path: Path):
    routed(tmp_path, moa({"a": 0.8, "b": 0.7}, {"a": saying("#### 1"), "b": saying("#### 1")}))
    reader = JournalReader(tmp_path / "run")
    (task,) = reader.tasks()
    lines = list(story_lines(storyteller(tmp_path / "run", reader).tell(reader.task_events(task.task)), 999, 9999))
    text = "\n".join(lines)
    assert "turn(" in text and "agreement" in text and "utility" in text


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("judges=me", "judges= takes auto, or some of self, peer, agreement.*found 'me'"),
        ("k=0", "k.*Expected some of"),
        ("aggregator=z", "aggregator='z' is none of the pool's models: 'a'"),
        ("faithful=tiny", "Expected some of"),
        ("votes=3", "votes"),
    ],
)
def test_options_that_are_none_are_refused(tmp_path: Path, options: str, said: str):
    (tmp_path / "pool.json").write_text('{"models": {"a": "embedded:tiny"}}')
    with pytest.raises(UserError, match=f"(?s){said}"):
        open_engine(f"routemoa:{tmp_path}/pool.json?{options}")


def test_what_it_cannot_do_is_refused_before_the_first_call():
    model = moa({"a": 0.5}, {"a": saying("1")})
    demanding = weaverant.Agent("demanding", prompt="x", model="solver", n=2)
    with pytest.raises(UserError, match=r"one plain text.*n"):
        weaverant.binding.Binding({"solver": model}).bound(demanding)


def test_the_page_has_all_options():
    page = (Path(__file__).parent.parent / "docs" / "routing.md").read_text()
    (section,) = [text for text in page.split("\n## ") if text.startswith("routemoa\n")]
    named = re.findall(r"`(\w+)`", " ".join(re.findall(r"^\| (`.*?) \|", section, re.MULTILINE)))
    assert set(named) == set(RouteMoaOptions.__struct_fields__)


# Real servers and processes


WORKFLOW = """
import weaverant
from weaverant import Agent, workflow

asker = Agent("asker", prompt="{{ question }}", model="solver")


@workflow
async def ask(row):
    reply = await asker.reply(question=row["question"])
    return {"said": reply.text, "told": await weaverant.feedback(reply, 1.0)}
"""


def test_kill_9_amid_layers_pays_nothing_twice_and_decides_the_same(tmp_path: Path, model: CountingModel):
    (tmp_path / "ask.py").write_text(WORKFLOW)
    cards = {name: {"model": model.url, "prior": prior} for name, prior in (("a", 0.7), ("b", 0.6), ("c", 0.5))}
    (tmp_path / "pool.json").write_text(json.dumps({"models": cards}))
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    words = ("run", "ask.py", "--input", "rows.jsonl", "--model", "solver=routemoa:pool.json?latency=0", "--run")
    with nothing_left(tmp_path):
        driver, out = begin(tmp_path, *words, "out", "--concurrency", "4"), tmp_path / "out"
        wait_until(lambda: (out / "journal").exists() and steps_done(out) > 20, what="some calls")
        driver.kill()
        driver.wait()
        events = [event for event in JournalReader(out).events() if isinstance(event, StepEnded)]
        kept = [event for event in events if event.kind == "model" and not event.inside]
        asked = len(model.calls)
        assert 5 < len(kept) < 36
        again = call(tmp_path, "resume", "out")
        assert again.returncode == 0, again.stderr
        assert len(model.calls) - asked == 36 - len(kept)
        assert call(tmp_path, *words, "whole").returncode == 0
        assert call(tmp_path, *words, "peers", "--peers", "2").returncode == 0
        assert exported(tmp_path) == exported(tmp_path, "whole") == exported(tmp_path, "peers")
    decided = [[turn.ask for _, turns in traces(tmp_path / run) for turn in turns] for run in ("out", "whole")]
    assert sorted(decided[0]) == sorted(decided[1]) and len(decided[0]) == 24
    assert len(list(lessons(tmp_path / "out"))) == len(list(lessons(tmp_path / "peers"))) == 12


def test_a_budget_for_a_question_is_never_exceeded(tmp_path: Path, server: MockServer):
    """Two calls of a layer fit, and no aggregator; what the larger prompts of judges may cost is counted, too."""
    url = f"{server.url}?price=100,1000&retries=0#mock"
    (tmp_path / "pool.json").write_text(json.dumps({"models": {name: url + name for name in "abc"}}))
    asked = weaverant.Agent("asker", prompt="{{ question }}", model="solver", max_tokens=20)

    @weaverant.workflow
    async def asks(row: dict[str, Any]) -> str:
        return await asked(question=row["question"])

    for budget in (0.3, 0.6):
        spec = f"routemoa:{tmp_path}/pool.json?budget={budget}&cost=0&judges=self,peer,agreement"
        run = weaverant.run(asks, ROWS[:1], models={"solver": spec}, directory=tmp_path / str(budget)).wait()
        ((_, turns),) = traces(tmp_path / str(budget))
        assert 0 < run.spent <= budget
        assert any("left of the budget" in why for turn in turns for why in turn.refused.values())
