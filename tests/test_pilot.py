"""A pilot works on the first rows, says what all will take, and the run goes on from there."""

from __future__ import annotations

import asyncio
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from weaverant import Agent, Reply, Request, Stages, StepFailed, Usage, UserError, group, reject, resume, run, workflow
from weaverant.cli.advice import next_steps
from weaverant.cli.forecast import forecast
from weaverant.cli.report import report
from weaverant.engines.cache import Cached
from weaverant.engines.http import Pool
from weaverant.events import RunClosed
from weaverant.journal import JournalReader
from weaverant.message import Sampling, assistant, user
from weaverant.pilot import Estimate, Interval, estimate
from weaverant.pilot.intervals import mean_of, share_of, student, total_of
from weaverant.protocols import CallContext
from weaverant.summary import fold
from weaverant.testing.server import MockServer

asker = Agent("asker", prompt="{{ n }}", max_tokens=5)


@workflow
async def asked(row: dict[str, Any]) -> Any:
    said = await asker(n=row["n"])
    if row["n"] % 10 == 7:
        return reject("seven")
    return {"n": row["n"], "said": said}


@workflow
async def doubled(row: dict[str, Any]) -> Any:
    return [await asker(n=row["n"]), await asker(n=row["n"])]


@group(by="said")
async def merged(rows: list[dict[str, Any]]) -> Any:
    return {"n": len(rows), "said": await asker(n=0)}


@workflow
async def after(row: dict[str, Any]) -> Any:
    return row


class Teller:
    """Row n costs `costs[n]` a call and takes 20 ms; the rows in `broken` fail."""

    identity = "teller"

    def __init__(self, costs: dict[int, float], broken: frozenset[int] = frozenset()) -> None:
        self.costs = costs
        self.broken = broken
        self.asked: list[int] = []

    async def generate(self, request: Request, ctx: CallContext) -> Reply:
        n = int(request.messages[-1].text)
        self.asked.append(n)
        await asyncio.sleep(0.02)
        if n in self.broken:
            raise StepFailed("server", "broken", usage=Usage(cost=self.costs[n]))
        return Reply(assistant("yes"), Usage(10 * n, 3, cost=self.costs[n]))

    async def close(self) -> None: ...


def rows(count: int) -> list[dict[str, int]]:
    return [{"n": n} for n in range(count)]


def skewed(count: int, seed: int = 0) -> dict[int, float]:
    chance = Random(seed)
    return {n: math.exp(chance.gauss(0, 0.8)) for n in range(count)}


def test_a_pilot_stops_after_its_rows_and_the_run_goes_on_with_the_next(tmp_path: Path):
    engine = Teller(skewed(60))
    piloted = run(asked, rows(60), models=engine, directory=tmp_path / "run", pilot=20, concurrency=8)
    assert sorted(task.row["n"] for task in piloted) == list(range(20))
    assert (piloted.state, piloted.exit_code) == ("pilot", 0)
    assert sorted(engine.asked) == list(range(20))
    done = resume(tmp_path / "run", workflow=asked, rows=rows(60), models=engine)
    assert sorted(task.row["n"] for task in done) == list(range(20, 60))
    assert (done.state, done.exit_code) == ("finished", 0) and sorted(engine.asked) == list(range(60))


def test_a_pilot_begins_no_further_trial_of_a_row_that_is_none_of_its_own(tmp_path: Path):
    engine = Teller(dict.fromkeys(range(3), 1.0), broken=frozenset(range(3)))
    limits = {"models": engine, "in_flight": 1, "fuse_after": 3}
    assert run(asked, rows(3), directory=tmp_path / "run", trials=2, **limits).wait().state == "fuse"
    begun = ["0.0.0", "0.0.1", "0.1.0"]
    assert [task.task for task in JournalReader(tmp_path / "run").tasks()] == begun
    piloted = resume(tmp_path / "run", workflow=asked, rows=rows(3), models=engine, pilot=1)
    assert list(piloted) == [] and piloted.state == "pilot"
    assert [task.task for task in JournalReader(tmp_path / "run").tasks()] == begun


def test_a_pilot_of_all_rows_just_finishes(tmp_path: Path):
    for count, pilot in ((5, 5), (5, 9)):
        done = run(asked, rows(count), models=Teller(skewed(9)), directory=tmp_path / str(pilot), pilot=pilot).wait()
        assert done.state == "finished"
    found = estimate(tmp_path / "5")
    assert found.cost.low == found.cost.high == pytest.approx(math.fsum(skewed(9)[n] for n in range(5)))


def test_the_estimate_against_its_arithmetic(tmp_path: Path):
    costs = skewed(200)
    engine = Teller(costs, frozenset((3, 4)))
    done = run(asked, rows(200), models=engine, directory=tmp_path / "run", pilot=40, concurrency=10).wait()
    assert done.exit_code == 3, "a pilot's rows may fail, and it says so"
    found = estimate(done)
    assert (found.rows, found.unfinished, found.total) == (40, 0, 200)
    seen = [costs[n] for n in range(40)]
    mean, error = statistics.fmean(seen), statistics.stdev(seen) * 160 * math.sqrt(1 / 40 + 1 / 160)
    likely = math.fsum(seen) + 160 * mean
    assert found.cost.value == pytest.approx(likely)
    skew = statistics.fmean([(cost - mean) ** 3 for cost in seen]) / statistics.pstdev(seen) ** 3
    for end in (found.cost.low, found.cost.high):  # the ends are where Hall's cubic is Student's quantile for 39
        far = (likely - end) / error
        cubic = far + skew / math.sqrt(40) * (far**2 / 3 + 1 / 6) + skew**2 / 40 * far**3 / 27
        assert abs(cubic) == pytest.approx(2.0227, rel=1e-3)
    assert found.cost.high - likely > likely - found.cost.low > 0, (
        "dear rows are likelier to be missing than cheap ones"
    )
    assert found.calls == Interval(200, 200, 200)
    assert found.completion_tokens.value == pytest.approx(3 * 38 * 5)
    assert found.failed.value == 2 / 40 and found.rejected.value == 4 / 40
    assert (found.failed.low, found.failed.high) == pytest.approx((0.01382, 0.16503), abs=1e-4)  # Wilson, by hand
    told = found.seconds
    assert told is not None and 160 * 0.02 / 10 * 0.9 < told.low <= told.value <= told.high
    assert found.spent == pytest.approx(math.fsum(seen)) and found.affordable is None
    assert estimate(tmp_path / "run").cost == found.cost, "from the directory alone"


def test_costs_of_later_stages_count_for_the_row_they_came_from(tmp_path: Path):
    engine = Teller(dict.fromkeys(range(60), 1.0))
    run(Stages(asked, doubled), rows(60), models=engine, directory=tmp_path / "run", pilot=20).wait()
    found = estimate(tmp_path / "run")
    assert found.rows == 20
    # Of the first twenty rows two are rejected with one call; the others have three.
    assert found.calls.value == pytest.approx((18 * 3 + 2) * 3)
    assert found.rejected.value == 0.1


def test_stages_of_groups_are_left_out_and_named(tmp_path: Path):
    engine = Teller(dict.fromkeys(range(60), 1.0))
    stages = Stages(asked, merged, after)
    run(stages, rows(60), models=engine, directory=tmp_path / "run", pilot=20).wait()
    found = estimate(tmp_path / "run")
    assert (found.calls.value, found.left_out) == (60.0, ["merged", "after"])
    assert "  without the stages merged, after: groups form" in "\n".join(forecast(found))
    run(asked, rows(60), models=engine, directory=tmp_path / "plain", pilot=20).wait()
    plain = estimate(tmp_path / "plain")
    assert plain.left_out == [] and "without the stage" not in "\n".join(forecast(plain))


def test_a_budget_holds_for_the_pilot_and_its_rest_is_told_in_rows(tmp_path: Path):
    engine = Teller(dict.fromkeys(range(100), 0.5))
    done = run(asked, rows(100), models=engine, directory=tmp_path / "a", pilot=10, budget=20).wait()
    found = estimate(done)
    assert (done.state, found.spent, found.budget) == ("pilot", 5, 20)
    assert found.affordable is not None and found.affordable.value == pytest.approx(30)
    # This engine can set nothing aside, as a server that is paid by the hour: the sum itself stops the run.
    stopped = run(asked, rows(100), models=engine, directory=tmp_path / "b", pilot=50, budget=2, concurrency=1).wait()
    assert (stopped.state, stopped.exit_code) == ("budget", 5)


def test_rows_without_a_known_number_are_judged_one_by_one(tmp_path: Path):
    engine = Teller(skewed(400))
    done = run(asked, (row for row in rows(400)), models=engine, directory=tmp_path / "run", pilot=30)
    assert len(list(done)) == 30 and done.state == "pilot"
    found = estimate(done)
    seen = [skewed(400)[n] for n in range(30)]
    assert found.total is None and found.seconds is None
    assert found.cost.value == pytest.approx(statistics.fmean(seen))
    assert found.cost.low < found.cost.value < found.cost.high
    # What a generator gave ahead is kept, and worked on after a resume, next row first.
    went_on = [task.row["n"] for task in resume(tmp_path / "run", workflow=asked, rows=iter(()), models=engine)]
    assert len(went_on) > 200 and sorted(went_on) == list(range(30, 30 + len(went_on)))


def test_a_short_generator_just_finishes(tmp_path: Path):
    done = run(asked, iter(rows(7)), models=Teller(skewed(9)), directory=tmp_path / "run", pilot=7).wait()
    assert done.state == "finished"


def test_trials_of_a_row_belong_to_it(tmp_path: Path):
    engine = Teller(skewed(9))
    done = run(asked, rows(9), models=engine, directory=tmp_path / "run", pilot=2, trials=3).wait()
    assert sorted(engine.asked) == [0, 0, 0, 1, 1, 1] and done.state == "pilot"
    assert estimate(done).total == 27


def far_by_hall(found: Interval, likely: float, seen: list[float], rest: int) -> None:
    """Both ends lie where Hall's cubic of the distance, in standard errors, is Student's quantile."""
    count, mean = len(seen), statistics.fmean(seen)
    error = statistics.stdev(seen) * rest * math.sqrt(1 / count + 1 / rest)
    skew = statistics.fmean([(one - mean) ** 3 for one in seen]) / statistics.pstdev(seen) ** 3
    for end in (found.low, found.high):
        far = (likely - end) / error
        cubic = far + skew / math.sqrt(count) * (far**2 / 3 + 1 / 6) + skew**2 / count * far**3 / 27
        assert abs(cubic) == pytest.approx({20: 2.0930}[count], rel=1e-3)


def test_trials_of_a_row_are_one_observation(tmp_path: Path):
    """All trials of a row cost the same here, so four of each tell no more than one."""
    costs = skewed(60)
    engine = Teller(costs, broken=frozenset((3, 4)))
    run(asked, rows(60), models=engine, directory=tmp_path / "run", pilot=20, trials=4, max_failures=1).wait()
    found = estimate(tmp_path / "run")
    assert (found.rows, found.total) == (80, 240)
    seen = [4 * costs[n] for n in range(20)]
    likely = math.fsum(seen) + 40 * statistics.fmean(seen)
    assert found.cost.value == pytest.approx(likely)
    far_by_hall(found.cost, likely, seen, 40)
    assert found.calls == Interval(240, 240, 240)
    assert found.failed.value == pytest.approx(0.1)
    assert (found.failed.low, found.failed.high) == pytest.approx((0.02787, 0.30103), abs=1e-4)  # Wilson, 2 of 20


def test_of_a_row_in_part_the_other_trials_count_as_those_that_ended(tmp_path: Path):
    """The budget ends it after three trials of a row at $1 each, and two of one at $2 each."""
    limits: dict[str, Any] = {"budget": 6, "in_flight": 1, "concurrency": 1}
    engine = Teller({0: 1.0, 1: 2.0, 2: 9.0, 3: 9.0})
    stopped = run(asked, rows(4), models=engine, directory=tmp_path / "run", trials=3, **limits).wait()
    found = estimate(stopped)
    assert (stopped.state, found.rows, found.total) == ("budget", 5, 12)
    assert found.cost.value == pytest.approx(7 + 7 / 3 * (3 + 6) / 2)


def test_failures_of_trials_that_are_no_kin_count_one_by_one(tmp_path: Path):
    """Of each row two trials of four fail, so a row's trials are no more alike than those of two rows."""

    @workflow
    async def halves(row: dict[str, Any]) -> Any:
        failed.append(row["n"])
        if failed.count(row["n"]) % 2:
            raise StepFailed("server", "every other one")
        return await asker(n=row["n"])

    failed: list[int] = []
    engine = Teller(dict.fromkeys(range(30), 1.0))
    run(halves, rows(30), models=engine, directory=tmp_path / "run", pilot=10, trials=4, max_failures=1).wait()
    found = estimate(tmp_path / "run").failed
    assert found.value == 0.5
    assert (found.low, found.high) == pytest.approx((0.35200, 0.64800), abs=1e-4)  # Wilson, 20 of 40


judge = Agent("judge", prompt="{{ n }}", max_tokens=7)


@workflow
async def judged(row: dict[str, Any]) -> Any:
    return [await asker(n=row["n"]), await judge(n=row["n"])]


def test_rows_that_an_earlier_run_answered_are_no_measure_of_those_that_it_does_not_have(tmp_path: Path):
    costs = skewed(60)
    run(asked, rows(15), models=Teller(costs), directory=tmp_path / "small").wait()
    reused: dict[str, Any] = {"pilot": 20, "reuse": tmp_path / "small"}
    run(asked, rows(60), models=Teller(costs), directory=tmp_path / "run", **reused).wait()
    found = estimate(tmp_path / "run")
    seen, paid = [costs[n] for n in range(20)], math.fsum(costs[n] for n in range(15, 20))
    assert (found.reused, found.cached, found.known, found.spent) == (15, 0, 0, pytest.approx(paid))
    assert found.cost.value == pytest.approx(paid + 40 * statistics.fmean(seen))
    far_by_hall(found.cost, found.cost.value, seen, 40)
    assert found.calls.value == 5 + 40 and found.prompt_tokens.value == pytest.approx(10 * (85 + 40 * 9.5))
    printed = "\n".join(forecast(found))
    assert f"answered at no cost: 15 calls by the earlier run {tmp_path / 'small'}" in printed
    assert "the 40 rows that are left are taken to have no answers yet" in printed
    # Where that run was answered itself, the price is found in the one before; where all are gone, nowhere.
    run(asked, rows(60), models=Teller(costs), directory=tmp_path / "again", pilot=15, reuse=tmp_path / "run").wait()
    again = estimate(tmp_path / "again")
    assert (again.spent, again.reused, again.known) == (0, 15, 5)
    assert again.cost.value == pytest.approx(40 * statistics.fmean(seen[:15]))
    (tmp_path / "small").rename(tmp_path / "moved")
    nobody = estimate(tmp_path / "again")
    assert nobody.cost.value == nobody.cost.high == nobody.cap == math.inf
    printed = "\n".join(forecast(nobody))
    assert "what they cost then nobody knows" in printed and "--budget" not in printed


def test_rows_that_the_earlier_run_has_go_as_such_rows_went(tmp_path: Path):
    """The judge has changed since; of 60 rows the earlier run has the first 30."""
    costs = skewed(60)
    run(judged, rows(30), models=Teller(costs), directory=tmp_path / "small").wait()
    reused: dict[str, Any] = {"pilot": 20, "reuse": tmp_path / "small", "overrides": {"judge": {"max_tokens": 8}}}
    piloted = run(judged, rows(60), models=Teller(costs), directory=tmp_path / "run", **reused).wait()
    found = estimate(piloted)
    seen = [costs[n] for n in range(20)]
    assert (found.reused, found.known, piloted.spent) == (20, 10, pytest.approx(math.fsum(seen)))
    assert found.cost.value == pytest.approx(math.fsum(seen) + (10 + 2 * 30) * statistics.fmean(seen))
    assert found.calls.value == pytest.approx(20 + 10 + 2 * 30)
    assert "of the 40 rows that are left it has 10 at most" in "\n".join(forecast(found))


def test_rows_that_a_cache_answered_are_no_measure_of_others(tmp_path: Path):
    costs = skewed(60)

    def cached() -> Cached:
        return Cached(Teller(costs), tmp_path / "cache")

    def piloted(count: int, name: str) -> Estimate:
        return estimate(run(asked, rows(60), models=cached(), directory=tmp_path / name, pilot=count).wait())

    run(asked, rows(15), models=cached(), directory=tmp_path / "small").wait()
    warm = piloted(15, "warm")
    assert (warm.cached, warm.reused, warm.spent, warm.cost.value) == (15, 0, 0, math.inf)
    printed = "\n".join(forecast(warm)).splitlines()
    assert [line.split()[1:] for line in printed if line.startswith("  cost")] == [["?", "?", "?"]]
    assert "  answered at no cost: 15 calls by a cache" in printed
    some = piloted(25, "some")
    paid = [costs[n] for n in range(15, 25)]
    assert some.cached == 15 and some.cost.value == pytest.approx(math.fsum(paid) + 35 * statistics.fmean(paid))


def test_a_server_that_is_paid_by_the_hour_costs_the_time_that_is_left(tmp_path: Path):
    """A dollar a second."""
    with MockServer(latency=0.1) as server:
        spec = f"{server.url}?hourly=3600&start=4&connections=4#m"
        piloted = run(says, rows(120), models=spec, directory=tmp_path / "run", pilot=40).wait()
        found = estimate(piloted)
        done = resume(tmp_path / "run", workflow=says, rows=rows(120), models=spec).wait()
    told = found.seconds
    assert told is not None and told.low >= 80 * 0.1 / 4, "four calls at once"
    for cost, seconds in zip(
        (found.cost.value, found.cost.low, found.cost.high), (told.value, told.low, told.high), strict=True
    ):
        assert cost == pytest.approx(piloted.spent + seconds)
    assert piloted.spent + 0.7 * told.low <= done.spent <= found.cost.high + NOISE_S
    assert "servers that are paid by the hour cost that time" in "\n".join(forecast(found))


def test_the_budget_for_all_rows_goes_by_what_rows_cost_and_not_by_what_was_cut_off(tmp_path: Path):
    """Replies of 20 tokens at $100 a million, of which 8,000 are allowed: a call that is cut off is charged $0.80."""
    again: dict[str, Any] = {"workflow": promises, "rows": rows(24)}
    with MockServer(price="0,100", tokens=20, latency=0.3) as server:
        spec = f"{server.url}?price=0,100&start=8&connections=8#m"
        first = run(promises, rows(24), models=spec, directory=tmp_path / "run", budget=20, grace=0.0, in_flight=8)
        for number, _ in enumerate(first):
            if number == 7:
                while server.stats()["in_flight"] < 4:
                    time.sleep(0.01)
                first.stop()
        short = resume(tmp_path / "run", models=spec, budget=fold(tmp_path / "run").ledger.spent().total, **again)
        assert short.wait().state == "budget"
        summary = fold(tmp_path / "run")
        spent = summary.ledger.spent()
        assert spent.reserved >= 0.8 and 8 <= summary.ledger.ended_rows < 24
        (advice,) = [line for line in next_steps(summary) if "for all 24 rows" in line]
        whole = float(advice.partition("about $")[2].split()[0])
        done = resume(tmp_path / "run", models=spec, budget=whole + 1e-4, **again).wait()
    assert done.state == "finished" and done.spent == pytest.approx(spent.reserved + 24 * 0.002)
    assert done.spent <= whole <= done.spent + 2 * 0.81, "and room for the bounds of a row and of a call"


def test_the_ledger_of_a_pilot_counts_the_rows_that_have_not_begun(tmp_path: Path):
    piloted = run(says, rows(12), models="simulated:latency=0", directory=tmp_path / "run", pilot=4).wait()
    told = "says: rows 12 = done 4 + rejected 0 + failed 0 + left 8"
    assert (str(piloted.ledger), repr(piloted.ledger)) == (told, f"Ledger({told})")
    assert f"  {told.removeprefix('says: ')}" in report(fold(tmp_path / "run"))
    done = resume(tmp_path / "run", workflow=says, rows=rows(12), models="simulated:latency=0").wait()
    assert str(done.ledger) == "says: rows 12 = done 12 + rejected 0 + failed 0 + left 0"


def test_nothing_is_said_of_a_run_without_rows(tmp_path: Path):
    with pytest.raises(UserError, match="pilot works on one row at least"):
        run(asked, rows(3), models="simulated:latency=0", directory=tmp_path / "no", pilot=0)
    with pytest.raises(UserError, match="needs a journal"):
        run(asked, rows(3), models="simulated:latency=0", journal=False, pilot=1)
    run(asked, rows(0), models="simulated:latency=0", directory=tmp_path / "none").wait()
    with pytest.raises(UserError, match=r"no row .* has ended"):
        estimate(tmp_path / "none")


def test_students_quantiles():
    table = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 10: 2.228, 29: 2.045, 60: 2.000, 1000: 1.962}
    for freedom, quantile in table.items():
        assert student(freedom) == pytest.approx(quantile, rel=2e-3), freedom


def test_one_row_tells_a_mean_and_no_bound():
    assert mean_of([3.0]) == Interval(3.0, 0.0, math.inf)
    assert share_of(0, 30).high == pytest.approx(0.11352, abs=1e-4)


DISTRIBUTIONS: dict[str, Callable[[Random], float]] = {
    "normal": lambda chance: chance.gauss(10, 2),
    "lognormal, sigma 0.6": lambda chance: chance.lognormvariate(0, 0.6),
    "lognormal, sigma 1": lambda chance: chance.lognormvariate(0, 1),
    "one in ten": lambda chance: float(chance.random() < 0.1),
}


@pytest.mark.parametrize(
    ("costs", "pilot", "rest", "least"),
    [
        ("normal", 3, 1000, 0.93), ("normal", 10, 5, 0.93), ("normal", 50, 1000, 0.93),
        ("lognormal, sigma 0.6", 30, 300, 0.92), ("lognormal, sigma 0.6", 50, 50, 0.93),
        ("lognormal, sigma 1", 10, 1000, 0.88), ("lognormal, sigma 1", 50, 1000, 0.92), ("one in ten", 50, 1000, 0.95),
    ],
)  # fmt: skip
def test_the_intervals_hold_what_they_promise(costs: str, pilot: int, rest: int, least: float):
    """How often the true sum of the rest lies inside, in 1,500 runs. 95 % are promised."""
    chance, draw = Random(pilot + rest), DISTRIBUTIONS[costs]
    hits = 0
    for _ in range(1500):
        told = total_of([draw(chance) for _ in range(pilot)], rest)
        hits += told.low <= math.fsum(draw(chance) for _ in range(rest)) <= told.high
    assert hits / 1500 >= least


def test_equal_costs_and_a_lean_to_either_side():
    told = total_of([0.1] * 30, 70)
    assert (told.value, told.low, told.high) == pytest.approx((7.0, 7.0, 7.0))
    right = mean_of([91.0, 91.0, 91.0, 91.0, 96.0])
    left = mean_of([99.0, 99.0, 99.0, 99.0, 94.0])
    assert right.high - right.value == pytest.approx(left.value - left.low)
    assert right.high - right.value > right.value - right.low > 0


long_winded = Agent("long-winded", prompt="Say {{ n }}", max_tokens=8000)
brief = Agent("brief", prompt="Say {{ n }}", max_tokens=30)
limited = Agent("limited", model="limited", prompt="{{ n }}", max_tokens=5)


@workflow
async def both(row: dict[str, Any]) -> Any:
    return [await limited(n=row["n"]), await asker(n=row["n"])]


@workflow
async def promises(row: dict[str, Any]) -> str:
    return await long_winded(n=row["n"])


@workflow
async def says(row: dict[str, Any]) -> str:
    return await brief(n=row["n"])


def test_the_cap_has_room_for_the_bound_of_a_call(tmp_path: Path):
    """Replies of 20 tokens at $100 a million, where 8,000 are allowed: a call is sent where $0.80 are left."""
    with MockServer(price="0,100", tokens=20) as server:
        spec = f"{server.url}?price=0,100#m"
        run(promises, rows(40), models=spec, directory=tmp_path / "run", pilot=20, concurrency=8).wait()
        found = estimate(tmp_path / "run")
        assert found.cost.high == pytest.approx(40 * 0.002) and found.cap == pytest.approx(1.1 * 40 * 0.002 + 0.8)
        (printed,) = [line for line in forecast(found) if "--budget" in line]
        cap = float(printed.partition("--budget ")[2])
        assert found.cap <= cap < found.cap + 0.01
        done = resume(tmp_path / "run", workflow=promises, rows=rows(40), models=spec, budget=cap).wait()
        assert (done.state, done.exit_code) == ("finished", 0) and done.spent == pytest.approx(40 * 0.002)
    closed = [event for event in JournalReader(tmp_path / "run").run_events() if isinstance(event, RunClosed)]
    assert [round(event.bound, 1) for event in closed] == [0.8, 0.0], "only a pilot asks for it"
    assert [list(event.capacities) for event in closed] == [["*"], []]


NOISE_S = 2.0
"""So much longer a run may take on a busy machine than a pilot could know."""


def seconds_of_the_rest(directory: Path, spec: str, count: int, pilot: int) -> tuple[Estimate, float]:
    """What a pilot tells, and how long the rest takes then."""
    run(says, rows(count), models=spec, directory=directory, pilot=pilot).wait()
    found, began = estimate(directory), time.monotonic()
    assert resume(directory, workflow=says, rows=rows(count), models=spec).wait().exit_code == 0
    return found, time.monotonic() - began


def test_time_that_a_rate_limit_takes(tmp_path: Path):
    """A pilot within the first second's burst does not notice the limit; what it tells does."""
    with MockServer(latency=0.1) as server:
        found, took = seconds_of_the_rest(tmp_path / "run", f"{server.url}?rpm=3000&start=64#m", 440, 40)
    told = found.seconds
    assert told is not None and told.low >= 400 / 50 - 1, "a second's worth may be ahead"
    assert told.low <= took <= told.high + NOISE_S and told.high < 4 * took
    (printed,) = [line for line in forecast(found) if "time left" in line]
    assert printed.split()[:3] == ["time", "left:", "about"] and printed.endswith(" s)") and " to " in printed


@pytest.mark.parametrize(("slots", "pilot"), [(100_000, 40), (8, 40)])
def test_time_that_latency_takes(tmp_path: Path, slots: int, pilot: int):
    with MockServer(latency=0.1, slots=slots) as server:
        found, took = seconds_of_the_rest(tmp_path / "run", f"{server.url}#m", 400, pilot)
    told = found.seconds
    assert told is not None and 360 * 0.1 / 1024 < told.low <= took <= told.high + NOISE_S


def test_time_of_a_server_that_takes_so_many_at_once(tmp_path: Path):
    with MockServer(latency=0.1) as server:
        found, took = seconds_of_the_rest(tmp_path / "run", f"{server.url}?connections=4&start=4#m", 120, 40)
    told = found.seconds
    assert told is not None and told.low >= 80 * 0.1 / 4
    assert 0.7 * told.low <= took <= told.high + NOISE_S and told.value < 2 * took


def test_each_engine_takes_its_own_time(tmp_path: Path):
    """One call of each row goes to a server with a rate limit, one to an engine that tells nothing."""
    with MockServer() as server:
        engines: Any = {"limited": f"{server.url}?rpm=600#m", "*": Teller(skewed(20))}
        run(both, rows(1020), models=engines, directory=tmp_path / "run", pilot=20).wait()
    told = estimate(tmp_path / "run").seconds
    assert told is not None and told.low == pytest.approx(1000 / 0.98 / 10 - 1), "a thousand calls, ten a second"


def test_what_a_pool_tells_of_its_servers(tmp_path: Path):
    """A limit of tokens and one of requests, and what calls counted as so far: 25 of the prompt and 30 of the reply."""
    asked = Request("a", "m", (user("x" * 100),), Sampling(max_tokens=30))
    with MockServer() as server:
        pool = Pool(
            [f"{server.url}?tpm=5500&connections=7&price=1,2#m", f"{server.url}?x=1&rpm=50&connections=9&price=1,4#m"]
        )

        async def ask() -> None:
            await asyncio.gather(*(pool.generate(asked, CallContext(str(n))) for n in range(4)))
            await pool.close()

        asyncio.run(ask())
    told, worst = pool.capacity(), pool.worst(asked)
    assert told.most == 7 + 9 and 0 < told.calls <= told.most
    assert told.per_minute == pytest.approx(0.98 * (5500 / 55 + 50))
    assert worst is not None and 30 * 4e-6 < worst < 30 * 4e-6 + 1000 * 1e-6
    cached = Cached(pool, tmp_path)
    assert cached.worst(asked) == worst
    asyncio.run(cached.close())


def test_the_interval_of_a_share_holds_what_it_promises():
    chance = Random(3)
    told = [share_of(sum(chance.random() < 0.08 for _ in range(60)), 60) for _ in range(1000)]
    assert 0.92 <= sum(one.low <= 0.08 <= one.high for one in told) / 1000 <= 0.99


def test_the_command_line_prints_the_estimate_and_the_way_on(tmp_path: Path):
    (tmp_path / "w.py").write_text(
        'from weaverant import Agent, workflow\nasker = Agent("asker", prompt="{{ n }}")\n'
        "@workflow\nasync def ask(row):\n    return await asker(n=row['n'])\n"
    )
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(40)))
    command = [sys.executable, "-m", "weaverant.cli", "run", "w.py", "--input", "rows.jsonl", "--run", "out"]
    ran = subprocess.run(
        [*command, "--model", "simulated:latency=0.01", "--pilot", "10"],
        cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False, env={**os.environ, "COLUMNS": "100"},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    for piece in ("the pilot has ended", "left 30", "estimate for all 40 rows, from the 10 that have ended",
                  "rows failed", "time left:", "weaverant resume out"):  # fmt: skip
        assert piece in ran.stdout, piece
    again = subprocess.run(
        [sys.executable, "-m", "weaverant.cli", "resume", "out"],
        cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert again.returncode == 0 and "done 40" in again.stdout and "estimate" not in again.stdout
