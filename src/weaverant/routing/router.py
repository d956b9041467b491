"""`Router`: what `weaverant route train` learned, as a folder: `router.json` and `arrays.npz`, no pickle.

`predict` is calibrated and batch-proof: a query's scores are the same to the last bit whatever else is asked beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct, structs
from numpy.typing import NDArray

from weaverant.errors import UserError
from weaverant.message import digest
from weaverant.routing.calibration import EDGE, Map, applied
from weaverant.routing.encoders import Cached, Vectors, load_encoder
from weaverant.routing.folder import digest_of, packed, read_arrays, read_aside, read_facts, unpacked, write_folder
from weaverant.routing.heads import Given, Head, head_kind
from weaverant.routing.heads.head import deviation
from weaverant.routing.online import Online
from weaverant.routing.scores import Floats, Scores


class Facts(Struct, frozen=True, forbid_unknown_fields=True):
    """`router.json`. Lists are in the order of `models`, which is that of their names."""

    format: int
    kind: str
    """Of the head."""
    encoder: str
    """As `--encoder` names it."""
    settings: dict[str, float]
    """The head's."""
    models: tuple[str, ...]
    calibration: tuple[Map, ...]
    mean: tuple[float, ...]
    """Mean scores in the table."""
    cost: tuple[float | None, ...]
    """US dollars an answer, on average; None where the table knows none."""
    latency: tuple[float | None, ...]
    """Seconds an answer, on average."""
    ece: float | None
    """The expected calibration error on held-out queries; None where it was not measured."""
    eces: tuple[float | None, ...]
    """The same for each model alone, whose fewer grades make it larger."""
    table: str
    """Digest of the table it learned from."""
    queries: int
    """In that table."""
    seed: int
    validation: tuple[dict[str, Any], ...] = ()
    """What was tried, with its figures on held-out queries."""
    taught: int = 0
    """Outcomes of feedback that it had been given when these errors were measured."""
    arrays: str = ""
    """Digest of `arrays.npz`."""


class Near(Struct, frozen=True):
    """A graded query and how like it is: the cosine of the two vectors."""

    query: str
    likeness: float
    scores: dict[str, float]
    """Of the models that were graded on it."""


class Examples(Struct, frozen=True, eq=False):
    """The graded queries that a router learned from."""

    texts: tuple[str, ...]
    vectors: Vectors
    scores: Floats


class Router:
    """A scorer of queries. Thread-safe."""

    def __init__(
        self,
        facts: Facts,
        encoder: Cached,
        head: Head,
        correlation: Floats,
        examples: Examples,
        online: Online | None = None,
        aside: Mapping[str, bytes] | None = None,
    ) -> None:
        self.facts, self.head, self.encoder, self.examples = facts, head, encoder, examples
        self.correlation = correlation
        """(M, M) of the models' errors, once what the router knows of a query is taken off; 1 on the diagonal."""
        self.aside = dict(aside or {})
        """Files that others keep beside the router, by name: `save` writes them with it."""
        self.online = online or Online(len(facts.models), encoder.dims)
        self._index = {name: n for n, name in enumerate(facts.models)}
        self._lock = Lock()
        if not facts.arrays:
            self.facts = structs.replace(facts, arrays=digest_of(self._arrays()))

    @staticmethod
    def open(folder: str | Path) -> Router:
        """`UserError` for a folder that is no router, a damaged one, or one of another version."""
        path = Path(folder)
        facts = read_facts(path, Facts)
        arrays = read_arrays(path, "arrays.npz")
        if digest_of(arrays) != facts.arrays:
            raise UserError(f"the router {str(path)!r} is damaged: arrays.npz is not what router.json was saved with")
        try:
            encoder = load_encoder(facts.encoder, _under(arrays, "encoder."))
            head = head_kind(facts.kind).load(facts.settings, _under(arrays, "head."))
            examples = Examples(
                unpacked("examples.texts", arrays),
                arrays["examples.vectors"].astype(np.float32),
                arrays["examples.scores"].astype(np.float64),
            )
            kept = read_arrays(path, "feedback.npz", optional=True)
            online = Online.load(len(facts.models), encoder.dims, kept) if kept else None
            correlation = arrays["correlation"].astype(np.float64)
        except (KeyError, ValueError, IndexError) as error:
            raise UserError(f"the router {str(path)!r} is damaged: {error!r}. Train it again") from None
        return Router(facts, encoder, head, correlation, examples, online, read_aside(path))

    def save(self, folder: str | Path, *, replace: bool = False) -> None:
        """Into a new folder, whole or not at all. With `replace` in place of a router that is there."""
        with self._lock:
            feedback = self.online.arrays() if self.online.count else None
        write_folder(Path(folder), self.facts, self._arrays(), feedback, self.aside, replace=replace)

    @property
    def models(self) -> tuple[str, ...]:
        return self.facts.models

    @property
    def identity(self) -> str:
        """Of what was learned by training. Feedback changes no identity: what it led to is recorded with each step."""
        told = structs.replace(self.facts, validation=())
        return f"router:{self.facts.kind}:{digest(msgspec.msgpack.encode(told)).hex()}"

    @property
    def ece(self) -> float | None:
        return self.facts.ece

    @property
    def mean(self) -> dict[str, float]:
        """Mean scores by model."""
        return dict(zip(self.models, self.facts.mean, strict=True))

    @property
    def cost(self) -> dict[str, float | None]:
        """US dollars an answer, by model."""
        return dict(zip(self.models, self.facts.cost, strict=True))

    @property
    def latency(self) -> dict[str, float | None]:
        """Seconds an answer, by model."""
        return dict(zip(self.models, self.facts.latency, strict=True))

    @property
    def taught(self) -> int:
        """Outcomes that `update` was ever given."""
        return self.online.count

    def predict(self, queries: Sequence[str]) -> Scores:
        """Calibrated, with what feedback there was. `StepFailed` where the encoder is a server that gives nothing."""
        vectors = self.encoder.encode(queries)
        rows = [self._one(query, vector) for query, vector in zip(queries, vectors, strict=True)]
        shape = (len(rows), len(self.models))
        p, support = (np.array([row[n] for row in rows], dtype=np.float64).reshape(shape) for n in (0, 1))
        return Scores(self.models, p, deviation(p, support, self.head.prior), support)

    def update(self, query: str, model: str, outcome: float, weight: float = 1.0) -> None:
        """Learn how right an answer was: `outcome` in [0, 1], which counts as `weight` of them. `UserError` for a model
        that the router does not know, or an outcome that is none."""
        if model not in self._index:
            known = ", ".join(map(repr, self.models))
            raise UserError(f"the router knows no model {model!r}; expected one of {known}")
        if not (0.0 <= outcome <= 1.0 and 0.0 <= weight < float("inf")):
            raise UserError(f"expected an outcome from 0 to 1 and a weight of 0 or more; found {outcome!r}, {weight!r}")
        vector = self.encoder.encode([query])[0]
        at = self._index[model]
        raw = self.head.predict(Given([query], vector[None], self.encoder.folder)).p[:, at]
        given = float(self.facts.calibration[at](raw)[0])
        with self._lock:
            self.online.add(vector, at, outcome - given, weight, float(raw[0]), query)

    def heard(self, queries: Sequence[str]) -> list[bool]:
        """Of which of these it has had feedback, as far back as that is kept."""
        with self._lock:
            return self.online.heard(queries)

    def mapped(self, maps: Sequence[Map]) -> Online:
        """The feedback as it would be had the estimates been mapped so."""

        def more(model: int, raw: Floats) -> Floats:
            return self.facts.calibration[model](raw) - maps[model](raw)

        with self._lock:
            return self.online.rebased(more)

    def nearest(self, query: str, count: int) -> list[Near]:
        """The graded queries most like it, the nearest first; none where the encoder makes no vectors."""
        if not self.encoder.dims:
            return []
        like = self.examples.vectors @ self.encoder.encode([query])[0]
        found: list[int] = np.argsort(-like, kind="stable")[:count].tolist()
        return [Near(self.examples.texts[n], float(like[n]), self._graded(n)) for n in found]

    def raw(self, queries: Sequence[str]) -> Floats:
        """(n, M) The head's estimates, before calibration and feedback."""
        return self.head.predict(Given(queries, self.encoder.encode(queries), self.encoder.folder)).p

    def _one(self, query: str, vector: Vectors) -> tuple[Floats, Floats]:
        p, support = self._alone(query, vector)
        with self._lock:
            change = self.online.change(vector) if self.online.count else None
        return (p, support) if change is None else (corrected(p, change.p), support + change.support)

    def _alone(self, query: str, vector: Vectors) -> tuple[Floats, Floats]:
        """Without feedback. One query at a time: sums over several come out otherwise in their last bits."""
        found = self.head.predict(Given([query], vector[None], self.encoder.folder))
        return applied(self.facts.calibration, found.p)[0], found.support[0]

    def _graded(self, row: int) -> dict[str, float]:
        found: list[float] = self.examples.scores[row].tolist()
        return {name: score for name, score in zip(self.models, found, strict=True) if score == score}

    def _arrays(self) -> dict[str, NDArray[np.generic]]:
        """All but feedback."""
        found: dict[str, NDArray[np.generic]] = {
            "correlation": self.correlation,
            "examples.vectors": self.examples.vectors,
            "examples.scores": self.examples.scores,
            **packed("examples.texts", self.examples.texts),
        }
        found |= {f"encoder.{name}": array for name, array in self.encoder.arrays().items()}
        return found | {f"head.{name}": array for name, array in self.head.arrays().items()}


def corrected(p: Floats, change: Floats) -> Floats:
    """Probabilities with what feedback adds."""
    return np.clip(p + change, EDGE, 1.0 - EDGE)


def _under(arrays: Mapping[str, NDArray[np.generic]], prefix: str) -> dict[str, NDArray[np.generic]]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
