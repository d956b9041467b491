"""The statistics of the MALT evaluation, against values that scipy 1.17.1 and statsmodels 0.15.0 computed."""

import statistics
from collections import Counter
from itertools import product
from random import Random

import pytest

from weaverant.recipes.malt.outcomes import Outcomes
from weaverant.recipes.malt.stats import Flips, bootstrap, flips, mcnemar, percentages, spread, wilson
from weaverant.recipes.malt.systems import (
    G_V,
    MA,
    MALT,
    SA,
    STAR_SA,
    TABLES,
    TEAMS,
    System,
    baselines,
    systems_of,
)


@pytest.mark.parametrize(
    ("right", "total", "low", "high"),
    [
        (50, 100, 0.4038315303659956, 0.5961684696340044),
        (1, 10, 0.017876213095072896, 0.4041500267952385),
        (630, 1000, 0.5996317181277412, 0.6593733246660144),
        (0, 10, 0.0, 0.27753279986288926),
        (10, 10, 0.7224672001371109, 1.0),
        (975, 1000, 0.9633547107321566, 0.9830098687065659),
    ],
)
def test_wilson_is_scipys(right, total, low, high):
    """`scipy.stats.binomtest(right, total).proportion_ci(method="wilson")`"""
    assert wilson(right, total) == pytest.approx((low, high), abs=1e-7)


def test_nothing_counted_is_nothing_known():
    assert wilson(0, 0) == (0, 1)


@pytest.mark.parametrize(
    ("gained", "lost", "p"),
    [
        (
            86,
            150,
            3.7159361395713866e-05,
        ),  # approval of a prime minister, asked twice (Agresti); statsmodels says so, too
        (2, 10, 0.03857421875),
        (0, 1, 1.0),
        (5, 5, 1.0),
        (0, 20, 1.9073486328125e-06),
        (300, 350, 0.05452994175892356),
        (1, 400, 1.556781949769426e-118),
        (0, 0, 1.0),
    ],
)
def test_mcnemar_is_scipys(gained, lost, p):
    """`scipy.stats.binomtest(gained, gained + lost).pvalue`"""
    assert mcnemar(gained, lost) == pytest.approx(p, rel=1e-9)
    assert mcnemar(lost, gained) == mcnemar(gained, lost)


@pytest.mark.parametrize("n", range(1, 11))
def test_mcnemar_by_going_through_all_splits(n):
    splits = Counter(sum(flips) for flips in product((0, 1), repeat=n))
    for gained in range(n + 1):
        as_uneven = sum(count for split, count in splits.items() if abs(2 * split - n) >= abs(2 * gained - n))
        assert mcnemar(gained, n - gained) == pytest.approx(as_uneven / 2**n)


def test_mcnemar_of_many_problems_does_not_overflow():
    assert 0 <= mcnemar(9_000, 11_000) < 1e-40


@pytest.mark.parametrize(
    ("counts", "low", "high"),
    [
        ({1: 120, -1: 70, 0: 410}, 0.0383333, 0.1283333),
        ({1 / 3: 40, 2 / 3: 10, 1: 5, -1 / 3: 30, -1: 3, 0: 12}, 0.0333333, 0.2033333),
    ],
)
def test_the_bootstrap_is_scipys(counts, low, high):
    """`scipy.stats.bootstrap((differences,), numpy.mean, method="percentile")` with 200,000 resamples and more."""
    differences = [value for value, count in counts.items() for _ in range(count)]
    assert bootstrap(differences) == pytest.approx((low, high), abs=0.004)
    Random(1).shuffle(differences)
    assert bootstrap(differences) == bootstrap(sorted(differences))


def test_the_bootstrap_of_what_never_differs_is_a_point():
    assert bootstrap([]) == bootstrap([0.0] * 10) == (0, 0)
    assert bootstrap([1.0] * 10) == (1, 1)


def test_the_bootstrap_covers_the_truth_about_as_often_as_it_says():
    """Pairs whose true difference is 0.1, 300 times 200 of them."""
    dice = Random(3)
    covered = 0
    for _ in range(300):
        differences = [dice.choices((1.0, -1.0, 0.0), (0.25, 0.15, 0.6))[0] for _ in range(200)]
        low, high = bootstrap(differences, draws=1_000)
        covered += low <= 0.1 <= high
    assert 0.90 <= covered / 300 <= 0.98


def test_mean_and_deviation():
    assert spread([0.5]) == (0.5, None)
    values = [0.61, 0.64, 0.6, 0.65]
    assert spread(values) == pytest.approx((statistics.mean(values), statistics.stdev(values)))
    with pytest.raises(ValueError, match="at least one"):
        spread([])


def test_flips_are_counted_both_ways():
    before = [[True, True, False, False, False], [True, False, False, False, False]]
    after = [[True, False, True, True, False], [True, True, True, True, True]]
    assert flips(before, after) == Flips(gained=3, both_right=1, both_wrong=0.5, lost=0.5)


@pytest.mark.parametrize("seed", range(50))
def test_percentages_sum_to_a_hundred(seed):
    dice = Random(seed)
    shares = [dice.randint(0, 7) for _ in range(4)] if seed else [1, 1, 1, 0]
    rounded = percentages(shares)
    total = sum(shares)
    assert round(sum(rounded), 6) == (100 if total else 0)
    for share, given in zip(shares, rounded, strict=True):
        assert abs(given - 100 * share / (total or 1)) < 0.1


def outcomes(**right):
    """By system: outcomes as texts, a seed each, as `"101 110"`."""
    told = {key.replace("_at_", "@"): [[c == "1" for c in one] for one in text.split()] for key, text in right.items()}
    first = next(iter(told.values()))
    return Outcomes(told, Counter(), Counter(), len(first[0]), len(first), 0)


def test_problems_are_the_unit_whatever_the_number_of_seeds():
    one = outcomes(sa_at_1="1100", ma_at_1="1111")
    many = outcomes(sa_at_1=" ".join(["1100"] * 5), ma_at_1=" ".join(["1111"] * 5))
    sa, ma = System(SA, 1), System(MA, 1)
    assert one.accuracy(sa).interval == many.accuracy(sa).interval == wilson(2, 4)
    assert one.compare(ma, sa).interval == many.compare(ma, sa).interval
    assert many.accuracy(sa).spread == (0.5, 0.0)


def test_a_comparison_is_made_problem_by_problem():
    found = outcomes(sa_at_1="11000 10000", ma_at_1="01110 11111")
    told = found.compare(System(MA, 1), System(SA, 1))
    assert told.difference == pytest.approx((3 - 2 + 5 - 1) / 10)
    assert (told.gained, told.lost) == ([2, 4], [1, 0])
    assert told.p == [mcnemar(2, 1), mcnemar(4, 0)]
    assert found.compare(System(SA, 1), System(MA, 1)).difference == -told.difference


def test_baselines_have_at_least_as_many_calls():
    there = systems_of(TEAMS, 3)
    calls = {system.name: system.calls for system in there}
    assert calls["SA, 9 votes"] == calls["MALT"] == calls["MA+MV"] == 9

    def against(team, votes):
        return [one.name for one in baselines(System(team, votes), there)]

    assert against(MALT, 3) == ["SA, 9 votes", "MA+MV"]
    assert against(MALT, 1) == ["SA+MV", "MA"]
    assert against(STAR_SA, 1) == ["SA", "MA"]
    assert against(G_V, 3) == ["SA, 9 votes", "MA+MV"]
    assert against(MA, 3) == ["SA, 9 votes"]
    assert against(SA, 1) == ["MA"]
    for system in there:
        assert all(one.calls >= system.calls and one.key != system.key for one in baselines(system, there))


def test_every_team_stands_in_a_table_and_no_two_systems_share_a_name():
    assert {team for teams in TABLES.values() for team in teams} == set(TEAMS)
    there = systems_of(TEAMS, 3)
    assert len({system.name for system in there}) == len({system.key for system in there}) == len(there) == 25
