"""An engine in this process: a small GPT-2 on numpy that answers all concurrent calls in one running batch.

A worker thread decodes and sleeps when there is nothing to say. A reply is a function of the request and its seed
alone, whatever else is in the batch. `tiny` is the model in the package; any folder of its family will do.
"""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count
from pathlib import Path

from jinja2 import TemplateError

from weaverant.engines.gpt2 import model as gpt2
from weaverant.engines.gpt2.blas import threads
from weaverant.engines.gpt2.lanes import Conversation, Lanes
from weaverant.engines.gpt2.model import TinyModel
from weaverant.errors import StepFailed, UserError
from weaverant.message import ImagePart, Message, Reply, Request, Usage, assistant
from weaverant.protocols import CallContext
from weaverant.step import Turn

PACKAGED = Path(__file__).parent / "models"
LANES = 64
"""Conversations in the running batch. More are not faster: the cache of 64 is read from memory at every token."""
SIBLINGS = 16
"""Most calls of one prompt that enter together."""
_NO_MODEL = (
    OSError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    ArithmeticError,
    RecursionError,
    TemplateError,
)
"""What reading a folder may raise that holds something else, or what somebody made to do harm."""


@dataclass(eq=False)
class Call:
    """A call in the engine, from `generate` until its future is set. `gone` once nobody waits for it."""

    conversation: Conversation
    answered: asyncio.Future[None]
    turn: Turn
    came: float = field(default_factory=time.monotonic)
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    gone: bool = False

    def enter(self) -> None:
        """A lane is free for it: from here on it is worked on."""
        self.turn.waiting = False
        self.turn.waited = time.monotonic() - self.came


class EmbeddedEngine:
    """Answers from a small model in this process. Older tasks go first when more calls wait than lanes are free."""

    def __init__(self, model: TinyModel, name: str, digest: str, lanes: int = LANES) -> None:
        self.model = model
        self.name = name
        self._identity = f"embedded:{name}@{digest}"
        self._lanes = Lanes(model, lanes)
        self._waiting: list[tuple[int, int, Call]] = []
        self._running: dict[Conversation, Call] = {}
        self._arrivals = count()
        self._changed = threading.Condition()
        self._closing = False
        self._thread: threading.Thread | None = None

    @staticmethod
    def open(name_or_folder: str, lanes: int = LANES) -> EmbeddedEngine:
        """The packaged model of that name, or the checkpoint folder of that path. `UserError` if it is neither."""
        packaged = PACKAGED / name_or_folder
        folder = packaged if packaged.is_dir() else Path(name_or_folder).expanduser()
        try:
            model = TinyModel.load(folder)
        except _NO_MODEL as error:
            names = ", ".join(sorted(path.name for path in PACKAGED.iterdir()))
            raise UserError(
                f"cannot open the embedded model {name_or_folder!r}: {error!r}. Expected a packaged model ({names}) "
                "or a folder with config.json, model.safetensors, tokenizer.json and tokenizer_config.json"
            ) from error
        return EmbeddedEngine(model, folder.resolve().name, gpt2.digest(folder), lanes)

    @property
    def identity(self) -> str:
        return self._identity

    def refuses(self, request: Request) -> str:
        """See `Selective`."""
        return refusal(request)

    async def generate(self, request: Request, ctx: CallContext) -> Reply:
        """One reply. `StepFailed` of kind `request` or `context` where the model cannot serve the request."""
        conversation = opened(request, self.model)
        call = Call(conversation, asyncio.get_running_loop().create_future(), ctx.turn or Turn())
        with self._changed:
            if self._closing:
                raise StepFailed("connection", f"the embedded engine {self.name!r} is closed")
            call.turn.waiting = True
            heappush(self._waiting, (ctx.order, next(self._arrivals), call))
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name=f"embedded-{self.name}", daemon=True)
                self._thread.start()
            self._changed.notify()
        try:
            await call.answered
        finally:
            call.gone = True
        usage = Usage(len(conversation.prompt), len(conversation.reply), requests=0)
        return Reply(assistant(conversation.text), usage, self.name, conversation.finish or "other")

    async def close(self) -> None:
        """Ends the worker thread. Calls in flight fail with kind `connection`."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)

    def _work(self) -> None:
        """The worker thread: sleep until there are calls, decode until there are none."""
        while self._awaited():
            with threads.one():
                try:
                    while self._turn():
                        pass
                except Exception as error:  # whoever waits must hear of it; the next call starts afresh
                    self._fail(StepFailed("server", f"the embedded engine {self.name!r} failed: {error!r}"))
        self._fail(StepFailed("connection", f"the embedded engine {self.name!r} was closed during the call"))

    def _awaited(self) -> bool:
        """Waits for a call. False when the engine closes."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closing)
            return not self._closing

    def _turn(self) -> bool:
        """Lets calls in and out, then adds one token to each. False when there is nothing left to do."""
        gone = [conversation for conversation, call in self._running.items() if call.gone]
        if gone:
            self._lanes.drop(gone)
            for conversation in gone:
                del self._running[conversation]
        newcomers = self._admitted()
        self._running |= {call.conversation: call for call in newcomers}
        self._lanes.enter([call.conversation for call in newcomers])
        if not self._running or self._closing:
            return False
        deliver([self._running.pop(conversation) for conversation in self._lanes.step()])
        return True

    def _admitted(self) -> list[Call]:
        """The calls that may enter now, oldest task first. Siblings enter together, because they share their work."""
        admitted: list[Call] = []
        with self._changed:
            while siblings := self._siblings():
                if len(siblings) > self._lanes.free - len(admitted):
                    for waiting in siblings:
                        heappush(self._waiting, waiting)
                    break
                admitted += [call for _, _, call in siblings]
        for call in admitted:
            call.enter()
        return admitted

    def _siblings(self) -> list[tuple[int, int, Call]]:
        """Takes from those waiting the first one, and with it those of the same prompt right behind it."""
        siblings: list[tuple[int, int, Call]] = []
        while self._waiting and len(siblings) < SIBLINGS:
            prompt = self._waiting[0][2].conversation.prompt
            if siblings and prompt != siblings[0][2].conversation.prompt:
                break
            waiting = heappop(self._waiting)
            if not waiting[2].gone:
                siblings.append(waiting)
        return siblings

    def _fail(self, error: StepFailed) -> None:
        """Fails every call, waiting or running."""
        with self._changed:
            calls = [call for _, _, call in self._waiting] + list(self._running.values())
            self._waiting.clear()
        self._running.clear()
        self._lanes.clear()
        deliver(calls, error)


def opened(request: Request, model: TinyModel) -> Conversation:
    """The request as a conversation of that model, or `StepFailed` with the reason why it cannot be one."""
    if why := refusal(request):
        raise StepFailed("request", f"{why}; use a model over HTTP for more")
    prompt = model.tokenizer.chat(request.messages)
    room = model.positions - len(prompt)
    if room <= 0:
        raise StepFailed(
            "context",
            f"the prompt is too long: expected fewer than {model.positions} tokens, found {len(prompt)}; "
            "shorten it or use a larger model",
        )
    asked = request.sampling
    return Conversation(
        prompt=prompt,
        limit=room if asked.max_tokens is None else min(room, asked.max_tokens),
        temperature=1.0 if asked.temperature is None else asked.temperature,
        top_p=1.0 if asked.top_p is None else asked.top_p,
        seed=request.seed,
        stop=asked.stop,
    )


def refusal(request: Request) -> str:
    """What the request asks of a small text model that it has not: tools, schemas, images, settings of other servers.
    Empty where it is nothing of that."""
    asked = request.sampling
    wrong: dict[str, bool] = {
        "no tools": bool(request.tools),
        "no output schema": request.output is not None,
        "texts only": any(map(_has_image, request.messages)),
        "no log-probabilities": asked.logprobs or asked.top_logprobs > 0,
        f"n=1, not {asked.n}": asked.n > 1,
        f"no extra sampling settings such as {list(asked.extra)}": bool(asked.extra),
        f"max_tokens above 0, not {asked.max_tokens}": asked.max_tokens is not None and asked.max_tokens <= 0,
        f"temperature 0 or above, not {asked.temperature}": (asked.temperature or 0) < 0,
        f"top_p in (0, 1], not {asked.top_p}": asked.top_p is not None and not 0 < asked.top_p <= 1,
    }
    reasons = [reason for reason, holds in wrong.items() if holds]
    return f"the embedded engine takes {', '.join(reasons)}" if reasons else ""


def deliver(calls: list[Call], error: StepFailed | None = None) -> None:
    """Wakes the callers, with one message to each event loop."""
    for loop in {call.loop for call in calls}:
        there = [call for call in calls if call.loop is loop]
        try:
            loop.call_soon_threadsafe(_answer, there, error)
        except RuntimeError:  # that loop is closed: nobody waits
            continue


def _answer(calls: list[Call], error: StepFailed | None) -> None:
    for call in calls:
        if call.answered.done():
            continue
        if error is None:
            call.answered.set_result(None)
        else:
            call.answered.set_exception(StepFailed(error.kind, error.text))


def _has_image(message: Message) -> bool:
    return not isinstance(message.content, str) and any(isinstance(part, ImagePart) for part in message.content)
