"""Money: presets and prices as data, what replies cost, bounds that hold, OpenRouter's own list, a shared meter."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import date
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import ClassVar

import pytest

from weaverant.engines import KINDS, open_engine
from weaverant.engines.http.address import parse
from weaverant.engines.http.attempt import Attempt
from weaverant.engines.http.endpoint import Endpoint
from weaverant.engines.http.money import prices as prices_module
from weaverant.engines.http.money.meter import Meter
from weaverant.engines.http.money.prices import Long, Price, listed, parse_price, tables
from weaverant.engines.http.presets import OTHER, PRESETS
from weaverant.errors import StepFailed, UserError
from weaverant.message import ImagePart, Message, OutputSchema, Reply, Request, Sampling, ToolSpec, Usage, user
from weaverant.protocols import CallContext
from weaverant.testing.server import MockServer

CTX = CallContext("0")
OUTPUT = OutputSchema("answer", {"type": "object", "properties": {"n": {"type": "integer"}}})


@pytest.fixture(scope="module")
def server() -> Iterator[MockServer]:
    with MockServer(price="1.25,10") as running:
        yield running


@pytest.fixture(autouse=True)
def _keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for preset in (*PRESETS.values(), OTHER):
        monkeypatch.setenv(preset.key_env, f"secret-of-{preset.name or 'others'}")


def attempts(spec: str, *requests: Request) -> list[tuple[Attempt, float | None]]:
    """One HTTP request each, and the bound that was given before."""

    async def main() -> list[tuple[Attempt, float | None]]:
        endpoint = Endpoint(parse(spec))
        try:
            return [(await endpoint.attempt(one, 20.0), endpoint.worst(one)) for one in requests]
        finally:
            await endpoint.close()

    return asyncio.run(main())


def sent(server: MockServer, preset: str, request: Request) -> dict:
    """The body that the server got, and its headers."""
    ((attempt, _),) = attempts(f"{server.scenario('echo')}?preset={preset}#m", request)
    assert isinstance(attempt.outcome, Reply), attempt.outcome
    return json.loads(attempt.outcome.text)


# Presets


def test_every_hosted_kind_has_a_preset_and_a_way_to_be_named():
    hosted = {name for name, kind in KINDS.items() if kind.example.partition(":")[0] == name and name in PRESETS}
    assert hosted == set(PRESETS) and len(hosted) == 8
    assert len({preset.base for preset in PRESETS.values()}) == len({p.key_env for p in PRESETS.values()}) == 8
    for name, preset in PRESETS.items():
        assert preset.name == name
        assert preset.base.startswith("https://") and not preset.base.endswith("/")
        assert preset.source.startswith("https://")
        assert preset.key_env.isupper() and preset.key_env.endswith("_API_KEY")
        assert KINDS[name].example == f"{name}:{preset.example}"
        assert 0 <= preset.batch < 1
        assert parse(f"{name}:{preset.example}?rpm=500") == parse(f"{preset.base}?rpm=500#{preset.example}")
        assert parse(f"{preset.base}/chat/completions#m").preset is preset
        if name in tables():
            assert listed(name, preset.example) is not None


def test_a_spec_opens_the_provider_with_its_price_and_options():
    endpoint = Endpoint(parse("openai:gpt-5-mini?rpm=500&timeout=20"))
    assert endpoint.address.base == "https://api.openai.com/v1"
    assert (endpoint.model, endpoint.address.options.rpm) == ("gpt-5-mini", 500)
    assert endpoint.price is not None and endpoint.price == tables_price("openai", "gpt-5-mini")
    assert open_engine("groq:openai/gpt-oss-20b").identity == "http:openai/gpt-oss-20b"


def tables_price(provider: str, model: str) -> Price:
    raw = json.loads(Path(prices_module.__file__).with_name("prices.json").read_text())[provider]
    entry = raw["models"][model]
    return Price(**entry, date=raw["date"])


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("openai:", "openai:gpt-5-mini"),
        ("openrouter:?rpm=1", "openrouter:"),
        ("http://api.openai.com/v1#m", "unencrypted"),
        ("http://localhost:1/v1?preset=opnai#m", "Did you mean 'openai'"),
    ],
)
def test_what_is_wrong_with_a_spec_is_said(spec: str, says: str):
    with pytest.raises(UserError, match=says):
        parse(spec)


EVERYTHING = Request("a", "m", (user("hi"),), Sampling(max_tokens=9), output=OUTPUT, seed=5)

DIALECTS = {
    "openai": ({"seed": 5, "max_completion_tokens": 9}, "json_schema"),
    "anthropic": ({"max_tokens": 9}, None),
    "google": ({"max_tokens": 9}, "json_schema"),
    "mistral": ({"random_seed": 5, "max_tokens": 9}, "json_schema"),
    "deepseek": ({"max_tokens": 9}, "json_object"),
    "together": ({"seed": 5, "max_tokens": 9}, "json_schema"),
    "groq": ({"seed": 5, "max_completion_tokens": 9}, "json_schema"),
    "openrouter": ({"seed": 5, "max_tokens": 9, "usage": {"include": True}}, "json_schema"),
}


@pytest.mark.parametrize("name", sorted(set(DIALECTS) - {"openrouter"}))
def test_a_provider_is_sent_what_it_takes_and_no_more(server: MockServer, name: str):
    got = sent(server, name, EVERYTHING)
    fields, form = DIALECTS[name]
    body = got["body"]
    assert body.pop("model") == "m"
    told = body.pop("messages")
    if form == "json_schema":
        assert len(told) == 1
    else:
        assert '"integer"' in told[0]["content"]
    assert body.pop("response_format", {"type": None})["type"] == form
    assert body == fields
    assert got["headers"]["authorization"] == f"Bearer secret-of-{name}"


def test_extra_has_the_last_word(server: MockServer):
    request = Request("a", "m", (user("hi"),), Sampling(extra={"seed": 1}), seed=5)
    assert sent(server, "anthropic", request)["body"]["seed"] == 1


@pytest.mark.parametrize(("name", "count"), [("together", 4), ("openai", True)])
def test_log_probabilities_are_asked_for_in_the_providers_way(server: MockServer, name: str, count: int):
    body = sent(server, name, Request("a", "m", (user("hi"),), Sampling(logprobs=True, top_logprobs=4)))["body"]
    assert body["logprobs"] == count
    assert body.get("top_logprobs") == (None if name == "together" else 4)


@pytest.mark.parametrize(
    ("name", "sampling"),
    [
        *((name, Sampling(n=2)) for name in ("anthropic", "deepseek", "groq")),
        *((name, Sampling(logprobs=True)) for name in ("anthropic", "google", "mistral", "groq")),
    ],
)
def test_what_a_provider_cannot_do_fails_before_it_is_asked(server: MockServer, name: str, sampling: Sampling):
    server.reset()
    ((attempt, _),) = attempts(f"{server.url}?preset={name}#m", Request("a", "m", (user("hi"),), sampling))
    assert not isinstance(attempt.outcome, Reply)
    failure, blame, again = attempt.outcome.failure, attempt.outcome.blame, attempt.outcome.again
    assert (failure.kind, blame, again) == ("request", "call", False)
    assert name in failure.text
    assert server.stats()["total"] == 0


# The table


CHEAP_REPLIES: set[tuple[str, str]] = set()
"""Models whose output costs less than their input."""


def test_every_packaged_price_is_sane():
    path = Path(prices_module.__file__).with_name("prices.json")
    assert path.stat().st_size < 150_000
    assert set(tables()) == set(PRESETS) - {"openrouter"}
    for provider, table in tables().items():
        assert date(2025, 1, 1) < date.fromisoformat(table.date) <= date.today()
        assert table.source.startswith("https://")
        assert len(table.models) >= 3
        for name, price in table.models.items():
            rates: list[Price | Long] = [price] if price.long is None else [price, price.long]
            for rate in rates:
                assert 0 < rate.input < 1000 and 0 < rate.output < 1000, (provider, name)
                assert rate.cached is None or 0 < rate.cached <= rate.input, (provider, name)
                assert rate.write is None or rate.input <= rate.write <= 2 * rate.input, (provider, name)
                assert rate.output >= rate.input or (provider, name) in CHEAP_REPLIES, (provider, name)
            if price.long is not None:
                assert price.long.input >= price.input and price.long.output >= price.output
                assert 50_000 < price.long.above < price.context
            assert price.most_output <= 2_000_000 and price.context <= 20_000_000
            found = listed(provider, name)
            assert found is not None and found.date == table.date


def test_importing_the_package_reads_no_price_and_no_preset():
    code = "import sys, weaverant, weaverant.engines; print([m for m in sys.modules if 'engines.http' in m])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_an_unknown_model_has_no_price_and_the_option_gives_one(server: MockServer):
    assert Endpoint(parse("openai:gpt-77")).price is None
    given = Endpoint(parse("openai:gpt-77?price=1,2,0.5")).price
    assert given == Price(1.0, 2.0, 0.5)
    known = Endpoint(parse("openai:gpt-5-mini?price=1,2")).price
    assert known is not None and (known.input, known.output, known.most_output) == (1.0, 2.0, 128_000)
    free = Endpoint(parse(f"{server.url}?price=0#m"))
    assert free.price is not None and free.price.free and free.worst(EVERYTHING) == 0.0


@pytest.mark.parametrize("text", ["x", "1", "-1,2", "1,2,3,4", "nan,1", "inf,1", "1,,2", ""])
def test_a_price_that_is_none_is_refused(text: str):
    with pytest.raises(UserError, match="IN,OUT"):
        parse_price(text)
    if text:
        with pytest.raises(UserError, match="IN,OUT"):
            Endpoint(parse(f"http://localhost:1/v1?price={text}#m"))


# What replies cost, and bounds


def exactly(price: Price, usage: Usage) -> Fraction:
    """The cost by the rules of the docstrings, in exact arithmetic."""
    rate: Price | Long = price
    if price.long is not None and usage.prompt_tokens > price.long.above:
        rate = price.long
    cached = min(usage.cached_tokens, usage.prompt_tokens)
    fresh = Fraction(rate.input)
    if price.stores and usage.prompt_tokens >= 1024 and rate.write is not None:
        fresh = max(fresh, Fraction(rate.write))
    total = (usage.prompt_tokens - cached) * fresh
    total += cached * Fraction(rate.input if rate.cached is None else rate.cached)
    total += usage.completion_tokens * Fraction(rate.output)
    return total / 1_000_000 + Fraction(price.each)


def some_price(chance: random.Random) -> Price:
    first = chance.uniform(0, 20)
    cached = chance.choice([None, first * chance.random(), first * 1.1])
    write = chance.choice([None, first * 1.25])
    long = Long(chance.randrange(1, 3000), first * 2, first * 9, cached, write) if chance.random() < 0.4 else None
    stores, each = chance.random() < 0.5, chance.choice([0.0, 0.01])
    return Price(first, chance.uniform(0, 80), cached, write=write, stores=stores, long=long, each=each)


def test_the_cost_of_a_reply_agrees_with_exact_arithmetic_and_never_passes_its_bound():
    chance = random.Random(3)
    for _ in range(3000):
        price = some_price(chance)
        prompt, completion = chance.randrange(6000), chance.randrange(6000)
        usage = Usage(prompt, completion, chance.choice([0, chance.randrange(prompt + 2)]))
        cost = exactly(price, usage)
        assert price.cost(usage) == pytest.approx(float(cost), rel=1e-12, abs=1e-15)
        most = price.most(prompt + chance.randrange(500), completion + chance.randrange(500))
        assert float(cost) <= most * (1 + 1e-12)


WORDS = ["a", "of", "naïve", "数学", "🙂🙂", "\n\n", '"quoted"', "0123456789", "antidisestablishmentarianism", "\x01"]


def some_request(chance: random.Random) -> Request:
    messages = tuple(
        Message(chance.choice(["system", "user", "assistant"]), " ".join(chance.choices(WORDS, k=chance.randrange(40))))
        for _ in range(chance.randrange(1, 5))
    )
    tools = (ToolSpec("t", "", {"type": "object", "properties": {}}),) if chance.random() < 0.3 else ()
    extra = chance.choice([{}, {}, {"max_tokens": 300}, {"top_k": 3}])
    sampling = Sampling(max_tokens=chance.randrange(1, 200), n=chance.choice([1, 1, 3]), extra=extra)
    return Request("a", "m", (*messages, user("and now?")), sampling, tools, seed=chance.randrange(2**31))


@pytest.mark.parametrize("tokens", [0, 5000])
def test_the_bound_holds_against_the_servers_own_bill(server: MockServer, tokens: int):
    """`tokens` makes the server say as much as it may."""
    chance = random.Random(11)
    requests = [some_request(chance) for _ in range(60)]
    server.control(tokens=tokens)
    server.reset()
    try:
        done = attempts(f"{server.url}?price=1.25,10#m", *requests)
    finally:
        server.control(tokens=0)
    bill = server.bill()
    assert len(bill) == len(requests)
    for (attempt, worst), item in zip(done, bill, strict=True):
        assert isinstance(attempt.outcome, Reply), attempt.outcome
        assert attempt.outcome.usage.cost == pytest.approx(item["dollars"], rel=1e-9)
        assert worst is not None and item["dollars"] <= worst


def test_the_servers_own_word_on_the_cost_counts():
    with MockServer("cost", price="1000,1000") as dear:
        ((attempt, _),) = attempts(f"{dear.url}?price=1,1#m", EVERYTHING)
        assert isinstance(attempt.outcome, Reply)
        assert attempt.outcome.usage.cost == pytest.approx(dear.bill()[0]["dollars"])


def test_why_a_request_has_no_bound_is_said_with_the_way_out():
    def why(spec: str, request: Request) -> str:
        endpoint = Endpoint(parse(spec))
        said = endpoint.unbounded(request)
        assert (endpoint.worst(request) is None) == bool(said)
        return said

    priced = "http://localhost:1/v1?price=1,2#m"
    bounded = Sampling(max_tokens=10)
    picture = (Message("user", (ImagePart("https://example.org/a.png"),)),)
    inline = (Message("user", (ImagePart("data:image/png;base64,AAAA"),)),)
    assert why(priced, Request("a", "m", (user("x"),), bounded)) == ""
    assert "max_tokens" in why(priced, Request("a", "m", (user("x"),)))
    assert "price=IN,OUT" in why("http://localhost:1/v1#m", Request("a", "m", (user("x"),), bounded))
    assert why("http://localhost:1/v1?price=0#m", Request("a", "m", picture)) == ""
    assert why("openai:gpt-5-mini", Request("a", "m", (user("x"),))) == ""
    assert "image=N" in why(priced, Request("a", "m", picture, bounded))
    assert "image=N" in why(priced, Request("a", "m", inline, bounded))
    assert why(f"{priced[:-2]}&image=2000#m", Request("a", "m", picture, bounded)) == ""
    for extra in ({"plugins": [{"id": "web"}]}, {"models": ["other"]}, {"service_tier": "priority"}):
        assert next(iter(extra)) in why(priced, Request("a", "m", (user("x"),), Sampling(max_tokens=10, extra=extra)))
    assert why(priced, Request("a", "m", (user("x"),), Sampling(extra={"max_tokens": "many"}))) != ""


def test_an_image_counts_for_what_the_option_says():
    def worst(n: int, image: int) -> float:
        request = Request("a", "m", (Message("user", (ImagePart("https://e.org/a"),) * n),), Sampling(max_tokens=10))
        found = Endpoint(parse(f"http://localhost:1/v1?price=1,2&image={image}#m")).worst(request)
        assert found is not None
        return found

    assert worst(3, 2000) - worst(3, 1000) == pytest.approx(3 * 1000 / 1e6)


# OpenRouter


ENDPOINTS = [
    {
        "tag": "cheap/fp8",
        "context_length": 1000,
        "max_completion_tokens": 100,
        "pricing": {"prompt": "0.000001", "completion": "0.000002", "input_cache_read": "0.0000001"},
        "latency_last_30m": {"p50": 250.0},
    },
    {
        "tag": "dear",
        "context_length": 4000,
        "max_completion_tokens": 400,
        "pricing": {
            "prompt": "0.000003", "completion": "0.000001", "request": "0.01", "discount": 0.5,
            "overrides": [{"min_prompt_tokens": 500, "completion": "0.000005"}],
        },
        "latency_last_30m": None,
    },
]  # fmt: skip

LIST = [
    {"id": "good/model", "context_length": 4000, "pricing": {"prompt": "0.000001", "completion": "0.000002"},
     "top_provider": {"max_completion_tokens": 100}},
    {"id": "open/auto", "context_length": 9, "pricing": {"prompt": "-1", "completion": "-1"}, "top_provider": {}},
]  # fmt: skip


class Router(BaseHTTPRequestHandler):
    """What OpenRouter's routes answer."""

    asked: ClassVar[list[tuple[str, dict]]] = []

    def do_GET(self) -> None:
        answers = {
            "/api/v1/models": {"data": LIST},
            "/api/v1/models/good/model/endpoints": {"data": {"id": "good/model", "endpoints": ENDPOINTS}},
            "/api/v1/models/open/auto/endpoints": {"data": {"endpoints": [{"pricing": LIST[1]["pricing"]}]}},
        }
        self.answer(answers.get(self.path))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        Router.asked.append((self.path, body))
        usage = {"prompt_tokens": 3, "completion_tokens": 4, "cost": 0.125}
        if body["model"] == "thinks":
            usage = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 20}
        self.answer({"choices": [{"message": {"content": "hello"}, "finish_reason": "stop"}], "usage": usage})

    def answer(self, found: object) -> None:
        data = json.dumps(found if found is not None else {"error": {"message": "not found"}}).encode()
        self.send_response(200 if found is not None else 404)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def router() -> Iterator[str]:
    Router.asked.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Router) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"http://127.0.0.1:{running.server_address[1]}/api/v1?preset=openrouter"
        running.shutdown()
        thread.join()


def test_openrouter_tells_its_prices_and_the_dearest_provider_bounds_the_cost(router: str):
    endpoint = Endpoint(parse(f"{router}#good/model:nitro"))
    price = endpoint.price
    assert price is not None
    assert (price.input, price.output, price.cached, price.each) == (3.0, 5.0, 3.0, 0.01)
    assert (price.most_output, price.context) == (400, 4000)
    assert "2 providers" in endpoint.tariff.note and "0.25 s" in endpoint.tariff.note

    def worst(**provider: object) -> float:
        """In full requests of the dear provider, which alone charges for a request."""
        extra = {"provider": provider} if provider else {}
        found = endpoint.worst(Request("a", "m", (user("x" * 50),), Sampling(max_tokens=50, extra=extra)))
        assert found is not None
        return found / 0.01

    for free in ({}, {"only": ["nobody"]}, {"order": ["cheap"]}, {"only": ["cheap", "dear"]}):
        assert 1 < worst(**free) < 1.5
    for pinned in ({"only": ["cheap"]}, {"only": ["Cheap/fp8"]}, {"order": ["cheap"], "allow_fallbacks": False}):
        assert 0 < worst(**pinned) < 0.5


def test_openrouter_is_asked_for_the_cost_and_its_word_counts(router: str):
    request = Request("a", "m", (user("hi"),), Sampling(max_tokens=9), output=OUTPUT, seed=5)
    ((attempt, _),) = attempts(f"{router}#good/model", request)
    assert isinstance(attempt.outcome, Reply) and attempt.outcome.usage.cost == 0.125
    ((path, body),) = Router.asked
    assert path == "/api/v1/chat/completions"
    fields, form = DIALECTS["openrouter"]
    assert body.pop("response_format")["type"] == form
    assert {name: body[name] for name in body if name not in ("model", "messages")} == fields


@pytest.mark.parametrize("model", ["open/auto", "no/such"])
def test_openrouter_without_a_fixed_price_leaves_it_unknown_and_says_so(router: str, model: str):
    endpoint = Endpoint(parse(f"{router}#{model}"))
    assert endpoint.price is None
    assert "unknown" in endpoint.tariff.note
    assert "price=IN,OUT" in endpoint.unbounded(EVERYTHING)
    assert Endpoint(parse(f"{router}&price=1,2#{model}")).price == Price(1.0, 2.0)


def test_reasoning_that_only_the_total_tells_is_paid_for(router: str):
    """Google's usage counts it in nothing else."""
    ((attempt, _),) = attempts(f"{router.replace('openrouter', 'google')}&price=1,10#thinks", EVERYTHING)
    assert isinstance(attempt.outcome, Reply)
    assert attempt.outcome.usage.completion_tokens == 17
    assert attempt.outcome.usage.cost == pytest.approx((3 * 1 + 17 * 10) / 1e6)


# The meter


def shares(intervals: list[tuple[Fraction, Fraction]]) -> list[Fraction]:
    """What each interval gets of every instant, split equally: the integral, piece by piece."""
    points = sorted({point for interval in intervals for point in interval})
    got = [Fraction(0)] * len(intervals)
    for start, end in pairwise(points):
        there = [n for n, (began, ended) in enumerate(intervals) if began <= start and end <= ended]
        for n in there:
            got[n] += (end - start) / len(there)
    return got


def test_calls_share_the_hour_and_together_pay_for_the_time_that_was_used():
    chance = random.Random(5)
    for _ in range(30):
        intervals = []
        for _ in range(40):
            begin = Fraction(chance.randrange(2000), 8)
            intervals.append((begin, begin + Fraction(chance.randrange(0, 400), 8)))
        events = [(when, kind, n) for n, pair in enumerate(intervals) for kind, when in enumerate(pair)]
        meter = Meter(3600.0)
        began: dict[int, float] = {}
        paid = [0.0] * len(intervals)
        for when, kind, n in sorted(events):
            if kind == 0:
                began[n] = meter.begin(float(when) + 1e6)
            else:
                paid[n] = meter.end(began[n], float(when) + 1e6)
        expected = shares(intervals)
        assert paid == pytest.approx([float(share) for share in expected], abs=1e-6)
        points = sorted({point for interval in intervals for point in interval})
        busy = sum(
            end - start
            for start, end in pairwise(points)
            if any(began <= start and end <= ended for began, ended in intervals)
        )
        assert sum(paid) == pytest.approx(float(busy), abs=1e-6)
        assert all(
            cost <= float(ended - began) + 1e-9  # a dollar a second
            for cost, (began, ended) in zip(paid, intervals, strict=True)
        )


# The command


def command(*arguments: str, code: int = 0) -> str:
    """What it prints: on standard error where it fails."""
    run = [sys.executable, "-m", "weaverant.cli", "models", *arguments]
    done = subprocess.run(run, capture_output=True, text=True, timeout=60)
    assert done.returncode == code, done.stderr
    assert "secret-of" not in done.stdout + done.stderr
    return done.stdout if code == 0 else done.stderr


def test_models_lists_the_providers(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("GROQ_API_KEY")
    told = {row["provider"]: row for row in json.loads(command("--json"))["providers"]}
    assert list(told) == list(PRESETS)
    assert told["groq"]["set"] is False and told["openai"]["set"] is True
    assert told["openai"]["base"] == "https://api.openai.com/v1"
    assert told["openai"]["models"] == len(tables()["openai"].models)
    shown = command()
    assert "OPENAI_API_KEY" in shown and "not set" in shown and told["openai"]["prices of"] in shown


def test_models_lists_a_providers_prices():
    told = {row["model"]: row for row in json.loads(command("openai", "--json"))["models"]}
    assert told.keys() == tables()["openai"].models.keys()
    price = tables()["openai"].models["gpt-5-mini"]
    row = told["gpt-5-mini"]
    assert (row["input"], row["output"], row["most output"]) == (price.input, price.output, price.most_output)
    assert row["date"] == tables()["openai"].date
    assert "gpt-5-mini" in command("openai")


def test_models_lists_what_a_server_has(server: MockServer):
    assert json.loads(command(server.url, "--json"))["models"] == [{"model": "mock"}]
    assert [row["model"] for row in json.loads(command(server.scenario("two-models"), "--json"))["models"]] == [
        "mock",
        "other",
    ]
    assert f"{server.url}#mock" in command(server.url)


def test_models_shows_one_model_of_a_provider_or_of_whoever_has_it():
    price = tables()["openai"].models["gpt-5-mini"]
    (row,) = json.loads(command("openai:gpt-5-mini", "--json"))["models"]
    assert (row["model"], row["input"], row["output"]) == ("gpt-5-mini", price.input, price.output)
    assert "--model openai:gpt-5-mini" in command("openai:gpt-5-mini?rpm=5")
    (found,) = json.loads(command("gpt-5-mini", "--json"))["models"]
    assert found == {"provider": "openai", **row}
    assert "did you mean 'gpt-5-mini'" in command("openai:gpt-5-minni", code=2)
    shared = [name for name in tables()["groq"].models if name in tables()["together"].models]
    rows = json.loads(command(shared[0], "--json"))["models"]
    assert {each["provider"] for each in rows} == {name for name in tables() if shared[0] in tables()[name].models}


def test_models_tells_a_server_whose_address_lacks_its_end(server: MockServer):
    assert f"often ends in /v1: weaverant models {server.root}/v1" in command(server.root, code=1)
    assert "often ends" not in command(server.url + "/v1", code=1)
    assert "\n1 model; use one" in command(server.url) and "\n2 models; " in command(server.scenario("two-models"))


def test_models_names_what_is_near_to_a_mistake():
    assert "did you mean 'groq'" in command("grok", code=2)
    assert "http" in command("sk-abcdefghijklmnop", code=2)
    assert "list of models" in command("http://127.0.0.1:9/v1", code=1)


def test_a_failure_names_no_key(server: MockServer):
    ((attempt, _),) = attempts(f"{server.scenario('leak')}?preset=openai#m", EVERYTHING)
    assert not isinstance(attempt.outcome, Reply)
    failure = attempt.outcome.failure
    assert isinstance(failure, StepFailed) and "[key]" in failure.text and "secret-of" not in failure.text
