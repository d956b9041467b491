"""The HTTP engine against a real server process: what it sends, what it reads, and every way a server fails."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from zlib import crc32

import msgspec
import pytest

from one_engine import pool, replies
from weaverant.engines import open_engine
from weaverant.engines.http.address import Options, parse
from weaverant.engines.http.attempt import Trouble
from weaverant.engines.http.endpoint import Endpoint
from weaverant.errors import StepFailed, UserError
from weaverant.message import (
    ImagePart,
    Message,
    OutputSchema,
    Reply,
    Request,
    Sampling,
    TextPart,
    ToolCall,
    ToolSpec,
    system,
    user,
)
from weaverant.protocols import CallContext
from weaverant.testing.completions import token_id
from weaverant.testing.server import MockServer

CTX = CallContext("0")
ADD = ToolSpec("add", "adds", {"type": "object", "properties": {"a": {"const": 3}}})
MANY = Sampling(n=3, top_logprobs=2, extra={"return_token_ids": True})
HELLO = Request("writer", "strong", (system("be brief"), user("hello")), seed=7)


def ask(url: str, request: Request = HELLO, model: str = "m", **options) -> Reply:
    """One call by an engine of its own."""
    (reply,) = replies(url, request, model=model, **options)
    return reply


def fail(url: str, **options) -> StepFailed:
    with pytest.raises(StepFailed) as caught:
        ask(url, **options)
    return caught.value


def echoed(server: MockServer, request: Request, **options) -> dict:
    return json.loads(ask(server.scenario("echo"), request, **options).text)


# What is sent and read


def test_the_same_body_gets_the_same_reply_and_another_seed_another(server: MockServer):
    first, again = ask(server.url), ask(server.url)
    other = ask(server.url, Request("writer", "strong", HELLO.messages, seed=8))
    assert first == again and first.text.startswith("[mock] ") and first.text != other.text
    assert first.model == "m" and first.finish == "stop" and first.usage.requests == 1 and first.usage.prompt_tokens
    stats = server.stats()
    assert (stats["total"], stats["answered"], stats["distinct"], stats["models"]) == (3, 3, 2, {"m": 3})


def test_every_field_of_a_request_reaches_the_server(server: MockServer):
    call = ToolCall("c1", "add", '{"a": 1}')
    request = Request(
        "writer",
        "strong",
        (
            Message("user", (TextPart("what is"), ImagePart("data:image/png;base64,AA=="))),
            Message("assistant", "", (call,), None, "I think"),
            Message("tool", "3", tool_call_id="c1"),
        ),
        Sampling(0.5, 0.9, 100, ("END",), True, {"top_k": 5}, 3, 2),
        (ToolSpec("add", "adds", {"type": "object", "properties": {}}),),
        OutputSchema("My Verdict", {"type": "object"}),
        seed=11,
    )
    body = echoed(server, request)["body"]
    assert body == {
        "model": "m",
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "what is"},
                    {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}},
                ],
            },
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}],
            },
            {"role": "tool", "content": "3", "tool_call_id": "c1"},
        ],
        "seed": 11,
        "temperature": 0.5,
        "top_p": 0.9,
        "max_tokens": 100,
        "stop": ["END"],
        "n": 3,
        "logprobs": True,
        "top_logprobs": 2,
        "tools": [
            {
                "type": "function",
                "function": {"name": "add", "description": "adds", "parameters": {"type": "object", "properties": {}}},
            }
        ],
        "response_format": {"type": "json_schema", "json_schema": {"name": "My_Verdict", "schema": {"type": "object"}}},
        "top_k": 5,
    }


def test_tool_calls_reasoning_and_their_tokens_are_read(server: MockServer):
    tools = (ToolSpec("add", "adds", {"type": "object", "properties": {"a": {"const": 3}}}),)
    reply = ask(server.scenario("tool"), Request("a", "m", (user("add"),), tools=tools))
    assert reply.message.tool_calls == (ToolCall("call_a", "add", '{"a":3}'),)
    assert reply.finish == "tool_calls" and reply.text == ""
    thought = ask(server.scenario("reasoning"))
    assert thought.message.reasoning == "let me think"
    assert (thought.usage.reasoning_tokens, thought.usage.cached_tokens) == (3, 2)


@pytest.mark.parametrize("scenario", ["gzip", "chunked", "slow-drip"])
def test_a_reply_is_read_however_it_is_transferred(server: MockServer, scenario: str):
    assert ask(server.scenario(scenario), timeout=20).text == ask(server.url).text


def test_a_request_of_several_megabytes(server: MockServer):
    text = "caf\u00e9 " * 500_000
    assert echoed(server, Request("a", "m", (user(text),)))["body"]["messages"][0]["content"] == text


def test_half_a_surrogate_pair_is_refused_before_it_is_sent(server: MockServer):
    failure = fail(server.url, request=Request("a", "m", (user("bad \ud800"),)))
    assert failure.kind == "request" and "surrogate" in failure.text and server.stats()["total"] == 0


@pytest.mark.parametrize("stream", [0, 1])
def test_several_replies_with_their_tokens_are_read(server: MockServer, stream: int):
    reply = ask(server.scenario("logprobs"), Request("a", "m", (user("hi"),), MANY), stream=stream)
    assert len(reply.choices) == 3 and len({choice.text for choice in reply.choices}) == 3
    for number, choice in enumerate(reply.choices):
        tokens = choice.tokens
        assert tokens is not None and "".join(tokens.texts) == choice.text and choice.finish == "stop"
        assert tokens.ids == tuple(token_id(text) for text in tokens.texts)
        assert tokens.logprobs == tuple(-(crc32(text.encode()) % 256) / 256 for text in tokens.texts)
        told = zip(tokens.texts, tokens.logprobs, strict=True)
        assert tokens.top == tuple({text: value, f"{text}1": value - 1} for text, value in told)
        assert len(tokens.prompt_ids) == (0 if number else reply.usage.prompt_tokens)


# Streams


def blurred(found: Any) -> str:
    """Without what tells the request: the server's text names a digest of the body, and its usage the body's length."""
    if isinstance(found, Reply):
        found = msgspec.structs.replace(found, usage=msgspec.structs.replace(found.usage, prompt_tokens=0))
    text = re.sub(r"\b[0-9a-f]{32}\b", "", str(found))
    return re.sub(r'"prompt_tokens":\d+|"total_tokens":\d+', "", text)


@pytest.mark.parametrize("client", ["fast", "dependable"])
@pytest.mark.parametrize(
    ("scenario", "asked"),
    [
        ("ok", HELLO),
        ("tool", Request("a", "m", (user("add"),), tools=(ADD,))),
        ("reasoning", HELLO),
        ("chunked", HELLO),
        ("ok", Request("a", "m", (user("json"),), output=OutputSchema("n", {"enum": ["caf\u00e9"]}))),
        ("gzip", HELLO),  # answers in one piece, as servers do that know no streams
    ],
)
def test_a_stream_amounts_to_the_reply_in_one_piece(server: MockServer, scenario: str, asked: Request, client: str):
    one_piece, streamed = (ask(server.scenario(scenario), asked, client=client, stream=stream) for stream in (0, 1))
    assert blurred(streamed) == blurred(one_piece) and server.stats()["total"] == 2
    assert streamed.text or streamed.message.tool_calls


def test_a_stream_is_asked_to_tell_its_usage(server: MockServer):
    body = echoed(server, HELLO, stream=1)["body"]
    assert (body["stream"], body["stream_options"]) == (True, {"include_usage": True})
    assert not echoed(server, HELLO)["body"].keys() & {"stream", "stream_options"}
    spent = ask(server.scenario("reasoning"), stream=1).usage
    assert (spent.completion_tokens, spent.reasoning_tokens, spent.cached_tokens) == (2, 3, 2) and spent.prompt_tokens


@pytest.mark.parametrize("client", ["fast", "dependable"])
@pytest.mark.parametrize(
    ("scenario", "kind", "blame"),
    [
        ("stream-cut", "connection", "network"),
        ("stream-stall", "timeout", "network"),
        ("stream-error", "server", "server"),
    ],
)
def test_a_broken_stream_may_be_billed_and_may_go_again(
    server: MockServer, scenario: str, kind: str, blame: str, client: str
):
    query = urlencode({"stream": "1", "idle": "0.3", "client": client})

    async def main() -> Reply | Trouble:
        endpoint = Endpoint(parse(f"{server.scenario(scenario)}?{query}#m"))
        try:
            return (await endpoint.attempt(HELLO, 30.0)).outcome
        finally:
            await endpoint.close()

    began = time.monotonic()
    trouble = asyncio.run(main())
    assert isinstance(trouble, Trouble) and time.monotonic() - began < 20
    assert (trouble.failure.kind, trouble.blame, trouble.again, trouble.billed) == (kind, blame, True, True)
    if scenario == "stream-error":
        assert "the engine died on purpose" in trouble.failure.text and trouble.status == 500


@pytest.mark.parametrize("scenario", ["malformed", "truncated-utf8", "html", "no-choices", "error-in-200"])
def test_what_comes_instead_of_a_stream_fails_as_it_does_without(server: MockServer, scenario: str):
    streamed, whole = fail(server.scenario(scenario), stream=1, retries=0), fail(server.scenario(scenario), retries=0)
    assert (streamed.kind, blurred(streamed.text)) == (whole.kind, blurred(whole.text))


# Failures


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
def test_a_refused_request_is_never_sent_again(server: MockServer, status: int):
    failure = fail(server.scenario(f"fault-{status}"))
    assert failure.kind == "request" and f"a {status} on purpose" in failure.text
    assert server.stats()["total"] == 1 and failure.detail == {"requests": 1, "status": status}


def test_a_prompt_that_is_too_long_is_of_kind_context(server: MockServer):
    failure = fail(server.scenario("context"))
    assert failure.kind == "context" and "4096 tokens" in failure.text and server.stats()["total"] == 1


@pytest.mark.parametrize(
    ("scenario", "kind"),
    [
        ("fault-429", "rate_limit"),
        ("fault-408", "server"),
        ("fault-500", "server"),
        ("fault-502", "server"),
        ("fault-503", "server"),
        ("fault-504", "server"),
        ("error-in-200", "server"),
        ("reset", "connection"),
        ("drop-mid-body", "connection"),
        ("gzip-broken", "connection"),
    ],
)
def test_what_may_pass_is_tried_again_and_counted(server: MockServer, scenario: str, kind: str):
    failure = fail(server.scenario(scenario), retries=2, backoff=0.02)
    assert failure.kind == kind and failure.detail["requests"] == 3 and "tried 3 times" in failure.text
    assert server.stats()["total"] == 3
    server.reset()
    reply = ask(server.scenario(scenario + "*2"), backoff=0.02)
    assert reply.text.startswith("[mock]") and reply.usage.requests == 3 and server.stats()["total"] == 3


@pytest.mark.parametrize("scenario", ["fault-500", "fault-429"])
def test_the_wait_for_the_next_request_begins_as_the_address_says_and_doubles(server: MockServer, scenario: str):
    """Each wait is between half of its bound and all of it; 0.5 s to begin with would make 1.75 s at least."""
    began = time.monotonic()
    assert ask(server.scenario(scenario + "*3"), backoff=0.02).usage.requests == 4
    server.reset()
    between = time.monotonic()
    assert ask(server.scenario(scenario + "*2"), backoff=0.8).usage.requests == 3
    assert between - began < 1.7 and time.monotonic() - between >= 0.4 + 0.8


@pytest.mark.parametrize(
    ("scenario", "says"),
    [
        ("malformed", "not JSON"),
        ("truncated-utf8", "not UTF-8"),
        ("html", "'text/html'"),
        ("no-choices", "no choices"),
        ("deep", "nested too deeply"),
    ],
)
def test_a_garbled_reply_is_a_clear_failure(server: MockServer, scenario: str, says: str):
    failure = fail(server.scenario(scenario))
    assert failure.kind == "server" and says in failure.text and len(failure.text) < 700
    assert server.stats()["total"] == 1


@pytest.mark.parametrize("stream", [0, 1])
def test_a_reply_without_end_is_cut_off(server: MockServer, stream: int):
    failure = fail(server.scenario("endless"), stream=stream)
    assert failure.kind == "server" and "64000000 bytes" in failure.text and server.stats()["total"] == 1


def test_a_redirect_is_refused_and_its_secret_not_shown(server: MockServer):
    failure = fail(server.scenario("redirect"))
    assert failure.kind == "request" and "http://127.0.0.1:9/elsewhere/v1" in failure.text
    assert "hidden" not in failure.text and server.stats()["total"] == 1


@pytest.mark.parametrize("scenario", ["hang", "slow-drip"])
def test_a_call_ends_when_its_time_is_over(server: MockServer, scenario: str):
    began = time.monotonic()
    failure = fail(server.scenario(scenario), timeout=0.4)
    assert failure.kind == "timeout" and 0.3 < time.monotonic() - began < 5
    assert server.stats()["total"] == 1


@pytest.mark.parametrize(
    ("scenario", "least"), [("fault-429-retry-after*1", 1.0), ("fault-429-retry-after-date*1", 0.9)]
)
def test_retry_after_is_honoured(server: MockServer, scenario: str, least: float):
    began = time.monotonic()
    assert ask(server.scenario(scenario)).usage.requests == 2
    assert least <= time.monotonic() - began < 10


def test_a_wait_beyond_the_calls_time_is_not_waited_for(server: MockServer):
    began = time.monotonic()
    failure = fail(server.scenario("fault-429-retry-after-long"))
    assert failure.kind == "rate_limit" and time.monotonic() - began < 10
    assert "would come after the call's 600 s" in failure.text


def test_no_server_there():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        failure = fail(f"http://127.0.0.1:{taken.getsockname()[1]}/v1", retries=1, backoff=0.02)
    assert failure.kind == "connection" and failure.detail["requests"] == 2


def test_calls_outlive_a_server_that_dies_and_comes_back():
    async def main(server: MockServer) -> list[Reply]:
        engine = pool(server.url, "m")
        await engine.generate(HELLO, CTX)
        calls = [asyncio.ensure_future(engine.generate(HELLO, CTX)) for _ in range(20)]
        await asyncio.sleep(0.15)
        server.stop()
        server.start()
        replies = await asyncio.gather(*calls)
        await engine.close()
        return replies

    with MockServer(latency=0.3) as server:
        replies = asyncio.run(main(server))
    assert any(reply.usage.requests >= 2 for reply in replies) and len({reply.text for reply in replies}) == 1


# Connections and cancellation


def test_connections_are_kept_and_bounded(server: MockServer):
    async def main() -> None:
        engine = pool(server.url, "m", connections=5)
        await asyncio.gather(*(engine.generate(HELLO, CTX) for _ in range(200)))
        await engine.close()

    asyncio.run(main())
    stats = server.stats()
    assert stats["total"] == 200 and stats["in_flight_max"] <= 5
    assert stats["connections"] <= 5 + 1, "calls have five, and the look at /metrics may come while all are busy"


CALLS = """
import asyncio, sys
from weaverant import Request
from weaverant.engines import open_engine
from weaverant.message import user
from weaverant.protocols import CallContext

async def main():
    engine = open_engine(sys.argv[1])
    calls = (engine.generate(Request("a", "m", (user("hello"),), seed=n), CallContext(str(n))) for n in range(16))
    replies = await asyncio.gather(*calls)
    print(len(replies), sum(reply.usage.requests for reply in replies))
    await engine.close()

asyncio.run(main())
"""


@pytest.mark.parametrize("client", ["fast", "dependable"])
def test_what_came_while_the_process_was_stopped_is_in_time(client: str):
    """After SIGCONT an event loop runs its timers before it reads its sockets."""
    with MockServer(latency=1.0) as server:
        address = f"{server.url}?client={client}&timeout=2.5&start=16#m"
        caller = subprocess.Popen([sys.executable, "-c", CALLS, address], stdout=subprocess.PIPE, text=True)
        while server.stats()["in_flight_max"] < 16:
            time.sleep(0.02)
        caller.send_signal(signal.SIGSTOP)
        time.sleep(5.0)
        caller.send_signal(signal.SIGCONT)
        out, _ = caller.communicate(timeout=60)
        assert out.split() == ["16", "16"] and server.stats()["total"] == 16


def test_cancelling_a_call_closes_its_request(server: MockServer):
    async def main() -> None:
        engine = pool(server.scenario("hang"), "m", connections=1)
        calls = [asyncio.ensure_future(engine.generate(HELLO, CTX)) for _ in range(3)]
        await asyncio.sleep(0.2)
        calls[2].cancel()  # waits for a connection
        calls[0].cancel()  # is being answered
        await asyncio.sleep(0.2)
        calls[1].cancel()  # has taken over the connection
        await asyncio.gather(*calls, return_exceptions=True)
        await engine.close()

    asyncio.run(main())
    time.sleep(0.1)
    stats = server.stats()
    assert (stats["total"], stats["abandoned"], stats["in_flight"]) == (2, 2, 0)


def test_an_engine_can_be_used_by_a_second_loop_after_it_was_closed(server: MockServer):
    engine = pool(server.url, "m", connections=2)

    async def main() -> list[Reply]:
        replies = await asyncio.gather(*(engine.generate(HELLO, CTX) for _ in range(5)))
        await engine.close()
        return replies

    assert asyncio.run(main()) == asyncio.run(main())


def test_closing_fails_the_calls_in_flight_and_opens_nothing_again(server: MockServer):
    async def main() -> list[BaseException | Reply]:
        engine = pool(server.scenario("hang"), "m", connections=2)
        calls = [asyncio.ensure_future(engine.generate(HELLO, CTX)) for _ in range(4)]
        await asyncio.sleep(0.2)
        await engine.close()
        return await asyncio.gather(*calls, return_exceptions=True)

    assert [failure.kind for failure in asyncio.run(main())] == ["connection"] * 4
    assert server.stats()["total"] == 2


# Keys, addresses and models


def test_the_key_is_sent_and_never_shown(server: MockServer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MY_KEY", "sk-secret-123\n")
    assert echoed(server, HELLO, key_env="MY_KEY")["headers"]["authorization"] == "Bearer sk-secret-123"
    failure = fail(server.scenario("leak"), key_env="MY_KEY")
    engine = open_engine(f"{server.url}?key_env=MY_KEY#m")
    for shown in (str(failure), repr(failure), repr(failure.detail), repr(engine), engine.identity):
        assert "sk-secret" not in shown
    assert "[key]" in failure.text and "A key was sent" in failure.text
    monkeypatch.setenv("MY_KEY", "sk-secret-123" * 40)  # longer than the part of an error that is shown
    assert "sk-secret" not in str(fail(server.scenario("leak"), key_env="MY_KEY"))
    assert engine.identity == "http:m"


def test_without_a_key_none_is_sent(server: MockServer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("WEAVERANT_API_KEY", raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-for-openai-only")
    assert "authorization" not in echoed(server, HELLO)["headers"]
    monkeypatch.setenv("WEAVERANT_API_KEY", "general")
    assert echoed(server, HELLO)["headers"]["authorization"] == "Bearer general"


def test_a_missing_or_broken_key_is_a_users_error(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(UserError, match="OPENAI_API_KEY"):
        open_engine("https://api.openai.com/v1#gpt-5-mini")
    with pytest.raises(UserError, match="NO_SUCH_KEY"):
        open_engine("http://localhost:1/v1?key_env=NO_SUCH_KEY#m")
    monkeypatch.setenv("MY_KEY", "sk-two\nlines")
    with pytest.raises(UserError, match="no HTTP header can carry") as caught:
        open_engine("http://localhost:1/v1?key_env=MY_KEY#m")
    assert "sk-two" not in str(caught.value)


@pytest.mark.parametrize(
    "spec",
    [
        "http://me:hunter2@host/v1#m",
        "http://hunter2@host/v1#m",
        "http://host/v1?api_key=hunter2#m",
        "http://host/v1?access_token=hunter2#m",
        "http://me:hunter2@host:bad/v1#m",
        "http:///hunter2#m",
    ],
)
def test_a_secret_in_an_address_is_refused_without_showing_it(spec: str):
    with pytest.raises(UserError) as caught:
        open_engine(spec)
    assert "hunter2" not in str(caught.value) and ("key_env" in str(caught.value) or "expected" in str(caught.value))


def test_other_parameters_of_an_address_are_sent(server: MockServer):
    reply = ask(server.url + "/chat/completions?api-version=2")
    assert reply.text == ask(server.url + "/").text


@pytest.mark.parametrize(
    ("slip", "meant"),
    [
        ("rpmm", "rpm"),
        ("Price", "price"),
        ("RPM", "rpm"),
        ("time_out", "timeout"),
        ("retry", "retries"),
        ("max_retries", "retries"),
        ("hedging", ""),
        ("api-version", ""),
        ("region", ""),
    ],
)
def test_a_parameter_that_is_nearly_an_option_is_refused(slip: str, meant: str):
    spec = f"http://localhost:1/v1?{slip}=1#m"
    if not meant:
        assert parse(spec).query == f"{slip}=1"
        return
    with pytest.raises(UserError, match=f"'{slip}': did you mean '{meant}'"):
        parse(spec)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("rpm=abc", "rpm='abc': expected a number, 0 or more"),
        ("rpm=-1", "rpm='-1': expected a number, 0 or more"),
        ("tpm=nan", "tpm='nan': expected a number, 0 or more"),
        ("hourly=inf", "hourly='inf': expected a number, 0 or more"),
        ("image=2.5", "image='2.5': expected a whole number, 0 or more"),
        ("batch=-0.1", "batch='-0.1': expected a number of seconds, 0 or more"),
        ("poll=-1", "poll='-1': expected a number of seconds, 0 or more"),
        ("backoff=0", "backoff='0': expected a number of seconds, above 0"),
        ("timeout=0", "timeout='0': expected a number of seconds, above 0"),
        ("timeout=1e999", "timeout='1e999': expected a number of seconds, above 0"),
        ("idle=nan", "idle='nan': expected a number of seconds, above 0"),
        ("retries=-1", "retries='-1': expected a whole number, 0 or more"),
        ("connections=many", "connections='many': expected a whole number, 0 or more"),
        ("hedge=1", "hedge='1': expected a share, 0 or more and below 1"),
        ("stream=yes", r"stream='yes': expected 1 or 0 \(true or false\)"),
        ("schema=foo", "schema='foo': expected server or prompt"),
        ("client=slow", "client='slow': expected fast or dependable"),
        ("rpm=1&rpm=2", "'rpm' twice"),
    ],
)
def test_an_option_that_does_not_fit_is_refused_with_what_would(options: str, says: str):
    with pytest.raises(UserError, match=says):
        parse(f"http://localhost:1/v1?{options}#m")


def test_options_at_the_edge_of_what_fits_are_taken():
    text = (
        "retries=0&hedge=0&connections=0&rpm=0&tpm=0.5&image=0&hourly=0&batch=0&poll=0&timeout=0.1&idle=0.1&stream=true"
    )
    found = parse(f"http://localhost:1/v1?{text}&rpm=0&schema=prompt&client=#m").options
    assert found == Options(tpm=0.5, timeout=0.1, idle=0.1, stream=True, schema="prompt", retries=0)


def test_a_model_that_is_not_named_is_asked_for(server: MockServer):
    assert open_engine(server.url).identity == "http:mock"

    async def inside_a_loop() -> str:
        return open_engine(server.url).identity

    assert asyncio.run(inside_a_loop()) == "http:mock"
    with pytest.raises(UserError, match=r"2 models \(mock, other\).*#mock"):
        open_engine(server.scenario("two-models"))
    with pytest.raises(UserError, match="0 models"):
        open_engine(server.scenario("no-models"))
    with pytest.raises(UserError, match="gave no list of models"):
        open_engine(server.root)
    with pytest.raises(UserError, match="gave no list of models"):
        open_engine("http://127.0.0.1:9/v1")


def test_every_option_of_an_address_is_documented():
    text = (Path(__file__).parent.parent / "docs" / "models.md").read_text()
    documented = set(re.findall(r"`(\w+)=", text.partition("| option | what |")[2].partition("\n\n")[0]))
    assert documented == set(Options.__struct_fields__)
