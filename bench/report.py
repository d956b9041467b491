"""What every benchmark prints: a table for people, one line of JSON for machines, and the same in `bench/results/`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def row(
    name: str, value: float | None, goal: str | None = None, met: bool | None = None, **more: Any
) -> dict[str, Any]:
    """One measurement. `met` is None where there is no goal or its data are absent."""
    told = None if value is None or value != value else round(value, 4)
    return {"name": name, "value": told, "goal": goal, "met": met, **more}


def table(head: list[str], lines: list[list[Any]]) -> None:
    cells = [head, *([f"{cell:,.1f}" if isinstance(cell, float) else str(cell) for cell in line] for line in lines)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(head))]
    for n, line in enumerate(cells):
        print(
            "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True)))
        )
        if n == 0:
            print("  ".join("-" * w for w in widths))


def finish(target: str, rows: list[dict[str, Any]]) -> None:
    RESULTS.mkdir(exist_ok=True)
    line = json.dumps({"target": target, "rows": rows})
    (RESULTS / f"{target}.json").write_text(line + "\n")
    print(line)


def together(target: str, names: str) -> None:
    """One line for all that lies in `bench/results/` under names that begin with `names` and a dash: the last of
    `make bench`, `make bench-routing` and `make bench-peers`."""
    parts = [json.loads(path.read_text()) for path in sorted(RESULTS.glob(f"{names}-*.json"))]
    rows = [row | {"name": f"{part['target']}: {row['name']}"} for part in parts for row in part["rows"]]
    print(json.dumps({"target": target, "rows": rows}))


if __name__ == "__main__":
    chosen = sys.argv[1:] or ["bench"]
    together(chosen[0], chosen[-1])
