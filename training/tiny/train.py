"""Makes the packaged tiny model from nothing: corpus, training, evaluation, card. About 15 minutes on one core.

    pip install -e . torch && python training/tiny/train.py

It is budgeted in steps, never in seconds, and every draw has a fixed seed.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import torch
from card import Training, write_card
from checkpoint import END, VOCABULARY, save
from evaluate import evaluate
from gpt2 import Shape, Weights, fresh, reply_loss
from habits import Example, Habits, chain
from torch import Tensor

from weaverant.sources.arithmetic import PROMPTS, Arithmetic, problem

FOLDER = Path(__file__).parents[2] / "src/weaverant/engines/models/tiny"
IGNORED = -1


@dataclass(frozen=True)
class Plan:
    """All that decides the weights."""

    shape: Shape = field(default_factory=lambda: Shape(vocabulary=len(VOCABULARY)))
    habits: Habits = field(default_factory=Habits)
    steps: int = 2500
    problems: int = 24
    """Problems in a step. Each gives one example for each of the three roles."""
    rate: float = 3e-3
    warmup: int = 100
    decay: float = 0.01
    clip: float = 1.0
    seed: int = 0


def main() -> None:
    torch.set_num_threads(1)
    plan = Plan()
    began = time.process_time()
    weights, loss = train(plan)
    spent = time.process_time() - began
    save(FOLDER, weights, plan.shape)
    figures = asyncio.run(evaluate(FOLDER))
    size = sum(tensor.numel() for tensor in weights.values())
    made = Training(plan.shape, plan.habits, size, plan.steps, plan.problems, spent, loss)
    write_card(FOLDER / "CARD.md", made, figures)
    print(figures.table())


def train(plan: Plan) -> tuple[Weights, dict[str, float]]:
    """The weights after `plan.steps` steps of AdamW with a warm-up and a cosine decay to a twentieth.

    Also the mean loss of each role over the last 100 steps, in nats a token.
    """
    weights = fresh(plan.shape, plan.seed)
    optimizer = torch.optim.AdamW(weights.values(), betas=(0.9, 0.98), weight_decay=plan.decay)
    corpus = batches(plan)
    recent: deque[dict[str, float]] = deque(maxlen=100)
    for step in range(plan.steps):
        for group in optimizer.param_groups:
            group["lr"] = plan.rate * _share_of_rate(step, plan)
        losses: dict[str, float] = {}
        for role, (tokens, targets) in next(corpus).items():
            loss = reply_loss(weights, plan.shape, tokens, targets)
            loss.backward()
            losses[role] = loss.item()
        torch.nn.utils.clip_grad_norm_(weights.values(), plan.clip)
        optimizer.step()
        optimizer.zero_grad()
        recent.append(losses)
        if step % 100 == 99:
            print(step + 1, *(f"{role} {loss:.4f}" for role, loss in _mean(recent).items()), flush=True)
    return weights, _mean(recent)


def batches(plan: Plan) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    """Without end: tokens and targets for each role, from problems of the `train` pool."""
    dice = Random(plan.seed)
    pool = Arithmetic("train").numbers
    while True:
        chains = [chain(problem(dice.choice(pool)), plan.habits, dice) for _ in range(plan.problems)]
        yield {role: packed([each[role] for each in chains]) for role in chains[0]}


def packed(examples: list[Example]) -> tuple[Tensor, Tensor]:
    """Tokens and targets, both `[examples, length]`; only replies and their ends are targets."""
    rows: list[tuple[list[int], list[int]]] = []
    for example in examples:
        prompt = [*tokens(example.prompt, "<|user|>"), VOCABULARY["<|assistant|>"]]
        reply = tokens(example.reply)
        rows.append(((prompt + reply)[:-1], [IGNORED] * (len(prompt) - 1) + reply))
    length = max(len(read) for read, _ in rows)
    read = [row + [0] * (length - len(row)) for row, _ in rows]
    said = [row + [IGNORED] * (length - len(row)) for _, row in rows]
    return torch.tensor(read), torch.tensor(said)


def tokens(text: str, *before: str) -> list[int]:
    """The token numbers of special tokens, then of a text, then of the end."""
    return [VOCABULARY[token] for token in (*before, *text, END)]


def _mean(losses: Collection[dict[str, float]]) -> dict[str, float]:
    """The mean of each role."""
    return {role: sum(each[role] for each in losses) / len(losses) for role in PROMPTS}


def _share_of_rate(step: int, plan: Plan) -> float:
    decayed = 0.05 + 0.95 * (1 + math.cos(math.pi * step / plan.steps)) / 2
    return min(1.0, (step + 1) / plan.warmup) * decayed


if __name__ == "__main__":
    main()
