"""Random workflows all of whose calls are compounds: they crash, resume and replay as those of engines do.

The long form: `python tests/test_compound_random.py 2000`.
"""

from __future__ import annotations

import asyncio
import sys

import pytest

import test_replay_random
from test_replay_random import batches, trial
from weaverant.agent import Agent
from weaverant.compound import Inside
from weaverant.errors import StepFailed
from weaverant.message import Reply, Request, assistant
from weaverant.testing.weaves import Moody, mix

draft = Agent("draft", prompt="{{ said }}", model="mood")


class Nested:
    """Passes on whole requests. Of two mirrors of the one mood, the first that answers counts."""

    identity = "nested"

    def __init__(self, moody: Moody) -> None:
        self.members = {"mood": moody, "mirror": moody}

    def agents(self, request: Request):
        return []

    async def answer(self, request: Request, inside: Inside) -> Reply:
        try:
            return await inside.ask("mood", request)
        except StepFailed:
            return await inside.ask("mirror", request)

    async def close(self) -> None: ...


class MoodyTeam:
    """Two drafts side by side, then the request itself, by way of a compound within."""

    identity = "moody team"

    def __init__(self, life: int) -> None:
        self.moody = Moody(life)
        self.members = {"mood": self.moody, "inner": Nested(self.moody)}

    @property
    def random(self):
        return self.moody.random

    @property
    def calls(self) -> int:
        return self.moody.calls

    def agents(self, request: Request):
        return [draft]

    async def answer(self, request: Request, inside: Inside) -> Reply:
        said = mix(request.messages)
        drafts = await asyncio.gather(*(inside.agent(draft)(said=said) for _ in range(2)))
        if request.tools or request.output:
            return await inside.ask("inner", request)
        reply = await inside.ask("inner", request)
        return Reply(assistant(mix(reply.text, *drafts)))

    async def close(self) -> None: ...


@pytest.fixture(autouse=True)
def teams(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(test_replay_random, "Moody", MoodyTeam)


def test_replay_of_compounds_gives_the_same_and_pays_nothing():
    assert [asyncio.run(trial(batch)) for batch in batches(100)] == [[]]


if __name__ == "__main__":
    test_replay_random.Moody = MoodyTeam
    found = [each for batch in batches(int(sys.argv[1])) for each in asyncio.run(trial(batch))]
    print(f"{sys.argv[1]} workflows of compounds: {len(found)} faults", *found, sep="\n")
