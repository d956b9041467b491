"""Runs on a real Ray cluster of this host: three raylets, a token, and everything that can be killed."""

from __future__ import annotations

import json
import os
import re
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from weaverant.journal.homes import epochs_of
from weaverant.swarm.places import KEY_VARIABLE

pytestmark = [
    pytest.mark.heavy,
    pytest.mark.timeout(150),
    pytest.mark.skipif(find_spec("ray") is None, reason="needs Ray, which only other processes import"),
]

ROWS = 240
WORKFLOW = """
from weaverant import Agent, workflow

writer = Agent("writer", prompt="Write about {{ text }}")
judge = Agent("judge", prompt="Judge {{ text }}")


@workflow
async def talk(row):
    text = row["text"]
    for _ in range(4):
        text = await judge(text=await writer(text=text[-100:]))
    return {"text": text}
"""
CLUSTER = """
import ctypes, json, os, subprocess, sys
from contextlib import contextmanager, nullcontext
import ray


def say(what):
    print("answer", json.dumps(what), flush=True)  # Ray prints, too


from ray.cluster_utils import Cluster

@contextmanager
def apart(folder):
    "For what is started here the folder is empty, and nothing that is written there is seen elsewhere."
    libc, here, before = ctypes.CDLL(None), os.getcwd(), os.open("/proc/thread-self/ns/mnt", os.O_RDONLY)
    assert libc.unshare(0x20000) == 0  # of this thread, and of its children
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "none", folder], check=True)
    yield
    assert libc.unshare(0x200) == 0 and libc.setns(before, 0) == 0  # threads began that have the same root
    os.close(before)
    os.chdir(here)


cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
ray.init(address=cluster.address, log_to_driver=False)
say([cluster.address, cluster.head_node.all_processes["raylet"][0].process.pid])
for line in sys.stdin:
    if line.strip() == "actors":
        say([each["name"] for each in ray.util.list_named_actors(all_namespaces=True)])
    else:
        resources, private = json.loads(line)
        with apart(private) if private else nullcontext():
            node = cluster.add_node(num_cpus=1, resources=resources)
        say(node.all_processes["raylet"][0].process.pid)
ray.shutdown()
cluster.shutdown()
"""


class RayCluster:
    """Of a process of its own. `environment` is what those need who come to it."""

    def __init__(self) -> None:
        key = {KEY_VARIABLE: secrets.token_hex(32)}
        secret = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0"}
        self.environment = {**os.environ, **secret, **key}
        self._process = subprocess.Popen(
            [sys.executable, "-c", CLUSTER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            text=True, env=self.environment,
        )  # fmt: skip
        self.address, self.head = self._answer()
        self.node = self.add({})
        self.sandbox = self.add({"sandbox": 1})

    def add(self, resources: dict[str, float], private: Path | None = None) -> int:
        """One more node: its raylet's process id. `private` is a folder that is its own there."""
        return self._ask(json.dumps([resources, None if private is None else str(private)]))

    def actors(self) -> list[str]:
        return self._ask("actors")

    def close(self) -> None:
        self._process.communicate(timeout=30)

    def _ask(self, words: str) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{words}\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        said = next(line for line in self._process.stdout if line.startswith("answer "))
        return json.loads(said.removeprefix("answer "))


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    there = RayCluster()
    yield there
    there.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ray")
    (folder / "talk.py").write_text(WORKFLOW)
    (folder / "rows.jsonl").write_text("".join(json.dumps({"text": f"row {n}"}) + "\n" for n in range(ROWS)))
    return folder


@pytest.fixture(scope="module")
def expected(folder: Path) -> list[str]:
    """What one process makes of the rows."""
    finished(weaverant(folder, os.environ, *RUN, "--run", "alone"))
    return exported(folder, "alone")


RUN = ["run", "talk.py", "--input", "rows.jsonl", "--model", "simulated:latency=0.1", "--quiet"]
SLOWLY = ["--in-flight", "24"]
"""Some ten seconds."""


def weaverant(folder: Path, environment: Any, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "weaverant", *words], cwd=folder, env=dict(environment), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def on(cluster: RayCluster, folder: Path, *words: str) -> subprocess.Popen[str]:
    return weaverant(folder, cluster.environment, *words, "--swarm", "ray", "--address", cluster.address)


def exported(folder: Path, run: str) -> list[str]:
    ran = weaverant(folder, os.environ, "export", run, "--as", "raw", "--out", "-")
    out, _ = ran.communicate(timeout=60)
    assert ran.returncode == 0, out
    return sorted(line for line in out.splitlines() if line.startswith("{"))


def finished(ran: subprocess.Popen[str], seconds: float = 90.0) -> None:
    out, _ = ran.communicate(timeout=seconds)
    assert ran.returncode == 0, out


def until(there: Callable[[], Any], seconds: float = 40.0) -> Any:
    """What it gives, as soon as it is true."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if got := there():
            return got
        time.sleep(0.1)
    raise AssertionError(f"waited {seconds:g} s in vain")


def processes(run: Path, kind: str) -> list[int]:
    """Those of a run, whose own they are."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if b"weaverant.peers" in words and kind.encode() in words and str(run).encode() in words:
            found.append(int(path.parent.name))
    return found


def raylet_of(process: int) -> int:
    """Of the actor that started it."""
    environment = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
    return int(next(each for each in environment if each.startswith(b"RAY_RAYLET_PID=")).split(b"=")[1])


def working(run: Path, peers: int) -> list[int]:
    """Peers' processes that are in the midst of rows."""

    def begun() -> list[int]:
        there = processes(run, "peer")
        sizes = [sum(file.stat().st_size for file in home.rglob("journal/*")) for home in run.glob("peers/0*")]
        return there if len(there) == peers and sum(size > 20_000 for size in sizes) >= peers else []

    return until(begun)


def nothing_left(cluster: RayCluster, run: Path) -> None:
    until(lambda: not processes(run, "peer") and not processes(run, "office"), 5.0)
    until(lambda: not cluster.actors(), 15.0)


def test_one_peer_on_each_node_makes_what_one_process_makes(cluster: RayCluster, folder: Path, expected: list[str]):
    ran = on(cluster, folder, *RUN, *SLOWLY, "--run", "nodes")
    peers = working(folder / "nodes", 3)
    assert sorted(map(raylet_of, peers)) == sorted([cluster.head, cluster.node, cluster.sandbox])
    (office,) = processes(folder / "nodes", "office")
    assert raylet_of(office) in (cluster.head, cluster.node, cluster.sandbox)
    assert len(cluster.actors()) == 4 and all(
        re.fullmatch(r"weaverant-\w+-(office|peer)-\d+", each) for each in cluster.actors()
    )
    finished(ran)
    assert len(expected) == ROWS and exported(folder, "nodes") == expected
    nothing_left(cluster, folder / "nodes")


def test_a_killed_peer_is_replaced_on_a_node_that_offers_its_label(
    cluster: RayCluster, folder: Path, expected: list[str]
):
    ran = on(cluster, folder, *RUN, *SLOWLY, "--run", "peer", "--peers", "2", "--label", "sandbox=1")
    peers = working(folder / "peer", 2)
    (labelled,) = [each for each in peers if raylet_of(each) == cluster.sandbox]
    os.kill(labelled, signal.SIGKILL)
    (new,) = until(lambda: set(processes(folder / "peer", "peer")) - set(peers))
    assert raylet_of(new) == cluster.sandbox
    finished(ran)
    assert exported(folder, "peer") == expected
    nothing_left(cluster, folder / "peer")


def test_a_killed_actor_takes_its_process_along(cluster: RayCluster, folder: Path, expected: list[str]):
    ran = on(cluster, folder, *RUN, *SLOWLY, "--run", "actor", "--peers", "2")
    peer = working(folder / "actor", 2)[0]
    actor = int(Path(f"/proc/{peer}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(actor, signal.SIGKILL)
    until(lambda: peer not in processes(folder / "actor", "peer"), 2.0)
    finished(ran)
    assert exported(folder, "actor") == expected


def test_a_killed_node_costs_its_peers_only(cluster: RayCluster, folder: Path, expected: list[str]):
    doomed = cluster.add({})
    ran = on(cluster, folder, *RUN, *SLOWLY, "--run", "node")
    peers = working(folder / "node", 4)
    lost = [each for each in peers if raylet_of(each) == doomed]
    os.kill(doomed, signal.SIGKILL)
    until(lambda: not set(lost) & set(processes(folder / "node", "peer")), 10.0)
    finished(ran)
    assert exported(folder, "node") == expected
    nothing_left(cluster, folder / "node")


def test_a_killed_driver_leaves_nothing_behind_and_can_be_resumed(
    cluster: RayCluster, folder: Path, expected: list[str]
):
    ran = on(cluster, folder, *RUN, "--in-flight", "6", "--run", "driver", "--peers", "2")
    working(folder / "driver", 2)
    ran.kill()
    ran.communicate()
    until(lambda: not processes(folder / "driver", "peer"), 30.0)  # told to by the office, in order
    left = [home.name for home in (folder / "driver" / "peers").glob("0*") if not (home / "fenced").exists()]
    assert left == []
    nothing_left(cluster, folder / "driver")
    finished(on(cluster, folder, "resume", "driver", "--peers", "2", "--in-flight", "1000", "--quiet"))
    assert exported(folder, "driver") == expected
    nothing_left(cluster, folder / "driver")


def test_it_is_resumed_at_once_while_the_peers_of_before_still_work(
    cluster: RayCluster, folder: Path, expected: list[str]
):
    ran = on(cluster, folder, *RUN, "--in-flight", "6", "--run", "at-once", "--peers", "2")
    working(folder / "at-once", 2)
    ran.kill()
    ran.communicate()
    finished(on(cluster, folder, "resume", "at-once", "--peers", "2", "--in-flight", "1000", "--quiet"))
    assert exported(folder, "at-once") == expected
    nothing_left(cluster, folder / "at-once")


def test_without_an_address_a_ray_is_started_that_asks_for_a_token_and_is_gone_at_the_end(
    folder: Path, expected: list[str]
):
    ran = weaverant(folder, os.environ, *RUN, *SLOWLY, "--run", "local", "--swarm", "ray", "--peers", "1")
    (peer,) = working(folder / "local", 1)
    raylet = raylet_of(peer)
    environment = Path(f"/proc/{raylet}/environ").read_bytes().split(b"\0")
    assert b"RAY_AUTH_MODE=token" in environment
    assert any(re.fullmatch(rb"RAY_AUTH_TOKEN=\w{64}", each) for each in environment)
    finished(ran)
    assert exported(folder, "local") == expected
    until(lambda: not Path(f"/proc/{raylet}").exists(), 10.0)


def refused(folder: Path, environment: Any, *words: str) -> str:
    """What is said, within seconds."""
    began = time.monotonic()
    ran = weaverant(folder, environment, *RUN, "--run", "refused", *words)
    out, _ = ran.communicate(timeout=60)
    assert ran.returncode == 2 and time.monotonic() - began < 35, out
    assert not (folder / "refused").exists()
    return out


def test_what_cannot_be_is_refused_at_once(cluster: RayCluster, folder: Path):
    there = ["--swarm", "ray", "--address", cluster.address]
    said = refused(folder, cluster.environment, "--swarm", "ray", "--address", "127.0.0.1:1")
    assert "no Ray answers at '127.0.0.1:1'" in said and "refused" in said
    assert "HOST:PORT" in refused(folder, cluster.environment, "--swarm", "ray", "--address", "ray://x:1")
    assert "give --swarm ray" in refused(folder, cluster.environment, "--address", cluster.address)
    assert "leave --host out" in refused(folder, cluster.environment, *there, "--host", "127.0.0.1")
    none = {key: value for key, value in cluster.environment.items() if not key.startswith("RAY_AUTH")}
    assert "there is no token" in refused(folder, {**none, "HOME": str(folder)}, *there)


def test_who_has_no_ray_is_told_how_to_install_it(folder: Path):
    (folder / "none").mkdir()
    (folder / "none" / "ray.py").write_text("raise ImportError('there is none')")
    path = os.pathsep.join([str(folder / "none"), *filter(None, [os.environ.get("PYTHONPATH")])])
    assert 'pip install "weaverant[ray]"' in refused(folder, {**os.environ, "PYTHONPATH": path}, "--swarm", "ray")


def test_a_wrong_token_is_refused(cluster: RayCluster, folder: Path):
    wrong = {**cluster.environment, "RAY_AUTH_TOKEN": "0" * 64}
    assert "the cluster's token" in refused(folder, wrong, "--swarm", "ray", "--address", cluster.address)


def test_a_label_that_no_node_offers_ends_the_run(cluster: RayCluster, folder: Path):
    ran = on(cluster, folder, *RUN, "--run", "label", "--peers", "1", "--label", "tpu")
    out, _ = ran.communicate(timeout=60)
    assert ran.returncode == 2 and "no node of the Ray cluster offers 'tpu'" in out, out
    nothing_left(cluster, folder / "label")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a node a file system of its own")
def test_nodes_that_share_only_a_store_work_together_and_one_is_lost_with_its_disk(
    cluster: RayCluster, folder: Path, expected: list[str]
):
    (folder / "private").mkdir()
    doomed = cluster.add({"far": 1}, folder / "private")
    store = ["--store", f"file://{folder}/store"]
    none = {key: value for key, value in cluster.environment.items() if key != KEY_VARIABLE}
    there = ["--swarm", "ray", "--address", cluster.address]
    assert f"variable {KEY_VARIABLE}" in refused(folder, none, *store, *there)
    run = folder / "private" / "run"
    words = ["--run", str(run), "--peers", "2", "--label", "far=1", "--in-flight", "24"]
    ran = on(cluster, folder, *RUN, *store, *words)
    labelled = until(lambda: [each for each in processes(run, "peer") if raylet_of(each) == doomed])
    until(lambda: sum(len(list(home.glob("journal/*"))) > 8 for home in (folder / "store" / "peers").glob("0*")) >= 2)
    assert len(epochs_of(run)) < len(list((folder / "store" / "peers").glob("0*"))), "its home is not seen here"
    os.kill(doomed, signal.SIGKILL)
    until(lambda: not set(labelled) & set(processes(run, "peer")), 30.0)
    cluster.add({"far": 1})
    finished(ran)
    assert exported(folder, str(run)) == expected
    nothing_left(cluster, run)
