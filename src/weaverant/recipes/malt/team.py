"""The three roles, with the prompts and sampling that each kind of model needs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from weaverant.agent import Agent
from weaverant.errors import UserError
from weaverant.sources.arithmetic import PROMPTS

Role = Literal["generator", "verifier", "refiner"]
ROLES: tuple[Role, ...] = ("generator", "verifier", "refiner")

Prompts = Literal["auto", "tiny", "chat"]

CHAT_TEMPERATURE = 0.3
"""The paper samples Llama-3.1-8B-Instruct so (arXiv 2412.01928)."""

CHAT_TOKENS = 1_024
"""A worked GSM8K solution takes some 300 tokens; a reply this long has lost its way, and counts as it stands."""

TINY_TEMPERATURE = 1.0
"""The tiny model learnt its habits as probabilities; at 0 it would have none."""

TINY_TOKENS = 40
"""Characters, for this model: the longest reply it was taught has 36, and prompts must fit into its 192 places."""


class Team(NamedTuple):
    """Who plays the three roles. Each asks the model of its own name, so that each may get its own trained one."""

    generator: Agent
    verifier: Agent
    refiner: Agent


CHAT = Team(
    *(
        Agent(role, prompt=Path(f"prompts/{role}.md"), model=role, temperature=CHAT_TEMPERATURE, max_tokens=CHAT_TOKENS)
        for role in ROLES
    )
)
"""For models that follow instructions: zero-shot chain of thought, the answer after `####`."""

_JINJA = {name: f"{{{{ {name} }}}}" for name in ("question", "attempt", "critique")}

TINY = Team(
    *(
        Agent(
            role,
            prompt=PROMPTS[role].format_map(_JINJA),
            model=role,
            temperature=TINY_TEMPERATURE,
            max_tokens=TINY_TOKENS,
        )
        for role in ROLES
    )
)
"""For the packaged tiny model and what was trained from it: the prompts it was taught."""


def team_for(row: Mapping[str, Any], prompts: Prompts) -> Team:
    """The team by the name of its prompts. `auto`: `tiny` for rows of the arithmetic source, known by an `id` that
    begins with `arithmetic-`, and `chat` for all others."""
    if prompts == "auto":
        prompts = "tiny" if str(row.get("id", "")).startswith("arithmetic-") else "chat"
    return TINY if prompts == "tiny" else CHAT


def question_of(row: Mapping[str, Any]) -> str:
    """The row's question. `UserError` where it has none."""
    question = row.get("question")
    if not isinstance(question, str) or not question.strip():
        raise UserError(
            f"a row needs a text in 'question' and the gold answer in 'answer'; found {question!r} in 'question', "
            f"and the fields {sorted(row)}"
        )
    return question
