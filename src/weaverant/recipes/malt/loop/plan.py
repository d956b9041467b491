"""What trainings will take, told before they start: template, memory and time of each, on its own data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from weaverant.recipes.malt.loop.order import Order
from weaverant.recipes.malt.team import Role
from weaverant.runtime.progress import span
from weaverant.train import DpoConfig, SftConfig, plan_dpo, plan_sft


def plans(order: Order, models: Mapping[Role, Path]) -> Iterator[str]:
    """Lines for people. A DPO is planned with the weights that its SFT begins with: theirs are of the same size."""
    seconds = 0.0
    for step in order.steps:
        model = models[step.role] if step.after else step.model
        planned = (
            plan_dpo(step.data, model, step.config)
            if isinstance(step.config, DpoConfig)
            else plan_sft(step.data, model, step.config if isinstance(step.config, SftConfig) else None)
        )
        seconds += planned.seconds
        for line in planned.lines():
            yield f"{step.name}: {line}"
    if seconds:
        yield f"all trainings one after the other: about {span(seconds)}"
