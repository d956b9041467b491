"""The flags of `train` and `improve`, in groups, since neither method of training has them all."""

from __future__ import annotations

import argparse
from collections.abc import Callable

Add = Callable[..., argparse.Action]


def train_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    methods = "sft: learn replies; dpo: learn to prefer replies; malt: all roles of a run, by both"
    add("method", metavar="METHOD", choices=("sft", "dpo", "malt"), help=methods)
    about = "a .jsonl file of `weaverant export`: conversations for sft, pairs for dpo; for malt a run's directory"
    add("data", metavar="DATA", help=about)
    add("--model", required=True, metavar="FOLDER", help="the model to begin with, or embedded:tiny")
    add("--out", required=True, metavar="FOLDER", help="a new folder; the same training, cut off there, goes on")
    add("--epochs", type=int, metavar="N", help="how often each sample is seen (default: 3)")
    add("--lr", type=float, metavar="RATE", help="the highest learning rate (default: 3e-4; dpo: 1e-4)")
    add("--force", action="store_true", help="train anew in a folder that holds a training")
    add("--dry-run", action="store_true", help="check data, template, memory and time; write nothing")
    add("--quiet", action="store_true", help="no progress, no summary")
    dpo = _dpo_flags(parser, "dpo and malt", weight="0; malt: 1")
    dpo("--reference", metavar="FOLDER", help="what preferences are measured against (default: --model)")
    malt = _roles_flags(parser, "malt")
    malt("--theta", type=float, metavar="T", help="good is a value above it (default: as the run's trees)")
    malt("--values", choices=("global", "local"), help="another rule for values (see the recipe)")
    malt("--min-confidence", type=float, metavar="P", help="leave out replies that are less sure")
    malt("--max-pairs", type=int, metavar="N", help="most pairs under one parent")
    malt("--no-star", action="store_true", help="no STaR baseline")
    _optimiser_flags(parser)


def improve_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("recipe", metavar="RECIPE", choices=("malt",), help="malt")
    add("--problems", metavar="ROWS", help="rows with question and answer (default: arithmetic:weave)")
    add("--held-out", metavar="ROWS", help="others, for gate and tables (default: a share of the problems)")
    add("--model", metavar="SPEC", help="what plays the base (default: embedded:tiny, or what --train names)")
    add("--train", metavar="FOLDER", help="the base's weights (default: those of --model)")
    add("--rounds", type=int, metavar="R", help="of weaving and training (default: 1)")
    add("--questions", type=int, metavar="N", help="woven in a round (default: 300)")
    add("--gate-problems", type=int, metavar="N", help="that decide about a round (default: 500)")
    add("--held-out-problems", type=int, metavar="N", help="of the tables at the end (default: 1000)")
    add("--seeds", type=int, metavar="K", help="of the tables: each problem so often (default: 3)")
    add("--theta", metavar="T,T...", help="good is a value above it; one for each round (default: 0.5)")
    add("--gate-on", choices=("vote", "pass"), help="what the gate compares (default: vote)")
    add("--branching", metavar="N", help="replies to each prompt, or N,N,N by role (default: 3)")
    add("--checker", metavar="NAME", help="as for `run malt` (default: auto)")
    add("--prompts", choices=("auto", "tiny", "chat"), help="as for `run malt` (default: auto)")
    add("--set", action="append", default=[], metavar="ROLE.FIELD=VALUE", help="change a role's agent in all phases")
    about = "transformers, vllm, or a command with {folder}, {port} and {name}: for folders that are not embedded"
    add("--serve", metavar="HOW", help=about)
    add("--out", metavar="DIR", help="where everything is; the same command goes on there (default: improved)")
    add("--budget", type=float, metavar="DOLLARS", help="what all calls may cost together, in US dollars (0: no cap)")
    add("--no-tables", action="store_true", help="no evaluation of all systems at the end")
    add("--dry-run", action="store_true", help="check everything, tell what it will take; ask nobody, write nothing")
    add("--quiet", action="store_true", help="no progress, no tables; the JSON line alone")
    add("--epochs", type=int, metavar="N", help="of SFT (default: 3)")
    add("--lr", type=float, metavar="RATE", help="the highest learning rate of SFT (default: 3e-4)")
    _dpo_flags(parser, "DPO", weight="1")
    _roles_flags(parser, "the roles' trainings")
    _optimiser_flags(parser)


def _dpo_flags(parser: argparse.ArgumentParser, title: str, weight: str) -> Add:
    add = parser.add_argument_group(title).add_argument
    add("--beta", type=float, metavar="B", help="how dear it is to leave the reference (default: 0.2)")
    about = f"weight of the chosen replies' own likelihood (default: {weight})"
    add("--sft-weight", type=float, metavar="W", help=about)
    add("--warn-fall", type=float, metavar="NATS", help="warn when chosen replies lose so much (default: 2)")
    return add


def _roles_flags(parser: argparse.ArgumentParser, title: str) -> Add:
    add = parser.add_argument_group(title).add_argument
    add("--dpo-epochs", type=int, metavar="N", help="epochs of DPO (default: 3)")
    add("--dpo-lr", type=float, metavar="RATE", help="the highest learning rate of DPO (default: 3e-4)")
    about = "trainings at once (default, or 0: one for each core with small models, else 1)"
    add("--jobs", type=int, metavar="N", help=about)
    return add


def _optimiser_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("how a model is trained").add_argument
    add("--batch-size", type=int, metavar="N", help="samples to a step, of all processes together (default: 64)")
    add("--micro-batch", type=int, metavar="N", help="samples in memory at once (default: the whole batch)")
    add("--max-length", type=int, metavar="N", help="leave out longer samples (default: what the model takes, to 4096)")
    add("--lora", type=int, metavar="RANK", help="train an adapter of that rank (default: all weights)")
    add("--lora-alpha", type=int, metavar="N", help="the adapter counts N / RANK (default: twice the rank)")
    add("--warmup", type=float, metavar="SHARE", help="share of the steps in which the rate rises (default: 0)")
    add("--schedule", choices=("constant", "linear", "cosine"), help="how the rate falls (default: linear)")
    add("--weight-decay", type=float, metavar="D", help="of AdamW (default: 0)")
    add("--seed", type=int, metavar="N", help="of the samples' order and of new adapters (default: 0)")
    add("--save-every", type=int, metavar="N", help="steps between checkpoints (default: a tenth of all)")
    add("--device", choices=("auto", "cpu", "cuda"), help="where (default: auto: the GPU if there is one)")
    add("--threads", type=int, metavar="N", help="of the processor (default: 1 for small models)")
