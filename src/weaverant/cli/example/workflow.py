"""Solved word problems, checked: one agent answers several times, another checks, the best attempt is kept."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from weaverant import Agent, Story, exporter, reject, workflow

# Where the rows are and what answers, unless --input and --model say otherwise. `embedded:tiny` is in the package.
SOURCE = "rows.jsonl"
MODEL = "embedded:tiny"

# An agent is a role: a prompt (text, or a file beside this one) and how to draw its replies.
# `model` is the name that `--model NAME=SPEC` gives an engine to; `--model SPEC` serves all agents.
generator = Agent("generator", model="writer", prompt=Path("generator.md"), temperature=1.0, max_tokens=40)
checker = Agent("checker", model="checker", prompt=Path("checker.md"), temperature=0.0, max_tokens=40)


# Keyword arguments are flags of the command: `weaverant run workflow.py --attempts 8`.
@workflow
async def solved(row: dict[str, Any], *, attempts: int = 4) -> Any:
    """Ordinary Python. Every call is recorded, so a killed run goes on where it stood and pays nothing twice."""
    question = row["question"]
    answers: list[str] = await asyncio.gather(*(generator(question=question) for _ in range(attempts)))
    checks: list[str] = await asyncio.gather(*(checker(question=question, attempt=answer) for answer in answers))

    # The rows of this example know their answer, so chosen and rejected are certain.
    right = [answer for answer in answers if last_number(answer) == row["answer"]]
    wrong = [answer for answer in answers if last_number(answer) != row["answer"]]
    if not right:
        return reject("never right", answers=answers)  # a result, counted by its reason, and no error
    pairs = [{"prompt": question, "chosen": right[0], "rejected": wrong[0]}] if wrong else []
    return {"question": question, "answer": right[0], "checks": checks, "preferences": pairs}


# `weaverant export RUN --as sft` writes what this makes of each finished task.
@exporter
def sft(story: Story) -> Iterator[dict[str, Any]]:
    said = [("user", story.result["question"]), ("assistant", story.result["answer"])]
    yield {"messages": [{"role": role, "content": text} for role, text in said]}


def last_number(text: str) -> str | None:
    found: list[str] = re.findall(r"\d+", text)
    return found[-1] if found else None
