"""A run is a directory: `run.json` (what was asked for), `journal/`, `blobs/`, `exports.json`, `lock`.

`run.json` is written once, and again only where a run that has asked nobody yet goes on with other models. No secret is
ever in it: keys stay in the environment.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, cast

import msgspec
from msgspec import Struct

from weaverant.errors import JournalError, RunChanged, UserError, is_full
from weaverant.message import digest

FEW_DIGITS = 3
"""Names that begin as keys do (`hf_dataset`) have fewer."""


class RunConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """All that `resume`, `show` and `export` need to know of how a run was made."""

    workflow: str
    """What was given: a file, a recipe's name, or the name of a Python object."""
    file: str
    stages: list[str]
    input: str
    models: dict[str, str]
    """Specs by name, as given; `*` serves every other agent."""
    identities: dict[str, str]
    """What answers, by model name."""
    agents: dict[str, str]
    """The agents' specs (hashes of prompts, sampling, tools, output), by name."""
    code: str
    """A hash of the workflow's code."""
    parameters: dict[str, Any] = {}
    overrides: dict[str, dict[str, Any]] = {}
    limits: dict[str, Any] = {}
    trials: int = 1
    limit: int | None = None
    rows: int | None = None
    """Tasks there will be, where the source can tell."""
    input_identity: str | None = None
    """What told the input from others when the run began."""
    reuse: str | None = None
    version: str = ""
    created: float = 0.0
    format: int = 1
    id: str = ""
    """Tells the run from all others, through all its sessions."""
    found: str = ""
    """Where the workflow of a run that was made in Python stands: `FILE.py:NAME`."""
    objects: list[str] = []
    """What was given as Python objects (`workflow`, `rows`, `models`), and must be given again to go on."""
    unpriced: list[str] = []
    """Names of models whose price nobody knows: that their calls cost 0 tells nothing."""
    groups: list[str] | None = None
    """The stages that take groups of rows; None where an older version has not told."""

    @property
    def run(self) -> str:
        """The run's id; of a run that was made before there were ids, what it began with."""
        return self.id or digest(f"{self.created!r}|{self.workflow}".encode()).hex()


def default_directory(name: str) -> Path:
    """`runs/NAME-YYYYMMDD-HHMMSS`, with a number behind it where that is taken."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    safe = "".join(c if c.isalnum() or c in "-_+" else "-" for c in name)
    path = Path("runs") / f"{safe}-{stamp}"
    number = 2
    while path.exists():
        path = Path("runs") / f"{safe}-{stamp}-{number}"
        number += 1
    return path


def resume_in_python(directory: str | Path, objects: Sequence[str], more: str = "") -> str:
    """The line of Python with which a run goes on that was made from such objects."""
    return f"weaverant.resume({str(directory)!r}{''.join(f', {name}=...' for name in objects)}{more})"


def save_config(directory: Path, config: RunConfig, first: Callable[[bytes], None] | None = None) -> None:
    """Write `run.json` of a new run; whole or not at all. `UserError` where a key would get into it. `first` is called
    with what it will hold, and may write `store.json`: where it raises, nothing stays."""
    for name, value in {**config.parameters, **config.overrides}.items():
        if _holds_key(value):
            raise UserError(
                f"what was given for {name!r} looks like a key, and the run's directory would hold it. Put it into an "
                "environment variable, and let the workflow or the model's address (?key_env=NAME) name that"
            )
    check_free(directory)
    made = [each for each in (directory, *directory.parents) if not each.exists()]
    with ExitStack() as undo:  # also after Ctrl-C while a store is asked: what stayed would be taken for a run
        undo.callback(_remove, directory, made)
        if first is not None:
            first(_packed(config))
        write_config(directory, config)
        undo.pop_all()


def _remove(directory: Path, made: list[Path]) -> None:
    """What a run that could not begin has put there, and the folders that were made for it."""
    with suppress(OSError):
        for name in ("store.json.tmp", "store.json"):
            (directory / name).unlink(missing_ok=True)
        for each in made:
            each.rmdir()


def check_free(directory: Path) -> None:
    """`UserError` where a new run cannot have the directory to itself: it is new or, hidden files apart, empty."""
    if (directory / "run.json").exists():
        raise UserError(
            f"{str(directory)!r} already holds a run. Continue it with `weaverant resume {directory}` (in Python "
            "weaverant.resume(DIRECTORY)), choose another directory with --run (directory=), or start a new run there "
            f"that answers from it with --reuse {directory} (reuse=)"
        )
    found = sorted(each.name for each in directory.iterdir()) if directory.is_dir() else []
    others = [name for name in found if not name.startswith(".") and name != "run.json.tmp"]
    if others:
        raise UserError(
            f"the run directory {str(directory)!r} is neither new nor empty: it has {', '.join(others[:3])}"
            f"{' ...' * (len(others) > 3)}. Choose another with --run (directory=), such as "
            f"{str(directory / 'run')!r}"
        )


def write_config(directory: Path, config: RunConfig) -> None:
    """Put `run.json` there, whole or not at all."""
    unfinished, new = directory / "run.json.tmp", not directory.exists()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        unfinished.unlink(missing_ok=True)
        with unfinished.open("x") as file:  # never through a link, which may lead anywhere
            file.write(_packed(config).decode())
        unfinished.replace(directory / "run.json")
    except OSError as error:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
            if new:
                directory.rmdir()
        text = f"the run directory {str(directory)!r} cannot be written: {error.strerror}"
        if is_full(error):
            raise JournalError(f"{text}. Nothing was stored or asked: free some room, and try again") from error
        raise UserError(text) from None


def _packed(config: RunConfig) -> bytes:
    return json.dumps(msgspec.to_builtins(config), indent=2).encode() + b"\n"


def _holds_key(value: object) -> bool:
    """Whether a text in plain data begins as keys do, and is as random."""
    if isinstance(value, str):
        if sum(map(str.isdigit, value)) < FEW_DIGITS or any(map(str.isspace, value)):
            return False
        from weaverant.engines.http.key import looks_secret  # deferred: it brings the whole engine with it

        return looks_secret(value)
    inside = cast("dict[str, object]", value).values() if isinstance(value, dict) else value
    return isinstance(inside, Iterable) and any(map(_holds_key, cast("Iterable[object]", inside)))


def _inside(directory: Path) -> str:
    """The runs within a folder that is none, such as one of `weaverant improve`, for a message."""
    found = sorted(str(file.parent) for depth in ("*", "*/*") for file in directory.glob(f"{depth}/run.json"))
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    return f". There are runs inside it: {', '.join(map(repr, found[:3]))}{more}" if found else ""


def load_config(directory: Path) -> RunConfig:
    """The run's config, or what is wrong with the directory."""
    try:
        text = (directory / "run.json").read_bytes()
    except OSError as error:
        raise UserError(
            f"{str(directory)!r} holds no run: {error.strerror} ({str(directory / 'run.json')!r}). "
            f"Expected a directory that `weaverant run` made{_inside(directory)}"
        ) from None
    try:
        return msgspec.json.decode(text, type=RunConfig)
    except msgspec.DecodeError as error:
        raise UserError(f"{str(directory / 'run.json')!r} was not written by this weaverant: {error}") from None


PARTS = {"sizes": "the sizes of its files", "first": "the first MiB of a file", "last": "the last MiB of a file"}
"""What parts of an input's identity that are hashes stand for."""


def _input_changes(then: RunConfig, now: RunConfig) -> Iterator[str]:
    """Which of the checks of the input tell two of them apart."""
    if then.rows != now.rows:
        yield f"{_shown(then.rows)} rows, now {_shown(now.rows)}"
    before, after = _parts(then.input_identity), _parts(now.input_identity)
    changed = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    for name in changed:
        if not name:
            yield f"was {before.get(name)!r}, is {after.get(name)!r}"
        elif name not in PARTS:
            yield f"{_shown(before.get(name))} {name}, now {_shown(after.get(name))}"
        elif name != "sizes" or "bytes" not in changed:
            yield PARTS[name]


def _parts(identity: str | None) -> dict[str, str]:
    """`bytes=12 first=ab` by name; the identity of a source that is not made of such parts is one."""
    words = [word.partition("=") for word in (identity or "").split()]
    if all(equals for _, equals, _ in words):
        return {name: value for name, _, value in words}
    return {"": identity or ""}


def _shown(value: int | str | None) -> str:
    return "an unknown number of" if value is None else f"{int(value):,}" if str(value).isdigit() else str(value)


def with_models_of(then: RunConfig, now: RunConfig) -> RunConfig:
    """The run, to go on with the models and agents that it is given now: no call of theirs is recorded."""
    return msgspec.structs.replace(
        then, models=now.models, identities=now.identities, agents=now.agents, unpriced=now.unpriced
    )


def check_unchanged(directory: Path, then: RunConfig, now: RunConfig) -> None:
    """`RunChanged` names what a resumed run would do differently."""
    changes: list[str] = []
    if then.code != now.code:
        changes.append(f"the code of {then.workflow!r} or of a file beside it that it imports")
    for name in sorted(then.agents.keys() | now.agents.keys()):
        if then.agents.get(name) != now.agents.get(name):
            changes.append(f"agent {name!r}")
    for name in sorted(then.identities.keys() | now.identities.keys()):
        before, after = then.identities.get(name), now.identities.get(name)
        if before != after:
            changes.append(f"model {name!r} (was {before!r}, is {after!r})")
    if differences := list(_input_changes(then, now)):
        changes.append(f"the input {then.input!r} ({'; '.join(differences)})")
    if changes:
        raise RunChanged(
            f"the run {str(directory)!r} cannot go on, because it has changed since: {', '.join(changes)}. "
            f"Put it back as it was, or start a new run that pays only for what differs: weaverant run "
            f"{then.found or then.workflow} ... --reuse {directory} (in Python run(..., reuse=))",
            changes,
        )
