"""`weaverant improve malt`: rounds of weaving and training, each kept only where it gains, then the tables."""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from weaverant.cli import SOME_FAILED, STOPPED
from weaverant.cli.options import overrides_of
from weaverant.cli.roles import configs_of
from weaverant.cli.streams import put, tell
from weaverant.cli.train import model_folder
from weaverant.errors import UserError
from weaverant.recipe import load_recipe
from weaverant.recipes.malt.loop.ahead import ahead
from weaverant.recipes.malt.loop.habits import planted_habits, told_habits
from weaverant.recipes.malt.loop.kept import check
from weaverant.recipes.malt.loop.page import about_tables, notes_of, total_seconds
from weaverant.recipes.malt.loop.playing import Stopped
from weaverant.recipes.malt.loop.rounds import REPORT, STATE, Improved, Loop
from weaverant.recipes.malt.loop.serving import KNOWN, check_sampling, command_of, is_folder
from weaverant.recipes.malt.loop.training import MODELS, is_embeddable, spec_of
from weaverant.recipes.malt.loop.wanted import Improvement
from weaverant.recipes.malt.tables import document, tables
from weaverant.train import check_stack
from weaverant.train.estimate import shape_of

PROBLEMS, HELD_OUT, MODEL = "arithmetic:weave", "arithmetic:heldout", "embedded:tiny"
OUT = "improved"


def improve_command(options: argparse.Namespace) -> int:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    it = improvement_of(options)
    how: str | None = options.serve
    if how is not None:
        command_of(KNOWN.get(how, how), it.train, 0, "name")
        check_sampling(it.train, how if not is_embeddable(it.train) else None)
    out = Path(options.out or OUT)
    check_stack()
    if options.dry_run:
        check(out, STATE, it.settings(), (), alone=True)
        put("\n".join(ahead(it, out, how)))
        return 0
    if how is None and (is_folder(it.model) or not is_embeddable(it.train)):
        raise UserError(
            f"what is trained from {str(it.train)!r} wants a server: the embedded engine takes the packaged model's "
            f"family alone. Expected --serve with {', '.join(KNOWN)}, or a command with {{folder}}, {{port}}, {{name}}"
        )
    loop = Loop(
        it, out, _quiet if options.quiet else tell,
        serve=how, jobs=options.jobs or 0, quiet=options.quiet, budget=budget_of(options),
    )  # fmt: skip
    try:
        with _hang_ups_interrupt():
            found = loop.go_on()
    except Stopped as stop:
        tell(f"weaverant: {stop}")
        return stop.code or STOPPED
    except KeyboardInterrupt:
        tell(f"stopped: the same command goes on in {out}")
        return STOPPED
    _show(it, found, out, options.quiet)
    return SOME_FAILED if found.failed else 0


def budget_of(options: argparse.Namespace) -> float | None:
    """US dollars for all calls together; None where nothing is said."""
    given: float | None = options.budget
    if given is not None and not 0 <= given < float("inf"):
        raise UserError(f"--budget {given}: expected US dollars, 0 for no cap")
    return given


def improvement_of(options: argparse.Namespace) -> Improvement:
    """What the flags ask for. `UserError`."""
    sft, dpo = configs_of(options)
    folder = model_folder(options.train or options.model or MODEL) if _names_weights(options) else None
    if folder is None:
        raise UserError(
            f"--model {options.model!r} answers, but its weights cannot be trained from there: expected --train FOLDER "
            "with the same model"
        )
    shape_of(folder)
    model: str = options.model or (spec_of(folder.resolve()) if options.train else MODEL)
    if is_folder(model):
        model = spec_of(Path(model).resolve())
    problems = options.problems or PROBLEMS
    names = ("rounds", "questions", "gate_problems", "held_out_problems", "seeds", "gate_on", "branching", "checker")
    given: dict[str, Any] = {name: getattr(options, name) for name in (*names, "prompts")}
    given |= {"theta": _thetas(options.theta), "overrides": overrides_of(options.set, load_recipe("malt"))}
    return Improvement(
        problems=_absolute(problems),
        held_out=_absolute(options.held_out or (HELD_OUT if options.problems is None else None)),
        model=model,
        train=folder.resolve(),
        sft=sft,
        dpo=dpo,
        tables=not options.no_tables,
        **{name: value for name, value in given.items() if value is not None},
    ).checked()


def _names_weights(options: argparse.Namespace) -> bool:
    model = options.model
    return bool(options.train) or model is None or model.startswith("embedded:") or is_folder(model)


def _absolute(given: Any) -> Any:
    """A file as it is found from anywhere."""
    return str(Path(given).resolve()) if given is not None and Path(given).exists() else given


def _thetas(given: str | None) -> tuple[float, ...] | None:
    if given is None:
        return None
    try:
        return tuple(float(part) for part in given.split(","))
    except ValueError:
        raise UserError(f"--theta {given!r}: expected a number for each round, as in 0.5,0.6,0.7") from None


@contextmanager
def _hang_ups_interrupt() -> Generator[None]:
    """SIGTERM, and SIGHUP unless it is ignored, end what goes on as Ctrl-C does: with all servers and trainings."""

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    for number, listener in before.items():
        if listener != signal.SIG_IGN:
            signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, listener in before.items():
            signal.signal(number, listener)


def _show(it: Improvement, found: Improved, out: Path, quiet: bool) -> None:
    habits = planted_habits(it.model)
    lines: list[str] = [one["told"] for one in found.rounds]
    rows: list[dict[str, Any]] = [_row(one) for one in found.rounds]
    told: dict[str, Any] = {"target": "malt", "rows": rows}
    if found.evaluated is not None:
        lines += ["", *(line for table in tables(found.evaluated) for line in [*table.lines(), ""])]
        lines += [*about_tables(found.rounds), *notes_of(found.rounds, found.evaluated)]
        told = document(found.evaluated)
        told["rows"] = [*told["rows"], *rows]
    if len(found.rounds) > 1:
        told["target"] = "malt-rounds"
    seconds = total_seconds(out, len(found.rounds))
    told["rows"].append({"name": "seconds, installation apart", "value": round(seconds, 1), "goal": None, "met": True})
    if habits:
        lines.append(told_habits(habits))
        told["planted habits"] = habits
    lines.append(f"\n{seconds:,.0f} s in all; {out / REPORT} tells the whole")
    if any(one["adopted"] for one in found.rounds):
        lines.append(f"the adopted team: {out / MODELS}; as a model: --model NAME=malt:{out / MODELS}")
    else:
        lines.append("no round was adopted: the base stays")
    if not quiet:
        put("\n".join(lines))
    put(json.dumps(told))


def _row(one: dict[str, Any]) -> dict[str, Any]:
    verdict = one["verdict"] or {"difference": 0.0, "low": 0.0, "high": 0.0, "p": 1.0}
    return {
        "name": f"round {one['round']}: gain at the gate",
        "value": round(verdict["difference"], 4),
        "goal": "interval above 0 and p < 0.05, else refused",
        "met": one["adopted"],
        "adopted": one["adopted"],
        "low": round(verdict["low"], 4),
        "high": round(verdict["high"], 4),
        "p": verdict["p"],
    }


_WARNING = re.compile(r"\bwarning: ")


def _quiet(text: str) -> None:
    if _WARNING.search(text):
        tell(text)
