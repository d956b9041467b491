"""What is said: messages, the request an engine gets, the reply it gives. All frozen, all plain data.

A message caches its digest, so a request's fingerprint hashes digests and not whole conversations.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Annotated, Any, Literal, cast

import msgspec
from msgspec import Meta, Struct
from msgspec.structs import astuple

Role = Literal["system", "user", "assistant", "tool"]
FinishReason = Literal["stop", "length", "tool_calls", "content_filter", "other"]

DIGEST_BYTES = 16

MOST_COUNTED, MOST_DOLLARS = (1 << 44) - 1, 1e12
"""Of a step, and of all steps of a segment: far above what can be true, and far below what cannot be added up."""
Count = Annotated[int, Meta(ge=0, le=MOST_COUNTED)]
Dollars = Annotated[float, Meta(ge=0.0, le=MOST_DOLLARS)]


class TextPart(Struct, frozen=True, tag_field="type", tag="text"):
    """A piece of text inside a message of several parts."""

    text: str


class ImagePart(Struct, frozen=True, tag_field="type", tag="image"):
    """An image inside a message: an `https:` or `data:` URL."""

    url: str


Part = TextPart | ImagePart


class ToolCall(Struct, frozen=True):
    """A model's wish to call a tool. `arguments` is the JSON text exactly as the model wrote it."""

    id: str
    name: str
    arguments: str


class Digest:
    """16 bytes that identify a message by content. Computed once: afterwards the message has them as its own."""

    def __get__(self, message: Message | None, owner: type) -> bytes:
        if message is None:
            raise AttributeError("digest")
        found = cast("dict[str, bytes]", message.__dict__)["digest"] = digest(_canonical(message))
        return found


class Message(Struct, frozen=True, omit_defaults=True, dict=True):
    """One utterance."""

    role: Role
    content: str | tuple[Part, ...] = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    reasoning: str | None = None

    @property
    def text(self) -> str:
        """The text parts, joined."""
        content = self.content
        if isinstance(content, str):
            return content
        return "".join(part.text for part in content if isinstance(part, TextPart))

    digest = Digest()


def _canonical(message: Message) -> bytes:
    content = message.content
    if isinstance(content, str) and not message.tool_calls and message.reasoning is None:
        head = message.role if message.tool_call_id is None else f"{message.role}:{message.tool_call_id}"
        return f"{head}\0{content}".encode(errors="surrogatepass")
    return b"\1" + _encode(message)


class Sampling(Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """How a reply is drawn. `None` leaves the choice to the server. `extra` goes into the request as it is."""

    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: bool = False
    extra: dict[str, Any] = {}
    n: int = 1
    """Replies wanted for the one prompt; see `Reply.more`."""
    top_logprobs: int = 0
    """Alternatives wanted for each token, with their log probabilities."""


class ToolSpec(Struct, frozen=True):
    """A tool as a model sees it: `parameters` is a JSON schema of an object."""

    name: str
    description: str
    parameters: dict[str, Any]


class OutputSchema(Struct, frozen=True):
    """The JSON schema a reply's text must satisfy."""

    name: str
    schema: dict[str, Any]


class Request(Struct, frozen=True):
    """One chat request, as an engine gets it."""

    agent: str
    model: str
    messages: tuple[Message, ...]
    sampling: Sampling = Sampling()
    tools: tuple[ToolSpec, ...] = ()
    output: OutputSchema | None = None
    seed: int = 0
    """Below 2**31; derived from the task and the step, so that a repeated run draws the same samples."""


class Usage(Struct, frozen=True, array_like=True):
    """What one step used. `cost` is in US dollars, `requests` counts HTTP requests, retries included.

    `unsure` is the part of `cost` that is a bound and no bill: the most that requests could cost whose outcome nobody
    knows (cut off, timed out, cancelled).
    """

    prompt_tokens: Count = 0
    completion_tokens: Count = 0
    cached_tokens: Count = 0
    reasoning_tokens: Count = 0
    cost: Dollars = 0.0
    requests: Count = 1
    unsure: Dollars = 0.0

    def __add__(self, other: Usage) -> Usage:
        return total((self, other))


def total(usages: Sequence[Usage]) -> Usage:
    """Their sum; of none, that of no request."""
    return Usage(*map(sum, zip(*map(astuple, usages), strict=True))) if usages else Usage(requests=0)


class UsageSum:
    """A sum of very many usages, which is cheap to add to: they are added up some hundreds at a time."""

    __slots__ = ("_added",)

    def __init__(self) -> None:
        self._added: list[Usage] = []

    def add(self, usage: Usage) -> None:
        self._added.append(usage)
        if len(self._added) == 512:
            self._added = [total(self._added)]

    def total(self) -> Usage:
        """Of none, that of no request."""
        return total(self._added)


class Tokens(Struct, frozen=True, omit_defaults=True):
    """What a reply is made of, as far as the server told. The tuples that are not empty are of equal length, one
    item a token, but for `prompt_ids`. A reply may end in tokens that are not in its text."""

    ids: tuple[int, ...] = ()
    texts: tuple[str, ...] = ()
    logprobs: tuple[float, ...] = ()
    """Natural logarithms."""
    top: tuple[dict[str, float], ...] = ()
    """For each token the likeliest alternatives and their log probabilities."""
    prompt_ids: tuple[int, ...] = ()
    """Of several choices only the first has them: the prompt is the same."""


class Choice(Struct, frozen=True):
    """One of several replies to the same prompt."""

    message: Message
    finish: FinishReason = "stop"
    tokens: Tokens | None = None

    @property
    def text(self) -> str:
        return self.message.text


class Reply(Struct, frozen=True):
    """What an engine answered. `model` says who did, `finish` why it stopped, `more` are the replies after the first
    where an agent asked for several (`n`)."""

    message: Message
    usage: Usage = Usage()
    model: str = ""
    finish: FinishReason = "stop"
    tokens: Tokens | None = None
    more: tuple[Choice, ...] = ()

    @property
    def choices(self) -> tuple[Choice, ...]:
        """All replies."""
        return (Choice(self.message, self.finish, self.tokens), *self.more)

    @property
    def text(self) -> str:
        return self.message.text


def user(text: str) -> Message:
    return Message("user", text)


def assistant(text: str) -> Message:
    return Message("assistant", text)


def system(text: str) -> Message:
    return Message("system", text)


def digest(data: bytes) -> bytes:
    """16 bytes of BLAKE2b: collision-resistant, because a collision would answer wrongly in silence."""
    return blake2b(data, digest_size=DIGEST_BYTES).digest()


_encode = msgspec.msgpack.Encoder().encode
