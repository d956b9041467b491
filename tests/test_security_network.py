"""Nothing of a row, a reply, a schema or a redirect makes us connect anywhere; nothing a server sends fills the memory
or steers the terminal."""

from __future__ import annotations

import asyncio
import gzip
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from weaverant.engines.http import Pool
from weaverant.errors import StepFailed, UserError
from weaverant.message import ImagePart, Message, Request, TextPart, user
from weaverant.protocols import CallContext
from weaverant.schema import Output

STEERING = "\x1b[2J\x1b]0;owned\x07\x9b31m\r\x08"


class Bait(BaseHTTPRequestHandler):
    """Remembers whoever comes."""

    seen: list[str]

    def do_GET(self) -> None:
        type(self).seen.append(f"{self.command} {self.path} {self.headers['Authorization']}")
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    do_POST = do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        pass


class Model(Bait):
    """Answers as the path says, with `bait` in all places."""

    bait = ""

    def do_GET(self) -> None:
        type(self).seen.append(self.path)
        self.answer(200, {"data": [{"id": f"m{STEERING}"}, {"id": f"n {self.bait}{STEERING}"}]})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        how = self.path.split("/")[1]
        type(self).seen.append(how)
        if how.isdigit():
            self.answer(int(how), {"error": {"message": f"no {STEERING} {self.bait}"}}, Location=f"{self.bait}/v1")
        elif how == "bomb":
            self.send(
                200, gzip.compress(gzip.compress(bytes(1 << 24)) + bytes(1 << 28)), **{"Content-Encoding": "gzip"}
            )
        else:
            calls = [{"id": "c", "function": {"name": f"fetch{STEERING}", "arguments": json.dumps({"url": self.bait})}}]
            said = {"role": "assistant", "content": f"![x]({self.bait}/x.png){STEERING}", "tool_calls": calls}
            self.answer(
                200, {"choices": [{"message": said}]}, Link=f"<{self.bait}>; rel=preload", Refresh=f"0;{self.bait}"
            )

    do_HEAD = do_GET

    def answer(self, status: int, data: object, **headers: str) -> None:
        self.send(status, json.dumps(data).encode(), **headers)

    def send(self, status: int, data: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, text in {**headers, "Content-Length": str(len(data)), "Retry-After": "0"}.items():
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(data)


def serving(kind: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    kind.seen = []
    with ThreadingHTTPServer(("127.0.0.1", 0), kind) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.fixture
def bait() -> Iterator[str]:
    yield from serving(Bait)


@pytest.fixture
def model(bait: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(Model, "bait", bait)
    yield from serving(Model)


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "weaverant.cli", *arguments], capture_output=True, text=True, timeout=120, check=False
    )


def steering(said: str) -> set[str]:
    return {c for c in said if (c < " " and c not in "\n\t") or "\x7f" <= c < "\xa0"}


WORKFLOW = """
from weaverant import Agent, workflow
def fetch(url: str) -> str:
    "Never called under this name."
    return url
asker = Agent("asker", prompt="Look at {{ url }} ![i]({{ url }}/i.png)", system="{{ url }}", tools=[fetch], turns=2)
@workflow
async def ask(row):
    return {"said": await asker(url=row["url"]), "url": row["url"]}
"""


def test_no_url_in_a_row_or_a_reply_is_ever_fetched(model: str, bait: str, tmp_path: Path, monkeypatch: Any):
    monkeypatch.chdir(tmp_path)
    Path("w.py").write_text(WORKFLOW)
    rows = [{"url": bait, "image": f"{bait}/i.png", "image_url": {"url": bait}, "$ref": bait, "_file": bait}]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ran = command("run", "w.py", "--input", "rows.jsonl", "--model", f"{model}/words/v1#m", "--run", "run")
    assert Model.seen.count("words") >= 2, ran.stderr
    for words in (["show", "run"], ["show", "run", "--task", "0.0.0"], ["export", "run", "--out", "a.jsonl"]):
        done = command(*words)
        assert done.returncode == 0 and steering(done.stdout + done.stderr) == set()
    assert steering(ran.stdout + ran.stderr) == set()
    assert Bait.seen == []


def test_an_image_of_a_message_is_sent_on_as_its_address(model: str, bait: str):
    said = Message("user", (TextPart("look"), ImagePart(f"{bait}/i.png")))
    ask(f"{model}/words/v1#m", said)
    assert Model.seen.count("words") == 1 and Bait.seen == []


@pytest.mark.parametrize("client", ["fast", "dependable"])
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_no_redirect_is_followed_with_the_prompt_and_the_key(
    model: str, bait: str, status: int, client: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("SOME_KEY", "k-123456789")
    with pytest.raises(StepFailed, match="not sent on"):
        ask(f"{model}/{status}/v1?key_env=SOME_KEY&client={client}&retries=0#m", user("secret"))
    assert Model.seen.count(str(status)) == 1 and Bait.seen == []


def ask(spec: str, message: Message) -> str:
    async def once() -> str:
        engine = Pool([spec])
        try:
            return (await engine.generate(Request("a", "m", (message,)), CallContext("t"))).text
        finally:
            await engine.close()

    return asyncio.run(once())


def test_a_schema_refers_to_nothing_outside_of_itself(bait: str):
    for reference in (f"{bait}/schema.json", "file:///etc/passwd", "#/nowhere"):
        with pytest.raises(UserError, match="leads nowhere"):
            Output({"$ref": reference}, "agent").parse('{"a": 1}')
    inside = {"$defs": {"n": {"type": "integer"}}, "properties": {"a": {"$ref": "#/$defs/n"}}}
    assert Output(inside, "agent").parse('{"a": 1}') == {"a": 1}
    assert Bait.seen == []


def test_rows_are_read_from_files_and_not_from_addresses(bait: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("w.py").write_text(WORKFLOW)
    for address in (f"{bait}/rows.jsonl", f"file://{tmp_path}/w.py", f"s3+{bait}/a.parquet"):
        done = command("run", "w.py", "--input", address, "--model", "simulated:")
        assert done.returncode == 2 and "no file" in done.stderr
    assert Bait.seen == []


@pytest.mark.parametrize("client", ["fast", "dependable"])
def test_a_reply_that_unpacks_without_end_is_refused(model: str, client: str):
    with pytest.raises(StepFailed, match="longer than the 64000000 bytes"):
        ask(f"{model}/bomb/v1?client={client}&retries=0#m", user("hi"))


def test_no_name_or_complaint_of_a_server_steers_the_terminal(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    Path("w.py").write_text(WORKFLOW)
    Path("rows.jsonl").write_text('{"url": "x"}\n')
    listed = command("models", f"{model}/v1")
    assert listed.returncode == 0 and "m\\u001b[2J" in listed.stdout
    choose = command("run", "w.py", "--input", "rows.jsonl", "--model", f"{model}/v1")
    assert (choose.returncode == 2 and "u001b" in choose.stderr) or "x1b" in choose.stderr
    shown = [listed, choose, command("models", f"{model}/v1", "--json")]
    for status in (400, 401, 500):
        address = f"{model}/{status}/v1?retries=0&timeout=2#m"
        run = f"run-{status}"
        shown.append(command("run", "w.py", "--input", "rows.jsonl", "--model", address, "--run", run))
        shown.append(command("show", run))
        assert "no" in shown[-1].stdout
    for done in shown:
        assert steering(done.stdout + done.stderr) == set(), done
