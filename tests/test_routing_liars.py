"""Simulated models that lie about themselves, and conversations half-way: short forms of two benches."""

from __future__ import annotations

import sys
from pathlib import Path
from xml.etree import ElementTree

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))
import routing_ambiguity
import routing_liars

sys.path.pop(0)


def test_liars_cost_the_default_mode_nothing_and_the_faithful_one_visibly():
    """Against the best model by prior alone, paired."""
    found = {column: routing_liars.played(*column, 500) for column in [
        ("prior, one model", False), ("default", False), ("large", False),
    ]}  # fmt: skip
    prior = found["prior, one model", False]
    _, low, _ = routing_liars.interval(found["default", False] - prior)
    assert low >= 0
    _, _, high = routing_liars.interval(found["large", False] - prior)
    assert high < 0
    picture = ElementTree.fromstring(routing_liars.figure(found))
    assert sum("stroke:#" in path.get("style", "") for path in picture) == 3 * 59


def test_half_way_between_two_models_a_conversation_keeps_one():
    found = routing_ambiguity.measured("half-way", 30)
    anew, changes = found["each turn anew"]
    kept, fewer = found["sessions"]
    assert max(fewer) <= routing_ambiguity.MOST < max(changes)
    assert routing_ambiguity.interval(kept - anew)[2] >= 0
