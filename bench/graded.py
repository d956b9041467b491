"""Public tables of graded answers, as `Table`s: `llmrouter`, `routellm`, `routerarena` of `../shared/data`."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from weaverant.routing.table import Graded, Table

STRONG, WEAK = "gpt-4-1106-preview", "mistralai/Mixtral-8x7B-Instruct-v0.1"
PRICES = {STRONG: (10.0, 30.0), WEAK: (0.24, 0.24)}
"""Dollars for a million tokens in and out: OpenAI's list, and what RouteLLM's paper reckons Mixtral at."""
CHARACTERS = 4
"""Of a token, about: the tables tell no tokens."""


def llmrouter(folder: Path) -> tuple[Table, Table]:
    """LLMRouter (4e7a796, MIT): 9 models; train, and those test questions that are not also in train."""
    train, test = (json.loads((folder / f"dcrouter_{part}.json").read_text()) for part in ("train", "test"))
    tasks = {
        row["query"]: row["task_name"]
        for part in ("train", "test")
        for row in _lines(folder / f"default_query_{part}.jsonl")
    }
    learn, judge = (Table.of([_llmrouter(row, tasks) for row in rows]) for rows in (train, test))
    return learn, judge.without(learn.queries)


def _llmrouter(row: Mapping[str, Any], tasks: Mapping[str, str]) -> Graded:
    return Graded(row["question"], row["scores"], set=tasks.get(row["question"], ""))


def gsm8k(folder: Path) -> Table:
    """RouteLLM's GSM8K (0b64fda, Apache-2.0): GPT-4 and Mixtral, without the prompts that it lists as contaminated."""
    found = [_routellm(row, "gsm8k") for row in _cells(folder / "gsm8k_responses.csv")]
    return Table.of(found).without(_contaminated(folder / "contaminated/gsm8k.jsonl"))


def mmlu(folder: Path) -> Table:
    """RouteLLM's MMLU: the same two models, 57 subjects."""
    found = [
        _routellm(row, file.stem.removeprefix("mmlu_"))
        for file in sorted((folder / "mmlu").glob("*.csv"))
        for row in _cells(file)
    ]
    return Table.of(found).without(_contaminated(folder / "contaminated/mmlu.jsonl"))


def _routellm(row: Mapping[str, str], name: str) -> Graded:
    """The cost is that of the prompt's and the reply's characters; where no reply is told, one token was asked for."""
    prompt = row["prompt"]
    dollars = {
        model: (
            price[0] * len(prompt) / CHARACTERS + price[1] * max(1, len(row.get(f"{model}_response", "")) / CHARACTERS)
        )
        / 1e6
        for model, price in PRICES.items()
    }
    return Graded(prompt, {model: float(row[model] == "True") for model in PRICES}, dollars, set=name)


def _contaminated(file: Path) -> list[str]:
    return [row["eval_prompt"] for row in _lines(file)]


def routerarena(folder: Path) -> Table:
    """RouterArena (4714a9a, Apache-2.0): two models with the dollars of each answer. Sets are the data sets' names."""
    models = ("claude-3-haiku-20240307", "gemini-2.0-flash-001")
    parts = [{row["global_index"]: row for row in _lines(folder / f"{model}.jsonl")} for model in models]
    found: list[Graded] = []
    for index in (index for index in parts[0] if index in parts[1]):
        told = {model: part[index]["evaluation_result"] for model, part in zip(models, parts, strict=True)}
        scores = {model: max(0.0, each["score"]) for model, each in told.items()}  # one metric knows negative ones
        cost = {model: each["inference_cost"] for model, each in told.items()}
        name = index.rpartition("_")[0].partition("_")[0]
        found.append(Graded(parts[0][index]["question"], scores, cost, set=name))
    return Table.of(found)


def rows(table: Table) -> Iterator[Graded]:
    """A table's rows."""
    for number, query in enumerate(table.queries):
        parts = (zip(table.models, values[number].tolist(), strict=True) for values in (table.scores, table.cost))
        scores, cost = ({name: value for name, value in part if value == value} for part in parts)
        yield Graded(query, scores, cost, set=table.sets[number])


def shuffled(table: Table, seed: int) -> Table:
    """The same table from rows whose models are named in another order."""
    return Table.of(shuffled_rows(table, seed))


def shuffled_rows(table: Table, seed: int) -> Iterator[Graded]:
    rng = random.Random(seed)
    for row in rows(table):
        names = rng.sample([*row.scores], len(row.scores))
        yield msgspec.structs.replace(row, scores={name: row.scores[name] for name in names})


def _lines(file: Path) -> Iterator[dict[str, Any]]:
    with file.open(encoding="utf-8") as lines:
        for line in lines:
            if line.strip():
                yield json.loads(line)


def _cells(file: Path) -> Iterator[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as lines:
        yield from csv.DictReader(lines)
