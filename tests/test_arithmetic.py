"""The problem source: disjoint pools, exact answers, the same rows every time."""

from __future__ import annotations

import re

import pytest

from weaverant.sources.arithmetic import (
    CHANGES,
    GAINS,
    LOSSES,
    PROBLEMS,
    PROMPTS,
    Arithmetic,
    Problem,
    last_number,
    problem,
)

POOLS = ("train", "weave", "heldout")
GRAMMAR = re.compile(r"([A-Z][a-z]{2}) has (\d) ([a-z]{4})((?:, [a-z]{5} [1-9]){4})\. How many\?")


def test_pools_are_disjoint_and_together_hold_every_problem():
    pools = [{row["id"] for row in Arithmetic(pool).rows(0)} for pool in POOLS]
    assert sum(map(len, pools)) == len(set.union(*pools)) == PROBLEMS
    train, weave, heldout = map(len, pools)
    assert train >= 10_000 and weave >= 2_000 and heldout >= 2_000


def test_no_question_is_asked_in_two_pools_nor_with_the_same_numbers():
    asked: dict[str, str] = {}
    for pool in POOLS:
        for row in Arithmetic(pool).rows(0):
            found = GRAMMAR.fullmatch(row["question"])
            assert found, row
            signed = re.sub("|".join(GAINS), "+", re.sub("|".join(LOSSES), "-", found[4]))
            assert asked.setdefault(found[2] + signed, row["question"]) == row["question"]
    assert len(asked) == len(set(asked.values())) == PROBLEMS


def test_answers_are_what_the_words_say():
    for row in Arithmetic("heldout").rows(0):
        found = GRAMMAR.fullmatch(row["question"])
        assert found
        total = int(found[2])
        for verb, amount in re.findall(r"([a-z]{5}) (\d)", found[4]):
            total += int(amount) if verb in GAINS else -int(amount)
            assert 0 <= total <= 9
        assert row["answer"] == str(total)


def test_rows_are_the_same_from_any_index_and_in_every_instance():
    source = Arithmetic("weave", limit=50)
    everything = list(source.rows(0))
    assert source.count() == len(everything) == 50
    assert source.name == "arithmetic:weave" and source.rereadable
    for start in (1, 17, 49, 50, 99):
        assert list(Arithmetic("weave", limit=50).rows(start)) == everything[start:]
    assert list(Arithmetic("weave").rows(Arithmetic("weave").count() - 1))
    question = "Tom has 2 hats, gives 2, finds 9, gives 4, makes 3. How many?"
    assert everything[0] == {"id": "arithmetic-44640", "question": question, "answer": "8"}


def test_a_limit_beyond_the_pool_serves_the_pool():
    assert Arithmetic("weave", limit=10**9).count() == Arithmetic("weave").count()
    assert list(Arithmetic("weave", limit=0).rows(0)) == []


def test_bad_pools_and_limits_are_refused():
    with pytest.raises(ValueError, match=r"no such pool.*'test'"):
        Arithmetic("test")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="-1"):
        Arithmetic("weave", limit=-1)


def test_a_problem_knows_its_totals():
    assert Problem(3, (4, -2, 1, -6)).totals == (7, 5, 6, 0)
    assert Problem(3, (4, -2, 1, -6)).answer == 0
    assert len({problem(number) for number in range(PROBLEMS)}) == PROBLEMS
    assert all(len(problem(number).changes) == CHANGES for number in range(100))


@pytest.mark.parametrize(
    ("text", "number"), [("5-5=0 0+3=3 so 3", "3"), ("I keep 12.", "12"), ("Looks right.", None), ("", None)]
)
def test_the_last_number_is_the_answer(text: str, number: str | None):
    assert last_number(text) == number


def test_every_role_has_a_prompt():
    told = {"question": "Q", "attempt": "A", "critique": "C"}
    assert [PROMPTS[role].format_map(told) for role in ("generator", "verifier", "refiner")] == [
        "Q",
        "Q\nA\ncheck:",
        "Q\nA\nC\nanswer:",
    ]
