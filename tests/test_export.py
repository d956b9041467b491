"""Export: samples in the order of the rows, the same bytes whatever order the tasks ended in, whole files or none."""

from __future__ import annotations

import asyncio
import gzip
import importlib.util
import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, Field

from weaverant import Agent, Request, Story, UserError, group, resume, run, workflow
from weaverant.cli.export import export
from weaverant.engines.scripted import Scripted
from weaverant.export import GENERIC, messages, open_sink, preference, row_order
from weaverant.message import Message, Reply, ToolCall, Usage, assistant
from weaverant.story import Step
from weaverant.summary import Examples, document, fold, of_run
from weaverant.workflow import Stages

writer = Agent("writer", prompt="Write {{ n }}", system="Be brief.")
judge = Agent("judge", prompt="Judge {{ text }}")


@workflow
async def pairs(row: dict[str, Any]):
    good = await writer(n=row["n"])
    verdict = await judge(text=good)
    if row["n"] % 7 == 6:
        raise ValueError("seven")
    return {"verdict": verdict, "preferences": [{"prompt": f"Write {row['n']}", "chosen": good, "rejected": "no"}]}


def shuffled(seed: int) -> Scripted:
    dice = random.Random(seed)

    async def reply(request: Request) -> str:
        await asyncio.sleep(dice.random() / 20)
        return f"{request.agent} says {request.messages[-1].text}"

    return Scripted(reply, identity="scripted:shuffled")


def made(directory: Path, seed: int = 0, count: int = 40, of: Any = pairs, **options: Any) -> Path:
    run(of, [{"n": n} for n in range(count)], models=shuffled(seed), directory=directory, **options).wait()
    return directory


def lines(path: Path) -> list[dict[str, Any]]:
    text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return [json.loads(line) for line in text.splitlines()]


def test_bytes_do_not_depend_on_the_order_of_arrival(tmp_path: Path):
    one, two = made(tmp_path / "one", 1), made(tmp_path / "two", 2)
    for form in GENERIC:
        for suffix in (".jsonl", ".jsonl.gz"):
            files = [tmp_path / f"{name}{suffix}" for name in ("a", "b")]
            for directory, file in zip((one, two), files, strict=True):
                export(directory, form, str(file))
            assert files[0].read_bytes() == files[1].read_bytes()
            for file in files:
                assert len(lines(file)) == {"raw": 35, "preference": 35, "messages": 70}[form]
                file.unlink()
    assert [sample["row"]["n"] for sample in lines_of(one, "raw", tmp_path)] == [n for n in range(40) if n % 7 != 6]
    assert not list(tmp_path.glob("*.tmp"))


def lines_of(directory: Path, form: str, folder: Path, **options: Any) -> list[dict[str, Any]]:
    out = folder / "some.jsonl"
    counts = export(directory, form, str(out), force=True, **options).files
    assert list(counts.values()) == [len(lines(out))]
    return lines(out)


def test_samples(tmp_path: Path):
    directory = made(tmp_path / "run", count=8)
    assert lines_of(directory, "raw", tmp_path)[1] == {
        "key": "0.1.0",
        "row": {"n": 1},
        "result": {
            "verdict": "judge says Judge writer says Write 1",
            "preferences": [{"prompt": "Write 1", "chosen": "writer says Write 1", "rejected": "no"}],
        },
    }
    assert lines_of(directory, "messages", tmp_path, agent="writer")[2] == {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Write 2"},
            {"role": "assistant", "content": "writer says Write 2"},
        ],
        "agent": "writer",
        "task": "0.2.0",
        "model": "scripted",
    }
    assert lines_of(directory, "preference", tmp_path)[0] == {
        "prompt": [{"role": "user", "content": "Write 0"}],
        "chosen": [{"role": "assistant", "content": "writer says Write 0"}],
        "rejected": [{"role": "assistant", "content": "no"}],
        "task": "0.0.0",
    }
    (failed,) = lines_of(directory, "raw", tmp_path, state="failed")
    assert (failed["key"], failed["state"], failed["reason"]) == ("0.6.0", "failed", "ValueError")
    assert failed["where"].startswith("test_export.py:")


def test_tool_calls_are_in_the_form_of_openai():
    called = Message("assistant", "", (ToolCall("c1", "look", '{"at": 1}'),), None, "hm")
    answer = Message("tool", "a tree", (), "c1")
    tool = {"name": "look", "description": "Look.", "parameters": {"type": "object"}}
    step = Step(0, "model", "scout", "", 0, "reply", (Message("user", "Where?"), called, answer), [tool])
    step.reply = Reply(Message("assistant", "Here."), Usage(), "m")
    (sample,) = messages(Story("0.0.0", 0, {}, [step]))
    assert sample["messages"] == [
        {"role": "user", "content": "Where?"},
        {
            "role": "assistant",
            "content": "",
            "reasoning_content": "hm",
            "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"at": 1}'}}],
        },
        {"role": "tool", "content": "a tree", "tool_call_id": "c1"},
        {"role": "assistant", "content": "Here."},
    ]
    assert sample["tools"] == [{"type": "function", "function": tool}]


@pytest.mark.parametrize(
    ("result", "text"),
    [
        ({"answer": 1}, "has no list of preferences; found fields ['answer']"),
        ("text", "has no list of preferences; found str"),
        ({"preferences": [{"prompt": "p", "chosen": "c"}]}, "pair 0 of task 'k' has not all of"),
        ({"preferences": [{"prompt": 1, "chosen": "c", "rejected": "r"}]}, "prompt is 1; expected a text or a list"),
        ({"preferences": [{"prompt": [], "chosen": "c", "rejected": "r"}]}, "expected a text or a list"),
        ({"preferences": [{"prompt": [{"role": "boss"}], "chosen": "c", "rejected": "r"}]}, "a list of messages"),
    ],
)
def test_what_is_no_preference_says_how_to_give_one(result: Any, text: str):
    with pytest.raises(UserError) as caught:
        list(preference(Story("k", 0, {}, [], result=result)))
    assert text in str(caught.value)


def test_an_export_that_fails_leaves_nothing(tmp_path: Path):
    @workflow
    async def late(row: dict[str, Any]):
        return {"preferences": []} if row["n"] < 5 else {}

    directory = made(tmp_path / "run", of=late, count=8)
    out = tmp_path / "out" / "pairs.jsonl"
    with pytest.raises(UserError, match=r"0\.5\.0"):
        export(directory, "preference", str(out))
    assert not list(out.parent.glob("*")) if out.parent.exists() else True
    out.parent.mkdir(exist_ok=True)
    out.write_text("precious")
    with pytest.raises(UserError, match=r"0\.5\.0"):
        export(directory, "preference", str(out), force=True)
    assert out.read_text() == "precious"


FILE = """
from weaverant import Agent, exporter, workflow

@workflow
async def plain(row):
    return row["n"]

@exporter
def raw(story):
    yield {"n": story.result}

@exporter
def parts(story):
    yield {"_file": "odd.jsonl" if story.result % 2 else "even.jsonl.gz", "n": story.result}

@exporter
def mixed(story):
    yield {"n": story.result} if story.result else {"_file": "a.jsonl"}

@exporter
def escapes(story):
    yield {"_file": "../a.jsonl"}

@exporter
def breaks(story):
    yield 1 / story.result
"""


def test_a_workflow_brings_its_own_exporters(tmp_path: Path):
    file = tmp_path / "own.py"
    file.write_text(FILE)
    directory = tmp_path / "run"
    run(file, [{"n": n} for n in range(5)], models=shuffled(0), directory=directory).wait()
    assert lines_of(directory, "raw", tmp_path) == [{"n": n} for n in range(5)]
    folder = tmp_path / "parts"
    counts = export(directory, "parts", str(folder)).files
    assert counts == {str(folder / "even.jsonl.gz"): 3, str(folder / "odd.jsonl"): 2}
    assert lines(folder / "even.jsonl.gz") == [{"n": 0}, {"n": 2}, {"n": 4}]
    for form, out, text in [
        ("parts", "one.jsonl", "--out must be a folder"),
        ("mixed", "folder", "some samples name their file"),
        ("escapes", "folder", "expected a plain file name"),
        ("breaks", "one.jsonl", r"failed on task '0.0.0': ZeroDivisionError.*own.py:26"),
        ("prats", "one.jsonl", "did you mean 'parts'"),
    ]:
        with pytest.raises(UserError, match=text):
            export(directory, form, str(tmp_path / out))
        assert not (tmp_path / "folder").exists() or not list((tmp_path / "folder").iterdir())
    file.unlink()
    assert lines_of(directory, "raw", tmp_path)[1] == {"key": "0.1.0", "row": {"n": 1}, "result": 1}


@workflow
async def split(row: dict[str, Any]):
    text = await writer(n=row["n"])
    return [{"text": text, "half": half, "n": row["n"]} for half in range(2)]


@group(by="half")
async def joined(rows: list[dict[str, Any]]):
    return [row["n"] for row in rows]


def test_stages_and_groups(tmp_path: Path):
    both = [made(tmp_path / f"run{seed}", seed, 12, Stages(split, joined)) for seed in (1, 2)]
    raw = [lines_of(directory, "raw", tmp_path) for directory in both]
    assert raw[0] == raw[1]
    assert [sample["result"] for sample in raw[0]] == [list(range(12))] * 2
    assert len(lines_of(both[0], "messages", tmp_path)) == 12


def test_the_journal_folds_to_what_the_run_counted(tmp_path: Path):
    finished = run(
        Stages(split, joined), [{"n": n} for n in range(12)], models=shuffled(1), directory=tmp_path / "run"
    ).wait()
    live, folded = document(of_run(finished, Examples())), document(fold(tmp_path / "run"))
    assert folded["state"] == "finished" and folded["left"] == 0
    for agent in (*live["agents"], *folded["agents"]):
        del agent["p50"], agent["p95"], agent["p99"]
    assert {**live, "created": 0} == {**folded, "created": 0}


def test_the_order_of_keys():
    keys = ["0.0.0", "0.0.0/0", "0.0.0/2", "0.0.0/10", "0.0.1", "0.2.0", "0.10.0", "1@aa", "1@bb", "2@aa"]
    mixed = keys[:]
    random.Random(3).shuffle(mixed)
    assert sorted(mixed, key=row_order) == keys


def cutting(request: Request) -> Reply:
    """Every third question's writer is cut short by its limit, that of question 4 by a filter; no judge is."""
    said = f"{request.agent} says {request.messages[-1].text}"
    number = int(said.split()[-1])
    finish = "content_filter" if number == 4 else "length" if number % 3 == 0 else "stop"
    return Reply(assistant(said), finish=finish if request.agent == "writer" else "stop")


def test_replies_that_were_cut_short_are_left_out_and_counted(tmp_path: Path):
    """Questions 0, 3 and 9 by the limit, 4 by the filter; 6 failed, and its task is no part of the export."""
    directory = tmp_path / "run"
    run(pairs, [{"n": n} for n in range(10)], models=Scripted(cutting), directory=directory).wait()
    out = tmp_path / "out.jsonl"
    left_out = {"cut short (max_tokens)": 3, "cut short (content filter)": 1}
    for form, whole in (("messages", {"writer": [1, 2, 5, 7, 8], "judge": [0, 1, 2, 3, 4, 5, 7, 8, 9]}),
                        ("preference", {None: [1, 2, 5, 7, 8]})):  # fmt: skip
        exported = export(directory, form, str(out), force=True)
        assert (exported.files, exported.left_out) == ({str(out): sum(map(len, whole.values()))}, left_out)
        for agent, numbers in whole.items():
            samples = [sample for sample in lines(out) if sample.get("agent") == agent]
            assert [int(sample["task"].split(".")[1]) for sample in samples] == numbers
        kept = export(directory, form, str(out), keep_cut=True)
        assert (kept.left_out, len(lines(out))) == ({}, sum(map(len, whole.values())) + 4)
        assert not any("_left_out" in sample for sample in lines(out))
    raw = export(directory, "raw", str(out), force=True)
    assert (raw.left_out, raw.cut, len(lines(out))) == ({}, left_out, 9)


@workflow
async def choosing(row: dict[str, Any]):
    replies = [await writer.reply(n=n) for n in row["of"]]
    chosen, rejected = (reply.text for reply in replies)
    return {"preferences": [{"prompt": "Write", "chosen": f"{chosen}\n", "rejected": rejected}]}


@pytest.mark.parametrize(
    ("of", "why"),
    [([1, 2], None), ([3, 2], "max_tokens"), ([1, 4], "content filter"), ([1, 1], None), ([3, 3], "max_tokens")],
)
def test_a_pair_is_left_out_whichever_side_was_cut(tmp_path: Path, of: list[int], why: str | None):
    run(choosing, [{"of": of}], models=Scripted(cutting), directory=tmp_path / "run").wait()
    exported = export(tmp_path / "run", "preference", str(tmp_path / "out.jsonl"))
    assert exported.left_out == ({f"cut short ({why})": 1} if why else {})


def test_a_pair_of_the_same_reply_is_left_out_whatever_is_kept(tmp_path: Path):
    @workflow
    async def same(row: dict[str, Any]):
        text = await writer(n=row["n"])
        return {"preferences": [{"prompt": "p", "chosen": text, "rejected": text}] * 2}

    run(same, [{"n": 1}, {"n": 3}], models=Scripted(cutting), directory=tmp_path / "run").wait()
    for keep_cut in (False, True):
        exported = export(tmp_path / "run", "preference", str(tmp_path / "out.jsonl"), keep_cut=keep_cut)
        assert exported.left_out == {"with chosen the same as rejected": 4}
        assert lines(tmp_path / "out.jsonl") == []


def test_pairs_that_a_later_stage_makes_know_what_was_cut_before(tmp_path: Path):
    """Drafts 0 and 3 are cut in the first stage; the second passes all on; a group of the third pairs them by parity."""

    @workflow
    async def draft(row: dict[str, Any]):
        return {"text": await writer(n=row["n"]), "odd": row["n"] % 2}

    @workflow
    async def passed(row: dict[str, Any]):
        return row

    @group(by="odd")
    async def paired(rows: list[dict[str, Any]]):
        good, *others = [row["text"] for row in rows]
        return {"preferences": [{"prompt": "Write", "chosen": good, "rejected": other} for other in others]}

    rows = [{"n": n} for n in (1, 3, 5, 7, 2, 8)]
    run(Stages(draft, passed, paired), rows, models=Scripted(cutting), directory=tmp_path / "run").wait()
    exported = export(tmp_path / "run", "preference", str(tmp_path / "out.jsonl"))
    assert exported.left_out == {"cut short (max_tokens)": 1}
    assert sorted(sample["rejected"][0]["content"][-1] for sample in lines(tmp_path / "out.jsonl")) == ["5", "7", "8"]


def test_an_exporter_of_ones_own_may_leave_out_and_be_counted(tmp_path: Path):
    file = tmp_path / "own.py"
    file.write_text(FILE + "\n@exporter\ndef small(story):\n"
                    "    yield {'n': story.result} | ({'_left_out': 'large'} if story.result > 1 else {})\n")  # fmt: skip
    run(file, [{"n": n} for n in range(5)], models=shuffled(0), directory=tmp_path / "run").wait()
    exported = export(tmp_path / "run", "small", str(tmp_path / "out.jsonl"), keep_cut=True)
    assert (exported.left_out, lines(tmp_path / "out.jsonl")) == ({"large": 3}, [{"n": 0}, {"n": 1}])


def test_an_export_replaces_what_it_wrote_and_nothing_else(tmp_path: Path):
    one, other = made(tmp_path / "one", count=3), made(tmp_path / "other", count=3)
    out = tmp_path / "out.jsonl"
    for _ in range(2):
        assert export(one, "raw", str(out)).files == {str(out): 3}
    written = out.read_bytes()
    for directory, form, options in [
        (one, "messages", {}),
        (one, "raw", {"state": "failed"}),
        (other, "raw", {}),
    ]:
        with pytest.raises(UserError, match=r"'.*out\.jsonl' is there already.*--force"):
            export(directory, form, str(out), **options)
        assert out.read_bytes() == written
    assert export(other, "raw", str(out), force=True).files == {str(out): 3}
    with pytest.raises(UserError, match="--force"):
        export(one, "raw", str(out))
    assert export(other, "raw", str(out)).files == {str(out): 3}
    with out.open("a") as file:
        file.write("{}\n")
    with pytest.raises(UserError, match="--force"):
        export(other, "raw", str(out))
    out.unlink()
    assert export(one, "raw", str(out)).files == {str(out): 3}


def test_a_resumed_run_is_exported_to_the_same_file(tmp_path: Path):
    rows = [{"n": n} for n in range(5)]
    out = tmp_path / "out.jsonl"
    for _ in run(pairs, rows, models=shuffled(0), directory=tmp_path / "run", in_flight=1):
        break
    few = export(tmp_path / "run", "raw", str(out)).files[str(out)]
    resume(tmp_path / "run", workflow=pairs, rows=rows, models=shuffled(0)).wait()
    assert few < export(tmp_path / "run", "raw", str(out)).files[str(out)] == 5


def test_what_json_cannot_hold_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="cannot hold"), open_sink(str(tmp_path / "a.jsonl")) as sink:
        sink.add({"a": object()}, "exporter 'x'")
    assert not list(tmp_path.iterdir())


@workflow
async def scored(row: dict[str, Any]):
    await writer(n=row["n"])
    return {"scores": [1.0, {"mean": [math.nan, math.inf, -math.inf, 0.5][row["n"] % 4]}], "none": None}


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_numbers_that_json_has_not_are_left_out_and_counted_never_made_null(tmp_path: Path, suffix: str):
    directory, out = made(tmp_path / "run", of=scored, count=8), tmp_path / f"out{suffix}"
    exported = export(directory, "raw", str(out))
    assert exported.left_out == {"with NaN or infinity in 'result.scores.mean', which JSON cannot hold": 6}
    assert [(line["row"]["n"], line["result"]["scores"][1]) for line in lines(out)] == [
        (3, {"mean": 0.5}), (7, {"mean": 0.5})
    ]  # fmt: skip
    assert exported.files == {str(out): 2}


def test_keep_cut_means_nothing_to_raw(tmp_path: Path):
    with pytest.raises(UserError, match="--keep-cut keeps samples that other forms leave out"):
        export(made(tmp_path / "run", count=1), "raw", str(tmp_path / "out.jsonl"), keep_cut=True)
    assert not (tmp_path / "out.jsonl").exists()


def test_an_empty_export_is_an_empty_file(tmp_path: Path):
    directory = made(tmp_path / "run", count=0)
    assert export(directory, "raw", str(tmp_path / "none.jsonl")).files == {str(tmp_path / "none.jsonl"): 0}
    assert (tmp_path / "none.jsonl").read_bytes() == b""


def test_unknown_agents_and_names_are_refused(tmp_path: Path):
    directory = made(tmp_path / "run", count=1)
    with pytest.raises(UserError, match="did you mean 'writer'"):
        export(directory, "messages", str(tmp_path / "a.jsonl"), agent="writre")
    with pytest.raises(UserError, match="--agent chooses the steps of"):
        export(directory, "raw", str(tmp_path / "a.jsonl"), agent="writer")
    with pytest.raises(UserError, match=r"expected one ending in .jsonl"):
        export(directory, "raw", str(tmp_path / "a.txt"))


@pytest.mark.skipif(importlib.util.find_spec("pyarrow") is not None, reason="pyarrow is here")
def test_parquet_without_pyarrow_names_the_extra(tmp_path: Path):
    directory = made(tmp_path / "run", count=1)
    with pytest.raises(UserError, match=r"weaverant\[data\]"):
        export(directory, "raw", str(tmp_path / "a.parquet"))


@pytest.mark.heavy
def test_datasets_loads_all_forms_and_parquet_is_the_same(tmp_path: Path):
    datasets = pytest.importorskip("datasets")
    directory = made(tmp_path / "run", count=30)
    for form in GENERIC:
        for suffix, kind in ((".jsonl", "json"), (".parquet", "parquet")):
            out = tmp_path / f"{form}{suffix}"
            export(directory, form, str(out))
            loaded = datasets.load_dataset(kind, data_files=str(out), split="train", cache_dir=str(tmp_path / "cache"))
            assert list(loaded) == lines(tmp_path / f"{form}.jsonl")


class Verdict(BaseModel):
    score: int = Field(le=5)


grader = Agent("grader", prompt="Grade {{ n }}", output=Verdict)


@workflow
async def graded(row: dict[str, Any]):
    return {"score": (await grader(n=row["n"])).score}


def test_replies_that_did_not_fit_the_output_are_no_samples(tmp_path: Path):
    """Of every other row the first reply is refused, and the second is good."""

    def answer(request: Request) -> Reply:
        odd = request.messages[0].text.endswith(("1", "3"))
        return Reply(assistant('{"score": 9}' if odd and len(request.messages) == 1 else '{"score": 3}'))

    run(graded, [{"n": n} for n in range(5)], models=Scripted(answer), directory=tmp_path / "run").wait()
    exported = export(tmp_path / "run", "messages", str(tmp_path / "out.jsonl"))
    assert exported.left_out == {"that did not fit the output and were asked again": 2}
    samples = lines(tmp_path / "out.jsonl")
    assert [sample["messages"][-1]["content"] for sample in samples] == ['{"score": 3}'] * 5
