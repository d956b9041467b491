"""Small JSON files that a folder is known by: written whole or not at all, and what a command began with."""

from __future__ import annotations

import json
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

from weaverant.errors import UserError


def write_json(path: Path, value: Any) -> None:
    """Whole, on the disk, or not at all."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """The same for a text."""
    unfinished = path.with_name(path.name + ".tmp")
    with unfinished.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)


def read_json(path: Path) -> Any:
    """What is in it; None where there is no such file. `UserError` where it is something else."""
    try:
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{str(path)!r} cannot be read: {error}. Expected another --out") from None


def begin(folder: Path, name: str, settings: dict[str, Any], mine: Collection[str]) -> None:
    """The folder is that of these settings, as its file `name` says. `UserError` with what differs where it is that of
    others; also where something of the names that are to be written, `mine`, is there without that file."""
    settings = json.loads(json.dumps(settings))
    found = read_json(folder / name)
    if found is None:
        there = [each for each in (*mine, name) if (folder / each).exists()]
        if folder.is_file() or there:
            what = f"holds {', '.join(there)} without {name}" if there else "is a file"
            raise UserError(f"{str(folder)!r} {what}: expected another folder for --out")
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / name, {"settings": settings})
        return
    before = found.get("settings", {})
    if differing := [
        f"{key} was {before.get(key)!r}, is {settings.get(key)!r}"
        for key in sorted({*before, *settings})
        if before.get(key) != settings.get(key)
    ]:
        raise UserError(
            f"{str(folder)!r} was begun with other settings: {'; '.join(differing)}. Expected the command it began "
            "with, which goes on, or another --out"
        )
