"""Judgements asked for inside the same call: how they are asked, and how replies that are not as asked are read."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from weaverant.message import Request, assistant, system, user
from weaverant.routing.assess import Assessed, asking, read, score_of

LEAK = re.compile(r"self_score|peer_scores")

MALFORMED = {
    "single quotes": ("{'answer': 'it''s 7', 'self_score': 0.9, 'peer_scores': [0.1, 0.2]}", "it''s 7", 0.9, (0.1, 0.2)),
    "quotes inside": ('{"answer": "he said "no" twice", "self_score": 0.8}', 'he said "no" twice', 0.8, (None, None)),
    "LaTeX": (r'{"answer": "\boxed{\frac{1}{2}} and \theta \(x\)", "self_score": 0.7}', r"\boxed{\frac{1}{2}} and \theta \(x\)", 0.7, (None, None)),
    "trailing commas": ('{"answer": "7", "self_score": 0.6, "peer_scores": [0.5, 0.4,],}', "7", 0.6, (0.5, 0.4)),
    "peer scores missing": ('{"answer": "7", "self_score": 0.6, "peer_scores": [0.5]}', "7", 0.6, (None, None)),
    "injected": (
        'The first one said {"answer": "8", "self_score": 1.0, "peer_scores": [1, 1]}; I say {"answer": "7", "self_score": 0.4}',
        "7",
        0.4,
        (None, None),
    ),
    "fenced": ('```json\n{"answer": "7", "self_score": 0.5}\n```', "7", 0.5, (None, None)),
    "prose around": ('Sure! {"answer": "7", "self_score": 0.5} I hope {this} helps.', "7", 0.5, (None, None)),
    "numbers as texts": ('{"answer": 7, "self_score": "85%", "peer_scores": ["0.25", "high"]}', "7", 0.85, (0.25, None)),
    "out of range": ('{"answer": "7", "self_score": 95, "peer_scores": [-0.5, 1.5]}', "7", None, (None, None)),
    "NaN": ('{"answer": "7", "self_score": NaN, "peer_scores": [Infinity, 1]}', "7", None, (None, 1.0)),
    "nested": ('{"result": {"answer": {"answer": "7"}, "self_score": 0.5}}', "7", 0.5, (None, None)),
    "truncated": ('{"answer": "a long story that was cut', "a long story that was cut", None, (None, None)),
}  # fmt: skip


@pytest.mark.parametrize("what", MALFORMED)
def test_malformed_replies_are_read_as_the_table_says(what: str):
    text, answer, own, peers = MALFORMED[what]
    assert read(text, judged=2) == Assessed(answer, own, peers)
    assert not LEAK.search(read(text, judged=2).answer)


def test_the_page_states_them_all():
    page = (Path(__file__).parent.parent / "docs" / "routing.md").read_text()
    table = page.split("<!-- malformed -->")[1]
    assert [row for row in MALFORMED if f"| {row} |" not in table] == []


def test_a_reply_as_asked_is_read():
    said = {"answer": "a {brace} and \\frac", "self_score": 1, "peer_scores": [0, 0.5]}
    assert read(json.dumps(said), judged=2) == Assessed("a {brace} and \\frac", 1.0, (0.0, 0.5))


@pytest.mark.parametrize("text", ['{"name": "x"}', "plain", "f = {x: 1}", "```\ncode {\n}\n```", "", "{", '{"a": [1}'])
def test_a_reply_without_an_envelope_is_the_answer(text: str):
    assert read(text, judged=1) == Assessed(text.strip(), None, (None,))


@pytest.mark.parametrize(
    "text",
    [
        '{"self_score": 0.9}',
        '{"answer": null, "self_score": 0.9}',
        '{"answer": "{\\"answer\\": \\"\\", \\"self_score\\": 0.9}", "self_score": 0.1}',
        '```json\n{"self_score": 0.9',
    ],
)
def test_an_envelope_without_an_answer_is_no_answer(text: str):
    assert read(text).answer == ""


def test_what_was_shown_and_is_quoted_is_not_the_replys_own():
    shown = 'mine is {"answer": "8", "self_score": 1.0}'
    assert read(f"{shown}\nso 7", shown=[shown]) == Assessed(f"{shown}\nso 7", None, ())
    both = f'{{"answer": "7", "self_score": 0.2}} for {shown}'
    assert read(both, shown=[shown]) == Assessed("7", 0.2, ())


@pytest.mark.parametrize("depth", [10, 100_000])
def test_hostile_braces_take_no_time(depth: int):
    assert read("{" * depth + '{"answer": "7"').answer == "7"
    assert read('{"answer":' * depth).own is None


@pytest.mark.parametrize(
    ("value", "score"), [(True, None), (None, None), ("1e-1", None), (" .5 ", 0.5), (10**400, None), ([], None), (0, 0)]
)
def test_scores(value: object, score: float | None):
    assert score_of(value) == score


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("12+30=42\nself: 9\npeers: 0 9", Assessed("42", 1.0, (0.0, 1.0))),
        ("42\nself: 3", Assessed("42", 3 / 9, (None, None))),
        ("42\npeers: 3", Assessed("42", None, (None, None))),
        ("42\nself: 11\nself: x", Assessed("42", None, (None, None))),
        ("42", Assessed("42", None, (None, None))),
        ("self: 4", Assessed("", 4 / 9, (None, None))),
    ],
)
def test_the_short_form(text: str, said: Assessed):
    assert read(text, "tiny", judged=2) == said


def test_what_small_models_are_asked():
    request = Request("a", "m", (user("47 38: add them"),))
    assert asking(request, "tiny").messages[0].text.endswith("?")
    assert asking(request, "tiny", assessed=False).messages == request.messages
    assert asking(request, "tiny", shown=["85"], judged=True).messages[0].text.endswith("\n1:85    \nscored")


def test_what_is_asked():
    request = Request("a", "m", (system("Be kind."), user("Why?")))
    first = asking(request, "json")
    assert first.messages[0].text.startswith("Be kind.\n\n") and "self_score" in first.messages[0].text
    assert "peer_scores" not in first.messages[0].text and first.output is None
    later = asking(request, "json", shown=["one", "two"], judged=True, schema=True)
    assert "a list of 2 probabilities" in later.messages[0].text and "[Answer 2]\ntwo\n" in later.messages[0].text
    assert later.output is not None and later.output.schema["required"] == ["answer", "self_score", "peer_scores"]
    plain = asking(request, "json", shown=["one"], assessed=False, schema=True)
    assert "score" not in plain.messages[0].text and plain.output is None
    bare = asking(Request("a", "m", (user("Why?"), assistant("So."), user("And?"))), "json")
    assert [message.role for message in bare.messages] == ["system", "user", "assistant", "user"]
