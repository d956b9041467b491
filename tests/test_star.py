"""The recipe `star`: what is kept, what is left out, the hint, and the real thing on a few rows."""

import gzip
import json
from collections import Counter
from pathlib import Path
from random import Random

import pytest

import weaverant
from weaverant import Reply
from weaverant.cli.export import export
from weaverant.cli.show import storyteller
from weaverant.engines.scripted import Scripted
from weaverant.journal import JournalReader
from weaverant.message import assistant
from weaverant.recipe import load_recipe
from weaverant.recipes.star.recipe import dropped, kept, sft, star

SOLUTIONS = Path(__file__).parents[2] / "shared/data/recipes/gsm8k/example_model_solutions.jsonl.gz"
ROWS = [{"question": f"What is {n} + 1?", "answer": f"#### {n + 1}"} for n in range(12)]


def stories(directory):
    reader = JournalReader(directory)
    teller = storyteller(directory, reader)
    return [teller.tell(reader.task_events(task.task)) for task in reader.tasks()]


def draw(request):
    """Right, wrong, unreadable or the same again; right whenever it is told."""
    text = request.messages[0].text
    if "is known: " in text:
        return f"As if I had found it.\n#### {text.split('is known: ')[1].split('.')[0]}"
    dice = Random(f"{request.seed} {text}")
    return dice.choice(["I do not know.", "#### 3", f"{dice.randrange(3)}\n#### {dice.randrange(12)}"])


def test_right_answers_are_kept_once_and_the_rest_is_counted(tmp_path):
    run = weaverant.run(star, ROWS, models=Scripted(draw), directory=tmp_path / "run", parameters={"samples": 9}).wait()
    assert run.exit_code == 0 and run.ledger.calls == 9 * len(ROWS)
    reasons = Counter()
    for story in stories(tmp_path / "run"):
        gold = int(story.row["answer"].split()[1])
        said = [step.reply.text for step in story.model_steps]
        right = [text for text in said if "####" in text and int(text.split("####")[1]) == gold]
        lines = list(sft(story))
        assert [line["messages"][1]["content"] for line in lines] == list(dict.fromkeys(right))
        assert all(line["messages"][0]["content"] == story.model_steps[0].messages[0].text for line in lines)
        without = Counter()
        assert len(list(kept(story, without))) + without.total() == 9
        assert [line["sft"] for line in dropped(story)] == ([dict(without)] if without else [])
        reasons += without
    assert set(reasons) == {f"generator: {why}" for why in ("unread", "wrong", "the same reply to the same prompt")}


def test_the_hint_is_given_only_where_none_was_right_and_never_learnt(tmp_path):
    run = weaverant.run(
        star, ROWS, models=Scripted(draw), directory=tmp_path / "run", parameters={"samples": 2, "rationalise": True}
    ).wait()
    assert run.exit_code == 0
    hints = 0
    for story in stories(tmp_path / "run"):
        plain = [sample for sample in story.result["samples"] if "hinted" not in sample]
        found = list(sft(story))
        assert len(plain) == 2 and found
        assert (len(story.result["samples"]) == 3) == (not any(sample["right"] for sample in plain))
        assert all("is known" not in line["messages"][0]["content"] for line in found)
        if found[0]["hinted"]:
            hints += 1
            assert found[0]["messages"][1]["content"].startswith("As if I had found it.")
    assert 0 < hints < len(ROWS)
    assert run.ledger.calls == 2 * len(ROWS) + hints


def test_what_was_cut_off_or_empty_is_not_learnt(tmp_path):
    class Cut:
        identity = "cut"

        async def generate(self, request, ctx):
            return Reply(assistant("#### 1"), finish="length" if ctx.path == "0" else "stop")

        async def close(self):
            pass

    weaverant.run(star, ROWS[:1], models=Cut(), directory=tmp_path / "run", parameters={"samples": 2}).wait()
    (story,) = stories(tmp_path / "run")
    without = Counter()
    assert list(kept(story, without)) == [("#### 1", False)]
    assert without == {"generator: cut off at its token limit": 1}


def test_what_makes_no_sense_is_said(tmp_path):
    (task,) = weaverant.run(star, ROWS[:1], models=Scripted("1"), journal=False, parameters={"samples": 0})
    assert "samples must be at least 1" in task.result["text"]
    parameters = {"prompts": "tiny", "rationalise": True}
    (task,) = weaverant.run(star, ROWS[:1], models=Scripted("1"), journal=False, parameters=parameters)
    assert "--prompts chat" in task.result["text"]


def test_gsm8k_keeps_the_solutions_that_were_published_as_right(tmp_path):
    if not SOLUTIONS.exists():
        pytest.skip(f"GSM8K's example solutions are not at {SOLUTIONS}")
    known = [json.loads(line) for line in gzip.decompress(SOLUTIONS.read_bytes()).splitlines()]
    solutions = {row["question"].strip(): [told for told in row.values() if isinstance(told, dict)] for row in known}

    class Recorded:
        identity = "recorded"

        async def generate(self, request, ctx):
            question = request.messages[0].text.split("Problem:\n")[1].strip()
            return Reply(assistant(solutions[question][int(ctx.path)]["solution"]))

        async def close(self):
            pass

    rows = [{"question": row["question"], "answer": row["ground_truth"].rpartition("A: ")[2]} for row in known]
    run = weaverant.run(star, rows, models=Recorded(), directory=tmp_path / "run", parameters={"samples": 4}).wait()
    assert run.exit_code == 0
    found = export(tmp_path / "run", "sft", str(tmp_path / "out"))
    expected = sum(len({told["solution"] for told in all_ if told["is_correct"]}) for all_ in solutions.values())
    assert found.files == {str(tmp_path / "out" / "sft-generator.jsonl"): expected}
    assert expected > 1_900


def test_the_tiny_model_weaves_two_rows(tmp_path):
    run = weaverant.run("star", "arithmetic:weave", models="embedded:tiny", limit=2, directory=tmp_path / "run").wait()
    assert run.exit_code == 0 and run.ledger.calls == 6
    assert all(len(story.result["samples"]) == 3 for story in stories(tmp_path / "run"))


def test_the_recipe_offers_what_it_should():
    recipe = load_recipe("star")
    assert set(recipe.exporters) == {"sft", "dropped"}
    assert set(recipe.parameters) == {"samples", "checker", "prompts", "rationalise"}
    assert {agent.name for agent in recipe.agents} == {"generator", "hinted"}
    assert {agent.model for agent in recipe.agents} == {"generator"}
