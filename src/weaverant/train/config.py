"""What a training can be told. Frozen, unknown fields refused; each field says its unit."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from weaverant.errors import UserError

Device = Literal["auto", "cpu", "cuda"]
Schedule = Literal["constant", "linear", "cosine"]


class TrainConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What both methods share. `UserError` for a value that makes no sense."""

    epochs: int = 3
    """How often each sample is seen."""
    lr: float = 3e-4
    """The highest learning rate of AdamW. 3e-4 suits a small model in full; LoRA takes about the same, a large model
    in full about 1e-5."""
    batch_size: int = 64
    """Samples to an optimizer step, of all processes together."""
    micro_batch: int = 0
    """Samples that are in memory at once in each process; gradients add up to `batch_size`. 0: the whole batch."""
    seed: int = 0
    """Of the order of the samples and of new adapter weights."""
    lora: int = 0
    """The rank of a LoRA adapter on every linear layer. 0: train all weights."""
    lora_alpha: int = 0
    """The adapter counts `lora_alpha / lora`. 0: twice the rank."""
    max_length: int = 0
    """Tokens of prompt and reply. Longer samples are left out, never cut. 0: what the model takes, at most 4,096."""
    warmup: float = 0.0
    """The share of the steps in which the rate rises."""
    schedule: Schedule = "linear"
    """How the rate falls to 0 afterwards, if it does."""
    weight_decay: float = 0.0
    save_every: int = 0
    """Steps between checkpoints. 0: a tenth of all."""
    device: Device = "auto"
    """`auto` is the GPU where there is one. bfloat16 and gradient checkpointing are used there only."""
    threads: int = 0
    """Of the processor. 0: one for a model under 10M parameters, which more only slow down; else torch's choice."""

    def __post_init__(self) -> None:
        wrong = {
            "epochs": self.epochs < 1,
            "lr": not 0 < self.lr < 1,
            "batch_size": self.batch_size < 1,
            "micro_batch": self.micro_batch < 0 or (self.micro_batch > 0 and self.batch_size % self.micro_batch != 0),
            "lora": self.lora < 0,
            "lora_alpha": self.lora_alpha < 0 or (self.lora_alpha > 0 and not self.lora),
            "max_length": self.max_length < 0,
            "warmup": not 0 <= self.warmup < 1,
            "schedule": self.schedule not in ("constant", "linear", "cosine"),
            "weight_decay": self.weight_decay < 0,
            "save_every": self.save_every < 0,
            "device": self.device not in ("auto", "cpu", "cuda"),
            "threads": self.threads < 0,
        }
        for name, holds in wrong.items():
            if holds:
                raise UserError(f"{name}={getattr(self, name)!r} cannot be: expected {_EXPECTED[name]}")


_EXPECTED = {
    "epochs": "1 or more",
    "lr": "a number between 0 and 1, as 3e-4",
    "batch_size": "1 or more",
    "micro_batch": "a divisor of batch_size, or 0 for the whole batch",
    "lora": "a rank of 1 or more, or 0 for all weights",
    "lora_alpha": "1 or more, with lora",
    "max_length": "1 or more, or 0 for what the model takes",
    "warmup": "a share of the steps in [0, 1)",
    "schedule": "constant, linear or cosine",
    "weight_decay": "0 or more",
    "save_every": "1 or more, or 0 for a tenth of the steps",
    "device": "auto, cpu or cuda",
    "threads": "1 or more, or 0 to choose",
    "beta": "a number above 0",
    "sft_weight": "0 or more",
    "warn_fall": "a number of nats above 0",
}


class SftConfig(TrainConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Supervised fine-tuning: the likelihood of the replies."""


class DpoConfig(TrainConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Direct preference optimisation (arXiv 2305.18290), with MALT's beta (arXiv 2412.01928)."""

    lr: float = 1e-4
    beta: float = 0.2
    """How dear it is to leave the reference."""
    sft_weight: float = 0.0
    """The weight of the chosen reply's own likelihood beside the preference. 1 keeps it from falling."""
    warn_fall: float = 2.0
    """Nats. Warn where chosen replies became less likely by so much against the reference, a reply on average."""

    def __post_init__(self) -> None:
        TrainConfig.__post_init__(self)
        wrong = {"beta": self.beta <= 0, "sft_weight": self.sft_weight < 0, "warn_fall": self.warn_fall <= 0}
        for name, holds in wrong.items():
            if holds:
                raise UserError(f"{name}={getattr(self, name)!r} cannot be: expected {_EXPECTED[name]}")
