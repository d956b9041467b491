"""A GPT-2 forward pass on numpy, arranged so that a row's numbers never depend on the rows beside it.

Matrix products have a fixed size: a prompt's own padded length when it is read, a tile of 16 lanes when tokens are
drawn. So a reply is the same bits alone and in any company.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from weaverant.engines.gpt2 import safetensors
from weaverant.engines.gpt2.tokenizer import CharTokenizer

Floats = NDArray[np.float32]
Ints = NDArray[np.intp]

TILE = 16
"""Lanes in a matrix product. The widest at which OpenBLAS treats every lane alike on all x86 processors tried."""
PROMPT_STEP = 16
"""Prompts are padded to a multiple of this."""
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
    """One layer. The gains and shifts of both norms, and the score scale, are folded into what reads them."""

    attend: Linear
    project: Linear
    widen: Linear
    narrow: Linear


@dataclass(frozen=True)
class Cache:
    """Keys `[layer, lane, head, size, position]` and values `[layer, lane, head, position, size]`."""

    keys: Floats
    values: Floats


class TinyModel:
    """A GPT-2 checkpoint with a character-level tokenizer, ready to read prompts and to draw tokens."""

    def __init__(self, weights: dict[str, Floats], config: dict[str, Any], tokenizer: CharTokenizer) -> None:
        self.tokenizer = tokenizer
        self.heads: int = config["n_head"]
        self.positions: int = config["n_positions"]
        self.tokens = weights["wte.weight"]
        self.places = weights["wpe.weight"]
        self.width = self.tokens.shape[1]
        self.blocks = [_block(weights, f"h.{i}.", self.width // self.heads) for i in range(config["n_layer"])]
        head = weights.get("lm_head.weight", self.tokens)
        self.unembed = _after_norm(weights, "ln_f", Linear(head.T, np.zeros(len(head), np.float32)))
        apart = np.triu(np.ones((self.positions, self.positions), np.float32), 1)
        self.mask: Floats = apart * HIDDEN

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
        """Room for that many conversations of full length."""
        sizes = (len(self.blocks), lanes, self.heads, self.width // self.heads, self.positions)
        keys = np.zeros(sizes, np.float32)
        return Cache(keys, np.zeros((*sizes[:3], sizes[4], sizes[3]), np.float32))

    def padded(self, length: int) -> int:
        """The padded length of a prompt."""
        return min(self.positions, -(-length // PROMPT_STEP) * PROMPT_STEP)

    def read(self, tokens: Ints, cache: Cache, lanes: Ints) -> None:
        """Puts keys and values of `tokens` `[batch, length]` into the cache; `length` is a padded length."""
        length = tokens.shape[1]
        x: Floats = self.tokens[tokens] + self.places[:length]
        for layer, block in enumerate(self.blocks):
            normed = _norm(x)
            last = layer == len(self.blocks) - 1
            query, key, value = self._split(block.attend(normed))
            cache.keys[layer, lanes, :, :, :length] = key.swapaxes(-1, -2)
            cache.values[layer, lanes, :, :length] = value
            if last:
                return  # the reply is drawn from the last token, which `step` reads
            scores: Floats = query @ key.swapaxes(-1, -2)
            scores += self.mask[:length, :length]
            mixed: Floats = _softmax(scores) @ value
            x += block.project(mixed.swapaxes(1, 2).reshape(x.shape))
            x += block.narrow(_gelu(block.widen(_norm(x))))

    def step(self, tokens: Ints, places: Ints, cache: Cache) -> Floats:
        """Logits `[rows, vocabulary]` after one more token in each of the first lanes.

        `tokens` and their `places` are `[rows]`, a multiple of 16; row i is lane i.
        """
        rows = len(tokens)
        lanes = np.arange(rows)
        x: Floats = (self.tokens[tokens] + self.places[places]).reshape(-1, TILE, self.width)
        unseen = np.where(np.arange(self.positions) > places[:, None], HIDDEN, np.float32(0))[:, None, None]
        for layer, block in enumerate(self.blocks):
            query, key, value = block.attend.tiled(_norm(x)).reshape(rows, 3, self.heads, -1).swapaxes(0, 1)
            keys, values = cache.keys[layer], cache.values[layer]
            keys[lanes, :, :, places] = key
            values[lanes, :, places] = value
            scores: Floats = query[:, :, None] @ keys[:rows]
            scores += unseen
            mixed: Floats = _softmax(scores) @ values[:rows]
            x += block.project.tiled(mixed.reshape(x.shape))
            x += block.narrow.tiled(_gelu(block.widen.tiled(_norm(x))))
        return self.unembed.tiled(_norm(x)).reshape(rows, -1)

    def _split(self, attended: Floats) -> Floats:
        """Queries, keys and values `[3, batch, head, length, size]` of `[batch, length, 3 x width]`."""
        batch, length, _ = attended.shape
        return attended.reshape(batch, length, 3, self.heads, -1).transpose(2, 0, 3, 1, 4)


def digest(folder: Path) -> str:
    """The first 12 hexadecimal digits of the weights' BLAKE2b: two folders that share it answer alike."""
    return blake2b((folder / "model.safetensors").read_bytes()).hexdigest()[:12]


def _block(weights: dict[str, Floats], at: str, size: int) -> Block:
    def linear(name: str) -> Linear:
        return Linear(weights[f"{at}{name}.weight"], weights[f"{at}{name}.bias"])

    attend = _after_norm(weights, at + "ln_1", linear("attn.c_attn"))
    scale = np.ones(attend.bias.shape, np.float32)
    scale[: len(scale) // 3] = size**-0.5
    return Block(
        attend=Linear(attend.weight * scale, attend.bias * scale),
        project=linear("attn.c_proj"),
        widen=_after_norm(weights, at + "ln_2", linear("mlp.c_fc")),
        narrow=linear("mlp.c_proj"),
    )


def _after_norm(weights: dict[str, Floats], norm: str, to: Linear) -> Linear:
    """`to` after the norm's gain and shift, as one linear map."""
    gain, shift = weights[f"{norm}.weight"], weights[f"{norm}.bias"]
    bias: Floats = shift @ to.weight
    bias += to.bias
    return Linear(np.ascontiguousarray(gain[:, None] * to.weight), bias)


def _norm(x: Floats) -> Floats:
    """Zero mean and unit variance over the last axis."""
    y: Floats = x - x.mean(-1, keepdims=True)
    y /= np.sqrt(np.square(y).mean(-1, keepdims=True) + np.float32(1e-5))
    return y


def _softmax(x: Floats) -> Floats:
    """Over the last axis, in place."""
    x -= x.max(-1, keepdims=True)
    np.exp(x, out=x)
    x /= x.sum(-1, keepdims=True)
    return x


def _gelu(x: Floats) -> Floats:
    """GPT-2's `gelu_new`, with the tanh approximation (arXiv 1606.08415, section 2)."""
    y: Floats = x * x
    y *= np.float32(0.044715)
    y += np.float32(1)
    y *= x
    y *= np.float32(0.7978845608)
    np.tanh(y, out=y)
    y += np.float32(1)
    y *= x
    y *= np.float32(0.5)
    return y
