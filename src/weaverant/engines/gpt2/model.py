"""A GPT-2 forward pass on numpy, arranged so that a row's numbers never depend on the rows beside it.

Matrix products have a fixed size: a prompt's own padded length when it is read, a tile of 16 lanes when tokens are
drawn. So a reply is the same bits alone and in any company.
"""

from __future__ import annotations

import json
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from weaverant.engines.gpt2 import safetensors
from weaverant.engines.gpt2.tokenizer import CharTokenizer

Floats = NDArray[np.float32]
Ints = NDArray[np.intp]
Cache = Floats
"""Keys (0) and values (1) of texts: `[layer, 2, lane, head, position, size]`."""

TILE = 16
"""Lanes in a matrix product. The widest at which OpenBLAS treats every lane alike on all x86 processors tried."""
PAGE = 16
"""Tokens of a prompt in one matrix product: their keys and values depend on them and those before, to the last bit."""
HIDDEN = np.float32(-1e9)
"""Added to a score that must not count."""


class Linear(NamedTuple):
    """`x @ weight + bias` of `x` `[..., rows, inputs]`."""

    weight: Floats
    bias: Floats

    def __call__(self, x: Floats) -> Floats:
        y: Floats = x @ self.weight
        y += self.bias
        return y

    def tiled(self, x: Floats) -> Floats:
        """The same for `x` `[tiles, 16, inputs]`, to the same bits wherever in a tile a lane lies.

        Lanes are the columns of the product: as rows they fall into different kernels of OpenBLAS (Haswell, Zen).
        """
        y: Floats = np.ascontiguousarray((self.weight.T @ x.swapaxes(-1, -2)).swapaxes(-1, -2))
        y += self.bias
        return y


class Block(NamedTuple):
    """One layer. The gains and shifts of both norms, the score scale and the half of `_gelu` are folded into what
    reads them; what is added to the residual stream has a mean of zero, so the norms need take none away."""

    attend: Linear
    project: Linear
    widen: Linear
    narrow: Linear


class TinyModel:
    """A GPT-2 checkpoint with a character-level tokenizer, ready to read prompts and to draw tokens."""

    def __init__(self, weights: dict[str, Floats], config: dict[str, Any], tokenizer: CharTokenizer) -> None:
        self.tokenizer = tokenizer
        self.heads: int = config["n_head"]
        self.positions: int = config["n_positions"]
        self.room = -(-self.positions // PAGE) * PAGE
        """Positions of a lane: whole pages."""
        self.tokens = _centred(weights["wte.weight"])
        self.places = _centred(weights["wpe.weight"])
        self.width = self.tokens.shape[1]
        self.blocks = [_block(weights, f"h.{i}.", self.width // self.heads) for i in range(config["n_layer"])]
        head = weights.get("lm_head.weight", weights["wte.weight"])
        self.unembed = _after_norm(weights, "ln_f", Linear(head.T, np.zeros(len(head), np.float32)))
        self.mask: Floats = np.triu(np.full((self.room, self.room), HIDDEN, np.float32), 1)

    @staticmethod
    def load(folder: Path) -> TinyModel:
        """Reads a folder of transformers' `GPT2LMHeadModel` (see CARD.md of the packaged model)."""
        config: dict[str, Any] = json.loads((folder / "config.json").read_text())
        found = (config.get("model_type"), config.get("activation_function", "gelu_new"))
        if found != ("gpt2", "gelu_new"):
            raise ValueError(f"the embedded engine reads GPT-2 with gelu_new: found {found} in {folder}")
        weights = safetensors.read(folder / "model.safetensors")
        plain = {name.removeprefix("transformer."): tensor for name, tensor in weights.items()}
        return TinyModel(plain, config, CharTokenizer.load(folder))

    def cache(self, lanes: int) -> Cache:
        """Room for that many texts of full length."""
        return np.zeros((len(self.blocks), 2, lanes, self.heads, self.room, self.width // self.heads), np.float32)

    def read(self, tokens: Ints, start: int, cache: Cache, lane: int) -> None:
        """Puts keys and values of `tokens` `[pages, 16]` into a lane, which has the `start` positions before them."""
        end = start + tokens.size
        places = np.minimum(np.arange(start, end), self.positions - 1).reshape(tokens.shape)
        x: Floats = self.tokens[tokens] + self.places[places]
        for layer, block in enumerate(self.blocks):
            attended = block.attend(_norm(x)).reshape(tokens.size, 3, self.heads, -1).transpose(1, 2, 0, 3)
            cache[layer, :, lane, :, start:end] = attended[1:]
            if layer == len(self.blocks) - 1:
                return  # the reply is drawn from the last token, which `step` reads
            (keys, values), query = cache[layer, :, lane], attended[0]
            for to in range(start + PAGE, end + 1, PAGE):
                page = query[:, to - PAGE - start : to - start]
                scores: Floats = page @ keys[:, :to].swapaxes(-1, -2)
                scores[..., -PAGE:] += self.mask[:PAGE, :PAGE]
                page[:] = _mixed(scores, values[:, :to])
            x += block.project(query.swapaxes(0, 1).reshape(x.shape))
            x += block.narrow(_gelu(block.widen(_norm(x))))

    def step(self, tokens: Ints, places: Ints, cache: Cache) -> Floats:
        """Logits `[rows, vocabulary]` after one more token in each of the first lanes.

        `tokens` and their `places` are `[rows]`, a multiple of 16; row i is lane i.
        """
        rows = len(tokens)
        lanes = np.arange(rows)
        x: Floats = (self.tokens[tokens] + self.places[places]).reshape(-1, TILE, self.width)
        unseen = self.mask[places][:, None, None]
        for layer, block in enumerate(self.blocks):
            attended = block.attend.tiled(_norm(x)).reshape(rows, 3, self.heads, -1)
            cache[layer, :, lanes, :, places] = attended[:, 1:]
            keys, values = cache[layer, :, :rows]
            scores: Floats = attended[:, 0, :, None] @ keys.swapaxes(-1, -2)
            scores += unseen
            x += block.project.tiled(_mixed(scores, values).reshape(x.shape))
            x += block.narrow.tiled(_gelu(block.widen.tiled(_norm(x))))
        return self.unembed.tiled(_norm(x)).reshape(rows, -1)


def digest(folder: Path) -> str:
    """The first 12 hexadecimal digits of the weights' BLAKE2b: two folders that share it answer alike."""
    return blake2b((folder / "model.safetensors").read_bytes()).hexdigest()[:12]


def _block(weights: dict[str, Floats], at: str, size: int) -> Block:
    def linear(name: str) -> Linear:
        return Linear(weights[f"{at}{name}.weight"], weights[f"{at}{name}.bias"])

    attend = _after_norm(weights, at + "ln_1", linear("attn.c_attn"))
    scale = np.ones(attend.bias.shape, np.float32)
    scale[: len(scale) // 3] = size**-0.5
    project, narrow = linear("attn.c_proj"), linear("mlp.c_proj")
    return Block(
        attend=Linear(attend.weight * scale, attend.bias * scale),
        project=Linear(_centred(project.weight), _centred(project.bias)),
        widen=_after_norm(weights, at + "ln_2", linear("mlp.c_fc")),
        narrow=Linear(_centred(narrow.weight) * np.float32(0.5), _centred(narrow.bias)),
    )


def _centred(x: Floats) -> Floats:
    """Less its mean over the last axis."""
    return x - x.mean(-1, keepdims=True)


def _after_norm(weights: dict[str, Floats], norm: str, to: Linear) -> Linear:
    """`to` after the norm's gain and shift, as one linear map."""
    gain, shift = weights[f"{norm}.weight"], weights[f"{norm}.bias"]
    bias: Floats = shift @ to.weight
    bias += to.bias
    return Linear(np.ascontiguousarray(gain[:, None] * to.weight), bias)


def _norm(x: Floats) -> Floats:
    """Unit variance over the last axis, over which the mean is zero."""
    variance: Floats = np.einsum("...i,...i->...", x, x)[..., None]
    variance /= np.float32(x.shape[-1])
    variance += np.float32(1e-5)
    np.sqrt(variance, out=variance)
    return x / variance


def _mixed(scores: Floats, values: Floats) -> Floats:
    """The values, each in the share that the softmax of its score gives it. Overwrites the scores."""
    scores -= scores.max(-1, keepdims=True)
    np.exp(scores, out=scores)
    mixed: Floats = scores @ values
    mixed /= scores.sum(-1, keepdims=True)
    return mixed


def _gelu(x: Floats) -> Floats:
    """Twice GPT-2's `gelu_new`, with the tanh approximation (arXiv 1606.08415, section 2)."""
    y: Floats = x * x
    y *= np.float32(0.044715 * 0.7978845608)
    y += np.float32(0.7978845608)
    y *= x
    np.tanh(y, out=y)
    y += np.float32(1)
    y *= x
    return y
