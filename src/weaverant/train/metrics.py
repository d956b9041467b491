"""`metrics.jsonl`: one line for each optimizer step, each step once, however often the training was killed."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from weaverant.errors import WeaverantError

WINDOW = 5
"""Steps over which the change of chosen replies is averaged before it is warned of."""

FIELDS = {
    "loss": "loss",
    "learning_rate": "lr",
    "grad_norm": "grad_norm",
    "mean_token_accuracy": "token_accuracy",
    "entropy": "entropy",
    "rewards/margins": "margin",
    "rewards/accuracies": "pair_accuracy",
    "logps/chosen": "chosen_logp",
    "logps/rejected": "rejected_logp",
}
"""TRL's names and ours."""


def line_of(step: int, logs: Mapping[str, Any], tokens: int, seconds: float, beta: float | None) -> dict[str, Any]:
    """A step's line from what TRL logged: log-probabilities in nats, a reply on average; `seconds` of this step.

    `chosen_change` and `rejected_change` are against the reference, on the same pairs (DPO). `WeaverantError` where
    the loss is no number any more.
    """
    if not math.isfinite(logs["loss"]):
        raise WeaverantError(
            f"the loss of step {step} is {logs['loss']}: the training has come apart. "
            "Expected a lower --lr, or --warmup 0.1, in a new --out"
        )
    line: dict[str, Any] = {"step": step, "epoch": round(float(logs["epoch"]), 6)}
    line |= {ours: float(logs[theirs]) for theirs, ours in FIELDS.items() if theirs in logs}
    if beta is not None:
        line["chosen_change"] = float(logs["rewards/chosen"]) / beta
        line["rejected_change"] = float(logs["rewards/rejected"]) / beta
    return line | {"tokens": tokens, "seconds": round(seconds, 6)}


class Metrics:
    """The file, open for adding lines. What is beyond `step`, where the training goes on, is cut off at first."""

    def __init__(self, path: Path, step: int, warn_fall: float | None) -> None:
        self._path = path
        self._warn_fall = warn_fall
        self.lines = [line for line in read(path) if line["step"] <= step]
        unfinished = path.with_name(path.name + ".tmp")
        unfinished.write_text("".join(map(_encoded, self.lines)))
        os.replace(unfinished, path)
        self._file = path.open("a")

    def add(self, line: dict[str, Any]) -> str:
        """Write the line. Gives what there is to warn of now, once in a training; else nothing."""
        self.lines.append(line)
        warning = self._warning()
        if warning:
            line["warning"] = warning
        self._file.write(_encoded(line))
        self._file.flush()
        return warning

    def keep(self) -> None:
        """All lines are on the disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()

    def _warning(self) -> str:
        if self._warn_fall is None or len(self.lines) < WINDOW or warnings_in(self.lines):
            return ""
        change = sum(line["chosen_change"] for line in self.lines[-WINDOW:]) / WINDOW
        if change > -self._warn_fall:
            return ""
        return (
            f"step {self.lines[-1]['step']}: chosen replies have become less likely than the reference found them, by "
            f"{-change:.2f} nats a reply: the model may unlearn them. Expected --sft-weight 1, a lower --lr or a "
            "higher --beta"
        )


def read(path: Path) -> list[dict[str, Any]]:
    """The whole lines of the file; a last one that was cut off by a kill is none."""
    try:
        text = path.read_text()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def warnings_in(lines: list[dict[str, Any]]) -> list[str]:
    """What was warned of."""
    return [line["warning"] for line in lines if "warning" in line]


def _encoded(line: dict[str, Any]) -> str:
    return json.dumps(line, separators=(", ", ": ")) + "\n"
