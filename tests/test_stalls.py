"""Code that does not yield, in real processes: it is told of, and a second signal ends the run all the same."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

HEAD = """
import os, re, time
from weaverant import Agent, run, workflow

say = Agent("say", prompt="{{ n }}")

@workflow
async def grade(row):
    await say(n=row["n"])
    if row["n"] == 3 and not os.path.exists("mended"):
        open("reached", "w").close()
        HOLD
    return row["n"]
"""

SPIN = HEAD.replace("HOLD", "while True: pass")
REGEX = HEAD.replace("HOLD", 're.match(r"(a+)+$", "a" * 40 + "b")')
SLEEP = HEAD.replace("HOLD", "time.sleep(2)")
LINE = HEAD[: HEAD.index("HOLD")].count("\n") + 1

SCRIPT = """
if __name__ == "__main__":
    from weaverant.runtime import watch
    watch.LOOK, watch.HELD = 0.1, 0.5
    for task in run(grade, [{"n": n} for n in range(8)], models="simulated:latency=0.01", directory="out"):
        print(task.result, flush=True)
"""


Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Starts Python in a folder with eight rows; none of its processes outlives the test."""
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text("".join(json.dumps({"n": n}) + "\n" for n in range(8)))
    started: list[subprocess.Popen[str]] = []

    def begin(*arguments: str) -> subprocess.Popen[str]:
        """As from a terminal: a shell's background job has SIGINT ignored, and so would Python here."""
        started.append(
            subprocess.Popen(
                [sys.executable, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )
        )  # fmt: skip
        return started[-1]

    yield begin
    for process in started:
        with process:
            process.kill()


def spun(file: str, directory: str, *more: str) -> list[str]:
    model = "simulated:latency=0.01"
    return ["-m", "weaverant", "run", file, "--input", "rows.jsonl", "--model", model, "--run", directory, *more]


def finished(*arguments: str) -> tuple[int, str]:
    ran = subprocess.run(
        [sys.executable, "-m", "weaverant", *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    return ran.returncode, ran.stdout + ran.stderr


def wait_until(true: Callable[[], bool], seconds: float = 30.0) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, "it did not come true in time"
        time.sleep(0.02)


def steps(directory: str) -> tuple[int, int]:
    """(calls, those of them that were answered from an earlier run) that the journal has."""
    code, said = finished("show", directory, "--json")
    assert code == 0, said
    agents = json.loads(said)["agents"]
    return sum(agent["calls"] for agent in agents), sum(agent["reused"] for agent in agents)


@pytest.mark.parametrize("text", [SPIN, REGEX], ids=["spin", "regex"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_a_run_whose_workflow_does_not_yield(start: Start, text: str, number: signal.Signals):
    Path("w.py").write_text(text)
    ran = start(*spun("w.py", "out"))
    wait_until(Path("reached").exists)
    time.sleep(0.3)
    ran.send_signal(number)
    time.sleep(0.3)
    assert ran.poll() is None, "the first one asks for an orderly stop"
    ran.send_signal(number)
    _, err = ran.communicate(timeout=20)
    assert ran.returncode == 4, err
    assert f"stopped at once, while row 0.3.0 (w.py:{LINE} in grade) held the event loop" in err
    assert "weaverant resume out" in err and "Traceback" not in err
    assert 1 <= steps("out")[0] <= 8, "at least the reply that the workflow has seen is recorded"
    Path("mended").touch()
    code, said = finished("resume", "out")
    assert code == 0 and "rows 8 = done 8 + rejected 0 + failed 0 + left 0" in said, said
    assert steps("out") == (8, 0), "and none of them was asked for again"


def test_a_mended_file_is_answered_from_the_run_that_was_ended(start: Start):
    Path("w.py").write_text(SPIN)
    ran = start(*spun("w.py", "out"))
    wait_until(Path("reached").exists)
    time.sleep(0.3)
    for _ in range(2):
        ran.send_signal(signal.SIGINT)
        time.sleep(0.3)
    _, err = ran.communicate(timeout=20)
    assert ran.returncode == 4 and "once the code is mended weaverant run w.py ... --reuse out" in err
    paid, _ = steps("out")
    Path("w.py").write_text(SLEEP.replace("time.sleep(2)", "pass"))
    code, said = finished("resume", "out")
    assert code == 2 and "--reuse out" in said
    mended = start(*spun("w.py", "new", "--reuse", "out"))
    _, err = mended.communicate(timeout=60)
    assert mended.returncode == 0, err
    assert steps("new") == (8, paid)


def test_what_holds_the_loop_is_told_once_with_its_row_and_line(start: Start):
    for name, text in (("spin", SPIN), ("regex", REGEX)):
        Path(f"{name}.py").write_text(text)
    running = {name: start(*spun(f"{name}.py", name, "--quiet")) for name in ("spin", "regex")}
    first = {name: ran.stderr.readline() for name, ran in running.items()}
    time.sleep(3)
    for name, ran in running.items():
        assert ran.poll() is None
        ran.kill()
        _, err = ran.communicate()
        told = (first[name] + err).splitlines()
        assert len(told) == 1, told
        assert re.match(rf"row 0\.3\.0 \({name}\.py:{LINE} in grade\) has held the event loop for [56789] s: ", told[0])
        assert "Put heavy work into step(), which runs it in a thread" in told[0]


def test_in_python_it_is_told_too_and_when_it_is_over(start: Start):
    Path("script.py").write_text(SLEEP + SCRIPT)
    ran = start("script.py")
    out, err = ran.communicate(timeout=60)
    assert ran.returncode == 0 and sorted(out.split()) == [str(n) for n in range(8)]
    told = err.splitlines()
    assert len(told) == 2, told
    assert told[0].startswith(f"weaverant: row 0.3.0 (script.py:{LINE} in grade) has held the event loop for ")
    over = re.fullmatch(
        rf"weaverant: row 0\.3\.0 \(script\.py:{LINE} in grade\) let go of the event loop after (\d+) s.*", told[1]
    )
    assert over is not None and 2 <= int(over[1]) < 6


def test_in_python_a_second_ctrl_c_ends_the_process(start: Start):
    Path("script.py").write_text(SPIN + SCRIPT)
    ran = start("script.py")
    wait_until(Path("reached").exists)
    time.sleep(0.3)
    for _ in range(2):
        ran.send_signal(signal.SIGINT)
        time.sleep(1.0)
    _, err = ran.communicate(timeout=20)
    assert ran.returncode == -signal.SIGINT and "KeyboardInterrupt" in err
    assert 1 <= steps("out")[0] <= 8


def test_a_stopped_process_is_no_stall(start: Start):
    Path("script.py").write_text(SPIN.replace("while True: pass", "pass") + SCRIPT.replace("0.01", "3,jitter=0"))
    ran = start("script.py")
    wait_until(lambda: Path("out/journal").is_dir() and any(Path("out/journal").iterdir()))
    time.sleep(0.5)
    os.kill(ran.pid, signal.SIGSTOP)
    time.sleep(2.0)  # four times what would be told of
    os.kill(ran.pid, signal.SIGCONT)
    out, err = ran.communicate(timeout=60)
    assert (ran.returncode, err, len(out.split())) == (0, "", 8)
