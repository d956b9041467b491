"""The mock server and the mock proxy themselves, driven by urllib and bare sockets: whoever tests with them must be
able to believe what they count, bill, limit and break."""

from __future__ import annotations

import asyncio
import base64
import gzip
import hashlib
import http.client
import json
import math
import random
import re
import socket
import ssl
import statistics
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import HTTPSHandler, ProxyHandler, Request, build_opener

import jsonschema
import pytest

from weaverant.testing.proxy import MockProxy
from weaverant.testing.scenarios import SCENARIOS
from weaverant.testing.server import MockServer
from weaverant.testing.settings import Settings

PLAIN = build_opener(ProxyHandler({}))
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 3}},
    "required": ["name", "age"],
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA}}


class Got:
    """An answer, errors included."""

    def __init__(self, status: int, headers: Any, body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def text(self) -> str:
        return self.json["choices"][0]["message"]["content"]


def body(text: str = "hello", **fields: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": text}], **fields}


def post(url: str, sent: dict[str, Any] | None = None, opener: Any = PLAIN, **headers: str) -> Got:
    request = Request(f"{url}/chat/completions", json.dumps(sent or body()).encode(), headers)
    try:
        with opener.open(request, timeout=30) as answer:
            return Got(answer.status, answer.headers, answer.read())
    except HTTPError as error:
        with error:
            return Got(error.code, error.headers, error.read())


def together(calls: list[Callable[[], Got]]) -> list[Got]:
    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(lambda call: call(), calls))


def many(url: str, count: int, **fields: Any) -> list[Got]:
    return together([lambda n=n: post(url, body(f"call {n}", **fields)) for n in range(count)])


def soon(true: Callable[[], bool], seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.02)
    return true()


@contextmanager
def left_alone(server: MockServer, sent: dict[str, Any], scenario: str = "") -> Iterator[socket.socket]:
    """A bare socket on which one call was sent."""
    data = json.dumps(sent).encode()
    prefix = f"/scenario/{scenario}" if scenario else ""
    head = f"POST {prefix}/v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as bare:
        bare.sendall(head.encode() + data)
        yield bare


def read_to_end(bare: socket.socket, into: bytearray) -> None:
    while data := bare.recv(65_536):
        into += data


# What it says


def test_a_reply_is_a_function_of_the_body_alone(server: MockServer):
    first, again, other = (post(server.url, body(seed=seed)) for seed in (1, 1, 2))
    assert first.body == again.body != other.body
    said = hashlib.blake2b(json.dumps(body(seed=1)).encode(), digest_size=16).hexdigest()
    assert first.text == f"[mock] {said}"
    with MockServer(latency=0.01, slots=1, skew=1.0) as elsewhere:
        assert post(elsewhere.url, body(seed=1)).body == first.body
    assert first.json["usage"] == {
        "prompt_tokens": len(json.dumps(body(seed=1))) // 4,
        "completion_tokens": 2,
        "total_tokens": len(json.dumps(body(seed=1))) // 4 + 2,
    }


def test_tokens_as_told_and_never_more_than_allowed():
    with MockServer(tokens=50) as server:
        free, bound, tight = (post(server.url, body(**f)).json for f in ({}, {"max_tokens": 50}, {"max_tokens": 7}))
    assert [one["usage"]["completion_tokens"] for one in (free, bound, tight)] == [50, 50, 7]
    assert [one["choices"][0]["finish_reason"] for one in (free, bound, tight)] == ["stop", "stop", "length"]


def test_a_connection_serves_many_calls_also_with_a_body_in_chunks(server: MockServer):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    texts = set()
    data = json.dumps(body("\u00e9" * 50_000)).encode()
    for sent in (data, iter([data[:7], data[7:]]), data):
        connection.request("POST", "/v1/chat/completions", sent, encode_chunked=not isinstance(sent, bytes))
        answer = connection.getresponse()
        texts.add(answer.read())
    connection.close()
    stats = server.stats()
    assert len(texts) == 1 and (stats["total"], stats["connections"], stats["distinct"]) == (3, 1, 1)
    assert stats["most_repeated"] == 3 and stats["statuses"] == {"200": 3}


def test_what_cannot_be_served_gets_an_error(server: MockServer):
    request = Request(f"{server.url}/chat/completions", b"[1, 2]")
    with pytest.raises(HTTPError) as caught:
        PLAIN.open(request, timeout=10)
    with caught.value as refused:
        assert refused.code == 400 and "no JSON object" in json.load(refused)["error"]["message"]
    assert post(f"{server.root}/nowhere").status == 404 and post(server.scenario("no-such")).status == 400
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as bare:
        bare.sendall(b"what is this\r\n\r\n")
        assert bare.recv(100).startswith(b"HTTP/1.1 400")
    for wrong in ({"scenario": "no-such"}, {"price": "1"}, {"latency": -1}):
        with pytest.raises(ValueError, match=r"no scenario|price|0 or more"):
            MockServer(**wrong)
    with pytest.raises(TypeError, match="latenzy"):
        MockServer(latenzy=1)


# Places, queues and control


def test_slots_bound_what_is_worked_on_and_the_others_queue():
    with MockServer(latency=0.25, slots=4) as server:
        began = time.monotonic()
        got = many(server.url, 20)
        took = time.monotonic() - began
        stats = server.stats()
    assert [one.status for one in got] == [200] * 20
    assert 5 * 0.25 <= took < 5 * 0.25 + 3, "20 calls in 4 places are 5 rounds"
    assert stats["in_flight_max"] > 4 and stats["in_flight"] == stats["running"] == stats["waiting"] == 0
    assert stats["busy"] == pytest.approx(20 * 0.25, rel=0.3) and stats["busy"] >= 20 * 0.25


def test_reject_refuses_what_finds_no_place():
    with MockServer(latency=1.0, slots=3, reject=True) as server:
        got = many(server.url, 12)
        stats = server.stats()
    assert sorted(one.status for one in got) == [200] * 3 + [429] * 9
    assert not any("Retry-After" in one.headers for one in got), "it cannot know"
    assert stats["statuses"] == {"200": 3, "429": 9} and stats["answered"] == 3 and stats["in_flight"] == 0


def test_control_changes_a_running_server_and_a_restart_keeps_it():
    with MockServer(latency=60.0, slots=2) as server, ThreadPoolExecutor(8) as pool:
        stuck = [pool.submit(post, server.url, body(f"stuck {n}")) for n in range(2)]
        assert soon(lambda: server.stats()["running"] == 2)
        waiting = [pool.submit(post, server.url, body(f"waits {n}")) for n in range(3)]
        assert soon(lambda: server.stats()["in_flight"] == 5)
        assert (server.stats()["running"], server.stats()["waiting"]) == (2, 3)
        server.control(latency=0.0, slots=4)
        assert [one.result(30).status for one in waiting] == [200] * 3, "two more places, and no more latency"
        assert not any(one.done() for one in stuck), "what has begun goes on as it was"
        server.control(scenario="fault-503")
        assert post(server.url).status == 503
        with pytest.raises(HTTPError, match="400") as refused:
            server.control(colour="red")
        refused.value.close()
        port = server.port
        server.stop()
        for one in stuck:
            with pytest.raises((URLError, http.client.HTTPException, ConnectionError)):
                one.result(30)
        with pytest.raises(URLError):
            server.stats()
        server.start()
        assert server.port == port and post(server.url).status == 503 and server.stats()["total"] == 1


def test_skew_is_lognormal_and_a_function_of_the_body():
    async def seconds(server: MockServer, number: int) -> float:
        data = json.dumps(body(f"call {number}")).encode()
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        began = time.monotonic()
        writer.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(data), data)
        )
        await reader.readuntil(b"\r\n\r\n")
        took = time.monotonic() - began
        writer.close()
        return took

    async def all_of_them(server: MockServer) -> list[float]:
        return await asyncio.gather(*(seconds(server, number) for number in range(400)))

    with MockServer(latency=0.3, skew=0.5) as server:
        first, again = (asyncio.run(all_of_them(server)) for _ in range(2))
    logs = [math.log(max(took, 1e-3) / 0.3) for took in first]
    assert abs(statistics.median(logs)) < 0.25 and 0.35 < statistics.stdev(logs) < 0.65
    assert statistics.correlation(first, again) > 0.9


# Rate limits


@pytest.mark.parametrize(("limits", "sent"), [({"rpm": 7}, {}), ({"tpm": 7 * 130 + 60}, {"max_tokens": 100})])
def test_no_window_of_a_minute_holds_more_than_the_limit(limits: dict[str, int], sent: dict[str, Any]):
    text = "x" * (120 - len(json.dumps(body("", **sent))))  # with its JSON around it 120 bytes: 30 tokens
    minute, admitted, refused = 1.0, [], 0
    with MockServer(minute=minute, **limits) as server:
        end = time.monotonic() + 3 * minute
        while time.monotonic() < end:
            before = time.monotonic()
            got = post(server.url, body(text, **sent))
            if got.status == 200:
                admitted.append((before, time.monotonic()))
            else:
                refused += 1
                assert got.status == 429 and got.json["error"]["code"] == "rate_limit_exceeded"
                wait = int(got.headers["retry-after-ms"]) / 1e3
                assert 0 < wait <= minute and int(got.headers["Retry-After"]) == math.ceil(wait)
                time.sleep(wait + 0.01 if refused % 2 else random.random() * wait)
        stats = server.stats()
    for first, eighth in zip(admitted, admitted[7:], strict=False):
        assert eighth[1] - first[0] >= minute, "eight calls in less than a minute"
    assert len(admitted) >= 14, "whoever waits as told is admitted"
    assert stats["statuses"] == {"200": len(admitted), "429": refused}
    assert stats["tokens"] == len(admitted) * (130 if sent else 30)


def test_the_headers_of_a_limit_tell_what_is_left():
    with MockServer(rpm=3, tpm=1_000, minute=90.0) as server:
        first = post(server.url, body(max_tokens=100)).headers
        cost = len(json.dumps(body(max_tokens=100))) // 4 + 100
        assert (first["x-ratelimit-limit-requests"], first["x-ratelimit-remaining-requests"]) == ("3", "2")
        assert (first["x-ratelimit-limit-tokens"], first["x-ratelimit-remaining-tokens"]) == ("1000", str(1_000 - cost))
        assert first["x-ratelimit-reset-requests"].startswith(("1m30s", "1m29."))
        large = post(server.url, body(max_tokens=5_000))
        assert large.status == 429 and "Retry-After" not in large.headers, "it would never fit"
        assert [post(server.url, body(seed=n)).status for n in range(3)] == [200, 200, 429]
        server.control(rpm=0, tpm=0)
        free = post(server.url)
        assert free.status == 200 and not [name for name in free.headers if name.startswith("x-ratelimit")]


# The bill


def test_the_bill_is_the_price_of_all_work_done():
    with MockServer(price="0.5,2") as server:
        usages = [post(server.url, body(f"call {n}")).json["usage"] for n in range(10)]
        post(server.scenario("fault-500"))
        post(server.scenario("malformed"))
        bill, billed = server.bill(), server.stats()["billed"]
        server.reset()
        assert server.bill() == [] and server.stats()["billed"] == 0
    dollars = [(0.5 * usage["prompt_tokens"] + 2 * usage["completion_tokens"]) / 1e6 for usage in usages]
    assert [item["dollars"] for item in bill[:10]] == pytest.approx(dollars, rel=1e-12)
    assert len(bill) == 11, "a garbled reply was worked on, an error was not"
    assert billed == pytest.approx(sum(item["dollars"] for item in bill), rel=1e-12)
    assert bill[3]["digest"] == hashlib.blake2b(json.dumps(body("call 3")).encode(), digest_size=16).hexdigest()
    assert (bill[3]["model"], bill[3]["prompt_tokens"]) == ("m", usages[3]["prompt_tokens"])


def test_cached_tokens_have_a_price_of_their_own_and_a_reply_may_tell_its_cost():
    with MockServer(price="3,5,1") as server:
        usage = post(server.scenario("reasoning")).json["usage"]
        told = post(server.scenario("cost"), body(seed=1)).json["usage"]
        bill = server.bill()
    assert usage["prompt_tokens_details"] == {"cached_tokens": 2}
    assert bill[0]["dollars"] == pytest.approx((3 * (usage["prompt_tokens"] - 2) + 2 + 5 * 2) / 1e6)
    assert bill[1]["dollars"] == pytest.approx((3 * told["prompt_tokens"] + 5 * 2) / 1e6) == told["cost"]


def test_abandoned_calls_are_billed_but_not_those_that_still_waited():
    with MockServer(latency=0.6, slots=2, price="1,1") as server:
        with left_alone(server, body("a")), left_alone(server, body("b")), left_alone(server, body("c")):
            assert soon(lambda: server.stats()["running"] == 2 and server.stats()["waiting"] == 1)
        assert soon(lambda: server.stats()["abandoned"] == 3)
        stats = server.stats()
        assert (stats["running"], stats["waiting"], stats["in_flight"], stats["billed"]) == (2, 0, 0, 0)
        assert soon(lambda: server.stats()["running"] == 0)
        assert len(server.bill()) == 2 and server.stats()["answered"] == 0


def test_without_a_price_abandoned_work_stops():
    with MockServer(latency=60.0, slots=1) as server:
        with left_alone(server, body("a")), left_alone(server, body("b")):
            assert soon(lambda: server.stats()["in_flight"] == 2)
        assert soon(lambda: server.stats()["running"] == server.stats()["waiting"] == 0)
        assert server.stats()["abandoned"] == 2 and server.bill() == []


# Metrics


@pytest.mark.parametrize(
    ("kind", "running", "waiting"),
    [
        ("vllm", 'vllm:num_requests_running{model_name="mock"}', 'vllm:num_requests_waiting{model_name="mock"}'),
        ("sglang", 'sglang:num_running_reqs{model_name="mock"}', 'sglang:num_queue_reqs{model_name="mock"}'),
        ("llamacpp", "llamacpp:requests_processing", "llamacpp:requests_deferred"),
    ],
)
def test_metrics_tell_the_load(kind: str, running: str, waiting: str):
    with MockServer("hang", slots=2, metrics=kind) as server:
        with left_alone(server, body("a")), left_alone(server, body("b")), left_alone(server, body("c")):
            assert soon(lambda: server.stats()["waiting"] == 1)
            with PLAIN.open(f"{server.root}/metrics", timeout=10) as answer:
                assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
                lines = answer.read().decode().splitlines()
        values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        assert values[running] == "2.0" and values[waiting] == "1.0" and len(values) == 3
        assert sum(line.startswith("# TYPE") and line.endswith("gauge") for line in lines) == 3
        server.control(metrics="")
        with pytest.raises(HTTPError, match="404") as none:
            PLAIN.open(f"{server.root}/metrics", timeout=10)
        none.value.close()


# Streams


def events(data: bytes) -> list[Any]:
    """A stream's events; `[DONE]` must come last and is left out."""
    *found, done, rest = data.decode().replace("\r\n", "\n").split("\n\n")
    assert done == "data: [DONE]" and rest == ""
    return [json.loads(event.removeprefix("data: ")) for event in found if not event.startswith(":")]


def test_a_stream_is_the_same_reply_in_openais_pieces(server: MockServer):
    whole = post(server.url, body(stream=True, stream_options={"include_usage": True}))
    assert whole.headers["Content-Type"].startswith("text/event-stream") and whole.status == 200
    *pieces, usage = events(whole.body)
    assert {piece["object"] for piece in pieces} == {"chat.completion.chunk"}
    assert len({(piece["id"], piece["model"]) for piece in pieces}) == 1
    assert all(piece["usage"] is None for piece in pieces) and usage["choices"] == []
    deltas = [piece["choices"][0]["delta"] for piece in pieces]
    assert deltas[0] == {"role": "assistant", "content": ""} and deltas[-1] == {}
    assert [piece["choices"][0]["finish_reason"] for piece in pieces] == [None] * (len(pieces) - 1) + ["stop"]
    text = "".join(delta.get("content", "") for delta in deltas)
    assert text.startswith("[mock] ") and len(deltas) == 4
    assert usage["usage"]["completion_tokens"] == len(text.split())
    assert all("usage" not in piece for piece in events(post(server.url, body(stream=True)).body))
    assert server.stats()["streams"] == server.stats()["answered"] == 2


def test_a_stream_of_several_choices_a_tool_call_and_thoughts(server: MockServer):
    sent = body(stream=True, n=3, logprobs=True, top_logprobs=2, return_token_ids=True)
    texts, ids, marks = ["", "", ""], [0, 0, 0], [0, 0, 0]
    for piece in events(post(server.scenario("logprobs"), sent).body):
        choice = piece["choices"][0]
        texts[choice["index"]] += choice["delta"].get("content", "")
        ids[choice["index"]] += len(choice.get("token_ids", []))
        marks[choice["index"]] += len((choice["logprobs"] or {}).get("content", []))
    assert len(set(texts)) == 3 and ids == marks == [2, 4, 4]
    tools = [{"type": "function", "function": {"name": "add", "parameters": SCHEMA}}]
    parts = [
        part
        for piece in events(post(server.scenario("tool"), body(stream=True, tools=tools)).body)
        for part in piece["choices"][0]["delta"].get("tool_calls", [])
    ]
    assert parts[0] == {"index": 0, "id": "call_a", "type": "function", "function": {"name": "add", "arguments": ""}}
    jsonschema.validate(json.loads("".join(part["function"]["arguments"] for part in parts)), SCHEMA)
    thought = events(post(server.scenario("reasoning"), body(stream=True)).body)
    said = "".join(piece["choices"][0]["delta"].get("reasoning_content", "") for piece in thought)
    assert said == "let me think"


def test_a_stream_takes_its_latency_piece_by_piece():
    with MockServer(latency=1.0) as server, left_alone(server, body(stream=True)) as bare:
        came: list[float] = []
        data = b""
        while not data.endswith(b"0\r\n\r\n"):
            data += bare.recv(65_536)
            came.append(time.monotonic())
    assert len(came) >= 4 and 0.5 < came[-1] - came[0] < 5


def test_streams_that_break_fall_silent_err_or_come_in_odd_pieces(server: MockServer):
    with pytest.raises(http.client.IncompleteRead) as cut:
        post(server.scenario("stream-cut"), body(stream=True))
    assert cut.value.partial.startswith(b"data: {") and not cut.value.partial.endswith(b"\n\n")
    with left_alone(server, body(stream=True), "stream-stall") as bare:
        bare.settimeout(1.0)
        into = bytearray()
        with pytest.raises(TimeoutError):
            read_to_end(bare, into)
        assert into.count(b"data: {") == 2
    broken = events(post(server.scenario("stream-error"), body(stream=True)).body)
    assert "choices" in broken[0] and broken[-1]["error"]["code"] == 500
    odd = post(server.scenario("chunked"), body(stream=True)).body
    assert b"\r\n\r\n: " in odd and events(odd) == events(post(server.url, body(stream=True)).body)
    assert post(server.scenario("stream-cut")).status == 200, "whoever asks for no stream gets none"
    assert soon(lambda: server.stats()["in_flight"] == 0)
    stats = server.stats()
    assert (stats["answered"], stats["abandoned"]) == (4, 1), "of the six, one was cut and one abandoned"


# Scenarios


def test_schemas_kept_fenced_broken_and_refused(server: MockServer):
    right = post(server.url, body(response_format=FORMAT)).text
    jsonschema.validate(json.loads(right), SCHEMA)
    fenced = post(server.scenario("fenced"), body(response_format=FORMAT)).text
    assert not fenced.startswith("```")
    jsonschema.validate(json.loads(fenced.split("```json\n")[1].split("\n```")[0]), SCHEMA)
    told = f'Answer with JSON like {{"this"}} that fits:\n{json.dumps(SCHEMA)}\nNothing else.'
    assert post(server.scenario("no-schema"), body(told, response_format=FORMAT)).status == 400
    jsonschema.validate(json.loads(post(server.scenario("no-schema"), body(told)).text), SCHEMA)
    for schema in (SCHEMA, {"type": "string"}, {"type": "object"}, {"type": "array"}, {"enum": ["a", None]}, {"anyOf": [SCHEMA, {"type": "number"}]}):  # fmt: skip
        wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
        wrong = json.loads(post(server.scenario("wrong-schema"), body(response_format=wanted)).text)
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, schema)


def test_logprobs_token_ids_and_choices_as_asked(server: MockServer):
    sent = body(n=2, logprobs=True, top_logprobs=3, return_token_ids=True)
    answer = post(server.scenario("logprobs"), sent).json
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]
    for choice in answer["choices"]:
        tokens = choice["logprobs"]["content"]
        assert "".join(token["token"] for token in tokens) == choice["message"]["content"]
        assert len(choice["token_ids"]) == len(tokens)
        for token in tokens:
            top = [ranked["logprob"] for ranked in token["top_logprobs"]]
            assert top == sorted(top, reverse=True) and len(top) == 3 and top[0] == token["logprob"] <= 0
    assert answer["usage"]["completion_tokens"] == sum(len(choice["token_ids"]) for choice in answer["choices"])
    plain = post(server.scenario("logprobs"), body()).json["choices"]
    assert len(plain) == 1 and plain[0]["logprobs"] is None and "token_ids" not in plain[0]


def test_a_reply_of_fifty_megabytes_and_one_without_end(server: MockServer):
    huge = post(server.scenario("huge"), body())
    assert len(huge.body) > 50_000_000 and huge.text == post(server.url, body()).text
    with left_alone(server, body(), "endless") as bare:
        got = 0
        while got < 60_000_000:
            got += len(bare.recv(1 << 20))
    assert soon(lambda: server.stats()["in_flight"] == 0) and server.stats()["abandoned"] == 1


def test_broken_connections_are_the_servers_doing(server: MockServer):
    with pytest.raises(http.client.IncompleteRead):
        post(server.scenario("drop-mid-body"))
    for scenario, of_others, seconds in (("reset", TimeoutError, 0.3), ("reset-storm", ConnectionResetError, 10)):
        with left_alone(server, body(scenario), "hang") as other:
            assert soon(lambda: server.stats()["in_flight"] == 1)
            with left_alone(server, body(), scenario) as bare, pytest.raises(ConnectionResetError):
                bare.recv(100)
            other.settimeout(seconds)
            with pytest.raises(of_others):
                other.recv(100)
        assert soon(lambda: server.stats()["in_flight"] == 0)
    stats = server.stats()
    assert (stats["total"], stats["answered"], stats["abandoned"]) == (5, 0, 1), "only the first hanging call was left"


def test_a_scenario_may_end_after_some_times_and_is_chosen_in_four_ways(server: MockServer):
    assert [post(server.scenario("fault-500*2")).status for _ in range(4)] == [500, 500, 200, 200]
    assert post(server.scenario("fault-503"), **{"X-Scenario": "fault-404"}).status == 503
    assert post(server.url, {**body(), "model": "fault-503"}, **{"X-Scenario": "fault-404"}).status == 404
    assert post(server.url, {**body(), "model": "fault-503"}).status == 503
    zipped = post(server.scenario("gzip"))
    assert zipped.headers["Content-Encoding"] == "gzip" and b"choices" in gzip.decompress(zipped.body)
    assert post(server.scenario("fault-503-retry-after")).headers["Retry-After"] == "1"


# TLS


def secure(server: MockServer) -> Any:
    return build_opener(ProxyHandler({}), HTTPSHandler(context=ssl.create_default_context(cafile=str(server.ca))))


def test_https_for_those_who_trust_its_authority():
    with MockServer(tls=True) as server:
        assert server.url.startswith("https://")
        got = post(server.url, opener=secure(server))
        assert got.status == 200 and b"data: [DONE]" in post(server.url, body(stream=True), secure(server)).body
        assert post(server.url.replace("127.0.0.1", "localhost"), opener=secure(server)).status == 200
        with pytest.raises(URLError, match="CERTIFICATE_VERIFY_FAILED"):
            post(server.url)
        server.stop()
        server.start()
        assert post(server.url, opener=secure(server)).body == got.body, "the same certificate after a restart"
        assert server.stats()["total"] == 1
        folder = server.ca.parent
    del server
    assert not folder.exists()


@pytest.mark.parametrize(("kind", "says"), [("untrusted", "unable to get local issuer"), ("expired", "expired")])
def test_certificates_that_must_be_refused(kind: Any, says: str):
    with MockServer(tls=kind) as server:
        with pytest.raises(URLError, match=says):
            post(server.url, opener=secure(server))
        assert server.stats()["total"] == 0


# The proxy


def through(proxy: str, server: MockServer) -> Any:
    handlers: list[Any] = [ProxyHandler({"http": proxy, "https": proxy})]
    if server.root.startswith("https"):
        handlers.append(HTTPSHandler(context=ssl.create_default_context(cafile=str(server.ca))))
    return build_opener(*handlers)


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("login", [("", ""), ("me", "p@ss:word/")])
def test_a_proxy_passes_on_whom_it_knows(tls: bool, login: tuple[str, str]):
    with MockServer(tls=tls) as server, MockProxy(*login) as proxy:
        for n in range(2):
            got = post(server.scenario("echo"), body(seed=n), through(proxy.url, server))
            assert got.status == 200 and not [name for name in json.loads(got.text)["headers"] if "proxy" in name]
        expected = {"connects": 2 * tls, "forwarded": 2 * (not tls), "refused": 0, "unreachable": 0}
        assert proxy.stats() == {**expected, "targets": {f"127.0.0.1:{server.port}": 2}}
        if login[0]:
            if tls:
                with pytest.raises(OSError, match="407"):
                    post(server.url, opener=through(proxy.address, server))
            else:
                refused = post(server.url, opener=through(proxy.address, server))
                assert refused.status == 407 and refused.headers["Proxy-Authenticate"].startswith("Basic")
            assert proxy.stats()["refused"] == 1
        assert server.stats()["total"] == 2


def test_a_proxy_by_hand():
    with MockServer("hang") as server, MockProxy("u", "p") as proxy:
        login = base64.b64encode(b"u:p").decode()
        with socket.create_connection(("127.0.0.1", proxy.port), timeout=10) as tunnel:
            head = f"CONNECT 127.0.0.1:{server.port} HTTP/1.1\r\nProxy-Authorization: Basic {login}\r\n\r\n"
            tunnel.sendall(head.encode())
            assert tunnel.recv(1_000).startswith(b"HTTP/1.1 200")
            data = json.dumps(body()).encode()
            tunnel.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: %d\r\n\r\n%b" % (len(data), data))
            assert soon(lambda: server.stats()["in_flight"] == 1)
        assert soon(lambda: server.stats()["abandoned"] == 1), "whoever leaves the tunnel leaves the server"
        with socket.socket() as taken, socket.create_connection(("127.0.0.1", proxy.port), timeout=10) as tunnel:
            taken.bind(("127.0.0.1", 0))
            tunnel.sendall(head.replace(str(server.port), str(taken.getsockname()[1])).encode())
            assert tunnel.recv(1_000).startswith(b"HTTP/1.1 502")
        assert proxy.stats()["unreachable"] == 1


# The process


def test_it_dies_with_the_process_that_started_it():
    script = """
        import os, signal
        from weaverant.testing.server import MockServer
        server = MockServer()
        server.start()
        print(server.port, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    found = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=60)
    port = int(found.stdout)

    def gone() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) != 0

    assert soon(gone)


def test_a_thousand_clients_at_once_are_counted_exactly():
    async def client(server: MockServer, number: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        for turn in range(3):
            data = json.dumps(body(f"{number} {turn}")).encode()
            writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: %d\r\n\r\n%b" % (len(data), data))
            head = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]))
        writer.close()

    async def all_of_them(server: MockServer) -> None:
        await asyncio.gather(*(client(server, number) for number in range(1_000)))

    with MockServer(latency=0.5, price="1,1") as server:
        asyncio.run(all_of_them(server))
        stats, bill = server.stats(), server.bill()
    assert (stats["total"], stats["answered"], stats["connections"], stats["distinct"]) == (3_000, 3_000, 1_000, 3_000)
    assert stats["in_flight_max"] > 500 and stats["models"] == {"m": 3_000} and len(bill) == 3_000


# The command


def started(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "weaverant.testing.server", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_its_help_tells_every_setting_and_scenario():
    done = started("--help")
    assert done.returncode == 0 and "Seconds of work for a call" in done.stdout
    settings, _, scenarios = done.stdout.partition("\nsettings:\n")[2].partition("\nscenarios")
    assert set(re.findall(r"^  (\w+): ", settings, re.MULTILINE)) == set(Settings.__struct_fields__)
    assert re.findall(r"[\w-]+", scenarios.partition(":\n")[2]) == list(SCENARIOS)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ('{"latncy": 1}', "latncy"),
        ('{"latency": "long"}', "latency"),
        ('{"latency": -1}', "latency is -1.0; expected a number, 0 or more"),
        ('{"minute": 0}', "minute is 0.0; expected a number of seconds, above 0"),
        ('{"price": "cheap"}', "price is 'cheap'; expected IN,OUT"),
        ('{"scenario": "nosuch"}', "no scenario 'nosuch'; expected one of ok, echo"),
        ("latency=1", "malformed"),
    ],
)
def test_a_bad_setting_is_one_line(settings: str, says: str):
    done = started("--settings", settings)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert says in done.stderr and "the settings are: scenario, latency" in done.stderr


def test_a_port_that_is_taken_is_one_line():
    with MockServer() as server:
        done = started(f"--port={server.port}")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert f"cannot serve at port {server.port}: " in done.stderr
