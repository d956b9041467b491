"""Conversations that grow: what a step's messages have in common with an earlier step's is named, not stored again.

A `Talk` is a conversation as of one reply. It holds only what was new, and the talk that it went on from, so that a
hundred turns take memory and journal for a hundred turns and not for five thousand.
"""

from __future__ import annotations

from weaverant.message import Message

TALK_FROM = 4
"""Messages of history from which it is worth the work: to name fewer takes little room."""


class Talk:
    """The messages that a step sent, but for the first `skip` of them, and the reply it got."""

    __slots__ = ("before", "length", "new", "number", "skip")

    def __init__(self, before: Talk | None, new: tuple[Message, ...], number: int, skip: int) -> None:
        self.before = before
        self.new = new
        self.number = number
        """The step's."""
        self.skip = skip
        self.length = len(new) + (0 if before is None else before.length)

    def begins(self, history: tuple[Message, ...]) -> bool:
        """Whether the history begins with the whole of it."""
        talk, end = self, self.length
        while talk is not None:
            start = end - len(talk.new)
            if history[start:end] != talk.new:
                return False
            talk, end = talk.before, start
        return True


class Talks:
    """Those of one task, found by their length and last message."""

    __slots__ = ("_ending",)

    def __init__(self) -> None:
        self._ending: dict[tuple[int, bytes], Talk] = {}

    def add(self, talk: Talk) -> None:
        self._ending[talk.length, talk.new[-1].digest] = talk

    def before(self, history: tuple[Message, ...]) -> Talk | None:
        """The talk up to the last reply in the history, if the history begins with one."""
        for end in range(len(history), 0, -1):
            if history[end - 1].role == "assistant":
                talk = self._ending.get((end, history[end - 1].digest))
                return talk if talk is not None and talk.begins(history) else None
        return None
