"""From finished trees to training samples, per role: what `weaverant export --as sft` and its like give.

SFT takes good replies only; a pair sets a good reply against a bad one to the very same prompt, under one parent
(arXiv 2412.01928). Prompts are the messages that were sent. `dropped` counts by reason what was left out. Each has a
form that takes a `Rule`, for labels other than those the trees were grown for; no model is asked again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, cast

from weaverant.message import Message
from weaverant.recipe import exporter
from weaverant.recipes.malt.tree import Tree
from weaverant.recipes.malt.values import (
    Family,
    Node,
    Pair,
    Rule,
    Without,
    empty,
    families,
    pairs,
    positives,
    rule_of,
    unread,
)
from weaverant.story import Step, Story


@exporter
def sft(story: Story) -> Iterator[dict[str, Any]]:
    """Good replies as conversations, in `sft-ROLE.jsonl`: `{"messages", "task", "role", "value"}`."""
    yield from sft_samples(story)


@exporter
def preference(story: Story) -> Iterator[dict[str, Any]]:
    """Pairs in `preference-ROLE.jsonl`: `{"prompt", "chosen", "rejected"}` in messages, `task`, `role`, both values."""
    yield from preference_samples(story)


@exporter
def values(story: Story) -> Iterator[dict[str, Any]]:
    """Every reply with its soft value, good or bad, in `values-ROLE.jsonl`: `{"prompt", "completion"}` in messages,
    `label`, `value`, `leaves`, `half_width` (Hoeffding, 95 %), `draws`, `task`, `role`."""
    yield from value_samples(story)


@exporter
def dropped(story: Story) -> Iterator[dict[str, Any]]:
    """What `sft` and `preference` left out, by reason, one line a question in `dropped.jsonl`: `{"task", "sft",
    "preference", "leaves"}`, each a mapping from "ROLE: reason" to a count: of replies; of pairs, or of prompts that
    gave no pair; of leaves that were wrong without having been compared."""
    yield from dropped_counts(story)


def sft_samples(story: Story, rule: Rule | None = None) -> Iterator[dict[str, Any]]:
    """`sft` by a rule; by default the one the tree was grown with."""
    if (grown := grown_of(story, rule)) is None:
        return
    for family, node in grown.positives(Counter()):
        yield {
            "_file": f"sft-{family.role}.jsonl",
            "messages": [*_plain(grown.prompt(family)), _assistant(node)],
            "task": story.key,
            "role": family.role,
            "value": node.value,
        }


def preference_samples(story: Story, rule: Rule | None = None) -> Iterator[dict[str, Any]]:
    """`preference` by a rule."""
    if (grown := grown_of(story, rule)) is None:
        return
    for family, chosen, rejected in grown.pairs(Counter()):
        yield {
            "_file": f"preference-{family.role}.jsonl",
            "prompt": _plain(grown.prompt(family)),
            "chosen": [_assistant(chosen)],
            "rejected": [_assistant(rejected)],
            "task": story.key,
            "role": family.role,
            "chosen_value": chosen.value,
            "rejected_value": rejected.value,
        }


def value_samples(story: Story, rule: Rule | None = None) -> Iterator[dict[str, Any]]:
    """`values` by a rule."""
    if (grown := grown_of(story, rule)) is None:
        return
    for family in grown.families:
        for node in family.nodes:
            yield {
                "_file": f"values-{family.role}.jsonl",
                "prompt": _plain(grown.prompt(family)),
                "completion": [_assistant(node)],
                "label": grown.rule.good(node),
                "value": node.value,
                "leaves": node.leaves,
                "half_width": node.half_width(),
                "draws": len(node.paths),
                "task": story.key,
                "role": family.role,
            }


def dropped_counts(story: Story, rule: Rule | None = None) -> Iterator[dict[str, Any]]:
    """`dropped` by a rule."""
    if (grown := grown_of(story, rule)) is None:
        return
    without: dict[str, Without] = {"sft": Counter(), "preference": Counter(), "leaves": unread(grown.tree)}
    for found in (grown.positives(without["sft"]), grown.pairs(without["preference"])):
        for _ in found:
            pass
    if any(without.values()):
        yield {"_file": "dropped.jsonl", "task": story.key} | {name: dict(counts) for name, counts in without.items()}


class Grown(NamedTuple):
    """A finished tree with the steps that grew it. The workflow's branches number the tree, so a node's step is found
    by its path: attempt 2 is branch `2`, its critique 0 branch `2.0`."""

    tree: Tree
    rule: Rule
    families: list[Family]
    steps: dict[str, Step]

    def prompt(self, family: Family) -> tuple[Message, ...]:
        """What all of the family answered."""
        return self.steps[family.nodes[0].paths[0]].messages

    def unusable(self, node: Node) -> str:
        """Why nobody should learn it. A text that was cut off in one draw and came whole in another is whole."""
        cut = all(self._finish(path) == "length" for path in node.paths)
        return empty(node) or ("cut off at its token limit" if cut else "")

    def positives(self, without: Without) -> Iterator[tuple[Family, Node]]:
        return positives(self._apart(without), self.rule, without, self.unusable)

    def pairs(self, without: Without) -> Iterator[Pair]:
        return pairs(self._apart(without), self.rule, without, self.unusable)

    def _apart(self, without: Without) -> Iterator[Family]:
        """The families, but for those whose texts make up a prompt that another's made up already: labels given under
        two parents might contradict each other."""
        seen: set[tuple[Any, ...]] = set()
        for family in self.families:
            key = (family.role, self.prompt(family))
            if key in seen:
                without[f"{family.role}: under another parent with the same prompt"] += len(family.nodes)
                continue
            seen.add(key)
            yield family

    def _finish(self, path: str) -> str:
        reply = self.steps[path].reply
        assert reply is not None, "model steps have replies"
        return reply.finish


def grown_of(story: Story, rule: Rule | None = None) -> Grown | None:
    """The story's tree; None for a task that is not done."""
    if story.state != "done":
        return None
    tree = cast("Tree", story.result)
    chosen = (rule or rule_of(tree)).checked()
    steps = {step.path: step for step in story.model_steps}
    return Grown(tree, chosen, list(families(tree, chosen)), steps)


def _plain(messages: Sequence[Message]) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.text} for message in messages]


def _assistant(node: Node) -> dict[str, str]:
    return {"role": "assistant", "content": node.text}
