"""The command line as users meet it: real processes, real signals, a real terminal, honest exit codes."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import py_compile
import re
import resource
import select
import shutil
import signal
import subprocess
import sys
import sysconfig
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from weaverant.cli import main
from weaverant.engines.http.money.prices import tables
from weaverant.journal import RunLock
from weaverant.testing.server import MockServer

WORKFLOW = '''
"""Two questions a row."""
from weaverant import Agent, exporter, reject, workflow

first = Agent("first", prompt="Say {{ n }}", temperature=0.5)
second = Agent("second", prompt="Again: {{ said }}", model="other")

@workflow
async def twice(row, *, shout: bool = False, times: int = 1, tag: str = "x"):
    said = await first(n=row["n"])
    if row["n"] % 10 == 9:
        return reject("nine")
    for _ in range(times):
        said = await second(said=said)
    return {"said": said.upper() if shout else said, "tag": tag}

@exporter
def short(story):
    yield {"text": story.result["said"]}
'''

ECHO = """
import asyncio, os
from weaverant import StepFailed

async def reply(request):
    text = request.messages[-1].text
    await asyncio.sleep(float(os.environ.get("DELAY", "0")))
    if text == "Say 3" and not os.path.exists("mended"):
        raise StepFailed("server", "out of order")
    return f"<{text}>"
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w.py").write_text(WORKFLOW)
    (tmp_path / "echo.py").write_text(ECHO)
    write_rows(20)
    return tmp_path


def write_rows(count: int) -> None:
    Path("rows.jsonl").write_text("".join(json.dumps({"n": n}) + "\n" for n in range(count)))


RUN = ["run", "w.py", "--input", "rows.jsonl", "--model", "scripted:echo.py", "--run", "out"]


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "weaverant.cli", *arguments]


def call(*arguments: str, delay: float = 0.0, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "DELAY": str(delay)}
    return subprocess.run(
        command(*arguments), capture_output=True, text=True, timeout=60, env=environment, input=stdin, check=False
    )


def begin(*arguments: str, delay: float) -> subprocess.Popen[str]:
    environment = {**os.environ, "DELAY": str(delay)}
    return subprocess.Popen(
        command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def wait_until(true: Callable[[], bool], seconds: float = 20.0) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, "it did not come true in time"
        time.sleep(0.02)


def journal_bytes() -> int:
    return sum(path.stat().st_size for path in Path("out/journal").glob("*")) if Path("out/journal").is_dir() else 0


def exported(form: str = "raw") -> list[dict]:
    found = call("export", "out", "--as", form, "--out", "-")
    assert found.returncode == 0, found.stderr
    return [json.loads(line) for line in found.stdout.splitlines()]


# Ends, and their exit codes


def test_all_finished_is_0(folder: Path):
    Path("mended").touch()
    ran = call(*RUN)
    assert ran.returncode == 0, ran.stderr
    assert "rows 20 = done 18 + rejected 2 + failed 0 + left 0" in ran.stdout
    assert "rejected: nine 2" in ran.stdout
    assert "weaverant export out" in ran.stdout
    assert ran.stderr.splitlines()[-1].startswith("20 of 20 rows (done 18, rejected 2, failed 0)")
    assert "\x1b" not in ran.stderr + ran.stdout
    assert [sample["row"]["n"] for sample in exported()] == [n for n in range(20) if n % 10 != 9]


def test_failed_rows_are_3_and_a_retry_mends_them(folder: Path):
    ran = call(*RUN)
    assert ran.returncode == 3
    assert "failed: server 1" in ran.stdout
    assert "row 0.3.0 at w.py:10 in twice: out of order" in ran.stdout
    assert "weaverant resume out --retry failed" in ran.stdout
    again = call("resume", "out")
    assert (again.returncode, "nothing to do" in again.stderr) == (3, True)
    Path("mended").touch()
    other = call("resume", "out", "--retry", "failed:timeout")
    assert (other.returncode, "server (1)" in other.stderr, other.stderr.count("\n")) == (2, True, 1)
    mended = call("resume", "out", "--retry", "failed:server")
    assert mended.returncode == 0, mended.stderr
    assert "taking up 1 failed row again: server 1" in mended.stderr
    assert "rows 20 = done 18 + rejected 2 + failed 0 + left 0" in mended.stdout
    assert "in 2 sessions" in mended.stdout, "what was refused is no session"
    assert call("resume", "out").returncode == 0


def test_a_run_that_another_process_writes_is_1(folder: Path):
    call(*RUN)
    lock = RunLock(Path("out"))
    try:
        ran = call("resume", "out", "--retry", "failed")
        shown = call("show", "out", "--json")
    finally:
        lock.release()
    assert ran.returncode == 1
    assert "is being written by process" in ran.stderr and ran.stderr.count("\n") == 1
    assert json.loads(shown.stdout)["state"] == "finished"


def test_a_damaged_journal_is_1(folder: Path):
    call(*RUN)
    path = sorted(Path("out/journal").iterdir())[0]
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 0xFF
    path.write_bytes(data)
    shown = call("show", "out")
    assert shown.returncode == 1
    assert shown.stderr.startswith("weaverant: error: ") and "Traceback" not in shown.stderr


def test_the_error_fuse_is_4(folder: Path):
    Path("broken.py").write_text("def reply(request):\n    raise RuntimeError('no')\n")
    write_rows(400)
    ran = call(
        "run", "w.py", "--input", "rows.jsonl", "--model", "scripted:broken.py", "--run", "out", "--in-flight", "8"
    )
    assert ran.returncode == 4
    assert "error fuse" in ran.stdout and "--max-failures 1" in ran.stdout
    assert "weaverant resume out" in ran.stdout


MISTAKES = [
    (["run"], "WORKFLOW"),
    (["run", "nope.py"], "there is no workflow 'nope.py'"),
    (["run", "rows.jsonl", "--input", "rows.jsonl", "--model", "simulated:"], "'rows.jsonl' does not end in .py"),
    (["run", "w.py", "--input", "rows.jsonl"], "no model was given"),
    (["run", "w.py", "--model", "scripted:echo.py"], "no rows were given"),
    (["run", "w.py", "--input", "row.jsonl", "--model", "scripted:echo.py"], "rows.jsonl"),
    (["run", "w.py", "--input", "rows.jsonl", "--model", "other=scripted:echo.py"], "agent 'first' asks the model"),
    (["run", "w.py", "--input", "rows.jsonl", "--model", "scriptd:x"], "Did you mean 'scripted:'?"),
    ([*RUN, "--model", "simulated:"], "two models"),
    ([*RUN, "--set", "frist.top_p=1"], "did you mean 'first'?"),
    ([*RUN, "--set", "first.topp=1"], "did you mean 'top_p'?"),
    ([*RUN, "--set", "first.temperature=hot"], "found 'hot'"),
    ([*RUN, "--set", "first"], "expected AGENT.FIELD=VALUE"),
    ([*RUN, "--times", "many"], "--times: Expected `int`"),
    ([*RUN, "--tims", "2"], "did you mean '--times'?"),
    ([*RUN, "--concurrency", "0"], "concurrency must be at least 1"),
    ([*RUN, "--in-flight", "0"], "in_flight must be at least 1"),
    ([*RUN, "--grace", "nan"], "grace is a number of seconds"),
    ([*RUN, "--trials", "0"], "trials must be at least 1"),
    ([*RUN, "--no-journal"], "--no-journal stores nothing"),
    ([*RUN, "--reuse", "nowhere"], "'nowhere' holds no run"),
    (["resume", "nowhere"], "'nowhere' holds no run"),
    (["show", "nowhere"], "'nowhere' holds no run"),
    (["export", "nowhere", "--out", "x.jsonl"], "'nowhere' holds no run"),
    (["frobnicate"], "invalid choice"),
]


@pytest.mark.parametrize(("arguments", "text"), MISTAKES, ids=[" ".join(given[-3:]) for given, _ in MISTAKES])
def test_a_mistake_is_2_and_one_message(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], text: str
):
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert said.err.startswith("weaverant: error: ") and text in said.err and said.out == ""
    assert not Path("out").exists()


def test_the_folder_above_a_run_is_told_from_one(folder: Path, capsys: pytest.CaptureFixture[str]):
    Path("loop").mkdir()
    assert (
        main(["run", "w.py", "--input", "rows.jsonl", "--model", "simulated:", "--run", "loop/weave", "--quiet"]) == 0
    )
    capsys.readouterr()
    assert main(["show", "loop"]) == 2
    assert "There are runs inside it: 'loop/weave'" in capsys.readouterr().err


def test_a_broken_workflow_file_is_2_with_its_place(folder: Path, capsys: pytest.CaptureFixture[str]):
    Path("bad.py").write_text("x = 1\ny = x / 0\n")
    assert main(["run", "bad.py"]) == 2
    assert "ZeroDivisionError" in (text := capsys.readouterr().err) and "bad.py:2" in text


def test_a_workflow_file_that_ends_the_process_is_2_with_its_place(folder: Path):
    Path("script.py").write_text("import sys\n\nsys.exit(3)\n")
    ran = call("run", "script.py", "--input", "rows.jsonl", "--model", "simulated:")
    assert ran.returncode == 2 and ran.stderr.count("\n") == 1
    assert "script.py:3" in ran.stderr and "__main__" in ran.stderr


def test_a_run_takes_no_directory_that_others_have_files_in(folder: Path):
    for flags in ((), ("--dry-run",)):
        ran = call("run", "w.py", "--input", "rows.jsonl", "--model", "simulated:", "--run", ".", *flags)
        assert ran.returncode == 2 and "neither new nor empty: it has echo.py, rows.jsonl, w.py" in ran.stderr
    assert sorted(each.name for each in folder.iterdir()) == ["echo.py", "rows.jsonl", "w.py"]
    Path("new").mkdir()
    Path("new/.gitignore").write_text("*")
    assert call("run", "w.py", "--input", "rows.jsonl", "--model", "simulated:", "--run", "new").returncode == 0


def test_changed_prompts_are_refused_with_the_way_out(folder: Path, capsys: pytest.CaptureFixture[str]):
    call(*RUN)
    Path("w.py").write_text(WORKFLOW.replace("Again:", "Once more:"))
    assert main(["resume", "out", "--retry", "failed"]) == 2
    assert "--reuse out" in capsys.readouterr().err
    again = call(
        "run", "w.py", "--input", "rows.jsonl", "--model", "scripted:echo.py", "--run", "new", "--reuse", "out"
    )
    assert again.returncode == 3
    shown = json.loads(call("show", "new", "--json").stdout)
    assert {agent["name"]: (agent["calls"], agent["reused"]) for agent in shown["agents"]} == {
        "first": (20, 19),
        "second": (17, 0),
    }


# Stops


def little_room(most: int = 20_000) -> None:
    """As on a full disk: no file may grow beyond so many bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))


def write_long_rows() -> None:
    Path("rows.jsonl").write_text("".join(json.dumps({"n": n, "x": os.urandom(800).hex()}) + "\n" for n in range(60)))


def call_in(most: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=60,
                          preexec_fn=lambda: little_room(most), check=False)  # fmt: skip


def test_show_says_again_that_the_disk_was_full_and_how_to_go_on(folder: Path):
    Path("mended").touch()
    write_long_rows()
    ran = subprocess.run(command(*RUN, "--in-flight", "4"), capture_output=True, text=True, timeout=60,
                         preexec_fn=little_room, check=False)  # fmt: skip
    assert ran.returncode == 4 and "File too large" in ran.stderr
    for said in (ran.stdout, call("show", "out").stdout):
        assert "stopped: the journal could not be written" in said and "File too large" in said
        assert "go on:      weaverant resume out\n" in said
    assert json.loads(call("show", "out", "--json").stdout)["state"] == "journal"
    assert call("resume", "out").returncode == 0
    shown = json.loads(call("show", "out", "--json").stdout)
    assert (shown["state"], shown["why"], shown["left"]) == ("finished", None, 0)


def test_a_disk_that_is_still_full_leaves_a_run_to_resume(folder: Path):
    Path("mended").touch()
    write_long_rows()
    assert call_in(20_000, *RUN, "--in-flight", "4").returncode == 4
    left = json.loads(call("show", "out", "--json").stdout)["left"]
    for most in (5_000, 100):
        for flags in ((), ("--quiet",)):
            again = call_in(most, "resume", "out", *flags)
            assert again.returncode == 4 and "File too large" in again.stderr and "Traceback" not in again.stderr
            assert " of 60 rows (done 0" not in again.stderr
    assert 0 < json.loads(call("show", "out", "--json").stdout)["left"] <= left < 60
    assert call("resume", "out").returncode == 0
    assert len(exported()) == 54


@pytest.mark.parametrize(("room", "code"), [(100, 1), (2_500, 4)])
def test_a_run_that_begins_on_a_full_disk_is_resumable_where_it_is_there(folder: Path, room: int, code: int):
    """Its `run.json` takes less than the larger room, the lock beside it more."""
    Path("mended").touch()
    ran = call_in(room, *RUN)
    assert ran.returncode == code and ran.stderr.count("\n") == 1 and "File too large" in ran.stderr
    assert Path("out").exists() == (code == 4) == ("weaverant resume out" in ran.stderr)
    assert call(*(("resume", "out") if code == 4 else RUN)).returncode == 0


def test_bytecode_that_a_full_disk_cut_short_is_told_with_the_way_out(folder: Path):
    """Python writes less than all of it, without an error, and takes it for whole."""
    Path("beside.py").write_text("LONG = 'a text'\n")
    Path("w.py").write_text("import beside\n" + WORKFLOW)
    kept = Path(py_compile.compile("beside.py") or "")
    kept.write_bytes(kept.read_bytes()[:40])
    ran = call(*RUN)
    assert ran.returncode == 2 and "delete __pycache__" in ran.stderr and ran.stderr.count("\n") == 1
    shutil.rmtree("__pycache__")
    Path("mended").touch()
    assert call(*RUN).returncode == 0
    assert [each.name for each in Path("__pycache__").iterdir()] == [kept.name], "that of the workflow's file is kept"


def test_calls_that_a_kill_or_a_stop_cut_off_are_told_beside_the_cost(folder: Path):
    """Without a budget nothing was set aside for them: no cost counts what a bill may."""
    write_rows(20)
    with MockServer(latency=30.0, price="1,1") as server:
        given = ("run", "w.py", "--input", "rows.jsonl", "--model", f"{server.url}?price=1,1#m", "--concurrency", "5")
        killed = begin(*given, "--run", "out", delay=0.0)
        wait_until(lambda: server.stats()["total"] == 5)
        killed.kill()
        killed.communicate(timeout=20)
        assert (
            "\ncut off     what was in flight when 1 session ended by a kill: a bill may have"
            in call("show", "out").stdout
        )
        server.reset()
        stopped = begin(*given, "--run", "stopped", delay=0.0)
        wait_until(lambda: server.stats()["total"] == 5)
        stopped.send_signal(signal.SIGINT)
        time.sleep(0.3)
        stopped.send_signal(signal.SIGINT)
        out, _ = stopped.communicate(timeout=20)
        for said in (out, call("show", "stopped").stdout):
            assert "\ncut off     5 calls when it stopped: a bill may have them" in said
        told = json.loads(call("show", "stopped", "--json").stdout)
        assert told["cut_off"] == {"calls": 5, "sessions": 0, "peers": 0} and told["spent"]["total"] == 0.0
        bounded = [word for agent in ("first", "second") for word in ("--set", f"{agent}.max_tokens=100")]
        paid = begin(*given, *bounded, "--run", "paid", "--budget", "1", delay=0.0)
        wait_until(lambda: server.stats()["total"] == 10)
        paid.kill()
        paid.communicate(timeout=20)
        said = call("show", "paid").stdout
        assert "cut off" not in said and "5 calls whose bill nobody knows" in said


def test_show_says_again_what_stopped_a_run_at_its_server_and_how_to_go_on(folder: Path):
    spec = "http://127.0.0.1:9/v1?retries=0#m"
    ran = call("run", "w.py", "--input", "rows.jsonl", "--model", spec, "--run", "out")
    assert ran.returncode == 4
    for said in (ran.stdout, call("show", "out").stdout):
        assert "why: connection: " in said and "connection refused" in said and "weaverant resume out" in said


def test_ctrl_c_finishes_what_is_in_flight_and_leaves_a_run_to_resume(folder: Path):
    Path("mended").touch()
    write_rows(60)
    ran = begin(*RUN, "--concurrency", "4", delay=0.2)
    wait_until(lambda: journal_bytes() > 1500)
    ran.send_signal(signal.SIGINT)
    out, err = ran.communicate(timeout=20)
    assert ran.returncode == 4, err
    assert "calls in flight may finish, for 30 s at most" in err and "Traceback" not in err
    assert "stopped by a signal" in out and "weaverant resume out" in out
    shown = json.loads(call("show", "out", "--json").stdout)
    assert shown["state"] == "interrupted" and 0 < shown["left"] < 60
    assert sum(agent["cancelled"] for agent in shown["agents"]) == 0
    resumed = call("resume", "out")
    assert resumed.returncode == 0, resumed.stderr
    assert "rows 60 = done 54 + rejected 6 + failed 0 + left 0" in resumed.stdout
    once = exported()
    subprocess.run(["rm", "-r", "out"], check=True)
    assert call(*RUN).returncode == 0
    assert once == exported()


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_second_signal_stops_at_once(folder: Path, first: signal.Signals):
    ran = begin(*RUN, "--grace", "60", delay=50)
    wait_until(lambda: journal_bytes() > 0)
    time.sleep(0.2)
    ran.send_signal(first)
    time.sleep(0.3)
    assert ran.poll() is None
    began = time.monotonic()
    ran.send_signal(signal.SIGINT)
    _, err = ran.communicate(timeout=20)
    assert time.monotonic() - began < 5
    assert ran.returncode == 4 and "stopping at once" in err


def test_a_hang_up_is_an_orderly_stop_and_a_second_one_hurries_nobody(folder: Path):
    """The shell and the kernel both send one when a terminal is closed."""
    Path("mended").touch()
    write_rows(60)
    ran = begin(*RUN, "--concurrency", "4", delay=0.3)
    wait_until(lambda: journal_bytes() > 1500)
    for _ in range(3):
        ran.send_signal(signal.SIGHUP)
        time.sleep(0.02)
    out, err = ran.communicate(timeout=20)
    assert ran.returncode == 4 and "calls in flight may finish" in err and "stopping at once" not in err, err
    assert "stopped by a signal" in out
    shown = json.loads(call("show", "out", "--json").stdout)
    assert (shown["state"], sum(agent["cancelled"] for agent in shown["agents"])) == ("interrupted", 0)


def test_under_nohup_a_hang_up_is_ignored(folder: Path):
    Path("mended").touch()
    nohup = ["nohup", *command(*RUN, "--concurrency", "4")]
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    ran = subprocess.Popen(nohup, text=True, env={**os.environ, "DELAY": "0.1"}, **pipes)
    wait_until(lambda: journal_bytes() > 0)
    ran.send_signal(signal.SIGHUP)
    out, err = ran.communicate(timeout=30)
    assert ran.returncode == 0 and "rows 20 = done 18 + rejected 2 + failed 0 + left 0" in out, err


@pytest.mark.parametrize("kind", ["step", "process_step"])
def test_a_step_that_sleeps_elsewhere_does_not_hold_the_second_signal(folder: Path, kind: str):
    Path("nap.py").write_text(
        f"import time\nfrom weaverant import {kind}, workflow\n\n"
        f"@workflow\nasync def nap(row):\n    await {kind}(time.sleep, 50)\n"
    )
    ran = begin("run", "nap.py", "--input", "rows.jsonl", "--model", "simulated:", "--run", "out", delay=0)
    wait_until(lambda: journal_bytes() > 0)
    time.sleep(0.3)
    ran.send_signal(signal.SIGINT)
    time.sleep(0.3)
    ran.send_signal(signal.SIGINT)
    ran.communicate(timeout=10)
    assert ran.returncode == 4


def test_a_step_that_nobody_waits_for_does_not_hold_the_end(folder: Path):
    Path("nap.py").write_text(
        "import time\nfrom weaverant import deadline, step, workflow\n\n"
        "@workflow\nasync def nap(row):\n"
        "    try:\n        async with deadline(0.2):\n            await step(time.sleep, 50)\n"
        "    except TimeoutError:\n        return 'late'\n"
    )
    began = time.monotonic()
    done = call("run", "nap.py", "--input", "rows.jsonl", "--limit", "1", "--model", "simulated:", "--run", "out")
    assert done.returncode == 0 and "rows 1 = done 1" in done.stdout
    assert time.monotonic() - began < 30


@pytest.mark.parametrize(("arguments", "code"), [(RUN, 130), (("resume", "out"), 4)], ids=["run", "resume"])
def test_ctrl_c_before_anything_was_done_tells_whether_there_is_a_run_to_resume(
    folder: Path, arguments: tuple[str, ...], code: int
):
    slow = (
        'import os, pathlib, time\nif os.path.exists("slow"):\n    pathlib.Path("loads").touch()\n    time.sleep(50)\n'
    )
    Path("w.py").write_text(slow + WORKFLOW)
    if code == 4:
        assert call(*RUN).returncode == 3
        arguments = (*arguments, "--retry", "failed")
    Path("slow").touch()
    loads = begin(*arguments, delay=0.0)
    wait_until(Path("loads").exists)
    loads.send_signal(signal.SIGINT)
    out, err = loads.communicate(timeout=20)
    assert loads.returncode == code and out == err == "", err
    assert Path("out").exists() == (code == 4)


def test_ctrl_c_while_the_summary_is_made_changes_no_code(folder: Path):
    """A reader that takes nothing holds it up there."""
    Path("mended").touch()
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    os.write(writer, b"x" * 4096)
    ran = subprocess.Popen(command(*RUN), stdout=writer, stderr=subprocess.PIPE, text=True)
    wait_until(
        lambda: "out" in os.listdir() and json.loads(call("show", "out", "--json").stdout)["state"] == "finished"
    )
    time.sleep(1.0)
    ran.send_signal(signal.SIGINT)
    time.sleep(0.3)
    os.close(writer)
    while os.read(reader, 4096):
        pass
    os.close(reader)
    _, err = ran.communicate(timeout=20)
    assert ran.returncode == 0 and "Traceback" not in err, err


def test_the_deadline_ends_what_does_not_finish(folder: Path):
    ran = begin(*RUN, "--grace", "0.3", delay=50)
    wait_until(lambda: journal_bytes() > 0)
    time.sleep(0.2)
    ran.send_signal(signal.SIGINT)
    ran.communicate(timeout=10)
    assert ran.returncode == 4


def test_kill_9_then_resume(folder: Path):
    Path("mended").touch()
    write_rows(60)
    ran = begin(*RUN, "--concurrency", "4", delay=0.1)
    wait_until(lambda: journal_bytes() > 2500)
    ran.kill()
    ran.communicate()
    shown = json.loads(call("show", "out", "--json").stdout)
    assert shown["state"] == "killed" and shown["left"] > 0
    resumed = call("resume", "out")
    assert resumed.returncode == 0, resumed.stderr
    assert "rows 60 = done 54 + rejected 6 + failed 0 + left 0" in resumed.stdout
    assert len(exported()) == 54


def test_show_works_while_the_run_is_written(folder: Path):
    ran = begin(*RUN, "--concurrency", "2", delay=0.5)
    try:
        wait_until(lambda: journal_bytes() > 1000)
        shown = json.loads(call("show", "out", "--json").stdout)
        assert shown["state"] == "running" and shown["left"] > 0
    finally:
        ran.kill()
        ran.communicate()


# A terminal


def on_terminal(*arguments: str, delay: float, columns: int) -> tuple[int, int]:
    """(process id, the terminal's other end)"""
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ |= {"DELAY": str(delay), "TERM": "xterm"}
        os.environ.pop("NO_COLOR", None)
        os.execv(sys.executable, command(*arguments))
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, (24).to_bytes(2, "little") + columns.to_bytes(2, "little") + bytes(4))
    return pid, terminal


def pieces(terminal: int) -> Iterator[str]:
    """What is written to the terminal, until the process has gone."""
    while select.select([terminal], [], [], 20)[0]:
        try:
            data = os.read(terminal, 65536)
        except OSError:
            return
        if not data:
            return
        yield data.decode(errors="replace")


def test_on_a_terminal_a_block_is_redrawn_and_ctrl_c_is_a_key(folder: Path):
    write_rows(100)
    pid, terminal = on_terminal(*RUN, "--concurrency", "4", delay=0.2, columns=100)
    text, pressed = "", False
    for piece in pieces(terminal):
        text += piece
        if not pressed and text.count("\x1b[3A\r\x1b[J") >= 3:
            os.write(terminal, b"\x03")
            pressed = True
    os.close(terminal)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 4, text
    assert "█" in text or "░" in text
    assert " of 100 " in text and "calls in flight may finish" in text and "stopping (interrupted)" in text
    block = text.split("\x1b[J")[-1].partition("w.py:")[0]
    assert "elapsed" in block and block.count("\n") == 4  # the block, then the summary's blank line


def test_a_closed_terminal_stops_the_run_in_order(folder: Path):
    """Nothing can be written to it any more, the report neither."""
    Path("mended").touch()
    Path("nap.py").write_text(
        "import time\nfrom weaverant import process_step, workflow\n\n"
        "@workflow\nasync def nap(row):\n    await process_step(time.sleep, 0.5)\n"
    )
    nap = ["run", "nap.py", "--input", "rows.jsonl", "--model", "simulated:", "--run", "out"]
    pid, terminal = on_terminal(*nap, delay=0, columns=100)
    wait_until(lambda: journal_bytes() > 0)
    time.sleep(0.7)
    os.close(terminal)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 4
    shown = json.loads(call("show", "out", "--json").stdout)
    assert shown["state"] == "interrupted" and shown["left"] > 0
    assert sum(sum(agent["failures"].values()) + agent["cancelled"] for agent in shown["agents"]) == 0


def test_ctrl_c_on_a_terminal_reaches_the_run_once_and_no_worker_process(folder: Path):
    Path("nap.py").write_text(
        "import time\nfrom weaverant import process_step, workflow\n\n"
        "@workflow\nasync def nap(row):\n    await process_step(time.sleep, 1.0)\n"
    )
    run = ("run", "nap.py", "--input", "rows.jsonl", "--model", "simulated:", "--run", "out", "--threads", "2")
    pid, terminal = on_terminal(*run, delay=0, columns=100)
    text, pressed = "", False
    for piece in pieces(terminal):
        text += piece
        if not pressed and "2 calls" in text:
            os.write(terminal, b"\x03")
            pressed = True
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 4, text
    assert "stopping: 2 calls" in text and "stopping at once" not in text
    assert "rows 20 = done 2 + rejected 0 + failed 0 + left 18" in text


# Looking


def test_a_dry_run_writes_nothing_and_shows_the_first_messages(folder: Path):
    before = sorted(path.name for path in folder.rglob("*") if "__pycache__" not in str(path))
    ran = call(*RUN, "--dry-run", "--times", "3", "--set", "first.temperature=0.1")
    assert ran.returncode == 0, ran.stderr
    assert sorted(path.name for path in folder.rglob("*") if "__pycache__" not in str(path)) == before
    for piece in ("times=3", "20 rows", "agent second: model 'other' -> scripted:", "temperature=0.1", "user | Say 0"):
        assert piece in ran.stdout
    assert "prompt: Again: {{ said }}" in ran.stdout


MISSPELT = """
from weaverant import Agent, workflow

writer = Agent("writer", prompt="Write on {{ topic }}")
judge = Agent("judge", prompt="{% for text in texts %}{{ text.words }}{% endfor %} {{ anwser }}", output=dict)

@workflow
async def judged(row):
    text = await writer(TOPIC=row["n"])
    for _ in range(ROUNDS):
        text = await writer(topic=text)
    return await judge(texts=[row["given"], text], answer=text)
"""


@pytest.mark.parametrize(
    ("topic", "rounds", "says"),
    [
        ("topik", "1", "'topic' is undefined (did you mean 'topik'?)"),
        ("topic", "1", "in judged: agent 'judge': prompt: 'anwser' is undefined (did you mean 'answer'?)"),
        ("topic", "10**9", ""),
        ("topic", "int(text)", ""),
    ],
    ids=["first call", "second agent", "a loop without end", "what only a real reply can tell"],
)
def test_a_dry_run_finds_variables_that_no_call_gives(
    folder: Path, capsys: pytest.CaptureFixture[str], topic: str, rounds: str, says: str
):
    code = MISSPELT.replace("TOPIC", topic).replace("ROUNDS", rounds).replace("{{ text.words }}", "{{ text }}")
    Path("w.py").write_text(code)
    Path("rows.jsonl").write_text("".join(json.dumps({"n": n, "given": "x"}) + "\n" for n in range(9)))
    assert main([*RUN, "--dry-run"]) == (2 if says else 0)
    said = capsys.readouterr()
    assert says in said.err and len(said.err.splitlines()) == bool(says)
    assert not says or said.err.endswith("(so in 9 of the first 9 rows)\n")
    assert ("Write on 0" in said.out) == (topic == "topic"), "the first call is shown as it would be"
    assert not Path("out").exists()


def test_a_dry_run_blames_no_template_for_what_a_placeholder_lacks(folder: Path):
    Path("w.py").write_text(MISSPELT.replace("TOPIC", "topic").replace("ROUNDS", "1").replace("anwser", "answer"))
    Path("rows.jsonl").write_text('{"n": 1, "given": {"words": 2}}\n')
    assert main([*RUN, "--dry-run"]) == 0


def test_a_dry_run_tells_of_rows_that_cannot_be_read(folder: Path, capsys: pytest.CaptureFixture[str]):
    Path("rows.jsonl").write_text('{"n": 0\n' + '{"n": 1}\n' * 8 + "[2]\n{\n")
    assert main([*RUN, "--dry-run"]) == 0, "the rows that can be read may be wanted all the same"
    said = capsys.readouterr().out
    assert "2 of the first 10 rows cannot be read and would fail:\n  rows.jsonl:1: not JSON" in said
    assert 'first row   {"n": 1}' in said and "user | Say 1" in said
    Path("rows.jsonl").write_text('{"n": 1}\n')
    assert main([*RUN, "--dry-run"]) == 0 and "cannot be read" not in capsys.readouterr().out


def test_a_dry_run_prints_models_as_they_were_given(folder: Path, capsys: pytest.CaptureFixture[str]):
    spec = "simulated:latency=0.25,slots=3"
    given = ["--model", spec, "--model", "other=openai:gpt-5-mini?rpm=60"]
    assert main(["run", "w.py", "--input", "rows.jsonl", *given, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert f"agent first: model 'default' -> {spec}\n" in said
    assert "agent second: model 'other' -> openai:gpt-5-mini?rpm=60\n" in said


def test_a_dry_run_in_which_no_row_comes_to_its_first_step_is_2(folder: Path, capsys: pytest.CaptureFixture[str]):
    Path("rows.jsonl").write_text('{"m": 1}\n{"m": 2}\n')
    assert main([*RUN, "--dry-run"]) == 2
    said = capsys.readouterr().err
    assert (
        "none of the first 2 rows comes to its first step: KeyError: 'n'; the row has: 'm' (w.py:10 in twice)" in said
    )
    Path("rows.jsonl").write_text('{"m": 1}\n{"n": 2}\n')
    assert main([*RUN, "--dry-run"]) == 0, "one bad row is no mistake in the workflow"
    said = capsys.readouterr().out
    assert "it ends before its first step, failed: KeyError: 'n'; the row has: 'm'" in said
    assert "1 of the first 2 rows fails before a first step:\n  KeyError: 'n'; the row has: 'm'" in said


def test_parameters_are_flags(folder: Path):
    Path("mended").touch()
    assert "parameters of w" in call("run", "w.py", "--help").stdout
    ran = call(*RUN, "--shout", "--times", "2", "--tag", "7", "--limit", "2")
    assert ran.returncode == 0, ran.stderr
    assert exported()[0]["result"] == {"said": "<AGAIN: <AGAIN: <SAY 0>>>", "tag": "7"}
    assert json.loads(call("show", "out", "--json").stdout)["parameters"] == {"shout": True, "times": 2, "tag": "7"}


def test_models_by_name_and_trials(folder: Path):
    ran = call(*RUN[:-4], "--model", "other=scripted:echo.py", "--model", "simulated:latency=0,tokens=4", "--run", "out",
               "--trials", "2", "--limit", "3")  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert "SIMULATED MODEL (*)" in ran.stdout
    assert [sample["key"] for sample in exported()] == [f"0.{n}.{trial}" for n in range(3) for trial in range(2)]


def test_rows_from_standard_input_and_no_journal(folder: Path):
    rows = "".join(json.dumps({"n": n}) + "\n" for n in range(3))
    ran = call("run", "w.py", "--input", "-", "--model", "scripted:echo.py", "--no-journal", stdin=rows)
    assert ran.returncode == 0, ran.stderr
    assert "rows 3 = done 3" in ran.stdout and "nothing was stored" in ran.stdout
    assert not Path("runs").exists()


def test_a_run_from_standard_input_goes_on_with_the_rows_that_it_had_read(folder: Path):
    """Of a pipe there is nothing more to read: not after a pilot, not after a stop."""
    Path("mended").touch()
    rows = "".join(json.dumps({"n": n}) + "\n" for n in range(30))
    given = ("run", "w.py", "--input", "-", "--model", "scripted:echo.py", "--run", "out")
    pilot = call(*given, "--pilot", "2", stdin=rows)
    assert pilot.returncode == 0 and "of '-' the run has kept the 30 rows that were read" in pilot.stderr
    resumed = call("resume", "out")
    assert resumed.returncode == 0 and "rows 30 = done 27 + rejected 3 + failed 0 + left 0" in resumed.stdout
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    again = (*given[:-1], "stopped", "--concurrency", "2", "--in-flight", "2")
    ran = subprocess.Popen(command(*again), text=True, env={**os.environ, "DELAY": "0.2"}, **pipes)  # pyright: ignore
    assert ran.stdin is not None
    ran.stdin.write(rows)
    ran.stdin.close()
    ran.stdin = None
    wait_until(lambda: any(path.stat().st_size > 1500 for path in Path("stopped/journal").glob("*.wvj")))
    ran.send_signal(signal.SIGINT)
    _, err = ran.communicate(timeout=20)
    assert ran.returncode == 4, err
    resumed = call("resume", "stopped")
    assert resumed.returncode == 0, resumed.stderr
    assert "rows 30 = done 27 + rejected 3 + failed 0 + left 0" in resumed.stdout


def test_one_tasks_story(folder: Path):
    call(*RUN)
    story = call("show", "out", "--task", "0.3.0").stdout
    assert "user | Say 3" in story and "FAILED | server: out of order" in story and "failed: server at w.py:10" in story
    story = call("show", "out", "--task", "0.4.0").stdout
    assert "user | Again: <Say 4>" in story and "assistant | <Again: <Say 4>>" in story and "\ndone after" in story
    assert json.loads(call("show", "out", "--task", "0.4.0", "--json").stdout)["state"] == "done"
    unknown = call("show", "out", "--task", "13")
    assert unknown.returncode == 2 and "Near it: 0.13.0" in unknown.stderr


CHOOSY = """
from pydantic import BaseModel
from weaverant import Agent, workflow

class Verdict(BaseModel):
    right: bool

drafts = Agent("drafts", prompt="Draft {{ n }}", n=3)
judge = Agent("judge", prompt="Which?", output=Verdict)

@workflow
async def choosy(row):
    said = await drafts.reply(n=row["n"])
    return {"drafts": [choice.text for choice in said.choices], "right": (await judge()).right}
"""

SEVERAL = """
from weaverant import Reply
from weaverant.message import Choice, assistant

async def reply(request):
    if request.agent == "judge":
        return '{"right": true}'
    return Reply(assistant("one"), more=(Choice(assistant("two"), "length"), Choice(assistant("three"))))
"""


def test_a_tasks_story_has_every_reply_and_says_that_there_was_a_schema(folder: Path):
    Path("choosy.py").write_text(CHOOSY)
    Path("several.py").write_text(SEVERAL)
    write_rows(1)
    ran = call("run", "choosy.py", "--input", "rows.jsonl", "--model", "scripted:several.py", "--run", "out")
    assert ran.returncode == 0, ran.stderr
    drafts, judge = call("show", "out", "--task", "0.0.0").stdout.split("\nstep ")[1:]
    assert drafts.splitlines()[1:] == [
        "       user | Draft 0",
        "  (reply 1 of 3)",
        "  assistant | one",
        "  (reply 2 of 3; cut short: length)",
        "  assistant | two",
        "  (reply 3 of 3)",
        "  assistant | three",
    ]
    assert "schema" not in drafts
    assert "  (with the JSON schema of Verdict, in the prompt where the server takes none)" in judge.splitlines()
    steps = json.loads(call("show", "out", "--task", "0.0.0", "--json").stdout)["steps"]
    assert [step["output"] and step["output"]["schema"]["required"] for step in steps] == [None, ["right"]]
    chats = [sample["messages"] for sample in exported("messages")]
    assert [chat[-1]["content"] for chat in chats] == ["one", '{"right": true}']


def test_a_reader_that_leaves_is_no_error(folder: Path):
    write_rows(3)
    call(*RUN)
    Path("rows.jsonl").write_text(json.dumps({"n": 0, "text": "x" * 300_000}) + "\n")
    call(*RUN[:-1], "long")
    shown = subprocess.Popen(
        command("show", "long", "--task", "0.0.0"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert shown.stdout is not None and shown.stderr is not None
    shown.stdout.read(10)
    shown.stdout.close()
    assert shown.stderr.read() == ""
    shown.stderr.close()
    assert shown.wait(timeout=20) == 1


def test_help_loads_little():
    code = "import sys; from weaverant.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    code += "print({'weaverant.launch', 'numpy', 'aiohttp', 'pydantic'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.endswith(
        "set()\n"
    )


# Starting


@pytest.mark.parametrize(("words", "code"), [(["--help"], 0), (["recipes", "list"], 0), (["show", "nowhere"], 2)])
def test_the_package_run_as_a_module_is_the_installed_command(folder: Path, words: list[str], code: int):
    installed = os.path.join(sysconfig.get_path("scripts"), "weaverant")
    ends = [
        subprocess.run([*start, *words], capture_output=True, text=True, timeout=60, check=False)
        for start in ([installed], [sys.executable, "-m", "weaverant"])
    ]
    assert [ended.returncode for ended in ends] == [code, code]
    assert (ends[0].stdout, ends[0].stderr) == (ends[1].stdout, ends[1].stderr)


def test_the_package_run_as_a_module_runs_a_workflow(folder: Path):
    ran = subprocess.run(
        [sys.executable, "-m", "weaverant", *RUN], capture_output=True, text=True, timeout=60, check=False
    )
    assert (ran.returncode, "done 17 + rejected 2 + failed 1" in ran.stdout) == (3, True)


def test_the_example_runs_as_its_text_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    wrote = call("init", "mine")
    assert wrote.returncode == 0
    commands = [text.strip().split()[1:] for text in wrote.stdout.splitlines() if text.startswith("  weaverant ")]
    ran, export = (call(*words) for words in commands)
    assert ran.returncode == 0, ran.stderr
    assert export.returncode == 0, export.stderr
    monkeypatch.chdir(tmp_path / "mine")
    readme = [
        line.strip().split()[1:] for line in Path("README.md").read_text().splitlines() if line.startswith("    weav")
    ]
    subprocess.run(["rm", "-r", "run", "data.jsonl"], check=True)
    for words in readme:
        assert call(*words).returncode == 0
    assert json.loads(Path("data.jsonl").read_text().splitlines()[0])["result"]["answer"]
    for form in ("preference", "sft"):
        assert call("export", "run", "--as", form, "--out", f"{form}.jsonl").returncode == 0
        assert Path(f"{form}.jsonl").stat().st_size > 0
    again = call("init", ".")
    assert again.returncode == 2 and "nothing is overwritten" in again.stderr


def test_recipes_are_listed_and_copied_never_over_something(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    listed = call("recipes", "list")
    assert listed.returncode == 0
    names = [line.partition(":")[0] for line in listed.stdout.splitlines() if not line.startswith(" ")]
    unknown = call("recipes", "copy", "nope", "x")
    assert unknown.returncode == 2 and "there is no recipe 'nope'" in unknown.stderr
    assert "malt" in names
    assert call("recipes", "copy", names[0], "mine").returncode == 0
    assert Path("mine/recipe.py").is_file() and not list(Path("mine").rglob("__pycache__"))
    assert call("recipes", "copy", names[0], "mine").returncode == 2


def test_a_shortened_or_edited_input_is_refused_and_changes_nothing(folder: Path):
    rows = Path("rows.jsonl").read_text()
    going = call(*RUN, "--max-failures", "1", "--limit", "3")
    assert going.returncode in (0, 3)
    before = sorted((path.name, path.stat().st_size) for path in Path("out/journal").iterdir())
    for changed in (rows[: len(rows) // 2], rows + '{"n": 999}\n', rows.replace("1", "7", 1)):
        Path("rows.jsonl").write_text(changed)
        refused = call("resume", "out", "--retry", "failed")
        assert (refused.returncode, "the input" in refused.stderr) == (2, True)
    assert before == sorted((path.name, path.stat().st_size) for path in Path("out/journal").iterdir())


def test_an_exporter_and_a_comment_may_be_added_to_a_stopped_run(folder: Path):
    assert call(*RUN).returncode == 3
    with Path("w.py").open("a") as file:
        file.write(
            "\n\n# a comment\nfrom weaverant import exporter\n\n\n@exporter\ndef mine(story):\n    yield {'key': story.key}\n"
        )
    Path("mended").touch()
    again = call("resume", "out", "--retry", "failed")
    assert again.returncode == 0, again.stderr
    assert call("export", "out", "--as", "mine", "--out", "mine.jsonl").returncode == 0


def test_a_file_that_runs_itself_when_loaded_is_refused(folder: Path):
    with Path("w.py").open("a") as file:
        file.write("\nfrom weaverant import run\nrun(twice, [], models='simulated:')\n")
    refused = call(*RUN)
    assert (refused.returncode, "__main__" in refused.stderr) == (2, True)


def test_counts_stay_right_over_several_retries(folder: Path):
    assert call(*RUN).returncode == 3
    for _ in range(2):
        again = call("resume", "out", "--retry", "failed")
        assert again.returncode == 3
        assert "failed 1)" in again.stderr and "failed 2)" not in again.stderr


def test_a_dry_run_needs_no_key(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    wanted = ["run", "w.py", "--input", "rows.jsonl", "--model", "openai:gpt-5-mini", "--run", "out"]
    assert main([*wanted, "--dry-run"]) == 0
    warnings = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 1 and "'OPENAI_API_KEY', which is not set" in warnings[0]
    assert main(wanted) == 2 and "'OPENAI_API_KEY', which is not set" in capsys.readouterr().err
    monkeypatch.setenv("OPENAI_API_KEY", "k" * 20)
    assert main([*wanted, "--dry-run"]) == 0 and "warning" not in capsys.readouterr().out
    assert not Path("out").exists()


def test_calls_that_wait_inside_an_engine_are_not_said_to_be_in_flight(folder: Path):
    held = "simulated:latency=30,slots=3"
    ran = begin("run", "w.py", "--input", "rows.jsonl", "--model", held, "--run", "out", "--grace", "0.2", delay=0)
    wait_until(lambda: journal_bytes() > 0)
    time.sleep(0.7)
    ran.send_signal(signal.SIGINT)
    _, err = ran.communicate(timeout=20)
    assert ran.returncode == 4 and "stopping: 3 calls in flight may finish" in err


# The document


COMMANDS = [
    *("", "run", "resume", "join", "show", "export", "fetch", "train", "improve", "route", "recipes", "models", "init"),
    *("route train", "route eval", "route calibrate", "route learn", "route explain"),
]


def flags_told(command: str) -> set[str]:
    """The flags in a command's --help, with what they take."""
    told = call(*command.split(), "--help").stdout
    return set(re.findall(r"^  (--\S+(?: \S+)?)(?:  .*)?$", told, re.MULTILINE))


def flags_documented(command: str) -> set[str]:
    """Those in the command's table in docs/cli.md."""
    sections = (Path(__file__).parents[1] / "docs" / "cli.md").read_text().split("\n## ")
    (section,) = [text for text in sections if text.partition("\n")[0] == f"weaverant {command}".strip()]
    return set(re.findall(r"^\| `(--[^`]+)` \|", section, re.MULTILINE))


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command or "none")
def test_the_document_has_every_flag_of_every_command_and_no_other(command: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "400")
    assert flags_documented(command) == flags_told(command)


def test_the_document_has_every_command(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "400")
    told = re.findall(r"^    (\w+) ", call("--help").stdout.partition("commands:")[2], re.MULTILINE)
    assert told == [command for command in COMMANDS[1:] if " " not in command]
    told_flags = {flag for command in COMMANDS for flag in flags_told(command)}
    assert {"--trials N", "--set AGENT.FIELD=VALUE", "--state {done,rejected,failed}", "--version"} <= told_flags


# Slips of the pen


def test_a_flag_that_the_workflow_has_not_is_answered_with_those_it_has(
    folder: Path, capsys: pytest.CaptureFixture[str]
):
    assert main([*RUN, "--attempts", "3"]) == 2
    said = capsys.readouterr().err
    assert "'--attempts' was not expected" in said and "flags of 'w' itself: --shout, --tag, --times" in said


def test_a_hosted_model_that_is_not_listed_is_doubted_and_not_refused(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    date = tables()["openai"].date
    doubt = f"weaverant: warning: openai lists no 'gpt5-mini' (prices of {date}); did you mean 'gpt-5-mini'?"
    for spec, lines in (
        ("openai:gpt5-mini", [f"{doubt} Its price is unknown"]),
        ("openai:gpt5-mini?price=1,2", [doubt]),
        ("cache:kept|openai:gpt5-mini", [f"{doubt} Its price is unknown"]),
        ("openai:gpt-5-mini", []),
        ("http://127.0.0.1:9/v1#gpt5-mini", []),
    ):
        ran = call("run", "w.py", "--input", "rows.jsonl", "--model", spec, "--dry-run")
        assert (ran.returncode, ran.stderr.splitlines()) == (0, lines), spec


def test_a_hosted_models_bare_name_is_answered_with_its_spec(folder: Path, capsys: pytest.CaptureFixture[str]):
    for word in ("gpt-4o", "gpt4o"):
        assert main(["run", "w.py", "--input", "rows.jsonl", "--model", word]) == 2
        assert f"no kind of model is called {word!r}. Did you mean 'openai:gpt-4o'?" in capsys.readouterr().err
    assert main(["run", "w.py", "--input", "rows.jsonl", "--model", "sk-live-0123456789abcdef"]) == 2
    assert "0123456789" not in capsys.readouterr().err


# Runs that were made in Python


TEN_LINES = """
import asyncio
from collections import Counter
from weaverant import Agent, reject, run, workflow

solver = Agent("solver", prompt="{{ question }}", temperature=1.0)


@workflow
async def agree(row):
    replies = await asyncio.gather(*(solver(question=row["question"]) for _ in range(5)))
    answer, votes = Counter(reply.split()[-1] for reply in replies).most_common(1)[0]
    if votes < 3:
        return reject("no majority", votes=votes)
    return {"question": row["question"], "answer": answer, "votes": votes}


"""
GUARDED = """
if __name__ == "__main__":
    open("loaded", "a").write("x")
    for task in run(agree, ROWS, models=MODEL, directory="out", limit=40, concurrency=5):
        print(task.key, task.state)
"""


def killed(text: str, rows: str, model: str) -> None:
    Path("agree.py").write_text(TEN_LINES + text.replace("ROWS", rows).replace("MODEL", model))
    ran = subprocess.Popen([sys.executable, "agree.py"], stdout=subprocess.PIPE, text=True)
    assert ran.stdout is not None
    for _ in range(3):
        assert ran.stdout.readline()
    ran.kill()
    ran.communicate()


def test_a_killed_script_goes_on_from_the_command_line(folder: Path):
    killed(GUARDED, '"arithmetic:weave"', '"simulated:latency=0.1"')
    shown = call("show", "out")
    assert "go on:      weaverant resume out\n" in shown.stdout
    before = json.loads(call("show", "out", "--json").stdout)
    assert before["state"] == "killed" and before["left"] > 0
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    resumed = subprocess.run(
        command("resume", str(folder / "out")), cwd=elsewhere, capture_output=True, text=True, timeout=60, check=False
    )
    assert resumed.returncode == 0, resumed.stderr
    assert "rows 40 = done" in resumed.stdout and "+ left 0" in resumed.stdout
    assert Path("loaded").read_text() == "x", "what the file does as a script was not done again"
    after = json.loads(call("show", "out", "--json").stdout)
    assert after["agents"][0]["calls"] == 200, "no call that was recorded was made again"


def test_a_changed_workflow_of_a_script_is_refused(folder: Path):
    killed(GUARDED, '"arithmetic:weave"', '"simulated:latency=0.1"')
    text = Path("agree.py").read_text()
    Path("agree.py").write_text(text.replace("limit=40", "limit=41"))
    Path("agree.py").write_text(text.replace("votes < 3", "votes < 4"))
    refused = call("resume", "out")
    assert refused.returncode == 2 and "the code of 'agree'" in refused.stderr
    assert f"weaverant run {folder / 'agree.py'}:agree ... --reuse out" in refused.stderr
    Path("agree.py").unlink()
    gone = call("resume", "out")
    assert gone.returncode == 2 and "there is none there any more" in gone.stderr


UNGUARDED = GUARDED.replace('if __name__ == "__main__":', "if True:")


@pytest.mark.parametrize(
    ("text", "rows", "model", "wanted"),
    [
        (GUARDED, "[{'question': str(n)} for n in range(40)]", '"simulated:latency=0.1"', "rows=..."),
        (GUARDED, '"arithmetic:weave"', "engine()", "models=..."),
        (UNGUARDED, '"arithmetic:weave"', '"simulated:latency=0.1"', "workflow=..."),
    ],
    ids=["rows", "models", "workflow"],
)
def test_what_only_python_can_give_again_is_told(folder: Path, text: str, rows: str, model: str, wanted: str):
    engine = "def engine():\n    from weaverant.engines.simulated import Simulated\n    return Simulated(0.1)\n"
    killed(engine + text, rows, model)
    line = f"weaverant.resume('out', {wanted})"
    shown = call("show", "out")
    assert f"go on:      in Python {line}\n" in shown.stdout and "weaverant resume out" not in shown.stdout
    refused = call("resume", "out")
    assert refused.returncode == 2 and line in refused.stderr
    given = {"rows=...": f"rows={rows}", "models=...": "models=engine()", "workflow=...": "workflow=agree"}[wanted]
    Path("again.py").write_text(
        f"{TEN_LINES}{engine}import weaverant\nfor task in {line.replace(wanted, given)}:\n    print(task.key)\n"
    )
    went_on = subprocess.run([sys.executable, "again.py"], capture_output=True, text=True, timeout=60, check=False)
    assert went_on.returncode == 0, went_on.stderr
    assert json.loads(call("show", "out", "--json").stdout)["left"] == 0


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda text: text + '{"n": 20}\n', "(20 rows, now 21; 190 bytes, now 200; "),
        (lambda text: text.replace("13", "31", 1), "(the first MiB of a file; the last MiB of a file)"),
        (lambda text: text.replace('{"n": 3}\n', '{"n":\t3}\n\n', 1), "(190 bytes, now 191; "),
    ],
    ids=["longer", "edited", "spaced"],
)
def test_a_changed_input_says_which_check_differs(folder: Path, change: Callable[[str], str], says: str):
    assert call(*RUN).returncode == 3
    Path("rows.jsonl").write_text(change(Path("rows.jsonl").read_text()))
    refused = call("resume", "out", "--retry", "failed")
    assert refused.returncode == 2 and f"the input '{folder / 'rows.jsonl'}' {says}" in refused.stderr
