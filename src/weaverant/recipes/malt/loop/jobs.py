"""Trainings that do not wait for each other, several at once, each a `weaverant train` of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from typing import IO, NamedTuple

from weaverant.errors import UserError, WeaverantError
from weaverant.recipes.malt.loop.processes import Leashed, last_words
from weaverant.train.watch import Say

LOOK_EVERY = 0.2
"""Seconds between looks at whether a process has ended."""

TOLD = ("plan: ", "going on", "step ", "trained ", "warning: ", "weaverant: ")
"""What lines of a training begin with that are worth a line here; all of them are in its log."""

BAD_USAGE = 2


class Job(NamedTuple):
    """One training. `after` names the jobs whose weights it begins with."""

    name: str
    arguments: list[str]
    """Of `weaverant`."""
    log: Path
    after: tuple[str, ...] = ()

    @property
    def command(self) -> list[str]:
        return [sys.executable, "-m", "weaverant", *self.arguments]


def run_jobs(jobs: Sequence[Job], at_once: int, say: Say) -> None:
    """Run them all, `at_once` at a time, in their order as far as their `after` lets them. Those in `after` that are
    not among the jobs have been done before. The first to fail ends all others: `UserError` or `WeaverantError` with
    its words. However this is left, no process stays behind."""
    waiting, running, lines = list(jobs), dict[str, Running](), Queue[tuple[str, str]]()
    try:
        while waiting or running:
            unfinished = {job.name for job in waiting} | running.keys()
            for job in [one for one in waiting if not unfinished & set(one.after)][: at_once - len(running)]:
                waiting.remove(job)
                running[job.name] = Running(job, lines)
            _tell(lines, say)
            for name, one in [(name, one) for name, one in running.items() if one.process.ended]:
                one.finish()
                del running[name]
                _tell(lines, say)
                _check(one.job, one.process.end())
    finally:
        for one in running.values():
            one.process.end()
            one.finish()


class Running:
    """A job's process, and a thread that reads what it says into the log and the queue."""

    def __init__(self, job: Job, lines: Queue[tuple[str, str]]) -> None:
        self.job = job
        job.log.parent.mkdir(parents=True, exist_ok=True)
        self.process = Leashed(job.command, subprocess.PIPE)
        assert self.process.process.stdout is not None, "a pipe was asked for"
        self._reader = Thread(target=self._read, args=(self.process.process.stdout, lines), daemon=True)
        self._reader.start()

    def finish(self) -> None:
        """After the process: all that it said is in the queue."""
        self._reader.join()

    def _read(self, said: IO[bytes], lines: Queue[tuple[str, str]]) -> None:
        with said, self.job.log.open("ab") as log:
            for line in said:
                log.write(line)
                log.flush()
                text = line.decode(errors="replace").rstrip()
                if text.startswith(TOLD):
                    lines.put((self.job.name, text))


def _tell(lines: Queue[tuple[str, str]], say: Say) -> None:
    """What was said until now; waits a moment for it."""
    try:
        name, text = lines.get(timeout=LOOK_EVERY)
        while True:
            say(f"{name}: {text}")
            name, text = lines.get_nowait()
    except Empty:
        pass


def _check(job: Job, code: int) -> None:
    if code == 0:
        return
    words = last_words(job.log)
    if code == BAD_USAGE:
        raise UserError(f"{job.name} could not be trained:\n{words}")
    how = f"by signal {code - 128}" if code > 128 else f"with code {code}"
    raise WeaverantError(f"{job.name} ended {how}; its last lines, of {job.log}:\n{words}\nThe same command goes on")
