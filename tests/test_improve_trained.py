"""`weaverant train malt` and `weaverant improve malt` with real trainings: the packaged model, a small random Llama.

Short ones: what is proved is that nothing is lost or done twice, whatever is killed, and that what stands in the files
is true. How much MALT gains is measured by `make malt`.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from small_models import make_llama
from weaverant.engines.embedded import PACKAGED
from weaverant.recipes.malt.roles import read_models
from weaverant.summary import fold
from weaverant.testing.server import MockServer

pytestmark = [pytest.mark.heavy, pytest.mark.timeout(900)]

TINY = PACKAGED / "tiny"
SMALL = (
    "--questions", "14", "--gate-problems", "12", "--no-tables", "--epochs", "1", "--dpo-epochs", "1", "--jobs", "2",
)  # fmt: skip
WEIGHTS = ("sft/generator", "sft/verifier", "sft/refiner", "star", "dpo/verifier", "dpo/refiner")


def weaverant(*arguments: object, **more) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "weaverant", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, check=False, **more)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One round on the packaged model that nobody disturbed."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    done = weaverant("improve", "malt", *SMALL, "--out", out)
    assert done.returncode == 0, done.stderr
    return out


def processes_in(folder: Path) -> list[int]:
    """Whose command line names the folder."""
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            words = (entry / "cmdline").read_bytes()
            state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if str(folder).encode() in words and state not in "ZX":
            found.append(int(entry.name))
    return found


@contextmanager
def going(folder: Path, *arguments: object) -> Iterator[subprocess.Popen[bytes]]:
    """A command, with what it says in `folder`.said."""
    said = folder.with_suffix(".said")
    with said.open("ab") as out:
        process = subprocess.Popen([sys.executable, "-m", "weaverant", *map(str, arguments)], stdout=out, stderr=out)
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()


def wait_for(holds, process: subprocess.Popen[bytes], seconds: float = 240.0) -> None:
    until = time.monotonic() + seconds
    while not holds():
        assert process.poll() is None, "it ended too early"
        assert time.monotonic() < until, "it did not come about"
        time.sleep(0.02)


def gone(folder: Path, seconds: float = 20.0) -> bool:
    """Whether no process of the folder is left, soon."""
    until = time.monotonic() + seconds
    while processes_in(folder):
        if time.monotonic() > until:
            return False
        time.sleep(0.1)
    return True


def test_a_round_trains_all_roles_and_says_who_plays(undisturbed: Path):
    first = undisturbed / "round-1"
    models = read_models(first / "models.json")
    assert json.loads((first / "models.json").read_text())["base"] == "embedded:tiny"
    for place in WEIGHTS:
        method, _, role = place.partition("/")
        assert (first / place / "model.safetensors").read_bytes() != (TINY / "model.safetensors").read_bytes()
        told = json.loads((first / place / "training.json").read_text())
        assert told["state"] == "finished" and told["config"]["epochs"] == 1
        assert models.spec("star" if method == "star" else method, role or "generator") == f"embedded:{first / place}"
        if method == "dpo":
            assert Path(told["model"]) == Path(told["reference"]) == first / "sft" / role
            assert told["config"]["sft_weight"] == 1
    state = json.loads((undisturbed / "improve.json").read_text())
    (told,) = state["rounds"]
    gate = fold(first / "gate").ledger
    assert (gate.stages[0].done, told["verdict"]["problems"]) == (12, 12)
    assert told["adopted"] == (told["verdict"]["low"] > 0 and told["verdict"]["p"] < 0.05)
    page = (undisturbed / "report.md").read_text()
    assert "Left out in round 1:" in page and "value not above theta" in page
    assert told["told"] in page and "bad habits are planted" in page and "slip 18%" in page
    woven, asked = ((undisturbed / "problems" / name).read_text() for name in ("weave-1.jsonl", "gate-1.jsonl"))
    assert not set(woven.splitlines()) & set(asked.splitlines())


def test_what_is_finished_is_not_done_again_and_other_settings_are_refused(undisturbed: Path):
    weights = {place: (undisturbed / "round-1" / place / "model.safetensors").stat().st_mtime_ns for place in WEIGHTS}
    again = weaverant("improve", "malt", *SMALL, "--out", undisturbed)
    assert again.returncode == 0 and "run directory" not in again.stderr
    assert json.loads(again.stdout.splitlines()[-1])["target"] == "malt"
    other = weaverant("improve", "malt", *SMALL, "--lr", "1e-3", "--out", undisturbed)
    assert other.returncode == 2 and "was begun with other settings: sft.lr was 0.0003, is 0.001" in other.stderr
    first = undisturbed / "round-1"
    roles = (
        "train",
        "malt",
        first / "weave",
        "--model",
        "embedded:tiny",
        "--out",
        first,
        "--epochs",
        "1",
        "--dpo-epochs",
        "1",
    )
    same = weaverant(*roles)
    assert same.returncode == 0, same.stderr
    assert same.stderr.count(": finished before, in ") == 6
    other = weaverant(*roles, "--theta", "0.9")
    assert other.returncode == 2 and "rule.theta was None, is 0.9" in other.stderr
    assert weights == {
        place: (undisturbed / "round-1" / place / "model.safetensors").stat().st_mtime_ns for place in WEIGHTS
    }


def test_killed_wherever_it_is_the_same_command_ends_with_the_same_bytes(undisturbed: Path, tmp_path: Path):
    out = tmp_path / "out"
    command = ("improve", "malt", *SMALL, "--out", out)
    first = out / "round-1"
    journal = first / "weave" / "journal"
    with going(out, *command) as process:  # while it weaves
        wait_for(lambda: sum(each.stat().st_size for each in journal.glob("**/*") if each.is_file()) > 20_000, process)
        process.kill()
    assert gone(tmp_path)
    with going(out, *command) as process:  # the whole, while it trains
        wait_for(lambda: (first / "sft" / "verifier" / "metrics.jsonl").exists(), process)
        process.kill()
    assert gone(tmp_path), "a training outlived the command"
    with going(out, *command) as process:  # one training
        wait_for(lambda: trainings_in(first), process)
        os.kill(trainings_in(first)[0], signal.SIGKILL)
        assert process.wait(120) == 1
    said = out.with_suffix(".said").read_text()
    assert "ended by signal 9" in said and "The same command goes on" in said
    assert gone(tmp_path), "another training outlived the one that was killed"
    with going(out, *command) as process:  # Ctrl-C
        wait_for(lambda: trainings_in(first), process)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 4
    assert gone(tmp_path), "Ctrl-C left a training behind"
    done = weaverant(*command)
    assert done.returncode == 0, done.stderr
    expected = undisturbed / "round-1"
    assert (first / "models.json").read_bytes() == (expected / "models.json").read_bytes()
    for path in (expected / "data").iterdir():
        assert (first / "data" / path.name).read_bytes() == path.read_bytes(), path.name
    for place in WEIGHTS:
        ours, theirs = (folder / place / "model.safetensors" for folder in (first, expected))
        assert ours.read_bytes() == theirs.read_bytes(), place
    verdicts = [
        json.loads((folder / "improve.json").read_text())["rounds"][0]["verdict"] for folder in (out, undisturbed)
    ]
    assert verdicts[0] == verdicts[1]
    assert fold(first / "weave").ledger.calls == 14 * 39, "no reply was asked for again"


def cmdline(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def trainings_in(folder: Path) -> list[int]:
    """Of the processes there those that train, not those that hold them on a leash."""
    return [pid for pid in processes_in(folder) if b"\0train\0" in cmdline(pid) and b"leash" not in cmdline(pid)]


def test_a_round_that_could_not_train_is_refused_and_the_tables_are_those_of_the_base(tmp_path: Path):
    out = tmp_path / "out"
    done = weaverant(
        "improve", "malt", "--questions", "1", "--gate-problems", "4", "--held-out-problems", "3", "--seeds", "2",
        "--branching", "1", "--out", out,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "round 1 is refused: nothing could be trained" in done.stdout
    assert "sft generator is left out" in done.stderr and "fewer than 8; the generator keeps" in done.stderr
    models = read_models(out / "round-1" / "models.json")
    assert models.spec("sft", "generator") == models.spec("dpo", "refiner") == "embedded:tiny"
    told = json.loads(done.stdout.splitlines()[-1])
    systems = {row["system"] for row in told["rows"] if "system" in row}
    assert systems == {"sa@1", "sa@3", "sa@9", "ma@1", "ma@3"} and "malt" in told["left_out"]
    assert (told["problems"], told["seeds"], told["planted habits"]["slip"]) == (3, 2, 0.18)
    page = (out / "report.md").read_text()
    assert "No round was adopted: the tables are those of the base" in page and "Table 1" in page
    assert (out / "accuracy.svg").exists() and (out / "evaluation.json").exists()


def test_a_round_that_gains_nothing_is_refused_and_the_next_weaves_with_the_old_team(tmp_path: Path):
    """A learning rate so low that nothing is learned, and a gate of four problems, on which no gain could be sure."""
    out = tmp_path / "out"
    done = weaverant(
        "improve", "malt", "--rounds", "2", "--questions", "4", "--gate-problems", "4", "--no-tables", "--epochs", "1",
        "--dpo-epochs", "1", "--lr", "1e-8", "--dpo-lr", "1e-8", "--theta", "0.4,0.6", "--out", out,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rounds = json.loads((out / "improve.json").read_text())["rounds"]
    assert [(one["adopted"], one["theta"]) for one in rounds] == [(False, 0.4), (False, 0.6)]
    assert "round 1 is refused: " in done.stdout and "points [" in done.stdout
    again = json.loads((out / "round-2" / "weave" / "run.json").read_text())
    assert again["models"] == {"*": "embedded:tiny"} and again["parameters"]["theta"] == 0.6
    assert not (out / "round-2" / "star").exists(), "the baseline is that of round 1"
    first, second = ((out / "problems" / f"weave-{number}.jsonl").read_text().splitlines() for number in (1, 2))
    assert len(first) == len(second) == 4 and not set(first) & set(second)


CHECK = "def even(reply, row):\n    return len(reply) % 2 == 0\n"


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "llama"
    make_llama(folder)
    rows = [{"question": f"What is {number} and {number}?", "answer": str(2 * number)} for number in range(80)]
    (folder.parent / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder.parent / "check.py").write_text(CHECK)
    return folder


def test_a_dry_run_on_any_folder_tells_all_and_writes_nothing(llama: Path, tmp_path: Path):
    rows = llama.parent / "rows.jsonl"
    done = weaverant(
        "improve", "malt", "--problems", rows, "--model", "http://127.0.0.1:9/v1#base", "--train", llama, "--dry-run",
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for words in (
        "problems: weave-1 40, gate-1 16, report 24; none twice", "base: http://127.0.0.1:9/v1#base",
        "trained roles want a server", "sft refiner: chat template, 40 prompts put through",
        f"calls: {40 * 39:,} to weave", "no price is listed", "weaverant train malt",
    ):  # fmt: skip
        assert words in done.stdout, words
    assert list(tmp_path.iterdir()) == []
    no_weights = weaverant("improve", "malt", "--model", "http://127.0.0.1:9/v1#base", "--dry-run")
    assert no_weights.returncode == 2 and "expected --train FOLDER" in no_weights.stderr
    no_server = weaverant("improve", "malt", "--train", llama, "--out", tmp_path / "out")
    assert no_server.returncode == 2 and "Expected --serve" in no_server.stderr


def test_a_llama_is_improved_through_a_server(llama: Path, tmp_path: Path):
    """Every even reply is right, so that there is something to learn; whether it is learned, the gate says."""
    out = tmp_path / "out"
    short = [word for role in ("generator", "verifier", "refiner") for word in ("--set", f"{role}.max_tokens=40")]
    done = weaverant(
        "improve", "malt", "--problems", llama.parent / "rows.jsonl", "--train", llama, "--serve", "transformers",
        "--questions", 12, "--gate-problems", 4, "--no-tables", "--branching", 2, "--theta", 0.3, "--checker",
        f"{llama.parent / 'check.py'}:even", *short, "--epochs", 1, "--dpo-epochs", 1, "--out", out,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert gone(tmp_path), "a server was left behind"
    told = json.loads(done.stdout.splitlines()[-1])["rows"][0]
    assert told["name"] == "round 1: gain at the gate" and -1 <= told["low"] <= told["value"] <= told["high"] <= 1
    ledger = fold(out / "round-1" / "weave").ledger
    assert (ledger.stages[0].done, ledger.calls) == (12, 12 * 14)
    models = read_models(out / "round-1" / "models.json")
    assert models.spec("base", "generator") == str(llama)
    assert models.spec("sft", "refiner") == str(out / "round-1" / "sft" / "refiner"), "a folder that wants a server"
    assert (out / "round-1" / "server-1.log").stat().st_size > 0


def test_a_budget_holds_for_all_phases_and_sessions(tmp_path: Path):
    """The one that was given last, until another is. The server says the same to everybody, so nothing is learned."""
    problems, out = tmp_path / "problems.jsonl", tmp_path / "out"
    problems.write_text("".join(json.dumps({"question": f"{n} + 1?", "answer": str(n + 1)}) + "\n" for n in range(40)))
    with MockServer(price="30,150") as server:
        spec = f"{server.url}?price=30,150#mock"
        command = [
            "improve", "malt", "--problems", problems, "--model", spec, "--train", TINY, "--branching", "2", *SMALL,
            *(flag for role in ("generator", "verifier", "refiner") for flag in ("--set", f"{role}.max_tokens=50")),
            "--out", out,
        ]  # fmt: skip
        first = weaverant(*command, "--budget", "0.05")
        assert first.returncode == 5 and "with a larger --budget" in first.stderr, first.stderr
        again = weaverant(*command)
        assert again.returncode == 5, "it still holds"
        cost = sum(call["dollars"] for call in server.bill())
        assert 0 < cost <= 0.05
        last = weaverant(*command, "--budget", "0")
        assert last.returncode == 0 and "nothing could be trained" in last.stdout, last.stderr
        assert len(server.bill()) == 14 * 14, "none of the 2 + 4 + 8 calls of a question was paid twice"


def test_a_folder_has_one_holder_and_is_a_new_one(undisturbed: Path, tmp_path: Path):
    with going(tmp_path / "out", "improve", "malt", *SMALL, "--out", tmp_path / "out") as first:
        wait_for((tmp_path / "out" / "lock").exists, first)
        second = weaverant("improve", "malt", *SMALL, "--out", tmp_path / "out")
        assert second.returncode == 1 and "another process" in second.stderr, second.stderr
    for command in (("improve", "malt", *SMALL), ("train", "malt", undisturbed / "round-1" / "weave", "--model", TINY)):
        refused = weaverant(*command, "--out", undisturbed / "round-1" / "weave")
        assert refused.returncode == 2 and "expected a new folder" in refused.stderr, refused.stderr
    adopted = json.loads((undisturbed / "improve.json").read_text())["rounds"][0]["adopted"]
    told = read_models(undisturbed / "models.json")
    assert bool(told.dpo) is adopted and told.spec("base", "refiner") == "embedded:tiny"
