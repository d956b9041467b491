"""RouteMoA's released run (rongyan4/RouteMoA at 58954df, Apache-2.0) as arrays: 450 items, three systems.

The files tell of each item what was billed, how long it took and, in 23 of the 30 sets, whether it was right. Of the
other seven sets (recall, F1, ROUGE, a normed score) there is only the set's mean. Costs are worked out anew here, from
each item's tokens and the price list.
"""

from __future__ import annotations

import csv
import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from weaverant.routing.evaluation.accuracy import Means
from weaverant.routing.scores import Floats

SYSTEMS = ("moa", "smoa", "routemoa")
FAILED = "Error Occur"
"""What stands in the place of a reply that did not come within 1,000 s."""
SELF = re.compile(r'self_score["`]?\s*:\s*([0-9.]*[0-9])')


@dataclass(frozen=True, eq=False)
class Released:
    """One system's items, in the order of the files, which is the same for all three."""

    categories: tuple[str, ...]
    sets: tuple[str, ...]
    items: tuple[str, ...]
    verdict: Floats
    """1.0 right, 0.0 wrong, NaN where the set has no verdicts."""
    latency: Floats
    """Seconds; about 1,000 where it failed."""
    cost: Floats
    """US dollars, from tokens and prices."""
    failed: np.ndarray
    """Whether no reply came."""
    billed: np.ndarray
    """Different models in the bill."""
    self_score: Floats
    """What the final answer says of itself, where it does."""
    told: dict[str, dict[str, float]]
    """Of each set, what the system's own file says of it: accuracy, latency_avg, cost_normalized."""

    def per_set(self) -> dict[str, dict[str, float]]:
        """Accuracy (percent), seconds and dollars for 10,000 items, as they were published: worked out from the items,
        but for the accuracy of sets without verdicts. The cost is that of items that did not fail."""
        found: dict[str, dict[str, float]] = {}
        for name in dict.fromkeys(self.sets):
            rows = np.array([each == name for each in self.sets])
            right = self.verdict[rows]
            accuracy = self.told[name]["accuracy"] if np.isnan(right).any() else float(right.mean())
            billed = rows & ~self.failed
            found[name] = {
                "accuracy": 100 * accuracy,
                "latency": float(self.latency[rows].mean()),
                "cost": 1e4 * float(self.cost[billed].mean()),
            }
        return found

    def macro(self, what: str, by: str) -> float:
        """The mean over sets, or over categories of their sets' mean."""
        values = self.per_set()
        if by == "sets":
            return sum(each[what] for each in values.values()) / len(values)
        means = self.per_category(what)
        return sum(means.values()) / len(means)

    def per_category(self, what: str) -> dict[str, float]:
        values = self.per_set()
        of = dict(zip(self.sets, self.categories, strict=True))
        means = Means([of[name] for name in values])
        got = means.per_set(np.ones((1, len(values))), np.array([each[what] for each in values.values()]))[0]
        return dict(zip(means.names, got.tolist(), strict=True))


def read(folder: Path) -> dict[str, Released]:
    """The three systems."""
    with (folder / "price_large.csv").open() as file:
        prices = {row["model"]: (float(row["input_price"]), float(row["output_price"])) for row in csv.DictReader(file)}
    found = {name: _read(folder / f"{name}.json", prices) for name in SYSTEMS}
    assert len({system.items for system in found.values()}) == 1, "the systems' items differ"
    return found


def _read(file: Path, prices: dict[str, tuple[float, float]]) -> Released:
    parts = [
        (category, name, part)
        for category, sets in json.loads(file.read_text())["results"].items()
        for name, part in sets.items()
    ]
    rows = [(category, name, item) for category, name, part in parts for item in part["items"]]
    items = [item for _, _, item in rows]
    texts = [str(item["model_response"]) for item in items]
    scores = [SELF.search(text) for text in texts]

    def bill(item: dict) -> float:
        tokens = ((prices[model], use) for model, use in item["token_usage"].items())
        return sum(a * use["prompt_tokens"] + b * use["completion_tokens"] for (a, b), use in tokens) / 1e6

    return Released(
        categories=tuple(category for category, _, _ in rows),
        sets=tuple(name for _, name, _ in rows),
        items=tuple(f"{item['dataset']}/{item['item_id']}" for item in items),
        verdict=np.array([np.nan if item["is_correct"] is None else float(item["is_correct"]) for item in items]),
        latency=np.array([float(item["latency"]) for item in items]),
        cost=np.array([bill(item) for item in items]),
        failed=np.array([FAILED in text for text in texts]),
        billed=np.array([len(item["token_usage"]) for item in items]),
        self_score=np.array([float(score.group(1)) if score else np.nan for score in scores]),
        told={name: part["summary"] for _, name, part in parts},
    )
