"""The rules of steps, traces and replay (docs/design.md, section 4), one by one, through `run` and `resume`."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from weaverant import Agent, StepFailed, deadline, now, reject, resume, rng, run, step, workflow
from weaverant.engines.scripted import Scripted
from weaverant.journal import JournalReader
from weaverant.message import Request
from weaverant.sources.stdin import StandardInput
from weaverant.story import Story, Storyteller
from weaverant.task import Task
from weaverant.workflow import Workflow

say = Agent("say", prompt="{{ text }}")


class Replies:
    """An engine that says the prompt again. A prompt `wait SECONDS` takes that long, `fail` fails while `failing`,
    `stop` stops the run that `stop` was given and hangs: the next life is asked again and gets its reply."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.failing = True
        self.stop: Any = None
        self.engine = Scripted(self.reply, identity="replies")

    async def reply(self, request: Request) -> str:
        text = request.messages[0].text
        self.asked.append(text)
        if text.startswith("wait"):
            await asyncio.sleep(float(text.split()[1]))
        if text.startswith("fail") and self.failing:
            raise StepFailed("server", "down", {"codes": (1, 2)})
        if text.startswith("stop") and self.stop is not None:
            stop, self.stop = self.stop, None
            stop()
            await asyncio.sleep(60)
        return f"re: {text}"


def one(flow: Workflow, replies: Replies | None = None, row: Any = None, **options: Any) -> Task:
    """The task of one row, in one life."""
    rows = [row or {"n": 1}]
    (task,) = run(flow, rows, models=(replies or Replies()).engine, journal="directory" in options, **options)
    return task


def two_lives(tmp_path: Path, flow: Workflow, replies: Replies, pause: float = 0.0, **options: Any) -> Task:
    """The first life ends where the workflow says `stop`."""
    going = run(flow, [{"n": 1}], models=replies.engine, directory=tmp_path / "run", grace=0, **options)
    replies.stop = going.stop
    assert not list(going) and going.exit_code == 4
    time.sleep(pause)
    (task,) = resume(tmp_path / "run", workflow=flow, rows=[{"n": 1}], models=replies.engine)
    return task


def story(tmp_path: Path) -> Story:
    return Storyteller({}, lambda key: "").tell(JournalReader(tmp_path / "run").task_events("0.0.0"))


# Time


def test_a_sleep_is_not_slept_again(tmp_path: Path):
    @workflow
    async def sleeps(row: Any) -> Any:
        await asyncio.sleep(0.4)
        return await say(text="stop")

    replies = Replies()
    began = time.perf_counter()
    assert two_lives(tmp_path, sleeps, replies).state == "done"
    assert time.perf_counter() - began < 0.75
    assert replies.asked == ["stop", "stop"]


def test_a_deadline_does_not_count_the_time_a_run_stood_still(tmp_path: Path):
    @workflow
    async def hurries(row: Any) -> Any:
        async with deadline(0.5):
            await say(text="first")
            return await say(text="stop")

    assert two_lives(tmp_path, hurries, Replies(), pause=0.7).result == "re: stop"


def test_a_deadline_that_has_passed_has_passed_in_every_life(tmp_path: Path):
    @workflow
    async def late(row: Any) -> Any:
        try:
            async with deadline(0.05):
                await say(text="wait 0.2")
        except TimeoutError:
            return await say(text="stop late")

    replies = Replies()
    assert two_lives(tmp_path, late, replies).result == "re: stop late"
    assert Counter(replies.asked) == {"wait 0.2": 1, "stop late": 2}


@pytest.mark.timeout(60)
def test_a_deadline_after_a_retry_counts_from_the_answers_that_were_kept(tmp_path: Path):
    """The first step is asked again, the second was kept with a later clock: the clock must not go back behind it."""

    @workflow
    async def slow_then_bounded(row: Any) -> Any:
        try:
            await say(text="fail first")
        except StepFailed:
            pass
        await say(text="wait 0.6")
        async with deadline(0.3):
            await say(text="fail last" if replies.failing else "wait 30")

    replies = Replies()
    list(run(slow_then_bounded, [{}], models=replies.engine, directory=tmp_path / "run", max_failures=1.0))
    replies.failing = False
    began = time.perf_counter()
    (task,) = resume(
        tmp_path / "run", workflow=slow_then_bounded, rows=[{}], models=replies.engine, retry=True, max_failures=1.0
    )
    assert task.reason == "TimeoutError"
    assert time.perf_counter() - began < 2


def test_now_and_rng_are_the_same_in_every_life(tmp_path: Path):
    seen: list[Any] = []

    @workflow
    async def looks(row: Any) -> Any:
        await say(text="one")

        async def branch() -> float:
            return rng().random()

        draws = await asyncio.gather(branch(), branch())
        seen.append((now(), rng("a").random(), rng("b").random(), tuple(draws)))
        await say(text="stop")
        return [rng("a").random(), now().timestamp()]

    assert two_lives(tmp_path, looks, Replies(), pause=0.02).state == "done"
    first, second = seen
    assert first == second
    assert len({*first[1:3], *first[3]}) == 4


# Cancellation and races


def test_cancelled_siblings_with_a_journal(tmp_path: Path):
    @workflow
    async def races(row: Any) -> Any:
        tasks = [asyncio.create_task(say(text=f"wait {wait}")) for wait in (0.01, 5, 5)]
        done, rest = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in rest:
            task.cancel()
        return [task.result() for task in done]

    began = time.perf_counter()
    task = one(races, directory=tmp_path / "run")
    assert task.result == ["re: wait 0.01"]
    assert time.perf_counter() - began < 3
    assert [step.outcome for step in story(tmp_path).steps] == ["reply", "cancelled", "cancelled"]


def test_what_a_workflow_leaves_running_is_cancelled(tmp_path: Path):
    ended: list[str] = []

    async def lingers() -> None:
        try:
            await say(text="wait 5")
        finally:
            ended.append("finally")

    @workflow
    async def leaves(row: Any) -> Any:
        row["kept"] = asyncio.create_task(lingers())
        return await say(text="quick")

    assert one(leaves, directory=tmp_path / "run").result == "re: quick"
    assert ended == ["finally"]


def test_a_generator_left_early_ends_inside_its_workflow():
    ended: list[str] = []

    async def words() -> Any:
        try:
            for word in ("a", "b"):
                yield word
        finally:
            ended.append(await say(text="bye"))

    @workflow
    async def breaks(row: Any) -> Any:
        async for _ in words():
            break
        await say(text="after")
        return await say(text="later")

    assert one(breaks).state == "done"
    assert ended == ["re: bye"]


def test_a_stop_raises_nothing_inside_a_workflow(tmp_path: Path):
    caught: list[BaseException] = []

    @workflow
    async def careful(row: Any) -> Any:
        try:
            return await say(text="stop")
        except (Exception, asyncio.CancelledError) as error:
            caught.append(error)
            return "caught"

    assert two_lives(tmp_path, careful, Replies()).result == "re: stop"
    assert not caught


def test_a_call_in_flight_at_a_stop_finishes_and_its_task_is_given(tmp_path: Path):
    @workflow
    async def quick(row: Any) -> Any:
        return await say(text="wait 0.2")

    going = run(quick, [{"n": n} for n in range(5)], models=Replies().engine, directory=tmp_path / "run")

    def stop_when_all_are_in_flight() -> None:
        while going.in_flight[1] < 5:
            time.sleep(0.005)
        going.stop()

    threading.Thread(target=stop_when_all_are_in_flight).start()
    assert [task.state for task in going] == ["done"] * 5
    assert going.state == "interrupted"


# Ends


@pytest.mark.timeout(60)
def test_a_child_that_swallows_its_cancellation_cannot_hold_the_task(tmp_path: Path):
    @workflow
    async def returns(row: Any) -> Any:
        async def stubborn() -> None:
            while True:
                try:
                    await say(text="wait 0.01")
                except asyncio.CancelledError:
                    continue

        child = asyncio.create_task(stubborn())
        await say(text="wait 0.1")
        return child.done()

    assert one(returns, directory=tmp_path / "run").result is False


@pytest.mark.timeout(60)
def test_a_failure_in_a_task_group_counts_as_itself_and_is_asked_again(tmp_path: Path):
    replies = Replies()

    @workflow
    async def grouped(row: Any) -> Any:
        async with asyncio.TaskGroup() as tasks:
            asked = tasks.create_task(say(text="fail"))
        return asked.result()

    (task,) = run(grouped, [{}], models=replies.engine, directory=tmp_path / "run", max_failures=1.0)
    assert (task.state, task.reason) == ("failed", "server")
    replies.failing = False
    (task,) = resume(tmp_path / "run", workflow=grouped, rows=[{}], models=replies.engine, retry="server")
    assert task.result == "re: fail"


def test_sets_are_recorded_in_an_order_that_every_process_shares(tmp_path: Path):
    """Their own order depends on the process's hash seed, so two processes would ask two different things."""
    script = tmp_path / "sets.py"
    script.write_text(
        "from weaverant.trace import plain\n"
        "print(plain([{'alpha', 'beta', 'gamma', 'delta'}, {'in': frozenset('xyz')}], 'it'))\n"
    )
    printed = {
        subprocess.check_output([sys.executable, script], env=os.environ | {"PYTHONHASHSEED": str(seed)})
        for seed in range(1, 6)
    }
    assert len(printed) == 1


@pytest.mark.timeout(60)
def test_the_last_trials_of_a_row_that_cannot_be_read_again_come_from_the_journal(tmp_path: Path):
    replies = Replies()

    @workflow
    async def stops_once(row: Any) -> Any:
        return await say(text=f"stop {row['n']}")

    going = run(stops_once, iter([{"n": 7}]), models=replies.engine, directory=tmp_path / "run", trials=3, in_flight=1,
                grace=0)  # fmt: skip
    replies.stop = going.stop
    assert list(going) == []
    tasks = list(resume(tmp_path / "run", workflow=stops_once, rows=iter([]), models=replies.engine))
    assert sorted((task.key, task.result) for task in tasks) == [(f"0.0.{t}", "re: stop 7") for t in range(3)]


@pytest.mark.timeout(60)
def test_a_workflow_that_can_never_go_on_is_stuck():
    @workflow
    async def waits(row: Any) -> Any:
        await asyncio.get_running_loop().create_future()

    assert (one(waits).state, one(waits).reason) == ("failed", "stuck")


@pytest.mark.timeout(60)
def test_a_workflow_that_spins_is_cut_off():
    @workflow
    async def spins(row: Any) -> Any:
        while True:  # noqa: ASYNC110
            await asyncio.sleep(0)

    assert one(spins).reason == "spins"


class Odd(BaseException):
    pass


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(3), Odd("no"), asyncio.CancelledError(), KeyError("k")])
def test_whatever_a_workflow_raises_ends_its_task_alone(error: BaseException):
    @workflow
    async def raises(row: Any) -> Any:
        raise error

    task = one(raises)
    assert (task.state, task.reason) == ("failed", type(error).__name__)
    assert "test_replay.py" in task.where


def test_a_second_ctrl_c_takes_no_step_of_a_workflow_away(tmp_path: Path):
    """While the run shuts down, answers that were recorded before still come: a workflow that had lost a part of
    itself would be told that it is stuck, and its row would have failed for good."""
    interrupts = [KeyboardInterrupt()]

    async def part(n: int) -> int:
        if not n and interrupts:
            raise interrupts.pop()
        return n

    @workflow
    async def flow(row: Any) -> Any:
        asked = [asyncio.create_task(say(text=text)) for text in ("one", "two")]
        await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.wait([asyncio.create_task(part(n)) for n in range(4)])
        return await asked[1]

    going = run(flow, [{"n": 1}], models=Scripted("x"), directory=tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        list(going)
    assert not interrupts and not going.ledger.failed
    list(resume(tmp_path / "run", workflow=flow, rows=[{"n": 1}], models=Scripted("x")))
    assert (story(tmp_path).state, story(tmp_path).result) == ("done", "x")


@pytest.mark.parametrize("result", [object(), 2**70, "\ud800", {"deep": [lambda: 0]}])
def test_a_result_that_cannot_be_stored_says_so(tmp_path: Path, result: Any):
    @workflow
    async def odd(row: Any) -> Any:
        return result

    task = one(odd, directory=tmp_path / "run")
    assert (task.state, task.reason) == ("failed", "result")
    assert "cannot be stored" in task.result["text"]


def test_a_rejection_is_a_result():
    @workflow
    async def rejects(row: Any) -> Any:
        return reject("too easy", score=(1, 2))

    task = one(rejects)
    assert (task.state, task.reason, task.result) == ("rejected", "too easy", {"score": [1, 2]})


# What the workflow sees


def test_what_is_changed_never_reaches_the_trace(tmp_path: Path):
    seen: list[Any] = []

    @workflow
    async def changes(row: Any) -> Any:
        got = await step(lambda: {"list": [1], "pair": (1, 2)})
        seen.append((repr(row), repr(got)))
        row["n"] = "changed"
        got["list"].append("changed")
        await say(text="stop")
        return got

    task = two_lives(tmp_path, changes, Replies())
    assert seen[0] == seen[1] == (repr({"n": 1}), repr({"list": [1], "pair": [1, 2]}))
    assert task.row == {"n": 1}
    assert task.result["list"] == [1, "changed"]


def test_a_failure_is_the_same_in_every_life(tmp_path: Path):
    class Subclass(StepFailed):
        pass

    def fails() -> None:
        raise Subclass("mine", "text", {"codes": (1, 2)})

    seen: list[Any] = []

    @workflow
    async def catches(row: Any) -> Any:
        for wanted in (lambda: say(text="fail"), lambda: step(fails)):
            try:
                await wanted()
            except StepFailed as failure:
                seen.append((type(failure), failure.kind, failure.text, repr(failure.detail)))
        return await say(text="stop")

    two_lives(tmp_path, catches, Replies())
    assert seen[:2] == seen[2:]
    assert seen[0] == (StepFailed, "server", "down", "{'codes': [1, 2]}")


def test_divergence_is_counted_and_named(tmp_path: Path):
    lives: list[int] = []

    @workflow
    async def fickle(row: Any) -> Any:
        lives.append(1)
        if len(lives) == 1:
            await say(text="only in the first life")
        return await say(text="stop")

    assert two_lives(tmp_path, fickle, Replies()).state == "done"
    assert story(tmp_path).unasked == 1
    assert "'say'" in story(tmp_path).diverged


# What is refused


async def to_thread() -> Any:
    return await asyncio.to_thread(len, "")


async def connect() -> Any:
    return await asyncio.open_connection("127.0.0.1", 9)


async def connect_socket() -> Any:
    with socket.socket() as raw:
        raw.setblocking(False)
        await asyncio.get_running_loop().sock_connect(raw, ("127.0.0.1", 9))


async def spawn() -> Any:
    return await asyncio.create_subprocess_exec("true")


async def completed() -> Any:
    return [await first for first in asyncio.as_completed([asyncio.sleep(0)])]


@pytest.mark.parametrize("effect", [to_thread, connect, connect_socket, spawn])
def test_raw_effects_are_refused_with_the_way_out(effect: Any):
    @workflow
    async def raw(row: Any) -> Any:
        await effect()

    task = one(raw)
    assert (task.state, task.reason) == ("failed", "WorkflowError")
    assert "await step(function" in task.result["text"]


@pytest.mark.filterwarnings("ignore:coroutine 'sleep' was never awaited")
def test_as_completed_wants_tasks():
    @workflow
    async def chance(row: Any) -> Any:
        await completed()

    assert "create_task" in one(chance).result["text"]


@pytest.mark.parametrize("kind", ["thread", "loop"])
def test_a_step_inside_a_step_is_refused(kind: str):
    async def inner() -> Any:
        return await say(text="x")

    def outer() -> Any:
        return asyncio.run(inner())

    @workflow
    async def nested(row: Any) -> Any:
        return await step(inner if kind == "loop" else outer)

    task = one(nested)
    assert task.reason == "WorkflowError"
    assert "works only inside a workflow" in task.result["text"]


# Failures taken up again


def test_retry_forgets_recorded_failures_only(tmp_path: Path):
    @workflow
    async def fragile(row: Any) -> Any:
        return [await say(text="costly"), await say(text="fail"), await say(text="after")]

    replies = Replies()
    assert one(fragile, replies, directory=tmp_path / "run").reason == "server"
    assert not list(resume(tmp_path / "run", workflow=fragile, rows=[{"n": 1}], models=replies.engine))
    replies.failing = False
    going = resume(tmp_path / "run", workflow=fragile, rows=[{"n": 1}], models=replies.engine, retry=True)
    (task,) = going
    assert task.state == "done"
    assert Counter(replies.asked) == {"costly": 1, "fail": 2, "after": 1}
    assert (going.exit_code, story(tmp_path).attempts) == (0, 2)


async def tries(text: str, otherwise: str) -> Any:
    try:
        return await say(text=text)
    except StepFailed:
        return await say(text=otherwise)


@workflow
async def falls_back(row: Any) -> Any:
    said = await tries("fail judge", "fallback")
    return [said, await say(text="fail last")]


@workflow
async def tries_thrice(row: Any) -> Any:
    for _ in range(3):
        try:
            return await say(text="fail")
        except StepFailed:
            pass
    raise LookupError("gave up")


@workflow
async def clears_up(row: Any) -> Any:
    try:
        return await say(text="fail")
    finally:
        await say(text="cleared")


@workflow
async def says_it_in_other_words(row: Any) -> Any:
    try:
        return await say(text="fail")
    except StepFailed as error:
        raise LookupError(await say(text="words")) from error


async def asks_late(number: int) -> Any:
    await say(text="wait 0.2")
    return await say(text=f"fail {number}")


@workflow
async def asks_at_once(row: Any) -> Any:
    return await asyncio.gather(*map(asks_late, range(4)), tries("fail judge", "fallback"))


RETRIED: dict[str, tuple[Workflow, dict[str, int]]] = {
    "a failure with a fallback": (falls_back, {"fail judge": 1, "fallback": 1, "fail last": 2}),
    "a loop that gave up": (tries_thrice, {"fail": 4}),
    "a failure that was cleared up after": (clears_up, {"fail": 2, "cleared": 1}),
    "a failure raised in other words": (says_it_in_other_words, {"fail": 2, "words": 1}),
    "failures at once": (
        asks_at_once,
        {"wait 0.2": 4, **{f"fail {n}": 2 for n in range(4)}, "fail judge": 1, "fallback": 1},
    ),
}


@pytest.mark.parametrize("case", RETRIED)
def test_retry_asks_again_for_what_the_row_failed_on_and_not_for_what_it_had_dealt_with(tmp_path: Path, case: str):
    """One retry is enough, and no reply that was paid for is lost."""
    flow, asked = RETRIED[case]
    replies = Replies()
    assert one(flow, replies, directory=tmp_path / "run", max_failures=1.0).state == "failed"
    replies.failing = False
    (task,) = resume(tmp_path / "run", workflow=flow, rows=[{"n": 1}], models=replies.engine, retry=True)
    assert task.state == "done" and Counter(replies.asked) == asked
    assert story(tmp_path).unasked == ("words" in asked), "what was said of the failure is of no use now"


def test_retry_of_one_reason_leaves_the_others(tmp_path: Path):
    @workflow
    async def fails(row: Any) -> Any:
        if row["n"] == 0:
            raise LookupError
        return await say(text="fail")

    rows, replies = [{"n": 0}, {"n": 1}], Replies()
    run(fails, rows, models=replies.engine, directory=tmp_path / "run").wait()
    replies.failing = False
    going = resume(tmp_path / "run", workflow=fails, rows=rows, models=replies.engine, retry="server")
    assert [task.key for task in going] == ["0.1.0"]
    assert going.exit_code == 3


def test_rows_that_cannot_be_read_again_are_in_the_journal(tmp_path: Path):
    @workflow
    async def reads(row: Any) -> Any:
        return [row, await say(text="stop")]

    replies = Replies()
    source = StandardInput([b'{"line": 1}\n', b'{"line": 2}\n'])
    going = run(reads, source, models=replies.engine, directory=tmp_path / "run", grace=0)
    replies.stop = lambda: threading.Timer(0.1, going.stop).start()
    assert len(list(going)) == 1, "one of the two was stopped"
    again = resume(tmp_path / "run", workflow=reads, rows=StandardInput([]), models=replies.engine)
    (task,) = again
    assert task.result[0] == task.row
    assert again.ledger.stages[0].done == 2
