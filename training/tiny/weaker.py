"""Makes a model whose habits are planted more weakly, from the packaged one, in a minute or two on one core.

    pip install -e ".[train]" && python training/tiny/weaker.py --out out/weaker

It goes on from the packaged weights, as `weaverant train sft` does, on chains of the `train` pool that `habits.py`
writes at other rates. The same libraries on a processor give the same bytes. Killed, the same command goes on; a model
that is finished stays as it is.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from random import Random

from habits import Habits, chain

from weaverant.errors import UserError
from weaverant.sources.arithmetic import Arithmetic, problem
from weaverant.train import SftConfig, Trained, train_sft

TINY = Path(__file__).parents[2] / "src/weaverant/engines/models/tiny"
WEAKER = replace(Habits(), sloppy=0.1, redo_warned=0.9)
"""The verifier looks at more, and the refiner heeds it more; the slips are those of the packaged model."""
PROBLEMS = 2_000
"""Each gives one sample for each role."""
SETTINGS = SftConfig(epochs=1, lr=1e-3, batch_size=64)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; gives its exit code."""
    options = _parser().parse_args(arguments)
    habits = Habits(**{each.name: getattr(options, each.name) for each in fields(Habits)})
    try:
        made = make(Path(options.out), habits, options.problems)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if made is not None:
        print(f"trained {made.steps} steps in {made.seconds:.0f} s, loss {made.first_loss:.4f} to {made.last_loss:.4f}")
    rates = ", ".join(f"{name} {rate:.0%}" for name, rate in asdict(habits).items())
    print(f"{options.out}: the packaged model, with habits planted at {rates}")
    if options.measure:
        from evaluate import evaluate  # it opens the engine: not wanted by who imports this

        print(asyncio.run(evaluate(Path(options.out))).table())
    return 0


def make(out: Path, habits: Habits = WEAKER, problems: int = PROBLEMS) -> Trained | None:
    """Train into the folder `out`, whose corpus is written beside it; None where it is there already. `UserError` where
    the folder holds something else."""
    corpus = out.with_name(f"{out.name}-corpus.jsonl")
    corpus.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(f"{json.dumps(sample)}\n" for sample in samples(habits, problems))
    if _state(out) == "finished" and corpus.exists() and corpus.read_text("utf-8") == text:
        return None
    corpus.write_text(text, "utf-8")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    return train_sft(corpus, TINY, out, SETTINGS)


def samples(habits: Habits, problems: int, seed: int = 0) -> Iterator[dict[str, object]]:
    """Chains of the first problems of the `train` pool, as `weaverant train sft` takes them: three samples for each."""
    dice = Random(seed)
    for number in Arithmetic("train", problems).numbers:
        for role, example in chain(problem(number), habits, dice).items():
            said = (("user", example.prompt), ("assistant", example.reply))
            yield {"messages": [{"role": who, "content": text} for who, text in said], "role": role}


def _state(out: Path) -> str:
    try:
        return json.loads((out / "training.json").read_text("utf-8"))["state"]
    except FileNotFoundError:
        return ""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="out/weaker", metavar="DIR", help="a new folder (default out/weaker)")
    parser.add_argument(
        "--problems", type=int, default=PROBLEMS, metavar="N", help=f"of the corpus (default {PROBLEMS:,})"
    )
    parser.add_argument("--measure", action="store_true", help="measure accuracy and habits on 2,000 held-out problems")
    for each in fields(Habits):
        rate = getattr(WEAKER, each.name)
        about = f"a probability (default {rate}; in the packaged model {each.default})"
        parser.add_argument(f"--{each.name.replace('_', '-')}", type=float, default=rate, metavar="RATE", help=about)
    return parser


if __name__ == "__main__":
    sys.exit(main())
