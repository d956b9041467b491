"""SFT and DPO with real models: the packaged one on what `weaverant run malt` exported, and a small random Llama.

Numbers that TRL gives are compared with sums done here by hand, in plain torch, from token numbers made by hand.
"""

import asyncio
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from weaverant import UserError, WeaverantError, run
from weaverant.cli import main
from weaverant.cli.export import export
from weaverant.engines.embedded import PACKAGED, EmbeddedEngine
from weaverant.message import Request, Sampling, user
from weaverant.protocols import CallContext
from weaverant.train import DpoConfig, SftConfig, plan_sft, train_dpo, train_sft

pytestmark = [pytest.mark.heavy, pytest.mark.timeout(600)]

TINY = PACKAGED / "tiny"
VOCABULARY = json.loads((TINY / "tokenizer.json").read_text())["model"]["vocab"]
USER, ASSISTANT, END = (VOCABULARY[f"<|{name}|>"] for name in ("user", "assistant", "end"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of what `weaverant export` writes, from 60 real trees."""
    folder = tmp_path_factory.mktemp("woven")
    run("malt", "arithmetic:weave", models={"*": "embedded:tiny"}, limit=60, directory=folder / "run").wait()
    for form in ("sft", "preference"):
        export(folder / "run", form, str(folder))
    return folder


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def first(path: Path, count: int, out: Path) -> Path:
    """A file of the first lines."""
    out.write_text("".join(f"{line}\n" for line in path.read_text().splitlines()[:count]))
    return out


def spelt(text: str) -> list[int]:
    """Token numbers, by hand: the packaged model has one for each character."""
    return [VOCABULARY[character] for character in text]


def put_by_hand(prompt: list[dict], reply: dict) -> tuple[list[int], list[int]]:
    """What is read and what is learned, as the model's card says that it speaks."""
    (asked,) = prompt
    assert (asked["role"], reply["role"]) == ("user", "assistant")
    return [USER, *spelt(asked["content"]), END, ASSISTANT], [*spelt(reply["content"]), END]


def loaded(folder: Path):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder)


def logp_of(model, prompt: list[int], reply: list[int]):
    """The log-probability of each token of the reply, without padding, one sample at a time."""
    import torch

    logits = model(torch.tensor([prompt + reply])).logits[0].float()
    shown = torch.log_softmax(logits, -1)[len(prompt) - 1 : -1]
    return shown[torch.arange(len(reply)), torch.tensor(reply)]


# What comes out


def test_sft_on_woven_samples_makes_the_replies_likelier(data: Path, tmp_path: Path):
    said: list[str] = []
    marks = []
    config = SftConfig(epochs=4, batch_size=32)
    trained = train_sft(data / "sft-verifier.jsonl", TINY, tmp_path / "out", config, said.append, watch=marks.append)
    kept = lines_of(tmp_path / "out" / "metrics.jsonl")
    assert [line["step"] for line in kept] == list(range(1, trained.steps + 1)) == [mark.step for mark in marks]
    samples = lines_of(data / "sft-verifier.jsonl")
    assert trained.samples == len(samples) and trained.steps == math.ceil(len(samples) / 32) * 4
    assert any(text.startswith("plan: ") for text in said)

    def likelihood(folder: Path) -> float:
        model = loaded(folder).eval()
        put = [put_by_hand(each["messages"][:-1], each["messages"][-1]) for each in samples]
        return sum(float(logp_of(model, *each).sum().detach()) for each in put) / len(put)

    assert likelihood(tmp_path / "out") > likelihood(TINY) + 0.1
    assert trained.last_loss < trained.first_loss
    assert "polyline" in (tmp_path / "out" / "loss.svg").read_text()
    assert not (tmp_path / "out" / "checkpoints").exists()
    assert json.loads((tmp_path / "out" / "training.json").read_text())["state"] == "finished"
    modes = {(tmp_path / "out" / name).stat().st_mode for name in ("model.safetensors", "metrics.jsonl")}
    assert len(modes) == 1, "whoever may read the metrics may read the weights"


def test_the_embedded_engine_and_transformers_give_the_same_reply_from_the_folder(data: Path, tmp_path: Path):
    import torch
    from transformers import AutoTokenizer

    train_sft(data / "sft-generator.jsonl", TINY, tmp_path / "out", SftConfig(epochs=1, lora=4, lr=1e-2))
    question = lines_of(data / "sft-generator.jsonl")[0]["messages"][0]["content"]

    async def embedded() -> str:
        engine = EmbeddedEngine.open(str(tmp_path / "out"))
        request = Request("a", "m", (user(question),), Sampling(temperature=0.0, max_tokens=40), seed=0)
        reply = await engine.generate(request, CallContext("t"))
        await engine.close()
        return reply.text

    tokenizer, model = AutoTokenizer.from_pretrained(tmp_path / "out"), loaded(tmp_path / "out")
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    with torch.no_grad():
        drawn = model.generate(**ids, max_new_tokens=40, do_sample=False, temperature=None)
    said = tokenizer.decode(drawn[0][ids["input_ids"].shape[1] :], skip_special_tokens=True)
    assert said == asyncio.run(embedded())
    assert (tmp_path / "out" / "adapter" / "adapter_config.json").exists()
    before, after = loaded(TINY).state_dict(), model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and not any("wte" in name or "wpe" in name or "ln_" in name for name in changed)


# Masks and losses, against sums done by hand


def test_loss_falls_on_the_reply_and_its_end_alone(data: Path, tmp_path: Path):
    import torch

    two = first(data / "sft-refiner.jsonl", 2, tmp_path / "two.jsonl")
    train_sft(two, TINY, tmp_path / "out", SftConfig(epochs=1, batch_size=2))
    (line,) = lines_of(tmp_path / "out" / "metrics.jsonl")
    put = [put_by_hand(each["messages"][:-1], each["messages"][-1]) for each in lines_of(two)]
    model = loaded(TINY).eval()
    with torch.no_grad():
        logps = torch.cat([logp_of(model, *each) for each in put])
    assert line["loss"] == pytest.approx(-float(logps.mean()), rel=1e-5)
    assert line["tokens"] == sum(len(prompt) + len(reply) for prompt, reply in put)


def test_small_batches_in_memory_add_up_to_the_same_loss(data: Path, tmp_path: Path):
    four = first(data / "sft-refiner.jsonl", 4, tmp_path / "four.jsonl")
    whole, parts = (
        lines_of(train_sft(four, TINY, tmp_path / name, config).folder / "metrics.jsonl")
        for name, config in (
            ("whole", SftConfig(epochs=2, batch_size=4)),
            ("parts", SftConfig(epochs=2, batch_size=4, micro_batch=1)),
        )
    )
    for one, other in zip(whole, parts, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-3)


@pytest.mark.parametrize("sft_weight", [0.0, 1.0])
def test_dpo_begins_at_ln_2_and_its_first_step_is_the_one_done_by_hand(data: Path, tmp_path: Path, sft_weight: float):
    """The model is not the one in the package, so that a reference taken from elsewhere would show."""
    import torch

    start = train_sft(data / "sft-refiner.jsonl", TINY, tmp_path / "sft", SftConfig(epochs=1)).folder
    two = first(data / "preference-refiner.jsonl", 2, tmp_path / "two.jsonl")
    config = DpoConfig(epochs=2, batch_size=2, lr=1e-3, beta=0.3, schedule="constant", sft_weight=sft_weight)
    train_dpo(two, start, tmp_path / "dpo", config)
    one, other = lines_of(tmp_path / "dpo" / "metrics.jsonl")

    pairs = [[put_by_hand(pair["prompt"], pair[side][0]) for side in ("chosen", "rejected")] for pair in lines_of(two)]
    reference, policy = loaded(start).eval(), loaded(start).eval()
    with torch.no_grad():
        against = [[logp_of(reference, *side).sum() for side in pair] for pair in pairs]

    def margins():
        return torch.stack(
            [
                0.3 * ((logp_of(policy, *chosen).sum() - known[0]) - (logp_of(policy, *rejected).sum() - known[1]))
                for (chosen, rejected), known in zip(pairs, against, strict=True)
            ]
        )

    nll = -torch.cat([logp_of(policy, *chosen) for chosen, _ in pairs]).mean()
    loss = -torch.nn.functional.logsigmoid(margins()).mean() + sft_weight * nll
    loss.backward()
    assert one["loss"] == pytest.approx(math.log(2) + sft_weight * float(nll.detach()), abs=1e-5)
    assert one["margin"] == pytest.approx(0, abs=1e-5) == pytest.approx(one["chosen_change"], abs=1e-4)
    norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
    assert one["grad_norm"] == pytest.approx(float(norm), rel=1e-3)
    torch.optim.AdamW(policy.parameters(), lr=1e-3, weight_decay=0.0).step()
    with torch.no_grad():
        assert other["margin"] == pytest.approx(float(margins().mean()), rel=1e-2)
        chosen = sum(float(logp_of(policy, *chosen).sum()) for chosen, _ in pairs) / 2
    assert other["chosen_logp"] == pytest.approx(chosen, rel=1e-2)


def test_another_reference_is_taken_where_it_is_named_also_with_an_adapter(data: Path, tmp_path: Path):
    start = train_sft(data / "sft-refiner.jsonl", TINY, tmp_path / "sft", SftConfig(epochs=1, lr=1e-3)).folder
    two = first(data / "preference-refiner.jsonl", 2, tmp_path / "two.jsonl")
    for rank in (0, 2):
        config = DpoConfig(epochs=1, batch_size=2, lora=rank)
        out = train_dpo(two, start, tmp_path / f"own{rank}", config).folder
        assert lines_of(out / "metrics.jsonl")[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
        out = train_dpo(two, start, tmp_path / f"base{rank}", config, reference=TINY).folder
        assert abs(lines_of(out / "metrics.jsonl")[0]["chosen_change"]) > 1e-3


def test_dpo_prefers_what_was_chosen_and_warns_when_both_sides_fall(data: Path, tmp_path: Path):
    mild = train_dpo(data / "preference-verifier.jsonl", TINY, tmp_path / "mild", DpoConfig(batch_size=16))
    kept = lines_of(mild.folder / "metrics.jsonl")
    assert kept[-1]["margin"] > 0.01 and kept[-1]["loss"] < math.log(2) and mild.warnings == ()
    said: list[str] = []
    harsh = DpoConfig(epochs=6, batch_size=16, lr=2e-2, beta=0.05)
    fallen = train_dpo(data / "preference-refiner.jsonl", TINY, tmp_path / "harsh", harsh, said.append)
    (warned,) = [text for text in said if "less likely" in text]
    assert "--sft-weight 1" in warned and len(fallen.warnings) == 1
    assert sum("warning" in line for line in lines_of(fallen.folder / "metrics.jsonl")) == 1


# Kills


KILLED = ["--epochs", "3", "--batch-size", "8", "--save-every", "7", "--lr", "1e-3"]


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "weaverant", "train", *words]


def rows_in(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.mark.parametrize(("method", "lora"), [("sft", "0"), ("dpo", "4")])
def test_kill_9_twice_and_the_same_weights_come_out(data: Path, tmp_path: Path, method: str, lora: str):
    file = data / ("sft-generator.jsonl" if method == "sft" else "preference-verifier.jsonl")
    words = command(method, str(file), "--model", str(TINY), *KILLED, "--lora", lora, "--quiet")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*words, "--out", str(tmp_path / "whole")], check=True, env=environment)
    whole = lines_of(tmp_path / "whole" / "metrics.jsonl")
    metrics, killed = tmp_path / "cut" / "metrics.jsonl", 0
    for at in (3, len(whole) // 2):
        with subprocess.Popen([*words, "--out", str(tmp_path / "cut")], env=environment) as going:
            until = time.monotonic() + 200
            while rows_in(metrics) < at and going.poll() is None:
                assert time.monotonic() < until
                time.sleep(0.002)
            going.send_signal(signal.SIGKILL)
            killed += going.wait() == -signal.SIGKILL
    assert killed == 2, "it ended before it could be killed"
    assert 0 < rows_in(metrics) < len(whole)
    # What a kill in the middle of a checkpoint leaves behind, newer than all that is complete.
    (tmp_path / "cut" / "checkpoints" / "checkpoint-999").mkdir()
    with metrics.open("a") as file_of_lines:
        file_of_lines.write('{"step": 9')
    ended = subprocess.run(
        [*words[:-1], "--out", str(tmp_path / "cut")], env=environment, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    assert "going on after step" in ended.stderr
    cut = lines_of(metrics)
    assert [line["step"] for line in cut] == list(range(1, len(whole) + 1))
    for one, other in zip(whole, cut, strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}
    names = ("whole", "cut")
    weights, again = ((tmp_path / name / "model.safetensors").read_bytes() for name in names)
    assert weights == again


def test_a_folder_is_never_trained_into_twice_nor_for_something_else(data: Path, tmp_path: Path):
    two = first(data / "sft-refiner.jsonl", 4, tmp_path / "two.jsonl")
    config = SftConfig(epochs=1)
    train_sft(two, TINY, tmp_path / "out", config)
    before = (tmp_path / "out" / "model.safetensors").read_bytes()
    with pytest.raises(UserError, match="has finished"):
        train_sft(two, TINY, tmp_path / "out", config)
    state = json.loads((tmp_path / "out" / "training.json").read_text())
    (tmp_path / "out" / "training.json").write_text(json.dumps(state | {"state": "running"}))
    with pytest.raises(UserError, match=r"lr was 0\.0003, is 0\.01"):
        train_sft(two, TINY, tmp_path / "out", SftConfig(epochs=1, lr=1e-2))
    with pytest.raises(UserError, match="data was"):
        train_sft(data / "sft-generator.jsonl", TINY, tmp_path / "out", config)
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == before
    train_sft(two, TINY, tmp_path / "out", SftConfig(epochs=1, lr=1e-2), force=True)
    assert (tmp_path / "out" / "model.safetensors").read_bytes() != before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("x")
    with pytest.raises(UserError, match="holds no training"):
        train_sft(two, TINY, tmp_path / "mine", config, force=True)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_the_seed_orders_the_samples_and_nothing_else_does(data: Path, tmp_path: Path):
    some = first(data / "sft-refiner.jsonl", 24, tmp_path / "some.jsonl")
    ran = [
        (train_sft(some, TINY, tmp_path / name, SftConfig(epochs=1, batch_size=4, seed=seed)).folder)
        for name, seed in (("a", 3), ("b", 3), ("c", 4))
    ]
    losses = [[line["loss"] for line in lines_of(folder / "metrics.jsonl")] for folder in ran]
    assert losses[0] == losses[1] != losses[2]


# Models of others


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama, initialised at random, with the packaged tokenizer and bfloat16 weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("models") / "llama"
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(VOCABULARY), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, pad_token_id=0, bos_token_id=END, eos_token_id=END,
        tie_word_embeddings=False,
    )  # fmt: skip
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(TINY / name, folder / name)
    return folder


@pytest.mark.parametrize("lora", [0, 4])
def test_a_small_llama_goes_through_sft_and_dpo(data: Path, llama: Path, tmp_path: Path, lora: int):
    import torch
    from transformers import AutoTokenizer

    planned = plan_sft(data / "sft-generator.jsonl", llama, SftConfig(lora=lora))
    assert planned.parameters == sum(each.numel() for each in loaded(llama).parameters())
    assert (planned.trained < planned.parameters / 2) == bool(lora) and planned.endless == 0
    config = SftConfig(epochs=3, lr=2e-2 if lora else 3e-3, lora=lora)
    sft = train_sft(data / "sft-generator.jsonl", llama, tmp_path / "sft", config)
    assert sft.last_loss < sft.first_loss - 0.1
    dpo = train_dpo(
        data / "preference-generator.jsonl", sft.folder, tmp_path / "dpo", DpoConfig(lr=1e-3, lora=lora, batch_size=16)
    )
    kept = lines_of(dpo.folder / "metrics.jsonl")
    assert kept[0]["loss"] == pytest.approx(math.log(2), abs=1e-5) and kept[-1]["margin"] > 0
    model = loaded(dpo.folder)
    assert model.dtype == torch.bfloat16
    ids = AutoTokenizer.from_pretrained(dpo.folder)("<|user|>Hi<|end|><|assistant|>", return_tensors="pt")
    assert model.generate(**ids, max_new_tokens=4, do_sample=False).shape[1] > ids["input_ids"].shape[1]


# Mistakes


def test_what_is_wrong_with_a_model_is_told(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    copy = tmp_path / "copy"
    shutil.copytree(TINY, copy)
    config = json.loads((copy / "tokenizer_config.json").read_text())
    del config["chat_template"]
    (copy / "tokenizer_config.json").write_text(json.dumps(config))
    file = str(data / "sft-generator.jsonl")
    out = str(tmp_path / "out")
    assert main(["train", "sft", file, "--model", str(copy), "--out", out]) == 2
    assert "has no chat template" in capsys.readouterr().err
    assert main(["train", "sft", file, "--model", str(TINY), "--out", out, "--max-length", "10"]) == 2
    assert "longer than 10 tokens" in capsys.readouterr().err
    assert main(["train", "sft", file, "--model", str(TINY), "--out", out, "--device", "cuda"]) == 2
    assert "no GPU" in capsys.readouterr().err
    assert not Path(out).exists()


def test_a_loss_that_is_no_number_ends_the_training(data: Path, tmp_path: Path):
    with pytest.raises(WeaverantError, match="come apart"):
        train_sft(
            data / "sft-refiner.jsonl", TINY, tmp_path / "out",
            SftConfig(epochs=9, lr=0.99, batch_size=4, schedule="constant"),
        )  # fmt: skip


def test_a_dry_run_tells_all_and_writes_nothing(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = ["--model", "embedded:tiny", "--out", str(tmp_path / "out"), "--dry-run"]
    assert main(["train", "dpo", str(data / "preference-refiner.jsonl"), *words]) == 0
    told = capsys.readouterr().out
    assert "252,192 weights" in told and "steps, about" in told and "of memory" in told
    assert not (tmp_path / "out").exists()


def test_two_processes_train_as_one(data: Path, tmp_path: Path):
    """`accelerate launch` on two processes of this machine's processor: the same batches, so the same losses."""
    file = first(data / "sft-generator.jsonl", 32, tmp_path / "some.jsonl")
    launch = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--cpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
    ]
    words = [
        "sft",
        str(file),
        "--model",
        str(TINY),
        "--epochs",
        "2",
        "--batch-size",
        "16",
        "--device",
        "cpu",
        "--quiet",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    launched = [*launch, "--mixed_precision", "no", "--dynamo_backend", "no", "-m", "weaverant", "train", *words]
    ran = subprocess.run(
        [*launched, "--out", str(tmp_path / "two")], env=environment, capture_output=True, text=True, timeout=300
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    subprocess.run([*command(*words), "--out", str(tmp_path / "one")], env=environment, check=True)
    one, two = (lines_of(tmp_path / name / "metrics.jsonl") for name in ("one", "two"))
    assert [line["step"] for line in two] == [line["step"] for line in one] == [1, 2, 3, 4]
    for alone, shared in zip(one, two, strict=True):
        assert shared["loss"] == pytest.approx(alone["loss"], rel=1e-3)
        assert shared["tokens"] == alone["tokens"]
