"""The faults, one for a trial. Each strikes a run in its middle, and may go on for a while; what was struck is told."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random

from msgspec import Struct, field

from chaos import rays
from chaos.hosts import FAR_AT_MODEL, NEAR_AT_MODEL
from chaos.scene import IN_FLIGHT, Scene, until
from weaverant.swarm.places import offices


class Struck(Struct):
    """What a fault did."""

    what: str
    """For people."""
    time: float = 0.0
    """Unix seconds."""
    epochs: tuple[int, ...] = ()
    """Peers that are to be noticed, and whose rows are to run elsewhere, in time."""
    moves: bool = False
    """Those had rows, so that some have to run elsewhere."""
    office: int = 0
    """The generation of the office that was struck; 0 for none."""
    heal: Callable[[], None] | None = None
    """Undoes it, `lasts` seconds later."""
    lasts: float = 0.0
    codes: tuple[int, ...] = (0,)
    """Exit codes of the driver's sessions that are honest then."""
    far_codes: tuple[int, ...] = (0,)
    """Those of the far peer."""
    resume: bool = False
    """The session ends of it, and another goes on."""
    held_back: str = ""
    """Calls of the struck peer may come late. What its address begins with, at the model."""
    late: int = 0
    """How many of them at the most: what the network had taken and held back; or, of a peer that was stopped, the one
    call that was between the last look and the write."""
    most: int = 1
    """Peers whose calls in flight it may cut off; 0: nothing may be asked again at all."""


class Fault(Struct, frozen=True):
    strike: Callable[[Scene, Random], Struck]
    long: bool = False
    """The run has to last longer than a link is cut."""
    least_s: float = 0.0
    """Seconds that the run has to last where `long` asks for nothing."""
    begin: dict[str, object] = field(default_factory=dict[str, object])
    """How the scene begins."""
    where: tuple[bool, ...] = (False, True)
    """Whether hosts may have disks of their own then, and share no directory."""
    why_not: Callable[[], str] = str
    """Why it cannot be tried here; empty where it can."""


def _kill_near(scene: Scene, random: Random) -> Struck:
    epoch, pid = random.choice(sorted(scene.near().items()))
    os.kill(pid, signal.SIGKILL)
    return Struck(f"peer {epoch} killed, near", epochs=(epoch,))


def _kill_far(scene: Scene, random: Random) -> Struck:
    epoch = scene.far_epochs()[-1]
    os.kill(scene.epochs()[epoch], signal.SIGKILL)
    return Struck(f"peer {epoch} killed, far", epochs=(epoch,), far_codes=(-9,))


def _kill_office(scene: Scene, random: Random) -> Struck:
    os.kill(scene.office(), signal.SIGKILL)
    return Struck("office killed", office=_generation(scene), most=0)


def _stall_office(scene: Scene, random: Random) -> Struck:
    pid, generation = scene.office(), _generation(scene)
    os.kill(pid, signal.SIGSTOP)
    return Struck("office stalled", office=generation, heal=lambda: _go_on(pid), lasts=scene.long_s, most=0)


def _stall_near(scene: Scene, random: Random) -> Struck:
    epoch, pid = random.choice(sorted(scene.near().items()))
    os.kill(pid, signal.SIGSTOP)
    heal = partial(_go_on, pid)
    return Struck(
        f"peer {epoch} stalled, near", epochs=(epoch,), heal=heal, lasts=scene.long_s, held_back=NEAR_AT_MODEL, late=1
    )


def _stall_far(scene: Scene, random: Random) -> Struck:
    epoch = scene.far_epochs()[-1]
    pid = scene.epochs()[epoch]
    os.kill(pid, signal.SIGSTOP)
    heal = partial(_go_on, pid)
    return Struck(
        f"peer {epoch} stalled, far", epochs=(epoch,), heal=heal, lasts=scene.long_s, held_back=FAR_AT_MODEL, late=1
    )


def _cut(scene: Scene, random: Random) -> Struck:
    at = random.choice(("near", "far"))
    epoch = scene.far_epochs()[-1]
    scene.hosts.cut(at)
    return Struck(
        f"link between hosts cut, {at} end", epochs=(epoch,), heal=scene.hosts.mend, lasts=scene.long_s, most=0
    )  # it reaches the model, so what it had asked is recorded before it is given up: it asks nothing more by then


def _unplug(scene: Scene, random: Random) -> Struck:
    epoch = scene.far_epochs()[-1]
    scene.hosts.cut("far", from_model=True)
    missing = scene.folder / "missing"
    if scene.store is not None:
        missing.mkdir()
        scene.hosts.hide("far", scene.store, missing)

    def heal() -> None:
        if scene.store is not None:
            scene.hosts.show("far", scene.store)
        scene.hosts.mend()

    return Struck(
        "far host cut off from all", epochs=(epoch,), heal=heal, lasts=scene.long_s, held_back=FAR_AT_MODEL,
        late=IN_FLIGHT,
    )  # fmt: skip


def _fill_disk(scene: Scene, random: Random) -> Struck:
    ballast = scene.run.parent / "ballast"
    assert ballast.parent.is_mount(), "it would fill the disk of everybody"
    _fill(ballast)
    return Struck(
        "the run's disk full", heal=lambda: ballast.unlink(missing_ok=True), lasts=scene.long_s, codes=(4, 0),
        far_codes=(0, 4), resume=True, most=3,
    )  # fmt: skip


def _fill_home(scene: Scene, random: Random) -> Struck:
    epoch = scene.far_epochs()[-1]
    ballast = scene.home(epoch) / "ballast"
    assert ballast.parent.is_mount(), "it would fill the disk of everybody"
    _fill(ballast)
    heal = lambda: ballast.unlink(missing_ok=True)  # noqa: E731
    return Struck(f"peer {epoch}'s disk full, far", epochs=(epoch,), heal=heal, lasts=scene.long_s / 2, far_codes=(4,))


def _join(scene: Scene, random: Random) -> Struck:
    scene.join()
    return Struck("a peer joins, far", most=0)


def _leave(scene: Scene, random: Random) -> Struck:
    near = random.random() < 0.5
    epoch = random.choice(sorted(scene.near())) if near else scene.far_epochs()[-1]
    os.kill(scene.epochs()[epoch], signal.SIGTERM)
    return Struck(f"peer {epoch} told to leave, {'near' if near else 'far'}", epochs=(epoch,), most=0)


def _kill_driver(scene: Scene, random: Random) -> Struck:
    os.kill(scene.driver.pid, signal.SIGKILL)
    time.sleep(random.choice((0.0, 1.0, 13.0)))
    return Struck("driver killed", codes=(-9, 0), resume=True, most=0)


def _kill_head(scene: Scene, random: Random) -> Struck:
    """Nobody is left to tell the peers anything, until another session is."""
    for pid in (scene.office(), scene.driver.pid):
        os.kill(pid, signal.SIGKILL)
    time.sleep(random.choice((0.0, 1.0, 13.0)))
    return Struck("driver and office killed", codes=(-9, 0), resume=True, most=0)


def _kill_host(scene: Scene, random: Random) -> Struck:
    """All of the near host: the far peer is on its own."""
    pids = [scene.driver.pid, scene.office(), *scene.near().values()]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    time.sleep(random.choice((0.0, 2.0, 18.0)))
    return Struck("all of the near host killed", codes=(-9, 0), resume=True, most=3)


def _lose_far(scene: Scene, random: Random) -> Struck:
    struck = _kill_far(scene, random)
    scene.hosts.lose_disk("far")
    return Struck(f"{struck.what}, with its disk", epochs=struck.epochs, far_codes=struck.far_codes)


def _lose_host(scene: Scene, random: Random) -> Struck:
    """The run goes on in a directory that is as new as its disk."""
    struck = _kill_host(scene, random)
    scene.hosts.lose_disk("near")
    scene.hosts.give_disk("near", scene.disk)
    struck.what += ", with its disk"
    return struck


def _kill_raylet(scene: Scene, random: Random) -> Struck:
    """What Ray began on the far host ends with it, the peer among them."""
    epoch = scene.far_epochs()[-1]
    os.kill(scene.raylet("far"), signal.SIGKILL)
    killed = time.monotonic()
    until(lambda: epoch not in scene.far_epochs(), 10.0, "the end of a peer whose raylet was killed")
    what = f"raylet killed, far; peer {epoch} ended after {time.monotonic() - killed:.1f} s"
    return Struck(what, epochs=(epoch,), moves=True)


def _go_on(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGCONT)
    except ProcessLookupError:
        pass  # it was ended meanwhile


def _generation(scene: Scene) -> int:
    return offices(scene.meeting)[-1]


def _fill(path: Path) -> None:
    """Until there is no room for a byte."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT)
    try:
        for size in (1 << 20, 4096, 1):
            while True:
                try:
                    os.write(file, b"\1" * size)
                except OSError:
                    break
    finally:
        os.close(file)


FAULTS: dict[str, Fault] = {
    "kill-peer": Fault(_kill_near),
    "kill-far": Fault(_kill_far),
    "kill-office": Fault(_kill_office),
    "cut": Fault(_cut, long=True),
    "stall": Fault(_stall_far, long=True),
    "disk": Fault(_fill_disk, begin={"small_disk": 256}, where=(False,)),
    "join": Fault(_join, begin={"far": False}),
    "leave": Fault(_leave),
    "kill-driver": Fault(_kill_driver),
    "stall-near": Fault(_stall_near, long=True),
    "unplug": Fault(_unplug, long=True),
    "disk-home": Fault(_fill_home, long=True, begin={"small_home": True}, where=(False,)),
    "kill-head": Fault(_kill_head),
    "kill-host": Fault(_kill_host),
    "stall-office": Fault(_stall_office, long=True),
    # Ray takes a while from one peer to the next: the first should not have done all by then
    "raylet": Fault(_kill_raylet, least_s=6.0, begin={"ray": True}, where=(False,), why_not=rays.why_not),
    "lose-far": Fault(_lose_far, where=(True,)),
    "lose-host": Fault(_lose_host, where=(True,)),
}
