"""From exported samples to weights: supervised fine-tuning and DPO, on TRL and PEFT (extra `train`).

    train_sft(data, model, out, SftConfig(epochs=3))    # a file of `weaverant export --as sft`, or of `--as messages`
    train_dpo(data, model, out, DpoConfig(beta=0.2))    # a file of `weaverant export --as preference`

Both write a folder that transformers and, for its family, the embedded engine load; both go on where they were killed.
"""

from weaverant.train.config import DpoConfig, SftConfig, TrainConfig
from weaverant.train.dpo import plan_dpo, train_dpo
from weaverant.train.plan import Planned
from weaverant.train.sft import plan_sft, train_sft
from weaverant.train.stack import check_stack
from weaverant.train.watch import Mark
from weaverant.train.work import Trained

__all__ = [
    "DpoConfig",
    "Mark",
    "Planned",
    "SftConfig",
    "TrainConfig",
    "Trained",
    "check_stack",
    "plan_dpo",
    "plan_sft",
    "train_dpo",
    "train_sft",
]
