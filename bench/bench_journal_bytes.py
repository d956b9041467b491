"""Bytes of the journal for each task, before compression, beside what the task's words take.

The target counts row, replies, result and prompt texts that were not there before. A result that repeats the replies is
counted there again, so the bytes are also compared with every text counted once: that is what no journal can go below.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

import report
import workloads

from weaverant import Agent, Reply, Request, run, workflow
from weaverant.events import StepEnded, TaskEnded, TaskStarted
from weaverant.journal import BlobStore, JournalReader
from weaverant.journal.segment import EVENTS, Segment, segment_numbers, segment_path
from weaverant.message import assistant, user
from weaverant.protocols import CallContext, Engine
from weaverant.trace import Texts
from weaverant.workflow import Workflow

GOAL = 1.3
TURNS = 100
IN_FLIGHT = 1_000

solver = Agent("solver", prompt="Solve the problem step by step.\n\n{{ question }}")
critic = Agent(
    "critic", prompt="Problem:\n{{ question }}\n\nProposed solution:\n{{ answer }}\n\nFind its first mistake."
)
talker = Agent("talker", prompt="{{ text }}")


@workflow
async def templates(row):
    """Solve, criticise, solve again: the question is in every prompt."""
    answer = await solver(question=row["question"])
    found = await critic(question=row["question"], answer=answer)
    return {"answer": answer, "found": found, "again": await solver(question=found)}


@workflow
async def conversation(row):
    """A hundred turns, each with all that was said before."""
    history, text = [], row["question"]
    for turn in range(TURNS):
        reply = await talker.reply(text=text, history=history)
        history += [user(text), reply.message]
        text = f"{turn}. {workloads.SHORT_QUESTIONS[turn][:100]}"
    return {"last": history[-1].content}


class Speaker:
    """Answers at once, each time otherwise, at the lengths of W1."""

    identity = "speaker"

    async def generate(self, request: Request, ctx: CallContext) -> Reply:
        return Reply(assistant(f"{request.seed} {workloads.TALK[request.seed % 512].content}"), model="speaker")

    async def close(self) -> None:
        pass


class Words:
    """What a task's texts take: by the target's count, and each text once."""

    def __init__(self) -> None:
        self.counted = self.once = 0
        self._seen: set[str] = set()

    def add(self, value: object, new_only: bool = False) -> None:
        for text in strings(value):
            size, new = len(text.encode()), text not in self._seen
            self._seen.add(text)
            self.once += size * new
            self.counted += size * (new or not new_only)

    def end_task(self) -> None:
        self._seen.clear()


def strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from strings(item)


def words_of(directory: Path) -> Words:
    """Of a prompt those words count that were not there before: neither the template's nor those of an earlier text."""
    reader, words = JournalReader(directory), Words()
    blob = BlobStore(directory / "blobs").get
    for _, events in reader.histories(reader.places([task.task for task in reader.tasks()])):
        texts = Texts()
        for event in events:
            match event:
                case TaskStarted():
                    words.add(texts.unpack(event.row, blob))
                case StepEnded():
                    words.add(texts.unpack(event.input, blob), new_only=True)
                    words.add(texts.unpack(event.value, blob))
                case TaskEnded():
                    words.add(texts.unpack(event.value, blob))
        words.end_task()
    return words


def payload_bytes(directory: Path) -> int:
    """Of all events, before compression."""
    total = 0
    for number in segment_numbers(directory / "journal"):
        with Segment(segment_path(directory / "journal", number)) as segment:
            trailer = segment.trailer()
            assert segment.begun() and trailer is not None
            total += sum(len(frame.payload) for frame in segment.frames(end=trailer.events_end) if frame.kind == EVENTS)
    return total


def measure(flow: Workflow, engine: Engine, tasks: int) -> tuple[float, float, float, float]:
    """Bytes of a task: in the journal, on the disk, of words by the target's count, of words once."""
    rows = [{"question": f"{i} {workloads.QUESTIONS[i % 512]}"} for i in range(tasks)]
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "run"
        made = run(flow, rows, models=engine, directory=directory, concurrency=IN_FLIGHT, in_flight=IN_FLIGHT).wait()
        assert made.state == "finished" and made.ledger.stages[0].done == tasks, made.error
        on_disk = sum(path.stat().st_size for path in (directory / "journal").iterdir())
        words = words_of(directory)
        return payload_bytes(directory) / tasks, on_disk / tasks, words.counted / tasks, words.once / tasks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=1_000)
    tasks = parser.parse_args().tasks
    dummy, speaker = workloads.Dummy(), Speaker()
    lines, rows = [], []
    for name, flow, engine, count in (
        ("W1", workloads.w1, dummy, tasks),
        ("W2", workloads.w2, dummy, tasks),
        ("templates", templates, speaker, tasks),
        (f"conversation of {TURNS} turns", conversation, speaker, max(1, tasks // 20)),
    ):
        journal, disk, counted, once = measure(flow, engine, count)
        lines.append([name, *(f"{bytes_:,.0f}" for bytes_ in (counted, once, journal, disk))])
        lines[-1] += [f"{journal / counted:.2f}", f"{journal / once:.2f}"]
        met = journal <= GOAL * counted
        rows.append(report.row(f"{name}: journal over words", journal / counted, f"<= {GOAL}", met))
        rows.append(report.row(f"{name}: journal over words counted once", journal / once))
    head = ["bytes a task", "words", "words once", "journal", "compressed", "journal/words", "journal/words once"]
    report.table(head, lines)
    report.finish("bench-journal-bytes", rows)


if __name__ == "__main__":
    main()
