"""RouterDC's losses against numbers worked out by hand, its head on planted tables, and an encoder tuned by it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from weaverant.errors import UserError
from weaverant.routing.encoders.vectors import unit
from weaverant.routing.heads import Given, head_kind
from weaverant.routing.heads.losses import cosine_slopes, cosines, sample_llm, sample_sample, sides

NAN = float("nan")


def settings_of(name: str, **given: float) -> dict[str, float]:
    return {**head_kind(name).GRID[0], **given}


def test_three_models_by_hand():
    """Scores .9, .2 and .6; the two best are good, the two worst bad, of which .6 is above a half and so none."""
    above, below = sides(np.array([[0.9, 0.2, 0.6]]), 2, 2)
    assert above.tolist() == [[True, False, True]] and below.tolist() == [[False, True, False]]
    z = np.array([[0.5, -0.25, 0.1]])
    losses, slopes = sample_llm(z, above, below)
    bad = math.exp(-0.25)
    first, third = math.exp(0.5) / (math.exp(0.5) + bad), math.exp(0.1) / (math.exp(0.1) + bad)
    assert losses[0] == pytest.approx(-math.log(first) - math.log(third), abs=1e-12)
    assert losses[0] == pytest.approx(0.386871 + 0.533382, abs=2e-6)
    assert slopes[0] == pytest.approx([first - 1, (1 - first) + (1 - third), third - 1], abs=1e-12)


def test_who_is_good_and_who_is_bad():
    scores = np.array([[0.0, 0.0, 0.0], [1.0, 0.8, 0.7], [0.4, NAN, 0.1], [NAN, NAN, NAN]])
    above, below = sides(scores, 1, 2)
    assert above.tolist() == [[False] * 3, [True, False, False], [True, False, False], [False] * 3], "0 is not good"
    assert below.tolist() == [[True, True, False], [False] * 3, [True, False, True], [False] * 3]
    losses, slopes = sample_llm(np.zeros((4, 3)), above, below)
    assert losses == pytest.approx([0.0, 0.0, math.log(3), 0.0]), "without a bad one there is nothing to learn"
    assert slopes[[0, 1, 3]].any() == False  # noqa: E712


def test_pairs_of_queries_by_hand():
    losses, by_near, by_far = sample_sample(np.array([0.8]), np.array([[0.1, -0.3, 0.4]]))
    total = sum(map(math.exp, (0.8, 0.1, -0.3, 0.4)))
    assert losses[0] == pytest.approx(-math.log(math.exp(0.8) / total), abs=1e-12)
    assert losses[0] == pytest.approx(0.916201, abs=2e-6)
    assert by_near[0] == pytest.approx(math.exp(0.8) / total - 1)
    assert by_far[0] == pytest.approx([math.exp(each) / total for each in (0.1, -0.3, 0.4)])


def test_slopes_are_those_of_finite_differences():
    random = np.random.default_rng(0)
    texts, models = random.normal(size=(5, 4)), random.normal(size=(6, 4))
    above, below = sides(np.round(random.random((5, 6)), 1), 3, 3)

    def loss(texts: Any, models: Any) -> float:
        return float(sample_llm(cosines(texts, models) / 0.7, above, below)[0].mean())

    _, by_z = sample_llm(cosines(texts, models) / 0.7, above, below)
    found = cosine_slopes(texts, models, by_z / (0.7 * 5))
    for which, rows in enumerate((texts, models)):
        for place in np.ndindex(*rows.shape):
            moved = [[texts.copy(), models.copy()] for _ in range(2)]
            moved[0][which][place] += 1e-6
            moved[1][which][place] -= 1e-6
            assert found[which][place] == pytest.approx((loss(*moved[0]) - loss(*moved[1])) / 2e-6, abs=1e-7)


def planted(count: int, seed: int) -> tuple[Given, Any]:
    """Three kinds of queries; each of three models is right on one of them, a fourth nowhere. A tenth is not graded."""
    random = np.random.default_rng(seed)
    kinds = random.integers(0, 3, count)
    vectors = np.eye(8)[kinds] + random.normal(0, 0.35, (count, 8))
    scores = np.zeros((count, 4))
    scores[np.arange(count), kinds] = 1.0
    scores[random.random(scores.shape) < 0.1] = NAN
    return Given([f"{kind} {n}" for n, kind in enumerate(kinds)], unit(vectors.astype(np.float32))), scores


def routed(p: Any, scores: Any) -> float:
    known = np.where(np.isnan(scores), 0.0, scores)
    return float(known[np.arange(len(p)), p.argmax(axis=1)].mean())


def test_the_head_finds_who_is_right_where():
    kind, settings = head_kind("contrastive"), settings_of("contrastive", steps=300, width=16)
    given, scores = planted(300, 0)
    head = kind.fit(given, scores, settings, 1)
    fresh, truth = planted(300, 1)
    found = head.predict(fresh)
    assert routed(found.p, truth) > 0.75 > 3 * routed(np.ones((300, 4)), truth) / 1.2, (
        "one model alone is right on a third"
    )
    assert float(np.nanmean((found.p - truth) ** 2)) < 0.12, "chances, and not cosines"
    assert found.support.min() > 0 and found.support.max() <= 300
    again = kind.fit(given, scores, settings, 1)
    loaded = kind.load(settings, head.arrays())
    for other in (again, loaded):
        assert np.array_equal(other.predict(fresh).p, found.p)
    assert not np.array_equal(kind.fit(given, scores, settings, 2).predict(fresh).p, found.p)


def test_finetune_without_a_checkpoint_tells_the_way_out():
    given, scores = planted(20, 0)
    pytest.importorskip("torch", reason="needs torch")
    with pytest.raises(UserError, match="add --encoder checkpoint:FOLDER"):
        head_kind("finetune").fit(given, scores, settings_of("finetune"), 0)


def checkpoint(folder: Path) -> str:
    """A random two-layer DeBERTa-v2, whose tokenizer knows a word each."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import DebertaV2Config, DebertaV2Model, PreTrainedTokenizerFast

    torch.manual_seed(0)
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        *["add", "reverse", "sort", "the", "list", "word", "numbers", "up", "please", "now"],
    ]
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    config = DebertaV2Config(
        vocab_size=len(words), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        type_vocab_size=0, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    DebertaV2Model(config).save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)
    return str(folder)


@pytest.mark.heavy
def test_torch_and_numpy_have_the_same_loss():
    torch = pytest.importorskip("torch")
    from weaverant.routing.transformer import router_dc

    random = np.random.default_rng(3)
    z, near, far = random.normal(size=(6, 5)), random.normal(size=6), random.normal(size=(6, 3))
    above, below = sides(np.round(random.random((6, 5)), 1), 3, 3)
    given = [torch.tensor(each, requires_grad=True) for each in (z, near, far)]
    found = router_dc(given[0], above, below, given[1], given[2], 0.5)
    found.backward()
    (losses, by_z), (pairs, by_near, by_far) = sample_llm(z, above, below), sample_sample(near, far)
    assert found.item() == pytest.approx(losses.mean() + 0.5 * pairs.mean(), abs=1e-12)
    for tensor, slopes, weight in zip(given, (by_z, by_near, by_far), (1, 0.5, 0.5), strict=True):
        assert tensor.grad.numpy() == pytest.approx(weight * slopes / 6, abs=1e-12)


@pytest.mark.heavy
def test_an_encoder_of_a_folder_is_tuned_and_kept(tmp_path: Path):
    pytest.importorskip("torch")
    from weaverant.routing.encoders import fit_encoder

    folder = checkpoint(tmp_path / "encoder")
    random = np.random.default_rng(0)
    kinds = random.integers(0, 2, 80)
    words = [["add the numbers", "reverse the word"][kind] for kind in kinds]
    texts = [f"{text} {' '.join(random.choice(['please', 'now', 'up'], 2))}" for text in words]
    scores = np.eye(2)[kinds]
    encoder = fit_encoder(f"checkpoint:{folder}", texts)
    given = Given(texts, encoder.encode(texts), encoder.folder)
    settings = settings_of("finetune", steps=60, rate=1e-3, positives=1, negatives=1, clusters=2)
    kind = head_kind("finetune")
    head = kind.fit(given.take(np.arange(40)), scores[:40], settings, 0)
    fresh = given.take(np.arange(40, 80))
    found = head.predict(fresh)
    assert routed(found.p, scores[40:]) == 1.0
    np.savez(tmp_path / "arrays.npz", **head.arrays())
    with np.load(tmp_path / "arrays.npz", allow_pickle=False) as arrays:
        assert np.array_equal(kind.load(settings, dict(arrays)).predict(fresh).p, found.p)
    frozen = fit_encoder(f"checkpoint:{folder}", []).encode(texts)
    assert np.array_equal(frozen, given.vectors), "the folder is as it was"


@pytest.mark.heavy
def test_a_folder_that_holds_no_encoder_is_told(tmp_path: Path):
    pytest.importorskip("torch")
    from weaverant.routing.encoders import fit_encoder

    with pytest.raises(UserError, match=r"there is no encoder in .*config\.json, tokenizer files and weights"):
        fit_encoder(f"checkpoint:{tmp_path}", [])
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "nothing"}))
    with pytest.raises(UserError, match="cannot be loaded"):
        fit_encoder(f"checkpoint:{tmp_path}", [])
