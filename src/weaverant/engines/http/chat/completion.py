"""A chat completion as servers write it, whole or gathered from a stream, and the reply it amounts to.

Unknown, absent and null fields are tolerated. Reasoning is read where the server keeps it apart; what stands in the
text itself, as in `<think>...</think>`, is left there.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import astuple

from weaverant.message import Choice, FinishReason, Message, Reply, Tokens, ToolCall, Usage

MOST_TOKENS, MOST_COST = 10**9, 1e6
"""Of one reply, in tokens and dollars. Sums over a billion rows still fit the journal's 64 bits."""


class Function(Struct):
    name: str | None = None
    arguments: str | dict[str, Any] | None = None


class Call(Struct):
    """`index` says which call a piece of a stream belongs to."""

    function: Function | None = None
    id: str | None = None
    index: int | None = None


class Piece(Struct):
    """A part of a content that is a list, or of reasoning that is one (OpenRouter's `reasoning_details`)."""

    text: str | None = None
    summary: str | None = None


class Said(Struct):
    """A message, or in a stream the piece of one."""

    content: str | list[Piece] | None = None
    refusal: str | None = None
    tool_calls: list[Call] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    reasoning_details: list[Piece] | None = None


class Likely(Struct):
    token: str
    logprob: float | None = None


class Token(Likely):
    top_logprobs: list[Likely] | None = None


class Logprobs(Struct):
    content: list[Token] | None = None


class Spoken(Struct):
    """One choice. `token_ids` is vLLM's, `error` OpenRouter's for a provider that broke off."""

    message: Said
    index: int | None = None
    finish_reason: str | None = None
    logprobs: Logprobs | None = None
    token_ids: list[int] | None = None
    error: Any = None


class PromptDetails(Struct):
    cached_tokens: int | None = None


class CompletionDetails(Struct):
    reasoning_tokens: int | None = None


class Spent(Struct):
    """`prompt_cache_hit_tokens` is DeepSeek's, `cost` OpenRouter's, in dollars. What `total_tokens` has beyond the
    other two is Google's reasoning, which is billed as output."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    total_tokens: int | None = None
    prompt_tokens_details: PromptDetails | None = None
    completion_tokens_details: CompletionDetails | None = None
    prompt_cache_hit_tokens: int | None = None
    cost: float | None = None


class Completion(Struct):
    choices: list[Spoken] | None = None
    usage: Spent | None = None
    model: str | None = None
    prompt_token_ids: list[int] | None = None


def read_plain(completion: Completion) -> Reply | None:
    """As `read`, of the most common kind, one text and nothing else; None for any other."""
    choices = completion.choices
    if choices is None or len(choices) != 1 or completion.prompt_token_ids:
        return None
    one = choices[0]
    said = one.message
    text = said.content
    if type(text) is not str or any(astuple(said)[1:]) or one.logprobs or one.token_ids or one.error is not None:
        return None
    finish = _FINISHES.get(one.finish_reason, "other")
    return Reply(Message("assistant", text), _usage(completion.usage), completion.model or "", finish)


def read(completion: Completion) -> Reply | None:
    """The reply; None if there are no choices."""
    spoken = completion.choices or []
    if len(spoken) > 1:
        spoken = [one for _, one in sorted(enumerate(spoken), key=_place)]
    prompt = tuple(completion.prompt_token_ids or ())
    choices = [_choice(one, () if n else prompt) for n, one in enumerate(spoken)]
    if not choices:
        return None
    first, *more = choices
    usage, model = _usage(completion.usage), completion.model or ""
    return Reply(first.message, usage, model, first.finish, first.tokens, tuple(more))


def told(reply: Reply) -> bool:
    """Whether a reply says what it used. Some servers tell nothing, nonsense, or nothing in streams."""
    usage = reply.usage
    if usage.cost or (usage.prompt_tokens > 0 and usage.completion_tokens > 0):
        return True
    silent = not any(_words(choice.message) for choice in reply.choices)
    return silent and usage.prompt_tokens > 0


def _words(message: Message) -> bool:
    return bool(message.content or message.tool_calls or message.reasoning)


def arguments_text(arguments: str | dict[str, Any] | None) -> str:
    """A call's arguments as JSON text: some servers send the object itself."""
    return arguments if isinstance(arguments, str) else msgspec.json.encode(arguments or {}).decode()


def text_of(content: str | list[Piece] | None) -> str:
    return content if isinstance(content, str) else "".join(piece.text or "" for piece in content or ())


def thoughts(details: list[Piece] | None) -> str:
    return "".join(piece.text or piece.summary or "" for piece in details or ())


_FINISHES: dict[str | None, FinishReason] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "content_filter": "content_filter",
}


def _place(numbered: tuple[int, Spoken]) -> int:
    position, spoken = numbered
    return position if spoken.index is None else spoken.index


def _choice(spoken: Spoken, prompt: tuple[int, ...]) -> Choice:
    said = spoken.message
    calls = tuple(
        ToolCall(call.id or f"call_{n}", called.name or "", arguments_text(called.arguments))
        for n, call in enumerate(said.tool_calls or ())
        if (called := call.function) is not None
    )
    text = text_of(said.content)
    finish = _FINISHES.get(spoken.finish_reason, "other")
    if said.refusal and not text:
        text, finish = said.refusal, "content_filter"
    reasoning = said.reasoning_content or said.reasoning or thoughts(said.reasoning_details) or None
    return Choice(Message("assistant", text, calls, None, reasoning), finish, _tokens(spoken, prompt))


def _tokens(spoken: Spoken, prompt: tuple[int, ...]) -> Tokens | None:
    """Where a server's lists differ in length nothing says which items belong together: then only the ids are kept."""
    told = (spoken.logprobs.content if spoken.logprobs else None) or []
    ids = tuple(spoken.token_ids or ())
    if ids and len(told) != len(ids):
        told = []
    if not (told or ids or prompt):
        return None
    logprobs = tuple(token.logprob for token in told if token.logprob is not None)
    return Tokens(
        ids,
        tuple(token.token for token in told),
        logprobs if len(logprobs) == len(told) else (),
        tuple(map(_likeliest, told)) if any(token.top_logprobs for token in told) else (),
        prompt,
    )


def _likeliest(token: Token) -> dict[str, float]:
    """Pieces of a character may look alike as text: the likeliest stands for them."""
    found: dict[str, float] = {}
    for other in token.top_logprobs or ():
        if other.logprob is not None:
            found[other.token] = max(other.logprob, found.get(other.token, other.logprob))
    return found


def _usage(spent: Spent | None) -> Usage:
    if spent is None:
        return Usage()
    asked, said, cached = _count(spent.prompt_tokens), _count(spent.completion_tokens), 0
    total, prompt, completion = spent.total_tokens, spent.prompt_tokens_details, spent.completion_tokens_details
    if total and total != asked + said:
        said = max(said, _count(total) - asked)
    if prompt is not None:
        cached = _count(prompt.cached_tokens)
    if not cached and spent.prompt_cache_hit_tokens:
        cached = _count(spent.prompt_cache_hit_tokens)
    reasoning = 0 if completion is None else _count(completion.reasoning_tokens)
    cost = spent.cost
    return Usage(asked, said, cached, reasoning, cost if cost is not None and 0.0 < cost <= MOST_COST else 0.0)


def _count(tokens: int | None) -> int:
    """What cannot be true counts as not told: it would spoil all sums, or give money back to a budget."""
    return tokens if tokens is not None and 0 < tokens <= MOST_TOKENS else 0
