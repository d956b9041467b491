"""What was read lately: prompts that begin alike share the keys and values of the pages they have in common."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from weaverant.engines.gpt2.model import PAGE, Cache, TinyModel

MOST_BYTES = 16 * 2**20
"""Of keys and values kept. The page not used for longest goes first."""


class Pages:
    """Reads prompts into lanes, page by page, and no page twice while it is kept.

    A page is known by all the tokens up to its end, and what it comes to depends on those alone: what is taken from
    here has the bits that reading it anew would give. Not safe to share between threads.
    """

    def __init__(self, model: TinyModel, most_bytes: int = MOST_BYTES) -> None:
        self.model = model
        page = model.cache(1)[:, :, 0, :, :PAGE]
        self._room = np.empty((max(1, most_bytes // page.nbytes), *page.shape), np.float32)
        self._kept: OrderedDict[bytes, int] = OrderedDict()
        """Where in the room each page is, the one used last at the end."""

    def __len__(self) -> int:
        return len(self._kept)

    def read(self, prompt: Sequence[int], cache: Cache, lane: int) -> int:
        """Puts keys and values of the prompt into the lane. Returns how many of its tokens had been read before."""
        told = np.array(prompt, np.int32).tobytes()
        names = [told[: 4 * end] for end in range(PAGE, len(prompt) + PAGE, PAGE)]
        known = 0
        for name in names:
            if name not in self._kept:
                break
            self._kept.move_to_end(name)
            cache[:, :, lane, :, known * PAGE : known * PAGE + PAGE] = self._room[self._kept[name]]
            known += 1
        if known == len(names):
            return len(prompt)
        start = known * PAGE
        tokens = np.zeros((len(names) - known, PAGE), np.intp)
        tokens.reshape(-1)[: len(prompt) - start] = prompt[start:]
        self.model.read(tokens, start, cache, lane)
        for page, name in enumerate(names[known:], known):
            full = len(self._kept) == len(self._room)
            at = self._kept.popitem(last=False)[1] if full else len(self._kept)
            self._room[at] = cache[:, :, lane, :, page * PAGE : page * PAGE + PAGE]
            self._kept[name] = at
        return start
