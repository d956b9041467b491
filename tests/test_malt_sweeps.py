"""`bench/malt_sweeps.py` and the base with weaker habits that `training/tiny/weaker.py` makes: both as they are run."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest

from weaverant.sources.arithmetic import Arithmetic, last_number
from weaverant.summary import fold

ROOT = Path(__file__).parents[1]


@pytest.fixture
def weaker(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(ROOT / "training/tiny")
    import weaker

    return weaker


@pytest.fixture
def sweeps(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(ROOT / "bench")
    import malt_sweeps

    return malt_sweeps


def test_the_corpus_has_the_habits_that_were_asked_for_and_no_problem_of_another_pool(weaker):
    made = list(weaker.samples(weaker.WEAKER, 2_000))
    assert made == list(weaker.samples(weaker.WEAKER, 2_000))
    by_role = {role: [one["messages"] for one in made if one["role"] == role] for role in ("generator", "verifier")}
    others = {row["question"] for pool in ("weave", "heldout") for row in Arithmetic(pool).rows(0)}
    assert not others & {asked["content"] for asked, _ in by_role["generator"]}
    sloppy = sum(said["content"] == "Looks right." for _, said in by_role["verifier"]) / 2_000
    assert abs(sloppy - weaker.WEAKER.sloppy) < 0.03
    gold = {row["question"]: row["answer"] for row in Arithmetic("train", 2_000).rows(0)}
    right = sum(last_number(said["content"]) == gold[asked["content"]] for asked, said in by_role["generator"]) / 2_000
    assert 0.5 < right < 0.65  # four steps without a slip are 0.45; a slip may be undone by the next


def test_cells_differ_from_the_reference_in_one_thing_and_come_once(sweeps):
    cells = sweeps.cells_of(branching=[2, 3, 4], theta=[0.34, 0.5, 0.67], dpo_lr=[1e-3], sft_weight=[0, 1], seed=[0, 1])
    assert len(cells) == len(set(cells)) == len({cell.name for cell in cells}) == len({cell.title for cell in cells})
    others = [cell for cell in cells if cell != sweeps.REFERENCE]
    assert len(others) == 7 and sweeps.REFERENCE[:3] == (3, 0.5, 0)
    assert all(sum(a != b for a, b in zip(cell, sweeps.REFERENCE, strict=True)) == 1 for cell in others)
    assert sweeps.cells_of() == [sweeps.REFERENCE]


def test_the_picture_is_sound_and_has_a_bar_for_each_vote(sweeps):
    from sweeps_figure import Bar

    bars = [Bar("tiny", f"MALT, n = {n} < 5", n / 5, n / 5 - 0.1, n / 5 + 0.1, n > 2) for n in (2, 3, 4)]
    drawn = ElementTree.fromstring(sweeps.figure(bars))
    words = ["".join(each.itertext()) for each in drawn.iter("{http://www.w3.org/2000/svg}text")]
    assert [f"{bar.value:.1%}" for bar in bars] == [each for each in words if each.endswith("0%") and "." in each]
    assert [bar.name for bar in bars] == [each for each in words if each.startswith("MALT")]


def test_what_was_woven_and_evaluated_is_not_done_again(sweeps, tmp_path):
    settings = sweeps.Settings(2, 3, 1, sweeps.SFT, sweeps.DPO, 1)
    models = sweeps.given_models({"base": ["embedded:tiny"]})
    found = [sweeps.contested(models, (sweeps.SA, sweeps.MA), settings, tmp_path / "run") for _ in range(2)]
    assert found[0] == found[1] and found[0].problems == 3 and not found[0].failed
    assert [row["system"] for row in sweeps.rows_untrained("tiny", found[0])] == ["sa@1", "sa@9", "ma@1", "ma@3"]
    for _ in range(2):
        woven = sweeps.weave("embedded:tiny", 2, settings.questions, tmp_path / "woven")
        assert sweeps.finished_run(woven) == 2
    assert fold(woven).ledger.calls == 2 * 14


@pytest.mark.heavy
@pytest.mark.timeout(600)
def test_a_model_with_weaker_habits_is_made_once_and_always_the_same(weaker, tmp_path):
    made = weaker.make(tmp_path / "one" / "weaker", problems=30)
    assert made.steps == 2 and made.samples == 90
    assert weaker.make(tmp_path / "one" / "weaker", problems=30) is None
    assert weaker.make(tmp_path / "other", problems=30).steps == 2
    first, second = (tmp_path / where / "model.safetensors" for where in ("one/weaker", "other"))
    assert first.read_bytes() == second.read_bytes() != (weaker.TINY / "model.safetensors").read_bytes()


@pytest.mark.heavy
@pytest.mark.timeout(900)
def test_sweeps_go_on_after_a_kill_and_train_nothing_twice(tmp_path):
    out = tmp_path / "sweeps"
    small = "--base tiny --branching 3 --theta 0.34 --dpo-lr 3e-4 --sft-weight 0 --trainings 1 --questions 8 --problems 10 --seeds 1"
    command = [sys.executable, str(ROOT / "bench/malt_sweeps.py"), f"--out={out}", *small.split()]
    command += ["--epochs=1", "--dpo-epochs=1"]
    reference, other = out / "tiny/n3-theta0.5", out / "tiny/n3-theta0.34"
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    trained, after = reference / "sft/refiner/config.json", reference / "dpo/refiner"
    while first.poll() is None and not after.exists():
        time.sleep(0.1)
    assert first.poll() is None
    os.kill(first.pid, signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    before = trained.stat().st_mtime_ns

    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert trained.stat().st_mtime_ns == before  # what was trained before the kill stays
    told = json.loads(again.stdout.splitlines()[-1])
    assert told == json.loads((out / "malt-sweeps.json").read_text()) and told["target"] == "malt-sweeps"
    cells = [row for row in told["rows"] if "theta" in row]
    assert [(row["theta"], row["sft_weight"]) for row in cells] == [(0.5, 1), (0.34, 1), (0.5, 0)]
    assert all(row["calls"] == 8 * 39 for row in cells)
    assert all(0 <= row["low"] <= row["value"] <= row["high"] <= 1 for row in told["rows"])
    # Theta says nothing about a refiner, and DPO nothing about SFT: such trainings are taken over, others are not.
    assert not (other / "sft/refiner.log").exists() and (other / "sft/generator.log").exists()
    unhelped = out / "tiny/n3-theta0.5-weight0"
    assert not list((unhelped / "sft").glob("*.log")) and (unhelped / "dpo/refiner.log").exists()
    weights = [cell / "sft/refiner/model.safetensors" for cell in (reference, other)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert (other / "data/sft-verifier.jsonl").read_text() != (reference / "data/sft-verifier.jsonl").read_text()

    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0 and ended.stdout.splitlines()[-1] == again.stdout.splitlines()[-1]
    refused = subprocess.run([*command, "--problems=11"], capture_output=True, text=True)
    assert refused.returncode == 2 and "problems was 10, is 11" in refused.stderr
