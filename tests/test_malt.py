"""The recipe `malt`: reading answers, values, what is exported, the evaluation, and the real thing on a few rows."""

import gzip
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from fractions import Fraction
from itertools import product
from pathlib import Path
from random import Random

import pytest

import weaverant
from weaverant import Message, Reply, Story, UserError
from weaverant.cli.export import export
from weaverant.cli.show import storyteller
from weaverant.engines.scripted import Scripted
from weaverant.journal import JournalReader
from weaverant.message import user
from weaverant.recipe import load_recipe
from weaverant.recipes.malt import evaluate, main, tree
from weaverant.recipes.malt.answers import AnswerKey, answer_key, extract
from weaverant.recipes.malt.chains import chains
from weaverant.recipes.malt.exports import dropped, preference, sft, values
from weaverant.recipes.malt.recipe import malt
from weaverant.recipes.malt.scores import Score, scores, vote
from weaverant.recipes.malt.team import CHAT, ROLES, TINY, team_for
from weaverant.sources.arithmetic import PROMPTS, Arithmetic, last_number
from weaverant.story import Step
from weaverant.testing.server import MockServer

GSM8K = Path(__file__).parents[2] / "shared/data/recipes/gsm8k"
ROWS = [
    {"question": "What is 2 + 3?", "answer": "2 + 3 = <<2+3=5>>5\n#### 5"},
    {"question": "What is 40 + 2?", "answer": "#### 42"},
]


def draw(request):
    """A model whose words depend on the prompt and the seed alone: right, wrong, the same again."""
    dice = Random(f"{request.seed} {request.messages}")
    if request.agent == "verifier":
        return dice.choice(["Looks right.", "Step 1 is wrong.", "Step 2 is wrong."])
    return f"Let me see.\n#### {dice.choice(['5', '5.0', '42', '7'])}"


def stories(directory):
    reader = JournalReader(directory)
    teller = storyteller(directory, reader)
    return [teller.tell(reader.task_events(task.task)) for task in reader.tasks()]


@pytest.fixture
def woven(tmp_path):
    """The stories of thirty questions on the scripted model."""
    rows = [{"question": f"What is {n} + 0?", "answer": f"#### {gold}"} for n, gold in product(range(15), (5, 42))]
    run = weaverant.run(malt, rows, models=Scripted(draw), directory=tmp_path / "run").wait()
    assert run.exit_code == 0
    return stories(tmp_path / "run")


# Reading answers


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        ("16 - 3 - 4 = 9, 9 * 2 = 18", "18"),
        ("#### 18", "18"),
        ("#### 18\nThat took 3 steps.", "18"),
        ("#### 5\nWait, no.\n#### 6", "6"),
        ("####18 eggs in 2 days", "18"),
        ("####\n18", "18"),
        ("I will write it after ####.\n16-7=9\n#### 9", "9"),
        ("18 were said\n#### unknown", None),
        ("18 eggs\n####", None),
        ("The answer is 18. This took 2 minutes.", "18"),
        ("The answer is 16 - 7 = 9 eggs", "9"),
        ("The final answer is: **$1,234.50**.", "1234.5"),
        ("Answer:\n\n18", "18"),
        ("So the answer, in dollars, is $-5.", "-5"),
        ("The answer is clear. 3 and 4 make 7.", "7"),
        ("The student's answer is 5, but 2 * 3 makes 6.", "6"),
        ("The previous answer was 5. The correct answer is 6. Step 1 was at fault.", "6"),
        ("A: 42\n", "42"),
        ("A: -129025", "-129025"),
        ("The answer is \\boxed{18}.", "18"),
        ("\\boxed{\\frac{1}{2}}", "0.5"),
        ("so \\(\\boxed{x = {7}}\\)", "7"),
        ("1{,}234 in all", "1234"),
        ("costs $1,234,567", "1234567"),
        ("1, 2, 3", "3"),
        ("1,2,3", "3"),
        ("between 10-12", "12"),
        ("16 - 5", "5"),
        ("it is -5", "-5"),
        ("it is −5", "-5"),
        ("it is -$5", "-5"),
        ("(3)-2", "2"),
        ("-0", "0"),
        ("-0.00", "0"),
        ("007", "7"),
        ("18.", "18"),
        ("18.0", "18"),
        ("18.50", "18.5"),
        ("100", "100"),
        (".5", "0.5"),
        ("1/4 of it", "0.25"),
        ("1/0", "0"),
        ("9/3 = 3", "3"),
        ("50%", "50"),
        ("it is 5/hour", "5"),
        ("x5", "5"),
        ("eighteen", None),
        ("", None),
        ("####", None),
        ("{}}{\\boxed{", None),
        ("٣", None),
        ("9" * 400, "9" * 400),
    ],
)
def test_numbers_are_read(reply, answer):
    assert extract(reply, "number") == answer


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        ("The answer is B.", "B"),
        ("The answer is (c)", "C"),
        ("#### option D", "D"),
        ("Answer: **E**", "E"),
        ("The answer is a dog", None),
        ("A dog ate it, so (B), not C because", "B"),
        ("It must be B", "B"),
        ("\\boxed{A}", "A"),
        ("Because of A, B", "B"),
        ("I'd say none", None),
    ],
)
def test_choices_are_read(reply, answer):
    assert extract(reply, "choice") == answer


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        ("The answer is  New   York.", "new york"),
        ("first\n\\boxed{\\sqrt{2}}", "\\sqrt{2}"),
        ("some words\n\nParis\n", "paris"),
        ("  ", None),
    ],
)
def test_texts_are_read(reply, answer):
    assert extract(reply, "exact") == answer


@pytest.mark.parametrize(
    ("gold", "checker", "key"),
    [
        ("5 + 5 = <<5+5=10>>10\n#### 1,000", "auto", ("number", "1000")),
        (18, "auto", ("number", "18")),
        ("-3.50", "auto", ("number", "-3.5")),
        ("$12", "auto", ("number", "12")),
        ("(b)", "auto", ("choice", "B")),
        ("New York", "auto", ("exact", "new york")),
        ("18", "exact", ("exact", "18")),
        ("18 eggs", "auto", ("exact", "18 eggs")),
    ],
)
def test_the_gold_answer_chooses_the_checker(gold, checker, key):
    assert answer_key(gold, checker) == AnswerKey(*key)


@pytest.mark.parametrize(("gold", "checker"), [(None, "auto"), ("", "auto"), ("####", "auto"), ("many", "number")])
def test_a_row_without_a_gold_answer_says_so(gold, checker):
    with pytest.raises(UserError, match=r"gold answer in 'answer'.*found"):
        answer_key(gold, checker)


def test_answers_are_compared_by_value():
    key = answer_key("#### 1,000")
    assert key.accepts(key.read("it is 1000.00"))
    assert not key.accepts(key.read("it is 1000.0000000000000000000000000000001"))
    assert not key.accepts(key.read("I do not know"))


def test_the_checker_agrees_with_published_verdicts():
    """OpenAI's example solutions for GSM8K: 5,276 replies of four models, each with `is_correct`."""
    file = GSM8K / "example_model_solutions.jsonl.gz"
    if not file.exists():
        pytest.skip(f"GSM8K's example solutions are not at {file}")
    agreed = Counter()
    for row in map(json.loads, gzip.decompress(file.read_bytes()).splitlines()):
        key = answer_key(row["ground_truth"].rpartition("A: ")[2])
        for told in row.values():
            if isinstance(told, dict):
                agreed[key.accepts(key.read(told["solution"])) == told["is_correct"]] += 1
    assert agreed == {True: 5_276}


def test_every_gold_answer_of_gsm8k_is_a_number_and_its_solution_right():
    file = GSM8K / "gsm8k_test.jsonl"
    if not file.exists():
        pytest.skip(f"GSM8K is not at {file}")
    for row in map(json.loads, file.read_bytes().splitlines()):
        answer = row["answer"]
        key = answer_key(answer)
        assert key.kind == "number"
        assert key.accepts(key.read(answer))
        assert key.accepts(key.read(answer.replace("#### ", "So the answer is ")))


# The tree


@pytest.mark.parametrize("seed", range(50))
def test_values_are_those_of_a_brute_force_computation(seed):
    dice = Random(seed)
    n = dice.randint(1, 6)
    rewards = [[[dice.random() < 0.5 for _ in range(n)] for _ in range(n)] for _ in range(n)]
    attempts = [
        tree.attempt(
            "g",
            None,
            [tree.critique("v", [tree.refinement("r", None, right) for right in under]) for under in critiques],
        )
        for critiques in rewards
    ]

    def mean(values):
        values = list(values)
        return sum(values, Fraction()) / len(values)

    for attempt, critiques in zip(attempts, rewards, strict=True):
        expected = mean(mean(Fraction(right) for right in under) for under in critiques)
        assert attempt["value"] == float(expected)
        assert (attempt["value"] > tree.THETA) == (expected > Fraction(1, 2))
        for critique, under in zip(attempt["critiques"], critiques, strict=True):
            assert critique["value"] == float(mean(Fraction(right) for right in under))
            assert [leaf["value"] for leaf in critique["refinements"]] == [float(right) for right in under]


@pytest.mark.parametrize(("branching", "calls"), [(1, 3), (2, 14), (3, 39)])
def test_calls_and_leaves(branching, calls):
    run = weaverant.run(malt, ROWS, models=Scripted(draw), journal=False, parameters={"branching": branching})
    tasks = list(run)
    assert [task.state for task in tasks] == ["done", "done"]
    assert run.ledger.calls == 2 * calls
    leaves = [leaf for a in tasks[0].result["attempts"] for v in a["critiques"] for leaf in v["refinements"]]
    assert len(leaves) == branching**3


def test_leaves_are_graded_against_the_gold_answer():
    for task in weaverant.run(malt, ROWS, models=Scripted(draw), journal=False):
        result = task.result
        for attempt in result["attempts"]:
            for critique in attempt["critiques"]:
                for leaf in critique["refinements"]:
                    said = leaf["text"].rpartition(" ")[2]
                    assert leaf["value"] == float(float(said) == float(result["gold"]))


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"answer": "3"}, "'question'"),
        ({"question": " ", "answer": "3"}, "'question'"),
        ({"question": "?"}, "'answer'"),
    ],
)
def test_a_row_that_cannot_be_graded_fails_and_says_why(row, reason):
    (task,) = weaverant.run(malt, [row], models=Scripted(draw), journal=False)
    assert task.state == "failed"
    assert reason in task.result["text"]


# Prompts


def test_tiny_prompts_are_those_the_model_was_taught():
    told = {"question": "Q {{ x }}?", "attempt": "1+1=2 so 2", "critique": "Looks right."}
    for role, agent in zip(ROLES, TINY, strict=True):
        assert agent.messages(**told) == (user(PROMPTS[role].format_map(told)),)
        assert (agent.name, agent.model, agent.temperature) == (role, role, 1.0)


def test_chat_prompts_hold_all_there_is_to_see():
    told = {"question": "QUESTION", "attempt": "ATTEMPT", "critique": "CRITIQUE"}
    seen = [agent.messages(**told)[0].text for agent in CHAT]
    assert [[text in prompt for text in told.values()] for prompt in seen] == [
        [True, False, False],
        [True, True, False],
        [True, True, True],
    ]
    assert [agent.temperature for agent in CHAT] == [0.3] * 3


def test_the_rows_choose_the_prompts():
    (row,) = Arithmetic("weave", 1).rows(0)
    assert team_for(row, "auto") is TINY
    assert team_for(ROWS[0], "auto") is CHAT
    assert team_for({"id": 7}, "auto") is CHAT
    assert team_for(row, "chat") is CHAT
    assert team_for(ROWS[0], "tiny") is TINY


def test_temperature_can_be_set():
    seen = []

    def reply(request):
        seen.append((request.agent, request.sampling.temperature))
        return "#### 5"

    overrides = {"generator": {"temperature": 0.9}}
    weaverant.run(malt, ROWS[:1], models=Scripted(reply), journal=False, overrides=overrides).wait()
    assert Counter(seen) == {("generator", 0.9): 3, ("verifier", 0.3): 9, ("refiner", 0.3): 27}


def test_each_role_asks_its_own_model(tmp_path):
    models = {role: Scripted(f"{role}: #### 5") for role in ROLES}
    weaverant.run(malt, ROWS[:1], models=models, directory=tmp_path / "run").wait()
    (story,) = stories(tmp_path / "run")
    assert all(step.reply.text.startswith(step.name) for step in story.steps)


# What is exported


def test_prompts_are_those_that_were_sent_and_replies_those_that_came(woven):
    for story in woven:
        sent = {(step.name, step.messages, step.reply.text) for step in story.steps}
        for sample in sft(story):
            *prompt, last = (Message(**message) for message in sample["messages"])
            assert (sample["role"], tuple(prompt), last.text) in sent
            assert last.role == "assistant"
        for pair in preference(story):
            prompt = tuple(Message(**message) for message in pair["prompt"])
            for side in ("chosen", "rejected"):
                (message,) = pair[side]
                assert (pair["role"], prompt, message["content"]) in sent


def test_pairs_stay_under_one_parent(woven):
    """Both sides must hang below the same texts in the branches of the workflow, where a path names its parents."""
    found = 0
    for story in woven:
        said = {step.path: step.reply.text for step in story.steps}
        parents = {}
        for step in story.steps:
            above = step.path.split(".")[:-1]
            texts = tuple(said[".".join(above[: n + 1])] for n in range(len(above)))
            parents.setdefault((step.name, step.messages[0].text, step.reply.text), set()).add(texts)
        for pair in preference(story):
            prompt = pair["prompt"][0]["content"]
            sides = [parents[pair["role"], prompt, pair[side][0]["content"]] for side in ("chosen", "rejected")]
            assert sides[0] & sides[1]
            found += 1
    assert found > 100


def test_samples_are_good_pairs_ordered_and_none_comes_twice(woven):
    for story in woven:
        samples = list(sft(story))
        pairs = list(preference(story))
        assert all(sample["value"] > 0.5 for sample in samples)
        assert all(pair["chosen_value"] > 0.5 >= pair["rejected_value"] for pair in pairs)
        assert all(pair["chosen"] != pair["rejected"] for pair in pairs)
        for made in (samples, pairs):
            lines = [
                json.dumps([sample.get(k) for k in ("messages", "prompt", "chosen", "rejected")]) for sample in made
            ]
            assert len(lines) == len(set(lines))


def test_what_is_left_out_is_counted(woven):
    for story in woven:
        (report,) = dropped(story)
        assert sum(report["sft"].values()) + len(list(sft(story))) == 39


def told(values, texts, finish="stop", theta=0.5):
    """A story of branching 2 with these refiner values under one critique, or critics' values under one attempt."""
    leaves = [[v, v] for v in values]
    critiques = [
        tree.critique(text, [tree.refinement("r", None, right) for right in under])
        for text, under in zip(texts, leaves, strict=True)
    ]
    attempts = [tree.attempt("g", None, critiques)]
    steps = [step("0", "generator", "q", "g")]
    for i, text in enumerate(texts):
        steps.append(step(f"0.{i}", "verifier", "q g", text, finish))
        steps.extend(step(f"0.{i}.{j}", "refiner", f"q g {text}", "r") for j in range(2))
    result = {"question": "q", "gold": "1", "checker": "number", "theta": theta, "attempts": attempts}
    return Story("0.0.0", 0, {}, steps, state="done", result=result)


def step(path, name, prompt, text, finish="stop"):
    reply = Reply(Message("assistant", text), finish=finish)
    return Step(0, "model", name, path, 0, "reply", messages=(user(prompt),), reply=reply)


def verifier_pairs(story):
    return [
        (p["chosen"][0]["content"], p["rejected"][0]["content"]) for p in preference(story) if p["role"] == "verifier"
    ]


def test_every_good_sibling_meets_every_bad_one_once():
    story = told([True, False, True, False, False], ["a", "x", "b", "y", "y"])
    assert verifier_pairs(story) == [("a", "x"), ("b", "y"), ("a", "y"), ("b", "x")]


def test_two_draws_of_one_text_are_one_reply():
    """It was right under one draw and wrong under the other: its value is one half, and it is on one side only."""
    story = told([True, False, False], ["Looks right.", "Looks right.", "no"])
    assert verifier_pairs(story) == []
    (report,) = dropped(story)
    assert report["preference"]["verifier: all siblings are bad"] == 1
    story = told([True, False, True], ["Looks right.", "Looks right.", "no"])
    assert verifier_pairs(story) == [("no", "Looks right.")]
    (line,) = (line for line in values(story) if line["completion"][0]["content"] == "Looks right.")
    assert (line["value"], line["leaves"], line["draws"], line["label"]) == (0.5, 4, 2, False)


def test_cut_off_and_empty_replies_are_not_learnt():
    cut = told([True, False], ["a", "x"], finish="length")
    assert [sample for sample in sft(cut) if sample["role"] == "verifier"] == []
    assert verifier_pairs(cut) == []
    empty = told([True, False], ["a", " "])
    assert verifier_pairs(empty) == []
    (report,) = dropped(empty)
    assert report["preference"]["verifier: an empty reply"] == 1


def test_what_was_drawn_twice_is_one_parent():
    """The generator said the same thing twice, and what was good under one copy was bad under the other."""
    one, two = told([True, False], ["a", "b"]), told([False, False], ["a", "c"])
    for late in two.steps:
        late.path = "1" + late.path[1:]
    one.steps += two.steps
    one.result["attempts"] += two.result["attempts"]
    assert verifier_pairs(one) == []
    assert [line["value"] for line in values(one) if line["role"] == "verifier"] == [0.5, 0.0, 0.0]
    (report,) = dropped(one)
    assert report["preference"]["verifier: all siblings are bad"] == 1


def test_a_prompt_that_two_parents_make_up_is_used_once():
    """Of `a` and `b c` the tiny model is told the same as of `a b` and `c`."""
    one, two = told([True], ["x"]), told([False], ["y"])
    for late in two.steps:
        late.path = "1" + late.path[1:]
    two.result["attempts"][0]["text"] = "h"
    one.steps += two.steps
    one.result["attempts"] += two.result["attempts"]
    (report,) = dropped(one)
    assert report["sft"]["verifier: under another parent with the same prompt"] == 1
    assert [s["messages"][-1]["content"] for s in sft(one) if s["role"] == "verifier"] == ["x"]


def test_a_text_that_came_whole_once_is_whole():
    story = told([True, True, False], ["a", "a", "x"])
    story.steps[1].reply = Reply(Message("assistant", "a"), finish="length")
    assert verifier_pairs(story) == [("a", "x")]


def test_theta_is_strict():
    half = told([True, False], ["a", "b"])
    assert half.result["attempts"][0]["value"] == 0.5
    assert not any(sample["role"] == "generator" for sample in sft(half))
    assert any(sample["role"] == "generator" for sample in sft(told([True, False], ["a", "b"], theta=0.4)))


def test_tasks_that_are_not_done_give_nothing():
    story = told([True], ["a"])
    story.state = "failed"
    assert list(values(story)) == list(sft(story)) == list(preference(story)) == list(dropped(story)) == []


def test_the_recipe_offers_what_it_should():
    recipe = load_recipe("malt")
    assert set(recipe.exporters) == {"sft", "preference", "values", "dropped"}
    assert set(recipe.parameters) == {
        *("branching", "checker", "prompts", "theta", "values", "min_confidence", "max_pairs"),
    }
    assert recipe.source == "arithmetic:weave"
    assert {agent.model for agent in recipe.agents} == set(ROLES)


# The evaluation


def test_a_tie_goes_to_the_first_vote_and_what_cannot_be_read_has_none():
    assert vote(["1", "2", "2"]) == "2"
    assert vote(["3", "1", "2"]) == "3"
    assert vote([None, None, "2"]) == "2"
    assert vote([None, "2", "1"]) == "2"
    assert vote([None, None]) is None
    assert vote([]) is None


def test_wilson_interval():
    low, high = Score(50, 100).interval()
    assert (round(low, 4), round(high, 4)) == (0.4038, 0.5962)
    assert Score(0, 10).interval()[0] == pytest.approx(0, abs=1e-12)
    assert Score(10, 10).interval()[1] == pytest.approx(1)
    assert Score(0, 0).interval() == (0.0, 1.0)


def test_chains_are_scored_by_first_reply_first_chain_and_majority():
    told = {"generator": "#### 5", "verifier": "no", "refiner": ["#### 6", "#### 5", "#### 5.0"]}
    (task,) = weaverant.run(chains, ROWS[:1], models=Scripted(told), journal=False)
    assert [task.result[name] for name in ("lone", "chain", "vote", "voted")] == [True, False, True, "5"]
    assert scores([task]) == {"lone": (1, 1), "chain": (0, 1), "vote": (1, 1)}


def test_failed_tasks_count_as_wrong():
    tasks = weaverant.run(chains, [*ROWS, {"question": "no gold"}], models=Scripted("#### 5"), journal=False)
    assert scores(tasks) == {"lone": (1, 3), "chain": (1, 3), "vote": (1, 3)}


# The real thing


def test_the_tiny_model_weaves_two_rows(tmp_path):
    run = weaverant.run("malt", "arithmetic:weave", models="embedded:tiny", limit=2, directory=tmp_path / "run")
    tasks = list(run)
    assert run.exit_code == 0
    assert run.ledger.calls == 78
    for story in stories(tmp_path / "run"):
        assert all(step.messages[0].text.startswith(story.row["question"]) for step in story.steps)
    for task in tasks:
        for attempt in task.result["attempts"]:
            assert attempt["answer"] == last_number(attempt["text"])
    assert export(tmp_path / "run", "sft", str(tmp_path / "out")).files


def test_rows_of_gsm8k_run_on_a_served_model(tmp_path):
    with MockServer() as server:
        run = weaverant.run("malt", ROWS, models=f"{server.url}#any", directory=tmp_path / "run").wait()
        assert run.exit_code == 0
        assert server.stats()["total"] == 78
    assert {step.model for story in stories(tmp_path / "run") for step in story.steps} == {"any"}


def test_a_run_that_was_stopped_gives_the_same_files(tmp_path):
    rows = list(Arithmetic("weave", 6).rows(0))
    for name in ("whole", "stopped"):
        run = weaverant.run("malt", rows, models="embedded:tiny", directory=tmp_path / name, in_flight=2)
        for _ in run:
            if name == "stopped":
                break
    assert run.ledger.ended_rows < len(rows)
    again = weaverant.resume(tmp_path / "stopped", rows=rows)
    assert again.wait().exit_code == 0
    for form, name in (("sft", "sft-refiner.jsonl"), ("preference", "preference-refiner.jsonl")):
        for directory in ("whole", "stopped"):
            export(tmp_path / directory, form, str(tmp_path / f"{directory}-out"))
        assert (tmp_path / "whole-out" / name).read_bytes() == (tmp_path / "stopped-out" / name).read_bytes()


def test_the_main_job_names_commands_that_work_where_it_was_called(tmp_path):
    """Without the environment's folder on the PATH, as `make run` is."""
    words = [sys.executable, "-m", "weaverant.recipes.malt", "--out", "out", "--questions", "1", "--problems", "1"]
    env = {**os.environ, "PATH": os.defpath}
    ran = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, env=env)
    shown = re.findall(r"^  (\S.* show runs/\S+)$", ran.stdout, re.MULTILINE)
    assert len(shown) == 2, ran.stdout
    for line in shown:
        looked = subprocess.run(shlex.split(line), cwd=tmp_path, capture_output=True, text=True, env=env)
        assert looked.returncode == 0 and "rows 1 = done 1" in looked.stdout


def test_the_main_job_says_what_it_did(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main.main(["--out", "out", "--questions", "12", "--problems", "6"]) == 0
    said = capsys.readouterr().out
    told = json.loads(said.splitlines()[-1])
    met = {row["name"]: row["met"] for row in told["rows"]}
    assert told["target"] == "run"
    assert met["questions woven"] and met["calls of the weave"] and met["files with samples"]
    assert "rows 12 = done 12" in said and "weaverant export" not in said
    for name in main.FILES:
        assert (tmp_path / "out" / name).stat().st_size


def test_the_evaluation_is_a_command(tmp_path, capsys):
    code = evaluate.main(["--limit", "4", "--model", "embedded:tiny", "--run", str(tmp_path / "run")])
    *_, last = capsys.readouterr().out.splitlines()
    assert code == 0
    assert [row["system"] for row in json.loads(last)["rows"]] == ["sa@1", "sa@3", "sa@9", "ma@1", "ma@3"]
    assert (tmp_path / "run" / "run.json").exists()


def test_a_second_signal_ends_an_evaluation_whose_model_holds_the_event_loop(tmp_path):
    (tmp_path / "slow.py").write_text(
        "import time\n\n\ndef reply(request):\n    open('reached', 'w').close()\n    time.sleep(50)\n"
    )
    words = [sys.executable, "-m", "weaverant.recipes.malt.evaluate"]
    words += ["--limit", "4", "--model", "scripted:slow.py", "--run", "run"]
    with subprocess.Popen(words, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as going:
        until = time.monotonic() + 30
        while not (tmp_path / "reached").exists():
            assert time.monotonic() < until, "no call was made in time"
            time.sleep(0.02)
        going.send_signal(signal.SIGINT)
        time.sleep(0.3)
        going.send_signal(signal.SIGINT)
        try:
            _, err = going.communicate(timeout=20)
        finally:
            going.kill()
    assert going.returncode == 4 and "weaverant resume run" in err


@pytest.mark.heavy
def test_the_files_load_in_datasets(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.chdir(tmp_path)
    main.main(["--out", "out", "--questions", "12", "--problems", "1"])
    for name in main.FILES:
        loaded = datasets.load_dataset(
            "json", data_files=f"out/{name}", split="train", cache_dir=str(tmp_path / "cache")
        )
        columns = {"messages"} if name.startswith("sft") else {"prompt", "chosen", "rejected"}
        assert columns | {"task", "role"} <= set(loaded.column_names)
        assert all(message["content"] for column in columns for message in loaded[0][column])
