"""What the base install weighs: a new environment with weaverant and nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import report

ROOT = Path(__file__).parent.parent
OURS_TO_COUNT = {"pip", "setuptools", "wheel"}


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "venv"
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        python = folder / "bin" / "python"
        subprocess.run([python, "-m", "pip", "install", "--quiet", ROOT], check=True)
        listed = json.loads(subprocess.check_output([python, "-m", "pip", "list", "--format=json"]))
        packages = [item["name"] for item in listed if item["name"] not in OURS_TO_COUNT]
        size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file() and not f.is_symlink()) / 1e6
    rows = [
        report.row("base environment (MB)", size, "<= 180", size <= 180),
        report.row("packages, weaverant among them", len(packages), "<= 45", len(packages) <= 45),
    ]
    report.table(["base install", "value", "goal"], [[r["name"], r["value"], r["goal"]] for r in rows])
    report.finish("bench-install", rows)


if __name__ == "__main__":
    main()
