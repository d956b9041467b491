"""A chat completion that comes as a stream of events, gathered into what it would be in one piece.

`feed` takes the pieces as they come and never raises; `end` says what they amount to.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import msgspec
from msgspec import Struct

from weaverant.engines.http.chat.completion import (
    Call,
    Completion,
    Function,
    Logprobs,
    Piece,
    Said,
    Spent,
    Spoken,
    Token,
    arguments_text,
    text_of,
    thoughts,
)
from weaverant.engines.http.chat.sse import Event, Events

DONE = b"[DONE]"


class Delta(Struct):
    """What an event adds to one choice. Some servers end with the whole `message`; it adds nothing."""

    index: int | None = None
    delta: Said | None = None
    finish_reason: str | None = None
    logprobs: Logprobs | None = None
    token_ids: list[int] | None = None
    error: Any = None


class Chunk(Struct):
    choices: list[Delta] | None = None
    usage: Spent | None = None
    model: str | None = None
    prompt_token_ids: list[int] | None = None
    error: Any = None
    object: str | None = None


class Stream:
    """One answer. `raw` is what came before its first event: all of it, where a server does not know streams."""

    def __init__(self) -> None:
        self.failed: bytes | None = None
        """The data of an event that tells an error."""
        self.garbled: Exception | None = None
        """Why an event could not be read. What comes after it is not looked at."""
        self.begun = False
        """An event has come."""
        self._events = Events()
        self._raw: list[bytes] = []
        self._done = False
        self._choices: defaultdict[int, _Gathered] = defaultdict(_Gathered)
        self._whole = Completion()

    def feed(self, piece: bytes) -> None:
        if not self.begun:
            self._raw.append(piece)
        self._take(self._events.feed(piece))

    @property
    def raw(self) -> bytes:
        return b"".join(self._raw)

    @property
    def settled(self) -> bool:
        """Nothing that belongs to the reply can still be missing, whatever becomes of the connection."""
        return self._done or (self._finished and self._whole.usage is not None)

    @property
    def spoke(self) -> bool:
        """A part of the reply has come, so the server may bill it."""
        return bool(self._choices)

    def end(self) -> Completion | None:
        """The completion, once the stream has ended; None if it ended too early: before `[DONE]`, and with a choice
        that has no finish reason."""
        garbled = self.garbled
        self._take(self._events.end())
        self.garbled = garbled  # the event that a stream was cut off in is not its server's fault
        if not (self._done or self._finished):
            return None
        self._whole.choices = [gathered.spoken(index) for index, gathered in sorted(self._choices.items())]
        return self._whole

    @property
    def _finished(self) -> bool:
        return bool(self._choices) and all(choice.finish_reason for choice in self._choices.values())

    def _take(self, events: list[Event]) -> None:
        for event in events:
            if not self.begun:
                self.begun = True
                self._raw.clear()
            if self._done or self.failed is not None or self.garbled is not None:
                return
            data = event.data.strip()
            if data == DONE:
                self._done = True
                return
            if data:  # else a sign of life
                self._read(event)

    def _read(self, event: Event) -> None:
        try:
            chunk = _decode(event.data)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            if event.kind == b"error":
                self.failed = event.data
            else:
                self.garbled = error
            return
        if chunk.error is not None or chunk.object == "error" or event.kind == b"error":
            self.failed = event.data
            return
        whole = self._whole
        whole.usage = chunk.usage or whole.usage
        whole.model = whole.model or chunk.model
        whole.prompt_token_ids = whole.prompt_token_ids or chunk.prompt_token_ids
        for position, delta in enumerate(chunk.choices or ()):
            self._choices[position if delta.index is None else delta.index].add(delta)


class _Gathered:
    """One choice so far."""

    def __init__(self) -> None:
        self.finish_reason: str | None = None
        self._error: Any = None
        self._texts: defaultdict[str, list[str]] = defaultdict(list)
        self._calls: list[_Called] = []
        self._latest: dict[int | None, _Called] = {}
        """By index, the call that began last."""
        self._named: dict[tuple[int | None, str], _Called] = {}
        """By index and id."""
        self._tokens: list[Token] = []
        self._ids: list[int] = []

    def add(self, delta: Delta) -> None:
        self.finish_reason = delta.finish_reason or self.finish_reason
        self._error = delta.error or self._error
        if delta.logprobs is not None:
            self._tokens += delta.logprobs.content or ()
        self._ids += delta.token_ids or ()
        said = delta.delta
        if said is None:
            return
        for field, text in (
            ("content", text_of(said.content)),
            ("refusal", said.refusal),
            ("reasoning_content", said.reasoning_content),
            ("reasoning", said.reasoning),
            ("details", thoughts(said.reasoning_details)),
        ):
            if text:
                self._texts[field].append(text)
        for call in said.tool_calls or ():
            self._called(call)

    def spoken(self, index: int) -> Spoken:
        texts = {field: "".join(parts) for field, parts in self._texts.items()}
        said = Said(
            texts.get("content"),
            texts.get("refusal"),
            [called.call() for called in sorted(self._calls, key=_index)],
            texts.get("reasoning_content"),
            texts.get("reasoning"),
            [Piece(texts["details"])] if "details" in texts else None,
        )
        return Spoken(said, index, self.finish_reason, Logprobs(self._tokens), self._ids, self._error)

    def _called(self, call: Call) -> None:
        """A piece belongs to the call of its index, unless it brings another id: some servers count them all 0.
        Without an index it begins a call if it has an id, else it goes on with the last."""
        known = self._known(call)
        if known is None:
            known = self._latest[call.index] = _Called(call)
            self._calls.append(known)
        else:
            known.add(call)
        if known.id:
            self._named[known.index, known.id] = known

    def _known(self, call: Call) -> _Called | None:
        """The call that this is a piece of."""
        if call.index is None:
            return self._calls[-1] if self._calls and not call.id else None
        latest = self._latest.get(call.index)
        if latest is None or not latest.id or not call.id:
            return latest
        return self._named.get((call.index, call.id))


def _index(called: _Called) -> int:
    """Calls may begin in any order; those without an index, or with the same, stay as they came."""
    return called.index or 0


class _Called:
    """One tool call so far."""

    def __init__(self, call: Call) -> None:
        self.index = call.index
        self.id: str | None = None
        self._name: str | None = None
        self._arguments: list[str] = []
        self.add(call)

    def add(self, call: Call) -> None:
        self.id = self.id or call.id
        if call.function is not None:
            self._name = self._name or call.function.name
            if call.function.arguments is not None:
                self._arguments.append(arguments_text(call.function.arguments))

    def call(self) -> Call:
        return Call(Function(self._name, "".join(self._arguments) if self._arguments else None), self.id)


_decode = msgspec.json.Decoder(Chunk).decode
