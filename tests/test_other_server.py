"""A server that is not ours, `transformers serve` on a tiny checkpoint: chat, streams, errors, and the recipe `malt` on
GSM8K rows.

The model is random, so every answer is wrong; what is proved is that the wire works and every row is accounted for.
"""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import msgspec
import pytest

from small_models import make_tokenizer
from weaverant.engines.http import Pool
from weaverant.errors import StepFailed
from weaverant.message import OutputSchema, Reply, Request, Sampling, system, user
from weaverant.protocols import CallContext

pytestmark = pytest.mark.heavy

GSM8K = Path(__file__).parent.parent.parent / "shared" / "data" / "recipes" / "gsm8k" / "gsm8k_test.jsonl"
ROWS = 6


def make_checkpoint(folder: Path) -> None:
    """A random GPT-2 of 30 thousand weights with a byte-level tokenizer and a chat template."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    fast = make_tokenizer()
    torch.manual_seed(0)
    end = fast.eos_token_id
    config = GPT2Config(
        vocab_size=len(fast), n_positions=4096, n_embd=32, n_layer=2, n_head=2, bos_token_id=end, eos_token_id=end
    )
    model = GPT2LMHeadModel(config)
    model.generation_config.pad_token_id = end
    model.save_pretrained(folder)
    fast.save_pretrained(folder)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory):
    """The spec of the served model."""
    folder = tmp_path_factory.mktemp("checkpoint")
    make_checkpoint(folder)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        Path(sys.executable).parent / "transformers",
        "serve",
        folder,
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with (folder / "serve.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--device", "cpu"], stdout=log, stderr=log, env=environment, start_new_session=True
        )
        try:
            wait_until_healthy(f"http://127.0.0.1:{port}/health", process)
            yield f"http://127.0.0.1:{port}/v1#{folder}"
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_until_healthy(url: str, process: subprocess.Popen) -> None:
    for _ in range(300):
        assert process.poll() is None, "transformers serve ended before it was ready"
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.4)
    raise AssertionError("transformers serve was not ready within two minutes")


GREEDY = Request("a", "m", (system("be brief"), user("héllo 🙂")), Sampling(0.0, max_tokens=40), seed=7)


def ask(spec: str, request: Request = GREEDY, *, model: str = "", options: str = "retries=0") -> Reply:
    """One call by an engine of its own."""
    url, _, served = spec.partition("#")

    async def main() -> Reply:
        engine = Pool([f"{url}?{options}#{model or served}"])
        try:
            return await engine.generate(request, CallContext("0"))
        finally:
            await engine.close()

    return asyncio.run(main())


def fail(spec: str, request: Request = GREEDY, **how: str) -> StepFailed:
    with pytest.raises(StepFailed) as caught:
        ask(spec, request, **how)
    return caught.value


def sampled(**fields: object) -> Request:
    return msgspec.structs.replace(GREEDY, sampling=msgspec.structs.replace(GREEDY.sampling, **fields))


def test_chat(server: str):
    reply = ask(server)
    assert reply.text and reply == ask(server), "greedy, so the same again"
    assert (reply.finish, reply.usage.completion_tokens, reply.usage.requests) == ("length", 40, 1)
    assert reply.usage.prompt_tokens > 20 and reply.model.startswith(server.partition("#")[2])


@pytest.mark.parametrize("client", ["fast", "dependable"])
def test_a_stream_gives_the_same_reply(server: str, client: str):
    # This server ends its streams without [DONE], and tells the usage in the event with the finish reason.
    assert ask(server, options=f"retries=0&stream=1&client={client}") == ask(server, options=f"client={client}")


def test_errors_are_of_the_documented_kinds(server: str):
    unknown = fail(server, model="no-such-model")
    assert unknown.kind == "request" and "no-such-model" in unknown.text and unknown.detail["requests"] == 1
    bad = fail(server, sampled(extra={"no_such_field": 1}))
    assert bad.kind == "request" and "no_such_field" in bad.text and bad.detail["status"] == 422
    nowhere = fail(server.replace("/v1#", "/v2#"))
    assert nowhere.kind == "request" and nowhere.detail["status"] == 404


@pytest.mark.parametrize("options", ["retries=0", "retries=0&stream=1"])
def test_what_is_too_long_is_a_failure_of_the_server(server: str, options: str):
    """It breaks down within the model's forward pass, and says nothing of lengths: a 500, or an event that says error."""
    too_long = Request("a", "m", (user("x" * 5_000),), Sampling(0.0, max_tokens=5))
    failure = fail(server, too_long, options=options)
    assert failure.kind == "server" and failure.detail == {"requests": 1, "status": 500}
    failure = fail(server, sampled(max_tokens=50_000), options=options)
    assert failure.kind == "server" and failure.detail == {"requests": 1, "status": 500}
    assert ask(server).text, "it lives on"


def test_a_schema_that_the_server_ignores_can_go_into_the_prompt(server: str):
    wanted = msgspec.structs.replace(GREEDY, output=OutputSchema("n", {"type": "integer"}))
    ignored, prompted = ask(server, wanted), ask(server, wanted, options="schema=prompt")
    assert ignored.usage.prompt_tokens == ask(server).usage.prompt_tokens
    assert prompted.usage.prompt_tokens > ignored.usage.prompt_tokens + 100


def weaverant(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "weaverant.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600)


@pytest.mark.timeout(900)
def test_malt_on_gsm8k_against_transformers_serve(server: str, tmp_path: Path):
    import transformers

    if not GSM8K.is_file():
        pytest.skip(f"the GSM8K rows are not there: {GSM8K}")
    run = tmp_path / "run"
    done = weaverant(
        "run", "malt", "--input", GSM8K, "--limit", ROWS, "--model", server, "--run", run, "--branching", 2,
        "--set", "generator.max_tokens=12", "--set", "verifier.max_tokens=12", "--set", "refiner.max_tokens=12",
        "--concurrency", 8,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    shown = json.loads(weaverant("show", run, "--json").stdout)
    calls = ROWS * (2 + 4 + 8)
    print(f"transformers {transformers.__version__}: {ROWS} rows, {calls} calls")
    stage = shown["stages"][0]
    assert (stage["rows"], stage["done"], stage["left"]) == (ROWS, ROWS, 0)
    assert sum(agent["calls"] for agent in shown["agents"]) == calls
    exported = tmp_path / "messages.jsonl"
    left_out = weaverant("export", run, "--as", "messages", "--out", exported)
    assert left_out.returncode == 0 and f"left out: {calls} cut short (max_tokens)" in left_out.stderr
    again = weaverant("export", run, "--as", "messages", "--keep-cut", "--force", "--out", exported)
    assert again.returncode == 0, again.stderr
    samples = [json.loads(line) for line in exported.read_text().splitlines()]
    assert len(samples) == calls
    questions = [json.loads(line)["question"] for line in GSM8K.read_text().splitlines()[:ROWS]]
    for question in questions:
        assert any(re.search(re.escape(question[:60]), sample["messages"][0]["content"]) for sample in samples)
