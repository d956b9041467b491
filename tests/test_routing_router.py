"""A router as a whole: trained, saved, opened, asked, taught."""

from __future__ import annotations

import json
import os
import random
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from msgspec import structs

from graded_queries import made_table
from weaverant.errors import UserError
from weaverant.routing.calibration import Map, calibration_error
from weaverant.routing.online import Online
from weaverant.routing.router import Router
from weaverant.routing.selection import routed
from weaverant.routing.table import Graded, Table
from weaverant.routing.training import error_correlation, recalibrate, train

SUM = "add the numbers 12 and 30 and tell the total"
LAW = "which court may hear case 12 of section 30 of the statute"


@pytest.fixture(scope="module")
def trained():
    return train(made_table(500)[0], folds=4)


@pytest.fixture
def folder(trained, tmp_path: Path) -> Path:
    trained.router.save(tmp_path / "router")
    return tmp_path / "router"


def test_a_router_chooses_better_than_the_best_single_model(trained):
    fresh, truth = made_table(300, seed=5)
    scores = trained.router.predict(fresh.queries)
    assert scores.models == ("x", "y", "z") == trained.router.models
    assert routed(scores.p, fresh.scores) > np.nanmean(fresh.scores, axis=0).max() + 0.1
    assert trained.best.routed > trained.single_score + 0.1
    assert trained.constant_top == trained.oracle  # of three models, three are all
    assert np.abs(scores.p - truth).mean() < 0.1
    assert calibration_error(scores.p, truth) < 0.05 and trained.router.ece < 0.05
    assert (scores.sd > 0).all() and (scores.support > 0).all()


def test_a_saved_router_says_the_same_to_the_last_bit(trained, folder: Path):
    queries = [*made_table(40, seed=3)[0].queries, "", "something else entirely"]
    again = Router.open(folder)
    one, other = trained.router.predict(queries), again.predict(queries)
    for name in ("p", "sd", "support"):
        assert np.array_equal(getattr(one, name), getattr(other, name))
    assert again.identity == trained.router.identity
    assert (again.mean, again.cost, again.ece) == (trained.router.mean, trained.router.cost, trained.router.ece)
    assert np.array_equal(again.correlation, trained.router.correlation)
    alone = np.concatenate([again.predict([query]).p for query in reversed(queries)])[::-1]
    assert np.array_equal(alone, one.p)


def test_the_same_table_gives_the_same_router_whatever_its_keys_order(tmp_path: Path):
    table, _ = made_table(150, seed=1)
    odds = random.Random(0)

    def rows(shuffle: bool):
        for n, query in enumerate(table.queries):
            scores = dict(zip(table.models, table.scores[n].tolist(), strict=True))
            yield Graded(query, dict(odds.sample([*scores.items()], 3)) if shuffle else scores)

    one, other = (train(Table.of(rows(shuffle)), folds=3).router for shuffle in (False, True))
    assert one.identity == other.identity
    assert train(table, folds=3, seed=1).router.identity != one.identity
    one.save(tmp_path / "a")
    other.save(tmp_path / "b")
    assert (tmp_path / "a" / "router.json").read_bytes() == (tmp_path / "b" / "router.json").read_bytes()


def test_costs_times_and_correlations_are_those_of_the_table():
    odds = np.random.default_rng(0)
    y = odds.uniform(size=(300, 4)) < 0.5
    y[:, 1] = y[:, 0]
    y[:, 2] = ~y[:, 0]
    rows = [
        Graded(
            f"query {n} {odds.integers(10**9)}", dict(zip("abcd", map(float, each), strict=True)), {"a": n}, {"b": 2.0}
        )
        for n, each in enumerate(y)
    ]
    router = train(Table.of(rows), head="knn", settings={"k": 50, "power": 1, "shrink": 5}, folds=3).router
    assert router.cost == {"a": 149.5, "b": None, "c": None, "d": None}
    assert router.latency == {"a": None, "b": 2.0, "c": None, "d": None}
    assert router.mean == pytest.approx(dict(zip("abcd", y.mean(axis=0), strict=True)))
    r = router.correlation
    assert r[0, 1] > 0.85 and r[0, 2] < -0.85 and abs(r[0, 3]) < 0.2 and np.allclose(r, r.T) and (np.diag(r) == 1).all()


def test_the_correlation_of_errors_is_counted_over_queries_graded_for_both():
    p = np.full((4, 2), 0.5)
    scores = np.array([[1.0, 1.0], [0.0, 0.0], [1.0, np.nan], [np.nan, 0.0]])
    assert error_correlation(p, scores)[0, 1] == pytest.approx(1.0 * 2 / 22)


@pytest.mark.parametrize("head", ["knn", "clusters", "ridge", "logistic", "blend", "knn,ridge"])
def test_every_head_can_be_asked_for_and_its_settings_fixed(head: str, tmp_path: Path):
    table, _ = made_table(120)
    settings = {"k": 7.0} if head == "knn" else {}
    made = train(table, head=head, folds=3, settings=settings)
    made.router.save(tmp_path / "r")
    again = Router.open(tmp_path / "r")
    assert (again.facts.kind in head.split(",") and again.facts.settings.get("k", 7.0) == 7.0) or head == "blend"
    assert np.array_equal(again.predict([SUM]).p, made.router.predict([SUM]).p)


def test_a_model_without_grades_is_refused():
    rows = [Graded("seen", {"a": 1, "b": 1}), *(Graded(f"query {n}", {"a": n % 2}) for n in range(9))]
    with pytest.raises(UserError, match="no grade of the model 'b' is left"):
        train(Table.of(rows).without(["Seen"]), folds=3)


# Folders that are none


def break_json(folder: Path):
    (folder / "router.json").write_text("{")


def unknown_field(folder: Path):
    facts = json.loads((folder / "router.json").read_text())
    (folder / "router.json").write_text(json.dumps({**facts, "more": 1}))


def later_format(folder: Path):
    facts = json.loads((folder / "router.json").read_text())
    (folder / "router.json").write_text(json.dumps({"format": facts["format"] + 1}))


def cut_arrays(folder: Path):
    whole = (folder / "arrays.npz").read_bytes()
    (folder / "arrays.npz").write_bytes(whole[: len(whole) // 2])


def another_head(folder: Path):
    facts = json.loads((folder / "router.json").read_text())
    (folder / "router.json").write_text(json.dumps({**facts, "kind": "ridge", "settings": {"penalty": 1}}))


def other_arrays(folder: Path):
    with np.load(folder / "arrays.npz") as found:
        arrays = {name: found[name] for name in found.files}
    arrays["examples.scores"] = 1 - arrays["examples.scores"]
    np.savez_compressed(folder / "arrays.npz", **arrays)


def pickled_arrays(folder: Path):
    np.savez(folder / "arrays.npz", evil=np.array([{}], dtype=object))


def no_arrays(folder: Path):
    os.remove(folder / "arrays.npz")


def nothing(folder: Path):
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (break_json, "is no router's"),
        (unknown_field, "more"),
        (later_format, "is of format 2, expected 1"),
        (cut_arrays, "damaged"),
        (another_head, "damaged"),
        (other_arrays, "arrays.npz is not what router.json was saved with"),
        (pickled_arrays, "damaged: arrays.npz cannot be read"),
        (no_arrays, "damaged: arrays.npz cannot be read"),
        (nothing, "is no router: router.json cannot be read"),
    ],
)
def test_a_folder_that_is_no_router_is_told_of(folder: Path, harm, told: str):
    harm(folder)
    with pytest.raises(UserError) as caught:
        Router.open(folder)
    assert told in str(caught.value)


def test_a_router_replaces_nothing_but_a_router_and_only_when_told_to(trained, folder: Path, tmp_path: Path):
    with pytest.raises(UserError, match="holds a router; expected a new folder, or --force"):
        trained.router.save(folder)
    trained.router.save(folder, replace=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="is there and is no router"):
        trained.router.save(tmp_path / "mine", replace=True)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"
    assert sorted(os.listdir(tmp_path)) == ["mine", "router"]  # nothing half-written stays


# Feedback


def test_a_model_that_changed_is_known_as_it_is_and_forgotten_as_it_was(folder: Path):
    router = Router.open(folder)
    before = dict(zip(router.models, router.predict([SUM]).p[0], strict=True))
    fresh = [
        q
        for q, topic in zip(*(lambda t: (t.queries, t.sets))(made_table(2_000, seed=8)[0]), strict=True)
        if topic == "sums"
    ]
    for query in fresh[:200]:
        router.update(query, "x", 0.0)
    after = dict(zip(router.models, router.predict([SUM]).p[0], strict=True))
    assert before["x"] > 0.75 and after["x"] < 0.15
    assert (after["y"], after["z"]) == (before["y"], before["z"])
    law = router.predict([LAW]).p[0]
    assert router.predict([SUM]).support[0][0] > Router.open(folder).predict([SUM]).support[0][0] + 50
    assert law[1] > 0.6  # who was not complained of is as good as before
    odds = random.Random(0)
    for query in fresh * 2:
        router.update(query, "x", float(odds.random() < 0.9))
    assert router.predict([SUM]).p[0][0] > 0.7


def test_feedback_is_saved_and_changes_no_identity(folder: Path, tmp_path: Path):
    router = Router.open(folder)
    identity = router.identity
    for n in range(30):
        router.update(f"{SUM} {n}", "y", 1.0, weight=2.0)
    router.save(tmp_path / "taught")
    again = Router.open(tmp_path / "taught")
    assert np.array_equal(again.predict([SUM, LAW]).p, router.predict([SUM, LAW]).p)
    assert again.predict([SUM]).p[0][1] > Router.open(folder).predict([SUM]).p[0][1] + 0.1
    assert again.identity == router.identity == identity


def test_feedback_weighs_what_it_is_said_to():
    table, _ = made_table(150)
    one, other = (train(table, head="clusters", folds=3).router for _ in range(2))
    for _ in range(4):
        one.update(SUM, "x", 0.0)
    other.update(SUM, "x", 0.0, weight=4.0)
    assert one.predict([SUM]).p[0][0] == pytest.approx(other.predict([SUM]).p[0][0], abs=0.01)
    before = other.predict([SUM]).p
    other.update(SUM, "y", 1.0, weight=0.0)
    assert np.allclose(other.predict([SUM]).p, before, atol=1e-3)


def test_an_old_outcome_counts_half_after_a_half_life_and_the_oldest_goes_first():
    x, away = np.array([1, 0], dtype=np.float32), np.array([0, 1], dtype=np.float32)
    online = Online(2, 2, capacity=4, half_life=2.0)
    online.add(x, 0, 1.0, 8.0)
    assert online.change(away).p[0] == pytest.approx(8 / 28)
    assert online.change(x).support.tolist() == [8, 0]
    for _ in range(2):
        online.add(away, 1, 0.0, 1.0)
    assert online.change(away).p[0] == pytest.approx(4 / 24)
    for _ in range(2):
        online.add(away, 1, 0.0, 1.0)
    assert online.change(x).p[0] == 0 and online.change(x).support.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("model", "outcome", "weight"),
    [("w", 1.0, 1.0), ("x", 1.5, 1.0), ("x", float("nan"), 1.0), ("x", 1.0, -1.0), ("x", 1.0, float("inf"))],
)
def test_feedback_that_is_none_is_refused(trained, model: str, outcome: float, weight: float):
    with pytest.raises(UserError, match=r"the router knows no model 'w'|expected an outcome from 0 to 1"):
        trained.router.update(SUM, model, outcome, weight)


def test_threads_may_ask_and_teach_at_once(folder: Path):
    router = Router.open(folder)
    wrong: list[object] = []

    def ask():
        for _ in range(60):
            p = router.predict([SUM, LAW]).p
            if not (np.isfinite(p).all() and (p > 0).all() and (p < 1).all()):
                wrong.append(p)

    def teach():
        for n in range(60):
            router.update(f"{LAW} {n}", "z", n % 2)

    threads = [threading.Thread(target=work) for work in (ask, ask, teach, teach)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == [] and router.taught == 120


# Other grades


def test_other_grades_mend_the_probabilities_and_those_learned_from_are_left_out(trained):
    fresh, _ = made_table(900, seed=21)
    easier = Table.of(
        [
            Graded(
                query,
                {m: max(score, float(n % 2)) for m, score in zip(fresh.models, fresh.scores[n].tolist(), strict=True)},
            )
            for n, query in enumerate(fresh.queries)
        ]
    )
    known = made_table(500)[0]
    both = Table.of(
        [
            Graded(q, dict(zip(t.models, s, strict=True)))
            for t in (easier, known)
            for q, s in zip(t.queries, t.scores.tolist(), strict=True)
        ]
    )
    made, before, used, stayed = recalibrate(trained.router, both)
    assert stayed == () and used == 900 and before > 0.15 and made.ece < 0.05
    again = made_table(300, seed=33)[0]
    harder = np.maximum(again.scores, (np.arange(300) % 2)[:, None])
    assert calibration_error(made.predict(again.queries).p, harder) < 0.08
    assert made.identity != trained.router.identity
    with pytest.raises(UserError, match="0 queries that the router has not learned from"):
        recalibrate(trained.router, known)
    with pytest.raises(UserError, match="no model 'y'"):
        recalibrate(trained.router, easier.only(["x"]))


def test_maps_that_are_no_better_stay_and_are_named(trained):
    """Few grades, of the same kind that the router has learned from: nothing is there to be mended."""
    kept = 0
    for seed in range(40, 52):
        few = made_table(25, seed=seed)[0]
        made, before, used, stayed = recalibrate(trained.router, few)
        assert used == 25 and made.ece <= before == pytest.approx(
            calibration_error(trained.router.predict(few.queries).p, few.scores)
        )
        own, old = made.facts.calibration, trained.router.facts.calibration
        assert stayed == tuple(name for name, a, b in zip("xyz", own, old, strict=True) if a == b)
        kept += stayed == ("x", "y", "z")
        assert made.predict([SUM]).p[0][0] == trained.router.predict([SUM]).p[0][0] or "x" not in stayed
    assert kept > 2


def test_calibration_is_measured_with_feedback_and_not_on_its_queries(folder: Path):
    router, fresh = Router.open(folder), made_table(400, seed=21)[0]
    harder = np.where(np.arange(400)[:, None] % 2, 0.0, fresh.scores)
    both = Table.of(
        [Graded(q, dict(zip("xyz", s, strict=True))) for q, s in zip(fresh.queries, harder.tolist(), strict=True)]
    )
    for query, scores in zip(both.queries[:300], both.scores.tolist(), strict=False):
        for model, outcome in zip("xyz", scores, strict=True):
            router.update(f" {query.upper()}", model, outcome)
    made, before, used, _ = recalibrate(router, both)
    assert used == 100 and made.facts.taught == 900 == made.taught
    p, y = (each[300:] for each in (router.predict(both.queries).p, both.scores))
    assert before == pytest.approx(calibration_error(p, y)) and before < 0.12
    assert calibration_error(Router.open(folder).predict(both.queries).p[300:], y) > 0.15
    assert made.ece <= before
    again = made_table(300, seed=34)[0]
    halved = np.where(np.arange(300)[:, None] % 2, 0.0, again.scores)
    assert calibration_error(made.predict(again.queries).p, halved) < 0.12


def test_calibrating_keeps_what_was_learned_in_use(folder: Path, tmp_path: Path):
    """In place and in a copy; what feedback had moved an estimate to is where it was, whatever the maps."""
    router = Router.open(folder)
    for n in range(60):
        router.update(f"{SUM} {n}", "x", 0.0)
    router.aside["evidence.json"] = b'{"trust":{}}'
    router.save(folder, replace=True)
    fresh = made_table(400, seed=21)[0]
    easier = Table.of(
        [
            Graded(
                query, {m: max(s, float(n % 2)) for m, s in zip(fresh.models, fresh.scores[n].tolist(), strict=True)}
            )
            for n, query in enumerate(fresh.queries)
        ]
    )
    made = recalibrate(Router.open(folder), easier)[0]
    assert made.facts.calibration != router.facts.calibration
    made.save(tmp_path / "copy")
    made.save(folder, replace=True)
    for each in (folder, tmp_path / "copy"):
        assert (each / "evidence.json").read_bytes() == b'{"trust":{}}'
        again = Router.open(each)
        assert again.taught == 60
        assert again.predict([SUM]).p[0][0] == pytest.approx(router.predict([SUM]).p[0][0], abs=0.12)
    train(fresh, head="knn", folds=3).router.save(folder, replace=True)
    assert not (folder / "evidence.json").exists() and Router.open(folder).taught == 0


def test_feedback_is_of_the_new_maps_once_there_are_new_ones(trained):
    """What feedback adds is measured against the estimate: where that falls, it adds more."""
    facts = trained.router.facts
    router = Router(facts, *(getattr(trained.router, name) for name in ("encoder", "head", "correlation", "examples")))
    for _ in range(100):
        router.update(SUM, "x", 0.5)
    maps = [Map("platt", shift=-3.0), *facts.calibration[1:]]
    moved = structs.replace(facts, calibration=tuple(maps))
    made = Router(moved, router.encoder, router.head, router.correlation, router.examples, router.mapped(maps))
    alone = Router(moved, router.encoder, router.head, router.correlation, router.examples)
    assert alone.predict([SUM]).p[0][0] < 0.4
    assert made.predict([SUM]).p[0][0] == pytest.approx(0.5, abs=0.05)
    assert router.predict([SUM]).p[0][0] == pytest.approx(0.5, abs=0.05)


def test_the_nearest_graded_queries_are_of_the_same_topic(trained):
    near = trained.router.nearest(SUM, 5)
    assert len(near) == 5 and all(each.query.startswith("add the numbers") for each in near)
    assert [each.likeness for each in near] == sorted((each.likeness for each in near), reverse=True)
    assert set(near[0].scores) == {"x", "y", "z"}
