"""From finished trees to training samples, per role: what `weaverant export --as sft` and `--as preference` give.

SFT takes good replies only; a pair sets a good reply against a bad one to the very same prompt, under one parent
(arXiv 2412.01928). Prompts are the messages that were sent. `dropped` counts by reason what was left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from typing import Any, NamedTuple, cast

from weaverant.message import Message
from weaverant.recipe import exporter
from weaverant.recipes.malt.team import Role
from weaverant.recipes.malt.tree import Attempt, Critique, Refinement, Tree
from weaverant.story import Step, Story


class Reply(NamedTuple):
    """A node of the tree as a reply to its parent's prompt. `unusable` says why nobody should learn it, if so."""

    text: str
    value: float
    unusable: str = ""


class Siblings(NamedTuple):
    """All replies under one parent, and the prompt that they share."""

    role: Role
    prompt: tuple[Message, ...]
    replies: list[Reply]


class Pair(NamedTuple):
    """A good and a bad reply to one prompt."""

    siblings: Siblings
    chosen: Reply
    rejected: Reply


@exporter
def sft(story: Story) -> Iterator[dict[str, Any]]:
    """Good replies as conversations, in `sft-ROLE.jsonl`: `{"messages", "task", "role", "value"}`."""
    for siblings, reply in positives(story, Counter()):
        yield {
            "_file": f"sft-{siblings.role}.jsonl",
            "messages": [*_plain(siblings.prompt), _assistant(reply)],
            "task": story.key,
            "role": siblings.role,
            "value": reply.value,
        }


@exporter
def preference(story: Story) -> Iterator[dict[str, Any]]:
    """Pairs in `preference-ROLE.jsonl`: `{"prompt", "chosen", "rejected"}` in messages, `task`, `role`, both values."""
    for siblings, chosen, rejected in pairs(story, Counter()):
        yield {
            "_file": f"preference-{siblings.role}.jsonl",
            "prompt": _plain(siblings.prompt),
            "chosen": [_assistant(chosen)],
            "rejected": [_assistant(rejected)],
            "task": story.key,
            "role": siblings.role,
            "chosen_value": chosen.value,
            "rejected_value": rejected.value,
        }


@exporter
def dropped(story: Story) -> Iterator[dict[str, Any]]:
    """What the other two left out, by reason, one line a question in `dropped.jsonl`: `{"task", "sft", "preference"}`,
    each a mapping from "ROLE: reason" to a count (of replies; of pairs, or of prompts that gave no pair)."""
    without: dict[str, Counter[str]] = {"sft": Counter(), "preference": Counter()}
    for found in (positives(story, without["sft"]), pairs(story, without["preference"])):
        for _ in found:
            pass
    if any(without.values()):
        yield {"_file": "dropped.jsonl", "task": story.key} | {name: dict(counts) for name, counts in without.items()}


def positives(story: Story, without: Counter[str]) -> Iterator[tuple[Siblings, Reply]]:
    """Every good reply once for each prompt. What is left out is counted in `without`."""
    seen: set[tuple[Any, ...]] = set()
    for siblings in families(story):
        for reply in siblings.replies:
            sample = (siblings.role, siblings.prompt, reply.text)
            reason = reply.unusable or ("value not above theta" if not _good(story, reply) else "")
            if not reason and sample in seen:
                reason = "the same reply to the same prompt"
            if reason:
                without[f"{siblings.role}: {reason}"] += 1
                continue
            seen.add(sample)
            yield siblings, reply


def pairs(story: Story, without: Counter[str]) -> Iterator[Pair]:
    """Every pair of a good and a bad text under one parent, each once. What is left out is counted in `without`.

    A pair is dropped where its two sides are the same text, and where the same prompt, drawn twice, gave the
    same pair before or, anywhere in the tree, gave it the other way round.
    """
    found = [pair for siblings in families(story) for pair in _paired(story, siblings, without)]
    ways = {_way(pair) for pair in found}
    seen: set[tuple[Any, ...]] = set()
    for pair in found:
        role = pair.siblings.role
        if _way(Pair(pair.siblings, pair.rejected, pair.chosen)) in ways:
            without[f"{role}: contradicted by its reverse"] += 1
        elif _way(pair) in seen:
            without[f"{role}: the same pair to the same prompt"] += 1
        else:
            seen.add(_way(pair))
            yield pair


def families(story: Story) -> Iterator[Siblings]:
    """The tree by parents: the question's attempts, each attempt's critiques, each critique's refinements.

    The workflow's branches number the tree, so a node's step is found by its path: attempt 2 is branch `2`, its
    critique 0 branch `2.0`. Nothing for a task that is not done.
    """
    if story.state != "done":
        return
    tree = cast("Tree", story.result)
    steps = {step.path: step for step in story.model_steps}
    yield _siblings("generator", "", tree["attempts"], steps)
    for i, attempt in enumerate(tree["attempts"]):
        yield _siblings("verifier", f"{i}.", attempt["critiques"], steps)
        for j, critique in enumerate(attempt["critiques"]):
            yield _siblings("refiner", f"{i}.{j}.", critique["refinements"], steps)


def _siblings(
    role: Role, path: str, nodes: Sequence[Attempt] | Sequence[Critique] | Sequence[Refinement], steps: dict[str, Step]
) -> Siblings:
    replies = [
        Reply(node["text"], node["value"], _unusable(steps[f"{path}{number}"])) for number, node in enumerate(nodes)
    ]
    return Siblings(role, steps[f"{path}0"].messages, replies)


def _unusable(step: Step) -> str:
    assert step.reply is not None, "model steps have replies"
    if not step.reply.text.strip():
        return "an empty reply"
    return "cut off at its token limit" if step.reply.finish == "length" else ""


def _paired(story: Story, siblings: Siblings, without: Counter[str]) -> Iterable[Pair]:
    """The pairs of one family, by distinct texts."""
    good = {reply.text: reply for reply in siblings.replies if _good(story, reply)}
    bad = {reply.text: reply for reply in siblings.replies if not _good(story, reply)}
    if not good or not bad:
        without[f"{siblings.role}: all siblings are {'good' if good else 'bad'}"] += 1
    for chosen, rejected in product(good.values(), bad.values()):
        reason = chosen.unusable or ("an empty reply" if not rejected.text.strip() else "")
        if chosen.text == rejected.text or chosen.text in bad or rejected.text in good:
            reason = "the same text is good and bad"
        if reason:
            without[f"{siblings.role}: {reason}"] += 1
        else:
            yield Pair(siblings, chosen, rejected)


def _good(story: Story, reply: Reply) -> bool:
    return reply.value > story.result["theta"]


def _way(pair: Pair) -> tuple[Any, ...]:
    return pair.siblings.role, pair.siblings.prompt, pair.chosen.text, pair.rejected.text


def _plain(messages: Sequence[Message]) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.text} for message in messages]


def _assistant(reply: Reply) -> dict[str, str]:
    return {"role": "assistant", "content": reply.text}
