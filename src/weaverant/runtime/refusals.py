"""Calls that are refused for what the agent asks for, whatever the row: told at the first, and ended when there are
twenty and none has had an answer, nor so many are under way that one might: a refusal comes sooner than a reply.

Each costs its row and what that row has paid for before.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from weaverant.runtime.ledger import AgentCounts

REASON = "request"

MOST = 20
"""Calls of an agent that are refused from the first one on."""

_PLAIN = "logprobs|top_logprobs|temperature|top_p|max_tokens|max_completion_tokens|response_format"
_FIELD = re.compile(rf"""["'`]({_PLAIN}|n|stop|seed|tools)["'`]|\b({_PLAIN})\b|\b(n) (?:must|is|=|>)""")
"""A field of a request in a server's words. Some are words as well: those only in quotation marks."""

_WAYS_OUT = {
    "n": "leave n= out of the agent (--set {agent}.n=1) and call it so many times",
    "logprobs": "leave logprobs out of the agent (--set {agent}.logprobs=false --set {agent}.top_logprobs=0)",
    "top_logprobs": "ask for fewer, or for none (--set {agent}.top_logprobs=0)",
    "tools": "take a model that calls tools (--model)",
    "response_format": "let the prompt have the schema (schema=prompt in the model's address)",
    "temperature": "leave it out of the agent (--set {agent}.temperature=null)",
    "top_p": "leave it out of the agent (--set {agent}.top_p=null)",
}


class Refusals:
    """Of one session. `tell` takes a line for people, `stop` why the run cannot go on, `under_way` says how many calls
    have not ended."""

    def __init__(self, tell: Callable[[str], None], stop: Callable[[str], None], under_way: Callable[[], int]) -> None:
        self._under_way = under_way
        self._tell = tell
        self._stop = stop

    def note(self, agent: str, counts: AgentCounts) -> None:
        """A call of the agent was refused, and has been counted."""
        refused = counts.failures[REASON]
        if refused != counts.calls - counts.reused - counts.cancelled or 1 < refused < MOST:
            return
        text = counts.examples.get(REASON, "")
        field = _field_in(text)
        if refused >= MOST:
            if refused < self._under_way():
                return
            way_out = _way_out(agent, field) if field else "mend the agent, or take another model"
            self._stop(
                f"the first {refused} calls of agent {agent!r} were all refused: {text}. Way out: {way_out}; then make "
                "a new run with --reuse (reuse=). With --max-failures 1 (max_failures=1) this one goes on all the same"
            )
        elif field:
            self._tell(f"agent {agent!r}: the server refuses its {field}: {text}. Way out: {_way_out(agent, field)}")


def _field_in(text: str) -> str:
    """The field of a request that a refusal names; empty where it names none."""
    found = _FIELD.search(text)
    return "" if found is None else next(filter(None, found.groups()))


def _way_out(agent: str, field: str) -> str:
    return _WAYS_OUT.get(field, "change what the agent asks for, or take another model").format(agent=agent)
