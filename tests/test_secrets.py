"""Keys stay where they are: planted in variables, files and proxies, they turn up in nothing that is shown or stored.

Real commands against a server that repeats the key it was sent, in every encoding that servers use.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import pickle
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from html import escape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar
from urllib.parse import quote, quote_plus

import pytest
import zstandard

from weaverant.engines.http import Pool
from weaverant.engines.http.address import find_key, parse
from weaverant.engines.http.key import Key
from weaverant.errors import StepFailed, Unavailable, UserError
from weaverant.journal.segment import Segment, segment_numbers, segment_path
from weaverant.message import Request, user
from weaverant.protocols import CallContext

PLAIN = "sk-proj-Zx81kQ_77vB-4mNpRt902LwE"
ODD = 'k9/odd+chars=&"q"<w>%41\\n~Zz73'
HEX = "c0ffee5a1e7d4b2f9a8c6e3d1b0f7a52"
IN_FILE = "gsk_FileBorne7Q2w9E4r6T8y0U1i3O5p"
PROXY = "Pr0xy-Pa55-of-Someb0dy-91"
PLANTED = {"plain": PLAIN, "odd": ODD, "hex": HEX, "file": IN_FILE, "proxy": PROXY}

WORKFLOW = """
from weaverant import Agent, step, workflow

asker = Agent("asker", prompt="Say {{ n }}", repairs=0)

def broken(n: int) -> int:
    raise RuntimeError(f"row {n} breaks")

@workflow
async def ask(row):
    if row["n"] == 2:
        await step(broken, row["n"])
    return {"said": await asker(n=row["n"])}
"""


def lowered(url: str) -> str:
    return re.sub("%..", lambda found: found.group().lower(), url)


def forms(secret: str) -> set[bytes]:
    """How a key may be written; the base64 of it depends on what stands before it, but for its middle."""
    raw = secret.encode()
    found = {secret, json.dumps(secret)[1:-1], json.dumps(secret)[1:-1].replace("/", "\\/"), escape(secret)}
    urls = {quote(secret, safe=""), quote(secret), quote_plus(secret)}
    found |= {*urls, *map(lowered, urls), raw.hex(), raw.hex().upper()}
    for before in range(3):
        code = base64.b64encode(b"x" * before + raw).decode()
        found |= {code[4:-4], code[4:-4].replace("+", "-").replace("/", "_")}
    found |= {json.dumps(form)[1:-1] for form in found}
    return {form.encode() for form in found}


FORMS = {name: forms(secret) for name, secret in PLANTED.items()}


def leaks(data: bytes | str) -> list[str]:
    """Which of the planted keys are in the data."""
    raw = data if isinstance(data, bytes) else data.encode(errors="surrogateescape")
    return sorted(name for name, written in FORMS.items() if any(form in raw for form in written))


def unpacked(data: bytes) -> bytes:
    """Everything in the data that zstd packed, wherever it stands."""
    magic = b"\x28\xb5\x2f\xfd"
    parts: list[bytes] = []
    place = data.find(magic)
    while place >= 0:
        try:
            parts.append(zstandard.ZstdDecompressor().decompressobj().decompress(data[place:]))
        except zstandard.ZstdError:
            pass
        place = data.find(magic, place + 1)
    return b"\0".join(parts)


def leaks_of(directory: Path) -> list[str]:
    """Which keys are in a run's directory: in names, bytes, frames as the package reads them, and what is packed."""
    found: set[str] = set()
    for path in directory.rglob("*"):
        found.update(leaks(str(path)))
        if path.is_file():
            data = path.read_bytes()
            found.update(leaks(data), leaks(unpacked(data)))
    for number in segment_numbers(directory / "journal"):
        with Segment(segment_path(directory / "journal", number)) as segment:
            for frame in segment.frames():
                found.update(leaks(bytes(frame.payload)))
    return sorted(found)


ENCODINGS = {
    "plain": lambda key: key,
    "bearer": lambda key: f"Bearer {key}",
    "json": lambda key: json.dumps({"got": key}),
    "url": lambda key: f"?key={quote(key, safe='')}",
    "lower": lambda key: lowered(quote(key, safe="")),
    "form": quote_plus,
    "html": escape,
    "base64": lambda key: base64.b64encode(key.encode()).decode(),
    "basic": lambda key: base64.b64encode(f"user:{key}".encode()).decode(),
    "websafe": lambda key: base64.urlsafe_b64encode(f"a{key}z".encode()).decode(),
    "hex": lambda key: key.encode().hex(),
    "long": lambda key: "x" * 290 + key * 3,
    "wide": lambda key: ("y " * 595) + key,
}

LONG = f"sk-proj-{'Qw7' * 40}"
HEADS = {
    "kind": "HTTP/1.1 200 OK\r\nContent-Type: {}\r\nContent-Length: 3\r\n\r\nabc",
    "coding": "HTTP/1.1 200 OK\r\nContent-Encoding: {}\r\nContent-Length: 3\r\n\r\nabc",
    "transfer": "HTTP/1.1 200 OK\r\nTransfer-Encoding: {}, chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    "length": "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\nabc",
    "header": "HTTP/1.1 200 OK\r\nno header {}\r\nContent-Length: 3\r\n\r\nabc",
    "line": "{} {}\r\n\r\n",
}
"""Answers that repeat a key where it makes no sense, and which a failure quotes."""


class Parrot(BaseHTTPRequestHandler):
    """`/STATUS/ENCODING/v1/...` answers with that status and repeats the key in that form, all over the place."""

    refused: ClassVar[list[str]] = []
    """What came as a proxy's credentials."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.do_GET()

    def do_GET(self) -> None:
        if self.path.startswith("http://"):
            self.do_CONNECT()
            return
        _, status, encoding, *rest = self.path.split("/")
        key = (self.headers["Authorization"] or "").removeprefix("Bearer ")
        said = ENCODINGS[encoding](key)
        answer: object = {"error": {"message": f"bad key {said}", "code": said, "key": said}}
        if status == "200" and rest[-1] == "models":
            answer = {"data": [{"id": f"model {said}"}, {"id": "b"}]}
        elif status == "200":
            answer = {"choices": [], "key": said}
        data = f"<p>{said}</p>".encode() if status == "403" else json.dumps(answer).encode()
        self.send_response(int(status), "odd")
        self.send_header("Content-Type", f"text/odd; {encoding}")
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Retry-After", "0")
        if status == "307":
            self.send_header("Location", f"http://elsewhere/{quote(key, safe='')}/{said.encode('latin-1').hex()}")
        self.end_headers()
        self.wfile.write(data)

    def do_CONNECT(self) -> None:
        """As a proxy it lets nobody through."""
        Parrot.refused.append(self.headers["Proxy-Authorization"] or "")
        self.send_response(407)
        self.send_header("Proxy-Authenticate", 'Basic realm="somewhere"')
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


class Hanging(BaseHTTPRequestHandler):
    """Never answers, until the client has left."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.connection.settimeout(30)
        try:
            self.connection.recv(1)
        except OSError:
            pass

    def log_message(self, *_: object) -> None:
        pass


def serving(kind: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), kind) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


class HeadParrot(BaseHTTPRequestHandler):
    """`/WHERE/v1/...` answers as `HEADS` says."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.do_GET()

    def do_GET(self) -> None:
        key = (self.headers["Authorization"] or "").removeprefix("Bearer ")  # none with GET /metrics
        self.wfile.write(HEADS[self.path.split("/")[1]].format(key, key).encode())
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def parrot() -> Iterator[str]:
    yield from serving(Parrot)


@pytest.fixture(scope="module")
def hanging() -> Iterator[str]:
    yield from serving(Hanging)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("w.py").write_text(WORKFLOW)
    Path("rows.jsonl").write_text("".join(json.dumps({"n": n}) + "\n" for n in range(4)))
    Path("key.txt").write_text(f"{IN_FILE}\n")
    return tmp_path


def environment(**more: str) -> dict[str, str]:
    own = {"PLAIN": PLAIN, "ODD": ODD, "HEX": HEX, "FILED_FILE": "key.txt", "OPENAI_API_KEY": PLAIN}
    kept = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    return {**kept, **own, **more}


def call(*arguments: str, python: tuple[str, ...] = (), **more: str) -> subprocess.CompletedProcess[str]:
    """A command, none of whose output may hold a key."""
    command = [sys.executable, *python, "-m", "weaverant.cli", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment(**more), check=False)
    assert leaks(done.stdout + done.stderr) == [], done.stdout + done.stderr
    return done


def run(model: str, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    return call("run", "w.py", "--input", "rows.jsonl", "--model", model, "--max-failures", "1", *arguments, **more)


# The search itself


def test_the_search_finds_what_is_planted(tmp_path: Path):
    for name, secret in PLANTED.items():
        for encoding, encode in ENCODINGS.items():
            assert name in leaks(encode(secret)), (name, encoding)
    packed = zstandard.ZstdCompressor().compress(json.dumps(list(range(2000))).encode() + ODD.encode())
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").write_bytes(b"head" + packed)
    (tmp_path / "journal").mkdir()
    assert leaks(packed) == [] and leaks_of(tmp_path) == ["odd"]


# Commands


KEYS = {"plain": "key_env=PLAIN", "odd": "key_env=ODD", "hex": "key_env=HEX", "file": "key_env=FILED"}


SLOW = pytest.mark.slow


@pytest.mark.parametrize("status", ["422", "200", *(pytest.param(more, marks=SLOW) for more in ("400", "500"))])
def test_no_command_shows_or_stores_a_key_that_the_server_repeats(folder: Path, parrot: str, status: str):
    """One run asks for many encodings, each as a model of its own."""
    pairs = [(encoding, list(KEYS.values())[n % len(KEYS)]) for n, encoding in enumerate(ENCODINGS)]
    pairs += [("plain", key) for key in (*KEYS.values(), "key_file=key.txt")]
    agents = "\n".join(f'a{n} = Agent("a{n}", prompt="Say", model="m{n}")' for n in range(len(pairs)))
    calls = "\n".join(
        f"    try:\n        await a{n}()\n    except StepFailed as error:\n        said.append(str(error))"
        for n in range(len(pairs))
    )
    Path("w.py").write_text(
        f"from weaverant import Agent, StepFailed, workflow\n{agents}\n@workflow\nasync def w(row):\n"
        f"    said = []\n{calls}\n    if row['n']:\n        raise StepFailed('request', ' '.join(said))\n    return said\n"
    )
    Path("rows.jsonl").write_text('{"n": 0}\n{"n": 1}\n')
    models: list[str] = []
    for n, (encoding, key) in enumerate(pairs):
        models += ["--model", f"m{n}={parrot}/{status}/{encoding}/v1?retries=0&timeout=3&{key}#m"]
    ran = call("run", "w.py", "--input", "rows.jsonl", "--run", "out", "--max-failures", "1", *models)
    assert ran.returncode == 3, ran.stderr
    assert leaks_of(Path("out")) == []
    story = call("show", "out", "--task", "0.0.0", "--full")
    assert story.stdout.count("FAILED") == len(pairs)
    assert story.stdout.count("[key]") >= len(pairs) // 2, story.stdout
    call("show", "out")
    call("show", "out", "--json")
    call("show", "out", "--task", "0.0.0", "--json")
    for state in ("done", "failed"):
        call("export", "out", "--as", "raw", "--state", state, "--out", "-")
        call("export", "out", "--as", "messages", "--state", state, "--out", "-")
    call("resume", "out", "--retry", "failed", "--max-failures", "1")
    assert leaks_of(Path("out")) == []


@pytest.mark.parametrize(("status", "code"), [("401", 2), ("403", 2), ("307", 2), ("429", 4)])
def test_no_run_that_stops_for_its_server_shows_a_key(folder: Path, parrot: str, status: str, code: int):
    stopped = run(f"{parrot}/{status}/plain/v1?key_env=PLAIN&retries=0&timeout=2#m", "--run", "out")
    assert stopped.returncode == code and ("[key]" in stopped.stderr or status == "307"), stopped.stderr
    assert leaks_of(Path("out")) == []


@pytest.mark.parametrize("status", ["403", "307"])
def test_no_error_that_stops_a_run_shows_a_key_however_the_server_writes_it(
    folder: Path, parrot: str, status: str, monkeypatch: pytest.MonkeyPatch
):
    async def ask(spec: str) -> str:
        engine = Pool([spec])
        try:
            with pytest.raises(Unavailable) as caught:
                await engine.generate(Request("a", "m", (user("hi"),)), CallContext("t"))
            return caught.value.text
        finally:
            await engine.close()

    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    for encoding in ENCODINGS:
        for key in KEYS.values():
            assert leaks(asyncio.run(ask(f"{parrot}/{status}/{encoding}/v1?retries=0&timeout=3&{key}#m"))) == []


@pytest.mark.parametrize("encoding", ["plain", "json", "url", "html", "base64", "long", "wide"])
def test_no_list_of_models_shows_a_key(folder: Path, parrot: str, encoding: str):
    call("models", f"{parrot}/200/{encoding}/v1?key_env=ODD")
    done = call("models", f"{parrot}/401/{encoding}/v1?key_env=ODD")
    assert done.returncode == 1 and ("[key]" in done.stderr or encoding in ("long", "wide"))


@pytest.mark.parametrize("client", ["fast", "dependable"])
def test_no_failure_shows_a_key_that_the_head_of_an_answer_repeats(client: str, monkeypatch: pytest.MonkeyPatch):
    async def ask(spec: str) -> str:
        engine = Pool([spec])
        try:
            with pytest.raises(StepFailed) as caught:
                await engine.generate(Request("a", "m", (user("hi"),)), CallContext("t"))
            return caught.value.text
        finally:
            await engine.close()

    monkeypatch.setenv("LONG", LONG)
    for root in serving(HeadParrot):
        for where in HEADS:
            base = f"{root}/{where}/v1?key_env=LONG&client={client}&retries=0"
            with pytest.raises(UserError) as unlisted:
                Pool([base])
            for said in (asyncio.run(ask(f"{base}#m")), str(unlisted.value)):
                assert said and LONG[:24] not in said, said  # what is cut somewhere is a leak as well


def test_no_list_of_models_to_choose_from_shows_a_key(folder: Path, parrot: str):
    done = run(f"{parrot}/200/plain/v1?key_env=ODD")
    assert done.returncode == 2 and "[key]" in done.stderr


def test_no_key_is_shown_before_a_run_or_among_the_providers(folder: Path, parrot: str):
    plan = run(f"{parrot}/200/plain/v1?key_env=PLAIN#m", "--dry-run", "--run", "out")
    assert plan.returncode == 0, plan.stderr
    assert run("openai:gpt-5-mini", "--dry-run").returncode == 0
    assert "set" in call("models").stdout
    call("models", "openai", "--json")


@pytest.mark.parametrize("python", [("-X", "dev"), ("-X", "dev", "-W", "error")])
def test_no_key_is_shown_by_a_workflow_that_breaks_nor_in_development_mode(
    folder: Path, parrot: str, python: tuple[str, ...]
):
    Path("rows.jsonl").write_text('{"n": 1}\n{"n": 2}\n')
    model = f"{parrot}/422/plain/v1?key_env=PLAIN#m"
    arguments = ("run", "w.py", "--input", "rows.jsonl", "--model", model, "--max-failures", "1", "--run", "out")
    assert call(*arguments, python=python).returncode == 3
    assert leaks_of(Path("out")) == []
    assert "breaks" in call("show", "out", python=python).stdout


CRASH = """
import asyncio, logging, sys, traceback
logging.basicConfig(level=logging.DEBUG, stream=sys.stderr)

def hook(kind, error, trace):
    for line in traceback.TracebackException(kind, error, trace, capture_locals=True).format():
        print(line)

sys.excepthook = hook

from weaverant.engines import open_engine
from weaverant.message import Request, user
from weaverant.protocols import CallContext

async def main(spec):
    engine = open_engine(spec)
    try:
        print(vars(engine))
        await engine.generate(Request("a", "m", (user("hi"),)), CallContext("0"))
    finally:
        await engine.close()

asyncio.run(main(sys.argv[1]), debug=True)
"""


@pytest.mark.parametrize("client", ["fast", "dependable"])
@pytest.mark.parametrize("place", ["401/plain", "200/json", "307/plain"])
def test_no_traceback_with_all_variables_and_no_log_shows_a_key(folder: Path, parrot: str, client: str, place: str):
    Path("crash.py").write_text(CRASH)
    spec = f"{parrot}/{place}/v1?key_env=PLAIN&client={client}&retries=0#m"
    command = [sys.executable, "-X", "dev", "crash.py", spec]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment(), check=False)
    assert done.returncode == 1
    assert "StepFailed" in done.stdout and "spec = " in done.stdout
    assert "DEBUG" in done.stderr
    assert leaks(done.stdout + done.stderr) == [], done.stdout + done.stderr


CUT = """
import asyncio, sys, traceback
from weaverant.engines.http.client.dependable import Dependable
from weaverant.engines.http.client.fast import Fast
from weaverant.engines.http.key import Key

def hook(kind, error, trace):
    for line in traceback.TracebackException(kind, error, trace, capture_locals=True).format():
        print(line)

sys.excepthook = hook

async def main(client, url, headers):
    sending = client().send("POST", url, headers, b"{}", seconds=60, most=100)
    await asyncio.wait_for(sending, 1.5)

with open("key.txt") as file:
    bearer = Key(file.read().strip()).bearer()
    del file
asyncio.run(main({"fast": Fast, "dependable": Dependable}[sys.argv[1]], sys.argv[2], {"Authorization": bearer}))
"""


@pytest.mark.parametrize("client", ["fast", "dependable"])
def test_no_traceback_through_the_client_shows_a_key(folder: Path, hanging: str, client: str):
    """A call that is cut off while it waits: all frames are there, down to the client's, with all their variables."""
    Path("cut.py").write_text(CUT)
    command = [sys.executable, "cut.py", client, f"{hanging}/v1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment(), check=False)
    assert done.returncode == 1
    assert "CancelledError" in done.stdout and f"{client}.py" in done.stdout and "headers = " in done.stdout
    assert leaks(done.stdout + done.stderr) == [], done.stdout + done.stderr


def test_no_connection_that_fails_shows_a_key(folder: Path):
    for client in ("fast", "dependable"):
        model = f"http://127.0.0.1:9/v1?key_env=PLAIN&client={client}&retries=0&timeout=5#m"
        assert run(model, "--run", f"out-{client}").returncode == 4
        assert leaks_of(Path(f"out-{client}")) == []


def test_no_command_line_of_a_running_process_holds_a_key(folder: Path, hanging: str):
    model = f"{hanging}/v1?key_env=PLAIN&key_file=key.txt#m"
    command = [sys.executable, "-m", "weaverant.cli", "run", "w.py", "--input", "rows.jsonl", "--model", model]
    process = subprocess.Popen([*command, "--run", "out"], env=environment(), stderr=subprocess.PIPE)
    try:
        until = time.monotonic() + 20
        while not any(Path("out/journal").glob("*")):
            assert time.monotonic() < until and process.poll() is None
            time.sleep(0.05)
        own = [path for path in Path("/proc").glob("[0-9]*") if parent_of(path) in (process.pid, None)]
        assert leaks(Path(f"/proc/{process.pid}/cmdline").read_bytes()) == []
        assert leaks(b"".join(read(path / "cmdline") for path in own)) == []
        assert leaks_of(Path("out")) == []
    finally:
        process.kill()
        _, errors = process.communicate()
    assert leaks(errors) == []


def parent_of(path: Path) -> int | None:
    fields = read(path / "stat").rpartition(b")")[2].split()
    return int(fields[1]) if len(fields) > 1 else -1


def read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


# Proxies


def test_no_proxys_password_is_shown(folder: Path, parrot: str):
    place = parrot.removeprefix("http://")
    target = "http://models.example:8000/v1?retries=0&timeout=5"
    Parrot.refused.clear()
    tries = [("fast", "http", place), ("dependable", "http", place), ("fast", "https", place)]
    tries += [("dependable", "https", place), ("fast", "http", "127.0.0.1:9"), ("dependable", "http", "127.0.0.1:9")]
    for n, (client, scheme, proxy) in enumerate(tries):
        url = f"{target.replace('http', scheme, 1)}&client={client}#m"
        done = run(url, "--run", f"out-{n}", **{f"{scheme}_proxy": f"http://somebody:{PROXY}@{proxy}"})
        assert done.returncode in (3, 4), done.stderr  # a proxy's 407 is an answer, or the end of a connection
        assert leaks_of(Path(f"out-{n}")) == []
    assert set(Parrot.refused) == {f"Basic {base64.b64encode(f'somebody:{PROXY}'.encode()).decode()}"}
    assert len(Parrot.refused) >= 4 * 4
    for broken in (f"socks5://somebody:{PROXY}@127.0.0.1:9", f"http://somebody:{PROXY}@127.0.0.1:port"):
        done = run(f"{target}#m", "--run", f"out-{len(broken)}", http_proxy=broken)
        assert leaks_of(Path(f"out-{len(broken)}")) == []


# Keys in the wrong place


@pytest.mark.parametrize("secret", [PLAIN, HEX, IN_FILE])
def test_a_key_in_the_wrong_place_is_refused_and_not_repeated(folder: Path, secret: str):
    pasted = [
        f"https://user:{secret}@host.example/v1#m",
        f"https://{secret}@host.example/v1#m",
        f"https://host.example/v1?api_key={secret}#m",
        f"https://host.example/v1?key={secret}#m",
        f"https://host.example/v1?{secret}#m",
        f"https://host.example/v1?x={secret}#m",
        f"https://host.example/v1?key_env={secret}#m",
        f"https://host.example/v1?key_file={secret}#m",
        f"https://host.example/v1?client={secret}#m",
        f"https://host.example/v1?name={secret}#m",
        f"https://host.example/v1?rpm={secret}#m",
        f"https://host.example/v1?price={secret}#m",
        f"https://host.example/v1?preset={secret}#m",
        f"openai:gpt-5-mini?key_env={secret}",
        f"openai:gpt-5-mini?api_key={secret}",
        f"http:{secret}",
        f"{secret}",
        f"{secret}:x",
        f"cache:{secret}",
        f"http://[{secret}/v1#m",
        f"pool:{secret}",
        f"pool:{secret}#m",
        f"pool:http://localhost:1/v1#m,https://user:{secret}@host.example/v1#m",
    ]
    if secret != HEX:  # a model's name and a path may be as long and random as this one
        pasted += [
            f"pool:http://localhost:1/v1#m,{secret}",
            f"https://host.example/v1#{secret}",
            f"openai:{secret}",
            f"https://host.example/{secret}/v1#m",
        ]
    for spec in pasted:
        for model in (spec, f"strong={spec}"):
            with pytest.raises(UserError) as caught:
                open_spec(model.removeprefix("strong="))
            assert leaks(str(caught.value)) == [], spec
    if secret == PLAIN:
        two = call("run", "w.py", "--input", "rows.jsonl", "--model", "embedded:tiny", "--model", secret)
        assert two.returncode == 2
    for spec in pasted[:2] + pasted[15:18] if secret == PLAIN else []:
        done = run(spec, "--run", "out")
        assert done.returncode == 2, done.stderr
        assert not Path("out").exists()
        assert call("models", spec).returncode == 2


@pytest.mark.parametrize(
    "spec",
    [
        "http://h/v1?name=gpt-4o-2024-08-06-with-a-long-name&api-version=2024-10-21-preview#org/model-2024-08-06-x",
        "http://h/v1?deployment=my-deployment-of-2024-08-06&region=eu-west-3#sk-1",
        "https://gateway.example/v1/0123456789abcdef0123456789abcdef/openai?rpm=60#m",
        "openrouter:meta-llama/llama-3.3-70b-instruct:free",
    ],
)
def test_what_only_looks_long_is_no_key(spec: str):
    assert parse(spec).model


def open_spec(spec: str) -> None:
    from weaverant.engines import open_engine

    open_engine(spec)


# Where keys come from


def key_of(spec: str) -> str | None:
    found = find_key(parse(spec))
    return None if found is None else found.reveal()


def test_a_key_comes_from_a_variable_or_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "key"
    file.write_text(f"  {IN_FILE}\r\n")
    for name in ("WEAVERANT_API_KEY", "WEAVERANT_API_KEY_FILE", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    assert key_of("http://h/v1#m") is None
    monkeypatch.setenv("WEAVERANT_API_KEY_FILE", str(file))
    assert key_of("http://h/v1#m") == IN_FILE
    monkeypatch.setenv("WEAVERANT_API_KEY", PLAIN)
    assert key_of("http://h/v1#m") == PLAIN
    assert key_of(f"http://h/v1?key_file={file}#m") == IN_FILE
    monkeypatch.setenv("MINE", f"{HEX}\n")
    assert key_of("http://h/v1?key_env=MINE#m") == HEX
    monkeypatch.setenv("OPENAI_API_KEY_FILE", str(file))
    assert key_of("openai:gpt-5-mini") == IN_FILE


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "empty"),
        (b" \n", "empty"),
        (b"two words", "HTTP header"),
        (b"two\nlines", "HTTP header"),
        (b"\xff\xfe\x00", "no text"),
        (b"caf\xc3\xa9", "HTTP header"),
        (None, "No such file"),
    ],
)
def test_a_file_without_a_proper_key_is_a_users_error(tmp_path: Path, content: bytes | None, says: str):
    file = tmp_path / "key"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError, match=says) as caught:
        key_of(f"http://h/v1?key_file={file}#m")
    assert "two" not in str(caught.value) and str(file) in str(caught.value)


def test_a_key_shows_itself_to_nobody():
    key = Key(PLAIN)
    for shown in (str(key), repr(key), f"{key}", f"{key!r}", f"{key!s:>10}", repr([key]), f"{[key]!s}"):
        assert "[key]" in shown and leaks(shown) == []
    assert key.reveal() == PLAIN and key.bearer() == f"Bearer {PLAIN}"
    assert leaks(repr({"Authorization": key.bearer(), "x": key.reveal()})) == []
    assert f"{key.bearer()}" == f"Bearer {PLAIN}"
    with pytest.raises(TypeError):
        pickle.dumps(key)


@pytest.mark.parametrize("secret", [PLAIN, ODD, HEX, "x1"])
def test_a_key_is_hidden_wherever_a_text_is_cut(secret: str):
    key = Key(secret)
    for place in range(90, 101):
        text = b"a" * place + secret.encode() + b"b" * 50
        assert secret.encode() not in key.hide_in(text, 100)
        assert key.hide_in(text, 100).startswith(b"a" * (place - 10))
        if len(secret) > 4:
            assert secret.encode()[:4] not in key.hide_in(text, 100)
    assert key.hide_in(b"short", 100) == b"short"
