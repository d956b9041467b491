"""What is compared: a team says which training each role has had, a system how many of its passes vote.

The names and tables are those of the paper (arXiv 2412.01928): tables 1 and 3, 4 (one role untrained), 5 (shorter
pipelines).
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from weaverant.recipes.malt.team import Role

Training = Literal["base", "star", "sft", "dpo"]
"""What a role's model has been through, each from the one before, and `star` from the base."""

TRAININGS: tuple[Training, ...] = ("base", "star", "sft", "dpo")

PASSES = 3
"""Passes that vote in the paper."""


class Team(NamedTuple):
    """Who plays. A role that is None is left out; without a verifier the refiner reads an empty critique."""

    key: str
    name: str
    generator: Training
    verifier: Training | None = None
    refiner: Training | None = None

    @property
    def calls(self) -> int:
        """Of one pass."""
        return 1 + (self.verifier is not None) + (self.refiner is not None)

    @property
    def cast(self) -> list[tuple[Role, Training]]:
        """Its roles, each with its training."""
        found: list[tuple[Role, Training | None]] = [
            ("generator", self.generator),
            ("verifier", self.verifier),
            ("refiner", self.refiner),
        ]
        return [(role, training) for role, training in found if training is not None]


class System(NamedTuple):
    """A team of which so many independent passes vote; 1 is a single pass. `extra` where they are more than usual."""

    team: Team
    votes: int
    extra: bool = False

    @property
    def key(self) -> str:
        return f"{self.team.key}@{self.votes}"

    @property
    def calls(self) -> int:
        """To answer one problem."""
        return self.votes * self.team.calls

    @property
    def name(self) -> str:
        """As the paper writes it: `SA`, `SA+MV`, `MALT w/o MV`, `MALT`; ours is `SA, 9 votes`."""
        if self.extra:
            return f"{self.team.name}, {self.votes} votes"
        if self.team in UNTRAINED:
            return self.team.name if self.votes == 1 else f"{self.team.name}+MV"
        return f"{self.team.name} w/o MV" if self.votes == 1 else self.team.name


SA = Team("sa", "SA", "base")
MA = Team("ma", "MA", "base", "base", "base")
STAR_SA = Team("star_sa", "STaR SA", "star")
STAR_MA = Team("star_ma", "STaR MA", "star", "star", "star")
SFT = Team("sft", "SFT team", "sft", "sft", "sft")
MALT = Team("malt", "MALT", "sft", "dpo", "dpo")
G_UNTRAINED = Team("g_untrained", "G untrained", "base", "dpo", "dpo")
V_UNTRAINED = Team("v_untrained", "V untrained", "sft", "base", "dpo")
R_UNTRAINED = Team("r_untrained", "R untrained", "sft", "dpo", "base")
G = Team("g", "G", "sft")
G_V = Team("g_v", "G+V", "sft", "dpo")
G_R = Team("g_r", "G+R", "sft", None, "dpo")

UNTRAINED = (SA, MA, STAR_SA, STAR_MA)
"""Those whose name gets `+MV` where passes vote; of the others the name alone means the vote, as in the paper."""

TEAMS = (SA, MA, STAR_SA, STAR_MA, SFT, MALT, G_UNTRAINED, V_UNTRAINED, R_UNTRAINED, G, G_V, G_R)

TABLES = {
    "1": (SA, MA, STAR_SA, STAR_MA, SFT, MALT),
    "4": (G_UNTRAINED, V_UNTRAINED, R_UNTRAINED, MALT),
    "5": (G, G_V, G_R, MALT),
}
"""The teams of the paper's tables, by number."""

TITLES = {
    "1": "Table 1: systems",
    "4": "Table 4: one role untrained",
    "5": "Table 5: shorter pipelines, trained roles",
}


def systems_of(teams: tuple[Team, ...], passes: int) -> list[System]:
    """Every system of these teams, in order, each once: its single pass, its vote, and for lone agents a vote that
    costs as many calls as a whole team's."""
    found: dict[System, None] = {}
    for team in teams:
        found |= dict.fromkeys((System(team, 1), System(team, passes)))
        if team == SA:
            found[System(SA, passes * MA.calls, extra=True)] = None
    return list(found)


def baselines(system: System, there: list[System]) -> list[System]:
    """Untrained systems to hold it against: of lone agents and of teams the cheapest with at least as many calls,
    other than itself. None for what is such a baseline and costs the same."""
    found: list[System] = []
    for team in (SA, MA):
        as_dear = [one for one in there if one.team == team and one.calls >= system.calls]
        best = min(as_dear, key=lambda one: one.calls, default=None)
        if best is not None and best != system:
            found.append(best)
    return found
