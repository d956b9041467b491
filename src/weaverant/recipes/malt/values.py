"""What a finished tree says of each reply: its value, its label, and the pairs. Pure functions over the tree.

Two draws of one text under one parent are one reply, a `Node`, and what was grown under both counts for it; so no
text is both good and bad under a parent, and no pair has a text on both sides. Values, after arXiv 2412.01928:
`global`, the share of right leaves under the node; `local`, majority level by level: the share of its children that
are good themselves, each as often as it was drawn.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from math import exp, inf, log, sqrt
from typing import Any, Literal, NamedTuple, TypeVar

from weaverant.errors import UserError
from weaverant.recipes.malt.team import Role
from weaverant.recipes.malt.tree import THETA, Attempt, Critique, Refinement, Tree

Values = Literal["global", "local"]


class Rule(NamedTuple):
    """How values become labels and pairs."""

    theta: float = THETA
    """Good is a value strictly above it."""
    values: Values = "global"
    min_confidence: float = 0.0
    """In 0..1. Above 0, a node is left out unless its Hoeffding interval of that confidence lies on one side of theta.
    Leaves are never: their value is the reward itself, and no estimate."""
    max_pairs: int = 0
    """Under one parent; 0 has no bound."""

    def checked(self) -> Rule:
        """Itself, or `UserError`."""
        if not 0 <= self.min_confidence < 1:
            raise UserError(f"min_confidence is a probability from 0 to below 1, found {self.min_confidence!r}")
        if self.max_pairs < 0:
            raise UserError(f"max_pairs counts pairs, 0 for no bound; found {self.max_pairs!r}")
        return self

    def good(self, node: Node) -> bool:
        return node.value > self.theta

    def sure(self, node: Node) -> bool:
        """Whether the node's interval does not straddle theta, or none is asked for, or the node is a leaf."""
        if not self.min_confidence or node.role == "refiner":
            return True
        return abs(node.value - self.theta) > node.half_width(self.min_confidence)


class Node(NamedTuple):
    """A distinct reply to its parent's prompt."""

    role: Role
    text: str
    paths: tuple[str, ...]
    """Of each draw of it, in the order of the tree: the branch of the workflow, as `2.0`."""
    value: float
    """In 0..1, and soft: no label yet."""
    leaves: int
    """m, what the value is the mean of: leaves under it; for `local` values of an attempt, its critiques."""

    def half_width(self, confidence: float = 0.95) -> float:
        """Of the two-sided interval of Hoeffding (1963) around the value, from P(error >= e) <= 2 exp(-2 m e^2); 0 for
        a leaf. It takes the m draws for independent, as the paper does; leaves under one critique are not quite."""
        return 0.0 if self.role == "refiner" else half_width(self.leaves, confidence)


class Family(NamedTuple):
    """All replies under one parent: `above` are the texts on the way to it, none, the attempt, attempt and critique."""

    role: Role
    above: tuple[str, ...]
    nodes: list[Node]


class Pair(NamedTuple):
    """A good and a bad reply of one family."""

    family: Family
    chosen: Node
    rejected: Node


Without = Counter[str]
"""What was left out, by "ROLE: reason"."""

Unusable = Callable[[Node], str]
"""Why nobody should learn a node's text; empty where it may be learnt."""


def half_width(draws: int, confidence: float = 0.95) -> float:
    """Hoeffding's, of a mean of that many draws in 0..1. Infinite for none."""
    return sqrt(log(2 / (1 - confidence)) / (2 * draws)) if draws else inf


def confidence(draws: int, distance: float) -> float:
    """The inverse: how sure it is, at least, that a mean lies within `distance` of what it estimates; in 0..1."""
    return max(0.0, 1 - 2 * exp(-2 * draws * distance * distance))


def families(tree: Tree, rule: Rule = Rule()) -> Iterator[Family]:  # noqa: B008
    """The tree by parents: the question's attempts, then by attempt its critiques and, by critique, its refinements."""
    below: list[Family] = []
    attempts: list[Node] = []
    for text, copies in _merged((str(i), one) for i, one in enumerate(tree["attempts"])):
        critiques: list[Node] = []
        refined: list[Family] = []
        drawn = ((f"{path}.{j}", one) for path, copy in copies for j, one in enumerate(copy["critiques"]))
        for critique, again in _merged(drawn):
            leaves = [(f"{path}.{k}", leaf) for path, copy in again for k, leaf in enumerate(copy["refinements"])]
            refined.append(Family("refiner", (text, critique), [_leaf(*one) for one in _merged(leaves)]))
            right = sum(leaf["value"] > 0 for _, leaf in leaves)
            critiques.append(Node("verifier", critique, _paths(again), right / len(leaves), len(leaves)))
        below += [Family("verifier", (text,), critiques), *refined]
        attempts.append(_attempt(text, copies, critiques, rule))
    yield Family("generator", (), attempts)
    yield from below


def positives(
    found: Iterable[Family], rule: Rule, without: Without, unusable: Unusable | None = None
) -> Iterator[tuple[Family, Node]]:
    """Every good reply, once. What is left out is counted in `without`, draw by draw."""
    why_not = unusable or empty
    for family in found:
        for node in family.nodes:
            reason = why_not(node) or ("" if rule.good(node) else "value not above theta")
            if not reason and not rule.sure(node):
                reason = "too few leaves to be sure"
            if reason:
                without[f"{family.role}: {reason}"] += len(node.paths)
                continue
            if len(node.paths) > 1:
                without[f"{family.role}: the same reply to the same prompt"] += len(node.paths) - 1
            yield family, node


def pairs(found: Iterable[Family], rule: Rule, without: Without, unusable: Unusable | None = None) -> Iterator[Pair]:
    """Every pair of a good and a bad reply under one parent, once; with `max_pairs`, the first ones: the widest apart,
    and of equally wide ones such that each reply gets its turn. What is left out is counted in `without`."""
    why_not = unusable or empty
    for family in found:
        good = [node for node in family.nodes if rule.good(node)]
        bad = [node for node in family.nodes if not rule.good(node)]
        if not good or not bad:
            without[f"{family.role}: all siblings are {'good' if good else 'bad'}"] += 1
            continue
        taken: list[Pair] = []
        for chosen, rejected in _in_turn(good, bad):
            reason = why_not(chosen) or empty(rejected)
            if not reason and not (rule.sure(chosen) and rule.sure(rejected)):
                reason = "too few leaves to be sure"
            if not reason and rule.max_pairs and len(taken) == rule.max_pairs:
                reason = "more pairs than max_pairs under one parent"
            if reason:
                without[f"{family.role}: {reason}"] += 1
            else:
                taken.append(Pair(family, chosen, rejected))
        yield from taken


def unread(tree: Tree) -> Counter[str]:
    """Leaves that count as wrong without having been compared, by why."""
    return Counter(
        leaf["why"]
        for attempt in tree["attempts"]
        for critique in attempt["critiques"]
        for leaf in critique["refinements"]
        if "why" in leaf
    )


def empty(node: Node) -> str:
    """Why an empty text is not learnt."""
    return "" if node.text.strip() else "an empty reply"


def rule_of(tree: Tree) -> Rule:
    """The rule that the tree was grown with."""
    given: dict[str, Any] = {name: tree[name] for name in Rule._fields if name in tree}
    return Rule(**given)


Draw = TypeVar("Draw", Attempt, Critique, Refinement)


def _merged(draws: Iterable[tuple[str, Draw]]) -> list[tuple[str, list[tuple[str, Draw]]]]:
    """Draws by text, in the order in which the texts first came."""
    by_text: dict[str, list[tuple[str, Draw]]] = {}
    for path, draw in draws:
        by_text.setdefault(draw["text"], []).append((path, draw))
    return list(by_text.items())


def _leaf(text: str, copies: Sequence[tuple[str, Refinement]]) -> Node:
    right = sum(leaf["value"] > 0 for _, leaf in copies)
    return Node("refiner", text, _paths(copies), right / len(copies), len(copies))


def _attempt(text: str, copies: Sequence[tuple[str, Attempt]], critiques: Sequence[Node], rule: Rule) -> Node:
    if rule.values == "local":
        draws = sum(len(node.paths) for node in critiques)
        good = sum(len(node.paths) for node in critiques if rule.good(node))
        return Node("generator", text, _paths(copies), good / draws, draws)
    leaves = [leaf for _, copy in copies for critique in copy["critiques"] for leaf in critique["refinements"]]
    right = sum(leaf["value"] > 0 for leaf in leaves)
    return Node("generator", text, _paths(copies), right / len(leaves), len(leaves))


def _paths(copies: Iterable[tuple[str, Any]]) -> tuple[str, ...]:
    return tuple(path for path, _ in copies)


def _in_turn(good: Sequence[Node], bad: Sequence[Node]) -> list[tuple[Node, Node]]:
    """All pairs, the widest apart first; of equally wide ones no reply comes twice before each came once."""
    few, many = (good, bad) if len(good) < len(bad) else (bad, good)
    rounds = [(few[(turn + shift) % len(few)], one) for shift in range(len(few)) for turn, one in enumerate(many)]
    found = rounds if few is good else [(chosen, rejected) for rejected, chosen in rounds]
    return sorted(found, key=lambda pair: pair[1].value - pair[0].value)  # it is stable
