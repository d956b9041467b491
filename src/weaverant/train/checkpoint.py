"""The folder that a training writes, and where it goes on after a kill.

`training.json` says what is trained on what: the same command goes on, another is refused. A checkpoint counts once a
mark lies in it, written after all of its files are on the disk; one without was cut off, and is removed.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Any

from msgspec import UNSET, Struct, ValidationError, convert, field, to_builtins

from weaverant.errors import RunLocked, UserError

STATE = "training.json"
METRICS = "metrics.jsonl"
CHECKPOINTS = "checkpoints"
MARK = "complete"
LOCK = "lock"
_ENDS = 1 << 20


class Training(Struct, kw_only=True):
    """What `training.json` holds. Digests are of contents: a folder that was moved is the same."""

    method: str
    data: str
    data_digest: str
    model: str
    model_digest: str
    reference: str = ""
    """Of DPO: the folder whose model preferences are measured against, with its digest."""
    reference_digest: str = ""
    processes: int = 1
    config: dict[str, Any] = field(default_factory=dict[str, Any])
    versions: dict[str, str] = field(default_factory=dict[str, str])
    state: str = "running"
    result: dict[str, Any] = field(default_factory=dict[str, Any])


_SAME = ("method", "data_digest", "model_digest", "reference_digest", "processes", "config")


def model_digest(folder: Path) -> str:
    """A folder's weights and shape in 16 hexadecimal digits: sizes, and the first and last megabyte of each file."""
    hashed = blake2b(digest_size=8)
    for path in [folder / "config.json", folder / "tokenizer.json", *sorted(folder.glob("*.safetensors"))]:
        if path.exists():
            hashed.update(f"{path.name} {path.stat().st_size}".encode())
            with path.open("rb") as file:
                hashed.update(file.read(_ENDS))
                file.seek(-min(_ENDS, path.stat().st_size), os.SEEK_END)
                hashed.update(file.read(_ENDS))
    return hashed.hexdigest()


@contextmanager
def held(out: Path) -> Generator[None]:
    """The folder, made if need be, is this process's alone. `RunLocked` where another trains there."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        file = (out / LOCK).open("w")
    except OSError as error:
        raise UserError(f"the folder {str(out)!r} cannot be written: {error.strerror}") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RunLocked(f"another process trains in {str(out)!r}: wait for it, or name another --out") from None
        yield


def check(out: Path, training: Training, force: bool) -> None:
    """`UserError` where this training has no place in the folder. Writes nothing."""
    found = _state_of(out)
    if found is None:
        others = sorted(path.name for path in out.iterdir() if path.name != LOCK) if out.is_dir() else []
        if out.is_file() or others:
            raise UserError(f"{str(out)!r} is there already and holds no training; expected a new folder for --out")
    elif force:
        return
    elif found.state == "finished":
        raise UserError(
            f"{str(out)!r} holds a training that has finished: {found.method} on {found.data}. Expected another --out, "
            "or --force to train anew"
        )
    elif differing := _differing(found, training):
        raise UserError(
            f"{str(out)!r} holds another training that was cut off: {'; '.join(differing)}. Expected the command it "
            "began with, which goes on; another --out; or --force to begin anew"
        )


def finished(out: Path, training: Training) -> bool:
    """Whether the folder holds this very training, finished, by however many processes. `UserError` where it holds
    another that has finished."""
    found = _state_of(out)
    if found is None or found.state != "finished":
        return False
    training.processes = found.processes
    if differing := _differing(found, training):
        raise UserError(
            f"{str(out)!r} holds another training that has finished: {'; '.join(differing)}. Expected another --out"
        )
    return True


def begin(out: Path, training: Training, force: bool) -> Path | None:
    """After `check`: the folder is this training's. Gives the checkpoint to go on from, if there is one."""
    if force and _state_of(out) is not None:
        for path in out.iterdir():
            if path.name != LOCK:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    if _state_of(out) is None:
        write(out, training)
    for path in (out / CHECKPOINTS).glob("checkpoint-*"):
        if not (path / MARK).exists():
            shutil.rmtree(path)
    return last(out)


def last(out: Path) -> Path | None:
    """The newest complete checkpoint."""
    marked = [path.parent for path in (out / CHECKPOINTS).glob(f"checkpoint-*/{MARK}")]
    return max(marked, key=step_of, default=None)


def step_of(checkpoint: Path) -> int:
    """How many steps it has behind it."""
    return int(checkpoint.name.rpartition("-")[2])


def mark(checkpoint: Path) -> None:
    """All files of the checkpoint are on the disk; from now on it counts."""
    for path in checkpoint.rglob("*"):
        _sync(path)
    (checkpoint / MARK).touch()
    for path in (checkpoint / MARK, checkpoint, checkpoint.parent):
        _sync(path)


def settle(out: Path) -> None:
    """What was written is on the disk, and as open to others as files are that this process makes. (The library for
    weights gives them to their owner alone.)"""
    allowed = os.umask(0o077)
    os.umask(allowed)
    for path in [*out.iterdir(), *out.glob("adapter/*")]:
        if path.suffix == ".safetensors":
            path.chmod(0o666 & ~allowed)
        _sync(path)


def write(out: Path, training: Training) -> None:
    """`training.json`, whole or not at all."""
    unfinished = out / f"{STATE}.tmp"
    unfinished.write_text(json.dumps(to_builtins(training), indent=1) + "\n")
    _sync(unfinished)
    os.replace(unfinished, out / STATE)
    _sync(out)


def _state_of(out: Path) -> Training | None:
    try:
        return convert(json.loads((out / STATE).read_text()), Training)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, ValidationError) as error:
        raise UserError(f"{str(out / STATE)!r} cannot be read: {error}. Expected another --out") from None


def _differing(found: Training, wanted: Training) -> list[str]:
    told: list[str] = []
    for name in _SAME:
        old, new = getattr(found, name), getattr(wanted, name)
        if old == new:
            continue
        if name == "config":
            told += [
                f"{each} was {old.get(each, UNSET)!r}, is {new.get(each, UNSET)!r}"
                for each in sorted({*old, *new})
                if old.get(each, UNSET) != new.get(each, UNSET)
            ]
        else:
            plain = name.removesuffix("_digest")
            told.append(f"{plain} was {getattr(found, plain)!r}, is {getattr(wanted, plain)!r}")
            told[-1] += " (other content)" if getattr(found, plain) == getattr(wanted, plain) else ""
    return told


def _sync(path: Path) -> None:
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
