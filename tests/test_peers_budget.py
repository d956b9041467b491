"""One cap for all peers of a run: the server's own bill against it, through kills of peers, offices and drivers."""

from __future__ import annotations

import asyncio
import json
import math
import secrets
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from peers_world import (
    begin,
    call,
    command,
    faults,
    nothing_left,
    office_pid,
    peer_pids,
    signal_to,
    steps_done,
    wait_until,
)
from weaverant.engines import open_engine
from weaverant.engines.http import Pool
from weaverant.events import CostReserved, PeerOpened, RunOpened, StepEnded, TaskTaken
from weaverant.journal import JournalReader
from weaverant.journal.homes import epochs_of, home_of, is_fenced
from weaverant.runtime.budget import ROUNDING
from weaverant.summary import document, fold
from weaverant.swarm.places import KEY_VARIABLE, find_office
from weaverant.testing.server import MockServer

PRICE = "1,150"
"""A reply of 20 tokens costs nearly all of a call, and half of what a call may cost at most."""

WORKFLOWS = """
from weaverant import Agent, workflow

first = Agent("first", prompt="Say {{ pad }} {{ n }}", max_tokens=40)
second = Agent("second", prompt="Again {{ pad }} {{ n }}", max_tokens=40)


@workflow
async def twice(row):
    pad = "x" * (16 * (row["n"] % 7))
    return [await first(pad=pad, n=row["n"]), await second(pad=pad, n=row["n"])]


@workflow
async def once(row):
    return await first(pad="", n=row["n"])
"""

PLACED = """
from weaverant import Agent, workflow

here = Agent("here", prompt="Say {{ n }}", max_tokens=40)
there = Agent("there", prompt="Again {{ n }}", max_tokens=40, place="gpu")


@workflow
async def afar(row):
    return [await here(n=row["n"]), await there(n=row["n"])]


@workflow
async def away(row):
    return await there(n=row["n"])
"""


@pytest.fixture
def billing(running: MockServer) -> MockServer:
    """A server that sends bills, and remembers no call."""
    running.reset()
    running.control(price=PRICE, latency=0.02, skew=1.0, tokens=20, scenario="ok")
    return running


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Nothing is left behind by who ended in order."""
    (tmp_path / "wf.py").write_text(WORKFLOWS)
    with nothing_left(tmp_path):
        yield tmp_path


def arguments(
    folder: Path, server: MockServer, rows: int, budget: float, peers: int = 3, name: str = "twice", **options: object
) -> list[str]:
    (folder / "rows.jsonl").write_text("".join(json.dumps({"n": n}) + "\n" for n in range(rows)))
    query = "&".join(f"{key}={value}" for key, value in {"price": PRICE, **options}.items())
    given = ["run", f"wf.py:{name}", "--input", "rows.jsonl", "--run", "out", "--budget", str(budget)]
    given += ["--concurrency", "24", "--max-failures", "1"]
    if peers:
        given += ["--peers", str(peers)]
    given += ["--model", f"{server.url}?{query}#m"]
    return given


def billed(server: MockServer) -> float:
    return math.fsum(item["dollars"] for item in server.bill())


def settle(server: MockServer) -> None:
    """Wait until nothing is worked on: what its client has left is billed all the same."""
    while (stats := server.stats())["in_flight"] or stats["running"]:
        time.sleep(0.02)


def spent(folder: Path) -> dict[str, float]:
    return document(fold(folder / "out"))["spent"]


def is_right(folder: Path, server: MockServer, cap: float, *, left: int = 0) -> float:
    """The run against the bill. Gives what was billed."""
    settle(server)
    bill, found = billed(server), spent(folder)
    assert bill <= cap, "the cap is hard"
    assert found["known"] - 1e-9 <= bill <= found["total"] + 1e-9, f"{bill} was billed, and of it is known: {found}"
    assert found["total"] <= cap + 1e-9
    reader = JournalReader(folder / "out")
    by_index = sum(usage.cost for usage in reader.usage().values()) + reader.reserved().dollars
    assert by_index == pytest.approx(found["total"], abs=1e-9), "what a resume goes by is what people are shown"
    assert faults(folder / "out", left=left) == []
    return bill


# In order


def test_a_cap_that_is_large_enough_is_no_hindrance(folder: Path, billing: MockServer):
    ran = call(folder, *arguments(folder, billing, 60, 2.0))
    assert ran.returncode == 0, ran.stderr
    bill = is_right(folder, billing, 2.0)
    assert spent(folder)["total"] == pytest.approx(bill, abs=1e-9)
    assert f"${bill:.4f} of $2.00" in ran.stdout
    assert [event.budget for event in JournalReader(folder / "out").run_events() if isinstance(event, RunOpened)] == [2]


def test_peers_use_up_a_cap_stop_together_and_go_on_with_more(folder: Path, billing: MockServer):
    ran = call(folder, *arguments(folder, billing, 300, 0.4))
    assert ran.returncode == 5, ran.stderr
    told = document(fold(folder / "out"))
    assert told["stages"][0]["done"] < 200
    bill = is_right(folder, billing, 0.4, left=told["stages"][0]["left"])
    assert bill > 0.85 * 0.4, "most of it is used"
    assert told["short"]["calls"] > 0 and 0.006 < told["short"]["first"] <= told["short"]["most"] < 0.007

    asked = len(billing.bill())
    again = call(folder, "resume", "out", "--peers", "2")
    assert again.returncode == 5, "the run keeps its budget"
    assert len(billing.bill()) <= asked + 1
    poor = call(folder, "resume", "out", "--peers", "2", "--budget", "0.1")
    assert poor.returncode == 5 and len(billing.bill()) <= asked + 1

    more = call(folder, "resume", "out", "--peers", "2", "--budget", "0.6")
    assert more.returncode == 5, more.stderr
    settle(billing)
    assert 0.85 * 0.6 < billed(billing) <= 0.6
    done = call(folder, "resume", "out", "--budget", "9")
    assert done.returncode == 0, done.stderr
    assert spent(folder)["total"] == pytest.approx(is_right(folder, billing, 9.0), abs=1e-9)
    assert len(billing.bill()) == 600, "nothing is paid twice"


def test_no_peer_takes_most_of_the_money(folder: Path, billing: MockServer):
    """Twenty calls fit at a time: what a call may cost is eight times what it does."""
    (folder / "wf.py").write_text(WORKFLOWS.replace("max_tokens=40", "max_tokens=320"))
    billing.control(price=PRICE, latency=0.2, skew=0.5)
    ran = call(folder, *arguments(folder, billing, 600, 1.0))
    assert ran.returncode == 5, ran.stderr
    is_right(folder, billing, 1.0, left=document(fold(folder / "out"))["stages"][0]["left"])
    calls = sorted(peer["calls"] for peer in document(fold(folder / "out"))["peers"])
    assert len(calls) == 3 and calls[0] > 0.15 * sum(calls), calls


def test_one_process_first_then_peers(folder: Path, billing: MockServer):
    ran = call(folder, *arguments(folder, billing, 100, 0.1, peers=0))
    assert ran.returncode == 5, ran.stderr
    kept = call(folder, "resume", "out", "--peers", "2")
    assert kept.returncode == 5, "the budget of one process holds for peers"
    assert billed(billing) <= 0.1
    done = call(folder, "resume", "out", "--peers", "2", "--budget", "0")
    assert done.returncode == 0, done.stderr
    assert spent(folder)["total"] == pytest.approx(is_right(folder, billing, math.inf), abs=1e-9)


TRAVEL = {"place": ("afar", "--label", "gpu=1"), "spread": ("twice", "--spread", "roles")}


def travelling(folder: Path, server: MockServer, rows: int, budget: float, kind: str, **options: object) -> list[str]:
    """Half of the calls are made by other peers than those that own their rows."""
    (folder / "wf.py").write_text(PLACED if kind == "place" else WORKFLOWS)
    name, *flags = TRAVEL[kind]
    return [*arguments(folder, server, rows, budget, name=name, **options), *flags]


@pytest.mark.parametrize("kind", TRAVEL)
def test_calls_that_travel_are_paid_by_those_who_ask_and_keep_to_the_cap(folder: Path, billing: MockServer, kind: str):
    ran = call(folder, *travelling(folder, billing, 150, 0.4, kind))
    assert ran.returncode == 5, ran.stderr
    told = document(fold(folder / "out"))
    bill = is_right(folder, billing, 0.4, left=told["stages"][0]["left"])
    assert bill > 0.85 * 0.4, "most of it is used"
    assert told["short"]["calls"] > 0
    owners = [event for event in JournalReader(folder / "out").events() if isinstance(event, CostReserved)]
    assert {event.name for event in owners} == ({"here", "there"} if kind == "place" else {"first", "second"})
    flags = TRAVEL[kind][1:]
    done = call(folder, "resume", "out", "--peers", "3", "--budget", "9", *flags)
    assert done.returncode == 0, done.stderr
    assert spent(folder)["total"] == pytest.approx(is_right(folder, billing, 9.0), abs=1e-9)
    assert len(billing.bill()) == 300, "nothing is paid twice"


def test_a_host_that_tries_again_asks_for_the_money_of_each_try(folder: Path, billing: MockServer):
    """From some time on each request breaks off in the middle of its first answer, which is billed: nobody knows with
    what."""
    driver, run = begin(folder, *travelling(folder, billing, 60, 0.4, "place"), "--concurrency", "6"), folder / "out"
    wait_until(lambda: steps_done(run) > 12, what="some steps")
    billing.control(scenario="drop-mid-body*1")
    assert driver.wait(60) == 5, (folder / "output.txt").read_text()
    is_right(folder, billing, 0.4, left=document(fold(run))["stages"][0]["left"])
    ends = [event for event in JournalReader(run).events() if isinstance(event, StepEnded)]
    assert {event.name for event in ends if event.usage.requests == 2} == {"here", "there"}


# What others had set aside


def test_a_call_of_a_peer_that_died_is_charged_once_and_closed_by_the_one_who_asks_it_again(
    folder: Path, billing: MockServer
):
    """Calls in flight at a peer that is killed count as spent, where it had set their money aside. The peer that asks
    them again sets aside its own, closes both, and does not count the first against its own allowance: the cap has room
    for each of them twice, and not three times."""
    billing.control(price=PRICE, latency=2.0, skew=0.0)
    began = begin(folder, *arguments(folder, billing, 8, 0.08, peers=2, name="once", start=24))
    run = folder / "out"
    wait_until(lambda: billing.stats()["in_flight"] == 8, what="all eight calls")
    bound = max(event.dollars for event in JournalReader(run).events() if isinstance(event, CostReserved))
    by_peer = {epoch: len(JournalReader(run, [epoch]).reserved().open) for epoch in epochs_of(run)}
    victim, lost = max(by_peer.items(), key=lambda item: item[1])
    assert lost == 4 and 12 * bound <= 0.08 < 16 * bound, by_peer
    pid = json.loads((run / "peers" / f"{victim:06}" / "lock").read_text())["pid"]
    assert signal_to(pid)
    assert began.wait(30) == 0, (folder / "output.txt").read_text()
    found, bill = spent(folder), is_right(folder, billing, 0.08)
    assert found["reserved"] == 0 and JournalReader(run).reserved().open == {}
    real = [event for event in JournalReader(run).events() if isinstance(event, StepEnded)]
    charged = [event.usage.unsure for event in real if event.usage.unsure]
    assert len(real) == 8 and len(charged) == lost, "each lost reservation is charged by one end"
    assert found["unsure"] == pytest.approx(sum(charged)) and len(billing.bill()) == 8 + lost
    assert bill <= found["total"] == pytest.approx(found["known"] + sum(charged))
    assert sum(isinstance(event, TaskTaken) for event in JournalReader(run).events()) >= lost


@pytest.mark.parametrize("budget", [9, 0])
def test_calls_of_one_process_that_was_killed_are_charged_when_peers_go_on(
    folder: Path, billing: MockServer, budget: int
):
    """Also where the budget is taken away."""
    billing.control(price=PRICE, latency=2.0, skew=0.0)
    began = begin(folder, *arguments(folder, billing, 4, 1.0, peers=0, name="once", start=24))
    wait_until(lambda: billing.stats()["in_flight"] == 4, what="all four calls")
    began.kill()
    began.wait()
    lost = JournalReader(folder / "out").reserved().dollars
    billing.control(price=PRICE, latency=0.1)
    done = call(folder, "resume", "out", "--peers", "2", "--budget", str(budget))
    assert done.returncode == 0, done.stderr
    is_right(folder, billing, budget or math.inf)
    assert lost > 0 and spent(folder)["unsure"] == pytest.approx(lost)


@pytest.mark.parametrize("victim", ["host", "owner"])
def test_a_call_that_travels_is_charged_once_where_its_host_or_its_owner_is_killed(
    folder: Path, billing: MockServer, victim: str
):
    """A lost host's calls are asked of the next by the same owner, a lost owner's by others."""
    billing.control(price=PRICE, latency=1.0, skew=0.0)
    given = travelling(folder, billing, 40, 1.0, "place", start=24)
    given[1] = "wf.py:away"
    driver, run = begin(folder, *given, "--in-flight", "6"), folder / "out"
    wait_until(lambda: billing.stats()["in_flight"] == 6, what="two calls of each peer")
    reader = JournalReader(run)
    opened = {event.epoch: event for event in reader.run_events() if isinstance(event, PeerOpened)}
    host = next(epoch for epoch, event in opened.items() if event.labels)
    owner = next(epoch for epoch, event in opened.items() if not event.labels)
    assert len(JournalReader(run, [owner]).reserved().open) == 2, "they are paid for by the one who owns their rows"
    assert signal_to(opened[host if victim == "host" else owner].pid)
    assert driver.wait(40) == 0, (folder / "output.txt").read_text()
    found = spent(folder)
    is_right(folder, billing, 1.0)
    assert found["reserved"] == 0 and JournalReader(run).reserved().open == {}
    ends = [event for event in JournalReader(run).events() if isinstance(event, StepEnded)]
    charged = sum(event.usage.unsure > 0 for event in ends)
    again = len(billing.bill()) - 40
    assert len(ends) == 40 and 2 <= again <= (6 if victim == "host" else 2)
    assert again <= charged <= (6 if victim == "host" else 2), "each lost call is charged by one end"
    assert max(event.usage.unsure for event in ends) < 0.01, "and no end is charged twice"


def test_what_a_server_costs_by_the_hour_stops_all_peers_at_the_cap(folder: Path, billing: MockServer):
    """At a dollar a second for each peer that works."""
    given = arguments(folder, billing, 2_000, 2.0, name="once", hourly=3600)
    ran = call(folder, *[word.replace(f"price={PRICE}&", "") for word in given])
    assert ran.returncode == 5, ran.stderr
    assert 2.0 < spent(folder)["total"] < 6.0


# Disturbed


@pytest.mark.parametrize("kind", TRAVEL)
def test_no_kill_brings_the_bill_of_calls_that_travel_above_the_cap(folder: Path, billing: MockServer, kind: str):
    chance, cap, run = Random(kind), 0.6, folder / "out"
    billing.control(price=PRICE, latency=0.1, skew=1.0)
    driver = begin(folder, *travelling(folder, billing, 100, cap, kind))
    kills = 0
    while kills < 5:
        before, until = steps_done(run), time.monotonic() + 4
        while driver.poll() is None and steps_done(run) < before + 5 and time.monotonic() < until:
            time.sleep(0.02)
        time.sleep(chance.random() * 0.3)
        if driver.poll() is not None:
            break
        if kills == 2:  # three peers that end so soon would end the session
            driver.kill()
            driver.wait()
            driver = begin(folder, "resume", "out", "--peers", "3", *TRAVEL[kind][1:])
            kills += 1
        elif pids := peer_pids(run):
            kills += signal_to(chance.choice(pids))
    assert driver.wait(60) in (0, 5), (folder / "output.txt").read_text()
    settle(billing)
    assert billed(billing) <= cap
    done = call(folder, "resume", "out", "--budget", "9")
    assert done.returncode == 0, done.stderr
    is_right(folder, billing, 9.0)
    assert kills >= 2


@pytest.mark.parametrize("seed", range(3))
def test_no_kill_brings_the_bill_above_the_cap(folder: Path, billing: MockServer, seed: int):
    """Ten kills in all, of peers, offices and the driver, which is followed by the next."""
    chance, cap, run = Random(seed), 0.6, folder / "out"
    billing.control(price=PRICE, latency=0.1, skew=1.0)
    driver = begin(folder, *arguments(folder, billing, 150, cap))
    kills = 0
    while kills < (4, 3, 3)[seed % 3]:
        before = steps_done(run)
        until = time.monotonic() + 4
        while driver.poll() is None and steps_done(run) < before + 5 and time.monotonic() < until:
            time.sleep(0.02)
        time.sleep(chance.random() * 0.3)
        if driver.poll() is not None:
            break
        what = "driver" if kills == 2 else chance.choice(["peer", "peer", "office"])
        if what == "driver":
            driver.kill()
            driver.wait()
            driver = begin(folder, "resume", "out", "--peers", "3")
            kills += 1
        elif what == "office":
            kills += signal_to(office_pid(run))
        elif pids := peer_pids(run):
            kills += signal_to(chance.choice(pids))
    assert driver.wait(60) in (0, 5), (folder / "output.txt").read_text()
    settle(billing)
    assert billed(billing) <= cap
    assert spent(folder)["total"] <= cap * (1 + ROUNDING), "the bounds of calls that kills cut off included"
    if driver.returncode == 5:
        assert spent(folder)["total"] > 0.85 * cap
    done = call(folder, "resume", "out", "--peers", "2", "--budget", "9")
    assert done.returncode == 0, done.stderr
    is_right(folder, billing, 9.0)
    assert kills >= 2


# In a store


@pytest.mark.parametrize("cap", [0.3, 9.0])
def test_the_cap_holds_where_a_host_with_a_directory_of_its_own_burns_down(
    folder: Path, billing: MockServer, cap: float, monkeypatch: pytest.MonkeyPatch
):
    """What it had set aside and spent stands in the store. With little money the run stops for it, and goes on with more
    from a third directory."""
    monkeypatch.setenv(KEY_VARIABLE, secrets.token_hex(32))
    billing.control(price=PRICE, latency=0.3, skew=0.5)
    store, run, private = f"file://{folder}/store", folder / "out", folder / "private"
    given = arguments(folder, billing, 120, cap, peers=2, start=24)
    driver = begin(folder, *given, "--in-flight", "16", "--store", store)
    wait_until(lambda: (run / "peers").exists() and find_office(run) is not None, what="an office")
    joined = subprocess.Popen(command("join", "private", "--store", store), cwd=folder, stderr=subprocess.DEVNULL)

    def owed() -> bool:
        return any(JournalReader(private, [epoch]).reserved().open for epoch in epochs_of(private))

    wait_until(lambda: (private / "journal").exists() and owed(), what="a call of the host that joined")
    joined.kill()
    joined.wait()
    mine = [epoch for epoch in epochs_of(private) if JournalReader(private, [epoch]).reserved().open]
    shutil.rmtree(private)
    assert driver.wait(60) == (5 if cap < 1 else 0), (folder / "output.txt").read_text()
    told = document(fold(run))
    bill = is_right(folder, billing, cap, left=told["stages"][0]["left"])
    assert told["spent"]["unsure"] + told["spent"]["reserved"] > 0 and is_fenced(home_of(run, mine[0]))
    if cap < 1:
        assert bill > 0.7 * cap, "most of it is used"
        done = call(folder, "resume", "third", "--store", store, "--peers", "2", "--budget", "9")
        assert done.returncode == 0, done.stderr
        shutil.rmtree(run)
        (folder / "third").rename(run)
        is_right(folder, billing, 9.0)


# Rates


def test_requests_a_minute_are_those_of_the_run(folder: Path, billing: MockServer):
    """2,400 a minute are 40 a second, with a second's burst; three peers that knew of no other would make 120."""
    ran = call(folder, *arguments(folder, billing, 192, 5.0, name="once", rpm=2400))
    assert ran.returncode == 0, ran.stderr
    ends = [event.time for event in JournalReader(folder / "out").events() if isinstance(event, StepEnded)]
    assert len(ends) == 192 and max(ends) - min(ends) > 0.9 * (192 - 40) / 40


@pytest.mark.parametrize("kind", ["{0}", "cache:{1}/c|{0}", "pool:{0},{2}", "pool:{1}/servers"])
def test_a_part_of_a_server_keeps_its_identity(tmp_path: Path, kind: str):
    address = "http://127.0.0.1:1/v1?rpm=600&tpm=9000&connections=20&start=9#m"
    (tmp_path / "servers").write_text(f"{address}\n")
    spec = kind.format(address, tmp_path, address.replace(":1/", ":2/"))
    whole, part = open_engine(spec), open_engine(spec, 3)
    assert whole.identity == part.identity == "http:m"
    if isinstance(whole, Pool) and isinstance(part, Pool):
        one, third = whole.capacity(), part.capacity()
        assert third.per_minute == pytest.approx(one.per_minute / 3) and third.calls == one.calls / 3
        assert third.most * 3 <= one.most
    asyncio.run(whole.close())
    asyncio.run(part.close())
