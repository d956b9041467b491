"""What of `weaverant improve malt` needs no torch: whose problems are whose, data sets, order, processes, servers."""

import json
import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest

from weaverant import UserError, WeaverantError, run
from weaverant.cli.arguments import parse
from weaverant.cli.export import export
from weaverant.cli.roles import configs_of
from weaverant.engines.embedded import PACKAGED
from weaverant.recipes.malt.loop import leash
from weaverant.recipes.malt.loop.gate import Verdict
from weaverant.recipes.malt.loop.habits import planted_habits
from weaverant.recipes.malt.loop.jobs import Job, run_jobs
from weaverant.recipes.malt.loop.kept import begin
from weaverant.recipes.malt.loop.order import DPO, FEWEST, SFT, flags_of, order_of, trained_specs
from weaverant.recipes.malt.loop.problems import Wanted, hash_of, pools_of, problems_in, write_pools
from weaverant.recipes.malt.loop.processes import Leashed
from weaverant.recipes.malt.loop.serving import Server, command_of, is_folder, served
from weaverant.recipes.malt.loop.sets import Sets, write_sets
from weaverant.recipes.malt.loop.wanted import Improvement
from weaverant.recipes.malt.roles import read_models
from weaverant.recipes.malt.team import ROLES
from weaverant.recipes.malt.values import Rule

TINY = PACKAGED / "tiny"


# Problems


def rows(path: Path, numbers: range, wrong: int = 0) -> str:
    lines = [{"question": f"What is {number}?", "answer": str(number)} for number in numbers]
    lines += [{"question": "", "answer": "1"}] * wrong
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def questions(pools) -> dict[str, list[str]]:
    return {name: [row["question"] for row in found] for name, found in pools.files()}


def test_no_problem_has_two_uses(tmp_path: Path):
    wanted = Wanted(rounds=2, questions=30, gate=10, report=20)
    one = pools_of(rows(tmp_path / "a.jsonl", range(500)), None, "auto", wanted)
    apart = pools_of(str(tmp_path / "a.jsonl"), rows(tmp_path / "b.jsonl", range(400, 600)), "auto", wanted)
    for pools in (one, apart):
        found = questions(pools)
        assert {name: len(each) for name, each in found.items()} == {
            "weave-1.jsonl": 30, "weave-2.jsonl": 30, "gate-1.jsonl": 10, "gate-2.jsonl": 10, "report.jsonl": 20,
        }  # fmt: skip
        all_of_them = [question for each in found.values() for question in each]
        assert len(all_of_them) == len(set(all_of_them))
    held = {row["question"] for each in (apart.report, *apart.gate) for row in each}
    assert held <= {f"What is {number}?" for number in range(400, 600)}


def test_the_draw_is_by_the_question_whatever_the_order_of_the_rows(tmp_path: Path):
    wanted = Wanted(1, 30, 10, 20)
    ordered = pools_of(rows(tmp_path / "a.jsonl", range(200)), None, "auto", wanted)
    backwards = pools_of(rows(tmp_path / "b.jsonl", range(199, -1, -1)), None, "auto", wanted)
    assert questions(ordered) == questions(backwards)
    numbers = [hash_of(question) for question in questions(ordered)["report.jsonl"]]
    assert all(first < second for first, second in pairwise(numbers))


def test_what_is_held_out_and_in_the_problems_is_not_woven(tmp_path: Path):
    both = rows(tmp_path / "a.jsonl", range(40))
    pools = pools_of(both, rows(tmp_path / "b.jsonl", range(20)), "auto", Wanted(1, 40, 10, 10))
    assert {row["question"] for row in pools.weave[0]} == {f"What is {number}?" for number in range(20, 40)}
    assert pools.left_out == {f"{both}: held out as well": 20}


def test_too_few_rows_are_shared_out(tmp_path: Path):
    pools = pools_of(rows(tmp_path / "a.jsonl", range(100)), None, "auto", Wanted(1, 300, 500, 1_000))
    assert {name: len(each) for name, each in pools.files()} == {
        "weave-1.jsonl": 50, "gate-1.jsonl": 20, "report.jsonl": 30,
    }  # fmt: skip
    with pytest.raises(UserError, match=r"too few rows that can be used: none is left for gate-1.jsonl"):
        pools_of(rows(tmp_path / "b.jsonl", range(3)), None, "auto", Wanted(2, 30, 1, 1))


def test_rows_that_cannot_be_used_and_questions_that_come_twice_are_left_out(tmp_path: Path):
    file = Path(rows(tmp_path / "a.jsonl", range(30), wrong=3))
    file.write_text(file.read_text() * 2 + '{"question": "x", "answer": "none"}\nnot json\n')
    pools = pools_of(str(file), None, "number", Wanted(1, 15, 5, 10))
    assert len({question for each in questions(pools).values() for question in each}) == 30
    assert sorted(pools.left_out.values()) == [1, 1, 6, 30]
    sizes = write_pools(tmp_path / "problems", pools)
    assert problems_in(tmp_path / "problems") == (sizes, pools.left_out)
    assert len((tmp_path / "problems" / "report.jsonl").read_text().splitlines()) == sizes["report"] == 10


# Settings


def test_a_folder_with_other_settings_is_refused_with_what_differs(tmp_path: Path):
    begin(tmp_path / "out", "improve.json", {"rounds": 1, "theta": (0.5,)}, ("problems",))
    begin(tmp_path / "out", "improve.json", {"rounds": 1, "theta": (0.5,)}, ("problems",))
    with pytest.raises(UserError, match=r"other settings: rounds was 1, is 2; theta was \[0.5\], is \[0.6\]"):
        begin(tmp_path / "out", "improve.json", {"rounds": 2, "theta": (0.6,)}, ("problems",))
    (tmp_path / "other" / "data").mkdir(parents=True)
    with pytest.raises(UserError, match=r"holds data, and no malt.json"):
        begin(tmp_path / "other", "malt.json", {}, ("data", "sft"))
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").touch()
    begin(tmp_path / "notes", "malt.json", {}, ("data", "sft"))
    with pytest.raises(UserError, match=r"holds malt.json, mine.txt, and no improve.json: expected a new folder"):
        begin(tmp_path / "notes", "improve.json", {}, (), alone=True)
    begin(tmp_path / "deep", "a.json", {"dpo": {"lr": 0.1, "beta": 1}}, ())
    with pytest.raises(UserError, match=r"other settings: dpo.lr was 0.1, is 0.2\."):
        begin(tmp_path / "deep", "a.json", {"dpo": {"lr": 0.2, "beta": 1}}, ())


def test_the_gate_asks_the_same_problems_with_and_without_tables():
    it = Improvement(
        problems="arithmetic:weave", held_out="arithmetic:heldout", model="m", train=TINY, gate_problems=20
    )
    without = Improvement(**{name: getattr(it, name) for name in it.__struct_fields__} | {"tables": False})
    first, second = (pools_of(one.problems, one.held_out, one.checker, one.wanted) for one in (it, without))
    assert first.gate == second.gate and first.weave == second.weave


def test_thetas_are_a_schedule_of_which_the_last_holds():
    it = Improvement(problems="p", model="embedded:tiny", train=TINY, rounds=4, theta=(0.5, 0.6, 0.7)).checked()
    assert [it.theta_of(number) for number in (1, 2, 3, 4)] == [0.5, 0.6, 0.7, 0.7]
    with pytest.raises(UserError, match=r"--theta is a share from 0 to below 1"):
        Improvement(problems="p", model="m", train=TINY, rounds=2, theta=(0.5, 1.5)).checked()
    with pytest.raises(UserError, match=r"--theta has 2 values for --rounds 1"):
        Improvement(problems="p", model="m", train=TINY, theta=(0.5, 0.6)).checked()


def test_the_flags_of_a_training_say_its_settings():
    given = ["--epochs=2", "--lr=0.001", "--dpo-epochs=4", "--beta=0.1", "--lora=8", "--schedule=cosine"]
    sft, dpo = configs_of(parse(["train", "malt", "RUN", "--model", "M", "--out", "O", *given]))
    assert (sft.epochs, sft.lr, sft.lora, dpo.epochs, dpo.beta, dpo.lora) == (2, 0.001, 8, 4, 0.1, 8)
    assert (dpo.lr, dpo.sft_weight) == (DPO.lr, DPO.sft_weight), "what is not given is MALT's own"
    for method, config in (("sft", sft), ("dpo", dpo)):
        options = parse(["train", method, "DATA", "--model", "M", "--out", "O", *flags_of(config)])
        from weaverant.cli.train import config_of

        assert config_of(options) == config


# Data sets


@pytest.fixture(scope="module")
def woven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("woven") / "run"
    run("malt", "arithmetic:weave", models={"*": "embedded:tiny"}, limit=12, directory=folder).wait()
    return folder


def test_the_sets_are_those_of_the_exporters(woven: Path, tmp_path: Path):
    sets = write_sets(woven, tmp_path / "data", None)
    for form in ("sft", "preference", "dropped"):
        export(woven, form, str(tmp_path / "exported"))
    files = sorted(path.name for path in (tmp_path / "exported").glob("*.jsonl"))
    assert sorted(sets.lines) == sorted([*files, "star-generator.jsonl"])
    for name in files:
        assert (tmp_path / "data" / name).read_bytes() == (tmp_path / "exported" / name).read_bytes(), name
    strict = write_sets(woven, tmp_path / "strict", Rule(theta=0.9))
    assert strict.lines["sft-generator.jsonl"] < sets.lines["sft-generator.jsonl"]
    assert strict.lines["sft-refiner.jsonl"] == sets.lines["sft-refiner.jsonl"], "a leaf is right or wrong"
    assert strict.lines["star-generator.jsonl"] == sets.lines["star-generator.jsonl"], "STaR knows no theta"


def test_the_attempts_for_star_are_those_of_the_recipe_star(woven: Path, tmp_path: Path):
    """It answers from the same run, so it has the same attempts, and grades them by itself."""
    write_sets(woven, tmp_path / "data", None)
    again = run(
        "star", "arithmetic:weave", models={"*": "embedded:tiny"}, limit=12, directory=tmp_path / "star", reuse=woven
    )
    again.wait()
    export(tmp_path / "star", "sft", str(tmp_path / "exported"))
    ours, theirs = (
        [json.loads(line)["messages"] for line in path.read_text().splitlines()]
        for path in (tmp_path / "data" / "star-generator.jsonl", tmp_path / "exported" / "sft-generator.jsonl")
    )
    assert ours == theirs and len(ours) > 5


def test_attempts_that_no_command_can_grade_again_leave_star_out(tmp_path: Path):
    from weaverant.recipes.malt.recipe import graded_by

    rows_of = [{"id": "arithmetic-x", "question": "2+2?", "answer": "4"}]
    run(
        graded_by(always), rows_of, models={"*": "embedded:tiny"}, directory=tmp_path / "run",
        parameters={"branching": 1},
    ).wait()  # fmt: skip
    sets = write_sets(tmp_path / "run", tmp_path / "data", None)
    assert "always" in sets.no_star and "star-generator.jsonl" not in sets.lines
    order = order_of(tmp_path, sets, dict.fromkeys(ROLES, TINY), SFT, DPO)
    assert any(line.startswith("the STaR baseline is left out: the trees were graded by") for line in order.left_out)


def always(reply: str, row: dict) -> bool:
    return True


# Order


def sets_of(**lines: int) -> Sets:
    return Sets({f"{name.replace('_', '-')}.jsonl": count for name, count in lines.items()})


MANY = {f"{kind}_{role}": 100 for kind in ("sft", "preference") for role in ROLES}


def test_the_order_is_the_papers(tmp_path: Path):
    order = order_of(tmp_path, sets_of(**MANY, star_generator=100), dict.fromkeys(ROLES, TINY), SFT, DPO)
    names = ["sft generator", "sft verifier", "sft refiner", "star", "dpo verifier", "dpo refiner"]
    assert [step.name for step in order.steps] == names and order.left_out == []
    by_name = {step.name: step for step in order.steps}
    assert by_name["dpo verifier"].model == tmp_path / "sft" / "verifier" == by_name["sft verifier"].folder
    assert by_name["dpo refiner"].after == "sft refiner" and by_name["star"].model == TINY
    assert "--sft-weight=1.0" in by_name["dpo refiner"].arguments


def test_a_role_with_too_few_samples_keeps_its_model_and_models_json_says_so(tmp_path: Path):
    few = MANY | {"sft_verifier": FEWEST - 1, "preference_refiner": 0}
    own = {role: tmp_path / "before" / role for role in ROLES}
    order = order_of(tmp_path, sets_of(**few), own, SFT, DPO, star=False)
    assert [step.name for step in order.steps] == ["sft generator", "sft refiner", "dpo verifier"]
    assert order.steps[-1].model == own["verifier"] and order.steps[-1].after == ""
    assert [line.partition(":")[0] for line in order.left_out] == [
        "sft verifier is left out",
        "dpo refiner is left out",
    ]
    base = {role: f"embedded:{folder}" for role, folder in own.items()}
    specs = {step.folder: str(step.folder.relative_to(tmp_path)) for step in order.steps}
    (tmp_path / "models.json").write_text(json.dumps(trained_specs(order, base, specs)))
    models = read_models(tmp_path / "models.json")
    assert models.spec("sft", "verifier") == base["verifier"] and models.spec("dpo", "verifier") == "dpo/verifier"
    assert models.spec("dpo", "refiner") == "sft/refiner" and models.spec("star", "generator") is None


# The gate's words


def test_a_verdict_says_the_gain_with_its_interval():
    verdict = Verdict(500, "vote", 0.962, 0.966, 0.004, -0.003, 0.011, 0.5, {})
    assert not verdict.passes
    assert verdict.told(2) == (
        "round 2 is refused: +0.4 points [-0.3, +1.1] on 500 gate problems (votes of three, 96.2 % to 96.6 %; p 0.5; "
        "on so few, a gain under about 1 points looks like chance)"
    )
    better = Verdict(500, "pass", 0.7, 0.8, 0.1, 0.01, 0.2, 0.03, {})
    assert not Verdict(16, "vote", 0.5, 0.75, 0.25, 0.06, 0.44, 0.125, {}).passes, "four problems that differ"
    assert better.passes and better.told(1).startswith("round 1 is adopted: +10.0 points [+1.0, +20.0]")


def test_the_planted_habits_are_those_of_the_model_that_was_trained():
    sys.path.insert(0, str(Path(__file__).parents[1] / "training" / "tiny"))
    try:
        from dataclasses import asdict

        from habits import Habits  # pyright: ignore[reportMissingImports]
    finally:
        sys.path.pop(0)
    assert planted_habits("embedded:tiny") == asdict(Habits())
    assert planted_habits("http://localhost:8000/v1#x") == planted_habits(f"embedded:{TINY.parent}/..") == {}


# Processes


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def wait_for(holds, seconds: float = 20.0) -> None:
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until, "it did not come about"
        time.sleep(0.05)


NEST = (
    "import os, subprocess, sys, time\n"
    "inner = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
    "open(sys.argv[1], 'w').write(f'{os.getpid()} {inner.pid}'); time.sleep(600)\n"
)


def nested(place: Path) -> list[int]:
    """The numbers of a process and of the one that it started."""
    wait_for(lambda: place.exists() and len(place.read_text().split()) == 2)
    return [int(word) for word in place.read_text().split()]


def test_what_a_command_started_ends_with_it(tmp_path: Path):
    with (tmp_path / "log").open("wb") as log:
        process = Leashed([sys.executable, "-c", NEST, str(tmp_path / "pids")], log)
        pids = nested(tmp_path / "pids")
        assert not process.ended
        process.end()
    wait_for(lambda: not any(map(alive, pids)))
    assert process.ended


def test_a_child_of_a_command_that_was_killed_is_ended(tmp_path: Path):
    with (tmp_path / "log").open("wb") as log:
        process = Leashed([sys.executable, "-c", NEST, str(tmp_path / "pids")], log)
        pids = nested(tmp_path / "pids")
        os.kill(pids[0], signal.SIGKILL)
        wait_for(lambda: process.ended)
    wait_for(lambda: not any(map(alive, pids)))
    assert process.end() == 128 + signal.SIGKILL


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_all_ends_when_the_owner_is_killed(tmp_path: Path, number: signal.Signals):
    owner = subprocess.Popen(
        [
            sys.executable, "-c",
            "import subprocess, sys, time\n"
            "from weaverant.recipes.malt.loop.processes import Leashed\n"
            "Leashed([sys.executable, '-c', sys.argv[1], sys.argv[2]], subprocess.DEVNULL); time.sleep(600)\n",
            NEST, str(tmp_path / "pids"),
        ],
    )  # fmt: skip
    pids = nested(tmp_path / "pids")
    owner.send_signal(number)
    owner.wait()
    wait_for(lambda: not any(map(alive, pids)))


def test_the_leash_needs_nothing_of_the_package():
    done = subprocess.run(
        [sys.executable, "-S", "-E", "-I", leash.__file__, "no-such-command"], capture_output=True, text=True,
        stdin=subprocess.PIPE, check=False,
    )  # fmt: skip
    assert done.returncode == 127 and "'no-such-command' cannot be started" in done.stderr


def job(name: str, log: Path, *arguments: str, after: tuple[str, ...] = ()) -> Job:
    return Job(name, list(arguments), log / f"{name}.log", after)


def test_jobs_wait_for_those_they_begin_with_and_a_failure_ends_all(tmp_path: Path):
    copy = ["recipes", "copy", "malt", str(tmp_path / "mine")]
    jobs = [
        job("second", tmp_path, "run", str(tmp_path / "mine"), "--dry-run", after=("first",)),
        job("first", tmp_path, *copy),
    ]
    run_jobs(jobs, 2, lambda text: None)
    assert "dry run" in (tmp_path / "second.log").read_text()
    said: list[str] = []
    with pytest.raises(UserError, match=r"(?s)wrong could not be trained:.*no folder 'nowhere'"):
        run_jobs([job("wrong", tmp_path, "train", "sft", "x", "--model", "nowhere", "--out", "y")], 1, said.append)
    assert said and said[0].startswith("wrong: weaverant: error: ")


# Servers

SERVER = """
import http.server, json, sys
folder, port, name = sys.argv[1:]
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps({"data": [{"id": name}]}).encode()
        self.send_response(200); self.send_header("Content-Length", str(len(body))); self.end_headers()
        self.wfile.write(body)
http.server.HTTPServer(("127.0.0.1", int(port)), Handler).serve_forever()
"""


def test_a_server_is_waited_for_and_ended(tmp_path: Path):
    (tmp_path / "listing.py").write_text(SERVER)
    (tmp_path / "model").mkdir()
    how = f"{sys.executable} {tmp_path}/listing.py {{folder}} {{port}} {{name}}"
    said: list[str] = []
    with served(
        [str(tmp_path / "model"), "embedded:tiny", str(tmp_path / "model")], how, tmp_path, said.append
    ) as specs:
        url = specs[str(tmp_path / "model")]
        assert url.startswith("http://127.0.0.1:") and url.endswith("/v1?price=0,0#model")
        assert specs["embedded:tiny"] == "embedded:tiny" and len(said) == 1
        listed = subprocess.run(
            [sys.executable, "-m", "weaverant.cli", "models", url.partition("?")[0]], capture_output=True, text=True,
            check=True,
        )  # fmt: skip
        assert "model" in listed.stdout
    gone = subprocess.run(
        [sys.executable, "-m", "weaverant.cli", "models", url.partition("?")[0]], capture_output=True, check=False
    )
    assert gone.returncode == 1


def test_what_a_server_died_of_is_told_in_place_of_what_the_work_saw(tmp_path: Path):
    once = SERVER.replace("serve_forever()", "handle_request(); print('no memory left'); sys.exit(1)")
    (tmp_path / "once.py").write_text(once)
    (tmp_path / "model").mkdir()
    how = f"{sys.executable} {tmp_path}/once.py {{folder}} {{port}} {{name}}"

    def work() -> None:
        with served([str(tmp_path / "model")], how, tmp_path, print):
            wait_for(lambda: "no memory left" in (tmp_path / "server-1.log").read_text())
            time.sleep(1.0)  # the process ends a moment later
            raise WeaverantError("nobody answers")

    with pytest.raises(WeaverantError, match=r"(?s)has died; its last lines.*no memory left"):
        work()


def test_a_server_that_does_not_come_is_told_of_with_its_last_lines(tmp_path: Path):
    dies = Server(
        tmp_path, f"{sys.executable} -c 'print(\"out of memory\"); raise SystemExit(3)' {{port}}", tmp_path / "log"
    )
    with pytest.raises(WeaverantError, match=r"(?s)ended before it was ready.*out of memory"):
        dies.wait()
    dies.end()
    never = Server(tmp_path, f"{sys.executable} -c 'import time; time.sleep(60)' {{port}}", tmp_path / "log")
    with pytest.raises(WeaverantError, match=r"was not ready in 1 s"):
        never.wait(patience=1)
    never.end()
    assert never._process.ended


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("serve {folder}", "does not say {port}"),
        ("no-such-program {folder} {port}", "no program 'no-such-program'"),
        ("serve {folder} {port} {where}", "'where'"),
    ],
)
def test_a_mistake_in_serve_is_told(how: str, words: str):
    with pytest.raises(UserError, match=words):
        command_of(how, TINY, 1, "n")


def test_a_folder_wants_a_server_and_other_specs_do_not(tmp_path: Path):
    assert is_folder(str(tmp_path)) and not is_folder("embedded:tiny") and not is_folder("http://localhost:1/v1#x")
    with (
        pytest.raises(UserError, match="Expected --serve with transformers, vllm"),
        served([str(tmp_path)], None, tmp_path, print),
    ):
        pass
