"""What the tests of peers share: a model server that remembers each call, and runs of many processes, to be disturbed."""

from __future__ import annotations

import asyncio
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterable
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeGuard

from weaverant.events import StepEnded, TaskEnded, TaskReopened, TaskStarted
from weaverant.journal import JournalReader
from weaverant.journal.homes import epochs_of, home_of, is_fenced
from weaverant.summary import fold
from weaverant.swarm.places import find_office

WORKFLOWS = """
import os
import time

from weaverant import Agent, Stages, group, reject, workflow

first = Agent("first", prompt="first {{ n }}")
second = Agent("second", prompt="second {{ n }} of {{ said }}")
third = Agent("third", prompt="third {{ n }} {{ part }}")
fourth = Agent("fourth", prompt="fourth of {{ members }} in {{ kind }}")


def saw(reply):
    with open("seen.txt", "a") as seen:
        seen.write(f"{os.getpid()} {time.monotonic()} {reply}\\n")
    return reply


@workflow
async def twice(row):
    said = saw(await first(n=row["n"]))
    if row["n"] % 17 == 16:
        return reject("seventeen")
    if row["n"] % 23 == 22 and not os.path.exists("mended"):
        raise LookupError("to be mended")
    return {**row, "said": saw(await second(n=row["n"], said=said))}


@workflow
async def parted(row):
    if row["n"] % 23 == 22 and not os.path.exists("mended"):
        raise LookupError("to be mended")
    done = saw(await second(n=row["n"], said=saw(await first(n=row["n"]))))
    return [{"n": row["n"], "part": part, "kind": row["n"] % 3, "done": done} for part in range(row["n"] % 4)]


@workflow
async def judged(row):
    return {**row, "judged": saw(await third(n=row["n"], part=row["part"]))}


@group(by="kind")
async def merged(rows):
    rows = sorted(rows, key=lambda row: (row["n"], row["part"]))
    said = saw(await fourth(members=len(rows), kind=rows[0]["kind"]))
    return {"n": rows[0]["n"], "part": len(rows), "said": said, "all": [[row["n"], row["judged"]] for row in rows]}


staged = Stages(parted, judged)
grouped = Stages(parted, judged, merged, judged)
"""

BIG = "a long text " * 8_000
"""Of row 5; it is stored as a blob."""


def results_of(workflow: str, numbers: Iterable[int], *, mended: bool = True) -> list[Any]:
    """What the export of a run over rows with these numbers has to hold, sorted as `exported` sorts."""
    rows = [n for n in numbers if mended or n % 23 != 22]
    if workflow == "twice":
        return _sorted(
            {"n": n, "said": f"<second {n} of <first {n}>>"} | ({"text": BIG} if n == 5 else {})
            for n in rows
            if n % 17 != 16
        )
    parts = [
        {
            "n": n, "part": part, "kind": n % 3, "done": f"<second {n} of <first {n}>>",
            "judged": f"<third {n} {part}>",
        }
        for n in rows
        for part in range(n % 4)
    ]  # fmt: skip
    if workflow == "staged":
        return _sorted(parts)
    groups = [[row for row in parts if row["kind"] == kind] for kind in range(3)]
    return _sorted(
        {
            "n": group[0]["n"], "part": len(group), "said": f"<fourth of {len(group)} in {group[0]['kind']}>",
            "all": [[row["n"], row["judged"]] for row in group], "judged": f"<third {group[0]['n']} {len(group)}>",
        }
        for group in groups
        if group
    )  # fmt: skip


def _sorted(results: Iterable[Any]) -> list[Any]:
    return sorted(results, key=lambda result: json.dumps(result, sort_keys=True))


class Call(NamedTuple):
    """One request, in seconds of `time.monotonic`; `answered` is infinite until then, and where the client left before."""

    key: str
    came: float
    answered: float
    number: int
    """Of the reply: its tokens tell, in the journal too, which request a step is of."""
    pid: int | None
    """Who asked; None where it had ended before anybody looked."""


class CountingModel:
    """An OpenAI-compatible server in a thread of the test. Replies are a function of the last message."""

    def __init__(self, latency: float = 0.05) -> None:
        self.latency = latency
        self.calls: list[Call] = []
        self._numbers = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._server: asyncio.Server

    def __enter__(self) -> Self:
        self._thread.start()
        opening = asyncio.start_server(self._serve, "127.0.0.1", 0, backlog=1024)
        self._server = asyncio.run_coroutine_threadsafe(opening, self._loop).result(5)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1#m"
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(5)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    def forget(self) -> None:
        """Those in flight, too: the clients of an earlier test may have left them."""
        self.calls = []

    async def _close(self) -> None:
        self._server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pid = owner_of(writer.get_extra_info("peername")[1], writer.get_extra_info("sockname")[1])
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                size = next((int(line[15:]) for line in head.split("\r\n") if line.startswith("content-length:")), 0)
                body = json.loads(await reader.readexactly(size) or b"{}")
                if "messages" in body:
                    await self._answer(reader, writer, body, pid)
                else:  # somebody looks what server this is
                    writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    async def _answer(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: dict[str, Any], pid: int | None
    ) -> None:
        number = self._numbers = self._numbers + 1
        text, calls = body["messages"][-1]["content"], self.calls
        call, place = Call(f"{text}|{body.get('seed')}", time.monotonic(), math.inf, number, pid), len(calls)
        calls.append(call)
        await asyncio.sleep(self.latency)
        if not reader.at_eof():
            calls[place] = call._replace(answered=time.monotonic())
        message = {"role": "assistant", "content": f"<{text}>"}
        data = json.dumps({
            "id": "1", "object": "chat.completion", "created": 0, "model": "m",
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": number, "completion_tokens": 1, "total_tokens": number + 1},
        }).encode()  # fmt: skip
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(data))
        writer.write(data)
        await writer.drain()


def owner_of(port: int, to: int) -> int | None:
    """The process of this host whose connection comes from that port of the loopback; None where it has ended. Other
    connections may have the same port, if they go elsewhere than `to`."""
    ends = f"0100007F:{port:04X}", f"0100007F:{to:04X}"
    for _ in range(5):  # the kernel's table is read in parts, and changes meanwhile
        lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()]
        inode = next((words[9] for words in lines if (words[1], words[2]) == ends), "0")
        if inode != "0" and (pid := _holder(f"socket:[{inode}]")) is not None:
            return pid
    return None


def _holder(file: str) -> int | None:
    for entry in filter(str.isdecimal, os.listdir("/proc")):
        with suppress(OSError):
            if "weaverant" in Path(f"/proc/{entry}/cmdline").read_text():
                for number in os.listdir(f"/proc/{entry}/fd"):
                    with suppress(OSError):
                        if os.readlink(f"/proc/{entry}/fd/{number}") == file:
                            return int(entry)
    return None


def write_rows(folder: Path, count: int) -> None:
    (folder / "wf.py").write_text(WORKFLOWS)
    rows = ({"n": n} | ({"text": BIG} if n == 5 else {}) for n in range(count))
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "weaverant.cli", *arguments]


def call(folder: Path, *arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), capture_output=True, text=True, timeout=90, check=False, cwd=folder, input=stdin
    )


begun: list[subprocess.Popen[str]] = []
"""Drivers, to be ended with the test."""


def begin(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """Its output goes into a file: nobody may read a pipe while the test waits."""
    with (folder / "output.txt").open("a") as out:
        driver = subprocess.Popen(
            command(*arguments), stdout=out, stderr=out, stdin=subprocess.DEVNULL, text=True, cwd=folder
        )
    begun.append(driver)
    return driver


def wait_until(true: Callable[[], object], seconds: float = 30.0, what: str = "it") -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, f"{what} did not come true in {seconds:g} s"
        time.sleep(0.01)


def exported(folder: Path, run: str = "out") -> list[Any]:
    """All results, sorted."""
    found = call(folder, "export", run, "--as", "raw", "--out", "-")
    assert found.returncode == 0, found.stderr
    return _sorted(json.loads(line)["result"] for line in found.stdout.splitlines())


def processes(folder: Path) -> dict[int, str]:
    """Pids of all processes of peers and offices whose run lies in the folder, with what they are."""
    found: dict[int, str] = {}
    for entry in os.listdir("/proc"):
        if not entry.isdecimal():
            continue
        with suppress(OSError):
            words = Path(f"/proc/{entry}/cmdline").read_bytes().decode().split("\0")
            here = os.readlink(f"/proc/{entry}/cwd")
            ours = "weaverant.peers" in words and (here == str(folder) or str(folder) in " ".join(words))
            if ours and Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
                found[int(entry)] = words[words.index("weaverant.peers") + 1]
    return found


def peer_pids(run: Path) -> list[int]:
    """Of the peers that have joined and not ended, the eldest first."""
    found: list[int] = []
    for epoch in epochs_of(run):
        with suppress(OSError, ValueError):
            if not is_fenced(home_of(run, epoch)):
                pid = json.loads((home_of(run, epoch) / "lock").read_text())["pid"]
                os.kill(pid, 0)
                found.append(pid)
    return found


def office_pid(run: Path) -> int | None:
    office = find_office(run)
    if office is None:
        return None
    with suppress(OSError):
        if b"office" in Path(f"/proc/{office.pid}/cmdline").read_bytes():
            return office.pid
    return None


def signal_to(pid: int | None, number: int = signal.SIGKILL) -> bool:
    if pid is None:
        return False
    with suppress(ProcessLookupError):
        os.kill(pid, number)
        return True
    return False


@contextmanager
def nothing_left(folder: Path) -> Generator[None]:
    """Around a test: what ended in order has left no process behind."""
    yield
    until = time.monotonic() + 3
    while processes(folder) and time.monotonic() < until:
        time.sleep(0.05)
    for one in begun:
        one.kill()
        one.wait()
    begun.clear()
    left = end_all(folder)
    assert not left, f"processes were left behind: {left}"


def end_all(folder: Path) -> dict[int, str]:
    """Kill what a test has left behind; tells what that was."""
    found = processes(folder)
    for pid in found:
        signal_to(pid)
    return found


def steps_done(run: Path) -> int:
    """Model steps in all journals so far."""
    return JournalReader(run).calls() if (run / "journal").exists() else 0


def balance(run: Path) -> None:
    """`show` of the run as it is now: each row is in one state."""
    summary = fold(run)
    for stage in summary.ledger.stages:
        assert stage.left >= 0, str(stage)


def faults(run: Path, *, left: int = 0) -> list[str]:
    """What is wrong with a run's journals: each task begins and ends once, each step is there once."""
    reader = JournalReader(run)
    begun: Counter[str] = Counter()
    ends: Counter[str] = Counter()
    paid: Counter[Any] = Counter()
    for event in reader.events():
        if isinstance(event, TaskStarted):
            begun[event.task] += 1
        elif isinstance(event, TaskEnded):
            ends[event.task] += 1
        elif isinstance(event, TaskReopened):
            ends[event.task] -= 1
        elif _is_reply(event):
            paid[event.task, event.path, event.fingerprint, event.occurrence] += 1
    found = [f"{task} begins {count} times" for task, count in begun.items() if count != 1]
    found += [f"{task} ends {count} times" for task, count in ends.items() if count != 1 and task in begun]
    found += [f"{step[0]} has a step {count} times" for step, count in paid.items() if count != 1]
    found += [f"{task} ended and never began" for task in ends if task not in begun]
    still = sum(counts.left for counts in reader.counts().values())
    if still != left:
        found.append(f"{still} tasks are left, {left} expected")
    superseded = {task.task for task in reader.tasks() if task.state == "superseded"}
    if not left and (missing := begun.keys() - ends.keys() - superseded):
        found.append(f"{sorted(missing)} never ended")
    return found


def asked_twice(run: Path, calls: list[Call], dead: Collection[int] = ()) -> list[str]:
    """Calls that were paid for and are in no journal, but for those that were in flight when a process died, or stood
    still: `dead` are their pids. What was in flight then no clock can tell: a request may lie in a socket, and a reply
    wait for its disk. So each workflow writes down what it sees; of that nothing may be lost."""
    kept = {event.usage.prompt_tokens for event in JournalReader(run).events() if _is_reply(event)}
    seen = [line.split(maxsplit=2) for line in (run.parent / "seen.txt").read_text().splitlines()]
    found: list[str] = []
    for one in calls:
        if one.number in kept:
            continue
        again = min((each.came for each in calls if each.key == one.key and each.came > one.came), default=math.inf)
        reply = f"<{one.key.partition('|')[0]}>"
        if one.pid not in dead and (one.pid is not None or not dead):
            found.append(f"{one}: its process did not die")
        elif any(int(pid) == one.pid and one.came < float(when) < again for pid, when, what in seen if what == reply):
            found.append(f"{one}: its workflow had seen the reply")
    return found


def _is_reply(event: Any) -> TypeGuard[StepEnded]:
    return isinstance(event, StepEnded) and event.kind == "model" and event.outcome == "reply"
