"""Tables of graded answers: what is read, what is refused and where, and that equal queries stay together."""

from __future__ import annotations

import csv
import json
import random
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from weaverant.errors import UserError
from weaverant.routing.reading import read_queries, read_table
from weaverant.routing.table import Graded, Table

ROWS = [
    {"query": "2+2", "set": "sums", "a": 1.0, "b": 0.0, "cost:a": 0.002, "latency:b": 1.5},
    {"query": "2*3", "set": "sums", "a": 0.5, "b": None, "cost:a": None, "latency:b": None},
    {"query": "capital of Peru", "set": "facts", "a": 0.0, "b": 1.0, "cost:a": 0.001, "latency:b": 2.5},
]


def nested(row: dict) -> dict:
    scores = {name: row[name] for name in ("a", "b")}
    return {
        "question": row["query"],
        "task_name": row["set"],
        "scores": scores,
        "cost": {"a": row["cost:a"]},
        "latency": {"b": row["latency:b"]},
    }


def lines(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def same(one: Table, other: Table) -> bool:
    numbers = ("scores", "cost", "latency", "groups")
    return (one.queries, one.models, one.sets) == (other.queries, other.models, other.sets) and all(
        np.array_equal(getattr(one, name), getattr(other, name), equal_nan=name != "groups") for name in numbers
    )


def test_every_format_gives_the_same_table(tmp_path: Path):
    wanted = read_table(lines(tmp_path / "nested.jsonl", [nested(row) for row in ROWS]))
    assert wanted.models == ("a", "b") and wanted.sets == ("sums", "sums", "facts")
    assert np.array_equal(wanted.scores, [[1, 0], [0.5, np.nan], [0, 1]], equal_nan=True)
    assert (
        np.array_equal(wanted.cost[:, 0], [0.002, np.nan, 0.001], equal_nan=True) and np.isnan(wanted.cost[:, 1]).all()
    )
    assert np.array_equal(wanted.latency[:, 1], [1.5, np.nan, 2.5], equal_nan=True)
    assert same(wanted, read_table(lines(tmp_path / "flat.jsonl", ROWS)))
    (tmp_path / "list.json").write_text(json.dumps([nested(row) for row in ROWS]))
    assert same(wanted, read_table(tmp_path / "list.json"))
    with (tmp_path / "flat.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(ROWS[0]))
        writer.writeheader()
        writer.writerows(ROWS)
    assert same(wanted, read_table(tmp_path / "flat.csv"))


@pytest.mark.heavy
@pytest.mark.skipif(find_spec("pyarrow") is None, reason="needs pyarrow")
@pytest.mark.parametrize("form", [dict, nested])
def test_parquet_gives_the_same_table(tmp_path: Path, form):
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist([form(row) for row in ROWS]), tmp_path / "flat.parquet")
    assert same(read_table(tmp_path / "flat.parquet"), read_table(lines(tmp_path / "flat.jsonl", ROWS)))


def test_the_order_of_keys_changes_nothing(tmp_path: Path):
    def shuffled(row: dict) -> dict:
        return {
            key: shuffled(value) if isinstance(value, dict) else value
            for key, value in odds.sample([*row.items()], len(row))
        }

    odds = random.Random(3)
    rows = [{"query": f"q{n}", "scores": {m: odds.randint(0, 1) for m in "wxyz"}, "cost": {"w": n}} for n in range(40)]
    wanted = read_table(lines(tmp_path / "a.jsonl", rows))
    found = read_table(lines(tmp_path / "b.jsonl", [shuffled(row) for row in rows]))
    assert same(wanted, found) and wanted.digest() == found.digest()


def test_truths_are_grades_and_text_columns_are_none(tmp_path: Path):
    (tmp_path / "t.csv").write_text("prompt,gpt-4,mix,gpt-4_response,id\na,True,false,yes it is,17\nb,,true,so,18\n")
    table = read_table(tmp_path / "t.csv")
    assert table.models == ("gpt-4", "mix")
    assert np.array_equal(table.scores, [[1, 0], [np.nan, 1]], equal_nan=True)
    assert read_table(tmp_path / "t.csv", models=["mix"]).models == ("mix",)


def test_of_several_files_each_names_its_set(tmp_path: Path):
    for name in ("law", "art"):
        (tmp_path / f"{name}.csv").write_text("prompt,m\nx,1\n")
    assert read_table(tmp_path).sets == ("art", "law")
    assert read_table(tmp_path / "law.csv").sets == ("",)


GOOD = {"query": "q", "scores": {"a": 1, "b": 0}}


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"query": "q", "scores": {"a": 1.5}}, "t.jsonl:3: expected a score of 'a' from 0 to 1"),
        ({"query": "q", "scores": {"a": "good"}}, "found 'good'"),
        ({"query": "q", "scores": {"a": float("nan")}}, "t.jsonl:3"),
        ({"query": "q", "scores": [1, 0]}, "t.jsonl:3: expected 'scores' to be numbers by model"),
        ({"query": " ", "scores": {"a": 1}}, "t.jsonl:3: expected a text in 'query'"),
        ({"scores": {"a": 1}}, "t.jsonl:3: expected a query in query, question or prompt; found the columns 'scores'"),
        ({"query": "q", "scores": {"a": 1}, "cost": {"a": -1}}, "t.jsonl:3: expected the cost of 'a' in dollars"),
        ({"query": "q", "scores": {"a": 1}, "cost": {"c": 1}}, "t.jsonl:3: 'cost' has 'c'"),
        ([1], "t.jsonl:3"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(tmp_path: Path, row, told: str):
    path = tmp_path / "t.jsonl"
    path.write_text(f"{json.dumps(GOOD)}\n\n{json.dumps(row)}\n")  # blank lines count as lines
    with pytest.raises(UserError) as caught:
        read_table(path)
    assert told in str(caught.value)


def test_a_grade_that_cannot_be_read_is_not_taken_for_a_column_of_text(tmp_path: Path):
    (tmp_path / "t.csv").write_text('prompt,m\n"two\nlines",1\nb,0\nc,rigth\n')
    with pytest.raises(UserError, match=r"t\.csv:5: expected a score of 'm'.*found 'rigth'"):
        read_table(tmp_path / "t.csv")
    (tmp_path / "u.csv").write_text("prompt,m,cost:n\na,1,2\n")
    with pytest.raises(UserError, match="a column 'cost:n', but none of grades called 'n'"):
        read_table(tmp_path / "u.csv")


@pytest.mark.parametrize(
    ("text", "options", "told"),
    [
        ("", {}, "has no rows"),
        ("prompt,text\na,b\n", {}, "expected 'scores' by model, or a column of numbers"),
        ("prompt,m\na,1\n", {"models": ["n"]}, "no row has a score of the model 'n'"),
        ("prompt,m\na,1\n", {"query": "text"}, "expected the column 'text'"),
        ("prompt,m\na,1\n", {"set": "topic"}, "expected the column 'topic'"),
    ],
)
def test_a_table_that_is_none_is_refused(tmp_path: Path, text: str, options: dict, told: str):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(UserError) as caught:
        read_table(tmp_path / "t.csv", **options)
    assert told in str(caught.value)


def table_of(texts: list[str]) -> Table:
    return Table.of([Graded(text, {"m": n % 2}) for n, text in enumerate(texts)])


@pytest.mark.parametrize("count", [2, 3, 7])
def test_equal_queries_are_never_parted(count: int):
    odds = random.Random(count)
    texts = [
        f"{odds.choice(['Query', 'query ', ' QUERY'])} {' ' * odds.randint(0, 2)}{odds.randint(0, 60)}"
        for _ in range(300)
    ]
    table = table_of(texts)
    folds = table.folds(count, seed=5)
    assert sorted(np.concatenate(folds)) == list(range(300)) and len(folds) == count
    groups = [set(table.groups[fold].tolist()) for fold in folds]
    assert sum(map(len, groups)) == len(set(table.groups.tolist())) <= 61
    assert max(map(len, folds)) - min(map(len, folds)) < 30
    train, test = table.split(0.25, seed=5)
    assert not {normal(text) for text in train.queries} & {normal(text) for text in test.queries}
    assert len(train.queries) + len(test.queries) == 300
    assert all(np.array_equal(one, other) for one, other in zip(folds, table.folds(count, seed=5), strict=True))
    assert any(not np.array_equal(one, other) for one, other in zip(folds, table.folds(count, seed=6), strict=True))


def normal(text: str) -> str:
    return " ".join(text.lower().split())


def test_queries_that_somebody_has_seen_are_left_out(tmp_path: Path):
    table = table_of(["What is 2+2?", "what  is 2+2?", "What is 3+3?"])
    assert table.without([" WHAT is 2+2? "]).queries == ("What is 3+3?",)
    (tmp_path / "seen.txt").write_text("what is 3+3?\n\n")
    assert table.without(read_queries(tmp_path / "seen.txt")).queries == table.queries[:2]
    assert len(table.without(read_queries(lines(tmp_path / "seen.jsonl", [{"prompt": "What is 3+3?"}]))).queries) == 2


def test_columns_are_chosen_by_name():
    table = Table.of([Graded("q", {"b": 1, "a": 0, "c": 0.5})])
    assert table.only(["c", "a"]).models == ("a", "c") and table.only(["c", "a"]).scores.tolist() == [[0, 0.5]]
    with pytest.raises(UserError, match="no model 'd'"):
        table.only(["d"])
