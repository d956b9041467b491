"""Worker processes that are none: what `process_step` runs happens on the loop, and may die there or never end.

All but the process and its pipe is the real thing: who gets which worker, what goes through the pipe, what a worker
that died or was given up comes to.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from multiprocessing.reduction import ForkingPickler
from typing import Any, cast

from weaverant.runtime import workers
from weaverant.runtime.workers import Died, Worker, answer, told
from weaverant.testing.world.loop import Endless
from weaverant.testing.world.weaving import Witness


class Memory:
    """A pipe to oneself."""

    def __init__(self) -> None:
        self._sent: deque[bytes] = deque()

    def send(self, obj: Any, /) -> None:
        self._sent.append(bytes(ForkingPickler.dumps(obj)))

    def recv(self) -> Any:
        return cast("Any", ForkingPickler).loads(self._sent.popleft())


class Processes:
    """Those of one life."""

    def __init__(self, witness: Witness, counts: Counter[str]) -> None:
        self.witness = witness
        self.counts = counts
        self.living: set[Worker] = set()
        self.faults: list[str] = []


class SimulatedWorker(Worker):
    """Its function tells its fate to the witness, as nothing else gets out of a process."""

    def __init__(self, processes: Processes) -> None:
        self._processes = processes
        self._endless = False
        processes.living.add(self)

    @property
    def alive(self) -> bool:
        return self in self._processes.living

    def perform(self, call: Any) -> Any:
        if not self.alive:
            raise Died
        if self._endless:
            self._processes.faults.append("stuck: a process got a call while it is at another, which never ends")
            raise Endless
        pipe, witness = Memory(), self._processes.witness
        pipe.send(call)
        answer(pipe)
        fate, witness.fate = witness.fate, ""
        if fate:
            self._processes.counts[fate] += 1
        if fate == "endless process":
            self._endless = True
            raise Endless
        if fate in ("dead process", "process dead at rest"):
            self.end()
        if fate == "dead process":
            raise Died
        return told(pipe)

    def end(self) -> None:
        self._processes.living.discard(self)

    def wait(self) -> None: ...


@contextmanager
def simulated_processes(witness: Witness, counts: Counter[str], cores: int) -> Generator[Processes]:
    """While it lasts workers are these, one for each core."""
    processes = Processes(witness, counts)
    before = workers.Worker, workers.cores
    setattr(workers, "Worker", partial(SimulatedWorker, processes))  # noqa: B010
    setattr(workers, "cores", lambda: cores)  # noqa: B010
    try:
        yield processes
    finally:
        for name, value in zip(("Worker", "cores"), before, strict=True):
            setattr(workers, name, value)
