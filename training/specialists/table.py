"""Writes the table that a router of the pool learns from: how often each member is right on each question.

    python training/specialists/table.py            # table.jsonl.gz and the priors in pool.json; needs no torch

`scores` are shares of two answers. `cost` is that of one of them at the pool's made-up prices. `latency` is
measured on the first 100 questions, one call at a time, in seconds: that of this processor at that time.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from members import HERE, MEMBERS, MODELS
from problems import mixed
from sample import TEMPERATURE, heard

from weaverant.engines.embedded import EmbeddedEngine
from weaverant.message import Request, Sampling, user
from weaverant.protocols import CallContext
from weaverant.routing.tiny_prompts import MAX_TOKENS, answer, ask

QUERIES = 1_500
SAMPLES = 2
TIMED = 100
"""Of the questions, whose answers are timed."""
SEED = 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE / "table.jsonl.gz")
    parser.add_argument("--queries", type=int, default=QUERIES)
    options = parser.parse_args()
    rows = graded(options.queries)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with open(options.out, "wb") as file, gzip.GzipFile(fileobj=file, mode="wb", filename="", mtime=0) as packed:
        packed.write("".join(json.dumps(row) + "\n" for row in rows).encode())
    if options.out == HERE / "table.jsonl.gz":
        write_priors(rows)
    print(f"{options.out}: {len(rows):,} queries, {len(MEMBERS)} models")


def graded(queries: int) -> list[dict[str, Any]]:
    """One row for each of so many questions of the validation split: the members were taught the train split."""
    problems = mixed("validation", queries, SEED)
    prompts = [ask(it.question) for it in problems]
    rows: list[dict[str, Any]] = [
        {"query": it.question, "set": it.set, "scores": {}, "cost": {}, "latency": {}} for it in problems
    ]
    prices = {name: about["price"] for name, about in json.loads((HERE / "pool.json").read_text())["models"].items()}
    for member in MEMBERS:
        replies = heard(MODELS / member.name, prompts, SAMPLES)
        waited = asyncio.run(seconds(MODELS / member.name, prompts[:TIMED]))
        read, drawn = prices[member.name]
        for row, it, said in zip(rows, problems, replies, strict=True):
            row["scores"][member.name] = round(sum(it.right(answer(one.text)) for one in said) / len(said), 4)
            spent = sum(one.read * read + one.drawn * drawn for one in said) / len(said) / 1e6
            row["cost"][member.name] = float(f"{spent:.4g}")
        for row, wait in zip(rows, waited, strict=False):
            row["latency"][member.name] = round(wait, 5)
    return rows


def write_priors(rows: Sequence[dict[str, Any]]) -> None:
    """The mean score of each member into `pool.json`: what a compound without a router goes by."""
    pool = json.loads((HERE / "pool.json").read_text())
    for name, about in pool["models"].items():
        about["prior"] = round(sum(row["scores"][name] for row in rows) / len(rows), 3)
    (HERE / "pool.json").write_text(json.dumps(pool, indent=1) + "\n")


async def seconds(folder: Path, prompts: Sequence[str]) -> list[float]:
    """What each prompt's reply takes while nothing else is asked."""
    engine = EmbeddedEngine.open(str(folder))
    sampling = Sampling(temperature=TEMPERATURE, max_tokens=MAX_TOKENS)
    taken: list[float] = []
    try:
        for prompt in prompts:
            began = time.perf_counter()
            request = Request("asked", folder.name, (user(prompt),), sampling)
            await engine.generate(request, CallContext("asked"))
            taken.append(time.perf_counter() - began)
    finally:
        await engine.close()
    return taken


if __name__ == "__main__":
    main()
