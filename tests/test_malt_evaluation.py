"""The MALT evaluation: who is asked what, what is shared, models by role, runs that stop, tables, pictures."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest

import weaverant
from weaverant import UserError
from weaverant.engines.embedded import PACKAGED
from weaverant.engines.scripted import Scripted
from weaverant.recipes.malt import evaluate, picture
from weaverant.recipes.malt.bars import bars
from weaverant.recipes.malt.contest import contest
from weaverant.recipes.malt.drawing import drawn, folded
from weaverant.recipes.malt.paper import PAPER
from weaverant.recipes.malt.roles import RoleModels, given_models, read_models
from weaverant.recipes.malt.stats import percentages
from weaverant.recipes.malt.systems import MALT, SFT, STAR_MA, TEAMS, systems_of
from weaverant.recipes.malt.tables import document, notes, tables

ROLES = ("generator", "verifier", "refiner")
ROWS = [{"question": "What?", "answer": "never"}]
ALL = RoleModels(
    base="b:", star="s:", sft={role: f"sft {role}:" for role in ROLES}, dpo={role: f"dpo {role}:" for role in ROLES[1:]}
)


def echo(request):
    """An answer that tells who was asked, for which draw, and what stood in the prompt."""
    prompt = request.messages[0].text
    read = re.findall(r"#### (\S+)", prompt.partition("Problem:")[2])
    return f"#### {request.agent}:{request.seed}({'|'.join(read)})"


def played(models=ALL, teams=evaluate.OWN_KEYS, rows=ROWS, reply=echo, **parameters):
    """The tasks of a contest among echoes, and its calls."""
    it = evaluate.asked(models, teams, checker="exact", **parameters)
    run = weaverant.run(
        contest, rows, models={name: Scripted(reply) for name in it.models}, parameters=it.parameters, journal=False
    )
    return list(run), run.ledger.calls


# Who is asked what


def test_every_system_hears_its_own_team_and_no_pass_twice():
    (task,), _ = played()
    for system in systems_of(TEAMS, 3):
        team, answers = system.team, task.result["answers"][system.key]
        assert len(answers) == len(set(answers)) == system.votes
        verifier = "base" if team == STAR_MA else team.verifier
        refiner = "base" if team == STAR_MA else team.refiner
        attempt = rf"generator-{team.generator}:\d+\(\)"
        critique = rf"verifier-{verifier}:\d+\(({attempt})\)"
        if team.refiner and team.verifier:
            expected = rf"refiner-{refiner}:\d+\(({attempt})\|{critique}\)"
        elif team.refiner:
            expected = rf"refiner-{refiner}:\d+\(({attempt})\)"
        else:
            expected = critique if team.verifier else attempt
        for answer in answers:
            found = re.fullmatch(expected, answer)
            assert found, (system.key, answer)
            assert len(set(found.groups())) <= 1, "the critique is of another attempt than the refiner read"


def test_an_empty_critique_is_given_where_nobody_verifies():
    prompts = []

    def reply(request):
        prompts.append((request.agent, request.messages[0].text))
        return echo(request)

    played(teams=["g_r"], reply=reply)
    refined = [text for agent, text in prompts if agent == "refiner-dpo"]
    assert len(refined) == 3 and len(prompts) == 6
    assert all(text.rstrip().endswith("Critique:") for text in refined)


def test_what_systems_have_in_common_is_asked_once():
    (task,), calls = played()
    assert calls == 57  # 9 attempts and 6 of each team on them, ..., by hand: 9+6 + 3+6 + 3+6 + 6 + 6 + 6 + 3 + 3
    assert sum(system.calls for system in systems_of(TEAMS, 3)) == 121
    answers = task.result["answers"]
    assert answers["sa@1"] == answers["sa@3"][:1] == answers["sa@9"][:1]
    assert all(attempt in answer for attempt, answer in zip(answers["sa@3"], answers["ma@3"], strict=True))
    assert all(attempt in answer for attempt, answer in zip(answers["g@3"], answers["malt@3"], strict=True))
    assert all(critique in answer for critique, answer in zip(answers["g_v@3"], answers["malt@3"], strict=True))


@pytest.mark.parametrize(("teams", "calls"), [(["sa"], 9), (["sa", "ma"], 15), (["ma"], 9), (["malt", "g", "g_v"], 9)])
def test_calls(teams, calls):
    assert played(teams=teams)[1] == calls


def test_a_system_draws_the_same_whoever_else_plays():
    (task,), _ = played()
    for team in TEAMS:
        (alone,), _ = played(teams=[team.key])
        assert {key: task.result["answers"][key] for key in alone.result["answers"]} == alone.result["answers"]


def test_a_model_that_was_given_twice_is_one_model():
    models = RoleModels(base="b:", star="g:", sft={"generator": "g:", "verifier": "v:", "refiner": "r:"})
    specs, cast = models.named(TEAMS[:5])
    assert specs == {"base": "b:", "star": "g:", "sft-verifier": "v:", "sft-refiner": "r:"}
    assert cast["sft generator"] == cast["star generator"] == "star"
    (task,), calls = played(models, ["star_sa", "sft", "g"])
    assert calls == 9
    assert task.result["answers"]["star_sa@3"] == task.result["answers"]["g@3"]


def test_seeds_are_other_draws_of_the_same_problems(tmp_path):
    it = evaluate.asked(RoleModels(base="b:"), ["sa"], checker="exact")
    run = weaverant.run(contest, ROWS, models=Scripted(echo), parameters=it.parameters, journal=False, trials=3)
    answers = [answer for task in run for answer in task.result["answers"]["sa@9"]]
    assert len(answers) == len(set(answers)) == 27


def test_a_vote_is_right_where_its_winner_is_and_ties_are_told():
    replies = {"generator-base": ["#### 5", "#### 6", "#### 5.0", *["#### 7"] * 6]}
    it = evaluate.asked(RoleModels(base="b:"), ["sa"])
    for gold, right in (("5", [True, True, False]), ("6", [False] * 3), ("7", [False, False, True])):
        (task,) = weaverant.run(
            contest,
            [{"question": "?", "answer": gold}],
            models=Scripted(replies),
            parameters=it.parameters,
            journal=False,
        )
        assert [task.result["right"][key] for key in ("sa@1", "sa@3", "sa@9")] == right
    assert task.result["tied"] == {"sa@1": False, "sa@3": False, "sa@9": False}
    replies["generator-base"][2] = "#### 8"
    (task,) = weaverant.run(
        contest, [{"question": "?", "answer": "5"}], models=Scripted(replies), parameters=it.parameters, journal=False
    )
    assert task.result["tied"]["sa@3"] and task.result["right"]["sa@3"]


def test_a_team_without_a_refiner_answers_what_its_critique_does_else_the_attempt():
    it = evaluate.asked(ALL, ["g_v"])
    for critique, answer in (("I get #### 8", "8"), ("Looks right.", "5")):
        told = {"generator-sft": "#### 5", "verifier-dpo": critique}
        (task,) = weaverant.run(
            contest, [{"question": "?", "answer": "5"}], models=Scripted(told), parameters=it.parameters, journal=False
        )
        assert task.result["answers"]["g_v@3"] == [answer] * 3


@pytest.mark.parametrize("reads", [True, False])
def test_any_checker_judges_and_one_that_reads_no_answers_has_no_vote(tmp_path, reads):
    body = "(reply[-1], reply.endswith('7'))" if reads else "reply.endswith('7')"
    (tmp_path / "mine.py").write_text(f"def check(reply, row):\n    return {body}\n")
    it = evaluate.asked(RoleModels(base="b:"), ["sa"], checker=f"{tmp_path / 'mine.py'}:check")
    replies = {"generator-base": ["so 5", "so 7", "so 7", *["so 5"] * 6]}
    run = weaverant.run(contest, ROWS, models=Scripted(replies), parameters=it.parameters, directory=tmp_path / "run")
    (task,) = run
    assert [task.result["right"][key] for key in ("sa@1", "sa@3", "sa@9")] == [False, reads, False]


def test_a_prompt_that_is_too_long_leaves_only_its_own_systems_without_an_answer(tmp_path):
    question = f"{'Tom has 2 hats. ' * 9}Ann has 9 caps, gives 3. How many?"
    rows = [{"question": question, "answer": "6"}]
    it = evaluate.asked(RoleModels(base="embedded:tiny"), ["sa", "ma"], prompts="tiny")
    (task,) = weaverant.run(contest, rows, models=it.models, parameters=it.parameters, journal=False)
    assert task.state == "done"
    assert task.result["answers"]["ma@3"] == [None] * 3
    assert not task.result["right"]["ma@3"]


def test_a_call_that_fails_otherwise_fails_its_problem_and_counts_for_nobody(tmp_path):
    def reply(request):
        if "hard" in request.messages[0].text and request.agent == "verifier-base":
            raise ValueError("no")
        return "#### 5"

    rows = [{"question": "easy", "answer": "5"}, {"question": "hard", "answer": "5"}]
    it = evaluate.asked(RoleModels(base="b:"))
    run = weaverant.run(
        contest, rows, models=Scripted(reply), parameters=it.parameters, directory=tmp_path / "run"
    ).wait()
    assert run.ledger.failed == 1
    found = evaluate.evaluated(tmp_path / "run")
    assert found.outcomes.failed == 1
    assert all(right == [[True, False]] for right in found.outcomes.right.values())
    assert any("1 of 2 problems failed" in line for line in notes(found))


# Models by role


def test_models_are_read_from_a_file_and_folders_are_found_beside_it(tmp_path):
    (tmp_path / "roles" / "g").mkdir(parents=True)
    (tmp_path / "models.json").write_text(
        json.dumps({"base": "embedded:tiny", "sft": {"generator": "embedded:roles/g"}, "dpo": {}})
    )
    models = read_models(tmp_path / "models.json")
    assert models.spec("base", "refiner") == "embedded:tiny"
    assert models.spec("sft", "generator") == f"embedded:{tmp_path}/roles/g"
    assert models.missing(SFT) == ["sft verifier", "sft refiner"]
    assert models.missing(MALT) == ["dpo verifier", "dpo refiner"]
    assert models.missing(STAR_MA) == ["star generator", "star verifier", "star refiner"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "models.json"),
        ('{"sft": "x:"}', "base"),
        ('{"base": "x:", "ppo": "y:"}', "ppo"),
        ('{"base": "x:", "sft": {"judge": "y:"}}', "judge"),
        ('{"base": {"generator": "x:"}}', "all three roles"),
        ('{"base": "x:", "dpo": {"generator": "y:"}}', "generator trained by dpo"),
        (None, "cannot be read"),
    ],
)
def test_a_models_file_that_is_wrong_says_so(tmp_path, text, said):
    if text is not None:
        (tmp_path / "models.json").write_text(text)
    with pytest.raises(UserError, match=said):
        read_models(tmp_path / "models.json")


def test_options_name_models_as_the_file_does():
    given = {"base": ["b:"], "star": ["s:"], "sft": ["generator=g:", "verifier=v:"], "dpo": ["d:"]}
    models = given_models(given)
    assert [models.spec("base", role) for role in ROLES] == ["b:"] * 3
    assert [models.spec("star", role) for role in ROLES] == ["s:", "b:", "b:"]
    assert [models.spec("sft", role) for role in ROLES] == ["g:", "v:", None]
    assert [models.spec("dpo", role) for role in ROLES] == [None, "d:", "d:"]
    assert given_models({"base": ["http://h:1/v1#a=b"]}).spec("base", "refiner") == "http://h:1/v1#a=b"
    urls = given_models({"base": ["http://h:1/v1#a", "http://h:2/v1#a"]})
    assert urls.spec("base", "refiner") == "pool:http://h:1/v1#a,http://h:2/v1#a"


def test_teams_without_models_are_left_out_and_named():
    it = evaluate.asked(given_models({"base": ["b:"], "sft": ["generator=g:"]}))
    assert it.parameters["teams"] == ["sa", "ma", "g"]
    with pytest.raises(UserError, match=r"MALT lacks .*dpo verifier"):
        evaluate.asked(RoleModels(base="b:"), ["malt"])


# The real thing


@pytest.fixture(scope="module")
def perturbed(tmp_path_factory):
    """Two models that differ from the packaged one, and from each other: its weights with noise."""
    folder = tmp_path_factory.mktemp("models")
    for name, noise in (("shaken", 0.15), ("broken", 3.0)):
        shutil.copytree(PACKAGED / "tiny", folder / name)
        file = folder / name / "model.safetensors"
        data = bytearray(file.read_bytes())
        start = 8 + int.from_bytes(data[:8], "little")
        weights = np.frombuffer(bytes(data[start:]), np.float16).astype(np.float32)
        dice = np.random.default_rng(7)
        weights *= 1 + noise * dice.standard_normal(len(weights), np.float32)
        data[start:] = weights.astype(np.float16).tobytes()
        file.write_bytes(data)
    models = {
        "base": "embedded:tiny",
        "star": "embedded:shaken",
        "sft": {"generator": "embedded:tiny", "verifier": "embedded:broken", "refiner": "embedded:tiny"},
        "dpo": {"verifier": "embedded:shaken", "refiner": "embedded:tiny"},
    }
    (folder / "models.json").write_text(json.dumps(models))
    return folder / "models.json"


def test_the_whole_evaluation_on_models_that_differ(tmp_path, perturbed, capsys):
    words = ["--models", str(perturbed), "--problems", "25", "--seeds", "2"]
    assert evaluate.main([*words, "--run", str(tmp_path / "run"), "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    told = json.loads(said.splitlines()[-1])
    assert told["target"] == "malt" and told["problems"] == 25 and told["seeds"] == 2 and told["left_out"] == {}
    rows = {row["system"]: row for row in told["rows"] if "system" in row}
    assert set(rows) == {system.key for system in systems_of(TEAMS, 3)}
    assert rows["g@3"]["value"] == rows["sa@3"]["value"], "the same model is the same system"
    assert rows["sa@3"]["value"] > rows["star_sa@3"]["value"], "a shaken generator is worse"
    for row in rows.values():
        assert 0 <= row["low"] <= row["value"] <= row["high"] <= 1
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text()) == told
    assert ET.parse(tmp_path / "out" / "accuracy.svg").getroot().tag.endswith("svg")
    page = (tmp_path / "out" / "evaluation.md").read_text()
    for line in ("Table 1", "Table 4", "Table 5", "| MALT | 9 |", "90.50±2.06", "SA, 9 votes", "| paper: MALT, MATH |"):
        assert line in page
    assert evaluate.main(["--run", str(tmp_path / "run")]) == 0
    again = capsys.readouterr().out
    assert again.splitlines()[-1] == said.splitlines()[-1] and "\n0 calls in" in again


def test_a_run_that_was_killed_goes_on_and_comes_to_the_same(tmp_path):
    words = [sys.executable, "-m", "weaverant.recipes.malt.evaluate"]
    asked = ["--base", "embedded:tiny", "--problems", "12", "--seeds", "2", "--run"]

    def to_its_end(arguments):
        done = subprocess.run([*words, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    whole = to_its_end([*asked, "whole"])
    with subprocess.Popen([*words, *asked, "killed"], cwd=tmp_path, stderr=subprocess.DEVNULL) as going:
        until = time.monotonic() + 60
        while sum(file.stat().st_size for file in tmp_path.glob("killed/journal/**/*") if file.is_file()) < 15_000:
            assert time.monotonic() < until and going.poll() is None
            time.sleep(0.01)
        os.kill(going.pid, signal.SIGKILL)
    again = to_its_end(["--run", "killed"])
    assert again[-1] == whole[-1]
    calls = int(re.search(r"([\d,]+) calls in", "\n".join(again))[1].replace(",", ""))
    assert calls < 12 * 2 * 15


def test_a_run_is_not_gone_on_with_as_another(tmp_path, capsys):
    run = str(tmp_path / "run")
    assert evaluate.main(["--problems", "2", "--team", "sa", "--run", run]) == 0
    assert "SA, 9 votes" in capsys.readouterr().out
    for words in (["--seeds", "2"], ["--problems", "3"], ["--input", "arithmetic:weave"], ["--base", "embedded:other"]):
        with pytest.raises(UserError, match=r"began with (seeds|problems|input|models)"):
            evaluate.main(["--run", run, *words])
    assert evaluate.main(["--run", run, "--problems", "2", "--base", "embedded:tiny"]) == 0


# Tables and pictures


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """An evaluation of echoes that answer 5 or 6 by their draw."""
    directory = tmp_path_factory.mktemp("found") / "run"
    it = evaluate.asked(ALL)
    rows = [{"question": f"{n}?", "answer": "5"} for n in range(30)]
    engines = {name: Scripted(lambda request: f"#### {5 + request.seed % 2}") for name in it.models}
    weaverant.run(contest, rows, models=engines, parameters=it.parameters, directory=directory, trials=2).wait()
    return evaluate.evaluated(directory)


def test_flips_sum_to_a_hundred_and_tables_agree_with_the_document(found):
    told = {row["name"]: row for row in document(found)["rows"]}
    first, *_, tests, flipped = tables(found)
    for row in flipped.rows:
        if not row[0].startswith("paper"):  # whose figures sum to 100 within their rounding
            assert round(sum(map(float, row[1:])), 6) == 100
    for row in first.rows:
        machine = next(one for one in told.values() if one["name"].startswith(f"{row[0]} ("))
        assert row[2].startswith(f"{100 * machine['value']:.1f}"[:4])
    assert len(tests.rows) == sum(len(row.get("against", {})) for row in told.values())
    assert {row["met"] for row in told.values() if row["goal"]} == {False}


def test_flips_are_those_of_the_outcomes(found):
    sa, malt = found.system("sa@3"), found.system("malt@3")
    pairs = [
        (a, b)
        for ours, theirs in zip(found.outcomes.right["sa@3"], found.outcomes.right["malt@3"], strict=True)
        for a, b in zip(ours, theirs, strict=True)
    ]
    by_hand = [100 * pairs.count(way) / 60 for way in ((False, True), (True, True), (False, False), (True, False))]
    assert by_hand[0] != by_hand[3]
    assert percentages(found.outcomes.flips(sa, malt)) == pytest.approx(by_hand, abs=0.1)
    (row,) = [row for row in tables(found)[-1].rows if row[0] == "MALT"]
    assert list(map(float, row[1:])) == pytest.approx(by_hand, abs=0.1)


def test_the_papers_figures_stand_beside_the_systems_they_are_of(found):
    assert set(PAPER) <= {system.key for system in found.systems}
    rows = {row[0]: row[4:] for table in tables(found)[:3] for row in table.rows}
    assert rows["MALT"] == ["90.50±2.06", "81.50±2.29", "57.25±1.48", "74.50±2.65"]
    assert rows["G+V"] == ["88.75", "78.00", "55.75", ""]
    assert rows["V untrained"] == ["85.75", "76.75", "54.50", ""]
    assert rows["SA, 9 votes"] == [""] * 4


def shapes(text, tag):
    return [one for one in ET.fromstring(text).iter() if one.tag.endswith(f"}}{tag}")]


@pytest.mark.parametrize("dark", [None, True, False])
def test_bars_have_a_bar_for_each_system(found, dark):
    text = bars(found, dark)
    words = [one.text for one in shapes(text, "text")]
    assert all(system.name in words for system in found.systems)
    assert len(shapes(text, "rect")) == 1 + 2 + len(found.systems)
    assert ("prefers-color-scheme" in text) == (dark is None)


def grown(words='a < b & "c"', branching=(2, 3, 2)):
    g, v, r = branching
    leaves = [{"text": f"{words} {n}", "answer": "5" if n else None, "value": float(n % 2)} for n in range(r)]
    critiques = [{"text": words * 40, "value": 0.5, "refinements": leaves} for _ in range(v)]
    attempts = [{"text": words, "answer": "5", "value": 0.25, "critiques": critiques} for _ in range(g)]
    return {"question": words, "gold": "5", "checker": "number", "theta": 0.5, "attempts": attempts}


@pytest.mark.parametrize("branching", [(1, 1, 1), (2, 3, 2), (3, 3, 3), (4, 4, 4)])
def test_a_tree_has_a_box_for_each_reply_and_a_branch_to_each_parent(branching):
    g, v, r = branching
    text = drawn(grown(branching=branching))
    replies = g + g * v + g * v * r
    assert len(shapes(text, "rect")) == 1 + 5 + replies
    assert len([one for one in shapes(text, "path") if one.get("class") == "edgeline"]) == replies - g
    page = ET.fromstring(text)
    width, height = float(page.get("width")), float(page.get("height"))
    for one in shapes(text, "rect"):
        assert float(one.get("x", 0)) + float(one.get("width")) <= width
        assert float(one.get("y", 0)) + float(one.get("height")) <= height


def test_a_long_text_is_shortened_to_its_box():
    assert folded("aaa bbb ccc ddd", 7, 2) == ["aaa bbb", "ccc ddd"]
    assert folded("aaa bbb ccc ddd eee", 7, 2) == ["aaa bbb", "ccc dd…"]
    assert folded("a" * 20, 8, 2) == ["a" * 8, "a" * 7 + "…"]
    assert folded(" \n ", 8, 2) == [""]
    assert folded("a", 8, 9) == ["a"]


def test_the_picture_of_a_real_tree(tmp_path, capsys):
    run = tmp_path / "run"
    weaverant.run("malt", "arithmetic:weave", models="embedded:tiny", limit=3, directory=run).wait()
    assert picture.main([str(run), "0.1.0"]) == 0
    one = capsys.readouterr().out
    assert len(shapes(one, "rect")) == 1 + 5 + 39
    (story,) = [story for story in evaluate.stories_of(run) if story.key == "0.1.0"]
    words = [each.text for each in shapes(one, "text")]
    assert story.result["question"] in words
    assert all(any(attempt["text"] in each for each in words) for attempt in story.result["attempts"])
    assert picture.main([str(run), "--dark"]) == 0
    assert capsys.readouterr().out.startswith("<svg")
    with pytest.raises(UserError, match="no task"):
        picture.main([str(run), "0.9.0"])


def test_a_run_without_trees_has_no_picture(tmp_path):
    run = tmp_path / "run"
    assert evaluate.main(["--problems", "1", "--team", "sa", "--run", str(run)]) == 0
    with pytest.raises(UserError, match="no tree"):
        picture.main([str(run), "0.0.0"])
    with pytest.raises(UserError, match="no tree"):
        picture.main([str(run)])
    with pytest.raises(UserError):
        picture.main([str(Path("nowhere"))])
