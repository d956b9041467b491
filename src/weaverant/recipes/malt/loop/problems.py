"""Which problems are woven in which round, which decide about a round, and which the report counts: never the same.

Rows are told apart by their question's text, and drawn by a hash of it: the smallest hashes are held out, the largest
woven, so no list needs to be in a fair order, and one of millions is read once and never held.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from hashlib import blake2b
from heapq import heappush, heappushpop
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from weaverant.errors import UserError
from weaverant.protocols import Unreadable
from weaverant.recipes.malt.grading import grader_for
from weaverant.recipes.malt.loop.kept import read_json, write_json
from weaverant.recipes.malt.team import question_of
from weaverant.sources import open_source

Row = Mapping[str, Any]

FOLDER = "problems"
COUNTS = "counts.json"
SHARES = {"weave": 0.5, "gate": 0.2, "report": 0.3}
"""Of the rows, where one list holds all and has too few of them."""


class Wanted(NamedTuple):
    """How many of each."""

    rounds: int
    questions: int
    """Woven in a round."""
    gate: int
    """That decide about a round; each round has its own."""
    report: int


class Drawn(NamedTuple):
    """Rows of one list, and what of it could not be used, by reason."""

    smallest: list[Row]
    largest: list[Row]
    left_out: Counter[str]
    total: int


def draw(spec: str, checker: str, smallest: int, largest: int) -> Drawn:
    """The rows with the smallest and with the largest hashes, each question once, in the order of the hashes. Rows
    whose question, or whose gold answer for the checker, cannot be read are left out and counted."""
    low, high = Smallest(smallest), Smallest(largest)
    left_out: Counter[str] = Counter()
    total = 0
    for value in open_source(spec).rows(0):
        total += 1
        why = unusable(value, checker)
        if why or isinstance(value, Unreadable):
            left_out[why] += 1
            continue
        number = hash_of(value["question"])
        if number in low or -number in high:  # of a list that is larger than what is drawn not all are noticed
            left_out["the same question once more"] += 1
            continue
        low.add(number, value)
        high.add(-number, value)
    return Drawn(low.rows, high.rows[::-1], left_out, total)


def unusable(value: Any, checker: str) -> str:
    """Why a row cannot be used; empty where it can."""
    if isinstance(value, Unreadable):
        return f"cannot be read: {value.text}"
    try:
        question_of(value)
        grader_for(value, checker)
    except UserError as error:
        return str(error).partition("; found")[0]
    return ""


def hash_of(question: str) -> int:
    """64 bits of the question's text, without the blanks around it."""
    return int.from_bytes(blake2b(question.strip().encode(errors="replace"), digest_size=8).digest(), "big")


class Smallest:
    """The rows with the smallest numbers, each number once, no more than `most` in memory."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._heap: list[tuple[int, int]] = []
        self._found: dict[int, Row] = {}

    def add(self, number: int, row: Row) -> None:
        if number in self._found or not self._most:
            return
        if len(self._heap) < self._most:
            heappush(self._heap, (-number, number))
        elif -number < self._heap[0][0]:
            return
        else:
            del self._found[heappushpop(self._heap, (-number, number))[1]]
        self._found[number] = row

    def __contains__(self, number: int) -> bool:
        return number in self._found

    @property
    def rows(self) -> list[Row]:
        return [self._found[number] for number in sorted(self._found)]


class Pools(NamedTuple):
    """Rows by purpose: `weave` and `gate` by round."""

    weave: list[list[Row]]
    gate: list[list[Row]]
    report: list[Row]
    left_out: dict[str, int]

    def files(self) -> Iterator[tuple[str, list[Row]]]:
        for number, (weave, gate) in enumerate(zip(self.weave, self.gate, strict=True), 1):
            yield f"weave-{number}.jsonl", weave
            yield f"gate-{number}.jsonl", gate
        yield "report.jsonl", self.report


def pools_of(problems: str, held_out: str | None, checker: str, wanted: Wanted) -> Pools:
    """Draw them. With too few rows each purpose gets less, in proportion. `UserError` where one gets none."""
    held = wanted.rounds * wanted.gate + wanted.report
    found = draw(problems, checker, held if held_out is None else 0, wanted.rounds * wanted.questions)
    left_out = Counter({f"{problems}: {why}": count for why, count in found.left_out.items()})
    weave, kept = found.largest, found.smallest
    if held_out is not None:
        other = draw(held_out, checker, held, 0)
        left_out.update({f"{held_out}: {why}": count for why, count in other.left_out.items()})
        kept = other.smallest
        taken = {hash_of(row["question"]) for row in kept}
        weave = [row for row in weave if hash_of(row["question"]) not in taken]
        if both := len(found.largest) - len(weave):
            left_out[f"{problems}: held out as well"] = both
    elif {hash_of(row["question"]) for row in weave} & {hash_of(row["question"]) for row in kept}:
        usable = len({hash_of(row["question"]) for row in (*weave, *kept)})  # it overlaps only where it holds them all
        shares = (SHARES["weave"], SHARES["gate"] + SHARES["report"])
        first, second = _shrunk(usable, (wanted.rounds * wanted.questions, held), shares)
        weave, kept = weave[len(weave) - first :], kept[:second]
    gate, report = _shrunk(
        len(kept), (wanted.rounds * wanted.gate, wanted.report), (SHARES["gate"], SHARES["report"])
    )  # fmt: skip
    pools = Pools(
        _parts(weave, wanted.rounds), _parts(kept[report : report + gate], wanted.rounds), kept[:report], dict(left_out)
    )
    for name, rows in pools.files():
        if not rows and not (name == "report.jsonl" and not wanted.report):
            raise UserError(
                f"{problems!r}{f' and {held_out!r} have' if held_out else ' has'} too few rows that can be used: none "
                f"is left for {name}. {told_left_out(left_out)}"
            )
    return pools


def _shrunk(there: int, wanted: tuple[int, int], shares: tuple[float, float]) -> tuple[int, int]:
    """Two counts that are there together: what is wanted, or where that is too much, by shares."""
    if sum(wanted) <= there:
        return wanted
    first = min(wanted[0], max(round(there * shares[0] / sum(shares)), there - wanted[1]))
    return first, min(wanted[1], there - first)


def _parts(rows: list[Row], count: int) -> list[list[Row]]:
    """As many equal parts; what does not divide goes to the first ones."""
    size, more = divmod(len(rows), count)
    ends = [size * number + min(number, more) for number in range(count + 1)]
    return [rows[start:end] for start, end in pairwise(ends)]


def told_left_out(left_out: Mapping[str, int]) -> str:
    """What could not be used, in one line."""
    if not left_out:
        return "No row was left out"
    told = "; ".join(f"{count:,} of {why}" for why, count in sorted(left_out.items(), key=lambda one: -one[1])[:5])
    return f"Left out: {told}"


def write_pools(folder: Path, pools: Pools) -> dict[str, int]:
    """The files, as JSON lines, all at once; their sizes."""
    unfinished = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    encode = msgspec.json.Encoder().encode
    for name, rows in pools.files():
        (unfinished / name).write_bytes(b"".join(encode(row) + b"\n" for row in rows))
    counts = {name.removesuffix(".jsonl"): len(rows) for name, rows in pools.files()}
    write_json(unfinished / COUNTS, {"problems": counts, "left_out": pools.left_out})
    unfinished.rename(folder)
    return counts


def problems_in(folder: Path) -> tuple[dict[str, int], dict[str, int]]:
    """Sizes by file, and what was left out, as `write_pools` wrote them."""
    found = read_json(folder / COUNTS)
    return found["problems"], found["left_out"]
