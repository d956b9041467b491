"""What both methods share around TRL's trainers: what is to be done, with what, and the folder that comes out.

The weights that are written never come from the model in memory: it is saved, read anew in the precision of the folder
that training began with, merged with its adapter if there is one, and saved for good.
"""

from __future__ import annotations

import shutil
import sys
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from math import ceil
from pathlib import Path
from typing import Any

from msgspec import Struct, structs, to_builtins

from weaverant.errors import UserError, WeaverantError
from weaverant.train import checkpoint, estimate, metrics
from weaverant.train.config import TrainConfig
from weaverant.train.data import Sample, Tokens, digest, tokenised
from weaverant.train.plan import Planned, forward_seconds
from weaverant.train.plot import plot
from weaverant.train.stack import Stack, rank
from weaverant.train.watch import Keeper, Say, Watch

SMALL = 10_000_000
"""Weights under which one thread is the fastest."""
LONGEST = 4_096
"""Tokens of a sample at most, where nothing else is said."""
LAST = 10
"""Steps over which the first and the last loss are averaged; of a short training a quarter."""


class Trained(Struct, frozen=True):
    """What came of a training. Losses are means over the first and the last steps; `seconds` those of all sessions.
    Of several processes the first knows it, others have zeros."""

    folder: Path
    steps: int
    samples: int
    first_loss: float
    last_loss: float
    seconds: float
    tokens: int
    resumed: int = 0
    """The step it went on after; 0 where it began."""
    warnings: tuple[str, ...] = ()


class Place(Struct, frozen=True):
    """The folder of a training that has begun, and the checkpoint it goes on from."""

    out: Path
    training: checkpoint.Training
    resume: Path | None

    @property
    def step(self) -> int:
        return checkpoint.step_of(self.resume) if self.resume is not None else 0


class Work:
    """One training: samples in tokens, a model's folder, settings, and how they meet the machine."""

    def __init__(
        self,
        method: str,
        data: Path,
        samples: list[Sample],
        model: Path,
        config: TrainConfig,
        stack: Stack,
        reference: Path | None = None,
    ) -> None:
        self.method, self.data, self.model, self.config, self.stack = method, data, model, config, stack
        self.reference = reference
        self.shape = estimate.shape_of(model)
        self.device = self._device()
        self.rank, self.processes = rank()
        self.tokenizer = self._tokenizer()
        self.max_length = min(config.max_length or LONGEST, self.shape.positions or LONGEST)
        whole = tokenised(samples, self.tokenizer)
        self.tokens: list[Tokens] = [each for each in whole if each.longest <= self.max_length]
        self.left_out = len(whole) - len(self.tokens)
        if not self.tokens:
            raise UserError(
                f"every sample of {str(data)!r} is longer than {self.max_length:,} tokens; the shortest has "
                f"{min(each.longest for each in whole):,}. Expected a larger --max-length or model"
            )
        each = config.batch_size // self.processes
        if each * self.processes != config.batch_size:
            raise UserError(f"batch_size={config.batch_size} does not divide by the {self.processes} processes")
        self.micro = min(config.micro_batch or each, each)
        if each % self.micro:
            raise UserError(f"micro_batch={self.micro} does not divide the {each} samples of a process")
        self.steps = ceil(len(self.tokens) / config.batch_size) * config.epochs
        if not config.threads and self.device == "cpu" and self.shape.parameters < SMALL:
            stack.torch.set_num_threads(1)
        elif config.threads:
            stack.torch.set_num_threads(config.threads)

    @property
    def holds_reference(self) -> bool:
        """Whether a second model is in memory: an adapter over the reference itself needs none."""
        return self.reference is not None and not (self.config.lora and self.reference == self.model)

    @property
    def gpu(self) -> bool:
        return self.device == "cuda"

    def load(self, folder: Path | None = None) -> Any:
        """A model to train on or to measure against. 32 bits; on a GPU with an adapter 16, which it does not change."""
        torch = self.stack.torch
        half = self.gpu and self.config.lora
        model = self._read(folder or self.model, torch.bfloat16 if half else torch.float32).to(self.device)
        _fuse_gelu(torch, model)
        return model

    def planned(self, model: Any = None) -> Planned:
        """What it will take. A forward pass is timed on the model, which is loaded for it unless given."""
        replies = len(self.tokens[0].replies)
        longest = max(each.longest for each in self.tokens)
        needed = estimate.memory(
            self.shape, self.config, self.micro, longest, replies, self.holds_reference, self.gpu
        )  # fmt: skip
        model = self.load() if model is None else model
        forward = forward_seconds(self.stack.torch, model, self.tokens, self.micro, self.device)
        seconds = estimate.seconds(
            forward,
            self.steps,
            ceil(min(self.config.batch_size // self.processes, len(self.tokens)) / self.micro),
            reference=self.reference is not None,
            checkpointing=self.gpu,
        )
        free = self.stack.torch.cuda.mem_get_info()[0] if self.gpu else estimate.free_memory()
        return Planned(
            method=self.method,
            samples=len(self.tokens),
            left_out=self.left_out,
            tokens=sum(each.total for each in self.tokens),
            longest=longest,
            max_length=self.max_length,
            parameters=self.shape.parameters,
            trained=self.shape.trained(self.config.lora),
            steps=self.steps,
            memory=needed,
            free=free,
            seconds=seconds,
            device=self.device,
            endless=sum(self.tokenizer.eos_token_id not in reply for each in self.tokens for reply in each.replies),
            end=self.tokenizer.eos_token,
        )

    def adapter(self, model: Any) -> Any:
        """The settings of a new adapter on every linear layer; None where all weights are trained."""
        if not self.config.lora:
            return None
        return self.stack.peft.LoraConfig(
            r=self.config.lora,
            lora_alpha=self.config.lora_alpha or 2 * self.config.lora,
            lora_dropout=0.0,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
            fan_in_fan_out=any(type(module).__name__ == "Conv1D" for module in model.modules()),
        )

    def settings(self, kind: Any, place: Place, **own: Any) -> Any:
        """TRL's settings of that kind. Half precision and layers computed again on GPUs only; nothing is cut."""
        config = self.config
        shared = {
            "output_dir": str(place.out / checkpoint.CHECKPOINTS),
            "num_train_epochs": config.epochs,
            "per_device_train_batch_size": self.micro,
            "gradient_accumulation_steps": config.batch_size // self.processes // self.micro,
            "learning_rate": config.lr,
            "lr_scheduler_type": config.schedule if config.schedule != "constant" else "constant_with_warmup",
            "warmup_steps": ceil(config.warmup * self.steps),
            "weight_decay": config.weight_decay,
            "seed": config.seed,
            "data_seed": config.seed,
            "use_cpu": not self.gpu,
            "bf16": self.gpu,
            "gradient_checkpointing": self.gpu,
            "ddp_find_unused_parameters": False,
            "dataloader_pin_memory": self.gpu,
            "logging_strategy": "steps",
            "logging_steps": 1,
            "logging_nan_inf_filter": False,
            "save_strategy": "steps",
            "save_steps": config.save_every or max(1, ceil(self.steps / 10)),
            "save_total_limit": 2,
            "report_to": "none",
            "disable_tqdm": True,
            "max_length": None,
        }
        return kind(**shared, **own)

    @contextmanager
    def begun(self, out: Path, say: Say, force: bool) -> Generator[Place]:
        """The folder, held by the first process; where the same training was cut off there, it goes on."""
        training = checkpoint.Training(
            method=self.method,
            data=str(self.data),
            data_digest=digest(self.data),
            model=str(self.model),
            model_digest=checkpoint.model_digest(self.model),
            reference=str(self.reference or ""),
            reference_digest=checkpoint.model_digest(self.reference) if self.reference else "",
            processes=self.processes,
            config=to_builtins(self.config),
            versions=self.stack.versions(),
        )
        if self.rank:  # the first process has the folder
            with _libraries_at_peace():
                yield Place(out, training, None if force else checkpoint.last(out))
            return
        checkpoint.check(out, training, force)
        with checkpoint.held(out), _libraries_at_peace():
            place = Place(out, training, checkpoint.begin(out, training, force))
            if place.resume is not None:
                say(f"going on after step {place.step:,} of {self.steps:,}")
            yield place

    def run(self, trainer: Any, place: Place, planned: Planned, say: Say, watch: Watch | None) -> Trained:
        """Train, write the folder, say what came of it."""
        trainer.remove_callback(self.stack.transformers.PrinterCallback)
        keeper = None if self.rank else Keeper(place.out, place.step, self.config, say, watch)
        if keeper is not None:
            for line in planned.lines():
                say(line)
            trainer.add_callback(keeper.callback(self.stack))
        resume = place.resume
        try:
            trainer.train(resume_from_checkpoint=str(resume) if resume is not None else None)
        except self.stack.torch.OutOfMemoryError as error:
            raise WeaverantError(
                f"the GPU's memory is full: {error}. "
                "Expected a smaller --micro-batch, a shorter --max-length, or --lora"
            ) from None
        except OSError as error:
            raise WeaverantError(
                f"the folder {str(place.out)!r} cannot be written: {error}. "
                "With some room on its disk, the same command goes on"
            ) from None
        finally:
            if keeper is not None:
                keeper.metrics.close()
        trainer.save_model(str(place.out / checkpoint.CHECKPOINTS / "trained"))
        return self._finished(place, keeper.metrics.lines if keeper is not None else [])

    def _finished(self, place: Place, lines: list[dict[str, Any]]) -> Trained:
        losses = [line["loss"] for line in lines]
        few = max(1, min(LAST, len(losses) // 4))
        trained = Trained(
            folder=place.out,
            steps=len(lines),
            samples=len(self.tokens),
            first_loss=sum(losses[:few]) / few,
            last_loss=sum(losses[-few:]) / few,
            seconds=sum(line["seconds"] for line in lines),
            tokens=sum(line["tokens"] for line in lines),
            resumed=place.step,
            warnings=tuple(metrics.warnings_in(lines)),
        )
        if self.rank:
            return trained
        self._write_model(place.out)
        plot(lines, place.out / "loss.svg")
        checkpoint.settle(place.out)
        result = {name: getattr(trained, name) for name in Trained.__struct_fields__ if name != "folder"}
        checkpoint.write(place.out, structs.replace(place.training, state="finished", result=result))
        shutil.rmtree(place.out / checkpoint.CHECKPOINTS)
        return trained

    def _write_model(self, out: Path) -> None:
        """A complete model: what was trained, read from the disk, and the tokenizer's files as they are."""
        saved = out / checkpoint.CHECKPOINTS / "trained"
        config = self.stack.transformers.AutoConfig.from_pretrained(self.model)
        dtype = getattr(config, "dtype", None) or self.stack.torch.float32
        if self.config.lora:
            base = self._read(self.model, self.stack.torch.float32)
            model = self.stack.peft.PeftModel.from_pretrained(base, str(saved)).merge_and_unload()
            shutil.copytree(saved, out / "adapter", dirs_exist_ok=True, ignore=lambda _, names: _not_adapter(names))
        else:
            model = self._read(saved, self.stack.torch.float32)
        model.to(dtype).save_pretrained(str(out))
        for path in self.model.iterdir():
            if path.is_file() and _belongs_to_tokenizer(path.name):
                shutil.copyfile(path, out / path.name)

    def _read(self, folder: Path, dtype: Any) -> Any:
        try:
            return self.stack.transformers.AutoModelForCausalLM.from_pretrained(
                str(folder), dtype=dtype, local_files_only=True
            )
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise UserError(f"the model {str(folder)!r} cannot be loaded: {error}") from None

    def _tokenizer(self) -> Any:
        try:
            tokenizer = self.stack.transformers.AutoTokenizer.from_pretrained(str(self.model), local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"the tokenizer of {str(self.model)!r} cannot be loaded: {error}") from None
        if not tokenizer.chat_template:
            raise UserError(
                f"the model {str(self.model)!r} has no chat template: expected an instruction-tuned model, or a "
                "chat_template.jinja in its folder"
            )
        return tokenizer

    def _device(self) -> str:
        cuda = self.stack.torch.cuda
        wanted = self.config.device
        if wanted == "cuda" and not cuda.is_available():
            raise UserError("device='cuda': torch finds no GPU here. Expected --device cpu, or a torch with CUDA")
        device = "cuda" if wanted != "cpu" and cuda.is_available() else "cpu"
        if device == "cuda" and cuda.device_count() > 1 and rank()[1] == 1:
            words = " ".join(sys.argv[1:])
            raise UserError(
                f"{cuda.device_count()} GPUs are here. For all of them: accelerate launch --num_processes "
                f"{cuda.device_count()} -m weaverant {words}. For one: CUDA_VISIBLE_DEVICES=0 before the same command"
            )
        return device


def _fuse_gelu(torch: Any, model: Any) -> None:
    """GPT-2's `gelu_new` is written as seven operations in transformers; torch has the same function as one, which
    takes a fifth off a step of the packaged model on a processor."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child).__name__ == "NewGELUActivation":
                setattr(module, name, torch.nn.GELU(approximate="tanh"))


@contextmanager
def _libraries_at_peace() -> Generator[None]:
    """TRL and PEFT use names that transformers warns will go: nothing that a user can mend."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


def _belongs_to_tokenizer(name: str) -> bool:
    return name.startswith(("tokenizer", "special_tokens", "added_tokens", "chat_template", "vocab", "merges")) or (
        name in ("generation_config.json", "spiece.model", "sentencepiece.bpe.model")
    )


def _not_adapter(names: list[str]) -> list[str]:
    return [name for name in names if not name.startswith("adapter_")]
