"""Supervised fine-tuning on TRL's `SFTTrainer`: the model learns the replies, never the prompts.

Left out on purpose: packing (it mixes samples), evaluation during training (save, reload, then evaluate).
"""

from __future__ import annotations

from pathlib import Path

from weaverant.train.config import SftConfig
from weaverant.train.data import Tokens, read_sft
from weaverant.train.plan import Planned
from weaverant.train.stack import load_stack
from weaverant.train.watch import Say, Watch, quiet
from weaverant.train.work import Trained, Work

IGNORED = -100
"""The label of a token on which no loss falls."""


def plan_sft(data: Path, model: Path, config: SftConfig | None = None) -> Planned:
    """What `train_sft` would do: data, chat template, memory and time. Writes nothing. Raises `UserError`."""
    return _work(data, model, config or SftConfig()).planned()


def train_sft(
    data: Path,
    model: Path,
    out: Path,
    config: SftConfig | None = None,
    say: Say = quiet,
    *,
    watch: Watch | None = None,
    force: bool = False,
) -> Trained:
    """Train the model in the folder `model` on the conversations in `data`, and write a complete folder `out`.

    Where `out` holds the same training, cut off, it goes on. `say` is told what stays worth reading, `watch` each step.
    Raises `UserError` for data, a model or a folder that will not do, `WeaverantError` where the loss is no number.
    """
    work = _work(data, model, config or SftConfig())
    with work.begun(out, say, force) as place:
        policy = work.load()
        planned = work.planned(policy)
        trainer = work.stack.trl.SFTTrainer(
            model=policy,
            args=work.settings(work.stack.trl.SFTConfig, place),
            train_dataset=work.stack.datasets.Dataset.from_list([labelled(each) for each in work.tokens]),
            processing_class=work.tokenizer,
            peft_config=work.adapter(policy),
        )
        return work.run(trainer, place, planned, say, watch)


def labelled(tokens: Tokens) -> dict[str, list[int]]:
    """A sample as the trainer takes it. With labels of our own it puts nothing through the chat template again."""
    (reply,) = tokens.replies
    return {"input_ids": tokens.prompt + reply, "labels": [IGNORED] * len(tokens.prompt) + reply}


def _work(data: Path, model: Path, config: SftConfig) -> Work:
    samples = read_sft(data)
    return Work("sft", data, samples, model, config, load_stack())
