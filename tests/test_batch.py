"""Batch APIs against a real server process: gathering, every way a batch ends, kills and resumes, money."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import urlencode
from urllib.request import Request as Get
from urllib.request import urlopen

import pytest

from weaverant.engines import open_engine
from weaverant.engines.http import Batched, Pool
from weaverant.engines.http.address import parse
from weaverant.engines.http.batch.waiting import OPENAI, Limits
from weaverant.errors import StepFailed, UserError
from weaverant.journal import BlobStore, JournalReader
from weaverant.message import Reply, Request, Sampling, Usage, user
from weaverant.protocols import CallContext
from weaverant.story import Storyteller
from weaverant.testing.batches import control, stats
from weaverant.testing.server import MockServer


@pytest.fixture
def server(server: MockServer) -> MockServer:
    """With no batch, and quick."""
    control(server.root, forget=True, seconds=0.1)
    return server


def spec(
    server: MockServer, model: str = "m", gather: float = 0.05, poll: float = 0.05, backoff: float = 0.05, **more: Any
) -> str:
    options = {"batch": gather, "poll": poll, "backoff": backoff, **more}
    return f"{server.url}?{urlencode(options)}#{model}"


def asked(n: int) -> Request:
    return Request("judge", "judge", (user(f"question {n}"),), Sampling(max_tokens=100), seed=n)


def ctx(n: int, run: str = "r", **more: Any) -> CallContext:
    return CallContext(f"task-{n}", "", 0, n, run, **more)


async def outcomes(engine: Batched, numbers: range, run: str = "r", **more: Any) -> list[Reply | StepFailed]:
    calls = (engine.generate(asked(n), ctx(n, run, **more)) for n in numbers)
    found = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(each, Reply | StepFailed) for each in found), found
    return found  # type: ignore[return-value]


def ask(address: str, numbers: range = range(4), limits: Limits = OPENAI, **more: Any) -> list[Reply | StepFailed]:
    async def main() -> list[Reply | StepFailed]:
        engine = Batched(parse(address), limits)
        try:
            return await outcomes(engine, numbers, **more)
        finally:
            await engine.close()

    return asyncio.run(main())


def kinds(found: list[Reply | StepFailed]) -> list[str]:
    return [each.kind if isinstance(each, StepFailed) else "reply" for each in found]


def live(server: MockServer, numbers: range) -> list[Reply]:
    """What a live model says to the same requests."""

    async def main() -> list[Reply]:
        engine = Pool([f"{server.url}#m"])
        try:
            return [await engine.generate(asked(n), ctx(n)) for n in numbers]
        finally:
            await engine.close()

    return asyncio.run(main())


# One batch


def test_calls_that_wait_together_are_one_batch_and_get_what_a_live_model_says(server: MockServer):
    found = ask(spec(server), range(30))
    after = stats(server.root)
    assert found == live(server, range(30))
    assert len(after["batches"]) == 1 and len(after["lines"]) == 30 and set(after["lines"].values()) == {1}
    assert after["requests"]["POST /files"] == after["requests"]["POST /batches"] == 1
    marks = after["batches"][0]["metadata"]
    assert marks["model"] == "m" and marks["part"] == "1" and len(marks["weaverant"]) == 32


def test_a_call_that_comes_later_than_the_gathering_goes_into_the_next_batch(server: MockServer):
    async def main() -> None:
        engine = Batched(parse(spec(server, gather=0.1)))
        first = asyncio.create_task(outcomes(engine, range(3)))
        await asyncio.sleep(0.4)
        assert kinds(await outcomes(engine, range(3, 5)) + await first) == ["reply"] * 5
        await engine.close()

    asyncio.run(main())
    assert [batch["request_counts"]["total"] for batch in stats(server.root)["batches"]] == [3, 2]


def test_a_full_batch_does_not_wait(server: MockServer):
    control(server.root, seconds=0.1)
    began = time.monotonic()
    assert kinds(ask(spec(server, gather=30), range(20), Limits(lines=10))) == ["reply"] * 20
    assert time.monotonic() - began < 15
    assert [batch["request_counts"]["total"] for batch in stats(server.root)["batches"]] == [10, 10]


def test_a_batch_is_bounded_in_bytes(server: MockServer):
    assert kinds(ask(spec(server), range(30), Limits(size=1_000))) == ["reply"] * 30
    after = stats(server.root)
    assert len(after["batches"]) > 2 and set(after["lines"].values()) == {1}


def test_equal_calls_are_one_line_only_where_their_occurrence_is_equal(server: MockServer):
    async def main() -> list[Reply]:
        engine = Batched(parse(spec(server)))
        places = [CallContext("t", "", occurrence, 0, "r") for occurrence in (0, 0, 1)]
        calls = [engine.generate(asked(1), place) for place in places]
        found = await asyncio.gather(*calls, engine.generate(asked(2), places[0]))
        await engine.close()
        return found

    assert len({reply.text for reply in asyncio.run(main())}) == 2
    assert len(stats(server.root)["lines"]) == 3, "one for two equal calls, one for each other"


def test_the_option_opens_it_where_the_provider_has_such_an_api(server: MockServer, monkeypatch: pytest.MonkeyPatch):
    assert isinstance(open_engine(spec(server)), Batched)
    assert not isinstance(open_engine(f"{server.url}#m"), Batched)
    assert open_engine(spec(server)).identity == open_engine(f"{server.url}#m").identity == "http:m"
    monkeypatch.setenv("MISTRAL_API_KEY", "k")
    with pytest.raises(UserError, match="'mistral' has no batch API"):
        open_engine("mistral:mistral-small-latest?batch=60")


# How batches end


@pytest.mark.parametrize("fate", ["expired", "bare-expired", "cancelled", "bare-cancelled", "missing", "status-0"])
def test_what_a_batch_leaves_undone_is_asked_again_and_nothing_else(server: MockServer, fate: str):
    control(server.root, fates=[fate])
    found = ask(spec(server), range(10))
    after = stats(server.root)
    assert kinds(found) == ["reply"] * 10
    again = {"missing": 4, "status-0": 10}.get(fate, 5)
    assert [batch["request_counts"]["total"] for batch in after["batches"]] == [10, again]
    assert sorted(after["lines"].values()) == ([2] * 10 if fate == "status-0" else [1] * 10)
    assert sum(each.usage.requests for each in found if isinstance(each, Reply)) == 10 + again


@pytest.mark.parametrize(
    ("fate", "kind"), [("expired", "timeout"), ("bare-cancelled", "server"), ("missing", "server")]
)
def test_without_retries_it_fails_with_what_the_batch_says(server: MockServer, fate: str, kind: str):
    control(server.root, fates=[fate])
    found = ask(spec(server, retries=0), range(6))
    failed = {1, 3, 5} if fate != "missing" else {0, 3}
    assert kinds(found) == [kind if n in failed else "reply" for n in range(6)]
    said = {"expired": "before the completion window ended", "missing": "completed without a line for this call"}
    assert said.get(fate, "was cancelled before it came to this call") in str(found[3])


def test_retries_bound_how_often_a_line_is_asked(server: MockServer):
    control(server.root, fates=["expired"] * 9, seconds=0.1)
    (found,) = ask(spec(server, retries=2, model="fault-500"), range(1))
    assert isinstance(found, StepFailed) and found.kind == "server" and "tried in 3 batches" in found.text
    assert len(stats(server.root)["batches"]) == 3


def test_a_refused_batch_fails_its_calls_with_the_servers_words(server: MockServer):
    control(server.root, fates=["refused"])
    found = ask(spec(server))
    assert kinds(found) == ["request"] * 4 and len(stats(server.root)["batches"]) == 1
    assert str(found[0]) == "request: the batch 'batch_1' was refused: invalid_request: Refused on purpose."


def test_a_line_that_a_batch_is_refused_for_fails_alone(server: MockServer):
    control(server.root, fates=["failed"])
    found = ask(spec(server), range(5))
    assert sorted(kinds(found)) == ["reply"] * 4 + ["request"]
    assert any("invalid_request: The second line is wrong on purpose." in str(each) for each in found)


@pytest.mark.parametrize(
    ("model", "kind"),
    [
        ("fault-400", "request"),
        ("fault-401", "request"),
        ("context", "context"),
        ("fault-429", "rate_limit"),
        ("fault-503", "server"),
        ("malformed", "server"),
        ("no-choices", "server"),
        ("error-in-200", "server"),
    ],
)
def test_the_lines_of_the_error_file_are_failures_as_live_ones_are(server: MockServer, model: str, kind: str):
    found = ask(spec(server, model, retries=0))
    assert kinds(found) == [kind] * 4 and len(stats(server.root)["batches"]) == 1


def test_a_line_whose_failure_may_pass_is_asked_again(server: MockServer):
    found = ask(spec(server, "fault-429*1"))
    assert [each.usage.requests for each in found if isinstance(each, Reply)] == [2, 2, 2, 2]
    assert kinds(ask(spec(server, "fault-400*1"))) == ["request"] * 4


def test_over_the_limit_of_enqueued_tokens_batches_get_smaller(server: MockServer):
    control(server.root, most_lines=8, seconds=0.1)
    assert kinds(ask(spec(server), range(25), Limits(rest=0.1))) == ["reply"] * 25
    after = stats(server.root)
    done = [batch["request_counts"]["total"] for batch in after["batches"] if batch["status"] == "completed"]
    assert max(done) <= 8 and sum(done) == 25 and set(after["lines"].values()) == {1}


def test_one_line_over_that_limit_fails_in_the_end(server: MockServer):
    control(server.root, most_lines=-1, seconds=0.1)
    (found,) = ask(spec(server, retries=1), range(1), Limits(rest=0.05))
    assert isinstance(found, StepFailed) and found.kind == "rate_limit" and "token_limit_exceeded" in found.text
    assert len(stats(server.root)["batches"]) == 2


# The server's endpoints in trouble

TROUBLES = {
    "POST /files": ["503", "429", "reset", "lost"],
    "POST /batches": ["503", "lost"],
    "GET /batches": ["reset", "500"],
    "GET /files": ["429"],
    "GET /batches/{id}": ["reset", "502", "lost"],
    "GET /files/{id}/content": ["503", "lost"],
}


@pytest.mark.parametrize("route", TROUBLES)
def test_trouble_that_passes_costs_nothing(server: MockServer, route: str):
    control(server.root, troubles={route: TROUBLES[route]})
    assert kinds(ask(spec(server))) == ["reply"] * 4
    after = stats(server.root)
    assert len(after["batches"]) == 1 and set(after["lines"].values()) == {1}
    # A batch whose answer was lost is found in the list, and not asked for again.
    assert after["requests"][route] >= len(TROUBLES[route]) + (route != "POST /batches")


@pytest.mark.parametrize("route", ["POST /files", "POST /batches", "GET /batches"])
def test_a_server_that_refuses_fails_the_calls_at_once(server: MockServer, route: str):
    control(server.root, troubles={route: ["403"] * 4})
    found = ask(spec(server))
    assert kinds(found) == ["request"] * 4 and route.partition(" ")[2] in str(found[0])
    assert stats(server.root)["requests"][route] == 1


@pytest.mark.parametrize(
    ("troubles", "paid"),
    [
        ({"GET /batches": ["403"]}, False),
        ({"POST /files": ["403"]}, False),
        ({"POST /files": ["lost", "403"]}, False),
        ({"POST /batches": ["403"]}, False),
        ({"POST /batches": ["429"], "GET /batches": ["", "403"]}, False),
        ({"POST /batches": ["lost"], "GET /batches": ["", "403"]}, True),
        ({"GET /batches/{id}": ["403"]}, True),
    ],
)
def test_only_calls_that_may_have_been_worked_on_are_charged(
    server: MockServer, troubles: dict[str, list[str]], paid: bool
):
    control(server.root, troubles=troubles)
    found = ask(spec(server, price="2,8"))
    assert kinds(found) == ["request"] * 4
    used = [each.usage for each in found if isinstance(each, StepFailed) and each.usage is not None]
    assert len(used) == 4 and all((usage.cost == usage.unsure > 0) == paid for usage in used)


def test_a_server_that_never_answered_is_given_up_soon():
    with MockServer() as gone:
        address = spec(gone, retries=1)
    (found,) = ask(address, range(1))
    assert isinstance(found, StepFailed) and found.kind == "connection" and "tried 2 times" in found.text


def test_a_dead_server_does_not_lose_a_batch(server: MockServer):
    """It answers nothing for longer than the call's `timeout`, which bounds only what comes before the batch."""
    control(server.root, troubles={"GET /batches/{id}": ["reset"] * 4})
    assert kinds(ask(spec(server, timeout=0.05, retries=0))) == ["reply"] * 4


# Resuming


def wait_until(true: Callable[[], bool]) -> None:
    give_up = time.monotonic() + 20
    while not true():
        assert time.monotonic() < give_up
        time.sleep(0.01)


def interrupted(address: str, numbers: range, until: Callable[[], bool], run: str = "r") -> None:
    """An engine asks, and is closed as soon as the server says so; only what the server knows is left."""

    async def main() -> None:
        engine = Batched(parse(address))
        asking = asyncio.create_task(outcomes(engine, numbers, run))
        await asyncio.to_thread(wait_until, until)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await engine.close()

    asyncio.run(main())


@pytest.mark.parametrize("gather", [0.05, 1.0])
def test_an_engine_goes_on_with_a_run_in_another_event_loop(server: MockServer, gather: float):
    """As where a run is left, and resumed with the same engine."""
    engine = Batched(parse(spec(server, gather=gather)))

    async def main(seconds: float) -> list[Reply | StepFailed]:
        return await asyncio.wait_for(outcomes(engine, range(4)), seconds)

    control(server.root, seconds=1.0)
    with pytest.raises(TimeoutError):
        asyncio.run(main(0.5))
    assert kinds(asyncio.run(main(20.0))) == ["reply"] * 4
    assert set(stats(server.root)["lines"].values()) == {1}


@pytest.mark.parametrize("seconds", [0.0, 1.5])
def test_a_resumed_run_waits_for_the_batch_it_had_asked(server: MockServer, seconds: float):
    """Whether it ends while nobody looks, or while somebody looks again."""
    control(server.root, seconds=1.5)
    interrupted(spec(server), range(6), lambda: len(stats(server.root)["batches"]) == 1)
    control(server.root, seconds=seconds)
    found = ask(spec(server), range(8))
    after = stats(server.root)
    assert kinds(found) == ["reply"] * 8 and found[:6] == live(server, range(6))
    assert [batch["request_counts"]["total"] for batch in after["batches"]] == [6, 2]
    assert set(after["lines"].values()) == {1}


def test_another_run_asks_anew(server: MockServer):
    assert (
        kinds(ask(spec(server), run="one") + ask(spec(server), run="two") + ask(spec(server), run="")) == ["reply"] * 12
    )
    assert len(stats(server.root)["batches"]) == 3


def test_a_server_that_forgets_metadata_is_resumed_by_the_names_of_files(server: MockServer):
    control(server.root, seconds=1.0, metadata=False)
    interrupted(spec(server), range(6), lambda: len(stats(server.root)["batches"]) == 1)
    assert kinds(ask(spec(server), range(6))) == ["reply"] * 6
    after = stats(server.root)
    assert len(after["batches"]) == 1 and set(after["lines"].values()) == {1}


def test_a_file_that_no_batch_was_made_of_is_deleted(server: MockServer):
    control(server.root, troubles={"POST /batches": ["503"] * 99})
    interrupted(spec(server), range(6), lambda: stats(server.root)["requests"].get("POST /batches", 0) > 0)
    assert len(stats(server.root)["files"]) == 1
    control(server.root, troubles={})
    assert kinds(ask(spec(server), range(6))) == ["reply"] * 6
    after = stats(server.root)
    assert len(after["files"]) == 1 and after["requests"]["DELETE /files/{id}"] == 1 and len(after["lines"]) == 6


def test_a_batch_on_the_second_page_is_found(server: MockServer):
    control(server.root, seconds=0.1)
    interrupted(spec(server), range(3), lambda: len(stats(server.root)["batches"]) == 1)
    file = stats(server.root)["batches"][0]["input_file_id"]
    body = {"input_file_id": file, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    for n in range(105):
        other = {**body, "metadata": {"weaverant": f"another run {n}"}}
        with urlopen(f"{server.url}/batches", json.dumps(other).encode(), timeout=10):
            pass
    before = stats(server.root)["requests"].get("GET /batches", 0)
    assert kinds(ask(spec(server), range(3))) == ["reply"] * 3
    after = stats(server.root)
    assert len(after["batches"]) == 106 and after["requests"]["GET /batches"] - before == 2


def test_lines_of_a_batch_whose_files_are_gone_are_asked_again(server: MockServer):
    control(server.root, seconds=0.1)
    interrupted(spec(server), range(3), lambda: len(stats(server.root)["batches"]) == 1)
    wait_until(lambda: stats(server.root)["batches"][0]["status"] == "completed")
    output = stats(server.root)["batches"][0]["output_file_id"]
    with urlopen(Get(f"{server.url}/files/{output}", method="DELETE"), timeout=10):
        pass
    purse = Claims()
    found = ask(spec(server, price="1,1"), range(3), purse=purse)
    assert kinds(found) == ["reply"] * 3 and len(stats(server.root)["batches"]) == 2
    assert all(isinstance(each, Reply) and each.usage.unsure > 0 for each in found), "it may be paid twice, and says so"


def test_a_cancelled_calls_line_is_there_should_it_be_asked_again(server: MockServer):
    control(server.root, seconds=1.0)

    async def main() -> None:
        engine = Batched(parse(spec(server)))
        first = asyncio.create_task(outcomes(engine, range(4)))
        await asyncio.to_thread(wait_until, lambda: bool(stats(server.root)["batches"]))
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        assert kinds(await outcomes(engine, range(4))) == ["reply"] * 4
        await engine.close()

    asyncio.run(main())
    assert set(stats(server.root)["lines"].values()) == {1}


@pytest.mark.parametrize("trouble", ["", "403"])
def test_a_call_does_not_wait_for_an_equal_one_that_never_asked(server: MockServer, trouble: str):
    """The first is cancelled, or refused, while it looks for earlier batches."""
    control(server.root, delay=0.2, troubles={"GET /files": [trouble], "GET /batches": [trouble]})

    async def main() -> list[Reply | BaseException]:
        engine = Batched(parse(spec(server)))
        calls = [asyncio.create_task(engine.generate(asked(1), ctx(1))) for _ in range(3)]
        await asyncio.sleep(0.1)
        if not trouble:
            calls[0].cancel()
        found = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 20)
        await engine.close()
        return found

    first, *others = asyncio.run(main())
    assert isinstance(first, StepFailed if trouble else asyncio.CancelledError)
    assert all(isinstance(each, Reply) for each in others)
    assert set(stats(server.root)["lines"].values()) == {1}


def test_one_call_that_is_cancelled_leaves_the_others_alone(server: MockServer):
    async def main() -> None:
        engine = Batched(parse(spec(server)))
        unsent = asyncio.create_task(engine.generate(asked(99), ctx(99)))
        others = [asyncio.create_task(engine.generate(asked(n), ctx(n))) for n in range(4)]
        await asyncio.sleep(0.01)
        unsent.cancel()
        await asyncio.to_thread(wait_until, lambda: bool(stats(server.root)["batches"]))
        others[0].cancel()
        found = await asyncio.gather(*others, return_exceptions=True)
        assert [type(each).__name__ for each in found] == ["CancelledError", "Reply", "Reply", "Reply"]
        await engine.close()

    asyncio.run(main())
    assert len(stats(server.root)["lines"]) <= 5


# Money


class Claims:
    """A purse with room for everything, which remembers what was set aside, by claim."""

    def __init__(self) -> None:
        self.dollars: dict[str, list[float]] = {}

    def affords(self, dollars: float) -> bool:
        return True

    async def afford(self, dollars: float, claim: str = "") -> None:
        self.dollars.setdefault(claim, []).append(dollars)


def test_half_the_price_is_set_aside_before_and_paid_after(server: MockServer):
    server.control(price="2,8")
    purse, dear = Claims(), Claims()
    request = Request("judge", "judge", (user("how much?"),), Sampling(max_tokens=100), seed=5)

    async def both() -> tuple[Reply, Reply]:
        batched, pool = Batched(parse(spec(server, price="2,8"))), Pool([f"{server.url}?price=2,8#m"])
        cheap = await batched.generate(request, ctx(0, purse=purse))
        full = await pool.generate(request, ctx(0, purse=dear))
        await batched.close()
        await pool.close()
        return cheap, full

    cheap, full = asyncio.run(both())
    (claim,) = stats(server.root)["lines"]
    assert purse.dollars.keys() == {claim}, "the claim is the line's own identity"
    assert max(purse.dollars[claim]) == pytest.approx(max(dear.dollars[""]) / 2)
    tokens = full.usage
    assert full.usage.cost == pytest.approx((tokens.prompt_tokens * 2 + tokens.completion_tokens * 8) / 1e6)
    assert cheap.usage == Usage(tokens.prompt_tokens, tokens.completion_tokens, cost=full.usage.cost / 2)
    assert sum(item["dollars"] for item in server.bill()) == pytest.approx(1.5 * full.usage.cost)
    server.control(price="")


def test_a_line_that_may_have_been_paid_for_is_set_aside_twice(server: MockServer):
    control(server.root, fates=["missing"])
    purse = Claims()
    request = Request("judge", "judge", (user("how much?"),), Sampling(max_tokens=100), seed=5)

    async def main() -> Reply:
        engine = Batched(parse(spec(server, price="2,8")))
        reply = await engine.generate(request, ctx(0, purse=purse))
        await engine.close()
        return reply

    reply = asyncio.run(main())
    ((once, twice),) = purse.dollars.values()
    assert twice == pytest.approx(2 * once)
    assert reply.usage.unsure == pytest.approx(once) and reply.usage.cost > reply.usage.unsure
    assert reply.usage.requests == 2


# Waiting


def test_it_asks_seldom_and_says_how_far_it_is(server: MockServer):
    control(server.root, seconds=4.0)
    said: set[str] = set()

    async def main() -> None:
        engine = Batched(parse(spec(server, gather=0.5, poll=0)))
        asking = asyncio.create_task(outcomes(engine, range(20)))
        while not asking.done():
            said.update(engine.status())
            await asyncio.sleep(0.05)
        assert kinds(await asking) == ["reply"] * 20 and engine.status() == []
        await engine.close()

    asyncio.run(main())
    assert stats(server.root)["requests"]["GET /batches/{id}"] <= 5
    assert "m: 20 calls wait to become a batch" in said
    shown = [re.fullmatch(r"m: batch 1 of 1, (\d+) of 20 lines done, asked \d s ago; .*", line) for line in said]
    assert len({found[1] for found in shown if found}) > 2


def test_it_asks_as_often_as_the_address_says(server: MockServer):
    """Without `poll` a second would pass between two looks."""
    control(server.root, seconds=2.0)
    assert kinds(ask(spec(server, poll=0.1))) == ["reply"] * 4
    assert stats(server.root)["requests"]["GET /batches/{id}"] > 4


# A whole run

WORKFLOW = """
from weaverant import Agent, workflow

writer = Agent("writer", model="strong", prompt="Write about {{ n }}")
judge = Agent("judge", model="judge", prompt="Judge {{ draft }}")

@workflow
async def judged(row):
    draft = await writer(n=row["n"])
    return {"draft": draft, "verdict": await judge(draft=draft)}
"""


def prepared(folder: Path, rows: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "w.py").write_text(WORKFLOW)
    (folder / "rows.jsonl").write_text("".join(f'{{"n": {n}}}\n' for n in range(rows)))
    return folder


def weaverant(folder: Path, *words: str) -> subprocess.Popen[bytes]:
    with (folder / "log").open("ab") as log:
        command = [sys.executable, "-m", "weaverant.cli", *words]
        return subprocess.Popen(command, cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log)


def begun(folder: Path, server: MockServer, judge: str, *more: str) -> subprocess.Popen[bytes]:
    models = f"--model=strong={server.url}?price=0#m", f"--model=judge={judge}"
    where = "--input=rows.jsonl", "--run=run", "--concurrency=1000"
    return weaverant(folder, "run", "w.py", *where, *models, *more)


def results(folder: Path) -> dict[int, dict[str, Any]]:
    reader = JournalReader(folder / "run")
    teller = Storyteller({}, BlobStore(folder / "run" / "blobs").get)
    tasks = {task.task for task in reader.tasks()}
    stories = [teller.tell(events) for _, events in reader.histories(reader.places(tasks))]
    assert all(story.state == "done" for story in stories)
    return {story.row["n"]: story.result for story in stories}


def test_a_live_writer_and_a_batch_judge_in_one_run(server: MockServer, tmp_path: Path):
    """The same model under two names, one of them live."""
    control(server.root, seconds=1.0)
    folder = prepared(tmp_path, 200)
    assert begun(folder, server, spec(server, gather=1, poll=0.5)).wait(60) == 0, (folder / "log").read_text()
    found = results(folder)
    assert len(found) == 200 and all(each["draft"] != each["verdict"] for each in found.values())
    after = stats(server.root)
    assert server.stats()["total"] == 200 == len(after["lines"]) and set(after["lines"].values()) == {1}
    assert after["requests"]["POST /batches"] <= 3


def test_a_stopped_run_leaves_its_batch_to_the_one_that_resumes_it(server: MockServer, tmp_path: Path):
    """Stopping does not wait for the batch, which may take a day."""
    control(server.root, seconds=3600.0)
    folder = prepared(tmp_path, 20)
    process = begun(folder, server, spec(server, gather=0.3, poll=0.5), "--grace=0.2")
    wait_until(lambda: bool(stats(server.root)["batches"]))
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 4, (folder / "log").read_text()
    control(server.root, seconds=0.0)
    assert weaverant(folder, "resume", "run").wait(30) == 0, (folder / "log").read_text()
    after = stats(server.root)
    assert len(results(folder)) == 20 == len(after["lines"]) and set(after["lines"].values()) == {1}
    assert len(after["batches"]) <= 2


def test_what_a_killed_run_set_aside_for_a_batch_counts_once(server: MockServer, tmp_path: Path):
    """Twenty lines can cost $0.0049. The budget has no room for another one."""
    control(server.root, seconds=3600.0)
    folder = prepared(tmp_path, 20)
    process = begun(
        *(folder, server, spec(server, gather=0.3, poll=0.5, price="1,1")),
        *("--set=judge.max_tokens=100", "--budget=0.005"),
    )
    wait_until(lambda: bool(stats(server.root)["batches"]))
    process.kill()
    process.wait()
    control(server.root, seconds=0.0)
    assert weaverant(folder, "resume", "run").wait(30) == 0, (folder / "log").read_text()
    assert len(results(folder)) == 20 and set(stats(server.root)["lines"].values()) == {1}


def killed_and_resumed(folder: Path, server: MockServer, random: Random) -> int:
    """Lives that end after a random time, and a last one that goes on to its end. How many were killed."""
    process = begun(prepared(folder, 30), server, spec(server, gather=0.3, poll=0.5))
    wait_until((folder / "run" / "journal").exists)
    kills = 0
    for _ in range(random.randint(1, 3)):
        try:
            assert process.wait(random.random() * 4) == 0, (folder / "log").read_text()
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
        process = weaverant(folder, "resume", "run")
    assert process.wait(90) == 0, (folder / "log").read_text()
    return kills


def killing(server: MockServer, root: Path, trials: int, at_once: int) -> None:
    control(server.root, seconds=1.5, delay=0.1)
    folders = [root / str(n) for n in range(trials)]
    with ThreadPoolExecutor(at_once) as threads:
        kills = list(threads.map(killed_and_resumed, folders, [server] * trials, map(Random, range(trials))))
    assert sum(kills) > trials / 2
    for folder in folders:
        assert results(folder).keys() == set(range(30)), "no row is lost"
    lines = stats(server.root)["lines"]
    assert len(lines) == 30 * trials and set(lines.values()) == {1}, "no line was worked on twice"


def test_a_run_killed_at_random_moments_asks_no_line_twice(server: MockServer, tmp_path: Path):
    killing(server, tmp_path, trials=10, at_once=5)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_forty_runs_killed_at_random_moments_ask_no_line_twice(server: MockServer, tmp_path: Path):
    killing(server, tmp_path, trials=40, at_once=4)
