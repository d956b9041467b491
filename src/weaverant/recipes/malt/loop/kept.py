"""Small JSON files that a folder is known by: written whole or not at all, and what a command began with."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, cast

from weaverant.errors import UserError
from weaverant.train.checkpoint import LOCK


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


def begin(folder: Path, name: str, settings: dict[str, Any], mine: Collection[str], *, alone: bool = False) -> None:
    """After `check`: the folder is that of these settings, as its file `name` says from now on."""
    check(folder, name, settings, mine, alone=alone)
    if read_json(folder / name) is None:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / name, {"settings": settings})


def check(folder: Path, name: str, settings: dict[str, Any], mine: Collection[str], *, alone: bool = False) -> None:
    """`UserError` with what differs where the folder is that of other settings; also where something of the names that
    are to be written, `mine`, is there without that file, or with `alone` anything at all. Writes nothing."""
    found = read_json(folder / name) if folder.is_dir() else None
    if found is None:
        if folder.exists() and not folder.is_dir():
            raise UserError(f"{str(folder)!r} is a file: expected another folder for --out")
        others = sorted(path.name for path in folder.iterdir() if path.name != LOCK) if folder.is_dir() else []
        there = others if alone else [each for each in others if each in mine]
        if there:
            told = ", ".join(there[:5]) + (" ..." if len(there) > 5 else "")
            raise UserError(f"{str(folder)!r} holds {told}, and no {name}: expected a new folder for --out")
        return
    before = _flat(found.get("settings", {}))
    now = _flat(json.loads(json.dumps(settings)))
    if differing := [
        f"{key} was {before.get(key)!r}, is {now.get(key)!r}"
        for key in sorted({*before, *now})
        if before.get(key) != now.get(key)
    ]:
        raise UserError(
            f"{str(folder)!r} was begun with other settings: {'; '.join(differing)}. Expected the command it began "
            "with, which goes on, or another --out"
        )


def _flat(settings: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Settings within settings by their whole names, as `dpo.lr`."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        found |= (
            _flat(cast("dict[str, Any]", value), f"{before}{name}.")
            if isinstance(value, dict)
            else {before + name: value}
        )
    return found
