"""The local swarm: the oldest first, never more than wanted, bounded memory, stops, the fuse."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from weaverant import Agent, StepFailed, reject, resume, run, step, workflow
from weaverant.engines import open_engine
from weaverant.engines.embedded import EmbeddedEngine
from weaverant.engines.scripted import Scripted
from weaverant.errors import RunLocked, UserError
from weaverant.events import StepEnded
from weaverant.journal import JournalReader
from weaverant.message import Request
from weaverant.row import row_digest
from weaverant.step import Ask
from weaverant.summary import fold
from weaverant.task import TaskRun
from weaverant.testing.server import MockServer

say = Agent("say", prompt="{{ text }}")


@workflow
async def twice(row: Any) -> Any:
    return [await say(text=f"{row['n']} first"), await say(text=f"{row['n']} second")]


slow, fast = Agent("slow", prompt="{{ text }}", model="slow"), Agent("fast", prompt="{{ text }}", model="fast")


@workflow
async def either(row: Any) -> Any:
    return await (slow if row["n"] % 2 else fast)(text="x")


class Server:
    """Takes `seconds` a call and knows how many it had at once."""

    def __init__(self, seconds: float = 0.005) -> None:
        self.seconds = seconds
        self.now = self.most = 0
        self.asked: list[str] = []
        self.engine = Scripted(self.reply, identity="server")

    async def reply(self, request: Request) -> str:
        self.now += 1
        self.most = max(self.most, self.now)
        self.asked.append(request.messages[0].text)
        await asyncio.sleep(self.seconds)
        self.now -= 1
        return "x"


def rows(count: int) -> list[dict[str, int]]:
    return [{"n": n} for n in range(count)]


@pytest.mark.parametrize(
    ("models", "says"),
    [
        ([], "models: expected an engine, a spec such as .*; found an empty list"),
        ({"slow": []}, r"models\['slow'\]: expected an engine.*; found an empty list"),
        (5, "models: .*found an object of type 'int'"),
        (None, "models: .*found an object of type 'NoneType'"),
        (Scripted, "models: .*found an object of type 'type'"),
        (["simulated:", 5], "models: .*found an object of type 'list'"),
        ("127.0.0.1:8000/v1#m", "A server's address begins with http://"),
    ],
)
def test_what_is_no_model_is_a_users_error(models: Any, says: str):
    with pytest.raises(UserError, match=says):
        run(twice, rows(1), models=models, journal=False)


def test_a_run_that_stores_nothing_has_no_directory(tmp_path: Path):
    with pytest.raises(UserError, match="leave one of the two out"):
        run(twice, rows(1), models="simulated:", journal=False, directory=tmp_path / "run")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("budgett", r"run\(...\) knows no 'budgett'; did you mean 'budget'\?"),
        ("pilots", "did you mean 'pilot'"),
        ("trails", "did you mean 'trials'"),
        ("k", r"run\(...\) knows no 'k'\. The limits"),
    ],
)
def test_a_keyword_that_a_run_does_not_know_is_a_users_error(name: str, says: str, tmp_path: Path):
    with pytest.raises(UserError, match=says) as caught:
        run(twice, rows(1), models="simulated:", directory=tmp_path / "run", **{name: 1})
    for told in ("concurrency, in_flight, threads", "budget; and there is pilot", "parameters={...}"):
        assert told in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_keyword_that_resume_does_not_know_is_a_users_error(tmp_path: Path):
    run(twice, rows(1), models="simulated:", directory=tmp_path).wait()
    with pytest.raises(UserError, match=r"resume\(...\) knows no 'retri'; did you mean 'retry'"):
        resume(tmp_path, workflow=twice, rows=rows(1), models="simulated:", retri=True)


def test_the_oldest_row_is_served_first():
    server = Server()
    tasks = list(run(twice, rows(40), models=server.engine, journal=False, concurrency=2))
    order = [task.row["n"] for task in tasks]
    assert max(abs(place - n) for place, n in enumerate(order)) <= 2, "results stream out in about their order"
    assert server.most == 2


def test_no_more_calls_at_once_than_allowed_over_real_sockets():
    with MockServer(latency=0.02) as mock:
        run(twice, rows(60), models=f"{mock.url}#big", journal=False, concurrency=5).wait()
        stats = mock.stats()
        assert stats["total"] == 120 and 2 <= stats["in_flight_max"] <= 5


def test_a_stop_sends_nothing_of_what_still_waits_for_a_place():
    with MockServer(latency=0.5) as mock:
        stopped = run(twice, rows(60), models=f"{mock.url}?connections=2#big", journal=False, concurrency=50)
        threading.Timer(0.8, stopped.stop).start()
        stopped.wait()
        assert stopped.state == "interrupted" and stopped.ledger.stages[0].left >= 48
        stats = mock.stats()
        assert stats["total"] == stats["answered"] == stopped.ledger.calls <= 4, "those in flight ended, no other began"


@pytest.mark.parametrize(("spec", "places", "count"), [("simulated:latency=0.1,slots=4", 4, 60), ("tiny", 16, 320)])
def test_waiting_inside_an_engine_is_no_part_of_the_latency(spec: str, places: int, count: int, tmp_path: Path):
    engine = EmbeddedEngine.open(spec, places) if spec == "tiny" else open_engine(spec)
    ask = Agent("ask", prompt="{{ n }} caps, finds {{ n }}. How many?", max_tokens=40)

    @workflow
    async def asked(row: Any) -> Any:
        return await ask(n=row["n"])

    began = time.monotonic()
    going = run(asked, rows(count), models=engine, directory=tmp_path / "run").wait()
    took = time.monotonic() - began
    assert going.ledger.stages[0].done == count
    latencies = fold(tmp_path / "run").ledger.agents["model", "ask"].latencies
    # So many at once share the time: with the waiting the median would be half of all of it.
    assert 0 < latencies.percentile(0.5) < took * places / count * 3
    asyncio.run(engine.close())


def test_a_call_that_is_cancelled_before_it_has_a_place_took_no_time(tmp_path: Path):
    @workflow
    async def hasty(row: Any) -> Any:
        await say(text="first")
        try:
            async with asyncio.timeout(0.1):
                await asyncio.gather(*(say(text=f"more {n}") for n in range(3)))
        except TimeoutError:
            return "done"

    server = Server(0.5)
    list(run(hasty, rows(1), models=server.engine, directory=tmp_path / "run", concurrency=1))
    events = JournalReader(tmp_path / "run").task_events("0.0.0")
    cancelled = [event for event in events if isinstance(event, StepEnded) and event.outcome == "cancelled"]
    assert len(cancelled) == 3 and server.asked == ["first", "more 0"]
    assert all(event.started > 0.4 for event in cancelled), "the first call took so long"
    assert sorted(event.clock - event.started > 0.05 for event in cancelled) == [False, False, True]


class Speechless(StepFailed):
    """A failure that lacks what every failure has."""

    def __init__(self) -> None:
        Exception.__init__(self, "no")


def test_a_failure_that_cannot_be_recorded_ends_the_run():
    def fail(request: Request) -> str:
        raise Speechless

    going = run(twice, rows(2), models=Scripted(fail, identity="fail"), journal=False)
    assert not list(going)
    assert (going.state, type(going.error)) == ("broken", AttributeError)


def test_a_call_that_waits_inside_an_engine_was_not_sent():
    going = run(twice, rows(40), models="simulated:latency=2,jitter=0,slots=3", journal=False)
    counts: list[tuple[int, int]] = []

    def look() -> None:
        counts.append((going.sent, going.in_flight[1]))
        going.stop()

    threading.Timer(0.7, look).start()
    ended = len(list(going))
    assert counts == [(3, 40)]
    assert (ended, going.ledger.calls) == (0, 3), "those have finished, and no other was sent"


def test_calls_of_a_slow_model_keep_no_place_of_a_fast_one():
    with MockServer(latency=1.0) as late, MockServer() as soon:
        models = {"slow": f"{late.url}?connections=1#m", "*": f"{soon.url}#m"}
        made = run(either, rows(80), models=models, journal=False, concurrency=20, in_flight=80)
        began, ended = time.monotonic(), list[int]()
        for task in made:
            ended.append(task.row["n"])
            if len(ended) == 30:
                break
    assert sum(n % 2 == 0 for n in ended) >= 30 - (time.monotonic() - began) - 2, "the slow one answers one a second"


def test_a_free_slot_is_used_at_once():
    server = Server(0.02)
    began = time.perf_counter()
    run(twice, rows(100), models=server.engine, journal=False, concurrency=20).wait()
    assert time.perf_counter() - began < 2 * 100 * 0.02 / 20 * 2.5, "twice the ideal time and half again"


def test_rows_are_read_when_they_are_wanted_and_memory_is_bounded():
    read = 0

    def endless() -> Iterator[dict[str, Any]]:
        nonlocal read
        for read in range(20_000):
            yield {"n": read, "text": "x" * 5_000}

    tracemalloc.start()
    peak = 0
    for number, _ in enumerate(run(twice, endless(), models=Scripted("x"), journal=False, in_flight=50)):
        if number in (100, 1_500):
            seen, peak = peak, tracemalloc.get_traced_memory()[0]
            assert number < 1_000 or peak < seen + 30e6
        if number == 1_500:
            break
    tracemalloc.stop()
    assert read < 1_500 + 1_000 + 1_000 + 256 + 100, "results wait in a queue of 1,000, rows in one of 256"


async def fails(row: Any) -> None:
    await say(text="fail")


async def catches(row: Any) -> None:
    with contextlib.suppress(StepFailed):
        await say(text="fail")


async def takes_too_long(row: Any) -> None:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(say(text="wait"), 0.001)


async def fails_in_a_step(row: Any) -> None:
    await step(int, "x")


async def gathers(row: Any) -> None:
    await asyncio.gather(say(text="fail"), say(text="x"), say(text="fail"), return_exceptions=True)


@pytest.mark.parametrize("function", [fails, catches, takes_too_long, fails_in_a_step, gathers])
def test_a_task_that_has_ended_is_freed_without_the_collector(function: Any):
    """The collector runs so seldom that a run of many failures grew by 7 kB each."""

    async def reply(request: Request) -> str:
        if request.messages[0].text == "fail":
            raise StepFailed("server", "down")
        await asyncio.sleep(0 if request.messages[0].text == "x" else 60)
        return "x"

    gc.collect()
    gc.disable()
    try:
        ended = list(run(workflow(function), rows(50), models=Scripted(reply), journal=False, max_failures=1))
        kept = sum(isinstance(one, TaskRun | Ask) for one in gc.get_objects())
    finally:
        gc.enable()
    assert len(ended) == 50 and kept < 25, "but for some of the last, which the ended event loop still names"


def test_garbage_that_workflows_make_is_collected_while_the_run_goes_on():
    """The collector looks seldom, but it looks; and is set as before once the run is over."""
    alive = most = 0

    class Knot:
        def __init__(self) -> None:
            nonlocal alive, most
            alive += 1
            most = max(most, alive)
            self.itself = self

        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    @workflow
    async def knots(row: Any) -> None:
        made = [Knot() for _ in range(250)]
        await say(text=str(len(made)))

    gc.collect()
    before = gc.get_threshold(), gc.get_freeze_count()
    done = sum(1 for _ in run(knots, rows(5_000), models=Scripted("x"), journal=False, in_flight=200))
    assert done == 5_000
    assert most < 600_000, "of 1,250,000"
    assert (gc.get_threshold(), gc.get_freeze_count()) == before
    gc.collect()
    assert alive == 0


def test_of_two_runs_at_once_the_last_to_end_sets_the_collector_back():
    before = gc.get_threshold(), gc.get_freeze_count()
    meanwhile: list[tuple[int, int, int]] = []

    async def drain(count: int) -> int:
        made = run(twice, rows(count), models=Scripted("x"), journal=False, in_flight=200)
        done = [task async for task in made]
        meanwhile.append(gc.get_threshold())
        return len(done)

    async def both() -> list[int]:
        return await asyncio.gather(drain(1_000), drain(3_000))  # the first to begin is the first to end

    assert asyncio.run(both()) == [1_000, 3_000]
    assert meanwhile[0] != before[0], "while the other goes on"
    assert (gc.get_threshold(), gc.get_freeze_count()) == before


def test_a_slow_reader_holds_the_run_back():
    started = 0

    @workflow
    async def counts(row: Any) -> Any:
        nonlocal started
        started += 1
        return await say(text="x")

    async def read() -> None:
        async for _ in run(counts, rows(5_000), models=Scripted("x"), journal=False):
            await asyncio.sleep(0.5)
            break

    asyncio.run(read())
    assert started < 2_500


# Stops


def test_a_stop_lets_calls_in_flight_finish(tmp_path: Path):
    server = Server(0.1)
    going = run(twice, rows(50), models=server.engine, directory=tmp_path / "run", concurrency=5)
    threading.Timer(0.15, going.stop).start()
    first = list(going)
    assert (going.state, going.exit_code) == ("interrupted", 4)
    again = resume(tmp_path / "run", workflow=twice, rows=rows(50), models=server.engine)
    assert len(first) + len(list(again)) == 50
    assert len(server.asked) == len(set(server.asked)) == 100, "no call was made twice"


def test_a_second_stop_does_not_wait(tmp_path: Path):
    server = Server(60)
    going = run(twice, rows(5), models=server.engine, directory=tmp_path / "run")
    threading.Timer(0.1, going.stop).start()
    threading.Timer(0.3, going.stop).start()
    began = time.perf_counter()
    assert not list(going)
    assert time.perf_counter() - began < 5


def test_grace_ends(tmp_path: Path):
    going = run(twice, rows(5), models=Server(60).engine, directory=tmp_path / "run", grace=0.2)
    threading.Timer(0.1, going.stop).start()
    began = time.perf_counter()
    assert not list(going)
    assert 0.25 < time.perf_counter() - began < 5


def test_leaving_the_loop_early_leaves_a_run_that_can_be_resumed(tmp_path: Path):
    server = Server()
    for _ in run(twice, rows(20), models=server.engine, directory=tmp_path / "run", concurrency=2):
        break
    again = resume(tmp_path / "run", workflow=twice, rows=rows(20), models=server.engine)
    for _ in again:
        pass
    assert (again.ledger.stages[0].done, again.exit_code) == (20, 0)


class Told:
    """Ten rows, and from which of them on it was read each time."""

    name, rereadable = "told", True

    def __init__(self) -> None:
        self.starts: list[int] = []

    def rows(self, start: int) -> Iterator[dict[str, int]]:
        self.starts.append(start)
        return iter(rows(10)[start:])

    def identity(self) -> None:
        return None

    def count(self) -> int:
        return 10


@pytest.mark.parametrize("trials", [1, 3])
def test_a_resumed_run_goes_to_its_place_in_the_source_once(trials: int, tmp_path: Path):
    """Also where the trials of the last row have not all begun."""
    engine, directory, source = Scripted("x"), tmp_path / "run", Told()
    going = run(twice, source, models=engine, directory=directory, trials=trials, in_flight=1)
    begun, sessions = 0, 0
    while going.state != "finished":
        next(iter(going), None)  # one task, and no more of this session
        assert source.starts == [max(0, begun - 1) // trials]
        tasks = list(JournalReader(directory).tasks())
        begun, sessions, source = len(tasks), sessions + 1, Told()
        assert {task.task: task.row for task in tasks} == {
            f"0.{n // trials}.{n % trials}": row_digest({"n": n // trials}, n % trials) for n in range(begun)
        }
        going = resume(directory, workflow=twice, rows=source, models=engine, in_flight=1)
        if begun == 10 * trials:
            going.wait()
    assert sessions > 2 * trials and going.ledger.stages[0].done == 10 * trials


def test_the_fuse_blows_at_its_share_and_not_before(tmp_path: Path):
    def fails(request: Request) -> str:
        if int(request.messages[0].text.split()[0]) % 2:
            raise StepFailed("server", "down")
        return "x"

    good = run(twice, rows(60), models=Scripted(fails), journal=False, fuse_after=10, max_failures=0.8, in_flight=2)
    assert len(list(good)) == 60 and good.exit_code == 3
    bad = run(twice, rows(600), models=Scripted(fails), journal=False, fuse_after=10, max_failures=0.4, in_flight=10)
    assert len(list(bad)) < 60
    assert (bad.state, bad.exit_code) == ("fuse", 4)


@pytest.mark.parametrize("failing", [0.02, 0.3, 0.8])
def test_rows_that_fail_before_others_can_end_are_no_measure_of_all(failing: float):
    """A server that refuses some at once and takes its time for the rest: those that have ended are the failed ones."""
    size = 2_000

    async def refuses_at_once(request: Request) -> str:
        number, _ = request.messages[0].text.split()
        if int(number) * 7_919 % 1_000 < failing * 1_000:
            raise StepFailed("server", "down")
        await asyncio.sleep(0.3)
        return "x"

    engine = Scripted(refuses_at_once)
    made = run(twice, rows(size), models=engine, journal=False, in_flight=500, concurrency=500, max_failures=0.5)
    ends = [task.state for task in made]
    if failing < 0.5:
        assert made.state == "finished" and ends.count("failed") == size * failing
    else:
        assert made.state == "fuse" and 50 <= len(ends) < size / 2
        assert str(made.error).startswith("of the first ") and "rows that this session began" in str(made.error)


def test_stopping_before_the_start(tmp_path: Path):
    going = run(twice, rows(3), models=Scripted("x"), directory=tmp_path / "run")
    going.stop()
    assert not list(going)
    assert len(list(resume(tmp_path / "run", workflow=twice, rows=rows(3), models=Scripted("x")))) == 3


# One writer


def test_two_processes_cannot_write_one_run(tmp_path: Path):
    going = run(twice, rows(3), models=Server(0.2).engine, directory=tmp_path / "run")
    seen = iter(going)
    threading.Timer(0.1, going.stop).start()
    thread = threading.Thread(target=lambda: list(seen))
    thread.start()
    time.sleep(0.05)
    with pytest.raises(RunLocked):
        list(resume(tmp_path / "run", workflow=twice, rows=rows(3), models=Server(0.2).engine))
    thread.join()


def test_a_run_is_iterated_over_once():
    going = run(twice, rows(1), models=Scripted("x"), journal=False)
    assert len(list(going)) == 1
    with pytest.raises(UserError, match="once"):
        list(going)


# Effects


def test_blocking_steps_run_in_threads_side_by_side():
    @workflow
    async def sleeps(row: Any) -> Any:
        return await step(time.sleep, 0.2)

    began = time.perf_counter()
    run(sleeps, rows(16), models=Scripted("x"), journal=False, threads=16).wait()
    assert time.perf_counter() - began < 1.5


def test_an_exception_of_the_source_ends_the_run():
    def rows_and_an_error() -> Iterator[dict[str, int]]:
        yield from rows(3)
        raise OSError("the disk is gone")

    going = run(twice, rows_and_an_error(), models=Scripted("x"), journal=False)
    assert len(list(going)) <= 3
    assert (going.state, going.exit_code, str(going.error)) == ("source", 1, "the disk is gone")


def test_a_plain_for_works_where_an_event_loop_runs_already():
    """As in a notebook, whose cells run inside a loop."""

    async def cell() -> list[str]:
        return [task.state for task in run(twice, rows(3), models=Server().engine, journal=False)]

    assert asyncio.run(cell()) == ["done"] * 3


def test_the_ledger_reads_as_its_equation_and_counts_no_zeros(tmp_path: Path):
    @workflow
    async def thrice(row: Any) -> Any:
        return row if row["n"] else reject("none")

    going = run(thrice, rows(3), models=Scripted("x", identity="x"), directory=tmp_path / "run").wait()
    line = "thrice: rows 3 = done 2 + rejected 1 + failed 0 + left 0"
    assert (str(going.ledger), repr(going.ledger)) == (line, f"Ledger({line})")
    again = resume(tmp_path / "run", workflow=thrice, rows=rows(3), models=Scripted("x", identity="x")).wait()
    (stage,) = again.ledger.stages
    assert (str(again.ledger), dict(stage.rejected), dict(stage.failed)) == (line, {"(earlier)": 1}, {})
