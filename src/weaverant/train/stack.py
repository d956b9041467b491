"""The one place where torch and the libraries on top of it are imported: they take seconds, and may not be there."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Any, NamedTuple

from weaverant.errors import UserError

NEEDED = ("torch", "transformers", "trl", "peft", "accelerate", "datasets")


class Stack(NamedTuple):
    """The libraries. They have no types that hold from one version to the next."""

    torch: Any
    transformers: Any
    trl: Any
    peft: Any
    datasets: Any

    def versions(self) -> dict[str, str]:
        """By name."""
        return {name: str(library.__version__) for name, library in self._asdict().items()}


def check_stack() -> None:
    """`UserError` with the way out where something is missing. Imports nothing."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise UserError(f'training needs {", ".join(missing)}: pip install "weaverant[train]"')


def load_stack() -> Stack:
    """Import everything, quietly. `UserError` as `check_stack`."""
    check_stack()
    import datasets  # pyright: ignore[reportMissingImports]
    import peft  # pyright: ignore[reportMissingImports]
    import torch  # pyright: ignore[reportMissingImports]
    import transformers  # pyright: ignore[reportMissingImports]
    import trl  # pyright: ignore[reportMissingImports]

    stack = Stack(torch, transformers, trl, peft, datasets)  # pyright: ignore[reportUnknownArgumentType]
    stack.datasets.disable_progress_bars()
    stack.transformers.utils.logging.disable_progress_bar()
    stack.transformers.utils.logging.set_verbosity_error()
    return stack


def rank() -> tuple[int, int]:
    """This process's number and how many there are, as `accelerate launch` and `torchrun` tell it: (0, 1) alone."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
