"""What a training will take, before it starts: memory from the folder's own files, time from a timed forward pass."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from msgspec import Struct

from weaverant.errors import UserError
from weaverant.train.config import TrainConfig

GRADIENT, ADAM, FLOAT32, BFLOAT16 = 4, 8, 4, 2
"""Bytes for each weight that is trained, or held."""

ACTIVATIONS = 34
"""Bytes a token, layer and unit of width in 16 bits (arXiv 2205.05198, table 2, without the scores of attention, which
are never written down whole). Twice that in 32 bits; 2 where layers are computed again."""

_NO_LAYERS = ("embed", "wte", "wpe", "lm_head")


class Shape(Struct, frozen=True):
    """What a checkpoint's folder tells without loading it."""

    parameters: int
    linear: tuple[tuple[int, int], ...]
    """Sizes of the matrices of its layers, which an adapter goes beside."""
    layers: int
    width: int
    positions: int
    """Tokens that it takes; 0 where it does not say."""

    def trained(self, rank: int) -> int:
        """Weights that are trained: all, or those of an adapter of that rank."""
        return sum(rank * (rows + columns) for rows, columns in self.linear) if rank else self.parameters


def shape_of(folder: Path) -> Shape:
    """Reads `config.json` and the headers of the weights. `UserError` where the folder is no complete checkpoint."""
    if (folder / "adapter_config.json").exists() and not (folder / "config.json").exists():
        raise UserError(
            f"{str(folder)!r} is an adapter without its model. Expected a complete folder: merge it first "
            "(`weaverant train` writes merged weights beside `adapter/`)"
        )
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text())
        config |= cast("dict[str, Any]", config.get("text_config") or {})
        sizes = dict(_tensors(folder))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"the model {str(folder)!r} cannot be read: {error!r}. Expected a folder with config.json, tokenizer files "
            "and .safetensors weights, or embedded:tiny"
        ) from None
    if not sizes:
        raise UserError(f"the model {str(folder)!r} has no .safetensors weights")
    linear = tuple(
        (size[0], size[1])
        for name, size in sizes.items()
        if len(size) == 2 and not any(word in name for word in _NO_LAYERS)
    )
    return Shape(
        parameters=sum(math.prod(size) for size in sizes.values()),
        linear=linear,
        layers=_first(config, "num_hidden_layers", "n_layer"),
        width=_first(config, "hidden_size", "n_embd"),
        positions=_first(config, "max_position_embeddings", "n_positions"),
    )


def memory(shape: Shape, config: TrainConfig, micro: int, length: int, replies: int, reference: bool, gpu: bool) -> int:
    """Bytes at the peak, of one process without its libraries. `length` is the longest sample's, in tokens.

    Weights, their gradients and AdamW's two moments in 32 bits; the frozen base of an adapter on a GPU in 16; a
    reference model where it is held; and the activations of `micro` samples of `replies` texts each.
    """
    trained = shape.trained(config.lora)
    held = shape.parameters * (BFLOAT16 if gpu and config.lora else FLOAT32)
    states = trained * (GRADIENT + ADAM + (FLOAT32 if config.lora else 0))
    other = shape.parameters * (BFLOAT16 if gpu and config.lora else FLOAT32) if reference else 0
    a_token = shape.layers * shape.width * (2 if gpu else 2 * ACTIVATIONS)
    return held + states + other + micro * replies * length * a_token


def free_memory() -> int:
    """Bytes that this host has to give; 0 where it cannot be told."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


def seconds(forward: float, steps: int, forwards_a_step: int, *, reference: bool, checkpointing: bool) -> float:
    """A step is a forward pass, a backward pass (twice as long), and one more each for the reference and for layers
    that are computed again."""
    return forward * forwards_a_step * steps * (3 + reference + checkpointing)


def _tensors(folder: Path) -> Iterator[tuple[str, list[int]]]:
    """Names and sizes, from the headers of the files."""
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            header: dict[str, Mapping[str, Any]] = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        yield from ((name, about["shape"]) for name, about in header.items() if name != "__metadata__")


def _first(config: Mapping[str, Any], *names: str) -> int:
    return next((int(config[name]) for name in names if config.get(name)), 0)
