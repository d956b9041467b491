"""Replies written by hand: a function, a list, or a file. For tests, demonstrations and dry runs.

A run that is resumed asks only for what it lacks, so a script that should survive that is a function of
`(request, request.seed)`; lists answer in the order of the calls and suit short tests.
"""

from __future__ import annotations

import inspect
import runpy
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from types import CodeType
from typing import Any, TypeAlias, cast

import msgspec
from msgspec import Struct

from weaverant.bytecode import compiled
from weaverant.errors import StepFailed, UserError
from weaverant.message import Message, Reply, Request, Usage, assistant, digest
from weaverant.protocols import CallContext

Answer: TypeAlias = str | Message | Reply
"""What a script gives for one call. In a list, a `StepFailed` stands for that failure."""

Function: TypeAlias = Callable[..., Answer | Awaitable[Answer]]
"""`(request)` or `(request, ctx)`, plain or async; it may raise `StepFailed`."""

Script: TypeAlias = Function | str | Sequence[Answer | StepFailed]


class Line(Struct, frozen=True, forbid_unknown_fields=True):
    """One line of a `.jsonl` script: the `reply` to `agent`, or to anyone, when the prompt `contains` this."""

    reply: str | Message
    agent: str | None = None
    contains: str | None = None


class Scripted:
    """An engine that answers as the script says.

    `script` is a function, one reply for every call, a list of replies used in call order, or a mapping from
    agent names to any of these. Usage counts words: whitespace-separated pieces of the prompt and the reply.
    Exceptions other than `StepFailed` are bugs of the script and are not caught here.
    """

    def __init__(
        self, script: Script | Mapping[str, Script], *, name: str = "scripted", identity: str | None = None
    ) -> None:
        self.name = name
        self._identity = identity or f"scripted:{_fingerprint(script).hex()}"
        self._agents: dict[str, _Voice] = {}
        self._anyone: _Voice | None = None
        if isinstance(script, Mapping):
            parts = cast("Mapping[str, Script]", script)
            self._agents = {agent: _Voice(part, agent) for agent, part in parts.items()}
        else:
            self._anyone = _Voice(script, None)

    @classmethod
    def open(cls, spec: str) -> Scripted:
        """`PATH.jsonl` holds lines, the first that fits answers; `PATH.py` holds a function named `reply`."""
        path = Path(spec)
        if not path.is_file():
            raise UserError(
                f"no script at {spec!r}. Expected scripted:PATH.jsonl with lines like "
                '{"agent": "judge", "contains": "2 + 2", "reply": "4"}, '
                "or scripted:PATH.py with a function named `reply`."
            )
        identity = f"scripted:{digest(path.read_bytes()).hex()}"
        function = _function_in(path) if path.suffix == ".py" else _lines_in(path)
        return cls(function, name=path.name, identity=identity)

    @property
    def identity(self) -> str:
        return self._identity

    async def generate(self, request: Request, ctx: CallContext) -> Reply:
        voice = self._agents.get(request.agent, self._anyone)
        if voice is None:
            raise StepFailed(
                "request",
                f"the script has nothing for agent {request.agent!r}; it speaks to {sorted(self._agents)!r}. "
                "Add that agent, or give a function that answers everyone.",
            )
        answer = voice.say(request, ctx)
        if inspect.isawaitable(answer):
            answer = await answer
        return self._reply(request, answer)

    async def close(self) -> None:
        """Nothing is held."""

    def _reply(self, request: Request, answer: Answer) -> Reply:
        if isinstance(answer, Reply):
            return answer
        message = assistant(answer) if isinstance(answer, str) else answer
        if not isinstance(message, Message):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UserError(
                f"the script answered agent {request.agent!r} with {answer!r}; expected a str, a Message or a Reply."
            )
        prompt = sum(len(said.text.split()) for said in request.messages)
        usage = Usage(prompt_tokens=prompt, completion_tokens=len(message.text.split()))
        return Reply(message, usage, self.name, "tool_calls" if message.tool_calls else "stop")


class _Voice:
    """What the script says to one agent: a function, one text for ever, or replies in call order."""

    def __init__(self, script: Script, agent: str | None) -> None:
        self._whose = "the script" if agent is None else f"the script for agent {agent!r}"
        self._function: Function | None = None
        self._takes_context = False
        self._replies: Sequence[Answer | StepFailed] = ()
        self._said = 0
        if isinstance(script, str):
            self._function = _always(script)
        elif callable(script):
            self._function = script
            self._takes_context = _positional(script) >= 2
        else:
            self._replies = tuple(script)

    def say(self, request: Request, ctx: CallContext) -> Answer | Awaitable[Answer]:
        if self._function is not None:
            return self._function(request, ctx) if self._takes_context else self._function(request)
        if self._said >= len(self._replies):
            raise StepFailed(
                "request",
                f"{self._whose} has {len(self._replies)} replies and this was call {self._said + 1}. "
                "Add replies, or give a function.",
            )
        answer = self._replies[self._said]
        self._said += 1
        if isinstance(answer, StepFailed):
            raise StepFailed(answer.kind, answer.text, answer.detail)
        return answer


def _always(text: str) -> Function:
    def reply(request: Request) -> Answer:
        return text

    return reply


def _positional(function: Callable[..., Any]) -> int:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(p.kind in kinds for p in inspect.signature(function).parameters.values())


def _lines_in(path: Path) -> Function:
    lines: list[Line] = []
    decode = msgspec.json.Decoder(Line).decode
    for number, raw in enumerate(path.read_bytes().splitlines(), 1):
        if not raw.strip():
            continue
        try:
            lines.append(decode(raw))
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise UserError(
                f"{path}:{number} is no line of a script: {error}. "
                'Expected {"reply": "...", "agent": optional name, "contains": optional part of the prompt}.'
            ) from None

    def reply(request: Request) -> Answer:
        prompt = "\n".join(said.text for said in request.messages)
        for line in lines:
            if line.agent in (None, request.agent) and (line.contains is None or line.contains in prompt):
                return line.reply
        raise StepFailed(
            "request",
            f"none of the {len(lines)} lines of {str(path)!r} fits agent {request.agent!r} "
            f"with a prompt that ends {prompt[-80:]!r}. Add a line, or a last one with only a reply.",
        )

    return reply


def _function_in(path: Path) -> Function:
    found = runpy.run_path(str(path)).get("reply")
    if not callable(found):
        raise UserError(f"{str(path)!r} has no function named `reply`; expected `def reply(request): return '...'`.")
    return cast(Function, found)


def _fingerprint(script: Any) -> bytes:
    """Equal for equal scripts, in every process. What a closure captured is not seen: pass `identity` then."""
    if isinstance(script, Mapping):
        pairs = cast("Mapping[str, Script]", script).items()
        return digest(b"".join(agent.encode() + b"\0" + _fingerprint(part) for agent, part in sorted(pairs)))
    if callable(script):
        return digest(_source(script))
    if isinstance(script, str):
        return digest(script.encode(errors="surrogatepass"))
    return digest(repr(list(script)).encode(errors="surrogatepass"))


def _source(function: Callable[..., Any]) -> bytes:
    named = function if hasattr(function, "__code__") or inspect.isclass(function) else type(function)
    code: CodeType | None = getattr(function, "__code__", None)
    # The source of a lambda is its whole line, which two lambdas may share.
    also = b"" if code is None or code.co_name != "<lambda>" else compiled(code)
    try:
        return inspect.getsource(named).encode() + also
    except (OSError, TypeError):  # written at a prompt, or built in
        name = f"{named.__module__}.{named.__qualname__}".encode()
        return name if code is None else name + compiled(code)
