"""What a hop costs where no other load on the machine can disturb the figure: machine instructions, and bytecodes.

Instructions are those of the whole process, counted by `valgrind --tool=cachegrind`; start-up is subtracted by
counting a short run and a longer one. Bytecodes and Python calls are counted by tracing, by function, without
valgrind. Neither sees the caches, so time can differ between two versions of equal counts; but a change that lowers
neither is noise. Not part of `make bench`: it takes minutes.

    python bench/instructions.py                 the table
    python bench/instructions.py --functions 40  and the functions with the most bytecodes
    python bench/instructions.py --parts         and what a hop saves without each of its parts, one at a time
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import bench_hops
import report
import workloads

SHORT, LONG = 400, 2_000
"""Tasks of the two runs."""
IN_FLIGHT = 200

PARTS = {
    "compressing what is written": "import weaverant.journal.segment as m; m.COMPRESS_FROM = 1 << 40",
    "the index of the journal": "import weaverant.journal.index as m; m.SegmentIndex.note = lambda *a: None",
    "counts by agent": (
        "import weaverant.runtime.ledger as m\n"
        "m.AgentCounts.count = lambda self, event: setattr(self, '_calls', self._calls + 1)"
    ),
    "the fingerprint": "import weaverant.binding as m; m.Bound.fingerprint = lambda *a: b'0123456789abcdef'",
    "the task's clock": "import weaverant.task as m; m.TaskRun.clock = lambda *a: 0.0",
    "looking an engine's reply over": "import weaverant.runtime.calls as m; m.checked = lambda reply, model: reply",
    "the hooks for asynchronous generators": (
        "import weaverant.replay as m\n"
        "m.get_asyncgen_hooks = lambda: (None, None)\n"
        "m.set_asyncgen_hooks = lambda *a: None"
    ),
    "the task's own sum of usage": "import weaverant.task as m; m.UsageSum.add = lambda *a: None",
    "asyncio's list of all tasks": "import _weakrefset as m; m.WeakSet.add = lambda *a: None",
}
"""What each of them costs, shown by doing without it: the runs end, but could not be used."""


def instructions(workload: str, journal: bool, first: str = "", weave: str = "weave") -> float:
    """Thousands of machine instructions a hop, after the Python statements `first`."""
    return _per_hop(f"{first}\nimport bench_hops as b; made = b.{weave}({workload!r}, TASKS, {IN_FLIGHT}, {journal})")


def _per_hop(code: str) -> float:
    """Of `code`, which gives `made` for `TASKS` tasks, its hops first."""
    (few, hops), (many, more) = (_counted(code.replace("TASKS", str(tasks))) for tasks in (SHORT, LONG))
    return (many - few) / (more - hops) / 1e3


def per_row() -> float:
    """Thousands of instructions that a row of W2 takes besides its hops."""
    one, all_hops = (
        _per_hop(f"import workloads; workloads.RING_HOPS = {hops}\n{_ROWS}") for hops in (1, workloads.RING_HOPS)
    )
    return one - (all_hops - one) / (workloads.RING_HOPS - 1)


_ROWS = f"import bench_hops as b; b.weave('w2', TASKS, {IN_FLIGHT}, True); made = (TASKS,)"


def _counted(code: str) -> tuple[int, int]:
    valgrind = ["valgrind", "--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null"]
    folder = Path(__file__).parent
    env = os.environ | {"PYTHONHASHSEED": "0", "PYTHONPATH": f"{folder}:{os.environ.get('PYTHONPATH', '')}"}
    done = subprocess.run(
        [*valgrind, sys.executable, "-c", f"{code}; print(made[0])"],
        env=env,
        capture_output=True,
        text=True,
        check=True,
    )
    found = re.search(r"I\s+refs:\s+([\d,]+)", done.stderr)
    assert found is not None, done.stderr
    return int(found[1].replace(",", "")), int(done.stdout)


Weave = Callable[[str, int, int, bool], bench_hops.Measured]


class Bytecodes:
    """Counts what runs in this thread, by function."""

    def __init__(self) -> None:
        self.executed: Counter[CodeType] = Counter()
        self.called: Counter[CodeType] = Counter()

    def call(self, frame: FrameType, event: str, arg: Any) -> Any:
        self.called[frame.f_code] += 1
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return self.step

    def step(self, frame: FrameType, event: str, arg: Any) -> Any:
        if event == "opcode":
            self.executed[frame.f_code] += 1
        return self.step


def bytecodes(workload: str, journal: bool, tasks: int = 500, weave: Weave = bench_hops.weave) -> tuple[Bytecodes, int]:
    counted = Bytecodes()
    sys.settrace(counted.call)
    try:
        hops, *_ = weave(workload, tasks, IN_FLIGHT, journal)
    finally:
        sys.settrace(None)
    return counted, hops


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--functions", type=int, default=0, metavar="N", help="of W2, durable: the N with the most")
    parser.add_argument("--parts", action="store_true", help="of W2, durable")
    options = parser.parse_args()
    lines: list[list[Any]] = []
    rows = []
    counts = shutil.which("valgrind") is not None
    for workload in ("w1", "w2"):
        for kind, journal in (("durable", True), ("no journal", False)):
            for whose, weave in (("", "weave"), ("lean runtime, ", "leanly")):
                counted, hops = bytecodes(workload, journal, weave=getattr(bench_hops, weave))
                found = instructions(workload, journal, weave=weave) if counts else None
                codes, calls = counted.executed.total() / hops, counted.called.total() / hops
                name = f"{workload} {whose}{kind}"
                lines.append([name, "-" if found is None else found, codes, calls])
                rows.append(report.row(f"{name}: thousand instructions per hop", found))
                rows.append(report.row(f"{name}: bytecodes per hop", codes))
    if counts:
        for name, found in (
            ("w2, the least that is durable", _per_hop(f"import least; made = least.weave(TASKS, {IN_FLIGHT})")),
            ("w2, bare asyncio", _per_hop(f"import bench_hops as b; made = b.bare('w2', TASKS, {IN_FLIGHT})")),
            ("w2, a row besides its hops", per_row()),
        ):
            lines.append([name, found, "", ""])
            rows.append(report.row(f"{name}: thousand instructions", found))
    report.table(["a hop of", "1,000 instructions", "bytecodes", "Python calls"], lines)
    if options.parts:
        whole = instructions("w2", journal=True)
        saved = {part: whole - instructions("w2", True, first) for part, first in PARTS.items()}
        report.table(["of a hop of W2, durable", "1,000 instructions"], [["all", whole], *map(list, saved.items())])
    if options.functions:
        counted, hops = bytecodes("w2", journal=True)
        for code, count in counted.executed.most_common(options.functions):
            place = f"{Path(code.co_filename).name}:{code.co_qualname}"
            print(f"{count / hops:8.1f} bytecodes in {counted.called[code] / hops:5.2f} calls of {place}")
    report.finish("instructions", rows)


if __name__ == "__main__":
    main()
