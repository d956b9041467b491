"""The pool of small models: its questions and checkers, its prompts, and what its real weights answer."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from random import Random

import pytest

from weaverant.errors import UserError
from weaverant.routing import tiny_prompts as tiny
from weaverant.routing.pool import Pool

HERE = Path(__file__).parents[1] / "training/specialists"


def script(name: str):
    """A module of `training/specialists`, which is no package."""
    sys.path.insert(0, str(HERE))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(HERE))


problems = script("problems")
NAMES = list(json.loads((HERE / "pool.json").read_text())["models"])


def replies(name: str, prompts: list[str], temperature: float = 0.7) -> list[str]:
    """What a member says, with its real weights in the numpy engine."""
    return [one[0].text for one in script("sample").heard(HERE / "models" / name, prompts, 1, temperature)]


# Questions and checkers


@pytest.mark.parametrize(
    ("task", "given", "answer"),
    [
        ("sum", "47 38", "85"),
        ("product", "47 6", "282"),
        ("reverse", "abcde", "edcba"),
        ("odd", "abcde", "ace"),
        ("nth", "abcde 4", "e"),
        ("ends", "abcde", "ae"),
        ("up", "73926", "23679"),
        ("down", "73926", "97632"),
        ("largest", "73926", "9"),
        ("smallest", "73926", "2"),
        ("middle", "73926", "6"),
        ("letters", "hcabh", "abchh"),
        ("digits", "73926", "62937"),
        ("run", "47 6 %", "5"),
        ("program", "47 6 = 53", "+"),
        ("program", "47 6 = 7", "/"),
        ("program", "47 6 20 = 73", "++"),
    ],
)
def test_what_is_right_is_what_was_computed_by_hand(task, given, answer):
    assert problems.solved(task, given) == answer


def test_all_questions_can_be_checked_and_fit_the_prompts():
    for it in problems.mixed("test", 1_000):
        assert it.split == "test"
        assert it.right(it.answer)
        assert it.right(tiny.answer(it.working))
        assert not it.right("")
        assert not it.right(it.answer + "?")
        assert len(it.question) <= tiny.QUESTION
        assert len(it.answer) <= tiny.ANSWER


@pytest.mark.parametrize(
    ("program", "numbers", "made"),
    [
        ("+", "47 6", 53),
        ("-", "6 47", -41),
        ("*", "47 6", 282),
        ("/", "47 6", 7),
        ("%", "47 6", 5),
        ("+-", "47 6 2", 51),
        ("-*", "47 6 2", 82),
    ],
)
def test_a_program_is_run(program, numbers, made):
    assert problems.run(program, numbers) == made


@pytest.mark.parametrize("program", ["", "++", "+ ", " +", "p", "__import__('os')", "**", "9", "\n"])
def test_what_is_no_program_runs_nothing(program):
    assert problems.run(program, "47 6") is None


def test_a_program_that_divides_by_zero_makes_nothing():
    assert problems.run("/", "47 0") is None
    assert problems.run("%", "47 0") is None


def test_every_program_with_the_right_result_is_right():
    it = problems.Problem("programs", "program", "12 2 10: make 20", "12 2 10 = 20", "-+", "-+")
    assert it.right("-+")
    assert not it.right("+-")
    other = problems.Problem("programs", "program", "4 2: make 2", "4 2 = 2", "-", "-")
    assert other.right("-") and other.right("/")
    assert not other.right("%")


def test_splits_share_no_task():
    dice = Random(1)
    drawn = {of: [problems.problem("multiplication", of, dice) for _ in range(300)] for of in ("train", "test")}
    told = {of: {(it.task, it.given) for it in each} for of, each in drawn.items()}
    assert told["train"] and told["test"] and not told["train"] & told["test"]


def test_the_same_seed_gives_the_same_questions():
    first = [it.question for it in problems.mixed("validation", 50, 3)]
    assert first == [it.question for it in problems.mixed("validation", 50, 3)]
    assert len(set(first)) == 50
    with pytest.raises(ValueError, match="expected a set"):
        problems.problem("poetry", "test", Random(0))


# Prompts


def test_prompts_are_what_their_table_says():
    told = ["85", "75"]
    question = "47 38: add them"
    padded = "47 38: add them         \n1:85    \n2:75    \n"
    assert tiny.ask(f" {question}\n") == question
    assert tiny.ask_scored(question) == "47 38: add them?"
    assert tiny.improve(question, told) == padded + "better"
    assert tiny.improve(question, told, scored=True) == padded + "scored"
    assert tiny.aggregate(question, told) == padded + "settle"
    assert tiny.judge(question, told) == padded + "judges"


def test_an_answer_with_line_ends_cannot_pose_as_another():
    lines = tiny.aggregate("q", ["1\n2:9\nfinal", "3"]).splitlines()
    assert [line.rstrip() for line in lines] == ["q", "1:1 2:9 final", "2:3", "settle"]


def test_more_answers_than_digits_are_refused():
    tiny.aggregate("q", ["1"] * tiny.MOST_ANSWERS)
    with pytest.raises(ValueError, match="at most 9"):
        tiny.aggregate("q", ["1"] * (tiny.MOST_ANSWERS + 1))


@pytest.mark.parametrize("own", [0, 1 / 9, 5 / 9, 1])
@pytest.mark.parametrize("peers", [(), (1.0,), (0.0, 4 / 9, 1.0)])
def test_scores_are_read_as_they_are_written(own, peers):
    text = f"42 28=282\n{tiny.scores(own, peers or None)}"
    said = tiny.read(text, len(peers))
    assert said.answer == "282"
    assert said.own == own
    assert said.peers == (peers or None)


@pytest.mark.parametrize(
    ("text", "told", "said"),
    [
        ("85", 0, tiny.Said("85")),
        ("", 2, tiny.Said("")),
        ("self: 8", 0, tiny.Said("", 8 / 9)),
        ("peers: 9 0", 2, tiny.Said("", None, (1.0, 0.0))),
        ("85\nself: 12", 0, tiny.Said("85")),
        ("85\nself: x\npeers: 9 0", 2, tiny.Said("85", None, (1.0, 0.0))),
        ("85\npeers: 9", 2, tiny.Said("85")),
        ("85\npeers: 9 9 9", 2, tiny.Said("85")),
        ("85\npeers: 9 0", 0, tiny.Said("85")),
        ("85 self: 9", 0, tiny.Said("85 self: 9")),
    ],
)
def test_what_is_no_score_is_none(text, told, said):
    assert tiny.read(text, told) == said


# The models


def test_the_pool_opens_with_prices_that_grow_with_the_size():
    pool = Pool.open(HERE / "pool.json")
    sizes = {name: (HERE / "models" / name / "model.safetensors").stat().st_size for name in NAMES}
    assert len(NAMES) >= 6 and set(pool.members) == set(NAMES)
    assert all(size <= 600_000 for size in sizes.values())
    dear = sorted(NAMES, key=lambda name: pool.price(name) or (0.0, 0.0))
    assert [sizes[name] for name in dear] == sorted(sizes.values())
    assert all(member.identity.startswith(f"embedded:{name}@") for name, member in pool.members.items())


@pytest.mark.parametrize("name", problems.DOMAINS)
def test_a_specialist_is_good_at_its_domain_and_not_at_others(name):
    dice = Random(f"held out {name}")
    home = [problems.problem(name, "test", dice) for _ in range(100)]
    away = [problems.problem(of, "test", dice) for of in problems.DOMAINS if of != name for _ in range(25)]
    said = replies(name, [tiny.ask(it.question) for it in (*home, *away)])
    right = [it.right(tiny.answer(text)) for it, text in zip([*home, *away], said, strict=True)]
    assert sum(right[:100]) > (75 if name == "programs" else 90)  # programs: 81 when they were trained
    assert sum(right[100:]) < 50


@pytest.mark.parametrize("name", problems.DOMAINS)
def test_a_specialist_is_surer_where_it_is_right(name):
    dice = Random(f"sure {name}")
    some = [problems.problem(name, "test", dice) for _ in range(50)]
    some += [problems.problem(of, "test", dice) for of in problems.DOMAINS if of != name for _ in range(15)]
    said = [tiny.read(text) for text in replies(name, [tiny.ask_scored(it.question) for it in some])]
    graded = [(one.own, it.right(one.answer)) for it, one in zip(some, said, strict=True) if one.own is not None]
    sure, unsure = ([own for own, right in graded if right is ok] for ok in (True, False))
    assert len(graded) > 0.6 * len(some)
    assert sum(sure) / len(sure) > sum(unsure) / len(unsure) + 0.2


@pytest.mark.parametrize("name", NAMES)
def test_a_member_gives_as_many_scores_as_it_was_told_answers(name):
    dice = Random(7)
    some = [problems.problem(of, "test", dice) for of in problems.SETS for _ in range(8)]
    told = [[it.answer, "12", "abc"] for it in some]
    prompts = [tiny.improve(it.question, each, scored=True) for it, each in zip(some, told, strict=True)]
    said = [tiny.read(text, 3) for text in replies(name, prompts)]
    assert sum(one.own is not None and one.peers is not None for one in said) > 0.9 * len(said)


@pytest.fixture(scope="module")
def answered():
    """Held-out problems of all domains, and what every member answers, in the order of names."""
    dice = Random("answered")
    some = [problems.problem(of, "test", dice) for of in problems.DOMAINS for _ in range(30)]
    firsts = {
        name: [tiny.answer(text) for text in replies(name, [tiny.ask(it.question) for it in some])] for name in NAMES
    }
    return some, firsts


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("prompt", [tiny.improve, tiny.aggregate])
def test_of_all_answers_every_member_keeps_what_the_specialist_has_right(name, prompt, answered):
    some, firsts = answered
    known = [at for at, it in enumerate(some) if it.right(firsts[it.set][at])]
    assert len(known) > 0.8 * len(some)
    prompts = [prompt(some[at].question, [firsts[each][at] for each in NAMES]) for at in known]
    kept = [some[at].right(tiny.answer(text)) for at, text in zip(known, replies(name, prompts), strict=True)]
    alone = [some[at].right(firsts[name][at]) for at in known]
    assert sum(kept) > 0.7 * len(known)
    assert sum(kept) > sum(alone)


@pytest.mark.parametrize("name", NAMES)
def test_a_judge_scores_what_is_right_above_what_is_not(name, answered):
    some, firsts = answered
    told = [[firsts[each][at] for each in NAMES] for at in range(len(some))]
    said = replies(name, [tiny.judge(it.question, each) for it, each in zip(some, told, strict=True)])
    peers = [tiny.read(text, len(NAMES)).peers for text in said]
    graded = [
        (score, it.right(one)) for it, each, scores in zip(some, told, peers, strict=True) if scores
        for one, score in zip(each, scores, strict=True)
    ]  # fmt: skip
    assert len(graded) > 0.9 * len(NAMES) * len(some)
    sure, unsure = ([score for score, right in graded if right is ok] for ok in (True, False))
    assert sum(sure) / len(sure) > sum(unsure) / len(unsure) + 0.25


def test_a_folder_that_is_none_says_what_is_missing(tmp_path):
    (tmp_path / "pool.json").write_text('{"models": {"one": "embedded:models/none"}}')
    with pytest.raises(UserError, match="cannot open the embedded model"):
        Pool.open(tmp_path / "pool.json")
