"""`weaverant init`: an example that runs as it is, on the model in the package."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from weaverant.cli.streams import put
from weaverant.errors import UserError

EXAMPLE = Path(__file__).parent / "example"


def init_command(options: argparse.Namespace) -> int:
    folder = Path(options.folder)
    files = sorted(path for path in EXAMPLE.iterdir() if path.is_file())
    taken = [path.name for path in files if (folder / path.name).exists()]
    if taken:
        raise UserError(
            f"{str(folder)!r} already has {', '.join(taken)}, and nothing is overwritten. "
            "Expected another folder: weaverant init DIR"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path in files:
            shutil.copyfile(path, folder / path.name)
    except OSError as error:
        raise UserError(f"the folder {str(folder)!r} cannot be written: {error.strerror}") from None
    put(f"wrote {', '.join(path.name for path in files)} to {str(folder)!r}. Try it:")
    into = "" if folder == Path() else f"{folder}/"
    put(f"  weaverant run {into}workflow.py --run {into}run")
    put(f"  weaverant export {into}run --as raw --out {into}data.jsonl")
    return 0
