"""What the dummy agents say, as a script that every process can open: `scripted:bench/dummy_answers.py`."""

from workloads import answer

from weaverant import Reply, Request


def reply(request: Request) -> Reply:
    return Reply(answer(request.agent, request.seed, len(request.messages)), model="dummy")
