"""What was read lately: prompts that begin alike share the keys and values of the pages they have in common."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from weaverant.engines.gpt2.model import PAGE, Cache, Floats, TinyModel

MOST_BYTES = 32 * 2**20
"""Of keys and values kept. The page not used for longest goes first."""


class Pages:
    """Reads prompts into lanes, page by page, and no page twice while it is kept.

    A page is known by all the tokens up to its end, and what it comes to depends on those alone: what is taken from
    here has the bits that reading it anew would give. Not safe to share between threads.
    """

    def __init__(self, model: TinyModel, most_bytes: int = MOST_BYTES) -> None:
        self.model = model
        page = 2 * 4 * len(model.blocks) * model.width * PAGE
        self._most = max(1, most_bytes // page)
        self._kept: OrderedDict[bytes, Floats] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def read(self, prompt: Sequence[int], cache: Cache, lane: int) -> int:
        """Puts keys and values of the prompt into the lane. Returns how many of its tokens had been read before."""
        told = np.array(prompt, np.int32).tobytes()
        names = [told[: 4 * end] for end in range(PAGE, len(prompt) + PAGE, PAGE)]
        known = 0
        for name in names:
            page = self._kept.get(name)
            if page is None:
                break
            self._kept.move_to_end(name)
            at = slice(known * PAGE, known * PAGE + PAGE)
            cache[:, :, lane, :, at] = page
            known += 1
        if known == len(names):
            return len(prompt)
        start = known * PAGE
        tokens = np.zeros((len(names) - known, PAGE), np.intp)
        tokens.reshape(-1)[: len(prompt) - start] = prompt[start:]
        self.model.read(tokens, start, cache, lane)
        for i, name in enumerate(names[known:], known):
            at = slice(i * PAGE, i * PAGE + PAGE)
            self._kept[name] = cache[:, :, lane, :, at].copy()
        while len(self._kept) > self._most:
            self._kept.popitem(last=False)
        return start
