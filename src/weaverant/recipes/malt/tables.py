"""An evaluation as tables for people and for `docs/`, and as one JSON document. Pure functions of its outcomes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from weaverant.recipes.malt.outcomes import Accuracy, Comparison, Outcomes
from weaverant.recipes.malt.paper import COLUMNS, DIFFERS, FLIPS, published
from weaverant.recipes.malt.stats import percentages
from weaverant.recipes.malt.systems import TABLES, TITLES, System, Team, baselines, systems_of


class Table(NamedTuple):
    """Cells of text. The first column is a name, the others are read against their heads."""

    title: str
    head: list[str]
    rows: list[list[str]]

    def lines(self) -> Iterator[str]:
        """For a terminal."""
        widths = [max(map(len, column)) for column in zip(self.head, *self.rows, strict=True)]
        yield self.title
        for cells in (self.head, *self.rows):
            first, *others = (
                cell.ljust(width) if number == 0 else cell.rjust(width)
                for number, (cell, width) in enumerate(zip(cells, widths, strict=True))
            )
            yield "  ".join(("", first, *others)).rstrip()

    def markdown(self) -> Iterator[str]:
        """For a page."""
        yield f"**{self.title}**\n"
        for cells in (self.head, ["---", *["--:"] * (len(self.head) - 1)], *self.rows):
            yield f"| {' | '.join(cells)} |"


CLAIMS: tuple[tuple[str, str, str], ...] = (
    ("the untrained team with the same vote", "malt@{}", "ma@{}"),
    ("lone agents with the same number of calls", "malt@{}", "sa@{calls}"),
    ("the STaR agent's vote", "malt@{}", "star_sa@{}"),
    ("the STaR team's vote", "malt@{}", "star_ma@{}"),
    ("the SFT team, single passes", "malt@1", "sft@1"),
    ("itself with the verifier untrained", "malt@{}", "v_untrained@{}"),
    ("itself with the refiner untrained", "malt@{}", "r_untrained@{}"),
)
"""What MALT is to be better than, by more than both 95 % intervals: the second system, and the first."""


class Evaluated(NamedTuple):
    """What was found, and what could not be played: the lacking models by team."""

    outcomes: Outcomes
    teams: tuple[Team, ...]
    passes: int
    left_out: dict[Team, list[str]]

    @property
    def systems(self) -> list[System]:
        return systems_of(self.teams, self.passes)

    def system(self, key: str) -> System | None:
        return next((one for one in self.systems if one.key == key), None)


def tables(found: Evaluated) -> list[Table]:
    """The paper's tables, then the tests against baselines, then the flips."""
    there = found.systems
    result: list[Table] = []
    for number, teams in TABLES.items():
        systems = sorted((one for one in there if one.team in teams), key=lambda one: teams.index(one.team))
        if number == "1" or any(one.team in teams[:-1] for one in systems):
            result.append(_accuracies(found, TITLES[number], systems))
    return [*result, _tests(found), *_flips(found)]


def notes(found: Evaluated) -> list[str]:
    """What a reader must know: what was left out, how ties were decided, how to read intervals and tests."""
    said = found.outcomes
    lines = [f"{team.name} is left out: no model for {', '.join(lacks)}." for team, lacks in found.left_out.items()]
    voting = [one for one in found.systems if one.votes > 1]
    if said.failed:
        lines.append(f"{said.failed:,} of {said.problems * said.seeds:,} problems failed, and are wrong everywhere.")
    if voting:
        most = max(voting, key=lambda one: said.tied[one.key])
        lines.append(
            "Of equally frequent answers the first voted wins; an answer that cannot be read is no vote, and wrong. "
            f"Ties were at most {said.accuracy(most).tied:.1%} of a system's votes ({most.name})."
        )
    lines.append(
        f"Intervals: 95 %, Wilson, for the mean of {_seeds(said.seeds)} over {said.problems:,} problems, with the "
        "problems alone as their number; ± is the deviation over seeds. Systems share the calls that they have in "
        "common, so they are compared problem by problem: the difference with its paired bootstrap interval, and "
        "McNemar's exact test, the least favourable seed. Neither is corrected for the number of rows."
    )
    return [*lines, *DIFFERS]


def document(found: Evaluated) -> dict[str, Any]:
    """`{"target", "rows"}` for machines: each system's accuracy in 0..1 with all that the tables show, then each claim
    with its goal. A claim's value is the difference; it is met where the two intervals do not overlap."""
    rows: list[dict[str, Any]] = []
    for system in found.systems:
        accuracy = found.outcomes.accuracy(system)
        rows.append(
            {
                "name": f"{system.name} ({system.key})",
                "value": round(accuracy.spread.mean, 4),
                "goal": None,
                "met": True,
                "system": system.key,
                "calls": system.calls,
                "sd": None if accuracy.spread.sd is None else round(accuracy.spread.sd, 4),
                "low": round(accuracy.interval.low, 4),
                "high": round(accuracy.interval.high, 4),
                "tied": round(accuracy.tied, 4),
                "unread": round(accuracy.unread, 4),
                "against": {one.key: _told(found.outcomes.compare(system, one)) for one in _baselines(found, system)},
                "paper": published(system.key, found.passes)._asdict(),
            }
        )
    said = found.outcomes
    about = {"problems": said.problems, "seeds": said.seeds, "passes": found.passes, "failed": said.failed}
    left_out = {team.key: lacks for team, lacks in found.left_out.items()}
    return {"target": "malt", "rows": [*rows, *_claims(found)], **about, "left_out": left_out}


def _claims(found: Evaluated) -> Iterator[dict[str, Any]]:
    calls = 3 * found.passes
    for words, better, worse in CLAIMS:
        first, second = (found.system(key.format(found.passes, calls=calls)) for key in (better, worse))
        if first is None or second is None:
            continue
        ours, theirs = found.outcomes.accuracy(first), found.outcomes.accuracy(second)
        yield {
            "name": f"MALT above {words}",
            "value": round(ours.spread.mean - theirs.spread.mean, 4),
            "goal": "> 0, intervals apart",
            "met": ours.interval.low > theirs.interval.high,
        }


def _accuracies(found: Evaluated, title: str, systems: Sequence[System]) -> Table:
    said = found.outcomes
    head = ["system", "calls", "right, %", "95 % interval", *(f"paper: {column}" for column in COLUMNS)]
    rows: list[list[str]] = []
    for system in systems:
        accuracy = said.accuracy(system)
        rows.append(
            [
                system.name,
                str(system.calls),
                _mean(accuracy),
                _between(*accuracy.interval),
                *published(system.key, found.passes),
            ]
        )
    return Table(f"{title}; {said.problems:,} problems, {_seeds(said.seeds)}", head, rows)


def _tests(found: Evaluated) -> Table:
    head = ["system", "calls", "against", "calls", "difference", "95 % bootstrap", "p", "better : worse"]
    rows: list[list[str]] = []
    for system in found.systems:
        for other in _baselines(found, system):
            told = found.outcomes.compare(system, other)
            rows.append(
                [
                    system.name,
                    str(system.calls),
                    other.name,
                    str(other.calls),
                    f"{100 * told.difference:+.1f}",
                    _between(*told.interval, sign="+"),
                    _p(max(told.p)),
                    f"{_mean_of(told.gained)} : {_mean_of(told.lost)}",
                ]
            )
    return Table("Against untrained systems of at least as many calls, in points", head, rows)


def _flips(found: Evaluated) -> Iterator[Table]:
    """Every vote against the lone agent's vote, as in figure 2; nothing where that did not play."""
    before = found.system(f"sa@{found.passes}")
    if before is None:
        return
    head = ["system", "wrong to right", "right in both", "wrong in both", "right to wrong"]
    rows = [
        [after.name, *(f"{share:.1f}" for share in percentages(found.outcomes.flips(before, after)))]
        for after in found.systems
        if after != before and after.votes > 1
    ]
    for column, told in zip(COLUMNS, FLIPS, strict=True):
        if told:
            rows.append([f"paper: MALT, {column}", *told.split(" / ")])
    yield Table(f"Flips against {before.name}, in % of the problems", head, rows)


def _baselines(found: Evaluated, system: System) -> list[System]:
    return baselines(system, found.systems)


def _told(compared: Comparison) -> dict[str, Any]:
    return {
        "difference": round(compared.difference, 4),
        "low": round(compared.interval.low, 4),
        "high": round(compared.interval.high, 4),
        "gained": compared.gained,
        "lost": compared.lost,
        "p": compared.p,
    }


def _mean(accuracy: Accuracy) -> str:
    mean, sd = accuracy.spread
    return f"{100 * mean:.1f}" if sd is None else f"{100 * mean:.1f} ± {100 * sd:.1f}"


def _mean_of(counts: Sequence[int]) -> str:
    return f"{sum(counts) / max(1, len(counts)):.0f}"


def _between(low: float, high: float, sign: str = "") -> str:
    return f"[{100 * low:{sign}.1f}, {100 * high:{sign}.1f}]"


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else f"{value:.0e}"


def _seeds(seeds: int) -> str:
    return "1 seed" if seeds == 1 else f"{seeds} seeds"
