"""A budget is kept: the server's own bill against the run's, with many calls in flight, time-outs and kill -9.

As a script this is the long form: `python tests/test_budget.py 100` kills so many runs at random moments, prints a
table and one line of JSON, and ends with 1 if a trial failed.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import re
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import msgspec
import pytest

from weaverant import Agent, Reply, Request, StepFailed, Usage, UserError, deadline, resume, run, workflow
from weaverant.cli import main
from weaverant.events import CostReserved, RunOpened, StepEnded
from weaverant.journal import JournalReader, SegmentJournal
from weaverant.message import assistant
from weaverant.protocols import CallContext
from weaverant.summary import document, fold
from weaverant.testing.server import MockServer

PRICE = "30,150"
STRIDE = 64
"""Bytes by which the prompts of neighbouring rows differ: what the server billed tells the row."""

first = Agent("first", model="first", prompt="Say {{ pad }}", max_tokens=40)
second = Agent("second", model="second", prompt="Again {{ pad }}", max_tokens=40)


@workflow
async def twice(row: dict[str, Any]) -> Any:
    pad = "x" * (STRIDE * row["n"])
    return [await first(pad=pad), await second(pad=pad)]


def rows(count: int) -> list[dict[str, int]]:
    return [{"n": n} for n in range(count)]


def models(server: MockServer, **options: Any) -> dict[str, str]:
    query = "&".join(f"{name}={value}" for name, value in {"price": PRICE, **options}.items())
    return {name: f"{server.url}?{query}#{name}" for name in ("first", "second")}


def billed(server: MockServer) -> float:
    return math.fsum(item["dollars"] for item in server.bill())


def settle(server: MockServer) -> None:
    """Wait until nothing is worked on: a call that its client has left is not in flight any more, and is billed when its
    work is done. Another run may be under way by then, whose calls are the same."""
    while (stats := server.stats())["in_flight"] or stats["running"]:
        time.sleep(0.02)


def price_of(usage: Usage) -> float:
    """As on the price list, worked out here."""
    return (usage.prompt_tokens * 30 + usage.completion_tokens * 150) / 1e6


def events(directory: Path, kind: type) -> list[Any]:
    return [event for event in JournalReader(directory).events() if isinstance(event, kind)]


def spent(directory: Path) -> dict[str, float]:
    return document(fold(directory))["spent"]


# In order


def test_calls_that_are_cut_off_are_on_the_bill_without_a_budget(tmp_path: Path):
    """For each that a deadline ends a bound stands; one that still waits for a place then costs nothing."""

    @workflow
    async def hurries(row: dict[str, Any]) -> Any:
        try:
            async with deadline(0.3 + row["n"] / 100):
                return await first(pad="x" * row["n"])
        except TimeoutError:
            return None

    directory = tmp_path / "run"
    with MockServer(latency=0.3, skew=1.2, price=PRICE) as server:
        made = run(hurries, rows(60), models=models(server, connections=20, start=20), directory=directory).wait()
        settle(server)
        bill, asked = billed(server), server.stats()["total"]
    counts = made.ledger.agents["model", "first"]
    found = spent(directory)
    assert 0 < counts.cancelled < 60 and made.exit_code == 0
    assert asked <= made.ledger.usage().requests, "a request that was cut off at once may not have got there"
    assert found["unsure"] > 0 and found["known"] < bill <= found["total"] == pytest.approx(made.spent)


def test_the_report_is_the_servers_bill(tmp_path: Path):
    with MockServer(price=PRICE) as server:
        done = run(twice, rows(20), models=models(server), directory=tmp_path / "run", budget=50).wait()
        assert done.exit_code == 0
        found = document(fold(tmp_path / "run"))
        bill = server.bill()
        by_model = {name: math.fsum(i["dollars"] for i in bill if i["model"] == name) for name in ("first", "second")}
    assert len(bill) == 40 and found["spent"]["total"] == pytest.approx(math.fsum(by_model.values()), abs=1e-9)
    assert {agent["name"]: agent["cost"] for agent in found["agents"]} == pytest.approx(by_model, abs=1e-9)
    assert found["budget"] == 50 and done.spent == pytest.approx(found["spent"]["total"], abs=1e-9)
    assert (found["spent"]["unsure"], found["spent"]["reserved"]) == (0, 0)
    reserved = events(tmp_path / "run", CostReserved)
    assert len(reserved) == 40, "one more event a call"
    assert {event.name for event in reserved} == {"first", "second"}


def test_without_a_budget_nothing_is_set_aside(tmp_path: Path):
    with MockServer(price=PRICE) as server:
        run(twice, rows(3), models=models(server), directory=tmp_path / "run").wait()
        assert spent(tmp_path / "run")["total"] == pytest.approx(billed(server), abs=1e-9)
    assert events(tmp_path / "run", CostReserved) == []
    assert [event.budget for event in events(tmp_path / "run", RunOpened)] == [0]


def test_a_run_stops_below_its_cap_and_goes_on_with_a_larger_one_paying_nothing_twice(tmp_path: Path):
    directory, chance = tmp_path / "run", Random(1)
    given = [{"n": chance.randrange(12)} for _ in range(150)]
    with MockServer(price=PRICE, latency=0.01, skew=1.0) as server:
        stopped = run(twice, given, models=models(server), directory=directory, budget=0.8, concurrency=64).wait()
        assert (stopped.state, stopped.exit_code) == ("budget", 5)
        assert 0.75 < billed(server) <= 0.8, "most of it is used"
        assert spent(directory)["total"] == pytest.approx(billed(server), abs=1e-9)
        summary = fold(directory)
        assert summary.left > 0 and not summary.ledger.failed, "the workflow saw nothing of the stop"
        asked = server.stats()["total"]

        again = resume(directory, workflow=twice, rows=given, models=models(server)).wait()
        assert again.exit_code == 5 and billed(server) <= 0.8, "the run keeps its budget"

        poor = resume(directory, workflow=twice, rows=given, models=models(server), budget=0.1).wait()
        assert poor.exit_code == 5 and server.stats()["total"] < asked + 10, "nothing is asked when all is spent"
        before = server.stats()["total"]
        poor = resume(directory, workflow=twice, rows=given, models=models(server)).wait()
        assert poor.exit_code == 5 and server.stats()["total"] == before

        done = resume(directory, workflow=twice, rows=given, models=models(server), budget=100).wait()
        assert done.exit_code == 0
        stats = server.stats()
        assert stats["total"] == len(server.bill()) == 300, "each step was asked once"
        assert spent(directory)["total"] == pytest.approx(billed(server), abs=1e-9)
    assert [event.budget for event in events(directory, RunOpened)] == [0.8, 0.8, 0.1, 0.1, 100]


def test_a_budget_taken_away_holds_no_more(tmp_path: Path):
    with MockServer(price=PRICE) as server:
        given = {"workflow": twice, "rows": rows(10), "models": models(server)}
        assert run(twice, rows(10), models=models(server), directory=tmp_path / "r", budget=0.05).wait().exit_code == 5
        assert resume(tmp_path / "r", **given, budget=0).wait().exit_code == 0
        assert spent(tmp_path / "r")["total"] == pytest.approx(billed(server), abs=1e-9)
    assert document(fold(tmp_path / "r"))["budget"] is None


@pytest.mark.parametrize("budget", [-1, math.inf, math.nan])
def test_a_budget_is_an_amount_of_money(tmp_path: Path, budget: float):
    with pytest.raises(UserError, match="budget is an amount of US dollars"):
        run(twice, rows(1), models="simulated:latency=0", directory=tmp_path / "run", budget=budget)


# Who can be asked under a budget


def test_an_agent_whose_calls_have_no_bound_is_refused_before_anything_is_spent(tmp_path: Path):
    endless = Agent("endless", prompt="Go on: {{ n }}")
    cheap = Agent("cheap", prompt="{{ n }}", max_tokens=10)

    @workflow
    async def tell(row: dict[str, Any]) -> Any:
        return await endless(n=row["n"])

    @workflow
    async def brief(row: dict[str, Any]) -> Any:
        return await cheap(n=row["n"])

    from weaverant.recipe import recipe_of

    assert [agent.name for agent in recipe_of(twice).agents] == ["first", "second"], "known at launch: module level"
    with MockServer(price=PRICE) as server:
        free = {**models(server), "second": f"{server.url}#second"}
        for wrapped in (free, {**free, "second": f"cache:{tmp_path / 'cache'}|{free['second']}"}):
            with pytest.raises(UserError, match=r"agent 'second' cannot work under a budget.*price"):
                run(twice, rows(1), models=wrapped, directory=tmp_path / "no", budget=1)
        assert not (tmp_path / "no").exists()

        # These agents are inside a function, so they are known only once they are asked.
        late = run(
            tell, rows(3), models=f"{server.url}?price={PRICE}#m", directory=tmp_path / "a", budget=1, max_failures=1.0
        )
        assert [(task.state, task.reason) for task in late] == [("failed", "unbounded")] * 3
        assert server.stats()["total"] == 0
        fine = run(brief, rows(3), models=f"{server.url}?price={PRICE}#m", directory=tmp_path / "b", budget=1)
        assert [task.state for task in fine] == ["done"] * 3
        assert spent(tmp_path / "b")["total"] == pytest.approx(billed(server), abs=1e-9)


def test_engines_that_cost_nothing_need_no_price(tmp_path: Path):
    done = run(twice, rows(3), models="simulated:latency=0", directory=tmp_path / "run", budget=0.01).wait()
    assert (done.exit_code, spent(tmp_path / "run")["total"]) == (0, 0)


# What nobody knows the bill of


def test_calls_that_time_out_are_charged_what_they_may_have_cost(tmp_path: Path):
    with MockServer(price=PRICE, latency=0.6) as server:
        given = models(server, timeout=0.2, retries=0)
        done = run(twice, rows(4), models=given, directory=tmp_path / "run", budget=5, max_failures=1.0).wait()
        settle(server)
        bill = billed(server)
    found = document(fold(tmp_path / "run"))
    assert done.exit_code == 3 and found["stages"][0]["failed"] == {"timeout": 4}
    assert 0 < bill <= found["spent"]["unsure"] == found["spent"]["total"]
    assert found["spent"]["unsure_calls"] == 4
    assert sum(agent["requests"] for agent in found["agents"]) == 4, "failed calls count"


def test_connections_that_break_are_charged_what_they_may_have_cost(tmp_path: Path):
    with MockServer("drop-mid-body", price=PRICE) as server:
        given = models(server, retries=1)
        run(twice, rows(3), models=given, directory=tmp_path / "run", budget=5, max_failures=1.0).wait()
        bill, asked = billed(server), server.stats()["total"]
    found = document(fold(tmp_path / "run"))
    assert 3 <= asked == sum(agent["requests"] for agent in found["agents"])
    assert bill <= found["spent"]["unsure"] == found["spent"]["total"]


def test_calls_that_the_workflow_cancels_are_charged_what_they_may_have_cost(tmp_path: Path):
    @workflow
    async def impatient(row: dict[str, Any]) -> Any:
        try:
            async with asyncio.timeout(0.3):
                return await first(pad="")
        except TimeoutError:
            return "gave up"

    with MockServer(price=PRICE, latency=0.8) as server:
        done = run(impatient, rows(3), models=models(server)["first"], directory=tmp_path / "run", budget=5)
        assert [task.result for task in done] == ["gave up"] * 3
        settle(server)
        bill = billed(server)
    found = document(fold(tmp_path / "run"))
    cancelled = [event for event in events(tmp_path / "run", StepEnded) if event.outcome == "cancelled"]
    assert len(cancelled) == 3 and all(event.usage.unsure == event.usage.cost > 0 for event in cancelled)
    assert 0 < bill <= found["spent"]["unsure"] == found["spent"]["total"]
    assert done.spent == pytest.approx(found["spent"]["total"])


def test_replies_that_do_not_say_what_they_used_are_charged_what_they_may_have_cost(tmp_path: Path):
    with MockServer("absurd-usage", price=PRICE) as server:
        stopped = run(once, rows(100), models=models(server)["first"], directory=tmp_path / "run", budget=0.2).wait()
        bill = billed(server)
    found = spent(tmp_path / "run")
    assert stopped.exit_code == 5
    assert bill <= found["unsure"] == found["total"] <= 0.2


def test_a_second_request_that_the_budget_has_no_room_for_stops_nothing(tmp_path: Path):
    with MockServer(price=PRICE, latency=0.02, skew=1.0) as one, MockServer(price=PRICE, latency=0.02, skew=1.0) as two:
        specs = [models(server, hedge=0.5)["first"] for server in (one, two)]
        stopped = run(
            once, rows(300), models={"*": specs}, directory=tmp_path / "run", budget=0.2, concurrency=1
        ).wait()
        bill = billed(one) + billed(two)
    found = spent(tmp_path / "run")
    assert stopped.exit_code == 5 and bill <= found["total"] <= 0.2
    assert found["reserved"] == 0, "the call in flight was cut off, and would be paid twice"


@workflow
async def either(row: dict[str, Any]) -> Any:
    return await (first if row["n"] else second)(pad="")


@pytest.mark.parametrize("how", ["stop", "task"])
def test_money_that_was_set_aside_for_a_call_that_was_never_sent_is_free_again(tmp_path: Path, how: str):
    """The second agent's call takes all money there is. When it has ended two others get theirs, but only one place."""

    @workflow
    async def breaks(row: dict[str, Any]) -> Any:
        async with asyncio.TaskGroup() as group:
            group.create_task(either(row))
            if row["n"] == 2:
                await asyncio.sleep(2.0)
                raise RuntimeError("enough")

    with MockServer(price="1,1", latency=1.2, tokens=1) as server:
        given = models(server, price="0,100", connections=1)
        given["second"] = f"{server.url}?price=0,200#second"
        done = run(
            either if how == "stop" else breaks, rows(3), models=given, directory=tmp_path / "run", budget=0.0085
        )
        if how == "stop":
            threading.Timer(1.8, done.stop).start()
        done.wait()
        asked = server.stats()["total"]
    assert asked == 2 and len(events(tmp_path / "run", CostReserved)) >= 3
    found = spent(tmp_path / "run")
    assert found["total"] == pytest.approx(300e-6) and (found["reserved"], found["unsure"]) == (0, 0)
    assert JournalReader(tmp_path / "run").reserved().open == {}


# The queue for money, with an engine that says what it sets aside


class Till:
    """Sets `worst` dollars aside for each call, then takes `seconds` and costs `cost`."""

    def __init__(self, worst: float = 1.0, cost: float = 0.1, seconds: float = 0.01, claim: str = "") -> None:
        self.worst, self.cost, self.seconds, self.claim = worst, cost, seconds, claim
        self.orders: list[int] = []
        self.runs: set[str] = set()
        self.now = self.most = 0
        self.hang = False
        self.fail: StepFailed | None = None

    @property
    def identity(self) -> str:
        return "till"

    def unbounded(self, request: Request) -> str:
        return ""

    async def generate(self, request: Request, ctx: CallContext) -> Reply:
        self.runs.add(ctx.run)
        if ctx.purse is not None:
            await ctx.purse.afford(self.worst, self.claim and f"{self.claim}:{ctx.task}")
        self.orders.append(ctx.order)
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await asyncio.sleep(1000 if self.hang else self.seconds)
        finally:
            self.now -= 1
        if self.fail is not None:
            raise self.fail
        return Reply(assistant("x"), Usage(cost=self.cost))

    async def close(self) -> None: ...


@workflow
async def once(row: dict[str, Any]) -> Any:
    return await first(pad=str(row["n"]))


def test_calls_wait_for_money_that_others_set_free_the_oldest_row_first(tmp_path: Path):
    till = Till()
    done = run(once, rows(12), models=till, directory=tmp_path / "run", budget=2.5, concurrency=12).wait()
    assert done.exit_code == 0 and done.spent == pytest.approx(1.2)
    assert till.most == 2, "two times $1.00 fit into $2.50, three do not"
    assert till.orders == list(range(12))


def test_the_run_stops_when_nothing_in_flight_can_make_room(tmp_path: Path):
    till = Till()
    stopped = run(once, rows(30), models=till, directory=tmp_path / "run", budget=2.5, concurrency=12).wait()
    assert stopped.exit_code == 5
    # The sixteenth call begins with $1.50 spent; then $1.60 and another $1.00 are more than there is.
    assert len(till.orders) == 16 and stopped.spent == pytest.approx(1.6)
    assert spent(tmp_path / "run") == pytest.approx(
        {"total": 1.6, "known": 1.6, "unsure": 0, "unsure_calls": 0, "reserved": 0, "reserved_calls": 0}
    )
    told = document(fold(tmp_path / "run"))["short"]
    assert told == {"calls": 11, "first": 1.0, "most": 1.0} == msgspec.structs.asdict(stopped.short)
    for budget, asked in ((2.59, 0), (2.61, 1)):
        resume(tmp_path / "run", workflow=once, rows=rows(30), models=till, budget=budget, concurrency=12).wait()
        assert len(till.orders) == 16 + asked
        assert document(fold(tmp_path / "run"))["short"]["first"] == 1.0


def test_a_call_that_can_never_fit_stops_the_run_before_it_is_sent(tmp_path: Path):
    till = Till(worst=3.0)
    stopped = run(once, rows(5), models=till, directory=tmp_path / "run", budget=2.5).wait()
    assert (stopped.exit_code, till.orders, stopped.spent) == (5, [], 0)


def test_sums_of_floats_do_not_keep_the_last_call_from_its_money(tmp_path: Path):
    till = Till(worst=0.1, cost=0.1)
    done = run(once, rows(3), models=till, directory=tmp_path / "run", budget=0.3, concurrency=1).wait()
    assert 0.1 + 0.1 + 0.1 > 0.3 and done.exit_code == 0


def test_costs_that_nobody_could_set_aside_stop_the_run_when_they_reach_the_cap(tmp_path: Path):
    """A server that is paid by the hour."""
    till = Till(worst=0.0)
    stopped = run(once, rows(30), models=till, directory=tmp_path / "run", budget=1.0, concurrency=4).wait()
    assert stopped.exit_code == 5 and 1.0 < stopped.spent < 1.5


def test_a_failure_of_which_the_engine_knows_nothing_costs_all_that_was_set_aside(tmp_path: Path):
    till = Till()
    till.fail = StepFailed("server", "gone")
    run(once, rows(2), models=till, directory=tmp_path / "run", budget=9, max_failures=1.0).wait()
    assert spent(tmp_path / "run")["unsure"] == pytest.approx(2.0)
    till.fail = StepFailed("server", "gone", usage=Usage(cost=0.25, requests=3))
    again = resume(tmp_path / "run", workflow=once, rows=rows(2), models=till, retry=True, max_failures=1.0).wait()
    assert again.spent == pytest.approx(2.5), "a retry forgets failures, and never money"
    assert spent(tmp_path / "run") == pytest.approx(
        {"total": 2.5, "known": 0.5, "unsure": 2.0, "unsure_calls": 2, "reserved": 0, "reserved_calls": 0}
    )


@pytest.mark.parametrize("claim", ["", "batch"])
def test_what_was_set_aside_when_a_run_broke_off_counts_as_spent_unless_it_is_found_again(tmp_path: Path, claim: str):
    directory, till = tmp_path / "run", Till(claim=claim)
    till.hang = True
    cut = run(once, rows(2), models=till, directory=directory, budget=9)

    async def live() -> None:
        asyncio.get_running_loop().call_later(0.3, cut.stop)
        asyncio.get_running_loop().call_later(0.4, cut.stop)  # at once: the calls end without an outcome
        async for _ in cut:
            pass

    asyncio.run(live())
    assert cut.exit_code == 4 and spent(directory)["reserved"] == pytest.approx(2.0)
    till.hang = False
    done = resume(directory, workflow=once, rows=rows(2), models=till).wait()
    assert done.exit_code == 0
    lost = 0.0 if claim else 2.0
    assert spent(directory) == pytest.approx(
        {"total": 0.2 + lost, "known": 0.2, "unsure": lost, "unsure_calls": 2 * bool(lost), "reserved": 0,
         "reserved_calls": 0}
    )  # fmt: skip
    assert done.spent == pytest.approx(0.2 + lost)
    assert len(till.runs) == 1, "one run, whatever its sessions"
    other = run(once, rows(1), models=till, directory=tmp_path / "other").wait()
    assert other.exit_code == 0 and len(till.runs) == 2


def test_open_reservations_are_found_by_the_indexes_alone(tmp_path: Path):
    """Random events over many small segments and two sessions, against a plain fold over all of them."""
    chance, expected = Random(5), dict[Any, dict[str, float]]()

    async def session() -> None:
        journal = SegmentJournal(tmp_path, segment_bytes=2_000)
        for _ in range(600):
            key = (f"{chance.randrange(30)}", "", b"f" * 16, chance.randrange(3))
            if chance.random() < 0.6:
                claim, dollars = chance.choice(["", "c"]), chance.random()
                journal.append(CostReserved(*key, dollars, claim, 1.0, "a"))
                expected.setdefault(key, {})[claim] = dollars
            else:
                reused = chance.random() < 0.2
                journal.append(StepEnded(*key, "model", "a", "s", {}, "reply", "x", 0.0, 1.0, 2.0, reused=reused))
                if not reused:
                    expected.pop(key, None)
            if chance.random() < 0.2:
                await journal.flush()
        await journal.close()

    for _ in range(2):
        asyncio.run(session())
        reader = JournalReader(tmp_path)
        found = {
            key: {claim: event.dollars for claim, event in claims.items()}
            for key, claims in reader.reserved().open.items()
        }
        assert found == expected and len(expected) > 5
    assert len(list((tmp_path / "journal").iterdir())) > 10


def test_steps_of_an_earlier_run_cost_nothing(tmp_path: Path):
    till = Till()
    run(once, rows(3), models=till, directory=tmp_path / "old", budget=9).wait()
    new = run(once, rows(4), models=till, directory=tmp_path / "new", budget=1.05, reuse=tmp_path / "old").wait()
    assert new.exit_code == 0 and new.spent == pytest.approx(0.1) and len(till.orders) == 4


def test_waiting_for_money_is_no_part_of_the_latency(tmp_path: Path):
    """40 tokens of $100 a million are set aside for each of 20 calls, one is used: there is room for one at a time, so
    that the last one waits 19 times as long as the server works on it."""
    with MockServer(price="0,100", latency=0.05, tokens=1) as server:
        spec = models(server, price="0,100")["first"]
        going = run(once, rows(20), models=spec, directory=tmp_path / "run", budget=0.0065).wait()
        assert going.exit_code == 0 and server.stats()["in_flight_max"] == 1
    waited = max(event.started for event in events(tmp_path / "run", StepEnded))
    assert waited > 19 * 0.05, "a step is shown where it was sent"
    for ledger in (going.ledger, fold(tmp_path / "run").ledger):
        latencies = ledger.agents["model", "first"].latencies
        assert 0.05 <= latencies.percentile(0.5) <= latencies.percentile(0.99) < waited / 2


# From the command line, and kill -9

FILE = """
from weaverant import Agent, workflow

first = Agent("first", model="first", prompt="Say {{ pad }}", max_tokens=40)
second = Agent("second", model="second", prompt="Again {{ pad }}", max_tokens=40)

@workflow
async def twice(row):
    pad = "x" * (64 * row["n"])
    return [await first(pad=pad), await second(pad=pad)]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return furnish(tmp_path)


def furnish(folder: Path, count: int = 24) -> Path:
    (folder / "w.py").write_text(FILE)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(count)))
    return folder


def begin(folder: Path, server: MockServer, *more: str) -> list[str]:
    given = [f"--model={name}={spec}" for name, spec in models(server).items()]
    return [
        "run",
        str(folder / "w.py"),
        "--input",
        str(folder / "rows.jsonl"),
        "--run",
        str(folder / "out"),
        *given,
        *more,
    ]


def test_the_command_line_tells_what_was_spent_and_ends_with_5(folder: Path, capsys: pytest.CaptureFixture[str]):
    with MockServer(price=PRICE, latency=0.01) as server:
        assert main(begin(folder, server, "--budget", "0.25", "--concurrency", "4")) == 5
        out = capsys.readouterr().out
        assert "the budget has no room for another call" in out and "for money; " in out
        assert told(out) == (pytest.approx(billed(server), abs=1e-4), 0.25)
        assert main(["resume", str(folder / "out"), "--budget", "0.01"]) == 5
        assert "more than the budget of $0.0100" in capsys.readouterr().err
        assert main(["resume", str(folder / "out"), "--budget", "9"]) == 0
        assert told(capsys.readouterr().out) == (pytest.approx(billed(server), abs=1e-4), 9)
        assert server.stats()["total"] == 48
        assert main(["run", str(folder / "w.py"), "--input", str(folder / "rows.jsonl"), "--model", f"{server.url}#m",
                     "--run", str(folder / "no"), "--budget", "1"]) == 2  # fmt: skip


def way_on(out: str) -> list[str]:
    """The words of the command to go on, as the report has them."""
    return re.findall(r"^go on:      weaverant (resume .* --budget [\d.]+)   \(", out, re.MULTILINE)[0].split()


THRICE = FILE.replace("return [", "return [await second(pad=pad + 'y'), ")


@pytest.mark.parametrize(("concurrency", "code"), [(1, FILE), (4, FILE), (16, THRICE)])
def test_the_command_to_go_on_buys_a_row_at_least_until_there_are_none(
    folder: Path, capsys: pytest.CaptureFixture[str], concurrency: int, code: str
):
    (folder / "w.py").write_text(code)
    with MockServer(price=PRICE, latency=0.005) as server:
        ended = main(begin(folder, server, "--budget", "0.12", "--concurrency", str(concurrency)))
        sessions, done = 0, 0
        while ended == 5:
            out = capsys.readouterr().out
            assert "for money; " in out and main(["show", str(folder / "out")]) == 0
            assert way_on(capsys.readouterr().out) == way_on(out), "show says it again"
            ended, sessions = main(way_on(out)), sessions + 1
            now = fold(folder / "out").ledger.stages[0].done
            assert now > done
            done = now
        assert ended == 0 and done == 24 and sessions >= 1


def told(out: str) -> tuple[float, ...]:
    """What was spent, and the budget, as the report's line says."""
    return tuple(float(part) for part in re.findall(r"^cost +\$([\d.]+) of \$([\d.]+)$", out, re.MULTILINE)[0])


class Trial(NamedTuple):
    """One run that was killed again and again. Dollars."""

    number: int
    kills: int
    code: int
    cap: float
    bill: float
    known: float
    spent: float
    calls: int
    wrong: list[str]


def life(arguments: list[str], seconds: float | None) -> int:
    """Run a command in a process of its own, killed after so many seconds. Gives its exit code, negative for a signal."""
    child = os.fork()
    if child == 0:
        try:
            with (
                open(os.devnull, "w") as nowhere,
                contextlib.redirect_stdout(nowhere),
                contextlib.redirect_stderr(nowhere),
            ):
                os._exit(main(arguments))
        finally:
            os._exit(99)
    end = time.monotonic() + (60 if seconds is None else seconds)
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0):
        if time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
            assert seconds is not None, "a life without end"
            end = math.inf
        time.sleep(0.002)
    return os.waitstatus_to_exitcode(ended[1])


def trial(number: int, folder: Path, server: MockServer) -> Trial:
    chance = Random(number)
    furnish(folder)
    server.reset()
    cap = chance.choice([0.3, 0.6, 1.0, 2.0, 5.0])
    command = begin(folder, server, "--budget", str(cap), "--concurrency", str(chance.choice([2, 8, 32])))
    kills, code = 0, -signal.SIGKILL
    while code == -signal.SIGKILL:
        code = life(command, chance.uniform(0.02, 0.6) if kills < 5 else None)
        kills += code == -signal.SIGKILL
        if (folder / "out" / "run.json").exists():
            command = ["resume", str(folder / "out")]
    settle(server)
    bill, found = server.bill(), spent(folder / "out")
    total = math.fsum(item["dollars"] for item in bill)
    wrong = list(faults(folder / "out", bill, found, cap, code))
    return Trial(number, kills, code, cap, total, found["known"], found["total"], len(bill), wrong)


def faults(
    directory: Path, bill: list[dict[str, Any]], found: dict[str, float], cap: float, code: int
) -> Iterator[str]:
    """What is not as it must be."""
    total = math.fsum(item["dollars"] for item in bill)
    if code not in (0, 5):
        yield f"it ended with {code}"
    if not found["known"] - 1e-9 <= total <= found["total"] + 1e-9 <= cap + 2e-9:
        yield f"known {found['known']} <= bill {total} <= spent {found['total']} <= cap {cap} does not hold"
    steps = events(directory, StepEnded)
    if max(Counter((step.task, step.name) for step in steps).values(), default=0) > 1:
        yield "a step was acknowledged twice"
    for step in steps:
        if step.outcome != "reply" or abs(step.usage.cost - step.usage.unsure - price_of(step.usage)) > 1e-9:
            yield f"{step.task} {step.name}: {step.outcome}, {step.usage} is not what its tokens cost"
    items = Counter((item["model"], item["prompt_tokens"], round(item["dollars"], 9)) for item in bill)
    items.subtract((s.name, s.usage.prompt_tokens, round(s.usage.cost - s.usage.unsure, 9)) for s in steps)
    if any(count < 0 for count in items.values()):
        yield "a call was acknowledged that was never billed"
    yield from unaccounted(directory, bill, steps)


def unaccounted(directory: Path, bill: list[dict[str, Any]], steps: list[StepEnded]) -> Iterator[str]:
    """Steps of which more was billed than they were charged and is set aside for them."""
    charged: Counter[tuple[str, int]] = Counter()
    origin: dict[str, int] = {}
    for step in steps:
        row = int(step.task.split(".")[1])
        charged[step.name, row] += step.usage.cost  # type: ignore[assignment]
        at = 4 * step.usage.prompt_tokens - STRIDE * row
        origin[step.name] = min(origin.get(step.name, at), at)
    for (task, *_), claims in JournalReader(directory).reserved().open.items():
        for event in claims.values():
            charged[event.name, int(task.split(".")[1])] += event.dollars  # type: ignore[assignment]
    sums: Counter[tuple[str, int]] = Counter()
    for item in bill:
        if item["model"] in origin:  # the seed in the body makes it up to ten bytes longer
            row = (4 * item["prompt_tokens"] - origin[item["model"]] + 16) // STRIDE
            sums[item["model"], row] += item["dollars"]
    for place, dollars in sums.items():
        if dollars > charged[place] + 1e-9:
            yield f"{place}: ${dollars} were billed, ${charged[place]} are accounted for"


def trials(count: int, folder: Path) -> Iterator[Trial]:
    with MockServer(price=PRICE, latency=0.03, skew=0.8) as server:
        for number in range(count):
            place = folder / str(number)
            place.mkdir()
            yield trial(number, place, server)


def test_kill_minus_9_never_costs_more_than_the_cap_and_loses_no_bill(tmp_path: Path):
    found = list(trials(10, tmp_path))
    assert [(one.number, one.kills, one.wrong) for one in found if one.wrong] == []
    assert sum(one.kills for one in found) >= 10, "the trials hardly killed anything"
    assert any(one.spent > one.known for one in found), "no kill hit a call in flight"
    assert {one.code for one in found} == {0, 5}


@pytest.mark.slow
def test_a_hundred_runs_are_killed(tmp_path: Path):
    assert [(one.number, one.wrong) for one in trials(100, tmp_path) if one.wrong] == []


def long_form(count: int) -> int:
    print(f"{'trial':>5} {'kills':>5} {'exit':>4} {'calls':>5} {'known':>9} {'bill':>9} {'spent':>9} {'cap':>7}")
    found: list[Trial] = []
    with tempfile.TemporaryDirectory() as folder:
        for one in trials(count, Path(folder)):
            found.append(one)
            print(f"{one.number:5} {one.kills:5} {one.code:4} {one.calls:5} {one.known:9.5f} {one.bill:9.5f} "
                  f"{one.spent:9.5f} {one.cap:7.2f} {'; '.join(one.wrong)}", flush=True)  # fmt: skip
    print(json.dumps({
        "trials": len(found), "kills": sum(one.kills for one in found), "calls": sum(one.calls for one in found),
        "finished": sum(one.code == 0 for one in found), "budget": sum(one.code == 5 for one in found),
        "above_cap": sum(one.bill > one.cap + 1e-9 for one in found), "failed": sum(bool(one.wrong) for one in found),
        "billed": math.fsum(one.bill for one in found), "bound": math.fsum(one.spent - one.known for one in found),
    }))  # fmt: skip
    return int(any(one.wrong for one in found))


if __name__ == "__main__":
    sys.exit(long_form(int(sys.argv[1]) if len(sys.argv) > 1 else 100))
