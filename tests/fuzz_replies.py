"""What models write where JSON is wanted: a value that a strict parser of our own reads in the same text, or `Misfit`."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from pydantic import BaseModel

from fuzz_data import spoilt, text, value
from weaverant.jsontext import NotJson, decode, find_json
from weaverant.schema import Misfit, Output, Tool


class Verdict(BaseModel):
    hard: bool
    score: float
    why: str = ""
    parts: list[int] = []


def tool(name: str, number: float = 1.5, more: list[str] | None = None) -> None:
    """A tool."""


ANYTHING, VERDICT, NUMBERS = Output({}, "fuzz"), Output(Verdict, "fuzz"), Output(list[float], "fuzz")
TOOL = Tool(tool, "fuzz")
WORDS = (
    "Sure: ",
    "The answer is ",
    "\n\n",
    "<think>hm [1]</think>",
    "```json\n",
    "\n```",
    " and ",
    "[see below] ",
    "{x} ",
)


def replies(odds: Random, folder: Path) -> None:
    said = odds.choice((prose, prose, bare, odd))(odds)
    for output in (ANYTHING, VERDICT, NUMBERS):
        try:
            found = output.parse(said)
        except Misfit:
            continue
        assert output is not ANYTHING or sane(found), found  # pydantic makes a float of the text "NaN"
        if output is ANYTHING:
            values = stated(said)
            assert any(same(found, one) for one in values), f"{found!r:.200} is not in {said!r:.300}"
            assert not alone(said) or same(found, alone(said)[0])
    try:
        TOOL.arguments(said)
    except Misfit:
        pass
    check_one_of_many(odds)


def check_one_of_many(odds: Random) -> None:
    """Of different values in one text none is taken, and one that stands there several times is."""
    one, other = ({"a": odds.randrange(9)}, {"b": [odds.randrange(9)]})
    words = [odds.choice(("so ", "then: ", "(no)\n")) for _ in range(3)]
    assert ANYTHING.parse(f"{words[0]}{json.dumps(one)}{words[1]}{json.dumps(one, indent=1)} {words[2]}") == one
    try:
        found = ANYTHING.parse(f"{words[0]}{json.dumps(one)}{words[1]}{json.dumps(other)}")
    except Misfit:
        return
    raise AssertionError(f"{found} was guessed")


def bare(odds: Random) -> str:
    whole = json.dumps(odds.choice((value(odds), verdict(odds))), ensure_ascii=odds.random() < 0.5)
    return whole if odds.random() < 0.3 else spoilt(whole.encode(), odds).decode(errors="replace")


def verdict(odds: Random) -> dict[str, Any]:
    return {"hard": True, "score": odds.choice((1, 0.5, "2")), "why": text(odds), "parts": [1, 2]}


def prose(odds: Random) -> str:
    pieces = [odds.choice((odds.choice(WORDS), bare(odds), text(odds))) for _ in range(odds.randint(1, 5))]
    return "".join(pieces)


def odd(odds: Random) -> str:
    piece = odds.choice(ODD)
    return piece if odds.random() < 0.5 else f"{odds.choice(WORDS)}{piece}{odds.choice(WORDS)}"


ODD = (
    *("[" * 100_000, '{"a":' * 50_000, "[" * 250 + "]" * 250, '{"a":NaN}', "[Infinity]", "[-Infinity]", "[1e999]"),
    *('{"a":' + "9" * 400 + "}", "[" + "9" * 5_000 + "]", '{"a":1,"a":2}', '{"a":1,"a":1}', '{"a":{"b":1,"b":2}}'),
    *('{"a":"\\ud800"}', '["\\udc00\\ud800"]', '["\\ud83d\\ude00"]', '{"\\ud800":1}', "{}" * 200, "[x" * 5_000),
    *('{"a":1}{', '{"a":1', '["a', '{"a":"\n"}', "[1,]", '{"a":1,}', "{'a':1}", "[01]", "[+1]", "[.5]", "[1.]", "0x10"),
    *('{"hard":true,"score":"NaN"}', '{"hard":true,"score":1e999}', '{"hard":true,"score":1,"score":2}'),
)


# A strict parser of JSON (RFC 8259) that shares nothing with Python's

_SPACE = re.compile(r"[ \t\r\n]*")
_NUMBER = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?")
_STRING = re.compile(r'"((?:[^"\\\x00-\x1f]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*)"')
_ESCAPE = re.compile(r"\\u([dD][89abAB]..)\\u([dD][c-fC-F]..)|\\u(....)|\\(.)")
_PLAIN = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
DEEPEST = 300


class Refused(Exception):
    """Not JSON, or nothing that two parsers are sure to read alike."""


def parsed(said: str, at: int, level: int = 0) -> tuple[Any, int]:
    """The value that begins there, and where it ends."""
    at = _SPACE.match(said, at).end()
    if level > DEEPEST or at >= len(said):
        raise Refused
    if said[at] in "{[":
        return nested(said, at, level)
    if found := _STRING.match(said, at):
        return unescaped(found[1]), found.end()
    if found := _NUMBER.match(said, at):
        return number(found[0]), found.end()
    for word, meant in (("true", True), ("false", False), ("null", None)):
        if said.startswith(word, at):
            return meant, at + len(word)
    raise Refused


def nested(said: str, at: int, level: int) -> tuple[Any, int]:
    closing = {"{": "}", "[": "]"}[said[at]]
    members: list[Any] = []
    at = _SPACE.match(said, at + 1).end()
    if said[at : at + 1] == closing:
        return ({} if closing == "}" else []), at + 1
    while True:
        item, at = member(said, at, level) if closing == "}" else parsed(said, at, level + 1)
        members.append(item)
        at = _SPACE.match(said, at).end()
        mark, at = said[at : at + 1], at + 1
        if mark == closing:
            break
        if mark != ",":
            raise Refused
    if closing == "]":
        return members, at
    if len(dict(members)) < len(members):
        raise Refused
    return dict(members), at


def member(said: str, at: int, level: int) -> tuple[Any, int]:
    name, at = parsed(said, at, level + 1)
    at = _SPACE.match(said, at).end()
    if not isinstance(name, str) or said[at : at + 1] != ":":
        raise Refused
    item, at = parsed(said, at + 1, level + 1)
    return (name, item), at


def number(said: str) -> int | float:
    if not set(said) & set(".eE"):
        if len(said) > 308:
            raise Refused
        return int(said)
    if math.isinf(float(said)):
        raise Refused
    return float(said)


def unescaped(said: str) -> str:
    def one(found: re.Match[str]) -> str:
        if found[1]:
            return chr(0x10000 + ((int(found[1], 16) & 0x3FF) << 10) + (int(found[2], 16) & 0x3FF))
        if found[3]:
            return chr(int(found[3], 16))
        return _PLAIN.get(found[4], found[4])

    found = _ESCAPE.sub(one, said)
    if any("\ud800" <= c <= "\udfff" for c in found):
        raise Refused
    return found


def alone(said: str) -> list[Any]:
    """The value of a text that is nothing else, if it is one."""
    try:
        found, end = parsed(said, 0)
    except Refused:
        return []
    return [found] if not said[end:].strip(" \t\r\n") else []


def stated(said: str) -> list[Any]:
    """Every value that begins somewhere in the text."""
    found: list[Any] = []
    for at in range(min(len(said), 30_000)):
        if said[at] in '{["-0123456789tfn':
            try:
                found.append(parsed(said, at)[0])
            except Refused:
                pass
    return found


def same(one: Any, other: Any) -> bool:
    return type(one) is type(other) and repr(one) == repr(other) if not isinstance(one, dict | list) else one == other


def sane(found: Any) -> bool:
    """No NaN, no infinity, nothing that UTF-8 cannot carry."""
    try:
        json.dumps(found, ensure_ascii=False, allow_nan=False).encode()
    except ValueError:
        return False
    return True


def _find(said: str) -> None:
    try:
        find_json(said)
    except NotJson:
        pass
    try:
        ANYTHING.parse(said)
    except Misfit:
        pass
    try:
        decode(said)
    except NotJson:
        pass


GROWING: dict[str, Callable[[int], Any]] = {
    "open brackets": lambda n: _find("[" * n),
    "open objects": lambda n: _find('{"a":' * n),
    "brackets in words": lambda n: _find("[x " * n),
    "keys without end": lambda n: _find("{" + ",".join(f'"k{i}":1' for i in range(n))),
    "the same key": lambda n: _find("{" + ",".join('"k":1' for _ in range(n)) + "}"),
    "last key twice": lambda n: _find("{" + ",".join(f'"k{i}":1' for i in range(n)) + ',"k0":1}'),
    "quotes": lambda n: _find('["' * n),
    "half pairs": lambda n: _find('["' + "\\ud800" * n + '"]'),
    "fences": lambda n: _find("```json\n" * n),
    "thoughts": lambda n: _find("<think>" * n + "</think>" * n),
    "whole values": lambda n: _find("{} " * n),
}
