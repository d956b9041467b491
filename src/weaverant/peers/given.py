"""What a caller asks of peers, checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from glob import has_magic
from pathlib import Path

from weaverant.compound import Served
from weaverant.errors import UserError
from weaverant.recipe import find_recipe
from weaverant.rundir import RunConfig
from weaverant.session import Run
from weaverant.swarm.neighbours import role


def check_options(peers: int | None, no_journal: bool, pilot: int | None, reuse: str | None, given: str | None) -> None:
    """`UserError` for what cannot be meant together, before a run has a directory. `given` is the input."""
    if peers is not None and peers < 1:
        raise UserError(f"--peers is a number of processes, at least 1; found {peers}")
    if no_journal:
        raise UserError("a run with --peers needs a journal: leave --no-journal out")
    if pilot is not None or reuse is not None:
        raise UserError("--pilot and --reuse are for one process: leave --peers out; `resume --peers N` can go on then")
    if given == "-":
        raise UserError(
            "a run with --peers reads its rows in every peer, and standard input can be read only once: write them to "
            "a file and give that"
        )


def labels_of(peers: int, given: Sequence[str], roles: Sequence[str]) -> list[tuple[str, ...]]:
    """What each peer offers: labels as they are given, and the roles in turn. `UserError` for what is no label."""
    offered: list[list[str]] = [[] for _ in range(peers)]
    for text in given:
        label, _, count = text.partition("=")
        if not label or (count and not (count.isdecimal() and 1 <= int(count) <= peers)):
            raise UserError(
                f"--label {text!r}: expected LABEL, which all peers offer, or LABEL=N, which the first N of the "
                f"{peers} offer"
            )
        for labels in offered[: int(count) if count else peers]:
            labels.append(label)
    for n in range(max(peers, len(roles)) if roles else 0):
        offered[n % peers].append(role(roles[n % len(roles)]))
    return [tuple(dict.fromkeys(labels)) for labels in offered]


def check_run(run: Run, peers: int) -> None:
    if peers < 1:
        raise UserError(f"--peers is a number of processes, at least 1; found {peers}")
    if run.directory is None:
        raise UserError("a run with --peers needs a journal: leave --no-journal out")
    if not run.source.rereadable or "rows" in run.config.objects:
        raise UserError(
            f"a run with --peers reads its rows in every peer, and {run.source.name!r} can be read only once: write "
            "them to a file and give that"
        )
    if run.config.objects:
        raise UserError(
            f"a run with --peers is made in several processes, and {', '.join(run.config.objects)} were given as "
            "Python objects: put the workflow into a file, and give models as specs"
        )
    if run.pilot is not None or run.config.reuse is not None:
        raise UserError("--pilot and --reuse are for one process: leave --peers out; `resume --peers N` can go on then")


def check_files(directory: Path, config: RunConfig, rows: str = "") -> None:
    """`UserError` where the workflow, or the input `rows`, is not on this host."""
    path = f"{config.found.rpartition('.py:')[0]}.py" if config.found else config.file
    if not Path(path).is_file():
        try:
            find_recipe(_file_of(config.workflow))
        except UserError:
            raise UserError(_not_here(directory, "workflow", path)) from None
    if Path(rows).is_absolute() and not has_magic(rows) and not Path(rows).exists():
        raise UserError(_not_here(directory, "input", rows))


def _file_of(workflow: str) -> str:
    name, _, chosen = workflow.partition(".py:")
    return f"{name}.py" if chosen else workflow


def _not_here(directory: Path, what: str, path: str) -> str:
    return (
        f"this peer cannot work on {str(directory)!r}: its {what} {path!r} is not on this host. It must be at the same "
        "path as where the run began: copy it from there, and join again"
    )


def check_models(directory: Path, config: RunConfig, specs: Mapping[str, str], engines: Mapping[str, Served]) -> None:
    """`UserError` where what answers a peer is not what answers the others: what one of the `specs` says may lead
    elsewhere on another host."""
    others = [
        f"for {specs[name]!r} expected {config.identities.get(name)!r}, found {engine.identity!r}"
        for name, engine in engines.items()
        if engine.identity != config.identities.get(name)
    ]
    if others:
        raise UserError(
            f"this peer cannot work on {str(directory)!r}, because its models are not those of the run: "
            f"{'; '.join(others)}. A run asks the same models everywhere: let that lead to the same model on this host "
            "(its server, its file, its package's version), and join again"
        )
