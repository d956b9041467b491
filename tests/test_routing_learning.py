"""Learning in use: feedback that reaches the router, new models, exploration, drift, sessions; and folding a run."""

from __future__ import annotations

import asyncio
import json
import re
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest

import weaverant
from routing_simulated import SimulatedRouter, ask, asker, pool_of, saying
from weaverant import Agent, UserError, workflow
from weaverant.cli import main
from weaverant.engines.scripted import Scripted
from weaverant.message import Request, assistant, system, user
from weaverant.routing.evidence import Evidence, Verdict
from weaverant.routing.folding import Folded, Tally, learn, lessons, read_evidence, read_kept, written
from weaverant.routing.learning import (
    Belief,
    Drift,
    Explored,
    Kept,
    Learned,
    Lesson,
    Sessions,
    Stay,
    Thought,
    cold_start,
    session_of,
    stays,
    thompson,
)
from weaverant.routing.pool import Card, Pool
from weaverant.routing.route import Route
from weaverant.routing.routemoa import RouteMoa
from weaverant.routing.router import Router
from weaverant.routing.turns import RouteMoaOptions, traces

ROWS = [{"question": f"What is {n} + 1?", "answer": f"#### {n + 1}"} for n in range(8)]


@workflow
async def graded(row: dict[str, Any]) -> bool:
    reply = await asker.reply(question=row["question"])
    return await weaverant.feedback(reply, float(reply.text == row["answer"]))


def counts(request: Request) -> str:
    """Right."""
    number = int(request.messages[-1].text.split()[2])
    return json.dumps({"answer": f"#### {number + 1}", "self_score": 0.9})


ALL_JUDGE: dict[str, Any] = {"judges": "self,peer,agreement"}
"""Always; by itself it asks for scores as far as that pays."""


def made(router: SimulatedRouter, **options: Any) -> RouteMoa:
    members = {"right": Scripted(counts, identity="right"), "wrong": saying("#### 99", 1.0)}
    return RouteMoa(pool_of(**members), RouteMoaOptions(**ALL_JUDGE | options), router)


def router() -> SimulatedRouter:
    return SimulatedRouter({"right": 0.9, "wrong": 0.3})


# Feedback


def test_feedback_reaches_the_router_and_is_in_the_journal(tmp_path: Path):
    live, folded = router(), router()
    run = weaverant.run(graded, ROWS, models={"solver": made(live, layers=1)}, directory=tmp_path / "run")
    assert [task.result for task in run] == [True] * 8
    assert len(live.told) == 16 and ("What is 0 + 1?", "right", 1.0) in live.told
    assert ("What is 0 + 1?", "wrong", 0.0) in live.told
    evidence = Evidence()
    found = learn(folded, tmp_path / "run", evidence)
    assert (found.scores, found.replies, found.before) == (8, 8, 0)
    assert found.models["wrong"] == Tally(True, 8, 0.0, pytest.approx(2.4)) and found.models["right"].right == 8
    assert sorted(folded.told) == sorted(live.told)
    assert set(evidence.trust) == {"agreement", "self/right", "self/wrong"}
    first = next(lessons(tmp_path / "run"))
    assert first.outcomes == {"right": 1.0, "wrong": 0.0} and first.prior == {"right": 0.9, "wrong": 0.3}
    assert Verdict("self/wrong", 1.0) in first.verdicts["wrong"] and first.score == 1.0


def test_a_resumed_run_takes_its_lessons_in_again(tmp_path: Path):
    first, second = made(router(), layers=1), made(router(), layers=1)
    failing = True

    @workflow
    async def graded_twice(row: dict[str, Any]) -> bool:
        reply = await asker.reply(question=row["question"])
        await weaverant.feedback(reply, 1.0)
        if failing:
            raise ValueError("later")
        return True

    rows = ROWS[:3]
    run = weaverant.run(graded_twice, rows, models={"solver": first}, directory=tmp_path / "run").wait()
    assert run.exit_code == 3
    failing = False
    again = weaverant.resume(
        tmp_path / "run", workflow=graded_twice, rows=rows, models={"solver": second}, retry=True
    ).wait()
    assert again.exit_code == 0
    told = [model.learned.router.told for model in (first, second)]  # type: ignore[union-attr]
    assert sorted(told[0]) == sorted(told[1]) and len(told[0]) == 6
    assert len(list(lessons(tmp_path / "run"))) == 3


def test_true_is_1_and_false_is_0(tmp_path: Path):
    @workflow
    async def judged(row: dict[str, Any]) -> bool:
        reply = await asker.reply(question=row["question"])
        return await weaverant.feedback(reply, row["good"])

    rows = [{"question": f"What is {n} + 1?", "good": n == 1} for n in range(2)]
    run = weaverant.run(judged, rows, models={"solver": made(router(), layers=1)}, directory=tmp_path / "run")
    assert [task.result for task in run] == [True, True]
    assert sorted(lesson.score for lesson in lessons(tmp_path / "run")) == [0.0, 1.0]


def test_equal_replies_each_have_their_own_trace(tmp_path: Path):
    """Two calls side by side reply alike, and were asked different things."""

    @workflow
    async def twice(row: dict[str, Any]) -> list[bool]:
        one, two = await asyncio.gather(asker.reply(question="What is 1 + 1?"), asker.reply(question="What is 1 + 0?"))
        assert one.text == two.text
        return [await weaverant.feedback(two, 0.25), await weaverant.feedback(one, 0.75)]

    live = router()
    (task,) = weaverant.run(twice, ROWS[:1], models={"solver": made(live, layers=1)}, directory=tmp_path / "run")
    assert task.result == [True, True]
    told = {(query, score) for query, model, score in live.told if model == "right"}
    assert told == {("What is 1 + 0?", 0.25), ("What is 1 + 1?", 0.75)}


def test_a_text_means_the_newest_reply_and_an_engine_learns_nothing():
    live = router()

    @workflow
    async def by_text(row: dict[str, Any]) -> list[bool]:
        text = await asker(question="What is 1 + 1?")
        return [await weaverant.feedback(text, 1.0), await weaverant.feedback("never said", 1.0)]

    (task,) = weaverant.run(by_text, ROWS[:1], models={"solver": made(live)}, journal=False)
    assert task.result == [True, False] and live.told
    (task,) = weaverant.run(by_text, ROWS[:1], models={"solver": Scripted("2")}, journal=False)
    assert task.result == [False, False]


@pytest.mark.parametrize("score", [-0.1, 1.1, 2, float("nan"), "good", None, [1.0]])
def test_a_score_that_is_none_is_refused(score: Any):
    with pytest.raises(UserError, match="from 0 to 1"):
        asyncio.run(weaverant.feedback("x", score))


def test_a_graded_answer_teaches_who_gave_it_and_who_wrote_it(tmp_path: Path):
    """Of an aggregated reply, its author; and only those who said the same."""
    members = {"a": saying("It is red"), "b": saying("It is blue"), "c": saying("it is  RED.")}
    live = SimulatedRouter({"a": 0.7, "b": 0.6, "c": 0.5}, ece=None)
    model = RouteMoa(pool_of(**members), RouteMoaOptions(layers=1, aggregator="a", cost=0.0, latency=0.0), live)

    @workflow
    async def scored(row: dict[str, Any]) -> bool:
        return await weaverant.feedback(await asker.reply(question="?"), 0.4)

    weaverant.run(scored, [{}], models={"solver": model}, directory=tmp_path / "run").wait()
    (lesson,) = lessons(tmp_path / "run")
    assert lesson.aggregator == "a" and lesson.outcomes == {"a": 0.4, "c": 0.4}
    assert model.learned.aggregating("a", 0.7) == pytest.approx((6 * 0.7 + 0.4) / 7)
    assert model.learned.aggregating("b", 0.6) == pytest.approx(0.6)


def test_a_score_counts_once_however_often_its_run_is_folded(tmp_path: Path):
    weaverant.run(graded, ROWS[:3], models={"solver": made(router(), layers=1)}, directory=tmp_path / "run").wait()
    weaverant.run(graded, ROWS[:3], models={"solver": made(router(), layers=1)}, directory=tmp_path / "other").wait()
    live, evidence, kept = router(), Evidence(), Kept()

    def fold(run: str) -> tuple[int, int]:
        found = learn(live, tmp_path / run, evidence, kept, run)
        return found.scores, found.before

    assert fold("run") == (3, 0)
    kept = msgspec.convert(msgspec.to_builtins(kept), Kept)
    told, trust = list(live.told), msgspec.to_builtins(evidence)
    assert fold("run") == (0, 3) and live.told == told and msgspec.to_builtins(evidence) == trust
    assert fold("other") == (3, 0) and len(live.told) == 2 * len(told)


def test_two_scores_of_one_reply_are_two_scores_of_one_reply(tmp_path: Path):
    @workflow
    async def twice(row: dict[str, Any]) -> bool:
        reply = await asker.reply(question=row["question"])
        return await weaverant.feedback(reply, 1.0) and await weaverant.feedback(reply, 1.0)

    weaverant.run(twice, ROWS[:2], models={"solver": made(router(), layers=1)}, directory=tmp_path / "run").wait()
    found: Folded = learn(router(), tmp_path / "run")
    assert (found.scores, found.replies) == (4, 2)


# Cold start


def test_a_new_model_begins_as_its_card_its_like_or_its_price_says():
    cards = {
        "cheap": Card("", price=(0.1, 0.1)),
        "dear": Card("", price=(10.0, 10.0)),
        "told": Card("", prior=0.77),
        "twin": Card("", like="dear"),
        "new cheap": Card("", price=(0.12, 0.1)),
        "new dear": Card("", price=(9.0, 12.0)),
        "blank": Card(""),
    }
    pool = Pool({name: Scripted("x") for name in cards}, cards)
    known = SimulatedRouter({"cheap": 0.4, "dear": 0.8})
    found = cold_start(pool, known)
    assert found["told"] == 0.77 and found["twin"] == 0.8
    assert 0.4 < found["new cheap"] < 0.6 < found["new dear"] < 0.8
    assert found["blank"] == pytest.approx(0.6) and set(found) == set(cards) - {"cheap", "dear"}
    assert cold_start(pool, None)["blank"] == 0.5


def test_a_new_model_is_learned_from_its_outcomes():
    pool = Pool({"old": Scripted("x"), "new": Scripted("y")}, {"new": Card("", prior=0.3)})
    learned = Learned(pool, SimulatedRouter({"old": 0.6}))
    before = learned.thoughts("q")["new"]
    assert before.p == 0.3 and before.support == 0
    for _ in range(60):
        learned.take(Lesson("q", {"new": 1.0}, {"new": 0.3}))
    after = learned.thoughts("q")["new"]
    assert after.p > 0.9 and after.sd < before.sd and after.support > 50
    assert list(learned.thoughts("q")) == ["new", "old"]


def test_a_new_model_begins_where_the_runs_before_have_left_it(tmp_path: Path):
    """The router has no place for it: its outcomes are kept beside it, and those of aggregators."""
    live = SimulatedRouter({"right": 0.9})
    members = {"right": Scripted(counts, identity="right"), "wrong": saying("#### 99", 1.0)}
    model = RouteMoa(pool_of(**members), RouteMoaOptions(layers=1), live)
    weaverant.run(graded, ROWS, models={"solver": model}, directory=tmp_path / "run").wait()
    kept = Kept()
    found = learn(SimulatedRouter({"right": 0.9}), tmp_path / "run", kept=kept)
    assert not found.models["wrong"].known and len(kept.outcomes["wrong"]) == 8 and "right" not in kept.outcomes
    again = Learned(pool_of(**members), SimulatedRouter({"right": 0.9}), kept=kept)
    assert again.thoughts("q")["wrong"] == model.learned.thoughts("q")["wrong"]
    fresh = Learned(pool_of(**members), SimulatedRouter({"right": 0.9})).thoughts("q")["wrong"]
    assert again.thoughts("q")["wrong"].p < fresh.p - 0.2
    assert again.aggregating("right", 0.5) == model.learned.aggregating("right", 0.5) > 0.6
    for _ in range(600):
        kept.add(Lesson("q", {"wrong": 1.0}, {}), [])
    assert len(kept.outcomes["wrong"]) == 512


def test_old_outcomes_fade():
    belief = Belief()
    for outcome in [0.0] * 400 + [1.0] * 200:
        belief.add(outcome, 0.5)
    right, count = belief.counted()
    assert right / count > 0.55 and len(belief.ring) == 512


def test_route_learns_of_the_model_that_answered(tmp_path: Path):
    """With a router, which is told; and without one, where outcomes move who is asked."""
    members = {"right": Scripted(counts, identity="right"), "wrong": saying("no", 1.0)}

    @workflow
    async def told(row: dict[str, Any]) -> list[Any]:
        reply = await asker.reply(question=row["question"])
        return [reply.text, await weaverant.feedback(reply, reply.text != "no")]

    live = SimulatedRouter({"right": 0.4, "wrong": 0.6})
    run = weaverant.run(
        told, ROWS[:2], models={"solver": Route(pool_of(**members), scorer=live)}, directory=tmp_path / "r"
    )
    assert [task.result for task in run] == [["no", True]] * 2
    assert sorted(live.told) == [(f"What is {n} + 1?", "wrong", 0.0) for n in range(2)]
    assert {tuple(one.prior.items()) for one in lessons(tmp_path / "r")} == {(("wrong", 0.6),)}

    cards = {"right": Card("", prior=0.5), "wrong": Card("", prior=0.6)}
    route = Route(Pool(members, cards))
    weaverant.run(told, ROWS, models={"solver": route}, directory=tmp_path / "s", concurrency=1, in_flight=1).wait()
    said = [next(iter(lesson.outcomes)) for lesson in lessons(tmp_path / "s")]
    assert said[0] == "wrong" and said[-1] == "right" and said == sorted(said, reverse=True)
    kept = Kept()
    learn(SimulatedRouter({"right": 0.5}), tmp_path / "s", kept=kept)
    assert len(kept.outcomes["wrong"]) == said.count("wrong")
    for _ in range(40):
        route.learn(weaverant_lesson("right", 0.0, 0.9))
    assert route.status() == ["right is worse than its router predicts: train the router anew"]


# Drift


def test_drift_is_told_soon_and_chance_is_not():
    random = Random(3)
    false = sum(_alarm(random, 0.6, 1_000) is not None for _ in range(100))
    assert false <= 6
    delays = [_alarm(random, 0.3, 1_000) for _ in range(100)]
    assert all(delays) and sorted(delay for delay in delays if delay)[50] < 70


def _alarm(random: Random, p: float, most: int) -> int | None:
    drift = Drift()
    for n in range(most):
        drift.add(float(random.random() < p) - 0.6)
        if drift.alarm:
            return n
    return None


def test_an_alarm_is_among_the_notes_of_the_run(tmp_path: Path):
    model = made(router(), layers=1)
    for _ in range(40):
        model.learn(weaverant_lesson("right", 0.0, 0.9))
    assert model.status() == ["right is worse than its router predicts: train the router anew"]
    run = weaverant.run(ask, ROWS[:1], models={"solver": model}, directory=tmp_path / "run")
    run.wait()
    assert "right is worse than its router predicts: train the router anew" in run.notes


def weaverant_lesson(name: str, outcome: float, expected: float) -> dict[str, Any]:
    return {"query": "q", "outcomes": {name: outcome}, "prior": {name: expected}}


# Exploration


def test_exploration_stays_within_its_share(tmp_path: Path):
    rows = [{"question": f"question {n}"} for n in range(200)]
    members = {"sure": saying("#### 1"), "dark": saying("#### 2")}
    for share, least, most in ((0.0, 0, 0), (0.1, 5, 20), (0.5, 21, 100)):
        known = SimulatedRouter({"sure": 0.7, "dark": 0.5}, sd=0.3)
        model = RouteMoa(pool_of(**members), RouteMoaOptions(k=1, layers=1, explore=share), known)
        run = tmp_path / str(share)
        weaverant.run(ask, rows, models={"solver": model}, directory=run, concurrency=1, in_flight=1).wait()
        explored = [turns[0].explored for _, turns in traces(run)]  # type: ignore[union-attr]
        assert least <= explored.count("dark") <= most and set(explored) <= {"", "dark"}


def test_the_share_is_counted_in_what_is_spent():
    explored = Explored(0.1)
    assert not explored.room(1.0)
    explored.spent(20.0, False)
    assert explored.room(2.0) and not explored.room(3.0)
    explored.spent(2.0, True)
    assert not explored.room(1.0)


def test_a_draw_is_that_of_its_seed_and_prefers_the_unknown_at_times():
    thoughts = {"a": Thought(0.7, 0.01, 100), "b": Thought(0.6, 0.2, 1)}
    drawn = [thompson(thoughts, seed) for seed in range(200)]
    assert drawn == [thompson(dict(reversed(thoughts.items())), seed) for seed in range(200)]
    assert 40 < drawn.count("b") < 100


# Sessions


def test_what_tells_a_session():
    first = (system("Be kind."), user("Hello"))
    later = (*first, assistant("Hi"), user("Why?"))
    assert session_of(first, "opening") == session_of(later, "opening") != session_of(first[1:], "opening")
    assert session_of((first[0], user("Else")), "system") == session_of(first, "system")
    assert session_of(first, "none") == session_of(first[1:], "system") == ""


def test_who_stays():
    utility, sd = {"a": 0.60, "b": 0.70}, {"a": 0.05, "b": 0.02}
    assert stays(None, utility, sd, 0.05, 2) == ""
    assert stays(Stay("b"), utility, sd, 0.05, 2) == ""
    assert stays(Stay("a"), utility, sd, 0.05, 2) == "" and stays(Stay("a"), utility, sd, 0.2, 2) == "a"
    assert stays(Stay("a"), utility, {"a": 0.3}, 0.05, 2) == "a"
    assert stays(Stay("a", 2), utility, sd, 0.05, 2) == "a"
    assert stays(Stay("gone"), utility, sd, 0.05, 2) == ""


def test_sessions_count_their_switches_and_are_bounded():
    sessions = Sessions()
    for name in "aab":
        sessions.note("one", name)
    assert sessions.of("one") == Stay("b", 1) and sessions.of("") is None
    for n in range(10_000):
        sessions.note(str(n), "a")
    assert sessions.of("one") is None and sessions.of("9999") is not None


def test_a_conversation_on_the_line_between_two_domains_keeps_its_model(tmp_path: Path):
    """100 turns in sessions of ten: each turn's best is chance, by little. The long form is bench/routing_ambiguity.py."""
    random = Random(7)
    noise = {f"turn {n}": random.gauss(0, 0.04) for n in range(100)}
    host = Agent("host", prompt="{{ question }}", model="solver")

    @workflow
    async def talks(row: dict[str, Any]) -> int:
        history: list[Any] = []
        for turn in range(10):
            question = f"turn {row['session'] * 10 + turn}"
            reply = await host.reply(question=question, history=history)
            history += [user(question), reply.message]
        return len(history)

    def best(name: str, sign: int) -> Any:
        return lambda query: 0.6 + sign * noise[query]

    def switches(run: Path) -> list[int]:
        firsts = [[turn.ask[0] for turn in turns if not turn.layer] for _, turns in traces(run)]
        return [sum(a != b for a, b in pairwise(names)) for names in firsts]

    members = {"a": saying("one"), "b": saying("two")}
    found = {}
    for how in ("opening", "none"):
        known = SimulatedRouter({"a": best("a", 1), "b": best("b", -1)})
        model = RouteMoa(pool_of(**members), RouteMoaOptions(k=1, layers=1, session=how), known)  # type: ignore[arg-type]
        rows = [{"session": n} for n in range(10)]
        weaverant.run(talks, rows, models={"solver": model}, directory=tmp_path / how).wait()
        found[how] = switches(tmp_path / how)
    assert max(found["opening"]) <= 2 and sum(found["none"]) > 30 > sum(found["opening"])


def test_what_judges_are_worth_is_kept_beside_the_router(tmp_path: Path):
    evidence = Evidence()
    evidence.learn(0.5, [Verdict("self/a", 0.9)], 1.0)
    assert read_evidence(tmp_path) == read_evidence(None) == Evidence()
    kept = Kept({"new": [(1.0, 0.5)]}, {"old": [(0.0, 0.9)]}, {"run": ["ab"]})
    for name, text in written(evidence, kept).items():
        (tmp_path / name).write_bytes(text)
    assert read_evidence(tmp_path) == evidence and read_kept(tmp_path) == kept
    (tmp_path / "learned.json").write_text("{")
    with pytest.raises(UserError, match=r"damaged: learned\.json"):
        read_kept(tmp_path)


# A trained router


def test_a_trained_router_routes_learns_and_is_told_on_the_command_line(tmp_path: Path, capsys: Any):
    """From a table to a router, from a run with feedback to a better one; the pool names its folder."""
    lines = []
    for n in range(60):
        kind, good = ("sum", "adder") if n % 2 else ("rhyme", "poet")
        scores = {name: float(name == good) for name in ("adder", "poet")}
        lines.append(json.dumps({"query": f"a {kind}, number {n} of them", "scores": scores}))
    (tmp_path / "table.jsonl").write_text("\n".join(lines))
    assert main(["route", "train", str(tmp_path / "table.jsonl"), "--out", str(tmp_path / "learned"), "--quiet"]) == 0
    for name in ("adder", "poet"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"reply": f"#### {name}"}) + "\n")
    models = {name: f"scripted:{name}.jsonl" for name in ("adder", "poet")}
    (tmp_path / "pool.json").write_text(json.dumps({"models": models, "router": "learned"}))

    @workflow
    async def scored(row: dict[str, Any]) -> str:
        reply = await asker.reply(question=row["question"])
        await weaverant.feedback(reply, 0.0)
        return reply.text

    rows = [{"question": "a sum, number 7 of them"}, {"question": "a rhyme, number 8 of them"}]
    spec = {"solver": f"routemoa:{tmp_path}/pool.json?k=1&layers=1"}
    run = weaverant.run(scored, rows, models=spec, directory=tmp_path / "run")
    assert sorted(task.result for task in run) == ["#### adder", "#### poet"]
    before = Router.open(tmp_path / "learned").predict(["a sum, number 9 of them"])
    assert main(["route", "learn", str(tmp_path / "learned"), str(tmp_path / "run")]) == 0
    told = capsys.readouterr().out.splitlines()
    assert "2 scores of 2 replies" in told[0] and told[1].split() == [
        "model",
        "outcomes",
        "right",
        "expected",
        "gained",
    ]
    assert [line.split()[:3] for line in told[2:4]] == [["adder", "1", "0.000"], ["poet", "1", "0.000"]]
    assert all(line.split()[4].startswith("-0.") for line in told[2:4])
    after = Router.open(tmp_path / "learned").predict(["a sum, number 9 of them"])
    assert after.p[0, 0] < before.p[0, 0]
    files = {path.name: path.read_bytes() for path in (tmp_path / "learned").iterdir()}
    assert set(files) == {"router.json", "arrays.npz", "feedback.npz", "evidence.json", "learned.json"}
    assert main(["route", "learn", str(tmp_path / "learned"), str(tmp_path / "run")]) == 0
    out = capsys.readouterr().out
    assert "0 scores of 0 replies; 2 scores had been learned before" in out and out.endswith("the router, as it was\n")
    assert {path.name: path.read_bytes() for path in (tmp_path / "learned").iterdir()} == files
    weaverant.run(ask, rows, models=spec, directory=tmp_path / "plain").wait()
    assert main(["route", "learn", str(tmp_path / "learned"), str(tmp_path / "plain")]) == 2
    assert "has no feedback" in capsys.readouterr().err


def test_going_on_is_not_praised_for_what_the_best_answer_had_right(tmp_path: Path):
    """One is always right, the router thinks little of it, and the aggregator only copies it: nothing was gained."""
    known = SimulatedRouter({"right": 0.5, "wrong": 0.5})
    members = {"right": Scripted(counts, identity="right"), "wrong": saying("#### 99", 0.5)}
    options = RouteMoaOptions(layers=1, cost=0.0, latency=0.0, aggregator="right", judges="self")
    model = RouteMoa(pool_of(**members), options, known)
    run = weaverant.run(graded, ROWS, models={"solver": model}, directory=tmp_path / "run")
    assert [task.result for task in run] == [True] * 8
    assert all(lesson.could == 0.25 and lesson.best == 1.0 for lesson in lessons(tmp_path / "run"))
    assert model.learned.evidence.discernment.value < 0.3


# Whether to ask for scores


def scoring(tmp_path: Path, model: RouteMoa, told: bool, rows: int = 400) -> list[bool]:
    """Of each row, in their order, whether its models were asked for scores. Only `told` gives it feedback."""

    @workflow
    async def graded_at_last(row: dict[str, Any]) -> bool:
        reply = await asker.reply(question=row["question"])
        right = reply.text == f"#### {row['n'] + 1}"
        if told:
            await weaverant.feedback(reply, right)
        return right

    asked = [{"question": f"What is {n} + 1?", "n": n} for n in range(rows)]
    run = weaverant.run(
        graded_at_last, asked, models={"solver": model}, directory=tmp_path / "run", concurrency=1
    ).wait()
    assert run.exit_code == 0
    found = dict(traces(tmp_path / "run"))
    return [turns[0].assessed for _, turns in sorted(found.items(), key=lambda one: int(one[0].split(".")[-1]))]  # type: ignore[union-attr]


def test_without_feedback_scores_are_soon_asked_for_no_more(tmp_path: Path):
    """They would weigh nothing, and cost tokens."""
    asked = scoring(tmp_path, made(router(), judges="auto"), told=False)
    assert 40 <= sum(asked) <= 55 and not any(asked[300:])  # one or two rows may be in work at a time


def test_scores_are_asked_for_no_more_where_answers_get_worse_by_it(tmp_path: Path):
    def say(request: Request) -> str:
        """Right in two of three questions where it is to score itself as well, and always where it is not."""
        asked = request.messages[-1].text
        plain = "self_score" not in request.messages[0].text
        n = int(asked.split()[2])
        answer = n + 1 if plain or n % 3 else n
        return f"#### {answer}" if plain else json.dumps({"answer": f"#### {answer}", "self_score": 0.9})

    pool = pool_of(a=Scripted(say, identity="a"), b=saying("#### none"))
    asked = scoring(
        tmp_path, RouteMoa(pool, RouteMoaOptions(layers=1), SimulatedRouter({"a": 0.9, "b": 0.1})), told=True
    )
    assert sum(asked[:100]) >= 2 and sum(asked[300:]) <= 12


def test_calls_whose_form_leaves_no_answer_count_as_well(tmp_path: Path):
    """Where it is to score itself, it says nothing else; another call, plainly asked, answers then."""

    def say(request: Request) -> str:
        n = int(request.messages[-1].text.split()[2])
        plain = "self_score" not in request.messages[0].text
        return f"#### {n}" if plain else json.dumps({"answer": "", "self_score": 0.9})

    model = RouteMoa(pool_of(a=Scripted(say)), RouteMoaOptions(k=1, layers=2), SimulatedRouter({"a": 0.9}))
    asked = scoring(tmp_path, model, told=True, rows=30)
    assert model.learned.evidence.tried == {"a": sum(asked)} and sum(asked) > 2


def test_calls_that_had_no_choice_tell_nothing_of_scores(tmp_path: Path):
    model = made(router(), layers=1)
    assert all(scoring(tmp_path, model, told=True, rows=5)) and not model.learned.evidence.scoring.lessons


def test_scores_are_asked_for_where_answers_get_better_by_it(tmp_path: Path):
    """Either of two is right, no router knows which, and both know it of themselves."""

    def member(odd: bool) -> Scripted:
        def say(request: Request) -> str:
            n = int(re.findall(r"What is (\d+)", request.messages[-1].text)[-1])
            right = n % 2 == odd
            answer = f"#### {n + 1 if right else 0}"
            plain = "self_score" not in request.messages[0].text
            return answer if plain else json.dumps({"answer": answer, "self_score": 0.95 if right else 0.05})

        return Scripted(say, identity=f"odd {odd}")

    model = RouteMoa(
        pool_of(odd=member(True), even=member(False)),
        RouteMoaOptions(layers=1),
        SimulatedRouter({"odd": 0.5, "even": 0.5}),
    )
    asked = scoring(tmp_path, model, told=True)
    assert sum(asked[300:]) >= 90
    believed = Evidence()
    learn(SimulatedRouter({"odd": 0.5, "even": 0.5}), tmp_path / "run", believed)
    live = model.learned.evidence.scoring
    assert believed.scoring.lessons == pytest.approx(live.lessons, rel=0.05)  # the same, but for the order of rows
    assert believed.scoring.asked.total == pytest.approx(live.asked.total, rel=0.05)
