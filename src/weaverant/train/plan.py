"""What a training will be, told before it starts."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from statistics import median
from typing import Any

from msgspec import Struct

from weaverant.train.data import Tokens


class Planned(Struct, frozen=True):
    """Memory in bytes, of each process without its libraries; `seconds` on this machine as it is now."""

    method: str
    samples: int
    left_out: int
    """Samples longer than `max_length`."""
    tokens: int
    """Of an epoch, prompts included."""
    longest: int
    max_length: int
    parameters: int
    trained: int
    steps: int
    memory: int
    free: int
    seconds: float
    device: str
    endless: int
    """Replies that do not hold the end token `end`."""
    end: str

    def lines(self) -> Iterator[str]:
        """For people."""
        out = f" ({self.left_out:,} longer than {self.max_length:,} tokens left out)" if self.left_out else ""
        yield f"data: {self.samples:,} samples{out}, {self.tokens:,} tokens, the longest {self.longest:,}"
        yield f"model: {self.parameters:,} weights, {self.trained:,} of them trained, on {self.device}"
        yield f"plan: {self.steps:,} steps, about {self.seconds:,.0f} s and {_gigabytes(self.memory)} of memory"
        if self.free and self.memory > self.free:
            yield (
                f"warning: about {_gigabytes(self.memory)} are needed and {_gigabytes(self.free)} free: expected a "
                "smaller --micro-batch, a shorter --max-length, or --lora"
            )
        if self.endless:
            yield (
                f"warning: {self.endless:,} replies do not hold the end token {self.end!r}: the model's chat template "
                "does not write it, so that nobody learns to stop"
            )


TIMED = 8_192
"""Tokens of a timed pass at most. It writes all logits down, which training does not: of a large vocabulary they would
be more than all the rest."""


def forward_seconds(torch: Any, model: Any, tokens: Sequence[Tokens], micro: int, device: str) -> float:
    """Of a forward pass over `micro` samples of middling length; a part of them is timed, the second of two times."""
    length = int(median(each.longest for each in tokens))
    rows = min(micro, len(tokens)) * len(tokens[0].replies)
    timed = max(1, min(rows, TIMED // length))
    ids = torch.zeros((timed, length), dtype=torch.long, device=device)
    took = 0.0
    with torch.no_grad(), torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda"):
        for _ in range(2):
            began = time.perf_counter()
            model(ids, use_cache=False)
            if device == "cuda":
                torch.cuda.synchronize()
            took = time.perf_counter() - began
    return took * rows / timed


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.0f} MB"
