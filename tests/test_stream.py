"""Streams of events: read alike however they are cut, and equal to the same reply in one piece."""

from __future__ import annotations

import json
import random
from typing import Any

import msgspec
import pytest

from weaverant.engines.http.chat import wire
from weaverant.engines.http.chat.completion import Completion, read, read_plain
from weaverant.engines.http.chat.sse import Event, Events
from weaverant.engines.http.chat.stream import Stream
from weaverant.message import Reply, Tokens, ToolCall


def cuts(data: bytes, draw: random.Random) -> list[bytes]:
    places = sorted(draw.randrange(len(data) + 1) for _ in range(draw.randrange(12)))
    return [data[a:b] for a, b in zip([0, *places], [*places, len(data)], strict=True)]


def fed(pieces: list[bytes]) -> list[Event]:
    events = Events()
    return [event for piece in pieces for event in events.feed(piece)] + events.end()


def streamed(data: bytes, pieces: list[bytes] | None = None) -> Stream:
    stream = Stream()
    for piece in pieces or [data]:
        stream.feed(piece)
    return stream


def reply(stream: Stream) -> Reply:
    completion = stream.end()
    assert completion is not None and stream.failed is None and stream.garbled is None
    return wire.reply(completion, b"")


def sse(*values: Any, done: bool = True) -> bytes:
    lines = [f"data: {json.dumps(value, ensure_ascii=False)}\n\n" for value in values]
    return "".join([*lines, "data: [DONE]\n\n" * done]).encode()


def piece(finish: str | None = None, index: int = 0, **delta: Any) -> dict[str, Any]:
    return {"model": "m", "choices": [{"index": index, "delta": delta, "finish_reason": finish}]}


# Events

SAID = (
    b"\xef\xbb\xbf: a comment\r\n\r\ndata: one\r\ndata:two\r\ndata:  three\r\n\r\nevent: error\rdata: bad\r\r"
    b"id: 7\nretry: 10\nunknown\ndata\n\n\n\ndata: caf\xc3\xa9\xe2\x80\xa8\x0b\x1c\n\ndata: open"
)
MEANT = [
    Event(b"", b"one\ntwo\n three"),
    Event(b"error", b"bad"),
    Event(b"", b""),
    Event(b"", "café\u2028\x0b\x1c".encode()),
    Event(b"", b"open"),
]


def test_events_are_the_same_however_the_stream_is_cut():
    assert fed([SAID]) == MEANT
    assert fed([bytes([byte]) for byte in SAID]) == MEANT
    for place in range(len(SAID) + 1):
        assert fed([SAID[:place], b"", SAID[place:]]) == MEANT, place
    draw = random.Random(5)
    for _ in range(500):
        assert fed(cuts(SAID, draw)) == MEANT


@pytest.mark.timeout(60)
def test_an_event_of_megabytes_in_small_pieces_takes_time_in_proportion():
    line = b"data: " + b"x" * 4_000_000 + b"\n\n"
    assert fed([line[n : n + 16] for n in range(0, len(line), 16)]) == [Event(b"", line[6:-2])]


# Completions

ALPHABET = ["a", "é", "日本", "🙂", '"', "\\", "\n", "\r\n", "data: ", "\n\n", "[DONE]", " ", "\x0b", "\u2028", "{}"]


def words(draw: random.Random) -> list[str]:
    return ["".join(draw.choices(ALPHABET, k=draw.randint(1, 4))) for _ in range(draw.randrange(8))]


def drawn(draw: random.Random) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A completion and the chunks that a server would stream it in, choices taking turns at random."""
    ids, probabilities = draw.random() < 0.5, draw.random() < 0.5
    choices, deltas = [], []
    for index in range(draw.randint(1, 3)):
        choice, parts = drawn_choice(draw, index, ids, probabilities)
        choices.append(choice)
        deltas.append(parts)
    chunks: list[dict[str, Any]] = []
    while any(deltas):
        parts = draw.choice([parts for parts in deltas if parts])
        chunks.append({"model": "m", "choices": [parts.pop(0)], "usage": None})
    head = {"prompt_token_ids": [5, 6]} if ids else {}
    chunks[0] |= head
    usage = {"prompt_tokens": 3, "completion_tokens": 4, "completion_tokens_details": {"reasoning_tokens": 1}}
    chunks.append({"choices": [], "usage": usage})
    return {"model": "m", "choices": draw.sample(choices, len(choices)), "usage": usage, **head}, chunks


def drawn_choice(draw: random.Random, index: int, ids: bool, probabilities: bool) -> tuple[dict, list[dict]]:
    field = draw.choice(["content", "content", "refusal"])
    texts, thoughts = words(draw), words(draw)
    thought = draw.choice(["reasoning", "reasoning_content"])
    finish = draw.choice(["stop", "length", "tool_calls", "odd"])
    tokens = [
        {"token": text, "logprob": -n / 4, "top_logprobs": [{"token": text, "logprob": -n / 4}]}
        for n, text in enumerate(texts)
    ]
    calls = [
        {"id": f"c{n}", "type": "function", "function": {"name": f"f{n}", "arguments": "".join(words(draw))}}
        for n in range(draw.randrange(3))
    ]
    message = {"role": "assistant", field: "".join(texts), thought: "".join(thoughts), "tool_calls": calls}
    choice = {"index": index, "message": message, "finish_reason": finish}
    parts = [{"index": index, "delta": {"role": "assistant", "content": ""}}]
    parts += [{"index": index, "delta": {thought: text}} for text in thoughts]
    for n, text in enumerate(texts):
        more = {"logprobs": {"content": [tokens[n]]}} if probabilities else {}
        more |= {"token_ids": [n]} if ids else {}
        parts.append({"index": index, "delta": {field: text}, **more})
    for n, call in enumerate(calls):
        function = call["function"]
        parts.append(
            {"index": index, "delta": {"tool_calls": [{**call, "index": n, "function": {**function, "arguments": ""}}]}}
        )
        for letter in function["arguments"]:
            parts.append({"index": index, "delta": {"tool_calls": [{"index": n, "function": {"arguments": letter}}]}})
    parts.append({"index": index, "delta": {}, "finish_reason": finish})
    if probabilities:
        choice["logprobs"] = {"content": tokens}
    if ids:
        choice["token_ids"] = list(range(len(texts)))
    return choice, parts


def oddly(data: bytes, draw: random.Random) -> bytes:
    """The same events with other ends of lines, comments and empty lines."""
    end = draw.choice([b"\n", b"\r\n", b"\r"])
    events = [event for event in data.split(b"\n\n") if event]
    return b"".join(draw.choice([b"", b": ping" + end, end]) + event + end + end for event in events)


def test_a_stream_amounts_to_the_reply_in_one_piece():
    draw = random.Random(11)
    several = with_calls = with_tokens = 0
    for _ in range(400):
        completion, chunks = drawn(draw)
        whole = wire.decode(json.dumps(completion).encode())
        data = oddly(sse(*chunks, done=draw.random() < 0.7), draw)
        assert reply(streamed(data, cuts(data, draw))) == whole
        several += len(whole.choices) > 1
        with_calls += bool(whole.message.tool_calls)
        with_tokens += whole.tokens is not None
    assert min(several, with_calls, with_tokens) > 100, "the draw must cover what it claims"


def test_a_stream_cut_anywhere_is_no_reply():
    data = sse(piece(content="a"), piece(content="b"), piece("stop"), {"choices": [], "usage": {"prompt_tokens": 1}})
    finished = data.index(b'"finish_reason": "stop"')
    whole = 0
    for place in range(len(data) + 1):
        stream = streamed(data[:place])
        completion = stream.end()
        assert stream.garbled is None, place
        if completion is not None:
            whole += 1
            assert place > finished and wire.reply(completion, b"").text == "ab"
    assert whole


def test_a_reply_is_settled_once_nothing_can_be_missing():
    chunks = [piece(content="a"), piece("stop"), {"choices": [], "usage": {"prompt_tokens": 1}}]
    assert [streamed(sse(*chunks[:n], done=False)).settled for n in range(4)] == [False, False, False, True]
    assert streamed(sse(*chunks[:2])).settled


def test_calls_without_indexes_or_ids_are_told_apart():
    def call(**fields: Any) -> dict[str, Any]:
        name, arguments = fields.pop("name", None), fields.pop("arguments", "")
        return {**fields, "function": {"name": name, "arguments": arguments}}

    all_zero = [
        piece(
            tool_calls=[
                call(index=0, id="a", name="f", arguments="{}"),
                call(index=0, id="b", name="g", arguments="[]"),
            ]
        ),
        piece("tool_calls"),
    ]
    assert reply(streamed(sse(*all_zero))).message.tool_calls == (ToolCall("a", "f", "{}"), ToolCall("b", "g", "[]"))
    none = [
        piece(tool_calls=[call(id="a", name="f", arguments='{"x"')]),
        piece(tool_calls=[call(arguments=": 1}")]),
        piece(tool_calls=[call(id="b", name="f", arguments="{}")]),
        piece("tool_calls"),
    ]
    assert reply(streamed(sse(*none))).message.tool_calls == (ToolCall("a", "f", '{"x": 1}'), ToolCall("b", "f", "{}"))
    nameless = [
        piece(tool_calls=[call(index=n, name="f", arguments="{}") for n in (0, 1)]),
        piece("tool_calls"),
    ]
    assert [one.id for one in reply(streamed(sse(*nameless))).message.tool_calls] == ["call_0", "call_1"]


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (sse({"error": {"message": "m", "code": 429}}), 429),
        (sse({"error": {"message": "m", "type": "server_error"}}), 500),
        (sse({"object": "error", "message": "m", "code": 400}), 400),
        (b'event: error\ndata: {"message": "m"}\n\n', 500),
        (b"event: error\ndata: no json\n\n", 500),
        (sse({"error": "words", "choices": []}), 500),
    ],
)
def test_an_error_may_come_as_an_event(data: bytes, status: int):
    stream = streamed(sse(piece(content="a"), done=False) + data)
    assert stream.failed is not None and wire.event_status(stream.failed) == status and stream.spoke


def test_what_is_no_stream_is_kept_whole():
    body = b'{\n "choices": [\r\n {"message": {"content": "hi"}}]}'
    stream = streamed(body, [body[:9], body[9:]])
    assert not stream.begun and stream.raw == body and wire.decode(stream.raw).text == "hi"


def test_an_event_that_is_no_completion_is_garbled():
    stream = streamed(b'data: {"choices": [\n\n' + sse(piece(content="a"), piece("stop")))
    assert stream.garbled is not None and "not JSON" in wire.garbled(stream.garbled)


# The same fields in one piece


def decoded(choice: dict[str, Any], **more: Any) -> Reply:
    return wire.decode(json.dumps({"choices": [choice], **more}).encode())


def test_a_refusal_is_content_that_was_filtered():
    refused = decoded({"message": {"content": None, "refusal": "I cannot."}, "finish_reason": "stop"})
    assert (refused.text, refused.finish) == ("I cannot.", "content_filter")
    both = decoded({"message": {"content": "yes", "refusal": "no"}, "finish_reason": "stop"})
    assert (both.text, both.finish) == ("yes", "stop")


def test_reasoning_is_read_by_all_its_names():
    for said in (
        {"reasoning_content": "so"},
        {"reasoning": "so"},
        {"reasoning": "so", "reasoning_content": "so"},
        {"reasoning_details": [{"type": "reasoning.text", "text": "s"}, {"type": "reasoning.summary", "summary": "o"}]},
        {"reasoning_details": [{"type": "reasoning.encrypted", "data": "x"}, {"type": "reasoning.text", "text": "so"}]},
    ):
        assert decoded({"message": {"content": "x", **said}}).message.reasoning == "so", said
    assert decoded({"message": {"content": "<think>so</think>x"}}).text == "<think>so</think>x"


def test_token_lists_of_unequal_length_leave_the_ids_alone():
    told = [{"token": "a", "logprob": -1.0}]
    choice = {"message": {"content": "a"}, "logprobs": {"content": told}}
    assert decoded(choice).tokens == Tokens(texts=("a",), logprobs=(-1.0,))
    assert decoded({**choice, "token_ids": [7]}).tokens == Tokens((7,), ("a",), (-1.0,))
    assert decoded({**choice, "token_ids": [7, 8]}).tokens == Tokens((7, 8))
    unknown = {"token": "b", "logprob": None}
    assert decoded({**choice, "logprobs": {"content": [*told, unknown]}}).tokens == Tokens(texts=("a", "b"))
    assert decoded({"message": {"content": "a"}, "logprobs": {"content": None}}).tokens is None
    assert decoded({"message": {"content": "a"}}, prompt_token_ids=[1]).tokens == Tokens(prompt_ids=(1,))


def test_alternatives_that_look_alike_count_as_the_likeliest():
    top = [{"token": "\ufffd", "logprob": -2.0}, {"token": "\ufffd", "logprob": -0.5}, {"token": "b", "logprob": -3.0}]
    told = [{"token": "a", "logprob": -1.0, "top_logprobs": top}, {"token": "b", "logprob": 0, "top_logprobs": []}]
    tokens = decoded({"message": {"content": "ab"}, "logprobs": {"content": told}}).tokens
    assert tokens is not None and tokens.top == ({"\ufffd": -0.5, "b": -3.0}, {})


def test_calls_are_in_the_order_of_their_index():
    def begun(*indexes: int) -> list[dict[str, Any]]:
        return [{"index": n, "id": f"c{n}", "function": {"name": f"f{n}", "arguments": "{}"}} for n in indexes]

    came = sse(piece(tool_calls=begun(2)), piece(tool_calls=begun(0, 1)), piece("tool_calls"))
    whole = {"choices": [{"message": {"tool_calls": begun(0, 1, 2)}, "finish_reason": "tool_calls"}]}
    assert reply(streamed(came)).message == wire.decode(json.dumps(whole).encode()).message


def test_events_without_data_are_no_part_of_the_reply():
    came = (
        b"data:\n\n"
        + sse(piece(content="a"), done=False)
        + b"event: ping\ndata: \n\n"
        + sse(piece("stop", content="b"))
    )
    assert reply(streamed(came)).text == "ab"


def test_choices_are_in_the_order_of_their_index():
    body = {"choices": [{"index": n, "message": {"content": str(n)}} for n in (2, 0, 1)], "prompt_token_ids": [1]}
    choices = wire.decode(json.dumps(body).encode()).choices
    assert [choice.text for choice in choices] == ["0", "1", "2"]
    assert [choice.tokens for choice in choices] == [Tokens(prompt_ids=(1,)), None, None]


def test_usage_is_read_in_every_dialect():
    spent = decoded({"message": {"content": "x"}}, usage={"prompt_tokens": 9, "prompt_cache_hit_tokens": 4}).usage
    assert (spent.prompt_tokens, spent.cached_tokens, spent.completion_tokens, spent.cost) == (9, 4, 0, 0.0)
    usage = {"cost": 0.25, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 3}, "total_tokens": None}
    spent = decoded({"message": {"content": "x"}}, usage=usage).usage
    assert (spent.cost, spent.completion_tokens, spent.cached_tokens) == (0.25, 2, 3)


MESSAGES = {
    "content": ("x", "", None, [{"text": "x"}], []),
    "refusal": (None, "", "no"),
    "tool_calls": (None, [], [{"id": "c", "function": {"name": "f", "arguments": "{}"}}]),
    "reasoning_content": (None, "", "so"),
    "reasoning": (None, "", "so"),
    "reasoning_details": (None, [], [{"text": "so"}], [{"text": ""}]),
}
CHOICES = {
    "index": (None, 0, 3),
    "finish_reason": ("stop", "length", "tool_calls", "odd", None),
    "logprobs": (None, {"content": None}, {"content": [{"token": "x", "logprob": -1.0}]}),
    "token_ids": (None, [], [7]),
    "error": (None, "", {}, {"code": 502}),
}
COMPLETIONS = {
    "model": ("m", "", None),
    "prompt_token_ids": (None, [], [1]),
    "usage": (None, {"prompt_tokens": 9, "completion_tokens": 2}, {"prompt_tokens": -1, "total_tokens": 10**12}),
}


def mostly_usual(fields: dict[str, tuple[Any, ...]], draw: random.Random) -> dict[str, Any]:
    """Each field absent, or with one of its values."""
    chosen = {name: draw.choice(values) if draw.random() < 0.2 else values[0] for name, values in fields.items()}
    return {name: value for name, value in chosen.items() if value is not None or draw.random() < 0.5}


def test_a_reply_of_one_text_is_read_as_any_other():
    draw = random.Random(3)
    bodies = [drawn(draw)[0] for _ in range(200)]
    for _ in range(2_000):
        choice = {**mostly_usual(CHOICES, draw), "message": mostly_usual(MESSAGES, draw)}
        bodies.append({**mostly_usual(COMPLETIONS, draw), "choices": [choice] * draw.choice((1, 1, 1, 1, 0, 2))})
    plain = 0
    for body in bodies:
        completion = msgspec.convert(body, Completion)
        found = read_plain(completion)
        if found is not None:
            plain += 1
            assert found == read(completion) and found.more == () and found.tokens is None
            assert completion.choices is not None and completion.choices[0].error is None
    assert 300 < plain < 2_000, "the draw must hold both kinds"
