"""GPT-2 as a function of a dictionary of tensors, named as in transformers' `GPT2LMHeadModel`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Shape:
    """The size of a model."""

    vocabulary: int
    positions: int = 192
    width: int = 96
    layers: int = 2
    heads: int = 4


def fresh(shape: Shape, seed: int) -> Weights:
    """Untrained weights: normal with deviation 0.02, residual projections scaled down by sqrt(2 x layers)."""
    dice = torch.Generator().manual_seed(seed)
    width = shape.width

    def drawn(*size: int, deviation: float = 0.02) -> Tensor:
        return torch.randn(*size, generator=dice) * deviation

    weights = {
        "transformer.wte.weight": drawn(shape.vocabulary, width),
        "transformer.wpe.weight": drawn(shape.positions, width),
        "transformer.ln_f.weight": torch.ones(width),
        "transformer.ln_f.bias": torch.zeros(width),
    }
    residual = 0.02 / (2 * shape.layers) ** 0.5
    for layer in range(shape.layers):
        at = f"transformer.h.{layer}."
        for norm in ("ln_1", "ln_2"):
            weights[f"{at}{norm}.weight"] = torch.ones(width)
            weights[f"{at}{norm}.bias"] = torch.zeros(width)
        for name, rows, columns, deviation in (
            ("attn.c_attn", width, 3 * width, 0.02),
            ("attn.c_proj", width, width, residual),
            ("mlp.c_fc", width, 4 * width, 0.02),
            ("mlp.c_proj", 4 * width, width, residual),
        ):
            weights[f"{at}{name}.weight"] = drawn(rows, columns, deviation=deviation)
            weights[f"{at}{name}.bias"] = torch.zeros(columns)
    for tensor in weights.values():
        tensor.requires_grad_()
    return weights


def hidden(weights: Weights, shape: Shape, tokens: Tensor) -> Tensor:
    """The last hidden states, `[batch, length, width]`, of `tokens` `[batch, length]`."""
    x = weights["transformer.wte.weight"][tokens] + weights["transformer.wpe.weight"][: tokens.shape[1]]
    for layer in range(shape.layers):
        at = f"transformer.h.{layer}."
        x = x + _attention(weights, shape, at, _norm(weights, at + "ln_1", x))
        inner = F.gelu(_linear(weights, at + "mlp.c_fc", _norm(weights, at + "ln_2", x)), approximate="tanh")
        x = x + _linear(weights, at + "mlp.c_proj", inner)
    return _norm(weights, "transformer.ln_f", x)


def reply_loss(weights: Weights, shape: Shape, tokens: Tensor, targets: Tensor) -> Tensor:
    """Mean cross entropy, in nats, over the positions whose `targets` `[batch, length]` are not negative."""
    wanted = targets >= 0
    logits = hidden(weights, shape, tokens)[wanted] @ weights["transformer.wte.weight"].T
    return F.cross_entropy(logits, targets[wanted])


def _attention(weights: Weights, shape: Shape, at: str, x: Tensor) -> Tensor:
    batch, length, width = x.shape
    qkv = _linear(weights, at + "attn.c_attn", x).view(batch, length, 3, shape.heads, -1)
    query, key, value = qkv.permute(2, 0, 3, 1, 4)
    mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
    return _linear(weights, at + "attn.c_proj", mixed.transpose(1, 2).reshape(batch, length, width))


def _linear(weights: Weights, name: str, x: Tensor) -> Tensor:
    return x @ weights[name + ".weight"] + weights[name + ".bias"]


def _norm(weights: Weights, name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], weights[name + ".weight"], weights[name + ".bias"])
