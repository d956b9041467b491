"""The same work for `weaverant run`: one chat call a row, and three that need one another."""

from weaverant import Agent, workflow

writer = Agent("writer", prompt="write {{ text }}")
critic = Agent("critic", prompt="criticise {{ text }}\n{{ draft }}")
reviser = Agent("reviser", prompt="revise {{ text }}\n{{ draft }}\n{{ critique }}")


@workflow
async def once(row):
    return {"draft": await writer(text=row["text"])}


@workflow
async def revised(row):
    text = row["text"]
    draft = await writer(text=text)
    critique = await critic(text=text, draft=draft)
    return {"final": await reviser(text=text, draft=draft, critique=critique)}
