"""Resuming a large run that was killed: from the command to the first new call, and the memory taken by then.

The finished rows (200 characters, two replies of 256) are written through the journal's writer, one in ten thousand
being left as only started. Then a real process works on, until so many tasks wait for their second reply, and kills
itself. What is timed is `weaverant resume`, from starting the process to its first byte at a server: right after
the kill, when it repairs the journal, some times more, and once when the run's files are not in the page cache.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import report
import workloads

import weaverant
from weaverant import Reply
from weaverant.events import Event, RunOpened, StepEnded, TaskEnded, TaskStarted
from weaverant.journal import SegmentJournal
from weaverant.message import Usage, assistant, digest
from weaverant.row import child_key, row_digest, source_key
from weaverant.rundir import load_config
from weaverant.trace import Texts

HEAD = """
from weaverant import Agent, Stages, workflow
first, second = Agent("first", prompt="{{ question }}"), Agent("second", prompt="{{ answer }}")
"""
ONE = """
@workflow
async def twice(row):
    answer = await first(question=row["question"])
    return {"answer": await second(answer=answer)}
"""
TWO = """
@workflow
async def asks(row):
    return {"answer": await first(question=row["question"])}
@workflow
async def improves(row):
    return {"answer": await second(answer=row["answer"])}
both = Stages(asks, improves)
"""
WORKFLOWS = {"one stage": HEAD + ONE, "two stages": HEAD + TWO}
STRAGGLERS = 10_000
"""One row in so many has only been started."""
GROUP = 500
"""Rows in one group of the journal."""
GOAL_S = 5.0
RUNS = 3


def question(index: int) -> dict[str, str]:
    return {"question": f"{index} {workloads.SHORT_QUESTIONS[index % 512]}"}


def reply(index: int) -> str:
    return f"{index} {workloads.RING[index % 512].content}"


class Story:
    def __init__(self, index: int) -> None:
        self.index = index
        self.key, self.stage, self.texts = source_key(0, index, 0), 0, Texts()

    def events(self, stages: int) -> Iterator[Event]:
        row = question(self.index)
        yield self.start(row)
        if self.index % STRAGGLERS == STRAGGLERS // 2:
            return
        said = {"answer": reply(self.index)}
        yield self.step("first", row, said)
        if stages == 2:
            yield self.end(said)
            parent, self.key, self.stage, self.texts = self.key, child_key(self.key, 0), 1, Texts()
            yield self.start(said, parent)
        better = {"answer": reply(self.index + 7)}
        yield self.step("second", said, better)
        yield self.end(better)

    def start(self, row: dict[str, str], *parents: str) -> Event:
        return TaskStarted(self.key, self.stage, 1.0, row_digest(row, 0), self.texts.pack(row), parents)

    def step(self, name: str, asked: dict[str, str], said: dict[str, str]) -> Event:
        packed, answer = self.texts.pack(asked), self.texts.pack(said["answer"])
        start = (self.key, "", digest(name.encode()), 0, "model", name, "0123456789abcdef", packed, "reply", answer)
        return StepEnded(*start, 0.1, 1.1, 2.0, Usage(60, 64), "m", self.index)

    def end(self, result: dict[str, str]) -> Event:
        return TaskEnded(self.key, self.stage, "done", "", "", self.texts.pack(result), 2.2, 3.0)


async def write_finished(directory: Path, tasks: int, stages: int) -> None:
    journal = SegmentJournal(directory, sync=False)
    journal.append(RunOpened(0, time.time(), ""))
    for index in range(tasks):
        for event in Story(index).events(stages):
            journal.append(event)
        if index % GROUP == 0:
            await journal.flush()
    await journal.close()


class Halting:
    """Answers the first agent, never the second. Once `left` tasks wait for the second, it kills the process."""

    def __init__(self, identity: str, left: int) -> None:
        self.identity = identity
        self.left = left

    async def generate(self, request, ctx) -> Reply:
        if request.agent == "second":
            self.left -= 1
            if not self.left:
                os.kill(os.getpid(), signal.SIGKILL)
            await asyncio.Event().wait()
        return Reply(assistant(reply(ctx.order)), Usage(60, 64), "m")

    async def close(self) -> None:
        pass


def build(folder: Path, kind: str, tasks: int, unfinished: int, port: int) -> Path:
    directory = folder / "run"
    (folder / "flow.py").write_text(WORKFLOWS[kind])
    with (folder / "rows.jsonl").open("wb") as file:
        for index in range(tasks + 2 * unfinished):
            file.write(msgspec.json.encode(question(index)) + b"\n")
    made = weaverant.run(
        folder / "flow.py", folder / "rows.jsonl", models=f"http://127.0.0.1:{port}/v1#m", directory=directory,
        concurrency=unfinished, in_flight=2 * unfinished,
    )  # fmt: skip
    asyncio.run(made.close_engines())
    asyncio.run(write_finished(directory, tasks, len(made.recipe.stages)))
    command = [sys.executable, __file__, "--unfinished", str(unfinished), "--work", str(directory)]
    assert subprocess.run(command).returncode == -signal.SIGKILL
    return directory


def forget(folder: Path) -> None:
    """Take the run and its input out of the page cache."""
    os.sync()
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def resume(directory: Path, port: int) -> tuple[float, float, float]:
    """Seconds from the command to its first request; its CPU seconds and resident MiB by then."""
    command = [sys.executable, "-m", "weaverant.cli", "resume", str(directory), "--quiet"]
    with socket.create_server(("127.0.0.1", port)) as server:
        began = time.perf_counter()
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
            server.settimeout(300)
            connection, _ = server.accept()
            with connection:
                assert connection.recv(65_536)
            took = time.perf_counter() - began
            fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
            pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
            process.kill()
    cpu = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return took, cpu, pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--finished", type=int, default=1_000_000)
    parser.add_argument("--unfinished", type=int, default=10_000)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        engine = Halting(load_config(options.work).identities["*"], options.unfinished)
        weaverant.resume(options.work, models=engine).wait()
        return
    lines, rows = [], []
    for kind in WORKFLOWS:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        with tempfile.TemporaryDirectory() as name:
            directory = build(Path(name), kind, options.finished, options.unfinished, port)
            size = sum(path.stat().st_size for path in (directory / "journal").iterdir()) / 2**20
            os.sync()  # the finished rows were written without: a run's own journal would be on the disk by now
            runs = [resume(directory, port) for _ in range(RUNS)]
            forget(Path(name))
            cold, *_ = resume(directory, port)
        took, (first, cpu, memory) = min(took for took, *_ in runs), runs[0]  # the first repairs what the kill left
        lines.append([kind, size, f"{took:.2f}", f"{first:.2f}", f"{cold:.2f}", f"{cpu:.2f}", memory])
        rows.append(report.row(f"{kind}, to the first new call (s)", took, f"< {GOAL_S:g}", took < GOAL_S))
        rows.append(report.row(f"{kind}, right after the kill (s)", first))
        rows.append(report.row(f"{kind}, not in the page cache (s)", cold))
        rows.append(report.row(f"{kind}, CPU by then (s)", cpu))
        rows.append(report.row(f"{kind}, resident then (MiB)", memory))
    print(f"{options.finished:,} rows finished, {options.unfinished:,} cut off half-way, best of {RUNS}")
    report.table(
        ["resume", "journal MiB", "first call s", "after the kill s", "uncached s", "CPU s", "MiB resident"], lines
    )
    report.finish("bench-resume", rows)


if __name__ == "__main__":
    main()
