"""STaR (arXiv 2203.14465, NeurIPS 2022): a generator learns from its own right answers to questions with gold answers.

It answers `samples` times, and what was right is kept. With `rationalise` it is told the gold answer where it found
none, and what it then writes, if right, is kept as if it had not been told. README.md gives the command, the numbers.
"""

from __future__ import annotations

from asyncio import gather
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NotRequired, TypedDict, cast

from weaverant import Agent, Story, UserError, workflow
from weaverant.recipe import exporter
from weaverant.recipes.malt.grading import grader_for
from weaverant.recipes.malt.team import CHAT, CHAT_TEMPERATURE, CHAT_TOKENS, TINY, Prompts, question_of, team_for

SOURCE = "arithmetic:weave"
MODEL = "embedded:tiny"

# The generators are those of `malt`, of which this is the baseline.
chat_generator, tiny_generator = CHAT.generator, TINY.generator

hinted = Agent(
    "hinted",
    prompt=Path("prompts/hinted.md"),
    model="generator",
    temperature=CHAT_TEMPERATURE,
    max_tokens=CHAT_TOKENS,
)


class Sample(TypedDict):
    """One answer of the generator. `why`: of a wrong one that was not compared."""

    text: str
    answer: str | None
    right: bool
    why: NotRequired[str]
    hinted: NotRequired[bool]
    """It was told the gold answer."""


class Samples(TypedDict):
    """A task's result."""

    question: str
    gold: str
    checker: str
    samples: list[Sample]


@workflow
async def star(
    row: dict[str, Any],
    *,
    samples: int = 3,
    checker: str = "auto",
    prompts: Prompts = "auto",
    rationalise: bool = False,
) -> Samples:
    """Answer `samples` times, and once more with the gold answer in the prompt where `rationalise` asks for that and
    none was right. A row has `question` and `answer`, the gold answer as the checker wants it (see `malt`)."""
    if samples < 1:
        raise UserError(f"samples must be at least 1, found {samples}")
    question, grader, generator = question_of(row), grader_for(row, checker), team_for(row, prompts).generator
    if rationalise and generator is tiny_generator:
        raise UserError("the packaged tiny model was taught no prompt with a hint; --rationalise needs --prompts chat")

    async def sample() -> Sample:
        return await graded(await generator(question=question))

    async def graded(text: str) -> Sample:
        verdict = await grader.judge(text)
        found: Sample = {"text": text, "answer": verdict.answer, "right": verdict.right}
        return {**found, "why": verdict.why} if verdict.why else found

    found = await gather(*(sample() for _ in range(samples)))
    if rationalise and not any(one["right"] for one in found):
        found.append({**await graded(await hinted(question=question, gold=grader.gold)), "hinted": True})
    return {"question": question, "gold": grader.gold, "checker": grader.checker, "samples": found}


@exporter
def sft(story: Story) -> Iterator[dict[str, Any]]:
    """Right answers as conversations, in `sft-generator.jsonl`: `{"messages", "task", "role", "value", "hinted"}`. The
    prompt never has the hint."""
    for text, of_hint in kept(story, Counter()):
        prompt = next(step for step in story.model_steps if step.name == "generator").messages
        yield {
            "_file": "sft-generator.jsonl",
            "messages": [
                *({"role": message.role, "content": message.text} for message in prompt),
                {"role": "assistant", "content": text},
            ],
            "task": story.key,
            "role": "generator",
            "value": 1.0,
            "hinted": of_hint,
        }


@exporter
def dropped(story: Story) -> Iterator[dict[str, Any]]:
    """What `sft` left out, a line for each question in `dropped.jsonl`: `{"task", "sft"}`, counts by reason."""
    without: Counter[str] = Counter()
    for _ in kept(story, without):
        pass
    if without:
        yield {"_file": "dropped.jsonl", "task": story.key, "sft": dict(without)}


def kept(story: Story, without: Counter[str]) -> Iterator[tuple[str, bool]]:
    """Each right text once, and whether it was hinted at. What is left out is counted in `without`."""
    if story.state != "done":
        return
    finishes = {step.path: step.reply.finish for step in story.model_steps if step.reply is not None}
    whole: set[str] = set()
    for number, sample in enumerate(cast("Samples", story.result)["samples"]):
        text, of_hint = sample["text"], sample.get("hinted", False)
        reason = "" if sample["right"] else sample.get("why") or "wrong"
        if not reason and not text.strip():
            reason = "an empty reply"
        if not reason and finishes["" if of_hint else str(number)] == "length":
            reason = "cut off at its token limit"
        if not reason and text in whole:
            reason = "the same reply to the same prompt"
        if reason:
            without[f"generator: {reason}"] += 1
            continue
        whole.add(text)
        yield text, of_hint
