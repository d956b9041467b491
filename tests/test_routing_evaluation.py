"""Judging routers: a table of three models worked out by hand, brute force beside what is vectorised, gaps, ties."""

import itertools
import math
import random
import xml.etree.ElementTree as ET

import msgspec
import numpy as np
import pytest

from weaverant.errors import UserError
from weaverant.routing.evaluation import figure, report
from weaverant.routing.evaluation.accuracy import Means
from weaverant.routing.evaluation.calibration import calibrated
from weaverant.routing.evaluation.choice import Prior, prior_of, ranked
from weaverant.routing.evaluation.cost import CallShare, area_of, integral, swept
from weaverant.routing.evaluation.hits import right, tied
from weaverant.routing.evaluation.judge import Evaluation, evaluate
from weaverant.routing.evaluation.resample import Interval, corrected, spread, student, weights
from weaverant.routing.scores import Scores
from weaverant.routing.table import Table

MODELS = ("big", "medium", "small")
NAN = math.nan


def table(scores, sets=None, groups=None, cost=None, models=MODELS) -> Table:
    scores = np.array(scores, dtype=float)
    unknown = np.full(scores.shape, np.nan)
    count = len(scores)
    return Table(
        tuple(f"query {n}" for n in range(count)),
        models,
        scores,
        unknown if cost is None else np.array(cost, dtype=float),
        unknown,
        tuple(sets or [""] * count),
        np.arange(count) if groups is None else np.array(groups),
    )


def told(p, models=MODELS) -> Scores:
    p = np.array(p, dtype=float)
    return Scores(models, p, np.zeros_like(p), np.zeros_like(p))


# Six queries of two sets. The router asks: small, big, big, medium, small, medium.
SCORES = [[1, 0, 1], [1, 0, 0], [0, 1, 0], [0, 1, 0], [1, 1, 0], [0, 0, 0]]
SETS = ["x", "x", "x", "x", "y", "y"]
P = [[0.6, 0.2, 0.7], [0.9, 0.3, 0.2], [0.8, 0.6, 0.1], [0.4, 0.5, 0.2], [0.5, 0.4, 0.6], [0.3, 0.4, 0.2]]
PRIOR = Prior({"big": 0.6, "medium": 0.5, "small": 0.2}, {"big": 4.0, "medium": 2.0, "small": 1.0})


@pytest.fixture(scope="module")
def found() -> Evaluation:
    return evaluate(table(SCORES, SETS), told(P), PRIOR, draws=300)


def test_the_accuracy_of_a_table_worked_out_by_hand(found):
    lines = {line.name: line for line in found.lines}
    # router: 1 1 0 1 | 0 0, big: 1 1 0 0 | 1 0, medium: 0 0 1 1 | 1 0, oracle: 1 1 1 1 | 1 0
    assert lines["router"].accuracy.value == pytest.approx(3 / 6)
    assert lines["router"].macro.value == pytest.approx((3 / 4 + 0 / 2) / 2)
    assert lines["best single"].model == "big" and lines["best single"].accuracy.value == pytest.approx(3 / 6)
    assert lines["best single"].macro.value == pytest.approx((2 / 4 + 1 / 2) / 2)
    assert lines["router"].gain.value == pytest.approx(0)
    assert lines["router"].gain_macro.value == pytest.approx(3 / 8 - 1 / 2)
    assert lines["best single here"].model == "big"  # medium is as good: the first name
    assert lines["random"].accuracy.value == pytest.approx((2 + 1 + 1 + 1 + 2 + 0) / 18)
    assert lines["oracle"].accuracy.value == pytest.approx(5 / 6)
    # of equally right models the oracle asks the cheapest: small, big, medium, medium, medium, small
    assert lines["oracle"].cost == pytest.approx((1 + 4 + 2 + 2 + 2 + 1) / 6)
    assert lines["router"].cost == pytest.approx((1 + 4 + 4 + 2 + 1 + 2) / 6)
    assert lines["random"].cost == pytest.approx(7 / 3)
    x, y = found.sets
    assert (x.name, x.queries, x.router.value, x.single.value, x.oracle) == ("x", 4, 0.75, 0.5, 1.0)
    assert (y.name, y.queries, y.router.value, y.single.value, y.oracle) == ("y", 2, 0.0, 0.5, 0.5)


def test_the_hit_rates_by_hand_in_both_readings(found):
    rates = {(one.kind, one.k): one for one in found.hits}
    # among the first one: right on 1, 2, 4; on the last query all are wrong, so any ties with the best
    assert rates["right", 1].router.value == pytest.approx(3 / 6)
    assert rates["tied", 1].router.value == pytest.approx(4 / 6)
    assert rates["right", 3].router.value == rates["right", 3].ceiling == pytest.approx(5 / 6)
    assert rates["tied", 3].router.value == 1.0
    # the constant ranking is big, medium, small
    assert rates["right", 1].constant.value == pytest.approx(3 / 6)
    assert rates["tied", 1].constant.value == pytest.approx(4 / 6)
    ranking = ranked(np.array(P), np.ones((6, 3), dtype=bool), np.array([4.0, 2.0, 1.0]))
    assert [MODELS[n] for n in ranking[:, 0]] == ["small", "big", "big", "medium", "small", "medium"]
    assert right(np.array(SCORES, dtype=float), ranking, 2).tolist() == [1, 1, 1, 1, 1, 0]
    assert tied(np.array(SCORES, dtype=float), ranking, 2).tolist() == [1, 1, 1, 1, 1, 1]


def test_calibration_by_hand():
    p = np.array([0.05, 0.15, 0.15, 0.95, 0.95, 0.95])
    outcome = np.array([0.0, 0.0, 1.0, 1.0, 1.0, 0.0])
    found = calibrated(p, outcome, bins=10)
    assert [one.count for one in found.bins] == [1, 2, 3]
    assert found.ece == pytest.approx((1 * 0.05 + 2 * abs(0.15 - 0.5) + 3 * abs(0.95 - 2 / 3)) / 6)
    assert found.brier == pytest.approx(np.mean((p - outcome) ** 2))
    assert found.brier_base == pytest.approx(0.25)


def test_a_prediction_of_one_is_in_the_last_bin_and_equal_ones_are_in_one():
    assert calibrated(np.ones(4), np.ones(4)).ece == 0
    assert [one.count for one in calibrated(np.array([0.97, 1.0]), np.array([1.0, 0.0])).bins] == [2]
    even = calibrated(np.full(1000, 0.5), np.arange(1000) % 2 * 1.0)
    assert even.ece == even.ece_mass == 0
    assert math.isnan(calibrated(np.array([0.5]), np.array([NAN])).ece)


def test_the_cost_curve_and_its_area_by_hand():
    """Two models: cheap ($1) right on the first of four, dear ($3) on three. p(dear) - p(cheap): .8, .4, -.2, -.4."""
    score = np.array([[0, 1], [0, 1], [0, 1], [1, 0]], dtype=float)
    p = np.array([[0.1, 0.9], [0.2, 0.6], [0.5, 0.3], [0.8, 0.4]])
    expected = np.array([1.0, 3.0])
    cost = np.tile(expected, (4, 1))
    curve = swept(p, expected, score, cost)
    # dear for none, for the first, for the first two: then w = 0 sends no more
    assert curve.cost.mean(axis=0).tolist() == [1.0, 1.5, 2.0]
    assert curve.score.mean(axis=0).tolist() == [0.25, 0.5, 0.75]
    area = area_of(curve, score, cost, expected, single=1)
    assert area is not None
    value, above = area(np.ones((1, 4)))[0]
    # y over x: (0, 0), (.25, .5), (.5, 1), level to (1, 1); the gap is 0.5
    assert value == pytest.approx(0.25 + 0.5, abs=1e-9)
    assert above == pytest.approx(0.5 * 0.25, abs=1e-9)


def test_routellm_s_area_by_hand():
    """The same four queries: after the two gains comes one more, then a loss."""
    calls = CallShare(np.array([0.8, 0.4, -0.2, -0.4]), np.array([1.0, 1, 1, 0]), np.array([0.0, 0, 0, 1]))
    apgr, half, most = calls(np.ones((1, 4)))[0]
    y = [0, 0.5, 1.0, 1.5, 1.0]
    assert apgr == pytest.approx(sum((a + b) / 2 for a, b in itertools.pairwise(y)) / 4)
    assert (half, most) == (pytest.approx(0.25), pytest.approx(0.4))


def test_a_router_that_knows_nothing_has_the_area_of_blind_mixing():
    rng = np.random.default_rng(5)
    strong, weak = (rng.random(500) < 0.8) * 1.0, (rng.random(500) < 0.5) * 1.0
    apgr, half, most = CallShare(np.zeros(500), strong, weak)(np.ones((1, 500)))[0]
    assert (apgr, half, most) == (pytest.approx(0.5), pytest.approx(0.5), pytest.approx(0.8))


def test_a_call_share_is_what_brute_force_over_thresholds_gives():
    rng = np.random.default_rng(11)
    ahead = rng.integers(-5, 6, 60) / 5
    strong, weak = rng.random(60), rng.random(60) / 2
    counts = rng.integers(0, 3, 60).astype(float)
    xs, ys = [0.0], [0.0]
    for threshold in sorted(set(ahead[counts > 0]), reverse=True):
        chosen = (ahead >= threshold) * counts
        xs.append(chosen.sum() / counts.sum())
        ys.append((chosen * (strong - weak)).sum() / (counts * (strong - weak)).sum())
    assert CallShare(ahead, strong, weak)(counts[None])[0, 0] == pytest.approx(integral(np.array(ys), np.array(xs)))


def test_a_curve_of_five_models_chooses_as_brute_force_does():
    rng = np.random.default_rng(3)
    p, score = rng.random((40, 5)), (rng.random((40, 5)) < 0.5) * 1.0
    expected = np.array([0.5, 1.0, 1.0, 3.0, 9.0])
    cost = np.tile(expected, (40, 1))
    curve = swept(p, expected, score, cost, steps=10_000)
    for column, weight in enumerate(curve.weight):
        for row in range(40):
            worth = -expected if math.isinf(weight) else p[row] - weight * expected
            best = max(range(5), key=lambda n: (worth[n], -expected[n], -n))
            assert curve.cost[row, column] == expected[best] and curve.score[row, column] == score[row, best]
    assert (np.diff(curve.cost.mean(axis=0)) >= 0).all()  # what is expected is what it costs here
    assert curve.score[:, -1].mean() == score[np.arange(40), p.argmax(axis=1)].mean()


def test_means_are_what_loops_give_with_gaps_and_weights():
    rng = random.Random(2)
    values = [NAN if rng.random() < 0.3 else rng.random() for _ in range(50)]
    sets = [rng.choice("abcd") for _ in range(50)]
    drawn = [[float(rng.randrange(4)) for _ in range(50)] for _ in range(7)]
    means = Means(sets)
    whole, macro = (how(np.array(drawn), np.array(values)) for how in (means.whole, means.macro))
    for row, times in enumerate(drawn):
        kept = [(t, v, s) for t, v, s in zip(times, values, sets, strict=True) if v == v]
        assert whole[row] == pytest.approx(sum(t * v for t, v, _ in kept) / sum(t for t, _, _ in kept))
        each = [
            sum(t * v for t, v, s in kept if s == name) / sum(t for t, _, s in kept if s == name)
            for name in means.names
        ]
        assert macro[row] == pytest.approx(sum(each) / len(each))


def test_a_draw_keeps_groups_whole_and_sets_as_large_as_they_are():
    groups = np.array([0, 0, 1, 2, 3, 4, 4])
    sets = ["x"] * 4 + ["y"] * 3
    drawn = np.concatenate(list(weights(groups, sets, draws=200, seed=4)))
    assert drawn.shape == (200, 7)
    assert (drawn[:, 0] == drawn[:, 1]).all() and (drawn[:, 5] == drawn[:, 6]).all()
    units = drawn[:, [0, 2, 3, 4, 5]]
    assert (units[:, :3].sum(axis=1) == 3).all() and (units[:, 3:].sum(axis=1) == 2).all()
    assert (drawn == np.concatenate(list(weights(groups, sets, draws=200, seed=4)))).all()
    assert (drawn != np.concatenate(list(weights(groups, sets, draws=200, seed=5)))).any()


def test_the_bootstrap_s_interval_is_about_that_of_the_normal_distribution():
    rng = np.random.default_rng(1)
    values = (rng.random(400) < 0.7) * 1.0
    means = Means([""] * 400)
    drawn = weights(np.arange(400), [""] * 400, draws=2000)
    found = spread({"mean": lambda w: means.whole(w, values)}, 400, drawn)["mean"][0]
    error = 1.96 * math.sqrt(values.mean() * (1 - values.mean()) / 400)
    assert found.value == values.mean()
    assert found.half == pytest.approx(error, rel=0.08)


def test_the_corrected_interval_by_hand():
    found = corrected([0.01, 0.03, 0.02, 0.04], tested=20, trained=80)
    variance = np.var([0.01, 0.03, 0.02, 0.04], ddof=1)
    half = 3.182 * math.sqrt(variance * (1 / 4 + 20 / 80))
    assert found == Interval(pytest.approx(0.025), pytest.approx(0.025 - half), pytest.approx(0.025 + half))
    assert student(30) == pytest.approx(2.0423, abs=5e-4) and student(16) == pytest.approx(2.1199, abs=2e-3)


def test_gaps_are_neither_right_nor_wrong():
    """Query 0 lacks the likeliest model, query 1 the best single one, query 2 all."""
    scores = [[1, NAN, 0], [NAN, 1, 0], [NAN, NAN, NAN], [0, 1, 1]]
    p = [[0.5, 0.9, 0.1], [0.2, 0.8, 0.1], [0.9, 0.1, 0.1], [0.3, 0.2, 0.6]]
    found = evaluate(table(scores), told(p), PRIOR, draws=50)
    assert (found.queries, found.dropped, found.elsewhere) == (3, 1, 1)
    assert found.line("router").accuracy.value == 1.0
    assert found.line("best single").accuracy.value == pytest.approx(1 / 2)
    assert found.line("router").gain.value == pytest.approx(1 / 2)  # on queries 0 and 3
    assert found.line("random").accuracy.value == pytest.approx((1 / 2 + 1 / 2 + 2 / 3) / 3)
    assert found.line("oracle").accuracy.value == 1.0


def test_a_constant_router_gains_nothing_and_has_no_spread():
    found = evaluate(table(SCORES, SETS), told([[0.6, 0.5, 0.2]] * 6), PRIOR, draws=100)
    assert found.line("router").gain == Interval(0.0, 0.0, 0.0)
    assert all(one.ahead == Interval(0.0, 0.0, 0.0) for one in found.hits)


def test_the_order_of_a_table_s_or_a_router_s_models_changes_nothing():
    order = [2, 0, 1]
    turned = tuple(MODELS[n] for n in order)
    plain = evaluate(table(SCORES, SETS), told(P), PRIOR, draws=100)
    scores = told([[row[n] for n in order] for row in P], turned)
    assert evaluate(table(SCORES, SETS), scores, PRIOR, draws=100) == plain


def test_a_model_that_the_router_does_not_know_is_never_its_choice():
    found = evaluate(table(SCORES, SETS), told([row[:2] for row in P], MODELS[:2]), PRIOR, draws=50)
    # big, big, big, medium, big, medium
    assert found.line("router").accuracy.value == pytest.approx(4 / 6)
    with pytest.raises(UserError, match="same names"):
        evaluate(table(SCORES, SETS), told([[0.5]] * 6, ("other",)), PRIOR)
    with pytest.raises(UserError, match="no query"):
        evaluate(table([[NAN] * 3]), told(P[:1]), PRIOR)


def test_equal_probabilities_go_to_the_cheaper_model_then_to_the_first_name():
    p, graded = np.full((1, 3), 0.5), np.ones((1, 3), dtype=bool)
    assert ranked(p, graded, np.array([3.0, 2.0, 1.0])).tolist() == [[2, 1, 0]]
    assert ranked(p, graded, np.array([1.0, 1.0, NAN])).tolist() == [[0, 1, 2]]


def test_a_table_s_own_prior():
    prior = prior_of(table([[1, NAN, 0], [0, NAN, 1]], cost=[[1, NAN, 2], [3, NAN, NAN]]))
    assert prior.mean == {"big": 0.5, "medium": None, "small": 0.5}
    assert prior.cost == {"big": 2.0, "medium": None, "small": 2.0}


def test_costs_of_answers_go_before_what_is_expected():
    found = evaluate(table(SCORES, SETS, cost=[[8, 1, 2]] * 6), told(P), PRIOR, draws=50)
    assert found.priced is not None
    assert found.priced.models["big"].cost == 8.0
    assert found.priced.cheapest == "small"  # by what was expected: the choice is made before the bill


def test_the_page_and_the_figures_hold_what_was_found(found):
    page = report.markdown(found, "A router", ["reliability.svg"])
    assert "| router | 50.0 [" in page and "![reliability](reliability.svg)" in page
    assert "| x | 4 | 75.0 [" in page
    assert found.priced is not None
    for drawing in (figure.reliability(found.answers, found.choices), figure.money(found, found.priced)):
        root = ET.fromstring(drawing)
        assert root.tag.endswith("svg") and "prefers-color-scheme:dark" in drawing
        assert "nan" not in drawing
    assert "small 16.7" in figure.money(found, found.priced)
    again = msgspec.json.decode(msgspec.json.encode(found), type=dict)
    assert again["lines"][0]["accuracy"]["value"] == 0.5
