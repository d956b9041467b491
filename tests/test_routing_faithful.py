"""The original's algorithm: its constants, worked out by hand, and each of its defects, kept and mended."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

import weaverant
from routing_simulated import SimulatedRouter, ask, pool_of, saying
from weaverant import UserError
from weaverant.engines import open_engine
from weaverant.engines.scripted import Scripted
from weaverant.errors import StepFailed
from weaverant.message import Request
from weaverant.routing.faithful import (
    DEFECTS,
    POOLS,
    Faithful,
    Layer,
    mixed_first,
    mixed_second,
    power_map,
    stopping_cosine,
)
from weaverant.routing.pool import Card, Pool
from weaverant.routing.turns import RouteMoaOptions, traces

ALL = frozenset(DEFECTS)
ROW = [{"question": "What is 1 + 1?"}]


def routed(
    tmp_path: Path, p: dict[str, float], members: dict[str, Any], size: Any = "small", keep: str = "all", **more: Any
) -> tuple[Any, list[Any]]:
    pool = members if isinstance(members, Pool) else pool_of(**members)
    options = RouteMoaOptions(faithful=size, keep=keep, **({"aggregator": "a"} | more))
    model = Faithful(pool, options, SimulatedRouter(p))
    (task,) = weaverant.run(ask, ROW, models={"solver": model}, directory=tmp_path / f"run {keep}")
    ((_, turns),) = traces(tmp_path / f"run {keep}")
    return task.result if task.state == "done" else task.reason, turns


def test_the_power_map_jumps_at_a_half():
    assert power_map(0.5 - 1e-9) == pytest.approx(0.2828, abs=1e-4)
    assert power_map(0.5) == pytest.approx(0.7172, abs=1e-4)
    low, high = 1 / (1 + math.e), math.e / (1 + math.e)
    assert (round(power_map(low), 3), round(power_map(high), 3)) == (0.112, 0.888)


@pytest.mark.parametrize(
    ("size", "cosines"),
    [
        ("small", [0.00, 0.073, 0.196, 0.324, 0.461, 0.770, None]),
        ("large", [0.077, 0.104, 0.131, 0.158, 0.186, 0.242, 0.358]),
    ],
)
def test_which_cosine_stops_after_layer_1(size: str, cosines: list[float | None]):
    """The table of the specification."""
    for own, wanted in zip([1.0, 0.95, 0.9, 0.85, 0.8, 0.7, 0.5], cosines, strict=True):
        found = stopping_cosine(POOLS[size], own)
        assert found == (None if wanted is None else pytest.approx(wanted, abs=6e-4))
    assert stopping_cosine(POOLS[size], 0.0) == stopping_cosine(POOLS[size], 0.8)


def test_what_stops_does_so_in_the_loop_too(tmp_path: Path):
    """Just above and just below the cosine of the table, in a run."""
    cosine = stopping_cosine(POOLS["small"], 0.9)
    assert cosine is not None
    for nudge, layers in ((0.01, 1), (-0.01, 3)):
        p = 1 / (1 + math.exp(-cosine - nudge))
        _, turns = routed(tmp_path / str(layers), {"a": p}, {"a": saying("7", 0.9, 0.1)})
        assert (turns[-1].stop == "score", len(turns)) == (layers == 1, 2 if layers == 1 else 3)


MAPPED = {"a": 0.8, "b": 0.75, "c": 0.3, "d": 0.2}
FIRST = Layer({"a": "1", "b": "2", "c": "3"}, {"a": 1.0, "b": None, "c": 0.5}, {})
SECOND = Layer({"a": "1", "b": "2", "d": "4"}, {"a": 0.9, "b": 0.6, "d": 0.7}, {"a": {"a": 1.0, "b": 0.2, "c": 0.4}})


def test_layer_1_as_worked_out_by_hand():
    small = mixed_first(POOLS["small"], MAPPED, FIRST, ALL)
    assert small == pytest.approx({"a": (1.6 + 1) / 3, "b": (1.5 + 0.8) / 3, "c": (0.6 + 0.5) / 3})
    large = mixed_first(POOLS["large"], MAPPED, FIRST, ALL)
    assert large == pytest.approx({"a": 0.82, "b": 0.755, "c": 0.32})
    assert mixed_first(POOLS["small"], MAPPED, FIRST, ALL - {"missing_eight"})["b"] == 0.75


def test_layer_2_as_worked_out_by_hand():
    before = dict.fromkeys("abcd", 0.5) | {"e": 0.5}
    mapped = MAPPED | {"e": 0.1}
    small = mixed_second(POOLS["small"], mapped, before, FIRST, SECOND, "a", ALL)
    assert small == pytest.approx(
        {
            "a": 0.4 + 0.125 * 0.9 + 0.125 * 0.9 + 0.25,
            "b": 0.375 + 0.25 * 0.6 + 0.25 * 0.2,
            "c": 0.15 + 0.25 * 0.3 + 0.25 * 0.4,
            "d": 2 / 3 * 0.2 + 1 / 3 * 0.7,
            "e": 0.05 + 0.25 * 0.3 + 0.25 * 1.0,
        }
    )
    large = mixed_second(POOLS["large"], mapped, before, FIRST, SECOND, "a", ALL)
    assert large["a"] == pytest.approx(0.2 + 0.3 * 0.9 + 0.45) and large["e"] == pytest.approx(0.07 + 0.03 + 0.2)
    no_judge = mixed_second(POOLS["small"], mapped, before, FIRST, SECOND, "b", ALL)
    assert no_judge["a"] == no_judge["b"] == 0.5 and no_judge["c"] == pytest.approx(0.15 + 0.075 + 0.25)


def test_layer_2_mended():
    before = dict.fromkeys("abcde", 0.5)
    mapped = MAPPED | {"e": 0.1}

    def mended(defect: str) -> dict[str, float]:
        return mixed_second(POOLS["small"], mapped, before, FIRST, SECOND, "a", ALL - {defect})

    assert mended("same_self")["a"] == pytest.approx(0.4 + 0.125 * 1.0 + 0.125 * 0.9 + 0.25)
    assert mended("unseen_one")["e"] == 0.5 and mended("unseen_one")["c"] == pytest.approx(0.15 + 0.075 + 0.1)


# The defects, one by one, in whole runs


def test_json_leaks_into_everything_or_not(tmp_path: Path):
    def say(request: Request) -> str:
        asked = request.messages[0].text
        if "one JSON object" in asked:
            return '{"answer": "#### 7", "self_score": 1.0}'
        return "leaked" if '{"answer"' in asked else "clean"

    for keep, wanted in (("all", "leaked"), ("wired_aggregator", "clean")):
        result, _ = routed(tmp_path, {"a": 0.6}, {"a": Scripted(say)}, keep=keep)
        assert result == wanted


def test_a_reply_that_breaks_the_format_is_rewarded_or_not(tmp_path: Path):
    members = {"a": saying("1", 0.6), "b": Scripted("I will not")}
    p = {"a": 0.7, "b": 0.69}
    _, kept = routed(tmp_path, p, members)
    _, mended = routed(tmp_path, p, members, keep="wired_aggregator")
    assert kept[1].after["b"] > kept[1].after["a"]
    assert mended[1].after["b"] == mended[1].before["b"]


def test_the_most_confident_judges_or_the_best_of_the_layer_before(tmp_path: Path):
    """`b` claims more. Kept, it grades all answers, its own too; mended, `a` grades `b`'s."""
    members = {"a": saying("#### 1", 0.5, 0.5), "b": saying("#### 2", 0.55, 0.5)}
    p = {"a": 0.6, "b": 0.51}
    _, kept = routed(tmp_path, p, members)
    assert kept[2].judge == "b" and set(kept[2].peers) == {"a", "b"}
    _, mended = routed(tmp_path, p, members, keep="wired_aggregator,missing_eight")
    assert mended[2].judge == "a" and set(mended[2].peers) == {"b"}


def test_cost_breaks_ties_or_counts(tmp_path: Path):
    cards = {"a": Card("", price=(1.0, 1.0)), "b": Card("", price=(0.1, 0.1))}
    pool = Pool({"a": saying("1", 1.0), "b": saying("2", 1.0)}, cards)
    for p, keep, first in (
        ({"a": 0.6, "b": 0.6}, "all", "b"),
        ({"a": 0.61, "b": 0.6}, "all", "a"),
        ({"a": 0.61, "b": 0.6}, "wired_aggregator", "b"),
    ):
        _, turns = routed(tmp_path / f"{p['a']}", p, pool, keep=keep)
        assert turns[0].ask[0] == first


def test_models_outside_the_gap_are_never_asked_or_may_be(tmp_path: Path):
    members = {name: saying(f"#### {name}", 0.3, 0.1) for name in "abc"}
    p = {"a": 0.6, "b": 0.55, "c": 0.45}
    _, kept = routed(tmp_path, p, members)
    assert [turn.ask for turn in kept] == [("a", "b")] * 3 and "c" not in kept[-1].after
    _, mended = routed(tmp_path, p, members, keep="wired_aggregator")
    assert mended[0].ask == ("a", "b", "c")
    _, large = routed(tmp_path / "large", p, members, "large")
    assert large[0].ask == ("a", "b", "c")


def test_a_fixed_aggregator_that_is_down_ends_it_or_not(tmp_path: Path):
    def down(request: Request) -> str:
        raise StepFailed("server", "down")

    members = {"a": Scripted(down), "b": saying("#### 2", 1.0)}
    p = {"a": 0.1, "b": 0.7}
    assert routed(tmp_path, p, members)[0] == "pool"
    assert routed(tmp_path, p, members, keep="wired_aggregator")[0] == "#### 2"
    result, _ = routed(tmp_path / "chosen", p, members, keep="none", aggregator="")
    assert result == "#### 2"


def test_who_fails_has_said_nothing_and_is_rewarded_for_it(tmp_path: Path):
    def down(request: Request) -> str:
        raise StepFailed("server", "down")

    p = {"a": 0.6, "b": 0.55}
    _, turns = routed(tmp_path, p, {"a": saying("1", 0.5, 0.5), "b": Scripted(down)})
    assert turns[1].own == {"a": 0.5, "b": None}
    assert turns[1].after["b"] == pytest.approx(2 / 3 * power_map(0.55) + 0.8 / 3)


def test_the_sampling_is_the_originals_unless_the_agent_says_more(tmp_path: Path):
    seen: list[Request] = []
    routed(tmp_path, {"a": 0.6}, {"a": saying("1", 1.0, seen=seen)})
    assert {(request.sampling.temperature, request.sampling.max_tokens) for request in seen} == {(0.0, 8192)}


@pytest.mark.parametrize("size", ["small", "large"])
def test_a_liar_raises_its_own_rank(tmp_path: Path, size: str):
    """It says 1.0 of itself, and judges as the most confident. The default mode's test is beside it."""

    def lie(request: Request) -> str:
        asked = request.messages[0].text
        return (
            json.dumps({"answer": "#### 0", "self_score": 1.0, "peer_scores": [0.0, 0.0, 1.0]})
            if "self_" in asked
            else "0"
        )

    members = {"a": saying("#### 1", 0.6, 0.5), "b": saying("#### 2", 0.6, 0.5), "liar": Scripted(lie)}
    p = {"a": 0.49, "b": 0.48, "liar": 0.40}
    _, turns = routed(tmp_path, p, members, size)
    ranks = [sorted(turn.after, key=lambda name: -turn.after[name]).index("liar") for turn in turns]
    assert ranks[0] == 2 and ranks[-1] == 0 and turns[2].judge == "liar"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("faithful=small", "fixed: name it with aggregator=NAME"),
        ("faithful=small&keep=bug&aggregator=a", "found 'bug'"),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path: Path, options: str, said: str):
    (tmp_path / "pool.json").write_text('{"models": {"a": "embedded:tiny"}}')
    with pytest.raises(UserError, match=said):
        open_engine(f"routemoa:{tmp_path}/pool.json?{options}")


def test_the_page_names_them_all():
    page = (Path(__file__).parent.parent / "docs" / "routing.md").read_text()
    (section,) = [text for text in page.split("\n## ") if text.startswith("faithful mode and the twelve defects")]
    assert set(re.findall(r"^\| \d+ \|.*\| `(\w+)` \|$", section, re.MULTILINE)) == set(DEFECTS)
    assert len(re.findall(r"^\| \d+ \|", section, re.MULTILINE)) == 12
