"""`weaverant route` as a process: from a table to a router, to other probabilities, to reasons."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

from graded_queries import made_table
from weaverant.cli import main
from weaverant.routing.router import Router


def call(*arguments: str, text: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "weaverant", *arguments], input=text, capture_output=True, text=True, timeout=120
    )


def write(path: Path, count: int, seed: int) -> None:
    table, _ = made_table(count, seed=seed)
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["prompt", "set", "x", "y", "z", "cost:x"])
        for n, query in enumerate(table.queries):
            rows.writerow([query, table.sets[n], *table.scores[n].tolist(), 0.002])


@pytest.fixture(scope="module")
def routers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("routers")
    write(folder / "graded.csv", 300, 0)
    write(folder / "fresh.csv", 120, 1)
    made = call("route", "train", str(folder / "graded.csv"), "--out", str(folder / "r"), "--folds", "3")
    assert made.returncode == 0, made.stderr
    (folder / "told.txt").write_text(made.stdout)
    (folder / "progress.txt").write_text(made.stderr)
    return folder


def test_training_tells_what_was_tried_beside_the_best_single_model(routers: Path):
    told = (routers / "told.txt").read_text()
    best = json.loads((routers / "r" / "router.json").read_text())
    best = max(zip(best["mean"], best["models"], strict=True))[1]
    for name in (
        "knn",
        "clusters",
        "ridge",
        "logistic",
        "blend",
        f"always {best}",
        "always the same ranking",
        "the best answer of all",
    ):
        assert f"\n  {name}" in told
    assert "300 queries of 3 sets, 3 models" in told and "\nchosen: " in told
    assert "expected calibration error on held-out queries: 0." in told
    assert told.splitlines()[-1].startswith(f"try it: weaverant route explain {routers / 'r'} ")
    assert "logistic: routed 0." in (routers / "progress.txt").read_text()


def test_what_training_says_to_try_works(routers: Path):
    import shlex

    command = shlex.split((routers / "told.txt").read_text().splitlines()[-1].removeprefix("try it: weaverant "))
    assert call(*command).returncode == 0


def test_the_same_command_gives_the_same_folder(routers: Path):
    again = ["route", "train", str(routers / "graded.csv"), "--out", str(routers / "again"), "--folds", "3", "--quiet"]
    made = call(*again)
    assert (made.returncode, made.stdout, made.stderr) == (0, "", "")
    for name in ("router.json", "arrays.npz"):
        assert (routers / "again" / name).read_bytes() == (routers / "r" / name).read_bytes()
    refused = call(*again)
    assert refused.returncode == 2 and "holds a router; expected a new folder, or --force" in refused.stderr
    assert call(*again, "--force").returncode == 0


def test_force_says_what_goes_with_the_router_that_is_replaced(routers: Path, tmp_path: Path):
    router = Router.open(routers / "r")
    router.update("a query", "x", 1.0)
    router.aside["evidence.json"] = b"{}"
    router.save(tmp_path / "r")
    again = [
        "route",
        "train",
        str(routers / "graded.csv"),
        "--out",
        str(tmp_path / "r"),
        "--folds",
        "3",
        "--head",
        "knn",
    ]
    made = call(*again, "--quiet", "--force")
    assert made.returncode == 0 and "learned in use is gone with it (feedback.npz, evidence.json)" in made.stderr
    assert "gone" not in call(*again, "--quiet", "--force").stderr


def test_explain_ranks_all_models_and_shows_what_that_rests_on(routers: Path):
    made = call("route", "explain", str(routers / "r"), "add the numbers 5 and 6 and tell the total", "--json")
    found = json.loads(made.stdout)
    assert [row["model"] for row in found["ranking"]] == ["x", "z", "y"]
    best = found["ranking"][0]
    assert 0.7 < best["p"] < 1 and 0 < best["sd"] < 0.2 and best["support"] > 5 and best["cost"] == pytest.approx(0.002)
    assert len(found["nearest"]) == 3 and found["nearest"][0]["query"].startswith("add the numbers")
    plain = call("route", "explain", str(routers / "r"), "-", "--nearest", "1", text="which court may hear case 3\n")
    lines = plain.stdout.splitlines()
    assert (
        lines[0].split() == ["model", "P(right)", "support", "mean", "cost", "latency"] and lines[1].split()[0] == "y"
    )
    assert "±" in lines[1] and lines[5].split()[1:3] == ["which", "court"] and len(lines) == 8


def test_explain_says_what_the_calibration_error_has_not_seen(routers: Path, tmp_path: Path):
    router = Router.open(routers / "r")
    for n in range(3):
        router.update(f"number {n}", "x", 1.0)
    router.save(tmp_path / "r")
    assert call("route", "explain", str(routers / "r"), "a query").stdout.endswith(" on held-out queries\n")
    assert (
        "on held-out queries, before 3 outcomes of feedback"
        in call("route", "explain", str(tmp_path / "r"), "q").stdout
    )
    made = call("route", "calibrate", str(tmp_path / "r"), str(routers / "fresh.csv"))
    assert made.returncode == 0, made.stderr
    assert "feedback" not in call("route", "explain", str(tmp_path / "r"), "q").stdout


def test_maps_that_stay_are_told(routers: Path, tmp_path: Path):
    told = []
    for seed in range(5):
        write(tmp_path / "few.csv", 25, 50 + seed)
        made = call(
            "route", "calibrate", str(routers / "r"), str(tmp_path / "few.csv"), "--out", str(tmp_path / f"r{seed}")
        )
        told.append(made.stdout)
        error, before = made.stdout.partition("error: ")[2].partition(" before")[0].split(" on held-out queries, ")
        assert float(error) <= float(before)
        assert ("no map was changed" in made.stdout) == (made.stdout.count(", as before") == 3)
    assert any("no map was changed" in each for each in told)


def test_calibrate_measures_on_queries_that_were_not_learned_from(routers: Path):
    made = call("route", "calibrate", str(routers / "r"), str(routers / "fresh.csv"), "--out", str(routers / "fitted"))
    assert made.returncode == 0, made.stderr
    assert made.stdout.startswith("120 queries\n") and " on held-out queries, " in made.stdout
    known = call("route", "calibrate", str(routers / "r"), str(routers / "graded.csv"))
    assert known.returncode == 2 and "0 queries that the router has not learned from" in known.stderr
    in_place = call("route", "calibrate", str(routers / "fitted"), str(routers / "fresh.csv"), "--quiet")
    assert (in_place.returncode, in_place.stdout) == (0, "")
    assert call("route", "explain", str(routers / "fitted"), "a query").returncode == 0


def test_models_and_queries_may_be_left_out(routers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    table, _ = made_table(300)
    (tmp_path / "seen.txt").write_text("\n".join(table.queries[:250]).upper())
    given = [str(routers / "graded.csv"), "--models", "z, x", "--drop", str(tmp_path / "seen.txt")]
    assert main(["route", "train", *given, "--out", str(tmp_path / "r"), "--folds", "3", "--head", "ridge"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("50 queries of 3 sets, 2 models") and "knn" not in out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["train", "GRADED", "--out", "NEW", "--head", "kmn"], "there is no head 'kmn'. Did you mean 'knn'?"),
        (["train", "GRADED", "--out", "NEW", "--encoder", "bert"], "there is no encoder 'bert'"),
        (["train", "GRADED", "--out", "NEW", "--setting", "k"], "expected --setting NAME=NUMBER"),
        (
            ["train", "GRADED", "--out", "NEW", "--head", "knn", "--setting", "c=1"],
            "no head that is tried has a setting 'c'",
        ),
        (["train", "GRADED", "--out", "NEW", "--models", "x,w"], "no row has a score of the model 'w'"),
        (["train", "GRADED", "--out", "NEW", "--folds", "1"], "expected 2 folds or more"),
        (["train", "GRADED", "--out", "NEW", "--folds", "-2"], "expected 2 folds or more"),
        (["train", "GRADED", "--out", "NEW", "--folds", "9999"], "too small to hold parts of it out"),
        *(
            (["train", "GRADED", "--out", "NEW", "--setting", setting], told)
            for setting, told in (
                ("k=-3", "the setting 'k' is a whole number of 1 or more; found -3"),
                ("knn.k=0", "'knn.k' is a whole number of 1 or more"),
                ("k=2.5", "found 2.5"),
                ("clusters=0", "a whole number of 1 or more; found 0"),
                ("clusters=inf", "a whole number of 1 or more; found inf"),
                ("power=nan", "the setting 'power' is a number of 0 or more; found nan"),
                ("power=inf", "found inf"),
                ("penalty=-1", "the setting 'penalty' is a number above 0"),
                ("shrink=-5", "the setting 'shrink' is a number above 0"),
            )
        ),
        (["explain", "R", "query", "--nearest", "-1"], "expected --nearest of 0 or more"),
        (["train", "none.csv", "--out", "NEW"], "no file 'none.csv'"),
        (["train", "-", "--out", "NEW"], "standard input cannot be one"),
        (["eval", "R", "-"], "standard input cannot be one"),
        (["calibrate", "R", "GRADED", "--out", "R"], "holds a router; expected a new folder\n"),
        (["learn", "R", "nowhere", "--out", "R"], "holds a router; expected a new folder\n"),
        (["learn", "R", "nowhere"], "'nowhere' holds no run"),
        (["train", "NESTED", "--out", "NEW", "--models", "big,nobody"], "'nobody'; found 'big', 'small'"),
        (["train", "GRADED"], "--out"),
        (["train", "GRADED", "--out", "NEW", "--fold", "3"], "did you mean '--folds'?"),
        (["explain", "NEW", "query"], "is no router"),
        (["explain", "R", " "], "the query is empty"),
        (["calibrate", "NEW", "GRADED"], "is no router"),
        ([], "train"),
    ],
)
def test_mistakes_are_one_message_and_code_2(
    routers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], told: str
):
    names = {"GRADED": str(routers / "graded.csv"), "NEW": str(tmp_path / "new"), "R": str(routers / "r")}
    names["NESTED"] = str(tmp_path / "nested.json")
    (tmp_path / "nested.json").write_text(json.dumps([{"query": "q", "scores": {"small": 0, "big": 1}}]))
    assert main(["route", *(names.get(each, each) for each in arguments)]) == 2
    captured = capsys.readouterr()
    assert told in captured.err and "Traceback" not in captured.err and captured.out == ""
    assert not (tmp_path / "new").exists()


def test_a_column_that_is_hardly_a_model_is_told_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    table, _ = made_table(40)
    rows = [
        {"prompt": query, "x": float(x), "Difficulty": round(n / 40, 3)}
        for n, (query, (x, *_)) in enumerate(zip(table.queries, table.scores, strict=True))
    ]
    (tmp_path / "t.json").write_text(json.dumps(rows))
    train = ["route", "train", str(tmp_path / "t.json"), "--head", "knn", "--folds", "2"]
    assert main([*train, "--out", str(tmp_path / "r")]) == 0
    told = capsys.readouterr()
    assert "\nmodels: Difficulty, x\n" in told.out and "warning: 'Difficulty' was taken for a model" in told.err
    assert main([*train, "--out", str(tmp_path / "s"), "--models", "x"]) == 0
    told = capsys.readouterr()
    assert "\nmodels: x\n" in told.out and "was taken" not in told.err


def test_where_a_router_gains_nothing_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    rows = [{"query": f"number {n}", "scores": {"good": 1, "bad": 0}} for n in range(40)]
    (tmp_path / "t.json").write_text(json.dumps(rows))
    assert main(["route", "train", str(tmp_path / "t.json"), "--out", str(tmp_path / "r"), "--head", "knn"]) == 0
    assert "warning: on held-out queries no head chose better than always 'good'" in capsys.readouterr().err
