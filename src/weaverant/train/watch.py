"""What is kept of each step as it ends: its line, what there is to warn of, and the marks of checkpoints."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from msgspec import Struct

from weaverant.train import checkpoint, metrics
from weaverant.train.config import DpoConfig, TrainConfig
from weaverant.train.metrics import Metrics
from weaverant.train.stack import Stack

Say = Callable[[str], None]


class Mark(Struct, frozen=True):
    """How far a training is, after a step. `eta` in seconds; tokens a second over the steps of this session."""

    step: int
    steps: int
    loss: float
    lr: float
    token_rate: float
    eta: float


Watch = Callable[[Mark], None]


def quiet(_: str) -> None:
    """Say nothing."""


class Keeper:
    """Of the first process. `step` is where the training goes on."""

    def __init__(self, out: Path, step: int, config: TrainConfig, say: Say, watch: Watch | None) -> None:
        dpo = config if isinstance(config, DpoConfig) else None
        self._beta = dpo.beta if dpo is not None else None
        self.metrics = Metrics(out / checkpoint.METRICS, step, dpo.warn_fall if dpo is not None else None)
        self._checkpoints = out / checkpoint.CHECKPOINTS
        self._say, self._watch = say, watch
        self._began = self._last = time.perf_counter()
        self._tokens = self._steps = 0

    def began(self) -> None:
        self._began = self._last = time.perf_counter()

    def logged(self, state: Any, logs: dict[str, Any]) -> None:
        """After a step."""
        now = time.perf_counter()
        total = int(logs["num_tokens"])  # of this session: TRL counts from 0 after a kill
        line = metrics.line_of(state.global_step, logs, total - self._tokens, now - self._last, self._beta)
        self._last, self._tokens, self._steps = now, total, self._steps + 1
        if warning := self.metrics.add(line):
            self._say(f"warning: {warning}")
        if self._watch is not None:
            took = now - self._began
            eta = took / self._steps * (state.max_steps - state.global_step)
            self._watch(Mark(state.global_step, state.max_steps, line["loss"], line["lr"], total / took, eta))

    def saved(self, state: Any) -> None:
        """After a checkpoint."""
        self.metrics.keep()
        checkpoint.mark(self._checkpoints / f"checkpoint-{state.global_step}")
        self._last = time.perf_counter()

    def callback(self, stack: Stack) -> Any:
        """The same, as the trainer calls it."""
        keeper = self

        class Callback(stack.transformers.TrainerCallback):
            def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                keeper.began()

            def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
                if "loss" in logs:  # the last call of all sums up
                    keeper.logged(state, logs)

            def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                keeper.saved(state)

        return Callback()
