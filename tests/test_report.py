"""What a run's report tells besides its counts: what was cut short, caught, not priced or forgotten, and what to do."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from weaverant import launch
from weaverant.cli import main
from weaverant.testing.server import MockServer

CUT = """
from weaverant import Agent, workflow

writer = Agent("writer", prompt="Write {{ n }}", max_tokens=3)

@workflow
async def write(row):
    text = await writer(n=row["n"])
    return {"preferences": [{"prompt": "Write", "chosen": text, "rejected": text}]}
"""

Say = Callable[..., tuple[int, str, str]]


@pytest.fixture
def say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Say:
    """Runs one command in a folder of its own; gives exit code, standard output, standard error."""
    monkeypatch.chdir(tmp_path)

    def command(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(words)
        said = capsys.readouterr()
        return code, said.out, said.err

    return command


def write_rows(count: int) -> None:
    Path("rows.jsonl").write_text("".join(json.dumps({"n": n}) + "\n" for n in range(count)))


def start(say: Say, code: str, replies: str, rows: int, *more: str) -> tuple[int, str]:
    """Run the workflow `code` on so many rows; `replies` is the code of a scripted model. Gives code and report."""
    Path("w.py").write_text(code)
    Path("model.py").write_text(replies)
    write_rows(rows)
    found = say("run", "w.py", "--input", "rows.jsonl", "--model", "scripted:model.py", "--run", "out", *more)
    return found[:2]


def shown(say: Say) -> dict[str, Any]:
    return json.loads(say("show", "out", "--json")[1])


# Replies that were cut short


def test_a_server_whose_every_reply_is_cut_gives_no_samples_in_silence(say: Say):
    Path("w.py").write_text(CUT)
    write_rows(9)
    with MockServer(tokens=50) as server:
        code, out, _ = say("run", "w.py", "--input", "rows.jsonl", "--model", f"{server.url}#m", "--run", "out")
    assert code == 0
    assert (
        "cut short   writer 9 of 9 (max_tokens); exports as messages or preference leave these replies out"
        in out.splitlines()
    )
    assert shown(say)["agents"][0]["cut"] == {"length": 9}
    code, _, err = say("export", "out", "--as", "messages", "--out", "sft.jsonl")
    assert (code, err.splitlines()) == (
        0,
        ["sft.jsonl: 0 samples", "left out: 9 cut short (max_tokens); --keep-cut keeps what was cut short"],
    )
    assert Path("sft.jsonl").read_bytes() == b""
    _, _, err = say("export", "out", "--as", "preference", "--out", "pairs.jsonl")
    assert "left out: 9 with chosen the same as rejected" in err.splitlines()
    _, _, err = say("export", "out", "--as", "messages", "--out", "sft.jsonl", "--keep-cut")
    assert err.splitlines() == ["sft.jsonl: 9 samples"]
    _, _, err = say("export", "out", "--out", "raw.jsonl")
    assert err.splitlines() == [
        "raw.jsonl: 9 samples", "9 tasks with replies that were cut short (max_tokens): --as raw keeps them"
    ]  # fmt: skip


def test_a_run_without_cut_replies_says_nothing_of_them(say: Say):
    _, out = start(say, CUT, "def reply(request):\n    return request.messages[-1].text\n", 3)
    assert "cut short" not in out
    assert shown(say)["agents"][0]["cut"] == {}


# An agent none of whose calls is taken

MANY = """
from weaverant import Agent, StepFailed, workflow

first = Agent("first", prompt="First {{ n }}")
many = Agent("many", prompt="Many {{ n }}", FIELDS)

@workflow
async def asked(row):
    await first(n=row["n"])
    try:
        return await many(n=row["n"])
    except StepFailed:
        if CATCH:
            return "none"
        raise
"""

REFUSED = [
    ("n=2", "n", "leave n= out of the agent (--set many.n=1)"),
    ("logprobs=True", "logprobs", "leave logprobs out of the agent (--set many.logprobs=false"),
]


@pytest.mark.parametrize(("fields", "name", "way_out"), REFUSED, ids=["n", "logprobs"])
@pytest.mark.parametrize("catch", [False, True])
def test_an_agent_whose_first_calls_are_all_refused_ends_the_run(
    say: Say, catch: bool, fields: str, name: str, way_out: str
):
    Path("w.py").write_text(MANY.replace("FIELDS", fields).replace("CATCH", str(catch)))
    write_rows(300)
    with MockServer("basic", latency=0.01) as server:
        words = ["run", "w.py", "--input", "rows.jsonl", "--model", f"{server.url}#m", "--concurrency", "8"]
        code, out, err = say(*words, "--run", "out")
        assert code == 4 and "stopped by the error fuse" in out
        told = [line for line in err.splitlines() if f"the server refuses its {name}" in line]
        errors = [line for line in err.splitlines() if line.startswith("weaverant: error: ")]
        assert len(told) == len(errors) == 1 and way_out in told[0]
        assert re.search(r"the first \d+ calls of agent 'many' were all refused", errors[0]) and way_out in errors[0]
        calls = {agent["name"]: agent for agent in shown(say)["agents"]}
        assert 20 <= calls["many"]["failures"]["request"] < 60, "and those that were in flight by then"
        code, out, err = say(*words, "--run", "all", "--max-failures", "1", "--limit", "60")
        assert code == (0 if catch else 3) and "error:" not in err


def test_an_agent_that_was_replied_to_may_be_refused_as_often_as_it_likes(say: Say):
    refusing = NO_SCHEMA.replace('== "judge":', '== "judge" and not request.messages[-1].text.endswith(" 0"):')
    code, out = start(say, CATCHING, refusing.replace('"text"', '"x"').replace('endswith("9")', 'endswith("?")'), 200,
                      "--in-flight", "4")  # fmt: skip
    assert code == 0 and "judge 179 x request" in out


# Failures that the workflow caught

CATCHING = """
from weaverant import Agent, StepFailed, workflow

writer = Agent("writer", prompt="Write {{ n }}")
judge = Agent("judge", prompt="Judge {{ n }}")

@workflow
async def careful(row):
    await writer(n=row["n"])
    try:
        return await judge(n=row["n"])
    except StepFailed:
        return "not judged"
"""

NO_SCHEMA = """
from weaverant import StepFailed

def reply(request):
    if request.agent == "judge":
        if request.messages[-1].text.endswith("7"):
            raise StepFailed("server", "out of order")
        raise StepFailed("request", "it takes no output schema")
    if request.messages[-1].text.endswith("9"):
        raise StepFailed("timeout", "too slow")
    return "text"
"""


def test_failures_that_were_caught_are_told_by_reason_with_an_example(say: Say):
    """Of 20 rows 2 fail, for a reason of which all is told with the rows; 16 + 2 judgements fail and are caught."""
    code, out = start(say, CATCHING, NO_SCHEMA, 20)
    assert code == 3
    lines = out.splitlines()
    at = next(
        number for number, line in enumerate(lines) if line.startswith("failed calls, some or all of them caught")
    )
    assert lines[at + 1 : at + 4] == [
        "  judge 16 x request: it takes no output schema", "  judge 2 x server: out of order", ""
    ]  # fmt: skip
    assert say("show", "out")[1].splitlines()[at : at + 3] == lines[at : at + 3]
    judge, writer = shown(say)["agents"]
    assert judge["examples"] == {"request": "it takes no output schema", "server": "out of order"}
    assert writer["examples"] == {"timeout": "too slow"}


def test_they_are_right_after_a_resume(say: Say):
    Path("w.py").write_text(CATCHING)
    Path("model.py").write_text(NO_SCHEMA)
    write_rows(20)
    for _ in launch.run("w.py", "rows.jsonl", models="scripted:model.py", directory="out", in_flight=2):
        break
    code, out, _ = say("resume", "out")
    assert (code, "in 2 sessions" in out) == (3, True)
    assert "  judge 16 x request: it takes no output schema" in out.splitlines()


def test_long_texts_of_many_reasons_are_bounded(say: Say):
    many = """
from weaverant import StepFailed

def reply(request):
    raise StepFailed(f"reason {request.messages[-1].text.split()[-1]}", "long " * 10_000)
"""
    code, out = start(say, CATCHING.replace('await writer(n=row["n"])', "pass"), many, 40)
    assert code == 0
    examples = shown(say)["agents"][0]["examples"]
    assert len(examples) == 20 and {len(text) for text in examples.values()} == {300}
    assert len([line for line in out.splitlines() if " x reason" in line]) == 10 and "  and 30 more" in out


# What to do next

FAILING = """
from weaverant import Agent, workflow

writer = Agent("writer", prompt="Write {{ n }}")

@workflow
async def simple(row):
    text = await writer(n=row["n"])
    return 1 / 0 if text == "code" else text
"""


def failing(*reasons: str) -> str:
    """A model whose reply to row n is the n-th reason, as a failure, or as a text where it says so."""
    return f"""
from weaverant import StepFailed

def reply(request):
    reason = {reasons!r}[int(request.messages[-1].text.split()[-1]) % {len(reasons)}]
    if reason in ("code", "fine"):
        return reason
    raise StepFailed(reason, "because")
"""


def advice(report: str) -> list[str]:
    labels = ("try again:", "go on:", "elsewhere:", "mend:", "      ")
    return [line for line in report.splitlines() if line.startswith(labels) and "p50" not in line]


AGAIN = "try again:  weaverant resume out --retry failed"
MOVED = "            (--model SPEC: the same model at another address)"
NEW = "            then a new run, which pays only for what differs: weaverant run ... --reuse out"
CONTEXT = (
    "elsewhere:  weaverant resume out --retry failed:context --model SPEC   "
    "(the same model with room for longer prompts)"
)
REQUEST = (
    "elsewhere:  weaverant resume out --retry failed:request --model SPEC   "
    "(the same model at a server that takes such requests)"
)


@pytest.mark.parametrize(
    ("reasons", "expected"),
    [
        (("fine",), []),
        (("server",), [AGAIN]),
        (("connection",), [AGAIN, MOVED]),
        (("code",), ["mend:       the workflow's code", NEW]),
        (("context",), [CONTEXT, "mend:       the prompts, or take another model (--model SPEC)", NEW]),
        (("request",), [REQUEST, "mend:       the agent, or take another model (--model SPEC)", NEW]),
        (("server", "code"), [f"{AGAIN}:server", "mend:       the workflow's code", NEW]),
        (("server", "timeout", "code"), [AGAIN, "mend:       the workflow's code", NEW]),
    ],
)
def test_advice_fits_the_reason(say: Say, reasons: tuple[str, ...], expected: list[str]):
    _, out = start(say, FAILING, failing(*reasons), len(reasons))
    assert advice(out) == expected
    assert advice(say("show", "out")[1]) == expected


def test_rows_that_cannot_be_read_are_mended_in_the_input(say: Say):
    Path("w.py").write_text(FAILING)
    Path("model.py").write_text(failing("fine"))
    Path("rows.jsonl").write_text('{"n": 0}\n{"n":\n')
    _, out, _ = say("run", "w.py", "--input", "rows.jsonl", "--model", "scripted:model.py", "--run", "out")
    assert advice(out) == ["mend:       the input", NEW]


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("server", ["go on:      weaverant resume out --retry failed   (once the cause is mended)",
                    "            (--max-failures 1: failures stop nothing)"]),
        ("connection", ["go on:      weaverant resume out --retry failed   (once the cause is mended)",
                        "            (--model SPEC: the same model at another address; --max-failures 1: failures stop "
                        "nothing)"]),
        ("code", ["mend:       the workflow's code", NEW,
                  "go on:      weaverant resume out --max-failures 1   (what failed stays as it is)"]),
    ],
)  # fmt: skip
def test_after_the_fuse_each_thing_is_said_once(say: Say, reason: str, expected: list[str]):
    code, out = start(say, FAILING, failing(reason), 400, "--in-flight", "4")
    assert (code, advice(out)) == (4, expected)


STEPPING = """
from weaverant import step, workflow

def count(n):
    if n >= 20:
        raise ValueError("no such number")

@workflow
async def counting(row):
    return await step(count, row["n"]) or "counted"
"""
CHANCE = "   (where it was chance: a resume takes no changed code)"


def test_a_fault_of_ones_own_code_in_a_step_is_mended_before_it_is_tried_again(say: Say):
    code, out = start(say, STEPPING, failing("fine"), 25)
    mend = ["mend:       the workflow's code", NEW]
    assert (code, advice(out)) == (3, [*mend, f"{AGAIN}{CHANCE}"])
    Path("w.py").write_text(STEPPING.replace("n >= 20", "n >= 0"))
    write_rows(400)
    more = ("--model", "scripted:model.py", "--run", "out2", "--in-flight", "4")
    code, out, _ = say("run", "w.py", "--input", "rows.jsonl", *more)
    assert code == 4 and "go on:      weaverant resume out2 --retry failed" + CHANCE in advice(out)[2:]
    assert advice(out)[0] == mend[0]


# The table of agents

RACING = """
import asyncio
from weaverant import Agent, step, workflow

first = Agent("first", prompt="First {{ n }}")
second = Agent("second", prompt="Second {{ n }}")

def double(n):
    return 2 * n

@workflow
async def racing(row):
    await step(double, row["n"])
    await second(n=row["n"])
    calls = [asyncio.ensure_future(first(n=n)) for n in range(GIVEN_UP + 1)]
    await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
    for call in calls[1:]:
        call.cancel()
    await asyncio.wait(calls)
    return row["n"]
"""

SLOW = """
import asyncio

async def reply(request):
    if request.messages[-1].text.startswith("First") and not request.messages[-1].text.endswith(" 0"):
        await asyncio.sleep(60)
    return "said"
"""


def agents_table(report: str) -> dict[str, list[str]]:
    lines = report.splitlines()
    begin = next(number for number, line in enumerate(lines) if line.startswith("  agent "))
    split = [re.split(r" {2,}", line.strip()) for line in lines[begin : lines.index("", begin)]]
    return {name: cells for name, *cells in split}


@pytest.mark.parametrize("given_up", [0, 2])
def test_functions_are_no_calls_of_agents_and_cancelled_calls_are_seen(say: Say, given_up: int):
    _, out = start(say, RACING.replace("GIVEN_UP", str(given_up)), SLOW, 3)
    table = agents_table(out)
    assert list(table) == ["agent", "first", "second", "all agents", "double() effect"]
    assert table["all agents"][0] == str(3 * (2 + given_up)) and table["double() effect"][0] == "3"
    assert ("cancelled" in table["agent"]) == bool(given_up)
    if given_up:
        column = table["agent"].index("cancelled")
        assert [table[name][column] for name in list(table)[1:]] == ["6", "0", "6", "0"]
    assert agents_table(say("show", "out")[1]) == table


def test_the_packaged_model_is_called_a_toy_on_rows_of_ones_own(say: Say):
    Path("w.py").write_text(FAILING)
    write_rows(2)
    toy = "(embedded:tiny: a packaged toy that knows small sums as in arithmetic:weave; all else gets nonsense)"
    _, out, _ = say("run", "w.py", "--input", "rows.jsonl", "--model", "embedded:tiny", "--run", "out")
    assert out.splitlines().count(toy) == say("show", "out")[1].splitlines().count(toy) == 1
    Path("sums.py").write_text(FAILING.replace("Write {{ n }}", "{{ n }}").replace('row["n"]', 'row["question"]'))
    sums = ("--input", "arithmetic:weave", "--limit", "2", "--model", "embedded:tiny", "--run", "sums")
    _, out, _ = say("run", "sums.py", *sums)
    assert "done 2" in out and "toy" not in out


# What nobody knows the price of

TWO = """
from weaverant import Agent, workflow

here = Agent("here", prompt="{{ n }}", model="here")
there = Agent("there", prompt="{{ n }}", model="there", max_tokens=5)

@workflow
async def both(row):
    return await here(n=row["n"]) + await there(n=row["n"])
"""


@pytest.mark.parametrize(
    ("price", "here", "there", "total"),
    [("", "$0.00", "-", "-"), ("?price=0", "$0.00", "$0.00", "$0.00"), ("?price=1e5,1e5", "$0.00", "$", "$")],
)
def test_only_a_known_price_of_nothing_is_told_as_0(say: Say, price: str, here: str, there: str, total: str):
    Path("w.py").write_text(TWO)
    Path("model.py").write_text("def reply(request):\n    return 'said'\n")
    write_rows(3)
    with MockServer() as server:
        models = ("--model", "here=scripted:model.py", "--model", f"there={server.url}{price}#m")
        code, out, _ = say("run", "w.py", "--input", "rows.jsonl", *models, "--run", "out")
    assert code == 0
    for text in (out, say("show", "out")[1]):
        lines = text.replace("all agents", "all").splitlines()
        cells = {line.split()[0]: line.split()[6] for line in lines if line.startswith("  ")}
        for name, cost in (("here", here), ("there", there), ("all", total)):
            assert cells[name] == cost if cost != "$" else float(cells[name][1:].replace(",", "")) > 0
        assert ("cost        unknown: no price for http:m" in text) == (there == "-")
    assert [agent["unpriced"] for agent in shown(say)["agents"]] == [False, not price]


@pytest.mark.parametrize(("price", "cost"), [("", ["?", "?", "?"]), ("?price=0", ["$0.0000", "$0.0000", "$0.0000"])])
def test_a_pilot_estimates_no_cost_that_nobody_knows(say: Say, price: str, cost: list[str]):
    Path("w.py").write_text(CUT)
    write_rows(6)
    with MockServer() as server:
        model = f"{server.url}{price}#m"
        code, out, _ = say("run", "w.py", "--input", "rows.jsonl", "--model", model, "--run", "out", "--pilot", "3")
    assert code == 0
    assert [line.split()[1:] for line in out.splitlines() if line.startswith("  cost")] == [cost]


# What is most likely no wish

FORGETFUL = """
from weaverant import Agent, workflow

writer = Agent("writer", prompt="Write {{ n }}")

@workflow
async def forgetful(row):
    text = await writer(n=row["n"])
    if row["n"] > 2:
        return text
"""


@pytest.mark.parametrize(("rows", "warned"), [(3, True), (4, False)])
def test_a_forgotten_return_is_asked_about(say: Say, rows: int, warned: bool):
    code, out = start(say, FORGETFUL, failing("fine"), rows)
    line = "warning: all 3 results are null: did the workflow forget to return?"
    assert code == 0
    for text in (out, say("show", "out")[1]):
        assert (line in text.splitlines()) == warned and text.count("warning") == warned


def test_an_input_without_rows_is_told(say: Say):
    code, out = start(say, FORGETFUL, failing("fine"), 0)
    line = f"warning: the input has no rows: {Path('rows.jsonl').resolve()}"
    assert code == 0 and line in out.splitlines() and line in say("show", "out")[1].splitlines()
    write_rows(3)
    wanted = say(
        "run", "w.py", "--input", "rows.jsonl", "--model", "scripted:model.py", "--run", "none", "--limit", "0"
    )
    assert "warning" not in wanted[1]


# Files that are there already


def test_a_file_that_is_there_is_replaced_only_by_the_same_export_or_by_force(say: Say):
    start(say, FORGETFUL, failing("fine"), 4)
    Path("data.jsonl").write_text("precious")
    words = ("export", "out", "--out", "data.jsonl")
    code, _, err = say(*words)
    assert (code, Path("data.jsonl").read_text()) == (2, "precious")
    assert "'data.jsonl' is there already" in err and "--force" in err
    assert say(*words, "--force")[0] == 0 and say(*words)[0] == 0
    assert len(Path("data.jsonl").read_text().splitlines()) == 4
    assert say(*words, "--as", "messages")[0] == 2


# The fuse at the end of the rows


@pytest.mark.parametrize("in_flight", [1, 7, 1000])
@pytest.mark.parametrize("source", ["file", "generator"])
def test_a_fuse_with_nothing_left_is_no_stop(say: Say, in_flight: int, source: str):
    """The 60 rows end together, or one by one with a fuse that asks for as many."""
    Path("w.py").write_text(FAILING)
    Path("model.py").write_text(failing("server"))
    write_rows(60)
    rows = "rows.jsonl" if source == "file" else ({"n": n} for n in range(60))
    run = launch.run(
        "w.py", rows, models="scripted:model.py", directory="out", in_flight=in_flight,
        fuse_after=50 if in_flight == 1000 else 60,
    ).wait()  # fmt: skip
    left = shown(say)["left"]
    assert (run.state, run.exit_code, left) == ("finished", 3, 0)
    code, _, err = say("export", "out", "--state", "failed", "--out", "failed.jsonl")
    assert (code, err.splitlines()) == (0, ["failed.jsonl: 60 samples"])
    code, _, err = say("export", "out", "--out", "done.jsonl")
    none = "--as raw made no sample from the tasks of the last stage that are done"
    assert (code, err.splitlines()) == (0, ["done.jsonl: 0 samples", none])


def test_a_fuse_with_rows_left_is_one(say: Say):
    code, out = start(say, FAILING, failing("server"), 200, "--in-flight", "4")
    assert code == 4 and "stopped by the error fuse" in out
    assert 0 < shown(say)["left"] < 200
