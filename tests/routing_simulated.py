"""A simulated router and simulated models: what each is good at is written down, nothing is learned."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from weaverant import Agent, workflow
from weaverant.engines.scripted import Scripted
from weaverant.message import Request
from weaverant.routing.pool import Pool
from weaverant.routing.scores import Scores

asker = Agent("asker", prompt="{{ question }}", model="solver")


@workflow
async def ask(row: dict[str, Any]) -> str:
    return await asker(question=row["question"])


class SimulatedRouter:
    """Knows the chances that it is told: by model, a number or a function of the query."""

    def __init__(
        self, p: Mapping[str, float | Callable[[str], float]], ece: float | None = 0.02, sd: float = 0.05
    ) -> None:
        self.p = dict(sorted(p.items()))
        self.models = tuple(self.p)
        self.identity = f"simulated:{sorted(map(str, p.items()))}" if all(map(_plain, p.values())) else "simulated"
        self.ece = ece
        self.sd = sd
        self.mean = {name: one if isinstance(one, float) else 0.5 for name, one in self.p.items()}
        self.cost: dict[str, float | None] = dict.fromkeys(self.models)
        self.latency: dict[str, float | None] = dict.fromkeys(self.models)
        self.correlation = np.eye(len(self.models))
        self.told: list[tuple[str, str, float]] = []

    def predict(self, queries: Sequence[str]) -> Scores:
        p = np.array([[one if isinstance(one, float) else one(query) for one in self.p.values()] for query in queries])
        return Scores(self.models, p, np.full(p.shape, self.sd), np.full(p.shape, 10.0))

    def update(self, query: str, model: str, outcome: float, weight: float = 1.0) -> None:
        self.told.append((query, model, outcome))


def _plain(value: object) -> bool:
    return isinstance(value, float)


def saying(answer: str, own: object = 0.9, peers: object = None, seen: list[Request] | None = None) -> Scripted:
    """Answers so, in the form it is asked for; its judgements are always the same."""

    def say(request: Request) -> str:
        if seen is not None:
            seen.append(request)
        asked = request.messages[0].text
        if "self_score" not in asked:
            return answer
        said: dict[str, Any] = {"answer": answer, "self_score": own}
        count = re.search(r"a list of (\d+) prob", asked)
        if count:
            said["peer_scores"] = [peers] * int(count[1]) if not isinstance(peers, list) else peers
        return json.dumps(said)

    return Scripted(say, identity=f"saying:{answer}:{own}:{peers}:{id(seen) if seen is not None else ''}")


def pool_of(**members: Any) -> Pool:
    return Pool(members)
