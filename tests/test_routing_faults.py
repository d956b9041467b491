"""Members that hang, err, babble or cost too much, on real servers; a real process that is killed in the middle."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

import weaverant
from peers_world import CountingModel, begin, call, exported, nothing_left, steps_done, wait_until
from weaverant import Agent, Story, deadline, workflow
from weaverant.cli.show import storyteller
from weaverant.engines import open_engine
from weaverant.events import StepEnded, TaskEnded
from weaverant.journal import JournalReader
from weaverant.message import Request, Sampling, Usage, user
from weaverant.pilot import estimate
from weaverant.routing.observed import FEWEST, IN_A_ROW
from weaverant.routing.pool import Card, Pool
from weaverant.summary import document, fold
from weaverant.testing.server import MockServer

asker = Agent("asker", prompt="{{ question }}", model="solver", max_tokens=20)


@workflow
async def ask(row: dict[str, Any]) -> str:
    return await asker(question=row["question"])


QUESTIONS = [{"question": f"What is {n} + 1?"} for n in range(12)]


@pytest.fixture
def sick() -> Iterator[MockServer]:
    """A second server, for those who are not well."""
    with MockServer() as server:
        yield server


def pool(folder: Path, models: dict[str, Any], **more: Any) -> str:
    (folder / "pool.json").write_text(json.dumps({"models": models, **more}))
    return str(folder / "pool.json")


def at(server: MockServer, scenario: str = "ok", price: str = "100,1000") -> str:
    """A model there, which answers as the scenario says."""
    return f"{server.scenario(scenario)}?price={price}&retries=0#{scenario}"


def run(folder: Path, model: Any, rows: Any = QUESTIONS[:1], **options: Any) -> tuple[Any, list[Story]]:
    models = {"solver": open_engine(model) if isinstance(model, str) else model}
    done = weaverant.run(ask, rows, models=models, directory=folder / "run", **options).wait()
    reader = JournalReader(folder / "run")
    teller = storyteller(folder / "run", reader)
    return done, [teller.tell(reader.task_events(task.task)) for task in reader.tasks()]


def outcomes(story: Story) -> list[tuple[str, str]]:
    return [(step.name, step.outcome) for step in story.steps if step.kind == "model"]


def told(story: Story) -> list[Any]:
    """What each decision was told, and what it decided."""
    return [(step.arguments[0][0], step.value) for step in story.steps if step.kind == "effect"]


# Who hangs


def test_who_hangs_is_cut_off_at_the_deadline_and_the_rest_go_on(tmp_path: Path, server: MockServer, sick: MockServer):
    file = pool(tmp_path, {"a": at(server), "b": at(server), "hung": at(sick, "hang")}, aggregator="a")
    began = time.monotonic()
    done, (story,) = run(tmp_path, f"moa:{file}?layers=3&deadline=3")
    assert done.exit_code == 0 and time.monotonic() - began < 15
    assert Counter(outcomes(story))["solver/hung", "cancelled"] == 2
    assert server.stats()["answered"] == 2 * 2 + 1
    hung = [step for step in story.steps if step.name == "solver/hung"]
    assert all(step.usage.unsure == step.usage.cost > 0 for step in hung)
    assert done.spent == pytest.approx(sum(step.usage.cost for step in story.steps))
    assert done.spent > sum(item["dollars"] for item in [{"dollars": 0.0}, *server.bill()])


def with_a_straggler(folder: Path, server: MockServer, sick: MockServer) -> Any:
    """A mixture of two that answer and one that hangs, of whom it has seen that it takes 0.4 s."""
    file = pool(folder, {"a": at(server), "b": at(server), "late": at(sick, "hang")}, aggregator="a")
    moa: Any = open_engine(f"moa:{file}?layers=2")
    for _ in range(FEWEST):
        moa.observed.answered("late", 0.0, 0.4, Usage())
    return moa


def test_stragglers_are_cut_off_after_twice_their_95th_percentile_once_the_others_have_answered(
    tmp_path: Path, server: MockServer, sick: MockServer
):
    moa = with_a_straggler(tmp_path, server, sick)
    began = time.monotonic()
    done, (story,) = run(tmp_path, moa)
    assert done.exit_code == 0 and 0.8 < time.monotonic() - began < 15
    assert Counter(outcomes(story))["solver/late", "cancelled"] == 1
    final = told(story)[-1][0]
    assert "late: cut off after 0.8 s" in str(final) and moa.observed.of("late").failures == 1


def test_a_straggler_that_is_cut_off_again_and_again_is_not_waited_for_longer(
    tmp_path: Path, server: MockServer, sick: MockServer
):
    moa = with_a_straggler(tmp_path, server, sick)
    _, stories = run(tmp_path, moa, QUESTIONS[:3], concurrency=1, in_flight=1)
    assert moa.observed.of("late").failures == 3 and moa.observed.of("late").p95 == 0.4
    assert all("late: cut off after 0.8 s" in str(told(story)[-1][0]) for story in stories)


def test_a_straggler_of_whom_nothing_is_measured_is_cut_off_too(
    tmp_path: Path, server: MockServer, sick: MockServer, monkeypatch: pytest.MonkeyPatch
):
    """After a minute and ten times as long as the others took, which are made shorter here."""
    monkeypatch.setattr("weaverant.routing.asking.PATIENCE", 1.0)
    monkeypatch.setattr("weaverant.routing.asking.MORE_PATIENT", 2.0)
    file = pool(tmp_path, {"a": at(server), "b": at(server), "late": at(sick, "hang")}, aggregator="a")
    began = time.monotonic()
    done, (story,) = run(tmp_path, f"moa:{file}?layers=2")
    assert done.exit_code == 0 and 1.0 < time.monotonic() - began < 15
    assert Counter(outcomes(story))["solver/late", "cancelled"] == 1
    server.control(latency=1.5)
    (tmp_path / "again").mkdir()
    began = time.monotonic()
    done, (story,) = run(tmp_path / "again", f"moa:{file}?layers=2&skip=false")
    assert done.exit_code == 0 and "late: cut off after 3" in str(told(story)[-1][0])
    assert 1.5 * 2 + 1.5 < time.monotonic() - began < 20


def test_with_a_quorum_of_all_nobody_is_cut_off_and_batches_have_their_time(
    tmp_path: Path, server: MockServer, sick: MockServer, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("weaverant.routing.asking.PATIENCE", 0.1)
    monkeypatch.setattr("weaverant.routing.asking.MORE_PATIENT", 0.1)
    sick.control(latency=1.2)
    file = pool(tmp_path, {"a": at(server), "slow": at(sick)}, aggregator="a")
    done, (story,) = run(tmp_path, f"moa:{file}?layers=2&quorum=2")
    assert done.exit_code == 0 and {outcome for _, outcome in outcomes(story)} == {"reply"}
    models = {"a": "openai:m?batch=60", "b": "openai:m?batch=0", "c": "pool:http://a/v1#m,http://b/v1?batch=3#m"}
    assert Pool({}, {}).batched == frozenset()
    members = dict.fromkeys(models, open_engine("embedded:tiny"))
    assert Pool(members, {name: Card(spec) for name, spec in models.items()}).batched == {"a", "c"}


def test_nobody_is_cut_off_before_the_quorum(tmp_path: Path, server: MockServer, sick: MockServer):
    """Both are slow, and both are waited for: there would be no answer."""
    sick.control(latency=1.2)
    file = pool(tmp_path, {"a": at(sick), "b": at(sick)}, aggregator="a")
    moa: Any = open_engine(f"moa:{file}?layers=2&proposers=a")
    for name in "ab":
        for _ in range(FEWEST):
            moa.observed.answered(name, 0.0, 0.01, Usage())
    done, (story,) = run(tmp_path, moa)
    assert done.exit_code == 0 and {outcome for _, outcome in outcomes(story)} == {"reply"}


def test_a_route_goes_on_down_the_ranking_when_the_first_hangs(tmp_path: Path, server: MockServer, sick: MockServer):
    models = {"best": {"model": at(sick, "hang"), "prior": 0.9}, "next": at(server)}
    done, (story,) = run(tmp_path, f"route:{pool(tmp_path, models)}?deadline=3")
    assert done.exit_code == 0
    assert outcomes(story) == [("solver/best", "cancelled"), ("solver/next", "reply"), ("asker", "reply")]
    (_, first), (variables, second) = told(story)
    assert [one["name"] for one in first["ranked"]] == ["best", "next"]
    assert [one["name"] for one in second["ranked"]] == ["next"] and "late: cut off" in str(variables)


@pytest.mark.parametrize("kind", ["moa", "smoa", "self-moa", "route"])
def test_a_workflow_that_gives_up_leaves_nothing_running(tmp_path: Path, sick: MockServer, kind: str):
    @workflow
    async def hurried(row: dict[str, Any]) -> str:
        try:
            async with deadline(0.4):
                return await asker(question=row["question"])
        except TimeoutError:
            return "in vain"

    nested = {"model": f"{kind}:inner.json", "prior": 0.9}
    (tmp_path / "inner.json").write_text(json.dumps({"models": {"a": f"{sick.url}#m", "b": f"{sick.url}#n"}}))
    file = pool(tmp_path, {"nested": nested, "c": f"{sick.url}#o"})
    sick.control(scenario="hang")
    models = {"solver": f"{kind}:{file}"}
    began = time.monotonic()
    done = weaverant.run(hurried, QUESTIONS[:1], models=models, directory=tmp_path / "run").wait()
    assert done.exit_code == 0 and time.monotonic() - began < 20
    reader = JournalReader(tmp_path / "run")
    events = [event for event in reader.events() if isinstance(event, StepEnded) and event.kind == "model"]
    assert "cancelled" in {event.outcome for event in events}
    assert sick.stats()["in_flight"] == 0


# Who is not there


def test_who_is_not_there_is_done_without(tmp_path: Path, server: MockServer):
    """For one model alone the run would stop; here others can answer. After three rows nobody tries any more."""
    models = {"a": at(server), "b": at(server), "gone": "http://127.0.0.1:9/v1?price=1,1&retries=0#m"}
    for kind in ("moa", "smoa", "self-moa", "route"):
        folder = tmp_path / kind
        folder.mkdir()
        first = {"moa": "aggregator=gone", "smoa": "judge=gone", "self-moa": "model=gone", "route": "cost=0"}[kind]
        best = {"gone": {"model": models["gone"], "prior": 0.9}}
        file = pool(folder, {**models, **best})
        done, found = run(folder, f"{kind}:{file}?{first}&budget=1", QUESTIONS[:5], concurrency=1, in_flight=1)
        assert done.exit_code == 0 and {story.state for story in found} == {"done"}, kind
        gone = [step for story in found for step in story.steps if step.name == "solver/gone"]
        assert gone and {(step.outcome, step.reason) for step in gone} == {("failure", "unavailable")}
        assert len(gone) <= 6 and sum(step.usage.cost for step in gone) == 0, kind


def test_where_nobody_at_all_is_there_the_run_stops_and_no_row_fails(tmp_path: Path, server: MockServer):
    """As it does for a model of its own; once they are there it goes on."""
    models = dict.fromkeys("ab", f"http://127.0.0.1:{server.port + 1}/v1?retries=0&timeout=2&name=m#m")
    inner = {"inner": {"model": "moa:inner.json", "prior": 0.9}, "a": models["a"]}
    (tmp_path / "inner.json").write_text(json.dumps({"models": models}))
    whole = ("moa", "route", "smoa", "self-moa", "routemoa")
    for kind, members in (*((each, models) for each in whole), ("route", inner)):
        folder = tmp_path / f"{kind}{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        (folder / "inner.json").write_text((tmp_path / "inner.json").read_text())
        file = pool(folder, members)
        done, _ = run(folder, f"{kind}:{file}", QUESTIONS[:4], concurrency=1, in_flight=2)
        assert done.state == "server" and done.ledger.stages[0].failed == {}, kind
        for name in ("pool.json", "inner.json"):
            text = (folder / name).read_text().replace(f":{server.port + 1}/", f":{server.port}/")
            (folder / name).write_text(text)
        again = {"workflow": ask, "rows": QUESTIONS[:4], "models": {"solver": f"{kind}:{file}"}}
        assert weaverant.resume(folder / "run", **again).wait().exit_code == 0, kind


def test_a_wrong_key_stops_the_run_whoever_else_could_answer(tmp_path: Path, server: MockServer, sick: MockServer):
    done, _ = run(tmp_path, f"moa:{pool(tmp_path, {'a': at(server), 'b': at(sick, 'fault-401')})}?layers=2")
    assert done.state == "server" and done.ledger.stages[0].failed == {}


# Who errs, and who babbles


def test_who_errs_is_left_out_and_after_three_times_not_asked(tmp_path: Path, server: MockServer, sick: MockServer):
    file = pool(tmp_path, {"a": at(server), "b": at(server), "ill": at(sick, "fault-400")}, aggregator="a")
    done, found = run(tmp_path, f"moa:{file}?layers=2", QUESTIONS[:6], concurrency=1, in_flight=1)
    assert done.exit_code == 0 and sick.stats()["total"] == IN_A_ROW
    failed = [outcomes(story).count(("solver/ill", "failure")) for story in found]
    assert sorted(failed) == [0, 0, 0, 1, 1, 1]
    spared = next(story for story in found if not outcomes(story).count(("solver/ill", "failure")))
    assert "breaker is open" in str(told(spared)[0][1]["refused"]["ill"])
    assert done.spent == pytest.approx(sum(step.usage.cost for story in found for step in story.steps))


def test_who_gives_500_is_no_answer(tmp_path: Path, server: MockServer, sick: MockServer):
    file = pool(tmp_path, {"a": at(server), "b": at(server), "ill": at(sick, "fault-500")}, aggregator="a")
    done, (story,) = run(tmp_path, f"moa:{file}?layers=2")
    assert done.exit_code == 0, story
    assert ("solver/ill", "failure") in outcomes(story) and "server: " in str(told(story)[-1][0])


def test_who_babbles_has_given_no_answer(tmp_path: Path, server: MockServer, sick: MockServer):
    """Its reply ran into the limit of tokens. The next layer is not told it, and the trace tells why."""
    sick.control(tokens=50)
    file = pool(tmp_path, {"a": at(server), "b": at(server), "talks": at(sick)}, aggregator="a")
    done, (story,) = run(tmp_path, f"moa:{file}?layers=3")
    assert done.exit_code == 0
    second = next(step for step in story.steps if step.name == "solver/b" and len(step.messages) == 2)
    assert "[2]\n[mock]" in second.messages[0].text and "[3]" not in second.messages[0].text
    assert "talks" in str(told(story)[1][0]) and "babbles: its reply had no end after 20 tokens" in str(
        told(story)[1][0]
    )


def test_babble_is_better_than_nothing(tmp_path: Path, sick: MockServer):
    sick.control(tokens=50)
    for kind in ("moa", "self-moa", "smoa", "route"):
        folder = tmp_path / kind
        folder.mkdir()
        done, (story,) = run(folder, f"{kind}:{pool(folder, {'a': at(sick), 'b': at(sick)})}")
        assert done.exit_code == 0 and story.result.startswith("[mock]"), kind


def test_an_aggregator_that_fails_is_replaced_and_the_answers_stand_where_nobody_can(
    tmp_path: Path, server: MockServer, sick: MockServer
):
    models = {"a": at(server), "b": at(server), "ill": at(sick, "fault-400")}
    done, (story,) = run(tmp_path, f"moa:{pool(tmp_path, models, aggregator='ill')}?layers=2&proposers=a,b")
    assert done.exit_code == 0
    assert [outcome for _, outcome in outcomes(story)] == ["reply", "reply", "failure", "reply", "reply"]
    assert outcomes(story)[2:4] == [("solver/ill", "failure"), ("solver/a", "reply")]


def test_where_nobody_answers_the_call_fails_and_says_why(tmp_path: Path, sick: MockServer):
    file = pool(tmp_path, {"a": at(sick, "fault-400"), "b": at(sick, "fault-400")})
    for kind in ("moa", "self-moa", "smoa", "route"):
        folder = tmp_path / kind
        folder.mkdir()
        done, (story,) = run(folder, f"{kind}:{file}")
        assert done.exit_code == 3 and done.ledger.stages[0].failed == {"pool": 1}
        assert "no member of the pool could" in str(story.result) and "request: " in str(story.result), kind


# Money


def test_a_failed_call_is_costed_and_the_budget_is_looked_at_again(
    tmp_path: Path, server: MockServer, sick: MockServer
):
    """The first member garbles its reply, which is billed all the same; the next is asked only with what is left."""
    models = {"best": {"model": at(sick, "malformed"), "prior": 0.9}, "next": at(server)}
    file = pool(tmp_path, models)
    sick.control(price="100,1000")
    server.control(price="100,1000")
    found: dict[float, Any] = {}
    asked = Request("asker", "m", (user(QUESTIONS[0]["question"]),), Sampling(max_tokens=20), seed=2**31 - 1)
    worst = Pool.open(file).worst("best", asked)
    assert worst
    little, some, much = worst * 0.8, worst * 1.5, worst * 3
    for budget in (little, some, much):
        folder = tmp_path / str(budget)
        folder.mkdir()
        sick.reset()
        server.reset()
        done, (story,) = run(folder, f"route:{file}?budget={budget}")
        billed = sum(item["dollars"] for item in [*sick.bill(), *server.bill()])
        assert billed <= budget and done.spent <= budget
        assert done.spent >= billed - 1e-12
        found[budget] = outcomes(story)
        if budget == some:
            assert "is left of the budget" in str(story.result)
            (failed,) = [step for step in story.steps if step.name == "solver/best"]
            assert failed.usage.cost == pytest.approx(done.spent) and done.spent > 0
    assert found[little] == [("asker", "failure")]
    assert found[some] == [("solver/best", "failure"), ("asker", "failure")]
    assert found[much] == [("solver/best", "failure"), ("solver/next", "reply"), ("asker", "reply")]


@pytest.mark.parametrize("kind", ["moa", "smoa", "self-moa", "route"])
def test_no_query_costs_more_than_its_budget_whatever_fails(
    tmp_path: Path, server: MockServer, sick: MockServer, kind: str
):
    """Members that garble what they bill, and that hang: those count with the most that they can have cost."""
    server.control(price="100,1000")
    sick.control(price="100,1000")
    models = {
        "a": at(server), "b": at(server), "c": at(sick, "malformed"), "d": {"model": at(sick, "hang"), "prior": 0.8},
        "e": {"model": at(sick, "malformed"), "prior": 0.9},
    }  # fmt: skip
    chance, spent, unsure = Random(7), set[bool](), set[bool]()
    for number in range(6):
        budget = round(chance.uniform(0.02, 0.6), 3)
        folder = tmp_path / str(number)
        folder.mkdir()
        sick.reset()
        server.reset()
        first = "&model=d" if kind == "self-moa" else ""
        done, (story,) = run(folder, f"{kind}:{pool(folder, models)}?deadline=0.3&budget={budget}{first}")
        billed = sum(item["dollars"] for item in [*sick.bill(), *server.bill()])
        assert billed <= done.spent + 1e-12 and done.spent <= budget, (kind, budget)
        spent.add(done.spent > 0)
        unsure.add(any(step.usage.unsure for step in story.steps))
    assert True in spent and True in unsure


def test_a_member_whose_price_nobody_knows_is_not_asked_under_a_budget(tmp_path: Path, server: MockServer):
    models = {"dark": {"model": f"{server.url}#m", "prior": 0.9}, "known": at(server)}
    done, (story,) = run(tmp_path, f"route:{pool(tmp_path, models)}?budget=1")
    assert done.exit_code == 0 and outcomes(story)[0] == ("solver/known", "reply")
    assert "nobody can say what the call may cost" in told(story)[0][1]["refused"]["dark"]


def test_a_compound_within_is_counted_with_all_that_it_asks(tmp_path: Path, server: MockServer):
    """Its own budget bounds it, and what it has spent is gone for the others."""
    server.control(price="100,1000")
    (tmp_path / "inner.json").write_text(json.dumps({"models": {"a": at(server), "b": at(server)}}))
    models = {"inner": {"model": "moa:inner.json?layers=2&budget=0.3", "prior": 0.9}, "c": at(server)}
    done, (story,) = run(tmp_path, f"moa:{pool(tmp_path, models)}?layers=2&budget=0.4&aggregator=c")
    assert done.exit_code == 0 and 0 < done.spent <= 0.4
    final = told(story)[-1][0]
    assert "inner" in str(told(story)[0][1]["bound"])
    assert final["left"] == pytest.approx(0.4 - done.spent + story.steps[-2].usage.cost)


def test_the_run_s_own_budget_holds_within(tmp_path: Path, server: MockServer):
    server.control(price="100,1000")
    file = pool(tmp_path, {"a": at(server), "b": at(server)})
    done, _ = run(tmp_path, f"moa:{file}?layers=2&skip=false", QUESTIONS, budget=0.15)
    assert done.state == "budget" and 0 < done.spent <= 0.15
    again = weaverant.resume(
        tmp_path / "run",
        workflow=ask,
        rows=QUESTIONS,
        models={"solver": f"moa:{file}?layers=2&skip=false"},
        budget=100.0,
    ).wait()
    assert again.state == "finished" and server.stats()["answered"] == len(QUESTIONS) * 3
    billed = sum(item["dollars"] for item in server.bill())
    assert again.spent == pytest.approx(billed)
    assert estimate(tmp_path / "run").calls.value == len(QUESTIONS) * 3


def test_a_card_s_price_counts_for_the_ledger_the_pilot_and_every_budget(tmp_path: Path, server: MockServer):
    server.control(price="100,1000")
    card = {"model": f"{server.url}?retries=0#m", "price": [100, 1000]}
    spec = f"moa:{pool(tmp_path, {'a': card, 'b': card})}?layers=2&skip=false"
    done, found = run(tmp_path, spec, QUESTIONS, budget=0.15)
    assert done.state == "budget" and 0 < done.spent <= 0.15
    assert all(step.usage.cost > 0 for story in found for step in story.steps if step.name == "solver/a")
    again = weaverant.resume(tmp_path / "run", workflow=ask, rows=QUESTIONS, models={"solver": spec}, budget=100.0)
    assert again.wait().exit_code == 0
    billed = sum(item["dollars"] for item in server.bill())
    assert again.spent == pytest.approx(billed)
    assert estimate(tmp_path / "run").cost.value == pytest.approx(billed, rel=0.2)


def test_a_question_s_budget_is_kept_by_the_cards_where_no_reply_says_its_cost(tmp_path: Path):
    """A file of scripted replies takes no price: its calls cost nothing in the ledger, and count here all the same."""
    said = json.dumps({"reply": "so many words " * 4})
    (tmp_path / "said.jsonl").write_text(said + "\n")
    card = {"model": "scripted:said.jsonl", "price": [0, 1000]}
    file = pool(tmp_path, {"a": card})
    asked = Request("asker", "m", (user(QUESTIONS[0]["question"]),), Sampling(max_tokens=20))
    worst = Pool.open(file).worst("a", asked)
    assert worst
    done, (story,) = run(tmp_path, f"moa:{file}?layers=9&skip=false&budget={3 * worst}")
    steps = [step for step in story.steps if step.name == "solver/a"]
    pooled = Pool.open(file)
    took = sum(pooled.unbilled("a", step.usage) for step in steps)
    assert worst < took <= 3 * worst and 3 < len(steps) < 9 and done.spent == 0
    assert "is left of the budget" in str(told(story))


# Time


@pytest.mark.parametrize("kind", ["moa", "smoa", "self-moa", "route"])
def test_twelve_questions_are_worked_on_at_once(tmp_path: Path, server: MockServer, kind: str):
    server.control(latency=0.4)
    file = pool(tmp_path, {"a": f"{at(server)[:-3]}&start=64#ok", "b": f"{at(server)[:-3]}&start=64#ok"})
    done, _ = run(tmp_path, f"{kind}:{file}", QUESTIONS)
    assert done.exit_code == 0
    stats = server.stats()
    assert stats["in_flight_max"] >= 12


# A real process


WORKFLOW = """
from weaverant import Agent, workflow

asker = Agent("asker", prompt="{{ question }}", model="solver")


@workflow
async def ask(row):
    return await asker(question=row["question"])
"""


@pytest.fixture
def folder(tmp_path: Path, model: CountingModel):
    (tmp_path / "ask.py").write_text(WORKFLOW)
    pool(tmp_path, {f"m{n:02}": model.url for n in range(15)})
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS[:2]))
    with nothing_left(tmp_path):
        yield tmp_path


RUN = (
    "run", "ask.py", "--input", "rows.jsonl", "--run", "out", "--model", "solver=moa:pool.json?layers=4&skip=false"
)  # fmt: skip


def test_kill_9_in_the_middle_of_46_calls_pays_nothing_twice(folder: Path, model: CountingModel):
    calls = 2 * (15 * 3 + 1)
    driver, out = begin(folder, *RUN, "--concurrency", "8"), folder / "out"
    wait_until(lambda: (out / "journal").exists() and steps_done(out) > 30, what="some calls")
    driver.kill()
    driver.wait()
    events = [event for event in JournalReader(out).events() if isinstance(event, StepEnded)]
    kept = [event for event in events if event.kind == "model" and not event.inside]
    numbers = {event.usage.prompt_tokens for event in kept}
    asked = len(model.calls)
    assert 30 < len(numbers) == len(kept) < calls
    again = call(folder, "resume", "out")
    assert again.returncode == 0, again.stderr
    assert len(model.calls) - asked == calls - len(kept)
    assert call(folder, "resume", "out").returncode == 0 and len(model.calls) == asked + calls - len(kept)
    whole = call(folder, *["whole" if word == "out" else word for word in RUN])
    assert whole.returncode == 0 and exported(folder) == exported(folder, "whole")


HUNG = "solver=moa:pool.json?layers=2&skip=false&deadline=3"


def test_kill_9_amid_members_that_hang_leads_to_the_same_replies(tmp_path: Path, server: MockServer, sick: MockServer):
    """Deadlines and cuts are recorded, too: what was decided with them stands when the run goes on."""
    (tmp_path / "ask.py").write_text(WORKFLOW)
    pool(tmp_path, {"a": f"{server.url}?name=m#m", "b": f"{server.url}?name=m#n", "c": f"{sick.scenario('hang')}#m"})
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS[:4]))
    words = ["run", "ask.py", "--input", "rows.jsonl", "--model", HUNG, "--run"]
    with nothing_left(tmp_path):
        driver, out = begin(tmp_path, *words, "out"), tmp_path / "out"
        wait_until(lambda: (out / "journal").exists() and steps_done(out) >= 8, what="some calls")
        driver.kill()
        driver.wait()
        again = call(tmp_path, "resume", "out")
        assert again.returncode == 0, again.stderr
        reader = JournalReader(out)
        ends = [event for event in reader.events() if isinstance(event, StepEnded) and event.name == "solver/c"]
        assert {event.outcome for event in ends} == {"cancelled"} and len(ends) >= 4
        assert server.stats()["total"] <= 4 * 3 + 2
        assert all(not event.unasked for event in reader.events() if isinstance(event, TaskEnded))
        assert call(tmp_path, *words, "whole").returncode == 0
        assert exported(tmp_path) == exported(tmp_path, "whole")


def test_another_layer_is_all_that_a_reused_run_pays_for(tmp_path: Path, server: MockServer):
    file = pool(tmp_path, {"a": at(server), "b": at(server)})
    for layers, calls in ((2, 3), (3, 3)):
        server.reset()
        old = {} if layers == 2 else {"reuse": tmp_path / "2"}
        models = {"solver": f"moa:{file}?skip=false&layers={layers}"}
        directory = tmp_path / str(layers)
        done = weaverant.run(ask, QUESTIONS[:2], models=models, directory=directory, **old).wait()
        assert done.exit_code == 0 and server.stats()["total"] == 2 * calls


def test_the_command_line_shows_exports_and_estimates_them(folder: Path, model: CountingModel):
    pool(folder, dict.fromkeys("abc", model.url), aggregator="c")
    ways = {
        "moa": ("moa:pool.json?layers=2&skip=false", 4), "smoa": ("smoa:pool.json?rounds=1&skip=false", 6),
        "self-moa": ("self-moa:pool.json?samples=2&skip=false", 3), "route": ("route:pool.json", 1),
    }  # fmt: skip
    for kind, (spec, calls) in ways.items():
        model.forget()
        words = ["run", "ask.py", "--input", "rows.jsonl", "--run", kind, "--model", f"solver={spec}"]
        dry = call(folder, *words, "--dry-run")
        assert dry.returncode == 0 and "agent solver/a: model 'solver/a' -> http:m" in dry.stdout, dry
        assert f"  at most {calls} call{'s' * (calls > 1)} a request" in dry.stdout, dry
        assert "  member c: http:m, price unknown" in dry.stdout and ("no router" in dry.stdout) == (kind == "route")
        assert not model.calls
        pilot = call(folder, *words, "--pilot", "1")
        assert pilot.returncode == 0 and "asker (compound)" in pilot.stdout, pilot
        assert call(folder, "resume", kind).returncode == 0 and len(model.calls) == 2 * calls, kind
        assert {agent["kind"] for agent in document(fold(folder / kind))["agents"]} >= {"compound", "model", "effect"}
        if kind not in ("moa", "route"):
            continue  # a process each takes long
        shown = call(folder, "show", kind).stdout
        assert re.search(rf"(all agents|solver/a) +{2 * calls} ", shown) and "asker (compound)" in shown
        task = call(folder, "show", kind, "--task", "0.0.0").stdout
        assert ("choose" if kind == "route" else "admit") in task
        found = call(folder, "export", kind, "--as", "messages", "--agent", "asker", "--out", "-")
        assert len(found.stdout.splitlines()) == 2


def test_peers_work_on_them(folder: Path, model: CountingModel):
    pool(folder, dict.fromkeys("abc", model.url))
    words = ["run", "ask.py", "--input", "rows.jsonl", "--run", "out", "--peers", "2"]
    found = call(folder, *words, "--model", "solver=moa:pool.json?layers=2&skip=false")
    assert found.returncode == 0, found.stderr
    assert len(model.calls) == 2 * 4
