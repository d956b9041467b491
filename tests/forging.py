"""Runs that were left off, and forged: what `test_forged.py` and `test_roll.py` resume."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random

from fuzz_begun import Begun, begun
from fuzz_events import Journal, read, write

Edit = Callable[[Journal], None]


def left_off(folder: Path) -> dict[str, Begun]:
    """Runs without a budget, left before their end, by recipe."""
    return {one.recipe: one for one in begun(folder) if one.directory.name.endswith("-0")}


def forged(one: Begun, folder: Path, edit: Edit, sealed: bool = True) -> Path:
    directory = folder / "forged"
    shutil.copytree(one.directory, directory)
    journal = read(directory)
    edit(journal)
    write(directory, journal, Random(0), lies=False, sealed=sealed)
    return directory
