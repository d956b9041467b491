"""`weaverant train sft|dpo`: from an exported file and a model's folder to a trained one."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any, TextIO

from weaverant.cli.streams import put, tell
from weaverant.engines.embedded import PACKAGED
from weaverant.errors import UserError
from weaverant.runtime.progress import fit, is_live, short, span
from weaverant.runtime.terminal import visible
from weaverant.train import (
    DpoConfig,
    Mark,
    SftConfig,
    Trained,
    check_stack,
    plan_dpo,
    plan_sft,
    train_dpo,
    train_sft,
)
from weaverant.train.stack import rank

STOPPED = 4
LINE_EVERY = 5.0
"""Seconds between lines where there is no terminal."""

MALT_ONLY = ("dpo_epochs", "dpo_lr", "theta", "values", "min_confidence", "max_pairs", "jobs", "no_star")
DPO_ONLY = ("beta", "sft_weight", "warn_fall", "reference")


def train_command(options: argparse.Namespace) -> int:
    if options.method == "malt":
        from weaverant.cli.roles import train_roles_command  # deferred: the others need nothing of the recipe

        return train_roles_command(options)
    _check_flags(options)
    data, model, out = Path(options.data), model_folder(options.model), Path(options.out)
    config, reference = config_of(options), model_folder(options.reference) if options.reference else None
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a folder is all it needs: nobody is asked for more
    check_stack()
    if options.dry_run:
        told = (
            plan_dpo(data, model, config, reference) if isinstance(config, DpoConfig) else plan_sft(data, model, config)
        )
        put("\n".join([*told.lines(), f"nothing was written; without --dry-run it trains into {out}"]))
        return 0
    quiet = options.quiet or rank()[0] > 0  # of several processes the first one tells
    screen = Screen(sys.stderr, quiet=quiet)
    how: dict[str, Any] = {"say": screen.say, "watch": screen.step, "force": options.force}
    try:
        if isinstance(config, DpoConfig):
            trained = train_dpo(data, model, out, config, reference=reference, **how)
        else:
            trained = train_sft(data, model, out, config, **how)
    except KeyboardInterrupt:
        screen.finish()
        tell(f"stopped: the same command goes on from the last checkpoint in {out}")
        return STOPPED
    finally:
        screen.finish()
    if not quiet:
        put("\n".join(_summary(trained)))
    return 0


def _check_flags(options: argparse.Namespace) -> None:
    """`UserError` for flags that only `train malt` has."""
    for name in MALT_ONLY:
        if getattr(options, name) not in (None, False):
            flag = f"--{name.replace('_', '-')}"
            raise UserError(f"{flag} is of `train malt`; it means nothing to `train {options.method}`: leave it out")


def config_of(options: argparse.Namespace) -> SftConfig | DpoConfig:
    """The flags that were given. `UserError` for those of DPO where SFT is wanted."""
    given: dict[str, Any] = {name: getattr(options, name) for name in (*DpoConfig.__struct_fields__, "reference")}
    given = {name: value for name, value in given.items() if value is not None}
    if options.method == "sft":
        for name in DPO_ONLY:
            if name in given:
                flag = f"--{name.replace('_', '-')}"
                raise UserError(f"{flag} is of `train dpo`; it means nothing to `train sft`: leave it out")
    given.pop("reference", None)
    return SftConfig(**given) if options.method == "sft" else DpoConfig(**given)


def model_folder(given: str) -> Path:
    """A folder, or that of a packaged model (`embedded:tiny`)."""
    name = given.removeprefix("embedded:")
    folder = PACKAGED / name if name != given and (PACKAGED / name).is_dir() else Path(name).expanduser()
    if not folder.is_dir():
        packaged = ", ".join(f"embedded:{path.name}" for path in sorted(PACKAGED.iterdir()))
        raise UserError(
            f"there is no folder {given!r} with a model. Expected one with config.json, tokenizer files and "
            f".safetensors weights (`hf download NAME --local-dir FOLDER` gets one), or a packaged model: {packaged}"
        )
    return folder


def _summary(trained: Trained) -> list[str]:
    rate = trained.tokens / trained.seconds if trained.seconds else 0.0
    resumed = f", the last {trained.steps - trained.resumed:,} in this session" if trained.resumed else ""
    return [
        f"trained {trained.steps:,} steps{resumed} in {span(trained.seconds)}, {short(rate)} tokens/s: "
        f"loss {trained.first_loss:.4f} at first, {trained.last_loss:.4f} at last",
        *(f"warning: {text}" for text in trained.warnings),
        f"{trained.folder}: the model, metrics.jsonl, loss.svg",
    ]


class Screen:
    """Standard error while it trains: one line redrawn in place on a terminal, a plain one now and then elsewhere."""

    def __init__(self, stream: TextIO, *, quiet: bool) -> None:
        self._stream, self._quiet = stream, quiet
        self._live = not quiet and is_live(stream)
        self._drawn = False
        self._last = 0.0

    def say(self, text: str) -> None:
        """A line that stays. Where all is to be quiet, only warnings are told."""
        if not self._quiet or text.startswith("warning: "):
            self.finish()
            tell(text)

    def step(self, mark: Mark) -> None:
        """After each step."""
        now = time.monotonic()
        due = mark.step == mark.steps or now - self._last >= LINE_EVERY
        if self._quiet or not (self._live or due):
            return
        self._last = now
        if not self._live:
            tell(progress_line(mark))
            return
        try:
            columns = os.get_terminal_size(self._stream.fileno()).columns
            self._stream.write(f"\r{fit(visible(progress_line(mark)), max(20, (columns or 80) - 1))}\x1b[K")
            self._stream.flush()
            self._drawn = True
        except (OSError, ValueError):  # the terminal went away: the training goes on
            self._live = False

    def finish(self) -> None:
        """What was drawn stays, and the next line begins below."""
        if self._drawn:
            self._drawn = False
            tell("")


def progress_line(mark: Mark) -> str:
    """`step 12 of 40; loss 0.2134; lr 2.1e-04; 8.12k tokens/s; about 12 s left`."""
    left = f"; about {span(mark.eta)} left" if mark.step < mark.steps else ""
    return (
        f"step {mark.step:,} of {mark.steps:,}; loss {mark.loss:.4f}; lr {mark.lr:.1e}; "
        f"{short(mark.token_rate)} tokens/s{left}"
    )
