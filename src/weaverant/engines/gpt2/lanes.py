"""Continuous batching: conversations enter and leave a running batch between two tokens."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from heapq import heappop, heappush
from typing import Literal

import numpy as np

from weaverant.engines.gpt2.model import TILE, TinyModel
from weaverant.engines.gpt2.pages import Pages
from weaverant.engines.gpt2.sampling import draw


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
    """A fixed number of seats, one for each conversation, and as many lanes. Not safe to share between threads.

    A lane holds a text, prompt and reply, and each step finds what may follow it. Conversations that begin together
    with the same prompt share a lane until their draws differ; whoever parts takes a copy along to a lane of its own.
    """

    def __init__(self, model: TinyModel, count: int) -> None:
        if count <= 0 or count % TILE:
            raise ValueError(f"lanes come in tiles: expected a multiple of {TILE}, found {count!r}")
        self.model = model
        self.cache = model.cache(count)
        self.pages = Pages(model)
        self.seated: dict[int, Conversation] = {}
        self.sharing: dict[int, list[int]] = {}
        """The seats of those whose text is in a lane."""
        self._free_seats = list(range(count))
        self._free_lanes = list(range(count))
        self._tokens = np.zeros(count, np.intp)
        self._places = np.zeros(count, np.intp)
        self._lane = np.zeros(count, np.intp)
        self._temperature = np.ones(count)
        self._top_p = np.ones(count)
        self._keys = np.zeros(count, np.uint64)
        self._counters = np.zeros(count, np.uint64)

    @property
    def free(self) -> int:
        """How many conversations may enter."""
        return len(self._free_seats)

    def enter(self, conversations: Sequence[Conversation]) -> None:
        """Reads the prompts, at most `free` of them, and starts their replies."""
        opened: dict[tuple[int, ...], int] = {}
        for it in conversations:
            prompt = tuple(it.prompt)
            lane = opened.get(prompt)
            if lane is None:
                lane = opened[prompt] = self._open(prompt)
            seat = heappop(self._free_seats)
            self.seated[seat] = it
            self.sharing[lane].append(seat)
            self._lane[seat] = lane
            self._temperature[seat] = it.temperature
            self._top_p[seat] = it.top_p
            self._keys[seat] = it.key
            self._counters[seat] = 0

    def step(self) -> list[Conversation]:
        """One more token for everyone. Returns those who are done; they have left their seats."""
        lanes, seats = _tiled(self.sharing), _tiled(self.seated)
        logits = self.model.step(self._tokens[:lanes], self._places[:lanes], self.cache)
        self._counters[:seats] += np.uint64(1)
        tokens: list[int] = draw(
            logits[self._lane[:seats]],
            self._temperature[:seats],
            self._top_p[:seats],
            self._keys[:seats],
            self._counters[:seats],
        ).tolist()
        characters, end = self.model.tokenizer.characters, self.model.tokenizer.end
        done: list[Conversation] = []
        for lane, sharing in list(self.sharing.items()):
            ways: dict[int, list[int]] = {}
            for seat in sharing:
                it, token = self.seated[seat], tokens[seat]
                it.add(token, characters.get(token, ""), end)
                if it.finish is None:
                    ways.setdefault(token, []).append(seat)
                else:
                    done.append(it)
                    self._rise(seat)
            if ways:
                self._go_on(lane, ways)
            else:
                self._close(lane)
        return done

    def drop(self, gone: Sequence[Conversation]) -> None:
        """Frees the seats of conversations that nobody waits for any more."""
        for lane, sharing in list(self.sharing.items()):
            for seat in [seat for seat in sharing if self.seated[seat] in gone]:
                sharing.remove(seat)
                self._rise(seat)
            if not sharing:
                self._close(lane)

    def clear(self) -> None:
        """Frees every seat."""
        self.drop(list(self.seated.values()))

    def _open(self, prompt: tuple[int, ...]) -> int:
        """A lane with that prompt, read but for its last token, which is left to the first step."""
        lane = heappop(self._free_lanes)
        self.pages.read(prompt[:-1], self.cache, lane)
        self.sharing[lane] = []
        self._tokens[lane] = prompt[-1]
        self._places[lane] = len(prompt) - 1
        return lane

    def _go_on(self, lane: int, ways: dict[int, list[int]]) -> None:
        """Each next token with those who drew it: the first in this lane, any other in a copy of it."""
        self._places[lane] += 1
        (self._tokens[lane], self.sharing[lane]), *others = ways.items()
        for token, seats in others:
            other, place = heappop(self._free_lanes), self._places[lane]
            self.cache[:, :, other, :, :place] = self.cache[:, :, lane, :, :place]
            self._tokens[other], self._places[other], self.sharing[other] = token, place, seats
            self._lane[seats] = other

    def _close(self, lane: int) -> None:
        del self.sharing[lane]
        heappush(self._free_lanes, lane)
        self._places[lane] = 0

    def _rise(self, seat: int) -> None:
        del self.seated[seat]
        heappush(self._free_seats, seat)
        self._lane[seat] = 0
        self._top_p[seat] = 1.0


def _tiled(taken: Collection[int]) -> int:
    """The rows to work on: all up to the last one taken, in whole tiles."""
    return -(-(max(taken) + 1) // TILE) * TILE
