"""What crosses a link once: nothing is changed, nothing is sent twice while it is held, nothing is kept for ever."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import msgspec
import pytest

from linked import KEY, echo, go, pair, until
from weaverant.message import ImagePart, Message, OutputSchema, Request, Sampling, TextPart, ToolCall, ToolSpec
from weaverant.swarm.frames import UNDECODABLE, Asked, Frame, Split
from weaverant.swarm.inbox import Inbox
from weaverant.swarm.link import Link, Refused
from weaverant.swarm.listener import Listener, dial
from weaverant.swarm.outbox import Outbox
from weaverant.swarm.shared import FREED, TALK, TEXT, Talk, Terms


class Wire:
    """One direction, through bytes."""

    def __init__(self, share_from: int | None = 512) -> None:
        self.outbox, self.inbox = Outbox(share_from), Inbox()
        self._decode = msgspec.msgpack.Decoder(ext_hook=self.inbox.hook).decode
        self.sent = 0

    def say(self, value: Any, owner: str = "") -> Any:
        if owner:
            self.outbox.adopt(owner)
        data = msgspec.msgpack.encode([self.outbox.pack(value, owner), self.outbox.freed()])
        self.sent += len(data)
        return self._decode(data)[0]


LONG = "a text that is long enough " * 40


def test_a_text_is_sent_once_and_read_as_often_as_it_is_said():
    wire = Wire()
    value = {"a": LONG, "b": [LONG, {"c": LONG}, "short", 1, None, 2.5, True], "d": (LONG,)}
    back = {"a": LONG, "b": [LONG, {"c": LONG}, "short", 1, None, 2.5, True], "d": [LONG]}
    assert wire.say(value, "0.1.0") == back
    first = wire.sent
    assert len(LONG) < first < len(LONG) + 100
    assert wire.say(value, "0.2.0") == back
    assert wire.sent - first < 60
    assert wire.outbox.offloaded == 1 and wire.outbox.saved == 7 * len(LONG)


@pytest.mark.parametrize("share_from", [0, None])
def test_off_means_off(share_from: int | None):
    wire = Wire(share_from)
    for _ in range(3):
        assert wire.say([LONG, Message("user", LONG)], "0.1.0") == [LONG, Message("user", LONG)]
    assert wire.sent > 6 * len(LONG) and len(wire.outbox) == len(wire.inbox) == wire.outbox.offloaded == 0


def test_the_threshold_counts_bytes():
    for text, shared in (("x" * 511, 0), ("x" * 512, 1), ("é" * 255 + "x", 0), ("é" * 256, 1), ("\U0001f41c" * 128, 1)):
        wire = Wire()
        assert wire.say([text], "o") == [text]
        assert len(wire.inbox) == shared, text[:3]


def test_a_text_is_held_until_its_last_owner_lets_go():
    wire = Wire()
    wire.say(LONG, "one")
    wire.say(LONG, "two")
    assert wire.outbox.release("one") and not wire.outbox.release("one")
    wire.say(1)
    assert len(wire.outbox) == len(wire.inbox) == 1
    wire.outbox.release("two")
    assert len(wire.outbox) == 0 and len(wire.inbox) == 1
    assert wire.say([LONG + "x"], "three") == [LONG + "x"]  # in the frame that frees the other: never the same number
    wire.outbox.release("three")
    wire.say(1)
    assert len(wire.outbox) == len(wire.inbox) == wire.inbox.held_bytes == wire.outbox.held_bytes == 0
    wire.say(LONG, "nobody adopted"[:0])
    assert len(wire.outbox) == 0


def test_numbers_are_given_again():
    wire = Wire()
    for task in range(1_000):
        assert wire.say([LONG + str(task), str(task) + LONG], f"0.{task}.0") == [LONG + str(task), str(task) + LONG]
        wire.outbox.release(f"0.{task}.0")
    assert wire.outbox.offloaded == 2_000 and wire.outbox._count <= 4 and len(wire.inbox) <= 2


def test_what_could_not_be_sent_is_taken_back():
    wire = Wire()
    wire.say("x" * 600, "o")
    wire.outbox.pack([LONG, "x" * 600, Message("user", LONG)], "o")
    wire.outbox.undo("o")
    talk = Talk(TERMS[0], tuple(Message("user", f"{n}" + LONG) for n in range(4)))
    wire.outbox.pack(talk, "o")
    wire.outbox.undo("o")
    assert wire.say(talk, "o") == talk.messages
    longer = Talk(TERMS[0], (*talk.messages, Message("user", "more")))
    wire.outbox.pack(longer, "o")
    wire.outbox.undo("o")
    assert wire.say(longer, "o") == longer.messages
    assert wire.say([Message("user", LONG), LONG, "x" * 600], "o") == [Message("user", LONG), LONG, "x" * 600]
    wire.outbox.release("o")
    wire.say(1)
    assert len(wire.outbox) == len(wire.inbox) == wire.inbox.held_bytes == 0


def _message(rng: random.Random, texts: list[str]) -> Message:
    def text() -> str:
        return rng.choice(texts)

    content: Any = text() if rng.random() < 0.7 else (TextPart(text()), ImagePart(text()))[: rng.randint(0, 2)]
    calls = tuple(ToolCall(text(), text(), text()) for _ in range(rng.choice((0, 0, 0, 1, 2))))
    return Message(
        rng.choice(("system", "user", "assistant", "tool")),
        content,
        calls,
        rng.choice((None, None, "", text())),
        rng.choice((None, None, text())),
    )


TERMS = [Terms.of(Request(name, "m", ())) for name in "abc"]


def _value(rng: random.Random, texts: list[str], depth: int, histories: list[tuple[Message, ...]]) -> Any:
    """`histories` are of conversations that grow, fork and go back."""
    kind = rng.randrange(8 if depth else 5)
    if depth and rng.random() < 0.3:
        history = rng.choice(histories)
        history = history[: rng.randint(0, len(history))] if rng.random() < 0.2 else history
        history += tuple(_message(rng, texts) for _ in range(rng.randint(0, 3)))
        histories[rng.randrange(3)] = history
        return Talk(rng.choice(TERMS), history)
    if kind < 2:
        return rng.choice(texts)
    if kind == 2:
        return _message(rng, texts)
    if kind == 3:
        return rng.choice((None, True, 0, -5, 2.5, 1 << 40, b"bytes"))
    if kind == 4:
        return ""
    if kind == 5:
        return {rng.choice(texts): _value(rng, texts, depth - 1, histories) for _ in range(rng.randint(0, 3))}
    return [_value(rng, texts, depth - 1, histories) for _ in range(rng.randint(0, 4))]


def _flat(value: Any) -> Any:
    """Lists for tuples and talks."""
    if isinstance(value, Talk):
        return list(value.messages)
    if isinstance(value, dict):
        return {key: _flat(item) for key, item in value.items()}
    return list(map(_flat, value)) if isinstance(value, (list, tuple)) else value


def test_anything_comes_out_as_it_went_in_whoever_holds_it_however_long():
    for seed in range(60):
        rng = random.Random(seed)
        wire = Wire(rng.choice((0, 8, 64, 512)))
        owners: list[str] = []
        histories: list[tuple[Message, ...]] = [()] * 3
        for step in range(120):
            texts = [
                rng.choice("aé\U0001f41c") * rng.choice((0, 1, 7, 8, 60, 600)) + str(rng.randrange(9)) for _ in range(6)
            ]
            value = _value(rng, texts, 3, histories)
            owners.append(rng.choice(("", "one", "two", str(step))))
            assert _flat(wire.say(value, owners[-1])) == _flat(value)
            if rng.random() < 0.3:
                wire.outbox.release(rng.choice(owners))
        for owner in owners:
            wire.outbox.release(owner)
        wire.say(None)
        assert len(wire.outbox) == len(wire.inbox) == wire.inbox.held_bytes == wire.outbox.held_bytes == 0


def test_a_conversation_that_grows_sends_what_is_new():
    wire = Wire()
    history: list[Message] = []
    sizes: list[int] = []
    for turn in range(30):
        history += [Message("user", f"question {turn} " + LONG), Message("assistant", f"answer {turn} " + LONG)]
        before = wire.sent
        assert wire.say(history, "0.0.0") == history
        sizes.append(wire.sent - before)
    assert max(sizes) < 2 * len(LONG) + 500
    # The same words in another's mouth are sent as words no more.
    before = wire.sent
    wire.say([Message("assistant" if said.role == "user" else "user", said.content) for said in history], "0.0.0")
    assert wire.sent - before < 60 * 40


def test_a_talk_says_what_is_new_of_it_alone():
    wire = Wire()
    history = tuple(Message("user", f"{n} " + LONG) for n in range(50))
    sizes: dict[int, int] = {}
    for most in (3, 4, 6, 5, 50, 50):
        before = wire.sent
        assert wire.say(Talk(TERMS[0], history[:most]), "o") == history[:most]
        sizes[most] = wire.sent - before
    assert len(LONG) < sizes[4] < len(LONG) + 60
    assert sizes[5] < 30 and sizes[50] < 30
    forked = (*history[:49], Message("user", "another end"))
    assert wire.say(Talk(TERMS[0], forked), "o") == forked
    assert wire.say(Talk(TERMS[0], history), "o") == history
    assert wire.say(Talk(TERMS[1], history), "o") == history
    assert wire.say(Talk(TERMS[0], history[:2]), "o") == list(history[:2])
    wire.outbox.release("o")
    wire.say(1)
    assert len(wire.outbox) == len(wire.inbox) == 0


def test_the_terms_of_an_agent_are_sent_once():
    tools = (ToolSpec("look", "looks things up", {"type": "object", "properties": {"q": {"type": "string"}}}),)
    request = Request(
        "a",
        "m",
        (),
        Sampling(0.5, None, 9, ("x", "y"), True, {"k": [1]}, 3, 2),
        tools,
        OutputSchema("o", {"type": "x"}),
    )
    terms, wire = Terms.of(request), Wire()
    for owner in ("", "one", "one", "two"):
        came = wire.say([terms], owner)[0]
        assert Terms.of(request).sampling == came.sampling and came.tools == tools and came.output == request.output
        assert (came.agent, came.model) == ("a", "m")
    assert len(wire.inbox) == 1


def test_too_much_goes_as_it_is(monkeypatch):
    monkeypatch.setattr("weaverant.swarm.outbox.MOST_BYTES", 3_000)
    monkeypatch.setattr("weaverant.swarm.inbox.MOST_BYTES", 3_000)
    wire = Wire()
    texts = [f"{n}" * 1_000 for n in range(9)]
    value = [*texts, *(Message("user", text) for text in texts)]
    assert wire.say(value, "o") == value
    assert wire.say(value, "o") == value
    assert len(wire.inbox) == 3 and wire.inbox.held_bytes <= 3_000
    with pytest.raises(ValueError, match="too much"):
        wire.inbox.hook(TEXT, memoryview((100).to_bytes(4, "little") + b"x" * 4_000))
    with pytest.raises(ValueError, match="3 messages are to stay"):
        wire.inbox.hook(TALK, memoryview(b"\x77\0\0\0\3\0\0\0\x90"))
    with pytest.raises(ValueError, match="no conversation"):
        wire.inbox.hook(TALK, memoryview(b"\x77\0\0\0\0\0\0\0\x91\1"))
    with pytest.raises(LookupError):
        wire.inbox.hook(FREED, memoryview(msgspec.msgpack.encode([77])))


def test_flipped_bytes_raise_what_a_link_expects():
    rng, outbox = random.Random(5), Outbox(64)
    outbox.adopt("o")
    frame, histories = Frame(), [()] * 3
    for _ in range(40):
        texts = ["a" * rng.choice((1, 20, 90, 300)) + str(rng.randrange(5)) for _ in range(5)]
        frame.add(Asked(1, "k", outbox.pack([TERMS[0], _value(rng, texts, 3, histories)], "o"), "o"))
    whole = bytes(frame.take())
    fine = 0
    for _ in range(3_000):
        data = bytearray(whole)
        for _ in range(rng.randint(1, 3)):
            data[rng.randrange(4, len(data))] = rng.choice((rng.randrange(256), 0xC7, 0xD4, 0xDC, 0xC1))
        try:
            Split(Inbox().hook).feed(bytes(data))
            fine += 1
        except UNDECODABLE:
            pass
    assert 0 < fine < 2_900


def test_links_share_in_both_directions_until_the_asker_lets_go():
    def serve(link: Link, kind: str, body: Any) -> Any:
        return [body, "answer" + LONG]

    async def test():
        async with pair(there=serve) as (ours, theirs):
            for owner in ("one", "two"):
                for _ in range(3):
                    assert await ours.ask("k", LONG, owner=owner) == [LONG, "answer" + LONG]
            assert ours.sent < len(LONG) + 400 and ours.received < 2 * len(LONG) + 400
            assert len(ours.outbox) == len(theirs.inbox) == 1
            assert len(theirs.outbox) == len(ours.inbox) == 2
            ours.release("one")
            ours.release("two")
            ours.release("never was")
            assert await ours.ask("k", 1) == [1, "answer" + LONG]
            for box in (ours.outbox, ours.inbox, theirs.outbox, theirs.inbox):
                assert len(box) == box.held_bytes == 0
            # An answer that comes after its owner let go is sent as it is.
            assert await ours.ask("k", LONG, owner="three") == [LONG, "answer" + LONG]

    go(test)


def test_an_answer_after_the_release_is_held_by_nobody():
    async def test():
        go_on = asyncio.Event()

        async def serve(link: Link, kind: str, body: Any) -> Any:
            await go_on.wait()
            return "answer" + LONG

        async with pair(there=serve) as (ours, theirs):
            asked = asyncio.create_task(ours.ask("k", LONG, owner="o"))
            await asyncio.sleep(0)
            ours.release("o")
            await until(lambda: len(theirs.inbox) == 0 and len(theirs._serving) > 0)
            assert not theirs.outbox.knows("o")
            go_on.set()
            assert await asked == "answer" + LONG
            assert len(theirs.outbox) == len(ours.inbox) == len(theirs.inbox) == 0

    go(test)


def test_a_side_that_shares_nothing_holds_nothing_on_the_other():
    async def test():
        came: asyncio.Future[Link] = asyncio.get_running_loop().create_future()
        listener = await Listener.open("127.0.0.1", 0, KEY, "listener", echo, came.set_result, share=512)
        link = await dial(listener.address, KEY, "dialer", echo, share=0)
        there = await came
        assert await link.ask("k", LONG, owner="o") == LONG
        link.release("o")
        assert not there.outbox.knows("o") and len(there.outbox) == 0
        assert await there.ask("k", LONG, owner="o") == LONG
        assert len(there.outbox) == len(link.inbox) == 1 and len(link.outbox) == 0
        link.close()
        await listener.close()

    go(test)


def test_an_answer_that_cannot_be_sent_leaves_the_link_in_order():
    def serve(link: Link, kind: str, body: Any) -> Any:
        return [LONG, object()] if kind == "bad" else [LONG]

    async def test():
        async with pair(there=serve) as (ours, _):
            with pytest.raises(Refused, match="type object is unsupported"):
                await ours.ask("bad", 1, owner="o")
            assert await ours.ask("k", 1, owner="o") == [LONG]

    go(test)


def test_an_ask_that_cannot_be_sent_leaves_the_link_in_order():
    async def test():
        async with pair() as (ours, _):
            with pytest.raises(TypeError):
                await ours.ask("k", [LONG, Message("user", LONG), object()], owner="o")
            assert await ours.ask("k", [LONG, Message("user", LONG)], owner="o") == [LONG, Message("user", LONG)]

    go(test)
