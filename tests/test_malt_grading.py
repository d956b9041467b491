"""The recipe `malt`: every checker, with replies that hang, eat memory, die, or cannot be read."""

import os
import subprocess
import sys
import textwrap
import time
from collections import Counter
from pathlib import Path

import pytest

import weaverant
from weaverant import UserError
from weaverant.engines.scripted import Scripted
from weaverant.recipes.malt import formulas, grading, limits, programs
from weaverant.recipes.malt.grading import NAMES, grader_for
from weaverant.recipes.malt.programs import program_of
from weaverant.recipes.malt.recipe import graded_by, malt

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")

ONE = {"branching": 1}


def weave(rows, replies, workflow=malt, **parameters):
    """One leaf a row; the verdicts by refiner's reply, as (answer, right, why), or the reason of a failed row."""
    models = {"generator": Scripted("g"), "verifier": Scripted("v"), "refiner": Scripted(replies)}
    found = []
    for task in sorted(
        weaverant.run(workflow, rows, models=models, journal=False, parameters={**ONE, **parameters}),
        key=lambda task: task.row["question"],
    ):
        if task.state != "done":
            found.append(task.result["text"])
            continue
        (leaf,) = task.result["attempts"][0]["critiques"][0]["refinements"]
        found.append((leaf["answer"], leaf["value"] == 1, leaf.get("why", "")))
    return found


def by_question(replies):
    """A refiner that answers question `n` with the n-th reply."""
    return lambda request: replies[int(request.messages[0].text.split("question ")[1].split()[0])]


def ask(answer, count=1):
    return [{"question": f"question {n} ", "answer": answer} for n in range(count)]


# Rules


def test_rules_need_no_step():
    run = weaverant.run(malt, ask("#### 5"), models=Scripted("#### 5"), journal=False, parameters=ONE)
    (task,) = run
    assert task.result["attempts"][0]["answer"] == "5"
    assert weave(ask("#### 5", 3), by_question(["#### 5", "#### 6", "none"])) == [
        ("5", True, ""),
        ("6", False, ""),
        (None, False, "unread"),
    ]


def test_a_checker_that_is_none_says_so():
    (said,) = weave(ask("5"), "5", checker="numbre")
    assert "there is no checker 'numbre'" in said
    assert all(name in said for name in NAMES)


# Programs

TESTS = "assert add(2, 3) == 5\nassert add(-1, 1) == 0\n"


def block(code, language="python"):
    return f"Here it is:\n```{language}\n{textwrap.dedent(code)}```\nIt works.\n"


@pytest.mark.parametrize(
    ("reply", "program"),
    [
        ("```python\nx = 1\n```", "x = 1\n"),
        ("```\nx = 1\n```", "x = 1\n"),
        ("```py\nx = 1\n```\nor\n```python\nx = 2\n```", "x = 2\n"),
        ("```python\nx = 1\n```\n```bash\nls\n```", "x = 1\n"),
        ("```python\nx = '''\n  ```\n'''\n```", "x = '''\n  ```\n'''\n"),
        ("```python\nx = 1", "x = 1"),
        ("x = 1", None),
        ("```python\n```", None),
        ("", None),
    ],
)
def test_the_last_block_is_the_program(reply, program):
    assert program_of(reply) == program


PROGRAMS = [
    ("def add(a, b):\n    return a + b\n", True, ""),
    ("def add(a, b):\n    return a - b\n", False, ""),
    ("import sys\nsys.exit(0)\n", False, ""),
    ("import os\nos._exit(0)\n", False, ""),
    ("def add(a, b):\n    raise SystemExit\n", False, ""),
    ("def add(a, b)\n", False, ""),
    ("print('x' * 10_000_000)\ndef add(a, b):\n    return a + b\n", True, ""),
    ("import sys\nsys.stdin.read()\ndef add(a, b):\n    return a + b\n", True, ""),
    ("x = bytearray(3_000_000_000)\ndef add(a, b):\n    return a + b\n", False, ""),
    ("import os\nif os.fork(): os._exit(0)\ndef add(a, b):\n    return a + b\n", False, ""),
    ("open('f', 'wb').write(b'x' * 20_000_000)\ndef add(a, b):\n    return a + b\n", False, ""),
]


@pytest.mark.parametrize(("code", "right", "why"), PROGRAMS)
def test_programs_are_tested(code, right, why):
    found = programs.tested(TESTS, block(code))
    assert found[1:] == (right, why)


def test_a_program_without_end_is_out_of_time(monkeypatch):
    monkeypatch.setattr(programs, "SECONDS", 1)
    began = time.monotonic()
    assert programs.tested(TESTS, block("while True: pass\n"))[1:] == (False, "out of time")
    monkeypatch.setattr(programs, "PATIENCE", 1)
    assert programs.tested(TESTS, block("import time\ntime.sleep(60)\n"))[1:] == (False, "out of time")
    assert time.monotonic() - began < 20


def test_a_program_leaves_nothing_behind(tmp_path, monkeypatch):
    """Neither what it wrote in its folder, nor a process of its group."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    pid = tmp_path / "pid"
    code = f"""
    import os, subprocess, sys
    open('left', 'w').write('x')
    child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])
    open({str(pid)!r}, 'w').write(str(child.pid))
    def add(a, b): return a + b
    """
    assert programs.tested(TESTS, block(code))[1]
    assert list(tmp_path.iterdir()) == [pid]
    number = int(pid.read_text())
    until = time.monotonic() + 10
    while _alive(number):
        assert time.monotonic() < until, "a child of the program lives on"
        time.sleep(0.02)


def test_a_program_ends_with_the_process_that_waits_for_it(tmp_path):
    """As when a run is stopped, or killed."""
    pid = tmp_path / "pid"
    code = f"import os, time\nopen({str(pid)!r}, 'w').write(str(os.getpid()))\ntime.sleep(60)\n"
    script = f"from weaverant.recipes.malt.programs import tested\ntested('x = 1', {block(code)!r})"
    with subprocess.Popen([sys.executable, "-c", script]) as waiting:
        until = time.monotonic() + 20
        while not (pid.exists() and pid.read_text()):
            assert time.monotonic() < until, "the program did not begin"
            time.sleep(0.02)
        waiting.kill()
    number = int(pid.read_text())
    while _alive(number):
        assert time.monotonic() < until, "the program lives on"
        time.sleep(0.02)


def _alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("answer", [None, "", "  ", "assert (", 5])
def test_a_row_without_tests_says_so(answer):
    with pytest.raises(UserError, match="needs its tests in 'answer'"):
        programs.tests_of(answer)


def test_programs_through_the_tree():
    replies = [block("def add(a, b):\n    return a + b\n"), block("def add(a, b):\n    return 5\n"), "I cannot."]
    found = weave(ask(TESTS, 3), by_question(replies), checker="code")
    assert [(right, why) for _, right, why in found] == [(True, ""), (False, ""), (False, "unread")]
    assert found[0][0] == "def add(a, b):\n    return a + b\n"


# Functions of the user's


def length(reply, row):
    return len(reply) == row["wanted"]


def told(reply, row):
    return {"yes": True, "no": False, "none": None, "both": ("b", True), "neither": (None, False)}[reply]


def endless(reply, row):
    while True:
        pass


def hungry(reply, row):
    return bool(bytearray(50_000_000_000))


def deadly(reply, row):
    os._exit(3)


def stubborn(reply, row):
    """Catches all it can: even being out of time."""
    while True:
        try:
            while True:
                pass
        except BaseException:
            pass


def broken(reply, row):
    return 1 / 0


def unsure(reply, row):
    return 0.7


def test_a_function_of_the_users():
    rows = [{"question": f"question {n} ", "wanted": n} for n in range(3)]
    assert weave(rows, "xx", graded_by(length)) == [(None, False, ""), (None, False, ""), (None, True, "")]
    replies = ["yes", "no", "none", "both", "neither"]
    assert weave(ask(None, 5), by_question(replies), graded_by(told)) == [
        (None, True, ""),
        (None, False, ""),
        (None, False, "unread"),
        ("b", True, ""),
        (None, False, ""),
    ]


@pytest.mark.parametrize(
    ("check", "why"), [(endless, "out of time"), (hungry, "out of memory"), (deadly, "died"), (stubborn, "died")]
)
def test_a_function_that_does_not_end_well_finds_the_reply_wrong(check, why, monkeypatch):
    monkeypatch.setattr(grading, "SECONDS", 0.5)
    assert weave(ask(None), "x", graded_by(check)) == [(None, False, why)]


@pytest.mark.parametrize(
    ("check", "said"), [(broken, "division by zero"), (unsure, "a checker gives True, False, None")]
)
def test_a_function_that_is_wrong_itself_fails_the_row(check, said):
    (text,) = weave(ask(None), "x", graded_by(check))
    assert said in text


def test_a_function_in_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("LIMIT = 2\n\ndef short(reply, row):\n    return reply, len(reply) < LIMIT\n")
    assert weave(ask(None, 2), by_question(["x", "xxx"]), checker="mine.py:short") == [
        ("x", True, ""),
        ("xxx", False, ""),
    ]
    (text,) = weave(ask(None), "x", checker="mine.py:shrot")
    assert "has no function 'shrot'" in text
    (text,) = weave(ask(None), "x", checker="other.py:short")
    assert "cannot be read" in text


def test_a_checker_and_a_function_are_one_too_many():
    (text,) = weave(ask(None), "x", graded_by(length), checker="number")
    assert "checker='number' as well" in text


def test_an_edited_function_is_asked_again(tmp_path, monkeypatch):
    """`--reuse` answers the calls from the old run, and grades anew."""
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "mine.py"
    calls = Counter()

    def reply(request):
        calls[request.agent] += 1
        return "x"

    results = []
    for number, right in enumerate(("True", "False", "False")):
        file.write_text(f"def judge(reply, row):\n    return {right}\n")
        run = weaverant.run(
            malt, ask(None), models=Scripted(reply, identity="one"), directory=tmp_path / f"run{number}",
            parameters={**ONE, "checker": "mine.py:judge"}, reuse=tmp_path / f"run{number - 1}" if number else None,
        )  # fmt: skip
        (task,) = run
        results.append(task.result["attempts"][0]["value"])
    assert results == [1.0, 0.0, 0.0]
    assert calls == {"generator": 1, "verifier": 1, "refiner": 1}


def test_a_resumed_run_grades_nothing_twice(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("def judge(reply, row):\n    open('graded', 'a').write('x')\n    return True\n")
    model = Scripted("x")
    run = weaverant.run(
        "malt", ask(None, 6), models=model, directory=tmp_path / "run", in_flight=1,
        parameters={"branching": 2, "checker": "mine.py:judge"},
    )  # fmt: skip
    for _ in run:
        break
    assert run.ledger.ended_rows < 6
    assert weaverant.resume(tmp_path / "run", rows=ask(None, 6), models=model).wait().exit_code == 0
    assert (tmp_path / "graded").read_text() == "x" * 6 * 8


# Limits


def test_limits_are_lifted_again():
    script = (
        "import resource, signal\n"
        "from weaverant.recipes.malt.limits import limited, OutOfTime\n"
        "known = [resource.getrlimit(kind) for kind in (resource.RLIMIT_CPU, resource.RLIMIT_AS)]\n"
        "def spin():\n"
        "    while True: pass\n"
        "for _ in range(3):\n"
        "    try: limited(spin, 0.2, 100)\n"
        "    except OutOfTime: print('out')\n"
        "assert known == [resource.getrlimit(kind) for kind in (resource.RLIMIT_CPU, resource.RLIMIT_AS)]\n"
        "assert signal.getitimer(signal.ITIMER_PROF) == (0, 0)\n"
        "x = bytearray(500_000_000)\n"
        "print(limited(lambda: 5, 1, 100))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.split() == ["out", "out", "out", "5"], done.stderr


def test_waiting_is_bounded_by_the_clock(monkeypatch):
    script = (
        "import time\n"
        "from weaverant.recipes.malt import limits\n"
        "limits.PATIENCE = 1\n"
        "try: limits.limited(lambda: time.sleep(60), 0.3, 100)\n"
        "except limits.OutOfTime: print('out')\n"
    )
    assert limits.PATIENCE > 1
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=False)
    assert done.stdout == "out\n", done.stderr


# Formulas


def test_without_the_library_the_checker_says_what_to_install(monkeypatch):
    monkeypatch.setattr(formulas, "find_spec", lambda name: None)
    (text,) = weave(ask("5"), "5", checker="math")
    assert "pip install 'weaverant[math]'" in text


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("\\frac{3}{4}", "\\frac{3}{4}"),
        ("We get $\\boxed{\\frac{3}{4}}$.", "\\frac{3}{4}"),
        ("work\n#### $x^2$", "x^2"),
        ("\\(7\\).", "7"),
        (5, "5"),
    ],
)
def test_gold_formulas(answer, gold):
    assert formulas.gold_of(answer) == gold


@pytest.mark.parametrize("answer", [None, "", "####", "\\boxed{}"])
def test_a_row_without_a_gold_formula_says_so(answer):
    with pytest.raises(UserError, match="gold answer in 'answer', for the checker 'math'"):
        formulas.gold_of(answer)


FORMULAS = [
    ("\\frac{3}{4}", "#### 0.75", True),
    ("\\frac{3}{4}", "So it is $\\boxed{\\dfrac34}$.", True),
    ("\\frac{3}{4}", "So it is $\\boxed{\\frac43}$.", False),
    ("\\sqrt{2}/2", "The answer is $\\frac{1}{\\sqrt{2}}$.", True),
    ("(3, \\frac{\\pi}{2})", "#### $(3, \\pi/2)$", True),
    ("(3, \\frac{\\pi}{2})", "#### $(\\pi/2, 3)$", False),
    ("x^2+2x+1", "\\boxed{(x+1)^2}", True),
    ("x^2+2x+1", "\\boxed{(x-1)^2}", False),
    ("\\{1,2,3\\}", "\\boxed{\\{3,2,1\\}}", True),
    ("[-2,7]", "\\boxed{[-2, 7]}", True),
    ("[-2,7]", "\\boxed{(-2, 7)}", False),
    ("\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}", "\\boxed{\\begin{pmatrix} 1 & 2 \\\\ 3 & 4 \\end{pmatrix}}", True),
    ("10\\%", "\\boxed{10}", True),
    ("1{,}234", "\\boxed{1234}", True),
    ("\\text{east}", "\\boxed{\\text{east}}", True),
    ("\\text{east}", "\\boxed{\\text{west}}", False),
    ("5", "#### 5", True),
    ("5", "#### 6 or 5", False),
    ("5", "\\boxed{4}\nno: \\boxed{5}", True),
    ("5", "", False),
    ("5", "I do not know.", False),
]


@pytest.mark.heavy
@pytest.mark.parametrize(("gold", "reply", "right"), FORMULAS)
def test_formulas_are_compared(gold, reply, right):
    """In the main thread of this process, as in that of a step's."""
    assert formulas.compared(gold, reply)[1] is right


HOSTILE = [
    "\\boxed{9^{9^{9^{9^9}}}}",
    "\\boxed{" + "(" * 900 + "x" + ")" * 900 + "}",
    "\\boxed{" + "\\frac{1}{" * 150 + "x" + "}" * 150 + "}",
    "\\boxed{(x+1)^{100000} (x+2)^{100000}}",
    "\\boxed{\\int_0^1 x^{x^{x^x}} \\sin(\\cos(\\tan x)) dx}",
    "\\boxed{\\sum_{n=1}^{\\infty} \\frac{\\sin(n^n!)}{n!!!}}",
    "\\boxed{1000000000!}",
    "\\boxed{" + "9" * 100_000 + "}",
    "$" * 100_000,
    "\\boxed{" * 50_000,
    "\\begin{pmatrix}" + "1 & " * 400 + "\\end{pmatrix}",
    "\x00\\boxed{\ud800}".encode("utf-8", "replace").decode(),
]


@pytest.mark.heavy
def test_hostile_formulas_are_wrong_and_hold_up_nobody(monkeypatch):
    monkeypatch.setattr(formulas, "SECONDS", 2.0)
    began = time.monotonic()
    replies = [*HOSTILE, "\\boxed{\\frac{14}{2}}"]
    found = weave(ask("7", len(replies)), by_question(replies), checker="math")
    rights = {int(n): verdict for n, verdict in zip(sorted(map(str, range(len(replies)))), found, strict=True)}
    assert rights.pop(len(HOSTILE))[1] is True
    assert not any(right for _, right, _ in rights.values()), rights
    assert "out of time" in {why for _, _, why in rights.values()} or "died" in {why for _, _, why in rights.values()}
    assert time.monotonic() - began < 120


@pytest.mark.heavy
def test_the_library_agrees_with_the_rules_on_gsm8k():
    import gzip
    import json

    file = Path(__file__).parents[2] / "shared/data/recipes/gsm8k/example_model_solutions.jsonl.gz"
    if not file.exists():
        pytest.skip(f"GSM8K's example solutions are not at {file}")
    agreed = Counter()
    for row in [json.loads(line) for line in gzip.decompress(file.read_bytes()).splitlines()][:150]:
        gold = formulas.gold_of(row["ground_truth"].rpartition("A: ")[2])
        for told in row.values():
            if isinstance(told, dict):
                reply = "#### " + told["solution"].rpartition("A: ")[2]
                agreed[formulas.compared(gold, reply)[1] == told["is_correct"]] += 1
    assert agreed == {True: 600}


def test_the_names_of_checkers_are_those_that_work():
    for name in ("number", "choice", "exact", "auto"):
        assert grader_for({"answer": "B" if name in ("choice", "auto") else "5"}, name).checker in NAMES
