"""`weaverant route eval` as it is run: a router of three models that are each good at one thing, judged by new queries."""

import json
import random
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from weaverant.routing.reading import read_table
from weaverant.routing.router import Router
from weaverant.routing.training import train

GOOD_AT = {"adder": "add {a} and {b}: what is the sum", "coder": "write a program that prints {a} and {b}",
           "sorter": "sort the words {a} {b} upwards"}  # fmt: skip
COST = {"adder": 0.001, "coder": 0.004, "sorter": 0.002}


def graded(file: Path, count: int, seed: int, *, cost: bool = True, turned: bool = False) -> Path:
    """Queries of three kinds; the model that is good at one is right on 90 % of its queries, on others 30 %."""
    rng = random.Random(seed)
    lines: list[str] = []
    for _ in range(count):
        kind = rng.choice([*GOOD_AT])
        query = GOOD_AT[kind].format(a=rng.randrange(10**6), b=rng.randrange(10**6))
        scores = {name: float(rng.random() < (0.9 if name == kind else 0.3)) for name in GOOD_AT}
        names = [*reversed(GOOD_AT)] if turned else [*GOOD_AT]
        row = {"query": query, "set": kind, "scores": {name: scores[name] for name in names}}
        lines.append(json.dumps(row | ({"cost": COST} if cost else {})))
    file.write_text("\n".join(lines) + "\n")
    return file


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("eval")
    table = read_table(graded(folder / "train.jsonl", 300, 1))
    train(table, head="knn", folds=3).router.save(folder / "router")
    graded(folder / "test.jsonl", 200, 2)
    return folder


def call(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "weaverant", "route", "eval", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=home)


def test_the_report_says_what_the_router_is_worth(home: Path):
    done = call(home, "router", "test.jsonl", "--draws=300")
    assert done.returncode == 0, done.stderr
    told = done.stdout
    assert told.startswith("200 queries, 3 models: ")
    for title in ("Accuracy", "Hit rates", "Calibration", "Cost", "Sets"):
        assert f"\n{title}\n" in told
    assert "Intervals hold 95 %: 300 paired bootstrap draws" in told


def test_queries_that_the_router_has_learned_from_are_told_of(home: Path):
    assert "warning" not in call(home, "router", "test.jsonl", "--draws=100").stderr
    done = call(home, "router", "train.jsonl", "--draws=100", "--json")
    assert done.returncode == 0 and json.loads(done.stdout)
    assert "warning: the router has learned from 300 of these 300 queries" in done.stderr
    taught = Router.open(home / "router")
    query = json.loads((home / "test.jsonl").read_text().splitlines()[0])["query"]
    taught.update(query, taught.models[0], 1.0)
    taught.save(home / "taught")
    assert "learned from 1 of these 200" in call(home, "taught", "test.jsonl", "--draws=100").stderr


def test_json_and_a_folder_hold_the_same_and_the_router_beats_the_best_single_model(home: Path):
    done = call(home, "router", "test.jsonl", "--json", "--out=report", "--draws=500")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told == json.loads((home / "report/evaluation.json").read_text())
    lines = {line["name"]: line for line in told["lines"]}
    assert lines["router"]["accuracy"]["value"] > 0.8
    assert lines["router"]["gain"]["low"] > 0.1
    assert lines["oracle"]["accuracy"]["value"] >= lines["router"]["accuracy"]["value"]
    assert [one["name"] for one in told["sets"]] == sorted(GOOD_AT)
    assert told["answers"]["ece"] < 0.15
    assert {path.name for path in (home / "report").iterdir()} == {
        "report.md",
        "evaluation.json",
        "reliability.svg",
        "cost.svg",
    }
    for name in ("reliability.svg", "cost.svg"):
        ET.parse(home / "report" / name)
    page = (home / "report/report.md").read_text()
    assert page.startswith("# router on test.jsonl\n") and "![cost](cost.svg)" in page


def test_the_order_of_names_in_rows_changes_nothing(home: Path):
    graded(home / "turned.jsonl", 200, 2, turned=True)
    plain, turned = (call(home, "router", f"{name}.jsonl", "--json", "--draws=100") for name in ("test", "turned"))
    assert plain.returncode == 0 and plain.stdout == turned.stdout


def test_a_table_without_costs_is_judged_by_the_router_s(home: Path):
    graded(home / "free.jsonl", 100, 3, cost=False)
    told = json.loads(call(home, "router", "free.jsonl", "--json", "--draws=100").stdout)
    assert told["priced"]["models"]["coder"]["cost"] == pytest.approx(0.004)


def test_what_was_learned_from_is_left_out_with_drop(home: Path):
    lines = [*(home / "train.jsonl").read_text().splitlines()[:50], *(home / "test.jsonl").read_text().splitlines()]
    (home / "both.jsonl").write_text("\n".join(lines) + "\n")
    assert call(home, "router", "both.jsonl", "--draws=100").stdout.startswith("250 queries")
    assert call(home, "router", "both.jsonl", "--draws=100", "--drop=train.jsonl").stdout.startswith("200 queries")
    done = call(home, "router", "train.jsonl", "--drop=train.jsonl")
    assert done.returncode == 2 and "in --drop train.jsonl" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["router", "none.jsonl"], "none.jsonl"),
        (["nowhere", "test.jsonl"], "nowhere"),
        (["router", "test.jsonl", "--draws=5"], "100 or more"),
        (["router", "test.jsonl", "--out=router"], "holds something already"),
        (["router", "other.jsonl"], "expected models of the same names"),
        (["router", "test.jsonl", "--bins=3"], "--bins"),
    ],
)
def test_mistakes_are_told_with_a_way_out_and_nothing_is_written(home: Path, arguments: list[str], said: str):
    (home / "other.jsonl").write_text('{"query": "add 1 and 2", "scores": {"stranger": 1.0}}\n')
    before = sorted(home.rglob("*"))
    done = call(home, *arguments)
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr
    assert sorted(home.rglob("*")) == before
