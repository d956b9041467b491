"""What crosses a link once: long texts, messages, and what an agent's requests have in common.

The sender numbers each when it first says it, and says the number afterwards. Each is held by owners (keys of tasks);
what nobody holds any more is forgotten on both sides. Both agree because a link keeps its order: what is defined,
referred to and freed is found in that order when the bytes are read. A new link begins with nothing.
"""

from __future__ import annotations

from msgspec import Struct

from weaverant.message import Message, OutputSchema, Request, Role, Sampling, ToolSpec

SHARE_FROM = 512
"""Bytes of UTF-8 from which a text is shared, unless a link is told otherwise."""

MESSAGE_PART = 8
"""What a message says is shared from an eighth of that: in a conversation it comes again at each turn."""

TALK_FROM = 3
"""Messages from which a conversation is remembered as a whole, and only what is new of it is said."""

MOST_BYTES = 1 << 28
"""Shared at once in one direction of a link; what is more goes as it is."""
MOST_OWNERS = 1 << 20

REF, TEXT, MESSAGE, TERMS, SAID, SAID_REF, TALK, FREED, MESSAGE_ONCE, TERMS_ONCE = range(1, 11)
"""Kinds of MessagePack extension. REF holds a number; TEXT, MESSAGE and TERMS a number and what it stands for; SAID a
role, a number and a text, and SAID_REF a role and a number; TALK a number, how many messages of the conversation stay,
and those that are new; FREED numbers. The last two hold what gets no number."""

ROLES: tuple[Role, ...] = ("system", "user", "assistant", "tool")


class Terms(Struct, array_like=True, eq=False, frozen=True):
    """What all requests of an agent have in common. Made once and kept: it is shared by identity."""

    agent: str
    model: str
    sampling: Sampling
    tools: tuple[ToolSpec, ...]
    output: OutputSchema | None

    @classmethod
    def of(cls, request: Request) -> Terms:
        return cls(request.agent, request.model, request.sampling, request.tools, request.output)


class Talk(Struct, eq=False, frozen=True):
    """The messages of a request, packed as one value: what the same owner said before under the same terms is not said
    again. It arrives as their tuple."""

    terms: Terms
    messages: tuple[Message, ...]
