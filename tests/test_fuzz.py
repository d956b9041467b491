"""The fuzzers' short form: a few seconds of each, growth, and proof that they find faults that are planted.

The long form is `make fuzz`.
"""

from __future__ import annotations

import gc
import math
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fuzz
import fuzz_calls
import fuzz_forgery
import fuzz_replies

CASES = {"journal": 150, "forgery": 120, "runs": 60, "sources": 400, "replies": 500, "calls": 2_000, "streams": 200}
GROWING: dict[str, Callable[[int], Any]] = {
    f"{module.__name__.removeprefix('fuzz_')}: {name}": case
    for module in (fuzz_replies, fuzz_calls, fuzz_forgery)
    for name, case in module.GROWING.items()
}
LONG_ENOUGH = 0.02
"""Seconds that a measurement takes at least."""
PLANTED = {
    "journal: checksums are not compared": (
        "journal",
        "import weaverant.journal.segment as m; m._Packed.fits = lambda self, offset: True",
    ),
    "journal: damage is taken for a torn end": (
        "journal",
        "import weaverant.journal.segment as m; m.Segment.next_frame = lambda *_: None",
    ),
    "journal: an index is believed": ("forgery", "import weaverant.journal.parts as m; m._is_whole = lambda *_: True"),
    "resume: the last of two outcomes of a step holds": (
        "runs",
        "import weaverant.past as m; m.in_order = iter\n"
        "read = m.Past._read_step\n"
        "def spoilt(self, event):\n    self.steps.pop((event.path, event.fingerprint, event.occurrence), None)\n"
        "    read(self, event)\n"
        "m.Past._read_step = spoilt",
    ),
    "resume: segments that have changed their names are taken": (
        "runs",
        "import weaverant.journal.index as m; make = m.SegmentIndex.summary\n"
        "m.SegmentIndex.summary = lambda self, maps, number=0: make(self, maps)",
    ),
    "resume: counts need not add up": (
        "runs",
        "import weaverant.journal.reader as m; m.check_counts = lambda *_: None",
    ),
    "show: control characters go to the terminal": (
        "forgery",
        "import weaverant.cli.streams as m; m.visible = lambda text: text + chr(27)",
    ),
    "replies: the last of two keys wins": (
        "replies",
        "import json, weaverant.jsontext as m; m._decoder = json.JSONDecoder(parse_constant=m._constant)",
    ),
    "replies: the first value is taken": (
        "replies",
        "import weaverant.schema as m; find = m.find_json; m.find_json = lambda text: find(text)[:1]",
    ),
    "streams: a line feed behind a return counts": (
        "streams",
        "import weaverant.engines.http.chat.sse as m; feed = m.Events.feed\n"
        "def spoilt(self, piece):\n    self._after_return = False\n    return feed(self, piece)\n"
        "m.Events.feed = spoilt",
    ),
    "sources: what comes after damage is lost": (
        "sources",
        "import weaverant.sources.jsonl as m; row = m.line_row\n"
        "def spoilt(record, name):\n    return row((record[0], record[1].strip()[:-1] + b'}'), name)\n"
        "m.line_row = spoilt",
    ),
}


@pytest.mark.parametrize("target", fuzz.TARGETS)
def test_some_seconds_of_it_find_nothing(target: str):
    tried, failure = fuzz.in_child(target, 1, 120, CASES[target])
    assert not failure and tried == CASES[target], failure


@pytest.mark.parametrize("name", GROWING)
def test_no_hostile_text_takes_more_than_time_in_proportion(name: str):
    """Eight times the text, at most 24 times the CPU time: in the square of it would be 64."""
    case, size = GROWING[name], 500
    while seconds(case, size) < LONG_ENOUGH and size < 2_000_000:
        size *= 2
    ratios: list[float] = []
    while len(ratios) < 3 and min(ratios, default=math.inf) >= 24:  # a busy machine may slow one down
        ratios.append(seconds(case, 8 * size) / max(seconds(case, size), LONG_ENOUGH))
    assert min(ratios) < 24, (size, ratios)


def seconds(case: Callable[[int], Any], size: int) -> float:
    """CPU time of the quicker of two, of itself: the garbage of the other tests is not looked through meanwhile."""
    best = math.inf
    gc.collect()
    gc.disable()
    try:
        for _ in range(2):
            began = time.process_time()
            case(size)
            best = min(best, time.process_time() - began)
    finally:
        gc.enable()
    return best


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_fault_is_found_and_found_again(name: str):
    target, fault = PLANTED[name]
    case = first_failure(target, fault, "range(2_000)")
    assert case is not None
    assert first_failure(target, fault, f"range({case}, {case + 1})") == case
    assert first_failure(target, "pass", f"range({case}, {case + 1})") is None


def first_failure(target: str, fault: str, cases: str) -> int | None:
    """The number of the case that fails in a process with that fault in it; None if none does."""
    with tempfile.TemporaryFile() as state:
        code = f"{fault}\nimport fuzz\nfuzz.attempt({target!r}, 1, {cases}, 250, {state.fileno()})"
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, pass_fds=(state.fileno(),),
            check=False,
        )  # fmt: skip
        state.seek(0)
        case = state.read(20)
        assert case, done.stderr.decode()
        return int(case) if done.returncode else None


def test_the_command_that_is_printed_replays_the_case():
    command = fuzz.replay_command("replies", 3, 17).split()
    assert command[1:] == ["tests/fuzz.py", "replies", "--seed", "3", "--case", "17"]
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, *command[1:]], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout == "no fault\n"


def test_the_long_form_tells_its_seed_and_what_it_tried():
    root = Path(__file__).parent.parent
    command = [sys.executable, "tests/fuzz.py", "calls", "replies", "--seed", "5", "--cases", "20"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    assert re.fullmatch(r"seed 5\n(\w+ +20 cases +[\d.]+ s  no fault\n){2}", done.stdout), done.stdout
