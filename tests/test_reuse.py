"""`--reuse`: an edited run pays for what differs and for nothing else."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from weaverant import Agent, run, step, workflow
from weaverant.engines.scripted import Scripted
from weaverant.errors import RunChanged, StepFailed
from weaverant.journal import JournalReader
from weaverant.launch import resume
from weaverant.message import Request
from weaverant.session import Run
from weaverant.story import Storyteller
from weaverant.workflow import Workflow

ROWS = [{"topic": topic} for topic in ("ants", "bees", "cranes", "ducks")]


class Asked:
    """Says something that depends on prompt and seed, and counts by agent."""

    def __init__(self, identity: str = "asked", failing: str = "") -> None:
        self.count: Counter[str] = Counter()
        self.failing = failing
        self.engine = Scripted(self.reply, identity=identity)

    def reply(self, request: Request) -> str:
        self.count[request.agent] += 1
        if request.agent == self.failing:
            raise StepFailed("server", "down")
        return f"{request.agent}<{request.messages[-1].text}|{request.seed}>"


def chain(first: str = "", second: str = "", third: str = "", model: str = "default") -> Workflow:
    """Three agents, each asked about the reply of the one before; the arguments are edits of their prompts."""
    one = Agent("one", prompt=f"One {first} {{{{ topic }}}}")
    two = Agent("two", prompt=f"Two {second} {{{{ said }}}}", model=model)
    three = Agent("three", prompt=f"Three {third} {{{{ said }}}}")

    @workflow
    async def chained(row: Any) -> Any:
        return await three(said=await two(said=await one(topic=row["topic"])))

    return chained


def results(made: Run) -> dict[str, Any]:
    return {str(task.row): task.result for task in made}


def again(tmp_path: Path, flow: Workflow, rows: Any = ROWS, **options: Any) -> tuple[dict[str, Any], Counter[str]]:
    """Run `chain()` and then the given workflow with `reuse`: its results, and what it asked."""
    before = Asked()
    first = results(run(chain(), ROWS, models=before.engine, directory=tmp_path / "old"))
    assert before.count.total() == 3 * len(ROWS)
    asked = Asked()
    models = options.pop("models", asked.engine)
    second = run(flow, rows, models=models, directory=tmp_path / "new", reuse=tmp_path / "old", **options)
    found = results(second)
    if flow.name == "chained" and not asked.count:
        assert found == first
    return found, asked.count


def test_nothing_changed_costs_nothing(tmp_path: Path):
    assert not again(tmp_path, chain())[1]


def test_the_last_prompt_costs_one_call_a_row(tmp_path: Path):
    assert again(tmp_path, chain(third="kindly"))[1] == {"three": 4}


def test_the_first_prompt_costs_all(tmp_path: Path):
    assert again(tmp_path, chain(first="kindly"))[1] == {"one": 4, "two": 4, "three": 4}


def test_another_order_costs_nothing(tmp_path: Path):
    assert not again(tmp_path, chain(), rows=list(reversed(ROWS)))[1]


def test_new_rows_cost_their_own_calls(tmp_path: Path):
    assert again(tmp_path, chain(), rows=[{"topic": "eels"}, *ROWS])[1] == {"one": 1, "two": 1, "three": 1}


def test_another_model_is_asked_again(tmp_path: Path):
    old, new = Asked(), Asked("another")
    models = {"default": old.engine, "other": old.engine}
    run(chain(model="other"), ROWS, models=models, directory=tmp_path / "old").wait()
    old.count.clear()
    models = {"default": old.engine, "other": new.engine}
    run(chain(model="other"), ROWS, models=models, directory=tmp_path / "new", reuse=tmp_path / "old").wait()
    assert new.count == {"two": 4}
    assert old.count == {"three": 4}, "what the other model said differs, so what follows does, too"


def test_equal_requests_keep_their_replies_when_branches_move(tmp_path: Path):
    solver = Agent("solver", prompt="Solve {{ topic }}")

    def flow(count: int) -> Workflow:
        @workflow
        async def solved(row: Any) -> Any:
            if count > 2:
                await asyncio.gather(asyncio.sleep(0), asyncio.sleep(0))  # moves the branches by two
            return sorted(await asyncio.gather(*(solver(topic=row["topic"]) for _ in range(count))))

        return solved

    first, second = Asked(), Asked()
    old = results(run(flow(2), ROWS, models=first.engine, directory=tmp_path / "old"))
    new = results(run(flow(3), ROWS, models=second.engine, directory=tmp_path / "new", reuse=tmp_path / "old"))
    assert second.count == {"solver": 4}, "two of three are claimed, each once"
    for row, answers in new.items():
        assert set(old[row]) < set(answers)
        assert len(set(answers)) == 3


def test_equal_rows_are_answered_each_by_its_own(tmp_path: Path):
    """Two rows with the same content are two samples, also where the second is started after a crash."""
    twins = [{"topic": "ants"}, {"topic": "ants"}, {"topic": "bees"}]
    first = [task.result for task in run(chain(), twins, models=Asked().engine, directory=tmp_path / "old")]
    asked = Asked()
    new = run(chain(), twins, models=asked.engine, directory=tmp_path / "new", reuse=tmp_path / "old", in_flight=1)
    seen = []
    for task in new:
        seen.append(task)
        break
    going = resume(tmp_path / "new", workflow=chain(), rows=twins, models=asked.engine)
    assert {task.result for task in [*seen, *going]} <= set(first)
    reader, teller = JournalReader(tmp_path / "new"), Storyteller({}, lambda key: "")
    stories = [teller.tell(reader.task_events(task.task)) for task in reader.tasks()]
    assert sorted(story.result for story in stories) == sorted(first)
    assert len({story.result for story in stories}) == 3
    assert not asked.count


def test_a_claimed_record_is_not_given_again_after_a_crash(tmp_path: Path):
    teller = Agent("teller", prompt="Tell {{ topic }}")

    def flow(count: int) -> Workflow:
        @workflow
        async def told(row: Any) -> Any:
            return [await teller(topic=row["topic"]) for _ in range(count)]

        return told

    def moved() -> Workflow:
        @workflow
        async def told(row: Any) -> Any:
            first = await asyncio.create_task(teller(topic=row["topic"]))  # claimed by content: another branch
            await asyncio.sleep(0.2)
            return [first, await asyncio.create_task(teller(topic=row["topic"]))]

        return told

    run(flow(1), ROWS[:1], models=Asked().engine, directory=tmp_path / "old").wait()
    asked = Asked()
    new = run(moved(), ROWS[:1], models=asked.engine, directory=tmp_path / "new", reuse=tmp_path / "old")
    threading.Timer(0.1, new.stop).start()
    assert not list(new) and new.exit_code == 4
    (task,) = resume(tmp_path / "new", workflow=moved(), rows=ROWS[:1], models=asked.engine)
    assert asked.count == {"teller": 1}
    assert task.result[0] != task.result[1]


def test_no_sample_is_drawn_twice_where_the_earlier_run_broke_off(tmp_path: Path):
    """Its last two of four equal requests were answered. They answer the first two now; the others draw anew."""
    solver = Agent("solver", prompt="Solve {{ topic }}")
    begun: list[int] = []

    @workflow
    async def solved(row: Any) -> Any:
        return await asyncio.gather(*(solver(topic=row["topic"]) for _ in range(4)))

    async def broken_off(request: Request) -> str:
        begun.append(request.seed)
        if len(begun) < 3:
            await asyncio.sleep(60)
        return str(request.seed)

    old = run(solved, ROWS[:1], models=Scripted(broken_off, identity="s"), directory=tmp_path / "old", grace=0)
    threading.Timer(0.3, old.stop).start()
    assert not list(old) and len(begun) == 4
    engine = Scripted(lambda request: str(request.seed), identity="s")
    options = {"models": engine, "directory": tmp_path / "new", "reuse": tmp_path / "old"}
    (task,) = run(solved, ROWS[:1], **options)
    assert task.result[:2] == [str(seed) for seed in begun[2:]]
    assert len(set(task.result)) == 4


def test_failures_are_asked_again(tmp_path: Path):
    failing = Asked(failing="three")
    run(chain(), ROWS, models=failing.engine, directory=tmp_path / "old", max_failures=1.0).wait()
    asked = Asked()
    run(chain(), ROWS, models=asked.engine, directory=tmp_path / "new", reuse=tmp_path / "old").wait()
    assert asked.count == {"three": 4}


def test_an_edited_function_runs_again(tmp_path: Path):
    done: Counter[str] = Counter()

    def flow(edited: bool) -> Workflow:
        if edited:

            def measure(text: str) -> int:
                done["edited"] += 1
                return len(text) + 1
        else:

            def measure(text: str) -> int:
                done["first"] += 1
                return len(text)

        @workflow
        async def measured(row: Any) -> Any:
            return await step(measure, row["topic"])

        return measured

    run(flow(False), ROWS, models=Asked().engine, directory=tmp_path / "old").wait()
    run(flow(False), ROWS, models=Asked().engine, directory=tmp_path / "same", reuse=tmp_path / "old").wait()
    assert done == {"first": 4}
    run(flow(True), ROWS, models=Asked().engine, directory=tmp_path / "new", reuse=tmp_path / "old").wait()
    assert done == {"first": 4, "edited": 4}


def test_resume_refuses_what_has_changed(tmp_path: Path):
    asked = Asked()
    run(chain(), ROWS, models=asked.engine, directory=tmp_path / "run").wait()
    with pytest.raises(RunChanged, match="--reuse"):
        resume(tmp_path / "run", workflow=chain(), rows=ROWS, models=Asked("another").engine)
