"""One trial: a run is begun, struck in its middle, and goes on to its end; then it is judged."""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path
from random import Random

from msgspec import Struct, field

from chaos.chain import STEPS
from chaos.ends import Ends
from chaos.faults import FAULTS, Struck
from chaos.hosts import Hosts
from chaos.model import digest
from chaos.scene import IN_FLIGHT, LONG_S, NEAR_PEERS, PRIVATE, Hung, Scene
from chaos.verdict import Verdict, judge, results_of

LATENCY_S = 0.03
LONGER = 5 / 3
"""How much longer a run lasts at least than a fault that lasts, by the model's latency."""
PATIENCE_S = 120.0
"""What a session may take before it is called hung."""


class Trial(Struct):
    """What is told of one."""

    fault: str
    seed: int
    what: str = ""
    seconds: float = 0.0
    codes: str = ""
    verdict: Verdict = field(default_factory=Verdict)
    said: str = ""
    """The last words of processes, where something did not hold."""

    @property
    def held(self) -> bool:
        return not self.verdict.faults


def undisturbed(rows: int, peers: bool = True, *, private: bool = False) -> dict[str, object]:
    """The results of a run that nothing happens to."""
    with Hosts() as hosts:
        scene = Scene(hosts, _folder(), rows, LATENCY_S, private=private)
        try:
            scene.begin(far=peers)
            scene.wait(PATIENCE_S)
            assert scene.codes == [0], f"exit code {scene.codes} without any fault: {_said(scene)}"
            return results_of(scene.whole(), scene.folder / "out.jsonl")
        finally:
            scene.close()


def computed(rows: int) -> dict[str, object]:
    """What those results are, by the model's own function."""
    found: dict[str, object] = {}
    for row in range(rows):
        text = f"begin {row}"
        for step in range(STEPS):
            text = digest(f"row {row} step {step}: {text}")
        found[f"0.{row}.0"] = {"id": row, "text": text}
    return found


def attempt(
    fault: str,
    seed: int,
    rows: int,
    expected: dict[str, object],
    *,
    keep: bool = False,
    long_s: float = LONG_S,
    private: bool = False,
) -> Trial:
    """Raises nothing for what does not hold: it is in the verdict. With `keep`, the folder of such a trial stays.
    `private`: the hosts share nothing but a store."""
    chosen, random, trial = FAULTS[fault], Random(seed), Trial(fault, seed)
    least_s = long_s * LONGER if chosen.long else chosen.least_s
    latency = max(LATENCY_S, least_s * (NEAR_PEERS + 1) * IN_FLIGHT / (rows * STEPS))
    began = time.monotonic()
    with Hosts() as hosts:
        scene = Scene(hosts, _folder(), rows, latency, long_s, private=private)
        try:
            struck = Struck("not struck")
            try:
                scene.begin(**chosen.begin)  # pyright: ignore[reportArgumentType]
                scene.reach(random.uniform(0.1, 0.3) if chosen.long else random.uniform(0.2, 0.6), PATIENCE_S)
                at = time.time()
                struck = chosen.strike(scene, random)
                struck.time = at
                trial.what = struck.what
                _go_on(scene, struck)
                far = scene.last_code()
            except Hung as error:
                trial.verdict.faults.append(f"hung: {error}")
            else:
                run, ends = scene.whole(), Ends(scene.meeting, private)
                trial.verdict = judge(run, ends, scene.log, rows, struck)
                if trial.verdict.others:
                    trial.what += f"; peers {trial.verdict.others} were killed by somebody else"
                _compare(trial.verdict, run, scene, expected)
                _honest(trial.verdict, scene, struck, far)
                trial.codes = ",".join(map(str, scene.codes)) + ("" if far is None else f" / {far}")
            trial.seconds = time.monotonic() - began
            if not trial.held:
                trial.said = _said(scene)
                if keep:
                    _keep(scene, trial)
        finally:
            scene.close()
    return trial


def _go_on(scene: Scene, struck: Struck) -> None:
    """To the end of the run, and of the fault."""
    over = time.monotonic() + PATIENCE_S
    heals = struck.time + struck.lasts
    heal = struck.heal
    while scene.driver.poll() is None or heal is not None:
        ended = scene.driver.poll() is not None
        if heal is not None and (time.time() > heals or (ended and struck.resume)):
            heal()
            heal = None
        if time.monotonic() > over:
            raise Hung(f"the session: no end after {PATIENCE_S:.0f} s, {scene.calls()} calls")
        time.sleep(0.02)
    scene.wait(1.0)
    if struck.resume:
        scene.resume()
        scene.wait(PATIENCE_S)


def _compare(verdict: Verdict, run: Path, scene: Scene, expected: dict[str, object]) -> None:
    try:
        found = results_of(run, scene.folder / "out.jsonl")
    except ValueError as error:
        verdict.faults.append(str(error))
        return
    wrong = sum(found.get(key) != value for key, value in expected.items())
    if wrong or len(found) != len(expected):
        verdict.faults.append(f"{len(found)} results, of which {wrong} are not those of the undisturbed run")


def _honest(verdict: Verdict, scene: Scene, struck: Struck, far: int | None) -> None:
    if tuple(scene.codes) != struck.codes:
        verdict.faults.append(f"the driver's exit codes are {scene.codes}; expected {list(struck.codes)}")
    if far is not None and far not in struck.far_codes:
        verdict.faults.append(f"the far peer's exit code is {far}; expected {struck.far_codes}")
    if strays := scene.strays():
        verdict.faults.append(f"{len(strays)} processes were left behind")


def _folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="chaos-"))


def _said(scene: Scene) -> str:
    logs = [
        *scene.folder.glob("*.out"),
        *(log for run in scene.directories() for log in (run / "peers" / "log").glob("*")),
    ]
    words = ((log.name, log.read_text(errors="replace").strip()[-1_500:]) for log in sorted(logs))
    return "\n".join(f"--- {name}\n{text}" for name, text in words if text)


def _keep(scene: Scene, trial: Trial) -> None:
    """What is left of a trial that did not hold, to be looked at."""
    target = Path(tempfile.gettempdir()) / f"chaos-kept-{trial.fault}-{trial.seed}"
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(scene.folder, target, symlinks=True, ignore=shutil.ignore_patterns("sockets"))
    for host, run in zip(PRIVATE, scene.directories(), strict=False):
        if scene.store is not None and run.exists():
            shutil.copytree(run, target / host)
    trial.said += f"\nkept: {target}"
