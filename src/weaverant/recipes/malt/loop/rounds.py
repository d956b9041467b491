"""`weaverant improve malt`: weave with the adopted team, label, train, serve, let the gate decide; then the tables.

Everything is under one folder, and every phase knows from it what it has done: after kill -9 anywhere the same command
goes on. What no phase can lose is in journals and checkpoints; `improve.json` says what was decided.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from msgspec import to_builtins

from weaverant import run
from weaverant.cli.text import exact
from weaverant.recipes.malt.contest import contest
from weaverant.recipes.malt.evaluate import asked, evaluated, write
from weaverant.recipes.malt.loop.gate import agents_set, as_data, gate_asked, gate_run, verdict_of
from weaverant.recipes.malt.loop.kept import begin, check, read_json, write_json, write_text
from weaverant.recipes.malt.loop.page import page
from weaverant.recipes.malt.loop.playing import Played, Stopped, play, played, timed
from weaverant.recipes.malt.loop.problems import FOLDER, pools_of, problems_in, told_left_out, write_pools
from weaverant.recipes.malt.loop.serving import served
from weaverant.recipes.malt.loop.training import MODELS, train_roles
from weaverant.recipes.malt.loop.wanted import Improvement
from weaverant.recipes.malt.roles import RoleModels, read_models
from weaverant.recipes.malt.tables import Evaluated
from weaverant.recipes.malt.team import ROLES, Role
from weaverant.train.checkpoint import held
from weaverant.train.watch import Say

STATE = "improve.json"
REPORT = "report.md"
EVALUATION = "evaluation"
BUDGET_USED_UP = 5


class Team(NamedTuple):
    """Who plays, and from which weights: a spec and a folder by role."""

    specs: dict[Role, str]
    folders: dict[Role, Path]


class Improved(NamedTuple):
    """What came of it. `rounds` as `improve.json` has them."""

    rounds: list[dict[str, Any]]
    evaluated: Evaluated | None
    failed: int
    """Rows, of all runs."""


class Loop:
    """One improvement in one folder. `serve` is how trained folders are served that are not embedded; `budget` what all
    calls may cost together, in US dollars, 0 for no cap, None for that of the session before."""

    def __init__(
        self,
        it: Improvement,
        out: Path,
        say: Say,
        *,
        serve: str | None,
        jobs: int,
        quiet: bool,
        budget: float | None = None,
    ) -> None:
        self.it, self.out, self.say = it, out, say
        self._serve, self._jobs, self._quiet = serve, jobs, quiet
        self._given, self._budget = budget, 0.0
        self._failed = 0

    def go_on(self) -> Improved:
        """From wherever it stands to the end. Raises `Stopped`, `UserError`, `WeaverantError`."""
        check(self.out, STATE, self.it.settings(), (), alone=True)
        with held(self.out):
            begin(self.out, STATE, self.it.settings(), (), alone=True)
            return self._rounds()

    def _rounds(self) -> Improved:
        self._draw()
        state: dict[str, Any] = read_json(self.out / STATE)
        rounds: list[dict[str, Any]] = state.get("rounds", [])
        self._budget = state.get("budget", 0.0) if self._given is None else self._given
        self._write(rounds)
        for number in range(1, self.it.rounds + 1):
            if number <= len(rounds):
                self.say(rounds[number - 1]["told"])
                self._failed += rounds[number - 1]["failed"]
                continue
            rounds = [*rounds, self._round(number, self._adopted(rounds))]
            self._write(rounds)
            self._name_adopted(rounds)
            self._report(rounds, None)
        found = self._tables(rounds) if self.it.tables else None
        self._report(rounds, found)
        return Improved(rounds, found, self._failed)

    def _write(self, rounds: list[dict[str, Any]]) -> None:
        write_json(self.out / STATE, {"settings": self.it.settings(), "budget": self._budget, "rounds": rounds})

    def _name_adopted(self, rounds: list[dict[str, Any]]) -> None:
        """`models.json`: the team that the loop stands by, with folders as they are found from it."""
        number = self._last(rounds)
        found = to_builtins(read_models(self._place(number) / MODELS)) if number else {"base": self.it.model}
        here = f"{self.out.resolve()}{os.sep}"
        write_text(self.out / MODELS, json.dumps(found, indent=1).replace(here, "") + "\n")

    def _left_for(self, directory: Path) -> float:
        """What a run may cost in all, in US dollars; 0 for no cap. `Stopped` where others have taken everything."""
        if not self._budget:
            return 0.0
        others = [*(self._place(n) / name for n in range(1, self.it.rounds + 1) for name in ("weave", "gate"))]
        others.append(self.out / EVALUATION)
        spent = sum(played(one).cost for one in others if one != directory and (one / "run.json").exists())
        if spent >= self._budget:
            raise Stopped(
                f"the budget of {exact(self._budget)} is used up; the same command goes on with a larger --budget",
                BUDGET_USED_UP,
            )
        return self._budget - spent

    def _draw(self) -> None:
        """The problems of all rounds, once."""
        folder = self.out / FOLDER
        if not folder.is_dir():
            write_pools(folder, pools_of(self.it.problems, self.it.held_out, self.it.checker, self.it.wanted))
        sizes, left_out = problems_in(folder)
        self.say(f"problems, none of them twice: {', '.join(f'{name} {count:,}' for name, count in sizes.items())}")
        if left_out:
            self.say(told_left_out(left_out))
        if short := self.it.short(sizes):
            self.say(f"warning: too few rows for what was asked: {'; '.join(short)}")

    def _adopted(self, rounds: list[dict[str, Any]]) -> Team:
        """The team of the last round that was adopted, else the base."""
        number = self._last(rounds)
        if not number:
            return Team(dict.fromkeys(ROLES, self.it.model), dict.fromkeys(ROLES, self.it.train))
        specs = team_of(read_models(self._place(number) / MODELS))
        return Team(specs, {role: Path(spec.removeprefix("embedded:")) for role, spec in specs.items()})

    def _last(self, rounds: list[dict[str, Any]]) -> int:
        return max((one["round"] for one in rounds if one["adopted"]), default=0)

    def _place(self, number: int) -> Path:
        return self.out / f"round-{number}"

    def _round(self, number: int, adopted: Team) -> dict[str, Any]:
        place, theta = self._place(number), self.it.theta_of(number)
        self.say(f"\nround {number} of {self.it.rounds}, theta {theta:g}: weaving")
        with timed(place, "weave"):
            woven = self._weave(number, adopted, theta)
        self.say(f"round {number}: training")
        with timed(place, "train"):
            models = train_roles(
                place / "weave", place, adopted.folders, adopted.specs, self.say,
                sft=self.it.sft, dpo=self.it.dpo, star=number == 1, jobs=self._jobs, alone=False,
            )  # fmt: skip
        record: dict[str, Any] = {"round": number, "theta": theta, "woven": woven._asdict()}
        if team_of(models) == adopted.specs:
            told = f"round {number} is refused: nothing could be trained"
            self._failed += woven.failed
            self.say(told)
            return record | {"adopted": False, "told": told, "gate": None, "verdict": None, "failed": woven.failed}
        self.say(f"round {number}: the gate")
        with timed(place, "gate"):
            gate = self._gate(number, models)
        verdict = verdict_of(place / "gate", self.it.gate_on)
        told, failed = verdict.told(number), woven.failed + gate.failed
        self._failed += failed
        self.say(told)
        passed = {"adopted": verdict.passes, "told": told, "failed": failed}
        return record | passed | {"gate": gate._asdict(), "verdict": as_data(verdict)}

    def _weave(self, number: int, adopted: Team, theta: float) -> Played:
        place, it = self._place(number), self.it
        with self._served(adopted.specs.values(), place) as specs:
            models: dict[str, str] = {role: specs[spec] for role, spec in adopted.specs.items()}
            if len(set(models.values())) == 1:
                models = {"*": models["generator"]}  # one engine, so that a server's load is told once
            parameters = {"branching": it.branching, "checker": it.checker, "prompts": it.prompts, "theta": theta}
            rows = str(self.out / FOLDER / f"weave-{number}.jsonl")
            budget = self._left_for(place / "weave")

            def anew() -> Any:
                return run(
                    "malt", rows, models=models, parameters=parameters, overrides=it.overrides,
                    directory=place / "weave", budget=budget,
                )  # fmt: skip

            return play(place / "weave", anew, models, budget, self._quiet)

    def _gate(self, number: int, models: RoleModels) -> Played:
        place = self._place(number)
        wanted = gate_asked(models, self.it.checker, self.it.prompts)
        with self._served(wanted.models.values(), place) as specs:
            now = {name: specs[spec] for name, spec in wanted.models.items()}
            rows, budget = self.out / FOLDER / f"gate-{number}.jsonl", self._left_for(place / "gate")

            def anew() -> Any:
                return gate_run(place / "gate", rows, wanted, specs, agents_set(self.it.overrides), budget)

            return play(place / "gate", anew, now, budget, self._quiet, contest)

    def _tables(self, rounds: list[dict[str, Any]]) -> Evaluated:
        """All systems of the paper's tables whose models are there: the base, STaR of round 1, the adopted team."""
        number = self._last(rounds)
        first = read_models(self._place(1) / MODELS)
        last = read_models(self._place(number) / MODELS) if number else RoleModels(self.it.model)
        models = RoleModels(self.it.model, first.star, last.sft, last.dpo)
        wanted = asked(models, checker=self.it.checker, prompts=self.it.prompts)
        times = "once" if self.it.seeds == 1 else f"{self.it.seeds} times"
        self.say(f"\nall systems on {self.it.held_out_problems:,} other problems, each {times}")
        directory = self.out / EVALUATION
        with timed(self.out, "tables"), self._served(wanted.models.values(), self.out) as specs:
            now = {name: specs[spec] for name, spec in wanted.models.items()}
            budget = self._left_for(directory)

            def anew() -> Any:
                return run(
                    contest, str(self.out / FOLDER / "report.jsonl"), models=now, parameters=wanted.parameters,
                    overrides=agents_set(self.it.overrides), trials=self.it.seeds, directory=directory,
                    budget=budget,
                )  # fmt: skip

            self._failed += play(directory, anew, now, budget, self._quiet, contest).failed
        return evaluated(directory)

    def _served(self, specs: Any, place: Path) -> Any:
        return served(specs, self._serve, place, self.say)

    def _report(self, rounds: list[dict[str, Any]], found: Evaluated | None) -> None:
        if found is not None:
            from weaverant.recipes.malt.tables import document

            write(found, document(found), self.out)
        write_text(self.out / REPORT, page(self.it, self.out, rounds, found))


def team_of(models: RoleModels) -> dict[Role, str]:
    """Who plays MALT: the generator after SFT, the other two after DPO."""
    found: Mapping[Role, str | None] = {
        role: models.spec("sft" if role == "generator" else "dpo", role) for role in ROLES
    }
    return {role: spec for role, spec in found.items() if spec is not None}
