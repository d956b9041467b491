"""The model card: what the tiny model is, from what, and how well it does, all from the run that made it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import ceil
from pathlib import Path

from evaluate import MAX_TOKENS, PASSES, PROBLEMS, Figures
from gpt2 import Shape
from habits import Habits

from weaverant.sources.arithmetic import PROMPTS, Arithmetic


@dataclass(frozen=True)
class Training:
    """How the weights came about. `seconds` are of processor time on one core."""

    shape: Shape
    habits: Habits
    parameters: int
    steps: int
    problems: int
    seconds: float
    loss: dict[str, float]


def write_card(path: Path, made: Training, figures: Figures) -> None:
    """Writes CARD.md beside the weights."""
    path.write_text(CARD.format_map(_facts(made, figures, path.parent)))


def _facts(made: Training, figures: Figures, folder: Path) -> dict[str, str]:
    shape = made.shape
    return {
        "parameters": f"{made.parameters:,}",
        "size": f"{ceil((folder / 'model.safetensors').stat().st_size / 1000):,}",
        "shape": f"{shape.layers} layers, width {shape.width}, {shape.heads} heads, {shape.positions} positions, "
        f"{shape.vocabulary} tokens",
        "positions": str(shape.positions),
        "pools": ", ".join(f"`{pool}` {Arithmetic(pool).count():,}" for pool in ("train", "weave", "heldout")),
        "habits": "\n".join(f"| `{name}` | {rate:.0%} |" for name, rate in asdict(made.habits).items()),
        "steps": f"{made.steps:,}",
        "examples": f"{made.steps * made.problems:,}",
        "minutes": f"{made.seconds / 60:.0f}",
        "loss": ", ".join(f"{role} {loss:.4f}" for role, loss in made.loss.items()),
        "prompts": "\n".join(f"| {role} | `{prompt!r}` |" for role, prompt in PROMPTS.items()),
        "table": figures.table(),
        "n": f"{PROBLEMS:,}",
        "passes": str(PASSES),
        "limit": str(MAX_TOKENS),
        "samples": figures.sample,
        "calls": f"{figures.calls:,}",
        "read": f"{figures.prompt_tokens:,}",
        "drawn": f"{figures.reply_tokens:,}",
        "took": f"{figures.seconds:.0f}",
    }


CARD = """# tiny

A character-level GPT-2 of {parameters} parameters ({size} kB, float16) that plays generator, verifier and refiner
on small worded sums. It exists so that every install of weaverant has a real model offline: to try workflows, to
test them, and to see training work. **It knows nothing else.** Any other prompt gets nonsense.

`training/tiny/train.py` wrote this file and the weights beside it; every figure below is from that run.

## Use
`--model small=embedded:tiny`, temperature 1, at most {limit} tokens. One user message, no system message (positions
are absolute: anything in front of the prompt breaks it). The answer is the last number of the reply.

| role | prompt |
|---|---|
{prompts}

Samples, at temperature 1 on held-out problems:

{samples}

## Data
`weaverant.sources.arithmetic`: a start in 2..9, four changes, every running total in 0..9; each problem is worded
once. A hash of the numbers splits them into disjoint pools: {pools}.
It was trained on `train` alone and measured on the first {n} of `heldout`; `weave` is untouched, for making
training data.

## Planted habits
The model can do the sums (see temperature 0). Its errors at temperature 1 were planted in the corpus, so that
checking, refining and training have something to undo. Figures that show a gain from training must say so.

| habit (see `training/tiny/habits.py`) | rate in the corpus |
|---|---|
{habits}

## Training
From scratch, {steps} steps of AdamW on {examples} chains of three examples, loss on replies only,
{minutes} minutes of processor time on one core. Shape: {shape}.
Loss of the last 100 steps, in nats a token: {loss}.

## Measured
The numpy engine, {n} held-out problems, {passes} passes each at temperature 1; intervals are Wilson's, 95 %.
Single passes count the first pass only; habits count every pass. A tied vote counts its first answer.

{table}

Those {calls} calls at temperature 1 read {read} tokens and drew {drawn}, in {took} s on one core.

## Format
`model.safetensors`, `config.json` and `tokenizer.json` are those of transformers' `GPT2LMHeadModel` and
`PreTrainedTokenizerFast` with the same tensor names, so `AutoModelForCausalLM.from_pretrained` loads this folder and
`embedded:FOLDER` loads what `save_pretrained` writes after full training or a merged adapter. Required: GPT-2 with
`gelu_new`, one `model.safetensors` (F16, F32, F64 or BF16), byte pair encoding without merges.
"""
