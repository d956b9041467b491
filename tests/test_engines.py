"""Scripted, simulated and cached engines, and the specs that open them."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import pytest

from weaverant import Agent, run, workflow
from weaverant.engines import open_engine
from weaverant.engines.cache import Cached
from weaverant.engines.scripted import Scripted
from weaverant.engines.simulated import Simulated
from weaverant.errors import StepFailed, UserError
from weaverant.message import (
    Message,
    OutputSchema,
    Reply,
    Request,
    Sampling,
    ToolCall,
    ToolSpec,
    Usage,
    assistant,
    system,
    user,
)
from weaverant.protocols import CallContext, Engine

CTX = CallContext("0")


def request(text: str = "what is 2 + 2?", agent: str = "solver", **more) -> Request:
    return Request(agent, "small", (system("be brief"), user(text)), **more)


def ask(engine: Engine, *requests: Request, ctx: CallContext = CTX) -> list[Reply]:
    """One call after the other; the engine stays open."""

    async def main() -> list[Reply]:
        return [await engine.generate(each, ctx) for each in requests]

    return asyncio.run(main())


# Scripted


def test_a_function_answers_from_request_and_context():
    async def later(asked: Request, ctx: CallContext) -> Message:
        return assistant(f"{asked.seed} {ctx.task}")

    (reply,) = ask(Scripted(lambda asked: f"seed {asked.seed}", name="me"), request(seed=3))
    assert reply == Reply(assistant("seed 3"), Usage(prompt_tokens=7, completion_tokens=2), "me", "stop")
    assert ask(Scripted(later), request(seed=4))[0].text == "4 0"
    given = Reply(assistant("whole"), Usage(1, 2, cost=0.5), "gpt", "length")
    assert ask(Scripted(lambda asked: given), request())[0] is given


def test_a_mapping_answers_by_agent_and_lists_in_call_order():
    script = {"solver": ["one", StepFailed("timeout", "slow"), "two"], "judge": "4", "other": lambda asked: "fn"}
    engine = Scripted(script)
    assert [reply.text for reply in ask(engine, request(), request(agent="judge"), request(agent="judge"))] == [
        "one",
        "4",
        "4",
    ]
    with pytest.raises(StepFailed, match="timeout: slow"):
        ask(engine, request())
    assert ask(engine, request(), request(agent="other"))[0].text == "two"
    with pytest.raises(StepFailed, match="'solver' has 3 replies and this was call 4"):
        ask(engine, request())
    with pytest.raises(StepFailed, match="nothing for agent 'nobody'"):
        ask(engine, request(agent="nobody"))


def test_a_scripted_tool_call_finishes_as_one():
    wish = Message("assistant", tool_calls=(ToolCall("c1", "add", "{}"),))
    assert ask(Scripted([wish]), request())[0].finish == "tool_calls"


def test_a_script_that_answers_nonsense_is_named():
    with pytest.raises(UserError, match="answered agent 'solver' with 5; expected a str"):
        ask(Scripted(lambda asked: 5), request())


def test_identity_follows_the_script():
    one, two = Scripted(lambda asked: "a").identity, Scripted(lambda asked: "bb").identity
    assert one != two and one.startswith("scripted:")
    assert Scripted({"a": ["x"]}).identity == Scripted({"a": ["x"]}).identity != Scripted({"a": ["y"]}).identity
    assert Scripted("x", identity="mine").identity == "mine"


def test_scripts_from_files(tmp_path: Path):
    lines = tmp_path / "replies.jsonl"
    lines.write_text(
        '{"agent": "judge", "contains": "2 + 2", "reply": "4"}\n\n'
        '{"agent": "judge", "reply": {"role": "assistant", "content": "no idea"}}\n'
        '{"contains": "brief", "reply": "anyone"}\n'
    )
    engine = open_engine(f"scripted:{lines}")
    asked = request(agent="judge"), request("?", agent="judge"), request()
    assert [reply.text for reply in ask(engine, *asked)] == ["4", "no idea", "anyone"]
    with pytest.raises(StepFailed, match="none of the 3 lines"):
        ask(engine, Request("x", "m", (user("hm"),)))
    code = tmp_path / "replies.py"
    code.write_text("def reply(request, ctx):\n    return f'{request.agent} {ctx.task}'\n")
    assert ask(open_engine(f"scripted:{code}"), request())[0].text == "solver 0"


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl", '{"reply": "x"}\n{"replies": "x"}', r"a\.jsonl:2 is no line of a script"),
        ("a.jsonl", "{", r"a\.jsonl:1 is no line"),
        ("a.py", "x = 1", "no function named `reply`"),
        ("missing.jsonl", None, "no script at"),
    ],
)
def test_a_bad_script_file_is_a_users_error(tmp_path: Path, name: str, content: str | None, says: str):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=says):
        open_engine(f"scripted:{tmp_path / name}")


# Simulated


def test_a_simulated_reply_says_so_and_follows_request_and_seed():
    asked = [request(seed=1), request(seed=2), request("other", seed=1)]
    first = ask(Simulated(latency=0), *asked)
    assert first == ask(Simulated(latency=0.001, slots=1), *asked)
    assert len({reply.text for reply in first}) == 3
    assert ask(Simulated(latency=0, seed=9), *asked) != first
    for reply in first:
        assert reply.text.startswith("[simulated] ") and len(reply.text.split()) == 64
        assert reply.usage == Usage(reply.usage.prompt_tokens, 64) and reply.model == "simulated"
    (cut,) = ask(Simulated(latency=0), request(sampling=Sampling(max_tokens=10)))
    assert (len(cut.text.split()), cut.finish) == (10, "length")


def test_identity_names_what_changes_answers_only():
    assert Simulated(latency=1, slots=2, jitter=0).identity == Simulated(latency=2, slots=3).identity
    assert len({Simulated().identity, Simulated(tokens=9).identity, Simulated(seed=1).identity}) == 3


def test_slots_and_latency_bound_the_rate():
    async def main() -> float:
        engine = Simulated(latency=0.1, slots=10, jitter=0)
        began = time.perf_counter()
        await asyncio.gather(*(engine.generate(request(seed=seed), CTX) for seed in range(40)))
        return time.perf_counter() - began

    assert 0.39 <= asyncio.run(main()) < 2


def test_tokens_take_their_time_and_calls_are_served_in_order():
    async def main() -> tuple[float, list[int]]:
        engine = Simulated(latency=0, slots=1, tokens=10, tokens_per_s=200, jitter=0)
        order: list[int] = []

        async def one(seed: int) -> None:
            await engine.generate(request(seed=seed), CTX)
            order.append(seed)

        began = time.perf_counter()
        await asyncio.gather(*map(one, range(5)))
        return time.perf_counter() - began, order

    seconds, order = asyncio.run(main())
    assert 0.24 <= seconds < 2 and order == [0, 1, 2, 3, 4]


def test_the_oldest_row_is_served_first_whoever_gave_up_between():
    ages = [50, *(7 * n % 100 for n in range(1, 100))]

    async def main() -> list[int]:
        engine = Simulated(latency=0.001, slots=1, jitter=0)
        order: list[int] = []

        async def one(age: int) -> None:
            await engine.generate(request(seed=age), CallContext("0", order=age))
            order.append(age)

        calls = [asyncio.ensure_future(one(age)) for age in ages]
        await asyncio.sleep(0)
        for call, age in zip(calls[1:], ages[1:], strict=True):
            if age % 3:
                call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        return order

    assert asyncio.run(main()) == [50, *sorted(age for age in ages[1:] if age % 3 == 0)]


def test_results_stream_where_rows_outnumber_the_slots():
    """Three turns a row, 200 rows, 8 slots. First come first served, 400 calls were made before the first row ended."""
    turns = Agent("turns", prompt="{{ n }} {{ turn }}")

    @workflow
    async def three(row: dict[str, int]) -> None:
        for turn in range(3):
            await turns(n=row["n"], turn=turn)

    going = run(three, [{"n": n} for n in range(200)], models=Simulated(latency=0.005, slots=8), journal=False)
    calls = [(task.row["n"], going.ledger.calls) for task in going]
    assert calls[0][1] < 60 and calls[99][1] < 400
    assert max(abs(n - place) for place, (n, _) in enumerate(calls)) < 40, "in about the order of the rows"


def test_a_cancelled_call_gives_its_slot_to_the_next():
    async def main() -> float:
        engine = Simulated(latency=5, slots=1, jitter=0)
        quick = Simulated(latency=0.1, slots=1, jitter=0)
        served, waiting = (asyncio.ensure_future(engine.generate(request(seed=s), CTX)) for s in (1, 2))
        await asyncio.sleep(0)
        waiting.cancel()
        served.cancel()
        await asyncio.gather(served, waiting, return_exceptions=True)
        calls = [asyncio.ensure_future(quick.generate(request(seed=s), CTX)) for s in range(20)]
        await asyncio.sleep(0)
        for call in calls[:19]:
            call.cancel()
        began = time.perf_counter()
        await calls[19]
        return time.perf_counter() - began

    assert asyncio.run(main()) < 1


def test_close_fails_the_calls_that_wait():
    async def main() -> list[object]:
        engine = Simulated(latency=5, slots=1)
        calls = [asyncio.ensure_future(engine.generate(request(seed=s), CTX)) for s in range(3)]
        await asyncio.sleep(0)
        await engine.close()
        return await asyncio.gather(*calls, return_exceptions=True)

    assert [failure.kind for failure in asyncio.run(main())] == ["connection"] * 3


def test_failures_come_in_their_share_and_the_same_again():
    def failed(engine: Simulated) -> list[int]:
        async def main() -> list[object]:
            calls = (engine.generate(request(seed=seed), CTX) for seed in range(2000))
            return await asyncio.gather(*calls, return_exceptions=True)

        return [seed for seed, reply in enumerate(asyncio.run(main())) if isinstance(reply, StepFailed)]

    assert 140 < len(failed(Simulated(latency=0, failures=0.1))) < 260
    assert failed(Simulated(latency=0, failures=0.1)) == failed(Simulated(latency=0.001, failures=0.1))


def test_a_simulated_reply_fits_its_schema():
    schema = {
        "type": "object",
        "properties": {
            "hard": {"type": "boolean"},
            "score": {"type": "number", "minimum": 1, "maximum": 5},
            "level": {"$ref": "#/$defs/Level"},
            "notes": {"type": "array", "items": {"type": "string", "maxLength": 8}, "minItems": 2},
            "count": {"type": "integer", "exclusiveMinimum": 3, "exclusiveMaximum": 5},
            "next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]},
        },
        "$defs": {"Level": {"enum": ["low", "high"]}},
        "required": ["hard", "score", "level", "notes", "count"],
    }
    for seed in range(50):
        (reply,) = ask(Simulated(latency=0), request(seed=seed, output=OutputSchema("v", schema)))
        value = json.loads(reply.text)
        assert isinstance(value["hard"], bool) and 1 <= value["score"] <= 5 and value["level"] in ("low", "high")
        assert len(value["notes"]) == 2 and all(len(note) <= 8 for note in value["notes"]) and value["count"] == 4


def test_a_waiting_call_is_small_and_a_free_one_fast():
    async def main(calls: int) -> float:
        engine = Simulated(latency=60, slots=8)
        said = request().messages
        asked = [Request("solver", "small", said, seed=seed) for seed in range(calls)]
        tracemalloc.start()
        tasks = [asyncio.ensure_future(engine.generate(each, CTX)) for each in asked]
        await asyncio.sleep(0)
        held = tracemalloc.get_traced_memory()[0] / calls
        tracemalloc.stop()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return held

    assert asyncio.run(main(10_000)) < 1500
    asked = [request(seed=seed) for seed in range(10_000)]
    began = time.process_time()
    ask(Simulated(latency=0), *asked)
    assert time.process_time() - began < 1.0  # 5 to 8 us a call measured; room for a busy machine


# Cached


class Counting:
    """Answers with a number that grows with each call, after a while; `slow` can be cancelled."""

    identity = "counting"

    def __init__(self, seconds: float = 0.0) -> None:
        self.calls = 0
        self.seconds = seconds
        self.closed = False

    async def generate(self, asked: Request, ctx: CallContext) -> Reply:
        self.calls += 1
        mine = self.calls
        await asyncio.sleep(self.seconds)
        if "fail" in asked.messages[-1].text:
            raise StepFailed("server", f"failure {mine}", {"n": mine})
        return Reply(assistant(str(mine)), Usage(5, 6, cost=0.25), "counting")

    async def close(self) -> None:
        self.closed = True


def test_the_cache_answers_what_it_holds_for_free(tmp_path: Path):
    async def main() -> tuple[list[Reply], Counting]:
        inner = Counting()
        engine = Cached(inner, tmp_path / "new" / "cache")
        asked = [
            (request(seed=1), CTX),
            (request(seed=1), CTX),
            (request(seed=2), CTX),
            (request(seed=1), CallContext("1", occurrence=1)),
            (request(seed=1, sampling=Sampling(temperature=0.5)), CTX),
            (request(seed=1, tools=(ToolSpec("t", "d", {"b": 1, "a": 2}),)), CTX),
            (request(seed=1, tools=(ToolSpec("t", "d", {"a": 2, "b": 1}),)), CallContext("9", "1.2")),
        ]
        replies = [await engine.generate(each, ctx) for each, ctx in asked]
        assert engine.identity == "counting"
        await engine.close()
        return replies, inner

    replies, inner = asyncio.run(main())
    assert [reply.text for reply in replies] == ["1", "1", "2", "3", "4", "5", "5"] and inner.closed
    assert replies[0].usage == Usage(5, 6, cost=0.25) and replies[1].usage == Usage(5, 6, requests=0)


def test_the_cache_outlives_the_engine_and_keeps_engines_apart(tmp_path: Path):
    async def main(name: str) -> str:
        engine = Cached(Scripted(lambda asked: name, identity=name), tmp_path)
        reply = await engine.generate(request(), CTX)
        await engine.close()
        return f"{reply.text} {reply.usage.requests}"

    assert [asyncio.run(main(name)) for name in ("a", "b", "a")] == ["a 1", "b 1", "a 0"]


def test_equal_calls_at_once_are_one_call_upstream(tmp_path: Path):
    async def main() -> None:
        inner = Counting(0.05)
        engine = Cached(inner, tmp_path)
        replies = await asyncio.gather(*(engine.generate(request(), CTX) for _ in range(50)))
        assert inner.calls == 1 and {reply.text for reply in replies} == {"1"}
        assert sum(reply.usage.requests for reply in replies) == 1
        failing = request("fail")
        failures = await asyncio.gather(*(engine.generate(failing, CTX) for _ in range(5)), return_exceptions=True)
        assert {str(failure) for failure in failures} == {"server: failure 2"} and failures[1].detail == {"n": 2}
        with pytest.raises(StepFailed, match="failure 3"):
            await engine.generate(failing, CTX)
        await engine.close()

    asyncio.run(main())


def test_a_cancelled_call_hands_its_flight_to_one_that_waits(tmp_path: Path):
    async def main() -> None:
        inner = Counting(0.05)
        engine = Cached(inner, tmp_path)
        calls = [asyncio.ensure_future(engine.generate(request(), CTX)) for _ in range(4)]
        await asyncio.sleep(0.02)
        calls[0].cancel()
        calls[3].cancel()
        replies = await asyncio.gather(*calls, return_exceptions=True)
        assert [reply.text for reply in replies[1:3]] == ["2", "2"] and inner.calls == 2
        assert all(isinstance(replies[n], asyncio.CancelledError) for n in (0, 3))
        await engine.close()

    asyncio.run(main())


WRITER = """
import asyncio, itertools, sys
from weaverant.engines.cache import Cached
from weaverant.engines.scripted import Scripted
from weaverant.message import Request, user
from weaverant.protocols import CallContext

async def main():
    engine = Cached(Scripted(lambda request: "x" * 5000, identity="s"), sys.argv[1])
    for seed in itertools.count():
        await engine.generate(Request("a", "m", (user("hi"),), seed=seed), CallContext("0"))
        print(seed, flush=True)

asyncio.run(main())
"""


def test_a_killed_process_loses_no_reply_it_had_stored(tmp_path: Path):
    children = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for child in children:
        assert child.stdout is not None
        for _ in range(100):
            child.stdout.readline()
    last = []
    for child in children:
        child.kill()
        said = child.communicate()[0].splitlines()
        last.append(int(said[-1]) if said and said[-1].isdigit() else 99)

    async def main() -> list[int]:
        engine = Cached(Scripted("new", identity="s"), tmp_path)
        seeds = range(min(last))
        replies = [await engine.generate(Request("a", "m", (user("hi"),), seed=seed), CTX) for seed in seeds]
        await engine.close()
        return [len(reply.text) for reply in replies]

    assert set(asyncio.run(main())) == {5000}


def test_a_cache_that_cannot_be_used_is_a_users_error(tmp_path: Path):
    (tmp_path / "replies.sqlite").write_bytes(b"this is no database" * 100)
    (tmp_path / "file").write_text("")
    for folder in (tmp_path, tmp_path / "file"):
        with pytest.raises(UserError, match="cannot be used"):
            Cached(Scripted("x"), folder)


def test_a_cache_that_can_no_longer_be_written_still_answers(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    async def main() -> list[str]:
        engine = Cached(Counting(), tmp_path)
        with sqlite3.connect(tmp_path / "replies.sqlite") as other:
            other.execute("CREATE TRIGGER full BEFORE INSERT ON replies_1 BEGIN SELECT RAISE(FAIL, 'disk full'); END")
        other.close()
        replies = [await engine.generate(request(seed=seed), CTX) for seed in range(3)]
        await engine.close()
        return [reply.text for reply in replies]

    assert asyncio.run(main()) == ["1", "2", "3"]
    assert [record.getMessage().count("disk full") for record in caplog.records] == [1]


# Specs


def test_specs_open_their_engines(tmp_path: Path):
    assert open_engine("simulated:latency=0,tokens=5").identity == "simulated:tokens=5,seed=0,failures=0"
    assert open_engine("simulated:").identity == Simulated().identity
    assert open_engine("http://127.0.0.1:1/v1#name").identity == "http:name"
    engine = open_engine(f"cache:{tmp_path}|simulated:latency=0")
    assert isinstance(engine, Cached) and engine.identity == Simulated().identity
    asyncio.run(engine.close())


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("simulate:latency=0", "Did you mean 'simulated:'?"),
        ("gpt-4", "Expected one of\n  http://localhost:8000/v1#model-name"),
        ("", "Expected one of"),
        ("cache:./folder", "expected cache:FOLDER|MODEL"),
        ("cache:./folder|nothing:at-all", "Expected one of"),
        ("simulated:speed=3", "no option 'speed'; it has latency, slots"),
        ("simulated:slots=many", "'slots' is 'many'; expected a number"),
        ("simulated:slots=0", "'slots' is 0; expected a number from 1 on"),
        ("simulated:latency=-1", "'latency' is -1.0; expected a number from 0 on"),
        ("simulated:latency=nan", "'latency' is nan"),
    ],
)
def test_a_bad_spec_says_what_was_expected(spec: str, says: str):
    with pytest.raises(UserError) as caught:
        open_engine(spec)
    assert says in str(caught.value)


def test_opening_one_kind_imports_no_other():
    code = (
        "import sys, weaverant.engines as e; e.open_engine('simulated:'); "
        "print([m for m in sys.modules if m.startswith('aiohttp') or m.startswith('numpy') or 'engines.' in m])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['weaverant.engines.simulated']"
