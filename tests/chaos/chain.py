"""The workflow of the trials: ten steps, each of which needs the one before. Prompts name their row and their step."""

from __future__ import annotations

from typing import Any

from weaverant import Agent, workflow

STEPS = 10

link = Agent("link", prompt="row {{ id }} step {{ n }}: {{ text }}")


@workflow
async def chain(row: Any) -> Any:
    text = row["text"]
    for n in range(STEPS):
        text = await link(id=row["id"], n=n, text=text)
    return {"id": row["id"], "text": text}
