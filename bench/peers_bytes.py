"""Bytes on the wire of a conversation whose calls travel: a user, an agent with tools, message sizes as of tau2.

Each task has 8 exchanges, 32 messages: the user says something, the agent calls a tool, gets its result, and answers.
Sizes are drawn from the histogram that Matrix tells of tau2 (arXiv 2511.21686): 31.9, 18.2, 14.5, 11.6, 11.5, 6.6 and
5.7 % of the messages below 32, 64, 128, 256, 512, 1,024 bytes and above, words of a generator without repetitions. The
agent has a policy of 6 kB and ten tools, as tau2's, and the user a scenario of its own; `bare` is without all three, so
that nothing but the conversation is counted. Both roles have a peer of their own, neither of them the row's: each call
goes over a real link as a run with `--spread roles` sends it (`AfarEngine`, `HostedEngines`, loopback TCP), 32 tasks at
once. Bytes are those of both links, both directions, whole frames, until everything is released; TCP/IP's own apart.

The denominators. `sharing off`: the same calls over the same links, told to share nothing (`share=None`): what a link
without offloading takes. `texts only`: over the same links, but each call sends its whole history, in which texts of
512 bytes and more, calls of tools, policy and tools are numbers once they have crossed: offloading as Matrix does it,
which says -20 % of it. `history`: nothing but MessagePack of each call's whole request and of its reply, no frames, no
numbers, no usage.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import secrets
from collections.abc import Awaitable, Callable

import msgspec
import report

from weaverant.engines.scripted import Scripted
from weaverant.message import Message, Reply, Request, Sampling, ToolCall, ToolSpec, Usage, assistant, system, user
from weaverant.protocols import CallContext
from weaverant.swarm import outbox, shared
from weaverant.swarm.link import Link
from weaverant.swarm.listener import Listener, dial
from weaverant.swarm.travel import AfarEngine, HostedEngines

SIZES = ((31.9, 4, 32), (18.2, 32, 64), (14.5, 64, 128), (11.6, 128, 256), (11.5, 256, 512), (6.6, 512, 1024),
         (5.7, 1024, 4096))  # fmt: skip
"""Percent of the messages, and between how many bytes."""
EXCHANGES = 8
OFF, HISTORY = 0.40, 0.25
"""Goals: bytes over those without sharing, and over those of whole histories."""
SAMPLING = Sampling(temperature=0.0)
NEVER = 1 << 30
MATRIX_FROM = 512


def words(rng: random.Random, size: int) -> str:
    """So many bytes of text that was said nowhere else."""
    made: list[str] = []
    length = 0
    while length < size:
        made.append("".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 9))))
        length += len(made[-1]) + 1
    return " ".join(made)[:size]


def drawn(rng: random.Random) -> str:
    _, low, high = rng.choices(SIZES, [share for share, _, _ in SIZES])[0]
    return words(rng, int(low * (high / low) ** rng.random()))


def tools(rng: random.Random) -> tuple[ToolSpec, ...]:
    def spec(number: int) -> ToolSpec:
        fields = {words(rng, 10): {"type": "string", "description": words(rng, 60)} for _ in range(3)}
        return ToolSpec(f"tool_{number}", words(rng, 120), {"type": "object", "properties": fields})

    return tuple(spec(number) for number in range(10))


_rng = random.Random(0)
POLICY = system(words(_rng, 6_000))
TOOLS = tools(_rng)


def answer(request: Request) -> Reply:
    """A text, or for the agent, right after the user spoke, a call of a tool."""
    rng = random.Random(request.seed)
    usage = Usage(sum(len(said.text) for said in request.messages) // 4, 64)
    if request.agent == "agent" and request.messages[-1].role == "user":
        arguments = msgspec.json.encode({"query": drawn(rng)}).decode()
        call = ToolCall(f"call_{rng.getrandbits(48):012x}", f"tool_{rng.randrange(10)}", arguments)
        return Reply(Message("assistant", "", tool_calls=(call,)), usage, "scripted", "tool_calls")
    return Reply(assistant(drawn(rng)), usage, "scripted")


class Counted:
    """An engine, and what whole histories would take."""

    def __init__(self, engine: AfarEngine) -> None:
        self.calls = 0
        self.whole = 0
        self._engine = engine

    async def ask(self, task: str, agent: str, messages: tuple[Message, ...], seed: int, full: bool) -> Message:
        self.calls += 1
        mine = TOOLS if full and agent == "agent" else ()
        request = Request(agent, "m", messages, SAMPLING, mine, seed=seed)
        reply = await self._engine.generate(request, CallContext(task, f"{agent}/{self.calls}", order=self.calls))
        self.whole += len(msgspec.msgpack.encode(request)) + len(msgspec.msgpack.encode(reply.message))
        return reply.message


async def converse(number: int, host: Counted, guest: Counted, full: bool) -> None:
    """One task: `host` has the agent, `guest` the user."""
    rng = random.Random(number)
    task = f"0.{number}.0"
    seen: tuple[Message, ...] = (POLICY,) if full else ()
    own: tuple[Message, ...] = (system(words(rng, 700)),) if full else (user("begin"),)
    for _ in range(EXCHANGES):
        said = (await guest.ask(task, "user", own, rng.getrandbits(31), full)).text
        seen, own = (*seen, user(said)), (*own, assistant(said))
        wish = await host.ask(task, "agent", seen, rng.getrandbits(31), full)
        result = Message("tool", drawn(rng), tool_call_id=wish.tool_calls[0].id)
        seen = (*seen, wish, result)
        told = await host.ask(task, "agent", seen, rng.getrandbits(31), full)
        seen, own = (*seen, told), (*own, user(told.text))


async def measure(tasks: int, at_once: int, full: bool, share: int | None) -> dict[str, float]:
    key = secrets.token_bytes(32)
    hosted = HostedEngines({"m": Scripted(answer, name="scripted")})
    listeners: list[Listener] = []
    links: list[Link] = []
    for name in ("agent", "user"):
        listeners.append(await Listener.open("127.0.0.1", 0, key, name, hosted.serve, share=share))
        links.append(await dial(listeners[-1].address, key, "owner", hosted.serve, share=share))
    host, guest = (Counted(AfarEngine("scripted", "m", lambda link=link: [link])) for link in links)
    before = sum(link.sent + link.received for link in links)
    numbers = iter(range(tasks))

    async def work() -> None:
        for number in numbers:
            await converse(number, host, guest, full)
            for link in links:
                link.release(f"0.{number}.0")

    await asyncio.gather(*(work() for _ in range(at_once)))
    await asyncio.sleep(0.05)  # until the releases are sent
    found = {
        "bytes": (sum(link.sent + link.received for link in links) - before) / tasks,
        "history": (host.whole + guest.whole) / tasks,
        "calls": (host.calls + guest.calls) / tasks,
    }
    for link in links:
        link.close()
    for listener in listeners:
        await listener.close()
    return found


def texts_only(measured: Callable[[], Awaitable[dict[str, float]]]) -> dict[str, float]:
    """With no conversation remembered, and messages shared from the size that texts are."""
    before = outbox.TALK_FROM, outbox.MESSAGE_PART
    outbox.TALK_FROM, outbox.MESSAGE_PART = NEVER, 1  # pyright: ignore
    try:
        return asyncio.run(measured())  # pyright: ignore
    finally:
        outbox.TALK_FROM, outbox.MESSAGE_PART = before  # pyright: ignore


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=200)
    parser.add_argument("--at-once", type=int, default=32)
    given = parser.parse_args()
    lines, rows = [], []
    for kind, full in (("tau2", True), ("bare", False)):

        def measured(share: int | None = shared.SHARE_FROM, full: bool = full) -> Awaitable[dict[str, float]]:
            return measure(given.tasks, given.at_once, full, share)

        ours, off = asyncio.run(measured()), asyncio.run(measured(None))  # pyright: ignore
        texts = texts_only(lambda measured=measured: measured(MATRIX_FROM))
        history = ours["history"]
        for name, took in (
            ("shared, as it is", ours["bytes"]),
            ("texts only", texts["bytes"]),
            ("sharing off", off["bytes"]),
            ("history", history),
        ):
            lines.append([f"{kind}, {name}", took, f"{took / off['bytes']:.1%}", f"{took / history:.1%}"])
        name = f"{kind}/bytes a task over "
        part, whole, text = (ours["bytes"] / below for below in (off["bytes"], history, texts["bytes"]))
        rows.append(report.row(f"{kind}/bytes a task", ours["bytes"], calls=ours["calls"]))
        rows.append(report.row(name + "sharing off", part, f"<= {OFF}", part <= OFF))
        rows.append(report.row(name + "whole histories in MessagePack", whole, f"<= {HISTORY}", whole <= HISTORY))
        rows.append(report.row(name + "whole histories, long texts numbered", text))
    report.table(["a conversation of 32 messages, 24 calls", "bytes a task", "of sharing off", "of history"], lines)
    report.finish("peers-bytes", rows)


if __name__ == "__main__":
    main()
