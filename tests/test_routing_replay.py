"""`bench/routing_replay.py` on what RouteMoA's authors released, and `bench/resplits.py` on a table made here."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from weaverant.routing.scores import Scores
from weaverant.routing.table import Graded, Table

ROOT = Path(__file__).parents[1]
RELEASED = ROOT.parent / "shared/data/routemoa"
needs_released = pytest.mark.skipif(not RELEASED.is_dir(), reason="needs ../shared/data/routemoa, RouteMoA's release")


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(ROOT / "bench")


def last_line(*command: str) -> dict:
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@needs_released
def test_the_replay_comes_to_every_figure_that_was_published():
    told = last_line("bench/routing_replay.py", f"--folder={RELEASED}")
    assert told["target"] == "bench-routing-replay"
    rows = {row["name"]: row for row in told["rows"]}
    assert [name for name, row in rows.items() if row["met"] is False] == []
    assert sum(row["met"] is True for row in rows.values()) >= 30
    assert rows["RouteMoA: right, %, mean of categories"]["value"] == 78.5612
    assert rows["RouteMoA - MoA, all: points"]["wins"] == 27


@needs_released
def test_a_planted_fault_in_the_release_is_seen(tmp_path: Path):
    """One verdict turned, one bill made dearer: those figures are no longer the published ones, and no others."""
    for file in RELEASED.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    data = json.loads((tmp_path / "moa.json").read_text())
    item = data["results"]["Logic Reasoning"]["winograd_wsc"]["items"][0]
    item["is_correct"] = 1 - item["is_correct"]
    next(iter(item["token_usage"].values()))["prompt_tokens"] += 1_000_000
    (tmp_path / "moa.json").write_text(json.dumps(data))
    told = last_line("bench/routing_replay.py", f"--folder={tmp_path}")
    missed = {row["name"] for row in told["rows"] if row["met"] is False}
    assert "MoA: right, %, mean of categories" in missed and "MoA: $ per 10,000, mean of sets" in missed
    assert not [name for name in missed if name.startswith(("RouteMoA:", "SMoA:")) or "seconds" in name]


@pytest.mark.parametrize("file", ["routing_replay.py", "routing_tables.py"])
def test_without_the_data_there_is_a_reason_and_no_verdict(file: str, tmp_path: Path):
    flag = "--folder" if file == "routing_replay.py" else "--data"
    rows = last_line(f"bench/{file}", f"{flag}={tmp_path}")["rows"]
    assert rows and all(row["met"] is None and row["value"] is None and str(tmp_path) in row["reason"] for row in rows)


def halves(count: int) -> Table:
    """Model `a` is right where the text begins with x, `b` elsewhere; `a` is right on 70 % of them. Each text twice."""
    texts = [f"{'x' if n % 20 < 14 else 'y'} {n}" for n in range(count)]
    rows = [
        Graded(text, {"a": float(text[0] == "x"), "b": float(text[0] == "y")}, {"a": 2.0, "b": 1.0}) for text in texts
    ]
    return Table.of([*rows, *rows])


def told_by_the_first_letter(sure: float):
    """A placeholder for a scorer: it knows how to tell the halves apart, and has learned nothing."""

    def learn(table: Table, seed: int):
        def predict(queries):
            p = np.array([[sure, 1 - sure] if query[0] == "x" else [1 - sure, sure] for query in queries])
            return Scores(table.models, p, np.zeros_like(p), np.zeros_like(p))

        return predict

    return learn


def test_the_splits_part_no_group_and_their_mean_gain_is_that_of_all_questions(bench):
    from resplits import SPLITS, judged, split_rows

    table = halves(100)
    for seed in range(SPLITS):
        held = split_rows(table, seed)
        assert held.sum() == 40 and not set(table.groups[held]) & set(table.groups[~held])
    told = judged("halves", table, told_by_the_first_letter(1.0))
    gain = told.mean(lambda one: one.line("router").gain.value)
    assert 0.2 < gain.value < 0.4 and gain.low < 0.3 < gain.high
    pooled = told.pooled()
    each = np.array(told.gains)[:, np.isfinite(told.gains).any(axis=0)]
    assert pooled.value == pytest.approx(np.nanmean(each, axis=0).mean())
    assert pooled.low < 0.3 < pooled.high
    assert all(one.priced is not None and one.priced.apgr is not None for one in told.found)


def test_a_router_that_says_the_same_of_all_gains_nothing(bench):
    from resplits import judged

    told = judged("halves", halves(100), told_by_the_first_letter(0.5))
    # equal probabilities go to the cheaper model, which is the worse one
    assert told.mean(lambda one: one.line("router").gain.value).value < 0
    area = told.mean(lambda one: one.priced.apgr.value)
    assert area.value == pytest.approx(0.5) and area.half == pytest.approx(0)


def test_rows_with_models_in_another_order_are_the_same_table(bench):
    import graded

    table = halves(30)
    assert next(iter(graded.rows(graded.shuffled(table, 1)))).scores.keys() == {"a", "b"}
    assert graded.shuffled(table, 1).digest() == table.digest()
    named = [list(row.scores) for row in graded.shuffled_rows(table, 1)]
    assert ["a", "b"] in named and ["b", "a"] in named
