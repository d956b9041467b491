"""The recipe `malt` on GSM8K rows against a server that is not ours: `transformers serve`, on a tiny checkpoint.

The model is random, so every answer is wrong; what is proved is that the wire works and every row is accounted for.
"""

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

import pytest

pytestmark = pytest.mark.heavy

GSM8K = Path(__file__).parent.parent.parent / "shared" / "data" / "recipes" / "gsm8k" / "gsm8k_test.jsonl"
ROWS = 6


def make_checkpoint(folder: Path) -> None:
    """A random GPT-2 of 30 thousand weights with a byte-level tokenizer and a chat template."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    names = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
    vocabulary = {name: number for number, name in enumerate(names)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|end|>")
    fast.chat_template = (
        "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    torch.manual_seed(0)
    end = vocabulary["<|end|>"]
    config = GPT2Config(
        vocab_size=len(names), n_positions=4096, n_embd=32, n_layer=2, n_head=2, bos_token_id=end, eos_token_id=end
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
    assert weaverant("export", run, "--as", "messages", "--out", exported).returncode == 0
    samples = [json.loads(line) for line in exported.read_text().splitlines()]
    assert len(samples) == calls
    questions = [json.loads(line)["question"] for line in GSM8K.read_text().splitlines()[:ROWS]]
    for question in questions:
        assert any(re.search(re.escape(question[:60]), sample["messages"][0]["content"]) for sample in samples)
