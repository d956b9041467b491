"""Direct preference optimisation on TRL's `DPOTrainer`, with the chosen replies' own likelihood beside it if wanted.

The reference is explicit: the very model that training starts from, loaded a second time, or another folder. (TRL's
default loads whatever path the model's config names.) An adapter needs no second copy where its frozen base is the
reference: switched off, it is the reference.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from weaverant.train.config import DpoConfig
from weaverant.train.data import Tokens, read_preferences
from weaverant.train.plan import Planned
from weaverant.train.stack import load_stack
from weaverant.train.watch import Say, Watch, quiet
from weaverant.train.work import Trained, Work


def plan_dpo(data: Path, model: Path, config: DpoConfig | None = None, reference: Path | None = None) -> Planned:
    """What `train_dpo` would do: data, chat template, memory and time. Writes nothing. Raises `UserError`."""
    return _work(data, model, config or DpoConfig(), reference).planned()


def train_dpo(
    data: Path,
    model: Path,
    out: Path,
    config: DpoConfig | None = None,
    say: Say = quiet,
    *,
    reference: Path | None = None,
    watch: Watch | None = None,
    force: bool = False,
) -> Trained:
    """Train the model in the folder `model` (after SFT) on the pairs in `data`, and write a complete folder `out`.

    `reference` is the folder that preferences are measured against, `model` itself unless given. The rest is as in
    `train_sft`. Warns where chosen replies become less likely than the reference found them.
    """
    config = config or DpoConfig()
    work = _work(data, model, config, reference)
    with work.begun(out, say, force) as place:
        policy = work.load()
        planned = work.planned(policy)
        losses = (["sigmoid", "sft"], [1.0, config.sft_weight]) if config.sft_weight else (["sigmoid"], [1.0])
        trainer = trainer_of_pairs(work.stack)(
            model=policy,
            ref_model=work.load(work.reference) if work.holds_reference else None,
            args=work.settings(
                work.stack.trl.DPOConfig, place, beta=config.beta, loss_type=losses[0], loss_weights=losses[1]
            ),
            train_dataset=work.stack.datasets.Dataset.from_list([paired(each) for each in work.tokens]),
            processing_class=work.tokenizer,
            peft_config=work.adapter(policy),
        )
        return work.run(trainer, place, planned, say, watch)


def trainer_of_pairs(stack: Any) -> Any:
    """TRL's trainer, which takes our tokens as they are. It would put the messages through Arrow and the chat template
    once more: Arrow fills every mapping of a tool's call with the fields of all others."""

    class PairTrainer(stack.trl.DPOTrainer):
        def _prepare_dataset(self, dataset: Any, *rest: Any) -> Any:
            return dataset

    return PairTrainer


def paired(tokens: Tokens) -> dict[str, list[int]]:
    """A pair as the trainer takes it."""
    chosen, rejected = tokens.replies
    return {"prompt_ids": tokens.prompt, "chosen_ids": chosen, "rejected_ids": rejected}


def _work(data: Path, model: Path, config: DpoConfig, reference: Path | None) -> Work:
    samples = read_preferences(data)
    return Work("dpo", data, samples, model, config, load_stack(), reference or model)
