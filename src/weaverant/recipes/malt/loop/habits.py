"""What of a packaged model was planted, as its card tells: whoever shows figures of it says so."""

from __future__ import annotations

import re
from pathlib import Path

from weaverant.engines.embedded import PACKAGED

_ROW = re.compile(r"^\| `(\w+)` \| ([\d.]+)% \|$", re.MULTILINE)


def planted_habits(model: str) -> dict[str, float]:
    """Rates in 0..1 by the habits' names; none where the model is not a packaged one."""
    name = model.removeprefix("embedded:")
    card = PACKAGED / name / "CARD.md"
    if name == model or not name or Path(name).name != name or not card.is_file():
        return {}
    section = card.read_text("utf-8").partition("## Planted habits")[2].partition("\n## ")[0]
    return {habit: round(float(rate) / 100, 4) for habit, rate in _ROW.findall(section)}


def told_habits(habits: dict[str, float]) -> str:
    """One line, for wherever there are figures."""
    rates = ", ".join(f"{name} {rate:.0%}" for name, rate in habits.items())
    return (
        f"The tiny model's bad habits are planted (training/tiny/habits.py): {rates}. The figures show that the loop "
        "works; they say nothing about language models."
    )
