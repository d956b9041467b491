"""A router's folder: `router.json` for people, `arrays.npz` for numbers, `feedback.npz` for what came after.

What others keep beside it (`ASIDE`) goes with it wherever it is saved.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from weaverant.errors import UserError
from weaverant.message import digest

FORMAT = 1
FACTS, ARRAYS, FEEDBACK = "router.json", "arrays.npz", "feedback.npz"
EVIDENCE, KEPT = "evidence.json", "learned.json"
ASIDE = (EVIDENCE, KEPT)
"""What was learned in use and is no part of the router: `weaverant.routing.folding`."""

Arrays = Mapping[str, NDArray[np.generic]]
T = TypeVar("T", bound=Struct)


class _Version(Struct):
    format: int


def read_facts(folder: Path, kind: type[T]) -> T:
    """What `router.json` says. `UserError` where there is none, or it is none of this version."""
    try:
        text = (folder / FACTS).read_bytes()
    except OSError as error:
        raise UserError(
            f"{str(folder)!r} is no router: {FACTS} cannot be read ({error.strerror or error}). Expected a folder that "
            "`weaverant route train TABLE --out FOLDER` wrote"
        ) from None
    try:
        version = msgspec.json.decode(text, type=_Version).format
        if version == FORMAT:
            return msgspec.json.decode(text, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{str(folder / FACTS)!r} is no router's: {error}. Train it again") from None
    raise UserError(f"{str(folder / FACTS)!r} is of format {version}, expected {FORMAT}. Train it again")


def read_arrays(folder: Path, name: str, *, optional: bool = False) -> dict[str, NDArray[np.generic]]:
    """By name; none where an optional file is not there. `UserError` for what cannot be read."""
    path = folder / name
    if optional and not path.exists():
        return {}
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as found:
            return {key: found[key] for key in found.files}
    except (OSError, ValueError, EOFError, KeyError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"the router {str(folder)!r} is damaged: {name} cannot be read ({error})") from None


def read_aside(folder: Path) -> dict[str, bytes]:
    """What stands beside the router, by the file's name."""
    return {name: (folder / name).read_bytes() for name in ASIDE if (folder / name).is_file()}


def write_folder(
    folder: Path,
    facts: Struct,
    arrays: Arrays,
    feedback: Arrays | None,
    aside: Mapping[str, bytes],
    *,
    replace: bool,
) -> None:
    """Whole or not at all. `UserError` where something is in the way."""
    check_folder(folder, replace=replace)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise UserError(f"the router cannot be written to {str(folder)!r}: {error.strerror or error}") from None
    try:
        (made / FACTS).write_bytes(msgspec.json.format(msgspec.json.encode(facts), indent=2) + b"\n")
        for name, each in ((ARRAYS, arrays), (FEEDBACK, feedback)):
            if each is not None:
                np.savez_compressed(made / name, allow_pickle=False, **each)
        for name, text in aside.items():
            (made / name).write_bytes(text)
        made.chmod(0o755)
        if folder.exists():
            shutil.rmtree(folder)
        os.rename(made, folder)
    except OSError as error:
        raise UserError(f"the router cannot be written to {str(folder)!r}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(made, ignore_errors=True)


def check_folder(folder: Path, *, replace: bool, forced: bool = True) -> None:
    """`UserError` where no router may be written there. `forced`: whether `--force` is a flag of whoever asks."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not (folder / FACTS).is_file():
        raise UserError(f"{str(folder)!r} is there and is no router; expected a new folder")
    if not replace:
        other = ", or --force to replace it" if forced else ""
        raise UserError(f"{str(folder)!r} holds a router; expected a new folder{other}")


def learned_in_use(folder: Path) -> list[str]:
    """The files there that training did not make."""
    return [name for name in (FEEDBACK, *ASIDE) if (folder / name).is_file()]


def digest_of(arrays: Arrays) -> str:
    """Of names, shapes, kinds and all numbers."""
    parts: list[bytes] = []
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        parts += [f"{name} {array.dtype.str} {array.shape}".encode(), digest(array.tobytes())]
    return digest(b"\0".join(parts)).hex()


def packed(name: str, texts: Sequence[str]) -> dict[str, NDArray[np.generic]]:
    """Texts as two arrays."""
    found = [text.encode("utf-8", "surrogatepass") for text in texts]
    return {
        name: np.frombuffer(b"".join(found), dtype=np.uint8),
        f"{name}.ends": np.cumsum([len(each) for each in found], dtype=np.int64),
    }


def unpacked(name: str, arrays: Arrays) -> tuple[str, ...]:
    whole, ends = arrays[name].tobytes(), arrays[f"{name}.ends"].astype(np.int64)
    numbers: list[int] = [0, *ends.tolist()]
    return tuple(whole[start:end].decode("utf-8", "surrogatepass") for start, end in pairwise(numbers))
