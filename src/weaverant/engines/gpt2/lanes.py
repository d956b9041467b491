"""Continuous batching: conversations enter and leave a running batch between two tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from heapq import heappop, heappush
from itertools import groupby
from typing import Literal

import numpy as np

from weaverant.engines.gpt2.model import TILE, TinyModel
from weaverant.engines.gpt2.sampling import draw

READ_AT_ONCE = 8
"""Prompts of equal padded length read together: more only fall out of the processor's cache."""


@dataclass(eq=False)
class Conversation:
    """A prompt and the reply that grows behind it. `limit` is the most tokens the reply may have."""

    prompt: list[int]
    limit: int
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    reply: list[int] = field(default_factory=list[int])
    text: str = ""
    finish: Literal["stop", "length"] | None = None

    @property
    def key(self) -> int:
        """64 bits of the prompt and the seed, from which all the random numbers of the reply follow."""
        told = repr((self.seed, self.prompt)).encode()
        return int.from_bytes(blake2b(told, digest_size=8).digest(), "little")

    def add(self, token: int, text: str, end: int) -> None:
        """Takes the next token. The end token and a stop text are counted but not part of `text`."""
        self.reply.append(token)
        if token == end:
            self.finish = "stop"
            return
        self.text += text
        for stop in self.stop:
            if self.text.endswith(stop):
                self.text = self.text.removesuffix(stop)
                self.finish = "stop"
                return
        if len(self.reply) == self.limit:
            self.finish = "length"


class Lanes:
    """A fixed number of lanes, each with room for one conversation. Not safe to share between threads."""

    def __init__(self, model: TinyModel, count: int) -> None:
        if count <= 0 or count % TILE:
            raise ValueError(f"lanes come in tiles: expected a multiple of {TILE}, found {count!r}")
        self.model = model
        self.cache = model.cache(count)
        self.taken: dict[int, Conversation] = {}
        self._free = list(range(count))
        self._tokens = np.zeros(count, np.intp)
        self._places = np.zeros(count, np.intp)
        self._advance = np.zeros(count, np.intp)
        self._temperature = np.ones(count)
        self._top_p = np.ones(count)
        self._keys = np.zeros(count, np.uint64)
        self._counters = np.zeros(count, np.uint64)

    @property
    def free(self) -> int:
        """How many conversations may enter."""
        return len(self._free)

    def enter(self, conversations: Sequence[Conversation]) -> None:
        """Reads the prompts, at most `free` of them, and starts their replies."""
        entered = [(heappop(self._free), conversation) for conversation in conversations]
        for lane, it in entered:
            self.taken[lane] = it
            self._tokens[lane] = it.prompt[-1]
            self._places[lane] = len(it.prompt) - 1
            self._advance[lane] = 1
            self._temperature[lane] = it.temperature
            self._top_p[lane] = it.top_p
            self._keys[lane] = it.key
            self._counters[lane] = 0
        for length, group in _alike(entered, self.model):
            tokens = np.zeros((len(group), length), np.intp)
            for row, (_, it) in enumerate(group):
                tokens[row, : len(it.prompt) - 1] = it.prompt[:-1]
            self.model.read(tokens, self.cache, np.array([lane for lane, _ in group]))

    def step(self) -> list[Conversation]:
        """One more token for everyone. Returns those who are done; they have left their lanes."""
        rows = -(-(max(self.taken) + 1) // TILE) * TILE
        logits = self.model.step(self._tokens[:rows], self._places[:rows], self.cache)
        self._counters[:rows] += np.uint64(1)
        chosen = draw(
            logits,
            self._temperature[:rows],
            self._top_p[:rows],
            self._keys[:rows],
            self._counters[:rows],
        )
        self._tokens[:rows] = chosen
        self._places[:rows] += self._advance[:rows]
        tokenizer = self.model.tokenizer
        tokens: list[int] = chosen.tolist()
        for lane, it in self.taken.items():
            token = tokens[lane]
            it.add(token, tokenizer.characters.get(token, ""), tokenizer.end)
        done = [(lane, it) for lane, it in self.taken.items() if it.finish is not None]
        for lane, _ in done:
            self._leave(lane)
        return [it for _, it in done]

    def drop(self, gone: Sequence[Conversation]) -> None:
        """Frees the lanes of conversations that nobody waits for any more."""
        for lane in [lane for lane, it in self.taken.items() if it in gone]:
            self._leave(lane)

    def clear(self) -> None:
        """Frees every lane."""
        self.drop(list(self.taken.values()))

    def _leave(self, lane: int) -> None:
        del self.taken[lane]
        heappush(self._free, lane)
        self._places[lane] = self._advance[lane] = 0
        self._top_p[lane] = 1.0


def _alike(
    entered: list[tuple[int, Conversation]], model: TinyModel
) -> Iterator[tuple[int, list[tuple[int, Conversation]]]]:
    """The newcomers in groups of one padded length. A prompt's last token is left to the first step."""

    def length(item: tuple[int, Conversation]) -> int:
        return model.padded(len(item[1].prompt) - 1)

    for padded, group in groupby(sorted(entered, key=length), key=length):
        members = list(group)
        for start in range(0, len(members) if padded else 0, READ_AT_ONCE):
            yield padded, members[start : start + READ_AT_ONCE]
