"""Makes the pool from nothing: weights, then what they are measured to be. One core is enough.

    pip install -e . torch && python training/specialists/make.py

It is budgeted in steps, never in seconds, and every draw has a fixed seed that depends on the member's name alone:
members may be taught in any order, or in several processes at once (`make.py teach --only addition,sorting`). Each
stage begins with what the one before it left in `--work`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from random import Random

import torch
from corpus import long, short
from measure import measured, write_cards
from members import MEMBERS, MODELS, NAMES, Member

from checkpoint import save  # isort: skip
from gpt2 import fresh
from problems import SETS, Problem, problem
from sample import heard
from teach import shape_of, teach

from weaverant.engines.gpt2 import safetensors
from weaverant.routing.tiny_prompts import ANSWER, answer, ask

STAGES = ("teach", "candidates", "again", "measure")
CANDIDATES = 2_000
"""Training problems that all are asked."""
SAMPLES = 2
"""Answers of each to each."""


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="*", default=STAGES, metavar="STAGE", help=" ".join(STAGES))
    parser.add_argument("--work", type=Path, default=Path("out/specialists"), help="what stages leave to the next")
    parser.add_argument("--only", default="", help="names of models to teach, with commas")
    options = parser.parse_args(arguments)
    if unknown := set(options.stages) - set(STAGES):
        parser.error(f"no such stage: {', '.join(sorted(unknown))}")
    torch.set_num_threads(1)
    options.work.mkdir(parents=True, exist_ok=True)
    wanted = options.only.split(",") if options.only else [each.name for each in MEMBERS]
    members = sorted((each for each in MEMBERS if each.name in wanted), key=lambda each: wanted.index(each.name))
    if "teach" in options.stages:
        for member in members:
            teach_first(member, options.work)
    if "candidates" in options.stages:
        candidates(options.work)
    if "again" in options.stages:
        for member in members:
            teach_again(member, options.work)
    if "measure" in options.stages:
        logs = {each.name: options.work / f"{each.name}.json" for each in MEMBERS}
        write_cards(measured(), {name: json.loads(log.read_text()) for name, log in logs.items() if log.exists()})


def teach_first(member: Member, work: Path) -> None:
    """From fresh weights to ones that know every kind of prompt."""
    began, weights = time.process_time(), fresh(shape_of(member), 0)
    examples = short(member, Random(f"short {member.name}")), long(member, Random(f"long {member.name}"))
    losses = teach(weights, member, *examples, member.steps, member.rate)
    save(work / member.name, weights, shape_of(member))
    (work / f"{member.name}.json").unlink(missing_ok=True)
    _log(work, member, time.process_time() - began, losses)


def candidates(work: Path) -> None:
    """What all members answer to training problems: the second phase tells of these."""
    dice = Random("candidates")
    problems = [problem(dice.choice(SETS), "train", dice) for _ in range(CANDIDATES)]
    said = {
        name: [
            [answer(one.text)[:ANSWER] for one in replies]
            for replies in heard(work / name, [ask(it.question) for it in problems], SAMPLES)
        ]
        for name in NAMES
    }
    rows = [[vars(it), {name: said[name][at] for name in NAMES}] for at, it in enumerate(problems)]
    (work / "candidates.json").write_text(json.dumps(rows))


def teach_again(member: Member, work: Path) -> None:
    """The second phase: at half the rate, with real answers of others."""
    began = time.process_time()
    read = safetensors.read(work / member.name / "model.safetensors")
    weights = {name: torch.from_numpy(tensor.copy()).requires_grad_() for name, tensor in read.items()}
    drawn = [(Problem(**it), said) for it, said in json.loads((work / "candidates.json").read_text())]
    examples = short(member, Random(f"again {member.name}")), long(member, Random(f"later {member.name}"), drawn)
    losses = teach(weights, member, *examples, member.later, member.rate / 2)
    save(MODELS / member.name, weights, shape_of(member))
    _log(work, member, time.process_time() - began, losses)


def _log(work: Path, member: Member, seconds: float, losses: tuple[float, float]) -> None:
    """Adds to the processor time of a member; the losses are the last ones."""
    log = work / f"{member.name}.json"
    before = json.loads(log.read_text())["seconds"] if log.exists() else 0.0
    found = {"seconds": round(before + seconds, 1), "loss, short": losses[0], "loss, long": losses[1]}
    log.write_text(json.dumps(found))


if __name__ == "__main__":
    sys.exit(main())
