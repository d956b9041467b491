"""What of training needs no torch: reading data, the folder's rules, metrics, estimates, the command's mistakes."""

import gzip
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from weaverant import UserError, WeaverantError
from weaverant.cli import main
from weaverant.cli.train import Screen, progress_line
from weaverant.engines.embedded import PACKAGED
from weaverant.train import DpoConfig, Mark, SftConfig, checkpoint, estimate
from weaverant.train.data import digest, read_preferences, read_sft
from weaverant.train.metrics import Metrics, line_of, read
from weaverant.train.plot import POINTS, plot, thinned

TINY = PACKAGED / "tiny"
ASK = {"role": "user", "content": "2+2?"}
SAY = {"role": "assistant", "content": "4"}


def written(path: Path, *samples: object) -> Path:
    path.write_text("".join(f"{each if isinstance(each, str) else json.dumps(each)}\n" for each in samples))
    return path


# Data


def test_conversations_and_pairs_are_read_as_they_are_exported(tmp_path: Path):
    tools = [{"type": "function", "function": {"name": "add"}}]
    call = {"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"a": 2}'}}
    parts = {"role": "user", "content": [{"type": "text", "text": "2+"}, {"type": "text", "text": "2?"}]}
    file = written(
        tmp_path / "a.jsonl",
        {"messages": [ASK, SAY], "task": "0.0.0", "value": 1.0},
        "",
        {
            "messages": [parts, {"role": "assistant", "content": None, "tool_calls": [call]}],
            "tools": tools,
        },
    )
    one, two = read_sft(file)
    assert (one.prompt, one.replies, one.tools) == ((ASK,), (SAY,), ())
    assert two.prompt == (ASK,) and two.tools == tuple(tools)
    assert two.replies[0]["tool_calls"][0]["function"]["arguments"] == {"a": 2}
    packed = tmp_path / "b.jsonl.gz"
    packed.write_bytes(gzip.compress(file.read_bytes()))
    assert read_sft(packed) == [one, two]
    other = {"role": "assistant", "content": "5"}
    (pair,) = read_preferences(written(tmp_path / "c.jsonl", {"prompt": [ASK], "chosen": [SAY], "rejected": [other]}))
    assert pair.replies == (SAY, other)


@pytest.mark.parametrize(
    ("sample", "words"),
    [
        ("{", "line 2: not JSON"),
        ([1], r"line 2: expected a mapping, found \[1\]"),
        ({"text": "x"}, r"no field 'messages'; found the fields \['text'\]"),
        ({"messages": "x"}, "field 'messages': expected a list of messages, found 'x'"),
        ({"messages": []}, "field 'messages': expected a list"),
        ({"messages": [ASK, "x"]}, r"field 'messages\[1\]': expected .*found 'x'"),
        ({"messages": [{"role": "bot", "content": "x"}]}, r"'messages\[0\]': 'role': expected one of .*found 'bot'"),
        ({"messages": [ASK, {"role": "assistant", "content": 4}]}, r"'messages\[1\]': 'content': expected a text"),
        ({"messages": [ASK, {"role": "assistant", "content": ""}]}, "nothing to learn from"),
        ({"messages": [ASK, {"role": "user", "content": [{"image_url": {}}]}]}, "only texts can be trained on"),
        ({"messages": [ASK]}, "the assistant's reply; found the roles .'user'"),
        ({"messages": [SAY]}, "expected a prompt and, last"),
        ({"prompt": [ASK], "chosen": [SAY], "rejected": [SAY]}, "this is a preference pair"),
        ({"messages": [ASK, SAY], "tools": "x"}, "field 'tools': expected a list"),
        ({"messages": [ASK, {**SAY, "tool_calls": [{"x": 1}]}]}, "expected calls with function.name"),
    ],
)
def test_a_mistake_in_a_conversation_is_named_with_file_line_and_field(tmp_path: Path, sample: object, words: str):
    file = written(tmp_path / "a.jsonl", {"messages": [ASK, SAY]}, sample)
    with pytest.raises(UserError, match=words) as told:
        read_sft(file)
    assert str(told.value).startswith(f"{file} line 2")


@pytest.mark.parametrize(
    ("sample", "words"),
    [
        ({"messages": [ASK, SAY]}, "this is a conversation"),
        ({"prompt": [ASK], "chosen": [SAY]}, "no field 'rejected'"),
        ({"prompt": [ASK], "chosen": [SAY], "rejected": [SAY]}, "are the same"),
        ({"prompt": [ASK, SAY], "chosen": [SAY], "rejected": [SAY]}, "'prompt': expected a user or tool message last"),
        ({"prompt": [ASK], "chosen": [ASK], "rejected": [SAY]}, "field 'chosen': expected one message of the assist"),
        ({"prompt": [ASK], "chosen": [SAY], "rejected": [SAY, SAY]}, "field 'rejected': expected one message"),
    ],
)
def test_a_mistake_in_a_pair_is_named_with_file_line_and_field(tmp_path: Path, sample: object, words: str):
    with pytest.raises(UserError, match=words) as told:
        read_preferences(written(tmp_path / "a.jsonl", sample))
    assert "a.jsonl line 1" in str(told.value)


def test_what_is_no_file_of_samples_is_told(tmp_path: Path):
    with pytest.raises(UserError, match="cannot be read"):
        read_sft(tmp_path / "none.jsonl")
    with pytest.raises(UserError, match="has no samples"):
        read_sft(written(tmp_path / "empty.jsonl"))
    with pytest.raises(UserError, match=r"is a folder.*empty\.jsonl"):
        read_sft(tmp_path)
    (tmp_path / "bad.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="cannot be read"):
        read_sft(tmp_path / "bad.jsonl")
    (tmp_path / "bad.jsonl.gz").write_bytes(b"no gzip")
    with pytest.raises(UserError, match="cannot be read"):
        read_sft(tmp_path / "bad.jsonl.gz")


# Settings


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0}, {"lr": 0.0}, {"lr": 2.0}, {"batch_size": 0}, {"micro_batch": 3}, {"lora": -1}, {"lora_alpha": 4},
        {"warmup": 1.0}, {"schedule": "x"}, {"device": "x"}, {"save_every": -1}, {"max_length": -1}, {"threads": -1},
        {"beta": 0.0}, {"sft_weight": -1.0}, {"warn_fall": 0.0}, {"weight_decay": -1.0},
    ],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused_by_name(wrong: dict):
    (name,) = wrong
    with pytest.raises(UserError, match=rf"^{name}="):
        DpoConfig(**wrong)


# The folder


def training(**other: object) -> checkpoint.Training:
    given = {"method": "sft", "data": "d", "data_digest": "1", "model": "m", "model_digest": "2", "config": {"lr": 0.1}}
    return checkpoint.Training(**(given | other))  # type: ignore[arg-type]


def test_a_checkpoint_counts_once_it_is_marked(tmp_path: Path):
    out = tmp_path / "out"
    with checkpoint.held(out):
        checkpoint.check(out, training(), force=False)
        assert checkpoint.begin(out, training(), force=False) is None
        for step in (5, 10, 15):
            (out / "checkpoints" / f"checkpoint-{step}" / "inside").mkdir(parents=True)
            (out / "checkpoints" / f"checkpoint-{step}" / "inside" / "w").write_text("w")
        for step in (5, 10):
            checkpoint.mark(out / "checkpoints" / f"checkpoint-{step}")
    with checkpoint.held(out):
        checkpoint.check(out, training(), force=False)
        found = checkpoint.begin(out, training(), force=False)
    assert found is not None and checkpoint.step_of(found) == 10
    assert not (out / "checkpoints" / "checkpoint-15").exists()


def test_another_training_is_refused_with_what_differs(tmp_path: Path):
    with checkpoint.held(tmp_path):
        checkpoint.begin(tmp_path, training(), force=False)
    for other, words in (
        ({"config": {"lr": 0.2}}, "lr was 0.1, is 0.2"),
        ({"data_digest": "9"}, r"data was 'd', is 'd' \(other content\)"),
        ({"method": "dpo"}, "method was 'sft', is 'dpo'"),
        ({"processes": 2}, "processes was 1, is 2"),
    ):
        with pytest.raises(UserError, match=words):
            checkpoint.check(tmp_path, training(**other), force=False)
        checkpoint.check(tmp_path, training(**other), force=True)
    checkpoint.write(tmp_path, training(state="finished"))
    with pytest.raises(UserError, match="has finished"):
        checkpoint.check(tmp_path, training(), force=False)


def test_two_cannot_train_in_one_folder(tmp_path: Path):
    code = (
        "import sys; from pathlib import Path; from weaverant.train import checkpoint\n"
        "with checkpoint.held(Path(sys.argv[1])): pass"
    )
    with checkpoint.held(tmp_path):
        ran = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert ran.returncode == 1 and "another process trains" in ran.stderr


def test_a_model_is_known_by_its_content(tmp_path: Path):
    assert checkpoint.model_digest(TINY) == checkpoint.model_digest(TINY)
    (tmp_path / "model.safetensors").write_bytes(b"a" * 3_000_000)
    before = checkpoint.model_digest(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"a" * 2_999_999 + b"b")
    assert checkpoint.model_digest(tmp_path) != before
    assert digest(TINY / "config.json") == digest(TINY / "config.json") != digest(TINY / "tokenizer.json")


# Metrics


def log(step: int, change: float = 0.0) -> dict:
    sides = {"rewards/chosen": 0.2 * change, "rewards/rejected": -0.2}
    return {"loss": 0.5 / step, "epoch": step / 10, "learning_rate": 1e-3, "grad_norm": 1.0, **sides}


def test_each_step_stands_once_whatever_a_kill_left(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    kept = Metrics(path, 0, None)
    for step in range(1, 8):
        kept.add(line_of(step, log(step), 100, 0.1, None))
    kept.close()
    with path.open("a") as file:
        file.write('{"step": 8, "lo')
    again = Metrics(path, 5, None)  # the newest checkpoint is of step 5
    for step in range(6, 10):
        again.add(line_of(step, log(step), 100, 0.1, None))
    again.close()
    assert [line["step"] for line in read(path)] == list(range(1, 10))
    assert read(tmp_path / "none.jsonl") == []


def test_a_fall_of_chosen_replies_is_warned_of_once_also_over_a_kill(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    kept = Metrics(path, 0, 2.0)
    told = [kept.add(line_of(step, log(step, -step), 1, 0.1, 0.2)) for step in range(1, 7)]
    kept.close()
    assert [bool(each) for each in told] == [False, False, False, False, True, False]
    assert "by 3.00 nats" in told[4]
    again = Metrics(path, 6, 2.0)
    assert again.add(line_of(7, log(7, -7), 1, 0.1, 0.2)) == ""
    again.close()
    before = Metrics(path, 4, 2.0)  # the warning's own step is done once more
    assert "by 3.00 nats" in before.add(line_of(5, log(5, -5), 1, 0.1, 0.2))
    before.close()


def test_a_loss_that_is_no_number_is_an_error():
    with pytest.raises(WeaverantError, match="step 3 is nan"):
        line_of(3, log(3) | {"loss": float("nan")}, 1, 0.1, None)


def test_the_plot_shows_what_the_metrics_hold(tmp_path: Path):
    from xml.etree import ElementTree

    lines = [line_of(step, log(step, -1.0), 1, 0.1, 0.2) for step in range(1, 2_001)]
    for name, given, count in (("dpo", lines, 3), ("sft", [{"step": 1, "loss": 2.0}], 1)):
        plot(given, tmp_path / f"{name}.svg")
        tree = ElementTree.parse(tmp_path / f"{name}.svg")
        curves = tree.findall("{http://www.w3.org/2000/svg}polyline")
        assert len(curves) == count and all(len(curve.attrib["points"].split()) <= POINTS for curve in curves)
    means = thinned([(float(n), float(n % 2)) for n in range(2 * POINTS)])
    assert len(means) == POINTS and all(value == 0.5 for _, value in means)
    plot([], tmp_path / "empty.svg")


# Estimates


def test_a_folders_shape_is_read_from_its_files(tmp_path: Path):
    shape = estimate.shape_of(TINY)
    assert (shape.parameters, shape.layers, shape.width, shape.positions) == (252_192, 2, 96, 192)
    assert len(shape.linear) == 8 and shape.trained(0) == shape.parameters
    assert shape.trained(4) == 4 * 2 * (96 + 288 + 96 + 96 + 96 + 384 + 384 + 96)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="an adapter without its model"):
        estimate.shape_of(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"no \.safetensors weights"):
        estimate.shape_of(tmp_path)
    with pytest.raises(UserError, match="cannot be read"):
        estimate.shape_of(tmp_path / "none")


def test_memory_counts_weights_moments_and_the_reference():
    shape = estimate.Shape(parameters=1_000_000, linear=((1000, 1000),), layers=1, width=1000, positions=0)

    def of(config: SftConfig, reference: bool = False, gpu: bool = False) -> int:
        return estimate.memory(shape, config, 0, 0, 1, reference, gpu)

    assert of(SftConfig()) == 16_000_000
    assert of(SftConfig(), reference=True) == 20_000_000
    assert of(SftConfig(lora=8)) == 4_000_000 + 16 * 16_000
    assert of(SftConfig(lora=8), gpu=True) == 2_000_000 + 16 * 16_000
    assert estimate.memory(shape, SftConfig(), 2, 10, 2, False, False) == 16_000_000 + 2 * 2 * 10 * 1000 * 68
    assert estimate.free_memory() > 0
    assert estimate.seconds(0.5, 10, 2, reference=True, checkpointing=False) == 0.5 * 2 * 10 * 4


# The command


@pytest.fixture
def sample(tmp_path: Path) -> str:
    return str(written(tmp_path / "a.jsonl", {"messages": [ASK, SAY]}))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--beta", "0.1"], "--beta is of `train dpo`"),
        (["--reference", "embedded:tiny"], "--reference is of `train dpo`"),
        (["--lr", "3"], "lr=3.0 cannot be"),
        (["--sedd", "3"], "did you mean '--seed'?"),
    ],
)
def test_flags_that_mean_nothing_are_told(
    sample: str, words: list[str], told: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    assert main(["train", "sft", sample, "--model", "embedded:tiny", "--out", str(tmp_path / "out"), *words]) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_model_that_is_no_folder_is_told_with_the_way_out(sample: str, capsys: pytest.CaptureFixture[str]):
    assert main(["train", "sft", sample, "--model", "meta-llama/Llama", "--out", "x"]) == 2
    assert "hf download" in capsys.readouterr().err


@pytest.mark.skipif(importlib.util.find_spec("trl") is not None, reason="trl is here")
def test_without_the_extra_one_sentence_says_so(sample: str, capsys: pytest.CaptureFixture[str]):
    assert main(["train", "sft", sample, "--model", "embedded:tiny", "--out", "x"]) == 2
    said = capsys.readouterr().err
    assert 'pip install "weaverant[train]"' in said and "trl" in said and said.count("\n") == 1


def test_nothing_heavy_is_imported_with_the_package():
    code = "import weaverant.train, sys; print({'torch', 'trl', 'transformers', 'peft'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


def test_progress_is_plain_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]):
    mark = Mark(step=12, steps=40, loss=0.21341, lr=2.1e-4, token_rate=8123.0, eta=12.4)
    assert progress_line(mark) == "step 12 of 40; loss 0.2134; lr 2.1e-04; 8.12k tokens/s; about 12 s left"
    screen = Screen(sys.stderr, quiet=False)
    for step in range(1, 41):
        screen.step(Mark(step, 40, 0.5, 1e-3, 10.0, 0.0))
    said = capsys.readouterr().err.splitlines()
    assert [line.partition(";")[0] for line in said] == ["step 1 of 40", "step 40 of 40"]
    still = Screen(sys.stderr, quiet=True)
    still.step(mark)
    still.say("plan: x")
    still.say("warning: chosen replies fall")
    assert capsys.readouterr().err == "warning: chosen replies fall\n"
