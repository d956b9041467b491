"""Which model plays which role after which training: what `--models models.json` holds.

    {"base": SPEC, "star": SPEC,
     "sft": {"generator": SPEC, "verifier": SPEC, "refiner": SPEC},
     "dpo": {"verifier": SPEC, "refiner": SPEC}}

A SPEC is what `--model` takes (`embedded:FOLDER`, `http://HOST:8000/v1#NAME`). A text in place of a mapping means
every role of that training. Only `base` is required. A folder that is not absolute is looked up beside the file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import product
from pathlib import Path
from typing import cast

import msgspec

from weaverant.engines import pooled
from weaverant.errors import UserError
from weaverant.recipes.malt.systems import TRAININGS, Team, Training
from weaverant.recipes.malt.team import ROLES, Role

TRAINED: dict[Training, tuple[Role, ...]] = {
    "base": ROLES,
    "star": ROLES,
    "sft": ROLES,
    "dpo": ("verifier", "refiner"),
}
"""The roles that there can be models for, by training. The paper gives the generator no DPO."""

PLAIN: dict[Training, tuple[Role, ...]] = {**TRAINED, "star": ("generator",)}
"""What a SPEC without a role stands for. STaR trains the generator; in its team the base plays the other two."""

EXPECTED = '{"base": SPEC, "star": SPEC, "sft": {ROLE: SPEC, ...}, "dpo": {ROLE: SPEC, ...}}, all but base optional'
_EMBEDDED = "embedded:"


class RoleModels(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Specs by training and role."""

    base: str | dict[Role, str]
    star: str | dict[Role, str] = {}
    sft: str | dict[Role, str] = {}
    dpo: str | dict[Role, str] = {}

    def spec(self, training: Training, role: Role) -> str | None:
        """The model for a role, or None. In a STaR team a role that STaR did not train is the base's."""
        given = cast("str | dict[Role, str]", getattr(self, training))
        by_role = dict.fromkeys(PLAIN[training], given) if isinstance(given, str) else given
        found = by_role.get(role)
        if found is None and training == "star" and role != "generator" and self.spec("star", "generator"):
            return self.spec("base", role)
        return found

    def missing(self, team: Team) -> list[str]:
        """What the team lacks, as `sft generator`."""
        return [f"{training} {role}" for role, training in team.cast if not self.spec(training, role)]

    def named(self, teams: Iterable[Team]) -> tuple[dict[str, str], dict[str, str]]:
        """Specs of the models of these teams by name, and the names of all by `TRAINING ROLE`.

        The same spec gets one name, so one engine; and what two teams ask of it at the same place is asked once. Names
        do not depend on who plays.
        """
        names: dict[str, str] = {}
        for training, role in product(TRAININGS, ROLES):
            if spec := self.spec(training, role):
                alone = any(self.spec(training, other) != spec for other in PLAIN[training])
                names.setdefault(spec, f"{training}-{role}" if alone else training)
        cast_of = {
            f"{training} {role}": names[spec]
            for training, role in product(TRAININGS, ROLES)
            if (spec := self.spec(training, role))
        }
        used = {cast_of[f"{training} {role}"] for team in teams for role, training in team.cast}
        return {name: spec for spec, name in names.items() if name in used}, cast_of


def read_models(file: str | Path, what: str = "--models") -> RoleModels:
    """`models.json`; `UserError` where it is not what it should be. `what` has named it."""
    path = Path(file)
    try:
        found = msgspec.json.decode(path.read_bytes(), type=RoleModels)
    except OSError as error:
        raise UserError(f"{what} {str(path)!r} cannot be read: {error.strerror}") from None
    except msgspec.DecodeError as error:
        raise UserError(f"{what} {str(path)!r}: {error}. Expected {EXPECTED}") from None
    return _checked(RoleModels(*(_beside(path.parent, getattr(found, training)) for training in TRAININGS)))


def given_models(given: Mapping[Training, Iterable[str]]) -> RoleModels:
    """What `--base SPEC`, `--sft generator=SPEC` ... say. Several for one role are servers of one model."""
    found: dict[str, dict[Role, str]] = {}
    for training, texts in given.items():
        specs: dict[Role, list[str]] = {}
        for text in texts:
            name, equals, rest = text.partition("=")
            if equals and name in ROLES:
                specs.setdefault(name, []).append(rest)
                continue
            for role in PLAIN[training]:
                specs.setdefault(role, []).append(text)
        found[training] = {role: pooled(own) for role, own in specs.items()}
    return _checked(RoleModels(**found))  # pyright: ignore[reportArgumentType]


def _beside(folder: Path, given: str | dict[Role, str]) -> str | dict[Role, str]:
    """Folders that stand beside the file, embedded or to be served, as they are found from anywhere."""

    def resolved(spec: str) -> str:
        name = spec.removeprefix(_EMBEDDED)
        kind = _EMBEDDED if name != spec else ""
        return f"{kind}{(folder / name).resolve()}" if (folder / name).is_dir() else spec

    return resolved(given) if isinstance(given, str) else {role: resolved(spec) for role, spec in given.items()}


def _checked(models: RoleModels) -> RoleModels:
    for training in TRAININGS:
        given = cast("str | dict[Role, str]", getattr(models, training))
        for role in () if isinstance(given, str) else given:
            if role not in TRAINED[training]:
                raise UserError(
                    f"no system here has a {role} trained by {training}: expected {' or '.join(TRAINED[training])}"
                )
    if any(models.spec("base", role) is None for role in ROLES):
        raise UserError("the base plays all three roles: expected --base SPEC, or a SPEC for each role")
    return models
