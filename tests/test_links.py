"""Links between peers, over real sockets: who may come in, what is bounded, and what happens when the other side dies."""

from __future__ import annotations

import asyncio
import random
import secrets
import socket
import struct
import subprocess
import sys
import time
from typing import Any

import msgspec
import pytest
from msgspec.msgpack import Ext

from linked import KEY, echo, go, pair, until
from weaverant.errors import StepFailed, WeaverantError
from weaverant.swarm import listener as listening
from weaverant.swarm.frames import MOST_FRAME, Asked, Frame, Hello, Split, Told
from weaverant.swarm.keys import MAGIC, Handshake, new_key
from weaverant.swarm.link import Link, LinkLost, Refused, WrongKey
from weaverant.swarm.listener import Listener, dial
from weaverant.swarm.shared import FREED, MESSAGE, MESSAGE_ONCE, REF, SAID, SAID_REF, TALK, TERMS, TEXT


def test_both_sides_ask_tell_and_know_each_other():
    async def test():
        told: asyncio.Queue[Any] = asyncio.Queue()

        async def later(link: Link, kind: str, body: Any) -> Any:
            await asyncio.sleep(0.01)
            return [link.name, kind, body]

        def note(link: Link, kind: str, body: Any) -> Any:
            told.put_nowait((link.name, kind, body))

        async with pair(there=later, here=note) as (ours, theirs):
            assert (ours.name, theirs.name) == ("listener", "dialer")
            assert await ours.ask("who", {"a": [1, None, 2.5, "x"]}) == ["dialer", "who", {"a": [1, None, 2.5, "x"]}]
            theirs.tell("news", {"n": 1})
            assert await told.get() == ("listener", "news", {"n": 1})
            assert await theirs.ask("note", 5) is None
            assert ours.open == theirs.open == 0
            assert ours.sent == theirs.received > 0
            assert theirs.sent == ours.received > 0

    go(test)


def test_what_is_said_in_one_turn_goes_out_in_one_write():
    async def test():
        writes: list[int] = []
        async with pair() as (ours, _):
            transport = ours._transport
            assert transport is not None
            write = transport.write
            ours._transport = type("Counted", (), {"write": lambda _, data: (writes.append(len(data)), write(data))})()
            await asyncio.gather(*(ours.ask("echo", n) for n in range(100)))
            ours._transport = transport
        assert len(writes) == 1

    go(test)


def test_what_the_other_side_raises_refuses_the_ask_alone():
    def picky(link: Link, kind: str, body: Any) -> Any:
        if kind == "known":
            raise WeaverantError("no such thing; expected another")
        if kind == "bug":
            return body["missing"]
        if kind == "no data":
            return object()

        async def fail() -> None:
            raise StepFailed("kind", "late")

        return fail() if kind == "late" else body

    async def test():
        async with pair(there=picky) as (ours, _):
            for kind, text in (
                ("known", "no such thing; expected another"),
                ("late", "kind: late"),
                ("bug", "KeyError: 'missing'"),
                ("no data", "TypeError: Encoding objects of type object is unsupported"),
            ):
                with pytest.raises(Refused) as refused:
                    await ours.ask(kind, {})
                assert str(refused.value) == text
            with pytest.raises(TypeError):
                await ours.ask("fine", object())
            assert await ours.ask("fine", 1) == 1
            assert ours.open == 0

    go(test)


def test_what_is_told_is_served_too_and_its_errors_are_reported():
    async def test():
        heard: list[Any] = []
        reported: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))

        async def serve(link: Link, kind: str, body: Any) -> None:
            await asyncio.sleep(0.01)
            if kind == "bad":
                raise WeaverantError("not so")
            heard.append(body)

        def at_once(link: Link, kind: str, body: Any) -> None:
            raise WeaverantError("never")

        async with pair(there=serve, here=at_once) as (ours, theirs):
            ours.tell("news", 1)
            ours.tell("bad", 2)
            theirs.tell("news", 3)
            await until(lambda: len(reported) == 2 and heard == [1])
            assert sorted(str(context["exception"]) for context in reported) == ["never", "not so"]

    go(test)


def test_only_who_holds_the_key_comes_in():
    async def test():
        served: list[Any] = []
        listener = await Listener.open("127.0.0.1", 0, KEY, "listener", lambda *_: served.append(1), served.append)
        other = new_key()
        with pytest.raises(WrongKey, match="does not hold the key of this run") as wrong:
            await dial(listener.address, other, "stranger", echo)
        assert KEY.hex() not in str(wrong.value) and other.hex() not in str(wrong.value)
        # A dialer that skips the listener's proof and goes on.
        reader, writer = await asyncio.open_connection(*listener.address.split(":"))
        writer.write(MAGIC + bytes(32) + bytes(32) + _frame(Hello("liar", 9), Told("news", 1)))
        heard = await reader.read()
        assert heard == b"" or (len(heard) == len(MAGIC) + 64 and KEY not in heard)
        writer.close()
        # One that sends the listener's own words back.
        reader, writer = await asyncio.open_connection(*listener.address.split(":"))
        writer.write(MAGIC + bytes(32))
        heard = await reader.readexactly(len(MAGIC) + 64)
        writer.write(heard[-32:])
        assert await reader.read() == b""
        writer.close()
        assert served == []
        await listener.close()

    go(test)


def test_proofs_hold_for_their_role_and_their_nonces_alone():
    dialer, listener = Handshake(KEY, True), Handshake(KEY, False)
    greeting = dialer.opening()
    reply = listener.hear(greeting[:7]) + listener.hear(greeting[7:])
    proof = b"".join(dialer.hear(bytes((byte,))) for byte in reply)
    assert dialer.proven and not listener.proven
    assert listener.hear(proof + b"rest") == b""
    assert listener.proven and listener.rest == b"rest"
    replayed = Handshake(KEY, False)
    replayed.hear(greeting)
    with pytest.raises(WrongKey):
        replayed.hear(proof)
    with pytest.raises(WrongKey, match="no peer"):
        Handshake(KEY, True).hear(b"HTTP/1.1 400")
    with pytest.raises(ValueError, match="32 bytes"):
        Handshake(b"short", True)


def _frame(*said: Any) -> bytes:
    frame = Frame()
    for one in said:
        frame.add(one)
    return bytes(frame.take())


async def _proven(listener: Listener) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection of one who holds the key and may now say anything."""
    host, port = listener.address.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    shake = Handshake(KEY, True)
    writer.write(shake.opening())
    writer.write(shake.hear(await reader.readexactly(len(MAGIC) + 64)))
    return reader, writer


def _garbage() -> tuple[list[bytes], list[bytes]]:
    """What is wrong as it stands, and what may be the beginning of something."""
    rng = random.Random(3)
    hello = _frame(Hello("x", 9))
    encode = msgspec.msgpack.encode

    def frame(payload: bytes) -> bytes:
        return struct.pack("<I", len(payload)) + payload

    said = [
        [9, 1], [1, 2], ["x"], [1, "one", "kind", None, ""], [2, 7, None], [3, 7, "no"], [0, "x", 9], [6, 77],
        [4, "k", Ext(REF, b"\5")], [4, "k", Ext(99, b"")], [4, "k", Ext(TEXT, b"\0\0")], [4, "k", Ext(TEXT, b"\0" * 4 + b"\xff")],
        [4, "k", Ext(MESSAGE, b"\0\0\0\0\xc1")], [4, "k", Ext(MESSAGE, b"\0\0\0\0" + encode(["nobody", "x"]))],
        [4, "k", Ext(MESSAGE_ONCE, encode(["user", Ext(TALK, bytes(8) + b"\x90")]))], [4, "k", Ext(SAID, b"\7" + bytes(4))],
        [4, "k", Ext(TERMS, b"\0\0\0\0" + encode([1, 2]))], [8, Ext(FREED, encode([3]))], [4, "k", Ext(SAID_REF, b"")],
        [4, "k", Ext(TALK, b"\0\0\0\0\1\0\0\0\x90")],
    ]  # fmt: skip
    wrong = [
        *(hello + frame(encode([one])) for one in said),
        hello + struct.pack("<I", MOST_FRAME + 1),
        hello + frame(b"\xdd\xff\xff\xff\xff"),
        hello + frame(b"\xdf\xff\xff\xff\xff" * 1_000),
        hello + frame(b"\x91\x93\x04\xa1k" + b"\x91" * 100_000),
        hello + frame(b"\x80"),
        _frame(Told("k", 1)),
        _frame(Hello("x", 0)),
    ]
    noise = [hello + rng.randbytes(200) for _ in range(50)] + [hello + frame(rng.randbytes(60)) for _ in range(200)]
    return wrong, noise


def test_garbage_closes_the_link_and_nothing_else():
    async def test():
        listener = await Listener.open("127.0.0.1", 0, KEY, "listener", echo)
        good = await dial(listener.address, KEY, "good", echo)
        wrong, noise = _garbage()
        for garbage in wrong + noise:
            reader, writer = await _proven(listener)
            writer.write(garbage)
            if garbage not in wrong:
                writer.write_eof()
            try:
                await reader.read()
            except ConnectionResetError:
                pass
            writer.close()
            assert await good.ask("echo", 1) == 1
        for noise in (b"GET / HTTP/1.1\r\n\r\n", b"\0" * 1_000, secrets.token_bytes(100)):
            reader, writer = await asyncio.open_connection(*listener.address.split(":"))
            writer.write(noise)
            try:
                assert await reader.read() == b""
            except ConnectionResetError:
                pass
            writer.close()
        assert await good.ask("echo", 2) == 2
        good.close()
        await listener.close()

    go(test)


def test_a_frame_may_come_in_any_pieces_and_be_cut_in_its_middle():
    said = [Told("k", "x" * size) for size in (0, 5, 300, 70_000, 9)]
    data = b"".join(map(_frame, said)) + _frame(*said)
    rng = random.Random(1)
    for _ in range(30):
        split, at, found = Split(lambda code, data: None), 0, []
        while at < len(data):
            size = rng.choice((1, 3, 4, 1_000, 66_000))
            found += [one for frame in split.feed(data[at : at + size]) for one in frame]
            at += size
        assert found == said * 2

    async def test():
        served: list[Any] = []
        came: asyncio.Future[Link] = asyncio.get_running_loop().create_future()
        listener = await Listener.open(
            "127.0.0.1", 0, KEY, "listener", lambda *asked: served.append(asked[2]), came.set_result
        )
        _, writer = await _proven(listener)
        writer.write(_frame(Hello("x", 9), Told("k", 1)) + _frame(Told("k", "long" * 1_000))[:-1])
        link = await came
        writer.close()
        await link.lost
        assert served == [1]
        await listener.close()

    go(test)


def test_a_half_closed_connection_is_a_lost_link():
    async def test():
        came: asyncio.Future[Link] = asyncio.get_running_loop().create_future()
        listener = await Listener.open("127.0.0.1", 0, KEY, "listener", echo, came.set_result)
        reader, writer = await _proven(listener)
        writer.write(_frame(Hello("x", 9)))
        link = await came
        asked = asyncio.create_task(link.ask("never", None))
        await asyncio.sleep(0)
        writer.write_eof()
        with pytest.raises(LinkLost, match="'x' is down: the other side closed it"):
            await asked
        await reader.read()
        writer.close()
        with pytest.raises(LinkLost):
            await link.ask("late", None)
        link.tell("late", None)
        link.close()
        await listener.close()

    go(test)


def test_handshakes_end_in_time_and_are_few(monkeypatch):
    monkeypatch.setattr(listening, "HANDSHAKE_SECONDS", 0.3)
    monkeypatch.setattr(listening, "MOST_HALF_OPEN", 3)

    async def test():
        listener = await Listener.open("127.0.0.1", 0, KEY, "listener", echo)
        began = time.monotonic()
        silent = [await asyncio.open_connection(*listener.address.split(":")) for _ in range(4)]
        assert await silent[0][0].read() == b"" and time.monotonic() - began < 0.2  # the oldest of one too many
        link = await dial(listener.address, KEY, "good", echo)
        for reader, _ in silent[1:]:
            assert await reader.read() == b""
        assert 0.25 < time.monotonic() - began < 2
        assert await link.ask("echo", 1) == 1
        for _, writer in silent:
            writer.close()
        link.close()
        await listener.close()

    go(test)


def test_who_does_not_answer_is_lost_in_time():
    async def test():
        mute = socket.create_server(("127.0.0.1", 0))  # the kernel takes connections, and nobody speaks
        port = mute.getsockname()[1]
        with pytest.raises(LinkLost, match=r"within 0\.1 s"):
            await dial(f"127.0.0.1:{port}", KEY, "dialer", echo, timeout=0.1)
        mute.close()
        with pytest.raises(LinkLost, match="nobody listens"):
            await dial(f"127.0.0.1:{port}", KEY, "dialer", echo)
        with pytest.raises(ValueError, match="host:port"):
            await dial("nowhere", KEY, "dialer", echo)

    go(test)


CHILD = """
import asyncio, sys
from weaverant.swarm.listener import Listener

async def serve(link, kind, body):
    await asyncio.sleep(body)
    return body

async def main():
    listener = await Listener.open("127.0.0.1", 0, bytes.fromhex(sys.stdin.readline()), "child", serve)
    print(listener.address, flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


def test_kill_9_of_the_other_process_loses_what_it_had():
    command = [sys.executable, "-c", CHILD]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    async def test():
        assert child.stdin is not None and child.stdout is not None
        child.stdin.write(KEY.hex() + "\n")
        child.stdin.flush()
        link = await dial(child.stdout.readline().strip(), KEY, "parent", echo)
        asked = [asyncio.create_task(link.ask("sleep", 30)) for _ in range(50)]
        assert await link.ask("sleep", 0) == 0
        child.kill()
        ends = await asyncio.gather(*asked, return_exceptions=True)
        assert {type(end) for end in ends} == {LinkLost}
        await link.lost
        assert link.open == 0

    try:
        go(test)
    finally:
        child.kill()
        child.communicate()


@pytest.mark.parametrize("window", [1, 8, 1_024])
def test_asks_both_ways_at_once_never_block_each_other(window: int):
    """Bodies far larger than the sockets' buffers, tiny windows, and who answers must itself ask the other side."""
    each = 5_000 if window > 1 else 300
    text = "x" * 3_000

    async def test():
        most = [0]

        async def serve(link: Link, kind: str, body: Any) -> Any:
            most[0] = max(most[0], len(link._serving))
            if kind == "deep" and body[0]:
                return await link.ask("deep", [body[0] - 1, text]) if link.ready else body
            if body[0] % 3 == 0:
                await asyncio.sleep(0)
            return body

        async with pair(there=serve, here=serve, window=window) as (ours, theirs):
            asked = [link.ask("echo", [n, text]) for n in range(each) for link in (ours, theirs)]
            answers = await asyncio.gather(*asked)
            assert [answer[0] for answer in answers] == [n for n in range(each) for _ in range(2)]
            deep = await asyncio.gather(*(link.ask("deep", [5, text]) for _ in range(50) for link in (ours, theirs)))
            assert len(deep) == 100
            assert ours.open == theirs.open == 0
        assert 1 <= most[0] <= window

    go(test)


def test_who_asks_more_than_it_may_is_cut_off():
    async def test():
        came: asyncio.Future[Link] = asyncio.get_running_loop().create_future()

        async def for_ever(*_: Any) -> None:
            await asyncio.sleep(100)

        listener = await Listener.open("127.0.0.1", 0, KEY, "listener", for_ever, came.set_result, window=4)
        _, writer = await _proven(listener)
        writer.write(_frame(Hello("greedy", 9), *(Asked(n, "k", None, "") for n in range(5))))
        link = await came
        await link.lost
        assert link.reason == "it asks more than it may"
        writer.close()
        await listener.close()

    go(test)


def test_asks_wait_while_bytes_do_and_answers_do_not():
    async def test():
        async with pair() as (ours, theirs):
            ours.pause_writing()
            waiting = asyncio.create_task(ours.ask("echo", 1))
            given_up = asyncio.create_task(ours.ask("echo", 2))
            await asyncio.sleep(0)
            assert ours.open == 2 and not ours.ready
            assert await theirs.ask("echo", 3) == 3  # answered by the side that is paused
            assert not waiting.done()
            given_up.cancel()
            await asyncio.sleep(0)
            ours.resume_writing()
            assert await waiting == 1
            assert ours.open == 0

    go(test)


def test_cancelling_an_ask_cancels_its_work_and_gives_its_room_back():
    async def test():
        begun, ended = [0], [0]

        async def work(link: Link, kind: str, body: Any) -> Any:
            begun[0] += 1
            try:
                await asyncio.sleep(body)
            finally:
                ended[0] += 1
            return body

        async with pair(there=work, window=2) as (ours, theirs):
            slow = [asyncio.create_task(ours.ask("work", 100)) for _ in range(2)]
            following = asyncio.create_task(ours.ask("work", 0))
            await until(lambda: begun[0] == 2)
            with pytest.raises(TimeoutError):
                await ours.ask("work", 0, timeout=0.02)  # it waits for room, and is never sent
            assert not following.done() and begun[0] == 2
            slow[0].cancel()
            assert await following == 0
            slow[1].cancel()
            await asyncio.gather(*slow, return_exceptions=True)
            with pytest.raises(TimeoutError):
                await ours.ask("work", 100, timeout=0.05)
            for _ in range(20):  # some of them before their work began
                asked = [asyncio.create_task(ours.ask("work", 100)) for _ in range(2)]
                await asyncio.sleep(0)
                for one in asked:
                    one.cancel()
            await until(lambda: not ours.open and ended[0] == begun[0])
            assert len(theirs._serving) == 0
            assert await ours.ask("work", 0) == 0

    go(test)


def test_a_lost_link_cancels_the_work_for_it():
    async def test():
        stopped = asyncio.Event()

        async def work(*_: Any) -> None:
            try:
                await asyncio.sleep(100)
            finally:
                stopped.set()

        async with pair(there=work) as (ours, theirs):
            asked = asyncio.create_task(ours.ask("work", None))
            await until(lambda: len(theirs._serving) > 0)
            ours.close()
            with pytest.raises(LinkLost, match="closed here"):
                await asked
            await stopped.wait()
            await theirs.lost

    go(test)


def test_what_is_told_before_the_close_arrives():
    async def test():
        told: list[int] = []
        async with pair(there=lambda link, kind, body: told.append(len(body))) as (ours, theirs):
            for _ in range(300):
                ours.tell("news", "x" * 10_000)
            ours.close()
            await theirs.lost
        assert told == [10_000] * 300

    go(test)


def test_what_is_longer_than_a_frame_is_refused_and_the_link_goes_on(monkeypatch):
    monkeypatch.setattr("weaverant.swarm.frames.MOST_SAID", 100_000)

    async def test():
        async with pair(there=lambda link, kind, body: "x" * body) as (ours, _):
            assert len(await ours.ask("long", 99_000)) == 99_000
            with pytest.raises(Refused, match="cannot be said at once"):
                await ours.ask("long", 100_000)
            with pytest.raises(ValueError, match="cannot be said at once"):
                await ours.ask("long", "x" * 100_000)
            assert await ours.ask("long", 1) == "x"

    go(test)
