"""The processes of a run on a Ray cluster. Ray places, starts and watches them, and does nothing else.

Each is a child of a small actor, not the actor itself: it has signals, an event loop and an exit code of its own, last
words in a log of its own, and none of Ray's threads. It ends with its actor, whatever ends that, as its standard input
does. Actors are detached: when the driver is killed, the office tells the peers to stop in order, and an actor whose
process has ended ends itself. Through Ray go names, paths, numbers and the plan: no row, no text, no secret.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from weaverant.errors import UserError, WeaverantError
from weaverant.journal.shelf import store_of
from weaverant.swarm.crew import Ended, Kind, command, tail
from weaverant.swarm.neighbours import role
from weaverant.swarm.office import Plan
from weaverant.swarm.rays import NAMESPACE, Cluster, last_line, ray

PATIENCE_S = 5.0
"""Seconds that Ray has to end what is left at the end."""
LINGER_S = 5.0
"""Seconds that an actor lives on after its process, to tell how that ended."""


class Watcher:
    """The actor: starts a process of ours on its node, and tells how it ends."""

    def __init__(self, kind: Kind, run: str, log: str, folder: str, given: str, store: str) -> None:
        """`log` is where it speaks to. `given` is JSON: the office's plan, or a peer's labels. `folder` is where the
        driver runs: relative paths hold there, if it is there. Of a run in a `store` each node has a directory of its
        own, at the same path; else `WeaverantError` where there is none."""
        host = ray().util.get_node_ip_address()
        if store:
            Path(log).parent.mkdir(parents=True, exist_ok=True)
        elif not Path(run).is_dir():
            raise WeaverantError(f"the node {host} has no {run!r}: a run's directory must be shared by all nodes")
        labels: list[str] = json.loads(given) if kind == "peer" else []
        words = command(kind, Path(run), host, labels, store if kind == "peer" else "")
        self._log = Path(log)
        with self._log.open("wb") as out:
            self._process = subprocess.Popen(
                [*words, "--leashed"], stdin=subprocess.PIPE, stdout=out, stderr=out,
                cwd=folder if Path(folder).is_dir() else None, start_new_session=True,
            )  # fmt: skip
        assert self._process.stdin is not None
        if kind == "office":
            with suppress(OSError):  # it has ended already, and is found so
                self._process.stdin.write(given.encode() + b"\n")
                self._process.stdin.flush()
        threading.Thread(target=self._end, daemon=True).start()

    def began(self) -> str:
        """Host and process id."""
        return f"{socket.gethostname()} {self._process.pid}"

    def over(self) -> str:
        """The exit code, once there is one, and the last line that the process has said."""
        code = self._process.wait()
        return f"{code} {''.join(tail(self._log).splitlines()[-1:])}"

    def _end(self) -> None:
        """Nobody may be there any more who would."""
        self._process.wait()
        time.sleep(LINGER_S)
        os._exit(0)


class _Actor(NamedTuple):
    """Ray's handle, and answers that are awaited."""

    handle: Any
    began: Any
    over: Any
    node: str


class _Seat:
    """A process, from the wish for it to its end."""

    def __init__(self, kind: Kind, log: Path, labels: tuple[str, ...]) -> None:
        self.kind: Kind = kind
        self.log = log
        self.labels = labels
        self.actor: Future[_Actor]
        self.since = time.monotonic()
        self.host, self.pid = "", 0
        self.killed = False


class RayCrew:
    """The office is on the driver's node, a peer where the fewest are. The labels of a peer are custom resources: it is
    on a node that offers them all."""

    def __init__(self, cluster: Cluster, run: Path, name: str) -> None:
        """`name` tells the run's actors from those of others."""
        self._cluster = cluster
        self._run = run.resolve()
        self._prefix = f"weaverant-{name}-"
        self._seats: list[_Seat] = []
        self._started = 0
        self._number: int | None = None
        self._offered = {label for node in cluster.alive() for label in node["Resources"]}

    def start_office(self, plan: Plan) -> None:
        self._start("office", (), msgspec.json.encode(plan).decode())

    def start_peer(self, labels: Sequence[str]) -> None:
        """`UserError` where the cluster had no node for it when the run began."""
        missing = [label for label in _resources(labels) if label not in self._offered]
        if missing:
            raise UserError(
                f"no node of the Ray cluster offers {missing[0]!r}: start one with "
                f"`ray start --address=... --resources='{json.dumps({missing[0]: 1})}'`"
            )
        self._start("peer", tuple(labels), json.dumps(list(labels)))

    def ended(self) -> list[Ended]:
        """Never waits for Ray."""
        seen = [(seat, self._end_of(seat)) for seat in self._seats]
        self._seats = [seat for seat, end in seen if end is None]
        for seat, end in seen:
            if end is not None:
                self._kill(seat)
        return [end for _, end in seen if end is not None]

    @property
    def alive(self) -> int:
        return sum(seat.kind == "peer" for seat in self._seats)

    def kill_office(self) -> None:
        """Ray may not hear of it, or late: for us it has ended."""
        for seat in self._seats:
            if seat.kind == "office":
                seat.killed = True

    def kill(self) -> None:
        for seat in self._seats:
            self._kill(seat)
        self._seats = []
        with suppress(TimeoutError):
            self._cluster.errands.do(lambda: None).result(timeout=PATIENCE_S)

    def _start(self, kind: Kind, labels: tuple[str, ...], given: str) -> None:
        self._started += 1
        logs = self._run / "peers" / "log"
        logs.mkdir(parents=True, exist_ok=True)
        log = logs / f"{socket.gethostname()}-{os.getpid()}-{self._started}.{kind}"
        seat = _Seat(kind, log, labels)
        seat.actor = self._cluster.errands.do(lambda: self._begin(seat, given))
        self._seats.append(seat)

    def _begin(self, seat: _Seat, given: str) -> _Actor:
        if self._number is None:
            self._number = self._sweep()
        self._number += 1
        node = self._place(seat)
        # not `soft`: for an actor that asks for no processor Ray takes that for no wish at all
        strategy = ray().util.scheduling_strategies.NodeAffinitySchedulingStrategy(node, soft=False)
        handle = (
            ray().remote(Watcher)
            .options(
                name=f"{self._prefix}{seat.kind}-{self._number}", namespace=NAMESPACE, lifetime="detached",
                max_restarts=0, max_task_retries=0, num_cpus=0, scheduling_strategy=strategy,
            )
            .remote(seat.kind, str(self._run), str(seat.log), os.getcwd(), given, self._store())
        )  # fmt: skip
        return _Actor(handle, handle.began.remote(), handle.over.remote(), node)

    def _store(self) -> str:
        store = store_of(self._run)
        return "" if store is None else store.url

    def _place(self, seat: _Seat) -> str:
        if seat.kind == "office":
            return str(ray().get_runtime_context().get_node_id())
        labels = _resources(seat.labels)
        nodes = self._cluster.workplaces(labels)
        if not nodes:
            raise WeaverantError(f"no node of the Ray cluster offers {' and '.join(map(repr, labels))} now")
        taken = [each.actor.result().node for each in self._seats if each.kind == "peer" and _has_actor(each)]
        return min(nodes, key=taken.count)

    def _sweep(self) -> int:
        """End what an earlier session left, whose driver was killed; the highest number of a name that was used."""
        last = 0
        for each in ray().util.list_named_actors(all_namespaces=True):
            if each["namespace"] == NAMESPACE and each["name"].startswith(self._prefix):
                last = max(last, int(each["name"].rpartition("-")[2]))
                with suppress(ValueError):  # it has ended by itself
                    ray().kill(ray().get_actor(each["name"], namespace=NAMESPACE))
        return last

    def _end_of(self, seat: _Seat) -> Ended | None:
        if seat.killed:
            return _ended(seat, -9)
        if not seat.actor.done():
            return None
        error = seat.actor.exception()
        if error is not None:
            return _ended(seat, None, last_line(error))
        actor = seat.actor.result()
        try:
            if not seat.pid and _is_there(actor.began):
                seat.host, pid = ray().get(actor.began).split()
                seat.pid = int(pid)
            if not _is_there(actor.over):
                return None
            code, _, words = ray().get(actor.over).partition(" ")
            return _ended(seat, int(code), words)
        except ray().exceptions.RayError as error:
            return _ended(seat, None, last_line(error))

    def _kill(self, seat: _Seat) -> None:
        def errand() -> None:
            if _has_actor(seat):
                ray().kill(seat.actor.result().handle)

        self._cluster.errands.do(errand)


def _resources(labels: Sequence[str]) -> list[str]:
    """Those that a node has to offer; an agent's role is at home anywhere."""
    return [label for label in labels if not label.startswith(role(""))]


def _has_actor(seat: _Seat) -> bool:
    return hasattr(seat, "actor") and seat.actor.done() and seat.actor.exception() is None


def _is_there(answer: Any) -> bool:
    ready, _ = ray().wait([answer], timeout=0)
    return bool(ready)


def _ended(seat: _Seat, code: int | None, words: str = "") -> Ended:
    seconds = time.monotonic() - seat.since
    return Ended(seat.kind, seat.host, seat.pid, code, seconds, tail(seat.log) or words, seat.labels)
