"""LangGraph: a graph of one node that asks ChatOpenAI, no checkpointer, `abatch` over the rows."""

from __future__ import annotations

import asyncio
import json
from typing import TypedDict

from asked import Asked, asked, tell, texts
from langchain_openai import ChatOpenAI
from langgraph.graph import END, START, StateGraph


class State(TypedDict, total=False):
    text: str
    draft: str


async def generate(given: Asked) -> list[State]:
    model = ChatOpenAI(model="light", base_url=given.url, api_key="none", max_retries=2)

    async def write(state: State) -> State:
        reply = await model.ainvoke(f"write {state['text']}")
        return {"draft": reply.content}

    graph = StateGraph(State)
    graph.add_node("write", write)
    graph.add_edge(START, "write")
    graph.add_edge("write", END)
    return await graph.compile().abatch(texts(given.rows), {"max_concurrency": given.at_once})


def main() -> None:
    given = asked()
    done = asyncio.run(generate(given))
    with (given.folder / "out.jsonl").open("w") as out:
        out.writelines(json.dumps(row) + "\n" for row in done)
    tell("langgraph", sum(bool(row.get("draft")) for row in done))


if __name__ == "__main__":
    main()
