"""The pool that routing's compounds choose among, and what is measured of its members."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from weaverant import UserError
from weaverant.engines.scripted import Scripted
from weaverant.message import ImagePart, Message, Request, Sampling, ToolSpec, Usage, user
from weaverant.routing.moa import MoaOptions
from weaverant.routing.observed import FEWEST, IN_A_ROW, REST, RING, Observed
from weaverant.routing.pool import PRIOR, Card, Pool
from weaverant.routing.route import RouteOptions
from weaverant.routing.selfmoa import SelfMoaOptions
from weaverant.routing.smoa import SmoaOptions
from weaverant.routing.specs import with_price
from weaverant.routing.turns import RouteMoaOptions


def written(folder: Path, models: Any, **more: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "pool.json").write_text(json.dumps({"models": models, **more}))
    return folder / "pool.json"


def asked(text: str = "Why?", **fields: Any) -> Request:
    return Request("a", "m", (user(text),), **fields)


# Opening


def test_members_with_equal_specs_share_one_engine_and_stand_in_the_order_of_their_names(tmp_path: Path):
    tiny = "embedded:tiny"
    pool = Pool.open(written(tmp_path, {"b": tiny, "a": {"model": tiny, "prior": 0.7}, "c": "simulated:latency=0"}))
    assert list(pool.members) == ["a", "b", "c"]
    assert pool.members["a"] is pool.members["b"] is not pool.members["c"]
    assert (pool.prior("a"), pool.prior("b"), pool.router, pool.aggregator) == (0.7, PRIOR, None, "")


def test_files_are_found_beside_the_pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """From anywhere, also those of compounds among the members; and no identity names a path."""
    told: list[Any] = []
    for name in ("one", "two"):
        folder = tmp_path / name
        written(folder, {"says": "scripted:said.jsonl", "team": "malt:models.json?team=ma"}, router="learned")
        (folder / "said.jsonl").write_text('{"reply": "yes"}\n')
        (folder / "models.json").write_text('{"base": "embedded:tiny"}')
        monkeypatch.chdir(tmp_path)
        pool = Pool.open(f"{name}/pool.json")
        assert pool.router == Path(f"{name}/learned")
        told.append(pool.told())
    assert told[0] == told[1] and str(tmp_path) not in str(told)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{}", "missing required field `models`.*Expected"),
        ('{"models": {}}', "has no models"),
        ('{"models": {"a/b": "embedded:tiny"}}', "'a/b'; expected a name without '/'"),
        ('{"models": {" ": "embedded:tiny"}}', "expected a name"),
        ('{"models": {"a": "embeded:tiny"}}', "embedded:"),
        ('{"models": {"a": "embedded:tiny"}, "aggregator": "b"}', "'b' is none of its models: 'a'"),
        ('{"models": {"a": {"model": "embedded:tiny", "prior": 2}}}', "<= 1"),
        ('{"models": {"a": {"model": "embedded:tiny", "price": [1]}}}', "length 2"),
        ('{"models": {"a": {"model": "embedded:tiny", "modalities": ["smell"]}}}', "smell"),
        ('{"models": {"a": {"model": "embedded:tiny", "colour": 1}}}', "colour"),
        ('{"models": {"a": {"model": "embedded:tiny", "like": "b"}}}', "'a' is said to be like 'b'.*has none"),
        ('{"models": {"a": "embedded:tiny", "b": "embedded:tiny", "a": "embedded:tiny"}}', "'a' is named twice"),
        ('{"models": {"a": {"model": "embedded:tiny", "prior": 0.1, "prior": 0.2}}}', "'prior' is named twice"),
        ('{"models": ', "Expected"),
    ],
)
def test_a_pool_that_cannot_be_meant_is_refused(tmp_path: Path, text: str, said: str):
    (tmp_path / "pool.json").write_text(text)
    with pytest.raises(UserError, match=f"(?s){said}"):
        Pool.open(tmp_path / "pool.json")


def test_a_pool_that_is_not_there_says_so(tmp_path: Path):
    with pytest.raises(UserError, match=r"nowhere\.json' cannot be read: No such file"):
        Pool.open(tmp_path / "nowhere.json")


# What members can do


def test_what_a_card_says_goes_before_what_the_engine_says():
    tool = ToolSpec("t", "", {})
    image = Request("a", "m", (Message("user", (ImagePart("https://x/y.png"),)),))
    cards = {
        "plain": Card("", tools=False, modalities=frozenset(["text"]), context=100),
        "able": Card("", tools=True),
    }
    pool = Pool({"plain": Scripted("x"), "able": Scripted("x"), "none": Scripted("x")}, cards)
    assert pool.refuses("plain", asked()) == ""
    assert pool.refuses("plain", asked(tools=(tool,))) == "it calls no tools"
    assert pool.refuses("plain", image) == "it reads no images"
    assert "more than its 100" in pool.refuses("plain", asked(sampling=Sampling(max_tokens=99)))
    assert "more than its 100" in pool.refuses("plain", asked("word " * 100))
    for name in ("able", "none"):
        assert pool.refuses(name, image) == pool.refuses(name, asked("word " * 100, tools=(tool,))) == ""


def test_engines_tell_what_they_refuse_and_what_they_take(tmp_path: Path):
    models = {
        "free": "embedded:tiny",
        "priced": "http://127.0.0.1:9/v1?price=2,8&retries=0#m",
        "known": {"model": "http://127.0.0.1:9/v1#m", "price": [1, 3]},
        "dark": "http://127.0.0.1:9/v1#m",
    }
    pool = Pool.open(written(tmp_path, models))
    assert "no tools" in pool.refuses("free", asked(tools=(ToolSpec("t", "", {}),)))
    assert pool.price("free") == (0.0, 0.0) and pool.worst("free", asked()) == 0.0
    assert pool.price("priced") == pytest.approx((2e-6, 8e-6)) and pool.price("known") == (1e-6, 3e-6)
    assert pool.price("dark") is None and pool.worst("dark", asked()) is None
    limited = asked("a" * 100, sampling=Sampling(max_tokens=50))
    for name, least in (("priced", 100 * 2e-6 + 50 * 8e-6), ("known", 100 * 1e-6 + 50 * 3e-6)):
        worst = pool.worst(name, limited)
        assert worst is not None and least <= worst < 4 * least
        assert pool.worst(name, asked()) is None


def test_a_router_that_knows_none_of_the_names_is_refused(tmp_path: Path):
    folder = tmp_path / "learned"
    folder.mkdir()
    (folder / "router.json").write_text('{"format": 1, "models": ["small", "large"]}')
    tiny = "embedded:tiny"
    with pytest.raises(UserError, match=r"none of its models is known.*'a', 'b'.*knows 'large', 'small'"):
        Pool.open(written(tmp_path, {"a": tiny, "b": tiny}, router="learned"))
    for models in ({"a": tiny, "large": tiny}, {"a": {"model": tiny, "like": "small"}}):
        assert Pool.open(written(tmp_path, models, router="learned")).router == folder


def test_a_plan_tells_calls_members_prices_and_whom_the_router_knows(tmp_path: Path):
    (tmp_path / "learned").mkdir()
    (tmp_path / "learned" / "router.json").write_text('{"format": 1, "models": ["a", "c"]}')
    models = {
        "a": {"model": "http://127.0.0.1:9/v1#a", "price": [0.25, 2]},
        "b": "embedded:tiny",
        "c": "http://127.0.0.1:9/v1#c",
        "d": {"model": "moa:inner.json", "like": "a"},
    }
    (tmp_path / "inner.json").write_text(json.dumps({"models": {"x": "embedded:tiny"}}))
    pool = Pool.open(written(tmp_path, models, router="learned"))
    a, b, c, d, router = pool.plan(routed=True)
    assert a == "member a: http:a, $0.25 and $2 a million tokens in and out"
    assert b.endswith(", free") and c.endswith(", price unknown") and d.endswith(", a price of its members")
    assert router.endswith("learned: scores a, c, d; by their cards' priors: b")
    assert pool.plan(routed=False) == [a, b, c, d]
    for spec, calls in ((MoaOptions(layers=2), 5), (SmoaOptions(proposers="a,b"), 8), (SelfMoaOptions(samples=3), 4)):
        assert spec.calls(4) == calls
    assert RouteMoaOptions(layers=2).calls(2) == 5 and RouteOptions().calls(4) == 1


@pytest.mark.parametrize(
    ("spec", "priced"),
    [
        ("http://h:1/v1#m", "http://h:1/v1?price=0.25,2#m"),
        (" https://h/v1?rpm=6#m?x ", "https://h/v1?rpm=6&price=0.25,2#m?x"),
        ("openai:gpt-5-mini", "openai:gpt-5-mini?price=0.25,2"),
        ("pool:http://a/v1#m,openai:x?price=1,1", "pool:http://a/v1?price=0.25,2#m,openai:x?price=1,1"),
        ("cache:./c|http://h/v1#m", "cache:./c|http://h/v1?price=0.25,2#m"),
        ("http://h/v1?hourly=3#m", "http://h/v1?hourly=3#m"),
        ("pool:servers.txt", None),
        ("embedded:tiny", None),
        ("moa:pool.json?layers=2", None),
        ("cache:./c|embedded:tiny", None),
    ],
)
def test_a_card_s_price_goes_into_the_addresses_that_have_none(spec: str, priced: str | None):
    assert with_price(spec, (0.25, 2.0)) == priced


def test_a_price_is_written_without_letters_and_that_of_the_address_stands(tmp_path: Path):
    assert with_price("http://h/v1#m", (1e-7, 1e17)) == "http://h/v1?price=0.0000001,100000000000000000#m"
    models = {"a": {"model": "http://127.0.0.1:9/v1?price=2,8#m", "price": [1, 3]}}
    pool = Pool.open(written(tmp_path, models))
    assert pool.price("a") == pytest.approx((2e-6, 8e-6)) and pool.unbilled("a", Usage(1000, 1000)) == 0.0


def test_what_a_call_took_by_its_card_where_nothing_else_says_it(tmp_path: Path):
    models = {
        "said": {"model": "scripted:said.jsonl", "price": [1, 3]},
        "billed": {"model": "http://127.0.0.1:9/v1#m", "price": [1, 3]},
        "none": "simulated:latency=0",
    }
    (tmp_path / "said.jsonl").write_text('{"reply": "yes"}\n')
    pool, used = Pool.open(written(tmp_path, models)), Usage(1000, 100)
    assert pool.unbilled("said", used) == pytest.approx(1.3e-3)
    assert pool.unbilled("said", Usage(1000, 100, cost=0.1)) == pool.unbilled("said", Usage(9, 9, requests=0)) == 0.0
    assert pool.unbilled("billed", used) == pool.unbilled("none", used) == 0.0


# What is measured


def test_means_begin_plain_and_then_follow_what_is_new():
    observed = Observed()
    record = observed.of("m")
    assert (record.cost.value, record.p95, observed.health("m", 0.0)) == (None, None, "closed")
    for n in range(1, FEWEST + 1):
        observed.answered("m", float(n), n / 10, Usage(10 * n, n, cost=float(n)))
        assert (record.p95 is None) == (n < FEWEST)
        if n == 5:
            assert record.cost.value == pytest.approx(3.0) and record.prompt.value == pytest.approx(30.0)
    assert record.p95 == 1.9 and record.calls == FEWEST
    for n in range(200):
        observed.answered("m", float(n), 7.0, Usage(10, 1, cost=9.0))
    assert record.cost.value == pytest.approx(9.0, abs=1e-6) and len(record.seconds) == RING and record.p95 == 7.0


def test_the_95th_percentile_is_a_latency_that_was_seen():
    record = Observed().of("m")
    record.seconds.extend([1.0] * 95 + [9.0] * 5)
    assert record.p95 == 1.0
    record.seconds.append(9.0)
    assert record.p95 == 9.0


def test_a_breaker_opens_after_three_failures_in_a_row_and_lets_one_trial_through():
    observed = Observed()

    def fail(at: float) -> None:
        observed.failed("m", at, 0.5, seconds=3.0)

    fail(0.0)
    fail(1.0)
    observed.answered("m", 2.0, 0.1, Usage())
    fail(3.0)
    fail(4.0)
    assert observed.admit("m", 5.0)
    fail(5.0)
    assert IN_A_ROW == 3 and not observed.admit("m", 5.0) and not observed.admit("m", 5.0 + REST - 0.1)
    assert observed.admit("m", 5.0 + REST) and not observed.admit("m", 6.0 + REST)
    fail(7.0 + REST)
    assert not observed.admit("m", 5.0 + 2 * REST)
    assert observed.admit("m", 7.0 + 2 * REST)
    observed.answered("m", 8.0 + 2 * REST, 0.1, Usage())
    assert observed.admit("m", 8.0 + 2 * REST) and observed.admit("m", 8.0 + 2 * REST)
    record = observed.of("m")
    assert record.failures == 6 and record.calls == 8 and record.cost.value is not None
    assert observed.admit("other", 5.0)


def test_a_trial_that_nobody_ends_makes_room_for_another():
    observed = Observed()
    for at in range(3):
        observed.failed("m", float(at))
    assert observed.admit("m", 2.0 + REST) and not observed.admit("m", 3.0 + REST)
    assert observed.admit("m", 2.0 + 2 * REST)


def test_the_same_observations_give_the_same_measures():
    def made() -> Observed:
        observed = Observed()
        for n in range(300):
            if n * 7919 % 5:
                observed.answered("m", n, (n * 31 % 17) / 10, Usage(n, n % 9, cost=n / 7))
            else:
                observed.failed("m", n, n / 9)
        return observed

    assert made().of("m") == made().of("m")
