"""Progress as pure functions: what is seen of a run, and the lines it becomes."""

from __future__ import annotations

import asyncio
import io
import re
import threading
import time
from pathlib import Path

import pytest

from weaverant import Agent, Reply, Run, resume, run, step, workflow
from weaverant.engines.scripted import Scripted
from weaverant.events import StepEnded
from weaverant.message import Usage, assistant
from weaverant.runtime import progress
from weaverant.runtime.ledger import AgentCounts, Ledger
from weaverant.runtime.limits import Limits
from weaverant.runtime.progress import Pace, Progress, Snapshot, StageProgress, block, fit, line, money, short, span


def doubled(number: int) -> int:
    return 2 * number


PLAIN = re.compile(r"\x1b\[[0-9]*[A-Za-z]")


class Watched:
    """A run of one stage that stands where the test puts it."""

    def __init__(self, *stages: str) -> None:
        self.ledger = Ledger(list(stages or ("answers",)))
        self.in_flight = (3, 2)
        self.state = "running"
        self.limits = Limits()
        self.notes: list[str] = []
        self.priced = True

    @property
    def spent(self) -> float:
        return self.ledger.usage().cost

    def end(self, done: int = 0, failed: int = 0, calls: int = 0, tokens: int = 0) -> None:
        stage = self.ledger.stages[0]
        stage.rows += done + failed
        stage.done += done
        stage.failed["server"] += failed
        counts = self.ledger.agents.setdefault(("model", "writer"), AgentCounts())
        for call in range(calls):
            usage = Usage(completion_tokens=0 if call else tokens, cost=0.01)
            counts.count(StepEnded("0", "", b"", 0, "model", "writer", "", {}, "reply", "text", 0.0, 0.1, 0.0, usage))


def shot(**changes: object) -> Snapshot:
    stage = StageProgress("answers", 1000, True, 240, 7, 3)
    known = {"stages": (stage,), "rows_in_flight": 12, "calls_in_flight": 8, "calls": 500, "call_rate": 50.0}
    known |= {"token_rate": 12_345.0, "cost": 0.0123, "elapsed": 10.0, "eta": 30.0}
    return Snapshot(**{**known, **changes})  # type: ignore[arg-type]


def test_rates_are_those_of_the_last_seconds_and_the_rest_takes_as_long_as_it_did_so_far():
    run = Watched()
    pace = Pace(0.0)
    pace.look(run, 100, 0.0)
    run.end(done=10, calls=20, tokens=1000)
    found = pace.look(run, 100, 10.0)
    assert (found.call_rate, found.token_rate, found.eta) == (2.0, 100.0, 90.0)
    run.end(done=10, calls=200, tokens=0)
    found = pace.look(run, 100, 20.0)
    found = pace.look(run, 100, 26.0)  # the first 10 s are forgotten
    assert found.call_rate == pytest.approx(200 / 16)
    assert found.eta == pytest.approx(26 / 20 * 80)


def test_a_resumed_run_is_judged_by_this_session():
    run = Watched()
    run.end(done=50)
    run.ledger.earlier = 50
    pace = Pace(0.0)
    assert pace.look(run, 100, 0.0).eta is None
    run.end(done=5)
    assert pace.look(run, 100, 1.0).eta == pytest.approx(1 / 5 * 45)


def test_what_ended_before_the_first_look_counts():
    run = Watched()
    pace = Pace(0.0)
    run.end(done=49)
    assert pace.look(run, 400, 1.0).eta == pytest.approx(1 / 49 * 351)
    run.end(done=1)
    assert pace.look(run, 400, 1.1).eta == pytest.approx(1.1 / 50 * 350)


@pytest.mark.parametrize("state", ["ready", "finished", "pilot", "budget", "interrupted"])
def test_a_run_that_does_not_go_on_has_no_time_left(state: str):
    run = Watched()
    pace = Pace(0.0)
    run.end(done=50)
    assert pace.look(run, 400, 1.0).eta is not None
    run.state = state
    found = pace.look(run, 400, 2.0)
    assert found.eta is None and "left" not in line(found) + "".join(block(found, 200))


def test_a_resumed_run_knows_what_had_ended_before(tmp_path: Path):
    @workflow
    async def same(row: int) -> int:
        return row

    first = run(same, range(40), models="simulated:", directory=tmp_path, pilot=15).wait()
    assert (first.ledger.earlier, first.ledger.ended_rows) == (0, 15)
    again = resume(tmp_path, workflow=same, rows=range(40), models="simulated:").wait()
    assert (again.ledger.earlier, again.ledger.ended_rows) == (15, 40)


@pytest.mark.parametrize("budget", [0.0, 1.0])
def test_a_resumed_run_shows_the_rows_calls_and_dollars_of_all_its_sessions(tmp_path: Path, budget: float):
    """Every call costs a cent. Each row calls a tool as well, which is no call of a model."""
    agent = Agent("a", prompt="{{ n }}", max_tokens=10)

    @workflow
    async def ask(row: dict[str, int]) -> str:
        return await agent(n=await step(doubled, row["n"]))

    def shown(going: Run) -> str:
        return line(Pace(0.0).look(going, 40, 1.0))

    models = Scripted(lambda request: Reply(assistant("x"), usage=Usage(1, 1, cost=0.01)), identity="s")
    rows = [{"n": n} for n in range(40)]
    of = " of $1.0000" if budget else ""
    first = run(ask, rows, models=models, directory=tmp_path, pilot=15, budget=budget).wait()
    assert f"15 calls, 15.0/s, 30 tokens/s, $0.1500{of};" in shown(first)
    again = resume(tmp_path, workflow=ask, rows=rows, models=models).wait()
    assert again.ledger.calls == 25, "those of the session"
    assert shown(again).startswith("40 of 40 rows")
    assert f"40 calls, 25.0/s, 50 tokens/s, $0.4000{of};" in shown(again)


def test_nobody_knows_when_it_ends_once_nothing_ends_for_longer_than_was_reckoned():
    run = Watched()
    pace = Pace(0.0)
    run.end(done=196)
    assert pace.look(run, 200, 4.0).eta == pytest.approx(4 / 196 * 4)
    assert pace.look(run, 200, 13.0).eta is not None
    found = pace.look(run, 200, 14.5)
    assert found.eta is None and "left" not in line(found)
    run.end(done=1)
    assert pace.look(run, 200, 20.0).eta == pytest.approx(20 / 197 * 3)
    run = Watched()
    pace = Pace(0.0)
    run.end(done=10)
    assert pace.look(run, 1000, 5.0).eta == pytest.approx(495.0)
    assert pace.look(run, 1000, 30.0).eta == pytest.approx(2970.0), "such slow rows end seldom"


@pytest.mark.parametrize("live", [True, False])
def test_functions_that_all_wait_for_are_named(monkeypatch: pytest.MonkeyPatch, live: bool):
    monkeypatch.setattr(progress, "QUIET", 0.5)
    monkeypatch.setattr(progress, "FIRST_LINE_AFTER", 0.1)
    monkeypatch.setattr(progress, "LINE_EVERY", 0.1)
    released, stream = threading.Event(), io.StringIO()

    @workflow
    async def waits(row: dict[str, int]) -> int:
        if row["n"] in (3, 5):
            await asyncio.sleep(0.2 if row["n"] == 5 else 0.0)
            await step(released.wait)
        return await step(doubled, row["n"])

    async def go() -> list[int]:
        going = run(waits, [{"n": n} for n in range(8)], models="simulated:", journal=False)
        drawing = asyncio.create_task(Progress(going, 8, stream, live).draw())
        ended: list[int] = []
        try:
            async for task in going:
                ended.append(task.row["n"])
                if len(ended) == 6:
                    asyncio.get_running_loop().call_later(2.5, released.set)
        finally:
            released.set()
            drawing.cancel()
        return ended

    began = time.monotonic()
    ended = asyncio.run(go())
    assert sorted(ended[6:]) == [3, 5] and time.monotonic() - began >= 2.5
    shots = [text for text in re.split("[\n;]", PLAIN.sub("", stream.getvalue())) if "waiting for" in text]
    named = [
        re.fullmatch(r" ?waiting for Event\.wait\(\) for (\d+) s, row 0\.3\.0, and \d more", text) for text in shots
    ]
    assert named and all(named), shots
    assert {int(match[1]) for match in named if match} <= {0, 1, 2, 3}
    assert "about" not in stream.getvalue().partition("waiting for")[2], "nobody knows when it ends"


def test_nobody_knows_when_it_ends_while_the_rows_are_not_known():
    run = Watched()
    pace = Pace(0.0)
    pace.look(run, None, 0.0)
    run.end(done=5)
    found = pace.look(run, None, 1.0)
    assert found.eta is None
    assert "5 of 5 so far" in "\n".join(block(found, 200))


def test_the_block_tells_all():
    text = "\n".join(block(shot(), 200))
    for piece in ("250 of 1,000 (25 %)", "done 240", "rejected 7", "failed 3", "500 calls, 50.0/s", "12.3k tokens/s"):
        assert piece in text
    for piece in ("$0.0123", "12 rows, 8 calls", "10 s elapsed", "about 30 s left"):
        assert piece in text
    assert "\x1b" not in text
    assert "\x1b[31mfailed 3\x1b[0m" in block(shot(), 200, colour=True)[0]


def test_what_engines_tell_stands_in_the_block_four_lines_at_most():
    notes = tuple(f"server {n}: 3 of 8 in flight" for n in range(7))
    text = block(shot(notes=notes, budget=5.0, cost=1.23), 200)
    assert "$1.23 of $5.00" in text[1]
    assert text[2:-1] == [*notes[:4], "and 3 more"]
    assert block(shot(notes=notes[:4]), 200)[2:-1] == list(notes[:4])
    assert line(shot(notes=notes)).endswith("; ".join(["", *notes[:4], "and 3 more"]))
    assert line(shot(notes=notes[:2])).endswith("; ".join(["", *notes[:2]]))
    assert "$1.23 of $5.00;" in line(shot(budget=5.0, cost=1.23))
    assert ", cost unknown;" in line(shot(cost=0.0, priced=False)) and "$0.00;" in line(shot(cost=0.0))


def test_dollars_of_one_line_have_as_many_decimals():
    for cost, budget, text in (
        (0.0, 0.9, "$0.0000 of $0.9000"), (0.12, 5.0, "$0.1200 of $5.0000"), (0.0, 5.0, "$0.00 of $5.00"),
        (1234.5, 2000.0, "$1,234.50 of $2,000.00"),
    ):  # fmt: skip
        assert f", {text};" in line(shot(cost=cost, budget=budget))


def test_a_good_end_is_no_stop():
    assert block(shot(state="finished", eta=None), 200)[-1] == "10 s elapsed"


def test_a_stop_shows():
    assert "stopping (interrupted)" in block(shot(state="interrupted"), 200)[-1]


@pytest.mark.parametrize("width", [20, 40, 60, 89, 120])
def test_no_line_is_wider_than_the_terminal(width: int):
    for text in block(shot(), width, colour=True):
        assert len(PLAIN.sub("", text)) <= width
        assert text.count("\x1b") % 2 == 0
    assert "done 240" in block(shot(), 60)[0]  # the bar gives way first


def test_fit_does_not_cut_an_escape_code():
    assert fit("ab\x1b[31mcdef\x1b[0m", 3) == "ab\x1b[31mc\x1b[0m"


def test_the_plain_line_names_stages_where_there_are_several():
    two = (StageProgress("find", 10, True, 9, 0, 1), StageProgress("merge", 4, False, 2, 1, 0))
    assert line(shot(stages=two)).startswith(
        "find: 10 of 10 rows (done 9, rejected 0, failed 1); merge: 3 of 4 rows so far (done 2, rejected 1, failed 0); "
    )


def test_numbers():
    assert [span(seconds) for seconds in (0.4, 59, 61, 3600 * 2 + 187)] == ["0 s", "59 s", "1:01", "2:03:07"]
    assert [short(number) for number in (7, 950, 12_345, 4_560_000, 2.5e9)] == ["7", "950", "12.3k", "4.56M", "2.5G"]
    assert [money(dollars) for dollars in (0, 0.00213, 1.5, 1234.5)] == ["$0.00", "$0.0021", "$1.50", "$1,234.50"]


def test_the_block_is_redrawn_in_place_and_a_said_line_stays_above_it():
    stream = io.StringIO()
    progress = Progress(Watched(), 10, stream, live=True)

    async def draw() -> None:
        drawing = asyncio.create_task(progress.draw())
        await asyncio.sleep(0)
        progress.say("hello")
        await asyncio.sleep(0.3)
        drawing.cancel()
        progress.finish()

    asyncio.run(draw())
    text = stream.getvalue()
    assert text.count("\x1b[3A\r\x1b[J") == 3  # for the line, once by time, once at the end
    assert "\x1b[3A\r\x1b[Jhello\n" in text


def test_a_stream_that_went_away_does_not_end_the_run():
    stream = io.StringIO()
    stream.close()
    watched = Watched()
    Progress(watched, 10, stream, live=False).finish()
    assert stream.closed and watched.state == Watched().state, "the run went on as if nothing had been"
