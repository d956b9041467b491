"""The loop that teaches one model: AdamW on examples of a prompt and a reply, parts of which may be no target."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from members import LONG, POSITIONS, SHORT, Member

from checkpoint import END, VOCABULARY  # isort: skip
from gpt2 import Shape, Weights, reply_loss
from torch import Tensor

IGNORED = -1


class Part(NamedTuple):
    """A piece of a reply. What is not `taught` is only read: a wrong answer, before the score that it deserves."""

    text: str
    taught: bool = True


@dataclass(frozen=True)
class Example:
    """One chat of two messages."""

    prompt: str
    reply: tuple[Part, ...]


def shape_of(member: Member) -> Shape:
    return Shape(len(VOCABULARY), POSITIONS, member.width, member.layers, member.heads)


def teach(
    weights: Weights, member: Member, short: Iterator[Example], long: Iterator[Example], steps: int, rate: float
) -> tuple[float, float]:
    """Changes the weights in so many steps, each on short prompts and on long ones. Matrices go by Muon, the rest
    by AdamW; the rate warms up, stays for a third, and falls to zero. Gives the mean losses of the last 100 steps,
    in nats a token."""
    shape = shape_of(member)
    matrices = [each for name, each in weights.items() if each.ndim == 2 and ".h." in name]
    others = [each for name, each in weights.items() if each.ndim != 2 or ".h." not in name]
    optimizers = (Muon(matrices), torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=0.0))
    recent: list[tuple[float, float]] = []
    for step in range(steps):
        share = _share_of_rate(step, steps)
        for optimizer, peak in zip(optimizers, (5 * rate, rate), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = peak * share
        losses: list[float] = []
        for examples, count in ((short, SHORT), (long, LONG)):
            tokens, targets = packed([next(examples) for _ in range(count)])
            loss = reply_loss(weights, shape, tokens, targets)
            loss.backward()
            losses.append(loss.item())
        torch.nn.utils.clip_grad_norm_(weights.values(), 2.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        recent = [*recent[-99:], (losses[0], losses[1])]
        if step % 100 == 99:
            print(f"  {member.name} {step + 1}: short {_mean(recent, 0):.4f}, long {_mean(recent, 1):.4f}", flush=True)
    return (_mean(recent, 0), _mean(recent, 1)) if recent else (math.nan, math.nan)


def _mean(losses: Sequence[tuple[float, float]], of: int) -> float:
    return sum(each[of] for each in losses) / len(losses)


class Muon(torch.optim.Optimizer):
    """Momentum, each matrix's step made nearly orthogonal by five Newton-Schulz iterations (Jordan et al. 2024)."""

    def __init__(self, params: Sequence[Tensor], lr: float = 0.02, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for each in group["params"]:
                state = self.state[each]
                if not state:
                    state["momentum"] = torch.zeros_like(each)
                moving = state["momentum"].mul_(group["momentum"]).add_(each.grad)
                found = _orthogonal(each.grad.add(moving, alpha=group["momentum"]))
                each.add_(found, alpha=-group["lr"] * max(1.0, each.shape[1] / each.shape[0]) ** 0.5)


def _orthogonal(matrix: Tensor) -> Tensor:
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    x = wide / (wide.norm() + 1e-7)
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x if matrix.shape[0] <= matrix.shape[1] else x.T


def packed(examples: Sequence[Example]) -> tuple[Tensor, Tensor]:
    """Tokens and targets, both `[examples, length]`; only what is taught of replies, and their ends, are targets."""
    rows: list[tuple[list[int], list[int]]] = []
    for example in examples:
        prompt = [VOCABULARY["<|user|>"], *_characters(example.prompt), VOCABULARY[END], VOCABULARY["<|assistant|>"]]
        reply = [number for part in example.reply for number in _characters(part.text)]
        wanted = [number if part.taught else IGNORED for part in example.reply for number in _characters(part.text)]
        end = VOCABULARY[END]
        rows.append((prompt + reply, [IGNORED] * (len(prompt) - 1) + [*wanted, end]))
    length = max(len(read) for read, _ in rows)
    read = [row + [0] * (length - len(row)) for row, _ in rows]
    said = [row + [IGNORED] * (length - len(row)) for _, row in rows]
    return torch.tensor(read), torch.tensor(said)


def _characters(text: str) -> list[int]:
    return [VOCABULARY[character] for character in text]


def _share_of_rate(step: int, steps: int) -> float:
    return min(1.0, (step + 1) / 50, 1.5 * (1 - step / steps))
