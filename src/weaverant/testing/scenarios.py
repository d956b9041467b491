"""How the test server answers: well, or in one of the ways servers fail (`faults`).

`NAME*N` fails only the first N times a body comes and answers well after that.
"""

from __future__ import annotations

import asyncio
import gzip
from functools import lru_cache

import msgspec

from weaverant.engines.simulated import example
from weaverant.testing import faults
from weaverant.testing.answer import Answer, Play, Scenario, error
from weaverant.testing.bill import charge
from weaverant.testing.completions import (
    Call,
    asked_schema,
    completion,
    fitting,
    misfit,
    told_schema,
    usual,
    with_logprobs,
)
from weaverant.testing.connection import Exchange


@lru_cache(maxsize=1_000)
def find(name: str) -> Scenario:
    """The scenario of that name, `ValueError` if there is none."""
    plain, _, times = name.partition("*")
    scenario = SCENARIOS.get(plain)
    if scenario is None or not (times or "1").isdecimal():
        raise ValueError(f"no scenario {name!r}; expected one of {', '.join(SCENARIOS)}, or one of them with *TIMES")
    if not times:
        return scenario
    return lambda call: (scenario if call.times <= int(times) else ok)(call)


# Good replies


def ok(call: Call) -> Answer:
    return Answer(completion(call))


def echo(call: Call) -> Answer:
    """The text is the request's body as it came, beside the names and values of its headers."""
    return Answer(completion(call, msgspec.json.encode({"headers": call.exchange.headers, "body": call.body}).decode()))


def basic(call: Call) -> Answer:
    """Takes one reply to a prompt, and no log probabilities."""
    if call.body.get("n", 1) > 1:
        return error(400, "'n' : number must be at most 1")
    if call.body.get("logprobs"):
        return error(400, "property 'logprobs' is unsupported")
    return ok(call)


def firewall(call: Call) -> Answer:
    """Takes offence at prompts with `DROP TABLE`."""
    if b"DROP TABLE" in call.raw:
        return Answer(status=403, body=b"<html><body>Blocked</body></html>", kind="text/html")
    return ok(call)


def tool(call: Call) -> Answer:
    """Calls the first tool of the request, with arguments that fit its schema."""
    if not call.body.get("tools"):
        return ok(call)
    function = call.body["tools"][0]["function"]
    arguments = msgspec.json.encode(example(function["parameters"], call.digest)).decode()
    answer = completion(call, "")
    answer["choices"][0]["finish_reason"] = "tool_calls"
    answer["choices"][0]["message"]["content"] = None
    answer["choices"][0]["message"]["tool_calls"] = [
        {"id": "call_a", "type": "function", "function": {"name": function["name"], "arguments": arguments}}
    ]
    return Answer(answer)


def reasoning(call: Call) -> Answer:
    answer = completion(call)
    answer["choices"][0]["message"]["reasoning_content"] = "let me think"
    answer["usage"]["completion_tokens_details"] = {"reasoning_tokens": 3}
    answer["usage"]["prompt_tokens_details"] = {"cached_tokens": 2}
    return Answer(answer)


def logprobs(call: Call) -> Answer:
    return Answer(with_logprobs(call))


def cost(call: Call) -> Answer:
    """Says what it costs, as OpenRouter does."""
    answer = completion(call)
    answer["usage"]["cost"] = charge(answer["usage"], call.settings)
    return Answer(answer)


def chunked(call: Call) -> Answer:
    whole = completion(call)
    return Answer(whole, play=_drip(msgspec.json.encode(whole), 7, 0.0), ending="odd")


def slow_drip(call: Call) -> Answer:
    """A byte every 5 ms: a connection that is never idle and not done for long."""
    whole = completion(call)
    return Answer(whole, play=_drip(msgspec.json.encode(whole), 1, 0.005))


def gzipped(call: Call) -> Answer:
    whole = completion(call)
    return Answer(whole, body=gzip.compress(msgspec.json.encode(whole)), headers={"Content-Encoding": "gzip"})


def huge(call: Call) -> Answer:
    """Fifty megabytes of blanks before the reply: JSON that is true, if anybody waits for its end."""
    whole = completion(call)

    async def play(exchange: Exchange) -> None:
        exchange.begin()
        for _ in range(50):
            await exchange.write(b" " * 1_000_000)
        await exchange.write(msgspec.json.encode(whole))
        exchange.end()

    return Answer(whole, play=play)


def endless(call: Call) -> Answer:
    """A reply that goes on until the client has had enough of it, or ten gigabytes."""

    async def play(exchange: Exchange) -> None:
        exchange.begin()
        for _ in range(10_000):
            await exchange.write(b" " * 1_000_000)

    return Answer(completion(call), play=play)


# Schemas


def fenced(call: Call) -> Answer:
    """The right JSON inside prose and a fence."""
    schema = asked_schema(call.body) or told_schema(call.body)
    right = usual(call) if schema is None else fitting(schema, call.digest)
    text = f"Sure! Here is the JSON you asked for:\n\n```json\n{right}\n```\n\nLet me know if I can do anything else."
    return Answer(completion(call, text))


def wrong_schema(call: Call) -> Answer:
    """JSON that never fits the schema."""
    schema = asked_schema(call.body) or told_schema(call.body)
    return ok(call) if schema is None else Answer(completion(call, misfit(schema, call.digest)))


def no_schema(call: Call) -> Answer:
    """Knows no response_format; a schema that the messages tell is heeded."""
    if "response_format" in call.body:
        return error(400, "Invalid parameter: 'response_format' of type 'json_schema' is not supported by this model.")
    schema = told_schema(call.body)
    return ok(call) if schema is None else Answer(completion(call, fitting(schema, call.digest)))


SCENARIOS: dict[str, Scenario] = {
    "ok": ok,
    "echo": echo,
    "basic": basic,
    "firewall": firewall,
    "tool": tool,
    "reasoning": reasoning,
    "logprobs": logprobs,
    "cost": cost,
    "no-models": ok,
    "two-models": ok,
    **{f"fault-{status}": faults.fault(status) for status in (400, 401, 403, 404, 408, 422, 429, 500, 502, 503, 504)},
    "fault-429-retry-after": faults.fault(429, {"Retry-After": "1"}),
    "fault-429-retry-after-0": faults.fault(429, {"Retry-After": "0"}),
    "fault-429-retry-after-date": faults.rate_limited_until,
    "fault-429-retry-after-long": faults.fault(429, {"Retry-After": "3600"}),
    "fault-429-retry-after-endless": faults.fault(429, {"Retry-After": "9" * 400}),
    "fault-503-retry-after": faults.fault(503, {"Retry-After": "1"}),
    "context": faults.context,
    "leak": faults.leak,
    "hang": faults.hang,
    "drop-mid-body": faults.drop_mid_body,
    "reset": faults.reset,
    "reset-storm": faults.reset_storm,
    "malformed": faults.malformed,
    "truncated-utf8": faults.truncated_utf8,
    "huge": huge,
    "endless": endless,
    "slow-drip": slow_drip,
    "chunked": chunked,
    "redirect": faults.redirect,
    "gzip": gzipped,
    "gzip-broken": faults.gzip_broken,
    "html": faults.html,
    "no-choices": faults.no_choices,
    "absurd-usage": faults.absurd_usage,
    "absurd-limits": faults.absurd_limits,
    "deep": faults.deep,
    "error-in-200": faults.error_in_200,
    "fenced": fenced,
    "wrong-schema": wrong_schema,
    "no-schema": no_schema,
    "stream-cut": faults.ending("cut"),
    "stream-stall": faults.ending("stall"),
    "stream-error": faults.ending("error"),
}


def _drip(data: bytes, size: int, pause: float) -> Play:
    async def play(exchange: Exchange) -> None:
        exchange.begin()
        for start in range(0, len(data), size):
            await exchange.write(data[start : start + size])
            if pause:
                await asyncio.sleep(pause)
        exchange.end()

    return play
