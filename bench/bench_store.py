"""What a store costs a peer: steps per second that tasks get acknowledged, by where they are acknowledged from.

Each of TASKS tasks waits for a simulated call and appends an event of 1.2 kB, again and again; `slow` stores are a
directory of which each answer takes so long besides, as those of S3 do. A URL as argument is measured as well.

    python bench/bench_store.py [URL]
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from pathlib import Path

from weaverant.events import RowsDone, StepEnded
from weaverant.journal import SegmentJournal
from weaverant.journal.mirror import Mirror
from weaverant.journal.objects import Folder, Objects, open_objects
from weaverant.journal.shelf import begin_store, shelf_of

TASKS, CALL_S, SECONDS = 256, 0.2, 5.0


class Slow:
    """A simulated store: that of another, later."""

    def __init__(self, store: Objects, wait: float) -> None:
        self.puts = 0
        self._store, self._wait = store, wait

    def create(self, name: str, data: bytes) -> bool:
        self.puts += 1
        time.sleep(self._wait)
        return self._store.create(name, data)

    def get(self, name: str) -> bytes:
        time.sleep(self._wait)
        return self._store.get(name)

    def names(self, folder: str) -> list[str]:
        time.sleep(self._wait)
        return self._store.names(folder)


async def measure(run: Path, epoch: int) -> tuple[int, float]:
    """Acknowledged steps, and seconds from append to acknowledgement in the mean."""
    journal, loop, steps, waited = SegmentJournal(run, epoch=epoch), asyncio.get_running_loop(), 0, 0.0
    until = loop.time() + SECONDS

    async def task(number: int) -> None:
        nonlocal steps, waited
        while loop.time() < until:
            await asyncio.sleep(CALL_S)
            done, began = loop.create_future(), loop.time()
            step = StepEnded(
                f"0.{number}.0", "", b"0123456789abcdef", steps, "model", "writer", "a", {"text": "x"}, "reply",
                f"{steps} " + "some words of a reply " * 52, 0.0, 0.2, time.time(),
            )  # fmt: skip
            journal.append(step, lambda done=done: done.set_result(None))
            await done
            steps, waited = steps + 1, waited + loop.time() - began

    async with asyncio.TaskGroup() as tasks:
        for number in range(TASKS):
            tasks.create_task(task(number))
    journal.append(RowsDone(0, time.time()))
    await journal.close()
    return steps, waited / steps


def main() -> None:
    print(f"{TASKS} tasks, calls of {CALL_S} s: at most {TASKS / CALL_S:,.0f} steps/s")
    places: list[tuple[str, str | None, float]] = [
        ("its directory", None, 0.0), ("file://", "file://", 0.0), ("slow, 30 ms", "file://", 0.03),
        ("slow, 100 ms", "file://", 0.1), *((url, url, 0.0) for url in sys.argv[1:]),
    ]  # fmt: skip
    for name, url, wait in places:
        with tempfile.TemporaryDirectory() as folder:
            run = Path(folder) / "run"
            run.mkdir()
            config = json.dumps({"made": time.time()})
            (run / "run.json").write_text(config)
            if url is not None:
                where = f"{url}{folder}/store" if url == "file://" else f"{url}/{time.time_ns()}"
                begin_store(run, where, config.encode())
                shelf = shelf_of(run)
                assert isinstance(shelf, Mirror)
                counted = Slow(open_objects(where) if url != "file://" else Folder(Path(folder) / "store"), wait)
                shelf.objects = counted
            else:
                shelf = shelf_of(run)
                (run / "peers").mkdir()
                counted = None
            steps, waited = asyncio.run(measure(run, shelf.new_epoch()))
            puts = "" if counted is None else f", {counted.puts / SECONDS:,.0f} puts/s"
            print(f"{name:>16}: {steps / SECONDS:>7,.0f} steps/s, acknowledged after {waited * 1e3:>4,.0f} ms{puts}")


if __name__ == "__main__":
    main()
