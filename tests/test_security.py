"""What strangers give us reaches nothing: templates, rows, run directories, checkpoints, names.

Each test tries the attack itself, on real files and with the real commands.
"""

from __future__ import annotations

import ast
import json
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jinja2 import UndefinedError

import weaverant
from weaverant import Agent, workflow
from weaverant.engines.embedded import PACKAGED, EmbeddedEngine
from weaverant.engines.scripted import Scripted
from weaverant.errors import UserError
from weaverant.message import Request
from weaverant.prompt import Template
from weaverant.protocols import CallContext

SRC = Path(weaverant.__file__).parent
KEY = "sk-proj-Zx81kQ_77vB-4mNpRt902LwE"

ESCAPES = (
    *(
        "{{ ''.__class__ }}",
        "{{ x.__class__.__mro__[1].__subclasses__() }}",
        "{{ x['__class__'] }}",
        "{{ x.__init__ }}",
    ),
    *("{{ x|attr('__class__') }}", "{{ x|attr('__cla' ~ 'ss__') }}", r"{{ x|attr('\x5f\x5fclass\x5f\x5f') }}"),
    *("{{ [x]|map(attribute='__class__')|join }}", "{{ [x]|map('attr', '__class__')|join }}"),
    *(
        "{{ [x, 'b']|sort(attribute='__class__') }}",
        "{{ ([x]|groupby('__class__'))[0][0] }}",
        "{{ [x]|sum('__class__') }}",
    ),
    *("{{ '{0.__class__}'.format(x) }}", "{{ '{a.__class__}'.format_map({'a': x}) }}", "{{ '{0.__doc__}'.format(x) }}"),
    *("{% set f = '{0.__class__}'.format %}{{ f(x) }}", "{{ ('{0.__class__}'|attr('format'))(x) }}"),
    *("{{ ['{0.__class__}'.format]|map('call', x)|list }}", "{{ self.__init__.__globals__ }}", "{{ self._block }}"),
    *("{{ cycler.__init__.__globals__.os }}", "{{ joiner.__init__.__globals__ }}", "{{ namespace.__init__ }}"),
    *("{{ lipsum.__globals__ }}", "{{ range.__self__ }}", "{{ dict.__subclasses__() }}", "{{ dict.mro() }}"),
    *("{{ x.upper.__self__.__class__ }}", "{{ x.upper.__func__ }}", "{{ x.__getattribute__('upper') }}"),
    *("{{ x.encode().__class__ }}", "{{ (1).__class__ }}", "{{ none.__class__ }}", "{{ missing.__class__ }}"),
    *(
        "{% include '/etc/passwd' %}",
        "{% extends '/etc/passwd' %}",
        "{% import 'os' as os %}",
        "{% from 'os' import x %}",
    ),
    *("{{ items.append(1) }}", "{{ items.clear() }}", "{{ d.update(a=1) }}", "{{ d.pop('k') }}", "{% do d.clear() %}"),
    *("{{ config }}", "{{ request }}", "{{ open('/etc/passwd') }}", "{{ eval('1') }}", "{{ __import__('os') }}"),
    *("{% macro m() %}{% endmacro %}{{ m.__globals__ }}", "{{ caller.__globals__ }}", "{{ loop.__class__ }}"),
)
TOO_MUCH = (
    *("{{ x * 10**10 }}", "{{ 10**10 * x }}", "{{ 'a' * 10**10 }}", "{{ items * 10**9 }}", "{{ range(10**9)|list }}"),
    *("{{ 2**10000000000 }}", "{{ (9**99999)**99999 }}", "{{ lipsum(n=10**6) }}", "{{ (2**99999) * (2**99999) }}"),
)


@pytest.mark.parametrize("template", ESCAPES)
def test_no_template_escapes_its_sandbox(template: str):
    given: dict[str, Any] = {"x": "a text", "items": [1], "d": {"k": 1}}
    with pytest.raises((UserError, UndefinedError)):
        Template(template, "the prompt").render(given)
    assert given == {"x": "a text", "items": [1], "d": {"k": 1}}


@pytest.mark.parametrize("template", TOO_MUCH)
def test_no_single_operation_of_a_template_takes_memory_or_time_without_bound(template: str):
    began = time.process_time()
    with pytest.raises((UserError, UndefinedError)):
        Template(template, "the prompt").render({"x": "a text", "items": [1]})
    assert time.process_time() - began < 2


def test_what_a_template_may_do_it_still_does():
    text = "{{ 'ab' * 3 }}{{ 2**10 }}{{ 3 * 1.5 }}{{ [0] * 2 }}{{ x.upper() }}{{ '{0:>3}'.format(7) }}{{ '%d' % 5 }}"
    assert Template(text, "").render({"x": "y"}) == "ababab10244.5[0, 0]Y  75"


asked: list[str] = []
first = Agent("first", prompt="Say {{ text }}", system="About {{ text }}")
second = Agent("second", prompt="Repeat {{ said }}")


@workflow
async def twice(row: dict[str, Any]) -> str:
    said = await first(text=row["text"])
    return await second(said=said)


def test_neither_rows_nor_replies_are_ever_rendered():
    evil = "{{ 7 * 7 }}{% for x in range(9) %}x{% endfor %}{# gone #}{{ ''.__class__ }}"

    def reply(request: Request, ctx: CallContext) -> str:
        asked.extend(message.text for message in request.messages)
        return evil

    asked.clear()
    done = list(weaverant.run(twice, [{"text": evil}], models=Scripted(reply)))
    assert [task.result for task in done] == [evil]
    assert asked == [f"About {evil}", f"Say {evil}", f"Repeat {evil}"]


# Loading executes nothing


FORBIDDEN_MODULES = {"pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "yaml", "ruamel"}
FORBIDDEN_CALLS = {"eval", "exec", "__import__", "os.system", "os.popen"}


def dangers(source: str) -> Iterator[str]:
    """What in a source could run what a file holds."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] in FORBIDDEN_MODULES)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in FORBIDDEN_MODULES:
            yield str(node.module)
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            given = {word.arg: ast.unparse(word.value) for word in node.keywords}
            unsafe = name.endswith("torch.load") and given.get("weights_only") != "True"
            if name in FORBIDDEN_CALLS or unsafe or given.get("shell") == "True" or given.get("allow_pickle") == "True":
                yield ast.unparse(node)


def test_nothing_in_the_package_can_run_what_a_file_holds():
    found = {str(path): list(dangers(path.read_text())) for path in SRC.rglob("*.py")}
    assert len(found) > 100 and {path: what for path, what in found.items() if what} == {}


@pytest.mark.parametrize(
    "source",
    [
        *("import pickle", "from yaml import load", "eval(x)", "exec('1')", "os.system(x)", "import shelve as s"),
        *(
            "run(x, shell=True)",
            "torch.load(path)",
            "torch.load(path, weights_only=False)",
            "np.load(p, allow_pickle=True)",
        ),
    ],
)
def test_the_search_for_it_finds_it(source: str):
    assert list(dangers(source)) and not list(dangers("torch.load(p, weights_only=True); re.compile(x); run(x)"))


def command(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "weaverant.cli", *arguments], capture_output=True, text=True, timeout=120, check=False,
        **options,
    )  # fmt: skip


PLAIN = """
from weaverant import Agent, workflow
asker = Agent("asker", prompt="Say {{ n }}")
@workflow
async def ask(row, *, note: str = ""):
    return {"said": await asker(n=row["n"]), "preferences": []}
"""


@pytest.fixture
def run_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished run of two rows."""
    monkeypatch.chdir(tmp_path)
    Path("w.py").write_text(PLAIN)
    Path("rows.jsonl").write_text('{"n": 1}\n{"n": 2}\n')
    done = command("run", "w.py", "--input", "rows.jsonl", "--model", "simulated:", "--run", "run")
    assert done.returncode == 0, done.stderr
    return tmp_path / "run"


def test_reading_a_strangers_run_executes_nothing(run_directory: Path, tmp_path: Path):
    """`show` and the generic exports read data only; an exporter of the workflow's own is in its program, and runs it."""
    evil = tmp_path / "evil.py"
    evil.write_text(f"open({str(tmp_path / 'executed')!r}, 'w')\n" + PLAIN)
    config = json.loads((run_directory / "run.json").read_text())
    config |= {"workflow": str(evil), "file": str(evil), "found": f"{evil}:ask", "models": {"*": f"scripted:{evil}"}}
    (run_directory / "run.json").write_text(json.dumps(config))
    for words in (["show", "run"], ["show", "run", "--json"], ["show", "run", "--task", "0.0.0"]):
        assert command(*words).returncode == 0
    for form in ("raw", "messages", "preference"):
        assert command("export", "run", "--as", form, "--out", "-").returncode == 0
    assert not (tmp_path / "executed").exists()
    assert command("export", "run", "--as", "its_own", "--out", "-").returncode == 2
    assert (tmp_path / "executed").exists()  # so the bait does work


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("executed",)


SPOILT = {
    "model.safetensors": (
        *(pickle.dumps(Bomb()), b"", b"\xff" * 8, b"\xff" * 7 + b"\x7f" + b"x" * 50, b"\2\0\0\0\0\0\0\0{}"),
        b"\x40\0\0\0\0\0\0\0" + b'{"wte.weight":{"dtype":"F32","shape":[-1],"data_offsets":[-9,9]}}'.ljust(64),
    ),
    "config.json": (b"", b"[]", b"{}", b'{"n_head":0,"n_positions":1,"n_layer":1}', b"[" * 100_000, b"\xff"),
    "tokenizer.json": (b"", b"null", b"[]", b'{"model":[]}', b'{"model":{"type":"BPE","merges":[],"vocab":[]}}'),
    "tokenizer_config.json": (b"", b"7", b"{}", b'{"eos_token":[],"chat_template":"{{"}'),
}


@pytest.mark.parametrize("name", SPOILT)
def test_a_checkpoint_that_was_made_to_do_harm_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for path in (PACKAGED / "tiny").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    for data in SPOILT[name]:
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match="cannot open the embedded model"):
            EmbeddedEngine.open(str(tmp_path))
    assert not Path("executed").exists()


def test_a_checkpoints_chat_template_is_in_the_sandbox(tmp_path: Path):
    for path in (PACKAGED / "tiny").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    for template in ("{{ ''.__class__.__mro__ }}", "{{ 'a' * 10**10 }}"):
        (tmp_path / "chat_template.jinja").write_text(template)
        engine = EmbeddedEngine.open(str(tmp_path))
        (task,) = weaverant.run(twice, [{"text": "hi"}], models=engine)
        assert task.state == "failed", task


# Names and paths


def test_no_name_leads_out_of_its_folder(run_directory: Path, tmp_path: Path):
    for name in ("../run", "/etc", "..", "", "malt/../malt"):
        assert command("recipes", "copy", name, "copied").returncode == 2
    assert not Path("copied").exists()
    for key in ("../../etc/passwd", "/etc/passwd", "..", "0.0.0/../.."):
        done = command("show", "run", "--task", key)
        assert done.returncode == 2 and "has no task" in done.stderr


@pytest.mark.parametrize("name", ["../a.jsonl", "/a.jsonl", "a/b.jsonl", "..", "", "a\0.jsonl", "\x1b[2J.jsonl", 7])
def test_no_exporter_writes_out_of_the_folder_it_was_given(run_directory: Path, tmp_path: Path, name: object):
    Path("w.py").write_text(
        "from weaverant import exporter\n"
        + PLAIN
        + f"@exporter\ndef named(story):\n    yield {{'_file': {name!r}, 'a': 1}}\n"
    )
    before = set(tmp_path.rglob("*"))
    done = command("export", "run", "--as", "named", "--out", "out")
    assert done.returncode == 2 and (
        "expected a plain file name" in done.stderr or "cannot tell the format" in done.stderr
    )
    assert {path for path in set(tmp_path.rglob("*")) - before if "__pycache__" not in str(path)} == set()


def test_rows_full_of_paths_leave_files_nowhere_but_in_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    home = tmp_path / "a" / "b" / "c"
    home.mkdir(parents=True)
    monkeypatch.chdir(home)
    paths = ["../" * n + "evil" for n in range(1, 5)] + [str(tmp_path / "evil"), "~/evil", "a\\..\\evil", "%2e%2e/evil"]
    rows = [{"text": path, "id": path, "key": path, "_file": path, path: path} for path in paths]
    run = weaverant.run(twice, rows, models="scripted:" + str(script(home)), directory="run").wait()
    assert run.state == "finished"
    outside = [path for path in tmp_path.rglob("*") if path.is_file() and home / "run" not in path.parents]
    assert outside == [home / "script.jsonl"]


def script(folder: Path, reply: str = "../../evil") -> Path:
    path = folder / "script.jsonl"
    path.write_text(json.dumps({"reply": reply}) + "\n")
    return path


# Keys


@pytest.mark.parametrize(
    "words", [["--note", KEY], ["--set", f'asker.extra={{"api_key": "{KEY}"}}'], ["--set", f'asker.stop=["{KEY}"]']]
)
def test_a_key_among_the_settings_of_a_run_is_refused_and_not_stored(tmp_path: Path, words: list[str]):
    (tmp_path / "w.py").write_text(PLAIN)
    (tmp_path / "rows.jsonl").write_text('{"n": 1}\n')
    given = ["run", "w.py", "--input", "rows.jsonl", "--model", "simulated:", "--run", "run", *words]
    done = command(*given, cwd=tmp_path)
    assert done.returncode == 2 and "looks like a key" in done.stderr
    assert KEY not in done.stdout + done.stderr
    assert not any(KEY.encode() in path.read_bytes() for path in tmp_path.rglob("run/**/*") if path.is_file())
    fine = [word.replace(KEY, "hf_dataset_of_words") for word in given]
    assert command(*fine, cwd=tmp_path).returncode == 0
