"""Evidence in log-odds: what judges are worth, who judges, and which answers are the same."""

from __future__ import annotations

from random import Random

import pytest

from weaverant.routing.evidence import CLEAR, Discernment, Evidence, Scoring, Trust, Verdict, judges, logit, sigmoid
from weaverant.routing.keys import Key, agreement, key_of, outcomes


def taught(claim_of: object, rounds: int = 400, seed: int = 1) -> Evidence:
    """An evidence that saw a judge whose claim is a function of the outcome and a random number."""
    evidence, random = Evidence(), Random(seed)
    for _ in range(rounds):
        prior = random.uniform(0.3, 0.8)
        outcome = float(random.random() < prior)
        evidence.learn(prior, [Verdict("self/m", claim_of(outcome, random))], outcome)  # type: ignore[operator]
    return evidence


def test_an_unknown_judge_weighs_exactly_nothing():
    evidence = Evidence()
    for prior in (0.1, 0.537, 0.9):
        assert evidence.after(prior, [Verdict("self/m", 1.0), Verdict("agreement", 0.0)]) == prior
    assert evidence.after(0.4, []) == 0.4


@pytest.mark.parametrize("claim", [1.0, 0.0, 0.98])
def test_a_judge_that_always_says_the_same_weighs_exactly_nothing(claim: float):
    evidence = taught(lambda outcome, random: claim)
    assert evidence.trust["self/m"].weight == 0.0
    assert evidence.after(0.3, [Verdict("self/m", claim)]) == 0.3


def test_a_judge_whose_words_tell_nothing_is_seldom_believed():
    """As many as the test's level says, of 200 judges; and those move little."""
    believed = [taught(lambda outcome, random: random.random(), 200, seed).trust["self/m"] for seed in range(200)]
    assert sum(trust.weight > 0 for trust in believed) <= 200 * 0.12
    assert CLEAR > 1.6


def test_a_judge_that_knows_is_believed_in_its_own_language():
    """One that says .9 of what is right and .7 of what is wrong; and a liar that says the contrary."""
    for good, bad in ((0.9, 0.7), (0.1, 0.95)):
        evidence = taught(lambda outcome, random, good=good, bad=bad: good if outcome else bad)
        assert evidence.after(0.5, [Verdict("self/m", good)]) > 0.8
        assert evidence.after(0.5, [Verdict("self/m", bad)]) < 0.2
        few = taught(lambda outcome, random, good=good, bad=bad: good if outcome else bad, rounds=19)
        assert few.after(0.5, [Verdict("self/m", good)]) == 0.5


def test_evidence_adds_in_log_odds():
    evidence = taught(lambda outcome, random: 0.9 if outcome else 0.2)
    evidence.trust["peer/n"] = evidence.trust["self/m"]
    one = evidence.weighed(Verdict("self/m", 0.9))
    both = evidence.after(0.4, [Verdict("self/m", 0.9), Verdict("peer/n", 0.9)])
    assert both == pytest.approx(sigmoid(logit(0.4) + 2 * one))


def test_trust_fades():
    trust = Trust()
    for _ in range(3_000):
        trust.learn(0.9, 1.0, 0.5)
    assert sum(trust.said) == pytest.approx(1_000 / 0.6931 * (1 - 0.125), rel=0.01)


def test_the_judges_are_the_best_of_the_layer_before():
    assert judges({"a": 0.5, "b": 0.9, "c": 0.7}) == ["b"]
    assert judges({"a": 0.5, "b": 0.72, "c": 0.7}) == ["b", "c"]
    assert judges({"b": 0.5, "a": 0.5, "c": 0.5}) == ["a", "b"]
    assert judges({"a": 0.5}) == judges({}) == []


@pytest.mark.parametrize(
    ("answer", "key"),
    [
        ("42", Key("number", "42")),
        ("  42.0. ", Key("number", "42")),
        ("1,000", Key("number", "1000")),
        ("$-007.50$", Key("number", "-7.5")),
        ("-0", Key("number", "0")),
        ("85%", Key("number", "85")),
        ("so it is\n#### 12 eggs", Key("number", "12")),
        ("Thus \\boxed{\\frac{1}{2}} holds", Key("text", "\\frac{1}{2")),
        ("The answer is (B).", Key("letter", "B")),
        ("b", Key("text", "b")),
        ("B) because", Key("text", "b) because")),
        ("(C)", Key("letter", "C")),
        ("Paris.", Key("text", "paris")),
        ("It is  PARIS", Key("text", "it is paris")),
        ("1/2", Key("text", "1/2")),
        ("a long way\nof working\n17", Key("number", "17")),
        ("", None),
        (" ... ", None),
    ],
)
def test_answers_that_mean_the_same_have_one_key(answer: str, key: Key | None):
    assert key_of(answer) == key


def test_agreement_is_the_share_of_the_others():
    one, two = Key("number", "1"), Key("number", "2")
    assert agreement({"a": one, "b": one, "c": two, "d": None}) == {"a": 0.5, "b": 0.5, "c": 0.0}
    assert agreement({"a": one, "b": None}) == {}


def test_what_the_final_score_says_of_each_answer():
    one, two, text = Key("number", "1"), Key("number", "2"), Key("text", "x")
    keys = {"a": one, "b": two, "c": text, "d": None}
    prior = {"a": 0.6, "b": 0.3, "c": 0.2}
    assert outcomes(keys, one, 1.0, prior) == {"a": 1.0, "b": 0.0}
    assert outcomes(keys, one, 0.0, prior) == {"a": 0.0, "b": 0.3}
    assert outcomes(keys, one, 0.7, prior) == {"a": 0.7}
    assert outcomes(keys, text, 1.0, prior) == {"c": 1.0}
    assert outcomes(keys, None, 1.0, prior) == {}


def test_going_on_is_worth_what_came_of_it():
    """From a guess of a half to what is true, also where it does harm; of nothing that could be gained nothing is
    learned."""
    assert Discernment().value == 0.5
    for true in (-0.3, 0.0, 0.8):
        found, random = Discernment(), Random(4)
        for _ in range(2_000):
            found.learn(float(random.random() < 0.5 + 0.3 * true) - 0.5, 0.3)
        assert found.value == pytest.approx(true, abs=0.2)
    still = Discernment()
    still.learn(0.3, 0.0)
    assert still.value == 0.5


# Whether to ask for scores


def asked_for(effect: float, error: float, calls: int = 600) -> float:
    """The share of the last half of calls that have scores, where these bring `effect`, and the router is off by
    `error`: outcomes are 0 or 1."""
    shares: list[float] = []
    for seed in range(12):
        random, scoring, asked = Random(seed), Scoring(), list[bool]()
        for _ in range(calls):
            asked.append(scoring.pays(random.getrandbits(31)))
            right = random.random() < 0.5 + error + (effect if asked[-1] else 0.0)
            scoring.learn(asked[-1], float(right) - 0.5)
        shares.append(sum(asked[calls // 2 :]) / (calls // 2))
    return sum(shares) / len(shares)


@pytest.mark.parametrize("error", [-0.3, 0.0, 0.25])
def test_what_pays_is_asked_for_however_far_the_router_is_off(error: float):
    assert asked_for(0.2, error) > 0.8
    assert 0.02 < asked_for(-0.15, error) < 0.12


def test_before_any_lesson_a_good_quarter_is_asked_for_scores():
    assert 0.26 < sum(Scoring().pays(seed) for seed in range(2_000)) / 2_000 < 0.35
    one_kind = Scoring()
    for _ in range(200):
        one_kind.learn(False, 0.4)
    assert one_kind.difference() == Scoring().difference(), "of one kind alone nothing follows"


def test_the_difference_is_the_posterior_mean_of_two_normal_samples():
    """Beside one worked out by hand: gains 1, 0, 1 with scores and 0, 0 without."""
    scoring = Scoring()
    for asked, gain in [(True, 1.0), (False, 0.0), (True, 0.0), (True, 1.0), (False, 0.0)]:
        scoring.learn(asked, gain)
    spread = (16 * 0.25 + 2 / 3) / 21  # the guess, and the squares about the means: 2/3 and 0
    likely, sure = 1 / (spread * (1 / 3 + 1 / 2)), 1 / 0.18**2
    mean, sd = scoring.difference()
    assert mean == pytest.approx((2 / 3 * likely - 0.1 * sure) / (likely + sure), abs=2e-3)  # but for what fades
    assert sd == pytest.approx((likely + sure) ** -0.5, abs=1e-3)


def test_both_kinds_of_calls_count_once_scores_of_their_models_can_weigh_something():
    evidence = Evidence()
    for _ in range(20):
        evidence.heard(False, 0.5, ["a", "b"])
        evidence.heard(True, 0.5, ["a", "b"])
    assert not evidence.scoring.lessons
    evidence.heard(False, 0.5, ["c", "a"])
    evidence.heard(True, 0.5, ["a"])
    evidence.heard(False, 0.5, ["c"])
    evidence.heard(True, 0.5, ["c"])
    assert evidence.scoring.asked.count == 1 and evidence.scoring.plain.count == pytest.approx(1, rel=0.01)
