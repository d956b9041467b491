"""Who is asked together, and when no one more is."""

from __future__ import annotations

import math
from random import Random

import numpy as np
import pytest

from weaverant.routing.keys import Key
from weaverant.routing.ranking import all_wrong, burden, chosen, correlations, resolved
from weaverant.routing.stopping import agreed, reason_to_stop, standing, worth
from weaverant.routing.utility import Candidate, Weights, rank

FREE = Weights(0.0, 0.0)


def apart(one: str, other: str) -> float:
    return float(one == other)


def alike(one: str, other: str) -> float:
    """`twin1` and `twin2` are wrong together, all others independently."""
    return 1.0 if one == other or {one, other} == {"twin1", "twin2"} else 0.0


def names(found: object) -> list[str]:
    return [one.name for one in found]  # type: ignore[attr-defined]


def test_all_wrong_is_exact_where_it_can_be():
    one, two, three = Candidate("a", 0.8), Candidate("b", 0.5), Candidate("c", 0.4)
    assert all_wrong([], apart) == 1.0
    assert all_wrong([one, two, three], apart) == pytest.approx(0.2 * 0.5 * 0.6)
    assert all_wrong([Candidate("twin1", 0.7), Candidate("twin2", 0.7)], alike) == pytest.approx(0.3)
    rho = 0.5
    both = all_wrong([one, two], lambda x, y: rho)
    assert both == pytest.approx(0.2 * 0.5 + rho * math.sqrt(0.8 * 0.2 * 0.25))
    assert all_wrong([Candidate("a", 1.0), two], apart) == 0.0


def test_a_twin_adds_nothing_and_the_different_one_is_taken():
    ranked = rank([Candidate("twin1", 0.8), Candidate("twin2", 0.79), Candidate("other", 0.6)], FREE)
    assert names(chosen(ranked, 2, FREE, alike)) == ["twin1", "other"]
    assert names(chosen(ranked, 3, FREE, alike))[:2] == ["twin1", "other"]
    assert names(chosen(ranked, 2, FREE, apart)) == ["twin1", "twin2"]


def test_who_adds_less_than_it_costs_is_not_asked():
    cheap, dear = Candidate("cheap", 0.7, 0.001), Candidate("dear", 0.75, 1.0)
    for cost, wanted in ((0.0, ["dear", "cheap"]), (0.1, ["cheap", "dear"]), (0.5, ["cheap"])):
        weights = Weights(cost, 0.0)
        ranked = rank([cheap, dear], weights)
        assert names(chosen(ranked, 3, resolved(ranked, weights), apart)) == wanted
    weights = Weights(0.0, 0.5)
    ranked = rank([Candidate("fast", 0.7, latency=1.0), Candidate("slow", 0.75, latency=30.0)], weights)
    assert names(chosen(ranked, 3, resolved(ranked, weights), apart)) == ["fast"]


def test_the_order_of_candidates_changes_nothing():
    random, weights = Random(5), Weights(0.2, 0.1)
    candidates = [Candidate(f"m{n}", round(random.random(), 1), round(random.random(), 1)) for n in range(9)]
    wanted = None
    for _ in range(50):
        random.shuffle(candidates)
        ranked = rank(candidates, weights)
        found = names(chosen(ranked, 4, resolved(ranked, weights), apart))
        wanted = wanted or found
        assert found == wanted
    ties = rank([Candidate("c", 0.5), Candidate("a", 0.5), Candidate("b", 0.5, 0.0)], FREE)
    assert names(chosen(ties, 3, FREE, apart)) == ["a", "b", "c"]
    assert chosen([], 3, FREE, apart) == []


def test_correlations_of_a_router_by_name():
    together = correlations(["a", "b", "c"], np.array([[1, 0.2, 0.4], [0.2, 1, np.nan], [0.4, np.nan, 1]]))
    assert together("a", "b") == together("b", "a") == 0.2 and together("a", "a") == 1.0
    assert together("b", "c") == together("new", "a") == pytest.approx(0.3)
    assert correlations([], np.zeros((0, 0)))("x", "y") == 0.3


ONE, TWO = Key("number", "1"), Key("number", "2")


def stop(**changed: object) -> str:
    given: dict[str, object] = {
        "keys": {"a": ONE, "b": TWO},
        "posterior": {"a": 0.6, "b": 0.5},
        "layer": rank([Candidate("c", 0.6, 0.1, 2.0)], FREE),
        "weights": FREE,
        "together": apart,
        "calibration_error": 0.02,
        "seconds_left": None,
        "last": False,
    }
    return reason_to_stop(**(given | changed))  # type: ignore[arg-type]


def test_reasons_to_stop():
    assert stop() == ""
    assert stop(last=True) == "layers"
    assert stop(layer=[]) == "nobody left"
    assert stop(keys={"a": ONE, "b": ONE, "c": None}) == "agreement"
    assert stop(keys={"a": ONE}) == ""
    assert stop(seconds_left=1.0) == "deadline" and stop(seconds_left=3.0) == ""
    assert stop(posterior={"a": 0.97}, enough=0.95) == "good enough"
    dear = Weights(cost=0.9, latency=0.0, reference=0.1)
    assert stop(weights=dear) == "value"
    assert stop(posterior={"a": 1.0}) == "value"


@pytest.mark.parametrize("error", [None, 0.2])
def test_probabilities_that_are_not_known_to_be_good_stop_nothing(error: float | None):
    assert stop(posterior={"a": 0.999}, enough=0.9, calibration_error=error) == ""


def test_what_a_layer_is_worth_equals_what_is_worked_out_by_hand():
    layer = rank([Candidate("c", 0.6, 0.1, 2.0)], FREE)
    weights = Weights(cost=0.2, latency=0.1, reference=0.2, slo=4.0)
    reach = 1 - 0.4 * 0.4 * 0.5
    assert worth({"a": 0.6, "b": 0.5}, layer, weights, apart) == pytest.approx(0.5 * (reach - 0.6) - 0.1 - 0.05)
    assert burden([0.1, 0.1], 2.0, weights) == pytest.approx(0.2 + 0.05) and burden([1.0], 9.0, FREE) == 0


def test_whose_answer_stands():
    assert standing({"a": ONE, "b": None}, {"a": 0.1}) == "a"
    assert standing({"a": ONE, "b": ONE}, {"a": 0.5, "b": 0.6}) == "b"
    assert standing({"a": ONE, "b": TWO}, {"a": 0.5, "b": 0.6}) is None
    assert standing({"a": ONE, "b": TWO}, {"a": 0.9, "b": 0.3}) == "a"
    assert standing({"a": ONE, "b": TWO}, {"a": 0.9, "b": 0.6}) is None
    assert standing({"a": None}, {"a": 0.9}) is None
    assert standing({"b": ONE, "a": ONE, "c": ONE}, dict.fromkeys("abc", 0.5)) == "b", "who was asked first"
    assert agreed({"a": ONE, "b": ONE}) and not agreed({"a": ONE}) and not agreed({"a": ONE, "b": TWO})
