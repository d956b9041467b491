"""From the command to the first request: `weaverant run`, with a warm disk, measured at a server that notes the time.

Also the import, what else loads when it is first needed, `--help`, and what a bare interpreter costs, for the ratio.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import report

WORKFLOW = """
from weaverant import Agent, workflow

agent = Agent("agent", prompt="{{ text }}")

@workflow
async def once(row):
    return {"reply": await agent(text=row["text"])}
"""
REPLY = json.dumps({"choices": [{"message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}]}).encode()
RUNS = 7


def seconds(*command: str) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - began


async def first_request(folder: Path, number: int) -> float:
    """Seconds from starting the process to its first byte at the server."""
    came: asyncio.Future[float] = asyncio.get_running_loop().create_future()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        if not came.done():
            came.set_result(time.perf_counter())
        head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(REPLY)}\r\n\r\n"
        writer.write(head.encode() + REPLY)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    began = time.perf_counter()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "weaverant.cli", "run", "once.py", "--input", "rows.jsonl",
        "--model", f"http://127.0.0.1:{port}/v1#m", "--run", f"run{number}",
        cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    took = await asyncio.wait_for(came, 30) - began
    assert await process.wait() == 0
    server.close()
    return took


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "once.py").write_text(WORKFLOW)
        (folder / "rows.jsonl").write_text('{"text": "hello"}\n')
        first = min(asyncio.run(first_request(folder, number)) for number in range(RUNS))
    bare = min(seconds(sys.executable, "-c", "pass") for _ in range(RUNS))
    imported = min(seconds(sys.executable, "-c", "import weaverant") for _ in range(RUNS)) - bare
    parts = {
        "`from weaverant import run`, above the import (s)": "from weaverant import run",
        "weaverant.schema (output types, tools), above the import (s)": "import weaverant.schema",
    }
    more = {name: min(seconds(sys.executable, "-c", code) for _ in range(RUNS)) for name, code in parts.items()}
    helped = min(seconds(sys.executable, "-m", "weaverant.cli", "--help") for _ in range(RUNS))
    rows = [
        report.row("run, to the first request (s)", first, "< 0.7", first < 0.7),
        report.row("import weaverant, above a bare interpreter (s)", imported, "< 0.150", imported < 0.150),
        report.row("weaverant --help (s)", helped, "< 0.400", helped < 0.400),
        report.row("a bare interpreter (s)", bare),
        *(report.row(name, took - bare - imported) for name, took in more.items()),
    ]
    report.table(
        ["start-up, best of 7", "seconds", "goal"], [[r["name"], f"{r['value']:.3f}", r["goal"] or ""] for r in rows]
    )
    report.finish("bench-startup", rows)


if __name__ == "__main__":
    main()
